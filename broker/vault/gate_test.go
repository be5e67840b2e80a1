package vault

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker"
)

// A Vault that is sealed, slow or gone is our fault, within the time limit, and
// never ErrNoSecret; soon nobody waits for it any more; and when it is back, so are we.
func TestVaultInTrouble(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t, "1h")
	w.put(t, "db/orders", map[string]any{"value": "x"})
	entry := broker.CatalogEntry{Key: "db/orders", CreateBytes: 32}
	fails := func(t *testing.T, limit time.Duration) {
		t.Helper()
		start := time.Now()
		_, err := w.fetch(t.Context(), entry)
		if err == nil || errors.Is(err, broker.ErrNoSecret) {
			t.Fatalf("got %v", err)
		}
		if d := time.Since(start); d > limit {
			t.Errorf("took %s", d)
		}
	}
	opens := func(t *testing.T) {
		t.Helper()
		for range failuresToOpen {
			fails(t, 3*time.Second)
		}
		if !w.src.Stats().Open {
			t.Fatal("the circuit breaker did not open")
		}
		before := w.src.Stats().Requests
		for range 100 {
			fails(t, 500*time.Millisecond)
		}
		if n := w.src.Stats().Requests - before; n > 1 {
			t.Errorf("%d requests to a Vault in trouble", n)
		}
	}
	t.Run("slow", func(t *testing.T) {
		w.vault.Pause(t)
		opens(t)
		w.vault.Resume(t)
		took := eventually(t, "an answer", func() bool {
			_, err := w.fetch(t.Context(), entry)
			return err == nil
		})
		if w.src.Stats().Open {
			t.Error("still open")
		}
		t.Logf("back after %s", took)
	})
	t.Run("guests that hang up say nothing about Vault", func(t *testing.T) {
		w.vault.Pause(t)
		for range 2 * failuresToOpen {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			if _, err := w.fetch(ctx, entry); err == nil {
				t.Error("an answer of a stopped Vault")
			}
			cancel()
		}
		if w.src.Stats().Open {
			t.Error("they opened the circuit breaker")
		}
		w.vault.Resume(t)
	})
	t.Run("sealed", func(t *testing.T) {
		if err := w.root.Sys().Seal(); err != nil {
			t.Fatal(err)
		}
		opens(t)
	})
	t.Run("gone", func(t *testing.T) {
		w.vault.Kill(t)
		time.Sleep(2 * maxTestPause(w.src))
		opens(t)
	})
}

// More guests than slots wait, and all get what they came for.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t, "1h")
	w.put(t, "db/orders", map[string]any{"value": "x"})
	var wg sync.WaitGroup
	for range 400 {
		wg.Go(func() {
			if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := w.src.Stats(); s.Waiting != 0 || s.Open || w.src.gate.inUse != 0 {
		t.Errorf("left over: %+v", s)
	}
}

// maxTestPause is the longest pause at the moment.
func maxTestPause(s *Source) time.Duration {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	longest := s.gate.down.pause
	for _, b := range s.gate.breakers {
		longest = max(longest, b.pause)
	}
	return longest
}

var errBoom = errors.New("boom")

// try makes a request that ends as o says.
func (g *gate) try(t *testing.T, s scope, o outcome) error {
	leave, err := g.enter(t.Context(), s)
	if err == nil {
		leave(o, errBoom)
	}
	return err
}

func up(context.Context) error { return nil }

func role(name string) scope { return scope{what: "database/creds/" + name} }
func key(name string) scope  { return scope{mount: "secret", what: "secret/data/" + name} }

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 4, time.Second, up)
		for range failuresToOpen - 1 {
			g.try(t, role("a"), failed)
		}
		if err := g.try(t, role("a"), answered); err != nil || g.stats().Open {
			t.Fatal("opened early")
		}
		for range failuresToOpen - 1 {
			g.try(t, role("a"), failed)
			g.try(t, role("a"), unknown)
		}
		if g.stats().Open {
			t.Fatal("an answer did not start the count anew, or what we do not know was counted")
		}
		g.try(t, role("a"), failed)
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			want *= time.Second
			start := time.Now()
			err := g.try(t, role("a"), failed)
			if err == nil || !strings.Contains(err.Error(), "boom") {
				t.Fatalf("while open: %v", err)
			}
			if err := g.try(t, role("b"), answered); err != nil {
				t.Fatalf("another role of the mount: %v", err)
			}
			for g.try(t, role("a"), failed) != nil {
				time.Sleep(100 * time.Millisecond)
			}
			if got := time.Since(start); got != want {
				t.Errorf("probed after %s, want %s", got, want)
			}
		}
		time.Sleep(maxPause)
		// One probe at a time, and a probe that tells nothing makes room for the next.
		leave, err := g.enter(t.Context(), role("a"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(t.Context(), role("a")); err == nil {
			t.Error("two probes at a time")
		}
		leave(unknown, nil)
		if err := g.try(t, role("a"), answered); err != nil || g.stats().Open {
			t.Errorf("after a good probe: %v", err)
		}
	})
}

// However many roles of a mount are dead, the others are asked.
func TestManyDeadRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 4, time.Second, up)
		for i := range 50 {
			for range 2 * failuresToOpen {
				g.try(t, role(strconv.Itoa(i)), failed)
			}
		}
		if err := g.try(t, role("healthy"), answered); err != nil || !g.stats().Open || g.stats().Down {
			t.Errorf("%v, %+v", err, g.stats())
		}
	})
}

// Behind KV stands nothing but Vault: one secret that cannot be read is alone, many are not.
func TestEngineFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 4, time.Second, up)
		for range 10 * failuresToOpen {
			g.try(t, key("broken"), failed)
		}
		if err := g.try(t, key("a"), answered); err != nil {
			t.Errorf("one broken secret: %v", err)
		}
		for i := range failuresToOpen {
			g.try(t, key(strconv.Itoa(i)), failed)
		}
		if err := g.try(t, key("never asked for"), answered); err == nil {
			t.Error("the engine is asked on")
		}
		if err := g.try(t, role("a"), answered); err != nil {
			t.Errorf("another engine: %v", err)
		}
		time.Sleep(minPause)
		if err := g.try(t, key("b"), answered); err != nil {
			t.Errorf("after the pause: %v", err)
		}
		if err := g.try(t, key("c"), answered); err != nil {
			t.Errorf("after an answer: %v", err)
		}
	})
}

// Vault itself is asked when there is reason, and what it says decides for all.
func TestVaultDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down error
		asked := 0
		g := newGate(4, 4, time.Second, func(context.Context) error { asked++; return down })
		for range 3 * failuresToOpen {
			g.try(t, role("dead"), failed)
		}
		if g.stats().Down || asked != 1 {
			t.Errorf("one dead role: %+v, vault was asked %d times", g.stats(), asked)
		}
		down, asked = errors.New("sealed"), 0
		for i := range failuresToOpen { // each another's
			if err := g.try(t, role(strconv.Itoa(i)), failed); err != nil {
				t.Fatal(err)
			}
		}
		if !g.stats().Down || asked != 1 {
			t.Fatalf("%+v, vault was asked %d times", g.stats(), asked)
		}
		for range 100 {
			if err := g.try(t, key("x"), answered); err == nil || !strings.Contains(err.Error(), "sealed") {
				t.Fatalf("while down: %v", err)
			}
		}
		if asked != 1 {
			t.Errorf("vault was asked %d times", asked)
		}
		time.Sleep(minPause)
		if err := g.try(t, key("x"), answered); err == nil || asked != 2 {
			t.Errorf("%v after %d questions", err, asked)
		}
		down = nil
		time.Sleep(2 * minPause)
		if err := g.try(t, key("x"), answered); err != nil || g.stats().Down {
			t.Errorf("it is back: %v, %+v", err, g.stats())
		}
		if err := g.try(t, role("dead"), answered); err != nil {
			t.Errorf("what failed may have failed for want of Vault: %v", err)
		}
	})
}

// Names come from guests' parameters.
func TestBreakersBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 4, time.Second, up)
		for i := range 2 * maxBreakers {
			g.try(t, role(strconv.Itoa(i)), failed)
			time.Sleep(time.Millisecond)
		}
		if n := len(g.breakers); n > maxBreakers {
			t.Errorf("%d breakers, want at most %d", n, maxBreakers)
		}
		for range failuresToOpen {
			g.try(t, role("dead"), failed)
		}
		if !g.stats().Open {
			t.Error("there was no room for one more")
		}
		time.Sleep(2 * forgetBreaker)
		if s := g.stats(); s.Open || len(g.breakers) > 0 || len(g.held) > 0 || len(g.queued) > 0 {
			t.Errorf("nobody asks any more, and %+v, %d are remembered", s, len(g.breakers))
		}
	})
}

// A role whose requests hang, or that everybody asks for, leaves slots and room in the queue to others.
func TestSlotsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(16, 32, time.Minute, up)
		held := make(chan struct{})
		var wg sync.WaitGroup
		refused := atomic.Int64{}
		for name, n := range map[string]int{"slow": 100, "slow too": 100} {
			for range n {
				wg.Go(func() {
					leave, err := g.enter(t.Context(), role(name))
					if err != nil {
						refused.Add(1)
						return
					}
					<-held
					leave(answered, nil)
				})
			}
		}
		synctest.Wait()
		if refused.Load() == 0 {
			t.Error("the queue has no end")
		}
		start := time.Now()
		for i := range 20 {
			if err := g.try(t, role(strconv.Itoa(i)), answered); err != nil || time.Since(start) > 0 {
				t.Fatalf("another role: %v after %s", err, time.Since(start))
			}
		}
		close(held)
		wg.Wait()
		if s := g.stats(); s.Waiting != 0 || g.inUse != 0 || len(g.held) != 0 || len(g.queued) != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
}

// No breaker stops what ends things in Vault.
func TestCleanupEnters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 1, time.Second, func(context.Context) error { return errBoom })
		for range failuresToOpen {
			g.try(t, role("a"), failed)
		}
		if !g.stats().Down {
			t.Fatal("not down")
		}
		for range 3 {
			leave, err := g.enterCleanup(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := g.enterCleanup(t.Context()); err == nil || time.Since(start) > 0 {
				t.Errorf("a second one, while Vault is down: %v after %s", err, time.Since(start))
			}
			leave()
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 1, time.Second, up)
		var leaves []func()
		for range cleanupSlots {
			leave, err := g.enterCleanup(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		start := time.Now()
		if _, err := g.enterCleanup(t.Context()); err == nil || time.Since(start) != time.Second {
			t.Errorf("no slot: %v after %s", err, time.Since(start))
		}
		for _, leave := range leaves {
			leave()
		}
		leave, err := g.enterCleanup(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		leave()
	})
}

// Requests that were under way when the breaker opened must not lengthen its pause.
func TestBreakerLateFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(300, 0, time.Second, up)
		var leaves []func(outcome, error)
		for range 100 {
			leave, err := g.enter(t.Context(), key("a"))
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		for _, leave := range leaves {
			leave(failed, errBoom)
		}
		time.Sleep(minPause)
		if _, err := g.enter(t.Context(), key("a")); err != nil {
			t.Error(err)
		}
	})
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 3, time.Second, up)
		leave, err := g.enter(t.Context(), key("a"))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() {
				var l func(outcome, error)
				if l, errs[i] = g.enter(t.Context(), key("a")); errs[i] == nil {
					time.Sleep(400 * time.Millisecond)
					l(answered, nil)
				}
			})
		}
		synctest.Wait()
		if n := g.stats().Waiting; n != 2 {
			t.Errorf("%d wait, want 2", n)
		}
		start := time.Now()
		if _, err := g.enter(t.Context(), key("a")); err == nil || time.Since(start) != 0 {
			t.Errorf("a full queue: %v after %s", err, time.Since(start))
		}
		leave(answered, nil)
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
		// Patience ends, and so does the guest's.
		leave, err = g.enter(t.Context(), key("a"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(t.Context(), key("a")); err == nil || time.Since(start) < time.Second {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := g.enter(ctx, key("a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		leave(answered, nil)
		if s := g.stats(); s.Waiting != 0 || g.inUse != 0 || s.Requests != 4 {
			t.Errorf("left over: %+v, %d slots", s, g.inUse)
		}
	})
}
