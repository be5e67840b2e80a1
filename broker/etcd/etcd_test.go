package etcd

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/state"
	"github.com/claviger/claviger/broker/state/statetest"
	"github.com/claviger/claviger/internal/testservers"
)

func embedded(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Embedded(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestEmbedded(t *testing.T) { statetest.Run(t, embedded(t, t.TempDir())) }

func TestCluster(t *testing.T) {
	e := testservers.StartEtcd(t, 1)
	s, err := Dial(t.Context(), Cluster{Endpoints: e.Endpoints})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	statetest.Run(t, s)
}

func TestDialRefusesPlainHTTPBeyondLoopback(t *testing.T) {
	if _, err := Dial(t.Context(), Cluster{Endpoints: []string{"http://10.0.0.1:2379"}}); err == nil {
		t.Fatal("accepted")
	}
}

func newState(t *testing.T, kv state.KV) *state.State {
	t.Helper()
	st, err := state.New(state.Config{KV: kv, SealKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	go st.Run(t.Context(), ready)
	<-ready
	return st
}

// TestRevocationReachesEveryReplica holds G6: within a second of the
// acknowledgement on every replica, and over a restart.
func TestRevocationReachesEveryReplica(t *testing.T) {
	dir := t.TempDir()
	kv := embedded(t, dir)
	a, b := newState(t, kv), newState(t, kv)
	sub := broker.Subject{Kind: broker.RevokeChip, Value: "AB"}
	if err := a.Revoke(t.Context(), broker.Revocation{Subject: sub}); err != nil {
		t.Fatal(err)
	}
	acked := time.Now()
	for {
		if _, yes, err := b.Revoked(broker.Subject{Kind: broker.RevokeChip, Value: "ab"}); err == nil && yes {
			break
		}
		if time.Since(acked) > time.Second {
			t.Fatal("not in force on the other replica a second after the acknowledgement")
		}
		time.Sleep(time.Millisecond)
	}
	kv.Close()
	c := newState(t, embedded(t, dir))
	if _, yes, err := c.Revoked(sub); err != nil || !yes {
		t.Fatalf("lost over a restart: %v %v", yes, err)
	}
}

// TestStaleViewReleasesNothing: a replica that is cut off must not go on with an old view of revocations.
func TestStaleViewReleasesNothing(t *testing.T) {
	kv := embedded(t, t.TempDir())
	st := newState(t, kv)
	if _, _, err := st.Revoked(); err != nil {
		t.Fatal(err)
	}
	kv.Close()
	for range 60 {
		if _, _, err := st.Revoked(); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("still answers three seconds after the store is gone")
}

func TestNonceIsSpentOnceOverRestart(t *testing.T) {
	dir := t.TempDir()
	kv := embedded(t, dir)
	st := newState(t, kv)
	id := broker.NonceID{1}
	if err := st.Redeem(t.Context(), id, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := st.Redeem(t.Context(), id, time.Now().Add(time.Minute)); !errors.Is(err, broker.ErrSpent) {
		t.Fatalf("got %v, want ErrSpent", err)
	}
	kv.Close()
	st = newState(t, embedded(t, dir))
	if err := st.Redeem(t.Context(), id, time.Now().Add(time.Minute)); !errors.Is(err, broker.ErrSpent) {
		t.Fatalf("after a restart: got %v, want ErrSpent", err)
	}
}

// TestMajorityLost: two of three members gone. Nothing can be spent, and the view goes stale.
func TestMajorityLost(t *testing.T) {
	e := testservers.StartEtcd(t, 3)
	s, err := Dial(t.Context(), Cluster{Endpoints: e.Endpoints})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st := newState(t, s)
	e.Kill(t, 0)
	ok := false
	for range 20 { // one member lost: goes on, after an election
		if err := st.Redeem(t.Context(), broker.NonceID{byte(1)}, time.Now().Add(time.Minute)); err == nil || errors.Is(err, broker.ErrSpent) {
			ok = true
			break
		}
	}
	if !ok {
		t.Fatal("does not survive the loss of one member")
	}
	e.Kill(t, 1)
	if err := st.Redeem(t.Context(), broker.NonceID{9}, time.Now().Add(time.Minute)); err == nil || errors.Is(err, broker.ErrSpent) {
		t.Fatalf("spent a nonce without a majority: %v", err)
	}
	time.Sleep(2 * state.MaxStaleness)
	if _, _, err := st.Revoked(); err == nil {
		t.Fatal("answers about revocations without a majority")
	}
}

func TestSealedKey(t *testing.T) {
	kv := embedded(t, t.TempDir())
	st := newState(t, kv)
	a, err := st.SealedKey(t.Context(), "identity", state.GenerateKey32)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newState(t, kv).SealedKey(t.Context(), "identity", state.GenerateKey32)
	if err != nil || string(a) != string(b) {
		t.Fatalf("two brokers have different identities: %v", err)
	}
	raw, _, _ := kv.Get(t.Context(), "sealed/identity")
	if string(raw) == string(a) || len(raw) == 0 {
		t.Fatal("not sealed at rest")
	}
	other, err := state.New(state.Config{KV: kv, SealKey: append(make([]byte, 31), 1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.SealedKey(t.Context(), "identity", state.GenerateKey32); err == nil {
		t.Fatal("opened with another seal key")
	}
}

func BenchmarkRedeem(b *testing.B) {
	kv := embedded(b, b.TempDir())
	var n byte
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			n++
			if _, err := kv.CreateUntil(b.Context(), "nonces/"+time.Now().String()+string(n), time.Now().Add(time.Minute)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestSessionsAndLeases: what brokers share about running workloads.
func TestSessionsAndLeases(t *testing.T) {
	kv := embedded(t, t.TempDir())
	a, b := newState(t, kv), newState(t, kv)
	ctx := t.Context()
	if _, err := a.GetSession(ctx, "none"); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("got %v", err)
	}
	s := broker.Session{ID: "S1", ExpiresAt: time.Now().Add(time.Minute).UTC(), Holdings: []broker.Holding{{Resource: "db/orders", Version: "7"}}, Sequence: 9}
	old := broker.Session{ID: "S0", ExpiresAt: time.Now().Add(-time.Minute)}
	if err := errors.Join(a.PutSession(ctx, s), a.PutSession(ctx, old)); err != nil {
		t.Fatal(err)
	}
	got, err := b.GetSession(ctx, "S1")
	if err != nil || got.Sequence != 9 || len(got.Holdings) != 1 || got.Holdings[0].Version != "7" {
		t.Errorf("%+v %v", got, err)
	}
	if all, err := b.Sessions(ctx); err != nil || len(all) != 1 {
		t.Errorf("%v %v", all, err)
	}
	r, err := a.PutLease(ctx, broker.LeaseRecord{Session: "S1", Owners: []broker.Owner{{Source: "vault", ID: "accessor", Secret: []byte("hvs.secret"), Leases: []string{"l1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	// Two brokers that take over at once: one wins.
	x, err := b.GetLease(ctx, "S1")
	if err != nil || len(x.Owners) != 1 || x.Owners[0].ID != "accessor" {
		t.Fatalf("%+v %v", x, err)
	}
	if len(x.Owners[0].Secret) != 0 {
		t.Error("an owner's secret left the broker's memory")
	}
	r.Keeper, x.Keeper = "a", "b"
	if _, err := a.PutLease(ctx, r); err != nil {
		t.Fatal(err)
	}
	if _, err := b.PutLease(ctx, x); !errors.Is(err, broker.ErrChanged) {
		t.Errorf("got %v", err)
	}
	if _, err := b.PutLease(ctx, broker.LeaseRecord{Session: "S1"}); !errors.Is(err, broker.ErrChanged) {
		t.Errorf("a new record over an old one: %v", err)
	}
	if all, err := b.Leases(ctx); err != nil || len(all) != 1 || all[0].Keeper != "a" {
		t.Errorf("%+v %v", all, err)
	}
	if err := errors.Join(b.DeleteLease(ctx, "S1"), b.DeleteLease(ctx, "S1"), b.DeleteSession(ctx, "S1")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.GetLease(ctx, "S1"); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("got %v", err)
	}
}

// TestCopiesAreSealed: a copy of a secret lies encrypted, and only in its place.
func TestCopiesAreSealed(t *testing.T) {
	kv := embedded(t, t.TempDir())
	a := newState(t, kv)
	ctx := t.Context()
	c := broker.Copy{Value: []byte("correct horse"), Version: "7", ContentType: "text/plain", At: time.Now().UTC(), Until: time.Now().Add(time.Hour).UTC()}
	if err := errors.Join(a.PutCopy(ctx, "k1", c), a.PutCopy(ctx, "k2", c)); err != nil {
		t.Fatal(err)
	}
	got, err := newState(t, kv).GetCopy(ctx, "k1")
	if err != nil || string(got.Value) != "correct horse" || got.Version != "7" || got.ContentType != "text/plain" || !got.At.Equal(c.At) {
		t.Errorf("%+v %v", got, err)
	}
	pairs, err := kv.List(ctx, "copies/")
	if err != nil || len(pairs) != 2 {
		t.Fatalf("%v %v", pairs, err)
	}
	for _, p := range pairs {
		if strings.Contains(string(p.Value), "horse") {
			t.Error("the copy is not encrypted")
		}
	}
	// Moved to another secret's place it does not open.
	if err := kv.Put(ctx, pairs[1].Key, pairs[0].Value); err != nil {
		t.Fatal(err)
	}
	if _, err := a.GetCopy(ctx, "k2"); err == nil {
		t.Error("a copy opens in another's place")
	}
	if err := a.DeleteCopy(ctx, "k1"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.GetCopy(ctx, "k1"); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("got %v", err)
	}
}
