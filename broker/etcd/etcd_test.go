package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/state"
	"github.com/claviger/claviger/broker/state/statetest"
	"github.com/claviger/claviger/internal/testservers"
)

func embedded(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := StartMember(t.Context(), Member{Dir: dir})
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

// TestOldEtcd: before these versions a watch said that it was further than it was.
func TestOldEtcd(t *testing.T) {
	for version, want := range map[string]bool{
		"3.4.24": false, "3.4.25": true, "3.5.7": false, "3.5.8": true, "3.5.21": true, "3.6.0": true, "3.6.0-rc.1": true, "3.7.3": true, "4.0.0": true,
		"3.3.99": false, "2.3.8": false, "": false, "newest": false,
	} {
		if provesProgress(version) != want {
			t.Errorf("%q: %t", version, !want)
		}
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

// TestForgottenNonceStaysSpent: when a spent nonce is no longer in the store, a
// broker whose clock is behind, and which believes that it is still honoured, cannot spend it.
func TestForgottenNonceStaysSpent(t *testing.T) {
	a := embedded(t, t.TempDir())
	b := &Store{client: a.client, leases: map[int64]clientv3.LeaseID{}, room: newRoom(nil)} // another broker
	ctx := t.Context()
	expires := time.Now().Add(time.Minute)
	first, err := a.openBucket(ctx, expires.UnixNano()/int64(nonceBucket), time.Second) // a lease that ends soon
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := b.CreateUntil(ctx, "nonces/x", expires); !ok || err != nil {
		t.Fatalf("cannot spend it: %v", err)
	}
	if b.leases[expires.UnixNano()/int64(nonceBucket)] != first {
		t.Error("two brokers have two leases for one bucket")
	}
	eventually(t, "it is forgotten", func() bool { _, rev, err := a.Get(ctx, "nonces/x"); return err == nil && rev == 0 })
	for name, s := range map[string]*Store{"the same": b, "another": a} {
		for _, key := range []string{"nonces/x", "nonces/y"} {
			if ok, err := s.CreateUntil(ctx, key, expires); ok || err != nil {
				t.Errorf("%s broker spent %s: %t %v", name, key, ok, err)
			}
		}
		if ok, err := s.CreateUntil(ctx, "nonces/"+name, expires.Add(nonceBucket)); !ok || err != nil {
			t.Errorf("%s broker cannot spend others: %v", name, err)
		}
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

// TestKeyRecords: what brokers know of keys only grows, until an operator says otherwise.
func TestKeyRecords(t *testing.T) {
	kv := embedded(t, t.TempDir())
	a, b := newState(t, kv), newState(t, kv)
	ctx := t.Context()
	k := broker.KeyRecord{Source: "vault", Key: "disks/vm-1"}
	if _, err := a.GetKey(ctx, k); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("got %v", err)
	}
	put := func(version int, missing time.Time) {
		t.Helper()
		r := k
		r.Version, r.Missing = version, missing
		if err := a.PutKey(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(version, missing int) {
		t.Helper()
		r, err := b.GetKey(ctx, k)
		all, lerr := b.MissingKeys(ctx)
		if err != nil || lerr != nil || r.Version != version || len(all) != missing || missing == 1 && all[0].Key != k.Key {
			t.Errorf("%+v, missing %+v, want version %d and %d missing: %v %v", r, all, version, missing, err, lerr)
		}
	}
	put(3, time.Time{})
	want(3, 0)
	put(2, time.Now())
	want(3, 1)
	put(2, time.Time{})
	want(3, 0)
	other := k
	other.Field = "passphrase"
	if _, err := b.GetKey(ctx, other); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("another field's: %v", err)
	}
	put(4, time.Now())
	if err := b.ForgetKey(ctx, k); err != nil {
		t.Fatal(err)
	}
	want(0, 0)
	var wg sync.WaitGroup
	for v := range 4 { // whoever comes last
		wg.Go(func() {
			r := k
			r.Version = v + 1
			if err := a.PutKey(ctx, r); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want(4, 0)
}

// TestListingsArePaged: however many records there are, a caller holds a page.
// What does not decode is left out of a page, and hides nothing after it.
func TestListingsArePaged(t *testing.T) {
	kv := embedded(t, t.TempDir())
	st, ctx := newState(t, kv), t.Context()
	for i := range 5 {
		name := fmt.Sprintf("s%d", i)
		left := time.Minute
		if i == 2 {
			left = -time.Minute
		}
		if err := errors.Join(st.PutSession(ctx, broker.Session{ID: name, ExpiresAt: time.Now().Add(left)}),
			st.Revoke(ctx, broker.Revocation{Subject: broker.Subject{Kind: broker.RevokeChip, Value: fmt.Sprintf("%02x", i)}})); err != nil {
			t.Fatal(err)
		}
	}
	if err := kv.Put(ctx, "sessions/s1", []byte("{")); err != nil {
		t.Fatal(err)
	}
	sessions := pages(t, func(after string) (out []string, next string, err error) {
		page, next, err := st.SessionsPage(ctx, after, 2)
		for _, s := range page {
			out = append(out, s.ID)
		}
		return out, next, err
	})
	if got := strings.Join(sessions, " "); got != "s0 s3 s4" {
		t.Errorf("sessions %q", got)
	}
	revoked := pages(t, func(after string) (out []string, next string, err error) {
		page, next, err := st.ListRevocations(ctx, after, 2)
		for _, r := range page {
			out = append(out, r.Value)
		}
		return out, next, err
	})
	if got := strings.Join(revoked, " "); got != "00 01 02 03 04" {
		t.Errorf("revocations %q", got)
	}
}

func pages(t *testing.T, page func(after string) ([]string, string, error)) []string {
	t.Helper()
	var all []string
	for after, n := "", 0; n == 0 || after != ""; n++ {
		out, next, err := page(after)
		if err != nil || n > 10 {
			t.Fatalf("page %d: %v", n, err)
		}
		all, after = append(all, out...), next
	}
	return all
}

// TestWritesWaitUntilInForce: a write returns when what it wrote is in force
// here, or says at the caller's deadline that it is stored and not in force. A
// revocation, which needs no hook, does not wait for one that takes its time.
func TestWritesWaitUntilInForce(t *testing.T) {
	st, err := state.New(state.Config{KV: embedded(t, t.TempDir()), SealKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	entered, leave := make(chan int, 16), make(chan struct{}, 16)
	st.OnReferences = func(sets []broker.ReferenceSet, _ error) error {
		entered <- len(sets)
		<-leave
		return nil
	}
	ready := make(chan struct{})
	leave <- struct{}{}
	go st.Run(t.Context(), ready)
	<-ready
	<-entered
	set := broker.ReferenceSet{Name: "a", Type: "sev-snp", State: broker.ReferenceActive, Values: map[string][]string{"measurement": {strings.Repeat("ab", 48)}}}
	done := make(chan error, 1)
	go func() { done <- st.PutReferenceSet(t.Context(), set) }()
	if n := <-entered; n != 1 {
		t.Errorf("the hook is told of %d sets", n)
	}
	select {
	case err := <-done:
		t.Fatalf("returned before the set was in force: %v", err)
	default:
	}
	if err := st.Revoke(t.Context(), broker.Revocation{Subject: broker.Subject{Kind: broker.RevokeChip, Value: "ab"}}); err != nil {
		t.Errorf("a revocation waits for reference sets: %v", err)
	}
	if _, yes, err := st.Revoked(broker.Subject{Kind: broker.RevokeChip, Value: "ab"}); !yes || err != nil {
		t.Errorf("a revocation that was acknowledged is not in force: %t %v", yes, err)
	}
	leave <- struct{}{}
	if err := <-done; err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	set.State = broker.ReferenceRetired
	if err := st.PutReferenceSet(short, set); !errors.Is(err, state.ErrNotInForce) {
		t.Errorf("a write that is not in force: %v", err)
	}
	close(leave)
	if ok, err := st.DeleteReferenceSet(t.Context(), "a"); !ok || err != nil {
		t.Errorf("delete: %t %v", ok, err)
	}
	if ok, err := st.DeleteReferenceSet(t.Context(), "a"); ok || err != nil {
		t.Errorf("deleted again: %t %v", ok, err)
	}
}

// TestLimits: what there may be is bounded, and refused with the reason.
func TestLimits(t *testing.T) {
	st := newState(t, embedded(t, t.TempDir()))
	chip := broker.Subject{Kind: broker.RevokeChip, Value: "ab"}
	for what, err := range map[string]error{
		"a long reason": st.Revoke(t.Context(), broker.Revocation{Subject: chip, Reason: strings.Repeat("x", 5000)}),
		"many labels": st.PutCatalogEntry(t.Context(), broker.CatalogEntry{
			Pattern: "a", Source: "local", Key: "a", Policy: "disks", Labels: map[string]string{"x": strings.Repeat("x", 20000)},
		}),
		"a pin of nothing": st.PinPolicy(t.Context(), "newest"),
	} {
		if !errors.Is(err, broker.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if all, err := st.Revocations(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("stored: %v %v", all, err)
	}
}

// TestPasswordOfToday: a password that is changed in etcd and in its file needs no restart.
func TestPasswordOfToday(t *testing.T) {
	e := testservers.StartEtcd(t, 1)
	admin, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	var password atomic.Value
	password.Store("first")
	ctx := t.Context()
	for _, err := range []error{
		second(admin.UserAdd(ctx, "root", "first")), second(admin.RoleAdd(ctx, "root")), second(admin.UserGrantRole(ctx, "root", "root")), second(admin.AuthEnable(ctx)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := Dial(ctx, Cluster{Endpoints: e.Endpoints, Username: "root", Password: func() string { return password.Load().(string) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.client.UserChangePassword(ctx, "root", "second"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(ctx, "probe"); err == nil {
		t.Error("the old password still counts: this test shows nothing")
	}
	password.Store("second")
	if _, _, err := s.Get(ctx, "probe"); err != nil {
		t.Errorf("with the new password: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
