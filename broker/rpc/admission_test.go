package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/claviger/claviger/broker/attest"
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
		for range 100 { // those who run are before it as well
			if d := refusals(400, 1)[0]; d < 402*turn || d > 402*turn+minBack/4 {
				t.Errorf("the first refusal is asked to come back in %s", d)
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
				if d < maxBack/2 || d >= maxBack {
					t.Fatalf("refusal %d is asked to come back in %s", i, d)
				}
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

// TestAway: who waits for a vendor's service holds no slot, takes one again
// after, and is one of few.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 10, QueueTime: time.Minute, Away: 3, PeerAway: 2}, isDisk)
		ask := func(addr string, next func(context.Context) error) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := a.Intercept(from(addr), &pb.ReleaseRequest{}, releaseInfo, func(ctx context.Context, _ any) (any, error) { return nil, next(ctx) })
				done <- err
			}()
			synctest.Wait()
			return done
		}
		service, again := make(chan struct{}), make(chan struct{})
		at := 0 // that hold a slot after their wait
		away := func(ctx context.Context) error {
			back, err := attest.Leave(ctx)
			if err != nil {
				return err
			}
			<-service
			if err := back(ctx); err != nil {
				return err
			}
			at++ // one at a time, or the race detector finds it
			<-again
			at--
			return nil
		}
		quick := func(context.Context) error { return nil }
		var out []<-chan error
		for _, addr := range []string{"10.0.0.1", "10.0.0.1", "10.0.0.2"} {
			out = append(out, ask(addr, away))
		}
		if a.Away() != 3 || a.Waiting() != 0 {
			t.Fatalf("%d are away, %d hold or want slots", a.Away(), a.Waiting())
		}
		if err := <-ask("10.0.0.3", quick); err != nil {
			t.Errorf("a request that needs nothing: %v", err)
		}
		for _, addr := range []string{"10.0.0.1", "10.0.0.3"} { // its address has 2; there are 3
			if err := <-ask(addr, away); !errors.Is(err, errAway) {
				t.Errorf("one more of %s: %v", addr, err)
			}
		}
		close(service)
		synctest.Wait()
		if at != 1 || a.Away() != 0 || a.Waiting() != 3 {
			t.Errorf("%d go on, %d are away, %d hold or want slots", at, a.Away(), a.Waiting())
		}
		close(again)
		for _, c := range out {
			if err := <-c; err != nil {
				t.Error(err)
			}
		}
		if a.Waiting() != 0 {
			t.Errorf("%d slots are lost", a.Waiting())
		}
	})
}

// TestDefaultLimits are what docs/configuration.md says.
func TestDefaultLimits(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	l := DefaultLimits()
	for _, want := range []string{
		fmt.Sprintf("| `limits.concurrency`, `queue`, `queue_time` | %d, %d, `%s` |", l.Concurrency, l.Queue, l.QueueTime),
		fmt.Sprintf("| `limits.peer_rate`, `peer_burst` | %g requests a second, %d, per address", l.PeerRate, l.PeerBurst),
		fmt.Sprintf("| `limits.peer_share_56`, `peer_share_48` | %d, %d:", l.Share56, l.Share48),
		fmt.Sprintf("| `limits.connections`, `peer_connections` | %d, %d at a time", l.Connections, l.PeerConnections),
		fmt.Sprintf("| `limits.streams`, `peer_streams`, `patience` | %d, %d, `%s`:", l.Streams, l.PeerStreams, strings.TrimSuffix(l.Patience.String(), "0s")),
		fmt.Sprintf("| `limits.collateral_waits`, `peer_collateral_waits` | %d, %d:", l.Away, l.PeerAway),
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("it does not say %s", want)
		}
	}
}

// TestWhatQueues: each call that has evidence appraised takes a slot, and no other does. A TPM's activation is a machine's
// that waits for its disk.
func TestWhatQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 1, QueueTime: time.Hour}, isDisk)
		var waited []time.Duration
		a.Waited = func(_ string, d time.Duration) { waited = append(waited, d) }
		hold := make(chan struct{})
		ask := func(method string, req any) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := a.Intercept(t.Context(), req, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { <-hold; return nil, nil })
				done <- err
			}()
			synctest.Wait()
			return done
		}
		first := ask(pb.KeyBroker_Attest_FullMethodName, &pb.AttestRequest{})
		if a.Waiting() != 1 {
			t.Error("an Attest holds no slot")
		}
		second := ask(pb.KeyBroker_Attest_FullMethodName, &pb.AttestRequest{})
		if a.Queued("normal") != 1 || a.Queued("boot") != 0 {
			t.Errorf("%d and %d in the queues", a.Queued("normal"), a.Queued("boot"))
		}
		third := ask(pb.KeyBroker_ActivateTPM_FullMethodName, &pb.ActivateTPMRequest{})
		if err := <-second; status.Code(err) != codes.ResourceExhausted {
			t.Errorf("an Attest that waits, as an activation comes: %v", err)
		}
		if a.Queued("normal") != 0 || a.Queued("boot") != 1 || a.Displaced() != 1 || a.Waiting() != 2 || a.Displaced() != 1 {
			t.Errorf("%d and %d in the queues, %d displaced", a.Queued("normal"), a.Queued("boot"), a.Displaced())
		}
		for _, method := range []string{pb.KeyBroker_Challenge_FullMethodName, pb.KeyBroker_GetCapabilities_FullMethodName, pb.KeyBroker_ProveInclusion_FullMethodName} {
			done := ask(method, nil)
			if a.Waiting() != 2 {
				t.Errorf("%s holds a slot", method)
			}
			defer func() {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
		}
		time.Sleep(time.Second)
		close(hold)
		for _, done := range []<-chan error{first, third} {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if !slices.Equal(waited, []time.Duration{0, time.Second}) {
			t.Errorf("waited %v", waited)
		}
	})
}

// TestTurnTime: what is told to those who are refused goes by how long a slot is held; how long somebody waited for it, and
// what he did in the queue, is no part of that.
func TestTurnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 1000, QueueTime: time.Hour}, nil)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				_, err := a.Intercept(t.Context(), nil, releaseInfo, func(context.Context, any) (any, error) { time.Sleep(time.Second); return nil, nil })
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if a.took < 990*time.Millisecond || a.took > time.Second {
			t.Errorf("a slot is held for %s, by what is remembered", a.took)
		}
	})
}

// TestLineIsRemembered, and for no longer than a minute: those who come when the queue is short again come after those who
// were refused before, and who comes a minute later need not wait for a line that is gone.
func TestLineIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, QueueTime: time.Hour}, nil)
		a.running, a.took = 1, time.Hour
		refusal := func() time.Duration {
			_, err := a.enter(normal)
			return retryDelay(status.Convert(err))
		}
		if d := refusal(); d < maxBack/2 || d >= maxBack {
			t.Errorf("asked to come back in %s", d)
		}
		a.took = 10 * time.Millisecond
		if d := refusal(); d < maxBack/2 {
			t.Errorf("asked to come back in %s, before those who were first", d)
		}
		a.took = time.Second
		for range 1000 {
			refusal()
		}
		time.Sleep(maxBack + 2*time.Second)
		if d := refusal(); d > 2*minBack {
			t.Errorf("asked to come back in %s, in a line that is gone", d)
		}
	})
}

// TestFairness: what goes before waiting requests is counted while some wait, and those who have left are not waited for.
func TestFairness(t *testing.T) {
	serve := func(a *Admission, n int) (classes []int) {
		for range n {
			was := a.waiting[boot].Len()
			a.leave(time.Now())
			classes = append(classes, normal)
			if a.waiting[boot].Len() < was {
				classes[len(classes)-1] = boot
			}
		}
		return classes
	}
	full := func(boots int) *Admission {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 4 * fair}, isDisk)
		for range boots + 1 { // one of them runs
			if _, err := a.enter(boot); err != nil {
				t.Fatal(err)
			}
		}
		return a
	}
	a := full(2 * fair)
	serve(a, fair)
	if _, err := a.enter(normal); err != nil {
		t.Fatal(err)
	}
	if got := serve(a, 1); got[0] != boot {
		t.Error("a request that has just come goes before disk keys")
	}
	a = full(2 * fair)
	w, err := a.enter(normal)
	if err != nil {
		t.Fatal(err)
	}
	serve(a, fair)
	if !a.forget(w, normal) || a.forget(w, normal) {
		t.Error("who leaves the queue leaves it once")
	}
	if got := serve(a, 1); got[0] != boot {
		t.Error("nobody is served, though disk keys wait")
	}
}

// TestLeaveAndCome: who waits for a vendor's service is counted by address, takes a turn again only if it had one, and is
// refused in the words of the queue if there is no place for it.
func TestLeaveAndCome(t *testing.T) {
	l := Limits{Concurrency: 1, Queue: 0, QueueTime: time.Hour, Away: 10, PeerAway: 1}
	a := NewAdmission(l, nil)
	ctx := func(addr string) context.Context { return from(addr) }
	ask := func(addr string, next func(context.Context)) {
		t.Helper()
		if _, err := a.Intercept(ctx(addr), &pb.ReleaseRequest{}, releaseInfo, func(ctx context.Context, _ any) (any, error) { next(ctx); return nil, nil }); err != nil {
			t.Error(err)
		}
	}
	ask("10.0.0.1", func(outer context.Context) {
		back, err := attest.Leave(outer)
		if err != nil || a.Away() != 1 || a.Waiting() != 0 {
			t.Errorf("%v: %d away, %d in slots", err, a.Away(), a.Waiting())
		}
		ask("10.0.0.1", func(inner context.Context) {
			if _, err := attest.Leave(inner); !errors.Is(err, errAway) {
				t.Errorf("the second of an address: %v", err)
			}
			// It has the slot: the first comes back to a queue without room.
			if err := back(outer); err == nil || !strings.Contains(err.Error(), "take a turn again") || status.Code(err) != codes.Unknown {
				t.Errorf("comes back in vain: %v", err)
			}
		})
	})
	if a.Away() != 0 || a.Waiting() != 0 {
		t.Errorf("%d away, %d in slots", a.Away(), a.Waiting())
	}
}

// messages is a stream that says these, and of which is kept what is sent.
type messages struct {
	grpc.ServerStream
	ctx  context.Context
	in   []*pb.WatchRequest
	err  error // after them
	sent []any
}

func (m *messages) Context() context.Context { return m.ctx }

func (m *messages) RecvMsg(to any) error {
	if len(m.in) == 0 {
		return m.err
	}
	proto.Merge(to.(*pb.WatchRequest), m.in[0])
	m.in = m.in[1:]
	return nil
}

func (m *messages) SendMsg(msg any) error {
	if len(m.sent) == 2 {
		return io.ErrClosedPipe
	}
	m.sent = append(m.sent, msg)
	return nil
}

// TestStreamsTakeTurns: a stream holds a slot from each Subscribe to its answer, one at most, and none once it has ended.
func TestStreamsTakeTurns(t *testing.T) {
	watch := &grpc.StreamServerInfo{FullMethod: pb.KeyBroker_Watch_FullMethodName}
	subscribe := &pb.WatchRequest{Message: &pb.WatchRequest_Subscribe{Subscribe: &pb.Subscribe{SessionId: "S"}}}
	acknowledge := &pb.WatchRequest{Message: &pb.WatchRequest_Acknowledge{Acknowledge: &pb.Acknowledge{Version: "7"}}}
	limits := Limits{Concurrency: 2, Queue: 0, QueueTime: time.Hour, PeerRate: 1, PeerBurst: 1, Away: 10, PeerAway: 1}
	a := NewAdmission(limits, nil)
	slots := func(want int, when string) {
		t.Helper()
		if n := a.Waiting(); n != want {
			t.Errorf("%d slots are held %s, want %d", n, when, want)
		}
	}
	m := &messages{ctx: from("10.0.0.1"), in: []*pb.WatchRequest{subscribe, acknowledge, subscribe, subscribe, subscribe}, err: io.EOF}
	ended := errors.New("ended")
	err := a.InterceptStream("server", m, watch, func(srv any, ss grpc.ServerStream) error {
		if srv != "server" {
			t.Errorf("served by %v", srv)
		}
		recv := func(want int, when string) {
			t.Helper()
			var r pb.WatchRequest
			if err := ss.RecvMsg(&r); err != nil || r.GetSubscribe().GetSessionId() == "" && r.GetAcknowledge().GetVersion() != "7" {
				t.Errorf("%s: %v, %v", when, &r, err)
			}
			slots(want, when)
		}
		slots(0, "before it has said anything")
		recv(1, "after a Subscribe")
		recv(1, "after an acknowledgement")
		if err := ss.SendMsg("an answer"); err != nil {
			t.Error(err)
		}
		slots(0, "after the answer")
		back, err := attest.Leave(ss.Context())
		if err != nil || a.Away() != 1 {
			t.Errorf("%v: %d are away", err, a.Away())
		}
		if _, err := attest.Leave(ss.Context()); !errors.Is(err, errAway) {
			t.Errorf("two of one address: %v", err)
		}
		if err := back(ss.Context()); err != nil || a.Away() != 0 {
			t.Errorf("%v: %d are away", err, a.Away())
		}
		slots(0, "by one that had none when it left")
		recv(1, "after the next Subscribe")
		recv(1, "after one that was not answered")
		beside := &place{a: a}
		if err := beside.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		var r pb.WatchRequest
		if err := ss.RecvMsg(&r); status.Code(err) != codes.ResourceExhausted { // no room for it, nor in the queue
			t.Errorf("a Subscribe over the limit: %v", err)
		}
		if err := ss.RecvMsg(&r); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
		beside.leave()
		if err := errors.Join(ss.SendMsg("another"), ss.SendMsg("one too many")); !errors.Is(err, io.ErrClosedPipe) || len(m.sent) != 2 || m.sent[0] != "an answer" {
			t.Errorf("%v, sent %v", err, m.sent)
		}
		if err := (&place{a: a}).take(t.Context()); err != nil {
			t.Error(err)
		}
		return ended
	})
	if !errors.Is(err, ended) {
		t.Error(err)
	}
	slots(1, "after it ended, beside the test's")

	never := func(any, grpc.ServerStream) error { t.Error("served"); return nil }
	if err := a.InterceptStream(nil, m, watch, never); status.Code(err) != codes.ResourceExhausted || retryDelay(status.Convert(err)) == 0 {
		t.Errorf("over the address's rate: %v", err)
	}
	other := &grpc.StreamServerInfo{FullMethod: "/grpc.health.v1.Health/Watch"}
	if err := a.InterceptStream(nil, m, other, func(_ any, ss grpc.ServerStream) error {
		if ss != grpc.ServerStream(m) {
			t.Error("another stream than it was")
		}
		return ended
	}); !errors.Is(err, ended) {
		t.Errorf("another method: %v", err)
	}
}
