package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claviger/claviger/broker/agent"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// bulk has an operator's script write revocations, of chips that nobody has, and
// every tenth time a reference set, while guests go on booting. Releases must go
// on during the writes and after them: it watches for as long again.
func (f *fleet) bulk(ctx context.Context) error {
	run := rand.Text()
	gaps := newGaps()
	guests, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for i := range min(f.guests, 8) {
		wg.Go(func() {
			for guests.Err() == nil {
				if _, _, err := f.boot(guests, numbered(f.resource, i), false); err == nil {
					gaps.released()
				} else if guests.Err() == nil && !errors.Is(err, agent.ErrUnreachable) {
					fmt.Printf("a guest: %v\n", err)
				}
			}
		})
	}
	phase := func(name string, f func() error) error {
		gaps.start()
		at := time.Now()
		err := f()
		n, longest := gaps.end()
		fmt.Printf("%-16s %s: %d releases (SIMULATED guests), the longest time without one %s\n", name, time.Since(at).Round(time.Millisecond), n, longest.Round(time.Millisecond))
		return err
	}
	wait := func(d time.Duration) func() error {
		return func() error {
			select {
			case <-time.After(d):
			case <-ctx.Done():
			}
			return ctx.Err()
		}
	}
	if err := phase("before", wait(5*time.Second)); err != nil {
		return err
	}
	at := time.Now()
	if err := phase(fmt.Sprintf("%d writes", f.writes), func() error { return f.writeMany(ctx, run) }); err != nil {
		return err
	}
	if err := phase("after", wait(max(2*time.Since(at), 10*time.Second))); err != nil {
		return err
	}
	stop()
	wg.Wait()
	return nil
}

// writeMany writes f.writes records, 16 at a time.
func (f *fleet) writeMany(ctx context.Context, run string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= f.writes && ctx.Err() == nil; i = int(next.Add(1)) {
				if err := f.writeOne(ctx, run, i); err != nil {
					cancel(fmt.Errorf("write %d: %w", i, err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (f *fleet) writeOne(ctx context.Context, run string, i int) error {
	if i%10 != 0 {
		chip := hex.EncodeToString(fmt.Appendf(nil, "%-58s%06d", run, i))
		_, err := f.admin.Revoke(ctx, &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: chip, Reason: "internal/load bulk"}})
		return err
	}
	_, err := f.admin.PutReferenceSet(ctx, &pb.PutReferenceSetRequest{Set: &pb.ReferenceSet{
		Name: fmt.Sprintf("load-%x-%d", run[:8], i), Type: "sev-snp", State: "active", Source: "internal/load bulk", Owner: &pb.ReferenceOwner{Policies: []string{"*"}},
		Values: map[string]*pb.ReferenceValues{"measurement": {Values: []string{hex.EncodeToString(fmt.Appendf(nil, "%-42s%06d", run, i))}}},
	}})
	return err
}

// gaps measures the longest time without a release.
type gaps struct {
	mu      sync.Mutex
	n       int
	last    time.Time
	longest time.Duration
}

func newGaps() *gaps { return &gaps{last: time.Now()} }

func (g *gaps) released() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	g.longest, g.last = max(g.longest, time.Since(g.last)), time.Now()
}

func (g *gaps) start() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n, g.longest = 0, 0
}

// end counts a gap that has not ended, too.
func (g *gaps) end() (n int, longest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n, max(g.longest, time.Since(g.last))
}
