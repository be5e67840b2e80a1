package sgx_test

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/tee/sgx"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"db/orders"}}

type sim struct {
	*dcaptest.Platform
	collateral dcaptest.Collateral
	verifier   *sgx.Verifier
}

func newSim(t testing.TB) *sim {
	t.Helper()
	p, err := dcaptest.New(now)
	if err != nil {
		t.Fatal(err)
	}
	s := &sim{Platform: p, verifier: sgx.New(sgx.Config{TestRoots: []*x509.Certificate{p.Root.Certificate}})}
	s.sign(t)
	return s
}

func (s *sim) sign(t testing.TB) {
	t.Helper()
	var err error
	if s.collateral, err = s.Platform.Collateral(); err != nil {
		t.Fatal(err)
	}
}

func enclave() dcap.EnclaveReport {
	r := dcap.EnclaveReport{
		CPUSVN: [16]byte{5, 5}, ATTRIBUTES: [16]byte{0: 0x85, 8: 0xe7}, // INIT, MODE64BIT, KSS
		MRENCLAVE: [32]byte{0xee, 1}, MRSIGNER: [32]byte{0x51, 2}, ISVPRODID: 7, ISVSVN: 3, CONFIGSVN: 4,
		CONFIGID: [64]byte{0xc0}, ISVEXTPRODID: [16]byte{0xe0}, ISVFAMILYID: [16]byte{0xf0}, MISCSELECT: [4]byte{1},
		REPORTDATA: transcript.Digest64(),
	}
	return r
}

func (s *sim) evidence(t testing.TB, version uint16, r dcap.EnclaveReport) attest.Evidence {
	t.Helper()
	raw, err := s.QuoteSGX(version, r)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Evidence{Type: attest.TypeSGX, Report: raw}
}

func (s *sim) verify(t testing.TB, ev attest.Evidence) (attest.Claims, error) {
	t.Helper()
	return s.verifier.Verify(t.Context(), ev, attest.BindTo(transcript), s.collateral, now)
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

func TestConformance(t *testing.T) {
	s := newSim(t)
	var good []teetest.Vector
	for version := uint16(3); version <= 5; version++ {
		ev := s.evidence(t, version, enclave())
		rd := transcript.Digest64()
		pem := bytes.Index(ev.Report, []byte("-----BEGIN"))
		good = append(good, teetest.Vector{
			Name: "v" + strconv.Itoa(int(version)), Evidence: ev, Collateral: s.collateral, Now: now, ReportData: rd[:],
			NotYetValid: now.AddDate(0, 0, -2), Expired: now.AddDate(0, 0, 31),
			Needs: []attest.CollateralKind{attest.SGXTCBInfo, attest.SGXQEID, attest.PCKCRL, attest.IntelRootCRL},
			// Line breaks and the like of the PEM chain.
			Unsigned:   func(p teetest.Part, off int) bool { return p == teetest.Report && off >= pem },
			TrailingOK: []teetest.Part{teetest.Report},
		})
	}
	teetest.Run(t, teetest.Suite{New: func(*testing.T) attest.Verifier {
		return sgx.New(sgx.Config{TestRoots: []*x509.Certificate{s.Root.Certificate}})
	}, Good: good})
}

func TestClaims(t *testing.T) {
	s := newSim(t)
	r := enclave()
	cl, err := s.verify(t, s.evidence(t, 3, r))
	if err != nil {
		t.Fatal(err)
	}
	pck := s.PCK
	level := func(status string) *dcap.Level {
		return &dcap.Level{Status: status, Date: s.SGX.TCBLevels[0].TCBDate, Advisories: []string{}}
	}
	zeros := func(lead string, n int) string { return lead + hex.EncodeToString(make([]byte, n-len(lead)/2)) }
	want := &sgx.Claims{
		QuoteVersion: 3, QEVendorID: "939a7233f79c4ca9940a0db3957f0607", UserData: zeros("", 20),
		CPUSVN: zeros("0505", 16), MISCSELECT: "00000001",
		ATTRIBUTES: sgx.Attributes{Raw: "8500000000000000e700000000000000", Init: true, Mode64Bit: true, KSS: true},
		MRENCLAVE:  zeros("ee01", 32), MRSIGNER: zeros("5102", 32), ISVPRODID: 7, ISVSVN: 3,
		ISVEXTPRODID: zeros("e0", 16), ISVFAMILYID: zeros("f0", 16), CONFIGID: zeros("c0", 64), CONFIGSVN: 4,
		REPORTDATA: hex.EncodeToString(r.REPORTDATA[:]),
		FMSPC:      "99806f000000", PCEID: "0000", PCESVN: 13, PPID: hex.EncodeToString(pck.PPID[:]), PCKCA: "platform", SGXType: 1,
		PIID: hex.EncodeToString(pck.Platform.InstanceID[:]), Flags: pck.Platform,
		Platform: level("UpToDate"), QE: level("UpToDate"), TCBEvaluationDataNumber: 18,
	}
	if d := cmp.Diff(want, cl.SGX); d != "" {
		t.Errorf("claims (-want +got):\n%s", d)
	}
	if !cl.Bound || cl.Debuggable || !cl.Simulated || !cl.BoundToCPUTEE || cl.TCB.Status != attest.TCBUpToDate || cl.ChipID != want.PIID ||
		cl.HostData != want.CONFIGID || cl.Measurements["mrenclave"] != want.MRENCLAVE || cl.Measurements["mrsigner"] != want.MRSIGNER {
		t.Errorf("claims %+v", cl)
	}
	raw, err := json.Marshal(cl)
	if err != nil || !bytes.Contains(raw, []byte(`"configuration":{"dynamic_platform":false,"cached_keys":true,"smt_enabled":true}`)) {
		t.Errorf("%v: %s", err, raw)
	}
}

// TestAttributes: each flag stands for itself, and DEBUG alone makes an enclave debuggable.
func TestAttributes(t *testing.T) {
	s := newSim(t)
	names := map[int]string{0: "Init", 1: "Debug", 2: "Mode64Bit", 4: "ProvisionKey", 5: "EINITToken", 6: "CET", 7: "KSS", 10: "AEXNotify"}
	for bit := range 64 {
		r := enclave()
		r.ATTRIBUTES = [16]byte{}
		r.ATTRIBUTES[bit/8] = 1 << (bit % 8)
		cl, err := s.verify(t, s.evidence(t, 3, r))
		if err != nil {
			t.Fatal(err)
		}
		a := cl.SGX.(*sgx.Claims).ATTRIBUTES
		set := map[string]bool{
			"Init": a.Init, "Debug": a.Debug, "Mode64Bit": a.Mode64Bit, "ProvisionKey": a.ProvisionKey, "EINITToken": a.EINITToken, "CET": a.CET, "KSS": a.KSS, "AEXNotify": a.AEXNotify,
		}
		for name, on := range set {
			if on != (names[bit] == name) {
				t.Errorf("bit %d: %s is %v", bit, name, on)
			}
		}
		if (a.Reserved == "") != (names[bit] != "") || cl.Debuggable != (bit == 1) {
			t.Errorf("bit %d: reserved %q, debuggable %v", bit, a.Reserved, cl.Debuggable)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, s *sim, ev *attest.Evidence)
		check  string
		reason attest.Reason
	}{
		"empty":           {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Report = nil }, "sgx.format", attest.ReasonMalformed},
		"oversized":       {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Report = make([]byte, attest.MaxReportSize+1) }, "sgx.format", attest.ReasonMalformed},
		"event log":       {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.EventLog = []byte("log") }, "sgx.format", attest.ReasonMalformed},
		"endorsements":    {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Endorsements = []byte("x") }, "sgx.format", attest.ReasonMalformed},
		"other type":      {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Type = attest.TypeTDX }, "sgx.format", attest.ReasonUnsupported},
		"untrusted root":  {func(_ *testing.T, s *sim, _ *attest.Evidence) { s.verifier = sgx.New(sgx.Config{}) }, "sgx.pck_chain", attest.ReasonChain},
		"wrong test root": {func(t *testing.T, s *sim, _ *attest.Evidence) { s.verifier = newSim(t).verifier }, "sgx.pck_chain", attest.ReasonChain},
		"TD quote": {func(t *testing.T, s *sim, ev *attest.Evidence) {
			td := s.TD()
			td.REPORTDATA = transcript.Digest64()
			var err error
			if ev.Report, err = s.QuoteTD(4, td); err != nil {
				t.Fatal(err)
			}
		}, "sgx.format", attest.ReasonUnsupported},
		"another request": {func(t *testing.T, s *sim, ev *attest.Evidence) {
			r := enclave()
			r.REPORTDATA[0] ^= 1
			*ev = s.evidence(t, 3, r)
		}, "sgx.binding", attest.ReasonBinding},
		"revoked leaf": {func(t *testing.T, s *sim, _ *attest.Evidence) {
			s.RevokedByCA = []*big.Int{s.Leaf.SerialNumber}
			s.sign(t)
		}, "sgx.pck_crl", attest.ReasonRevoked},
		"revoked TCB": {func(t *testing.T, s *sim, _ *attest.Evidence) {
			s.SGX.TCBLevels[0].TCBStatus = "Revoked"
			s.sign(t)
		}, "sgx.tcb_status", attest.ReasonRevoked},
		"TCB info of TDX": {func(_ *testing.T, s *sim, _ *attest.Evidence) {
			key := hex.EncodeToString(s.PCK.FMSPC[:])
			s.collateral[attest.CollateralRef{Kind: attest.SGXTCBInfo, Key: key}] = s.collateral[attest.CollateralRef{Kind: attest.TDXTCBInfo, Key: key}]
		}, "sgx.tcb_info", attest.ReasonMismatch},
		"identity of the TD QE": {func(_ *testing.T, s *sim, _ *attest.Evidence) {
			s.collateral[attest.CollateralRef{Kind: attest.SGXQEID}] = s.collateral[attest.CollateralRef{Kind: attest.TDXQEID}]
		}, "sgx.qe_identity", attest.ReasonMismatch},
		"an enclave in the QE's place": {func(t *testing.T, s *sim, ev *attest.Evidence) {
			s.QE.MRSIGNER[0] ^= 1
			*ev = s.evidence(t, 3, enclave())
		}, "sgx.qe_identity", attest.ReasonMismatch},
		"flipped body": {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Report[48+64] ^= 1 }, "sgx.quote_signature", attest.ReasonSignature},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t)
			ev := s.evidence(t, 3, enclave())
			tc.change(t, s, &ev)
			cl, err := s.verify(t, ev)
			wantError(t, err, tc.check, tc.reason)
			if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Name != tc.check || cl.Checks[n-1].Outcome != attest.Failed {
				t.Errorf("checks %+v do not end with %s", cl.Checks, tc.check)
			}
			if cl.Checks = nil; !cmp.Equal(cl, attest.Claims{Type: attest.TypeSGX}) {
				t.Errorf("claims of refused evidence: %+v", cl)
			}
		})
	}
}

// TestCertificationData: types 1 to 4 name the PCK certificate without carrying
// it. They are refused, and the message says for what.
func TestCertificationData(t *testing.T) {
	s := newSim(t)
	ev := s.evidence(t, 3, enclave())
	pem := bytes.Index(ev.Report, []byte("-----BEGIN"))
	for typ := range byte(8) {
		if typ == 5 {
			continue
		}
		ev.Report[pem-6] = typ
		_, err := s.verify(t, ev)
		wantError(t, err, "sgx.format", attest.ReasonUnsupported)
	}
}

func FuzzVerify(f *testing.F) {
	s := newSim(f)
	for version := uint16(3); version <= 5; version++ {
		f.Add(s.evidence(f, version, enclave()).Report)
	}
	want := enclave()
	f.Fuzz(func(t *testing.T, report []byte) {
		cl, err := s.verify(t, attest.Evidence{Type: attest.TypeSGX, Report: report})
		if err == nil && cl.Measurements["mrenclave"] != hex.EncodeToString(want.MRENCLAVE[:]) {
			t.Errorf("a forged enclave was believed: %+v", cl)
		}
		if err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Errorf("refused without a reason: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := newSim(b)
	ev := s.evidence(b, 3, enclave())
	benchtest.Loop(b, func() error {
		_, err := s.verify(b, ev)
		return err
	})
}

// BenchmarkVerifyCold has the signatures of the PCK chain, of all collateral and
// of the quoting enclave's report beside the quote's.
func BenchmarkVerifyCold(b *testing.B) {
	s := newSim(b)
	ev := s.evidence(b, 3, enclave())
	benchtest.Loop(b, func() error {
		s.verifier = sgx.New(sgx.Config{TestRoots: []*x509.Certificate{s.Root.Certificate}})
		_, err := s.verify(b, ev)
		return err
	})
}

// BenchmarkFloor: the quote's signature; the quoting enclave's report, the same
// in all quotes of a platform, is remembered with chain and collateral.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.P256) }
