// Package tpm appraises TPM 2.0 evidence: a quote over PCRs by an attestation
// key (AK) whose residence in a certified TPM was proven, and the firmware's
// event log. Such evidence says what was booted. It does not say that the host
// cannot read the machine's memory: bound_to_cpu_tee is false, and the baseline
// denies that unless a policy asks for a TPM alone.
//
// Specifications: TCG "TPM 2.0 Library" (Part 2 structures, Part 3 commands),
// "EK Credential Profile", "PC Client Platform Firmware Profile" (PFP).
package tpm

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/tpmquote"
)

// Config of a Verifier.
type Config struct {
	// EKRoots and EKIntermediates are the TPM manufacturers' CAs. Without EKRoots no endorsement key is believed.
	EKRoots         []*x509.Certificate
	EKIntermediates []*x509.Certificate
	// AKRoots are CAs that certify attestation keys directly. They may be none.
	AKRoots []*x509.Certificate
	// TicketKey (32 bytes) authenticates activation tickets, the same on every replica.
	TicketKey []byte
	// Unvouched lets an attestation key for which nobody vouches pass, as a skipped check, where evidence without a
	// binding is looked at from a file.
	Unvouched bool
	// TicketLife is how long a ticket is honoured. Default 1 hour.
	TicketLife time.Duration
}

// Verifier appraises TPM evidence and activates attestation keys.
type Verifier struct {
	cfg     Config
	ekRoots *certs.Authorities
	akRoots *certs.Authorities
	chips   memo.Memo[string]       // the chip id of a TPM by the name of an attestation key in it
	keys    memo.Memo[tpmquote.Key] // parsed AKs of guests whose evidence was believed
}

// New makes a Verifier. Without CAs it refuses all evidence, saying so.
func New(cfg Config) (*Verifier, error) {
	if len(cfg.EKRoots) > 0 && len(cfg.TicketKey) != 32 {
		return nil, fmt.Errorf("tpm: ticket key of %d bytes, want 32", len(cfg.TicketKey))
	}
	if cfg.TicketLife == 0 {
		cfg.TicketLife = time.Hour
	}
	return &Verifier{cfg: cfg, ekRoots: certs.NewAuthorities(cfg.EKRoots, cfg.EKIntermediates), akRoots: certs.NewAuthorities(cfg.AKRoots, nil)}, nil
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "tpm".
func (v *Verifier) Type() attest.Type { return attest.TypeTPM }

// Verify implements attest.Verifier. It needs no collateral: the CAs are configured.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (claims attest.Claims, err error) {
	t := dcap.NewTrail("tpm")
	defer func() {
		if r := recover(); r != nil { // go-tpm decodes by reflection
			err = t.Fail("internal", attest.ReasonMalformed, "panic: %v", r)
		}
		if err != nil {
			claims = attest.Claims{Type: attest.TypeTPM}
		}
		claims.Checks = t.Checks()
	}()
	if err := ctx.Err(); err != nil {
		return claims, t.Fail("internal", attest.ReasonInternal, "%w", err)
	}
	return v.verify(t, ev, b, now)
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding, now time.Time) (attest.Claims, error) {
	var none attest.Claims
	r, err := attest.DecodeTPMReport(ev.Report)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	q, err := tpmquote.Parse(r.Quote, r.Signature)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	t.Pass("format", "quote over %d PCRs", len(r.PCRs))

	digest := memo.Key(r.AKPublic)
	ak, known := v.keys.Find(digest)
	if !known {
		if ak, err = tpmquote.ParseKey(r.AKPublic); err != nil {
			return none, t.Fail("ak", attest.ReasonUnsupported, "%w", err)
		}
	}
	t.Pass("ak", "%s; its public area says that it is restricted, made in the TPM and fixed to it", ak.Algorithm)

	bound, err := t.Bound(b, q.ExtraData(), "the qualifying data")
	if err != nil {
		return none, err
	}

	// Who vouches for the AK, before what it says.
	trust, err := v.trustAK(t, ev, r, ak, bound, now)
	if err != nil {
		return none, err
	}
	if err := q.Verify(t, ak, r.PCRs); err != nil {
		return none, err
	}

	// An activation proves the whole public area. A certificate has the key alone: that it is one of a TPM's is for
	// its CA to know, and the TPM's name of it is whatever the guest wrote.
	name := hex.EncodeToString(ak.Name)
	if trust.how == tpmquote.TrustCertificate {
		name = trust.chipID
	}
	c := tpmquote.NewClaims(q, r.PCRs, tpmquote.AK{Name: name, Algorithm: ak.Algorithm, Trust: trust.how, Issuer: trust.issuer}, trust.ek)
	if err := c.Explain(t, ev.EventLog, r.PCRs, tpmquote.Hints{Cmdline: r.Cmdline, SystemdLog: r.SystemdLog}); err != nil {
		return none, err
	}
	if !known {
		v.keys.Keep(digest, ak)
	}
	claims := attest.Claims{
		Type: attest.TypeTPM, HardwareModel: trust.model(), Bound: bound, ChipID: trust.chipID, Identities: trust.identities,
		TCB:        attest.TCB{Status: attest.TCBUnknown},
		ReportData: hex.EncodeToString(q.ExtraData()),
		Collateral: attest.CollateralState{State: attest.CollateralFresh},
	}
	c.AddTo(&claims, "")
	return claims, nil
}
