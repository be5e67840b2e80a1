// Package gce appraises evidence of Google Compute Engine's confidential VMs: a
// report of the CPU, SEV-SNP or TDX, and a quote of the vTPM, made for one
// request. Unlike Azure's, this vTPM is outside the CPU TEE: Google's host runs
// it. The CPU's report proves the guest's key and its launch by itself; what the
// PCRs say is Google's word, and so is that they are of the same VM.
//
// Sources: Google's "vTPM attestation keys and certificates" and the extension
// that its certificates carry (go-tpm-tools, server/verify.go), and the packages of the parts.
package gce

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/tpmquote"
)

// Config of a Verifier.
type Config struct {
	// AKRoots are Google's CAs for attestation keys. Without any, no vTPM is believed.
	AKRoots []*x509.Certificate
	// Unvouched lets a key for which nobody vouches pass, as a skipped check, where evidence without a binding is looked at from a file.
	Unvouched bool
	// SNP and TDX appraise the hardware report inside. What is nil is refused.
	SNP, TDX attest.Verifier
}

// Verifier appraises evidence of type "gce-vtpm". It makes these checks, in this
// order; the names are those of Claims.Checks.
//
//  1. gce.format: a GCEReport; the certificates and the quote inside parse.
//  2. gce.binding: the quote's qualifying data is the digest of this request (32 bytes).
//  3. snp.… or tdx.…: the hardware report, by the verifier of its type; its
//     REPORT_DATA is the digest of this request (64 bytes).
//  4. gce.ak_certificate: leads to a configured CA, is valid now, and for signing.
//  5. gce.instance: the certificate names an instance in production.
//  6. gce.quote_signature: by the certified key.
//  7. gce.pcrs: the quote covers exactly the PCRs sent.
//  8. gce.event_log: if there is a log, it replays to the quoted PCRs.
//
// Both parts being of one request shows that who made it can use both, not that
// they are one machine: see docs/evidence/gce-vtpm.md.
type Verifier struct {
	cfg    Config
	roots  *certs.Authorities
	chains memo.Memo[[]*x509.Certificate] // dates are looked at on each use
}

// New makes a Verifier.
func New(cfg Config) *Verifier {
	return &Verifier{cfg: cfg, roots: certs.NewAuthorities(cfg.AKRoots, nil)}
}

// Type implements attest.Verifier.
func (v *Verifier) Type() attest.Type { return attest.TypeGCE }

// Verify implements attest.Verifier.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "gce", attest.TypeGCE, func(t *dcap.Trail) (attest.Claims, error) { return v.verify(ctx, t, ev, b, c, now) })
}

func (v *Verifier) verify(ctx context.Context, t *dcap.Trail, ev attest.Evidence, b attest.Binding, c attest.Collateral, now time.Time) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeGCE {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if n := len(ev.EventLog); n > attest.MaxEventLogSize {
		return none, t.Fail("format", attest.ReasonMalformed, "event log of %d bytes", n)
	}
	r, err := attest.DecodeGCEReport(ev.Report)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	hardware := map[attest.Type]attest.Verifier{attest.TypeSNP: v.cfg.SNP, attest.TypeTDX: v.cfg.TDX}[r.Hardware]
	if hardware == nil {
		return none, t.Fail("format", attest.ReasonUnsupported, "no verifier for a hardware report of type %q", r.Hardware)
	}
	if r.Hardware != attest.TypeSNP && len(ev.Endorsements) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "endorsements are for SNP, the hardware report is of %q", r.Hardware)
	}
	certs, ak, err := parseCertificates(r.AKCertificates)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "ak_certificates: %w", err)
	}
	q, err := tpmquote.Parse(r.Quote, r.Signature)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	t.Pass("format", "report of %s, quote over %d PCRs", r.Hardware, len(r.PCRs))

	// A quote recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, q.ExtraData(), "the qualifying data")
	if err != nil {
		return none, err
	}

	// The same binding: the two parts are of one request, or none.
	claims, err := hardware.Verify(ctx, attest.Evidence{Type: r.Hardware, Report: r.HardwareReport, Endorsements: ev.Endorsements}, b, c, now)
	t.Include(claims.Checks)
	if err != nil {
		return none, err // an *attest.Error of the type inside
	}

	out, key, err := v.trustAK(t, r.Hardware, certs, ak, bound, now)
	if err != nil {
		return none, err
	}
	if err := q.Verify(t, ak, r.PCRs); err != nil {
		return none, err
	}
	tpm := tpmquote.NewClaims(q, r.PCRs, key, nil)
	if err := tpm.Explain(t, ev.EventLog, r.PCRs, tpmquote.Hints{Cmdline: r.Cmdline, SystemdLog: r.SystemdLog}); err != nil {
		return none, err
	}

	claims.Type, claims.Bound = attest.TypeGCE, bound && claims.Bound
	tpm.AddTo(&claims, "vtpm_") // Google's host runs it, and no CPU says whose it is
	claims.GCE = out
	return claims, nil
}

// parseCertificates reads the chain; the key is that of the first.
func parseCertificates(ders [][]byte) ([]*x509.Certificate, tpmquote.Key, error) {
	var chain []*x509.Certificate
	for i, der := range ders {
		c, err := tpmquote.ParseCertificate(der)
		if err != nil {
			return nil, tpmquote.Key{}, fmt.Errorf("certificate %d: %w", i, err)
		}
		chain = append(chain, c)
	}
	ak, err := tpmquote.NewKey(chain[0].PublicKey)
	return chain, ak, err
}

// trustAK makes the checks 4 and 5.
func (v *Verifier) trustAK(t *dcap.Trail, hardware attest.Type, certs []*x509.Certificate, ak tpmquote.Key, bound bool, now time.Time) (*Claims, tpmquote.AK, error) {
	c, key := &Claims{Hardware: hardware}, tpmquote.AK{Algorithm: ak.Algorithm, Trust: tpmquote.TrustNone}
	if len(v.cfg.AKRoots) == 0 && !bound && v.cfg.Unvouched {
		// Claims of unbound evidence never release anything.
		t.Skip("ak_certificate", "no CA is configured: nobody vouches for this key")
		return c, key, nil
	}
	leaf := certs[0]
	if reason, err := v.checkCertificate(leaf, certs[1:], now); err != nil {
		return nil, key, t.Fail("ak_certificate", reason, "%w", err)
	}
	t.Pass("ak_certificate", "by %s", leaf.Issuer)
	var reason attest.Reason
	var err error
	if c.Instance, reason, err = instance(leaf); err != nil {
		return nil, key, t.Fail("instance", reason, "%w", err)
	}
	t.Pass("instance", "%s of project %s", c.Instance.Name, c.Instance.ProjectID)
	key.Trust, key.Issuer = tpmquote.TrustCertificate, leaf.Issuer.String()
	return c, key, nil
}

// checkCertificate verifies that of the attestation key.
func (v *Verifier) checkCertificate(leaf *x509.Certificate, issuers []*x509.Certificate, now time.Time) (attest.Reason, error) {
	if len(v.cfg.AKRoots) == 0 {
		return attest.ReasonChain, errors.New("this broker knows no CA for attestation keys (evidence.gce.ak_roots)")
	}
	var reason attest.Reason
	raw := [][]byte{leaf.Raw}
	for _, c := range issuers {
		raw = append(raw, c.Raw)
	}
	chain, err := v.chains.Get(memo.Key(raw...), func() (chain []*x509.Certificate, err error) {
		chain, reason, err = tpmquote.VerifyCertificate(leaf, issuers, v.roots, now)
		return chain, err
	})
	if err != nil {
		return reason, err
	}
	for _, c := range chain {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return attest.ReasonValidity, fmt.Errorf("%q is valid from %s to %s", c.Subject, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
		}
	}
	// The same CA certifies endorsement keys, which decrypt. Google gives the two no
	// extended key usages that would tell them apart (old ones all say "EK").
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		return attest.ReasonChain, fmt.Errorf("key usage %#x, want digitalSignature alone", int(leaf.KeyUsage))
	}
	return "", nil
}

// oidInstance is the extension of Google's certificates that names the VM.
var oidInstance = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 1, 21}

// instance reads the extension: SEQUENCE { zone UTF8String, project number
// INTEGER, project id UTF8String, instance id INTEGER, instance name UTF8String,
// [0] SEQUENCE { [0] security version INTEGER, [1] is production BOOLEAN, … } }.
func instance(c *x509.Certificate) (*Instance, attest.Reason, error) {
	var raw []byte
	for _, e := range c.Extensions {
		if e.Id.Equal(oidInstance) {
			raw = e.Value // crypto/x509 refuses duplicate extensions
		}
	}
	if raw == nil {
		return nil, attest.ReasonUnsupported, errors.New("the certificate names no instance")
	}
	var v struct {
		Zone          string `asn1:"utf8"`
		ProjectNumber int64
		ProjectID     string `asn1:"utf8"`
		InstanceID    int64
		InstanceName  string        `asn1:"utf8"`
		Security      asn1.RawValue `asn1:"optional"`
	}
	if rest, err := asn1.Unmarshal(raw, &v); err != nil || len(rest) > 0 {
		return nil, attest.ReasonMalformed, fmt.Errorf("instance extension: %w", errors.Join(err, trailing(rest)))
	}
	version, production, err := security(v.Security)
	if err != nil {
		return nil, attest.ReasonMalformed, fmt.Errorf("instance extension: security properties: %w", err)
	}
	// Google's own test machines.
	if !production {
		return nil, attest.ReasonUnsupported, errors.New("the instance is not one of production")
	}
	return &Instance{
		Zone: v.Zone, ProjectID: v.ProjectID, ProjectNumber: strconv.FormatInt(v.ProjectNumber, 10),
		ID: strconv.FormatUint(uint64(v.InstanceID), 10), Name: v.InstanceName, SecurityVersion: version,
	}, "", nil
}

// security reads the first two fields of the security properties; more may follow.
func security(v asn1.RawValue) (version int64, production bool, err error) {
	if len(v.FullBytes) == 0 {
		return 0, false, nil
	}
	var fields []asn1.RawValue
	if v.Class != asn1.ClassContextSpecific || v.Tag != 0 {
		return 0, false, fmt.Errorf("tag %d", v.Tag)
	}
	if rest, err := asn1.Unmarshal(v.Bytes, &fields); err != nil || len(rest) > 0 {
		return 0, false, errors.Join(err, trailing(rest))
	}
	seen := map[int]bool{}
	for _, f := range fields {
		if f.Class != asn1.ClassContextSpecific || seen[f.Tag] {
			return 0, false, fmt.Errorf("a field of class %d, tag %d", f.Class, f.Tag)
		}
		seen[f.Tag] = true
		var rest []byte
		var err error
		switch f.Tag {
		case 0:
			rest, err = asn1.Unmarshal(f.Bytes, &version)
		case 1:
			rest, err = asn1.Unmarshal(f.Bytes, &production)
		}
		if err := errors.Join(err, trailing(rest)); err != nil {
			return 0, false, fmt.Errorf("field %d: %w", f.Tag, err)
		}
	}
	return version, production, nil
}

func trailing(rest []byte) error {
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes after its end", len(rest))
	}
	return nil
}

// Claims are what Google says of the VM.
type Claims struct {
	Hardware attest.Type `json:"hardware"` // "sev-snp" or "tdx": where the claims of the report inside stand
	// Instance is the VM whose vTPM this is; absent where evidence is looked at without Google's CAs.
	Instance *Instance `json:"instance,omitempty"`
}

// Instance is a VM as the certificate of its attestation key names it.
type Instance struct {
	Zone            string `json:"zone"`
	ProjectID       string `json:"project_id"`
	ProjectNumber   string `json:"project_number"` // decimal
	ID              string `json:"id"`             // decimal; unique, unlike the name
	Name            string `json:"name"`
	SecurityVersion int64  `json:"security_version"`
}
