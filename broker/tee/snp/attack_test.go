package snp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/trust"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
)

// wantFailure checks which check refused, and why.
func wantFailure(t *testing.T, cl attest.Claims, err error, check string, reason attest.Reason) {
	t.Helper()
	e, ok := err.(*attest.Error)
	if !ok {
		t.Fatalf("got %v, want a failure of %s", err, check)
	}
	if e.Check != check || e.Reason != reason {
		t.Errorf("got %v; want check %s, reason %s", err, check, reason)
	}
	if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Name != check || cl.Checks[n-1].Outcome != attest.Failed {
		t.Errorf("the last check listed is not the failed one: %+v", cl.Checks)
	}
}

// TestReportFields: each report is properly signed by a genuine (simulated)
// chip; what it says is what must stop it.
func TestReportFields(t *testing.T) {
	le := binary.LittleEndian
	set := func(off int, v ...byte) func([]byte) { return func(b []byte) { copy(b[off:], v) } }
	l := newLab(t)
	milan := l.device(t, teesim.DeviceOptions{})
	turin := l.device(t, teesim.DeviceOptions{Product: "Turin"})
	for _, c := range []struct {
		name   string
		device *teesim.Device
		opts   teesim.ReportOptions
		patch  func([]byte)
		check  string // "" if it must pass
		reason attest.Reason
	}{
		{"version 0", milan, teesim.ReportOptions{}, func(b []byte) { le.PutUint32(b, 0) }, checkVersion, attest.ReasonUnsupported},
		{"version 1", milan, teesim.ReportOptions{Version: 1}, nil, checkVersion, attest.ReasonUnsupported},
		{"version 6", milan, teesim.ReportOptions{Version: 6}, nil, checkVersion, attest.ReasonUnsupported},
		{"algorithm 0", milan, teesim.ReportOptions{}, set(0x34, 0), checkSignatureAlgo, attest.ReasonUnsupported},
		{"algorithm 2", milan, teesim.ReportOptions{}, set(0x34, 2), checkSignatureAlgo, attest.ReasonUnsupported},
		{"reserved after flags", milan, teesim.ReportOptions{}, set(0x4f, 1), checkReserved, attest.ReasonMalformed},
		{"reserved flags", milan, teesim.ReportOptions{}, set(0x48, 1<<5), checkReserved, attest.ReasonMalformed},
		{"CPUID in version 2", milan, teesim.ReportOptions{Version: 2}, set(0x188, 0x19), checkReserved, attest.ReasonMalformed},
		{"reserved after CPUID", milan, teesim.ReportOptions{}, set(0x18b, 1), checkReserved, attest.ReasonMalformed},
		{"reserved after version", milan, teesim.ReportOptions{}, set(0x1eb, 1), checkReserved, attest.ReasonMalformed},
		{"reserved after committed version", milan, teesim.ReportOptions{}, set(0x1ef, 1), checkReserved, attest.ReasonMalformed},
		{"mitigation vectors in version 3", milan, teesim.ReportOptions{}, set(0x1f8, 1), checkReserved, attest.ReasonMalformed},
		{"mitigation vectors in version 5", milan, teesim.ReportOptions{Version: 5}, set(0x1f8, 1), "", ""},
		{"reserved before signature", milan, teesim.ReportOptions{Version: 5}, set(0x29f, 1), checkReserved, attest.ReasonMalformed},
		{"policy bit 17", milan, teesim.ReportOptions{Policy: 0x10000}, nil, checkReserved, attest.ReasonMalformed},
		{"unknown policy bits", milan, teesim.ReportOptions{Policy: 0x30000 | 1<<40}, nil, "", ""},
		{"unknown platform bits", milan, teesim.ReportOptions{PlatformInfo: 1<<6 | 1<<50}, nil, "", ""},
		{"VMPL 4", milan, teesim.ReportOptions{VMPL: 4}, nil, checkReserved, attest.ReasonMalformed},
		{"VMPL 3", milan, teesim.ReportOptions{VMPL: 3}, nil, "", ""},
		{"host asks", milan, teesim.ReportOptions{VMPL: vmplHost}, nil, checkReportData, attest.ReasonBinding},
		{"other report data", milan, teesim.ReportOptions{}, set(0x50, 0xee), checkReportData, attest.ReasonBinding},
		{"unsigned", milan, teesim.ReportOptions{}, set(0x48, 7<<2), checkSigningKey, attest.ReasonSignature},
		{"unknown key", milan, teesim.ReportOptions{}, set(0x48, 2<<2), checkSigningKey, attest.ReasonUnsupported},
		{"claims a VLEK, has a VCEK", milan, teesim.ReportOptions{}, set(0x48, 1<<2), checkLeaf, attest.ReasonCollateralMissing},
		{"reported above committed", milan, teesim.ReportOptions{}, set(0x1e7, 1), checkTCBOrder, attest.ReasonMalformed},
		{"committed above current", milan, teesim.ReportOptions{}, set(0x3f, 1), checkTCBOrder, attest.ReasonMalformed},
		{"current above", milan, teesim.ReportOptions{}, set(0x3f, 255), "", ""},
		{"product unknown", milan, teesim.ReportOptions{}, set(0x188, 0x17), checkProduct, attest.ReasonUnsupported},
		{"product after Turin", turin, teesim.ReportOptions{}, set(0x189, 0x50), checkProduct, attest.ReasonUnsupported},
		{"Genoa says the report, Milan the key", milan, teesim.ReportOptions{}, set(0x189, 0x11), checkKDSExtensions, attest.ReasonMismatch},
		{"Turin in version 2", turin, teesim.ReportOptions{Version: 2}, nil, checkKDSExtensions, attest.ReasonMismatch},
		{"TCB older than the key's", milan, teesim.ReportOptions{}, set(0x187, 1), checkReportedTCB, attest.ReasonMismatch},
		{"TCB newer than the key's", milan, teesim.ReportOptions{}, func(b []byte) {
			for _, off := range []int{0x38, 0x180, 0x1e0} {
				b[off+7]++
			}
		}, checkReportedTCB, attest.ReasonMismatch},
		{"FMC of Turin", turin, teesim.ReportOptions{}, set(0x180, 0), checkReportedTCB, attest.ReasonMismatch},
		{"another chip", milan, teesim.ReportOptions{}, func(b []byte) { b[0x1df] ^= 1 }, checkChipID, attest.ReasonMismatch},
		{"another Turin", turin, teesim.ReportOptions{}, func(b []byte) { b[0x1a0] ^= 1 }, checkChipID, attest.ReasonMismatch},
		{"bytes after Turin's chip id", turin, teesim.ReportOptions{}, set(0x1a8, 1), checkChipID, attest.ReasonMismatch},
		{"masked chip id", milan, teesim.ReportOptions{MaskChipID: true}, nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Patch = c.patch
			cl, err := l.verify(t, evidence(t, c.device, c.opts))
			if c.check == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantFailure(t, cl, err, c.check, c.reason)
		})
	}
}

// TestUnknownBits: what a newer firmware adds is seen by policies, not dropped.
func TestUnknownBits(t *testing.T) {
	l := newLab(t)
	cl, err := l.verify(t, l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{Policy: 0x30000 | 1<<40, PlatformInfo: 1<<6 | 1}))
	if err != nil {
		t.Fatal(err)
	}
	c := cl.SNP.(*Claims)
	if c.Policy.UnknownBits != decimal(1<<40) || c.PlatformInfo.UnknownBits != "64" || !c.PlatformInfo.SMTEn {
		t.Errorf("policy %+v, platform %+v", c.Policy, c.PlatformInfo)
	}
}

// TestSimulatedClaims: a test root is never mistaken for AMD, a masked chip
// is still named by its VCEK, and VMPL and the debug bit are for the policy to see.
func TestSimulatedClaims(t *testing.T) {
	l := newLab(t)
	d := l.device(t, teesim.DeviceOptions{})
	cl, err := l.verify(t, evidence(t, d, teesim.ReportOptions{MaskChipID: true, VMPL: 2, Policy: 0x30000 | 1<<policyDebug, Measurement: [48]byte{0xab}, HostData: [32]byte{0xcd}}))
	if err != nil {
		t.Fatal(err)
	}
	c := cl.SNP.(*Claims)
	if !cl.Simulated || cl.ChipID != c.HWID || c.ChipID != "" || !c.ChipIDMasked || c.VMPL != 2 || !cl.Debuggable || c.HWID == "" || c.SigningKey != "VCEK" {
		t.Errorf("claims %+v, %+v", cl, c)
	}
	if !strings.HasPrefix(cl.Measurements["measurement"], "ab00") || !strings.HasPrefix(cl.HostData, "cd00") {
		t.Errorf("measurement %v, host data %s", cl.Measurements, cl.HostData)
	}
	if cl.Collateral.State != attest.CollateralFresh || outcome(cl, checkChipID) != attest.Skipped {
		t.Errorf("collateral %+v, checks %v", cl.Collateral, cl.Checks)
	}
	// The default trusts no test root.
	_, err = newVerifier(t, Config{}).Verify(t.Context(), evidence(t, d, teesim.ReportOptions{}), attest.Unbound(), l.collateral, simNow)
	if attest.ReasonOf(err) != attest.ReasonChain {
		t.Errorf("a test root under the zero Config: %v", err)
	}
	// A root of Genoa says nothing about Milan.
	genoaOnly := newVerifier(t, Config{TestRoots: []TestRoot{{Product: "Genoa", ARK: l.root.ARK()}}})
	_, err = genoaOnly.Verify(t.Context(), evidence(t, d, teesim.ReportOptions{}), attest.Unbound(), l.collateral, simNow)
	if attest.ReasonOf(err) != attest.ReasonChain {
		t.Errorf("a Milan below a root for Genoa: %v", err)
	}
}

// TestTwoTestRoots: roots of one name do not hide each other.
func TestTwoTestRoots(t *testing.T) {
	a, b := newLab(t), newLab(t)
	v := newVerifier(t, Config{TestRoots: []TestRoot{{ARK: a.root.ARK()}, {ARK: b.root.ARK()}}})
	for _, l := range []lab{a, b} {
		if _, err := v.Verify(t.Context(), l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{}), attest.Unbound(), l.collateral, simNow); err != nil {
			t.Error(err)
		}
	}
	// Nor does one root's list serve for the other.
	cl, err := v.Verify(t.Context(), a.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{}), attest.Unbound(), b.collateral, simNow)
	wantFailure(t, cl, err, checkCRL, attest.ReasonCollateralInvalid)
}

func TestNewRefusesRoots(t *testing.T) {
	for _, tr := range []TestRoot{{}, {Product: "Rome", ARK: newLab(t).root.ARK()}} {
		if _, err := New(Config{TestRoots: []TestRoot{tr}}); err == nil {
			t.Errorf("test root %q was accepted", tr.Product)
		}
	}
}

// TestPins: the pinned roots are AMD's, by names and by the peers' copies; and
// a changed bundle is refused.
func TestPins(t *testing.T) {
	v := newVerifier(t, Config{})
	for l, as := range v.anchors {
		if len(as) != 1 || as[0].simulated || as[0].cert.Subject.CommonName != "ARK-"+l.name() {
			t.Errorf("%s: anchors %+v", l, as)
		}
		if err := as[0].cert.CheckSignatureFrom(as[0].cert); err != nil {
			t.Errorf("%s: %v", l, err)
		}
		for _, k := range []signingKey{keyVCEK, keyVLEK} {
			if err := v.issuers[issuerKey{l, k}].CheckSignatureFrom(as[0].cert); err != nil {
				t.Errorf("%s %s: %v", l, k, err)
			}
		}
	}
	if len(v.anchors) != 3 || len(v.issuers) != 6 {
		t.Errorf("%d roots, %d issuers", len(v.anchors), len(v.issuers))
	}
	for _, bundle := range [][]byte{nil, {}, []byte("x"), trust.AskArkGenoaVcekBytes, newLab(t).root.RootPEM(),
		append(pemOf(v.issuers[issuerKey{milan, keyVCEK}]), newLab(t).root.RootPEM()...)} {
		fresh := &Verifier{anchors: map[line][]anchor{}, issuers: map[issuerKey]*x509.Certificate{}}
		r := amdRoots()[0]
		r.vcek = bundle
		if err := fresh.addAMD(r); err == nil {
			t.Errorf("a bundle of %d bytes passes for Milan's", len(bundle))
		}
	}
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// ca makes a certificate authority or leaf with given subject, RSA-free.
func ca(t *testing.T, subject pkix.Name, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(0x10000), Subject: subject, NotBefore: simNow.AddDate(-1, 0, 0), NotAfter: simNow.AddDate(9, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SignatureAlgorithm: x509.ECDSAWithSHA384}
	if parent == nil {
		parent, key = tmpl, own
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, own.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, own
}

// TestForgedRoot: an attacker's ARK and ASK that copy every name of AMD's
// (accepted by go-sev-guest up to v0.14.1) lead nowhere.
func TestForgedRoot(t *testing.T) {
	amd := newVerifier(t, Config{})
	real := amd.anchors[milan][0].cert
	ark, arkKey := ca(t, real.Subject, nil, nil)
	ask, _ := ca(t, amd.issuers[issuerKey{milan, keyVCEK}].Subject, ark, arkKey)
	l := newLab(t)
	d := l.device(t, teesim.DeviceOptions{})
	leaf := d.Leaf()
	ev := evidence(t, d, teesim.ReportOptions{})
	for name, table := range map[string]certTableOf{
		"forged ARK and ASK":   {guidVCEK: leaf, guidASK: ask.Raw, guidARK: ark.Raw},
		"forged ASK, real ARK": {guidVCEK: leaf, guidASK: ask.Raw, guidARK: real.Raw},
		"forged ASK":           {guidVCEK: leaf, guidASK: ask.Raw},
		"forged ARK, real ASK": {guidVCEK: leaf, guidASK: amd.issuers[issuerKey{milan, keyVCEK}].Raw, guidARK: ark.Raw},
		"no issuer":            {guidVCEK: leaf},
		"the leaf its own":     {guidVCEK: leaf, guidASK: leaf, guidARK: real.Raw},
	} {
		ev.Endorsements = table.encode()
		cl, err := amd.Verify(t.Context(), ev, attest.BindExact(reportData[:]), l.collateral, simNow)
		t.Run(name, func(t *testing.T) { wantFailure(t, cl, err, checkChain, attest.ReasonChain) })
	}
	// The same with a chain that has been memoised as good, and a foreign root beside it.
	good := evidence(t, d, teesim.ReportOptions{})
	if _, err := l.verify(t, good); err != nil {
		t.Fatal(err)
	}
	good.Endorsements = certTableOf{guidVCEK: leaf, guidASK: l.root.ASK("Milan").Raw, guidARK: ark.Raw}.encode()
	cl, err := l.verify(t, good)
	wantFailure(t, cl, err, checkChain, attest.ReasonChain)
}

// TestForgedVCEKReal: the peer's VCEKs with changed contents parse in both
// encodings of HWID and chain nowhere; a real chain's signature covers every byte.
func TestForgedVCEKReal(t *testing.T) {
	v := newVerifier(t, Config{CRLOptional: true})
	r := realVectors(t)[0]
	leaf := slices.Clone(mustTable(t, r.ev.Endorsements).vcek)
	leaf[len(leaf)-1] ^= 1
	ev := r.ev
	ev.Endorsements = certTableOf{guidVCEK: leaf}.encode()
	cl, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, r.now)
	wantFailure(t, cl, err, checkChain, attest.ReasonChain)
}

// TestSharedCertificates: certificates without a report. The two made-up VCEKs
// parse in both encodings of HWID, and chain nowhere; the Turin one is genuine.
func TestSharedCertificates(t *testing.T) {
	dir := sharedDir()
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("%s is absent", dir)
	}
	v := newVerifier(t, Config{})
	for file, ok := range map[string]bool{
		"snp/trustee/snp/test-vcek-invalid-legacy.der": false,
		"snp/trustee/snp/test-vcek-invalid-new.der":    false,
		"snp/sev/vcek_turin.der":                       true,
		"snp/trustee/snp/sev-crate/vcek_turin.der":     true,
	} {
		der, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		lf, err := parseLeaf(der, keyVCEK)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		_, err = v.build(t.Context(), lf, certTable{}, nil, &appraisal{})
		if (err == nil) != ok || (!ok && attest.ReasonOf(err) != attest.ReasonChain) {
			t.Errorf("%s: %v", file, err)
		}
	}
	// The peer's pinned roots are ours.
	for _, l := range []line{milan, genoa, turin} {
		b, err := os.ReadFile(filepath.Join(dir, "snp/trustee/snp", string(l)+"_ask_ark_asvk.pem"))
		if err != nil {
			t.Fatal(err)
		}
		certs, err := parsePEM(b)
		if err != nil || len(certs) != 3 {
			t.Fatal(len(certs), err)
		}
		if !certs[1].Equal(v.anchors[l][0].cert) {
			t.Errorf("%s: the peer pins another root", l)
		}
	}
}

// TestSharedCopies: the same reports and certificates in other files, as their
// sources wrap them. What is in realVectors has its outcome in TestReal.
func TestSharedCopies(t *testing.T) {
	dir := sharedDir()
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("%s is absent", dir)
	}
	read := func(file string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	real := map[string]attest.Evidence{}
	for _, r := range realVectors(t) {
		real[r.name] = r.ev
	}
	unhex := func(b []byte) []byte {
		b, err := hex.DecodeString(strings.Join(strings.Fields(string(b)), ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	unjson := func(b []byte, dst any) {
		if err := json.Unmarshal(b, dst); err != nil {
			t.Fatal(err)
		}
	}
	var dstack struct{ Attestation string }
	unjson(read("tdx/dstack/sev-snp-attestation.json"), &dstack)
	// ratsd's token is unsigned: JSON, in base64, in JSON.
	var token, cmw struct {
		CMW    []byte   `json:"cmw"`
		Report []string `json:"tsm-report"`
		Out    string   `json:"outblob"`
	}
	unjson(read("snp/services/sevsnp-ratsd/sevsnp-ratsd-token"), &token)
	unjson(token.CMW, &cmw)
	inner, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(cmw.Report[1], "="))
	if err != nil {
		t.Fatal(err)
	}
	unjson(inner, &cmw)
	ratsd, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(cmw.Out, "="))
	if err != nil {
		t.Fatal(err)
	}
	for file, tc := range map[string]struct {
		b    []byte
		name string
	}{
		"snp/go-sev-guest/attestation.bin":                 {read("snp/go-sev-guest/attestation.bin"), "go-sev-guest milan v2"},
		"snp/trustee/snp/sev-crate/report_milan.hex":       {unhex(read("snp/trustee/snp/sev-crate/report_milan.hex")), "sev crate milan v2"},
		"tdx/dstack/sev-snp-attestation.json":              {unhex([]byte(dstack.Attestation)), "dstack milan v3"},
		"snp/services/sevsnp-ratsd/sevsnp-tsm-report.cbor": {read("snp/services/sevsnp-ratsd/sevsnp-tsm-report.cbor"), "ratsd genoa"},
		"snp/services/sevsnp-ratsd/sevsnp-ratsd-token":     {ratsd, "ratsd genoa"},
	} {
		if !bytes.Contains(tc.b, real[tc.name].Report) {
			t.Errorf("%s has not the report of %s", file, tc.name)
		}
	}
	for file, name := range map[string]string{
		"snp/go-sev-guest/vcek.testcer":            "go-sev-guest milan v2",
		"snp/trustee/snp/sev-crate/vcek_milan.der": "sev crate milan v2",
	} {
		if !bytes.Contains(real[name].Endorsements, read(file)) {
			t.Errorf("%s is not the certificate of %s", file, name)
		}
	}
	// AMD's chains as others keep them: issuer, then root.
	v := newVerifier(t, Config{})
	for file, l := range map[string]line{
		"snp/go-sev-guest/milan.testcer":             milan,
		"snp/go-sev-guest/milanvlek.testcer":         milan,
		"snp/sev/cert_chain_milan":                   milan,
		"snp/sev/cert_chain_turin":                   turin,
		"snp/trustee/snp/sev-crate/cert_chain_milan": milan,
		"snp/trustee/snp/sev-crate/cert_chain_turin": turin,
		"tdx/verifier/genoa_cert_chain.pem":          genoa,
	} {
		certs, err := parsePEM(read(file))
		if err != nil || len(certs) != 2 {
			t.Errorf("%s: %d certificates, %v", file, len(certs), err)
			continue
		}
		if !certs[1].Equal(v.anchors[l][0].cert) || certs[0].CheckSignatureFrom(certs[1]) != nil {
			t.Errorf("%s is not a chain under the root of %s", file, l)
		}
	}
}

func mustTable(t testing.TB, b []byte) certTable {
	t.Helper()
	tab, err := parseCertTable(b)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// TestIssuerKind: an ASK must not vouch for a VLEK, nor an ASVK for a chip.
func TestIssuerKind(t *testing.T) {
	l := newLab(t)
	d := l.device(t, teesim.DeviceOptions{})
	ev := evidence(t, d, teesim.ReportOptions{})
	ev.Endorsements = certTableOf{guidVCEK: d.Leaf(), guidASK: l.root.ASVK("Milan").Raw}.encode()
	cl, err := l.verify(t, ev)
	wantFailure(t, cl, err, checkChain, attest.ReasonChain)

	// A VLEK's certificate in the VCEK's place, with a report that says VCEK.
	vlek := l.device(t, teesim.DeviceOptions{VLEK: true})
	ev = evidence(t, vlek, teesim.ReportOptions{Patch: func(b []byte) { b[0x48] = 0 }})
	ev.Endorsements = certTableOf{guidVCEK: vlek.Leaf(), guidASK: l.root.ASVK("Milan").Raw}.encode()
	cl, err = l.verify(t, ev)
	wantFailure(t, cl, err, checkLeaf, attest.ReasonMismatch)
}

// TestRevoked: go-sev-guest looks up the ASK alone; all of these count here,
// also when the chain was memoised before the revocation.
func TestRevoked(t *testing.T) {
	l := newLab(t)
	vcek, vlek := l.device(t, teesim.DeviceOptions{}), l.device(t, teesim.DeviceOptions{VLEK: true})
	serial := func(der []byte) *big.Int {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c.SerialNumber
	}
	for name, c := range map[string]struct {
		d      *teesim.Device
		serial *big.Int
	}{
		"VCEK": {vcek, serial(vcek.Leaf())},
		"ASK":  {vcek, l.root.ASK("Milan").SerialNumber},
		"ARK":  {vcek, l.root.ARK().SerialNumber},
		"VLEK": {vlek, serial(vlek.Leaf())},
		"ASVK": {vlek, l.root.ASVK("Milan").SerialNumber},
	} {
		t.Run(name, func(t *testing.T) {
			ev := evidence(t, c.d, teesim.ReportOptions{})
			if _, err := l.verify(t, ev); err != nil {
				t.Fatalf("before the revocation: %v", err)
			}
			revoking, err := l.root.Collateral(simNow, big.NewInt(77), c.serial)
			if err != nil {
				t.Fatal(err)
			}
			for _, optional := range []bool{false, true} {
				l.verifier.crlOptional = optional
				cl, err := l.verifier.Verify(t.Context(), ev, attest.BindExact(reportData[:]), teetest.MapCollateral(revoking), simNow)
				wantFailure(t, cl, err, checkRevocation, attest.ReasonRevoked)
			}
			l.verifier.crlOptional = false
		})
	}
	other, err := l.root.Collateral(simNow, l.root.ASK("Genoa").SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.verifier.Verify(t.Context(), evidence(t, vcek, teesim.ReportOptions{}), attest.Unbound(), teetest.MapCollateral(other), simNow); err != nil {
		t.Errorf("another's revocation: %v", err)
	}
}

// TestCRL: a list that is not the root's, or not current, is no list.
func TestCRL(t *testing.T) {
	l := newLab(t)
	ev := l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{})
	ark := l.root.ARK()
	mallory, malloryKey := ca(t, ark.Subject, nil, nil) // the same name, another key
	sign := func(m x509.RevocationList) []byte {
		m.Number = big.NewInt(1)
		der, err := x509.CreateRevocationList(rand.Reader, &m, mallory, malloryKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	genuine, err := l.root.CRL(simNow)
	if err != nil {
		t.Fatal(err)
	}
	ahead, err := l.root.CRL(simNow.AddDate(0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	stale, err := l.root.CRL(simNow.AddDate(0, 0, -40))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := newLab(t).root.CRL(simNow)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := slices.Clone(genuine)
	clear(unsigned[len(unsigned)-90:])
	for name, c := range map[string]struct {
		crl    []byte
		reason attest.Reason
	}{
		"unsigned":          {unsigned, attest.ReasonCollateralInvalid},
		"signed by mallory": {sign(x509.RevocationList{ThisUpdate: simNow.Add(-1), NextUpdate: simNow.Add(time.Hour)}), attest.ReasonCollateralInvalid},
		"of another root":   {foreign, attest.ReasonCollateralInvalid},
		"from the future":   {ahead, attest.ReasonCollateralInvalid},
		"past nextUpdate":   {stale, attest.ReasonCollateralExpired},
		"empty":             {nil, attest.ReasonCollateralInvalid},
		"PEM":               {pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: genuine}), attest.ReasonCollateralInvalid},
		"trailing bytes":    {append(slices.Clone(genuine), 0), attest.ReasonCollateralInvalid},
		"huge":              {make([]byte, maxCRLSize+1), attest.ReasonCollateralInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			m := teetest.MapCollateral{{Kind: attest.SNPCRL, Key: "milan/vcek"}: {Data: c.crl, FetchedAt: simNow}}
			for range 2 { // the second time memoised
				cl, err := l.verifier.Verify(t.Context(), ev, attest.BindExact(reportData[:]), m, simNow)
				wantFailure(t, cl, err, checkCRL, c.reason)
			}
			if c.reason == attest.ReasonCollateralInvalid {
				lax := newVerifier(t, Config{TestRoots: []TestRoot{{ARK: ark}}, CRLOptional: true})
				if _, err := lax.Verify(t.Context(), ev, attest.Unbound(), m, simNow); err == nil {
					t.Error("CRLOptional accepts an invalid CRL")
				}
			}
		})
	}
	// nextUpdate is looked at although the list is memoised.
	if _, err := l.verify(t, ev); err != nil {
		t.Fatal(err)
	}
	cl, err := l.verifier.Verify(t.Context(), ev, attest.Unbound(), l.collateral, simNow.AddDate(0, 0, 30))
	wantFailure(t, cl, err, checkCRL, attest.ReasonCollateralExpired)
	// Staleness is the source's word and reaches the claims.
	it := l.collateral[attest.CollateralRef{Kind: attest.SNPCRL, Key: "milan/vcek"}]
	it.Stale, it.FetchedAt = true, simNow.Add(-time.Minute)
	good, err := l.verifier.Verify(t.Context(), ev, attest.Unbound(), teetest.MapCollateral{{Kind: attest.SNPCRL, Key: "milan/vcek"}: it}, simNow)
	if err != nil || good.Collateral != (attest.CollateralState{State: attest.CollateralStale, AgeSeconds: 3600}) {
		t.Errorf("collateral %+v, %v", good.Collateral, err)
	}
}

// TestOldCRLStillRevokes: CRLOptional forgives the age of a list, not what it says.
func TestOldCRLStillRevokes(t *testing.T) {
	l := newLab(t)
	lax := newVerifier(t, Config{TestRoots: []TestRoot{{ARK: l.root.ARK()}}, CRLOptional: true})
	ev := l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{})
	later := simNow.AddDate(0, 2, 0)
	cl, err := lax.Verify(t.Context(), ev, attest.Unbound(), l.collateral, later)
	if err != nil || cl.Collateral.State != attest.CollateralExpired || outcome(cl, checkCRL) != attest.Skipped || outcome(cl, checkRevocation) != attest.Passed {
		t.Errorf("%v, %v, %v", err, cl.Collateral, cl.Checks)
	}
	revoking, err := l.root.Collateral(simNow, l.root.ASK("Milan").SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	cl, err = lax.Verify(t.Context(), ev, attest.Unbound(), teetest.MapCollateral(revoking), later)
	wantFailure(t, cl, err, checkRevocation, attest.ReasonRevoked)
}

// TestCRLExtensions: a partial list is not taken for the whole one.
func TestCRLExtensions(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := ca(t, pkix.Name{CommonName: "r"}, nil, nil)
	root.PublicKey, root.SubjectKeyId = key.Public(), []byte{1}
	point := []byte{0xa0, 0x06, 0xa0, 0x04, 0x86, 0x02, 'u', 'r'} // [0] distributionPoint
	for name, c := range map[string]struct {
		ext pkix.Extension
		ok  bool
	}{
		"none critical":       {pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}, true},
		"delta":               {pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}, false},
		"point":               {pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: append([]byte{0x30, 8}, point...)}, true},
		"only CAs":            {pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: []byte{0x30, 3, 0x82, 1, 0xff}}, true},
		"only users":          {pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: []byte{0x30, 3, 0x81, 1, 0xff}}, false},
		"only some reasons":   {pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: []byte{0x30, 4, 0x83, 2, 6, 0x40}}, false},
		"indirect":            {pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: []byte{0x30, 3, 0x84, 1, 0xff}}, false},
		"malformed point":     {pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: []byte{0x30, 9}}, false},
		"not even a sequence": {pkix.Extension{Id: oidIssuingDistributionPoint, Critical: true, Value: []byte{5, 0}}, false},
	} {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: simNow,
			NextUpdate: simNow.Add(time.Hour), ExtraExtensions: []pkix.Extension{c.ext}}, root, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseCRL(der, anchor{cert: root, simulated: true}); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := parseCRL(der, anchor{cert: root}); err == nil {
			t.Errorf("%s: a CRL signed with ECDSA passes for AMD's", name)
		}
	}
}

// TestDates: the peers do not look at certificates' dates.
func TestDates(t *testing.T) {
	l := newLab(t)
	for name, o := range map[string]teesim.DeviceOptions{
		"expired leaf":       {NotAfter: simNow.Add(-time.Minute)},
		"leaf not yet valid": {NotBefore: simNow.Add(time.Minute)},
		"expired VLEK":       {VLEK: true, NotAfter: simNow.Add(-time.Minute)},
	} {
		ev := l.evidence(t, o, teesim.ReportOptions{})
		for range 2 { // the second time memoised
			cl, err := l.verify(t, ev)
			t.Run(name, func(t *testing.T) { wantFailure(t, cl, err, checkValidity, attest.ReasonValidity) })
		}
	}
}

// TestKDSExtensions: certificates by a genuine issuer that vouch for too little, or for something unknown.
func TestKDSExtensions(t *testing.T) {
	l := newLab(t)
	c, err := x509.ParseCertificate(l.device(t, teesim.DeviceOptions{}).Leaf())
	if err != nil {
		t.Fatal(err)
	}
	var amd []pkix.Extension
	for _, e := range c.Extensions {
		if len(e.Id) > 8 {
			amd = append(amd, e)
		}
	}
	oid := func(arc ...int) asn1.ObjectIdentifier { return append(slices.Clone(oidKDS), arc...) }
	change := func(id asn1.ObjectIdentifier, value []byte) []pkix.Extension {
		out := slices.DeleteFunc(slices.Clone(amd), func(e pkix.Extension) bool { return e.Id.Equal(id) })
		if value != nil {
			out = append(out, pkix.Extension{Id: id, Value: value})
		}
		return out
	}
	hwid := bytes.Repeat([]byte{7}, 64)
	for name, c := range map[string]struct {
		ext   []pkix.Extension
		check string
	}{
		"unchanged, another HWID":  {change(oid(4), hwid), checkChipID},
		"HWID as OCTET STRING":     {change(oid(4), append([]byte{4, 64}, hwid...)), checkChipID},
		"no HWID":                  {change(oid(4), nil), checkKDSExtensions},
		"HWID of 8 bytes on Milan": {change(oid(4), hwid[:8]), checkChipID},
		"HWID of 63 bytes":         {change(oid(4), hwid[:63]), checkKDSExtensions},
		"HWID with a tail":         {change(oid(4), append(append([]byte{4, 64}, hwid...), 0)), checkKDSExtensions},
		"no product":               {change(oid(2), nil), checkKDSExtensions},
		"unknown product":          {change(oid(2), []byte("\x16\x04Rome")), checkKDSExtensions},
		"other product":            {change(oid(2), []byte("\x16\x05Genoa")), checkKDSExtensions},
		"product as UTF-8":         {change(oid(2), []byte("\x0c\x05Milan")), checkKDSExtensions},
		"no microcode level":       {change(oid(3, 8), nil), checkKDSExtensions},
		"no reserved level":        {change(oid(3, 5), nil), checkKDSExtensions},
		"FMC on Milan":             {change(oid(3, 9), []byte{2, 1, 0}), checkKDSExtensions},
		"a level above 255":        {change(oid(3, 8), []byte{2, 2, 1, 0}), checkKDSExtensions},
		"a level below zero":       {change(oid(3, 8), []byte{2, 1, 0xff}), checkKDSExtensions},
		"a level with a tail":      {change(oid(3, 8), []byte{2, 1, 219, 0}), checkKDSExtensions},
		"reserved level not zero":  {change(oid(3, 5), []byte{2, 1, 1}), checkReportedTCB},
		"unknown AMD extension":    {change(oid(6), []byte{5, 0}), checkKDSExtensions},
		"CSP_ID in a VCEK":         {change(oid(5), []byte("\x16\x01x")), checkKDSExtensions},
		"unknown critical":         {append(slices.Clone(amd), pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}), checkLeaf},
		"no extensions but a name": {[]pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}, checkKDSExtensions},
	} {
		t.Run(name, func(t *testing.T) {
			cl, err := l.verify(t, l.evidence(t, teesim.DeviceOptions{Extensions: c.ext}, teesim.ReportOptions{}))
			e, ok := err.(*attest.Error)
			if !ok {
				t.Fatalf("got %v, want a failure of %s", err, c.check)
			}
			wantFailure(t, cl, err, c.check, e.Reason)
			if e.Reason != attest.ReasonMismatch && e.Reason != attest.ReasonMalformed {
				t.Errorf("reason %s", e.Reason)
			}
		})
	}
	cl, err := l.verify(t, l.evidence(t, teesim.DeviceOptions{Curve: elliptic.P256()}, teesim.ReportOptions{}))
	wantFailure(t, cl, err, checkLeaf, attest.ReasonMalformed)
}

// TestSwappedLeaf: two genuine chips; neither speaks for the other, even where
// CHIP_ID is masked so that only the signature tells.
func TestSwappedLeaf(t *testing.T) {
	l := newLab(t)
	a, b := l.device(t, teesim.DeviceOptions{}), l.device(t, teesim.DeviceOptions{})
	ev := evidence(t, a, teesim.ReportOptions{})
	ev.Endorsements = b.CertTable()
	cl, err := l.verify(t, ev)
	wantFailure(t, cl, err, checkChipID, attest.ReasonMismatch)
	ev = evidence(t, a, teesim.ReportOptions{MaskChipID: true})
	ev.Endorsements = b.CertTable()
	cl, err = l.verify(t, ev)
	wantFailure(t, cl, err, checkSignature, attest.ReasonSignature)
}

// TestSignatureRange: R and S of zero, or beyond 384 bits.
func TestSignatureRange(t *testing.T) {
	l := newLab(t)
	ev := l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{})
	for name, fill := range map[string]byte{"zero": 0, "ones": 0xff} {
		bad := ev
		bad.Report = slices.Clone(ev.Report)
		for i := range 2 * componentSize {
			bad.Report[signatureOffset+i] = fill
		}
		cl, err := l.verify(t, bad)
		t.Run(name, func(t *testing.T) { wantFailure(t, cl, err, checkSignature, attest.ReasonSignature) })
	}
}

// TestProducts: Siena and Bergamo are models of Genoa's line; Turin has its own TCB.
func TestProducts(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		product       string
		family, model byte
		want          string
		fmc           uint8
	}{
		{"Milan", 0x19, 0x00, "Milan", 0}, {"Milan", 0x19, 0x0f, "Milan", 0},
		{"Genoa", 0x19, 0x10, "Genoa", 0}, {"Genoa", 0x19, 0x1f, "Genoa", 0},
		{"Genoa", 0x19, 0xa0, "Siena or Bergamo", 0}, {"Genoa", 0x19, 0xaf, "Siena or Bergamo", 0},
		{"Turin", 0x1a, 0x00, "Turin", 1}, {"Turin", 0x1a, 0x11, "Turin", 1},
	} {
		cl, err := l.verify(t, l.evidence(t, teesim.DeviceOptions{Product: c.product},
			teesim.ReportOptions{Patch: func(b []byte) { b[0x188], b[0x189] = c.family, c.model }}))
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		s := cl.SNP.(*Claims)
		if cl.HardwareModel != c.want || s.ProductLine != strings.ToLower(c.product) || s.ReportedTCB.FMC != c.fmc {
			t.Errorf("%+v: model %q, line %q, TCB %+v", c, cl.HardwareModel, s.ProductLine, s.ReportedTCB)
		}
		if n := len(cl.ChipID); (c.product == "Turin") != (n == 16) || n != 16 && n != 128 {
			t.Errorf("%+v: chip id %q", c, cl.ChipID)
		}
	}
}

// TestCollateralLeafAndChain: without a table, VCEK and chain come from collateral under the agreed keys.
func TestCollateralLeafAndChain(t *testing.T) {
	l := newLab(t)
	for product, keys := range map[string][2]string{
		"Milan": {"milan/" + strings.Repeat("5a", 64) + "/db18000000000004", "milan/vcek"},
		"Turin": {"turin/" + strings.Repeat("5a", 8) + "/6100000005020301", "turin/vcek"},
	} {
		n := 64
		if product == "Turin" {
			n = 8
		}
		d := l.device(t, teesim.DeviceOptions{Product: product, ChipID: bytes.Repeat([]byte{0x5a}, n)})
		for _, version := range []uint32{0, 2} {
			if version == 2 && product == "Turin" {
				continue
			}
			ev := evidence(t, d, teesim.ReportOptions{Version: version})
			ev.Endorsements = nil
			m := teetest.MapCollateral{}
			for k, v := range l.collateral {
				m[k] = v
			}
			cl, err := l.verifier.Verify(t.Context(), ev, attest.Unbound(), m, simNow)
			wantFailure(t, cl, err, checkLeaf, attest.ReasonCollateralMissing)
			m[attest.CollateralRef{Kind: attest.SNPVCEK, Key: keys[0]}] = attest.CollateralItem{Data: d.Leaf()}
			fresh := newVerifier(t, Config{TestRoots: []TestRoot{{ARK: l.root.ARK()}}})
			if _, err = fresh.Verify(t.Context(), ev, attest.Unbound(), m, simNow); err == nil {
				t.Error("no issuer, yet accepted")
			}
			m[attest.CollateralRef{Kind: attest.SNPChain, Key: keys[1]}] = attest.CollateralItem{Data: append(pemOf(l.root.ASK(product)), l.root.RootPEM()...)}
			for range 2 {
				if _, err := fresh.Verify(t.Context(), ev, attest.Unbound(), m, simNow); err != nil {
					t.Errorf("%s, version %d: %v", product, version, err)
				}
			}
		}
	}
	// Nothing to ask for.
	ev := l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{MaskChipID: true})
	ev.Endorsements = nil
	cl, err := l.verify(t, ev)
	wantFailure(t, cl, err, checkLeaf, attest.ReasonCollateralMissing)
	ev = l.evidence(t, teesim.DeviceOptions{VLEK: true}, teesim.ReportOptions{})
	ev.Endorsements = nil
	cl, err = l.verify(t, ev)
	wantFailure(t, cl, err, checkLeaf, attest.ReasonCollateralMissing)
}

// TestForgedCollateralLeaf: a VCEK that a service made up is the service's fault: the guest, which brought none, is
// not denied for it, and what runs goes on. One that the guest brought is the guest's.
func TestForgedCollateralLeaf(t *testing.T) {
	l, forger := newLab(t), newLab(t)
	opts := teesim.DeviceOptions{Product: "Milan", ChipID: bytes.Repeat([]byte{0x5a}, 64)}
	d, forged := l.device(t, opts), forger.device(t, opts).Leaf()
	other := l.device(t, teesim.DeviceOptions{Product: "Milan", ChipID: bytes.Repeat([]byte{0x5b}, 64)}).Leaf()
	ev := evidence(t, d, teesim.ReportOptions{})
	ev.Endorsements = nil
	for name, leaf := range map[string][]byte{"of another root": forged, "of another chip": other, "of the root itself": l.root.ASK("Milan").Raw} {
		t.Run(name, func(t *testing.T) {
			m := maps.Clone(teetest.MapCollateral(l.collateral))
			m[attest.CollateralRef{Kind: attest.SNPVCEK, Key: "milan/" + strings.Repeat("5a", 64) + "/db18000000000004"}] = attest.CollateralItem{Data: leaf}
			m[attest.CollateralRef{Kind: attest.SNPChain, Key: "milan/vcek"}] = attest.CollateralItem{Data: append(pemOf(l.root.ASK("Milan")), l.root.RootPEM()...)}
			_, err := l.verifier.Verify(t.Context(), ev, attest.Unbound(), m, simNow)
			if got := attest.ReasonOf(err); err == nil || got != attest.ReasonCollateralInvalid {
				t.Errorf("%v: reason %q", err, got)
			}
			brought := ev
			brought.Endorsements = certTableOf{guidVCEK: leaf}.encode()
			if _, err := l.verifier.Verify(t.Context(), brought, attest.Unbound(), m, simNow); err == nil || attest.ReasonOf(err) == attest.ReasonCollateralInvalid {
				t.Errorf("brought by the guest: %v", err)
			}
		})
	}
}

// TestCheapChecksFirst: a report that is not bound costs no collateral.
func TestCheapChecksFirst(t *testing.T) {
	l := newLab(t)
	ev := l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{})
	_, err := l.verifier.Verify(t.Context(), ev, attest.Binding{}, untouchable{t}, simNow)
	if attest.ReasonOf(err) != attest.ReasonBinding {
		t.Error(err)
	}
}

type untouchable struct{ t *testing.T }

func (u untouchable) Get(context.Context, attest.CollateralRef) (attest.CollateralItem, error) {
	u.t.Error("collateral was asked for")
	return attest.CollateralItem{}, nil
}

// TestCertTable: bounds, and the entries that crash or exhaust go-sev-guest's parser.
func TestCertTable(t *testing.T) {
	entry := func(guid string, off, n uint32) []byte {
		b := append([]byte(guid), make([]byte, 8)...)
		binary.LittleEndian.PutUint32(b[16:], off)
		binary.LittleEndian.PutUint32(b[20:], n)
		return b
	}
	end := make([]byte, tableEntrySize)
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	leaf, block := []byte{0x30, 0}, pemOf(newLab(t).root.ARK())
	for name, c := range map[string]struct {
		b  []byte
		ok bool
	}{
		"empty":             {nil, true},
		"only the end":      {end, true},
		"no end":            {cat(entry(guidVCEK, 24, 0)), false},
		"short":             {end[:23], false},
		"one":               {cat(entry(guidVCEK, 48, 2), end, leaf), true},
		"beyond":            {cat(entry(guidVCEK, 48, 3), end, leaf), false},
		"wraps":             {cat(entry(guidVCEK, 0xffffffff, 2), end, leaf), false},
		"4 GiB":             {cat(entry(guidVCEK, 48, 0xffffffff), end, leaf), false},
		"into the header":   {cat(entry(guidVCEK, 0, 2), end, leaf), false},
		"twice":             {cat(entry(guidVCEK, 72, 2), entry(guidVCEK, 72, 2), end, leaf), false},
		"unknown":           {cat(entry(strings.Repeat("u", 16), 48, 2), end, leaf), true},
		"not a certificate": {cat(entry(guidVCEK, 48, 2), end, []byte("xx")), false},
		"zero length":       {cat(entry(guidVCEK, 48, 0), end), false},
		"too many":          {cat(bytes.Repeat(entry(strings.Repeat("u", 16), 24, 0), 40), end), false},
		"PEM":               {cat(entry(guidVCEK, 48, uint32(len(block))), end, block), true},
		"PEM, then zeroes":  {cat(entry(guidVCEK, 48, uint32(len(block)+3)), end, block, make([]byte, 3)), true},
		"PEM, then more":    {cat(entry(guidVCEK, 48, uint32(len(block)+3)), end, block, []byte("abc")), false},
	} {
		if _, err := parseCertTable(c.b); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJunkDoesNotFlush: unverified certificates take no room in the memo.
func TestJunkDoesNotFlush(t *testing.T) {
	l, other := newLab(t), newLab(t)
	for range 3 {
		if _, err := l.verify(t, other.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{})); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := l.verifier.chains.Len(); n != 0 {
		t.Errorf("%d chains memoised", n)
	}
}

// TestLink: chains whose every signature is right, and which must not count all the same.
func TestLink(t *testing.T) {
	name := func(cn string) pkix.Name { return pkix.Name{CommonName: cn} }
	ark, arkKey := ca(t, name("ARK-Milan"), nil, nil)
	build := func(issuerCN string, simulated bool, change func(issuer *x509.Certificate)) error {
		issuer, key := ca(t, name(issuerCN), ark, arkKey)
		cert, _ := ca(t, name("SEV-VCEK"), issuer, key)
		change(issuer)
		v := &Verifier{anchors: map[line][]anchor{milan: {{cert: ark, simulated: simulated}}}}
		_, err := v.link(&leaf{cert: cert, kind: keyVCEK, kds: kdsExtensions{line: milan}}, source{issuer: issuer, der: issuer.Raw})
		return err
	}
	same := func(*x509.Certificate) {}
	if err := build("SEV-Milan", true, same); err != nil {
		t.Errorf("a good chain: %v", err)
	}
	if build("SEV-VLEK-Milan", true, same) == nil {
		t.Error("an ASVK vouches for a chip")
	}
	if build("SEV-Genoa", true, same) == nil {
		t.Error("Genoa's ASK vouches for a Milan")
	}
	if build("SEV-Milan", false, same) == nil {
		t.Error("ECDSA passes below a root of AMD")
	}
	if build("SEV-Milan", true, func(c *x509.Certificate) {
		c.UnhandledCriticalExtensions = []asn1.ObjectIdentifier{{1, 2, 3}}
	}) == nil {
		t.Error("an unknown critical extension of the issuer is ignored")
	}
}

// TestForeignRootBesideGoodChain: a table that names another root is refused,
// also when nothing is memoised.
func TestForeignRootBesideGoodChain(t *testing.T) {
	l := newLab(t)
	d := l.device(t, teesim.DeviceOptions{})
	ev := evidence(t, d, teesim.ReportOptions{})
	ev.Endorsements = certTableOf{guidVCEK: d.Leaf(), guidASK: l.root.ASK("Milan").Raw, guidARK: newLab(t).root.ARK().Raw}.encode()
	cl, err := l.verify(t, ev)
	wantFailure(t, cl, err, checkChain, attest.ReasonChain)
}

// TestLeafIsCA: an authority must not sign reports.
func TestLeafIsCA(t *testing.T) {
	l := newLab(t)
	ext := []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
	cl, err := l.verify(t, l.evidence(t, teesim.DeviceOptions{Extensions: ext}, teesim.ReportOptions{}))
	wantFailure(t, cl, err, checkLeaf, attest.ReasonMalformed)
}

// TestCRLForms: lists by the right key that are not the root's own, or whose entries mean something else.
func TestCRLForms(t *testing.T) {
	root, key := ca(t, pkix.Name{CommonName: "r"}, nil, nil)
	root.SubjectKeyId = []byte{1}
	other := *root
	other.RawSubject, other.Subject = nil, pkix.Name{CommonName: "s"}
	entry := x509.RevocationListEntry{SerialNumber: big.NewInt(3), RevocationTime: simNow,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}}
	for name, c := range map[string]struct {
		issuer  *x509.Certificate
		entries []x509.RevocationListEntry
		ok      bool
	}{
		"plain":                      {root, nil, true},
		"another issuer's name":      {&other, nil, false},
		"an entry of another issuer": {root, []x509.RevocationListEntry{entry}, false},
	} {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: simNow,
			NextUpdate: simNow.Add(time.Hour), RevokedCertificateEntries: c.entries}, c.issuer, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseCRL(der, anchor{cert: root, simulated: true}); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
