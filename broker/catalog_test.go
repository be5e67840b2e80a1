package broker

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCatalogLookup(t *testing.T) {
	c, err := NewCatalog([]CatalogEntry{
		{Pattern: "disks/{vm}", Source: "local", Key: "fleet/{vm}/disk", Policy: "disks"},
		{Pattern: "disks/golden", Source: "vault", Key: "golden", Policy: "strict"},
		{Pattern: "{team}/{app}/token", Source: "vault", Key: "{app}/{team}", Policy: "workload"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, key, policy string
		params            map[string]string
	}{
		{"disks/vm-1", "fleet/vm-1/disk", "disks", map[string]string{"vm": "vm-1"}},
		{"disks/golden", "golden", "strict", map[string]string{}}, // fixed wins over variable
		{"a/b/token", "b/a", "workload", map[string]string{"team": "a", "app": "b"}},
	} {
		e, params, ok := c.Lookup(tt.path)
		if !ok || e.Key != tt.key || e.Policy != tt.policy {
			t.Errorf("%s: got %+v, %v", tt.path, e, ok)
		}
		if d := cmp.Diff(tt.params, params); d != "" {
			t.Errorf("%s: %s", tt.path, d)
		}
	}
	for _, path := range []string{"", "disks", "disks/", "disks/a/b", "/disks/a", "disks/..", "disks/.", "disks/a b", "disks/{vm}", "disks//", "other"} {
		if e, _, ok := c.Lookup(path); ok {
			t.Errorf("%q matched %q", path, e.Pattern)
		}
	}
	if _, _, ok := (*Catalog)(nil).Lookup("disks/a"); ok {
		t.Error("the nil catalog knows something")
	}
}

func TestNewCatalogRefuses(t *testing.T) {
	good := CatalogEntry{Pattern: "a/{x}", Source: "local", Key: "a/{x}", Policy: "p"}
	for field, change := range map[string]func(*CatalogEntry){
		"pattern: segment":  func(e *CatalogEntry) { e.Pattern = "a/b c" },
		"pattern: variable": func(e *CatalogEntry) { e.Pattern = "{x}/{x}" },
		"key: segment":      func(e *CatalogEntry) { e.Key = "../{x}" },
		"not a variable":    func(e *CatalogEntry) { e.Key = "{y}" },
		"source":            func(e *CatalogEntry) { e.Source = "" },
		"policy":            func(e *CatalogEntry) { e.Policy = "a.b" },
		"create_bytes":      func(e *CatalogEntry) { e.CreateBytes = 4 },
		"rekey, rotatable":  func(e *CatalogEntry) { e.CreateBytes, e.Rekey, e.Rotatable = 32, true, true },
		"rekey":             func(e *CatalogEntry) { e.Rekey = true },
		"priority":          func(e *CatalogEntry) { e.Priority = "first" },
		"ttl":               func(e *CatalogEntry) { e.TTL = -time.Second },
	} {
		e := good
		change(&e)
		if _, err := NewCatalog([]CatalogEntry{e}); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	twin := good
	twin.Pattern, twin.Key = "a/{y}", "a/{y}"
	if _, err := NewCatalog([]CatalogEntry{good, twin}); err == nil {
		t.Error("accepted two entries for the same paths")
	}
}

func FuzzLookup(f *testing.F) {
	c, err := NewCatalog([]CatalogEntry{{Pattern: "a/{x}", Source: "s", Key: "k/{x}", Policy: "p"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a/b")
	f.Add("a/../b")
	f.Fuzz(func(t *testing.T, path string) {
		e, _, ok := c.Lookup(path)
		if ok && (strings.Count(e.Key, "/") != 1 || strings.Contains(e.Key, "..") && !pathSegment.MatchString(strings.TrimPrefix(e.Key, "k/"))) {
			t.Errorf("%q became key %q", path, e.Key)
		}
	})
}

func TestNonces(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	n, err := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	nonce, expires, err := n.Issue(now)
	if err != nil || len(nonce) != NonceSize || !expires.Equal(now.Add(time.Minute)) {
		t.Fatalf("%x until %s: %v", nonce, expires, err)
	}
	if _, got, err := n.Check(nonce, now.Add(59*time.Second)); err != nil || !got.Equal(expires) {
		t.Fatalf("until %s: %v", got, err)
	}
	if _, _, err := n.Check(nonce, now.Add(time.Minute)); err == nil {
		t.Error("honoured at its expiry")
	}
	if _, _, err := n.Check(nonce, now.Add(-10*time.Minute)); err == nil {
		t.Error("honoured although our clock went back")
	}
	for i := range nonce {
		bad := append([]byte(nil), nonce...)
		bad[i] ^= 0x80
		if _, _, err := n.Check(bad, now); err == nil {
			t.Errorf("byte %d can be changed", i)
		}
	}
	otherKey, _ := NewNonces(append(make([]byte, 31), 1), [32]byte{1}, time.Minute)
	otherBroker, _ := NewNonces(make([]byte, 32), [32]byte{2}, time.Minute)
	for name, o := range map[string]*Nonces{"key": otherKey, "broker id": otherBroker} {
		if _, _, err := o.Check(nonce, now); err == nil {
			t.Errorf("a broker with another %s honours it", name)
		}
	}
	replica, _ := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if _, _, err := replica.Check(nonce, now); err != nil {
		t.Errorf("a replica does not: %v", err)
	}
}

func FuzzNonce(f *testing.F) {
	n, err := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	good, _, _ := n.Issue(time.Unix(0, 0))
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := n.Check(b, time.Unix(0, 0)); err != nil {
			return
		}
		for i := range b { // one of ours: then nothing in it may be changed
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if _, _, err := n.Check(bad, time.Unix(0, 0)); err == nil {
				t.Fatalf("byte %d can be changed", i)
			}
		}
	})
}

func BenchmarkNonce(b *testing.B) {
	n, err := NewNonces(make([]byte, 32), [32]byte{1}, time.Minute)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	nonce, _, _ := n.Issue(now)
	for b.Loop() {
		if _, _, err := n.Check(nonce, now); err != nil {
			b.Fatal(err)
		}
	}
}
