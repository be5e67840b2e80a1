package vault

import (
	"context"
	"errors"
	"strings"
	"sync"
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
	if s := w.src.Stats(); s.Waiting != 0 || s.Open || len(w.src.gate.slots) != 0 {
		t.Errorf("left over: %+v", s)
	}
}

// maxTestPause is the longest pause at the moment.
func maxTestPause(s *Source) time.Duration {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	longest := time.Duration(0)
	for _, b := range s.gate.breakers {
		longest = max(longest, b.pause)
	}
	return longest
}

func TestBreaker(t *testing.T) {
	boom := errors.New("boom")
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 4, time.Second)
		try := func(mount string, o outcome) error {
			leave, err := g.enter(t.Context(), mount)
			if err == nil {
				leave(o, boom)
			}
			return err
		}
		for range failuresToOpen - 1 {
			try("kv", failed)
		}
		if err := try("kv", answered); err != nil || g.stats().Open {
			t.Fatal("opened early")
		}
		for range failuresToOpen - 1 {
			try("kv", failed)
			try("kv", unknown)
		}
		if g.stats().Open {
			t.Fatal("an answer did not start the count anew, or what we do not know was counted")
		}
		try("kv", failed)
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			want *= time.Second
			start := time.Now()
			err := try("kv", failed)
			if err == nil || !strings.Contains(err.Error(), "boom") {
				t.Fatalf("while open: %v", err)
			}
			if err := try("pki", answered); err != nil {
				t.Fatalf("another engine: %v", err)
			}
			for try("kv", failed) != nil {
				time.Sleep(100 * time.Millisecond)
			}
			if got := time.Since(start); got != want {
				t.Errorf("probed after %s, want %s", got, want)
			}
		}
		time.Sleep(maxPause)
		// One probe at a time, and a probe that tells nothing makes room for the next.
		leave, err := g.enter(t.Context(), "kv")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(t.Context(), "kv"); err == nil {
			t.Error("two probes at a time")
		}
		leave(unknown, nil)
		if err := try("kv", answered); err != nil || g.stats().Open {
			t.Errorf("after a good probe: %v", err)
		}
	})
}

// Requests that were under way when the breaker opened must not lengthen its pause.
func TestBreakerLateFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(100, 0, time.Second)
		var leaves []func(outcome, error)
		for range 100 {
			leave, err := g.enter(t.Context(), "kv")
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		for _, leave := range leaves {
			leave(failed, errors.New("boom"))
		}
		time.Sleep(minPause)
		if _, err := g.enter(t.Context(), "kv"); err != nil {
			t.Error(err)
		}
	})
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 2, time.Second)
		leave, err := g.enter(t.Context(), "kv")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() {
				var l func(outcome, error)
				if l, errs[i] = g.enter(t.Context(), "kv"); errs[i] == nil {
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
		if _, err := g.enter(t.Context(), "kv"); err == nil || time.Since(start) != 0 {
			t.Errorf("a full queue: %v after %s", err, time.Since(start))
		}
		leave(answered, nil)
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
		// Patience ends, and so does the guest's.
		leave, err = g.enter(t.Context(), "kv")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(t.Context(), "kv"); err == nil || time.Since(start) < time.Second {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := g.enter(ctx, "kv"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		leave(answered, nil)
		if s := g.stats(); s.Waiting != 0 || len(g.slots) != 0 || s.Requests != 4 {
			t.Errorf("left over: %+v, %d slots", s, len(g.slots))
		}
	})
}
