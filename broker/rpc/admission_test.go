package rpc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func isDisk(r string) bool { return strings.HasPrefix(r, "disks/") }

// queueUp has requests arrive one after the other while one slot is held, and says in which order they are served.
func queueUp(t *testing.T, a *Admission, names []string, cancel map[string]bool) (served, refused []string) {
	t.Helper()
	hold := make(chan struct{})
	var mu sync.Mutex
	var wg sync.WaitGroup
	ask := func(ctx context.Context, name string, wait chan struct{}) {
		_, err := a.Intercept(ctx, &pb.ReleaseRequest{Resources: []string{name}}, releaseInfo, func(context.Context, any) (any, error) {
			if wait != nil {
				<-wait
			}
			mu.Lock()
			defer mu.Unlock()
			served = append(served, name)
			return nil, nil
		})
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, name)
			if s := status.Convert(err); !errors.Is(err, context.Canceled) && (s.Code() != codes.ResourceExhausted || retryDelay(s) == 0) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	wg.Go(func() { ask(t.Context(), "holder", hold) })
	synctest.Wait()
	for _, n := range names {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		wg.Go(func() { ask(ctx, n, nil) })
		synctest.Wait()
		if cancel[n] {
			stop()
			synctest.Wait()
		}
	}
	close(hold)
	wg.Wait()
	if a.Waiting() != 0 {
		t.Errorf("%d still counted", a.Waiting())
	}
	return served[1:], refused
}

func TestDiskKeysFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 10, QueueTime: time.Hour}, isDisk)
		served, _ := queueUp(t, a, []string{"db/1", "disks/1", "db/2", "disks/2", "gone/3"}, map[string]bool{"gone/3": true})
		if want := []string{"disks/1", "disks/2", "db/1", "db/2"}; !slices.Equal(served, want) {
			t.Errorf("served %v, want %v", served, want)
		}
	})
}

// TestDiskKeyTakesAPlace: in a full queue a disk key displaces the normal request that came last, and never the other way round.
func TestDiskKeyTakesAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 3, QueueTime: time.Hour}, isDisk)
		served, refused := queueUp(t, a, []string{"db/1", "db/2", "disks/1", "db/3", "disks/2", "disks/3", "disks/4"}, nil)
		if want := []string{"disks/1", "disks/2", "disks/3"}; !slices.Equal(served, want) {
			t.Errorf("served %v, want %v", served, want)
		}
		if want := []string{"db/3", "db/2", "db/1", "disks/4"}; !slices.Equal(refused, want) {
			t.Errorf("refused %v, want %v", refused, want)
		}
	})
}

// TestNobodyStarves: one slot in 64 is for whoever has waited longest for something else.
func TestNobodyStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 4 * fair, QueueTime: time.Hour}, isDisk)
		names := []string{"db/1", "db/2"}
		for i := range 3 * fair {
			names = append(names, fmt.Sprintf("disks/%d", i))
		}
		served, _ := queueUp(t, a, names, nil)
		if first, second := slices.Index(served, "db/1"), slices.Index(served, "db/2"); first != fair || second != 2*fair+1 {
			t.Errorf("served at places %d and %d of %v", first, second, served)
		}
	})
}

// TestMixedRequest: one application secret beside a disk key makes the request a normal one.
func TestMixedRequest(t *testing.T) {
	a := NewAdmission(Limits{Concurrency: 1}, isDisk)
	for resources, want := range map[string]int{"disks/1": boot, "disks/1 disks/2": boot, "disks/1 db/1": normal, "": normal} {
		if got := a.class(strings.Fields(resources)); got != want {
			t.Errorf("%q: class %d, want %d", resources, got, want)
		}
	}
}

// TestComeBackSpread: those who are refused in one moment are called back one
// by one, not before the queue has drained, in more time the longer it is, and
// within a minute.
func TestComeBackSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const turn = 10 * time.Millisecond
		refusals := func(queue, n int) (asked []time.Duration) {
			a := NewAdmission(Limits{Concurrency: 2, Queue: queue, QueueTime: time.Hour}, isDisk)
			a.took, a.running = 2*turn, 2
			for range queue {
				if _, err := a.enter(boot); err != nil {
					t.Fatal(err)
				}
			}
			for range n {
				_, err := a.enter(boot)
				asked = append(asked, retryDelay(status.Convert(err)))
			}
			return asked
		}
		asked := refusals(400, 1000)
		perSecond := map[time.Duration]int{}
		for i, d := range asked {
			if d < 402*turn || d > 402*turn+1000*turn+minBack/4 {
				t.Errorf("refusal %d is asked to come back in %s", i, d)
			}
			perSecond[d/time.Second]++
		}
		for s, n := range perSecond {
			if limit := int((time.Second + minBack/4) / turn); n > limit {
				t.Errorf("%d come back in second %d, more than the %d that it can serve", n, s, limit)
			}
		}
		if short, long := refusals(200, 1)[0], refusals(2000, 1)[0]; long < 5*short {
			t.Errorf("asked to come back in %s with 200 in the queue and %s with 2000", short, long)
		}
		late := map[time.Duration]bool{}
		for i, d := range refusals(100, 20000) {
			if d < minBack || d > maxBack+minBack/4 {
				t.Fatalf("refusal %d is asked to come back in %s", i, d)
			}
			if i >= 10000 {
				late[d/time.Second] = true
			}
		}
		if len(late) < 25 {
			t.Errorf("those beyond a minute come back in %d different seconds", len(late))
		}
	})
}

// TestBounds has requests of both classes come, leave early and be served in no
// order: neither the queue nor what runs is ever beyond its bound, nothing is
// lost, and nothing stays.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const concurrency, queue, n = 4, 32, 3000
		a := NewAdmission(Limits{Concurrency: concurrency, Queue: queue, QueueTime: 2 * time.Second}, isDisk)
		var mu sync.Mutex
		running, results, waits := 0, map[codes.Code]int{}, map[string]int{}
		a.Waited = func(class string, d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			waits[class]++
			if d < 0 || d > 2*time.Second {
				t.Errorf("a %s request waited %s", class, d)
			}
		}
		check := func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.running > concurrency || a.queued() > queue {
				t.Errorf("%d run and %d wait", a.running, a.queued())
			}
		}
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				time.Sleep(rand.N(20 * time.Second))
				ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond+rand.N(4*time.Second))
				defer stop()
				resource := []string{"disks/1", "db/1"}[i%2]
				_, err := a.Intercept(ctx, &pb.ReleaseRequest{Resources: []string{resource}}, releaseInfo, func(context.Context, any) (any, error) {
					mu.Lock()
					running++
					if running > concurrency {
						t.Errorf("%d run", running)
					}
					mu.Unlock()
					check()
					time.Sleep(rand.N(80 * time.Millisecond))
					mu.Lock()
					defer mu.Unlock()
					running--
					return nil, nil
				})
				check()
				s := status.Convert(err)
				if errors.Is(err, context.DeadlineExceeded) {
					s = status.New(codes.DeadlineExceeded, "")
				}
				mu.Lock()
				defer mu.Unlock()
				results[s.Code()]++
			})
		}
		wg.Wait()
		if a.Waiting() != 0 || a.Queued("boot") != 0 || a.Queued("normal") != 0 {
			t.Errorf("%d still counted", a.Waiting())
		}
		sum := results[codes.OK] + results[codes.ResourceExhausted] + results[codes.DeadlineExceeded]
		if sum != n || results[codes.OK] == 0 || results[codes.ResourceExhausted] == 0 || results[codes.DeadlineExceeded] == 0 {
			t.Errorf("results %v: want all three kinds, %d together", results, n)
		}
		if got := waits["boot"] + waits["normal"]; got != results[codes.OK] {
			t.Errorf("the waiting times of %d requests were told, %d were served", got, results[codes.OK])
		}
		if a.Displaced() == 0 {
			t.Error("nobody was displaced")
		}
	})
}

// TestGreedyPeer: one address that asks for nothing but disk keys, its own or
// not, cannot fill the queue, because its rate ends before the queue does.
func TestGreedyPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := DefaultLimits()
		a := NewAdmission(l, isDisk)
		hold := make(chan struct{})
		var wg sync.WaitGroup
		ask := func(addr, resource string, next grpc.UnaryHandler) {
			wg.Go(func() {
				a.Intercept(from(addr), &pb.ReleaseRequest{Resources: []string{resource}}, releaseInfo, next)
			})
			synctest.Wait()
		}
		for range 5000 {
			ask("10.0.0.1", "disks/not-mine", func(context.Context, any) (any, error) { <-hold; return nil, nil })
		}
		if got := a.Waiting(); got != l.PeerBurst {
			t.Fatalf("one address holds %d places, want its burst of %d", got, l.PeerBurst)
		}
		served := map[string]bool{}
		var mu sync.Mutex
		for _, resource := range []string{"disks/2", "db/2"} {
			ask("10.0.0.2", resource, func(context.Context, any) (any, error) {
				mu.Lock()
				defer mu.Unlock()
				served[resource] = true
				return nil, nil
			})
		}
		close(hold)
		wg.Wait()
		if !served["disks/2"] || !served["db/2"] {
			t.Errorf("of another address were served: %v", served)
		}
	})
}
