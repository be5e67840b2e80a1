package broker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/broker/seal"
)

// Grant is the authority to get one secret once. Only the broker's main flow
// mints it, after policy allowed and the nonce was spent; a Source redeems it
// before it touches anything. The zero Grant grants nothing.
type Grant = grant.Grant[Granted]

// Granted is what a Grant allows.
type Granted struct {
	Entry CatalogEntry // with the variables of Key and Options filled in
	// Input is what the guest sent for this resource, bound by its evidence:
	// the CSR for KindPKI (PKCS #10, DER), the ciphertext for KindTransitDecrypt
	// (Vault's text form, "vault:v1:…"). Nil where it sent none.
	Input []byte
	// Recipient is the attested key that the secret will be wrapped to, and PublicKey its encoding (package seal).
	Recipient *seal.Recipient
	PublicKey []byte
	// Owner is what leases must belong to; nil for an entry whose kind is not leased.
	Owner *Owner
	// The appraisal, for sources that make a statement about it (KindEAR).
	Claims       attest.Claims
	PolicyDigest string
	DecisionID   string
	TTL          time.Duration // how long the guest may use the secret
	// Cap is the longest that what the source makes may live, as policy or catalog say; 0: neither does.
	Cap time.Duration
	Now time.Time
	// Absent is to be asked about a version that the source does not have, before it is made or said not to be there: an
	// error, to be passed on, says that it was there, or that nobody can tell. It may have been made between the two
	// questions: look again before you pass an ErrVanished on. Nil: there is nothing to ask.
	Absent func(ctx context.Context, version int) error
}

// Secret is a value on its way to a guest. Whoever holds it last wipes it.
type Secret struct {
	Value   []byte
	Version string // opaque to the broker; "" where the source has none. A later version of one secret differs from all earlier ones.
	Edition string // tells two of one Version apart, see Editioner; "" where that cannot be
	// ContentType is the media type of Value; empty means opaque bytes.
	ContentType string
	Lease       string    // the source's lease id, or empty
	Expires     time.Time // when the source ends the secret whatever we do; zero: it does not say
	// FromCache says that the source did not answer and an earlier answer stood in.
	FromCache bool
}

// Wipe overwrites the value.
func (s *Secret) Wipe() { clear(s.Value) }

// Versioner is a Source that can say which version of a secret is current
// without reading it. ErrNoSecret where there is none. Safe for concurrent use.
type Versioner interface {
	CurrentVersion(ctx context.Context, e CatalogEntry) (string, error)
}

// Editioner is a Versioner whose versions may come twice: where a secret was deleted
// with its history, and written again, they count from the start. The edition,
// opaque, tells two of one number apart. Safe for concurrent use.
type Editioner interface {
	CurrentEdition(ctx context.Context, e CatalogEntry) (version, edition string, err error)
}

// Owner is the authority in the source that a session's leases belong to (in
// Vault: a token of its own). When it ends, they end; so nothing is orphaned
// if a broker dies between asking for a lease and writing it down.
type Owner struct {
	Source string `json:"source"`
	// ID names the owner and gives no access (in Vault: the token's accessor).
	ID string `json:"id"`
	// Secret gives access. It is kept in memory and, sealed, in the shared state.
	Secret []byte `json:"-"`
	// Leases are the ids of what belongs to it.
	Leases []string `json:"leases,omitempty"`
	// Of says more about them, by id. (Of leases that an earlier version made it says nothing.)
	Of map[string]Leased `json:"of,omitempty"`
}

// Leased is what a lease is for.
type Leased struct {
	Resource string `json:"resource"`
	Version  string `json:"version"` // of the secret
	// Cap is the longest that it may be renewed for at a time, as policy or catalog say; 0: neither does.
	Cap time.Duration `json:"cap,omitempty"`
	// ReplaceAt is when a session is to get another, of a lease that cannot be renewed; zero: it is renewed.
	ReplaceAt time.Time `json:"replace_at,omitzero"`
}

// LeaseTTL is for how long a lease of the owner may be renewed, at most for ttl.
func (o Owner) LeaseTTL(id string, ttl time.Duration) time.Duration {
	if limit := o.Of[id].Cap; limit > 0 {
		return min(ttl, limit)
	}
	return ttl
}

// note adds a lease.
func (o *Owner) note(id string, l Leased) {
	o.Leases = append(slices.Clone(o.Leases), id)
	if o.Of = maps.Clone(o.Of); o.Of == nil {
		o.Of = map[string]Leased{}
	}
	o.Of[id] = l
}

// drop forgets the leases that which names: nobody renews them any more.
func (o *Owner) drop(which func(id string) bool) {
	o.Leases = slices.DeleteFunc(slices.Clone(o.Leases), which)
	o.Of = maps.Clone(o.Of)
	maps.DeleteFunc(o.Of, func(id string, _ Leased) bool { return !slices.Contains(o.Leases, id) })
}

// leases says whether the owner has a lease for that version of a resource.
func (o Owner) leases(source, resource, version string) bool {
	if o.Source != source {
		return false
	}
	for _, id := range o.Leases {
		if l, ok := o.Of[id]; !ok || l.Resource == resource && l.Version == version { // an earlier version did not say
			return true
		}
	}
	return false
}

// RenewError says what of an owner could not be renewed, each by itself.
type RenewError struct {
	// Owner is nil where the owner was renewed. It never wraps ErrNoSecret: then nothing is left to renew.
	Owner error
	// Leases is why, by lease id. ErrNoSecret: it has ended; ErrEnding: it will, soon; else it may be tried again.
	Leases map[string]error
	// All says that these are all the leases that were to be renewed.
	All bool
}

func (e *RenewError) Error() string {
	var all []string
	if e.Owner != nil {
		all = append(all, e.Owner.Error())
	}
	for _, id := range slices.Sorted(maps.Keys(e.Leases)) {
		all = append(all, e.Leases[id].Error())
	}
	return strings.Join(all, "; ")
}

// Is says what is true of the whole: of the owner, or of each lease that it was asked to renew.
func (e *RenewError) Is(target error) bool {
	if e.Owner != nil && errors.Is(e.Owner, target) {
		return true
	}
	for _, err := range e.Leases {
		if !errors.Is(err, target) {
			return false
		}
	}
	return e.All
}

// LeasedSource is a Source whose secrets can be leased (CatalogEntry.Kind.Leased).
// What Fetch returns for a leased kind belongs to Granted.Owner.
type LeasedSource interface {
	Source
	// NewOwner makes an owner that ends by itself after ttl unless renewed.
	NewOwner(ctx context.Context, session string, ttl time.Duration) (Owner, error)
	// RenewOwner keeps the owner for another ttl, and each of its leases for what Owner.LeaseTTL says. A *RenewError
	// says what could not be renewed; everything else was. Any other error is about the owner: one that
	// wraps ErrNoSecret says that it has ended: what belonged to it is gone. One
	// that wraps ErrEnding says that it is time for another.
	RenewOwner(ctx context.Context, o Owner, ttl time.Duration) error
	// RevokeOwner ends the owner and all its leases at once. It is idempotent:
	// an owner that is gone already is no error.
	RevokeOwner(ctx context.Context, o Owner) error
}

// Rotator is a Source that can make a new version of a secret on an operator's word.
type Rotator interface {
	// Rotate makes a new version and returns its name. ErrNotRotatable where the kind or the entry does not allow it.
	Rotate(ctx context.Context, e CatalogEntry) (version string, err error)
}
