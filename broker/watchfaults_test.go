package broker_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
)

// watched is a leaseWorld, in a bubble of its own time, whose disks are in r, which tells of their versions, and whose events are kept.
type watched struct {
	*leaseWorld
	r *rotated

	mu     sync.Mutex
	events []broker.Event
}

func watching(t *testing.T, test func(t *testing.T, w *watched), change ...func(*broker.Config)) {
	t.Helper()
	w := &watched{r: &rotated{version: "1"}}
	w.leaseWorld = newLeaseWorld(t, append([]func(*broker.Config){func(c *broker.Config) {
		c.Sources["local"], c.Versions = w.r, w.r
		c.Observe = func(_ context.Context, e broker.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		}
	}}, change...)...)
	synctest.Test(t, func(t *testing.T) {
		w.restart(t)
		test(t, w)
	})
}

// answers has the disks' source answer so.
func (w *watched) answers(answer func(g broker.Granted, v string) (broker.Secret, error)) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.r.answer = answer
}

func (w *watched) lastEvent() broker.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.events[len(w.events)-1]
}

func (w *watched) lastRecord() broker.Record {
	rs := w.records()
	return rs[len(rs)-1]
}

// holds starts a session for the resources, and has the guest acknowledge what it is sent.
func (w *watched) holds(t *testing.T, a *attempt) (st *fakeStream, s broker.SessionStarted, hangUp func()) {
	t.Helper()
	st, hangUp = w.subscribe(t, broker.Subscription{Request: a.req})
	s = st.start(t)
	for r, v := range st.secrets(t, len(a.req.Resources)) {
		st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: r, Version: v}}
	}
	synctest.Wait()
	return st, s, hangUp
}

func (w *watched) set(t *testing.T, entries ...broker.CatalogEntry) {
	t.Helper()
	c, err := broker.NewCatalog(entries)
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
}

// TestPushThatFails: a version that cannot be read leaves a record and an event, and the guest keeps what it has, until it can.
func TestPushThatFails(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, s, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		w.answers(func(broker.Granted, string) (broker.Secret, error) {
			return broker.Secret{}, errors.New("vault is sealed")
		})
		w.r.rotate("2")
		synctest.Wait()
		st.quiet(t)
		rec, ev := w.lastRecord(), w.lastEvent()
		if rec.Outcome != broker.Failed || rec.Session != s.ID || rec.Resources[0].Version != "1" || !rec.Resources[0].Unchanged ||
			len(rec.Resources[0].Reasons) != 1 || rec.Resources[0].Reasons[0].Rule != "not_fetched" {
			t.Errorf("record %+v", rec)
		}
		if ev.Stage != broker.StageFetch || ev.Outcome != broker.Failed || ev.RecordID != rec.ID || ev.Type != attest.TypeSNP {
			t.Errorf("event %+v", ev)
		}
		if h := w.sessions.get(t, s.ID).Holdings[0]; h.Version != "1" || h.Pending != "" {
			t.Errorf("holding %+v", h)
		}
		w.answers(nil)
		wait(3 * time.Second)
		if got := st.secrets(t, 1); got["disks/vm-1"] != "2" {
			t.Errorf("sent %v", got)
		}
		if ev := w.lastEvent(); ev.Stage != broker.StageReply || ev.Outcome != broker.Released {
			t.Errorf("event %+v", ev)
		}
	})
}

// TestRetriesBecomeRarer while a source is down, and start over once it was back.
func TestRetriesBecomeRarer(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, _, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		var tries atomic.Int32
		down := func(broker.Granted, string) (broker.Secret, error) {
			tries.Add(1)
			return broker.Secret{}, errors.New("vault is sealed")
		}
		for range 2 {
			w.answers(down)
			tries.Store(0)
			w.r.rotate(fmt.Sprint(time.Now().Unix()))
			wait(9 * time.Second)
			if n := tries.Load(); n < 2 || n > 5 { // after 0 s, 1 to 3, 3 to 9
				t.Errorf("%d tries in 9 s", n)
			}
			wait(2 * time.Minute)
			before := tries.Load()
			wait(4 * time.Minute)
			if n := tries.Load() - before; n < 5 || n > 17 { // every 15 to 45 s
				t.Errorf("%d tries in 4 minutes", n)
			}
			w.answers(nil)
			wait(45 * time.Second)
			st.secrets(t, 1)
		}
	}, func(c *broker.Config) { c.SessionTTL = 10 * time.Hour })
}

// TestDeniedPush: a rotation at which the policy says no ends the session, and record and event say so.
func TestDeniedPush(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, s, hangUp := w.holds(t, w.guest(t, "disks/vm-1"))
		w.decisions.set(true, nil)
		w.r.rotate("2")
		st.ended(t, broker.EndDenied)
		hangUp()
		if rec := w.lastRecord(); rec.Outcome != broker.Denied || rec.Session != s.ID {
			t.Errorf("record %+v", rec)
		}
		if ev := w.lastEvent(); ev.Stage != broker.StageDecide || ev.Outcome != broker.Denied || !errors.Is(ev.Err, broker.ErrDenied) || ev.RecordID != w.lastRecord().ID {
			t.Errorf("event %+v", ev)
		}
		if _, err := w.sessions.GetSession(context.Background(), s.ID); !errors.Is(err, broker.ErrNoSecret) {
			t.Error("the session is still known")
		}
	})
}

// TestFeedThatForgets: where the newest version is not known any more, nothing is read.
func TestFeedThatForgets(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, _, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		reads := 0
		w.answers(func(broker.Granted, string) (broker.Secret, error) {
			reads++
			return broker.Secret{Value: []byte("x"), Version: "2"}, nil
		})
		w.r.rotate("")
		w.Changed()
		wait(10 * time.Second)
		st.quiet(t)
		if reads != 0 {
			t.Errorf("%d reads", reads)
		}
	})
}

// TestSameVersionAgain: where the feed tells of another version and the source has the one that the guest has, nothing is sent, nor recorded.
func TestSameVersionAgain(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, s, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		w.answers(func(broker.Granted, string) (broker.Secret, error) {
			return broker.Secret{Value: []byte("x"), Version: "1"}, nil
		})
		records, events := len(w.records()), len(w.events)
		w.r.rotate("2")
		wait(time.Minute)
		st.quiet(t)
		if len(w.records()) != records || len(w.events) != events || w.sessions.get(t, s.ID).Sequence != 1 {
			t.Errorf("%d records and %d events more", len(w.records())-records, len(w.events)-events)
		}
	})
}

// TestFollowers: what a session follows it follows once, and not after its end.
func TestFollowers(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		followers := func() int {
			w.r.mu.Lock()
			defer w.r.mu.Unlock()
			return len(w.r.wakes)
		}
		_, _, hangUp := w.holds(t, w.guest(t, "disks/vm-1", "db/orders"))
		if n := followers(); n != 1 {
			t.Errorf("%d followers of one disk", n)
		}
		for range 3 {
			w.Changed()
			wait(5 * time.Second)
		}
		if n := followers(); n != 1 {
			t.Errorf("%d followers after changes", n)
		}
		hangUp()
		if n := followers(); n != 0 {
			t.Errorf("%d followers of a session that ended", n)
		}
	})
}

// TestWithoutGrace: nobody says until when the version before may be used.
func TestWithoutGrace(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, s, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		w.r.rotate("2")
		u := st.next(t)
		if h := w.sessions.get(t, s.ID).Holdings[0]; u.Secret == nil || !u.Secret.PreviousRetiresAt.IsZero() || !h.RetiresAt.IsZero() || h.Pending != "2" {
			t.Errorf("got %+v, holding %+v", u.Secret, h)
		}
	})
}

// TestSecretsThatRunOut: what runs out is replaced after two thirds of its time, kept while it cannot be, and left alone once it does not run out any more.
func TestSecretsThatRunOut(t *testing.T) {
	src := &expiring{life: 90 * time.Second}
	watching(t, func(t *testing.T, w *watched) {
		w.set(t, broker.CatalogEntry{Pattern: "tokens/{vm}", Source: "tokens", Kind: broker.KindWrapped, Key: "{vm}", Policy: "any"})
		a := w.guest(t, "tokens/vm-1")
		st, s, _ := w.holds(t, a)
		wait(59 * time.Second)
		st.quiet(t)
		st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.fresh(t, a).req}}
		st.start(t)
		synctest.Wait()
		st.quiet(t)
		if rec := w.lastRecord(); src.read() != 1 || !rec.Resources[0].Unchanged {
			t.Errorf("%d reads, record %+v", src.read(), rec)
		}
		wait(time.Second)
		st.secrets(t, 1)
		if n := w.sessions.get(t, s.ID).Sequence; n != 2 || src.read() != 2 {
			t.Errorf("sequence %d after %d reads", n, src.read())
		}
		src.set(time.Second, nil) // one that lives for a moment only is kept for a second
		wait(time.Minute)
		st.secrets(t, 1)
		wait(999 * time.Millisecond)
		st.quiet(t)
		src.set(time.Minute, errors.New("vault is sealed"))
		wait(time.Millisecond)
		st.quiet(t)
		before := src.read()
		wait(10 * time.Minute)
		if n := src.read() - before; n < 13 || n > 50 {
			t.Errorf("%d tries in 10 minutes", n)
		}
		if rec := w.lastRecord(); rec.Outcome != broker.Failed || rec.Resources[0].Reasons[0].Rule != "not_fetched" {
			t.Errorf("record %+v", rec)
		}
		src.set(0, nil)
		wait(45 * time.Second)
		st.secrets(t, 1)
		before = src.read()
		wait(10 * time.Minute)
		st.quiet(t)
		if n := src.read() - before; n != 0 {
			t.Errorf("read %d times what does not run out", n)
		}
	}, func(c *broker.Config) { c.Sources["tokens"], c.SessionTTL = src, 10*time.Hour })
}

// expiring is a source of what lives so long; zero: for ever.
type expiring struct {
	mu    sync.Mutex
	life  time.Duration
	fault error
	reads int
}

func (e *expiring) Fetch(_ context.Context, g *broker.Grant) (broker.Secret, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := g.Redeem(); err != nil {
		return broker.Secret{}, err
	}
	e.reads++
	s := broker.Secret{Value: []byte("token")}
	if e.life != 0 {
		s.Expires = time.Now().Add(e.life)
	}
	return s, e.fault
}

func (e *expiring) set(life time.Duration, fault error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.life, e.fault = life, fault
}

func (e *expiring) read() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reads
}

// TestReattestationsGoOn: fresh evidence is asked for in each period, for the reason that is left, until it came.
func TestReattestationsGoOn(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		a := w.guest(t, "disks/vm-1")
		st, _, _ := w.holds(t, a)
		for range 3 {
			wait(10*time.Minute - time.Second)
			st.quiet(t)
			wait(time.Second)
			if u := st.next(t); u.Reattest == nil || u.Reattest.Reason != broker.ReattestExpires {
				t.Fatalf("got %+v", u)
			}
			st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.fresh(t, a).req}}
			st.start(t)
		}
		// Another policy is the reason, also where the first answer came too late and the time has come besides.
		w.decisions.setDigest("sha256:00bb")
		w.Changed()
		wait(3 * time.Second)
		if u := st.next(t); u.Reattest == nil || u.Reattest.Reason != broker.ReattestPolicy {
			t.Fatalf("got %+v", u)
		}
		wait(10 * time.Minute)
		st.quiet(t)
		late := w.fresh(t, a)
		late.req.Nonce = a.req.Nonce
		st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: late.req}}
		synctest.Wait()
		if u := st.next(t); u.Reattest == nil || u.Reattest.Reason != broker.ReattestPolicy {
			t.Fatalf("got %+v", u)
		}
		if ev := w.lastEvent(); ev.Stage != broker.StageAdmit || ev.Outcome != broker.Denied || !errors.Is(ev.Err, broker.ErrChallenge) {
			t.Errorf("event %+v", ev)
		}
		st.quiet(t)
	})
}

// TestDenialIsAboutWhatWasAppraised: the proof that a session ended names the request that it was believed for, or the one
// that was denied; one that only came too late is neither.
func TestDenialIsAboutWhatWasAppraised(t *testing.T) {
	for name, tt := range map[string]struct {
		second func(w *watched, t *testing.T, a *attempt) *attempt // fresh evidence in between
		revoke bool
		want   func(first, second *attempt) *attempt
	}{
		"the first": {nil, true, func(first, _ *attempt) *attempt { return first }},
		"fresh evidence": {func(w *watched, t *testing.T, a *attempt) *attempt { return w.fresh(t, a) }, true,
			func(_, second *attempt) *attempt { return second }},
		"one that came too late": {func(w *watched, t *testing.T, a *attempt) *attempt {
			b := w.fresh(t, a)
			b.req.Nonce = a.req.Nonce
			return b
		}, true, func(first, _ *attempt) *attempt { return first }},
		"the one that is denied": {func(w *watched, t *testing.T, a *attempt) *attempt {
			w.decisions.set(true, nil)
			return w.fresh(t, a)
		}, false, func(_, second *attempt) *attempt { return second }},
	} {
		t.Run(name, func(t *testing.T) {
			watching(t, func(t *testing.T, w *watched) {
				a := w.guest(t, "disks/vm-1")
				st := &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}
				st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}
				done := make(chan error, 1)
				go func() { done <- w.Watch(t.Context(), st) }()
				st.start(t)
				st.secrets(t, 1)
				var second *attempt
				if tt.second != nil {
					second = tt.second(w, t, a)
					st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: second.req}}
					synctest.Wait()
				}
				if tt.revoke {
					w.revoked.add(broker.Subject{Kind: broker.RevokeChip, Value: theCPU.ChipID})
					w.Changed()
				}
				err := <-done
				d, ok := errors.AsType[*broker.Denial](err)
				if !ok || d.ID != w.lastRecord().ID {
					t.Fatalf("got %v", err)
				}
				payload, err := seal.Verify(w.Identity(), seal.TypeDenial, d.Statement)
				if err != nil {
					t.Fatal(err)
				}
				var said broker.DenialStatement
				if err := json.Unmarshal(payload, &said); err != nil {
					t.Fatal(err)
				}
				about := tt.want(a, second)
				whole := about.bind.Whole(attest.PurposeWatch, about.req.Evidence)
				if said.Request != base64.RawURLEncoding.EncodeToString(whole[:]) {
					t.Error("it is about another request")
				}
				close(st.in)
			})
		})
	}
}

// TestStartThatFails: nobody can go on with a session that never began, and nothing is left of it; one that was there stays.
func TestStartThatFails(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		a := w.guest(t, "logins/app", "db/orders")
		w.vault.fail(func() { w.vault.fault.fetch = errors.New("vault is sealed") })
		err := w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}})
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Fatal(err)
		}
		w.sessions.m.Range(func(id, _ any) bool { t.Errorf("session %s is left", id); return true })
		if live := append(w.vault.owners(), w.other.owners()...); len(live) > 0 || len(w.book.all()) > 0 {
			t.Errorf("left behind: %v, %+v", live, w.book.all())
		}
		w.vault.fail(func() { w.vault.fault.fetch = nil })
		a = w.fresh(t, a)
		_, s, hangUp := w.holds(t, a)
		hangUp()
		w.r.answer = nil
		w.vault.fail(func() { w.vault.fault.fetch = errors.New("vault is sealed") })
		err = w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.fresh(t, a).req, Session: s.ID}})
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Fatal(err)
		}
		w.sessions.get(t, s.ID)
		w.decisions.set(true, nil)
		err = w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.fresh(t, a).req, Session: s.ID}})
		if !errors.Is(err, broker.ErrDenied) {
			t.Fatal(err)
		}
		if _, err := w.sessions.GetSession(t.Context(), s.ID); !errors.Is(err, broker.ErrNoSecret) {
			t.Error("a session that is denied is still known")
		}
	})
}

// TestMissedLeaseKeepsTheRest: a guest that comes back without one of its leases gets all leases anew, and nothing else.
func TestMissedLeaseKeepsTheRest(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		a := w.guest(t, "disks/vm-1", "db/orders", "db/users")
		st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
		s := st.start(t)
		held := st.secrets(t, 3)
		hangUp()
		delete(held, "db/users")
		reads := 0
		w.answers(func(_ broker.Granted, v string) (broker.Secret, error) {
			reads++
			return broker.Secret{Value: []byte("x"), Version: v}, nil
		})
		st, _ = w.subscribe(t, broker.Subscription{Request: w.fresh(t, a).req, Session: s.ID, Held: held})
		if !st.start(t).Resumed {
			t.Fatal("not resumed")
		}
		got := st.secrets(t, 2)
		synctest.Wait()
		st.quiet(t)
		if got["db/orders"] == "" || got["db/users"] == "" || !w.lastRecord().Resources[0].Unchanged || w.sessions.get(t, s.ID).Holdings[0].Version != "1" {
			t.Errorf("sent %v, record %+v", got, w.lastRecord())
		}
	})
}

// TestComesBackToRetiredOwners: leases that run out where they are get a successor, and are not ended under the guest.
func TestComesBackToRetiredOwners(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		a := w.guest(t, "db/orders")
		st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
		s := st.start(t)
		held := st.secrets(t, 1)
		hangUp()
		r := w.book.all()[0]
		r.Retiring, r.Owners = r.Owners, nil
		if _, err := w.book.PutLease(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		w.restart(t)
		st, _ = w.subscribe(t, broker.Subscription{Request: w.fresh(t, a).req, Session: s.ID, Held: held})
		st.start(t)
		if got := st.secrets(t, 1); got["db/orders"] != "vault-lease-2" || len(w.vault.owners()) != 2 {
			t.Errorf("sent %v, owners %v", got, w.vault.owners())
		}
		synctest.Wait()
		if r := w.book.all()[0]; len(r.Owners) != 1 || r.Owners[0].ID != "vault-2" || len(r.Retiring) != 1 || r.Retiring[0].ID != "vault-1" {
			t.Errorf("leases %+v", r)
		}
	})
}

// TestSecondOwnerFails: a session that cannot make an owner, or not write one down, keeps what it has and comes back to it.
func TestSecondOwnerFails(t *testing.T) {
	for name, fault := range map[string]func(*watched, error){
		"source": func(w *watched, err error) { w.other.fail(func() { w.other.fault.owner = err }) },
		"memory": func(w *watched, err error) { w.book.fail(func() { w.book.fault = err }) },
	} {
		t.Run(name, func(t *testing.T) {
			watching(t, func(t *testing.T, w *watched) {
				st, s, _ := w.holds(t, w.guest(t, "db/orders", "logins/app"))
				r := w.book.all()[0]
				r.Owners = slices.DeleteFunc(r.Owners, func(o broker.Owner) bool { return o.Source == "other" })
				if _, err := w.book.PutLease(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				fault(w, errors.New("no leader"))
				w.Changed()
				wait(20 * time.Second)
				st.quiet(t)
				if !slices.Equal(w.vault.owners(), []string{"vault-1"}) || w.other.fetches != 1 {
					t.Errorf("owners %v, %d reads", w.vault.owners(), w.other.fetches)
				}
				rec := w.lastRecord()
				if rec.Outcome != broker.Failed || rec.Session != s.ID || len(rec.Resources) != 1 || rec.Resources[0].Path != "logins/app" {
					t.Errorf("record %+v", rec)
				}
				fault(w, nil)
				wait(45 * time.Second)
				if got := st.secrets(t, 1); got["logins/app"] != "other-lease-2" {
					t.Errorf("sent %v", got)
				}
				synctest.Wait()
				st.quiet(t)
			})
		})
	}
}

// TestMemoryFailsAtTheStart: whichever write of its leases fails, a session that did not begin leaves nothing behind, and sends nothing.
func TestMemoryFailsAtTheStart(t *testing.T) {
	for write := 1; ; write++ {
		over := false
		watching(t, func(t *testing.T, w *watched) {
			w.book.faultAt = write
			a := w.guest(t, "disks/vm-1", "db/orders", "logins/app")
			st := &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}
			st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}
			close(st.in)
			err := w.Watch(t.Context(), st)
			if w.book.tries < write {
				over = true
				return
			}
			if err == nil { // the session had begun
				over = true
				return
			}
			if !errors.Is(err, broker.ErrUnavailable) || len(st.out) > 0 || w.lastRecord().Outcome != broker.Failed || len(w.records()) != 1 {
				t.Errorf("write %d: %v, %d messages, records %+v", write, err, len(st.out), w.records())
			}
			w.sessions.m.Range(func(id, _ any) bool { t.Errorf("write %d: session %s is left", write, id); return true })
			if live := append(w.vault.owners(), w.other.owners()...); len(live) > 0 || len(w.book.all()) > 0 {
				t.Errorf("write %d: left behind: %v, %+v", write, live, w.book.all())
			}
		})
		if over {
			if write < 4 { // the owners, how long they live, and the two leases
				t.Errorf("only %d writes", write-1)
			}
			return
		}
	}
}

// TestMemoryFailsAtTheReturn: a guest that comes back while its leases cannot be extended keeps them, for as long as its session lives.
func TestMemoryFailsAtTheReturn(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		go func() { _ = w.KeepLeases(t.Context()) }()
		a := w.guest(t, "db/orders")
		st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
		s := st.start(t)
		held := st.secrets(t, 1)
		hangUp()
		w.book.fail(func() { w.book.fault = errors.New("no leader") })
		st, _ = w.subscribe(t, broker.Subscription{Request: w.fresh(t, a).req, Session: s.ID, Held: held})
		again := st.start(t)
		if !again.Resumed || again.ID != s.ID {
			t.Errorf("got %+v", again)
		}
		if r := w.lastRecord().Resources[0]; r.Version != "vault-lease-1" || !r.Unchanged || len(r.Reasons) != 1 {
			t.Errorf("record %+v", r)
		}
		wait(10 * time.Second)
		w.book.fail(func() { w.book.fault = nil })
		wait(5 * time.Minute) // the minute in which it could come back is over
		st.quiet(t)
		if rs := w.book.all(); len(rs) != 1 || !rs[0].ExpiresAt.Equal(again.ExpiresAt.Add(time.Minute)) || !slices.Equal(w.vault.owners(), []string{"vault-1"}) || w.vault.fetches != 1 {
			t.Errorf("leases %+v, owners %v, %d reads", rs, w.vault.owners(), w.vault.fetches)
		}
		records := len(w.records())
		wait(5 * time.Minute)
		if n := len(w.records()); n != records {
			t.Errorf("%d more records: it goes on trying", n-records)
		}
	})
}

// TestSecretLostAtAPush: what its source lost as a new version was to go out ends no session that has the one before.
func TestSecretLostAtAPush(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		a := w.guest(t, "disks/vm-1")
		st, s, _ := w.holds(t, a)
		w.answers(func(broker.Granted, string) (broker.Secret, error) {
			return broker.Secret{}, fmt.Errorf("version 2 is deleted: %w", broker.ErrNoSecret)
		})
		w.r.rotate("2")
		wait(3 * time.Minute)
		st.quiet(t)
		if rec := w.lastRecord(); rec.Outcome != broker.Failed || !strings.Contains(rec.Error, "version 2 is deleted") || rec.Session != s.ID {
			t.Errorf("record %+v", rec)
		}
		st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.fresh(t, a).req}}
		st.start(t)
		wait(3 * time.Minute)
		st.quiet(t)
		w.answers(nil)
		w.r.rotate("3")
		synctest.Wait()
		if got := st.secrets(t, 1); got["disks/vm-1"] != "3" {
			t.Errorf("sent %v", got)
		}
	})
}

// TestReattestedWhileMemoryFails: a version that was to go out with the answer to fresh evidence is not lost with the answer.
func TestReattestedWhileMemoryFails(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		a := w.guest(t, "db/orders", "disks/vm-1")
		st, s, _ := w.holds(t, a)
		wait(time.Minute)
		w.r.set("2")
		w.r.onFetch = func() { w.book.fail(func() { w.book.fault = errors.New("no leader") }) }
		st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.fresh(t, a).req}}
		synctest.Wait()
		w.book.fail(func() { w.book.fault = nil })
		w.r.onFetch = nil
		wait(2 * time.Minute)
		sent := false
		for len(st.out) > 0 {
			if u := <-st.out; u.Secret != nil && u.Secret.Version == "2" {
				sent = true
			}
		}
		if h := w.sessions.get(t, s.ID).Holdings[1]; !sent {
			t.Errorf("not sent; holding %+v", h)
		}
	})
}

// TestLeasesCannotBeRead: a session that cannot tell whether its leases live looks again.
func TestLeasesCannotBeRead(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, s, _ := w.holds(t, w.guest(t, "db/orders"))
		w.book.fail(func() { w.book.unreadable = errors.New("no leader") })
		w.Changed()
		wait(5 * time.Second)
		st.quiet(t)
		_ = w.book.DeleteLease(t.Context(), s.ID)
		w.book.fail(func() { w.book.unreadable = nil })
		wait(3 * time.Second)
		if got := st.secrets(t, 1); got["db/orders"] != "vault-lease-2" {
			t.Errorf("sent %v", got)
		}
	})
}

// TestRoleIsGone: a workload whose lease ended, and whose role is not there any more, keeps its session and the rest.
func TestRoleIsGone(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, s, _ := w.holds(t, w.guest(t, "db/orders", "disks/vm-1"))
		_ = w.book.DeleteLease(t.Context(), s.ID)
		w.vault.fail(func() { w.vault.fault.fetch = fmt.Errorf("no such role: %w", broker.ErrNoSecret) })
		w.Changed()
		wait(time.Minute)
		st.quiet(t)
		w.r.rotate("2")
		synctest.Wait()
		if got := st.secrets(t, 1); got["disks/vm-1"] != "2" {
			t.Errorf("sent %v", got)
		}
		w.vault.fail(func() { w.vault.fault.fetch = nil })
		wait(45 * time.Second)
		if got := st.secrets(t, 1); got["db/orders"] == "" {
			t.Errorf("sent %v", got)
		}
	})
}

// TestLogFailsAtAPush: an operator sees that it was the log.
func TestLogFailsAtAPush(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, _, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		fail := func(err error) {
			w.log.mu.Lock()
			defer w.log.mu.Unlock()
			w.log.fault = err
		}
		fail(errors.New("disk full"))
		w.r.rotate("2")
		synctest.Wait()
		st.quiet(t)
		if ev := w.lastEvent(); ev.Stage != broker.StageRecord || ev.Outcome != broker.Failed {
			t.Errorf("event %+v", ev)
		}
		fail(nil)
		wait(3 * time.Second)
		st.secrets(t, 1)
	})
}

// TestHangUpBeforeTheEnd: the time to come back ends with the evidence, and the leases with it.
func TestHangUpBeforeTheEnd(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		_, s, hangUp := w.holds(t, w.guest(t, "db/orders"))
		wait(time.Until(s.ExpiresAt) - 20*time.Second)
		hangUp()
		if got := w.sessions.get(t, s.ID); !got.ExpiresAt.Equal(s.ExpiresAt) || !w.book.all()[0].ExpiresAt.Equal(s.ExpiresAt) {
			t.Errorf("it waits until %s, its leases until %s, its evidence %s", got.ExpiresAt, w.book.all()[0].ExpiresAt, s.ExpiresAt)
		}
	})
}

// TestSequenceOfAGuest: what nobody signed uses up no sequence, and takes nothing back.
func TestSequenceOfAGuest(t *testing.T) {
	for said, want := range map[uint64]uint64{0: 2, 1: 2, 7: 8, 1 << 32: 1<<32 + 1, 1<<32 + 1: 1<<32 + 1, 1 << 63: 1<<32 + 1} {
		watching(t, func(t *testing.T, w *watched) {
			a := w.guest(t, "disks/vm-1")
			_, s, hangUp := w.holds(t, a)
			hangUp()
			st, _ := w.subscribe(t, broker.Subscription{Request: w.fresh(t, a).req, Session: s.ID, Sequence: said})
			st.start(t)
			st.secrets(t, 1)
			if got := w.sessions.get(t, s.ID).Sequence; got != want {
				t.Errorf("the guest said %d: sequence %d, want %d", said, got, want)
			}
		})
	}
}

// countedVerifier counts what it verifies.
type countedVerifier struct {
	attest.Verifier
	n *atomic.Int32
}

func (c countedVerifier) Verify(ctx context.Context, e attest.Evidence, b attest.Binding, coll attest.Collateral, now time.Time) (attest.Claims, error) {
	c.n.Add(1)
	return c.Verifier.Verify(ctx, e, b, coll, now)
}

// TestVerifiedOnceByEach: evidence is held against verifiers once when they come into force, then every five minutes or so.
func TestVerifiedOnceByEach(t *testing.T) {
	var n atomic.Int32
	watching(t, func(t *testing.T, w *watched) {
		n.Store(0)
		w.holds(t, w.guest(t, "disks/vm-1"))
		w.SetVerifiers(w.cfg.Verifiers, nil)
		for range 5 {
			wait(3 * time.Second)
			w.Changed()
		}
		wait(3 * time.Second)
		if got := n.Load(); got != 2 {
			t.Errorf("verified %d times, want at the start and by the new ones", got)
		}
		wait(time.Hour)
		if got := n.Load(); got < 2+9 || got > 2+12 {
			t.Errorf("verified %d times in an hour", got)
		}
	}, func(c *broker.Config) {
		c.Verifiers[0] = countedVerifier{c.Verifiers[0], &n}
		c.SessionTTL = 10 * time.Hour
	})
}

// TestSessionsAreSeenFrom: a session counts for the networks that a chip was seen in, as a release does.
func TestSessionsAreSeenFrom(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		for i, peer := range []string{"192.0.2.1", "198.51.100.1"} {
			a := w.guest(t, "disks/vm-1")
			a.req.Peer = netip.MustParseAddr(peer)
			w.holds(t, a)
			if got := w.decisions.in[len(w.decisions.in)-1].Chip.Networks; got != i+1 {
				t.Errorf("%d networks", got)
			}
		}
	})
}

// TestDeniedSessionsAreForgotten, whatever it was that ended them.
func TestDeniedSessionsAreForgotten(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, w *watched, st *fakeStream){
		"the policy changed": func(_ *testing.T, w *watched, _ *fakeStream) {
			w.decisions.set(true, nil)
			w.Changed()
		},
		"the resource is gone": func(_ *testing.T, w *watched, _ *fakeStream) { w.SetCatalog(nil) },
		"its chip is revoked": func(_ *testing.T, w *watched, _ *fakeStream) {
			w.revoked.add(broker.Subject{Kind: broker.RevokeChip, Value: theCPU.ChipID})
			w.Changed()
		},
		"it says nothing": func(_ *testing.T, _ *watched, st *fakeStream) { st.in <- broker.WatchMessage{} },
		"it acknowledges what it does not have": func(_ *testing.T, _ *watched, st *fakeStream) {
			st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-2", Version: "1"}}
		},
		"fresh evidence is denied": func(t *testing.T, w *watched, st *fakeStream) {
			a := w.guest(t, "disks/vm-1", "db/orders")
			a.req.Evidence.Report[0] = 'x'
			st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			watching(t, func(t *testing.T, w *watched) {
				st, s, hangUp := w.holds(t, w.guest(t, "disks/vm-1", "db/orders"))
				end(t, w, st)
				st.ended(t, broker.EndDenied)
				hangUp()
				if _, err := w.sessions.GetSession(context.Background(), s.ID); !errors.Is(err, broker.ErrNoSecret) || len(w.vault.owners()) > 0 || len(w.book.all()) > 0 {
					t.Errorf("session: %v, owners %v", err, w.vault.owners())
				}
			})
		})
	}
	t.Run("revoked as it begins", func(t *testing.T) {
		watching(t, func(t *testing.T, w *watched) {
			w.r.follow = func() { w.revoked.add(broker.Subject{Kind: broker.RevokeChip, Value: theCPU.ChipID}) }
			st, hangUp := w.subscribe(t, broker.Subscription{Request: w.guest(t, "disks/vm-1").req})
			s := st.start(t)
			st.secrets(t, 1)
			st.ended(t, broker.EndDenied)
			hangUp()
			if _, err := w.sessions.GetSession(context.Background(), s.ID); !errors.Is(err, broker.ErrNoSecret) {
				t.Error("the session is still known")
			}
		})
	})
}

// TestHangUpWhileTheBookIsUnreadable: who cannot tell whether another stream goes on with the session leaves it to be gone on with.
func TestHangUpWhileTheBookIsUnreadable(t *testing.T) {
	book := &brokenSessions{}
	watching(t, func(t *testing.T, w *watched) {
		st, hangUp := w.subscribe(t, broker.Subscription{Request: w.guest(t, "disks/vm-1").req})
		s := st.start(t)
		st.secrets(t, 1)
		wait(time.Second)
		book.get.Store(true)
		hangUp()
		book.get.Store(false)
		if got := book.fakeSessions.get(t, s.ID); time.Until(got.ExpiresAt) != time.Minute {
			t.Errorf("it waits until %s", got.ExpiresAt)
		}
	}, func(c *broker.Config) { c.Sessions = book })
}

// TestAcknowledgementIsNotWritten: a session whose book fails goes on.
func TestAcknowledgementIsNotWritten(t *testing.T) {
	book := &brokenSessions{}
	watching(t, func(t *testing.T, w *watched) {
		st, hangUp := w.subscribe(t, broker.Subscription{Request: w.guest(t, "disks/vm-1").req})
		s := st.start(t)
		st.secrets(t, 1)
		book.put.Store(true)
		st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-1", Version: "1"}}
		wait(time.Minute)
		st.quiet(t)
		book.put.Store(false)
		hangUp()
		if h := book.fakeSessions.get(t, s.ID).Holdings[0]; h.Version != "1" || h.Pending != "" {
			t.Errorf("holding %+v", h)
		}
	}, func(c *broker.Config) { c.Sessions = book })
}

// TestSharedReads: a version is read once for all that get the same, and what differs in anything is read by itself.
func TestSharedReads(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		entries := []broker.CatalogEntry{
			{Pattern: "same/{x}", Source: "vault", Key: "k"},
			{Pattern: "kind", Source: "vault", Key: "k", Kind: broker.KindDatabaseStatic},
			{Pattern: "source", Source: "second", Key: "k"},
			{Pattern: "mount", Source: "vault", Mount: "m", Key: "k"},
			{Pattern: "key", Source: "vault", Key: "l"},
			{Pattern: "field", Source: "vault", Key: "k", Field: "f"},
			{Pattern: "encoding", Source: "vault", Key: "k", Options: map[string]string{"encoding": "base64"}},
		}
		resources := []string{"same/a", "same/b", "same/c"}
		for i := range entries {
			entries[i].Policy = "any"
			if i > 0 {
				resources = append(resources, entries[i].Pattern)
			}
		}
		w.set(t, entries...)
		st, _, _ := w.holds(t, w.guest(t, resources...))
		reads := map[string]int{}
		w.answers(func(g broker.Granted, v string) (broker.Secret, error) {
			reads[g.Entry.Pattern]++
			return broker.Secret{Value: []byte("x"), Version: v}, nil
		})
		for _, v := range []string{"2", "3"} { // another version is another secret
			clear(reads)
			w.r.rotate(v)
			synctest.Wait()
			st.secrets(t, len(resources))
			for _, e := range entries {
				if reads[e.Pattern] != 1 {
					t.Errorf("%s was read %d times", e.Pattern, reads[e.Pattern])
				}
			}
		}
	}, func(c *broker.Config) {
		c.Sources["second"] = c.Versions.(*rotated)
		c.Sources["vault"] = c.Versions.(*rotated)
	})
}

// editioned tells two versions of one number apart.
type editioned struct {
	*rotated
	edition *atomic.Value
}

func (e editioned) Edition(broker.CatalogEntry) string { return e.edition.Load().(string) }

// TestSameNumberAnotherEdition: a secret that was deleted with its history, and written again, reaches who watches it, once.
func TestSameNumberAnotherEdition(t *testing.T) {
	edition := &atomic.Value{}
	edition.Store("first")
	watching(t, func(t *testing.T, w *watched) {
		w.answers(func(_ broker.Granted, v string) (broker.Secret, error) {
			return broker.Secret{Value: []byte("x"), Version: v, Edition: edition.Load().(string)}, nil
		})
		st, s, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		w.r.rotate("1")
		synctest.Wait()
		st.quiet(t)
		edition.Store("second")
		w.r.rotate("1")
		synctest.Wait()
		if got := st.secrets(t, 1); got["disks/vm-1"] != "1" || w.sessions.get(t, s.ID).Holdings[0].Edition != "second" {
			t.Errorf("sent %v, holding %+v", got, w.sessions.get(t, s.ID).Holdings[0])
		}
		w.r.rotate("1")
		synctest.Wait()
		st.quiet(t)
		edition.Store("") // not known any more: that is no news
		w.r.rotate("1")
		synctest.Wait()
		st.quiet(t)
		if got := w.sessions.get(t, s.ID).Holdings[0].Edition; got != "second" {
			t.Errorf("edition %q", got)
		}
	}, func(c *broker.Config) { c.Versions = editioned{c.Versions.(*rotated), edition} })
}
