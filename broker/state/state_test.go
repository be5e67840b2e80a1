package state

import (
	"context"
	"errors"
	"maps"
	"slices"
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

func (f *fake) Commit(ctx context.Context, c Change) (int64, bool, error) {
	err := f.Put(ctx, c.Key, c.Value)
	return 1, err == nil, err
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

// whole is an update that says all there is.
func whole(pairs ...Pair) Update { return Update{Whole: true, Pairs: pairs} }

func TestRevoked(t *testing.T) {
	s := open(t, nil, nil)
	s.alive(time.Now())
	s.apply(whole(Pair{Key: revocations + "chip/x", Value: []byte(`{"kind":"chip","value":"00FF","reason":"stolen"}`)}))
	for _, v := range []string{"00ff", "00FF"} {
		sub, yes, err := s.Revoked(broker.Subject{Kind: broker.RevokeMeasurement, Value: "a"}, broker.Subject{Kind: broker.RevokeChip, Value: v})
		if err != nil || !yes || !strings.EqualFold(sub.Value, "00ff") {
			t.Errorf("chip %s: %v %v %v", v, sub, yes, err)
		}
	}
	if _, yes, err := s.Revoked(broker.Subject{Kind: broker.RevokeMeasurement, Value: "00ff"}); yes || err != nil {
		t.Errorf("a revoked chip revoked a measurement: %v", err)
	}
	revoked := func(want bool, after string) {
		t.Helper()
		if _, yes, err := s.Revoked(chip); yes != want || err != nil {
			t.Errorf("after %s revoked is %t, want %t: %v", after, yes, want, err)
		}
	}
	// A second record about the same thing, and one that comes to be about another.
	s.apply(Update{Pairs: []Pair{{Key: revocations + "chip/y", Value: []byte(`{"kind":"chip","value":"00ff"}`)}}})
	s.apply(Update{Pairs: []Pair{{Key: revocations + "chip/x", Deleted: true}}})
	revoked(true, "one of two records was taken back")
	s.apply(Update{Pairs: []Pair{{Key: revocations + "chip/y", Value: []byte(`{"kind":"chip","value":"11"}`)}}})
	revoked(false, "the other became another's")
	s.apply(Update{Pairs: []Pair{{Key: revocations + "chip/x", Value: []byte(`{"kind":"chip","value":"00ff"}`)}}})
	revoked(true, "it came back")
	s.apply(whole())
	revoked(false, "all were taken back")
}

// TestUnusableRecords: what cannot be used stops what it concerns, and no more, until it is mended.
func TestUnusableRecords(t *testing.T) {
	goodEntry := `{"pattern":"disks/{vm}","source":"local","key":"disks/{vm}","policy":"disks"}`
	goodSet := `{"name":"a","state":"active"}`
	for _, tc := range []struct {
		what, key, value string
		kind             string
		stopsAll         bool
		blocks           string
	}{
		{"empty revocation", revocations + "chip/a", "", KindRevocation, true, ""},
		{"cut revocation", revocations + "chip/a", "{", KindRevocation, true, ""},
		{"null revocation", revocations + "chip/a", "null", KindRevocation, true, ""},
		{"revocation of nothing", revocations + "chip/a", "{}", KindRevocation, true, ""},
		{"revocation without a value", revocations + "chip/a", `{"kind":"chip"}`, KindRevocation, true, ""},
		{"revocation of an unknown kind", revocations + "chip/a", `{"kind":"planet","value":"x"}`, KindRevocation, true, ""},
		{"revocation that is a list", revocations + "chip/a", `[]`, KindRevocation, true, ""},
		{"revocation of another type", revocations + "chip/a", `{"kind":1}`, KindRevocation, true, ""},
		{"cut set", references + "a", "{", KindReference, false, ""},
		{"set of no state", references + "a", `{"name":"a"}`, KindReference, false, ""},
		{"set of the year 2300", references + "a", `{"name":"a","state":"active","not_after":"2300-01-01T00:00:00Z"}`, KindReference, false, ""},
		{"set in another's place", references + "b", goodSet, KindReference, false, ""},
		{"set with a member that a newer broker knows", references + "a", `{"name":"a","state":"active","only_on_tuesdays":true}`, KindReference, false, ""},
		{"two sets", references + "a", goodSet + goodSet, KindReference, false, ""},
		{"cut entry", catalogKey("disks/{vm}"), `{"pattern"`, KindCatalog, false, "disks/{vm}"},
		{"entry without a policy", catalogKey("disks/{vm}"), `{"pattern":"disks/{vm}","source":"local","key":"x"}`, KindCatalog, false, "disks/{vm}"},
		{"entry in another's place", catalogKey("disks/{vm}/root"), goodEntry, KindCatalog, false, "disks/{vm} disks/{vm}/root"},
		{"entry with a member that a newer broker knows", catalogKey("disks/{vm}"), goodEntry[:len(goodEntry)-1] + `,"approvals":2}`, KindCatalog, false, "disks/{vm}"},
		{"entry of no pattern", catalog + "!", goodEntry, KindCatalog, true, ""},
		{"entry of an impossible pattern", catalogKey("a//b"), "{", KindCatalog, true, ""},
		{"empty pin", policyPin, "", KindPin, true, ""},
		{"odd pin", policyPin, "newest", KindPin, true, ""},
		{"unknown record", config + "else", "{}", KindUnknown, false, ""},
	} {
		t.Run(tc.what, func(t *testing.T) {
			s := open(t, nil, nil)
			var unusable error
			var blocked map[string]error
			s.OnReferences = func(_ []broker.ReferenceSet, err error) error { unusable = err; return nil }
			s.OnCatalog = func(_ []broker.CatalogEntry, b map[string]error) map[string]error { blocked = b; return nil }
			good := Pair{Key: revocations + "chip/good", Value: []byte(`{"kind":"chip","value":"11"}`)}
			s.apply(whole(good, Pair{Key: tc.key, Value: []byte(tc.value)}))
			s.enforceOnce()
			s.alive(time.Now())
			if _, _, err := s.Revoked(chip); (err != nil) != tc.stopsAll {
				t.Errorf("stops all: %v, want %t", err, tc.stopsAll)
			}
			if (unusable != nil) != (tc.kind == KindReference) {
				t.Errorf("reference values are unusable: %v", unusable)
			}
			if got := strings.Join(slices.Sorted(maps.Keys(blocked)), " "); got != tc.blocks {
				t.Errorf("blocks %q, want %q", got, tc.blocks)
			}
			if p := s.Problems(); len(p) != 1 || p[0].Kind != tc.kind || p[0].StopsAll != tc.stopsAll || p[0].Reason == "" || p[0].Stops == "" {
				t.Errorf("reported as %+v", p)
			}
			s.apply(Update{Pairs: []Pair{{Key: tc.key, Deleted: true}}})
			s.enforceOnce()
			if _, _, err := s.Revoked(chip); err != nil || unusable != nil || len(blocked) > 0 || len(s.Problems()) > 0 {
				t.Errorf("after it was removed: %v, %v, %v, %v", err, unusable, blocked, s.Problems())
			}
		})
	}
}

// TestOneOfTwoBadRecords: mending one does not make the other good.
// TestChangeOfUnusableSet: a set that stops decisions because it has a member that this broker does not
// know is not written back without it.
func TestChangeOfUnusableSet(t *testing.T) {
	for _, stored := range []string{
		`{"name":"a","type":"sev-snp","state":"active","policies":["disks"],"only_on_tuesdays":true,"values":{"measurement":["` + strings.Repeat("00", 48) + `"]}}`,
		`{"name":"b","type":"sev-snp","state":"active","policies":["disks"],"values":{"measurement":["` + strings.Repeat("00", 48) + `"]}}`,
	} {
		kv := &fake{items: map[string][]byte{references + "a": []byte(stored)}}
		s := open(t, kv, nil)
		_, err := s.ChangeReferenceSet(t.Context(), "a", func(*broker.ReferenceSet) error { return nil })
		if !errors.Is(err, broker.ErrRefused) || string(kv.items[references+"a"]) != stored {
			t.Errorf("%v; stored is now %s", err, kv.items[references+"a"])
		}
		if _, err := s.ReferenceSet(t.Context(), "a"); !errors.Is(err, broker.ErrRefused) {
			t.Errorf("read as if it could be used: %v", err)
		}
	}
}

func TestOneOfTwoBadRecords(t *testing.T) {
	s := open(t, nil, nil)
	s.alive(time.Now())
	s.apply(whole(Pair{Key: revocations + "chip/a"}, Pair{Key: revocations + "chip/b"}))
	for _, k := range []string{"a", "b"} {
		if _, _, err := s.Revoked(chip); err == nil {
			t.Errorf("released before %s was mended", k)
		}
		s.apply(Update{Pairs: []Pair{{Key: revocations + "chip/" + k, Value: []byte(`{"kind":"chip","value":"11"}`)}}})
	}
	if _, _, err := s.Revoked(chip); err != nil {
		t.Error(err)
	}
}

// TestRefusedByHooks: what a hook could not put in force is reported until it can.
func TestRefusedByHooks(t *testing.T) {
	s := open(t, nil, nil)
	s.alive(time.Now())
	fail := true
	s.OnReferences = func([]broker.ReferenceSet, error) error {
		if fail {
			return errors.New("no")
		}
		return nil
	}
	s.OnCatalog = func([]broker.CatalogEntry, map[string]error) map[string]error {
		if fail {
			return map[string]error{"a/{b}": errors.New("ambiguous")}
		}
		return nil
	}
	s.apply(whole())
	s.enforceOnce()
	if p := s.Problems(); len(p) != 2 || p[0].Name != "a/{b}" || p[1].Reason != "no" {
		t.Errorf("%+v", p)
	}
	// A change of another kind asks neither again.
	s.apply(Update{Pairs: []Pair{{Key: revocations + "chip/x", Value: []byte(`{"kind":"chip","value":"11"}`)}}})
	fail = false
	s.enforceOnce()
	if p := s.Problems(); len(p) != 2 {
		t.Errorf("%+v", p)
	}
	s.apply(Update{Pairs: []Pair{{Key: references + "a", Deleted: true}, {Key: catalog + "a", Deleted: true}}})
	s.enforceOnce()
	if p := s.Problems(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
}

// TestStaleness: an old view releases nothing, be it of revocations or of what the hooks put in force (G6).
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
	s.apply(whole())
	s.enforceOnce()
	refused(true) // a view alone does not say that it is current
	s.alive(now)
	refused(false)
	now = now.Add(MaxStaleness)
	refused(false)
	now = now.Add(time.Millisecond)
	refused(true)
	s.apply(Update{}) // nor does a change
	refused(true)
	s.alive(now)
	refused(false)

	// A retired set that the policies do not know of yet.
	s.apply(Update{Pairs: []Pair{{Key: references + "a", Deleted: true}}})
	now = now.Add(MaxStaleness / 2)
	s.apply(Update{Pairs: []Pair{{Key: references + "b", Deleted: true}}})
	now = now.Add(MaxStaleness/2 + 1)
	s.alive(now)
	refused(true)
	s.enforceOnce()
	refused(false)
	// A hook that hangs.
	s.OnReferences = func([]broker.ReferenceSet, error) error {
		refused(false)
		now = now.Add(MaxStaleness + 1)
		s.alive(now)
		refused(true)
		return nil
	}
	s.apply(Update{Pairs: []Pair{{Key: references + "b", Deleted: true}}})
	s.enforceOnce()
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
		s.apply(whole(Pair{Key: k, Value: v}))
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

// TestRevokedMeasurement: one of that length, for as long as a record says so.
func TestRevokedMeasurement(t *testing.T) {
	s := open(t, nil, nil)
	if _, _, err := s.RevokedMeasurement(64); err == nil {
		t.Error("an answer without a view")
	}
	s.alive(time.Now())
	d32, d48 := strings.Repeat("ab", 32), strings.Repeat("ab", 48)
	one := func(key, kind, value string) Pair {
		return Pair{Key: revocations + key, Value: []byte(`{"kind":"` + kind + `","value":"` + value + `"}`)}
	}
	want := func(after string, digits int, yes bool) {
		t.Helper()
		if sub, got, err := s.RevokedMeasurement(digits); got != yes || err != nil || yes && len(sub.Value) != digits {
			t.Errorf("after %s: of %d digits %v, %t, %v", after, digits, sub, got, err)
		}
	}
	s.apply(whole(one("chip/x", "chip", d32), one("measurement/a", "measurement", d48)))
	want("a chip and a measurement", 64, false)
	want("a chip and a measurement", 96, true)
	s.apply(Update{Pairs: []Pair{one("measurement/b", "measurement", strings.ToUpper(d32)), one("measurement/c", "measurement", d32)}})
	s.apply(Update{Pairs: []Pair{{Key: revocations + "measurement/b", Deleted: true}}})
	want("one of two", 64, true)
	s.apply(Update{Pairs: []Pair{one("measurement/c", "measurement", d48)}})
	want("the other became another", 64, false)
}
