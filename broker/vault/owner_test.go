package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"

	"github.com/claviger/claviger/broker"
)

type userpass struct{ Username, Password string }

func parse[T any](t testing.TB, s broker.Secret) T {
	t.Helper()
	if s.ContentType != "application/json" {
		t.Errorf("content type %q", s.ContentType)
	}
	var v T
	if err := json.Unmarshal(s.Value, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// roles counts the users that Vault has made in PostgreSQL.
func (d deployed) roles(t testing.TB) string {
	t.Helper()
	return d.pg.Query(t, `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'`)
}

func TestDatabase(t *testing.T) {
	t.Parallel() // it mostly waits
	d := deploy(t, "database")
	entry := broker.CatalogEntry{Kind: broker.KindDatabase, Key: "app"}
	newOwner := func(t *testing.T, ttl time.Duration) broker.Owner {
		t.Helper()
		o, err := d.src.NewOwner(t.Context(), "session-1", ttl)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	leaseGone := func(t *testing.T, id string) {
		t.Helper()
		if _, err := d.root.Sys().Lookup(id); status(err) != 400 {
			t.Errorf("look up lease: %v, want 400", err)
		}
	}

	t.Run("the user works, and is gone with its owner", func(t *testing.T) {
		o := newOwner(t, time.Minute)
		if o.Source != "vault" || o.ID == "" || len(o.Secret) == 0 {
			t.Fatalf("owner %+v", o)
		}
		s := d.get(t, broker.Granted{Entry: entry, Owner: &o})
		u := parse[userpass](t, s)
		if err := d.pg.Login(u.Username, u.Password); err != nil {
			t.Fatal(err)
		}
		if left := time.Until(s.Expires); left < time.Second || left > 4*time.Second {
			t.Errorf("expires in %s, want the role's 3s", left)
		}
		second := d.get(t, broker.Granted{Entry: entry, Owner: &o})
		if d.roles(t) != "2" || second.Lease == s.Lease || second.Version == s.Version || s.Version == "" {
			t.Fatalf("%s users, leases %s and %s, versions %q and %q", d.roles(t), s.Lease, second.Lease, s.Version, second.Version)
		}
		if err := d.src.RevokeOwner(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		took := eventually(t, "no user", func() bool { return d.roles(t) == "0" })
		t.Logf("users gone %s after the revocation", took)
		if err := d.pg.Login(u.Username, u.Password); err == nil {
			t.Error("the password still works")
		}
		leaseGone(t, s.Lease)
		leaseGone(t, second.Lease)
		if err := d.src.RevokeOwner(t.Context(), o); err != nil {
			t.Errorf("revoked again: %v", err)
		}
		if err := d.src.RenewOwner(t.Context(), o, time.Minute); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("renewed after the end: %v", err)
		}
		o.Secret = nil
		if err := d.src.RenewOwner(t.Context(), o, time.Minute); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("renewed by accessor after the end: %v", err)
		}
		before := *d.src.token.Load()
		o.Secret = []byte("hvs.gone")
		if _, err := d.fetch(t, broker.Granted{Entry: entry, Owner: &o}); err == nil {
			t.Error("fetched with a token that has ended")
		}
		if *d.src.token.Load() != before {
			t.Error("a session's dead token made the broker log in again")
		}
	})
	t.Run("revoked by another broker that knows only the id", func(t *testing.T) {
		o := newOwner(t, time.Minute)
		d.get(t, broker.Granted{Entry: entry, Owner: &o})
		// The broker that made it logs out: the session must not end with that.
		other := d.other(t)
		if err := d.root.Auth().Token().RevokeTree(*d.src.token.Load()); err != nil {
			t.Fatal(err)
		}
		if err := other.RenewOwner(t.Context(), broker.Owner{Source: o.Source, ID: o.ID}, time.Minute); err != nil {
			t.Fatalf("the owner ended with the broker that made it: %v", err)
		}
		if err := other.RevokeOwner(t.Context(), broker.Owner{Source: o.Source, ID: o.ID}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "no user", func() bool { return d.roles(t) == "0" })
	})
	t.Run("never renewed: gone by itself", func(t *testing.T) {
		o := newOwner(t, 2*time.Second)
		s := d.get(t, broker.Granted{Entry: entry, Owner: &o})
		time.Sleep(2 * time.Second)
		took := eventually(t, "no user", func() bool { return d.roles(t) == "0" })
		t.Logf("gone %s after its end", took)
		leaseGone(t, s.Lease)
		if err := d.src.RenewOwner(t.Context(), o, time.Minute); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("renewed after the end: %v", err)
		}
	})
	t.Run("renewed: outlives its first lifetime", func(t *testing.T) {
		for _, secret := range []bool{true, false} { // this broker, and one that has only the id
			o := newOwner(t, 3*time.Second)
			s := d.get(t, broker.Granted{Entry: entry, Owner: &o})
			o.Leases = []string{s.Lease}
			if !secret {
				o.Secret = nil
			}
			for range 5 {
				time.Sleep(time.Second)
				if err := d.src.RenewOwner(t.Context(), o, 3*time.Second); err != nil {
					t.Fatal(err)
				}
			}
			u := parse[userpass](t, s)
			if err := d.pg.Login(u.Username, u.Password); err != nil {
				t.Error(err)
			}
			// Somebody ends the lease alone.
			if err := d.root.Sys().Revoke(s.Lease); err != nil {
				t.Fatal(err)
			}
			if err := d.src.RenewOwner(t.Context(), o, 3*time.Second); !errors.Is(err, broker.ErrNoSecret) {
				t.Errorf("renewed a lease that is gone: %v", err)
			}
			if err := d.src.RevokeOwner(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "no user", func() bool { return d.roles(t) == "0" })
	})
	t.Run("near its maximum lifetime", func(t *testing.T) {
		role := map[string]any{"db_name": "app", "default_ttl": "3s", "max_ttl": "5s", "creation_statements": `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}';`}
		d.write(t, "database/roles/app", role)
		o := newOwner(t, 4*time.Second)
		o.Leases = []string{d.get(t, broker.Granted{Entry: entry, Owner: &o}).Lease}
		warned := false
		eventually(t, "end", func() bool {
			time.Sleep(400 * time.Millisecond)
			err := d.src.RenewOwner(t.Context(), o, 4*time.Second)
			warned = warned || errors.Is(err, broker.ErrEnding)
			if err != nil && !errors.Is(err, broker.ErrEnding) && !errors.Is(err, broker.ErrNoSecret) {
				t.Error(err)
			}
			return errors.Is(err, broker.ErrNoSecret)
		})
		if !warned {
			t.Error("it ended without a warning")
		}
		role["max_ttl"] = "1h"
		d.write(t, "database/roles/app", role)
		if err := d.src.RevokeOwner(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		o := newOwner(t, time.Minute)
		for name, g := range map[string]broker.Granted{
			"no owner":          {Entry: entry},
			"owner of a broker": {Entry: entry, Owner: &broker.Owner{ID: o.ID}},
			"another source's":  {Entry: entry, Owner: &broker.Owner{Source: "elsewhere", ID: o.ID, Secret: o.Secret}},
			"role not allowed":  {Entry: broker.CatalogEntry{Kind: broker.KindDatabase, Key: "admin"}, Owner: &o},
		} {
			if _, err := d.fetch(t, g); err == nil {
				t.Errorf("%s: fetched", name)
			}
		}
		if got := d.roles(t); got != "0" {
			t.Errorf("%s users were made", got)
		}
		if _, err := d.src.NewOwner(t.Context(), "s", time.Millisecond); err == nil {
			t.Error("made an owner without a life")
		}
	})
	t.Run("static", func(t *testing.T) {
		entry := broker.CatalogEntry{Kind: broker.KindDatabaseStatic, Key: "app-static"}
		first := d.get(t, broker.Granted{Entry: entry})
		u := parse[userpass](t, first)
		if err := d.pg.Login("reports", u.Password); err != nil || u.Username != "reports" {
			t.Fatalf("%s: %v", u.Username, err)
		}
		if _, err := time.Parse(time.RFC3339, first.Version); err != nil {
			t.Error(err)
		}
		if left := time.Until(first.Expires); left < 23*time.Hour || left > 25*time.Hour {
			t.Errorf("expires in %s, want the rotation period", left)
		}
		version, err := d.src.CurrentVersion(t.Context(), entry)
		if err != nil || version != first.Version {
			t.Errorf("current version %q, fetched %q: %v", version, first.Version, err)
		}
		if _, err := d.src.Rotate(t.Context(), entry); !errors.Is(err, broker.ErrNotRotatable) {
			t.Errorf("rotated an entry that is not rotatable: %v", err)
		}
		entry.Rotatable = true
		rotated, err := d.src.Rotate(t.Context(), entry)
		if err != nil || rotated == first.Version {
			t.Fatalf("rotated to %q: %v", rotated, err)
		}
		second := d.get(t, broker.Granted{Entry: entry})
		if second.Version != rotated || string(second.Value) == string(first.Value) {
			t.Errorf("version %q after rotation to %q", second.Version, rotated)
		}
		if err := d.pg.Login("reports", u.Password); err == nil {
			t.Error("the old password still works")
		}
		entry.Key = "none"
		if _, err := d.fetch(t, broker.Granted{Entry: entry}); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("unknown role: %v", err)
		}
		if _, err := d.src.CurrentVersion(t.Context(), entry); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("version of unknown role: %v", err)
		}
		if _, err := d.src.Rotate(t.Context(), entry); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("rotate unknown role: %v", err)
		}
	})
	t.Run("the database does not answer", func(t *testing.T) {
		o := newOwner(t, time.Minute)
		d.write(t, "database/config/app", map[string]any{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "app,app-static", "verify_connection": false, "username": "x", "password": "x",
			"connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/app?sslmode=disable",
		})
		for range failuresToOpen {
			if _, err := d.fetch(t, broker.Granted{Entry: entry, Owner: &o}); err == nil || errors.Is(err, broker.ErrNoSecret) {
				t.Fatalf("got %v", err)
			}
		}
		if !d.src.Stats().Open {
			t.Error("the circuit breaker did not open")
		}
		// What is broken in one engine does not stop the others.
		if _, err := d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Key: "disks/a", CreateBytes: 32}}); err != nil {
			t.Error(err)
		}
	})
}

func TestLoginKind(t *testing.T) {
	d := deploy(t)
	entry := broker.CatalogEntry{Kind: broker.KindLogin, Key: "claviger-login"}
	type login struct {
		Token, Accessor string
		TTL             int
	}
	alive := func(token string) bool {
		c := d.root.WithRequestCallbacks(func(q *api.Request) { q.ClientToken = token })
		_, err := c.Auth().Token().LookupSelf()
		return err == nil
	}
	o, err := d.src.NewOwner(t.Context(), "session-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	s := d.get(t, broker.Granted{Entry: entry, Owner: &o})
	l := parse[login](t, s)
	if s.Lease != l.Accessor || s.Version == "" || l.Token == "" || l.TTL == 0 || s.Expires.IsZero() {
		t.Fatalf("lease %q, %+v", s.Lease, l)
	}
	self, err := d.root.Auth().Token().LookupAccessor(l.Accessor)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]any{"claviger-guest"}, self.Data["policies"]); diff != "" {
		t.Errorf("policies: %s", diff)
	}
	o.Leases = []string{s.Lease}
	if err := d.src.RenewOwner(t.Context(), o, time.Minute); err != nil {
		t.Error(err)
	}
	owner, err := d.root.Auth().Token().LookupAccessor(o.ID)
	if err != nil || fmt.Sprint(owner.Data["meta"]) != "map[session:session-1]" {
		t.Errorf("the owner does not name its session: %v, %v", owner, err)
	}
	if !alive(l.Token) {
		t.Fatal("the login does not work")
	}
	if err := d.src.RevokeOwner(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if alive(l.Token) {
		t.Error("the login outlived its session")
	}

	// A token role that would break the promise is refused, and what it made is revoked.
	t.Run("roles that are set up wrong", func(t *testing.T) {
		accessors := func() int {
			list, err := d.root.Logical().List("auth/token/accessors")
			if err != nil {
				t.Fatal(err)
			}
			return len(list.Data["keys"].([]any))
		}
		good := map[string]any{"allowed_policies": "claviger-session", "token_explicit_max_ttl": 0, "orphan": true, "renewable": true, "token_period": 0, "token_type": "service"}
		for field, value := range map[string]any{"token_explicit_max_ttl": "10s", "orphan": false, "renewable": false, "token_period": "1h", "token_type": "batch"} {
			role := map[string]any{}
			for k, v := range good {
				role[k] = v
			}
			role[field] = value
			if field == "token_type" {
				role["renewable"] = false
			}
			d.write(t, "auth/token/roles/claviger-session", role)
			before := accessors()
			if _, err := d.src.NewOwner(t.Context(), "s", time.Minute); err == nil || !strings.Contains(err.Error(), field) {
				t.Errorf("%s = %v: got %v", field, value, err)
			}
			if accessors() != before {
				t.Errorf("%s = %v: left a token behind", field, value)
			}
		}
		d.write(t, "auth/token/roles/claviger-session", good)
		o, err := d.src.NewOwner(t.Context(), "s", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for field, value := range map[string]any{"orphan": true, "renewable": false, "token_type": "batch"} {
			role := map[string]any{"allowed_policies": "claviger-guest", "orphan": field == "token_type", "renewable": field != "token_type", "token_type": "service"}
			role[field] = value
			d.write(t, "auth/token/roles/claviger-login", role)
			before := accessors()
			if _, err := d.fetch(t, broker.Granted{Entry: entry, Owner: &o}); err == nil || !strings.Contains(err.Error(), field) {
				t.Errorf("login: %s = %v: got %v", field, value, err)
			}
			if accessors() != before {
				t.Errorf("login: %s = %v: left a token behind", field, value)
			}
		}
	})
}
