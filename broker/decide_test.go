package broker_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
)

// TestHowLong: a grant says for how long its secret is, which the policy decides, and the cap, which is the shorter of policy's and catalog's.
func TestHowLong(t *testing.T) {
	for name, tt := range map[string]struct {
		resource         string
		policy, ttl, cap time.Duration
	}{
		"the policy is the longer one":  {"db/orders", time.Hour, time.Hour, 5 * time.Minute},
		"the policy is the shorter one": {"db/orders", time.Minute, time.Minute, time.Minute},
		"only the catalog says":         {"db/orders", 0, 5 * time.Minute, 5 * time.Minute},
		"only the policy says":          {"static/x", time.Hour, time.Hour, time.Hour},
		"neither does":                  {"static/x", 0, 5 * time.Minute, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeaseWorld(t)
			l.decisions.ttl = tt.policy
			if _, err := l.send(t, l.guest(t, tt.resource)); err != nil {
				t.Fatal(err)
			}
			if g := l.vault.granted[0]; g.TTL != tt.ttl || g.Cap != tt.cap {
				t.Errorf("granted for %s, at most %s; want %s, %s", g.TTL, g.Cap, tt.ttl, tt.cap)
			}
		})
	}
}

// TestUnnameableResource: a resource whose name must not become a certificate's is denied, alone and beside others.
func TestUnnameableResource(t *testing.T) {
	for name, resources := range map[string][]string{"alone": {"certs/PAY"}, "first": {"certs/PAY", "certs/pay"}, "last": {"certs/pay", "certs/PAY"}} {
		t.Run(name, func(t *testing.T) {
			l := newLeaseWorld(t)
			c, err := broker.NewCatalog([]broker.CatalogEntry{{
				Pattern: "certs/{vm}", Source: "vault", Kind: broker.KindPKI, Key: "role", Policy: "any", Options: map[string]string{"common_name": "{vm}.corp"},
			}})
			if err != nil {
				t.Fatal(err)
			}
			l.SetCatalog(c)
			resp, err := l.send(t, l.guest(t, resources...))
			if !errors.Is(err, broker.ErrDenied) || len(resp.Secrets) > 0 || l.vault.fetches != 0 || !strings.Contains(err.Error(), "capital letters") {
				t.Fatalf("%d secrets after %d reads: %v", len(resp.Secrets), l.vault.fetches, err)
			}
			rules := 0
			for _, r := range l.records()[0].Resources {
				if r.Path == "certs/PAY" && len(r.Reasons) == 1 && r.Reasons[0].Rule == "resource_name" && r.Policy == "any" && !r.Allow {
					rules++
				}
			}
			if rules != 1 {
				t.Errorf("record %+v", l.records()[0])
			}
		})
	}
}

// TestRevokedPolicyReadsNothing: what a revoked policy allows is not read from its source either.
func TestRevokedPolicyReadsNothing(t *testing.T) {
	var last broker.Event
	l := newLeaseWorld(t, func(c *broker.Config) { c.Observe = func(_ context.Context, e broker.Event) { last = e } })
	l.revoked.add(broker.Subject{Kind: broker.RevokePolicy, Value: anyPolicy})
	if _, err := l.send(t, l.guest(t, "db/orders", "disks/vm-1")); !errors.Is(err, broker.ErrDenied) {
		t.Fatal(err)
	}
	if l.vault.fetches+l.vault.made+l.source.touched != 0 {
		t.Errorf("%d reads, %d owners, %d disks", l.vault.fetches, l.vault.made, l.source.touched)
	}
	if last.Stage != broker.StageDecide {
		t.Errorf("event %+v", last)
	}
}

// TestRevokedSessionReadsNothing: the session that a release's leases would belong to counts from the first decision.
func TestRevokedSessionReadsNothing(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, s, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		w.revoked.add(broker.Subject{Kind: broker.RevokeSession, Value: s.ID})
		reads := 0
		w.answers(func(_ broker.Granted, v string) (broker.Secret, error) {
			reads++
			return broker.Secret{Value: []byte("x"), Version: v}, nil
		})
		w.r.rotate("2")
		st.ended(t, broker.EndDenied)
		if reads != 0 {
			t.Errorf("%d reads", reads)
		}
	})
}

// TestRealHardwareOnly: a broker that takes no simulated evidence takes the other.
func TestRealHardwareOnly(t *testing.T) {
	for _, simulated := range []bool{false, true} {
		l := newLeaseWorld(t, func(c *broker.Config) {
			cpu := theCPU
			cpu.Simulated, c.AllowSimulated = simulated, false
			c.Verifiers = []attest.Verifier{stated{attest.TypeSNP, map[byte]attest.Claims{'c': cpu}}}
		})
		if _, err := l.send(t, l.guest(t, "disks/vm-1")); errors.Is(err, broker.ErrDenied) != simulated || !simulated && err != nil {
			t.Errorf("simulated %v: %v", simulated, err)
		}
	}
}

// withKey is the attempt with a key of that suite.
func (a *attempt) withKey(t *testing.T, suite seal.Suite) *attempt {
	t.Helper()
	key, err := seal.GenerateKey(suite)
	if err != nil {
		t.Fatal(err)
	}
	a.key, a.req.KeyAlgorithm, a.req.PublicKey, a.req.OfferedSuites = key, string(suite), key.Public(), []string{string(suite)}
	a.bind.KeyAlgorithm, a.bind.PublicKey, a.bind.OfferedSuites = a.req.KeyAlgorithm, a.req.PublicKey, a.req.OfferedSuites
	return a
}

// TestRequirePQ: where the policy wants the hybrid wrap, a guest with a key for it gets its secret, and another does not.
func TestRequirePQ(t *testing.T) {
	for suite, allowed := range map[seal.Suite]bool{seal.Hybrid: true, seal.X25519: false} {
		w := newWorld(t, func(c *broker.Config) {
			c.Policy = fixedPolicy{broker.Decision{Allow: true, PolicyDigest: anyPolicy, Obligations: broker.Obligations{RequirePQ: true}}}
		})
		if _, err := w.send(t, w.attempt(t).withKey(t, suite)); allowed && err != nil || !allowed && !errors.Is(err, broker.ErrDenied) {
			t.Errorf("%s: %v", suite, err)
		}
	}
}

// TestWhatPolicyIsTold: the claims, the resource with its entry's labels, the request, the time, and where the chip was seen.
func TestWhatPolicyIsTold(t *testing.T) {
	for _, suite := range []seal.Suite{seal.Hybrid, seal.X25519} {
		in := &broker.PolicyInput{}
		w := newWorld(t, func(c *broker.Config) { c.Policy = keepInput{in} })
		c, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "any", Labels: map[string]string{"team": "pay"}}})
		if err != nil {
			t.Fatal(err)
		}
		w.SetCatalog(c)
		a := w.attempt(t).withKey(t, suite)
		a.req.Peer = netip.MustParseAddr("192.0.2.1")
		if _, err := w.send(t, a); err != nil {
			t.Fatal(err)
		}
		r, q := in.Resource, in.Request
		if in.Attestation.Type != attest.TypeSNP || !in.Attestation.Bound || r.Path != "disks/vm-1" || r.Policy != "any" || r.Params["vm"] != "vm-1" || r.Labels["team"] != "pay" ||
			len(q.Resources) != 1 || q.Resources[0] != "disks/vm-1" || q.KeyAlgorithm != string(suite) || q.PostQuantum != (suite == seal.Hybrid) ||
			!in.Time.Equal(w.now) || in.Time.Location() != time.UTC || in.Chip.Networks != 1 {
			t.Errorf("%s: told %+v", suite, in)
		}
	}
}

// TestSetVerifiers puts others in force: for new evidence, and against what running sessions have shown.
func TestSetVerifiers(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		st, _, _ := w.holds(t, w.guest(t, "disks/vm-1"))
		w.SetVerifiers(w.cfg.Verifiers, nil) // the same: nothing follows
		wait(5 * time.Second)
		st.quiet(t)
		w.SetVerifiers([]attest.Verifier{stated{attest.TypeNVIDIA, nil}, refusesAll{}}, nil)
		if ts := w.EvidenceTypes(); len(ts) != 2 || ts[0] != attest.TypeNVIDIA && ts[1] != attest.TypeNVIDIA {
			t.Errorf("types %v", ts)
		}
		wait(3 * time.Second)
		st.ended(t, broker.EndDenied)
		if rec := w.lastRecord(); rec.Outcome != broker.Denied || !strings.Contains(rec.Error, "verify evidence again") || rec.Session == "" {
			t.Errorf("record %+v", rec)
		}
		if _, err := w.send(t, w.guest(t, "disks/vm-1")); !errors.Is(err, broker.ErrDenied) {
			t.Errorf("new evidence: %v", err)
		}
		synctest.Wait()
		w.sessions.m.Range(func(id, _ any) bool { t.Errorf("session %s is left", id); return true })
	})
}

// refusesAll believes nothing.
type refusesAll struct{}

func (refusesAll) Type() attest.Type { return attest.TypeSNP }
func (refusesAll) Verify(context.Context, attest.Evidence, attest.Binding, attest.Collateral, time.Time) (attest.Claims, error) {
	return attest.Claims{}, attest.Errorf("snp.chain", attest.ReasonChain, "another root")
}

// hangs is a verifier that, once asked to, answers when its caller has gone.
type hangs struct {
	attest.Verifier
	on chan struct{}
}

func (h hangs) Verify(ctx context.Context, e attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	select {
	case <-h.on:
		<-ctx.Done()
		return attest.Claims{}, attest.Errorf("snp.chain", attest.ReasonChain, "interrupted")
	default:
		return h.Verifier.Verify(ctx, e, b, c, now)
	}
}

// TestStreamBreaksWhileVerifying: a guest whose network fails while its evidence is verified again can come back to its session.
func TestStreamBreaksWhileVerifying(t *testing.T) {
	on := make(chan struct{})
	watching(t, func(t *testing.T, w *watched) {
		_, s, hangUp := w.holds(t, w.guest(t, "disks/vm-1"))
		close(on)
		wait(8 * time.Minute)
		hangUp()
		w.sessions.get(t, s.ID)
		if rec := w.lastRecord(); rec.Outcome != broker.Released {
			t.Errorf("record %+v", rec)
		}
	}, func(c *broker.Config) { c.Verifiers[0] = hangs{c.Verifiers[0], on} })
}

// TestHowWatchEnds: what Watch returns says whether the guest left, or was cut off.
func TestHowWatchEnds(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		start := func(ctx context.Context, st broker.Stream, in chan broker.WatchMessage, a *attempt) chan error {
			in <- broker.WatchMessage{Subscribe: &broker.Subscription{Request: a.req}}
			done := make(chan error, 1)
			go func() { done <- w.Watch(ctx, st) }()
			synctest.Wait()
			return done
		}
		t.Log("cancelled")
		ctx, cancel := context.WithCancel(t.Context())
		st := &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}
		done := start(ctx, st, st.in, w.guest(t, "disks/vm-1"))
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		close(st.in)
		t.Log("does not read")
		slow := &unread{fakeStream: &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}, over: make(chan struct{})}
		slow.reads.Store(2)
		done = start(t.Context(), slow, slow.in, w.guest(t, "disks/vm-1"))
		w.r.rotate("2")
		if err := <-done; err == nil || errors.Is(err, broker.ErrDenied) || errors.Is(err, io.EOF) {
			t.Errorf("does not read: %v", err)
		}
		close(slow.over)
		close(slow.in)
		t.Log("expires")
		st = &fakeStream{make(chan broker.WatchMessage, 1), make(chan broker.WatchUpdate, 10)}
		done = start(t.Context(), st, st.in, w.guest(t, "disks/vm-1"))
		if err := <-done; err != nil {
			t.Errorf("expired: %v", err)
		}
		close(st.in)
	})
}

// TestSessionWithoutALeader: who names no session needs none to be read.
func TestSessionWithoutALeader(t *testing.T) {
	w, a, _, _ := sessionWorld(t, &rotated{version: "1"})
	book := &brokenSessions{}
	book.get.Store(true)
	w.cfg.Sessions = book
	catalog := w.Catalog()
	w.Broker, _ = broker.New(w.cfg)
	w.SetCatalog(catalog)
	st, _ := w.subscribe(t, broker.Subscription{Request: a.req})
	st.started(t)
}

// TestUnprovenHasAnID: a refusal has the id of its record, also where it left none because there are too many.
func TestUnprovenHasAnID(t *testing.T) {
	w := newWorld(t, func(c *broker.Config) { c.Verifiers = []attest.Verifier{talkative{says: "another root"}} })
	for range 200 {
		a := w.attempt(t)
		a.req.Evidence = attest.Evidence{Type: attest.TypeSNP, Report: []byte{1}}
		_, err := w.send(t, a)
		d, ok := errors.AsType[*broker.Denial](err)
		ev := w.events[len(w.events)-1]
		if !ok || len(d.ID) != 26 || ev.RecordID != d.ID {
			t.Fatalf("event %+v: %v", ev, err)
		}
	}
	if n := len(w.log.records); n == 0 || n == 200 {
		t.Errorf("%d records", n)
	}
	if rec := w.log.records[0]; rec.ID != w.events[0].RecordID {
		t.Errorf("record %s of event %s", rec.ID, w.events[0].RecordID)
	}
}

// TestEndOfLeasesIsNotRecorded: leases that are not allowed any more end, also where the log does not take it down.
func TestEndOfLeasesIsNotRecorded(t *testing.T) {
	kept(t, func(t *testing.T, l *leaseWorld) {
		l.log.mu.Lock()
		l.log.fault = errors.New("disk full")
		l.log.mu.Unlock()
		l.decisions.set(true, nil)
		l.Changed()
		synctest.Wait()
		if len(l.vault.owners()) > 0 || len(l.book.all()) > 0 {
			t.Errorf("still there: %v, %+v", l.vault.owners(), l.book.all())
		}
	})
}
