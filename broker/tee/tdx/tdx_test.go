package tdx_test

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

type sim struct {
	*dcaptest.Platform
	collateral dcaptest.Collateral
	verifier   *tdx.Verifier
}

func newSim(t testing.TB) *sim {
	t.Helper()
	p, err := dcaptest.New(now)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	return &sim{p, c, tdx.New(tdx.Config{TestRoots: []*x509.Certificate{p.Root.Certificate}})}
}

func (s *sim) td() dcap.TDReport {
	r := s.TD()
	r.REPORTDATA = transcript.Digest64()
	return r
}

func (s *sim) evidence(t testing.TB, version uint16, r dcap.TDReport) attest.Evidence {
	t.Helper()
	raw, err := s.QuoteTD(version, r)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Evidence{Type: attest.TypeTDX, Report: raw}
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
	for name, version := range map[string]uint16{"v4": 4, "v5": 5} {
		ev := s.evidence(t, version, s.td())
		rd := transcript.Digest64()
		pem := bytes.Index(ev.Report, []byte("-----BEGIN"))
		good = append(good, teetest.Vector{
			Name: name, Evidence: ev, Collateral: s.collateral, Now: now, ReportData: rd[:],
			NotYetValid: now.AddDate(0, 0, -2), Expired: now.AddDate(0, 0, 31),
			Needs: []attest.CollateralKind{attest.TDXTCBInfo, attest.TDXQEID, attest.PCKCRL, attest.IntelRootCRL},
			// Line breaks and the like of the PEM chain.
			Unsigned:   func(p teetest.Part, off int) bool { return p != teetest.Report || off >= pem },
			TrailingOK: []teetest.Part{teetest.Report, teetest.Endorsements},
		})
	}
	teetest.Run(t, teetest.Suite{New: func(*testing.T) attest.Verifier {
		return tdx.New(tdx.Config{TestRoots: []*x509.Certificate{s.Root.Certificate}})
	}, Good: good})
}

func TestClaims(t *testing.T) {
	s := newSim(t)
	r := s.td()
	r.MRCONFIGID[0] = 0xc0
	r.TDATTRIBUTES = [8]byte{3: 0x30, 4: 0x01, 7: 0x80}
	cl, err := s.verify(t, s.evidence(t, 5, r))
	if err != nil {
		t.Fatal(err)
	}
	c := cl.TDX.(*tdx.Claims)
	if !cl.Bound || cl.Debuggable || !cl.Simulated || !cl.BoundToCPUTEE || cl.TCB.Status != attest.TCBUpToDate ||
		cl.ChipID != hex.EncodeToString(s.PCK.Platform.InstanceID[:]) || cl.HostData != hex.EncodeToString(r.MRCONFIGID[:]) {
		t.Errorf("claims %+v", cl)
	}
	wantAttr := tdx.TDAttributes{Raw: "0000003001000080", SEPTVEDisable: true, Migratable: true, Perfmon: true, Reserved: "0000000100000000"}
	if c.TDATTRIBUTES != wantAttr {
		t.Errorf("TDATTRIBUTES %+v, want %+v", c.TDATTRIBUTES, wantAttr)
	}
	for name, want := range map[string][48]byte{"mrtd": r.MRTD, "rtmr0": r.RTMR[0], "rtmr3": r.RTMR[3], "mrseam": r.MRSEAM} {
		if cl.Measurements[name] != hex.EncodeToString(want[:]) {
			t.Errorf("%s is %s", name, cl.Measurements[name])
		}
	}
	if c.EventLog != tdx.EventLogAbsent || c.TDReport != "1.5" || c.Platform.Status != "UpToDate" || c.QE.Status != "UpToDate" {
		t.Errorf("claims %+v", c)
	}

	s.PCK.Platform, s.PCK.CA = nil, "processor"
	if err := s.Certify(); err != nil {
		t.Fatal(err)
	}
	if s.collateral, err = s.Platform.Collateral(); err != nil {
		t.Fatal(err)
	}
	s.verifier = tdx.New(tdx.Config{TestRoots: []*x509.Certificate{s.Root.Certificate}})
	if cl, err = s.verify(t, s.evidence(t, 4, r)); err != nil || cl.ChipID != hex.EncodeToString(s.PCK.PPID[:]) {
		t.Errorf("chip of a single-package platform: %q, %v", cl.ChipID, err)
	}
}

// TestDebug: any flag of the TUD byte makes a TD debuggable, named or not.
func TestDebug(t *testing.T) {
	s := newSim(t)
	for bit := range 64 {
		r := s.td()
		r.TDATTRIBUTES = [8]byte{}
		r.TDATTRIBUTES[bit/8] = 1 << (bit % 8)
		cl, err := s.verify(t, s.evidence(t, 5, r))
		if err != nil {
			t.Fatal(err)
		}
		if cl.Debuggable != (bit < 8) {
			t.Errorf("bit %d: debuggable %v", bit, cl.Debuggable)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, s *sim, ev *attest.Evidence)
		check  string
		reason attest.Reason
	}{
		"empty":           {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Report = nil }, "tdx.format", attest.ReasonMalformed},
		"oversized":       {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Report = make([]byte, attest.MaxReportSize+1) }, "tdx.format", attest.ReasonMalformed},
		"oversized log":   {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.EventLog = make([]byte, attest.MaxEventLogSize+1) }, "tdx.format", attest.ReasonMalformed},
		"junk as log":     {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.EventLog = []byte("junk") }, "tdx.event_log", attest.ReasonMalformed},
		"other type":      {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Type = attest.TypeSNP }, "tdx.format", attest.ReasonUnsupported},
		"untrusted root":  {func(_ *testing.T, s *sim, _ *attest.Evidence) { s.verifier = tdx.New(tdx.Config{}) }, "tdx.pck_chain", attest.ReasonChain},
		"wrong test root": {func(t *testing.T, s *sim, _ *attest.Evidence) { s.verifier = newSim(t).verifier }, "tdx.pck_chain", attest.ReasonChain},
		"SGX quote": {func(t *testing.T, s *sim, ev *attest.Evidence) {
			raw, err := s.QuoteSGX(3, dcap.EnclaveReport{REPORTDATA: transcript.Digest64()})
			if err != nil {
				t.Fatal(err)
			}
			ev.Report = raw
		}, "tdx.format", attest.ReasonUnsupported},
		"another request": {func(t *testing.T, s *sim, ev *attest.Evidence) { *ev = s.evidence(t, 5, s.TD()) }, "tdx.binding", attest.ReasonBinding},
		"revoked leaf": {func(t *testing.T, s *sim, _ *attest.Evidence) {
			s.RevokedByCA = []*big.Int{s.Leaf.SerialNumber}
			s.sign(t)
		}, "tdx.pck_crl", attest.ReasonRevoked},
		"revoked TCB": {func(t *testing.T, s *sim, _ *attest.Evidence) {
			s.TDX.TCBLevels[0].TCBStatus = "Revoked"
			s.sign(t)
		}, "tdx.tcb_status", attest.ReasonRevoked},
		"module signed by others": {func(t *testing.T, s *sim, ev *attest.Evidence) {
			r := s.td()
			r.MRSIGNERSEAM[0] = 1
			*ev = s.evidence(t, 5, r)
		}, "tdx.tdx_module", attest.ReasonMismatch},
		"flipped body": {func(_ *testing.T, _ *sim, ev *attest.Evidence) { ev.Report[54+16] ^= 1 }, "tdx.quote_signature", attest.ReasonSignature},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t)
			ev := s.evidence(t, 5, s.td())
			tc.change(t, s, &ev)
			cl, err := s.verify(t, ev)
			wantError(t, err, tc.check, tc.reason)
			if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Name != tc.check || cl.Checks[n-1].Outcome != attest.Failed {
				t.Errorf("checks %+v do not end with %s", cl.Checks, tc.check)
			}
			if cl.Checks = nil; !cmp.Equal(cl, attest.Claims{Type: attest.TypeTDX}) {
				t.Errorf("claims of refused evidence: %+v", cl)
			}
		})
	}
}

func (s *sim) sign(t *testing.T) {
	t.Helper()
	var err error
	if s.collateral, err = s.Platform.Collateral(); err != nil {
		t.Fatal(err)
	}
}

// Status is a claim: SWHardeningNeeded and OutOfDate can be told from each
// other and from a bad signature (LIBRARIES §3, defect 4).
func TestStatusIsAClaim(t *testing.T) {
	for _, status := range []string{"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"} {
		s := newSim(t)
		s.TDX.TCBLevels[0].TCBStatus = status
		s.TDX.TCBLevels[0].AdvisoryIDs = []string{"INTEL-SA-1"}
		s.sign(t)
		cl, err := s.verify(t, s.evidence(t, 5, s.td()))
		if err != nil {
			t.Fatal(err)
		}
		c := cl.TDX.(*tdx.Claims)
		if cl.TCB.Status != status || !cmp.Equal(cl.TCB.Advisories, []string{"INTEL-SA-1"}) || c.Platform.Status != status || c.Module.Status != "UpToDate" {
			t.Errorf("%s: %+v, %+v", status, cl.TCB, c.Platform)
		}
	}
}

// ---- event log

func event(index, typ uint32, digest [48]byte, data string) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, index)
	b = le.AppendUint32(b, typ)
	b = le.AppendUint32(b, 1)
	b = append(le.AppendUint16(b, 0x0c), digest[:]...)
	b = le.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func logHeader() []byte {
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0)
	b := append([]byte{1, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(spec))), spec...)
}

func extend(r *[48]byte, d [48]byte) { *r = sha512.Sum384(append(r[:], d[:]...)) }

func TestEventLog(t *testing.T) {
	s := newSim(t)
	a, b := sha512.Sum384([]byte("linux ro quiet")), sha512.Sum384([]byte("what was measured"))
	log := bytes.Join([][]byte{
		logHeader(),
		event(3, 0x0d, a, "grub_cmd: linux ro quiet\x00"),
		event(1, 3, a, "no action"),
		event(1, 1, b, "what the log pretends"),
		{0xff, 0xff, 0xff},
	}, nil)
	r := s.td()
	r.RTMR = [4][48]byte{}
	extend(&r.RTMR[2], a)
	extend(&r.RTMR[0], b)

	ev := s.evidence(t, 5, r)
	ev.EventLog = log
	cl, err := s.verify(t, ev)
	if err != nil {
		t.Fatal(err)
	}
	c := cl.TDX.(*tdx.Claims)
	want := []tdx.Event{
		{Register: "rtmr2", Type: "EV_IPL", Digest: hex.EncodeToString(a[:]), Verified: true, Text: "linux ro quiet"},
		{Register: "rtmr0", Type: "EV_POST_CODE", Digest: hex.EncodeToString(b[:])},
	}
	if c.EventLog != tdx.EventLogVerified || !cmp.Equal(c.Events, want) {
		t.Errorf("%s: %s", c.EventLog, cmp.Diff(want, c.Events))
	}

	// Something extended RTMR3 and left no trace in the log.
	r.RTMR[3][0] = 1
	ev = s.evidence(t, 5, r)
	ev.EventLog = log
	if cl, err = s.verify(t, ev); err != nil {
		t.Fatal(err)
	}
	if c = cl.TDX.(*tdx.Claims); c.EventLog != tdx.EventLogPartial || !cmp.Equal(c.RTMRsUnexplained, []string{"rtmr3"}) {
		t.Errorf("%s, unexplained %v", c.EventLog, c.RTMRsUnexplained)
	}

	// An event added, left out, or of another digest.
	for name, bad := range map[string][]byte{
		"added":   append(bytes.TrimRight(log, "\xff"), event(3, 0x0d, b, "more")...),
		"removed": append(logHeader(), append(event(3, 0x0d, a, ""), event(1, 1, a, "")...)...),
	} {
		ev.EventLog = bad
		if _, err := s.verify(t, ev); attest.ReasonOf(err) != attest.ReasonMismatch {
			t.Errorf("%s: %v, want a mismatch", name, err)
		}
	}
	// A register that is zero although the log extends it.
	r.RTMR = [4][48]byte{}
	ev = s.evidence(t, 5, r)
	ev.EventLog = log
	_, err = s.verify(t, ev)
	wantError(t, err, "tdx.event_log", attest.ReasonMismatch)
}

// ---- vectors of go-tdx-guest

func TestGolden(t *testing.T) {
	v := tdx.New(tdx.Config{CollateralOptional: true})
	cos := moduleFile(t, "testing/testdata/ccel/cos-113-tdx-quote.dat")
	for name, ev := range map[string]attest.Evidence{
		"google-v4": {Report: testdata.RawQuote},
		"google-v5": {Report: testdata.RawQuoteV5},
		"cos-113":   {Report: cos, EventLog: moduleFile(t, "testing/testdata/ccel/ccel_data.dat")},
	} {
		t.Run(name, func(t *testing.T) {
			ev.Type = attest.TypeTDX
			cl, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC))
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(struct {
				attest.Claims
				Checks []attest.Check `json:"checks"`
			}{cl, cl.Checks}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".golden.json")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimSpace(string(want)), string(got)); d != "" {
				t.Errorf("claims differ from %s (-want +got):\n%s", path, d)
			}
		})
	}
}

// TestCOS is a real quote, its nonce and its event log.
func TestCOS(t *testing.T) {
	v := tdx.New(tdx.Config{CollateralOptional: true})
	ev := attest.Evidence{Type: attest.TypeTDX, Report: moduleFile(t, "testing/testdata/ccel/cos-113-tdx-quote.dat"), EventLog: moduleFile(t, "testing/testdata/ccel/ccel_data.dat")}
	nonce := moduleFile(t, "testing/testdata/ccel/nonce.dat")
	at := time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC)
	cl, err := v.Verify(t.Context(), ev, attest.BindExact(nonce), nil, at)
	if err != nil {
		t.Fatal(err)
	}
	if c := cl.TDX.(*tdx.Claims); !cl.Bound || cl.Debuggable || cl.Simulated || c.EventLog != tdx.EventLogVerified || cl.TCB.Status != attest.TCBUnknown ||
		cl.Collateral.State != attest.CollateralExpired {
		t.Errorf("claims %+v", cl)
	}
	// A digest changed in the log.
	ev.EventLog = bytes.Clone(ev.EventLog)
	ev.EventLog[90] ^= 1
	_, err = v.Verify(t.Context(), ev, attest.BindExact(nonce), nil, at)
	wantError(t, err, "tdx.event_log", attest.ReasonMismatch)
	// A broker wants collateral.
	_, err = tdx.New(tdx.Config{}).Verify(t.Context(), ev, attest.BindExact(nonce), nil, at)
	wantError(t, err, "tdx.root_crl", attest.ReasonCollateralMissing)
}

// ---- benchmarks

func BenchmarkVerify(b *testing.B) {
	s := newSim(b)
	ev := s.evidence(b, 5, s.td())
	benchtest.Loop(b, func() error {
		_, err := s.verify(b, ev)
		return err
	})
}

// BenchmarkVerifyCold has the signatures of the PCK chain, of all collateral and
// of the quoting enclave's report beside the quote's.
func BenchmarkVerifyCold(b *testing.B) {
	s := newSim(b)
	ev := s.evidence(b, 5, s.td())
	benchtest.Loop(b, func() error {
		s.verifier = tdx.New(tdx.Config{TestRoots: []*x509.Certificate{s.Root.Certificate}})
		_, err := s.verify(b, ev)
		return err
	})
}

// BenchmarkFloor: the quote's signature; the quoting enclave's report, the same
// in all quotes of a platform, is remembered with chain and collateral.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.P256) }

// BenchmarkVerifyWarmParallel is throughput over all cores.
func BenchmarkVerifyWarmParallel(b *testing.B) {
	s := newSim(b)
	ev := s.evidence(b, 5, s.td())
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.verify(b, ev); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestMigratable: what a migration TD may export is said whatever else the quote holds. A quote of
// version 4 has no MRSERVICETD, and is none the better for it.
func TestMigratable(t *testing.T) {
	s := newSim(t)
	for name, tc := range map[string]struct {
		version          uint16
		attribute, agent bool
		want             bool
	}{
		"v5":                               {5, false, false, false},
		"v5, attribute":                    {5, true, false, true},
		"v5, attribute and service TD":     {5, true, true, true},
		"v5, service TD without attribute": {5, false, true, true},
		"v4":                               {4, false, false, false},
		"v4, attribute":                    {4, true, true, true},
	} {
		r := s.td()
		if tc.attribute {
			r.TDATTRIBUTES[3] |= 1 << 5
		}
		if tc.agent {
			r.TDX15.MRSERVICETD = [48]byte{0xba, 0xd0}
		}
		c, err := s.verify(t, s.evidence(t, tc.version, r))
		if err != nil || c.Migratable != tc.want || c.Debuggable {
			t.Errorf("%s: migratable %v, debuggable %v, %v", name, c.Migratable, c.Debuggable, err)
		}
	}
}

// TestCollateralGoesBack: documents that Intel has replaced do not come back, though they are signed and their dates
// are good. Each kind alone is enough.
func TestCollateralGoesBack(t *testing.T) {
	for _, kind := range []attest.CollateralKind{attest.TDXTCBInfo, attest.TDXQEID, attest.PCKCRL, attest.IntelRootCRL, ""} {
		t.Run(string(kind), func(t *testing.T) {
			s := newSim(t)
			ev := s.evidence(t, 5, s.td())
			made := func(issued time.Time, number int) dcaptest.Collateral {
				s.TDX.IssueDate, s.TDX.NextUpdate, s.TDX.TCBEvaluationDataNumber = issued, issued.AddDate(0, 0, 30), number
				s.TDQE.IssueDate, s.TDQE.NextUpdate, s.TDQE.TCBEvaluationDataNumber = issued, issued.AddDate(0, 0, 30), number
				s.CRLThisUpdate, s.CRLNextUpdate = issued, issued.AddDate(0, 0, 30)
				c, err := s.Collateral()
				if err != nil {
					t.Fatal(err)
				}
				for ref, it := range c {
					it.FetchedAt, it.Source = now, "service"
					c[ref] = it
				}
				return c
			}
			verify := func(c attest.Collateral) (attest.Claims, error) {
				return s.verifier.Verify(t.Context(), ev, attest.BindTo(transcript), c, now)
			}
			before, after := made(now.AddDate(0, 0, -29), 17), made(now.Add(-time.Hour), 18)
			cl, err := verify(before)
			if err != nil || cl.Collateral != (attest.CollateralState{State: attest.CollateralFresh, AgeSeconds: 29 * 86400}) {
				t.Fatalf("before: %+v, %v", cl.Collateral, err)
			}
			if cl, err = verify(after); err != nil || cl.Collateral.AgeSeconds != 3600 {
				t.Fatalf("after: %+v, %v", cl.Collateral, err)
			}
			mixed := dcaptest.Collateral{}
			for ref, it := range after {
				if mixed[ref] = it; ref.Kind == kind {
					mixed[ref] = before[ref]
				}
			}
			_, err = verify(mixed)
			check := map[attest.CollateralKind]string{attest.TDXTCBInfo: "tdx.tcb_info", attest.TDXQEID: "tdx.qe_identity", attest.PCKCRL: "tdx.pck_crl", attest.IntelRootCRL: "tdx.root_crl"}[kind]
			if kind == "" {
				if err != nil {
					t.Errorf("the same again: %v", err)
				}
				return
			}
			wantError(t, err, check, attest.ReasonCollateralExpired)
			// Nor by the number, with a date of today.
			if kind == attest.TDXTCBInfo || kind == attest.TDXQEID {
				mixed[attest.CollateralRef{Kind: kind, Key: keyOf(after, kind)}] = made(now, 17)[attest.CollateralRef{Kind: kind, Key: keyOf(after, kind)}]
				_, err = verify(mixed)
				wantError(t, err, check, attest.ReasonCollateralExpired)
			}
		})
	}
}

func keyOf(c dcaptest.Collateral, kind attest.CollateralKind) string {
	for ref := range c {
		if ref.Kind == kind {
			return ref.Key
		}
	}
	return ""
}
