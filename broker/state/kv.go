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
	// List returns all pairs under prefix, sorted by key, as they were at one
	// moment. It asks for them in pages, but holds them all: see Page.
	List(ctx context.Context, prefix string) ([]Pair, error)
	// Page returns the first limit pairs under prefix whose keys come after the
	// given one ("": from the start), sorted by key. Fewer than limit are the last.
	Page(ctx context.Context, prefix, after string, limit int) ([]Pair, error)
	// Put writes whatever was there before.
	Put(ctx context.Context, key string, value []byte) error
	// PutIf writes only if the key's revision is still the given one (0: the
	// key must not exist), and says whether it did.
	PutIf(ctx context.Context, key string, value []byte, revision int64) (bool, error)
	// Delete says whether the key was there.
	Delete(ctx context.Context, key string) (bool, error)
	// CreateUntil writes the key if it does not exist and says whether it did.
	// The key may be forgotten some time after expires, not before; then no key that
	// expires at about that time is created any more, by whoever believes that it is earlier.
	CreateUntil(ctx context.Context, key string, expires time.Time) (bool, error)
	// Commit does a change on its condition, and says whether it did and at which
	// revision. A deletion of what is not there is not done.
	Commit(ctx context.Context, c Change) (revision int64, done bool, err error)
	// Watch calls apply with everything under prefix, and then with what changed,
	// until ctx ends or the view is lost; then it returns an error and may be
	// called again. Changes that arrive while apply works come together in the next
	// call, of each key the last. It calls alive whenever all that was written under
	// prefix before the time given is known to have been applied. The two are
	// never called concurrently.
	Watch(ctx context.Context, prefix string, apply func(Update), alive func(asOf time.Time)) error
}

// Change is a write of one key.
type Change struct {
	Key    string
	Value  []byte
	Delete bool
	// Unless, if not empty, is a prefix: the change is done only if no key under
	// it was written after revision Since. (Deletions do not count.)
	Unless string
	Since  int64
}

// Update is what changed under a prefix.
type Update struct {
	// Whole: the pairs are all that there is, and what is not among them is gone.
	Whole bool
	Pairs []Pair
	// Revision is that of the store up to which all changes are in this update or an earlier one.
	Revision int64
}

// Pair is a key, relative to the store's root, with its value and revision.
type Pair struct {
	Key      string
	Value    []byte
	Revision int64
	Deleted  bool // of an Update only
}

// ErrConflict is returned where somebody else wrote first.
var ErrConflict = errors.New("changed by somebody else meanwhile")
