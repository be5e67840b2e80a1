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
	faults struct{ get, put, forget error }
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
	if f.faults.forget != nil {
		return f.faults.forget
	}
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
		if m, _ := k.MissingKeys(t.Context()); m[0].Version != 4 {
			t.Errorf("missing %+v, want version 4, which is known", m)
		}
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

// TestKeysSeen: what was looked at within a minute, up to that version, is not looked at again; an alarm makes it forgotten.
func TestKeysSeen(t *testing.T) {
	k := newKeyWorld(t)
	start := k.now
	gets := func(at time.Duration, input string) int {
		t.Helper()
		k.now = start.Add(at)
		before := k.keys.gets
		if err := k.ask(t, input); err != nil {
			t.Fatal(err)
		}
		return k.keys.gets - before
	}
	gets(0, "")
	for _, tt := range []struct {
		at    time.Duration
		input string
		reads int
	}{
		{30 * time.Second, "", 0}, {time.Minute - 1, "", 0}, {time.Minute, "", 1}, {2*time.Minute - 1, "", 0},
		{2*time.Minute - 1, `{"next_of":"1"}`, 2}, // whether it may be made, and to write it down
		{2*time.Minute - 1, `{"version":"1"}`, 0}, {2*time.Minute - 1, "", 0},
		{4 * time.Minute, "", 1}, {4 * time.Minute, "", 0},
	} {
		if got := gets(tt.at, tt.input); got != tt.reads {
			t.Errorf("after %s, asked %q: %d reads, want %d", tt.at, tt.input, got, tt.reads)
		}
	}
	if r := k.keys.items["disks/vm-1"]; r.Version != 2 || r.Source != "vault" || !r.Missing.IsZero() || k.keys.puts != 2 {
		t.Errorf("record %+v, written %d times", r, k.keys.puts)
	}
}

// TestMissingIsWrittenOnce, with the time and the version that was there, and a record that cannot be written is in the log.
func TestMissingIsWrittenOnce(t *testing.T) {
	k := newKeyWorld(t)
	if err := k.ask(t, ""); err != nil {
		t.Fatal(err)
	}
	k.src.has = 0
	k.keys.faults.put = errors.New("no leader")
	if err := k.ask(t, ""); !errors.Is(err, broker.ErrDenied) || !strings.Contains(k.log.String(), "cannot write down that a key is missing") {
		t.Fatalf("%v; log %q", err, k.log)
	}
	k.keys.faults.put = nil
	k.now = k.now.Add(time.Second)
	first := k.now
	for range 3 {
		if err := k.ask(t, ""); !errors.Is(err, broker.ErrDenied) || !errors.Is(err, broker.ErrVanished) || errors.Is(err, broker.ErrUnavailable) {
			t.Fatal(err)
		}
		k.now = k.now.Add(time.Minute)
	}
	if m, err := k.MissingKeys(t.Context()); err != nil || len(m) != 1 || !m[0].Missing.Equal(first) || m[0].Version != 1 || k.keys.puts != 2 {
		t.Errorf("missing %+v, written %d times, %v", m, k.keys.puts, err)
	}
	k.src.has = 1
	if err := k.ask(t, ""); err != nil { // it is back, within the minute in which nothing would be looked at
		t.Fatal(err)
	}
	if m, _ := k.MissingKeys(t.Context()); len(m) != 0 {
		t.Errorf("still missing: %+v", m)
	}
}

// TestForgetKeyFails where the copy or the record stays, and there is nothing to forget where nothing is kept.
func TestForgetKeyFails(t *testing.T) {
	down := errors.New("no leader")
	cache := &faultyCache{}
	k := newKeyWorld(t, func(c *broker.Config) { cache.fakeCache = c.Cache.(*fakeCache); c.Cache = cache })
	if err := k.ask(t, ""); err != nil {
		t.Fatal(err)
	}
	cache.forget = down
	if err := k.ForgetKey(t.Context(), "disks/vm-1"); !errors.Is(err, down) || k.keys.items["disks/vm-1"].Version != 1 {
		t.Errorf("the copy stays: %v", err)
	}
	cache.forget = nil
	k.keys.faults.forget = down
	if err := k.ForgetKey(t.Context(), "disks/vm-1"); !errors.Is(err, down) || strings.Contains(k.log.String(), "forgotten") {
		t.Errorf("the record stays: %v; log %q", err, k.log)
	}
	k.keys.faults.forget = nil
	if err := k.ForgetKey(t.Context(), "disks/vm-1"); err != nil || len(k.cache.items) != 0 {
		t.Errorf("%d copies: %v", len(k.cache.items), err)
	}
	// What cannot be read may say that it was there: nothing is made, until an operator says so.
	k.restart(t)
	if err := k.ask(t, ""); err != nil {
		t.Fatal(err)
	}
	cache.get = down
	delete(k.keys.items, "disks/vm-1")
	k.restart(t)
	k.src.has = 0
	if err := k.ask(t, ""); !errors.Is(err, broker.ErrUnavailable) || k.src.has != 0 {
		t.Errorf("a copy that cannot be read: %v, version %d is made", err, k.src.has)
	}
	if err := k.ForgetKey(t.Context(), "disks/vm-1"); err != nil || len(k.cache.items) != 0 {
		t.Errorf("a copy that cannot be read: %v", err)
	}
	if err := k.ask(t, ""); err != nil || k.src.has != 1 {
		t.Errorf("%v, version %d is made", err, k.src.has)
	}
	bare := newKeyWorld(t, func(c *broker.Config) { c.Cache = nil })
	if err := bare.ask(t, ""); err != nil {
		t.Fatal(err)
	}
	if err := bare.ForgetKey(t.Context(), "disks/vm-1"); err != nil || bare.keys.items["disks/vm-1"].Version != 0 {
		t.Errorf("without a cache: %v", err)
	}
	plain := newKeyWorld(t, func(c *broker.Config) { c.Keys = nil })
	if err := plain.ask(t, ""); err != nil {
		t.Fatal(err)
	}
	if err := plain.ForgetKey(t.Context(), "disks/vm-1"); !errors.Is(err, broker.ErrNoSecret) || !strings.Contains(err.Error(), "create_bytes") {
		t.Errorf("nothing is kept: %v", err)
	}
	if m, err := plain.MissingKeys(t.Context()); m != nil || err != nil {
		t.Errorf("%v %v", m, err)
	}
	plain.src.has = 0 // its copy says that it was there, and there is no record to say so in
	if err := plain.ask(t, ""); !errors.Is(err, broker.ErrVanished) || !strings.Contains(plain.log.String(), "level=ERROR") {
		t.Errorf("%v; log %q", err, plain.log)
	}
}

// TestKeysThatNobodyMakes have no record: those without create_bytes, and those of the embedded store.
func TestKeysThatNobodyMakes(t *testing.T) {
	for _, e := range []broker.CatalogEntry{
		{Pattern: "disks/{vm}", Source: "vault", Key: "disks/{vm}", Policy: "disks"}, {Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks", CreateBytes: 32},
	} {
		k := newKeyWorld(t, func(c *broker.Config) { c.Sources["local"] = c.Sources["vault"] })
		c, err := broker.NewCatalog([]broker.CatalogEntry{e})
		if err != nil {
			t.Fatal(err)
		}
		k.SetCatalog(c)
		for range 2 {
			if err := k.ask(t, ""); err != nil {
				t.Fatal(err)
			}
			k.src.has = 0 // made again
		}
		if k.keys.gets+k.keys.puts != 0 || k.src.made != 2 {
			t.Errorf("%+v: %d reads and %d writes, %d made", e, k.keys.gets, k.keys.puts, k.src.made)
		}
		if err := k.ForgetKey(t.Context(), "disks/vm-1"); !errors.Is(err, broker.ErrNoSecret) {
			t.Error(err)
		}
	}
}
