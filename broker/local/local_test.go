package local

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/broker/state"
)

// memory is a linearizable KV.
type memory struct {
	mu    sync.Mutex
	rev   int64
	items map[string]state.Pair // guarded by mu
	fail  error                 // guarded by mu; of writes
}

func (m *memory) Get(_ context.Context, key string) ([]byte, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.items[key]
	return bytes.Clone(p.Value), p.Revision, nil
}

func (m *memory) List(_ context.Context, prefix string) (out []state.Pair, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, p := range m.items {
		if strings.HasPrefix(k, prefix) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b state.Pair) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

func (m *memory) PutIf(_ context.Context, key string, value []byte, rev int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.items[key].Revision != rev || m.fail != nil {
		return false, m.fail
	}
	m.rev++
	m.items[key] = state.Pair{Key: key, Value: bytes.Clone(value), Revision: m.rev}
	return true, nil
}

func (m *memory) Delete(_ context.Context, key string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.items[key]
	delete(m.items, key)
	return ok, nil
}

func newStore(t *testing.T) (*Store, *memory) {
	t.Helper()
	st, err := state.New(state.Config{SealKey: bytes.Repeat([]byte{7}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	kv := &memory{items: map[string]state.Pair{}}
	return New(kv, st, nil), kv
}

func mint(e broker.CatalogEntry) *broker.Grant { return grant.Mint(broker.Granted{Entry: e}) }

func put(t *testing.T, s *Store, key, value string) uint64 {
	t.Helper()
	v, err := s.Put(t.Context(), key, []byte(value), nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVersions(t *testing.T) {
	s, _ := newStore(t)
	for want := uint64(1); want <= 3; want++ {
		if v := put(t, s, "db/a", strings.Repeat("x", int(want))); v != want {
			t.Fatalf("version %d, want %d", v, want)
		}
	}
	put(t, s, "db/b", "other")
	put(t, s, "disks/a", "other")
	sec, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "db/a"}))
	if err != nil || string(sec.Value) != "xxx" || sec.Version != "3" {
		t.Fatalf("%q %s: %v", sec.Value, sec.Version, err)
	}
	infos, err := s.List(t.Context(), "db/")
	if err != nil || len(infos) != 2 || infos[0].Key != "db/a" || infos[0].Version != 3 || time.Since(infos[0].Updated) > time.Minute || infos[1].Key != "db/b" {
		t.Fatalf("%+v: %v", infos, err)
	}
	if ok, err := s.Delete(t.Context(), "db/a"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := s.Delete(t.Context(), "db/a"); ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "db/a"})); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("got %v", err)
	}
	// Nothing is made in its place, and no later version has the name of one that somebody may still hold.
	if _, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "db/a", CreateBytes: 32})); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("a deleted secret was made anew: %v", err)
	}
	if _, err := s.Rotate(t.Context(), broker.CatalogEntry{Key: "db/a", CreateBytes: 32, Rotatable: true}); !errors.Is(err, broker.ErrNoSecret) {
		t.Errorf("a deleted secret was rotated: %v", err)
	}
	if infos, err := s.List(t.Context(), "db/"); err != nil || len(infos) != 1 {
		t.Errorf("listed %+v: %v", infos, err)
	}
	none := uint64(0)
	if v, err := s.Put(t.Context(), "db/a", []byte("again"), &none); v != 4 || err != nil {
		t.Errorf("version %d after delete: %v", v, err)
	}
	if secret, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "db/a"})); err != nil || string(secret.Value) != "again" {
		t.Errorf("%q, %v", secret.Value, err)
	}
	for _, value := range [][]byte{nil, {}, make([]byte, MaxValue+1)} {
		if _, err := s.Put(t.Context(), "db/a", value, nil); err == nil {
			t.Errorf("took %d bytes", len(value))
		}
	}
	if _, err := s.Put(t.Context(), "db/max", make([]byte, MaxValue), nil); err != nil {
		t.Error(err)
	}
}

func TestCheckAndSet(t *testing.T) {
	s, _ := newStore(t)
	at := func(v uint64) *uint64 { return &v }
	if _, err := s.Put(t.Context(), "k", []byte("1"), at(1)); !errors.Is(err, state.ErrConflict) {
		t.Errorf("expected 1 of an absent key: %v", err)
	}
	if v, err := s.Put(t.Context(), "k", []byte("1"), at(0)); err != nil || v != 1 {
		t.Fatal(v, err)
	}
	if _, err := s.Put(t.Context(), "k", []byte("2"), at(0)); !errors.Is(err, state.ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	// Of 32 writers that saw version 1, one writes version 2.
	var wg sync.WaitGroup
	var mu sync.Mutex
	wins := 0
	for range 32 {
		wg.Go(func() {
			_, err := s.Put(t.Context(), "k", []byte("2"), at(1))
			if err != nil && !errors.Is(err, state.ErrConflict) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				wins++
			}
		})
	}
	wg.Wait()
	if wins != 1 {
		t.Errorf("%d writers won", wins)
	}
}

// TestCreateRace: of machines at their first boot one writes, and all get what it wrote.
func TestCreateRace(t *testing.T) {
	s, _ := newStore(t)
	var wg sync.WaitGroup
	got := make([]broker.Secret, 32)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "disks/1", CreateBytes: 32})); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, g := range got {
		if !bytes.Equal(g.Value, got[0].Value) || len(g.Value) != 32 || g.Version != "1" {
			t.Fatalf("got %x version %s, want %x", g.Value, g.Version, got[0].Value)
		}
	}
	other, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "disks/2", CreateBytes: 32}))
	if err != nil || bytes.Equal(other.Value, got[0].Value) {
		t.Errorf("two disks have one key: %v", err)
	}
}

// TestCreateNotWritten: a key that is not durable is not handed out.
func TestCreateNotWritten(t *testing.T) {
	s, kv := newStore(t)
	kv.fail = errors.New("no quorum")
	if sec, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "disks/1", CreateBytes: 32})); err == nil || sec.Value != nil {
		t.Errorf("got %x: %v", sec.Value, err)
	}
}

// TestSealedAtRest: the store never sees a value, and a record opens only where it was sealed.
func TestSealedAtRest(t *testing.T) {
	s, kv := newStore(t)
	put(t, s, "db/a", "hunter2-hunter2")
	put(t, s, "db/b", "other-secret")
	a := kv.items[prefix+"db/a"]
	if bytes.Contains(a.Value, []byte("hunter2")) || bytes.Contains(a.Value, []byte("aHVudGVyMi")) {
		t.Fatal("kept in the clear")
	}
	// An attack by who can write to the store: move one key's record to another key.
	moved := kv.items[prefix+"db/b"]
	moved.Value = a.Value
	kv.items[prefix+"db/b"] = moved
	if sec, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "db/b"})); err == nil {
		t.Errorf("a moved record opened: %q", sec.Value)
	}
	if _, err := s.List(t.Context(), ""); err == nil {
		t.Error("listed a moved record")
	}
	for i := range a.Value {
		bad := a
		bad.Value = bytes.Clone(a.Value)
		bad.Value[i] ^= 1
		kv.items[prefix+"db/a"] = bad
		if _, err := s.Fetch(t.Context(), mint(broker.CatalogEntry{Key: "db/a"})); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Fatalf("byte %d altered: %v", i, err)
		}
	}
	st, err := state.New(state.Config{SealKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	kv.items[prefix+"db/a"] = a
	if _, err := New(kv, st, nil).Fetch(t.Context(), mint(broker.CatalogEntry{Key: "db/a"})); err == nil {
		t.Error("opened with another seal key")
	}
}

// TestGrant: no authority, no secret.
func TestGrant(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, "k", "v")
	for _, g := range []*broker.Grant{nil, {}} {
		if _, err := s.Fetch(t.Context(), g); err == nil {
			t.Error("fetched without a grant")
		}
	}
	g := mint(broker.CatalogEntry{Key: "k"})
	if _, err := s.Fetch(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), g); err == nil {
		t.Error("fetched twice with one grant")
	}
}
