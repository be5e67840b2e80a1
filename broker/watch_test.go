package broker_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teetest"
)

// fakeSessions keeps sessions in memory; fakeVersions knows of no rotation.
type fakeSessions struct{ m sync.Map }

func (f *fakeSessions) PutSession(_ context.Context, s broker.Session) error {
	s.Holdings = slices.Clone(s.Holdings) // as if it was written down
	f.m.Store(s.ID, s)
	return nil
}

func (f *fakeSessions) GetSession(_ context.Context, id string) (broker.Session, error) {
	if v, ok := f.m.Load(id); ok {
		s := v.(broker.Session)
		s.Holdings = slices.Clone(s.Holdings)
		return s, nil
	}
	return broker.Session{}, broker.ErrNoSecret
}

func (f *fakeSessions) DeleteSession(_ context.Context, id string) error {
	f.m.Delete(id)
	return nil
}

type fakeVersions struct{}

func (fakeVersions) Follow(broker.CatalogEntry, chan<- struct{}) func() { return func() {} }
func (fakeVersions) Current(broker.CatalogEntry) string                 { return "" }

// fakeStream is a guest that the test plays.
type fakeStream struct {
	in  chan broker.WatchMessage
	out chan broker.WatchUpdate
}

func (s *fakeStream) Recv() (broker.WatchMessage, error) {
	m, ok := <-s.in
	if !ok {
		return m, io.EOF
	}
	return m, nil
}

func (s *fakeStream) Send(u broker.WatchUpdate) error { s.out <- u; return nil }

func (s *fakeStream) next(t *testing.T) broker.WatchUpdate {
	t.Helper()
	select {
	case u := <-s.out:
		return u
	case <-time.After(time.Minute):
		t.Fatal("the guest was told nothing")
		return broker.WatchUpdate{}
	}
}

// swap is collateral that changes under a running session.
type swap struct{ now atomic.Value }

func (s *swap) Get(ctx context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	return s.now.Load().(teetest.MapCollateral).Get(ctx, ref)
}

// downgraded is a verifier to which the vendor's word on the platform gets worse.
type downgraded struct {
	attest.Verifier
	worse *atomic.Bool
}

func (d downgraded) Verify(ctx context.Context, e attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	claims, err := d.Verifier.Verify(ctx, e, b, c, now)
	if d.worse.Load() {
		claims.TCB.Status, claims.TCB.Advisories = attest.TCBOutOfDate, []string{"INTEL-SA-00000"}
	}
	return claims, err
}

// TestCollateralChangesUnderASession: the session's evidence is held against
// the collateral of the day. A platform that got worse is asked for new evidence,
// a revoked one loses its session.
func TestCollateralChangesUnderASession(t *testing.T) {
	start := func(t *testing.T) (w *world, st *fakeStream, coll *swap, worse *atomic.Bool, later func()) {
		t.Helper()
		coll, worse = &swap{}, &atomic.Bool{}
		var offset atomic.Int64
		w = newWorld(t, func(c *broker.Config) {
			good := c.Collateral.(teetest.MapCollateral)
			coll.now.Store(good)
			base := c.Now()
			c.Collateral, c.Sessions, c.Versions, c.Observe = coll, &fakeSessions{}, fakeVersions{}, nil
			c.Now = func() time.Time { return base.Add(time.Duration(offset.Load())) }
			for i, v := range c.Verifiers {
				c.Verifiers[i] = downgraded{v, worse}
			}
		})
		a := w.attempt(t)
		var err error
		if a.req.Evidence, err = w.device.Evidence(a.bind.Digest64(), a.options); err != nil {
			t.Fatal(err)
		}
		st = &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Watch(ctx, st) }()
		t.Cleanup(func() { cancel(); <-done })
		st.in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}
		if st.next(t).Started == nil || st.next(t).Secret == nil {
			t.Fatal("the session did not start")
		}
		return w, st, coll, worse, func() {
			offset.Store(int64(8 * time.Minute)) // past the time to look again, before that for new evidence
			w.Changed()
		}
	}
	t.Run("worse", func(t *testing.T) {
		_, st, _, worse, later := start(t)
		worse.Store(true)
		later()
		if u := st.next(t); u.Reattest == nil || u.Reattest.Reason != broker.ReattestCollateral {
			t.Errorf("got %+v", u)
		}
	})
	t.Run("revoked", func(t *testing.T) {
		w, st, coll, _, later := start(t)
		leaf, err := x509.ParseCertificate(w.device.Leaf())
		if err != nil {
			t.Fatal(err)
		}
		revoked, err := w.root.Collateral(w.now, leaf.SerialNumber)
		if err != nil {
			t.Fatal(err)
		}
		coll.now.Store(teetest.MapCollateral(revoked))
		later()
		if u := st.next(t); u.Ended == nil || *u.Ended != broker.EndDenied {
			t.Errorf("got %+v", u)
		}
		w.log.mu.Lock()
		defer w.log.mu.Unlock()
		last := w.log.records[len(w.log.records)-1]
		if last.Outcome != broker.Denied || !strings.Contains(last.Error, "verify evidence again") || last.Session == "" {
			t.Errorf("record %+v", last)
		}
	})
	t.Run("missing", func(t *testing.T) { // the vendor's service is down: the session goes on
		_, st, coll, _, later := start(t)
		coll.now.Store(teetest.MapCollateral{})
		later()
		select {
		case u := <-st.out:
			t.Errorf("got %+v", u)
		case <-time.After(3 * time.Second):
		}
	})
}

// rotated is a source whose secret has a version that the test sets, and the brokers' word for it.
type rotated struct {
	mu      sync.Mutex
	version string
	onFetch func()
	follow  func() // runs before a follower is known
	wakes   []chan<- struct{}
	answer  func(g broker.Granted, v string) (broker.Secret, error) // in place of an ordinary secret; guarded by mu
}

// rotate sets the version and tells who follows it.
func (r *rotated) rotate(v string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version = v
	for _, wake := range r.wakes {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func (r *rotated) set(v string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version = v
}

func (r *rotated) Fetch(_ context.Context, g *broker.Grant) (broker.Secret, error) {
	what, err := g.Redeem()
	if err != nil {
		return broker.Secret{}, err
	}
	v := r.Current(broker.CatalogEntry{})
	if r.onFetch != nil {
		r.onFetch()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answer != nil {
		return r.answer(what, v)
	}
	return broker.Secret{Value: []byte("secret " + v), Version: v}, nil
}

func (r *rotated) Current(broker.CatalogEntry) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version
}

func (r *rotated) Follow(_ broker.CatalogEntry, wake chan<- struct{}) func() {
	if r.follow != nil {
		r.follow()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakes = append(r.wakes, wake)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.wakes = slices.DeleteFunc(r.wakes, func(w chan<- struct{}) bool { return w == wake })
	}
}

// watchWorld is a broker and a guest that can subscribe to it.
func watchWorld(t *testing.T, r *rotated, change ...func(*broker.Config)) (*world, *attempt) {
	t.Helper()
	w := newWorld(t, append(change, func(c *broker.Config) {
		c.Sources = map[string]broker.Source{"local": r, "vault": r}
		c.Versions, c.Observe, c.Now = r, nil, time.Now
		if c.Sessions == nil {
			c.Sessions = &fakeSessions{}
		}
	})...)
	a := w.attempt(t)
	var err error
	if a.req.Evidence, err = w.device.Evidence(a.bind.Digest64(), a.options); err != nil {
		t.Fatal(err)
	}
	return w, a
}

// subscribe opens a stream; hangUp ends it.
func (w *world) subscribe(t *testing.T, s broker.Subscription) (st *fakeStream, hangUp func()) {
	t.Helper()
	st = &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Watch(ctx, st) }()
	var once sync.Once
	hangUp = func() { once.Do(func() { cancel(); <-done; close(st.in) }) }
	t.Cleanup(hangUp)
	st.in <- broker.WatchMessage{Subscribe: &s}
	return st, hangUp
}

// TestRotationWhileSubscribing: a version that appears after the guest's was read, and before anybody is told of news, reaches it.
func TestRotationWhileSubscribing(t *testing.T) {
	r := &rotated{version: "1"}
	r.follow = sync.OnceFunc(func() { r.set("2") })
	w, a := watchWorld(t, r)
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	if st.next(t).Started == nil {
		t.Fatal("no session")
	}
	for _, want := range []string{"1", "2"} {
		if u := st.next(t); u.Secret == nil || u.Secret.Version != want {
			t.Fatalf("got %+v, want version %s", u, want)
		}
	}
}

// TestChangeWhileSubscribing: a change of policy between the first decision and the wait for changes is noticed.
func TestChangeWhileSubscribing(t *testing.T) {
	r := &rotated{version: "1"}
	w, a := watchWorld(t, r)
	r.follow = sync.OnceFunc(func() { w.SetCatalog(nil) }) // the resource is gone
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	if st.next(t).Started == nil || st.next(t).Secret == nil {
		t.Fatal("no session")
	}
	if u := st.next(t); u.Ended == nil || *u.Ended != broker.EndDenied {
		t.Fatalf("got %+v", u)
	}
}

// TestVersionOnItsWay: what the guest does not say it has is sent again, and what it has is not, in the same session or a new one.
func TestVersionOnItsWay(t *testing.T) {
	for name, tt := range map[string]struct {
		held    map[string]string
		resumed bool
		sent    bool
	}{
		"lost with the stream":        {nil, true, true},
		"in use":                      {map[string]string{"disks/vm-1": "1"}, true, false},
		"an older one in use":         {map[string]string{"disks/vm-1": "0"}, true, true},
		"in use, of an ended session": {map[string]string{"disks/vm-1": "1"}, false, false},
		"lost, of an ended session":   {nil, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := &rotated{version: "1"}
			w, a := watchWorld(t, r)
			st, hangUp := w.subscribe(t, broker.Subscription{Request: a.req})
			session := st.next(t).Started.ID
			if st.next(t).Secret == nil {
				t.Fatal("no secret")
			}
			hangUp()
			again := w.again(t, a)
			if !tt.resumed {
				session = "ENDED"
			}
			st, _ = w.subscribe(t, broker.Subscription{Request: again.req, Session: session, Held: tt.held})
			if u := st.next(t); u.Started == nil || u.Started.Resumed != tt.resumed {
				t.Fatalf("got %+v", u)
			}
			r.set("2")
			w.Changed() // have it look again: what comes first is the answer
			u := st.next(t)
			if u.Secret == nil {
				t.Fatalf("got %+v", u)
			}
			if sent := u.Secret.Version == "1"; sent != tt.sent {
				t.Errorf("version %s came first", u.Secret.Version)
			}
		})
	}
}

// again is fresh evidence by the same guest.
func (w *world) again(t *testing.T, a *attempt) *attempt {
	t.Helper()
	b := *a
	nonce, _, err := w.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	b.req.Nonce, b.bind.Nonce = nonce, nonce
	if b.req.Evidence, err = w.device.Evidence(b.bind.Digest64(), b.options); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestFailedPushIsNotLost: a version whose record failed was not sent, so it comes later.
func TestFailedPushIsNotLost(t *testing.T) {
	l := &faultyLog{}
	r := &rotated{version: "1"}
	w, a := watchWorld(t, r, func(c *broker.Config) { c.Log = l })
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	if st.next(t).Started == nil || st.next(t).Secret == nil {
		t.Fatal("no session")
	}
	var failed atomic.Bool
	l.mu.Lock()
	l.answer = func(rec broker.Record) error {
		if rec.Outcome == broker.Released && failed.CompareAndSwap(false, true) {
			return errors.New("disk full")
		}
		return nil
	}
	l.mu.Unlock()
	r.set("2")
	w.Changed()
	if u := st.next(t); u.Secret == nil || u.Secret.Version != "2" || !failed.Load() {
		t.Fatalf("got %+v, log failed: %v", u, failed.Load())
	}
}
