// Package psa appraises the attestation token of Arm's Platform Security
// Architecture: the word of a device's secure firmware (TrustZone) on what was
// booted and who asked, signed by the device's initial attestation key (IAK).
// There is no vendor root above that key: the operator endorses each one.
//
// Sources: RFC 9783, its drafts (profile http://arm.com/psa/2.0.0), "PSA
// Attestation API 1.0" (PSA_IOT_PROFILE_1).
package psa

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/cose"
	"github.com/claviger/claviger/broker/dcap"
)

// Config of a Verifier.
type Config struct {
	// Endorsements are attestation keys of devices. Without any, no token is believed.
	Endorsements []arm.Endorsement
	// TestEndorsements are believed beside them; claims then say simulated. No configuration file can name one.
	TestEndorsements []arm.Endorsement
	// Unendorsed lets tokens of other devices be looked at, as simulated and with
	// a signature that nobody checked. It never stands behind a release.
	Unendorsed bool
}

// Verifier appraises evidence of type "psa". Evidence.Report is the token:
// COSE_Sign1, with or without its tag. It makes these checks, in this order; the
// names are those of Claims.Checks.
//
//  1. psa.format: COSE_Sign1 with the claims of a known profile, each in its form.
//  2. psa.binding: the nonce is the digest of this request (32, 48 or 64 bytes).
//  3. psa.key: somebody endorsed the key of the instance.
//  4. psa.signature: by that key.
//
// The lifecycle is a claim: in every state but "secured" the device is debuggable.
// So is who asked: bound_to_cpu_tee is true for secure partitions only.
type Verifier struct {
	keys       arm.Endorsements
	unendorsed bool
}

// New makes a Verifier.
func New(cfg Config) (*Verifier, error) {
	keys, err := arm.NewEndorsements(cfg.Endorsements, cfg.TestEndorsements)
	if err != nil {
		return nil, fmt.Errorf("psa: endorsements: %w", err)
	}
	return &Verifier{keys, cfg.Unendorsed}, nil
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "psa".
func (v *Verifier) Type() attest.Type { return attest.TypePSA }

// Verify implements attest.Verifier. It needs no collateral, and nothing in a token has a date.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "psa", attest.TypePSA, func(t *dcap.Trail) (attest.Claims, error) {
		if err := t.Clock(now); err != nil {
			return attest.Claims{}, err
		}
		return v.verify(t, ev, b)
	})
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypePSA {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if len(ev.Report) > attest.MaxReportSize || len(ev.Endorsements) > 0 || len(ev.EventLog) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "a token of %d bytes, want at most %d, with nothing beside it", len(ev.Report), attest.MaxReportSize)
	}
	s, err := cose.Parse(ev.Report)
	if err != nil {
		return none, t.Fail("format", formatReason(err), "%w", err)
	}
	tok, profile, err := decode(s.Payload)
	if err == nil {
		err = tok.check(profile)
	}
	if err != nil {
		return none, t.Fail("format", formatReason(err), "claims: %w", err)
	}
	c, err := tok.claims(profile)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "claims: %w", err)
	}
	t.Pass("format", "%s, %d software components", profile, len(c.SoftwareComponents))

	// A token recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, tok.Nonce, "the nonce")
	if err != nil {
		return none, err
	}
	out := c.normalised(bound, tok.Nonce)

	// A device of the attacker's: everybody can make a key, and sign with it.
	key, ok := v.keys.Find(arm.Identity{Instance: tok.Instance, Implementation: tok.Implementation})
	switch {
	case ok:
		t.Pass("key", "endorsed for instance %s", c.InstanceID)
	case v.unendorsed && !bound:
		t.Skip("key", "nobody vouches for a key of instance %s", c.InstanceID)
		t.Skip("signature", "there is no key to check it with")
		out.Simulated, out.Collateral.State = true, attest.CollateralExpired
		return out, nil
	case v.keys.Empty():
		return none, t.Fail("key", attest.ReasonChain, "this broker knows no device (evidence.psa.endorsements); the token is of instance %s", c.InstanceID)
	default:
		return none, t.Fail("key", attest.ReasonChain, "no key is endorsed for instance %s, implementation %s", c.InstanceID, c.ImplementationID)
	}

	// A token that was changed, or made up in the device's name.
	if err := s.Verify(key.Public); err != nil {
		return none, t.Fail("signature", attest.ReasonSignature, "%w", err)
	}
	t.Pass("signature", "%v by the instance's key", s.Algorithm)
	out.Simulated = key.Simulated
	c.Key, c.KeyPublished = key.Digest, key.Note
	return out, nil
}

func formatReason(err error) attest.Reason {
	if errors.Is(err, cose.ErrUnsupported) || errors.Is(err, errProfile) {
		return attest.ReasonUnsupported
	}
	return attest.ReasonMalformed
}
