package broker

import (
	"context"
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
}

// LeasedSource is a Source whose secrets can be leased (CatalogEntry.Kind.Leased).
// What Fetch returns for a leased kind belongs to Granted.Owner.
type LeasedSource interface {
	Source
	// NewOwner makes an owner that ends by itself after ttl unless renewed.
	NewOwner(ctx context.Context, session string, ttl time.Duration) (Owner, error)
	// RenewOwner keeps the owner and its leases for another ttl. An error that
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
