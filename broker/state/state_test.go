package state

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
)

// fake is a KV that holds revocations and pins only as far as these tests need them.
type fake struct {
	KV
	mu    sync.Mutex
	items map[string][]byte // guarded by mu; a key's revision is always 1
	fail  error             // guarded by mu
}

func (f *fake) Get(_ context.Context, key string) ([]byte, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v, ok := f.items[key]; ok {
		return v, 1, f.fail
	}
	return nil, 0, f.fail
}

func (f *fake) Put(_ context.Context, key string, value []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.items[key] = value
	return f.fail
}

func (f *fake) PutIf(_ context.Context, key string, value []byte, rev int64) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.items[key]; ok != (rev == 1) || f.fail != nil {
		return false, f.fail
	}
	f.items[key] = value
	return true, nil
}

func (f *fake) CreateUntil(_ context.Context, key string, _ time.Time) (bool, error) {
	return f.PutIf(context.Background(), key, nil, 0)
}

func open(t *testing.T, kv KV, now func() time.Time) *State {
	t.Helper()
	s, err := New(Config{KV: kv, SealKey: make([]byte, 32), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var chip = broker.Subject{Kind: broker.RevokeChip, Value: "00ff"}

func TestRevoked(t *testing.T) {
	s := open(t, nil, nil)
	s.alive(time.Now())
	s.apply([]Pair{{Key: revocations + "chip/x", Value: []byte(`{"kind":"chip","value":"00FF","reason":"stolen"}`)}})
	for _, v := range []string{"00ff", "00FF"} {
		sub, yes, err := s.Revoked(broker.Subject{Kind: broker.RevokeMeasurement, Value: "a"}, broker.Subject{Kind: broker.RevokeChip, Value: v})
		if err != nil || !yes || !strings.EqualFold(sub.Value, "00ff") {
			t.Errorf("chip %s: %v %v %v", v, sub, yes, err)
		}
	}
	if _, yes, err := s.Revoked(broker.Subject{Kind: broker.RevokeMeasurement, Value: "00ff"}); yes || err != nil {
		t.Errorf("a revoked chip revoked a measurement: %v", err)
	}
	s.apply(nil)
	if _, yes, _ := s.Revoked(chip); yes {
		t.Error("revoked after it was taken back")
	}
}

// TestUnreadableRevocation: a revocation that cannot be read may be about anything, so nothing is released.
func TestUnreadableRevocation(t *testing.T) {
	for _, bad := range []string{"", "{", "null", "{}", `{"kind":"chip"}`, `{"kind":"planet","value":"x"}`, `[]`, `{"kind":1}`} {
		s := open(t, nil, nil)
		s.alive(time.Now())
		s.apply([]Pair{
			{Key: revocations + "chip/a", Value: []byte(bad)},
			{Key: revocations + "chip/b", Value: []byte(`{"kind":"chip","value":"11"}`)},
		})
		if _, _, err := s.Revoked(chip); err == nil {
			t.Errorf("%q: released", bad)
		}
		s.apply(nil)
		if _, _, err := s.Revoked(chip); err != nil {
			t.Errorf("%q: still refused after it was removed: %v", bad, err)
		}
	}
	// Other records that do not decode are left out, and stop nothing.
	s := open(t, nil, nil)
	s.alive(time.Now())
	sets := -1
	s.OnReferences = func(r []broker.ReferenceSet) { sets = len(r) }
	s.apply([]Pair{{Key: references + "a", Value: []byte("{")}, {Key: references + "b", Value: []byte(`{"name":"b"}`)}})
	if _, _, err := s.Revoked(chip); err != nil || sets != 1 {
		t.Errorf("%v, %d sets", err, sets)
	}
}

// TestStaleness: an old view of revocations releases nothing (G6).
func TestStaleness(t *testing.T) {
	now := time.Now()
	s := open(t, nil, func() time.Time { return now })
	refused := func(want bool) {
		t.Helper()
		if _, _, err := s.Revoked(chip); (err != nil) != want {
			t.Errorf("refused: %v, want %v", err, want)
		}
	}
	refused(true) // before the first view
	s.alive(now)
	refused(false)
	now = now.Add(MaxStaleness)
	refused(false)
	now = now.Add(time.Millisecond)
	refused(true)
	s.apply(nil) // a change alone does not say that the view is current
	refused(true)
	s.alive(now)
	refused(false)
}

func TestRevokeValidates(t *testing.T) {
	kv := &fake{items: map[string][]byte{}}
	s := open(t, kv, nil)
	for _, sub := range []broker.Subject{{}, {Kind: "planet", Value: "x"}, {Kind: broker.RevokeChip}, {Kind: broker.RevokeChip, Value: strings.Repeat("a", 513)}} {
		if err := s.Revoke(t.Context(), broker.Revocation{Subject: sub}); err == nil {
			t.Errorf("took %v", sub)
		}
	}
	if len(kv.items) != 0 {
		t.Fatalf("wrote %v", kv.items)
	}
	// What is written is read as a revocation of the same thing, whatever its spelling.
	if err := s.Revoke(t.Context(), broker.Revocation{Subject: broker.Subject{Kind: broker.RevokeChip, Value: "00FF"}}); err != nil {
		t.Fatal(err)
	}
	s.alive(time.Now())
	for k, v := range kv.items {
		s.apply([]Pair{{Key: k, Value: v}})
	}
	if _, yes, err := s.Revoked(chip); !yes || err != nil {
		t.Errorf("%v %v", yes, err)
	}
	kv.fail = errors.New("no quorum")
	if err := s.Revoke(t.Context(), broker.Revocation{Subject: chip}); err == nil {
		t.Error("acknowledged a revocation that was not written")
	}
}

func TestRedeemOnce(t *testing.T) {
	kv := &fake{items: map[string][]byte{}}
	s := open(t, kv, nil)
	id := broker.NonceID{1}
	if err := s.Redeem(t.Context(), id, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := s.Redeem(t.Context(), id, time.Now()); !errors.Is(err, broker.ErrSpent) {
		t.Errorf("got %v", err)
	}
	kv.fail = errors.New("no quorum")
	if err := s.Redeem(t.Context(), broker.NonceID{2}, time.Now()); err == nil || errors.Is(err, broker.ErrSpent) {
		t.Errorf("got %v", err)
	}
}

// TestSealedKey: all brokers get the first one's key; another seal key or place opens nothing.
func TestSealedKey(t *testing.T) {
	kv := &fake{items: map[string][]byte{}}
	var wg sync.WaitGroup
	keys := make([]string, 16)
	for i := range keys {
		wg.Go(func() {
			k, err := open(t, kv, nil).SealedKey(t.Context(), "nonce", GenerateKey32)
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(k)
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || len(k) != 32 {
			t.Fatal("brokers disagree")
		}
	}
	if box := kv.items[sealed+"nonce"]; strings.Contains(string(box), keys[0]) {
		t.Error("kept in the clear")
	}
	other, err := New(Config{KV: kv, SealKey: []byte(strings.Repeat("x", 32))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.SealedKey(t.Context(), "nonce", GenerateKey32); err == nil {
		t.Error("opened with another seal key")
	}
	kv.items[sealed+"identity"] = kv.items[sealed+"nonce"]
	if _, err := open(t, kv, nil).SealedKey(t.Context(), "identity", GenerateKey32); err == nil {
		t.Error("a moved key opened")
	}
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := New(Config{SealKey: make([]byte, n)}); err == nil {
			t.Errorf("took a seal key of %d bytes", n)
		}
	}
}
