package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// KeyRecord is what the brokers know of a key that they make where there is none (CatalogEntry.CreateBytes): that it
// was there. A key that opens a disk must not be made anew because its source was restored from an old snapshot.
type KeyRecord struct {
	Source string `json:"source"`
	Mount  string `json:"mount,omitempty"`
	Key    string `json:"key"`
	Field  string `json:"field,omitempty"`
	// Version is the highest that was given out.
	Version int `json:"version"`
	// Missing is when the source was first seen to have it no more, and not to say that it was deleted; zero: it has it.
	Missing time.Time `json:"missing,omitzero"`
}

// ID names the secret in its source, whatever catalog entry leads to it. It is no text.
func (r KeyRecord) ID() string {
	return strings.Join([]string{r.Source, r.Mount, r.Key, r.Field}, "\x00")
}

// KeyBook keeps them, for all brokers. A record is by source, mount, key and field. Safe for concurrent use.
type KeyBook interface {
	// GetKey returns the record of that name, ErrNoSecret where there is none.
	GetKey(ctx context.Context, name KeyRecord) (KeyRecord, error)
	// PutKey writes a record; what is stored then has the higher of the two versions.
	PutKey(ctx context.Context, r KeyRecord) error
	// ForgetKey writes that there never was a version, whatever there was.
	ForgetKey(ctx context.Context, name KeyRecord) error
	// MissingKeys lists those that are missing.
	MissingKeys(ctx context.Context) ([]KeyRecord, error)
}

// keysSeen remembers which records were looked at lately, so that a release costs no write and seldom a read.
type keysSeen struct {
	mu   sync.Mutex
	seen map[string]keySeen // by KeyRecord.ID; guarded by mu
}

type keySeen struct {
	version int
	at      time.Time
}

const (
	maxKeysSeen = 100_000
	keySeenFor  = time.Minute
)

// keyOf is the record that an entry's secret has, if it is of a kind that brokers make in a source that may lose it.
// (The embedded store is in the same state as the record, and remembers what was deleted.)
func keyOf(e CatalogEntry) (KeyRecord, bool) {
	return KeyRecord{Source: e.Source, Mount: e.Mount, Key: e.Key, Field: e.Field}, e.CreateBytes > 0 && e.Source != "local"
}

// absent is Granted.Absent: it says why a version that the source does not have must not be made.
func (b *Broker) absent(ctx context.Context, g allowed, version int) error {
	r, ok := keyOf(g.entry)
	if !ok {
		return nil
	}
	known, err := b.knownVersion(ctx, g, r)
	if err != nil {
		return fmt.Errorf("%w: whether %s was there before: %w", ErrUnavailable, g.path, err)
	}
	if known < version {
		return nil
	}
	return vanished{g.path, known, version}
}

// vanished is an ErrVanished.
type vanished struct {
	path           string
	known, version int
}

func (v vanished) Error() string {
	return fmt.Sprintf("%v: %s had version %d, and its source has no version %d of it and does not say that it was deleted", ErrVanished, v.path, v.known, v.version)
}

func (vanished) Unwrap() error { return ErrVanished }

// knownVersion is the highest version that was there, as far as any broker has written down; 0: none.
func (b *Broker) knownVersion(ctx context.Context, g allowed, r KeyRecord) (int, error) {
	if b.cfg.Keys != nil {
		stored, err := b.cfg.Keys.GetKey(ctx, r)
		if err == nil || !errors.Is(err, ErrNoSecret) {
			return stored.Version, err
		}
	}
	// No record: what brokers before this version have left.
	known := 0
	if b.cfg.Cache != nil {
		c, err := b.cfg.Cache.GetCopy(ctx, cacheKey(g.entry))
		if err != nil && !errors.Is(err, ErrNoSecret) {
			return 0, err
		}
		clear(c.Value)
		known, _ = strconv.Atoi(c.Version)
	}
	if b.cfg.Versions != nil {
		n, _ := strconv.Atoi(b.cfg.Versions.Current(g.entry))
		known = max(known, n)
	}
	return known, nil
}

// alarm raises it for what a source could not give.
func (b *Broker) alarm(ctx context.Context, g allowed, err error, now time.Time) {
	if v, ok := errors.AsType[vanished](err); ok {
		r, _ := keyOf(g.entry)
		b.missing(ctx, g, r, v.known, v.version, now)
	}
}

// missing raises the alarm: in the log, and in the record, which claviger status and a metric show.
func (b *Broker) missing(ctx context.Context, g allowed, r KeyRecord, known, version int, now time.Time) {
	b.cfg.Logger.ErrorContext(ctx, "a key is missing from its source, which does not say that it was deleted: was an old snapshot restored? No new one is made; see docs/vault.md, \"A key that vanished\"",
		"resource", g.path, "source", r.Source, "key", r.Key, "version", version, "known", known)
	b.keys.forget(r)
	if b.cfg.Keys == nil {
		return
	}
	r.Version, r.Missing = known, now.UTC()
	if before, err := b.cfg.Keys.GetKey(ctx, r); err == nil && !before.Missing.IsZero() {
		return
	}
	if err := b.cfg.Keys.PutKey(ctx, r); err != nil {
		b.cfg.Logger.ErrorContext(ctx, "cannot write down that a key is missing", "resource", g.path, "error", err)
	}
}

// remember writes down that a key is there before it is given out for the first time.
func (b *Broker) remember(ctx context.Context, g allowed, s Secret, now time.Time) error {
	r, ok := keyOf(g.entry)
	version, err := strconv.Atoi(s.Version)
	if !ok || b.cfg.Keys == nil || err != nil || b.keys.has(r, version, now) {
		return nil
	}
	stored, err := b.cfg.Keys.GetKey(ctx, r)
	if err != nil && !errors.Is(err, ErrNoSecret) {
		return fmt.Errorf("%w: read the record of the key of %s: %w", ErrUnavailable, g.path, err)
	}
	asked, _ := ParseVersionInput(g.entry, g.input)
	if version < stored.Version && asked.Version == 0 { // the newest is not what it was
		b.missing(ctx, g, r, stored.Version, stored.Version, now)
		return nil
	}
	if version > stored.Version || version == stored.Version && !stored.Missing.IsZero() {
		r.Version = version
		if err := b.cfg.Keys.PutKey(ctx, r); err != nil {
			return fmt.Errorf("%w: write down the key of %s: %w", ErrUnavailable, g.path, err)
		}
	}
	b.keys.add(r, version, now)
	return nil
}

func (k *keysSeen) has(r KeyRecord, version int, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.seen[r.ID()]
	return ok && s.version >= version && now.Sub(s.at) < keySeenFor
}

func (k *keysSeen) add(r KeyRecord, version int, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seen == nil || len(k.seen) >= maxKeysSeen {
		k.seen = map[string]keySeen{}
	}
	k.seen[r.ID()] = keySeen{version, now}
}

func (k *keysSeen) forget(r KeyRecord) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.seen, r.ID())
}

// ForgetKey has the next request for a resource make a new key, although there was one: on an operator's word. What was
// encrypted with the one before is lost. ErrNoSecret where nothing is known of it.
func (b *Broker) ForgetKey(ctx context.Context, path string) error {
	entry, _, ok := b.Catalog().Lookup(path)
	if !ok {
		return fmt.Errorf("%w: no catalog entry matches %s", ErrNoSecret, path)
	}
	r, ok := keyOf(entry)
	if !ok || b.cfg.Keys == nil {
		return fmt.Errorf("%w: %s is not a key that brokers make in a Vault (create_bytes)", ErrNoSecret, path)
	}
	// What cannot be read, such as a copy of another seal key, may say that it was there: that is to be forgotten, too.
	known, err := b.knownVersion(ctx, allowed{entry: entry}, r)
	if err == nil && known == 0 {
		return fmt.Errorf("%w: nothing is known of a key of %s", ErrNoSecret, path)
	}
	if b.cfg.Cache != nil {
		if err := b.cfg.Cache.DeleteCopy(ctx, cacheKey(entry)); err != nil {
			return fmt.Errorf("forget its copy: %w", err)
		}
	}
	if err := b.cfg.Keys.ForgetKey(ctx, r); err != nil {
		return err
	}
	b.keys.forget(r)
	b.cfg.Logger.WarnContext(ctx, "a key is forgotten on an operator's word: the next request makes a new one", "resource", path, "source", r.Source, "key", r.Key, "version", known)
	return nil
}

// MissingKeys lists the keys that vanished from their sources.
func (b *Broker) MissingKeys(ctx context.Context) ([]KeyRecord, error) {
	if b.cfg.Keys == nil {
		return nil, nil
	}
	return b.cfg.Keys.MissingKeys(ctx)
}
