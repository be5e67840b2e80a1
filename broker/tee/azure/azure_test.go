package azure_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/tee/azure"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/broker/tpmquote"
	"github.com/claviger/claviger/broker/tpmquote/tpmquotetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// vtpmKey is one key for all tests: RSA keys take their time.
var vtpmKey = sync.OnceValues(tpmquotetest.NewKey)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// sim is an SNP and a TDX machine of a simulated Azure, one vTPM key on both.
type sim struct {
	ak         tpmquotetest.Key
	ark        *x509.Certificate // AMD's
	device     *teesim.Device
	platform   *dcaptest.Platform
	collateral teetest.MapCollateral
	config     azure.Config

	// What evidence says; changed by tests.
	runtime string // JSON; %s are n of the attestation key, and the user data
	user    [64]byte
	report  teesim.ReportOptions
	data    func(sum [32]byte) [64]byte // REPORT_DATA
}

func newSim(t testing.TB) *sim {
	t.Helper()
	s := &sim{
		runtime: `{"keys":[{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"%s"},{"kid":"HCLEkPub","key_ops":["encrypt"],"kty":"RSA","e":"AQAB","n":"AA"}],` +
			`"vm-configuration":{"console-enabled":true,"secure-boot":true,"tpm-enabled":true,"tpm-persisted":false,"vmUniqueId":"AB01"},"user-data":"%s"}`,
		report: teesim.ReportOptions{Measurement: teesim.Measurement("paravisor")},
		data:   func(sum [32]byte) (d [64]byte) { copy(d[:], sum[:]); return d },
	}
	root, err := teesim.NewRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	if s.device, err = root.NewDevice(teesim.DeviceOptions{NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(5, 0, 0)}); err != nil {
		t.Fatal(err)
	}
	if s.collateral, err = root.Collateral(now); err != nil {
		t.Fatal(err)
	}
	if s.platform, err = dcaptest.New(now); err != nil {
		t.Fatal(err)
	}
	intel, err := s.platform.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	for ref, it := range intel {
		s.collateral[ref] = it
	}
	if s.ak, err = vtpmKey(); err != nil {
		t.Fatal(err)
	}
	s.ark = root.ARK()
	s.forget(t)
	return s
}

// forget replaces the verifiers of hardware by such as have seen nothing yet.
func (s *sim) forget(t testing.TB) {
	t.Helper()
	v, err := snp.New(snp.Config{TestRoots: []snp.TestRoot{{Product: "Milan", ARK: s.ark}}})
	if err != nil {
		t.Fatal(err)
	}
	s.config.SNP, s.config.TDX = v, tdx.New(tdx.Config{TestRoots: []*x509.Certificate{s.platform.Root.Certificate}})
}

var bootLog, bootPCRs = tpmquotetest.Log(
	tpmquotetest.Event{PCR: 4, Type: 0x80000003, Data: "a boot loader"},
	tpmquotetest.Event{PCR: 8, Type: 0x0d, Data: "kernel_cmdline: /vmlinuz quiet\x00"},
)

func (s *sim) vector(t testing.TB, hardware attest.Type) vector {
	t.Helper()
	data := s.runtime
	if strings.Contains(data, "%s") {
		data = fmt.Sprintf(data, base64.RawURLEncoding.EncodeToString(s.ak.N.Bytes()), strings.ToUpper(hex.EncodeToString(s.user[:])))
	}
	reportData := s.data(sha256.Sum256([]byte(data)))
	hw, typ := make([]byte, 1184), uint32(4)
	v := vector{log: bootLog}
	switch hardware {
	case attest.TypeSNP:
		ev, err := s.device.Evidence(reportData, s.report)
		if err != nil {
			t.Fatal(err)
		}
		hw, typ, v.vcek = ev.Report, 2, s.device.Leaf()
	case attest.TypeTDX:
		td := s.platform.TD()
		td.REPORTDATA = reportData
		var err error
		if v.report.TDQuote, err = s.platform.QuoteTD(4, td); err != nil {
			t.Fatal(err)
		}
	}
	le := binary.LittleEndian
	b := append([]byte("HCLA"), 2, 0, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0)
	b = append(append(b, make([]byte, 16)...), hw...)
	for _, n := range []uint32{uint32(20 + len(data)), 1, typ, 1, uint32(len(data))} {
		b = le.AppendUint32(b, n)
	}
	v.report.HCLReport = append(append(b, data...), make([]byte, 100)...)
	extra := transcript.Digest32()
	var err error
	if v.report.Quote, v.report.Signature, err = s.ak.Quote(extra[:], bootPCRs); err != nil {
		t.Fatal(err)
	}
	v.report.PCRs = bootPCRs
	return v.clone()
}

// evidence has the whole certificate table for SNP: a simulated ASK is nowhere else.
func (s *sim) evidence(t testing.TB, v vector) attest.Evidence {
	t.Helper()
	ev := v.evidence(t)
	if v.vcek != nil {
		ev.Endorsements = s.device.CertTable()
	}
	return ev
}

func (s *sim) verify(t testing.TB, ev attest.Evidence) (attest.Claims, error) {
	t.Helper()
	return azure.New(s.config).Verify(t.Context(), ev, attest.BindTo(transcript), s.collateral, now)
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
	extra := transcript.Digest32()
	var good []teetest.Vector
	for hardware, needs := range map[attest.Type][]attest.CollateralKind{
		attest.TypeSNP: {attest.SNPCRL},
		attest.TypeTDX: {attest.TDXTCBInfo, attest.TDXQEID, attest.PCKCRL, attest.IntelRootCRL},
	} {
		v := s.vector(t, hardware)
		v.log = nil // types of events are not measured: TestEventLog
		good = append(good, teetest.Vector{
			Name: string(hardware), Evidence: s.evidence(t, v), Collateral: s.collateral, Now: now, ReportData: extra[:],
			NotYetValid: now.AddDate(0, 0, -2), Expired: now.AddDate(6, 0, 0), Needs: needs,
			// The report is JSON around a report with a header and padding that nobody
			// signed: flips may be accepted if no claim changes. TestFlips looks closer.
			Unsigned: func(teetest.Part, int) bool { return true },
		})
	}
	teetest.Run(t, teetest.Suite{New: func(*testing.T) attest.Verifier { return azure.New(s.config) }, Good: good})
}

func TestClaims(t *testing.T) {
	s := newSim(t)
	for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		s.user = [64]byte{}
		cl, err := s.verify(t, s.evidence(t, s.vector(t, hardware)))
		if err != nil {
			t.Fatal(err)
		}
		c, tpm := cl.Azure.(*azure.Claims), cl.TPM.(*tpmquote.Claims)
		launch := cl.Measurements["mrtd"]
		if hardware == attest.TypeSNP {
			m := teesim.Measurement("paravisor")
			launch = hex.EncodeToString(m[:])
		}
		if !cl.Bound || !cl.BoundToCPUTEE || !cl.Simulated || cl.Debuggable || cl.ChipID == "" || cl.Collateral.State != attest.CollateralFresh ||
			cl.Measurements["measurement"]+cl.Measurements["mrtd"] != launch || launch == "" || cl.Measurements["pcr4"] != hex.EncodeToString(bootPCRs[0].Digest) {
			t.Errorf("claims %+v", cl)
		}
		if tpm.EventLog != tpmquote.EventLogVerified || len(tpm.Boot.BootChain) != 1 || tpm.AK.Trust != tpmquote.TrustHardware {
			t.Errorf("TPM claims %+v", tpm)
		}
		want := azure.VMConfiguration{ConsoleEnabled: true, SecureBoot: true, TPMEnabled: true, VMUniqueID: "ab01"}
		if c.Hardware != hardware || c.VMConfiguration != want || c.UserDataBound || strings.Trim(c.UserData, "0") != "" || len(c.UserData) != 128 {
			t.Errorf("azure claims %+v", c)
		}
		spki, err := x509.MarshalPKIXPublicKey(&s.ak.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(spki); c.AK != hex.EncodeToString(sum[:]) {
			t.Errorf("attestation key %s, want %x", c.AK, sum)
		}

		// The digest of this request in the hardware report, too.
		s.user = transcript.Digest64()
		ev := s.evidence(t, s.vector(t, hardware))
		if cl, err = s.verify(t, ev); err != nil || !cl.Azure.(*azure.Claims).UserDataBound {
			t.Errorf("user data %+v, %v", cl.Azure, err)
		}
		cl, err = azure.New(s.config).Verify(t.Context(), ev, attest.Unbound(), s.collateral, now)
		if err != nil || cl.Azure.(*azure.Claims).UserDataBound || cl.Bound {
			t.Errorf("unbound: %+v, %v", cl.Azure, err)
		}
	}
}

// TestForgeries: what an attacker can have signed, put together in every wrong way.
func TestForgeries(t *testing.T) {
	evil, err := tpmquotetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	extra := transcript.Digest32()
	both := []attest.Type{attest.TypeSNP, attest.TypeTDX}
	quote := func(t *testing.T, v *vector, k tpmquotetest.Key, extra []byte, pcrs []attest.PCR) {
		t.Helper()
		var err error
		if v.report.Quote, v.report.Signature, err = k.Quote(extra, pcrs); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		on     []attest.Type
		before func(s *sim)
		after  func(t *testing.T, s *sim, v *vector)
		check  string
		reason attest.Reason
	}{
		// A guest at VMPL 2 asks for a report over runtime data of its own, with its own key.
		"report asked for by the guest": {on: both[:1], before: func(s *sim) { s.report.VMPL = 2 }, check: "azure.vmpl", reason: attest.ReasonMismatch},
		// A genuine HCL report beside a quote by a TPM in software.
		"quote by another key": {on: both, after: func(t *testing.T, _ *sim, v *vector) { quote(t, v, evil, extra[:], bootPCRs) }, check: "azure.quote_signature", reason: attest.ReasonSignature},
		// The other way round: runtime data with that key, which no hardware covers.
		"runtime data with another key": {on: both, after: func(t *testing.T, s *sim, v *vector) {
			quote(t, v, evil, extra[:], bootPCRs)
			n := []byte(base64.RawURLEncoding.EncodeToString(s.ak.N.Bytes()))
			v.report.HCLReport = bytes.Replace(v.report.HCLReport, n, []byte(base64.RawURLEncoding.EncodeToString(evil.N.Bytes())), 1)
		}, check: "azure.runtime_data", reason: attest.ReasonMismatch},
		"quote of another request": {on: both, after: func(t *testing.T, s *sim, v *vector) { quote(t, v, s.ak, make([]byte, 32), bootPCRs) }, check: "azure.binding", reason: attest.ReasonBinding},
		// The 64-byte digest, or a prefix, in the place of the 32-byte one.
		"a longer digest":           {on: both, after: func(t *testing.T, s *sim, v *vector) { d := transcript.Digest64(); quote(t, v, s.ak, d[:32], bootPCRs) }, check: "azure.binding", reason: attest.ReasonBinding},
		"PCRs that were not quoted": {on: both, after: func(_ *testing.T, _ *sim, v *vector) { v.report.PCRs[0].Digest[0] ^= 1 }, check: "azure.pcrs", reason: attest.ReasonMismatch},
		"a log of another boot": {on: both, after: func(_ *testing.T, _ *sim, v *vector) {
			v.log, _ = tpmquotetest.Log(tpmquotetest.Event{PCR: 4, Type: 0x80000003, Data: "another boot loader"})
		}, check: "azure.event_log", reason: attest.ReasonMismatch},
		// Something after the hash, which a verifier of 32 bytes would not see.
		"REPORT_DATA with a tail":  {on: both, before: func(s *sim) { s.data = func(h [32]byte) (d [64]byte) { copy(d[:], h[:]); d[63] = 1; return } }, check: "azure.runtime_data", reason: attest.ReasonMismatch},
		"REPORT_DATA is the nonce": {on: both, before: func(s *sim) { s.data = func([32]byte) [64]byte { return transcript.Digest64() } }, check: "azure.runtime_data", reason: attest.ReasonMismatch},
		"TD quote in SNP's place": {on: both[:1], after: func(t *testing.T, s *sim, v *vector) {
			td := s.vector(t, attest.TypeTDX)
			v.report.TDQuote, v.vcek = td.report.TDQuote, nil
		}, check: "azure.format", reason: attest.ReasonMalformed},
		"no verifier for the hardware": {on: both, before: func(s *sim) { s.config = azure.Config{} }, check: "azure.format", reason: attest.ReasonUnsupported},
		"vendors' roots only":          {on: both[:1], before: func(s *sim) { s.config.SNP, _ = snp.New(snp.Config{}) }, check: "snp.chain", reason: attest.ReasonChain},
		"no key":                       {on: both, before: func(s *sim) { s.runtime = `{"keys":[]}` }, check: "azure.ak", reason: attest.ReasonMalformed},
		"not JSON":                     {on: both, before: func(s *sim) { s.runtime = `{"keys":[]` }, check: "azure.ak", reason: attest.ReasonMalformed},
		"a key's member twice": {on: both, before: func(s *sim) {
			s.runtime = strings.Replace(s.runtime, `"kid":"HCLAkPub"`, `"kid":"HCLEkPub","kid":"HCLAkPub"`, 1)
		}, check: "azure.ak", reason: attest.ReasonMalformed},
		"a key's member in another case": {on: both, before: func(s *sim) {
			s.runtime = strings.Replace(s.runtime, `"kid":"HCLAkPub"`, `"Kid":"HCLAkPub"`, 1)
		}, check: "azure.ak", reason: attest.ReasonMalformed},
		"keys twice": {on: both, before: func(s *sim) { s.runtime = strings.Replace(s.runtime, `{"keys"`, `{"keys":[],"keys"`, 1) }, check: "azure.ak", reason: attest.ReasonMalformed},
		"a NUL in a name": {on: both, before: func(s *sim) {
			s.runtime = strings.Replace(s.runtime, `{"keys"`, `{"user-data\u0000":"","keys"`, 1)
		}, check: "azure.ak", reason: attest.ReasonMalformed},
		"two keys": {on: both, before: func(s *sim) { s.runtime = strings.Replace(s.runtime, "HCLEkPub", "HCLAkPub", 1) }, check: "azure.ak", reason: attest.ReasonUnsupported},
		"a key of another type": {on: both, before: func(s *sim) { s.runtime = strings.Replace(s.runtime, `"kty":"RSA"`, `"kty":"EC"`, 1) }, check: "azure.ak",
			reason: attest.ReasonUnsupported},
		"a short key": {on: both, before: func(s *sim) { s.ak.PrivateKey = small }, check: "azure.ak", reason: attest.ReasonUnsupported},
		"exponent 1":  {on: both, before: func(s *sim) { s.runtime = strings.Replace(s.runtime, "AQAB", "AQ", 1) }, check: "azure.ak", reason: attest.ReasonUnsupported},
		"user data of another length": {on: both, before: func(s *sim) { s.runtime = strings.Replace(s.runtime, `"user-data":"%s"`, `"user-data":"ff%s"`, 1) }, check: "azure.ak",
			reason: attest.ReasonMalformed},
		"runtime data longer than the report": {on: both, after: func(_ *testing.T, _ *sim, v *vector) { v.report.HCLReport[1216+19] = 0xff }, check: "azure.format", reason: attest.ReasonMalformed},
		"oversized log":                       {on: both, after: func(_ *testing.T, _ *sim, v *vector) { v.log = make([]byte, attest.MaxEventLogSize+1) }, check: "azure.format", reason: attest.ReasonMalformed},
	} {
		for _, hardware := range tc.on {
			t.Run(name+" "+string(hardware), func(t *testing.T) {
				s := newSim(t)
				if tc.before != nil {
					tc.before(s)
				}
				v := s.vector(t, hardware)
				if tc.after != nil {
					tc.after(t, s, &v)
				}
				cl, err := s.verify(t, s.evidence(t, v))
				wantError(t, err, tc.check, tc.reason)
				if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Outcome != attest.Failed || cl.Checks[n-1].Name != tc.check {
					t.Errorf("checks %+v do not end with %s", cl.Checks, tc.check)
				}
			})
		}
	}
}

func TestDebuggable(t *testing.T) {
	s := newSim(t)
	s.report.Policy = 0x30000 | 1<<19
	cl, err := s.verify(t, s.evidence(t, s.vector(t, attest.TypeSNP)))
	if err != nil || !cl.Debuggable {
		t.Errorf("debuggable %v, %v", cl.Debuggable, err)
	}
}

func FuzzVerify(f *testing.F) {
	s := newSim(f)
	for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		v := s.vector(f, hardware)
		ev := s.evidence(f, v)
		f.Add(ev.Report, ev.Endorsements, ev.EventLog)
	}
	want := map[string]bool{hex.EncodeToString(bootPCRs[0].Digest): true}
	f.Fuzz(func(t *testing.T, report, endorsements, log []byte) {
		cl, err := s.verify(t, attest.Evidence{Type: attest.TypeAzure, Report: report, Endorsements: endorsements, EventLog: log})
		if err == nil && !want[cl.Measurements["pcr4"]] {
			t.Errorf("a forged quote was believed: %+v", cl)
		}
		if err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Errorf("refused without a reason: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	each(b, func(b *testing.B, s *sim, hardware attest.Type) {
		v, ev := azure.New(s.config), s.evidence(b, s.vector(b, hardware))
		benchtest.Loop(b, func() error {
			_, err := v.Verify(b.Context(), ev, attest.BindTo(transcript), s.collateral, now)
			return err
		})
	})
}

// BenchmarkVerifyCold has all signatures that the hardware's report needs when cold.
func BenchmarkVerifyCold(b *testing.B) {
	each(b, func(b *testing.B, s *sim, hardware attest.Type) {
		ev := s.evidence(b, s.vector(b, hardware))
		benchtest.Loop(b, func() error {
			s.forget(b)
			_, err := azure.New(s.config).Verify(b.Context(), ev, attest.BindTo(transcript), s.collateral, now)
			return err
		})
	})
}

// BenchmarkFloor: the quote's signature by the vTPM (RSA-2048), and that of the hardware's report.
func BenchmarkFloor(b *testing.B) {
	each(b, func(b *testing.B, _ *sim, hardware attest.Type) {
		report := map[attest.Type]benchtest.Signature{attest.TypeSNP: benchtest.P384, attest.TypeTDX: benchtest.P256}
		benchtest.Floor(b, benchtest.RSA2048, report[hardware])
	})
}

func each(b *testing.B, run func(*testing.B, *sim, attest.Type)) {
	for _, hardware := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		b.Run(string(hardware), func(b *testing.B) { run(b, newSim(b), hardware) })
	}
}
