package state

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claviger/claviger/broker"
)

// Key prefixes.
const (
	nonces      = "nonces/"
	config      = "config/" // watched as one: revocations, references, catalog, policy pin
	revocations = config + "revocations/"
	identities  = config + "identities/" // which names are one machine's
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

	// The hooks put in force what is followed. They are called from Run, one at a
	// time, with the whole new value, of a burst of changes with the last.

	// OnReferences gets the sets that are usable; unusable says what is wrong with
	// the others, nil if there are none. What is not in force when it returns an error must not be used.
	OnReferences func(sets []broker.ReferenceSet, unusable error) error
	// OnCatalog gets the entries that decode, and the patterns of the others,
	// with the reason. It returns those that it could not put in force, likewise by
	// pattern. Paths of either must be released to nobody.
	OnCatalog   func(entries []broker.CatalogEntry, unusable map[string]error) map[string]error
	OnPolicyPin func(digest string)
	// OnChange is called after the others, and after changes of revocations, a few times a second at most.
	OnChange func()
	// CheckCatalog says why an entry cannot be put into the catalog, which is
	// after with it and was before without.
	CheckCatalog func(put broker.CatalogEntry, before, after []broker.CatalogEntry) error

	running atomic.Bool
	work    chan struct{} // the view changed
	tell    chan struct{} // OnChange is due

	mu      sync.RWMutex
	view    *view              // guarded by mu; read-only for those who do not hold it for writing
	current time.Time          // guarded by mu; when the view was last known to be current
	due     changes            // guarded by mu; what the hooks have not been told
	telling changes            // guarded by mu; what they are being told
	inForce int64              // guarded by mu; the revision that the hooks have put in force
	moved   chan struct{}      // guarded by mu; closed when the view or inForce advances
	refused map[string]Problem // guarded by mu; what the hooks could not put in force, by key
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
		kv: cfg.KV, seal: aead, log: cfg.Logger, now: cfg.Now, view: newView(),
		work: make(chan struct{}, 1), tell: make(chan struct{}, 1), moved: make(chan struct{}),
		OnReferences: func([]broker.ReferenceSet, error) error { return nil },
		OnCatalog:    func([]broker.CatalogEntry, map[string]error) map[string]error { return nil },
		OnPolicyPin:  func(string) {}, OnChange: func() {},
		CheckCatalog: func(_ broker.CatalogEntry, _, after []broker.CatalogEntry) error {
			_, err := broker.NewCatalog(after)
			return err
		},
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
