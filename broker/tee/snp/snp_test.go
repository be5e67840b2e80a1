package snp

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/verify/testdata"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
)

var update = flag.Bool("update", false, "write the golden files")

var simNow = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// lab is a simulated AMD with a verifier that believes it.
type lab struct {
	root       *teesim.Root
	verifier   *Verifier
	collateral teetest.MapCollateral
}

func newLab(t testing.TB) lab {
	t.Helper()
	root, err := teesim.NewRoot(simNow)
	if err != nil {
		t.Fatal(err)
	}
	c, err := root.Collateral(simNow)
	if err != nil {
		t.Fatal(err)
	}
	return lab{root, newVerifier(t, Config{TestRoots: []TestRoot{{ARK: root.ARK()}}}), c}
}

func newVerifier(t testing.TB, cfg Config) *Verifier {
	t.Helper()
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (l lab) device(t testing.TB, o teesim.DeviceOptions) *teesim.Device {
	t.Helper()
	d, err := l.root.NewDevice(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (l lab) evidence(t testing.TB, do teesim.DeviceOptions, ro teesim.ReportOptions) attest.Evidence {
	t.Helper()
	return evidence(t, l.device(t, do), ro)
}

var reportData = [64]byte{1, 2, 3, 63: 64}

func evidence(t testing.TB, d *teesim.Device, o teesim.ReportOptions) attest.Evidence {
	t.Helper()
	ev, err := d.Evidence(reportData, o)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func (l lab) verify(t testing.TB, ev attest.Evidence) (attest.Claims, error) {
	t.Helper()
	return l.verifier.Verify(t.Context(), ev, attest.BindExact(reportData[:]), l.collateral, simNow)
}

// certTableOf is a certificate table.
type certTableOf map[string][]byte

func (c certTableOf) encode() []byte {
	out := make([]byte, tableEntrySize*(len(c)+1))
	i := 0
	for _, g := range []string{guidVCEK, guidVLEK, guidASK, guidARK} {
		if c[g] == nil {
			continue
		}
		e := out[i*tableEntrySize:]
		copy(e, g)
		binary.LittleEndian.PutUint32(e[16:], uint32(len(out)))
		binary.LittleEndian.PutUint32(e[20:], uint32(len(c[g])))
		out = append(out, c[g]...)
		i++
	}
	return out
}

func vector(name string, ev attest.Evidence, c attest.Collateral, now time.Time) teetest.Vector {
	return teetest.Vector{Name: name, Evidence: ev, Collateral: c, Now: now, ReportData: ev.Report[0x50:0x90]}
}

// TestConformance attacks simulated evidence of every product, and real evidence.
func TestConformance(t *testing.T) {
	l := newLab(t)
	cases := []struct {
		name string
		d    teesim.DeviceOptions
		r    teesim.ReportOptions
	}{
		{"milan v2", teesim.DeviceOptions{}, teesim.ReportOptions{Version: 2}},
		{"milan v3", teesim.DeviceOptions{}, teesim.ReportOptions{VMPL: 1, GuestSVN: 7}},
		{"milan v4 masked", teesim.DeviceOptions{}, teesim.ReportOptions{Version: 4, MaskChipID: true}},
		{"genoa v3", teesim.DeviceOptions{Product: "Genoa", HWIDOctetString: true}, teesim.ReportOptions{}},
		{"turin v5", teesim.DeviceOptions{Product: "Turin"}, teesim.ReportOptions{}},
		{"vlek", teesim.DeviceOptions{VLEK: true}, teesim.ReportOptions{}},
	}
	s := teetest.Suite{New: func(t *testing.T) attest.Verifier {
		return newVerifier(t, Config{TestRoots: []TestRoot{{ARK: l.root.ARK()}}})
	}}
	for _, c := range cases {
		v := vector(c.name, l.evidence(t, c.d, c.r), l.collateral, simNow)
		v.NotYetValid, v.Expired = simNow.Add(-2*time.Hour), simNow.AddDate(11, 0, 0)
		v.Needs = []attest.CollateralKind{attest.SNPCRL}
		s.Good = append(s.Good, v)
	}
	teetest.Run(t, s)
}

func TestConformanceReal(t *testing.T) {
	s := teetest.Suite{New: func(t *testing.T) attest.Verifier { return newVerifier(t, Config{CRLOptional: true}) }, Stride: 61}
	for _, r := range realVectors(t) {
		v := vector(r.name, r.ev, teetest.MapCollateral{}, r.now)
		v.NotYetValid, v.Expired = r.now.AddDate(-20, 0, 0), r.now.AddDate(20, 0, 0)
		s.Good = append(s.Good, v)
	}
	teetest.Run(t, s)
}

type realVector struct {
	name   string
	ev     attest.Evidence
	now    time.Time
	golden bool // ships in a Go module
}

// realVectors are reports of real processors. Those that do not ship in a Go
// module are left out where ../shared/evidence is absent.
func realVectors(t testing.TB) []realVector {
	snp := func(report []byte, c certTableOf) attest.Evidence {
		return attest.Evidence{Type: attest.TypeSNP, Report: report, Endorsements: c.encode()}
	}
	out := []realVector{{
		name:   "go-sev-guest milan v2",
		ev:     snp(testdata.AttestationBytes, certTableOf{guidVCEK: testdata.VcekBytes}),
		now:    time.Date(2022, 12, 1, 0, 0, 0, 0, time.UTC),
		golden: true,
	}}
	dir := sharedDir()
	if _, err := os.Stat(dir); err != nil {
		t.Logf("%s is absent: only the vectors of Go modules are tested", dir)
		return out
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	unhex := func(b []byte) []byte {
		b, err := hex.DecodeString(strings.Join(strings.Fields(string(b)), ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	at := func(y int, m time.Month) time.Time { return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC) }
	add := func(name string, now time.Time, report []byte, c certTableOf) {
		out = append(out, realVector{name: name, ev: snp(report, c), now: now})
	}
	add("trustee milan v2", at(2024, 1), read("snp/trustee/snp/test-report.bin"), certTableOf{guidVCEK: read("snp/trustee/snp/test-vcek.der")})
	add("trustee milan vlek v3", at(2025, 3), read("snp/trustee/snp/test-vlek-report.bin"), certTableOf{guidVLEK: read("snp/trustee/snp/test-vlek.der")})
	add("trustee turin v5", at(2026, 8), read("snp/trustee/turin/turin-report.bin"), certTableOf{guidVCEK: read("snp/trustee/turin/turin-vcek.der")})
	add("sev crate milan v2", at(2024, 1), unhex(read("snp/sev/report_milan.hex")), certTableOf{guidVCEK: read("snp/sev/vcek_milan.der")})
	add("dstack milan v3", at(2026, 8), read("snp/dstack/sev_snp_attestation.bin")[4:][:reportSize],
		certTableOf{guidVCEK: read("snp/dstack/sev_snp_vcek.pem"), guidASK: read("snp/dstack/sev_snp_ask.pem")})
	aci, _ := pem.Decode(read("azure-vtpm/confidential-sidecar-containers/uvm_host_amd_certificate.pem"))
	add("azure aci milan v2", at(2024, 1), read("azure-vtpm/confidential-sidecar-containers/snp_report.bin"), certTableOf{guidVCEK: aci.Bytes})
	vcek, _ := pem.Decode(read("azure-vtpm/trustee/az-snp-vtpm/vcek.pem"))
	add("azure hcl milan", at(2024, 1), read("azure-vtpm/trustee/az-snp-vtpm/hcl-report.bin")[32:][:reportSize], certTableOf{guidVCEK: vcek.Bytes})

	var tsm struct{ Auxblob, Outblob string }
	if err := json.Unmarshal(read("snp/services/sevsnp-ratsd/sevsnp-tsm-report.json"), &tsm); err != nil {
		t.Fatal(err)
	}
	report, err1 := base64.RawURLEncoding.DecodeString(strings.TrimRight(tsm.Outblob, "="))
	table, err2 := base64.RawURLEncoding.DecodeString(strings.TrimRight(tsm.Auxblob, "="))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	out = append(out, realVector{name: "ratsd genoa", now: at(2025, 9), ev: attest.Evidence{Type: attest.TypeSNP, Report: report, Endorsements: table}})

	for _, p := range []string{"milan_oc_release", "milan_oc_staging", "milan_rk_release", "milan_rk_staging", "genoa_oc", "turin_oc"} {
		ev := read("snp/oak/oak/" + p + "_evidence.binarypb")
		i := bytes.Index(ev, []byte{0xa0, 0x09}) // the protobuf length 1184
		add("oak "+p, at(2026, 8), ev[i+2:][:reportSize], certTableOf{guidVCEK: findLeaf(t, read("snp/oak/oak/"+p+"_endorsements.binarypb"))})
	}
	return out
}

// findLeaf looks for a VCEK in a protobuf message.
func findLeaf(t testing.TB, b []byte) []byte {
	for i := range len(b) - 8 {
		if b[i] == 0x30 && b[i+1] == 0x82 {
			if n := 4 + int(b[i+2])<<8 + int(b[i+3]); i+n <= len(b) {
				if c, err := x509.ParseCertificate(b[i : i+n]); err == nil && c.Subject.CommonName == "SEV-VCEK" {
					return b[i : i+n]
				}
			}
		}
	}
	t.Fatal("no VCEK in the message")
	return nil
}

func sharedDir() string {
	dir, err := filepath.Abs(".")
	if err != nil {
		return ""
	}
	for dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "../shared/evidence")
		}
		dir = filepath.Dir(dir)
	}
	return ""
}

// TestReal: each real report verifies up to AMD's root, needs a CRL by
// default, and reads the same as in go-sev-guest.
func TestReal(t *testing.T) {
	for _, r := range realVectors(t) {
		t.Run(r.name, func(t *testing.T) {
			none := teetest.MapCollateral{}
			b := attest.BindExact(r.ev.Report[0x50:0x90])
			_, err := newVerifier(t, Config{}).Verify(t.Context(), r.ev, b, none, r.now)
			if attest.ReasonOf(err) != attest.ReasonCollateralMissing {
				t.Errorf("without a CRL: %v, want collateral_missing", err)
			}
			cl, err := newVerifier(t, Config{CRLOptional: true}).Verify(t.Context(), r.ev, b, none, r.now)
			if err != nil {
				t.Fatal(err)
			}
			if cl.Simulated || !cl.Bound || !cl.BoundToCPUTEE || cl.TCB.Status != attest.TCBUnknown {
				t.Errorf("claims %+v", cl)
			}
			if cl.Collateral.State != attest.CollateralExpired || outcome(cl, checkCRL) != attest.Skipped || outcome(cl, checkRevocation) != attest.Skipped {
				t.Errorf("an appraisal without a CRL says %q, %v", cl.Collateral.State, cl.Checks)
			}
			compareWithOracle(t, r.ev.Report, cl)
			if r.golden {
				golden(t, strings.ReplaceAll(r.name, " ", "-"), cl)
			}
			t.Logf("%s, debuggable %v, tcb %+v", cl.HardwareModel, cl.Debuggable, cl.SNP.(*Claims).ReportedTCB)
		})
	}
}

// TestRealDebuggable: go-sev-guest's report has the debug bit set.
func TestRealDebuggable(t *testing.T) {
	r := realVectors(t)[0]
	cl, err := newVerifier(t, Config{CRLOptional: true}).Verify(t.Context(), r.ev, attest.Unbound(), nil, r.now)
	if err != nil {
		t.Fatal(err)
	}
	if !cl.Debuggable || !cl.SNP.(*Claims).Policy.Debug {
		t.Error("a guest whose policy allows debugging is not debuggable in the claims")
	}
}

// compareWithOracle: an independent parser reads the same fields. It refuses
// unknown platform bits, which we surface, so those are cleared for it.
func compareWithOracle(t *testing.T, report []byte, cl attest.Claims) {
	t.Helper()
	p, err := abi.ReportToProto(report)
	if err != nil {
		t.Fatal(err)
	}
	c := cl.SNP.(*Claims)
	h := hex.EncodeToString
	want := map[string]any{
		"version": p.Version, "guest_svn": p.GuestSvn, "vmpl": p.Vmpl, "report_data": h(p.ReportData),
		"measurement": h(p.Measurement), "host_data": h(p.HostData), "id_key": h(p.IdKeyDigest), "author_key": h(p.AuthorKeyDigest),
		"family": h(p.FamilyId), "image": h(p.ImageId), "report_id": h(p.ReportId), "report_id_ma": h(p.ReportIdMa),
		"policy": decimal(p.Policy), "platform": decimal(p.PlatformInfo),
		"current":   [3]uint32{p.CurrentMajor, p.CurrentMinor, p.CurrentBuild},
		"committed": [3]uint32{p.CommittedMajor, p.CommittedMinor, p.CommittedBuild},
	}
	got := map[string]any{
		"version": c.Version, "guest_svn": c.GuestSVN, "vmpl": c.VMPL, "report_data": c.ReportData,
		"measurement": c.Measurement, "host_data": c.HostData, "id_key": c.IDKeyDigest, "author_key": c.AuthorKeyDigest,
		"family": c.FamilyID, "image": c.ImageID, "report_id": c.ReportID, "report_id_ma": c.ReportIDMA,
		"policy": c.Policy.Raw, "platform": c.PlatformInfo.Raw,
		"current":   [3]uint32{uint32(c.CurrentMajor), uint32(c.CurrentMinor), uint32(c.CurrentBuild)},
		"committed": [3]uint32{uint32(c.CommittedMajor), uint32(c.CommittedMinor), uint32(c.CommittedBuild)},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("go-sev-guest reads otherwise (-theirs +ours):\n%s", d)
	}
	pol, err := abi.ParseSnpPolicy(p.Policy)
	if err != nil {
		t.Fatal(err)
	}
	q := c.Policy
	ours := abi.SnpPolicy{ABIMinor: q.ABIMinor, ABIMajor: q.ABIMajor, SMT: q.SMT, MigrateMA: q.MigrateMA, Debug: q.Debug,
		SingleSocket: q.SingleSocket, CXLAllowed: q.CXLAllow, MemAES256XTS: q.MemAES256XTS, RAPLDis: q.RAPLDis,
		CipherTextHidingDRAM: q.CiphertextHidingDRAM, PageSwapDisable: q.PageSwapDisable}
	if d := cmp.Diff(pol, ours); d != "" {
		t.Errorf("go-sev-guest reads the policy otherwise (-theirs +ours):\n%s", d)
	}
}

func golden(t *testing.T, name string, cl attest.Claims) {
	t.Helper()
	got, err := json.MarshalIndent(struct {
		Claims attest.Claims  `json:"claims"`
		Checks []attest.Check `json:"checks"`
	}{cl, cl.Checks}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".golden.json")
	if *update {
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
}

func outcome(cl attest.Claims, check string) attest.Outcome {
	for _, c := range cl.Checks {
		if c.Name == check {
			return c.Outcome
		}
	}
	return "absent"
}

// TestMigratable: POLICY.MIGRATE_MA lets a migration agent be bound to the guest, which may take its memory elsewhere.
func TestMigratable(t *testing.T) {
	l := newLab(t)
	for policy, want := range map[uint64]bool{0x30000: false, 0x30000 | 1<<18: true} {
		c, err := l.verify(t, evidence(t, l.device(t, teesim.DeviceOptions{}), teesim.ReportOptions{Policy: policy}))
		if err != nil || c.Migratable != want || c.Debuggable {
			t.Errorf("policy %#x: migratable %v, debuggable %v, %v", policy, c.Migratable, c.Debuggable, err)
		}
	}
}

// TestCRLGoesBack: a list that AMD has replaced does not come back, though it is signed and its dates are good.
func TestCRLGoesBack(t *testing.T) {
	l := newLab(t)
	ev := evidence(t, l.device(t, teesim.DeviceOptions{}), teesim.ReportOptions{})
	old, err := l.root.Collateral(simNow.AddDate(0, 0, -29))
	if err != nil {
		t.Fatal(err)
	}
	revoking, err := l.root.Collateral(simNow, l.root.ASK("Milan").SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	at := func(m map[attest.CollateralRef]attest.CollateralItem) attest.Collateral {
		c := teetest.MapCollateral{}
		for ref, it := range m {
			it.FetchedAt = simNow
			c[ref] = it
		}
		return c
	}
	verify := func(c attest.Collateral) (attest.Claims, error) {
		return l.verifier.Verify(t.Context(), ev, attest.Unbound(), c, simNow)
	}
	cl, err := verify(at(old))
	if age := time.Duration(cl.Collateral.AgeSeconds) * time.Second; err != nil || age < 29*24*time.Hour {
		t.Errorf("before: the list is %s old, %v", age, err)
	}
	cl, err = verify(at(revoking))
	wantFailure(t, cl, err, checkRevocation, attest.ReasonRevoked)
	cl, err = verify(at(old))
	wantFailure(t, cl, err, checkCRL, attest.ReasonCollateralExpired)
	cl, err = verify(at(revoking))
	wantFailure(t, cl, err, checkRevocation, attest.ReasonRevoked)
}

// TestVLEKChip: a VLEK is one key of a provider's for all its chips. What the report calls the chip can be revoked, and is no chip id.
func TestVLEKChip(t *testing.T) {
	l := newLab(t)
	chip := bytes.Repeat([]byte{0xee}, 64)
	for name, tc := range map[string]struct {
		chip []byte
		want []string
	}{"named": {chip, []string{hex.EncodeToString(chip)}}, "masked": {make([]byte, 64), nil}} {
		c, err := l.verify(t, evidence(t, l.device(t, teesim.DeviceOptions{VLEK: true}), teesim.ReportOptions{Patch: func(b []byte) { copy(b[0x1a0:], tc.chip) }}))
		if err != nil || c.ChipID != "" || !slices.Equal(c.Identities, tc.want) || outcome(c, checkChipID) != attest.Skipped {
			t.Errorf("%s: chip %.8q, identities %.8q, %v", name, c.ChipID, c.Identities, err)
		}
	}
	if c, err := l.verify(t, evidence(t, l.device(t, teesim.DeviceOptions{}), teesim.ReportOptions{})); err != nil || c.ChipID == "" || c.Identities != nil {
		t.Errorf("VCEK: chip %.8q, identities %.8q, %v", c.ChipID, c.Identities, err)
	}
}
