// Package broker is the domain: it releases secrets to workloads whose
// evidence verifies and whose claims a policy allows. Release is the whole job,
// to be read top to bottom against DESIGN §1. What it talks to stands behind
// small interfaces declared here; adapters live in the packages below.
package broker

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

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
	Identity  *seal.Identity
	Nonces    *Nonces
	Verifiers []attest.Verifier
	// Activator makes attestation keys of TPMs believable; nil: this broker appraises none that are not certified.
	Activator   Activator
	Collateral  attest.Collateral
	Policy      Policy
	Revocations Revocations
	Store       Store
	Sources     map[string]Source
	Log         Log
	// Leases and Sessions are the brokers' shared memory; Versions tells of rotations. Without
	// them leased kinds and Watch are refused.
	Leases   LeaseBook
	Sessions SessionBook
	Versions Versions
	// Identities tells which names are one machine's; nil: only what one piece of evidence shows.
	Identities IdentityBook
	// Cache keeps copies of secrets whose policy allows that (Obligations.Cache); nil: none are kept.
	Cache Cache
	// Keys remembers which keys there were; nil: nothing is remembered, and a key that vanished from its source is made anew.
	Keys KeyBook
	// Instance names this process among the brokers of a cluster; random if empty.
	Instance string
	// SessionTTL is how long evidence is believed in a watching session. Default 15 minutes.
	SessionTTL time.Duration
	// OwnerTTL is what the owner of leases is renewed for: when no broker is
	// left to renew it, what it owns ends after that. Default 2 minutes.
	OwnerTTL time.Duration
	// ResumeTime is how long a session waits for a guest whose stream broke. Default 1 minute.
	ResumeTime time.Duration
	// MaxSessions bounds the watching sessions of this broker. Default 20000.
	MaxSessions int
	// Logger is for what happens outside any request; may be nil.
	Logger *slog.Logger
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
	verifiers atomic.Pointer[verifiers]
	sightings *sightings
	catalog   atomic.Pointer[Catalog]
	seen      *seen
	unproven  *rate.Limiter // bytes in records of requests whose evidence did not verify

	sessions atomic.Int64 // watching now
	changed  broadcast    // policy, references, catalog or revocations changed
	draining broadcast    // this broker stops
	stopping atomic.Bool
	cache    copies
	keys     keysSeen
	shared   shared // reads of the same new version for several sessions
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
	if cfg.SessionTTL == 0 {
		cfg.SessionTTL = 15 * time.Minute
	}
	if cfg.OwnerTTL == 0 {
		cfg.OwnerTTL = 2 * time.Minute
	}
	if cfg.ResumeTime == 0 {
		cfg.ResumeTime = time.Minute
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 20000
	}
	if cfg.Instance == "" {
		cfg.Instance = rand.Text()[:12]
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(context.Context, Event) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	b := &Broker{cfg: cfg, seen: newSeen(cfg.Nonces.life), sightings: newSightings(), unproven: rate.NewLimiter(unprovenRate, unprovenBurst)}
	b.verifiers.Store(newVerifiers(cfg.Verifiers, cfg.Activator))
	return b, nil
}

// verifiers are those that are in force together.
type verifiers struct {
	byType    map[attest.Type]attest.Verifier
	activator Activator // or nil
}

func newVerifiers(all []attest.Verifier, a Activator) *verifiers {
	vs := &verifiers{byType: map[attest.Type]attest.Verifier{}, activator: a}
	for _, v := range all {
		vs.byType[v.Type()] = v
	}
	return vs
}

// SetVerifiers puts others in force, as after a file of roots changed. What
// every session has shown is held against them.
func (b *Broker) SetVerifiers(all []attest.Verifier, a Activator) {
	b.verifiers.Store(newVerifiers(all, a))
	b.Changed()
}

// SetCatalog puts a catalog in force.
func (b *Broker) SetCatalog(c *Catalog) {
	b.catalog.Store(c)
	b.Changed()
}

// Changed has every watching session, and every lease, looked at again:
// something changed that decides about them.
func (b *Broker) Changed() { b.changed.fire() }

// Catalog is the one in force, or nil.
func (b *Broker) Catalog() *Catalog { return b.catalog.Load() }

// Identity is the broker's public key (SubjectPublicKeyInfo, DER).
func (b *Broker) Identity() []byte { return b.cfg.Identity.PublicKey() }

// EvidenceTypes lists what can be appraised, sorted.
func (b *Broker) EvidenceTypes() []attest.Type {
	return slices.Sorted(maps.Keys(b.verifiers.Load().byType))
}

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
	// Devices is the evidence of further devices (GPUs, a TPM), at most attest.MaxDevices; Evidence vouches for them.
	Devices []attest.Evidence
	// Peer is the address that the request came from; the zero value if nobody knows.
	Peer netip.Addr

	only Kind // if not empty, the only kind to release
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
	Version  string
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
	b.observe(ctx, ev, err, start)
	purpose := attest.PurposeRelease
	if req.only == KindEAR {
		purpose = attest.PurposeAttest
	}
	return resp, b.denial(err, purpose, req, start)
}

// Attest is Release of one token about the workload itself (KindEAR).
func (b *Broker) Attest(ctx context.Context, req Request) (Response, error) {
	if len(req.Resources) != 1 {
		return Response{}, fmt.Errorf("%w: resources: want exactly one, a token", ErrInvalid)
	}
	req.only = KindEAR // anything else is denied like what does not exist
	return b.Release(ctx, req)
}

// Activator joins an attestation key to a certified endorsement key. The error is an *attest.Error.
type Activator interface {
	Activate(req attest.TPMActivation, now time.Time) (attest.TPMChallenge, error)
}

// ActivateTPM has a guest prove that its attestation key is in a TPM of a known
// manufacturer. It releases nothing; evidence by that key does, later.
func (b *Broker) ActivateTPM(ctx context.Context, req attest.TPMActivation) (attest.TPMChallenge, error) {
	now := b.cfg.Now()
	c, err := b.activateTPM(ctx, req, now)
	if err != nil {
		ev := Event{Stage: StageVerify, Outcome: Denied, Type: attest.TypeTPM}
		if errors.Is(err, ErrDenied) {
			ev.Reason = attest.ReasonOf(err)
		}
		b.observe(ctx, ev, err, now)
	}
	return c, err
}

func (b *Broker) activateTPM(ctx context.Context, req attest.TPMActivation, now time.Time) (attest.TPMChallenge, error) {
	activator := b.verifiers.Load().activator
	if activator == nil {
		return attest.TPMChallenge{}, fmt.Errorf("%w: this broker does not appraise TPMs", ErrInvalid)
	}
	c, err := activator.Activate(req, now)
	if err != nil {
		b.recordUnproven(ctx, Request{Evidence: attest.Evidence{Type: attest.TypeTPM, Report: req.AKPublic}}, err, now)
		return attest.TPMChallenge{}, fmt.Errorf("%w: activate attestation key: %w", ErrDenied, err)
	}
	return c, nil
}

// recordUnproven leaves a record of a request whose evidence did not verify.
// Anybody can send such, with texts of his own in it: a record is short, and
// only so many bytes of them per second are kept; all are counted.
func (b *Broker) recordUnproven(ctx context.Context, req Request, cause error, now time.Time) string {
	id := b.cfg.Identity.ID()
	rec := Record{
		Version: 1, ID: rand.Text(), Time: now.UTC(), BrokerID: hex.EncodeToString(id[:]), Outcome: Denied, Unproven: true,
		EvidenceType: req.Evidence.Type, EvidenceDigest: digest(sha256.Sum256(req.Evidence.Report)), Error: Clip(cause.Error(), maxUnprovenError),
	}
	for i, path := range req.Resources {
		if i == maxUnprovenPaths {
			path = fmt.Sprintf("… and %d more", len(req.Resources)-i)
		}
		rec.Resources = append(rec.Resources, RecordResource{Path: Clip(path, maxUnprovenPath)})
		if i == maxUnprovenPaths {
			break
		}
	}
	entry, err := json.Marshal(rec)
	if err != nil || !b.unproven.AllowN(now, len(entry)) {
		return rec.ID
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if _, err := b.cfg.Log.Append(ctx, rec); err != nil {
		b.cfg.Logger.WarnContext(ctx, "cannot record a refusal", "error", Clip(err.Error(), MaxError), "refused", rec.Error)
	}
	return rec.ID
}

// detached is a context for a record: a hang-up must not keep anything out of the log.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
}

func (b *Broker) observe(ctx context.Context, ev Event, err error, start time.Time) {
	if errors.Is(err, ErrUnavailable) {
		ev.Outcome = Failed
	}
	ev.Err, ev.Duration = err, b.cfg.Now().Sub(start)
	b.cfg.Observe(ctx, ev)
}

func (b *Broker) release(ctx context.Context, req Request, now time.Time, ev *Event) (Response, error) {
	// 1 to 3 Admit and verify.
	a, err := b.appraise(ctx, req, now, ev)
	if err != nil {
		return Response{}, err
	}
	rec := b.newRecord(a, req.Resources, now)
	ev.RecordID = rec.ID

	// 4 to 7.
	wrapped, owners, err := b.decideAndWrap(ctx, a, &rec, now, ev)

	// 8 Record before replying: no record, no release.
	var receipt Receipt
	if err == nil {
		ev.Stage = StageRecord
		receipt, err = b.record(ctx, a.claims, &rec, now)
	}
	if err != nil {
		owners.abandon(ctx)
		ev.RecordID = rec.ID
		return Response{}, b.refuse(ctx, rec, err, now)
	}
	b.sightings.released(chipsOf(a.claims, b.identities), req.Peer, now)
	ev.Stage, ev.Outcome = StageReply, Released
	return Response{Secrets: wrapped, Receipt: receipt}, nil
}

// appraisal is a request whose evidence verified.
type appraisal struct {
	req       Request
	parts     []part // the first evidence, and the devices'
	verifiers *verifiers
	claims    attest.Claims
	recipient *seal.Recipient
	nonceID   NonceID
	expires   time.Time // of the nonce
}

// part is one piece of evidence, and what it binds.
type part struct {
	evidence attest.Evidence
	binding  attest.Binding
}

// appraise is steps 1 to 3. A request that gets past it leaves exactly one record, and a replay of it none.
func (b *Broker) appraise(ctx context.Context, req Request, now time.Time, ev *Event) (appraisal, error) {
	// 1 Admit: what is cheap and needs no trust. A flood ends here.
	nonceID, expires, err := b.cfg.Nonces.Check(req.Nonce, now)
	if err != nil {
		return appraisal{}, fmt.Errorf("%w: %w", ErrChallenge, err)
	}
	if b.seen.has(nonceID) {
		return appraisal{}, fmt.Errorf("%w: %w", ErrChallenge, ErrSpent)
	}
	recipient, err := b.admit(req)
	if err != nil {
		return appraisal{}, err
	}

	// 2, 3 Verify the evidence up to the vendor's root, bound to this very request.
	ev.Stage, ev.Type = StageVerify, req.Evidence.Type
	parts, vs := b.parts(req), b.verifiers.Load()
	claims, err := b.verifyAll(ctx, vs, parts, now)
	if err != nil {
		ev.Reason = attest.ReasonOf(err)
		if ours(ev.Reason) || ctx.Err() != nil {
			return appraisal{}, fmt.Errorf("%w: verify evidence: %w", ErrUnavailable, err)
		}
		ev.RecordID = b.recordUnproven(ctx, req, err, now)
		return appraisal{}, recorded{ev.RecordID, fmt.Errorf("%w: verify evidence: %w", ErrDenied, err)}
	}
	if !b.seen.add(nonceID, now) {
		return appraisal{}, fmt.Errorf("%w: %w", ErrChallenge, ErrSpent)
	}
	return appraisal{req, parts, vs, claims, recipient, nonceID, expires}, nil
}

// decideAndWrap is steps 4 to 7. It notes decisions in rec as it goes. Whatever fails, the owners are the caller's to end.
func (b *Broker) decideAndWrap(ctx context.Context, a appraisal, rec *Record, now time.Time, ev *Event) ([]Wrapped, *owners, error) {
	grants, err := b.decideAndSpend(ctx, a, rec, now, ev)
	if err != nil {
		return nil, nil, err
	}
	// 6, 7 Fetch, and wrap to the attested key. What is leased belongs to an owner that we can end.
	owners, err := b.openLeases(ctx, rec, a, grants, now)
	if err != nil {
		return nil, nil, err
	}
	wrapped, err := b.fetchAll(ctx, a, grants, owners, rec, now, ev)
	return wrapped, owners, err
}

// decideAndSpend is steps 4 and 5.
func (b *Broker) decideAndSpend(ctx context.Context, a appraisal, rec *Record, now time.Time, ev *Event) ([]allowed, error) {
	// 4 Decide, for every resource: one "no" denies all.
	ev.Stage = StageDecide
	grants, err := b.decide(ctx, a, rec, now)
	if err != nil && !errors.Is(err, ErrDenied) {
		return nil, err
	}
	// 5 Spend the nonce, once, on every replica. A denial spends it as well: else a guest that asks
	// another replica with the same nonce could tell "not for you" from "no such secret".
	if err == nil {
		ev.Stage = StageSpend
	}
	if serr := b.spend(ctx, a); serr != nil {
		return nil, serr
	}
	if err == nil {
		err = b.bindIdentities(ctx, a.claims)
	}
	return grants, err
}

func (b *Broker) fetchAll(ctx context.Context, a appraisal, grants []allowed, owners *owners, rec *Record, now time.Time, ev *Event) ([]Wrapped, error) {
	var wrapped []Wrapped
	for i, g := range grants {
		ev.Stage = StageFetch
		if g.entry.Kind == KindLogin && g.cap == 0 { // no longer than anything leased without a session
			g.cap = g.ttl
		}
		secret, err := b.fetch(ctx, a, g, owners.of(g.entry), rec, now)
		if err != nil {
			return nil, err
		}
		w, err := b.wrap(a, g, 0, secret, &rec.Resources[i], rec, now, ev)
		secret.Wipe()
		if err != nil {
			return nil, err
		}
		wrapped = append(wrapped, w)
	}
	if err := owners.save(ctx); err != nil {
		return nil, err
	}
	// A revocation acknowledged while we fetched still counts.
	if err := b.stillAllowed(a.claims, rec); err != nil {
		return nil, err
	}
	return wrapped, nil
}

func (b *Broker) spend(ctx context.Context, a appraisal) error {
	if err := b.cfg.Store.Redeem(ctx, a.nonceID, a.expires); errors.Is(err, ErrSpent) {
		return fmt.Errorf("%w: %w", ErrChallenge, err)
	} else if err != nil {
		return fmt.Errorf("%w: spend nonce: %w", ErrUnavailable, err)
	}
	return nil
}

func (b *Broker) fetch(ctx context.Context, a appraisal, g allowed, owner *Owner, rec *Record, now time.Time) (Secret, error) {
	secret, err := b.cfg.Sources[g.entry.Source].Fetch(ctx, grant.Mint(Granted{
		Entry: g.entry, Input: g.input, Recipient: a.recipient, PublicKey: a.req.PublicKey, Owner: owner,
		Claims: a.claims, PolicyDigest: rec.PolicyDigest, DecisionID: rec.ID, TTL: g.ttl, Cap: g.cap, Now: now,
		Absent: func(ctx context.Context, version int) error { return b.absent(ctx, g, version) },
	}))
	if secret.Lease != "" && owner != nil {
		l := Leased{Resource: g.path, Version: cmp.Or(secret.Version, secret.Lease), Cap: g.cap}
		if g.entry.Kind == KindLogin && !secret.Expires.IsZero() {
			l.ReplaceAt = now.Add(max(secret.Expires.Sub(now)*2/3, renewAtLeast))
		}
		owner.note(secret.Lease, l)
	}
	if n := len(secret.Value); err == nil && n > seal.MaxSecret {
		secret.Wipe()
		return Secret{}, fmt.Errorf("%w: fetch %s: %w", ErrUnavailable, g.path, tooLarge(n))
	}
	switch {
	case errors.Is(err, ErrNoSecret), errors.Is(err, ErrInput):
		b.alarm(ctx, g, err, now)
		b.forgetCopy(ctx, g)
		return Secret{}, fmt.Errorf("%w: fetch %s: %w", ErrDenied, g.path, err)
	case errors.Is(err, ErrWithheld):
		b.forgetCopy(ctx, g)
		return Secret{}, fmt.Errorf("%w: fetch %s: %w", ErrUnavailable, g.path, err)
	case errors.Is(err, ErrBusy):
		return Secret{}, fmt.Errorf("%w: fetch %s: %w", ErrUnavailable, g.path, err)
	case err != nil:
		if copied, ok := b.standIn(ctx, g, now); ok {
			return copied, nil
		}
		return Secret{}, fmt.Errorf("%w: fetch %s: %w", ErrUnavailable, g.path, err)
	}
	if err := b.remember(ctx, g, secret, now); err != nil {
		secret.Wipe()
		return Secret{}, err
	}
	b.keepCopy(ctx, g, secret, now)
	return secret, nil
}

// tooLarge is ErrTooLarge with both sizes.
type tooLarge int

func (n tooLarge) Error() string {
	return fmt.Sprintf("%v: it has %d bytes, and at most %d can be released", ErrTooLarge, int(n), seal.MaxSecret)
}

func (tooLarge) Unwrap() error { return ErrTooLarge }

// SizeOf is what a guest is told of an ErrTooLarge: the sizes, and nothing of what stands around them.
func SizeOf(err error) string {
	if n, ok := errors.AsType[tooLarge](err); ok {
		return n.Error()
	}
	return ErrTooLarge.Error()
}

// stillAllowed asks once more whether anything in the record was revoked.
func (b *Broker) stillAllowed(c attest.Claims, rec *Record) error {
	subjects := []Subject{{RevokePolicy, rec.PolicyDigest}}
	for _, r := range rec.Resources {
		subjects = append(subjects, Subject{RevokeResource, r.Path})
		if !r.Unchanged {
			subjects = append(subjects, Subject{RevokeSecretVersion, r.Path + "@" + r.Version})
		}
	}
	if rec.Session != "" {
		subjects = append(subjects, Subject{RevokeSession, rec.Session})
	}
	return b.evidenceRevoked(c, subjects...)
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
func (b *Broker) admit(req Request) (*seal.Recipient, error) {
	if err := b.admitEvidence("evidence", req.Evidence); err != nil {
		return nil, err
	}
	if len(req.Devices) > attest.MaxDevices {
		return nil, fmt.Errorf("%w: evidence: of %d devices beside the first, at most %d", ErrInvalid, len(req.Devices), attest.MaxDevices)
	}
	for i, e := range req.Devices {
		if err := b.admitEvidence(fmt.Sprintf("evidence[%d]", i+1), e); err != nil {
			return nil, err
		}
	}
	switch {
	case len(req.Resources) == 0:
		return nil, fmt.Errorf("%w: resources: none", ErrInvalid)
	case req.Inputs != nil && len(req.Inputs) != len(req.Resources):
		return nil, fmt.Errorf("%w: inputs: %d for %d resources", ErrInvalid, len(req.Inputs), len(req.Resources))
	case slices.ContainsFunc(req.Inputs, func(in []byte) bool { return len(in) > MaxInput }):
		return nil, fmt.Errorf("%w: inputs: at most %d bytes each", ErrInvalid, MaxInput)
	case !slices.Contains(req.OfferedSuites, req.KeyAlgorithm):
		return nil, fmt.Errorf("%w: key_algorithm: not among offered_suites", ErrInvalid)
	}
	r, err := seal.ParseRecipient(seal.Suite(req.KeyAlgorithm), req.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: public_key: %w", ErrInvalid, err)
	}
	return r, nil
}

// admitEvidence: field is what the guest calls it.
func (b *Broker) admitEvidence(field string, e attest.Evidence) error {
	switch {
	case b.verifiers.Load().byType[e.Type] == nil:
		return fmt.Errorf("%w: %s.type: this broker does not appraise %q", ErrInvalid, field, e.Type)
	case len(e.Report) == 0 || len(e.Report) > attest.MaxReportSize:
		return fmt.Errorf("%w: %s.report: has %d bytes, want 1 to %d", ErrInvalid, field, len(e.Report), attest.MaxReportSize)
	case len(e.Endorsements) > attest.MaxEndorsementsSize:
		return fmt.Errorf("%w: %s.endorsements: has %d bytes, at most %d", ErrInvalid, field, len(e.Endorsements), attest.MaxEndorsementsSize)
	case len(e.EventLog) > attest.MaxEventLogSize:
		return fmt.Errorf("%w: %s.event_log: has %d bytes, at most %d", ErrInvalid, field, len(e.EventLog), attest.MaxEventLogSize)
	}
	return nil
}

// verify is the boundary around third-party parsers: a panic denies.
func verify(ctx context.Context, v attest.Verifier, e attest.Evidence, bind attest.Binding, c attest.Collateral, now time.Time) (claims attest.Claims, err error) {
	if v == nil { // it was there when the request was admitted
		return attest.Claims{}, attest.Errorf(string(e.Type), attest.ReasonUnsupported, "is not appraised any more")
	}
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
	path  string
	entry CatalogEntry
	input []byte
	ttl   time.Duration
	cap   time.Duration // the shortest that policy and catalog say; 0: neither does
	cache time.Duration // how old a copy may be that stands in for a source that does not answer
}

// life is how long what is leased to the grant may live without a session.
func (g allowed) life() time.Duration {
	if g.cap > 0 {
		return min(g.ttl, g.cap)
	}
	return g.ttl
}

// decide asks about every resource of the record.
func (b *Broker) decide(ctx context.Context, a appraisal, rec *Record, now time.Time) ([]allowed, error) {
	var session []Subject
	if rec.Session != "" {
		session = append(session, Subject{RevokeSession, rec.Session})
	}
	if err := b.evidenceRevoked(a.claims, session...); err != nil {
		return nil, err
	}
	req, claims, to := a.req, a.claims, a.recipient
	networks := b.sightings.count(chipsOf(claims, b.identities), req.Peer, now)
	catalog := b.catalog.Load()
	var grants []allowed
	var refusal error
	for i := range rec.Resources {
		rr := &rec.Resources[i]
		path := rr.Path
		if catalog.Blocked(path) {
			rr.Reasons = []DecisionReason{{Rule: "catalog_unusable", Message: "a catalog entry for this path cannot be used; claviger status says why"}}
			return nil, fmt.Errorf("%w: %s: its catalog entry cannot be used", ErrUnavailable, path)
		}
		entry, params, ok := catalog.Lookup(path)
		if !ok || req.only != "" && entry.Kind != req.only {
			rr.Reasons = []DecisionReason{{Rule: "unknown_resource", Message: "no catalog entry matches this path"}}
			refusal = fmt.Errorf("%w: %s: no catalog entry", ErrDenied, path)
			continue
		}
		rr.Policy = entry.Policy
		if err := entry.nameable(params); err != nil {
			rr.Reasons = []DecisionReason{{Rule: "resource_name", Message: err.Error()}}
			refusal = fmt.Errorf("%w: %s: %w", ErrDenied, path, err)
			continue
		}
		if err := b.revoked(Subject{RevokeResource, path}); err != nil {
			return nil, err
		}
		d, err := b.cfg.Policy.Decide(ctx, PolicyInput{
			Attestation: claims,
			Resource:    PolicyResource{Path: path, Policy: entry.Policy, Params: params, Labels: entry.Labels},
			Request:     PolicyRequest{Resources: req.Resources, KeyAlgorithm: req.KeyAlgorithm, PostQuantum: to.Suite().PostQuantum()},
			Time:        now.UTC(),
			Chip:        PolicyChip{Networks: networks},
		})
		if err != nil {
			rr.Reasons = []DecisionReason{{Rule: "policy_error", Message: Clip(err.Error(), MaxError)}}
			// Too slow, no policy in force, or nobody there any more who asks, says nothing against the guest: nothing is released, but it may ask again.
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
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
		ttl, limit := cmp.Or(d.Obligations.TTL, entry.TTL, b.cfg.TTL), cmp.Or(d.Obligations.TTL, entry.TTL)
		if entry.TTL > 0 {
			limit = min(limit, entry.TTL)
		}
		grants = append(grants, allowed{path: path, entry: entry, input: a.input(path), ttl: ttl, cap: limit, cache: d.Obligations.Cache})
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
	src, ok := b.cfg.Sources[e.Source]
	if !ok {
		deny("unknown_source", fmt.Sprintf("catalog entry %s names source %q, which is not configured", e.Pattern, e.Source))
	}
	if _, can := src.(LeasedSource); ok && e.Kind.Leased() && (!can || b.cfg.Leases == nil) {
		deny("not_leasable", fmt.Sprintf("catalog entry %s is of kind %s, which source %q cannot lease", e.Pattern, e.Kind, e.Source))
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

func (b *Broker) wrap(a appraisal, g allowed, sequence uint64, s Secret, rr *RecordResource, rec *Record, now time.Time, ev *Event) (Wrapped, error) {
	ev.Stage = StageSeal
	rr.Version, rr.FromCache = s.Version, s.FromCache
	expires := now.Add(g.ttl)
	if !s.Expires.IsZero() && s.Expires.Before(expires) {
		expires = s.Expires
	}
	out, err := seal.Seal(b.cfg.Identity, a.recipient, seal.Statement{
		Resource: g.path, Decision: rec.ID, IssuedAt: now.Unix(), Expires: expires.Unix(),
		Nonce: base64.RawURLEncoding.EncodeToString(a.req.Nonce), Version: s.Version, Lease: s.Lease, Sequence: sequence,
		ContentType: s.ContentType, Policy: rec.PolicyDigest, Secret: s.Value,
	})
	if err != nil {
		return Wrapped{}, fmt.Errorf("%w: seal %s: %w", ErrUnavailable, g.path, err)
	}
	return Wrapped{Resource: g.path, Version: s.Version, JWE: out}, nil
}

// input is what the guest sent for a resource.
func (a appraisal) input(path string) []byte {
	if i := slices.Index(a.req.Resources, path); i >= 0 && i < len(a.req.Inputs) {
		return a.req.Inputs[i]
	}
	return nil
}

func (b *Broker) newRecord(a appraisal, resources []string, now time.Time) Record {
	id, c := b.cfg.Identity.ID(), a.claims
	evidence := sha256.Sum256(a.req.Evidence.Report)
	doc, err := json.Marshal(c)
	if err != nil { // only a verifier's bug; the record then says so by an empty-document digest
		doc = nil
	}
	thumb := seal.Thumbprint(a.recipient.Suite(), a.req.PublicKey)
	rec := Record{
		Version: 1, ID: rand.Text(), Time: now.UTC(), BrokerID: hex.EncodeToString(id[:]), Simulated: c.Simulated,
		EvidenceType: c.Type, EvidenceDigest: digest(evidence), ClaimsDigest: digest(sha256.Sum256(doc)),
		HardwareModel: c.HardwareModel, ChipID: c.ChipID, HostData: c.HostData, TCBStatus: c.TCB.Status, Advisories: c.TCB.Advisories,
		Recipient: hex.EncodeToString(thumb[:]),
	}
	for _, of := range append([]attest.Claims{c}, c.Devices...) {
		for _, id := range b.identities(of) {
			if id != strings.ToLower(of.ChipID) {
				rec.Identities = append(rec.Identities, id)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Measurements)) {
		rec.Measurements = append(rec.Measurements, name+"="+c.Measurements[name])
	}
	for _, d := range c.Devices {
		rec.addDevice(d)
	}
	for _, path := range resources {
		rec.Resources = append(rec.Resources, RecordResource{Path: path})
	}
	return rec
}

func digest(d [32]byte) string { return "sha256:" + hex.EncodeToString(d[:]) }

// refuse records a request that came to nothing, and makes refusals alike.
func (b *Broker) refuse(ctx context.Context, rec Record, cause error, start time.Time) error {
	rec.Outcome, rec.Error = Denied, Clip(cause.Error(), MaxError)
	if errors.Is(cause, ErrUnavailable) {
		rec.Outcome = Failed
	}
	recording, cancel := detached(ctx)
	defer cancel()
	if _, err := b.cfg.Log.Append(recording, rec); err != nil {
		return fmt.Errorf("%w: record refusal: %w (refused: %w)", ErrUnavailable, err, cause)
	}
	if errors.Is(cause, ErrDenied) {
		select {
		case <-time.After(b.cfg.DenialTime - b.cfg.Now().Sub(start)%b.cfg.DenialTime):
		case <-ctx.Done():
		}
		return recorded{rec.ID, cause}
	}
	return cause
}

// record makes the record durable and returns the receipt for it. A guest that hangs up does not stop it: the record
// is on its way. If it fails, rec is the record of a release that did not happen.
func (b *Broker) record(ctx context.Context, c attest.Claims, rec *Record, now time.Time) (Receipt, error) {
	rec.Outcome = Released
	recording, cancel := detached(ctx)
	defer cancel()
	pos, err := b.cfg.Log.Append(recording, *rec)
	if err != nil {
		rec.withhold() // it may be in the log all the same
		return Receipt{}, fmt.Errorf("%w: record: %w", ErrUnavailable, err)
	}
	// A revocation acknowledged while the log was slow still counts.
	if err := b.stillAllowed(c, rec); err != nil {
		rec.withhold()
		return Receipt{}, err
	}
	receipt, err := b.receipt(*rec, pos, now)
	if err != nil {
		rec.withhold()
		return Receipt{}, fmt.Errorf("%w: receipt: %w", ErrUnavailable, err)
	}
	return receipt, nil
}

func (b *Broker) receipt(rec Record, pos Position, now time.Time) (Receipt, error) {
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
