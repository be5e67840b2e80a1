package broker_test

import (
	"context"
	"crypto/x509"
	"io"
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
	f.m.Store(s.ID, s)
	return nil
}

func (f *fakeSessions) GetSession(_ context.Context, id string) (broker.Session, error) {
	if s, ok := f.m.Load(id); ok {
		return s.(broker.Session), nil
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
	case <-time.After(10 * time.Second):
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
