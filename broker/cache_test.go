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
	engine, err := policy.New(policy.Config{Dir: dir})
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

// TestNoCopyUnlessPolicySaysSo: neither kept nor given.
func TestNoCopyUnlessPolicySaysSo(t *testing.T) {
	w, cache := cacheWorld(t, `{"ttl": "1h"}`)
	if _, err := w.opened(t); err != nil {
		t.Fatal(err)
	}
	if cache.puts != 0 {
		t.Error("a copy was kept without leave")
	}
	cache.items["local\x00kv\x00\x00disks/vm-1\x00"] = broker.Copy{Value: []byte("x"), Version: "1", At: w.now}
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
