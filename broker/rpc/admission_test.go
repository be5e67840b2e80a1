package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

// TestNobodyStarves: one in eight slots is for whoever has waited longest for something else.
func TestNobodyStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{Concurrency: 1, Queue: 100, QueueTime: time.Hour}, isDisk)
		names := []string{"db/1", "db/2"}
		for i := range 20 {
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
