// Package sgx appraises Intel SGX evidence: DCAP quotes about an enclave, of
// version 3, 4 or 5.
package sgx

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
)

// Config configures a Verifier. The zero value trusts Intel's root only.
type Config struct {
	// TestRoots are trusted beside Intel's root; claims under them say simulated.
	TestRoots []*x509.Certificate
	// CollateralOptional appraises without collateral, or with lapsed
	// collateral, for an operator who looks at a quote offline. A broker never sets it.
	CollateralOptional bool
}

// Verifier appraises SGX evidence. It makes these checks, in this order; the
// names are those of Claims.Checks.
//
//  1. sgx.format: a DCAP quote of version 3, 4 or 5, about an enclave, with an
//     ECDSA P-256 attestation key of Intel's quoting enclave and a PCK
//     certificate chain (certification data of type 5).
//  2. sgx.binding: REPORTDATA is the binding's digest.
//  3. sgx.qe_binding: the quoting enclave vouches for the attestation key.
//  4. sgx.pck_chain: the PCK certificate leads to Intel's root, or a test root, and is valid now.
//  5. sgx.qe_report_signature: by the PCK.
//  6. sgx.quote_signature: by the attestation key, over header and body.
//  7. sgx.root_crl: current; does not revoke the PCK CA.
//  8. sgx.pck_crl: current; does not revoke the PCK certificate.
//  9. sgx.tcb_info: current, signed by Intel, for SGX, this FMSPC and PCEID.
//  10. sgx.qe_identity: current, signed by Intel; the quoting enclave is Intel's QE.
//  11. sgx.tcb_status: platform and QE together are not Revoked.
//
// Checks 3 to 11 are those of package dcap. Debug enclaves and every other TCB
// status are reported, for the policy to judge. So is who the enclave is:
// anybody can build and sign one, so that a quote alone says nothing (policies
// pin MRENCLAVE, or MRSIGNER with ISVPRODID and ISVSVN).
type Verifier struct {
	dcap *dcap.Verifier
}

// New makes a Verifier.
func New(cfg Config) *Verifier {
	return &Verifier{dcap.New(dcap.Config{TestRoots: cfg.TestRoots, CollateralOptional: cfg.CollateralOptional})}
}

// CheckCollateral says whether a piece of collateral is genuine, as dcap.Verifier does.
func (v *Verifier) CheckCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) error {
	return v.dcap.CheckCollateral(ctx, ref, it, c)
}

// Type implements attest.Verifier.
func (v *Verifier) Type() attest.Type { return attest.TypeSGX }

// Verify implements attest.Verifier. Neither endorsements (a quote carries its
// own) nor an event log (an enclave has none) are used.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "sgx", attest.TypeSGX, func(t *dcap.Trail) (attest.Claims, error) { return v.verify(ctx, t, ev, b, c, now) })
}

func (v *Verifier) verify(ctx context.Context, t *dcap.Trail, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	q, err := dcap.ParseQuote(ev.Report)
	switch {
	case err != nil:
		return attest.Claims{}, t.Fail("format", dcap.ReasonOf(err), "%w", err)
	case ev.Type != attest.TypeSGX || q.Enclave == nil:
		// A TD's REPORTDATA and an enclave's stand for different owners of the key.
		return attest.Claims{}, t.Fail("format", attest.ReasonUnsupported, "evidence %q with a quote about %v", ev.Type, q.Header.TEEType)
	case len(ev.EventLog) > 0 || len(ev.Endorsements) > 0:
		return attest.Claims{}, t.Fail("format", attest.ReasonMalformed, "an enclave has neither event log nor endorsements beside its quote")
	}
	t.Pass("format", "quote v%d", q.Header.Version)

	// Evidence recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, q.Enclave.REPORTDATA[:], "REPORTDATA")
	if err != nil {
		return attest.Claims{}, err
	}

	res, err := v.dcap.Verify(ctx, t, q, c, now)
	if err != nil {
		return attest.Claims{}, err // an *attest.Error of one of checks 3 to 11
	}
	return makeClaims(q, res, bound), nil
}

// Describe is what the bytes of a quote say, verified or not: nothing in it may be relied on.
func Describe(quote []byte) (attest.Claims, error) {
	q, err := dcap.ParseQuote(quote)
	if err != nil {
		return attest.Claims{}, err
	}
	if q.Enclave == nil {
		return attest.Claims{}, fmt.Errorf("a quote about %v", q.Header.TEEType)
	}
	c := makeClaims(q, dcap.Result{}, false)
	c.BoundToCPUTEE = false
	return c, nil
}

func makeClaims(q *dcap.Quote, res dcap.Result, bound bool) attest.Claims {
	e := q.Enclave
	return attest.Claims{
		Type:          attest.TypeSGX,
		HardwareModel: "SGX",
		Bound:         bound,
		Debuggable:    e.Debug(), // EDBGRD and EDBGWR read and write its memory
		BoundToCPUTEE: true,
		Simulated:     res.Simulated,
		ChipID:        res.PCK.ChipID(),
		Identities:    res.PCK.Identities(),
		TCB:           res.TCB,
		Measurements: map[string]string{
			"mrenclave": hex.EncodeToString(e.MRENCLAVE[:]),
			"mrsigner":  hex.EncodeToString(e.MRSIGNER[:]),
		},
		HostData:   hex.EncodeToString(e.CONFIGID[:]),
		ReportData: hex.EncodeToString(e.REPORTDATA[:]),
		Collateral: res.Collateral,
		SGX:        newClaims(q, res),
	}
}
