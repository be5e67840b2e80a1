package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/internal/testservers"
)

// brokerPolicy is what deploy/ would give a broker: KV data, nothing else.
const brokerPolicy = `
path "secret/data/disks/*" { capabilities = ["create", "update", "read"] }
path "secret/data/db/*"    { capabilities = ["read"] }`

type world struct {
	vault *testservers.Vault
	root  *api.Client
	src   *Source
}

// newWorld logs in by AppRole with tokens that live for ttl.
func newWorld(t *testing.T, ttl string) world {
	t.Helper()
	v := testservers.StartVault(t)
	c, err := api.NewClient(&api.Config{Address: v.Address})
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(v.Token)
	must := func(_ *api.Secret, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Sys().PutPolicy("claviger", brokerPolicy); err != nil {
		t.Fatal(err)
	}
	if err := c.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}); err != nil {
		t.Fatal(err)
	}
	must(c.Logical().Write("auth/approle/role/claviger", map[string]any{"token_policies": "claviger", "token_ttl": ttl, "token_max_ttl": "1h"}))
	id, err := c.Logical().Read("auth/approle/role/claviger/role-id")
	must(id, err)
	sid, err := c.Logical().Write("auth/approle/role/claviger/secret-id", nil)
	must(sid, err)
	file := filepath.Join(t.TempDir(), "secret-id")
	if err := os.WriteFile(file, []byte(sid.Data["secret_id"].(string)), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := New(t.Context(), Config{
		Address: v.Address, Timeout: time.Second,
		AppRole: &AppRole{RoleID: id.Data["role_id"].(string), SecretIDFile: file},
	})
	if err != nil {
		t.Fatal(err)
	}
	return world{v, c, src}
}

func (w world) put(t *testing.T, key string, data map[string]any) {
	t.Helper()
	if _, err := w.root.KVv2("secret").Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
}

func (w world) fetch(ctx context.Context, e broker.CatalogEntry) (broker.Secret, error) {
	return w.src.Fetch(ctx, grant.Mint(broker.Granted{Entry: e}))
}

func TestKV(t *testing.T) {
	w := newWorld(t, "1h")
	w.put(t, "db/orders", map[string]any{"value": "one", "user": "app", "n": 7})

	w.put(t, "db/odd", map[string]any{
		"object": map[string]any{"a": 1}, "null": nil, "port": 5432, "big": json.Number("9007199254740991"), "on": true,
		"app_key": "base64:aGVsbG8=", "plain64": "aGVsbG8=", "empty": "",
	})
	for field, want := range map[string]string{"port": "5432", "big": "9007199254740991", "on": "true", "app_key": "base64:aGVsbG8=", "plain64": "aGVsbG8=", "empty": ""} {
		s, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/odd", Field: field})
		if err != nil || string(s.Value) != want {
			t.Errorf("%s: got %q, want %q as it is in Vault: %v", field, s.Value, want, err)
		}
	}
	for field, e := range map[string]broker.CatalogEntry{
		"app_key": {Options: map[string]string{"encoding": "base64"}}, "plain64": {Options: map[string]string{"encoding": "base64"}},
		"app_key, of an entry whose values the broker makes": {CreateBytes: 32},
	} {
		e.Key = "db/odd"
		e.Field, _, _ = strings.Cut(field, ",")
		if s, err := w.fetch(t.Context(), e); err != nil || string(s.Value) != "hello" {
			t.Errorf("%s: got %q, want it decoded: %v", field, s.Value, err)
		}
	}
	t.Run("reads the newest version", func(t *testing.T) {
		w.put(t, "db/orders", map[string]any{"value": "two", "user": "app", "n": 7})
		s, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders"})
		if err != nil || string(s.Value) != "two" || s.Version != "2" {
			t.Fatalf("got %q version %s: %v", s.Value, s.Version, err)
		}
	})
	t.Run("reads a named field", func(t *testing.T) {
		s, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders", Field: "user"})
		if err != nil || string(s.Value) != "app" {
			t.Fatalf("got %q: %v", s.Value, err)
		}
	})
	for name, e := range map[string]broker.CatalogEntry{
		"missing secret": {Key: "db/none"},
		"missing field":  {Key: "db/orders", Field: "none"},
		"object":         {Key: "db/odd", Field: "object"},
		"null":           {Key: "db/odd", Field: "null"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := w.fetch(t.Context(), e); !errors.Is(err, broker.ErrNoSecret) {
				t.Fatalf("got %v, want ErrNoSecret", err)
			}
		})
	}
	t.Run("without a grant", func(t *testing.T) {
		if _, err := w.src.Fetch(t.Context(), nil); err == nil {
			t.Fatal("read without authority")
		}
		g := grant.Mint(broker.Granted{Entry: broker.CatalogEntry{Key: "db/orders"}})
		if _, err := w.src.Fetch(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if _, err := w.src.Fetch(t.Context(), g); err == nil {
			t.Fatal("redeemed a grant twice")
		}
	})
	t.Run("path that the token may not read", func(t *testing.T) {
		_, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "other/x"})
		if err == nil || errors.Is(err, broker.ErrNoSecret) || !strings.Contains(err.Error(), "permission denied") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("a deleted disk key is not replaced by a new one", func(t *testing.T) {
		w.put(t, "disks/gone", map[string]any{"value": "key"})
		if err := w.root.KVv2("secret").Delete(t.Context(), "disks/gone"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "disks/gone", CreateBytes: 32}); !errors.Is(err, broker.ErrNoSecret) {
			t.Fatalf("got %v, want ErrNoSecret", err)
		}
	})
}

// Two (here 32) machines at their first boot must get one and the same key.
func TestCreateRace(t *testing.T) {
	w := newWorld(t, "1h")
	got := make([]broker.Secret, 32)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = w.fetch(t.Context(), broker.CatalogEntry{Key: "disks/vm-1", CreateBytes: 32}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range got {
		if len(s.Value) != 32 || !bytes.Equal(s.Value, got[0].Value) || s.Version != "1" {
			t.Fatalf("machines got different keys: %x (version %s) and %x", s.Value, s.Version, got[0].Value)
		}
	}
}

func TestLoginOutlivesToken(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t, "3s")
	w.put(t, "db/orders", map[string]any{"value": "x"})
	t.Run("renewed", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.src.Run(ctx)
		before := *w.src.token.Load()
		time.Sleep(5 * time.Second)
		if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders"}); err != nil {
			t.Fatal(err)
		}
		if *w.src.token.Load() != before {
			t.Error("logged in again where renewal would have done")
		}
	})
	t.Run("revoked token: logs in again", func(t *testing.T) {
		if err := w.root.Auth().Token().RevokeTree(*w.src.token.Load()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.fetch(t.Context(), broker.CatalogEntry{Key: "db/orders"}); err != nil {
			t.Fatal(err)
		}
	})
}
