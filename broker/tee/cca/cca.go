// Package cca appraises attestation tokens of Arm's Confidential Compute
// Architecture. One is two tokens: the platform's, on what firmware was booted,
// signed by the platform's attestation key (CPAK), and the realm's, on the
// confidential VM that asked, signed by the monitor's key (RAK). The platform's
// names the hash of the RAK. There is no vendor root above the CPAK: the operator
// endorses each one.
//
// Sources: Realm Management Monitor specification (DEN0137) §A7.2,
// draft-ffm-rats-cca-token-00.
package cca

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/cose"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
)

// Config of a Verifier.
type Config struct {
	// Endorsements are attestation keys of platforms. Without any, no token is believed.
	Endorsements []arm.Endorsement
	// TestEndorsements are believed beside them; claims then say simulated. No configuration file can name one.
	TestEndorsements []arm.Endorsement
	// Unendorsed lets tokens of other platforms be looked at, as simulated and with
	// a platform signature that nobody checked. It never stands behind a release.
	Unendorsed bool
}

// Verifier appraises evidence of type "cca". Evidence.Report is the token, with
// its CBOR tag: 399, or 907. It makes these checks, in this order; the names are
// those of Claims.Checks.
//
//  1. cca.format: two COSE_Sign1 with the claims of known profiles, each in its form.
//  2. cca.binding: the realm's challenge is the digest of this request (64 bytes).
//  3. cca.key: somebody endorsed the key of the platform's instance.
//  4. cca.platform_signature: by that key.
//  5. cca.binder: the platform's challenge is the hash of the realm attestation key.
//  6. cca.realm_signature: by that one.
//
// The platform's lifecycle is a claim: in every state but "secured" the realm is debuggable.
type Verifier struct {
	keys       arm.Endorsements
	unendorsed bool
	// verified are platform tokens: a monitor shows the same one until the next boot.
	verified memo.Memo[struct{}]
}

// New makes a Verifier.
func New(cfg Config) (*Verifier, error) {
	keys, err := arm.NewEndorsements(cfg.Endorsements, cfg.TestEndorsements)
	if err != nil {
		return nil, fmt.Errorf("cca: endorsements: %w", err)
	}
	return &Verifier{keys: keys, unendorsed: cfg.Unendorsed}, nil
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "cca".
func (v *Verifier) Type() attest.Type { return attest.TypeCCA }

// Verify implements attest.Verifier. It needs no collateral, and nothing in a token has a date.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "cca", attest.TypeCCA, func(t *dcap.Trail) (attest.Claims, error) {
		if err := t.Clock(now); err != nil {
			return attest.Claims{}, err
		}
		return v.verify(t, ev, b)
	})
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeCCA {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if len(ev.Report) > attest.MaxReportSize || len(ev.Endorsements) > 0 || len(ev.EventLog) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "a token of %d bytes, want at most %d, with nothing beside it", len(ev.Report), attest.MaxReportSize)
	}
	tok, err := parse(ev.Report)
	if err != nil {
		reason := attest.ReasonMalformed
		if errors.Is(err, cose.ErrUnsupported) || errors.Is(err, errUnsupported) {
			reason = attest.ReasonUnsupported
		}
		return none, t.Fail("format", reason, "%w", err)
	}
	c := tok.claims
	t.Pass("format", "%s, %d software components; realm %s", c.Platform.Profile, len(c.Platform.SoftwareComponents), cmp.Or(c.Realm.Profile, "without a profile"))

	// A token recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, tok.realm.Challenge, "the realm's challenge")
	if err != nil {
		return none, err
	}
	out := c.normalised(bound, tok.realm.Challenge)

	// A platform of the attacker's: everybody can make a key, and sign with it.
	key, ok := v.keys.Find(tok.platform.identity())
	switch {
	case ok:
		t.Pass("key", "endorsed for instance %s", c.Platform.InstanceID)
		// A platform token that was changed, or made up in the platform's name.
		_, err := v.verified.Get(memo.Key(tok.platformRaw, []byte(key.Digest)), func() (struct{}, error) {
			return struct{}{}, tok.platformSign1.Verify(key.Public)
		})
		if err != nil {
			return none, t.Fail("platform_signature", attest.ReasonSignature, "%w", err)
		}
		t.Pass("platform_signature", "%v by the instance's key", tok.platformSign1.Algorithm)
		out.Simulated = key.Simulated
		c.Platform.Key, c.Platform.KeyPublished = key.Digest, key.Note
	case v.unendorsed && !bound:
		t.Skip("key", "nobody vouches for a key of instance %s", c.Platform.InstanceID)
		t.Skip("platform_signature", "there is no key to check it with")
		out.Simulated, out.Collateral.State = true, attest.CollateralExpired
	case v.keys.Empty():
		return none, t.Fail("key", attest.ReasonChain, "this broker knows no platform (evidence.cca.endorsements); the token is of instance %s", c.Platform.InstanceID)
	default:
		return none, t.Fail("key", attest.ReasonChain, "no key is endorsed for instance %s, implementation %s", c.Platform.InstanceID, c.Platform.ImplementationID)
	}

	// A realm token by a key of the attacker's, beside a platform token of somebody's.
	if !bytes.Equal(tok.platform.Challenge, tok.keyHash) {
		return none, t.Fail("binder", attest.ReasonChain, "the platform's challenge is %x, and the %s of the realm's key %x", tok.platform.Challenge, c.Realm.PublicKeyHashAlgorithm, tok.keyHash)
	}
	t.Pass("binder", "the platform vouches for the realm's key")

	// A realm token that was changed.
	if err := tok.realmSign1.Verify(tok.key); err != nil {
		return none, t.Fail("realm_signature", attest.ReasonSignature, "%w", err)
	}
	t.Pass("realm_signature", "%v by the realm's key", tok.realmSign1.Algorithm)
	return out, nil
}

// token is both tokens, read, but not verified.
type token struct {
	platformRaw               []byte
	platformSign1, realmSign1 cose.Sign1
	platform                  platformToken
	realm                     realmToken
	key                       *ecdsa.PublicKey // of the realm
	keyHash                   []byte
	claims                    *Claims
}

func parse(b []byte) (token, error) {
	var t token
	raw, realm, err := split(b)
	if err != nil {
		return t, err
	}
	t.platformRaw = raw
	if t.platformSign1, err = cose.Parse(raw); err != nil {
		return t, fmt.Errorf("platform: %w", err)
	}
	if t.realmSign1, err = cose.Parse(realm); err != nil {
		return t, fmt.Errorf("realm: %w", err)
	}
	if t.platform, err = decodePlatform(t.platformSign1.Payload); err != nil {
		return t, fmt.Errorf("platform: %w", err)
	}
	if t.realm, err = decodeRealm(t.realmSign1.Payload); err != nil {
		return t, fmt.Errorf("realm: %w", err)
	}
	if t.key, err = t.realm.key(); err != nil {
		return t, fmt.Errorf("realm: %w", err)
	}
	if t.keyHash, err = t.realm.keyHash(); err != nil {
		return t, fmt.Errorf("realm: %w", err)
	}
	t.claims, err = claimsOf(t.platform, t.realm)
	return t, err
}
