// Package nitro appraises attestation documents of AWS: those that the Nitro
// Secure Module signs for an enclave, and those of NitroTPM for an EC2 instance.
// Both are words of the Nitro hypervisor about a virtual machine that it runs;
// no CPU vendor has a part in them, so that bound_to_cpu_tee is false.
//
// Sources: "attestation_process.md" of aws-nitro-enclaves-nsm-api, "Validate a
// NitroTPM Attestation Document" of the EC2 user guide, RFC 9052 (COSE).
package nitro

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	_ "embed" // the root
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/p384"
)

//go:embed AWS_NitroEnclaves_Root-G1.pem
var rootG1 []byte

// rootG1SHA256 is the fingerprint that AWS publishes ("Verifying the root of trust", Nitro Enclaves user guide).
const rootG1SHA256 = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"

// Clock rules of bound documents.
const (
	defaultMaxAge = 5 * time.Minute
	maxSkew       = time.Minute // of the hypervisor's clock ahead of ours
)

// Config of a Verifier.
type Config struct {
	// MaxAge is how old a bound document may be. Default 5 minutes.
	MaxAge time.Duration
	// TestRoots are believed beside the root G1; claims then say simulated. No configuration file can name one.
	TestRoots []*x509.Certificate
}

// Verifier appraises evidence of type "nitro". Evidence.Report is the document as
// the module returns it: COSE_Sign1, with or without tag 18. It makes these
// checks, in this order; the names are those of Claims.Checks.
//
//  1. nitro.format: COSE_Sign1 with the header ES384 alone; the payload keeps the
//     limits of AWS's specification, PCRs have the length of their digest.
//  2. nitro.binding: user_data is the digest of this request (64 bytes).
//  3. nitro.age: a bound document was made within the last MaxAge.
//  4. nitro.chain: certificate and cabundle lead to the pinned root G1, all with
//     P-384 keys.
//  5. nitro.validity: all of them are valid now and when the document was made.
//  6. nitro.signature: by the certificate's key.
//
// Debug mode is a claim (debuggable), as are nonce and public_key.
type Verifier struct {
	maxAge time.Duration
	root   *x509.Certificate
	roots  *certs.Authorities
	chains memo.Memo[[]*x509.Certificate] // leaf first; dates are looked at on each use
}

// New makes a Verifier.
func New(cfg Config) (*Verifier, error) {
	if cfg.MaxAge < 0 {
		return nil, fmt.Errorf("nitro: maximal age of %s", cfg.MaxAge)
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = defaultMaxAge
	}
	block, _ := pem.Decode(rootG1)
	if block == nil {
		return nil, errors.New("nitro: root G1: not PEM")
	}
	if d := sha256.Sum256(block.Bytes); hex.EncodeToString(d[:]) != rootG1SHA256 {
		return nil, fmt.Errorf("nitro: root G1 has digest %x, pinned is %s", d, rootG1SHA256)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("nitro: root G1: %w", err)
	}
	roots := certs.NewAuthorities(append([]*x509.Certificate{root}, cfg.TestRoots...), nil)
	return &Verifier{maxAge: cfg.MaxAge, root: root, roots: roots}, nil
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "nitro".
func (v *Verifier) Type() attest.Type { return attest.TypeNitro }

// Verify implements attest.Verifier. It needs no collateral: AWS publishes no
// revocation lists for this chain, whose leaves live for hours.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "nitro", attest.TypeNitro, func(t *dcap.Trail) (attest.Claims, error) { return v.verify(t, ev, b, now) })
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding, now time.Time) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeNitro {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if len(ev.Report) > attest.MaxReportSize || len(ev.Endorsements) > 0 || len(ev.EventLog) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "a document of %d bytes, want at most %d, with nothing beside it", len(ev.Report), attest.MaxReportSize)
	}
	s, err := parseSign1(ev.Report)
	if err != nil {
		// Another algorithm, or none, of the attacker's choice.
		return none, t.Fail("format", formatReason(err), "%w", err)
	}
	d, err := parseDocument(s.Payload)
	if err != nil {
		return none, t.Fail("format", formatReason(err), "%w", err)
	}
	t.Pass("format", "document of %s (%s), %d PCRs", d.ModuleID, d.kind, len(d.registers))

	// A document recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, d.UserData, "user_data")
	if err != nil {
		return none, err
	}

	// A document made ahead, for a nonce that was known before.
	switch age := now.Sub(d.time()); {
	case !bound:
		t.Skip("age", "made at %s; its age counts for bound documents", d.time().Format(time.RFC3339))
	case age > v.maxAge || age < -maxSkew:
		return none, t.Fail("age", attest.ReasonValidity, "made at %s, %s before now; allowed are %s", d.time().Format(time.RFC3339), age, v.maxAge)
	default:
		t.Pass("age", "%s", age)
	}

	// A document that anybody signed.
	chain, reason, err := v.chain(d)
	if err != nil {
		check := "chain"
		if reason == attest.ReasonValidity {
			check = "validity"
		}
		return none, t.Fail(check, reason, "%w", err)
	}
	root := chain[len(chain)-1]
	t.Pass("chain", "%d certificates up to %s", len(chain), root.Subject)

	// A key of a former life of the hypervisor, for which AWS vouches no longer.
	for _, c := range chain {
		for _, at := range []time.Time{now, d.time()} {
			if at.Before(c.NotBefore) || at.After(c.NotAfter) {
				return none, t.Fail("validity", attest.ReasonValidity, "%q is valid from %s to %s, not at %s",
					c.Subject, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), at.Format(time.RFC3339))
			}
		}
	}
	t.Pass("validity", "now and when the document was made")

	// A changed document. The chain's keys are P-384, see package p384.
	if !s.verify(chain[0]) {
		return none, t.Fail("signature", attest.ReasonSignature, "the document's signature does not verify")
	}
	t.Pass("signature", "ES384 by %s", chain[0].Subject)
	return d.claims(bound, !root.Equal(v.root), chain[0].Subject.String()), nil
}

func formatReason(err error) attest.Reason {
	if errors.Is(err, errAlgorithm) || errors.Is(err, errDigest) {
		return attest.ReasonUnsupported
	}
	return attest.ReasonMalformed
}

// chain verifies the document's certificates up to a root, as of the document's
// time, and returns them, leaf first. The dates are the caller's to check: a
// chain is remembered.
func (v *Verifier) chain(d *document) ([]*x509.Certificate, attest.Reason, error) {
	reason := attest.ReasonMalformed
	chain, err := v.chains.Get(memo.Key(append([][]byte{d.Certificate}, d.CABundle...)...), func() ([]*x509.Certificate, error) {
		leaf, err := p384.ParseCertificate(d.Certificate)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		var sent []*x509.Certificate
		for i, der := range d.CABundle {
			c, err := p384.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("cabundle: certificate %d: %w", i, err)
			}
			sent = append(sent, c)
		}
		reason = attest.ReasonChain
		// AWS's leaves name no usage that x509 knows of.
		chain, err := v.roots.Verify(leaf, sent, d.time())
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
			reason = attest.ReasonValidity
		}
		if err != nil {
			return nil, err
		}
		// A CA below the root that signs a document with its own key.
		if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
			return nil, errors.New("certificate: is a CA's, or not for signatures")
		}
		return chain, nil
	})
	return chain, reason, err
}
