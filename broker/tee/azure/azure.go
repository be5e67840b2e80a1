// Package azure appraises evidence of Azure's confidential VMs. Their guest
// cannot ask the CPU for a report: a paravisor below it (VMPL 0 of SEV-SNP, the
// L1 partition of TDX) does, and keeps a vTPM for the guest. The hardware report
// covers the paravisor's "runtime data", those name the vTPM's attestation key,
// and a quote by that key says what was booted and carries the request's digest.
//
// Sources: OpenHCL (openhcl/underhill_attestation, igvm_attest), Microsoft's
// "Guest attestation for confidential VMs", and the packages of the parts.
package azure

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/tpmquote"
)

// Config of a Verifier.
type Config struct {
	// SNP and TDX appraise the hardware report inside. What is nil is refused.
	SNP, TDX attest.Verifier
}

// Verifier appraises evidence of type "azure-vtpm". It makes these checks, in
// this order; the names are those of Claims.Checks.
//
//  1. azure.format: an AzureReport; the HCL report and the quote inside parse.
//  2. azure.binding: the quote's qualifying data is the digest of this request.
//  3. azure.ak: the runtime data name one attestation key, HCLAkPub, RSA of 2048 to 4096 bits.
//  4. snp.… or tdx.…: the hardware report, by the verifier of its type.
//  5. azure.runtime_data: its REPORT_DATA is the SHA-256 of the runtime data, then zeros.
//  6. azure.vmpl (SNP only): the report was asked for at VMPL 0, where the paravisor is.
//  7. azure.quote_signature: by HCLAkPub.
//  8. azure.pcrs: the quote covers exactly the PCRs sent.
//  9. azure.event_log: if there is a log, it replays to the quoted PCRs.
//
// All of it stands on the paravisor: anybody who owns a machine with SNP or TDX
// can launch one that writes what he likes into the runtime data. A policy has to
// know the launch measurement ("measurement" or "mrtd").
type Verifier struct {
	cfg Config
}

// New makes a Verifier.
func New(cfg Config) *Verifier { return &Verifier{cfg} }

// Type implements attest.Verifier.
func (v *Verifier) Type() attest.Type { return attest.TypeAzure }

// Verify implements attest.Verifier.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "azure", attest.TypeAzure, func(t *dcap.Trail) (attest.Claims, error) { return v.verify(ctx, t, ev, b, c, now) })
}

func (v *Verifier) verify(ctx context.Context, t *dcap.Trail, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeAzure {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if n := len(ev.EventLog); n > attest.MaxEventLogSize {
		return none, t.Fail("format", attest.ReasonMalformed, "event log of %d bytes", n)
	}
	r, err := attest.DecodeAzureReport(ev.Report)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	hcl, err := parseHCL(t, r.HCLReport)
	if err != nil {
		return none, err
	}
	inner, verifier := v.hardware(hcl, r, ev)
	if verifier == nil {
		return none, t.Fail("format", attest.ReasonUnsupported, "no verifier for a hardware report of type %q", inner.Type)
	}
	if hcl.hardware == attest.TypeTDX && len(ev.Endorsements) > 0 || hcl.hardware == attest.TypeSNP && len(r.TDQuote) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "endorsements are for SNP, td_quote is for TDX; the HCL report is of %q", hcl.hardware)
	}
	q, err := tpmquote.Parse(r.Quote, r.Signature)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	t.Pass("format", "HCL report of %s, quote over %d PCRs", hcl.hardware, len(r.PCRs))

	// A quote recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, q.ExtraData(), "the qualifying data")
	if err != nil {
		return none, err
	}

	data, err := parseRuntimeData(t, hcl.runtimeData)
	if err != nil {
		return none, err
	}
	t.Pass("ak", "HCLAkPub, %s", data.ak.Algorithm)

	// Runtime data of the attacker's own, with the key of a TPM that he wrote.
	claims, err := v.hardwareClaims(ctx, t, verifier, inner, hcl, c, now)
	if err != nil {
		return none, err
	}

	// A quote by any other TPM, or of any other boot.
	if err := q.Verify(t, data.ak, r.PCRs); err != nil {
		return none, err
	}
	spki, err := x509.MarshalPKIXPublicKey(data.ak.Public)
	if err != nil {
		return none, t.Fail("internal", attest.ReasonInternal, "encode HCLAkPub: %w", err)
	}
	tpm := tpmquote.NewClaims(q, r.PCRs, tpmquote.AK{Algorithm: data.ak.Algorithm, Trust: tpmquote.TrustHardware, Issuer: "HCL"}, nil)
	if err := tpm.Explain(t, ev.EventLog, r.PCRs, tpmquote.Hints{Cmdline: r.Cmdline, SystemdLog: r.SystemdLog}); err != nil {
		return none, err
	}

	claims.Type, claims.Bound, claims.ReportData = attest.TypeAzure, bound, hex.EncodeToString(q.ExtraData())
	tpm.AddTo(&claims, "")
	digest := sha256.Sum256(spki)
	claims.Azure = newClaims(hcl, data, hex.EncodeToString(digest[:]), b)
	return claims, nil
}

// hardware is the evidence inside, and who appraises it; nil if nobody does.
func (v *Verifier) hardware(hcl hclReport, r attest.AzureReport, ev attest.Evidence) (attest.Evidence, attest.Verifier) {
	inner := attest.Evidence{Type: hcl.hardware, Report: hcl.report, Endorsements: ev.Endorsements}
	if hcl.hardware == attest.TypeTDX {
		inner.Report = r.TDQuote // the HCL report has the TDREPORT, which only that machine can verify
		return inner, v.cfg.TDX
	}
	return inner, v.cfg.SNP
}

// hardwareClaims makes the checks 4 to 6.
func (v *Verifier) hardwareClaims(ctx context.Context, t *dcap.Trail, verifier attest.Verifier, inner attest.Evidence, hcl hclReport, c attest.Collateral, now time.Time) (attest.Claims, error) {
	sum := sha256.Sum256(hcl.runtimeData)
	want := make([]byte, 64)
	copy(want, sum[:])
	claims, err := verifier.Verify(ctx, inner, attest.BindExact(want), c, now)
	t.Include(claims.Checks)
	switch {
	case attest.ReasonOf(err) == attest.ReasonBinding:
		return attest.Claims{}, t.Fail("runtime_data", attest.ReasonMismatch, "the hardware report is not about these runtime data: %w", err)
	case err != nil:
		return attest.Claims{}, err // an *attest.Error of the type inside
	}
	t.Pass("runtime_data", "SHA-256 %x", sum)

	// The guest itself, at another VMPL, may ask for a report over runtime data that it made up.
	if hcl.hardware == attest.TypeSNP {
		if n := hcl.vmpl(); n != 0 {
			return attest.Claims{}, t.Fail("vmpl", attest.ReasonMismatch, "asked for at VMPL %d, where the guest is", n)
		}
		t.Pass("vmpl", "0")
	}
	return claims, nil
}
