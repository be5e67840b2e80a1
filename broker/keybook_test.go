package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
)

// fakeKeys keeps the records of keys in memory.
type fakeKeys struct {
	mu     sync.Mutex
	items  map[string]broker.KeyRecord
	puts   int
	gets   int
	faults struct{ get, put error }
}

func (f *fakeKeys) GetKey(_ context.Context, name broker.KeyRecord) (broker.KeyRecord, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets++
	r, ok := f.items[name.Key]
	if !ok && f.faults.get == nil {
		return r, broker.ErrNoSecret
	}
	return r, f.faults.get
}

func (f *fakeKeys) PutKey(_ context.Context, r broker.KeyRecord) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.faults.put != nil {
		return f.faults.put
	}
	f.puts++
	r.Version = max(r.Version, f.items[r.Key].Version)
	f.items[r.Key] = r
	return nil
}

func (f *fakeKeys) ForgetKey(_ context.Context, name broker.KeyRecord) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.items[name.Key] = broker.KeyRecord{Key: name.Key}
	return nil
}

func (f *fakeKeys) MissingKeys(context.Context) (out []broker.KeyRecord, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.items {
		if !r.Missing.IsZero() {
			out = append(out, r)
		}
	}
	return out, nil
}

// maker is a source that makes what it does not have, as Vault's does.
type maker struct {
	has   int // the newest version; 0: none
	made  int
	fault error
}

func (m *maker) Fetch(ctx context.Context, g *broker.Grant) (broker.Secret, error) {
	w, err := g.Redeem()
	if err != nil {
		return broker.Secret{}, err
	}
	if m.fault != nil {
		return broker.Secret{}, m.fault
	}
	ask, err := broker.ParseVersionInput(w.Entry, w.Input)
	if err != nil {
		return broker.Secret{}, err
	}
	switch {
	case ask.Version > m.has:
		return broker.Secret{}, errors.Join(w.Absent(ctx, ask.Version), broker.ErrNoSecret)
	case m.has == 0, ask.NextOf == m.has:
		if err := w.Absent(ctx, m.has+1); err != nil {
			return broker.Secret{}, err
		}
		m.has++
		m.made++
	}
	return broker.Secret{Value: []byte("key"), Version: strconv.Itoa(m.has)}, nil
}

type keyWorld struct {
	*world
	src   *maker
	keys  *fakeKeys
	cache *fakeCache
	log   *strings.Builder
}

func newKeyWorld(t *testing.T, change ...func(*broker.Config)) *keyWorld {
	t.Helper()
	k := &keyWorld{src: &maker{}, keys: &fakeKeys{items: map[string]broker.KeyRecord{}}, log: &strings.Builder{}}
	k.world, k.cache = cacheWorld(t, `{"cache": "10m"}`)
	k.cfg.Sources = map[string]broker.Source{"vault": k.src}
	k.cfg.Keys, k.cfg.Logger = k.keys, slog.New(slog.NewTextHandler(k.log, nil))
	for _, c := range change {
		c(&k.cfg)
	}
	k.restart(t)
	return k
}

func (k *keyWorld) restart(t *testing.T) {
	t.Helper()
	var err error
	if k.Broker, err = broker.New(k.cfg); err != nil {
		t.Fatal(err)
	}
	c, err := broker.NewCatalog([]broker.CatalogEntry{{Pattern: "disks/{vm}", Source: "vault", Key: "disks/{vm}", Policy: "disks", CreateBytes: 32, Rekey: true}})
	if err != nil {
		t.Fatal(err)
	}
	k.SetCatalog(c)
}

func (k *keyWorld) ask(t *testing.T, input string) error {
	t.Helper()
	a := k.attempt(t)
	if input != "" {
		a.req.Inputs = [][]byte{[]byte(input)}
		a.bind.Inputs = a.req.Inputs
	}
	_, err := k.send(t, a)
	return err
}

// TestVanishedKey: a key that was there and is gone without a trace is an alarm and a denial, and no new key.
func TestVanishedKey(t *testing.T) {
	denied := func(t *testing.T, k *keyWorld, input string) {
		t.Helper()
		made := k.src.made
		err := k.ask(t, input)
		if !errors.Is(err, broker.ErrDenied) || k.src.made != made {
			t.Fatalf("got %v, %d keys made", err, k.src.made)
		}
		if rec := k.world.log.records[len(k.world.log.records)-1]; !strings.Contains(rec.Error, "does not say that it was deleted") {
			t.Errorf("the record does not say why: %q", rec.Error)
		}
		if !strings.Contains(k.log.String(), "level=ERROR") || !strings.Contains(k.log.String(), "disks/vm-1") {
			t.Errorf("no alarm in %q", k.log)
		}
		if m, err := k.MissingKeys(t.Context()); err != nil || len(m) != 1 || m[0].Missing.IsZero() || m[0].Key != "disks/vm-1" {
			t.Errorf("missing %+v, %v", m, err)
		}
	}
	for name, tt := range map[string]struct {
		before, after int
		input         string
	}{
		"all of it":                                {1, 0, ""},
		"all versions":                             {3, 0, ""},
		"the version that the disk opens with":     {3, 2, `{"version":"3"}`},
		"one that would be made a second time":     {3, 2, `{"next_of":"2"}`},
		"all of it, and the next one is asked for": {3, 0, `{"next_of":"3"}`},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeyWorld(t)
			if err := k.ask(t, ""); err != nil {
				t.Fatal(err)
			}
			for v := 1; v < tt.before; v++ {
				if err := k.ask(t, fmt.Sprintf(`{"next_of":"%d"}`, v)); err != nil {
					t.Fatal(err)
				}
			}
			k.src.has = tt.after
			denied(t, k, tt.input)
			denied(t, k, tt.input)
			k.restart(t)
			denied(t, k, tt.input)
			if puts := k.keys.puts; puts > tt.before+1 {
				t.Errorf("the record was written %d times", puts)
			}
			// It is restored: the alarm ends.
			k.src.has = tt.before
			if err := k.ask(t, ""); err != nil {
				t.Fatal(err)
			}
			if m, _ := k.MissingKeys(t.Context()); len(m) > 0 {
				t.Errorf("still missing: %+v", m)
			}
		})
	}
	t.Run("an operator says: make a new one", func(t *testing.T) {
		k := newKeyWorld(t)
		if err := k.ForgetKey(t.Context(), "disks/vm-1"); !errors.Is(err, broker.ErrNoSecret) {
			t.Errorf("forgot what was never there: %v", err)
		}
		if err := k.ask(t, ""); err != nil {
			t.Fatal(err)
		}
		k.src.has = 0
		denied(t, k, "")
		for _, path := range []string{"other", "disks/vm-2"} {
			if err := k.ForgetKey(t.Context(), path); !errors.Is(err, broker.ErrNoSecret) {
				t.Errorf("%s: %v", path, err)
			}
		}
		denied(t, k, "")
		if err := k.ForgetKey(t.Context(), "disks/vm-1"); err != nil {
			t.Fatal(err)
		}
		if err := k.ask(t, ""); err != nil || k.src.made != 2 {
			t.Errorf("%v, %d made", err, k.src.made)
		}
		if m, _ := k.MissingKeys(t.Context()); len(m) > 0 {
			t.Errorf("still missing: %+v", m)
		}
		k.src.has = 0
		denied(t, k, "")
	})
	t.Run("known by a copy of an earlier version's", func(t *testing.T) {
		k := newKeyWorld(t)
		k.cache.items["vault\x00kv\x00\x00disks/vm-1\x00\x00true"] = broker.Copy{Value: []byte("x"), Version: "1", At: k.now}
		denied(t, k, "")
		if err := k.ForgetKey(t.Context(), "disks/vm-1"); err != nil {
			t.Fatal(err)
		}
		if err := k.ask(t, ""); err != nil {
			t.Error(err)
		}
	})
	t.Run("known by the version feed", func(t *testing.T) {
		k := newKeyWorld(t, func(c *broker.Config) { c.Versions = oneVersion("4") })
		denied(t, k, "")
		if err := k.ForgetKey(t.Context(), "disks/vm-1"); err != nil {
			t.Fatal(err)
		}
		if err := k.ask(t, ""); err != nil {
			t.Error(err)
		}
	})
	t.Run("nobody can tell", func(t *testing.T) {
		k := newKeyWorld(t)
		k.keys.faults.get = errors.New("no leader")
		if err := k.ask(t, ""); !errors.Is(err, broker.ErrUnavailable) || k.src.made != 0 {
			t.Errorf("%v, %d made", err, k.src.made)
		}
		k.keys.faults.get, k.keys.faults.put = nil, errors.New("no leader")
		if err := k.ask(t, ""); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("given out before it was written down: %v", err)
		}
		k.keys.faults.put = nil
		if err := k.ask(t, ""); err != nil || k.src.made != 1 {
			t.Errorf("%v, %d made", err, k.src.made)
		}
	})
	t.Run("its source says that it was deleted", func(t *testing.T) {
		k := newKeyWorld(t)
		if err := k.ask(t, ""); err != nil {
			t.Fatal(err)
		}
		k.src.fault = fmt.Errorf("version 1 is deleted: %w", broker.ErrNoSecret)
		if err := k.ask(t, ""); !errors.Is(err, broker.ErrDenied) || strings.Contains(k.log.String(), "level=ERROR") {
			t.Errorf("%v; log %q", err, k.log)
		}
	})
	t.Run("an older one is the newest", func(t *testing.T) { // nothing is made: the alarm is all
		k := newKeyWorld(t)
		for _, input := range []string{"", `{"next_of":"1"}`} {
			if err := k.ask(t, input); err != nil {
				t.Fatal(err)
			}
		}
		if err := k.ask(t, `{"version":"1"}`); err != nil || strings.Contains(k.log.String(), "level=ERROR") {
			t.Errorf("asked for: %v; log %q", err, k.log)
		}
		k.src.has = 1
		k.now = k.now.Add(2 * time.Minute)
		if err := k.ask(t, ""); err != nil {
			t.Fatal(err)
		}
		if m, _ := k.MissingKeys(t.Context()); len(m) != 1 || m[0].Version != 2 {
			t.Errorf("missing %+v", m)
		}
	})
	t.Run("a release costs no write, and seldom a read", func(t *testing.T) {
		k := newKeyWorld(t)
		for range 20 {
			if err := k.ask(t, ""); err != nil {
				t.Fatal(err)
			}
		}
		if k.keys.puts != 1 || k.keys.gets > 4 {
			t.Errorf("%d writes and %d reads", k.keys.puts, k.keys.gets)
		}
	})
}

// oneVersion is what a feed knows of every secret.
type oneVersion string

func (oneVersion) Follow(broker.CatalogEntry, chan<- struct{}) func() { return func() {} }
func (v oneVersion) Current(broker.CatalogEntry) string               { return string(v) }
