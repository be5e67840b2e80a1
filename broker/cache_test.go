package broker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/policy"
)

// fakeCache keeps copies in memory.
type fakeCache struct {
	mu    sync.Mutex
	items map[string]broker.Copy
	puts  int
}

func (f *fakeCache) PutCopy(_ context.Context, key string, c broker.Copy) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.Value = append([]byte(nil), c.Value...)
	f.items[key] = c
	f.puts++
	return nil
}

func (f *fakeCache) GetCopy(_ context.Context, key string) (broker.Copy, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.items[key]
	if !ok {
		return broker.Copy{}, broker.ErrNoSecret
	}
	c.Value = append([]byte(nil), c.Value...)
	return c, nil
}

func (f *fakeCache) DeleteCopy(_ context.Context, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.items, key)
	return nil
}

// cacheWorld has a policy whose obligations are as given.
func cacheWorld(t *testing.T, obligations string) (*world, *fakeCache) {
	t.Helper()
	dir := t.TempDir()
	src := "package claviger.release.disks\n\ndefault allow := false\n\nallow if input.attestation.bound == true\n\nobligations := " + obligations + "\n"
	if err := os.WriteFile(filepath.Join(dir, "p.rego"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	engine, err := policy.New(policy.Config{Dir: dir, ExtraData: map[string]any{"allow_simulated": true}})
	if err != nil {
		t.Fatal(err)
	}
	cache := &fakeCache{items: map[string]broker.Copy{}}
	return newWorld(t, func(c *broker.Config) { c.Policy, c.Cache = engine, cache }), cache
}

func (w *world) opened(t *testing.T) (seal.Statement, error) {
	t.Helper()
	a := w.attempt(t)
	resp, err := w.send(t, a)
	if err != nil {
		return seal.Statement{}, err
	}
	st, err := seal.Open(a.key, resp.Secrets[0].JWE, seal.Expect{Identity: w.Identity(), Resource: "disks/vm-1", Nonce: a.req.Nonce, Now: w.now})
	if err != nil {
		t.Fatal(err)
	}
	return st, nil
}

// TestCopyStandsIn: with the policy's leave, disks unlock while Vault is gone, and the record says so.
func TestCopyStandsIn(t *testing.T) {
	w, cache := cacheWorld(t, `{"cache": "10m"}`)
	for range 3 {
		if _, err := w.opened(t); err != nil {
			t.Fatal(err)
		}
	}
	if cache.puts != 1 {
		t.Errorf("the copy was written %d times for three releases", cache.puts)
	}
	w.source.fault = errors.New("vault: sealed")
	w.now = w.now.Add(9 * time.Minute)
	st, err := w.opened(t)
	if err != nil || string(st.Secret) != theSecret || st.Version != "7" {
		t.Fatalf("%q %v", st.Secret, err)
	}
	last := w.log.records[len(w.log.records)-1]
	if !last.Resources[0].FromCache || last.Outcome != broker.Released {
		t.Errorf("record %+v", last)
	}
	// A revoked version is not given out of the cache either.
	w.revoked.add(broker.Subject{Kind: broker.RevokeSecretVersion, Value: "disks/vm-1@7"})
	if _, err := w.opened(t); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("got %v", err)
	}
	w.revoked.hits = map[broker.Subject]bool{}
	w.now = w.now.Add(2 * time.Minute)
	if _, err := w.opened(t); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("older than the policy allows: %v", err)
	}
}

// TestCopies: how often a copy is renewed, how old it may be, and what has none.
func TestCopies(t *testing.T) {
	const key = "local\x00kv\x00\x00disks/vm-1\x00\x00false"
	w, cache := cacheWorld(t, `{"cache": "10m"}`)
	release := func() error { _, err := w.opened(t); return err }
	start := w.now
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if c := cache.items[key]; string(c.Value) != theSecret || c.Version != "7" || !c.At.Equal(start) || !c.Until.Equal(start.Add(10*time.Minute)) {
		t.Errorf("copy %+v", c)
	}
	w.now = start.Add(149 * time.Second)
	if err := release(); err != nil || cache.puts != 1 {
		t.Errorf("written %d times: %v", cache.puts, err)
	}
	w.now = start.Add(150 * time.Second) // a quarter of its time
	if err := release(); err != nil || cache.puts != 2 {
		t.Errorf("written %d times: %v", cache.puts, err)
	}
	w.source.fault = errors.New("vault: sealed")
	at := w.now
	for _, tt := range []struct {
		age time.Duration
		ok  bool
	}{{0, true}, {10 * time.Minute, true}, {10*time.Minute + 1, false}, {-time.Minute, true}, {-time.Minute - 1, false}} {
		c := cache.items[key]
		c.At = at.Add(-tt.age)
		cache.items[key] = c
		if err := release(); (err == nil) != tt.ok {
			t.Errorf("%s old: %v", tt.age, err)
		}
	}
	// A pinned version is one that exists: a copy says nothing about it.
	pinned := w.Catalog().Entries()
	pinned[0].PinVersion = 7
	c, err := broker.NewCatalog(pinned)
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
	item := cache.items[key]
	item.At = at
	cache.items[key] = item
	if err := release(); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("pinned: %v", err)
	}
	w.source.fault = nil
	w.now = start.Add(time.Hour)
	if err := release(); err != nil || cache.puts != 2 {
		t.Errorf("pinned: written %d times: %v", cache.puts, err)
	}
}

// faultyCache fails as an etcd without a leader does.
type faultyCache struct {
	*fakeCache
	put, get, forget error
}

func (f *faultyCache) PutCopy(ctx context.Context, key string, c broker.Copy) error {
	if f.put != nil {
		return f.put
	}
	return f.fakeCache.PutCopy(ctx, key, c)
}

func (f *faultyCache) GetCopy(ctx context.Context, key string) (broker.Copy, error) {
	c, err := f.fakeCache.GetCopy(ctx, key)
	return c, errors.Join(err, f.get)
}

func (f *faultyCache) DeleteCopy(ctx context.Context, key string) error {
	if f.forget != nil {
		return f.forget
	}
	return f.fakeCache.DeleteCopy(ctx, key)
}

// TestCopiesOfChangingSecrets: each version is copied, with its type; what a guest's input makes is not; a cache that fails costs no release.
func TestCopiesOfChangingSecrets(t *testing.T) {
	const key = "local\x00kv\x00\x00disks/vm-1\x00\x00false"
	down := errors.New("no leader")
	w, kept := cacheWorld(t, `{"cache": "10m"}`)
	cache := &faultyCache{fakeCache: kept}
	secret, fault := broker.Secret{Version: "1", ContentType: "text/plain"}, error(nil)
	w.cfg.Cache = cache
	w.cfg.Sources = map[string]broker.Source{"local": faultySource(func() (broker.Secret, error) {
		s := secret
		s.Value = []byte("v" + s.Version)
		return s, fault
	})}
	catalog := w.Catalog()
	var err error
	if w.Broker, err = broker.New(w.cfg); err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(catalog)
	release := func(input string) error {
		t.Helper()
		a := w.attempt(t)
		if input != "" {
			a.req.Inputs = [][]byte{[]byte(input)}
			a.bind.Inputs = a.req.Inputs
		}
		_, err := w.send(t, a)
		return err
	}
	cache.put = down
	if err := release(""); err != nil || kept.puts != 0 {
		t.Errorf("the cache is down: %v", err)
	}
	cache.put = nil
	if err := release("i"); err != nil || kept.puts != 0 {
		t.Errorf("copied what an input made: %v", err)
	}
	for puts, version := range []string{"1", "2", "2", "1"} {
		secret.Version = version
		if err := release(""); err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 2, 2, 3}[puts]; kept.puts != want || kept.items[key].Version != version {
			t.Errorf("after version %s: written %d times, want %d; copy of %s", version, kept.puts, want, kept.items[key].Version)
		}
	}
	for _, edition := range []string{"again", "again"} { // deleted with its history, and written again
		secret.Edition = edition
		if err := release(""); err != nil || kept.puts != 4 {
			t.Errorf("another version 1: the copy was written %d times, want 4: %v", kept.puts, err)
		}
	}
	fault = errors.New("vault: sealed")
	st, err := w.opened(t)
	if err != nil || st.ContentType != "text/plain" || string(st.Secret) != "v1" {
		t.Errorf("%+v %v", st, err)
	}
	if err := release("i"); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("a copy stands in for what an input makes: %v", err)
	}
	cache.get = down
	if err := release(""); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("the cache is down as well: %v", err)
	}
	cache.get = nil
	fault = broker.ErrInput
	if err := release("i"); !errors.Is(err, broker.ErrDenied) || len(kept.items) != 1 {
		t.Errorf("a bad input forgets the copy: %v", err)
	}
	fault, cache.forget = broker.ErrNoSecret, down
	if err := release(""); !errors.Is(err, broker.ErrDenied) || len(kept.items) != 1 {
		t.Errorf("%d copies: %v", len(kept.items), err)
	}
	cache.forget = nil
	if err := release(""); !errors.Is(err, broker.ErrDenied) || len(kept.items) != 0 {
		t.Errorf("%d copies: %v", len(kept.items), err)
	}
	fault = nil // it is there again: so is its copy, at once
	if err := release(""); err != nil || len(kept.items) != 1 {
		t.Errorf("%d copies: %v", len(kept.items), err)
	}
}

type faultySource func() (broker.Secret, error)

func (f faultySource) Fetch(_ context.Context, g *broker.Grant) (broker.Secret, error) {
	if _, err := g.Redeem(); err != nil {
		return broker.Secret{}, err
	}
	return f()
}

// TestNoCopyUnlessPolicySaysSo: neither kept nor given.
func TestNoCopyUnlessPolicySaysSo(t *testing.T) {
	w, cache := cacheWorld(t, `{"ttl": "1h"}`)
	if _, err := w.opened(t); err != nil {
		t.Fatal(err)
	}
	if cache.puts != 0 {
		t.Error("a copy was kept without leave")
	}
	cache.items["local\x00kv\x00\x00disks/vm-1\x00\x00false"] = broker.Copy{Value: []byte("x"), Version: "1", At: w.now}
	w.source.fault = errors.New("vault: sealed")
	if _, err := w.opened(t); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestDeletedSecretIsForgotten: what its source says is gone, is gone.
func TestDeletedSecretIsForgotten(t *testing.T) {
	w, cache := cacheWorld(t, `{"cache": "10m"}`)
	if _, err := w.opened(t); err != nil {
		t.Fatal(err)
	}
	w.source.fault = fmt.Errorf("deleted: %w", broker.ErrNoSecret)
	if _, err := w.opened(t); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("got %v", err)
	}
	if len(cache.items) != 0 {
		t.Error("the copy of a deleted secret stays")
	}
	w.source.fault = errors.New("vault: sealed")
	if _, err := w.opened(t); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestAnswersAreNotStoodInFor: a copy replaces a missing answer, and no other. What says no drops it, on every broker.
func TestAnswersAreNotStoodInFor(t *testing.T) {
	for name, tt := range map[string]struct {
		answer error
		drops  bool
	}{
		"forbidden": {broker.ErrWithheld, true},
		"too busy":  {broker.ErrBusy, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, cache := cacheWorld(t, `{"cache": "10m"}`)
			if _, err := w.opened(t); err != nil {
				t.Fatal(err)
			}
			w.source.fault = fmt.Errorf("vault: %w", tt.answer)
			if _, err := w.opened(t); !errors.Is(err, broker.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if dropped := len(cache.items) == 0; dropped != tt.drops {
				t.Errorf("dropped: %v", dropped)
			}
			w.source.fault = errors.New("vault: sealed")
			if _, err := w.opened(t); (err == nil) == tt.drops {
				t.Errorf("afterwards without an answer: %v", err)
			}
		})
	}
}
