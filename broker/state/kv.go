// Package state holds what brokers share (DESIGN §7): spent nonces,
// revocations, reference values, the catalog, the policy pin and the sealed
// keys, as typed records over a small key-value interface. It knows nothing of
// etcd; package etcd implements KV.
package state

import (
	"context"
	"errors"
	"time"
)

// KV is a linearizable key-value store. A write is durable, on a majority,
// when it returns. No method retries; all are safe for concurrent use. An error
// means that nothing can be said about whether a write happened.
type KV interface {
	// Get returns the value and its revision; revision 0 means absent.
	Get(ctx context.Context, key string) (value []byte, revision int64, err error)
	// List returns all pairs under prefix, sorted by key.
	List(ctx context.Context, prefix string) ([]Pair, error)
	// Put writes whatever was there before.
	Put(ctx context.Context, key string, value []byte) error
	// PutIf writes only if the key's revision is still the given one (0: the
	// key must not exist), and says whether it did.
	PutIf(ctx context.Context, key string, value []byte, revision int64) (bool, error)
	// Delete says whether the key was there.
	Delete(ctx context.Context, key string) (bool, error)
	// CreateUntil writes the key if it does not exist and says whether it did.
	// The key may be forgotten some time after expires, not before.
	CreateUntil(ctx context.Context, key string, expires time.Time) (bool, error)
	// Watch calls apply with everything under prefix, now and after each
	// change, and alive whenever the applied view is known to have been current
	// at the time given, until ctx ends or the view is lost; then it returns an
	// error and may be called again. The two are never called concurrently.
	Watch(ctx context.Context, prefix string, apply func([]Pair), alive func(asOf time.Time)) error
}

// Pair is a key, relative to the store's root, with its value and revision.
type Pair struct {
	Key      string
	Value    []byte
	Revision int64
}

// ErrConflict is returned where somebody else wrote first.
var ErrConflict = errors.New("changed by somebody else meanwhile")
