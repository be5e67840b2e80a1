// Package statetest is the conformance suite of state.KV: every implementation passes it.
package statetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/state"
)

// Run tests an empty store.
func Run(t *testing.T, kv state.KV) {
	t.Run("get, put, delete", func(t *testing.T) {
		if _, rev, err := kv.Get(t.Context(), "a"); err != nil || rev != 0 {
			t.Fatalf("revision %d of an absent key: %v", rev, err)
		}
		check(t, kv.Put(t.Context(), "a", []byte("1")))
		if v, rev, err := kv.Get(t.Context(), "a"); err != nil || rev == 0 || string(v) != "1" {
			t.Fatalf("got %q at %d: %v", v, rev, err)
		}
		if ok, err := kv.Delete(t.Context(), "a"); !ok || err != nil {
			t.Fatalf("delete: %v %v", ok, err)
		}
		if ok, err := kv.Delete(t.Context(), "a"); ok || err != nil {
			t.Fatalf("second delete: %v %v", ok, err)
		}
	})
	t.Run("put-if takes one of many writers", func(t *testing.T) {
		var wins atomic.Int32
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				ok, err := kv.PutIf(t.Context(), "cas", []byte("x"), 0)
				if err != nil {
					t.Error(err)
				}
				if ok {
					wins.Add(1)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d writers created the same key", wins.Load())
		}
		_, rev, err := kv.Get(t.Context(), "cas")
		check(t, err)
		if ok, err := kv.PutIf(t.Context(), "cas", []byte("y"), rev); !ok || err != nil {
			t.Fatalf("at the right revision: %v %v", ok, err)
		}
		if ok, err := kv.PutIf(t.Context(), "cas", []byte("z"), rev); ok || err != nil {
			t.Fatalf("at an old revision: %v %v", ok, err)
		}
	})
	t.Run("create-until takes one of many", func(t *testing.T) {
		var wins atomic.Int32
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				ok, err := kv.CreateUntil(t.Context(), "nonces/n", time.Now().Add(time.Minute))
				if err != nil {
					t.Error(err)
				}
				if ok {
					wins.Add(1)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d callers spent the same nonce", wins.Load())
		}
	})
	t.Run("list is sorted and keeps to the prefix", func(t *testing.T) {
		for _, k := range []string{"l/b", "l/a", "m/c"} {
			check(t, kv.Put(t.Context(), k, []byte(k)))
		}
		pairs, err := kv.List(t.Context(), "l/")
		check(t, err)
		if len(pairs) != 2 || pairs[0].Key != "l/a" || pairs[1].Key != "l/b" {
			t.Fatalf("got %v", pairs)
		}
	})
	t.Run("commit takes one of many that begin alike", func(t *testing.T) {
		check(t, kv.Put(t.Context(), "t/old", []byte("x")))
		_, since, err := kv.Get(t.Context(), "t/old")
		check(t, err)
		var wins atomic.Int32
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				rev, done, err := kv.Commit(t.Context(), state.Change{Key: fmt.Sprintf("t/%d", i), Value: []byte("y"), Unless: "t/", Since: since})
				if err != nil || done && rev <= since {
					t.Errorf("revision %d: %v", rev, err)
				}
				if done {
					wins.Add(1)
				}
			})
		}
		wg.Wait()
		if pairs, err := kv.List(t.Context(), "t/"); err != nil || wins.Load() != 1 || len(pairs) != 2 {
			t.Fatalf("%d writers won, there are %v: %v", wins.Load(), pairs, err)
		}
		// Under a prefix without keys everybody begins at 0, and what is elsewhere does not count.
		if _, done, err := kv.Commit(t.Context(), state.Change{Key: "t0/a", Value: []byte("y"), Unless: "t0/"}); !done || err != nil {
			t.Fatalf("first of its prefix: %v %v", done, err)
		}
		for _, unless := range []string{"", "t/"} {
			if _, done, err := kv.Commit(t.Context(), state.Change{Key: "t/none", Delete: true, Unless: unless, Since: since + 1000}); done || err != nil {
				t.Fatalf("deleted what is not there: %v", err)
			}
		}
		if rev, done, err := kv.Commit(t.Context(), state.Change{Key: "t/old", Delete: true}); !done || err != nil || rev <= since {
			t.Fatalf("delete: %v %v at %d", done, err, rev)
		}
		if _, done, err := kv.Commit(t.Context(), state.Change{Key: "t/new", Value: []byte("z")}); !done || err != nil {
			t.Fatalf("without a condition: %v %v", done, err)
		}
	})
	t.Run("pages", func(t *testing.T) {
		for i := range 7 {
			check(t, kv.Put(t.Context(), fmt.Sprintf("p/%d", i), []byte{byte(i)}))
		}
		check(t, kv.Put(t.Context(), "p0", nil)) // comes after the prefix
		var got string
		after := ""
		for {
			page, err := kv.Page(t.Context(), "p/", after, 3)
			check(t, err)
			for _, p := range page {
				got += p.Key + " "
				after = p.Key
			}
			if got += "| "; len(page) < 3 {
				break
			}
		}
		if want := "p/0 p/1 p/2 | p/3 p/4 p/5 | p/6 | "; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if page, err := kv.Page(t.Context(), "p/", "a", 2); err != nil || len(page) != 2 || page[0].Key != "p/0" {
			t.Errorf("after a key before the prefix: %v %v", page, err)
		}
	})
	t.Run("a list of more than a page is of one moment", func(t *testing.T) {
		const n = 2500
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := w; i < n; i += 8 {
					if err := kv.Put(t.Context(), fmt.Sprintf("many/%04d", i), nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		stop := make(chan struct{})
		wg.Go(func() { // writes the first and then the last, in turn
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := kv.Put(t.Context(), "many/0000", fmt.Append(nil, i)); err != nil {
					t.Error(err)
				}
				if err := kv.Put(t.Context(), "many/2499", fmt.Append(nil, i)); err != nil {
					t.Error(err)
				}
			}
		})
		for range 5 {
			pairs, err := kv.List(t.Context(), "many/")
			check(t, err)
			if len(pairs) != n || !slices.IsSortedFunc(pairs, func(a, b state.Pair) int { return strings.Compare(a.Key, b.Key) }) {
				t.Errorf("%d pairs, want %d sorted ones", len(pairs), n)
			}
			if first, last := string(pairs[0].Value), string(pairs[n-1].Value); first != last {
				// The first is written first: it may be one ahead, and the last never is.
				var a, b int
				fmt.Sscan(first, &a)
				fmt.Sscan(last, &b)
				if a != b+1 && last != "" {
					t.Errorf("the first has %q and the last %q: not of one moment", first, last)
				}
			}
		}
		close(stop)
		wg.Wait()
	})
	t.Run("alive is true", func(t *testing.T) { aliveIsTrue(t, kv) })
	t.Run("watch sees what is there, what changes and what goes", func(t *testing.T) {
		check(t, kv.Put(t.Context(), "w/old", []byte("1")))
		ctx, cancel := context.WithCancel(t.Context())
		views := make(chan string, 64)
		var alive atomic.Int32
		done := make(chan error, 1)
		go func() {
			view := map[string]string{}
			done <- kv.Watch(ctx, "w/", func(u state.Update) {
				if u.Whole {
					clear(view)
				}
				for _, p := range u.Pairs {
					if p.Revision == 0 || p.Revision > u.Revision {
						t.Errorf("%s has revision %d in an update up to %d", p.Key, p.Revision, u.Revision)
					}
					if view[p.Key] = string(p.Value); p.Deleted {
						delete(view, p.Key)
					}
				}
				s := ""
				for _, k := range slices.Sorted(maps.Keys(view)) {
					s += fmt.Sprintf("%s=%s ", k, view[k])
				}
				views <- s
			}, func(time.Time) { alive.Add(1) })
		}()
		want := func(w string) {
			t.Helper()
			for {
				select {
				case v := <-views:
					if v == w {
						return
					}
				case <-time.After(5 * time.Second):
					t.Fatalf("did not see %q", w)
				}
			}
		}
		want("w/old=1 ")
		check(t, kv.Put(t.Context(), "w/new", []byte("2")))
		want("w/new=2 w/old=1 ")
		if _, err := kv.Delete(t.Context(), "w/old"); err != nil {
			t.Fatal(err)
		}
		want("w/new=2 ")
		before := alive.Load()
		for range 100 {
			if alive.Load() > before+1 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if alive.Load() <= before+1 {
			t.Error("an idle watch does not say that it is current")
		}
		cancel()
		if err := <-done; err == nil {
			t.Error("watch ended without an error")
		}
	})
}

// aliveIsTrue: a view that is said to be current has all that was acknowledged
// before then, though it changes all the time, it takes time to apply, and
// others write elsewhere in the store.
func aliveIsTrue(t *testing.T, kv state.KV) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	acked := map[string]time.Time{} // guarded by mu; when each value was acknowledged
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := kv.Put(ctx, fmt.Sprintf("elsewhere/%d", w), fmt.Append(nil, i)); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				if i%3 > 0 {
					continue
				}
				key := fmt.Sprintf("v/%d/%d", w, i)
				if err := kv.Put(ctx, key, nil); err == nil {
					mu.Lock()
					acked[key] = time.Now()
					mu.Unlock()
				}
			}
		})
	}
	seen := map[string]bool{}
	said, last := 0, time.Now()
	for round := range 2 { // a watch that begins where there is much, too
		watch, stop := context.WithCancel(ctx)
		_ = kv.Watch(watch, "v/", func(u state.Update) {
			if u.Whole {
				clear(seen)
			}
			time.Sleep(20 * time.Millisecond)
			for _, p := range u.Pairs {
				seen[p.Key] = true
			}
		}, func(asOf time.Time) {
			if asOf.After(time.Now()) || time.Since(asOf) > time.Minute {
				t.Errorf("current at %s, and it is %s", asOf, time.Now())
			}
			mu.Lock()
			for key, at := range acked {
				if at.Before(asOf) && !seen[key] {
					t.Errorf("said to be current at %s, without %s of %s before", asOf, key, asOf.Sub(at))
				}
			}
			mu.Unlock()
			if said, last = said+1, time.Now(); said == 12*(round+1) || t.Failed() {
				stop()
			}
		})
		stop()
	}
	cancel()
	writers.Wait()
	if said < 24 && !t.Failed() || time.Since(last) > 10*time.Second {
		t.Errorf("said to be current only %d times", said)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
