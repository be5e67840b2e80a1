package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	failuresToOpen = 5
	minPause       = time.Second
	maxPause       = 30 * time.Second

	// maxBreakers bounds what is remembered of names, which guests' parameters choose. The one that failed least recently is forgotten first.
	maxBreakers = 4096
	// forgetBreaker is after which time a name that nobody asks for any more is forgotten.
	forgetBreaker = 10 * time.Minute
	// cleanupSlots is how many requests at once may end what was made: beside the slots of all others.
	cleanupSlots = 4
	// maxAsk is how long Vault may take to say that it is there.
	maxAsk = 2 * time.Second
)

// A scope is what a request can fail of by itself.
type scope struct {
	// what is the name behind an engine's mount: the role of a database, the path of a secret, the key of Transit.
	what string
	// mount is set where nothing stands behind an engine but Vault: if many of its names fail, it does.
	mount string
}

// levels are the scopes whose breakers count for a request, the narrowest last.
func (s scope) levels() []scope {
	if s.mount == "" {
		return []scope{s}
	}
	return []scope{{mount: s.mount}, s}
}

func (s scope) String() string { return cmp.Or(s.what, s.mount) }

// gate protects Vault from us and us from a Vault in trouble: so many requests at once, so many that wait, and
// circuit breakers for whatever can be in trouble by itself: Vault, an engine, and each name behind one.
//
// A name holds at most as many slots as are free, and has at most as many requests waiting as there is room left,
// so that one that hangs, or that many ask for, always leaves room for the others.
type gate struct {
	slots, queue int
	patience     time.Duration // for a slot
	// vault asks Vault itself, and nothing behind it, whether it answers.
	vault   func(context.Context) error
	cleanup chan struct{}

	mu       sync.Mutex
	inUse    int           // slots; guarded by mu
	held     map[scope]int // slots; guarded by mu
	queued   map[scope]int // guarded by mu
	waiters  []*waiter     // in order of arrival; guarded by mu
	requests uint64        // guarded by mu
	breakers map[scope]*breaker
	// Of Vault itself. Failures are those in a row, of whatever: they give reason to ask it, and what it says decides.
	failures int     // guarded by mu
	down     breaker // guarded by mu
	cleaning bool    // although it is down; guarded by mu
}

type waiter struct {
	scope scope
	turn  chan struct{} // closed when it has its slot
}

// breaker is open from failuresToOpen failures in a row until an answer. While
// it is open, one request at a time probes, after ever longer pauses.
type breaker struct {
	failures int
	names    []string  // of a mount's: the names that failed, each counts once
	last     error     // the last failure
	at       time.Time // of the last failure
	pause    time.Duration
	until    time.Time // of the next probe
	probing  bool
}

func (b *breaker) open() bool { return b.failures >= failuresToOpen }

// admits says why a request may not go through. probe: it is the one that finds out whether there are answers again.
func (b *breaker) admits(what string) (probe bool, err error) {
	if !b.open() {
		return false, nil
	}
	if wait := time.Until(b.until); wait > 0 || b.probing {
		return false, fmt.Errorf("%s not asked: %d failures in a row, next try in %s; the last was: %v", what, b.failures, max(wait, 0).Round(time.Millisecond), b.last)
	}
	return true, nil
}

// fail counts a failure. What was under way when the breaker opened must not lengthen the pause.
func (b *breaker) fail(probe bool, err error) {
	b.at = time.Now()
	if b.open() && !probe {
		return
	}
	b.failures, b.last = b.failures+1, err
	if b.open() {
		b.pause = min(max(2*b.pause, minPause), maxPause)
		b.until = time.Now().Add(b.pause)
	}
}

func newGate(slots, queue int, patience time.Duration, vault func(context.Context) error) *gate {
	return &gate{
		slots: slots, queue: queue, patience: patience, vault: vault, cleanup: make(chan struct{}, cleanupSlots),
		held: map[scope]int{}, queued: map[scope]int{}, breakers: map[scope]*breaker{},
	}
}

// outcome of a request, as far as it says something about the health of Vault and of what is behind it.
type outcome int

const (
	answered outcome = iota
	failed           // no answer, or Vault says that there is none
	unknown
)

// ticket is a request that was let in.
type ticket struct {
	scope  scope
	probes []scope // the breakers that it probes
}

// enter waits for a slot. The caller calls leave when the request is over.
func (g *gate) enter(ctx context.Context, s scope) (leave func(outcome, error), err error) {
	if err := g.admitVault(ctx); err != nil {
		return nil, err
	}
	if _, err := g.admit(s, false); err != nil {
		return nil, err
	}
	if err := g.slot(ctx, s); err != nil {
		return nil, err
	}
	t, err := g.admit(s, true) // it may have opened while we waited
	if err != nil {
		g.free(s)
		return nil, err
	}
	return func(o outcome, err error) {
		g.free(s)
		if g.report(t, o, err) {
			g.askVault(ctx)
		}
	}, nil
}

// enterCleanup is enter for a request that ends what was made. What is in trouble does not stop it, and it
// says nothing about that. While Vault itself is down there is one at a time, so that nobody waits for what is in vain.
func (g *gate) enterCleanup(ctx context.Context) (leave func(), err error) {
	g.mu.Lock()
	alone := g.down.open()
	if alone && g.cleaning {
		g.mu.Unlock()
		return nil, fmt.Errorf("vault is down: %w", g.down.last)
	}
	g.cleaning = g.cleaning || alone
	g.mu.Unlock()
	done := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.cleaning = g.cleaning && !alone
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	patience := time.NewTimer(g.patience)
	defer patience.Stop()
	select {
	case g.cleanup <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a turn: %w", ctx.Err())
	case <-patience.C:
		return nil, fmt.Errorf("no turn within %s", g.patience)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests++
	return func() { <-g.cleanup; done() }, nil
}

// fits says whether the scope may have one more slot. mu is held.
func (g *gate) fits(s scope) bool { return g.held[s] <= g.slots-g.inUse && g.inUse < g.slots }

func (g *gate) slot(ctx context.Context, s scope) error {
	g.mu.Lock()
	if g.fits(s) {
		g.inUse++
		g.held[s]++
		g.mu.Unlock()
		return nil
	}
	if free := g.queue - len(g.waiters); free <= 0 || g.queued[s] > free {
		g.mu.Unlock()
		return errors.New("too many requests wait already")
	}
	w := &waiter{s, make(chan struct{})}
	g.waiters = append(g.waiters, w)
	g.queued[s]++
	g.mu.Unlock()
	patience := time.NewTimer(g.patience)
	defer patience.Stop()
	var err error
	select {
	case <-w.turn:
		return nil
	case <-ctx.Done():
		err = fmt.Errorf("wait for a turn: %w", ctx.Err())
	case <-patience.C:
		err = fmt.Errorf("no turn within %s", g.patience)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-w.turn: // just now
		g.release(s)
	default:
		g.waiters = slices.DeleteFunc(g.waiters, func(o *waiter) bool { return o == w })
		less(g.queued, s)
	}
	return err
}

func (g *gate) free(s scope) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.release(s)
}

// release gives a slot back, and what is free to those who wait: whose scope has fewest first. mu is held.
func (g *gate) release(s scope) {
	g.inUse--
	less(g.held, s)
	for {
		next := -1
		for i, w := range g.waiters {
			if g.fits(w.scope) && (next < 0 || g.held[w.scope] < g.held[g.waiters[next].scope]) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := g.waiters[next]
		g.waiters = slices.Delete(g.waiters, next, next+1)
		less(g.queued, w.scope)
		g.inUse++
		g.held[w.scope]++
		close(w.turn)
	}
}

func less(n map[scope]int, s scope) {
	if n[s]--; n[s] <= 0 {
		delete(n, s)
	}
}

// admit says whether a request may go; with claim set it may become a probe.
func (g *gate) admit(s scope, claim bool) (ticket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := ticket{scope: s}
	if g.down.open() {
		return t, fmt.Errorf("not asked: %w", g.down.last)
	}
	for _, l := range s.levels() {
		b := g.breakers[l]
		if b == nil {
			continue
		}
		probe, err := b.admits(l.String())
		if err != nil {
			return t, err
		}
		if probe {
			t.probes = append(t.probes, l)
		}
	}
	if claim {
		for _, l := range t.probes {
			g.breakers[l].probing = true
		}
		g.requests++
	}
	return t, nil
}

// report counts how a request ended. suspect says that it is time to ask Vault itself.
func (g *gate) report(t ticket, o outcome, err error) (suspect bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range t.scope.levels() {
		b, probe := g.breakers[l], slices.Contains(t.probes, l)
		if b != nil && probe {
			b.probing = false
		}
		switch {
		case o == unknown:
		case o == answered:
			delete(g.breakers, l)
		case b == nil:
			b = &breaker{}
			g.remember(l, b)
			fallthrough
		default:
			if l.what == "" && !b.open() { // an engine's: names count, not requests
				if slices.Contains(b.names, t.scope.what) {
					continue
				}
				b.names = append(b.names, t.scope.what)
			}
			b.fail(probe, err)
		}
	}
	switch o {
	case answered:
		g.failures = 0
	case failed:
		g.failures++
	}
	if g.failures < failuresToOpen || g.down.open() || g.down.probing {
		return false
	}
	g.down.probing = true
	return true
}

// admitVault says why nothing can be asked of Vault. Whoever comes when it is time to see whether it is back, asks it.
func (g *gate) admitVault(ctx context.Context) error {
	g.mu.Lock()
	probe, err := g.down.admits("vault")
	g.down.probing = g.down.probing || probe
	g.mu.Unlock()
	if !probe {
		return err
	}
	return g.askVault(ctx)
}

// askVault asks Vault whether it answers, for all requests. down.probing is set.
func (g *gate) askVault(ctx context.Context) error {
	// It must not end with the guest whose request it was that gave reason to ask.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(g.patience, maxAsk))
	defer cancel()
	err := g.vault(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests++
	g.failures = 0
	if err == nil {
		if g.down.open() { // what failed may have failed for want of Vault
			clear(g.breakers)
		}
		g.down = breaker{}
		return nil
	}
	g.down.failures = max(g.down.failures, failuresToOpen-1)
	g.down.fail(true, err)
	g.down.probing = false
	return fmt.Errorf("not asked: %w", err)
}

// remember makes room for a breaker. mu is held.
func (g *gate) remember(l scope, b *breaker) {
	if len(g.breakers) >= maxBreakers {
		g.forgetIdle()
	}
	if len(g.breakers) >= maxBreakers {
		var oldest scope
		at := time.Now()
		for k, o := range g.breakers {
			if !o.at.After(at) {
				oldest, at = k, o.at
			}
		}
		delete(g.breakers, oldest)
	}
	g.breakers[l] = b
}

// forgetIdle drops breakers of names that nobody asks for any more. mu is held.
func (g *gate) forgetIdle() {
	maps.DeleteFunc(g.breakers, func(_ scope, b *breaker) bool { return !b.probing && time.Since(b.at) > forgetBreaker })
}

func (g *gate) stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forgetIdle()
	s := Stats{Waiting: len(g.waiters), Requests: g.requests, Down: g.down.open()}
	for _, b := range g.breakers {
		s.Open = s.Open || b.open()
	}
	s.Open = s.Open || s.Down
	return s
}
