package broker

import (
	"context"
	"slices"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// Session is one workload's attestation for as long as it is believed: what
// it watches, and which version of it the workload has. It is shared by all
// brokers, so that a workload can go on with another one.
type Session struct {
	ID         string    `json:"id"`
	Broker     string    `json:"broker"` // Config.Instance of the one that serves it
	Stream     string    `json:"stream"` // random; which of its streams is the last
	StartedAt  time.Time `json:"started_at"`
	AttestedAt time.Time `json:"attested_at"`
	ExpiresAt  time.Time `json:"expires_at"`
	Recipient  string    `json:"recipient"` // thumbprint of the attested key, hex: only who has it can go on with the session

	EvidenceType  attest.Type `json:"evidence_type"`
	HardwareModel string      `json:"hardware_model"`
	ChipID        string      `json:"chip_id,omitempty"`
	HostData      string      `json:"host_data,omitempty"`
	Measurements  []string    `json:"measurements"`
	Simulated     bool        `json:"simulated,omitempty"`

	// Subjects are what can be revoked about its evidence, devices included, and Policy the digest of the bundle that allowed it last.
	Subjects []Subject `json:"subjects,omitempty"`
	Policy   string    `json:"policy,omitempty"`

	Holdings []Holding `json:"holdings"` // one per resource, in the order asked for
	Sequence uint64    `json:"sequence"`
}

// Concerns says whether a revocation of the subject ends the session. (That of a version does not: the next one replaces it.)
func (s Session) Concerns(x Subject) bool {
	x = x.Canonical()
	same := func(o Subject) bool { return o.Canonical() == x }
	return slices.ContainsFunc(s.Subjects, same) || same(Subject{RevokeSession, s.ID}) || same(Subject{RevokePolicy, s.Policy}) ||
		slices.ContainsFunc(s.Holdings, func(h Holding) bool { return same(Subject{RevokeResource, h.Resource}) })
}

// Holding is what a session has of one resource.
type Holding struct {
	Resource       string    `json:"resource"`
	Version        string    `json:"version,omitempty"` // last acknowledged
	AcknowledgedAt time.Time `json:"acknowledged_at,omitzero"`
	Pending        string    `json:"pending,omitempty"` // sent, not acknowledged
	Edition        string    `json:"edition,omitempty"` // of the version last sent, see Editioner; empty: not known
	SentAt         time.Time `json:"sent_at,omitzero"`
	// RetiresAt is when Version may not be used any more; zero: it is the newest, or nobody says.
	RetiresAt time.Time `json:"retires_at,omitzero"`
	Leased    bool      `json:"leased,omitempty"`
}

// SessionBook keeps sessions for all brokers. A session is written by the
// broker that serves it only. GetSession returns ErrNoSecret where there is
// none. Safe for concurrent use.
type SessionBook interface {
	PutSession(ctx context.Context, s Session) error
	GetSession(ctx context.Context, id string) (Session, error)
	DeleteSession(ctx context.Context, id string) error
}

// Versions tells which version of a secret is current, having asked its source
// once for all brokers and guests. It never reads a secret.
type Versions interface {
	// Follow has wake receive, without blocking, whenever the current version
	// of e may have changed, until stop is called.
	Follow(e CatalogEntry, wake chan<- struct{}) (stop func())
	// Current is the newest known version; "" if none is known yet.
	Current(e CatalogEntry) string
}

// Editions is a Versions that knows editions (see Editioner); "" where there is none.
type Editions interface {
	Edition(e CatalogEntry) string
}

// Stream is a guest's side of Watch. Send blocks while the guest does not read; both fail once Watch has returned.
type Stream interface {
	Recv() (WatchMessage, error) // io.EOF at its end
	Send(WatchUpdate) error
}

// WatchMessage is what a guest says: one of the two.
type WatchMessage struct {
	Subscribe   *Subscription
	Acknowledge *Acknowledgement
}

// Subscription starts or goes on with a session, or re-attests within one.
type Subscription struct {
	Request  Request
	Session  string            // to go on with; empty: a new one
	Held     map[string]string // version by resource: not sent again
	Sequence uint64            // the highest that the guest has accepted
}

// Acknowledgement says that a version is in use.
type Acknowledgement struct{ Resource, Version string }

// WatchUpdate is what a guest is told: one of the four.
type WatchUpdate struct {
	Started  *SessionStarted
	Secret   *SecretVersion
	Reattest *Reattest
	Ended    *EndReason
}

// SessionStarted answers an accepted Subscription.
type SessionStarted struct {
	ID        string
	ExpiresAt time.Time
	Resumed   bool
}

// SecretVersion is one version of one resource.
type SecretVersion struct {
	Wrapped
	Receipt           Receipt
	PreviousRetiresAt time.Time // zero: nobody says
}

// Reattest asks for fresh evidence over a nonce.
type Reattest struct {
	Nonce    []byte
	Deadline time.Time
	Reason   ReattestReason
}

// ReattestReason says why. The set is closed.
type ReattestReason string

// Reasons to re-attest.
const (
	ReattestExpires    ReattestReason = "expires"
	ReattestPolicy     ReattestReason = "policy"
	ReattestCollateral ReattestReason = "collateral"
)

// EndReason says why a session ended. The set is closed.
type EndReason string

// Reasons to end.
const (
	EndDenied  EndReason = "denied"
	EndExpired EndReason = "expired"
	EndMoved   EndReason = "moved" // come back to any broker, and go on
	EndTooSlow EndReason = "too_slow"
)
