// Package statetest is the conformance suite of state.KV: every implementation passes it.
package statetest

import (
	"context"
	"fmt"
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
	t.Run("watch sees what is there, what changes and what goes", func(t *testing.T) {
		check(t, kv.Put(t.Context(), "w/old", []byte("1")))
		ctx, cancel := context.WithCancel(t.Context())
		views := make(chan string, 64)
		var alive atomic.Int32
		done := make(chan error, 1)
		go func() {
			done <- kv.Watch(ctx, "w/", func(all []state.Pair) {
				s := ""
				for _, p := range all {
					s += fmt.Sprintf("%s=%s ", p.Key, p.Value)
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

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
