// Package local is the embedded secret store, for a machine that has no Vault:
// versioned secrets, encrypted at rest, in the brokers' shared state.
package local

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/state"
)

// MaxValue is the largest secret, in bytes.
const MaxValue = 64 << 10

const prefix = "secrets/"

// KV is the part of state.KV that is needed.
type KV interface {
	Get(ctx context.Context, key string) (value []byte, revision int64, err error)
	List(ctx context.Context, prefix string) ([]state.Pair, error)
	PutIf(ctx context.Context, key string, value []byte, revision int64) (bool, error)
	Delete(ctx context.Context, key string) (bool, error)
}

// Sealer encrypts at rest, bound to a place.
type Sealer interface {
	Seal(where string, plain []byte) []byte
	Open(where string, box []byte) ([]byte, error)
}

// Store is a broker.Source.
type Store struct {
	kv   KV
	seal Sealer
	now  func() time.Time
}

// New makes a store.
func New(kv KV, seal Sealer, now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	return &Store{kv: kv, seal: seal, now: now}
}

// record is what is sealed. Of secrets that are re-keyed the versions before the
// newest are kept as well, each under its own name; of others only the newest.
type record struct {
	Version uint64    `json:"version"`
	Updated time.Time `json:"updated"`
	Value   []byte    `json:"value"`
	// Deleted says that there is no such secret any more. The record stays, so that no later version has the name of
	// an earlier one: who holds version 3 is not told that the next version 3 is what it has.
	Deleted bool `json:"deleted,omitempty"`
}

// current is the version that can be had, 0 if there is none.
func (r record) current() uint64 {
	if r.Deleted {
		return 0
	}
	return r.Version
}

// Info describes a secret without its value.
type Info struct {
	Key     string
	Version uint64
	Updated time.Time
}

// Fetch implements broker.Source.
func (s *Store) Fetch(ctx context.Context, g *broker.Grant) (broker.Secret, error) {
	what, err := g.Redeem()
	if err != nil {
		return broker.Secret{}, err
	}
	e := what.Entry
	ask, err := broker.ParseVersionInput(e, what.Input)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("local %s: %w", e.Key, err)
	}
	for range 3 {
		r, rev, err := s.read(ctx, e.Key)
		if err != nil {
			return broker.Secret{}, err
		}
		switch {
		case r.Deleted: // and not made anew: a key that was deleted is not replaced by one that opens nothing
			return broker.Secret{}, fmt.Errorf("local %s: deleted: %w", e.Key, broker.ErrNoSecret)
		case ask.Version > 0 && uint64(ask.Version) != r.Version:
			clear(r.Value)
			return s.fetchEarlier(ctx, e.Key, ask.Version)
		case ask.NextOf > 0 && uint64(ask.NextOf) == r.Version:
			secret, won, err := s.makeNext(ctx, e, r, rev)
			clear(r.Value)
			if err != nil || won {
				return secret, err
			}
			continue // another one made it
		case r.Version > 0:
			return broker.Secret{Value: r.Value, Version: strconv.FormatUint(r.Version, 10)}, nil
		}
		if e.CreateBytes == 0 {
			return broker.Secret{}, fmt.Errorf("local %s: %w", e.Key, broker.ErrNoSecret)
		}
		value := make([]byte, e.CreateBytes)
		if _, err := rand.Read(value); err != nil {
			return broker.Secret{}, fmt.Errorf("read random: %w", err)
		}
		// Check-and-set: of two machines at their first boot one writes, and both get what it wrote.
		won, err := s.write(ctx, e.Key, record{Version: 1, Updated: s.now().UTC(), Value: value}, 0)
		if err != nil {
			return broker.Secret{}, err
		}
		if won {
			return broker.Secret{Value: value, Version: "1"}, nil
		}
	}
	return broker.Secret{}, fmt.Errorf("local %s: %w", e.Key, state.ErrConflict)
}

// earlier is the name of a version before the newest. No key of a catalog has an @.
func earlier(key string, version uint64) string { return key + "@" + strconv.FormatUint(version, 10) }

func (s *Store) fetchEarlier(ctx context.Context, key string, version int) (broker.Secret, error) {
	r, _, err := s.read(ctx, earlier(key, uint64(version)))
	if err != nil {
		return broker.Secret{}, err
	}
	if r.Version == 0 {
		return broker.Secret{}, fmt.Errorf("local %s: no version %d: %w", key, version, broker.ErrNoSecret)
	}
	return broker.Secret{Value: r.Value, Version: strconv.Itoa(version)}, nil
}

// makeNext keeps the newest version under its own name, and then makes another.
func (s *Store) makeNext(ctx context.Context, e broker.CatalogEntry, now record, rev int64) (broker.Secret, bool, error) {
	if _, err := s.write(ctx, earlier(e.Key, now.Version), now, 0); err != nil { // not won: it is kept already
		return broker.Secret{}, false, err
	}
	value := make([]byte, e.CreateBytes)
	if _, err := rand.Read(value); err != nil {
		return broker.Secret{}, false, fmt.Errorf("read random: %w", err)
	}
	next := record{Version: now.Version + 1, Updated: s.now().UTC(), Value: value}
	won, err := s.write(ctx, e.Key, next, rev)
	if err != nil || !won {
		clear(value)
		return broker.Secret{}, false, err
	}
	return broker.Secret{Value: value, Version: strconv.FormatUint(next.Version, 10)}, true, nil
}

// CurrentVersion implements broker.Versioner.
func (s *Store) CurrentVersion(ctx context.Context, e broker.CatalogEntry) (string, error) {
	r, _, err := s.read(ctx, e.Key)
	if err != nil {
		return "", err
	}
	clear(r.Value)
	if r.current() == 0 {
		return "", fmt.Errorf("local %s: %w", e.Key, broker.ErrNoSecret)
	}
	return strconv.FormatUint(r.Version, 10), nil
}

// Rotate implements broker.Rotator.
func (s *Store) Rotate(ctx context.Context, e broker.CatalogEntry) (string, error) {
	if !e.Rotatable || e.CreateBytes == 0 {
		return "", fmt.Errorf("local %s: %w", e.Key, broker.ErrNotRotatable)
	}
	value := make([]byte, e.CreateBytes)
	if _, err := rand.Read(value); err != nil {
		return "", fmt.Errorf("read random: %w", err)
	}
	defer clear(value)
	if r, _, err := s.read(ctx, e.Key); err != nil {
		return "", err
	} else if clear(r.Value); r.Deleted {
		return "", fmt.Errorf("local %s: deleted: %w", e.Key, broker.ErrNoSecret)
	}
	v, err := s.Put(ctx, e.Key, value, nil)
	return strconv.FormatUint(v, 10), err
}

// Put writes a new version. expected, if not nil, is the version that must be current (0: none).
func (s *Store) Put(ctx context.Context, key string, value []byte, expected *uint64) (uint64, error) {
	if len(value) == 0 || len(value) > MaxValue {
		return 0, fmt.Errorf("value has %d bytes, want 1 to %d", len(value), MaxValue)
	}
	for range 3 {
		r, rev, err := s.read(ctx, key)
		if err != nil {
			return 0, err
		}
		clear(r.Value)
		if expected != nil && r.current() != *expected {
			return 0, fmt.Errorf("%s is at version %d, expected %d: %w", key, r.current(), *expected, state.ErrConflict)
		}
		won, err := s.write(ctx, key, record{Version: r.Version + 1, Updated: s.now().UTC(), Value: value}, rev)
		if err != nil {
			return 0, err
		}
		if won {
			return r.Version + 1, nil
		}
	}
	return 0, fmt.Errorf("write %s: %w", key, state.ErrConflict)
}

// List describes all secrets whose key starts with p.
func (s *Store) List(ctx context.Context, p string) ([]Info, error) {
	pairs, err := s.kv.List(ctx, prefix+p)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, 0, len(pairs))
	for _, pair := range pairs {
		if strings.Contains(pair.Key, "@") {
			continue // an earlier version
		}
		r, err := s.open(pair.Key, pair.Value)
		if err != nil {
			return nil, err
		}
		clear(r.Value)
		if r.Deleted {
			continue
		}
		infos = append(infos, Info{Key: strings.TrimPrefix(pair.Key, prefix), Version: r.Version, Updated: r.Updated})
	}
	return infos, nil
}

// Delete removes a secret and its earlier versions, and says whether there was one. A later Put goes on
// with the next version; until then there is no such secret, and none is made.
func (s *Store) Delete(ctx context.Context, key string) (bool, error) {
	for range 3 {
		r, rev, err := s.read(ctx, key)
		if err != nil || r.current() == 0 {
			return false, err
		}
		clear(r.Value)
		won, err := s.write(ctx, key, record{Version: r.Version, Updated: s.now().UTC(), Deleted: true}, rev)
		if err != nil {
			return false, err
		}
		if won {
			return true, s.deleteEarlier(ctx, key)
		}
	}
	return false, fmt.Errorf("delete %s: %w", key, state.ErrConflict)
}

func (s *Store) deleteEarlier(ctx context.Context, key string) error {
	pairs, err := s.kv.List(ctx, prefix+key+"@")
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if _, err := s.kv.Delete(ctx, p.Key); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) read(ctx context.Context, key string) (record, int64, error) {
	box, rev, err := s.kv.Get(ctx, prefix+key)
	if err != nil || rev == 0 {
		return record{}, 0, err
	}
	r, err := s.open(prefix+key, box)
	return r, rev, err
}

func (s *Store) open(where string, box []byte) (record, error) {
	plain, err := s.seal.Open(where, box)
	if err != nil {
		return record{}, err
	}
	defer clear(plain)
	var r record
	if err := json.Unmarshal(plain, &r); err != nil {
		return record{}, errors.New("decode sealed secret: not a record")
	}
	return r, nil
}

func (s *Store) write(ctx context.Context, key string, r record, rev int64) (bool, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return false, errors.New("encode secret")
	}
	defer clear(plain)
	return s.kv.PutIf(ctx, prefix+key, s.seal.Seal(prefix+key, plain), rev)
}
