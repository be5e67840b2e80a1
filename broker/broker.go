// Package broker is the domain: it releases secrets to workloads whose
// evidence verifies and whose claims a policy allows. Release is the whole job,
// to be read top to bottom against DESIGN §1. What it talks to stands behind
// small interfaces declared here; adapters live in the packages below.
package broker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/internal/grant"
	"github.com/claviger/claviger/broker/seal"
)

// GCPercent is how a process with a broker should set the garbage collector
// (unless the operator set GOGC): its live heap is small, so that at Go's
// default the collector takes a fifth of the time of a release.
const GCPercent = 400

// Config is what a Broker is made of. All fields are required unless they say otherwise.
type Config struct {
	Identity    *seal.Identity
	Nonces      *Nonces
	Verifiers   []attest.Verifier
	Collateral  attest.Collateral
	Policy      Policy
	Revocations Revocations
	Store       Store
	Sources     map[string]Source
	Log         Log
	// AllowSimulated lets claims that end at a test root reach the policy. Only
	// "claviger dev" and tests set it.
	AllowSimulated bool
	// TTL is the lifetime of a wrapped secret where neither catalog nor policy says. Default 5 minutes.
	TTL time.Duration
	// DenialTime is the least time that a denial takes once evidence has
	// verified, so that "denied", "no such resource" and "not for you" take the
	// same. Default 25 ms.
	DenialTime time.Duration
	// Observe is told about every request, after the fact; may be nil.
	Observe func(context.Context, Event)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Broker releases secrets. It is safe for concurrent use.
type Broker struct {
	cfg       Config
	verifiers map[attest.Type]attest.Verifier
	catalog   atomic.Pointer[Catalog]
	seen      *seen
}

// New checks the configuration. The catalog starts empty: nothing is released.
func New(cfg Config) (*Broker, error) {
	switch {
	case cfg.Identity == nil:
		return nil, errors.New("broker: no identity")
	case cfg.Nonces == nil:
		return nil, errors.New("broker: no nonces")
	case len(cfg.Verifiers) == 0:
		return nil, errors.New("broker: no verifiers")
	case cfg.Collateral == nil:
		return nil, errors.New("broker: no collateral")
	case cfg.Policy == nil:
		return nil, errors.New("broker: no policy")
	case cfg.Revocations == nil:
		return nil, errors.New("broker: no revocations")
	case cfg.Store == nil:
		return nil, errors.New("broker: no store")
	case cfg.Log == nil:
		return nil, errors.New("broker: no log")
	}
	if cfg.TTL == 0 {
		cfg.TTL = 5 * time.Minute
	}
	if cfg.DenialTime == 0 {
		cfg.DenialTime = 25 * time.Millisecond
	}
	if cfg.Observe == nil {
		cfg.Observe = func(context.Context, Event) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	b := &Broker{cfg: cfg, verifiers: map[attest.Type]attest.Verifier{}, seen: newSeen(cfg.Nonces.life)}
	for _, v := range cfg.Verifiers {
		b.verifiers[v.Type()] = v
	}
	return b, nil
}

// SetCatalog puts a catalog in force.
func (b *Broker) SetCatalog(c *Catalog) { b.catalog.Store(c) }

// Catalog is the one in force, or nil.
func (b *Broker) Catalog() *Catalog { return b.catalog.Load() }

// Identity is the broker's public key (SubjectPublicKeyInfo, DER).
func (b *Broker) Identity() []byte { return b.cfg.Identity.PublicKey() }

// EvidenceTypes lists what can be appraised, sorted.
func (b *Broker) EvidenceTypes() []attest.Type { return slices.Sorted(maps.Keys(b.verifiers)) }

// AcceptsSimulated says whether simulated hardware can be allowed.
func (b *Broker) AcceptsSimulated() bool { return b.cfg.AllowSimulated }

// Challenge issues a nonce.
func (b *Broker) Challenge() (nonce []byte, expires time.Time, err error) {
	nonce, expires, err = b.cfg.Nonces.Issue(b.cfg.Now())
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: issue nonce: %w", ErrUnavailable, err)
	}
	return nonce, expires, nil
}

// Request is a guest's request, as received.
type Request struct {
	Nonce         []byte
	KeyAlgorithm  string
	PublicKey     []byte
	OfferedSuites []string
	Resources     []string
	Inputs        [][]byte // by position of the resource, or nil; see attest.Transcript
	Evidence      attest.Evidence
}

// MaxInput bounds what a guest sends with one resource.
const MaxInput = 64 << 10

// Response is what the guest gets: every secret it asked for.
type Response struct {
	Secrets []Wrapped
	Receipt Receipt
}

// Wrapped is one secret, signed and encrypted to the attested key.
type Wrapped struct {
	Resource string
	JWE      string
}

// Receipt is the broker's signed promise that the record is in its log.
type Receipt struct {
	Promise  string // compact JWS, typ seal.TypeReceipt, payload Promise
	LogIndex uint64
}

// Promise is the payload of a receipt.
type Promise struct {
	Issuer   string `json:"iss"` // broker id, base64url
	ID       string `json:"jti"` // the record's id
	Log      string `json:"log"`
	Index    uint64 `json:"index"`
	LeafHash string `json:"leaf_hash"` // base64url
	IssuedAt int64  `json:"iat"`
}

// Event tells an observer how a request ended.
type Event struct {
	Stage    Stage // where it ended; StageReply if all went well
	Outcome  Outcome
	Type     attest.Type // one of the registered types, or empty
	Reason   attest.Reason
	RecordID string
	Duration time.Duration
	Err      error // for operators
}

// Stage is a step of Release. The set is closed.
type Stage string

// Stages.
const (
	StageAdmit  Stage = "admit"
	StageVerify Stage = "verify"
	StageDecide Stage = "decide"
	StageSpend  Stage = "spend"
	StageFetch  Stage = "fetch"
	StageSeal   Stage = "seal"
	StageRecord Stage = "record"
	StageReply  Stage = "reply"
)

// Release is the job (DESIGN §1). It returns all secrets that were asked for,
// or an error that wraps one of ErrInvalid, ErrChallenge, ErrDenied, ErrUnavailable.
func (b *Broker) Release(ctx context.Context, req Request) (Response, error) {
	start := b.cfg.Now()
	ev := Event{Stage: StageAdmit, Outcome: Denied}
	resp, err := b.release(ctx, req, start, &ev)
	if errors.Is(err, ErrUnavailable) {
		ev.Outcome = Failed
	}
	ev.Err, ev.Duration = err, b.cfg.Now().Sub(start)
	b.cfg.Observe(ctx, ev)
	return resp, err
}

func (b *Broker) release(ctx context.Context, req Request, now time.Time, ev *Event) (Response, error) {
	// 1 Admit: what is cheap and needs no trust. A flood ends here.
	nonceID, expires, err := b.cfg.Nonces.Check(req.Nonce, now)
	if err != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrChallenge, err)
	}
	if b.seen.has(nonceID) {
		return Response{}, fmt.Errorf("%w: %w", ErrChallenge, ErrSpent)
	}
	verifier, recipient, err := b.admit(req)
	if err != nil {
		return Response{}, err
	}

	// 2, 3 Verify the evidence up to the vendor's root, bound to this very request.
	ev.Stage, ev.Type = StageVerify, verifier.Type()
	binding := attest.BindTo(attest.Transcript{
		Nonce: req.Nonce, BrokerID: b.cfg.Identity.ID(), KeyAlgorithm: req.KeyAlgorithm, PublicKey: req.PublicKey,
		OfferedSuites: req.OfferedSuites, Resources: req.Resources, Inputs: req.Inputs,
	})
	claims, err := verify(ctx, verifier, req.Evidence, binding, b.cfg.Collateral, now)
	if err != nil {
		ev.Reason = attest.ReasonOf(err)
		if ours(ev.Reason) || ctx.Err() != nil {
			return Response{}, fmt.Errorf("%w: verify evidence: %w", ErrUnavailable, err)
		}
		return Response{}, fmt.Errorf("%w: verify evidence: %w", ErrDenied, err)
	}

	// From here on the request leaves exactly one record, and a replay of it none.
	if !b.seen.add(nonceID, now) {
		return Response{}, fmt.Errorf("%w: %w", ErrChallenge, ErrSpent)
	}
	rec := b.newRecord(req, claims, recipient, now)
	ev.RecordID = rec.ID
	wrapped, err := b.decideAndWrap(ctx, req, claims, recipient, nonceID, expires, &rec, now, ev)
	if err != nil {
		return Response{}, b.refuse(ctx, rec, err, now)
	}

	// 8 Record before replying: no record, no release.
	ev.Stage = StageRecord
	rec.Outcome = Released
	receipt, err := b.record(ctx, rec, now)
	if err != nil {
		return Response{}, fmt.Errorf("%w: record: %w", ErrUnavailable, err)
	}
	ev.Stage, ev.Outcome = StageReply, Released
	return Response{Secrets: wrapped, Receipt: receipt}, nil
}

// decideAndWrap is steps 4 to 7. It notes decisions in rec as it goes.
func (b *Broker) decideAndWrap(ctx context.Context, req Request, claims attest.Claims, recipient *seal.Recipient,
	nonceID NonceID, expires time.Time, rec *Record, now time.Time, ev *Event,
) ([]Wrapped, error) {
	// 4 Decide, for every resource: one "no" denies all.
	ev.Stage = StageDecide
	if err := b.revoked(subjectsOf(claims)...); err != nil {
		return nil, err
	}
	grants, err := b.decide(ctx, req, claims, recipient, rec, now)
	if err != nil {
		return nil, err
	}

	// 5 Spend the nonce, once, on every replica.
	ev.Stage = StageSpend
	if err := b.cfg.Store.Redeem(ctx, nonceID, expires); errors.Is(err, ErrSpent) {
		return nil, fmt.Errorf("%w: %w", ErrChallenge, err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: spend nonce: %w", ErrUnavailable, err)
	}

	// 6, 7 Fetch, and wrap to the attested key.
	var wrapped []Wrapped
	for i, g := range grants {
		ev.Stage = StageFetch
		secret, err := b.cfg.Sources[g.entry.Source].Fetch(ctx, grant.Mint(Granted{Entry: g.entry}))
		if errors.Is(err, ErrNoSecret) {
			return nil, fmt.Errorf("%w: fetch %s: %w", ErrDenied, req.Resources[i], err)
		} else if err != nil {
			return nil, fmt.Errorf("%w: fetch %s: %w", ErrUnavailable, req.Resources[i], err)
		}
		rec.Resources[i].Version = secret.Version
		ev.Stage = StageSeal
		jwe, err := b.wrap(req, i, g, recipient, secret, rec, now)
		secret.Wipe()
		if err != nil {
			return nil, err
		}
		wrapped = append(wrapped, Wrapped{Resource: req.Resources[i], JWE: jwe})
	}
	// A revocation acknowledged while we fetched still counts.
	subjects := append(subjectsOf(claims), Subject{RevokePolicy, rec.PolicyDigest})
	for _, r := range rec.Resources {
		subjects = append(subjects, Subject{RevokeResource, r.Path}, Subject{RevokeSecretVersion, r.Path + "@" + r.Version})
	}
	if err := b.revoked(subjects...); err != nil {
		return nil, err
	}
	return wrapped, nil
}

// ours says whether evidence was not believed for want of something that the
// broker should have had: the guest may ask again.
func ours(r attest.Reason) bool {
	switch r {
	case attest.ReasonCollateralMissing, attest.ReasonCollateralExpired, attest.ReasonCollateralInvalid, attest.ReasonInternal:
		return true
	}
	return false
}

// admit finds the verifier and parses the key. Only public facts are told.
func (b *Broker) admit(req Request) (attest.Verifier, *seal.Recipient, error) {
	e := req.Evidence
	v, ok := b.verifiers[e.Type]
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("%w: evidence.type: this broker does not appraise %q", ErrInvalid, e.Type)
	case len(e.Report) == 0 || len(e.Report) > attest.MaxReportSize:
		return nil, nil, fmt.Errorf("%w: evidence.report: has %d bytes, want 1 to %d", ErrInvalid, len(e.Report), attest.MaxReportSize)
	case len(e.Endorsements) > attest.MaxEndorsementsSize:
		return nil, nil, fmt.Errorf("%w: evidence.endorsements: has %d bytes, at most %d", ErrInvalid, len(e.Endorsements), attest.MaxEndorsementsSize)
	case len(e.EventLog) > attest.MaxEventLogSize:
		return nil, nil, fmt.Errorf("%w: evidence.event_log: has %d bytes, at most %d", ErrInvalid, len(e.EventLog), attest.MaxEventLogSize)
	case len(req.Resources) == 0:
		return nil, nil, fmt.Errorf("%w: resources: none", ErrInvalid)
	case req.Inputs != nil && len(req.Inputs) != len(req.Resources):
		return nil, nil, fmt.Errorf("%w: inputs: %d for %d resources", ErrInvalid, len(req.Inputs), len(req.Resources))
	case slices.ContainsFunc(req.Inputs, func(in []byte) bool { return len(in) > MaxInput }):
		return nil, nil, fmt.Errorf("%w: inputs: at most %d bytes each", ErrInvalid, MaxInput)
	case !slices.Contains(req.OfferedSuites, req.KeyAlgorithm):
		return nil, nil, fmt.Errorf("%w: key_algorithm: not among offered_suites", ErrInvalid)
	}
	r, err := seal.ParseRecipient(seal.Suite(req.KeyAlgorithm), req.PublicKey)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: public_key: %w", ErrInvalid, err)
	}
	return v, r, nil
}

// verify is the boundary around third-party parsers: a panic denies.
func verify(ctx context.Context, v attest.Verifier, e attest.Evidence, bind attest.Binding, c attest.Collateral, now time.Time) (claims attest.Claims, err error) {
	defer func() {
		if p := recover(); p != nil {
			claims, err = attest.Claims{}, attest.Errorf(string(v.Type()), attest.ReasonMalformed, "verifier panicked: %v\n%s", p, debug.Stack())
		}
	}()
	claims, err = v.Verify(ctx, e, bind, c, now)
	if err == nil && !claims.Bound {
		return attest.Claims{}, attest.Errorf(string(v.Type()), attest.ReasonBinding, "verifier did not compare report_data")
	}
	return claims, err
}

// allowed is a resource that policy granted.
type allowed struct {
	entry CatalogEntry
	ttl   time.Duration
}

func (b *Broker) decide(ctx context.Context, req Request, claims attest.Claims, to *seal.Recipient, rec *Record, now time.Time) ([]allowed, error) {
	catalog := b.catalog.Load()
	var grants []allowed
	var refusal error
	for i, path := range req.Resources {
		rr := &rec.Resources[i]
		entry, params, ok := catalog.Lookup(path)
		if !ok {
			rr.Reasons = []DecisionReason{{Rule: "unknown_resource", Message: "no catalog entry matches this path"}}
			refusal = fmt.Errorf("%w: %s: no catalog entry", ErrDenied, path)
			continue
		}
		rr.Policy = entry.Policy
		if err := b.revoked(Subject{RevokeResource, path}); err != nil {
			return nil, err
		}
		d, err := b.cfg.Policy.Decide(ctx, PolicyInput{
			Attestation: claims,
			Resource:    PolicyResource{Path: path, Policy: entry.Policy, Params: params, Labels: entry.Labels},
			Request:     PolicyRequest{Resources: req.Resources, KeyAlgorithm: req.KeyAlgorithm, PostQuantum: to.Suite().PostQuantum()},
			Time:        now.UTC(),
		})
		if err != nil {
			rr.Reasons = []DecisionReason{{Rule: "policy_error", Message: err.Error()}}
			// Too slow says more about our load than about the guest: nothing is released, but it may ask again.
			if errors.Is(err, context.DeadlineExceeded) {
				return nil, fmt.Errorf("%w: %s: evaluate policy: %w", ErrUnavailable, path, err)
			}
			refusal = fmt.Errorf("%w: %s: evaluate policy: %w", ErrDenied, path, err)
			continue
		}
		// One record, one policy: a bundle that came into force in between is for the next request.
		if rec.PolicyDigest != "" && rec.PolicyDigest != d.PolicyDigest {
			return nil, fmt.Errorf("%w: the policy changed while it was asked", ErrUnavailable)
		}
		rec.PolicyDigest = d.PolicyDigest
		if err := b.revoked(Subject{RevokePolicy, d.PolicyDigest}); err != nil {
			return nil, err
		}
		d = b.enforce(d, claims, to, entry)
		rr.Allow, rr.Reasons = d.Allow, d.Reasons
		if !d.Allow {
			refusal = fmt.Errorf("%w: %s: policy %s", ErrDenied, path, d.Package)
			continue
		}
		ttl := d.Obligations.TTL
		if ttl == 0 {
			ttl = entry.TTL
		}
		if ttl == 0 {
			ttl = b.cfg.TTL
		}
		grants = append(grants, allowed{entry: entry, ttl: ttl})
	}
	if refusal != nil {
		return nil, refusal
	}
	return grants, nil
}

// enforce holds what no policy can waive, and the obligations it set.
func (b *Broker) enforce(d Decision, c attest.Claims, to *seal.Recipient, e CatalogEntry) Decision {
	deny := func(rule, msg string) {
		d.Allow = false
		d.Reasons = append(d.Reasons, DecisionReason{Rule: rule, Message: msg})
	}
	if c.Simulated && !b.cfg.AllowSimulated {
		deny("simulated", "evidence comes from a simulated device; only \"claviger dev\" accepts that")
	}
	if d.Obligations.RequirePQ && !to.Suite().PostQuantum() {
		deny("require_pq", fmt.Sprintf("policy requires the hybrid post-quantum wrap, the guest's key is %s", to.Suite()))
	}
	// Obligations that this version cannot keep must not be ignored.
	if d.Obligations.Approvals > 0 {
		deny("approvals", "policy requires approvals, which this version cannot collect")
	}
	if d.Obligations.MaxHolders > 0 {
		deny("max_holders", "policy limits holders, which this version cannot count")
	}
	if _, ok := b.cfg.Sources[e.Source]; !ok {
		deny("unknown_source", fmt.Sprintf("catalog entry %s names source %q, which is not configured", e.Pattern, e.Source))
	}
	return d
}

func (b *Broker) revoked(subjects ...Subject) error {
	hit, yes, err := b.cfg.Revocations.Revoked(subjects...)
	if err != nil {
		return fmt.Errorf("%w: check revocations: %w", ErrUnavailable, err)
	}
	if yes {
		return fmt.Errorf("%w: revoked: %s", ErrDenied, hit)
	}
	return nil
}

func (b *Broker) wrap(req Request, i int, g allowed, to *seal.Recipient, s Secret, rec *Record, now time.Time) (string, error) {
	out, err := seal.Seal(b.cfg.Identity, to, seal.Statement{
		Resource: req.Resources[i], Decision: rec.ID, IssuedAt: now.Unix(), Expires: now.Add(g.ttl).Unix(),
		Nonce: base64.RawURLEncoding.EncodeToString(req.Nonce), Version: s.Version, Lease: s.Lease,
		Policy: rec.PolicyDigest, Secret: s.Value,
	})
	if err != nil {
		return "", fmt.Errorf("%w: seal %s: %w", ErrUnavailable, req.Resources[i], err)
	}
	return out, nil
}

func (b *Broker) newRecord(req Request, c attest.Claims, to *seal.Recipient, now time.Time) Record {
	id := b.cfg.Identity.ID()
	evidence := sha256.Sum256(req.Evidence.Report)
	doc, err := json.Marshal(c)
	if err != nil { // only a verifier's bug; the record then says so by an empty-document digest
		doc = nil
	}
	thumb := seal.Thumbprint(to.Suite(), req.PublicKey)
	rec := Record{
		Version: 1, ID: rand.Text(), Time: now.UTC(), BrokerID: hex.EncodeToString(id[:]), Simulated: c.Simulated,
		EvidenceType: c.Type, EvidenceDigest: digest(evidence), ClaimsDigest: digest(sha256.Sum256(doc)),
		HardwareModel: c.HardwareModel, ChipID: c.ChipID, Recipient: hex.EncodeToString(thumb[:]),
	}
	for _, name := range slices.Sorted(maps.Keys(c.Measurements)) {
		rec.Measurements = append(rec.Measurements, name+"="+c.Measurements[name])
	}
	for _, path := range req.Resources {
		rec.Resources = append(rec.Resources, RecordResource{Path: path})
	}
	return rec
}

func digest(d [32]byte) string { return "sha256:" + hex.EncodeToString(d[:]) }

// refuse records a request that came to nothing, and makes refusals alike.
func (b *Broker) refuse(ctx context.Context, rec Record, cause error, start time.Time) error {
	rec.Outcome, rec.Error = Denied, cause.Error()
	if errors.Is(cause, ErrUnavailable) {
		rec.Outcome = Failed
	}
	if _, err := b.cfg.Log.Append(ctx, rec); err != nil {
		return fmt.Errorf("%w: record refusal: %w (refused: %w)", ErrUnavailable, err, cause)
	}
	if errors.Is(cause, ErrDenied) {
		select {
		case <-time.After(b.cfg.DenialTime - b.cfg.Now().Sub(start)%b.cfg.DenialTime):
		case <-ctx.Done():
		}
	}
	return cause
}

func (b *Broker) record(ctx context.Context, rec Record, now time.Time) (Receipt, error) {
	pos, err := b.cfg.Log.Append(ctx, rec)
	if err != nil {
		return Receipt{}, err
	}
	id := b.cfg.Identity.ID()
	payload, err := json.Marshal(Promise{
		Issuer: base64.RawURLEncoding.EncodeToString(id[:]), ID: rec.ID, Log: pos.Origin, Index: pos.Index,
		LeafHash: base64.RawURLEncoding.EncodeToString(pos.LeafHash[:]), IssuedAt: now.Unix(),
	})
	if err != nil {
		return Receipt{}, fmt.Errorf("encode promise: %w", err)
	}
	promise, err := b.cfg.Identity.Sign(seal.TypeReceipt, payload)
	if err != nil {
		return Receipt{}, err
	}
	return Receipt{Promise: string(promise), LogIndex: pos.Index}, nil
}
