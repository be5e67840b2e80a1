package broker

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

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
	Identities     []string    `json:"identities,omitempty"` // what else the machine and its devices are known by
	HostData       string      `json:"host_data,omitempty"`
	TCBStatus      string      `json:"tcb_status,omitempty"`
	Advisories     []string    `json:"advisories,omitempty"`
	Measurements   []string    `json:"measurements"` // "name=value"; of a further device "type/name=value"
	// Devices are further devices whose evidence came with this one: "nvidia-gpu=<chip id>".
	Devices      []string         `json:"devices,omitempty"`
	DeviceTCB    []string         `json:"device_tcb,omitempty"` // "{hardware_model}/{TCB status}" of each
	Recipient    string           `json:"recipient"`            // thumbprint of the attested key, hex
	PolicyDigest string           `json:"policy_digest,omitempty"`
	Session      string           `json:"session,omitempty"` // the watching session, or whose leases these are
	Resources    []RecordResource `json:"resources"`
	// Withholds is the id of an earlier record, with outcome released, whose secrets were not sent after all: it was
	// revoked while the log was slow, or the log did not say in time that it has the record.
	Withholds string `json:"withholds,omitempty"`
	// Error is what went wrong besides policy, for operators.
	Error string `json:"error,omitempty"`
}

// withhold makes rec the record that what it said was released was not sent.
func (r *Record) withhold() { r.Withholds, r.ID, r.Outcome = r.ID, rand.Text(), Failed }

// addDevice notes what can be revoked about a further device: its chip, measurements, TCB and advisories.
func (r *Record) addDevice(c attest.Claims) {
	r.Devices = append(r.Devices, string(c.Type)+"="+c.ChipID)
	for _, name := range slices.Sorted(maps.Keys(c.Measurements)) {
		r.Measurements = append(r.Measurements, string(c.Type)+"/"+name+"="+c.Measurements[name])
	}
	r.DeviceTCB = append(r.DeviceTCB, c.HardwareModel+"/"+c.TCB.Status)
	for _, a := range c.TCB.Advisories {
		if !slices.Contains(r.Advisories, a) {
			r.Advisories = append(slices.Clip(r.Advisories), a)
		}
	}
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

// MaxError bounds the text of an error in a record or in the broker's own log, in bytes.
const MaxError = 4 << 10

// Bounds of records about requests that proved nothing, in bytes. One has about
// 500, so that one is kept every two seconds; at most it has 5,000.
const (
	maxUnprovenError = 512
	maxUnprovenPath  = 128
	maxUnprovenPaths = 4
	unprovenRate     = 256 // a second
	unprovenBurst    = 32 << 10
)

// Clip is s in at most size bytes, in UTF-8 and without control characters, of
// which JSON makes six bytes each. What is left out is marked.
func Clip(s string, size int) string {
	const mark = "…"
	s = strings.ToValidUTF8(s, "\ufffd")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return '\ufffd'
		}
		return r
	}, s)
	if len(s) <= size {
		return s
	}
	cut := size - len(mark)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + mark
}
