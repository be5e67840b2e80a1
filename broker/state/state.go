package state

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/broker"
)

// Key prefixes.
const (
	nonces      = "nonces/"
	config      = "config/" // watched as one: revocations, references, catalog, policy pin
	revocations = config + "revocations/"
	references  = config + "references/"
	catalog     = config + "catalog/"
	policyPin   = config + "policy-pin"
	sealed      = "sealed/"
)

// MaxStaleness is how old the view of revocations may be before nothing is
// released any more (guarantee G6).
const MaxStaleness = time.Second

// State is the brokers' shared state. Open it, set the hooks, then Run it.
type State struct {
	kv   KV
	seal cipher.AEAD
	log  *slog.Logger
	now  func() time.Time

	// The hooks are called from Run, one at a time, with the whole new value.
	OnReferences func([]broker.ReferenceSet)
	OnCatalog    func([]broker.CatalogEntry)
	OnPolicyPin  func(digest string)
	// OnChange is called after the others.
	OnChange func()

	mu         sync.RWMutex
	revoked    map[broker.Subject]broker.Revocation // guarded by mu
	unreadable string                               // guarded by mu; key of a revocation that does not decode
	current    time.Time                            // guarded by mu; when the view was last known to be current
}

// Config of a State.
type Config struct {
	KV      KV
	SealKey []byte // 32 bytes; encrypts identity keys and embedded secrets at rest
	Logger  *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// New checks the configuration.
func New(cfg Config) (*State, error) {
	if len(cfg.SealKey) != 32 {
		return nil, fmt.Errorf("seal key has %d bytes, want 32", len(cfg.SealKey))
	}
	block, err := aes.NewCipher(cfg.SealKey)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &State{
		kv: cfg.KV, seal: aead, log: cfg.Logger, now: cfg.Now, revoked: map[broker.Subject]broker.Revocation{},
		OnReferences: func([]broker.ReferenceSet) {}, OnCatalog: func([]broker.CatalogEntry) {}, OnPolicyPin: func(string) {}, OnChange: func() {},
	}, nil
}

// Redeem implements broker.Store. It is the one linearizable write of a release.
func (s *State) Redeem(ctx context.Context, id broker.NonceID, expires time.Time) error {
	created, err := s.kv.CreateUntil(ctx, nonces+hex.EncodeToString(id[:]), expires)
	if err != nil {
		return err
	}
	if !created {
		return broker.ErrSpent
	}
	return nil
}

// Run follows the shared configuration until ctx ends. ready is closed after the first view.
func (s *State) Run(ctx context.Context, ready chan<- struct{}) error {
	var once sync.Once
	for {
		err := s.kv.Watch(ctx, config, func(all []Pair) {
			s.apply(all)
			once.Do(func() { close(ready) })
		}, s.alive)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.log.Warn("lost the view of shared state, trying again", "error", err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *State) alive(asOf time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = asOf
}

func (s *State) apply(all []Pair) {
	revoked := map[broker.Subject]broker.Revocation{}
	var refs []broker.ReferenceSet
	var entries []broker.CatalogEntry
	pin, unreadable := "", ""
	for _, p := range all {
		var err error
		switch {
		case strings.HasPrefix(p.Key, revocations):
			var r broker.Revocation
			if err = json.Unmarshal(p.Value, &r); err == nil {
				err = r.Validate()
			}
			if err == nil {
				revoked[r.Canonical()] = r
			} else {
				unreadable = p.Key
			}
		case strings.HasPrefix(p.Key, references):
			var r broker.ReferenceSet
			if err = json.Unmarshal(p.Value, &r); err == nil {
				refs = append(refs, r)
			}
		case strings.HasPrefix(p.Key, catalog):
			var e broker.CatalogEntry
			if err = json.Unmarshal(p.Value, &e); err == nil {
				entries = append(entries, e)
			}
		case p.Key == policyPin:
			pin = string(p.Value)
		}
		if err != nil {
			s.log.Error("shared state holds a record that does not decode", "key", p.Key, "error", err)
		}
	}
	s.mu.Lock()
	s.revoked, s.unreadable = revoked, unreadable
	s.mu.Unlock()
	s.OnReferences(refs)
	s.OnCatalog(entries)
	s.OnPolicyPin(pin)
	s.OnChange()
}

// Revoked implements broker.Revocations: from memory, and never from an old view.
func (s *State) Revoked(subjects ...broker.Subject) (broker.Subject, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if age := s.now().Sub(s.current); age > MaxStaleness {
		return broker.Subject{}, false, fmt.Errorf("view of revocations is older than %s", MaxStaleness)
	}
	if s.unreadable != "" { // it might be about anything
		return broker.Subject{}, false, fmt.Errorf("revocation %s does not decode", s.unreadable)
	}
	for _, sub := range subjects {
		if _, ok := s.revoked[sub.Canonical()]; ok {
			return sub, true, nil
		}
	}
	return broker.Subject{}, false, nil
}

// Revoke persists a revocation; on return it is durable, and within a second it holds on every replica.
func (s *State) Revoke(ctx context.Context, r broker.Revocation) error {
	if err := r.Validate(); err != nil {
		return err
	}
	r.Subject = r.Canonical()
	return s.putJSON(ctx, revocations+revocationKey(r.Subject), r)
}

// Unrevoke takes a revocation back and says whether there was one.
func (s *State) Unrevoke(ctx context.Context, sub broker.Subject) (bool, error) {
	return s.kv.Delete(ctx, revocations+revocationKey(sub.Canonical()))
}

// Revocations lists them, from the store.
func (s *State) Revocations(ctx context.Context) ([]broker.Revocation, error) {
	return listJSON[broker.Revocation](ctx, s.kv, revocations)
}

func revocationKey(sub broker.Subject) string {
	return string(sub.Kind) + "/" + base64.RawURLEncoding.EncodeToString([]byte(sub.Value))
}

// PutReferenceSet persists a reference-value set.
func (s *State) PutReferenceSet(ctx context.Context, r broker.ReferenceSet) error {
	return s.putJSON(ctx, references+r.Name, r)
}

// DeleteReferenceSet says whether there was one.
func (s *State) DeleteReferenceSet(ctx context.Context, name string) (bool, error) {
	return s.kv.Delete(ctx, references+name)
}

// ReferenceSets lists them, from the store.
func (s *State) ReferenceSets(ctx context.Context) ([]broker.ReferenceSet, error) {
	return listJSON[broker.ReferenceSet](ctx, s.kv, references)
}

// PutCatalogEntry persists a catalog entry, by its pattern.
func (s *State) PutCatalogEntry(ctx context.Context, e broker.CatalogEntry) error {
	if err := e.Validate(); err != nil {
		return err
	}
	return s.putJSON(ctx, catalog+base64.RawURLEncoding.EncodeToString([]byte(e.Pattern)), e)
}

// DeleteCatalogEntry says whether there was one.
func (s *State) DeleteCatalogEntry(ctx context.Context, pattern string) (bool, error) {
	return s.kv.Delete(ctx, catalog+base64.RawURLEncoding.EncodeToString([]byte(pattern)))
}

// CatalogEntries lists them, from the store.
func (s *State) CatalogEntries(ctx context.Context) ([]broker.CatalogEntry, error) {
	return listJSON[broker.CatalogEntry](ctx, s.kv, catalog)
}

// PinPolicy pins a bundle digest on every broker; "" takes the pin away.
func (s *State) PinPolicy(ctx context.Context, digest string) error {
	if digest == "" {
		_, err := s.kv.Delete(ctx, policyPin)
		return err
	}
	return s.kv.Put(ctx, policyPin, []byte(digest))
}

// SealedKey returns the key of that name, made by generate and sealed at rest
// where there is none. Of several brokers starting at once all get the same.
func (s *State) SealedKey(ctx context.Context, name string, generate func() ([]byte, error)) ([]byte, error) {
	for range 3 {
		box, rev, err := s.kv.Get(ctx, sealed+name)
		if err != nil {
			return nil, fmt.Errorf("read sealed key %s: %w", name, err)
		}
		if rev != 0 {
			return s.Open(sealed+name, box)
		}
		key, err := generate()
		if err != nil {
			return nil, fmt.Errorf("generate key %s: %w", name, err)
		}
		won, err := s.kv.PutIf(ctx, sealed+name, s.Seal(sealed+name, key), 0)
		if err != nil {
			return nil, fmt.Errorf("write sealed key %s: %w", name, err)
		}
		if won {
			return key, nil
		}
	}
	return nil, fmt.Errorf("sealed key %s: %w", name, ErrConflict)
}

// GenerateKey32 makes 32 random bytes.
func GenerateKey32() ([]byte, error) {
	k := make([]byte, 32)
	_, err := rand.Read(k)
	return k, err
}

// Seal encrypts a value at rest, bound to where it is kept (AES-256-GCM).
func (s *State) Seal(where string, plain []byte) []byte {
	return s.seal.Seal(nil, nil, plain, []byte("claviger/v1/sealed/"+where))
}

// Open decrypts what Seal made for the same place.
func (s *State) Open(where string, box []byte) ([]byte, error) {
	plain, err := s.seal.Open(nil, nil, box, []byte("claviger/v1/sealed/"+where))
	if err != nil {
		return nil, errors.New("cannot open sealed value " + where + ": wrong seal key, or altered")
	}
	return plain, nil
}

// KV is the store underneath, for adapters that keep records of their own.
func (s *State) KV() KV { return s.kv }

func (s *State) putJSON(ctx context.Context, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	return s.kv.Put(ctx, key, b)
}

func listJSON[T any](ctx context.Context, kv KV, prefix string) ([]T, error) {
	pairs, err := kv.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(pairs))
	for _, p := range pairs {
		var v T
		if err := json.Unmarshal(p.Value, &v); err != nil {
			return nil, fmt.Errorf("decode %s: %w", p.Key, err)
		}
		out = append(out, v)
	}
	return out, nil
}
