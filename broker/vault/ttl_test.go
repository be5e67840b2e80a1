package vault

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
)

// What Vault makes lives no longer than policy and catalog say, whatever the roles there say.
func TestLifetimesAreCapped(t *testing.T) {
	d := deploy(t, "database")
	d.write(t, "database/roles/app", map[string]any{"db_name": "app", "default_ttl": "1h", "max_ttl": "24h",
		"creation_statements": `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';`})
	o, err := d.src.NewOwner(t.Context(), "session-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("database", func(t *testing.T) {
		s := d.get(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindDatabase, Key: "app"}, Owner: &o, Cap: 20 * time.Second})
		got, err := d.root.Sys().Lookup(s.Lease)
		if err != nil {
			t.Fatal(err)
		}
		if ttl := integer(got.Data["ttl"]); ttl < 10 || ttl > 20 || time.Until(s.Expires) > 21*time.Second {
			t.Errorf("the lease has %d s, the guest was told %s; want 20 s", ttl, time.Until(s.Expires))
		}
		until := d.pg.Query(t, "SELECT extract(epoch FROM rolvaliduntil - now())::int <= 30 FROM pg_roles WHERE rolname = '"+parse[userpass](t, s).Username+"'")
		if until != "t" {
			t.Error("PostgreSQL lets the user in for longer")
		}
		// Renewed, it has no more either.
		o := o
		o.Leases, o.Of = []string{s.Lease}, map[string]broker.Leased{s.Lease: {Cap: 10 * time.Second}}
		if err := d.src.RenewOwner(t.Context(), o, time.Minute); err != nil {
			t.Fatal(err)
		}
		if got, err = d.root.Sys().Lookup(s.Lease); err != nil || integer(got.Data["ttl"]) > 10 {
			t.Errorf("renewed for %v: %v", got, err)
		}
		s = d.get(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindDatabase, Key: "app"}, Owner: &o})
		if left := time.Until(s.Expires); left < 50*time.Minute {
			t.Errorf("without a cap: %s, want the role's", left)
		}
	})
	t.Run("login", func(t *testing.T) {
		entry := broker.CatalogEntry{Kind: broker.KindLogin, Key: "claviger-login"}
		for _, limit := range []time.Duration{0, 30 * time.Second, time.Hour} {
			s := d.get(t, broker.Granted{Entry: entry, Owner: &o, Cap: limit})
			l := parse[struct {
				Token string
				TTL   int
			}](t, s)
			longest := limit // as the guest renews it
			if limit == 0 {
				longest = time.Minute
			}
			if l.TTL < 1 || time.Duration(l.TTL)*time.Second > longest {
				t.Errorf("cap %s: the token lives for %d s", limit, l.TTL)
			}
			if limit == 0 {
				continue
			}
			c, err := d.root.Clone()
			if err != nil {
				t.Fatal(err)
			}
			c.SetToken(l.Token)
			_, _ = c.Auth().Token().RenewSelf(768 * 3600) // as a guest would
			self, err := c.Auth().Token().LookupSelf()
			if err != nil {
				t.Fatal(err)
			}
			if ttl, err := self.TokenTTL(); err != nil || ttl > longest || integer(self.Data["explicit_max_ttl"]) != int(longest.Seconds()) {
				t.Errorf("cap %s: renewed by the guest it lives for %s, at most %v: %v", limit, ttl, self.Data["explicit_max_ttl"], err)
			}
		}
		// Whatever the role says.
		d.write(t, "auth/token/roles/claviger-login", map[string]any{"allowed_policies": "claviger-guest", "orphan": false, "renewable": true, "token_type": "service", "token_period": "2h"})
		s := d.get(t, broker.Granted{Entry: entry, Owner: &o, Cap: time.Minute})
		self, err := d.root.Auth().Token().LookupAccessor(s.Lease)
		if err != nil {
			t.Fatal(err)
		}
		if ttl, err := self.TokenTTL(); err != nil || ttl > time.Minute || self.Data["renewable"] != false {
			t.Errorf("of a role with a period: %v: %v", self.Data, err)
		}
		if _, err := d.fetch(t, broker.Granted{Entry: entry, Owner: &o}); err == nil || !strings.Contains(err.Error(), "token_period") {
			t.Errorf("of a role with a period, without a cap: %v", err)
		}
		d.write(t, "auth/token/roles/claviger-login", map[string]any{"allowed_policies": "claviger-guest", "orphan": true, "renewable": false, "token_period": 0, "token_type": "batch"})
		if _, err := d.fetch(t, broker.Granted{Entry: entry, Owner: &o, Cap: time.Minute}); err == nil || !strings.Contains(err.Error(), "token_type") {
			t.Errorf("of a role of batch tokens: %v", err)
		}
	})
	t.Run("wrapped", func(t *testing.T) {
		d.write(t, "secret/data/db/x", map[string]any{"data": map[string]any{"value": "x"}})
		s := d.get(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindWrapped, Key: "db/x", Options: map[string]string{"wrap_ttl": "2h"}}, TTL: time.Minute, Cap: time.Minute})
		if left := time.Until(s.Expires); left > time.Minute+time.Second {
			t.Errorf("the wrapping token lives for %s, want a minute", left)
		}
	})
}

// One of a session's leases fails: the others are renewed, and the owner lives.
func TestRenewOwnerInPart(t *testing.T) {
	t.Parallel() // it mostly waits
	d := deploy(t, "database")
	d.write(t, "database/config/app", map[string]any{"allowed_roles": "app,app-static,broken,other"})
	for _, role := range []string{"app", "other"} {
		d.write(t, "database/roles/"+role, map[string]any{"db_name": "app", "default_ttl": "5s", "max_ttl": "24h",
			"creation_statements": `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';`})
	}
	d.write(t, "database/roles/broken", map[string]any{"db_name": "app", "default_ttl": "5s", "max_ttl": "24h",
		"creation_statements": `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}';`, "renew_statements": `SELECT nothing_like_it('{{name}}');`})
	policy, err := d.root.Sys().GetPolicy("claviger-session")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.root.Sys().PutPolicy("claviger-session", policy+"\npath \"database/creds/+\" { capabilities = [\"read\"] }\n"); err != nil {
		t.Fatal(err)
	}
	o, err := d.src.NewOwner(t.Context(), "session-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	users, ids := map[string]userpass{}, map[string]string{}
	for _, role := range []string{"broken", "other", "app"} {
		s := d.get(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindDatabase, Key: role}, Owner: &o})
		o.Leases = append(o.Leases, s.Lease)
		users[role], ids[role] = parse[userpass](t, s), s.Lease
	}
	if err := d.root.Sys().Revoke(ids["other"]); err != nil {
		t.Fatal(err)
	}
	err = d.src.RenewOwner(t.Context(), o, time.Minute)
	part, ok := errors.AsType[*broker.RenewError](err)
	if !ok || part.Owner != nil || len(part.Leases) != 2 || part.All || errors.Is(err, broker.ErrNoSecret) || errors.Is(err, broker.ErrEnding) {
		t.Fatalf("got %v", err)
	}
	if e := part.Leases[ids["broken"]]; e == nil || errors.Is(e, broker.ErrNoSecret) || errors.Is(e, broker.ErrEnding) {
		t.Errorf("what may be tried again: %v", e)
	}
	if e := part.Leases[ids["other"]]; !errors.Is(e, broker.ErrNoSecret) {
		t.Errorf("what has ended: %v", e)
	}
	// That Vault answers a renewal, with 400, says nothing about the role's database.
	d.write(t, "database/config/dead", map[string]any{"plugin_name": "postgresql-database-plugin", "allowed_roles": "broken", "verify_connection": false,
		"connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/x?sslmode=disable", "username": "u", "password": "p"})
	d.write(t, "database/roles/broken", map[string]any{"db_name": "dead", "default_ttl": "5s", "creation_statements": "SELECT 1"})
	for i := range failuresToOpen {
		if i == failuresToOpen-1 {
			if err := d.src.RenewOwner(t.Context(), o, time.Minute); err == nil || d.src.Stats().Open {
				t.Errorf("renewed: %v; a breaker is open: %v", err, d.src.Stats().Open)
			}
		}
		_, _ = d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindDatabase, Key: "broken"}, Owner: &o})
	}
	if !d.src.Stats().Open {
		t.Error("the dead role is asked on")
	}
	time.Sleep(6 * time.Second) // longer than an unrenewed one lives
	if err := d.pg.Login(users["app"].Username, users["app"].Password); err != nil {
		t.Errorf("the healthy one is gone: %v", err)
	}
	if got, err := d.root.Sys().Lookup(ids["app"]); err != nil || integer(got.Data["ttl"]) < 40 {
		t.Errorf("the healthy one was not renewed: %v %v", got, err)
	}
	o.Leases = []string{ids["other"]}
	if err := d.src.RenewOwner(t.Context(), o, time.Minute); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("all that it was asked for has ended: %v", err)
	}
	if err := d.src.RevokeOwner(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	o.Leases = []string{ids["app"]}
	err = d.src.RenewOwner(t.Context(), o, time.Minute)
	if _, ok := errors.AsType[*broker.RenewError](err); ok || !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("the owner has ended: %v", err)
	}
}

// One database that does not answer, of a mount with two: the other's guests are served while the dead one's keep asking.
func TestDeadDatabase(t *testing.T) {
	d := deploy(t, "database")
	d.write(t, "database/config/app", map[string]any{"allowed_roles": "app,app-static"})
	d.write(t, "database/config/dead", map[string]any{"plugin_name": "postgresql-database-plugin", "allowed_roles": "dead", "verify_connection": false,
		"connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/x?sslmode=disable", "username": "u", "password": "p"})
	d.write(t, "database/roles/dead", map[string]any{"db_name": "dead", "creation_statements": "SELECT 1", "default_ttl": "1m"})
	policy, err := d.root.Sys().GetPolicy("claviger-session")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.root.Sys().PutPolicy("claviger-session", policy+"\npath \"database/creds/dead\" { capabilities = [\"read\"] }\n"); err != nil {
		t.Fatal(err)
	}
	o, err := d.src.NewOwner(t.Context(), "session-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 * failuresToOpen {
		if _, err := d.fetch(t, broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindDatabase, Key: "dead"}, Owner: &o}); err == nil || errors.Is(err, broker.ErrNoSecret) {
			t.Fatalf("try %d: %v", i, err)
		}
		for _, g := range []broker.Granted{
			{Entry: broker.CatalogEntry{Kind: broker.KindDatabase, Key: "app"}, Owner: &o}, {Entry: broker.CatalogEntry{Kind: broker.KindDatabaseStatic, Key: "app-static"}},
		} {
			if _, err := d.fetch(t, g); err != nil {
				t.Fatalf("after %d requests to the dead one: %s: %v", i+1, g.Entry.Key, err)
			}
		}
	}
	s := d.src.Stats()
	if !s.Open || s.Down {
		t.Errorf("%+v, want the dead role's breaker open, and Vault's not", s)
	}
	if n := int(s.Requests); n > 2*4*failuresToOpen+2*failuresToOpen+10 {
		t.Errorf("%d requests: the dead role was asked on", n)
	}
}

// What cannot be cleaned up now is tried again, and no open breaker is in the way.
func TestCleanupIsRetried(t *testing.T) {
	d := deploy(t, "transit")
	spki, err := x509.MarshalPKIXPublicKey(rsaKey(t, 3072).Public())
	if err != nil {
		t.Fatal(err)
	}
	g := broker.Granted{Entry: broker.CatalogEntry{Kind: broker.KindTransitExport, Key: "export"}, PublicKey: spki}
	keys := func() int {
		got, err := d.root.Logical().List("transit/keys")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, k := range got.Data["keys"].([]any) {
			if strings.HasPrefix(fmt.Sprint(k), exportPrefix) {
				n++
			}
		}
		return n
	}
	policy, err := d.root.Sys().GetPolicy("claviger-broker-transit")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.root.Sys().PutPolicy("claviger-broker-transit", strings.Replace(policy, `, "delete"`, "", 1)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := d.fetch(t, g); err != nil {
			t.Fatal(err)
		}
	}
	d.src.cleanOnce(t.Context())
	if left := d.src.Stats().Left; keys() != 3 || left != 3 {
		t.Fatalf("%d keys left in Vault, and the broker knows of %d", keys(), left)
	}
	if err := d.root.Sys().PutPolicy("claviger-broker-transit", policy); err != nil {
		t.Fatal(err)
	}
	for range failuresToOpen { // as if Vault had been in trouble
		leave, err := d.src.gate.enter(t.Context(), scope{mount: "transit", what: "transit/keys"})
		if err != nil {
			t.Fatal(err)
		}
		leave(failed, errBoom)
	}
	d.src.gate.mu.Lock()
	d.src.gate.down = breaker{failures: failuresToOpen, last: errBoom, until: time.Now().Add(time.Hour)}
	d.src.gate.mu.Unlock()
	if _, err := d.fetch(t, g); err == nil {
		t.Fatal("no breaker is open")
	}
	d.src.cleanOnce(t.Context())
	if left := d.src.Stats().Left; keys() != 0 || left != 0 {
		t.Errorf("%d keys left in Vault, and the broker knows of %d", keys(), left)
	}
}
