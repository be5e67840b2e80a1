// Package agent is the guest's side: it makes an ephemeral key, has the
// hardware bind it in evidence, asks the broker, and opens the reply. It is
// small enough for an initramfs: no OPA, etcd, Vault or verifier is linked in.
package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/strictjson"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Device makes evidence over a transcript: the real hardware or, only where asked for by name, a simulated one.
type Device interface {
	Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error)
}

// Config of a Client.
type Config struct {
	Address string      // host:port of the broker, or of several with the same identity, separated by commas
	TLS     *tls.Config // roots to verify the server with; required
	// Roots, if not nil, is asked for the roots at each connection, in place of those in TLS.
	Roots    func() *x509.CertPool
	Identity []byte // the broker's pinned identity (SubjectPublicKeyInfo, DER); required
	Device   Device
	// Devices are others whose evidence goes with Device's, which vouches for it.
	Devices []Device
	Suite   seal.Suite // empty: seal.Hybrid
	// Key is used in place of a fresh one, for a key held in hardware (seal.RSA). Nil: a fresh one each time.
	Key  *seal.PrivateKey
	Skew time.Duration // how far this clock may be off; 0: 5 minutes
	// Resolver looks names up; nil: the system's.
	Resolver *net.Resolver
	// Pin, if not nil, is asked for the pinned identity in place of Identity whenever a broker is about to be asked:
	// it may have changed.
	Pin func() ([]byte, error)
	// Trouble is told, once per change, why Watch is not up to date, and nil when it is again. It may be nil.
	Trouble func(err error)
	// Logf is told about retries; may be nil.
	Logf func(format string, args ...any)
	// Missing says what the machine lacks to reach a broker, or "". It is told why the last connection failed, or nil,
	// and asked before the first attempt and while attempts fail. It may be nil.
	Missing func(cause error) string
	// Built is when this program was built: an earlier clock is wrong.
	Built time.Time
	Now   func() time.Time
}

// Errors that Get's error wraps.
var (
	// ErrDenied: the broker said no. Asking again will not help; the operator's audit log says why.
	ErrDenied = errors.New("the broker denied the request; its operator can see why in the audit log")
	// ErrRefused: the request is not acceptable to this broker, and says why.
	ErrRefused = errors.New("the broker refused the request")
	// ErrNotOurBroker: the reply is not from the pinned broker, or not to this request.
	ErrNotOurBroker = errors.New("the reply is not one by the pinned broker to this request")
	// ErrUnreachable: the deadline passed without an answer.
	ErrUnreachable = errors.New("no answer in time")
	// ErrExpired: only a new certificate of the broker helps.
	ErrExpired = errors.New("the broker's certificate has expired")
)

// Client asks a broker, or another one of its cluster while that fails.
type Client struct {
	devices []hasty // the machine's own first
	cfg     Config
	brokers *brokers
}

// New makes a client; it connects when first used. Close it.
func New(cfg Config) (*Client, error) {
	switch {
	case cfg.TLS == nil:
		return nil, errors.New("agent: no TLS configuration")
	case len(cfg.Identity) == 0 && cfg.Pin == nil:
		return nil, errors.New("agent: no pinned broker identity")
	case cfg.Device == nil:
		return nil, errors.New("agent: no device to make evidence with")
	}
	if cfg.Key != nil {
		cfg.Suite = cfg.Key.Suite()
	}
	if cfg.Suite == "" {
		cfg.Suite = seal.Hybrid
	}
	if cfg.Skew == 0 {
		cfg.Skew = 5 * time.Minute
	}
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	if cfg.Missing == nil {
		cfg.Missing = func(error) string { return "" }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := cfg.TLS.Clone()
	t.MinVersion, t.Time = tls.VersionTLS13, cfg.Now
	b, err := connect(cfg.Address, t, cfg.Roots, cfg.Resolver)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, brokers: b, devices: []hasty{newHasty(cfg.Device)}}
	for _, d := range cfg.Devices {
		c.devices = append(c.devices, newHasty(d))
	}
	return c, nil
}

// pin is the identity that replies are to be signed by.
func (c *Client) pin() ([]byte, error) {
	if c.cfg.Pin == nil {
		return c.cfg.Identity, nil
	}
	id, err := c.cfg.Pin()
	if err != nil {
		return nil, permanent{fmt.Errorf("pinned identity: %w", err)}
	}
	return id, nil
}

// Close ends the connections.
func (c *Client) Close() error { return c.brokers.close() }

// Secret is an opened secret. Wipe it after use.
type Secret struct {
	Resource string
	Value    []byte
	Version  string
	// ContentType is the media type of Value; empty: opaque bytes.
	ContentType string
	Lease       string
	Expires     time.Time
	Policy      string
	// PreviousRetires is when the version before this one may not be used any more; zero: nobody says.
	PreviousRetires time.Time
	decision        string // the record's id, the same for all secrets of a release
}

// Wipe overwrites the value.
func (s *Secret) Wipe() { clear(s.Value) }

// Receipt is the broker's verified promise that the release is in its log.
type Receipt struct {
	Promise  string `json:"promise"` // compact JWS by the broker
	Identity []byte `json:"identity"`
	LogIndex uint64 `json:"log_index"`
	LeafHash []byte `json:"leaf_hash"`
	Log      string `json:"log"`
	// Proof is there once it was asked for.
	Checkpoint []byte   `json:"checkpoint,omitempty"`
	Path       [][]byte `json:"path,omitempty"`
}

// Get is GetWith without inputs.
func (c *Client) Get(ctx context.Context, resources ...string) ([]Secret, Receipt, error) {
	return c.GetWith(ctx, nil, resources...)
}

// GetWith asks for all resources at once, retrying with jitter what may help until
// ctx ends. A new key, nonce and evidence are made for every attempt.
// inputs is what to send with a resource (a CSR, a ciphertext), by resource; the evidence binds it.
func (c *Client) GetWith(ctx context.Context, inputs map[string][]byte, resources ...string) ([]Secret, Receipt, error) {
	if err := checkInputs(resources, inputs); err != nil {
		return nil, Receipt{}, err
	}
	last := errors.New("a broker asked to be left alone for longer")
	c.cfg.Missing(nil)
	for attempt := 0; ; attempt++ {
		e, wait := c.brokers.pick(time.Now())
		if attempt > 0 {
			c.cfg.Logf("attempt %d, %v; trying %s in %s", attempt, last, e.address, wait.Round(time.Millisecond))
		}
		if err := e.rest(ctx, wait, func() { c.cfg.Missing(e.last.get()) }); err != nil {
			return nil, Receipt{}, fmt.Errorf("%w from %s after %d attempts; the last: %w", ErrUnreachable, c.cfg.Address, attempt, last)
		}
		secrets, receipt, err := c.once(ctx, e, resources, inputs)
		if err == nil {
			c.brokers.worked(e)
			return secrets, receipt, nil
		}
		if !c.brokers.failed(e, err, time.Now()) {
			return nil, Receipt{}, final(err)
		}
		if attempt == 0 || ctx.Err() == nil { // what passes the deadline only says that it passed
			last = fmt.Errorf("%s: %w", e.address, c.explain(e, err))
		}
		if c.brokers.expired(c.cfg.Now(), c.cfg.Built) {
			return nil, Receipt{}, last
		}
	}
}

// explain says what a person at a console can mend, if it is that: a wrong clock, a network that is not up.
func (c *Client) explain(e *endpoint, err error) error {
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		return err
	}
	cause := e.last.get()
	if clock := clockError(cause, c.cfg.Now(), c.cfg.Built); clock != nil {
		return clock
	}
	if missing := c.cfg.Missing(cause); missing != "" {
		return fmt.Errorf("%s (%w)", missing, err)
	}
	return err
}

func (c *Client) once(ctx context.Context, e *endpoint, resources []string, inputs map[string][]byte) ([]Secret, Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	identity, err := c.pin()
	if err != nil {
		return nil, Receipt{}, err
	}
	ch, err := e.challenge(ctx, identity)
	if err != nil {
		return nil, Receipt{}, err
	}
	key := c.cfg.Key
	if key == nil {
		if key, err = seal.GenerateKey(c.cfg.Suite); err != nil {
			return nil, Receipt{}, permanent{err}
		}
	}
	// The broker's id comes from the pin, never from the wire: evidence made here is of no use to another broker.
	offered := []string{string(c.cfg.Suite)}
	bound, sent := withInputs(resources, inputs)
	ev, whole, err := c.evidence(ctx, e, attest.PurposeRelease, attest.Transcript{
		Nonce: ch.GetNonce(), BrokerID: sha256.Sum256(identity), KeyAlgorithm: string(c.cfg.Suite), PublicKey: key.Public(),
		OfferedSuites: offered, Resources: resources, Inputs: bound,
	})
	if err != nil {
		return nil, Receipt{}, err
	}
	asking, stop := context.WithTimeout(ctx, c.brokers.patience)
	defer stop()
	var trailer metadata.MD
	resp, err := e.rpc.Release(asking, &pb.ReleaseRequest{
		Nonce: ch.GetNonce(), KeyAlgorithm: string(c.cfg.Suite), PublicKey: key.Public(), OfferedSuites: offered, Resources: resources,
		Evidence: ev,
		Inputs:   sent,
	}, grpc.Trailer(&trailer))
	if status.Code(err) == codes.PermissionDenied {
		return nil, Receipt{}, permanent{denied(identity, trailer, whole)}
	} else if err != nil {
		return nil, Receipt{}, fmt.Errorf("release: %w", err)
	}
	secrets, err := c.open(key, identity, ch.GetNonce(), resources, resp)
	if errors.Is(err, seal.ErrTime) {
		return nil, Receipt{}, permanent{err}
	} else if err != nil {
		return nil, Receipt{}, permanent{fmt.Errorf("%w: %w", ErrNotOurBroker, err)}
	}
	receipt, err := receiptBy(identity, resp.GetReceipt(), secrets[0].decision)
	if err != nil {
		for i := range secrets {
			secrets[i].Wipe()
		}
		return nil, Receipt{}, permanent{fmt.Errorf("%w: receipt: %w", ErrNotOurBroker, err)}
	}
	return secrets, receipt, nil
}

// checkInputs refuses one for a resource that is not asked for.
func checkInputs(resources []string, inputs map[string][]byte) error {
	for r := range inputs {
		if !slices.Contains(resources, r) {
			return fmt.Errorf("agent: input for %q, which is not asked for", r)
		}
	}
	return nil
}

// withInputs is what evidence binds of the inputs, and how they are sent; nil if there is none.
func withInputs(resources []string, inputs map[string][]byte) (bound [][]byte, sent []*pb.ResourceInput) {
	for _, r := range resources {
		in := inputs[r]
		bound = append(bound, in)
		if len(in) > 0 {
			sent = append(sent, &pb.ResourceInput{Resource: r, Input: in})
		}
	}
	if sent == nil {
		return nil, nil
	}
	return bound, sent
}

// challenge asks for a nonce. That is quick, or the broker is of no use. Both
// sides say which identity they mean: it proves nothing, and tells people of a
// wrong pin what would otherwise be a denial without a reason.
func (e *endpoint) challenge(ctx context.Context, identity []byte) (*pb.ChallengeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pinned := sha256.Sum256(identity)
	ctx = metadata.AppendToOutgoingContext(ctx, "claviger-broker-id", hex.EncodeToString(pinned[:]))
	ch, err := e.rpc.Challenge(ctx, &pb.ChallengeRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for a challenge: %w", err)
	}
	if id := ch.GetBrokerId(); len(id) > 0 && !bytes.Equal(id, pinned[:]) {
		return nil, permanent{fmt.Errorf("%w: it says that its id is %x, and the identity pinned here has the id %x: the pin is wrong, or this is another broker", ErrNotOurBroker, short(id), pinned)}
	}
	return ch, nil
}

// short bounds what is shown of an id.
func short(id []byte) []byte { return id[:min(len(id), sha256.Size)] }

// Activated is a device whose key the broker has to be shown first: a TPM.
type Activated interface {
	Activate(ctx context.Context, ask func(context.Context, attest.TPMActivation) (attest.TPMChallenge, error)) error
}

// evidence has the devices sign the transcript, and the first one sign what the others made.
func (c *Client) evidence(ctx context.Context, e *endpoint, p attest.Purpose, t attest.Transcript) (parts []*pb.Evidence, whole [32]byte, err error) {
	parts = []*pb.Evidence{nil}
	all := []attest.Evidence{{}}
	sign := func(d hasty, t attest.Transcript) (attest.Evidence, *pb.Evidence, error) {
		ev, err := e.sign(ctx, d, t)
		return ev, &pb.Evidence{Type: string(ev.Type), Report: ev.Report, Endorsements: ev.Endorsements, EventLog: ev.EventLog}, err
	}
	for _, d := range c.devices[1:] {
		ev, part, err := sign(d, t.Alone())
		if err != nil {
			return nil, whole, err
		}
		t.Devices, parts, all = append(t.Devices, ev.Digest()), append(parts, part), append(all, ev)
	}
	if all[0], parts[0], err = sign(c.devices[0], t); err != nil {
		return nil, whole, err
	}
	return parts, t.Whole(p, all...), nil
}

// sign has a device sign a transcript.
func (e *endpoint) sign(ctx context.Context, d hasty, t attest.Transcript) (attest.Evidence, error) {
	failed := func(err error) error {
		if _, ok := status.FromError(err); ok {
			return err // another attempt may help
		}
		err = fmt.Errorf("make evidence: %w", err)
		if ctx.Err() != nil {
			return err // here, too
		}
		return permanent{err}
	}
	if err := d.activate(ctx, e.activateTPM); err != nil {
		return attest.Evidence{}, failed(err)
	}
	ev, err := d.Evidence(ctx, t)
	if err != nil {
		return attest.Evidence{}, failed(err)
	}
	return ev, nil
}

func (e *endpoint) activateTPM(ctx context.Context, a attest.TPMActivation) (attest.TPMChallenge, error) {
	ctx, cancel := context.WithTimeout(ctx, manyPatience)
	defer cancel()
	r, err := e.rpc.ActivateTPM(ctx, &pb.ActivateTPMRequest{EkCertificates: a.EKCertificates, EkPublic: a.EKPublic, AkPublic: a.AKPublic})
	if err != nil {
		return attest.TPMChallenge{}, fmt.Errorf("show the attestation key: %w", err)
	}
	return attest.TPMChallenge{
		CredentialBlob: r.GetCredentialBlob(), EncryptedSecret: r.GetEncryptedSecret(), Ticket: r.GetTicket(), Expires: r.GetExpiresAt().AsTime(),
	}, nil
}

func (c *Client) open(key *seal.PrivateKey, identity, nonce []byte, resources []string, resp *pb.ReleaseResponse) ([]Secret, error) {
	if len(resp.GetSecrets()) != len(resources) {
		return nil, fmt.Errorf("asked for %d secrets, got %d", len(resources), len(resp.GetSecrets()))
	}
	var out []Secret
	for i, want := range resources {
		st, err := seal.Open(key, resp.GetSecrets()[i].GetJwe(), seal.Expect{
			Identity: identity, Resource: want, Nonce: nonce, Now: c.cfg.Now(), Skew: c.cfg.Skew,
		})
		if err != nil {
			for j := range out {
				out[j].Wipe()
			}
			return nil, fmt.Errorf("%s: %w", want, err)
		}
		if len(out) > 0 && out[0].decision != st.Decision {
			return nil, fmt.Errorf("%s: comes from another decision than %s", want, out[0].Resource)
		}
		out = append(out, secretOf(st))
	}
	return out, nil
}

func secretOf(st seal.Statement) Secret {
	return Secret{
		Resource: st.Resource, Value: st.Secret, Version: st.Version, ContentType: st.ContentType, Lease: st.Lease,
		Expires: time.Unix(st.Expires, 0), Policy: st.Policy, decision: st.Decision,
	}
}

// promise mirrors the payload of a receipt (proto/README.md).
type promise struct {
	ID       string `json:"jti"`
	Log      string `json:"log"`
	Index    uint64 `json:"index"`
	LeafHash string `json:"leaf_hash"`
}

// receiptBy is the receipt, if the identity signed it and it is for the decision.
func receiptBy(identity []byte, r *pb.Receipt, decision string) (Receipt, error) {
	payload, err := seal.Verify(identity, seal.TypeReceipt, r.GetPromise())
	if err != nil {
		return Receipt{}, err
	}
	var p promise
	if err := strictjson.Unmarshal(payload, &p); err != nil {
		return Receipt{}, fmt.Errorf("decode: %w", err)
	}
	leaf, err := seal.Decode(p.LeafHash)
	if err != nil || len(leaf) != sha256.Size {
		return Receipt{}, errors.New("leaf hash is not 32 bytes of base64url")
	}
	// An older receipt, genuine by itself, says nothing about this release.
	if p.ID != decision {
		return Receipt{}, errors.New("receipt is for another decision than the secrets")
	}
	if p.Index != r.GetLogIndex() {
		return Receipt{}, errors.New("signed index differs from the one beside it")
	}
	return Receipt{Promise: r.GetPromise(), Identity: identity, LogIndex: p.Index, LeafHash: leaf, Log: p.Log}, nil
}

// Prove fetches the inclusion proof for a receipt, waiting until it is
// published. It is verified with the log's key by who audits: `claviger audit verify --receipt`.
func (c *Client) Prove(ctx context.Context, r *Receipt) error {
	for attempt := 0; ; attempt++ {
		p, err := c.brokers.current().rpc.ProveInclusion(ctx, &pb.ProveInclusionRequest{LogIndex: r.LogIndex})
		if err == nil {
			r.Checkpoint, r.Path = p.GetCheckpoint(), p.GetProof()
			return nil
		}
		wait, again := backoff(err, attempt)
		if !again {
			return fmt.Errorf("prove inclusion: %w", err)
		}
		if sleep(ctx, wait) != nil {
			return fmt.Errorf("prove inclusion: %w", ErrUnreachable)
		}
	}
}

// permanent marks an error that another attempt would only repeat.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// denied is ErrDenied; of a denial that the pinned broker signed for one of the requests
// (attest.Transcript.Whole), with the id of its record.
func denied(identity []byte, trailer metadata.MD, requests ...[32]byte) error {
	var id string
	for _, statement := range trailer.Get("claviger-denial") {
		payload, err := seal.Verify(identity, seal.TypeDenial, statement)
		if err != nil {
			continue
		}
		var d struct {
			Issuer   string `json:"iss"`
			ID       string `json:"jti"`
			Request  string `json:"request"`
			IssuedAt int64  `json:"iat"`
		}
		if err := strictjson.Unmarshal(payload, &d); err != nil {
			continue
		}
		request, err := seal.Decode(d.Request)
		if err == nil && slices.ContainsFunc(requests, func(r [32]byte) bool { return bytes.Equal(r[:], request) }) {
			id = d.ID
		}
	}
	return deniedError{id}
}

// deniedError is ErrDenied; without an id nobody knows whether the pinned broker said so.
type deniedError struct{ id string }

func (d deniedError) Error() string {
	if d.id == "" {
		return ErrDenied.Error()
	}
	return fmt.Sprintf("%v under id %s: claviger audit tail --id %s", ErrDenied, d.id, d.id)
}

func (deniedError) Unwrap() error { return ErrDenied }

// final turns a status into an error that a person at a console understands.
func final(err error) error {
	switch s := status.Convert(err); s.Code() {
	case codes.PermissionDenied:
		return ErrDenied
	case codes.InvalidArgument, codes.Unimplemented, codes.OutOfRange:
		return fmt.Errorf("%w: %s", ErrRefused, s.Message())
	}
	return err
}

const (
	firstWait = 200 * time.Millisecond
	maxWait   = 15 * time.Second
)

// backoff says when to try again, and whether that may help a single request: exponentially, and not before the
// server asks for, with jitter so that a fleet does not come back in step.
func backoff(err error, attempt int) (time.Duration, bool) {
	_, fixed := errors.AsType[permanent](err)
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	switch s.Code() {
	case codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented, codes.Unauthenticated, codes.OutOfRange:
		fixed = true
	}
	wait := pause(attempt, firstWait, maxWait)
	for _, d := range s.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			if asked := min(r.GetRetryDelay().AsDuration(), time.Minute); asked > 0 {
				wait = max(wait, asked+rand.N(asked/2+1))
			}
		}
	}
	return wait, !fixed
}

// pause doubles from first to longest, with jitter.
func pause(attempt int, first, longest time.Duration) time.Duration {
	wait := min(first<<min(attempt, 10), longest)
	return wait/2 + rand.N(wait)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
