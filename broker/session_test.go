package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// sessionWorld is a broker and a guest that can subscribe to it, with a clock that the test sets forward.
func sessionWorld(t *testing.T, r *rotated, change ...func(*broker.Config)) (w *world, a *attempt, book *fakeSessions, later func(time.Duration)) {
	t.Helper()
	book = &fakeSessions{}
	var offset atomic.Int64
	w, a = watchWorld(t, r, append(change, func(c *broker.Config) { c.Sessions = book })...)
	// watchWorld runs on the real clock; a broker on ours has all else from it.
	base := w.now
	w.cfg.Now = func() time.Time { return base.Add(time.Duration(offset.Load())) }
	catalog := w.Catalog()
	var err error
	if w.Broker, err = broker.New(w.cfg); err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(catalog)
	a = w.again(t, a)
	return w, a, book, func(d time.Duration) {
		offset.Add(int64(d))
		w.Changed() // has sessions look at the clock
	}
}

// refused subscribes in vain.
func (w *world) refused(t *testing.T, m ...broker.WatchMessage) error {
	t.Helper()
	st := &fakeStream{make(chan broker.WatchMessage, len(m)), make(chan broker.WatchUpdate, 10)}
	for _, m := range m {
		st.in <- m
	}
	close(st.in)
	err := w.Watch(t.Context(), st)
	select {
	case u := <-st.out:
		t.Errorf("the guest was told %+v", u)
	default:
	}
	return err
}

// started reads the start of a session and its first secret.
func (st *fakeStream) started(t *testing.T) (broker.SessionStarted, broker.SecretVersion) {
	t.Helper()
	u := st.next(t)
	if u.Started == nil {
		t.Fatalf("got %+v, want the start of a session", u)
	}
	s := st.next(t)
	if s.Secret == nil {
		t.Fatalf("got %+v, want a secret", s)
	}
	return *u.Started, *s.Secret
}

func (st *fakeStream) ended(t *testing.T, want broker.EndReason) {
	t.Helper()
	if u := st.next(t); u.Ended == nil || *u.Ended != want {
		t.Fatalf("got %+v, want the end: %s", u, want)
	}
}

func (w *world) records() []broker.Record {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	return slices.Clone(w.log.records)
}

func (f *fakeSessions) get(t *testing.T, id string) broker.Session {
	t.Helper()
	s, err := f.GetSession(t.Context(), id)
	if err != nil {
		t.Fatalf("session %s: %v", id, err)
	}
	return s
}

// only is the one session there is.
func (f *fakeSessions) only(t *testing.T) broker.Session {
	t.Helper()
	var all []broker.Session
	f.m.Range(func(_, s any) bool { all = append(all, s.(broker.Session)); return true })
	if len(all) != 1 {
		t.Fatalf("%d sessions", len(all))
	}
	return all[0]
}

// TestWatchSpendsTheNonce: evidence starts one session or one release, on all replicas together (G2).
func TestWatchSpendsTheNonce(t *testing.T) {
	w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	st.started(t)
	replica, err := broker.New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	replica.SetCatalog(w.Catalog())
	w.Broker = replica
	if err := w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}); !errors.Is(err, broker.ErrChallenge) {
		t.Errorf("a second session: %v", err)
	}
	if _, err := replica.Release(t.Context(), a.req); !errors.Is(err, broker.ErrChallenge) {
		t.Errorf("a release: %v", err)
	}
}

// TestReattestSpendsTheNonce: evidence over a nonce that was spent elsewhere renews no session; the guest may try again.
func TestReattestSpendsTheNonce(t *testing.T) {
	w, a, book, later := sessionWorld(t, &rotated{version: "1"})
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	session, _ := st.started(t)
	later(time.Minute)
	spent := w.again(t, a)
	if err := w.store.Redeem(t.Context(), broker.NonceID(spent.req.Nonce[:len(broker.NonceID{})]), w.now); err != nil {
		t.Fatal(err)
	}
	st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: spent.req}}
	st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.again(t, a).req}}
	if u := st.next(t); u.Started == nil || !u.Started.Resumed || u.Started.ID != session.ID || !u.Started.ExpiresAt.After(session.ExpiresAt) {
		t.Fatalf("got %+v", u)
	}
	select {
	case u := <-st.out:
		t.Errorf("told also %+v", u)
	default:
	}
	var outcomes []broker.Outcome
	for _, r := range w.records() {
		outcomes = append(outcomes, r.Outcome)
	}
	if !slices.Equal(outcomes, []broker.Outcome{broker.Released, broker.Denied, broker.Released}) {
		t.Errorf("records %v", outcomes)
	}
	if s := book.get(t, session.ID); s.AttestedAt.Sub(w.now) < time.Minute {
		t.Errorf("attested at %s", s.AttestedAt)
	}
}

// TestRevokedWhileFetching: what is revoked while a session's secret is read is not released, nor recorded as if it were.
func TestRevokedWhileFetching(t *testing.T) {
	for name, x := range map[string]broker.Subject{
		"resource": {Kind: broker.RevokeResource, Value: "disks/vm-1"},
		"version":  {Kind: broker.RevokeSecretVersion, Value: "disks/vm-1@2"},
		"workload": {Kind: broker.RevokeMeasurement, Value: fmt.Sprintf("%x", teesim.Measurement(""))},
	} {
		t.Run(name+" at the start", func(t *testing.T) {
			r := &rotated{version: "2"}
			w, a, _, _ := sessionWorld(t, r)
			r.onFetch = func() { w.revoked.add(x) }
			if err := w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}); !errors.Is(err, broker.ErrDenied) || !strings.Contains(err.Error(), "revoked") {
				t.Errorf("got %v", err)
			}
			if rs := w.records(); len(rs) != 1 || rs[0].Outcome != broker.Denied || rs[0].Session == "" {
				t.Errorf("records %+v", rs)
			}
		})
		t.Run(name+" at a rotation", func(t *testing.T) {
			r := &rotated{version: "1"}
			w, a, book, _ := sessionWorld(t, r)
			st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
			session, _ := st.started(t)
			r.onFetch = func() { w.revoked.add(x) }
			r.rotate("2")
			st.ended(t, broker.EndDenied)
			for _, rec := range w.records()[1:] {
				if rec.Outcome == broker.Released {
					t.Errorf("record %+v", rec)
				}
			}
			eventually(t, "the session is forgotten", func() bool {
				_, err := book.GetSession(t.Context(), session.ID)
				return errors.Is(err, broker.ErrNoSecret)
			})
		})
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// TestRevokedSession: each subject of a running session ends it at once; the revocation of a version that it has does not.
func TestRevokedSession(t *testing.T) {
	for name, tt := range map[string]struct {
		subject func(w *world, session string) broker.Subject
		goesOn  bool
	}{
		"chip": {subject: func(w *world, _ string) broker.Subject {
			return broker.Subject{Kind: broker.RevokeChip, Value: fmt.Sprintf("%x", w.device.ChipID())}
		}},
		"session": {subject: func(_ *world, id string) broker.Subject { return broker.Subject{Kind: broker.RevokeSession, Value: id} }},
		"resource": {subject: func(*world, string) broker.Subject {
			return broker.Subject{Kind: broker.RevokeResource, Value: "disks/vm-1"}
		}},
		"policy": {subject: func(w *world, _ string) broker.Subject {
			return broker.Subject{Kind: broker.RevokePolicy, Value: w.records()[0].PolicyDigest}
		}},
		"version": {goesOn: true, subject: func(*world, string) broker.Subject {
			return broker.Subject{Kind: broker.RevokeSecretVersion, Value: "disks/vm-1@1"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &rotated{version: "1"}
			w, a, _, _ := sessionWorld(t, r)
			st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
			session, _ := st.started(t)
			w.revoked.add(tt.subject(w, session.ID))
			if tt.goesOn {
				r.rotate("2")
				if u := st.next(t); u.Secret == nil || u.Secret.Version != "2" {
					t.Fatalf("got %+v", u)
				}
				return
			}
			w.Changed()
			st.ended(t, broker.EndDenied)
			last := w.records()[1]
			if last.Outcome != broker.Denied || !strings.Contains(last.Error, "session ended: ") || last.Session != session.ID || len(last.Resources) != 1 {
				t.Errorf("record %+v", last)
			}
		})
	}
}

// TestResumeRefused: who comes back after the session's end, with another key, or for other resources begins anew.
func TestResumeRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(w *world, s *broker.Session)
		resumed bool
	}{
		"in time":         {func(*world, *broker.Session) {}, true},
		"at its last":     {func(w *world, s *broker.Session) { s.ExpiresAt = w.now.Add(time.Second) }, true},
		"expired":         {func(w *world, s *broker.Session) { s.ExpiresAt = w.now }, false},
		"another key":     {func(_ *world, s *broker.Session) { s.Recipient = strings.Repeat("0", len(s.Recipient)) }, false},
		"other resources": {func(_ *world, s *broker.Session) { s.Holdings[0].Resource = "disks/vm-2" }, false},
		"more resources": {func(_ *world, s *broker.Session) {
			s.Holdings = append(s.Holdings, broker.Holding{Resource: "disks/vm-2"})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, book, _ := sessionWorld(t, &rotated{version: "1"})
			st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
			first, secret := st.started(t)
			hangUp()
			s := book.get(t, first.ID)
			s.Holdings = slices.Clone(s.Holdings)
			tt.change(w, &s)
			if err := book.PutSession(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			st, _ = w.subscribe(t, broker.Subscription{Request: w.again(t, a).req, Session: first.ID, Sequence: 40})
			second, again := st.started(t)
			if second.Resumed != tt.resumed || (second.ID == first.ID) != tt.resumed {
				t.Errorf("session %+v after %+v", second, first)
			}
			// A session that goes on never repeats a number that the guest has seen.
			want := uint64(1)
			if tt.resumed {
				want = 41
			}
			if got := book.get(t, second.ID).Sequence; got != want || secret.Version != again.Version {
				t.Errorf("sequence %d, want %d", got, want)
			}
		})
	}
}

// TestSessionIsWrittenDown: what other brokers and operators need to know of it.
func TestSessionIsWrittenDown(t *testing.T) {
	w, a, book, later := sessionWorld(t, &rotated{version: "1"}, func(c *broker.Config) {
		c.Instance, c.SessionTTL, c.ResumeTime = "broker-7", time.Hour, 3*time.Minute
	})
	a.options.HostData = [32]byte{0xaa}
	a = w.again(t, a)
	st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
	started, secret := st.started(t)
	if want := w.now.Add(time.Hour); !started.ExpiresAt.Equal(want) || started.Resumed {
		t.Errorf("started %+v, want the end at %s", started, want)
	}
	thumb := seal.Thumbprint(seal.X25519, a.req.PublicKey)
	s := book.get(t, started.ID)
	switch {
	case s.Broker != "broker-7", s.Stream == "", !s.StartedAt.Equal(w.now), !s.AttestedAt.Equal(w.now), !s.ExpiresAt.Equal(started.ExpiresAt),
		s.Recipient != fmt.Sprintf("%x", thumb), s.EvidenceType != attest.TypeSNP, s.HardwareModel == "", s.ChipID != fmt.Sprintf("%x", w.device.ChipID()),
		!strings.HasPrefix(s.HostData, "aa00"), !s.Simulated, s.Sequence != 1,
		!slices.Contains(s.Measurements, fmt.Sprintf("measurement=%x", teesim.Measurement(""))), !slices.IsSorted(s.Measurements),
		s.Policy != w.records()[0].PolicyDigest, s.Policy == "":
		t.Errorf("session %+v", s)
	}
	for _, x := range []broker.Subject{
		{Kind: broker.RevokeChip, Value: s.ChipID}, {Kind: broker.RevokeSession, Value: s.ID}, {Kind: broker.RevokePolicy, Value: s.Policy},
		{Kind: broker.RevokeResource, Value: "disks/vm-1"}, {Kind: broker.RevokeWorkload, Value: s.HostData},
	} {
		if !s.Concerns(x) {
			t.Errorf("does not concern %s", x)
		}
		x.Value += "0"
		if s.Concerns(x) {
			t.Errorf("concerns %s", x)
		}
	}
	h := s.Holdings[0]
	if len(s.Holdings) != 1 || h.Resource != "disks/vm-1" || h.Pending != "1" || h.Version != "" || !h.SentAt.Equal(w.now) || h.Leased {
		t.Errorf("holding %+v", h)
	}
	if secret.Resource != "disks/vm-1" || secret.Receipt.Promise == "" || secret.JWE == "" || !secret.PreviousRetiresAt.IsZero() {
		t.Errorf("secret %+v", secret)
	}
	later(time.Minute)
	st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-1", Version: "1"}}
	eventually(t, "the acknowledgement is written down", func() bool {
		h := book.get(t, s.ID).Holdings[0]
		return h.Version == "1" && h.Pending == "" && h.AcknowledgedAt.Equal(w.now.Add(time.Minute))
	})
	hangUp()
	if got, want := book.get(t, s.ID).ExpiresAt, w.now.Add(4*time.Minute); !got.Equal(want) {
		t.Errorf("after the stream broke the session waits until %s, want %s", got, want)
	}
}

// TestAcknowledge: only the version on its way is taken for the one in use.
func TestAcknowledge(t *testing.T) {
	for name, tt := range map[string]struct {
		ack   broker.Acknowledgement
		holds string
		ends  bool
	}{
		"the one sent":      {broker.Acknowledgement{Resource: "disks/vm-1", Version: "1"}, "1", false},
		"one never sent":    {broker.Acknowledgement{Resource: "disks/vm-1", Version: "9"}, "", false},
		"of nothing":        {broker.Acknowledgement{Resource: "disks/vm-1"}, "", false},
		"one of another":    {broker.Acknowledgement{Resource: "disks/vm-2", Version: "1"}, "", true},
		"without a message": {broker.Acknowledgement{}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			r := &rotated{version: "1"}
			w, a, book, _ := sessionWorld(t, r)
			st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
			s, _ := st.started(t)
			m := broker.WatchMessage{Acknowledge: &tt.ack}
			if tt.ack == (broker.Acknowledgement{}) {
				m = broker.WatchMessage{}
			}
			st.in <- m
			if tt.ends {
				st.ended(t, broker.EndDenied)
				return
			}
			if tt.holds != "" {
				eventually(t, "the acknowledgement is written down", func() bool { return book.get(t, s.ID).Holdings[0].Version == tt.holds })
			}
			r.rotate("2")
			if u := st.next(t); u.Secret == nil || u.Secret.Version != "2" {
				t.Fatalf("got %+v", u)
			}
			if h := book.get(t, s.ID).Holdings[0]; h.Version != tt.holds || h.Pending != "2" {
				t.Errorf("holding %+v", h)
			}
		})
	}
}

// TestGrace: the version in use may be used for a while after the next was sent, and both sides know until when.
func TestGrace(t *testing.T) {
	r := &rotated{version: "1"}
	w, a, book, later := sessionWorld(t, r)
	c, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks", Grace: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	s, first := st.started(t)
	if !first.PreviousRetiresAt.IsZero() {
		t.Errorf("the first version retires one at %s", first.PreviousRetiresAt)
	}
	st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-1", Version: "1"}}
	eventually(t, "the acknowledgement is written down", func() bool { return book.get(t, s.ID).Holdings[0].Version == "1" })
	later(time.Minute)
	r.rotate("2")
	u := st.next(t)
	if want := w.now.Add(61 * time.Minute); u.Secret == nil || !u.Secret.PreviousRetiresAt.Equal(want) || !book.get(t, s.ID).Holdings[0].RetiresAt.Equal(want) {
		t.Fatalf("got %+v", u)
	}
	st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-1", Version: "2"}}
	eventually(t, "nothing retires", func() bool { return book.get(t, s.ID).Holdings[0].RetiresAt.IsZero() })
}

// TestSessionExpires: new evidence is asked for in time, and without it the session ends.
func TestSessionExpires(t *testing.T) {
	w, a, book, later := sessionWorld(t, &rotated{version: "1"}, func(c *broker.Config) { c.SessionTTL = 3 * time.Minute })
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	s, _ := st.started(t)
	later(119 * time.Second)
	select {
	case u := <-st.out:
		t.Fatalf("told %+v before two thirds of the time are over", u)
	case <-time.After(50 * time.Millisecond):
	}
	later(time.Second)
	u := st.next(t)
	if u.Reattest == nil || u.Reattest.Reason != broker.ReattestExpires || !u.Reattest.Deadline.Equal(s.ExpiresAt) || len(u.Reattest.Nonce) != broker.NonceSize {
		t.Fatalf("got %+v", u)
	}
	later(time.Minute)
	st.ended(t, broker.EndExpired)
	eventually(t, "the session is forgotten", func() bool {
		_, err := book.GetSession(t.Context(), s.ID)
		return errors.Is(err, broker.ErrNoSecret)
	})
}

// TestReattestWithOthers: fresh evidence within a session is the same guest's, for the same resources.
func TestReattestWithOthers(t *testing.T) {
	for name, change := range map[string]func(*world, *attempt){
		"key": func(w *world, a *attempt) {
			o := w.attempt(t)
			a.req.PublicKey, a.bind.PublicKey = o.req.PublicKey, o.req.PublicKey
		},
		"resources": func(_ *world, a *attempt) {
			a.req.Resources = []string{"disks/vm-2"}
			a.bind.Resources = a.req.Resources
		},
		"measurement": func(_ *world, a *attempt) { a.options.Measurement = teesim.Measurement("evil") },
	} {
		t.Run(name, func(t *testing.T) {
			w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
			st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
			st.started(t)
			b := *a
			change(w, &b)
			st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.again(t, &b).req}}
			st.ended(t, broker.EndDenied)
		})
	}
}

// TestWatchRefuses what cannot start a session.
func TestWatchRefuses(t *testing.T) {
	sub := func(a *attempt) broker.WatchMessage {
		return broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}
	}
	t.Run("no sessions", func(t *testing.T) {
		w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
		w.cfg.Sessions = nil
		w.Broker, _ = broker.New(w.cfg)
		if err := w.refused(t, sub(a)); !errors.Is(err, broker.ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("no versions", func(t *testing.T) {
		w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
		w.cfg.Versions = nil
		w.Broker, _ = broker.New(w.cfg)
		if err := w.refused(t, sub(a)); !errors.Is(err, broker.ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("acknowledges first", func(t *testing.T) {
		w, _, _, _ := sessionWorld(t, &rotated{version: "1"})
		if err := w.refused(t, broker.WatchMessage{Acknowledge: &broker.Acknowledgement{}}); !errors.Is(err, broker.ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("says nothing", func(t *testing.T) {
		w, _, _, _ := sessionWorld(t, &rotated{version: "1"})
		if err := w.refused(t); err == nil {
			t.Error("no error")
		}
	})
	t.Run("not ours", func(t *testing.T) {
		var events []broker.Event
		w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
		w.cfg.Observe = func(_ context.Context, e broker.Event) { events = append(events, e) }
		w.Broker, _ = broker.New(w.cfg)
		forged := *a
		forged.req.Nonce = slices.Clone(a.req.Nonce)
		forged.req.Nonce[20] ^= 1
		if err := w.refused(t, sub(&forged)); !errors.Is(err, broker.ErrChallenge) {
			t.Error(err)
		}
		a.options.Measurement = teesim.Measurement("evil")
		other := *a
		other.bind.Resources = []string{"disks/vm-9"}
		if err := w.refused(t, sub(w.again(t, &other))); !errors.Is(err, broker.ErrDenied) {
			t.Error(err)
		}
		if len(events) != 2 || events[0].Stage != broker.StageAdmit || events[0].Outcome != broker.Denied || events[0].Err == nil || events[1].Stage != broker.StageVerify || events[1].Reason != attest.ReasonBinding {
			t.Errorf("events %+v", events)
		}
	})
	t.Run("too many", func(t *testing.T) {
		w, a, _, _ := sessionWorld(t, &rotated{version: "1"}, func(c *broker.Config) { c.MaxSessions = 1 })
		st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
		st.started(t)
		if n := w.Watching(); n != 1 {
			t.Errorf("%d sessions", n)
		}
		for range 2 { // what was refused takes no place
			if err := w.refused(t, sub(w.again(t, a))); !errors.Is(err, broker.ErrUnavailable) || w.Watching() != 1 {
				t.Errorf("%v, %d sessions", err, w.Watching())
			}
		}
		hangUp()
		if n := w.Watching(); n != 0 {
			t.Errorf("%d sessions", n)
		}
		st, _ = w.subscribe(t, broker.Subscription{Request: w.again(t, a).req})
		st.started(t)
	})
	t.Run("stopped", func(t *testing.T) {
		w, a, book, _ := sessionWorld(t, &rotated{version: "1"})
		st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
		s, _ := st.started(t)
		w.Stop()
		st.ended(t, broker.EndMoved)
		book.get(t, s.ID) // to go on with elsewhere
		st, _ = w.subscribe(t, broker.Subscription{Request: w.again(t, a).req})
		st.started(t)
		st.ended(t, broker.EndMoved)
	})
	t.Run("drained", func(t *testing.T) {
		w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
		st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
		s, _ := st.started(t)
		w.Drain()
		st.ended(t, broker.EndMoved)
		st, _ = w.subscribe(t, broker.Subscription{Request: w.again(t, a).req, Session: s.ID})
		if again, _ := st.started(t); !again.Resumed {
			t.Error("the session did not go on")
		}
	})
}

// brokenSessions fails as an etcd without a leader does.
type brokenSessions struct {
	fakeSessions
	get, put atomic.Bool
}

func (b *brokenSessions) PutSession(ctx context.Context, s broker.Session) error {
	if b.put.Load() {
		return errors.New("no leader")
	}
	return b.fakeSessions.PutSession(ctx, s)
}

func (b *brokenSessions) GetSession(ctx context.Context, id string) (broker.Session, error) {
	if b.get.Load() {
		return broker.Session{}, errors.New("no leader")
	}
	return b.fakeSessions.GetSession(ctx, id)
}

// TestSessionBookIsDown: a session that cannot be read or written down does not start, and no secret is sent.
func TestSessionBookIsDown(t *testing.T) {
	w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
	book := &brokenSessions{}
	w.cfg.Sessions = book
	catalog := w.Catalog()
	w.Broker, _ = broker.New(w.cfg)
	w.SetCatalog(catalog)
	book.put.Store(true)
	if err := w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("cannot be written: %v", err)
	}
	withheld(t, w.records(), broker.Failed)
	book.put.Store(false)
	book.get.Store(true)
	if err := w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.again(t, a).req, Session: "S"}}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("cannot be read: %v", err)
	}
}

// TestGuestClosesItsStream: a guest that is done for now can go on with its session.
func TestGuestClosesItsStream(t *testing.T) {
	w, a, book, _ := sessionWorld(t, &rotated{version: "1"})
	st := &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}
	st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}
	done := make(chan error)
	go func() { done <- w.Watch(t.Context(), st) }()
	s, _ := st.started(t)
	close(st.in)
	if err := <-done; err != nil {
		t.Error(err)
	}
	select {
	case u := <-st.out:
		t.Errorf("told %+v", u)
	default:
	}
	if got := book.get(t, s.ID); got.Holdings[0].Pending != "1" || !got.ExpiresAt.Equal(w.now.Add(time.Minute)) {
		t.Errorf("session %+v", got)
	}
}

// unread is a stream whose guest reads no more once it was told so much. As with gRPC, only the end of the call ends a Send.
type unread struct {
	*fakeStream
	reads atomic.Int32
	over  chan struct{}
}

func (u *unread) Send(m broker.WatchUpdate) error {
	if u.reads.Add(-1) < 0 {
		<-u.over
		return io.ErrClosedPipe
	}
	return u.fakeStream.Send(m)
}

// TestGuestThatDoesNotRead loses its stream after a while, and no more: it holds nothing up here, and can come back to its session.
func TestGuestThatDoesNotRead(t *testing.T) {
	for reads, what := range []string{"nothing", "the start", "the start and one secret"} {
		t.Run("has read "+what, func(t *testing.T) {
			l := newLeaseWorld(t)
			synctest.Test(t, func(t *testing.T) {
				l.restart(t)
				st := &unread{&fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}, atomic.Int32{}, make(chan struct{})}
				st.reads.Store(int32(reads))
				st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: l.guest(t, "db/orders", "disks/vm-1").req}}
				done := make(chan error, 1)
				go func() { done <- l.Watch(t.Context(), st) }()
				time.Sleep(30*time.Second - time.Millisecond)
				synctest.Wait()
				if n := l.Watching(); n != 1 {
					t.Errorf("%d sessions", n)
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				select {
				case err := <-done:
					if err == nil || errors.Is(err, broker.ErrDenied) || l.Watching() != 0 {
						t.Errorf("%v, %d sessions", err, l.Watching())
					}
				default:
					t.Error("it still watches")
				}
				if s := l.sessions.only(t); time.Until(s.ExpiresAt) != time.Minute || len(l.vault.owners()) != 1 {
					t.Errorf("session %+v, owners %v", s, l.vault.owners())
				}
				close(st.over)
				close(st.in)
			})
		})
	}
}

// TestSessionEvents: an operator sees where a session, and each push in it, ended.
func TestSessionEvents(t *testing.T) {
	events := make(chan broker.Event, 10)
	r := &rotated{version: "1"}
	src := &switchSource{rotated: r}
	w, a, _, later := sessionWorld(t, r, func(c *broker.Config) { c.SessionTTL = 1000 * time.Hour })
	w.cfg.Observe = func(_ context.Context, e broker.Event) { events <- e }
	w.cfg.Sources = map[string]broker.Source{"local": src}
	catalog := w.Catalog()
	w.Broker, _ = broker.New(w.cfg)
	w.SetCatalog(catalog)
	next := func(stage broker.Stage, outcome broker.Outcome) {
		t.Helper()
		select {
		case e := <-events:
			if e.Stage != stage || e.Outcome != outcome || e.Type != attest.TypeSNP || e.RecordID == "" || (e.Err == nil) != (outcome == broker.Released) {
				t.Errorf("event %+v, want %s %s", e, stage, outcome)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no event, want %s %s", stage, outcome)
		}
	}
	src.down.Store(true)
	if err := w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}); !errors.Is(err, broker.ErrUnavailable) {
		t.Fatal(err)
	}
	next(broker.StageFetch, broker.Failed)
	src.down.Store(false)
	st, _ := w.subscribe(t, broker.Subscription{Request: w.again(t, a).req})
	st.started(t)
	next(broker.StageReply, broker.Released)
	src.down.Store(true)
	r.rotate("2")
	next(broker.StageFetch, broker.Failed)
	src.down.Store(false)
	eventually(t, "it is tried again", func() bool {
		later(5 * time.Second)
		select {
		case u := <-st.out:
			if u.Secret == nil || u.Secret.Version != "2" {
				t.Fatalf("got %+v", u)
			}
			return true
		default:
			return false
		}
	})
	next(broker.StageReply, broker.Released)
	st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.again(t, a).req}}
	st.start(t)
	next(broker.StageReply, broker.Released)
	if n := len(w.records()); n != 5 {
		t.Errorf("%d records", n)
	}
}

// switchSource is down when the test says so.
type switchSource struct {
	*rotated
	down atomic.Bool
}

func (s *switchSource) Fetch(ctx context.Context, g *broker.Grant) (broker.Secret, error) {
	if s.down.Load() {
		return broker.Secret{}, errors.New("vault is sealed")
	}
	return s.rotated.Fetch(ctx, g)
}

// TestSecondStream: a session belongs to its last stream; the end of an earlier one leaves it alone.
func TestSecondStream(t *testing.T) {
	w, a, book, later := sessionWorld(t, &rotated{version: "1"})
	st, first := w.subscribe(t, broker.Subscription{Request: a.req})
	s, _ := st.started(t)
	later(time.Second)
	st, second := w.subscribe(t, broker.Subscription{Request: w.again(t, a).req, Session: s.ID})
	again, _ := st.started(t)
	if !again.Resumed || again.ID != s.ID {
		t.Fatalf("got %+v", again)
	}
	first()
	if got := book.get(t, s.ID); !got.ExpiresAt.Equal(again.ExpiresAt) {
		t.Errorf("the session ends at %s, not at %s", got.ExpiresAt, again.ExpiresAt)
	}
	second()
	if got := book.get(t, s.ID); !got.ExpiresAt.Equal(w.now.Add(time.Second + time.Minute)) {
		t.Errorf("the session waits until %s", got.ExpiresAt)
	}
}

// TestPinnedVersion: nobody is told of versions that the catalog does not give out.
func TestPinnedVersion(t *testing.T) {
	r := &rotated{version: "1"}
	w, a, _, _ := sessionWorld(t, r)
	c, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks", PinVersion: 1}})
	if err != nil {
		t.Fatal(err)
	}
	w.SetCatalog(c)
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	st.started(t)
	r.rotate("2")
	st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.again(t, a).req}} // answered after what the rotation did
	if u := st.next(t); u.Started == nil {
		t.Errorf("got %+v", u)
	}
	if n := len(r.wakes); n != 0 {
		t.Errorf("%d followers", n)
	}
}

// TestSecretLostInItsSource: a workload that runs keeps what its source has no more,
// also over fresh evidence, and gets what is written later; a new one gets nothing.
func TestSecretLostInItsSource(t *testing.T) {
	r := &rotated{version: "1"}
	w, a, book, later := sessionWorld(t, r)
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	session, _ := st.started(t)
	st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-1", Version: "1"}}
	eventually(t, "it holds version 1", func() bool { return book.get(t, session.ID).Holdings[0].Version == "1" })
	r.mu.Lock()
	r.answer = func(broker.Granted, string) (broker.Secret, error) {
		return broker.Secret{}, fmt.Errorf("version 1 is deleted: %w", broker.ErrNoSecret)
	}
	r.mu.Unlock()
	later(time.Minute)
	st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.again(t, a).req}}
	if u := st.next(t); u.Started == nil || u.Started.ID != session.ID {
		t.Fatalf("got %+v", u)
	}
	if h := book.get(t, session.ID).Holdings[0]; h.Version != "1" {
		t.Errorf("it holds %q", h.Version)
	}
	if err := w.refused(t, broker.WatchMessage{Subscribe: &broker.Subscription{Request: w.again(t, a).req}}); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("a new workload: %v", err)
	}
	r.mu.Lock()
	r.answer = nil
	r.mu.Unlock()
	r.rotate("2")
	for {
		u := st.next(t)
		if u.Ended != nil {
			t.Fatalf("ended: %v", *u.Ended)
		}
		if u.Secret != nil {
			break // sealed: which one it is, the record says
		}
	}
	if rs := w.records(); rs[len(rs)-1].Resources[0].Version != "2" {
		t.Errorf("the last record is of version %q", rs[len(rs)-1].Resources[0].Version)
	}
}

// TestSameNumberInANewSession: a guest that comes back in another session with version 1 of a secret that was deleted with
// its history, and written again, has another version 1. Nobody knows which: it is sent once, and then not again.
func TestSameNumberInANewSession(t *testing.T) {
	r := &rotated{version: "1"}
	w, a, book, _ := sessionWorld(t, r)
	edition := "written first"
	r.mu.Lock()
	r.answer = func(broker.Granted, string) (broker.Secret, error) {
		return broker.Secret{Value: []byte("value " + edition), Version: "1", Edition: edition}, nil
	}
	r.mu.Unlock()
	again := func(session string) (sent bool) {
		t.Helper()
		st, hangUp := w.subscribe(t, broker.Subscription{Request: w.again(t, a).req, Session: session, Held: map[string]string{"disks/vm-1": "1"}})
		defer hangUp()
		u := st.next(t)
		if u.Started == nil {
			t.Fatalf("got %+v", u)
		}
		id := u.Started.ID
		if u.Started.Resumed != (session != "") {
			t.Fatalf("resumed: %v", u.Started.Resumed)
		}
		sent = !w.records()[len(w.records())-1].Resources[0].Unchanged
		if sent {
			if u := st.next(t); u.Secret == nil || u.Secret.Version != "1" {
				t.Fatalf("got %+v", u)
			}
			st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-1", Version: "1"}}
			eventually(t, "it is acknowledged", func() bool { return book.get(t, id).Holdings[0].Pending == "" })
		}
		return sent
	}
	st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
	session, _ := st.started(t)
	st.in <- broker.WatchMessage{Acknowledge: &broker.Acknowledgement{Resource: "disks/vm-1", Version: "1"}}
	eventually(t, "it holds version 1", func() bool { return book.get(t, session.ID).Holdings[0].Version == "1" })
	hangUp()
	if again(session.ID) {
		t.Error("sent again in the session that knows which one the guest has")
	}
	r.mu.Lock()
	edition = "written again"
	r.mu.Unlock()
	if !again("") {
		t.Error("a new session takes one version 1 for the other")
	}
	if !again(session.ID) {
		t.Error("the old session does as well")
	}
	if again(session.ID) {
		t.Error("sent twice")
	}
}
