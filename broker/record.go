package broker

import (
	"context"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// Outcome of a request whose evidence verified.
type Outcome string

// Outcomes.
const (
	Released Outcome = "released"
	Denied   Outcome = "denied" // policy, revocation, unknown resource, spent nonce
	Failed   Outcome = "failed" // our fault: a source or the store did not answer
)

// Record is one entry of the audit log (DESIGN §7). It never holds a secret.
type Record struct {
	Version   int       `json:"v"` // 1
	ID        string    `json:"id"`
	Time      time.Time `json:"time"`
	BrokerID  string    `json:"broker_id"` // hex
	Outcome   Outcome   `json:"outcome"`
	Simulated bool      `json:"simulated,omitempty"`
	// Unproven: the evidence did not verify, so nothing here is known to be true of any machine. Such records are sampled.
	Unproven       bool        `json:"unproven,omitempty"`
	EvidenceType   attest.Type `json:"evidence_type"`
	EvidenceDigest string      `json:"evidence_digest"` // "sha256:…" over the report
	ClaimsDigest   string      `json:"claims_digest"`   // "sha256:…" over the policy's input.attestation
	HardwareModel  string      `json:"hardware_model"`
	ChipID         string      `json:"chip_id,omitempty"`
	HostData       string      `json:"host_data,omitempty"`
	TCBStatus      string      `json:"tcb_status,omitempty"`
	Advisories     []string    `json:"advisories,omitempty"`
	Measurements   []string    `json:"measurements"`
	// Devices are further devices whose evidence came with this one: "nvidia-gpu=<chip id>".
	Devices      []string         `json:"devices,omitempty"`
	Recipient    string           `json:"recipient"` // thumbprint of the attested key, hex
	PolicyDigest string           `json:"policy_digest,omitempty"`
	Session      string           `json:"session,omitempty"` // the watching session, or whose leases these are
	Resources    []RecordResource `json:"resources"`
	// Error is what went wrong besides policy, for operators.
	Error string `json:"error,omitempty"`
}

// RecordResource is the decision about one resource.
type RecordResource struct {
	Path    string           `json:"path"`
	Policy  string           `json:"policy,omitempty"`
	Allow   bool             `json:"allow"`
	Reasons []DecisionReason `json:"reasons,omitempty"`
	Version string           `json:"version,omitempty"`
	// Unchanged: the guest has that version, it was not sent again.
	Unchanged bool `json:"unchanged,omitempty"`
	// FromCache: the source did not answer, an earlier answer stood in.
	FromCache bool `json:"served_from_cache,omitempty"`
}

// Position is where a record stands in the log.
type Position struct {
	Origin   string // the log's name, as in its checkpoints
	Index    uint64
	LeafHash [32]byte // RFC 6962
}

// Log is the audit log. Append returns when the record is durable; if it
// fails, nothing is released. It retries nothing and is safe for concurrent use.
type Log interface {
	Append(ctx context.Context, r Record) (Position, error)
}

// Store remembers spent nonces for all replicas. Redeem returns nil exactly
// once per id over all replicas and restarts, ErrSpent after that, and another
// error if it cannot tell; it is durable on return and need not remember past expires.
type Store interface {
	Redeem(ctx context.Context, id NonceID, expires time.Time) error
}

// Source reads secrets. Fetch redeems the grant before it touches anything.
// With CreateBytes set it makes the secret if there is none; of two racing
// calls both return the same value. It returns ErrNoSecret if there is none.
type Source interface {
	Fetch(ctx context.Context, g *Grant) (Secret, error)
}
