package dcap_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newPlatform(t testing.TB) *dcaptest.Platform {
	t.Helper()
	p, err := dcaptest.New(now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func verifier(p *dcaptest.Platform) *dcap.Verifier {
	return dcap.New(dcap.Config{TestRoots: []*x509.Certificate{p.Root.Certificate}})
}

func collateral(t testing.TB, p *dcaptest.Platform) dcaptest.Collateral {
	t.Helper()
	c, err := p.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tdQuote(t testing.TB, p *dcaptest.Platform, version uint16, r dcap.TDReport) []byte {
	t.Helper()
	b, err := p.QuoteTD(version, r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func verify(t testing.TB, v *dcap.Verifier, raw []byte, c attest.Collateral, at time.Time) (dcap.Result, error) {
	t.Helper()
	q, err := dcap.ParseQuote(raw)
	if err != nil {
		return dcap.Result{}, err
	}
	return v.Verify(t.Context(), dcap.NewTrail("test"), q, c, at)
}

func wantReason(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("verified, want %s at %s", r, check)
	}
	if got := dcap.ReasonOf(err); got != r || !strings.Contains(err.Error(), check) {
		t.Fatalf("got %s (%v), want %s at %s", got, err, r, check)
	}
}

func TestSimulatedPlatform(t *testing.T) {
	for _, ca := range []string{"platform", "processor"} {
		t.Run(ca, func(t *testing.T) {
			p := newPlatform(t)
			p.PCK.CA = ca
			if ca == "processor" {
				p.PCK.Platform = nil
			}
			if err := p.Certify(); err != nil {
				t.Fatal(err)
			}
			c, v := collateral(t, p), verifier(p)
			enclave := dcap.EnclaveReport{ATTRIBUTES: [16]byte{0x05}, MRENCLAVE: [32]byte{1, 2}, ISVPRODID: 3, ISVSVN: 4}
			for version := uint16(3); version <= 5; version++ {
				raw, err := p.QuoteSGX(version, enclave)
				if err != nil {
					t.Fatal(err)
				}
				q, err := dcap.ParseQuote(raw)
				if err != nil {
					t.Fatal(err)
				}
				if q.TD != nil || *q.Enclave != enclave {
					t.Errorf("v%d: enclave report %+v, want %+v", version, q.Enclave, enclave)
				}
				if _, err := verify(t, v, raw, c, now); err != nil {
					t.Errorf("SGX v%d: %v", version, err)
				}
			}
			for version := uint16(4); version <= 5; version++ {
				res, err := verify(t, v, tdQuote(t, p, version, p.TD()), c, now)
				if err != nil {
					t.Fatalf("TDX v%d: %v", version, err)
				}
				if !res.Simulated || res.TCB.Status != attest.TCBUpToDate || res.PCK.FMSPC != p.PCK.FMSPC || res.PCK.CPUSVN != p.PCK.CPUSVN ||
					res.PCK.PPID != p.PCK.PPID || res.Collateral.State != attest.CollateralFresh || res.TCBEvaluationDataNumber != 18 {
					t.Errorf("TDX v%d: %+v", version, res)
				}
				if f := res.PCK.Platform; ca == "platform" && (f == nil || *f != *p.PCK.Platform) {
					t.Errorf("platform fields %+v, want %+v", f, p.PCK.Platform)
				}
			}
		})
	}
}

// TestTrailingBytes: platforms pad quotes; what is inside a length is strict.
func TestTrailingBytes(t *testing.T) {
	p := newPlatform(t)
	raw := tdQuote(t, p, 4, p.TD())
	for _, tail := range [][]byte{make([]byte, 3065), bytes.Repeat([]byte{0xff}, 70)} {
		if _, err := verify(t, verifier(p), append(bytes.Clone(raw), tail...), collateral(t, p), now); err != nil {
			t.Errorf("%d trailing bytes: %v", len(tail), err)
		}
	}
	// One more byte inside the signature data's length.
	grown := append(bytes.Clone(raw), 0)
	grown[632]++
	if _, err := dcap.ParseQuote(grown); dcap.ReasonOf(err) != attest.ReasonMalformed {
		t.Errorf("spare byte inside the signature data: %v", err)
	}
	if _, err := dcap.ParseQuote(make([]byte, attest.MaxReportSize+1)); dcap.ReasonOf(err) != attest.ReasonMalformed {
		t.Errorf("oversized: %v", err)
	}
}

// TestHostileSizes attacks every length field; go-tdx-guest panics on some
// (LIBRARIES §3, defect 3).
func TestHostileSizes(t *testing.T) {
	p := newPlatform(t)
	for version := uint16(3); version <= 5; version++ {
		var raw []byte
		var err error
		if version == 3 {
			raw, err = p.QuoteSGX(3, dcap.EnclaveReport{})
		} else {
			raw = tdQuote(t, p, version, p.TD())
		}
		if err != nil {
			t.Fatal(err)
		}
		for n := range raw {
			if _, err := dcap.ParseQuote(raw[:n]); err == nil {
				t.Fatalf("v%d cut at %d of %d parses", version, n, len(raw))
			}
		}
		for off := range len(raw) - 3 {
			for _, x := range []byte{0x7f, 0x80, 0xff} {
				b := bytes.Clone(raw)
				copy(b[off:], []byte{x, x, x, x})
				dcap.ParseQuote(b) // must not panic
			}
		}
	}
}

// TestBitFlips: no bit of the signed part, the signatures or the certificates
// can change without a refusal.
func TestBitFlips(t *testing.T) {
	p := newPlatform(t)
	c, v := collateral(t, p), verifier(p)
	for _, version := range []uint16{4, 5} {
		raw := tdQuote(t, p, version, p.TD())
		var free []int
		for off := range raw {
			b := bytes.Clone(raw)
			b[off] ^= 1 << (off % 8)
			if _, err := verify(t, v, b, c, now); err == nil {
				free = append(free, off)
			}
		}
		// PEM leaves a few bits free (line breaks, case of nothing): none may be
		// outside the chain, which is the last part.
		start := bytes.Index(raw, []byte("-----BEGIN"))
		for _, off := range free {
			if off < start {
				t.Errorf("v%d: bit %d of byte %d can be flipped", version, off%8, off)
			}
		}
		if len(free) > 150 {
			t.Errorf("v%d: %d bytes of the PEM chain are free", version, len(free))
		}
	}
}

// TestTCBBypass is defect 1 of LIBRARIES §3: with a TDX 1.5 module that is
// UpToDate, the platform's own level still counts.
func TestTCBBypass(t *testing.T) {
	for _, tc := range []struct{ platform, module, qe, want string }{
		{"UpToDate", "UpToDate", "UpToDate", "UpToDate"},
		{"OutOfDate", "UpToDate", "UpToDate", "OutOfDate"},
		{"Revoked", "UpToDate", "UpToDate", "Revoked"},
		{"UpToDate", "Revoked", "UpToDate", "Revoked"},
		{"UpToDate", "UpToDate", "Revoked", "Revoked"},
		{"SWHardeningNeeded", "UpToDate", "UpToDate", "SWHardeningNeeded"},
		{"SWHardeningNeeded", "OutOfDate", "UpToDate", "OutOfDate"},
		{"ConfigurationNeeded", "UpToDate", "OutOfDate", "OutOfDateConfigurationNeeded"},
		{"ConfigurationAndSWHardeningNeeded", "UpToDate", "UpToDate", "ConfigurationAndSWHardeningNeeded"},
		{"ConfigurationAndSWHardeningNeeded", "OutOfDate", "UpToDate", "OutOfDateConfigurationNeeded"},
		{"OutOfDateConfigurationNeeded", "UpToDate", "UpToDate", "OutOfDateConfigurationNeeded"},
		{"UpToDate", "Revoked", "OutOfDate", "Revoked"},
	} {
		t.Run(tc.platform+"/"+tc.module+"/"+tc.qe, func(t *testing.T) {
			p := newPlatform(t)
			p.TDX.TCBLevels[0].TCBStatus = tc.platform
			p.TDX.TCBLevels[0].AdvisoryIDs = []string{"SA-2", "SA-1"}
			p.TDX.TDXModuleIdentities[0].TCBLevels[0].TCBStatus = tc.module
			p.TDX.TDXModuleIdentities[0].TCBLevels[0].AdvisoryIDs = []string{"SA-3", "SA-1"}
			oldest := now.AddDate(-3, 0, 0)
			p.TDQE.TCBLevels[0] = dcaptest.Level(4, tc.qe, oldest, "SA-4")
			res, err := verify(t, verifier(p), tdQuote(t, p, 5, p.TD()), collateral(t, p), now)
			if tc.want == attest.TCBRevoked {
				wantReason(t, err, "tcb_status", attest.ReasonRevoked)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if res.TCB.Status != tc.want || res.Platform.Status != tc.platform || res.Module.Status != tc.module || res.QE.Status != tc.qe {
				t.Errorf("status %s of %+v", res.TCB.Status, res)
			}
			if got := strings.Join(res.TCB.Advisories, " "); got != "SA-1 SA-2 SA-3 SA-4" {
				t.Errorf("advisories %q", got)
			}
			if !res.TCB.Date.Equal(oldest) {
				t.Errorf("date %v, want the oldest, %v", res.TCB.Date, oldest)
			}
		})
	}
}

func TestTCBLevels(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*dcaptest.Platform, *dcap.TDReport)
		status string
		check  string
		reason attest.Reason
	}{
		"lower SGX component": {status: attest.TCBOutOfDate, change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.TDX.TCBLevels[0].TCB.SGX[15].SVN = 1 }},
		"lower PCESVN":        {status: attest.TCBOutOfDate, change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.TDX.TCBLevels[0].TCB.PCESVN = 14 }},
		"lower TDX component": {status: attest.TCBOutOfDate, change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.TDX.TCBLevels[0].TCB.TDX[2].SVN = 4 }},
		"module components belong to the module": {status: attest.TCBUpToDate, change: func(p *dcaptest.Platform, _ *dcap.TDReport) {
			p.TDX.TCBLevels[0].TCB.TDX[0].SVN, p.TDX.TCBLevels[0].TCB.TDX[1].SVN = 99, 99
		}},
		"module 1.0: its components count": {status: attest.TCBOutOfDate, change: func(p *dcaptest.Platform, r *dcap.TDReport) {
			r.TEETCBSVN[1] = 0
			p.TDX.TCBLevels[0].TCB.TDX[0].SVN = 6
		}},
		"module 1.0: no level of its own": {status: attest.TCBUpToDate, change: func(p *dcaptest.Platform, r *dcap.TDReport) {
			r.TEETCBSVN[1] = 0
			p.TDX.TDXModuleIdentities[0].TCBLevels[0].TCBStatus = "Revoked"
		}},
		"older module": {status: attest.TCBOutOfDate, change: func(_ *dcaptest.Platform, r *dcap.TDReport) { r.TEETCBSVN[0] = 4 }},
		"module below all levels": {check: "tdx_module", reason: attest.ReasonUnsupported,
			change: func(_ *dcaptest.Platform, r *dcap.TDReport) { r.TEETCBSVN[0] = 2 }},
		"unknown module version": {check: "tdx_module", reason: attest.ReasonUnsupported,
			change: func(_ *dcaptest.Platform, r *dcap.TDReport) { r.TEETCBSVN[1] = 10 }},
		// oasis-core looks for TDX_10 here.
		"module version in hexadecimal": {status: attest.TCBUpToDate, change: func(p *dcaptest.Platform, r *dcap.TDReport) {
			r.TEETCBSVN[1] = 10
			p.TDX.TDXModuleIdentities[0].ID = "TDX_0A"
		}},
		"module of another signer": {check: "tdx_module", reason: attest.ReasonMismatch,
			change: func(_ *dcaptest.Platform, r *dcap.TDReport) { r.MRSIGNERSEAM[47] = 1 }},
		"module with attributes": {check: "tdx_module", reason: attest.ReasonMismatch,
			change: func(_ *dcaptest.Platform, r *dcap.TDReport) { r.SEAMATTRIBUTES[0] = 1 }},
		"module 1.0 of another signer": {check: "tdx_module", reason: attest.ReasonMismatch,
			change: func(_ *dcaptest.Platform, r *dcap.TDReport) { r.TEETCBSVN[1], r.MRSIGNERSEAM[0] = 0, 1 }},
		"platform below all levels": {check: "tcb_status", reason: attest.ReasonUnsupported,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) {
				p.TDX.TCBLevels = p.TDX.TCBLevels[:1]
				p.TDX.TCBLevels[0].TCB.PCESVN = 99
			}},
		"status that nobody knows": {check: "tcb_status", reason: attest.ReasonUnsupported,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.TDX.TCBLevels[0].TCBStatus = "Splendid" }},
		"QE of another signer": {check: "qe_identity", reason: attest.ReasonMismatch,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.QE.MRSIGNER[0]++ }},
		"QE with DEBUG": {check: "qe_identity", reason: attest.ReasonMismatch,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.QE.ATTRIBUTES[0] |= 2 }},
		"QE with MISCSELECT": {check: "qe_identity", reason: attest.ReasonMismatch,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.QE.MISCSELECT[3] = 1 }},
		"another Intel enclave": {check: "qe_identity", reason: attest.ReasonMismatch,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.QE.ISVPRODID = 1 }},
		"QE below all levels": {check: "qe_identity", reason: attest.ReasonRevoked,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.QE.ISVSVN = 3 }},
		"QE attribute outside the mask": {status: attest.TCBUpToDate,
			change: func(p *dcaptest.Platform, _ *dcap.TDReport) { p.QE.ATTRIBUTES[0] |= 4 }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t)
			r := p.TD()
			tc.change(p, &r)
			res, err := verify(t, verifier(p), tdQuote(t, p, 5, r), collateral(t, p), now)
			if tc.reason != "" {
				wantReason(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if res.TCB.Status != tc.status {
				t.Errorf("status %s, want %s", res.TCB.Status, tc.status)
			}
		})
	}
}

func TestCollateral(t *testing.T) {
	tcb := func(p *dcaptest.Platform) attest.CollateralRef {
		return attest.CollateralRef{Kind: attest.TDXTCBInfo, Key: fmt.Sprintf("%x", p.PCK.FMSPC)}
	}
	qeid := attest.CollateralRef{Kind: attest.TDXQEID}
	rootCRL := attest.CollateralRef{Kind: attest.IntelRootCRL}
	pckCRL := attest.CollateralRef{Kind: attest.PCKCRL, Key: "platform"}
	for name, tc := range map[string]struct {
		platform   func(*dcaptest.Platform)                      // before signing
		collateral func(*dcaptest.Platform, dcaptest.Collateral) // after it
		at         time.Time
		check      string
		reason     attest.Reason
	}{
		"no TCB info": {check: "tcb_info", reason: attest.ReasonCollateralMissing,
			collateral: func(p *dcaptest.Platform, c dcaptest.Collateral) { delete(c, tcb(p)) }},
		"no QE identity": {check: "qe_identity", reason: attest.ReasonCollateralMissing,
			collateral: func(_ *dcaptest.Platform, c dcaptest.Collateral) { delete(c, qeid) }},
		"no root CRL": {check: "root_crl", reason: attest.ReasonCollateralMissing,
			collateral: func(_ *dcaptest.Platform, c dcaptest.Collateral) { delete(c, rootCRL) }},
		"no PCK CRL": {check: "pck_crl", reason: attest.ReasonCollateralMissing,
			collateral: func(_ *dcaptest.Platform, c dcaptest.Collateral) { delete(c, pckCRL) }},
		"root CRL as PCK CRL": {check: "pck_crl", reason: attest.ReasonCollateralInvalid,
			collateral: func(_ *dcaptest.Platform, c dcaptest.Collateral) { c[pckCRL] = c[rootCRL] }},
		"PCK CRL as root CRL": {check: "root_crl", reason: attest.ReasonCollateralInvalid,
			collateral: func(_ *dcaptest.Platform, c dcaptest.Collateral) { c[rootCRL] = c[pckCRL] }},
		"flipped CRL": {check: "pck_crl", reason: attest.ReasonCollateralInvalid,
			collateral: func(_ *dcaptest.Platform, c dcaptest.Collateral) { c[pckCRL].Data[len(c[pckCRL].Data)-1] ^= 1 }},
		"leaf revoked": {check: "pck_crl", reason: attest.ReasonRevoked,
			platform: func(p *dcaptest.Platform) { p.RevokedByCA = []*big.Int{big.NewInt(7), p.Leaf.SerialNumber} }},
		"CA revoked": {check: "root_crl", reason: attest.ReasonRevoked,
			platform: func(p *dcaptest.Platform) { p.RevokedByRoot = []*big.Int{p.CA.SerialNumber} }},
		"TCB signing certificate revoked": {check: "tcb_info", reason: attest.ReasonRevoked,
			platform: func(p *dcaptest.Platform) { p.RevokedByRoot = []*big.Int{p.TCBSigning.SerialNumber} }},
		"CRL past nextUpdate": {check: "root_crl", reason: attest.ReasonCollateralExpired,
			platform: func(p *dcaptest.Platform) { p.CRLNextUpdate = now.Add(-time.Second) }},
		"CRL from the future": {check: "root_crl", reason: attest.ReasonValidity,
			platform: func(p *dcaptest.Platform) { p.CRLThisUpdate = now.Add(time.Second) }},
		"TCB info past nextUpdate": {check: "tcb_info", reason: attest.ReasonCollateralExpired,
			platform: func(p *dcaptest.Platform) { p.TDX.NextUpdate = now.Add(-time.Second) }},
		"TCB info from the future": {check: "tcb_info", reason: attest.ReasonValidity,
			platform: func(p *dcaptest.Platform) { p.TDX.IssueDate = now.Add(time.Second) }},
		"QE identity past nextUpdate": {check: "qe_identity", reason: attest.ReasonCollateralExpired,
			platform: func(p *dcaptest.Platform) { p.TDQE.NextUpdate = now.Add(-time.Second) }},
		"QE identity from the future": {check: "qe_identity", reason: attest.ReasonValidity,
			platform: func(p *dcaptest.Platform) { p.TDQE.IssueDate = now.Add(time.Second) }},
		"certificates not yet valid": {check: "pck_chain", reason: attest.ReasonValidity, at: now.AddDate(0, 0, -2)},
		"certificates expired":       {check: "pck_chain", reason: attest.ReasonValidity, at: now.AddDate(7, 0, 1)},
		"TCB info of another FMSPC": {check: "tcb_info", reason: attest.ReasonMismatch,
			platform: func(p *dcaptest.Platform) { p.TDX.FMSPC = "99806f000001" }},
		"TCB info of another PCEID": {check: "tcb_info", reason: attest.ReasonMismatch,
			platform: func(p *dcaptest.Platform) { p.TDX.PCEID = "0001" }},
		"TCB info for SGX": {check: "tcb_info", reason: attest.ReasonMismatch,
			platform: func(p *dcaptest.Platform) { p.TDX.ID = "SGX" }},
		"TCB info version 2": {check: "tcb_info", reason: attest.ReasonUnsupported,
			platform: func(p *dcaptest.Platform) { p.TDX.Version = 2 }},
		"TCB type 1": {check: "tcb_info", reason: attest.ReasonUnsupported,
			platform: func(p *dcaptest.Platform) { p.TDX.TCBType = 1 }},
		"TCB info without levels": {check: "tcb_info", reason: attest.ReasonCollateralInvalid,
			platform: func(p *dcaptest.Platform) { p.TDX.TCBLevels = nil }},
		"TCB level of 15 components": {check: "tcb_info", reason: attest.ReasonCollateralInvalid,
			platform: func(p *dcaptest.Platform) { p.TDX.TCBLevels[0].TCB.TDX = p.TDX.TCBLevels[0].TCB.TDX[:15] }},
		"QE identity of SGX": {check: "qe_identity", reason: attest.ReasonMismatch,
			platform: func(p *dcaptest.Platform) { p.TDQE.ID = "QE" }},
		"QE identity version 1": {check: "qe_identity", reason: attest.ReasonUnsupported,
			platform: func(p *dcaptest.Platform) { p.TDQE.Version = 1 }},
		"flipped TCB info": {check: "tcb_info", reason: attest.ReasonCollateralInvalid,
			collateral: func(p *dcaptest.Platform, c dcaptest.Collateral) {
				it := c[tcb(p)]
				it.Data = bytes.Replace(it.Data, []byte(`"OutOfDate"`), []byte(`"UpToDate" `), 1)
				c[tcb(p)] = it
			}},
		"no issuer chain": {check: "tcb_info", reason: attest.ReasonCollateralInvalid,
			collateral: func(p *dcaptest.Platform, c dcaptest.Collateral) {
				it := c[tcb(p)]
				it.IssuerChain = nil
				c[tcb(p)] = it
			}},
		"TCB info of another platform's root": {check: "tcb_info", reason: attest.ReasonCollateralInvalid,
			collateral: func(p *dcaptest.Platform, c dcaptest.Collateral) {
				other, _ := dcaptest.New(now)
				oc, _ := other.Collateral()
				c[tcb(p)] = oc[tcb(other)]
			}},
		// A PCK CA is under the same root, and so is trusted for other things only.
		"TCB info signed by the PCK CA": {check: "tcb_info", reason: attest.ReasonCollateralInvalid,
			platform: func(p *dcaptest.Platform) { p.TCBSigning = p.CA }},
		"TCB info signed by the PCK": {check: "tcb_info", reason: attest.ReasonCollateralInvalid,
			platform: func(p *dcaptest.Platform) { p.TCBSigning = p.Leaf }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t)
			raw := tdQuote(t, p, 5, p.TD())
			if tc.platform != nil {
				tc.platform(p)
			}
			c := collateral(t, p)
			if tc.collateral != nil {
				tc.collateral(p, c)
			}
			at := now
			if !tc.at.IsZero() {
				at = tc.at
			}
			_, err := verify(t, verifier(p), raw, c, at)
			wantReason(t, err, tc.check, tc.reason)
		})
	}
}

// TestMemoKeepsNoDates: what verified once is checked again for date and revocation.
func TestMemoKeepsNoDates(t *testing.T) {
	p := newPlatform(t)
	raw, c, v := tdQuote(t, p, 5, p.TD()), collateral(t, p), verifier(p)
	if _, err := verify(t, v, raw, c, now); err != nil {
		t.Fatal(err)
	}
	_, err := verify(t, v, raw, c, now.AddDate(0, 0, 31))
	wantReason(t, err, "root_crl", attest.ReasonCollateralExpired)
	_, err = verify(t, v, raw, c, now.AddDate(8, 0, 0))
	wantReason(t, err, "pck_chain", attest.ReasonValidity)
	p.RevokedByCA = []*big.Int{p.Leaf.SerialNumber}
	_, err = verify(t, v, raw, collateral(t, p), now)
	wantReason(t, err, "pck_crl", attest.ReasonRevoked)
}

// TestCollateralForgery is defect 2 of LIBRARIES §3: the values must come from
// the bytes that the signature covers.
func TestCollateralForgery(t *testing.T) {
	p := newPlatform(t)
	ref := attest.CollateralRef{Kind: attest.TDXTCBInfo, Key: fmt.Sprintf("%x", p.PCK.FMSPC)}
	p.TDX.TCBLevels[0].TCBStatus = "OutOfDate"
	c := collateral(t, p)
	good := c[ref]
	var doc struct {
		TCBInfo   json.RawMessage `json:"tcbInfo"`
		Signature string          `json:"signature"`
	}
	if err := json.Unmarshal(good.Data, &doc); err != nil {
		t.Fatal(err)
	}
	forged := bytes.ReplaceAll(doc.TCBInfo, []byte(`"OutOfDate"`), []byte(`"UpToDate"`))
	raw := tdQuote(t, p, 5, p.TD())
	if res, err := verify(t, verifier(p), raw, c, now); err != nil || res.TCB.Status != attest.TCBOutOfDate {
		t.Fatalf("control: %v, %v", res.TCB.Status, err)
	}
	for _, body := range []string{
		`{"tcbInfo":%[1]s,"signature":"%[3]s","TCBINFO":%[2]s}`,
		`{"TCBINFO":%[2]s,"tcbInfo":%[1]s,"signature":"%[3]s"}`,
		`{"tcbInfo":%[2]s,"tcbInfo":%[1]s,"signature":"%[3]s"}`,
		`{"tcbInfo":%[1]s,"tcbInfo":%[2]s,"signature":"%[3]s"}`,
		`{"tcb\u0049nfo":%[2]s,"tcbInfo":%[1]s,"signature":"%[3]s"}`,
		`{"tcbInfo":%[1]s,"signature":"%[3]s"}{"tcbInfo":%[2]s}`,
		`{"tcbInfo":%[1]s,"signature":"%[3]s","Signature":"00"}`,
		`{"tcbInfo":%[1]s,"signature":"%[3]s","extra":1}`,
		`[{"tcbInfo":%[1]s,"signature":"%[3]s"}]`,
		`{"tcbInfo":%[2]s,"signature":"%[3]s"}`,
		`{"tcbInfo":null,"signature":"%[3]s"}`,
		`{"tcbInfo":%[1]s,"signature":null}`,
		`{"tcbInfo":%[1]s,"signature":null,"signature":"%[3]s"}`,
		`{"tcbInfo":null,"tcbInfo":%[1]s,"signature":"%[3]s"}`,
		`{"tcbInfo":%[1]s}`,
		`null`, ``,
	} {
		it := good
		it.Data = []byte(strings.NewReplacer("%[1]s", string(doc.TCBInfo), "%[2]s", string(forged), "%[3]s", doc.Signature).Replace(body))
		c[ref] = it
		_, err := verify(t, verifier(p), raw, c, now)
		if dcap.ReasonOf(err) != attest.ReasonCollateralInvalid {
			t.Errorf("%s: %v, want collateral_invalid", body, err)
		}
	}
	// Even under the genuine signature, names may not repeat.
	inner := bytes.Replace(doc.TCBInfo, []byte(`"tcbStatus"`), []byte(`"TcbStatus":"UpToDate","tcbStatus"`), 1)
	it, err := p.SignDocument("tcbInfo", inner)
	if err != nil {
		t.Fatal(err)
	}
	c[ref] = it
	_, err = verify(t, verifier(p), raw, c, now)
	wantReason(t, err, "tcb_info", attest.ReasonCollateralInvalid)
}

func TestRoots(t *testing.T) {
	p := newPlatform(t)
	raw, c := tdQuote(t, p, 5, p.TD()), collateral(t, p)
	_, err := verify(t, dcap.New(dcap.Config{}), raw, c, now)
	wantReason(t, err, "pck_chain", attest.ReasonChain)
	_, err = verify(t, verifier(newPlatform(t)), raw, c, now)
	wantReason(t, err, "pck_chain", attest.ReasonChain)
}

// TestSplice puts parts of two good quotes together.
func TestSplice(t *testing.T) {
	p, other := newPlatform(t), newPlatform(t)
	other.Root, other.CA = p.Root, p.CA
	a, b := tdQuote(t, p, 4, p.TD()), tdQuote(t, other, 4, p.TD())
	v, c := verifier(p), collateral(t, p)
	const sig, key, qe, qeSig, auth = 636, 636 + 64, 636 + 128 + 6, 636 + 128 + 6 + 384, 636 + 128 + 6 + 384 + 64
	for _, tc := range []struct {
		from, to int
		check    string
	}{
		{sig, key, "quote_signature"},
		{sig, qe, "qe_binding"},             // another attestation key with its signature
		{sig, qeSig, "qe_report_signature"}, // and its QE report
		{sig, auth, "qe_report_signature"},  // and the signature on that
	} {
		m := bytes.Clone(a)
		copy(m[tc.from:tc.to], b[tc.from:tc.to])
		copy(m[qe-6:qe], a[qe-6:qe]) // the size of what follows differs
		_, err := verify(t, v, m, c, now)
		wantReason(t, err, tc.check, attest.ReasonSignature)
	}
}

func TestCollateralOptional(t *testing.T) {
	p := newPlatform(t)
	raw := tdQuote(t, p, 5, p.TD())
	v := dcap.New(dcap.Config{TestRoots: []*x509.Certificate{p.Root.Certificate}, CollateralOptional: true})
	for name, c := range map[string]attest.Collateral{"nil": nil, "empty": dcaptest.Collateral{}} {
		res, err := verify(t, v, raw, c, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if res.TCB.Status != attest.TCBUnknown || res.Collateral.State != attest.CollateralExpired || res.Platform != nil {
			t.Errorf("%s: %+v", name, res)
		}
	}
	// Lapsed collateral is used, and said to be lapsed; revocation in it counts.
	c := collateral(t, p)
	res, err := verify(t, v, raw, c, now.AddDate(0, 2, 0))
	if err != nil || res.Collateral.State != attest.CollateralExpired || res.TCB.Status != attest.TCBUpToDate {
		t.Errorf("lapsed: %+v, %v", res, err)
	}
	p.RevokedByCA = []*big.Int{p.Leaf.SerialNumber}
	_, err = verify(t, v, raw, collateral(t, p), now.AddDate(0, 2, 0))
	wantReason(t, err, "pck_crl", attest.ReasonRevoked)
	// Nothing else becomes optional.
	p.RevokedByCA = nil
	p.TDX.FMSPC = "000000000000"
	_, err = verify(t, v, raw, collateral(t, p), now)
	wantReason(t, err, "tcb_info", attest.ReasonMismatch)
}

func TestUnsupported(t *testing.T) {
	p := newPlatform(t)
	v4, v5 := tdQuote(t, p, 4, p.TD()), tdQuote(t, p, 5, p.TD())
	sgx, err := p.QuoteSGX(3, dcap.EnclaveReport{})
	if err != nil {
		t.Fatal(err)
	}
	set := func(b []byte, off int, x ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[off:], x)
		return b
	}
	for name, tc := range map[string]struct {
		raw    []byte
		reason attest.Reason
	}{
		"version 2":            {set(v4, 0, 2), attest.ReasonUnsupported},
		"version 6":            {set(v4, 0, 6), attest.ReasonUnsupported},
		"P-384 key":            {set(v4, 2, 3), attest.ReasonUnsupported},
		"another QE vendor":    {set(v4, 12, 0), attest.ReasonUnsupported},
		"TEE type 0x82":        {set(v4, 4, 0x82), attest.ReasonUnsupported},
		"v3 for TDX":           {set(sgx, 4, 0x81), attest.ReasonMalformed},
		"body type 4":          {set(v5, 48, 4), attest.ReasonUnsupported},
		"body type 2, 648 B":   {set(v5, 48, 2), attest.ReasonMalformed},
		"body of 4 GiB":        {set(v5, 50, 0xff, 0xff, 0xff, 0xff), attest.ReasonMalformed},
		"TD body for SGX":      {set(v5, 4, 0), attest.ReasonMalformed},
		"certification data 1": {set(v4, 636+128, 1), attest.ReasonUnsupported},
		"PPID, no PCK chain":   {set(v4, 636+128+6+384+64+2+32, 3), attest.ReasonUnsupported},
	} {
		if _, err := dcap.ParseQuote(tc.raw); dcap.ReasonOf(err) != tc.reason || err == nil {
			t.Errorf("%s: %v, want %s", name, err, tc.reason)
		}
	}
}

// TestStaleness: the worst of the collateral shows in the state; its age is since its issuer dated it, whenever it was fetched.
func TestStaleness(t *testing.T) {
	p := newPlatform(t)
	c := collateral(t, p)
	for ref, it := range c {
		it.FetchedAt = now.Add(-time.Hour)
		if ref.Kind == attest.PCKCRL {
			it.FetchedAt, it.Stale = now.Add(-2*time.Hour), true
		}
		c[ref] = it
	}
	res, err := verify(t, verifier(p), tdQuote(t, p, 5, p.TD()), c, now)
	if err != nil {
		t.Fatal(err)
	}
	if want := (attest.CollateralState{State: attest.CollateralStale, AgeSeconds: 86400}); res.Collateral != want {
		t.Errorf("%+v, want %+v", res.Collateral, want)
	}
}

// TestEvaluationNumber: the claim is the lower of the two.
func TestEvaluationNumber(t *testing.T) {
	p := newPlatform(t)
	p.TDX.TCBEvaluationDataNumber, p.TDQE.TCBEvaluationDataNumber = 19, 17
	res, err := verify(t, verifier(p), tdQuote(t, p, 5, p.TD()), collateral(t, p), now)
	if err != nil || res.TCBEvaluationDataNumber != 17 {
		t.Errorf("%d, %v, want 17", res.TCBEvaluationDataNumber, err)
	}
}

// TestRoles: every certificate of Intel's stands under the same root, and each
// may do one thing only.
func TestRoles(t *testing.T) {
	for name, change := range map[string]func(*dcaptest.Platform){
		"TCB signing as PCK":             func(p *dcaptest.Platform) { p.Leaf = p.TCBSigning },
		"TCB signing as PCK CA":          func(p *dcaptest.Platform) { p.CA = p.TCBSigning },
		"root as PCK CA":                 func(p *dcaptest.Platform) { p.CA = p.Root },
		"root as PCK CA of TCB signing":  func(p *dcaptest.Platform) { p.CA, p.Leaf = p.Root, p.TCBSigning },
		"PCK CA as PCK":                  func(p *dcaptest.Platform) { p.Leaf = p.CA },
		"PCK of another platform's CA":   func(p *dcaptest.Platform) { other, _ := dcaptest.New(now); p.Leaf = other.Leaf },
		"PCK CA of another root":         func(p *dcaptest.Platform) { other, _ := dcaptest.New(now); p.Leaf, p.CA = other.Leaf, other.CA },
		"PCK CA as root, PCK all way up": func(p *dcaptest.Platform) { p.Root = p.CA },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t)
			v, c := verifier(p), collateral(t, p)
			change(p)
			_, err := verify(t, v, tdQuote(t, p, 5, p.TD()), c, now)
			wantReason(t, err, "pck_chain", attest.ReasonChain)
		})
	}
}

// TestCriticalCRL: a list whose scope an extension narrows is no full list.
func TestCriticalCRL(t *testing.T) {
	p := newPlatform(t)
	c := collateral(t, p)
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(2), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}, // delta CRL indicator
	}, p.CA.Certificate, p.CA.Key)
	if err != nil {
		t.Fatal(err)
	}
	c[attest.CollateralRef{Kind: attest.PCKCRL, Key: "platform"}] = attest.CollateralItem{Data: der}
	_, err = verify(t, verifier(p), tdQuote(t, p, 5, p.TD()), c, now)
	wantReason(t, err, "pck_crl", attest.ReasonCollateralInvalid)
}

// TestForgedSigner: a stranger's key under Intel's name, presented with and
// without the genuine root beside it.
func TestForgedSigner(t *testing.T) {
	p, other := newPlatform(t), newPlatform(t)
	pemOf := func(c *dcaptest.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	raw := tdQuote(t, p, 5, p.TD())
	for check, ref := range map[string]attest.CollateralRef{
		"tcb_info":    {Kind: attest.TDXTCBInfo, Key: fmt.Sprintf("%x", p.PCK.FMSPC)},
		"qe_identity": {Kind: attest.TDXQEID},
	} {
		for name, chain := range map[string][]byte{
			"signer":               pemOf(other.TCBSigning),
			"signer, genuine root": append(pemOf(other.TCBSigning), pemOf(p.Root)...),
			"signer, its own root": append(pemOf(other.TCBSigning), pemOf(other.Root)...),
		} {
			c := collateral(t, p)
			it := collateral(t, other)[ref] // the same values, another signature
			it.IssuerChain = chain
			c[ref] = it
			_, err := verify(t, verifier(p), raw, c, now)
			if dcap.ReasonOf(err) != attest.ReasonCollateralInvalid || !strings.Contains(err.Error(), check) {
				t.Errorf("%s by %s: %v", check, name, err)
			}
		}
		// The root may be left out: the quote has it.
		c := collateral(t, p)
		it := c[ref]
		it.IssuerChain = pemOf(p.TCBSigning)
		c[ref] = it
		if _, err := verify(t, verifier(p), raw, c, now); err != nil {
			t.Errorf("%s without the root: %v", check, err)
		}
	}
}

// TestLeafRole: the PCK CA's signature is not enough, the certificate must be a PCK's.
func TestLeafRole(t *testing.T) {
	for name, change := range map[string]func(*x509.Certificate){
		"control": func(*x509.Certificate) {},
		"another name": func(c *x509.Certificate) {
			c.RawSubject, c.Subject.CommonName = nil, "TEST SIMULATED Intel SGX Something"
		},
		"a CA": func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign },
		"unknown critical extension": func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		},
	} {
		p := newPlatform(t)
		c := collateral(t, p)
		tmpl := *p.Leaf.Certificate
		for _, e := range p.Leaf.Extensions {
			if e.Id.Equal(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}) {
				tmpl.ExtraExtensions = []pkix.Extension{e}
			}
		}
		change(&tmpl)
		der, err := x509.CreateCertificate(rand.Reader, &tmpl, p.CA.Certificate, p.Leaf.Key.Public(), p.CA.Key)
		if err != nil {
			t.Fatal(err)
		}
		if p.Leaf.Certificate, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		_, err = verify(t, verifier(p), tdQuote(t, p, 5, p.TD()), c, now)
		if name == "control" {
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		if dcap.ReasonOf(err) != attest.ReasonChain {
			t.Errorf("%s: %v", name, err)
		}
	}
}
