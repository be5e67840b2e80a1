package brokertest

import (
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// guest is a watching workload that notes what it was given.
type guest struct {
	mu   sync.Mutex
	got  []agent.Secret // copies
	fail bool           // refuse what comes
	news chan struct{}
	done chan error
	stop context.CancelFunc
}

func watch(t *testing.T, c *agent.Client, resources ...string) *guest {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	g := &guest{news: make(chan struct{}, 100), done: make(chan error, 1), stop: cancel}
	go func() {
		g.done <- c.Watch(ctx, resources, func(_ context.Context, s agent.Secret) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.fail {
				return errors.New("the guest's disk is full")
			}
			s.Value = append([]byte(nil), s.Value...)
			g.got = append(g.got, s)
			g.news <- struct{}{}
			return nil
		})
	}()
	t.Cleanup(cancel)
	return g
}

// next waits for the next version.
func (g *guest) next(t *testing.T, within time.Duration) agent.Secret {
	t.Helper()
	select {
	case <-g.news:
	case err := <-g.done:
		t.Fatalf("the watch ended: %v", err)
	case <-time.After(within):
		t.Fatal("no new version in time")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.got[len(g.got)-1-len(g.news)]
}

// ended waits for the end of the watch.
func (g *guest) ended(t *testing.T, within time.Duration) error {
	t.Helper()
	select {
	case err := <-g.done:
		return err
	case <-time.After(within):
		t.Fatal("the watch goes on")
	}
	return nil
}

func (g *guest) quiet(t *testing.T, for_ time.Duration) {
	t.Helper()
	select {
	case <-g.news:
		t.Fatalf("was given %+v", g.got[len(g.got)-1].Version)
	case err := <-g.done:
		t.Fatalf("the watch ended: %v", err)
	case <-time.After(for_):
	}
}

func (b *Broker) put(t *testing.T, key, value string) {
	t.Helper()
	if _, err := b.Admin.PutSecret(t.Context(), &pb.PutSecretRequest{Key: key, Value: []byte(value)}); err != nil {
		t.Fatal(err)
	}
}

func (b *Broker) holders(t *testing.T, resource string) *pb.ListHoldersResponse {
	t.Helper()
	r, err := b.Admin.ListHolders(t.Context(), &pb.ListHoldersRequest{Resource: resource})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	awaited(t, time.Minute, what, ok)
}

func awaited(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(25 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// TestRotationReachesRunningWorkloads: the job of issue 3.
func TestRotationReachesRunningWorkloads(t *testing.T) {
	b := Start(t, nil)
	b.put(t, "db/orders", "one")
	g := watch(t, b.Client(t, teesim.ReportOptions{}), "db/orders")
	first := g.next(t, 10*time.Second)
	if string(first.Value) != "one" {
		t.Fatalf("got %q", first.Value)
	}
	eventually(t, "the holder is listed", func() bool {
		h := b.holders(t, "db/orders").GetHolders()
		return len(h) == 1 && h[0].GetVersion() == first.Version && h[0].GetPendingVersion() == "" && h[0].GetSimulated()
	})
	for _, value := range []string{"two", "three"} {
		b.put(t, "db/orders", value)
		s := g.next(t, 2*time.Second)
		if string(s.Value) != value || s.Version == first.Version {
			t.Fatalf("got %q version %s", s.Value, s.Version)
		}
	}
	// What is not rotated is not sent again.
	b.put(t, "db/users", "x")
	g.quiet(t, 1500*time.Millisecond)

	// A guest that cannot use a version does not count as its holder; it gets the next one.
	g.mu.Lock()
	g.fail = true
	g.mu.Unlock()
	b.put(t, "db/orders", "four")
	eventually(t, "the version is pending", func() bool {
		h := b.holders(t, "db/orders").GetHolders()
		return len(h) == 1 && h[0].GetPendingVersion() != "" && h[0].GetVersion() != h[0].GetPendingVersion()
	})
	g.mu.Lock()
	g.fail = false
	g.mu.Unlock()
	if s := g.next(t, 5*time.Second); string(s.Value) != "four" {
		t.Fatalf("got %q", s.Value)
	}
}

// TestRevocationEndsSessions: within a second, and the guest is told no more than that.
func TestRevocationEndsSessions(t *testing.T) {
	for _, kind := range []string{"chip", "session", "measurement", "resource"} {
		t.Run(kind, func(t *testing.T) {
			b := Start(t, nil)
			g := watch(t, b.Client(t, teesim.ReportOptions{}), "db/orders")
			g.next(t, 10*time.Second)
			all, err := b.Admin.ListSessions(t.Context(), &pb.ListSessionsRequest{})
			if err != nil || len(all.GetSessions()) != 1 {
				t.Fatalf("%v %v", all, err)
			}
			s := all.GetSessions()[0]
			m := teesim.Measurement("")
			value := map[string]string{"chip": s.GetChipId(), "session": s.GetId(), "measurement": hex.EncodeToString(m[:]), "resource": "db/orders"}[kind]
			if _, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: kind, Value: value, Reason: "test"}}); err != nil {
				t.Fatal(err)
			}
			revoked := time.Now()
			if err := g.ended(t, 5*time.Second); !errors.Is(err, agent.ErrDenied) {
				t.Fatalf("ended with %v", err)
			}
			t.Logf("ended %s after the acknowledgement", time.Since(revoked).Round(time.Millisecond))
			eventually(t, "the session is forgotten", func() bool { return len(b.holders(t, "db/orders").GetHolders()) == 0 })
			var x *pb.BlastRadiusResponse
			for range 20 {
				x, err = b.Admin.BlastRadius(t.Context(), &pb.BlastRadiusRequest{Kind: kind, Value: value})
				if err == nil && len(x.GetExposures()) == 1 {
					break
				}
				t.Logf("blast radius not complete: %v %v", x, err) // seen once under load; why is not known yet
				time.Sleep(100 * time.Millisecond)
			}
			if err != nil || len(x.GetExposures()) != 1 || x.GetExposures()[0].GetResource() != "db/orders" {
				t.Errorf("blast radius %v %v", x, err)
			}
		})
	}
}

// TestPolicyChangeEndsSessions: what the policy does not allow any more, ends.
func TestPolicyChangeEndsSessions(t *testing.T) {
	b := Start(t, nil)
	g := watch(t, b.Client(t, teesim.ReportOptions{}), "db/orders")
	g.next(t, 10*time.Second)
	sets, err := b.Admin.ListReferenceSets(t.Context(), &pb.ListReferenceSetsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sets.GetSets() {
		s.State = "retired"
		if _, err := b.Admin.PutReferenceSet(t.Context(), &pb.PutReferenceSetRequest{Set: s}); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.ended(t, 10*time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Fatalf("ended with %v", err)
	}
}

// TestReattestation: evidence runs out, the guest is asked for new, and nothing is sent twice.
func TestReattestation(t *testing.T) {
	b := Start(t, func(c *server.Config) { c.Sessions.TTL = server.Duration(1500 * time.Millisecond) })
	b.put(t, "db/orders", "one")
	g := watch(t, b.Client(t, teesim.ReportOptions{}), "db/orders")
	g.next(t, 10*time.Second)
	session := func() *pb.Session {
		all, err := b.Admin.ListSessions(t.Context(), &pb.ListSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(all.GetSessions()) != 1 {
			t.Fatalf("sessions: %v", all)
		}
		return all.GetSessions()[0]
	}
	first := session()
	g.quiet(t, 4*time.Second)
	if now := session(); now.GetId() != first.GetId() || !now.GetAttestedAt().AsTime().After(first.GetAttestedAt().AsTime()) {
		t.Errorf("was %v, is %v", first, now)
	}
	b.put(t, "db/orders", "two")
	if s := g.next(t, 2*time.Second); string(s.Value) != "two" {
		t.Fatalf("got %q", s.Value)
	}
}

// TestResume: a guest whose broker goes away goes on with the same session on another, without a lost or a repeated version.
func TestResume(t *testing.T) {
	b := Start(t, nil)
	b.put(t, "db/orders", "one")
	c := b.Client(t, teesim.ReportOptions{})
	g := watch(t, c, "db/orders")
	g.next(t, 10*time.Second)
	id := b.holders(t, "db/orders").GetHolders()[0].GetSessionId()
	b.Server.Drain()
	b.put(t, "db/orders", "two")
	if s := g.next(t, 10*time.Second); string(s.Value) != "two" {
		t.Fatalf("got %q", s.Value)
	}
	h := b.holders(t, "db/orders").GetHolders()
	if len(h) != 1 || h[0].GetSessionId() != id {
		t.Errorf("session %s became %v", id, h)
	}
	g.quiet(t, time.Second)
}

func TestAnotherMeasurementCannotWatch(t *testing.T) {
	b := Start(t, nil)
	g := watch(t, b.Client(t, teesim.ReportOptions{Measurement: teesim.Measurement("evil")}), "db/orders")
	if err := g.ended(t, 10*time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Fatalf("ended with %v", err)
	}
	if h := b.holders(t, "db/orders").GetHolders(); len(h) != 0 {
		t.Errorf("holders %v", h)
	}
}
