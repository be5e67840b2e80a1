package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// leasing runs a test in a bubble of its own time, with a keeper.
func leasing(t *testing.T, test func(t *testing.T, l *leaseWorld)) {
	t.Helper()
	l := newLeaseWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l.restart(t)
		test(t, l)
	})
}

// secrets reads so many secrets, and returns their versions by resource.
func (st *fakeStream) secrets(t *testing.T, n int) map[string]string {
	t.Helper()
	got := map[string]string{}
	for range n {
		u := st.next(t)
		if u.Secret == nil {
			t.Fatalf("got %+v, want a secret", u)
		}
		got[u.Secret.Resource] = u.Secret.Version
	}
	return got
}

func (st *fakeStream) start(t *testing.T) broker.SessionStarted {
	t.Helper()
	u := st.next(t)
	if u.Started == nil {
		t.Fatalf("got %+v, want the start of a session", u)
	}
	return *u.Started
}

func (st *fakeStream) quiet(t *testing.T) {
	t.Helper()
	select {
	case u := <-st.out:
		t.Errorf("told %+v %+v", u, u.Secret)
	default:
	}
}

// TestSessionsLeases: what a session leases lives as long as it does.
func TestSessionsLeases(t *testing.T) {
	t.Run("start and end of the stream", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, hangUp := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders", "disks/vm-1", "logins/app").req})
			s := st.start(t)
			got := st.secrets(t, 3)
			if got["db/orders"] != "vault-lease-1" || got["logins/app"] != "other-lease-1" || got["disks/vm-1"] != "7" {
				t.Errorf("versions %v", got)
			}
			synctest.Wait()
			rs := l.book.all()
			if len(rs) != 1 || rs[0].Session != s.ID || len(rs[0].Owners) != 2 || !rs[0].ExpiresAt.Equal(s.ExpiresAt.Add(time.Minute)) || rs[0].Keeper != "here" ||
				!rs[0].KeptUntil.After(time.Now()) || !slices.Contains(rs[0].Resources, "db/orders") || !slices.Contains(rs[0].Resources, "logins/app") || len(rs[0].Resources) != 2 ||
				rs[0].Claims.ChipID != theCPU.ChipID {
				t.Errorf("leases %+v", rs)
			}
			if n := len(l.vault.owners()) + len(l.other.owners()); n != 2 || l.vault.made != 1 {
				t.Errorf("%d owners", n)
			}
			for i, leased := range []bool{true, false, true} {
				if h := l.sessions.get(t, s.ID).Holdings[i]; h.Leased != leased || h.Pending == "" {
					t.Errorf("holding %+v", h)
				}
			}
			hangUp()
			if r, s := l.book.all()[0], l.sessions.get(t, s.ID); !r.ExpiresAt.Equal(s.ExpiresAt) || time.Until(r.ExpiresAt) != time.Minute {
				t.Errorf("leases end at %s, the session at %s", r.ExpiresAt, s.ExpiresAt)
			}
		})
	})
	for name, tt := range map[string]struct {
		held    map[string]string
		broker  bool // another one
		sent    int
		owners  []string
		fetches int
	}{
		"comes back with both":                   {map[string]string{"db/orders": "vault-lease-1", "db/users": "vault-lease-2"}, false, 0, []string{"vault-1"}, 2},
		"comes back with both to another broker": {map[string]string{"db/orders": "vault-lease-1", "db/users": "vault-lease-2"}, true, 0, []string{"vault-1"}, 2},
		"missed one":                             {map[string]string{"db/users": "vault-lease-2"}, false, 2, []string{"vault-2"}, 4},
		"missed both":                            {nil, true, 2, []string{"vault-2"}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			leasing(t, func(t *testing.T, l *leaseWorld) {
				a := l.guest(t, "db/orders", "db/users")
				st, hangUp := l.subscribe(t, broker.Subscription{Request: a.req})
				s := st.start(t)
				st.secrets(t, 2)
				hangUp()
				if tt.broker {
					l.restart(t)
				}
				time.Sleep(20 * time.Second)
				st, _ = l.subscribe(t, broker.Subscription{Request: l.fresh(t, a).req, Session: s.ID, Held: tt.held})
				again := st.start(t)
				if !again.Resumed {
					t.Fatal("not resumed")
				}
				st.secrets(t, tt.sent)
				synctest.Wait()
				st.quiet(t)
				if !slices.Equal(l.vault.owners(), tt.owners) || l.vault.fetches != tt.fetches {
					t.Errorf("owners %v after %d reads", l.vault.owners(), l.vault.fetches)
				}
				r := l.book.all()
				if len(r) != 1 || len(r[0].Owners) != 1 || r[0].Owners[0].ID != tt.owners[0] || !r[0].ExpiresAt.Equal(again.ExpiresAt.Add(time.Minute)) {
					t.Errorf("leases %+v", r)
				}
				if rec := l.records()[1]; rec.Resources[0].Unchanged != (tt.sent == 0) || rec.Session != s.ID {
					t.Errorf("record %+v", rec)
				}
			})
		})
	}
	t.Run("a session that ended", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders").req, Session: "ENDED", Held: map[string]string{"db/orders": "vault-lease-0"}})
			s := st.start(t)
			if s.Resumed {
				t.Error("resumed")
			}
			if got := st.secrets(t, 1); got["db/orders"] != "vault-lease-1" {
				t.Errorf("versions %v", got)
			}
			if h := l.sessions.get(t, s.ID).Holdings[0]; h.Version != "" { // that lease ended with its session
				t.Errorf("holding %+v", h)
			}
		})
	})
	t.Run("denied", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, hangUp := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders", "logins/app").req})
			s := st.start(t)
			st.secrets(t, 2)
			l.revoked.add(broker.Subject{Kind: broker.RevokeChip, Value: theCPU.ChipID})
			l.Changed()
			st.ended(t, broker.EndDenied)
			hangUp()
			if len(l.vault.owners())+len(l.other.owners())+len(l.book.all()) > 0 {
				t.Errorf("left behind: %v %v %+v", l.vault.owners(), l.other.owners(), l.book.all())
			}
			if _, err := l.sessions.GetSession(t.Context(), s.ID); !errors.Is(err, broker.ErrNoSecret) {
				t.Error("the session is still known")
			}
		})
	})
	t.Run("gone from their source", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders", "db/users").req})
			s := st.start(t)
			got := st.secrets(t, 2)
			for r, v := range got {
				st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: r, Version: v}}
			}
			synctest.Wait()
			_ = l.vault.RevokeOwner(t.Context(), broker.Owner{ID: "vault-1"})
			_ = l.book.DeleteLease(t.Context(), s.ID) // as a keeper does that sees it
			l.Changed()
			time.Sleep(5 * time.Second)
			if got := st.secrets(t, 2); got["db/orders"] == "" || got["db/users"] == "" {
				t.Errorf("versions %v", got)
			}
			synctest.Wait()
			st.quiet(t)
			if r := l.book.all(); len(r) != 1 || !slices.Equal(l.vault.owners(), []string{"vault-2"}) || len(r[0].Owners) != 1 || len(r[0].Owners[0].Leases) != 2 {
				t.Errorf("owners %v, leases %+v", l.vault.owners(), r)
			}
		})
	})
	t.Run("near their end in their source", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders").req})
			st.start(t)
			st.secrets(t, 1)
			synctest.Wait()
			r := l.book.all()[0]
			r.Retiring, r.Owners = r.Owners, nil
			if _, err := l.book.PutLease(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			l.Changed()
			time.Sleep(5 * time.Second)
			if got := st.secrets(t, 1); got["db/orders"] != "vault-lease-2" {
				t.Errorf("versions %v", got)
			}
			if !slices.Contains(l.vault.owners(), "vault-2") {
				t.Errorf("owners %v", l.vault.owners())
			}
		})
	})
	t.Run("fresh evidence extends them", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			a := l.guest(t, "db/orders")
			st, _ := l.subscribe(t, broker.Subscription{Request: a.req})
			first := st.start(t)
			v := st.secrets(t, 1)["db/orders"]
			st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "db/orders", Version: v}}
			time.Sleep(9 * time.Minute)
			synctest.Wait()
			st.quiet(t)
			time.Sleep(time.Minute + time.Second)
			u := st.next(t)
			if u.Reattest == nil || u.Reattest.Reason != broker.ReattestExpires || !u.Reattest.Deadline.Equal(first.ExpiresAt) {
				t.Fatalf("got %+v", u)
			}
			st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: l.fresh(t, a).req}}
			again := st.start(t)
			synctest.Wait()
			st.quiet(t)
			if r := l.book.all()[0]; !again.ExpiresAt.After(first.ExpiresAt) || !r.ExpiresAt.Equal(again.ExpiresAt.Add(time.Minute)) || l.vault.fetches != 1 {
				t.Errorf("leases until %s, evidence until %s", r.ExpiresAt, again.ExpiresAt)
			}
			time.Sleep(9 * time.Minute)
			synctest.Wait()
			st.quiet(t) // neither ended, nor asked
		})
	})
	t.Run("missed, and cannot be ended", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			a := l.guest(t, "db/orders")
			st, hangUp := l.subscribe(t, broker.Subscription{Request: a.req})
			s := st.start(t)
			st.secrets(t, 1)
			hangUp()
			l.vault.fail(func() { l.vault.fault.revoke = errors.New("vault is sealed") })
			again := broker.Subscription{Request: l.fresh(t, a).req, Session: s.ID}
			if err := l.refused(t, broker.WatchMessage{Subscribe: &again}); !errors.Is(err, broker.ErrUnavailable) || len(l.vault.owners()) != 1 {
				t.Errorf("%v, owners %v", err, l.vault.owners())
			}
			l.vault.fail(func() { l.vault.fault.revoke = nil })
			l.book.unreadable = errors.New("no leader")
			again.Request = l.fresh(t, a).req
			if err := l.refused(t, broker.WatchMessage{Subscribe: &again}); !errors.Is(err, broker.ErrUnavailable) || len(l.vault.owners()) != 1 {
				t.Errorf("%v, owners %v", err, l.vault.owners())
			}
			l.book.unreadable = nil
			again.Request = l.fresh(t, a).req
			st, _ = l.subscribe(t, again)
			if !st.start(t).Resumed {
				t.Error("the session is gone")
			}
			if got := st.secrets(t, 1); got["db/orders"] == "" || !slices.Equal(l.vault.owners(), []string{"vault-2"}) {
				t.Errorf("versions %v, owners %v", got, l.vault.owners())
			}
		})
	})
	t.Run("memory is down", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			l.book.fault = errors.New("no leader")
			if err := l.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: l.guest(t, "db/orders").req}}); !errors.Is(err, broker.ErrUnavailable) {
				t.Error(err)
			}
			if len(l.vault.owners()) > 0 {
				t.Errorf("left behind: %v", l.vault.owners())
			}
		})
	})
	t.Run("source is down for a while", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders").req})
			s := st.start(t)
			st.secrets(t, 1)
			synctest.Wait()
			_ = l.book.DeleteLease(t.Context(), s.ID)
			l.vault.fail(func() { l.vault.fault.fetch = errors.New("vault is sealed") })
			l.Changed()
			time.Sleep(20 * time.Second)
			synctest.Wait()
			st.quiet(t)
			l.vault.fail(func() { l.vault.fault.fetch = nil })
			time.Sleep(time.Minute) // tries become rarer while it is down
			st.secrets(t, 1)
		})
	})
}

// TestSessionLooksAgain, at its evidence by itself, and at the policy however often something changes.
func TestSessionLooksAgain(t *testing.T) {
	t.Run("at its evidence", func(t *testing.T) {
		worse := &atomic.Bool{}
		l := newLeaseWorld(t, func(c *broker.Config) { c.Verifiers[0] = downgraded{c.Verifiers[0], worse} })
		synctest.Test(t, func(t *testing.T) {
			l.restart(t)
			a := l.guest(t, "disks/vm-1")
			st, _ := l.subscribe(t, broker.Subscription{Request: a.req})
			s := st.start(t)
			st.secrets(t, 1)
			worse.Store(true)
			time.Sleep(5*time.Minute - time.Second)
			synctest.Wait()
			st.quiet(t)
			u := <-st.out // a random while later
			if u.Reattest == nil || u.Reattest.Reason != broker.ReattestCollateral {
				t.Fatalf("got %+v", u)
			}
			// The new status was decided on already: a device that is slow just now ends nothing.
			if !u.Reattest.Deadline.Equal(s.ExpiresAt) {
				t.Errorf("the guest has %s, and the session %s", time.Until(u.Reattest.Deadline), time.Until(s.ExpiresAt))
			}
			time.Sleep(time.Until(s.ExpiresAt) - time.Second)
			synctest.Wait()
			st.quiet(t)
			time.Sleep(time.Second)
			st.ended(t, broker.EndExpired)
		})
	})
	t.Run("at evidence that is good for minutes", func(t *testing.T) {
		l := newLeaseWorld(t, func(c *broker.Config) { c.Verifiers[0] = &shortLived{Verifier: c.Verifiers[0]} })
		synctest.Test(t, func(t *testing.T) {
			l.restart(t)
			a := l.guest(t, "disks/vm-1")
			st, _ := l.subscribe(t, broker.Subscription{Request: a.req})
			s := st.start(t)
			st.secrets(t, 1)
			u := <-st.out // asked for new evidence, not told that it is denied
			if u.Reattest == nil || u.Reattest.Reason != broker.ReattestExpires || !u.Reattest.Deadline.Equal(s.ExpiresAt) {
				t.Fatalf("got %+v, want a request for new evidence until %s", u, s.ExpiresAt)
			}
			if wait := 15*time.Minute - time.Until(s.ExpiresAt); wait > 7*time.Minute {
				t.Errorf("asked after %s", wait)
			}
			time.Sleep(time.Until(s.ExpiresAt))
			st.ended(t, broker.EndExpired) // it brought none
		})
	})
	for name, better := range map[string]func(*attest.Claims){
		"at new advisories": func(c *attest.Claims) { c.TCB.Advisories = []string{"AMD-SB-1"} },
		"at another status": func(c *attest.Claims) { c.TCB.Status = attest.TCBOutOfDate },
		"at another date":   func(c *attest.Claims) { d := time.Unix(0, 0); c.TCB.Date = &d },
		"at the same":       func(*attest.Claims) {},
	} {
		t.Run(name, func(t *testing.T) {
			change := &atomic.Bool{}
			l := newLeaseWorld(t, func(c *broker.Config) { c.Verifiers[0] = renewed{c.Verifiers[0], change, better} })
			synctest.Test(t, func(t *testing.T) {
				l.restart(t)
				st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "disks/vm-1").req})
				st.start(t)
				st.secrets(t, 1)
				change.Store(true)
				time.Sleep(7 * time.Minute)
				synctest.Wait()
				if name == "at the same" {
					st.quiet(t)
				} else if u := st.next(t); u.Reattest == nil || u.Reattest.Reason != broker.ReattestCollateral {
					t.Errorf("got %+v", u)
				}
			})
		})
	}
	t.Run("at the policy", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "disks/vm-1").req})
			s := st.start(t)
			st.secrets(t, 1)
			l.decisions.set(true, nil)
			for range 6 { // changes without end put nothing off
				l.Changed()
				time.Sleep(500 * time.Millisecond)
			}
			st.ended(t, broker.EndDenied)
			if last := l.records()[1]; last.Outcome != broker.Denied || last.Session != s.ID || last.PolicyDigest != anyPolicy {
				t.Errorf("record %+v", last)
			}
		})
	})
	t.Run("at nothing, if nobody can tell", func(t *testing.T) {
		leasing(t, func(t *testing.T, l *leaseWorld) {
			st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "disks/vm-1").req})
			st.start(t)
			st.secrets(t, 1)
			l.decisions.set(true, broker.ErrUnavailable)
			l.Changed()
			time.Sleep(time.Minute)
			synctest.Wait()
			st.quiet(t)
			l.decisions.set(true, nil)
			time.Sleep(3 * time.Second)
			st.ended(t, broker.EndDenied)
		})
	})
}

// renewed is a verifier whose vendor says something new.
type renewed struct {
	attest.Verifier
	on  *atomic.Bool
	say func(*attest.Claims)
}

func (r renewed) Verify(ctx context.Context, e attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	claims, err := r.Verifier.Verify(ctx, e, b, c, now)
	if r.on.Load() {
		r.say(&claims)
	}
	return claims, err
}

// TestRetriedPushIsDenied: what failed before is tried again, and a denial then ends the session for good.
func TestRetriedPushIsDenied(t *testing.T) {
	leasing(t, func(t *testing.T, l *leaseWorld) {
		st, hangUp := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders").req})
		s := st.start(t)
		st.secrets(t, 1)
		synctest.Wait()
		_ = l.book.DeleteLease(t.Context(), s.ID)
		l.vault.fail(func() { l.vault.fault.fetch = errors.New("vault is sealed") })
		l.Changed()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		st.quiet(t)
		l.decisions.set(true, nil)
		time.Sleep(5 * time.Second)
		st.ended(t, broker.EndDenied)
		hangUp()
		if _, err := l.sessions.GetSession(t.Context(), s.ID); !errors.Is(err, broker.ErrNoSecret) {
			t.Error("the session is still known")
		}
	})
}

// TestSubjectsOfASession: what its evidence does not say is no subject of it.
func TestSubjectsOfASession(t *testing.T) {
	l := newLeaseWorld(t, func(c *broker.Config) {
		c.Verifiers = []attest.Verifier{stated{attest.TypeSNP, map[byte]attest.Claims{'c': {HardwareModel: "Milan", TCB: attest.TCB{Status: attest.TCBUnknown}}}}}
	})
	st, _ := l.subscribe(t, broker.Subscription{Request: l.guest(t, "disks/vm-1").req})
	s := st.start(t)
	st.secrets(t, 1)
	if got := l.sessions.get(t, s.ID).Subjects; !slices.Equal(got, []broker.Subject{{Kind: broker.RevokeTCB, Value: "Milan/Unknown"}}) {
		t.Errorf("subjects %v", got)
	}
}

// shortLived is a verifier of evidence that is good for five minutes, as Nitro's is by default.
type shortLived struct {
	attest.Verifier
	made time.Time
}

func (s *shortLived) Verify(ctx context.Context, e attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	if s.made.IsZero() {
		s.made = now
	}
	if now.Sub(s.made) > 5*time.Minute {
		return attest.Claims{}, attest.Errorf("nitro.age", attest.ReasonValidity, "made %s ago; allowed are 5m0s", now.Sub(s.made))
	}
	return s.Verifier.Verify(ctx, e, b, c, now)
}

// leftAlone is a policy that, once asked to, answers as an engine does whose caller has gone.
type leftAlone struct {
	broker.Policy
	on *atomic.Bool
}

func (p leftAlone) Decide(ctx context.Context, in broker.PolicyInput) (broker.Decision, error) {
	if p.on.Load() {
		<-ctx.Done()
		return broker.Decision{}, fmt.Errorf("evaluating policy: %w", ctx.Err())
	}
	return p.Policy.Decide(ctx, in)
}

// TestStreamBreaksWhileDeciding: a guest whose network fails while its session is decided about again was not
// denied anything: it comes back to its session and its leases.
func TestStreamBreaksWhileDeciding(t *testing.T) {
	on := &atomic.Bool{}
	l := newLeaseWorld(t, func(c *broker.Config) { c.Policy = leftAlone{c.Policy, on} })
	synctest.Test(t, func(t *testing.T) {
		l.restart(t)
		st, hangUp := l.subscribe(t, broker.Subscription{Request: l.guest(t, "db/orders").req})
		s := st.start(t)
		st.secrets(t, 1)
		synctest.Wait()
		on.Store(true)
		l.Changed()
		time.Sleep(5 * time.Second)
		hangUp()
		if _, err := l.sessions.GetSession(t.Context(), s.ID); err != nil {
			t.Errorf("the session: %v", err)
		}
		if rs := l.book.all(); len(rs) != 1 || len(rs[0].Owners) != 1 || len(l.vault.owners()) != 1 {
			t.Errorf("leases %+v of %v", rs, l.vault.owners())
		}
	})
}
