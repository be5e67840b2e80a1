// Package nvidia appraises reports of NVIDIA's confidential GPUs and NVSwitches:
// SPDM measurements that the device's firmware signs with a key that the chip's
// boot ROM certified. One piece of evidence is about one device.
//
// Sources: DMTF DSP0274 1.1 (SPDM), TCG DICE Attestation Architecture 1.1,
// NVIDIA/nvtrust and NVIDIA/attestation-sdk.
package nvidia

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	_ "embed" // the roots
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
)

// deviceRoot is "NVIDIA Device Identity CA", as devices hand it over in their chains.
//
//go:embed NVIDIA_Device_Identity_CA.pem
var deviceRoot []byte

// rimRoot is "NVIDIA CoRIM signing Root CA", as NVIDIA's manifests have it in
// their signatures, and NVIDIA/nvtrust in its verifier (verifier_RIM_root.pem).
//
//go:embed NVIDIA_CoRIM_signing_Root_CA.pem
var rimRoot []byte

const rimRootSHA256 = "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"

const deviceRootSHA256 = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"

// Config of a Verifier.
type Config struct {
	// RIMs are NVIDIA's reference integrity manifests, XML, by their names
	// ("NV_GPU_DRIVER_GH100_550.90.07"). Each has to be signed under NVIDIA's root.
	RIMs map[string][]byte
	// OCSPOptional lets evidence pass without current OCSP answers: the check is
	// skipped and the collateral claimed as expired. A revoked certificate is refused all the same.
	OCSPOptional bool
	// TestRoots are believed beside NVIDIA's root; claims then say simulated. No configuration file can name one.
	TestRoots []*x509.Certificate
	// TestRIMRoots are the same for signatures of RIMs.
	TestRIMRoots []*x509.Certificate
}

// Verifier appraises evidence of type "nvidia-gpu". Evidence.Report is what NVML
// returns: request and response. Evidence.Endorsements is PEM: CERTIFICATE blocks,
// leaf first and root last, and OCSP RESPONSE blocks (DER of RFC 6960), in any
// order. It makes these checks, in this order; the names are those of Claims.Checks.
//
//  1. nvidia.format: request and response of SPDM 1.1, measurement blocks 1 to n
//     of SHA-384, opaque fields once each; PEM of certificates and OCSP answers.
//  2. nvidia.binding: the request's nonce is the digest of this request (32 bytes).
//  3. nvidia.chain: the certificates, in order, lead to the pinned root, all with
//     P-384 keys; the chip is one that we know, and has an identity.
//  4. nvidia.validity: all of them are valid now.
//  5. nvidia.signature: over request and response, by the leaf.
//  6. nvidia.fwid: the firmware that the report names is the leaf's.
//  7. nvidia.identity: chip and PDI that the report names are the certificates'.
//  8. nvidia.revocation: a current OCSP answer, good, for each certificate
//     between leaf and root.
//  9. nvidia.rim: measurements against the configured manifests, whose
//     signatures were verified when they were read, and whose signers'
//     certificates are valid now. The outcome is a claim (rim), and what has not
//     matched is debuggable.
type Verifier struct {
	rims         map[string]*manifest
	ocspOptional bool
	roots        []*x509.Certificate // the first is NVIDIA's
	rimRoot      *x509.Certificate   // NVIDIA's
	chains       memo.Memo[*device]
	answers      memo.Memo[answer]
}

// New makes a Verifier. It fails if a manifest is not signed under NVIDIA's root.
func New(cfg Config) (*Verifier, error) {
	root, err := pinned(deviceRoot, deviceRootSHA256)
	if err != nil {
		return nil, fmt.Errorf("nvidia: device root: %w", err)
	}
	v := &Verifier{rims: map[string]*manifest{}, ocspOptional: cfg.OCSPOptional, roots: append([]*x509.Certificate{root}, cfg.TestRoots...)}
	if v.rimRoot, err = pinned(rimRoot, rimRootSHA256); err != nil {
		return nil, fmt.Errorf("nvidia: root of manifests: %w", err)
	}
	roots := append([]*x509.Certificate{v.rimRoot}, cfg.TestRIMRoots...)
	for _, name := range slices.Sorted(maps.Keys(cfg.RIMs)) {
		if v.rims[name], err = verifyRIM(cfg.RIMs[name], roots); err != nil {
			return nil, fmt.Errorf("nvidia: rims: %s.xml: %w", name, err)
		}
	}
	return v, nil
}

// pinned reads the certificate in an embedded file.
func pinned(file []byte, digest string) (*x509.Certificate, error) {
	block, _ := pem.Decode(file)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	if d := sha256.Sum256(block.Bytes); hex.EncodeToString(d[:]) != digest {
		return nil, fmt.Errorf("has digest %x, pinned is %s", d, digest)
	}
	return x509.ParseCertificate(block.Bytes)
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "nvidia-gpu".
func (v *Verifier) Type() attest.Type { return attest.TypeNVIDIA }

// Verify implements attest.Verifier. Its collateral is stapled to the evidence, or configured.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "nvidia", attest.TypeNVIDIA, func(t *dcap.Trail) (attest.Claims, error) { return v.verify(t, ev, b, now) })
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding, now time.Time) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeNVIDIA {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if len(ev.Report) > attest.MaxReportSize || len(ev.Endorsements) > attest.MaxEndorsementsSize || len(ev.EventLog) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "a report of %d bytes and endorsements of %d, want at most %d and %d, and no event log",
			len(ev.Report), len(ev.Endorsements), attest.MaxReportSize, attest.MaxEndorsementsSize)
	}
	r, err := parse(ev.Report)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	certs, answers, err := endorsements(ev.Endorsements)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "endorsements: %w", err)
	}
	t.Pass("format", "report with %d measurements, %d certificates, %d OCSP answers", len(r.blocks), len(certs), len(answers))

	// A report recorded earlier, or made for somebody else's key.
	bound, err := t.Bound(b, r.nonce, "the nonce")
	if err != nil {
		return none, err
	}

	// A report that anybody signed.
	d, reason, err := v.device(certs)
	if err != nil {
		return none, t.Fail("chain", reason, "%w", err)
	}
	t.Pass("chain", "%d certificates of %s %s up to %s", len(d.certs), d.chip, d.pdi, d.root().Subject)

	// A certificate that its issuer vouches for no longer. NVIDIA's own mostly end in the year 9999.
	for _, c := range d.certs {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return none, t.Fail("validity", attest.ReasonValidity, "%q is valid from %s to %s, not at %s",
				c.Subject, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
		}
	}
	t.Pass("validity", "of all certificates, now")

	// A changed report, or another device's.
	if !verifyP384(d.leaf(), r.signed, r.signature) {
		return none, t.Fail("signature", attest.ReasonSignature, "the report's signature does not verify")
	}
	t.Pass("signature", "P-384 by %s", d.leaf().Subject)

	// A key that outlived the firmware it was made for.
	switch id, ok := r.fields[fieldFWID]; {
	case !ok:
		t.Skip("fwid", "the report names none: older drivers and switches do not")
	case !bytes.Equal(id, d.fwid[:]):
		return none, t.Fail("fwid", attest.ReasonMismatch, "the report names firmware %x, the leaf %x", id, d.fwid)
	default:
		t.Pass("fwid", "%x…", id[:8])
	}

	// Firmware that speaks for another chip than the one whose boot ROM certified it.
	if id := r.hexField(fieldPDIs); d.kind == nvSwitch && id != d.pdi {
		return none, t.Fail("identity", attest.ReasonMismatch, "the report is of PDI %.32q, the certificate of %s", id, d.pdi)
	}
	if chip, err := r.text(fieldChipInfo); err != nil || chip != "" && chip != d.chip {
		return none, t.Fail("identity", attest.ReasonMismatch, "the report is of chip %.32q, the certificate of %s", r.fields[fieldChipInfo], d.chip)
	}
	c, err := r.read(d)
	if err != nil {
		return none, t.Fail("identity", attest.ReasonMalformed, "%w", err)
	}
	t.Pass("identity", "%s %s, PDI %s", c.Device, c.Chip, c.PDI)

	// A device whose key leaked.
	missing, oldest, reason, err := v.revocation(d, answers, now)
	state := attest.CollateralState{State: attest.CollateralFresh}
	switch {
	case err != nil:
		return none, t.Fail("revocation", reason, "%w", err)
	case len(missing) == 0:
		c.Revocation, state.AgeSeconds = revocationGood, int64(now.Sub(oldest)/time.Second)
		t.Pass("revocation", "OCSP answers for %d certificates", len(d.certs)-2)
	case v.ocspOptional:
		c.Revocation, c.RevocationMissing, state.State = revocationUnknown, missing, attest.CollateralExpired
		t.Skip("revocation", "not required here: no current OCSP answer for %s", strings.Join(missing, ", "))
	default:
		return none, t.Fail("revocation", attest.ReasonCollateralMissing, "no current OCSP answer for %s", strings.Join(missing, ", "))
	}

	// Firmware, or a mode, that NVIDIA did not release. The policy decides.
	rims, notCurrent := v.compare(r, d, c, now)
	switch c.RIM {
	case rimAbsent:
		t.Skip("rim", "not configured: %s", strings.Join(c.RIMs, ", "))
	case rimExpired:
		t.Skip("rim", "%v; claimed as rim, for the policy", notCurrent)
	case rimMismatched:
		t.Skip("rim", "differ from %s: %s; claimed as rim, for the policy", strings.Join(c.RIMs, ", "), strings.Join(c.RIMMismatches, ", "))
	default:
		t.Pass("rim", "%s", strings.Join(c.RIMs, ", "))
	}
	simulated := !d.root().Equal(v.roots[0]) || slices.ContainsFunc(rims, func(m *manifest) bool { return !m.certs[len(m.certs)-1].Equal(v.rimRoot) })
	return r.claims(d, c, bound, simulated, state), nil
}
