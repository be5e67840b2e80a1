package broker_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker"
)

// twoDatabases is a session with two databases, both in use.
func twoDatabases(t *testing.T, l *leaseWorld) (st *fakeStream, session string, hangUp func()) {
	t.Helper()
	st, hangUp = l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders", "db/users").req})
	s := st.start(t)
	for r, v := range st.secrets(t, 2) {
		st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: r, Version: v}}
	}
	synctest.Wait()
	return st, s.ID, hangUp
}

// kills has a role's database answer nothing any more, and its leases end as err says.
func (f *fakeLeased) kills(role string, err error) {
	f.fail(func() { f.dead = map[string]error{role: err} })
}

// TestOneLeaseFails: what a session leases beside something that fails, it keeps.
func TestOneLeaseFails(t *testing.T) {
	t.Run("renewal fails for a while", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			go func() { _ = l.KeepLeases(t.Context()) }()
			st, session, _ := twoDatabases(t, l)
			l.vault.kills("orders", errors.New("the database does not answer"))
			time.Sleep(45 * time.Second)
			before, dead := l.vault.renewalsOf("vault-lease-2"), l.vault.renewalsOf("vault-lease-1")
			time.Sleep(4 * time.Minute)
			synctest.Wait()
			if n := l.vault.renewalsOf("vault-lease-2") - before; n < 5 || n > 8 {
				t.Errorf("the healthy lease was renewed %d times in 4 minutes, want every 40 s", n)
			}
			if n := l.vault.renewalsOf("vault-lease-1") - dead; n < 10 || n > 24 {
				t.Errorf("the other was tried %d times in 4 minutes, want every 15 s at the latest, and not at each pass", n)
			}
			st.quiet(t)
			r, err := l.book.GetLease(t.Context(), session)
			if err != nil || !slices.Equal(r.Owners[0].Leases, []string{"vault-lease-1", "vault-lease-2"}) {
				t.Errorf("leases %+v, %v", r, err)
			}
			l.vault.fail(func() { l.vault.dead = nil })
			dead = l.vault.renewalsOf("vault-lease-1")
			time.Sleep(20 * time.Second)
			if l.vault.renewalsOf("vault-lease-1") == dead {
				t.Error("not renewed when its database was back")
			}
		})
	})
	for name, why := range map[string]error{"has ended": broker.ErrNoSecret, "is ending": broker.ErrEnding} {
		t.Run(name, func(t *testing.T) {
			leasing(t, func(t *testing.T, l *leaseWorld) {
				go func() { _ = l.KeepLeases(t.Context()) }()
				st, session, _ := twoDatabases(t, l)
				l.vault.kills("orders", why)
				time.Sleep(3 * time.Minute)
				synctest.Wait()
				st.quiet(t)
				r, err := l.book.GetLease(t.Context(), session)
				if err != nil || len(r.Owners) != 1 || !slices.Equal(r.Owners[0].Leases, []string{"vault-lease-2"}) || !slices.Equal(l.vault.owners(), []string{"vault-1"}) {
					t.Fatalf("leases %+v, %v", r, err)
				}
				renewals := l.vault.renewalsOf("vault-lease-2")
				l.vault.fail(func() { l.vault.dead = nil })
				time.Sleep(time.Minute) // tries become rarer
				got := st.secrets(t, 1)
				if got["db/orders"] == "" {
					t.Errorf("sent %v, want another in place of what ended", got)
				}
				synctest.Wait()
				st.quiet(t)
				time.Sleep(time.Minute)
				if r, _ := l.book.GetLease(t.Context(), session); len(r.Owners) != 1 || len(r.Owners[0].Leases) != 2 || l.vault.renewalsOf("vault-lease-2") == renewals ||
					r.Owners[0].Of[got["db/orders"]].Resource != "db/orders" {
					t.Errorf("leases %+v", r)
				}
			})
		})
	}
	t.Run("the guest comes back to another broker", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			a := l.guest(t, "db/orders", "db/users")
			st, hangUp := l.subscribe(t, broker.Subscription{Request: a.req})
			s := st.start(t)
			held := st.secrets(t, 2)
			hangUp()
			l.restart(t)
			r, err := l.book.GetLease(t.Context(), s.ID)
			if err != nil {
				t.Fatal(err)
			}
			r.Owners[0].Leases = []string{"vault-lease-2"} // as a keeper leaves it
			delete(r.Owners[0].Of, "vault-lease-1")
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			l.vault.kills("orders", broker.ErrNoSecret)
			st, _ = l.subscribe(t, broker.Subscription{Request: l.fresh(t, a).req, Session: s.ID, Held: held})
			if !st.start(t).Resumed {
				t.Fatal("not resumed")
			}
			synctest.Wait()
			st.quiet(t)
			l.vault.fail(func() { l.vault.dead = nil })
			time.Sleep(time.Minute)
			if got := st.secrets(t, 1); got["db/orders"] == "" || got["db/orders"] == held["db/orders"] {
				t.Errorf("sent %v", got)
			}
			if !slices.Contains(l.vault.owners(), "vault-1") {
				t.Errorf("owners %v: the healthy lease ended", l.vault.owners())
			}
		})
	})
	t.Run("another source ends its owner", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			go func() { _ = l.KeepLeases(t.Context()) }()
			st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders", "logins/app").req})
			st.start(t)
			for r, v := range st.secrets(t, 2) {
				st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: r, Version: v}}
			}
			synctest.Wait()
			_ = l.other.RevokeOwner(t.Context(), broker.Owner{ID: "other-1"})
			time.Sleep(2 * time.Minute)
			if got := st.secrets(t, 1); got["logins/app"] == "" {
				t.Errorf("sent %v", got)
			}
			synctest.Wait()
			st.quiet(t)
			if !slices.Equal(l.vault.owners(), []string{"vault-1"}) || !slices.Equal(l.other.owners(), []string{"other-2"}) {
				t.Errorf("owners %v and %v", l.vault.owners(), l.other.owners())
			}
		})
	})
}

// TestLoginsAreReplaced: a token that whoever has it could renew is not renewable. A session gets another in time.
func TestLoginsAreReplaced(t *testing.T) {
	for name, tt := range map[string]struct {
		ttl, cap time.Duration
	}{
		"the policy says how long": {6 * time.Minute, 6 * time.Minute},
		"nobody does":              {0, 16 * time.Minute}, // what the evidence is believed for, and a minute to come back
	} {
		t.Run(name, func(t *testing.T) {
			leasing(t, func(t *testing.T, l *leaseWorld) {
				go func() { _ = l.KeepLeases(t.Context()) }()
				l.other.strict, l.decisions.ttl = true, tt.ttl
				st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "logins/app", "db/orders").req})
				st.start(t)
				for r, v := range st.secrets(t, 2) {
					st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: r, Version: v}}
				}
				if got := l.other.granted[0].Cap; got != tt.cap {
					t.Errorf("granted for %s, want %s", got, tt.cap)
				}
				time.Sleep(tt.cap*2/3 - 10*time.Second)
				synctest.Wait()
				if l.other.renewalsOf("other-lease-1") != 0 {
					t.Error("it was renewed")
				}
				if tt.ttl == 0 { // it is asked for fresh evidence at about that time, and gets the new token all the same
					if u := st.next(t); u.Reattest == nil {
						t.Fatalf("got %+v", u)
					}
				} else {
					st.quiet(t)
				}
				time.Sleep(30 * time.Second)
				if got := st.secrets(t, 1); got["logins/app"] != "other-lease-2" {
					t.Errorf("sent %v", got)
				}
				synctest.Wait()
				st.quiet(t)
				if !slices.Equal(l.other.owners(), []string{"other-1"}) || !slices.Equal(l.vault.owners(), []string{"vault-1"}) {
					t.Errorf("owners %v and %v", l.other.owners(), l.vault.owners())
				}
			})
		})
	}
	t.Run("without a session", func(t *testing.T) {
		l := newLeaseWorld(t)
		if _, err := l.send(t, l.guest(t, "logins/app")); err != nil {
			t.Fatal(err)
		}
		if got := l.other.granted[0].Cap; got != 5*time.Minute {
			t.Errorf("granted for %s, and revoked after 5m0s", got)
		}
	})
}

// TestOwnerFailsInPart: where the owner itself could not be renewed, and its leases perhaps, all are tried again soon; what ended is dropped.
func TestOwnerFailsInPart(t *testing.T) {
	kept(t, func(t *testing.T, l *leaseWorld) {
		wait(39 * time.Second) // all are due at 42 s
		tries := l.vault.renewals()
		l.vault.fail(func() { l.vault.fault.renew = &broker.RenewError{Owner: errors.New("too busy")} })
		wait(13 * time.Second) // 42 s, 45, 51
		if n := l.vault.renewals() - tries; n != 3 {
			t.Errorf("tried %d times", n)
		}
		l.vault.fail(func() { l.vault.fault.renew = nil })
		lease := l.vault.renewalsOf("vault-lease-1")
		wait(15 * time.Second)
		if n := l.vault.renewalsOf("vault-lease-1") - lease; n != 1 {
			t.Errorf("the lease was renewed %d times", n)
		}
		tries = l.vault.renewals()
		wait(30 * time.Second)
		if n := l.vault.renewals() - tries; n != 0 {
			t.Errorf("renewed %d times before a third of its time", n)
		}
	})
	t.Run("and its lease has ended", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			l.vault.fail(func() {
				l.vault.fault.renew = &broker.RenewError{Owner: errors.New("too busy"), Leases: map[string]error{"vault-lease-1": broker.ErrNoSecret}}
			})
			wait(45 * time.Second)
			if r := l.book.all(); len(r) != 1 || len(r[0].Owners) != 1 || len(r[0].Owners[0].Leases) != 0 {
				t.Errorf("leases %+v", r)
			}
		})
	})
	t.Run("a lease fails by itself", func(t *testing.T) {
		kept(t, func(t *testing.T, l *leaseWorld) {
			wait(39 * time.Second)
			tries := l.vault.renewals()
			l.vault.fail(func() {
				l.vault.fault.renew = &broker.RenewError{Leases: map[string]error{"vault-lease-1": errors.New("the database does not answer")}}
			})
			wait(13 * time.Second) // the owner was renewed; the lease is tried at 42 s, 45, 51
			if n := l.vault.renewals() - tries; n != 3 {
				t.Errorf("tried %d times", n)
			}
			if r := l.book.all(); len(r) != 1 || len(r[0].Owners[0].Leases) != 1 {
				t.Errorf("leases %+v", r)
			}
		})
	})
}

// TestWhatEndsIsToldAtOnce: a session learns from the keeper that its owner, or a lease, has ended, and gets another.
func TestWhatEndsIsToldAtOnce(t *testing.T) {
	for name, fails := range map[string]func(l *leaseWorld){
		"all owners":        func(l *leaseWorld) { _ = l.vault.RevokeOwner(t.Context(), broker.Owner{ID: "vault-1"}) },
		"an owner retires":  func(l *leaseWorld) { l.vault.fail(func() { l.vault.fault.renew = broker.ErrEnding }) },
		"one of its leases": func(l *leaseWorld) { l.vault.fail(func() { l.vault.fault.renew = endsOnce() }) },
	} {
		t.Run(name, func(t *testing.T) {
			leasing(t, func(t *testing.T, l *leaseWorld) {
				st, _, _ := twoDatabases(t, l)
				fails(l)
				go func() { _ = l.KeepLeases(t.Context()) }()
				synctest.Wait()
				l.vault.fail(func() { l.vault.fault.renew = nil })
				time.Sleep(3 * time.Second)
				n := 2
				if name == "one of its leases" {
					n = 1
				}
				st.secrets(t, n)
				synctest.Wait()
				st.quiet(t)
			})
		})
	}
}

func endsOnce() error {
	return &broker.RenewError{Leases: map[string]error{"vault-lease-1": broker.ErrNoSecret}}
}

// TestOnlyLoginsAreCapped where neither policy nor catalog says how long: what a broker renews lives as long as its session.
func TestOnlyLoginsAreCapped(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		w.set(t, broker.CatalogEntry{Pattern: "db/{name}", Source: "vault", Kind: broker.KindDatabase, Key: "{name}", Policy: "any"})
		w.holds(t, w.guest(t, "db/orders"))
		if _, err := w.send(t, w.guest(t, "db/orders")); err != nil {
			t.Fatal(err)
		}
		for _, g := range w.vault.granted {
			if g.Cap != 0 || g.TTL != 5*time.Minute {
				t.Errorf("granted for %s, at most %s", g.TTL, g.Cap)
			}
		}
	})
}
