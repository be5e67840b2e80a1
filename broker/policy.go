package broker

import (
	"context"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// Policy decides. Decide returns an error only if no decision could be made
// (evaluation error, no such policy); callers treat that as deny. One that wraps
// ErrUnavailable or context.DeadlineExceeded is not the guest's fault: no policy is in force, or there was no time.
// It is safe for concurrent use and never touches the network.
type Policy interface {
	Decide(ctx context.Context, in PolicyInput) (Decision, error)
}

// PolicyInput is the document a policy sees as input (DESIGN §5).
type PolicyInput struct {
	Attestation attest.Claims  `json:"attestation"`
	Resource    PolicyResource `json:"resource"`
	Request     PolicyRequest  `json:"request"`
	Time        time.Time      `json:"time"` // RFC 3339, UTC
	Chip        PolicyChip     `json:"chip"`
}

// PolicyChip is what this broker knows of the chips, apart from what they say of themselves.
type PolicyChip struct {
	// Networks is to how many networks (IPv4 /24, IPv6 /48) this broker released something lately (sightingTime) for the
	// chip with the same measurements, the network that asks now included; of several chips the most. 0: nobody knows.
	// A virtual machine that moves has two for a while; a stolen key has two for long. It is a hint: a chip is the
	// host's, so that two guests of one image on one host count together; other brokers' releases do not count, and
	// neither does what came through one proxy or with another image.
	Networks int `json:"networks"`
}

// PolicyResource says what is asked for, as the catalog has it.
type PolicyResource struct {
	Path string `json:"path"` // as requested, for example "disks/vm-17"
	// Policy is the last element of the policy's package: "disks" means package claviger.release.disks.
	Policy string `json:"policy"`
	// Params are the values of the catalog pattern's variables: {"vm": "vm-17"} for "disks/{vm}".
	Params map[string]string `json:"params"`
	Labels map[string]string `json:"labels"` // from the catalog entry
}

// PolicyRequest says how it is asked for.
type PolicyRequest struct {
	Resources    []string `json:"resources"` // all of this request
	KeyAlgorithm string   `json:"key_algorithm"`
	PostQuantum  bool     `json:"post_quantum"`
}

// Decision is a policy's answer. The zero value denies.
type Decision struct {
	Allow        bool             `json:"allow"`
	Reasons      []DecisionReason `json:"reasons,omitempty"` // why not; for operators only
	Package      string           `json:"package"`           // "claviger.release.disks"
	PolicyDigest string           `json:"policy_digest"`     // "sha256:<hex>" of the bundle in force
	Obligations  Obligations      `json:"obligations"`
}

// DecisionReason explains a denial to an operator.
type DecisionReason struct {
	Rule    string `json:"rule"`              // a stable word, for example "measurement_unknown"
	Message string `json:"message"`           // a sentence
	Claim   string `json:"claim,omitempty"`   // path in input, for example "attestation.measurements.measurement"
	Got     string `json:"got,omitempty"`     // the claim's value
	Nearest string `json:"nearest,omitempty"` // the closest reference value, and its set and state
}

// Obligations are conditions on a release.
type Obligations struct {
	TTL time.Duration `json:"ttl"` // how long the guest may use the secret; 0: the catalog's default
	// Cache lets the broker keep a copy of the secret, encrypted, for that long,
	// and give it out while its source does not answer; 0: never.
	Cache      time.Duration `json:"cache"`
	MaxHolders int           `json:"max_holders"` // 0: no limit
	RequirePQ  bool          `json:"require_pq"`  // the hybrid post-quantum wrap is required
	Approvals  int           `json:"approvals"`   // operators who must agree; more than is supported denies
}
