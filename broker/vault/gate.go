package vault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	failuresToOpen = 5
	minPause       = time.Second
	maxPause       = 30 * time.Second
)

// gate protects Vault from us and us from a Vault in trouble: so many requests
// at once, so many that wait, and for each engine a circuit breaker.
type gate struct {
	slots    chan struct{}
	queue    int64
	patience time.Duration // for a slot
	waiting  atomic.Int64
	requests atomic.Uint64

	mu       sync.Mutex
	breakers map[string]*breaker // by mount, of which a configuration names few; guarded by mu
}

// breaker is open from failuresToOpen failures in a row until an answer. While
// it is open, one request at a time probes, after ever longer pauses.
type breaker struct {
	failures int
	last     error // the last failure
	pause    time.Duration
	until    time.Time // of the next probe
	probing  bool
}

func newGate(slots, queue int, patience time.Duration) *gate {
	return &gate{slots: make(chan struct{}, slots), queue: int64(queue), patience: patience, breakers: map[string]*breaker{}}
}

// outcome of a request, as far as it says something about Vault's health.
type outcome int

const (
	answered outcome = iota
	failed           // no answer, or a 5xx
	unknown
)

// enter waits for a slot. The caller calls leave when the request is over.
func (g *gate) enter(ctx context.Context, mount string) (leave func(outcome, error), err error) {
	if _, err := g.admit(mount, false); err != nil {
		return nil, err
	}
	if err := g.slot(ctx); err != nil {
		return nil, err
	}
	probe, err := g.admit(mount, true) // it may have opened while we waited
	if err != nil {
		<-g.slots
		return nil, err
	}
	g.requests.Add(1)
	return func(o outcome, err error) {
		<-g.slots
		g.report(mount, probe, o, err)
	}, nil
}

func (g *gate) slot(ctx context.Context) error {
	select {
	case g.slots <- struct{}{}:
		return nil
	default:
	}
	if g.waiting.Add(1) > g.queue {
		g.waiting.Add(-1)
		return errors.New("too many requests wait already")
	}
	defer g.waiting.Add(-1)
	patience := time.NewTimer(g.patience)
	defer patience.Stop()
	select {
	case g.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a turn: %w", ctx.Err())
	case <-patience.C:
		return fmt.Errorf("no turn within %s", g.patience)
	}
}

// admit says whether a request may go to the engine; with claim set it may become the probe.
func (g *gate) admit(mount string, claim bool) (probe bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.breakers[mount]
	if b == nil || b.failures < failuresToOpen {
		return false, nil
	}
	if wait := time.Until(b.until); wait > 0 || b.probing {
		return false, fmt.Errorf("not asked: %d failures in a row, next try in %s; the last was: %v", b.failures, max(wait, 0).Round(time.Millisecond), b.last)
	}
	b.probing = claim
	return claim, nil
}

func (g *gate) report(mount string, probe bool, o outcome, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.breakers[mount]
	if o == answered {
		delete(g.breakers, mount)
		return
	}
	if b == nil {
		b = &breaker{}
		g.breakers[mount] = b
	}
	if probe {
		b.probing = false
	}
	// What was under way when the breaker opened must not lengthen the pause.
	if o == unknown || b.failures >= failuresToOpen && !probe {
		return
	}
	b.failures, b.last = b.failures+1, err
	if b.failures >= failuresToOpen {
		b.pause = min(max(2*b.pause, minPause), maxPause)
		b.until = time.Now().Add(b.pause)
	}
}

func (g *gate) stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Stats{Waiting: int(g.waiting.Load()), Requests: g.requests.Load()}
	for _, b := range g.breakers {
		s.Open = s.Open || b.failures >= failuresToOpen
	}
	return s
}
