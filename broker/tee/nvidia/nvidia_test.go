package nvidia_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/nvidia"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// field is one of opaque data.
type field struct {
	typ   uint16
	value []byte
}

// sim is a simulated device: what it reports, and who vouches for it.
type sim struct {
	chain         []*x509.Certificate // leaf, device, issuer, root
	keys          []*ecdsa.PrivateKey // the same order
	nonce         []byte
	blocks        [][]byte
	fields        []field
	answers       [][]byte // DER
	serial        int64
	request, head []byte // the request's first four bytes, the response's
	tail          []byte
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue makes a certificate; with a nil parent it signs itself.
func (s *sim) issue(t testing.TB, tmpl x509.Certificate, public any, parent *x509.Certificate, signer any) *x509.Certificate {
	t.Helper()
	s.serial++
	tmpl.SerialNumber = big.NewInt(s.serial)
	tmpl.BasicConstraintsValid = true
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0)
	}
	if parent == nil {
		parent = &tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ca(name string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
}

func deviceTemplate(chip string) x509.Certificate {
	c := ca(chip + " A01 GSP BROM")
	c.Subject.SerialNumber = "410102030405060708"
	return c
}

type fwid struct {
	Algorithm asn1.ObjectIdentifier
	Digest    []byte
}

var (
	oidSHA384    = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	oidComposite = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}
	oidTCBInfo   = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}
	firmware     = bytes.Repeat([]byte{0xf1}, 48)
)

func extension(t testing.TB, id asn1.ObjectIdentifier, v any) []pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return []pkix.Extension{{Id: id, Value: der}}
}

func compositeID(t testing.TB, digest []byte) []pkix.Extension {
	t.Helper()
	return extension(t, oidComposite, struct {
		Version int
		Key     []int
		FWID    fwid
	}{1, []int{}, fwid{oidSHA384, digest}})
}

func tcbInfo(t testing.TB, flags byte) []pkix.Extension {
	t.Helper()
	return extension(t, oidTCBInfo, struct {
		Vendor string         `asn1:"tag:0,utf8"`
		FWIDs  []fwid         `asn1:"tag:6"`
		Flags  asn1.BitString `asn1:"tag:7"`
	}{"NVIDIA", []fwid{{oidSHA384, firmware}, {oidSHA384, make([]byte, 48)}}, asn1.BitString{Bytes: []byte{flags, 0, 0, 1}, BitLength: 32}})
}

func leafTemplate(t testing.TB, chip string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: chip + " A01 GSP FMC LF"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: compositeID(t, firmware)}
}

func newSim(t testing.TB, chip string) *sim {
	t.Helper()
	s := &sim{serial: 100, request: []byte{0x11, 0xe0, 1, 0xff}, head: []byte{0x11, 0x60, 0, 0}}
	for range 4 {
		s.keys = append(s.keys, newKey(t, elliptic.P384()))
	}
	root := s.issue(t, ca("TEST SIMULATED NVIDIA Device Identity CA"), &s.keys[3].PublicKey, nil, s.keys[3])
	ica := s.issue(t, ca("TEST SIMULATED Provisioner ICA"), &s.keys[2].PublicKey, root, s.keys[3])
	own := s.issue(t, deviceTemplate(chip), &s.keys[1].PublicKey, ica, s.keys[2])
	leaf := s.issue(t, leafTemplate(t, chip), &s.keys[0].PublicKey, own, s.keys[1])
	s.chain = []*x509.Certificate{leaf, own, ica, root}
	d := transcript.Digest32()
	s.nonce = d[:]
	n := 64
	if chip == "LS_10" {
		n = 31
		s.fields = []field{{6, []byte("96.10.6d.00.01")}, {22, []byte{1, 2, 3, 4, 5, 6, 7, 8}}, {26, switchLinks}, {25, []byte{1, 0}}}
	} else {
		s.fields = []field{
			{6, []byte{0x00, 0x9f, 0x00, 0x96, 1, 0, 0, 0}},
			{14, []byte{0xb1, 3, 0, 0}},
			{15, []byte("882\x00\x00")},
			{17, []byte("1010\x00")},
			{18, []byte("0200\x00")},
			{3, []byte("550.90.07\x00")},
			{11, []byte{0x55}},
			{20, firmware},
			{21, []byte{0x55}},
			{36, []byte{1, 0}},
			{99, []byte("of the future")},
		}
	}
	for i := range n {
		s.blocks = append(s.blocks, bytes.Repeat([]byte{byte(i + 1)}, 48))
	}
	for i := range 2 {
		s.answers = append(s.answers, s.answer(t, i+1, ocsp.Good))
	}
	return s
}

// answer makes the OCSP answer for certificate i.
func (s *sim) answer(t testing.TB, i, status int) []byte {
	t.Helper()
	return s.answerWith(t, ocsp.Response{Status: status, SerialNumber: s.chain[i].SerialNumber, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour), RevokedAt: now.AddDate(0, -1, 0)}, i, nil, s.keys[i+1])
}

func (s *sim) answerWith(t testing.TB, tmpl ocsp.Response, i int, responder *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	tmpl.IssuerHash, tmpl.Certificate = crypto.SHA384, responder
	if responder == nil {
		responder = s.chain[i+1]
	}
	der, err := ocsp.CreateResponse(s.chain[i+1], responder, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (s *sim) set(typ uint16, value []byte) {
	for i, f := range s.fields {
		if f.typ == typ {
			s.fields[i].value = value
			return
		}
	}
	s.fields = append(s.fields, field{typ, value})
}

func (s *sim) drop(typ uint16) {
	s.fields = slices.DeleteFunc(s.fields, func(f field) bool { return f.typ == typ })
}

// record encodes the blocks.
func (s *sim) record() []byte {
	var b []byte
	for i, d := range s.blocks {
		n := len(d)
		b = append(b, byte(i+1), 1, byte(n+3), byte((n+3)>>8), 1, byte(n), byte(n>>8))
		b = append(b, d...)
	}
	return b
}

// report signs as the device does.
func (s *sim) report(t testing.TB) []byte {
	t.Helper()
	return s.sign(t, s.record(), len(s.blocks))
}

func (s *sim) sign(t testing.TB, record []byte, n int) []byte {
	t.Helper()
	b := slices.Concat(s.request, s.nonce, []byte{0}, s.head, []byte{byte(n), byte(len(record)), byte(len(record) >> 8), 0}, record, bytes.Repeat([]byte{0xee}, 32))
	var opaque []byte
	for _, f := range s.fields {
		opaque = binary.LittleEndian.AppendUint16(opaque, f.typ)
		opaque = binary.LittleEndian.AppendUint16(opaque, uint16(len(f.value)))
		opaque = append(opaque, f.value...)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(opaque)))
	b = append(b, opaque...)
	h := sha512.Sum384(b)
	r, z, err := ecdsa.Sign(rand.Reader, s.keys[0], h[:])
	if err != nil {
		t.Fatal(err)
	}
	size := (s.keys[0].Curve.Params().BitSize + 7) / 8
	return slices.Concat(b, r.FillBytes(make([]byte, size)), z.FillBytes(make([]byte, size)), s.tail)
}

func (s *sim) endorsements() []byte {
	var b []byte
	for _, c := range s.chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	for _, a := range s.answers {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "OCSP RESPONSE", Bytes: a})...)
	}
	return b
}

func (s *sim) evidence(t testing.TB) attest.Evidence {
	t.Helper()
	return attest.Evidence{Type: attest.TypeNVIDIA, Report: s.report(t), Endorsements: s.endorsements()}
}

func (s *sim) config() nvidia.Config {
	return nvidia.Config{TestRoots: []*x509.Certificate{s.chain[len(s.chain)-1]}}
}

func TestConformance(t *testing.T) {
	var good []teetest.Vector
	roots := nvidia.Config{}
	for name, chip := range map[string]string{"hopper": "GH100", "blackwell": "GB100", "switch": "LS_10"} {
		s := newSim(t, chip)
		roots.TestRoots = append(roots.TestRoots, s.config().TestRoots...)
		good = append(good, teetest.Vector{
			Name: name, Evidence: s.evidence(t), Now: now, ReportData: s.nonce, NotYetValid: now.AddDate(-2, 0, 0), Expired: now.AddDate(2, 0, 0),
			TrailingOK: []teetest.Part{teetest.Report},
		}) // one zero, see TestTail
	}
	teetest.Run(t, teetest.Suite{New: func(t *testing.T) attest.Verifier { return newVerifier(t, roots) }, Good: good, Stride: 61, CutStride: 97})
}

// TestTail: behind the signature one zero may stand, and nothing else.
func TestTail(t *testing.T) {
	s := newSim(t, "GH100")
	v := newVerifier(t, s.config())
	for _, tc := range []struct {
		tail []byte
		ok   bool
	}{{nil, true}, {[]byte{0}, true}, {[]byte{1}, false}, {[]byte{0, 0}, false}, {make([]byte, 4096), false}, {bytes.Repeat([]byte{'A'}, 60<<10), false}} {
		s.tail = tc.tail
		_, err := v.Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
		if tc.ok && err != nil {
			t.Errorf("a tail of %d bytes: %v", len(tc.tail), err)
		} else if !tc.ok {
			wantError(t, err, "nvidia.format", attest.ReasonMalformed)
		}
	}
}

func TestClaims(t *testing.T) {
	s := newSim(t, "GH100")
	cl, err := newVerifier(t, s.config()).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	c := cl.NVIDIA.(*nvidia.Claims)
	if !cl.Bound || !cl.Simulated || cl.BoundToCPUTEE || !cl.Debuggable || cl.HardwareModel != "Hopper" || cl.ChipID != "0102030405060708" || len(cl.Measurements) != 64 ||
		cl.Measurements["measurement_01"] != strings.Repeat("01", 48) || cl.Measurements["measurement_64"] != strings.Repeat("40", 48) ||
		cl.Collateral.State != attest.CollateralFresh || cl.Collateral.AgeSeconds != 3600 || cl.TCB.Status != attest.TCBUnknown || cl.ReportData != hex.EncodeToString(s.nonce) {
		t.Errorf("claims %+v", cl)
	}
	if c.Device != "gpu" || c.Chip != "GH100" || c.DriverVersion != "550.90.07" || c.VBIOSVersion != "96.00.9F.00.01" || c.BoardID != "b1030000" || c.ChipSKU != "882" || c.Project != "1010" ||
		c.ProjectSKU != "0200" || c.FWID != hex.EncodeToString(firmware) || c.CCMode != "mpt" || c.RIM != "absent" || c.Revocation != "good" || c.DICEFlags != "" ||
		fmt.Sprint(c.RIMs) != "[NV_GPU_DRIVER_GH100_550.90.07 NV_GPU_VBIOS_1010_0200_882_96009F0001]" {
		t.Errorf("NVIDIA claims %+v", c)
	}
	s = newSim(t, "LS_10")
	cl, err = newVerifier(t, s.config()).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	c = cl.NVIDIA.(*nvidia.Claims)
	if cl.HardwareModel != "LS10" || c.Device != "nvswitch" || c.VBIOSVersion != "96.10.6D.00.01" || !slices.Equal(c.GPUPDIs, []string{"0102030405060708", "0707070707070707"}) || c.LockStatus != "0100" || c.DriverVersion != "" || c.CCMode != "unknown" {
		t.Errorf("claims of a switch %+v, %+v", cl, c)
	}
}

// switchLinks is what a switch says of two GPUs and of which port leads to which.
var switchLinks = slices.Concat(bytes.Repeat([]byte{7}, 8), []byte{1, 2, 3, 4, 5, 6, 7, 8}, make([]byte, 16), bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0, 1}, 32))

// TestModes: what the report says of its mode, in both of its forms.
func TestModes(t *testing.T) {
	for _, tc := range []struct {
		flag, pcie []byte
		want       string
	}{
		{[]byte{0, 0}, []byte{0xaa}, "spt"},
		{[]byte{1, 0}, nil, "mpt"},
		{[]byte{2, 0}, nil, "ppcie"},
		{[]byte{3, 0}, []byte{0x55}, "unknown"},
		{[]byte{0}, []byte{0x55}, "unknown"},
		{nil, []byte{0x55}, "spt"},
		{nil, []byte{0xaa}, "ppcie"},
		{nil, []byte{0}, "unknown"},
		{nil, nil, "unknown"},
	} {
		s := newSim(t, "GH100")
		for typ, v := range map[uint16][]byte{36: tc.flag, 21: tc.pcie} {
			if s.drop(typ); v != nil {
				s.set(typ, v)
			}
		}
		cl, err := newVerifier(t, s.config()).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		if got := cl.NVIDIA.(*nvidia.Claims).CCMode; got != tc.want {
			t.Errorf("flag %x, PCIe %x: %s, want %s", tc.flag, tc.pcie, got, tc.want)
		}
	}
}

// manifest makes a RIM that knows these digests, by index.
func manifest(t testing.TB, signer *rimSigner, version string, golden map[int][]string) []byte {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384"><Meta product="GH100" colloquialVersion=%q/><Payload>`, version)
	for i, hashes := range golden {
		fmt.Fprintf(&b, `<Resource type="Measurement" index="%d" active="True" alternatives="%d" size="48"`, i, len(hashes))
		for j, h := range hashes {
			fmt.Fprintf(&b, ` h:Hash%d=%q`, j, h)
		}
		b.WriteString("/>")
	}
	return signer.sign(t, b.String()+"</Payload></SoftwareIdentity>")
}

func TestRIM(t *testing.T) {
	digest := func(n int) string { return strings.Repeat(fmt.Sprintf("%02x", n), 48) }
	const driver, vbios = "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"
	signer := newRIMSigner(t)
	for name, tc := range map[string]struct {
		driver, vbios map[int][]string
		edit          func(*sim)
		want          string
		mismatches    string
		debuggable    bool
	}{
		"all match":               {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, nil, "matched", "[]", false},
		"an alternative":          {map[int][]string{7: {digest(0), digest(8)}}, map[int][]string{0: {digest(1)}}, nil, "matched", "[]", false},
		"one differs":             {map[int][]string{7: {digest(9)}}, map[int][]string{0: {digest(1)}}, nil, "mismatched", "[measurement_08]", true},
		"both speak of one":       {map[int][]string{7: {digest(8)}}, map[int][]string{7: {digest(8)}}, nil, "mismatched", "[measurement_08]", true},
		"one that is not there":   {map[int][]string{7: {digest(8)}}, map[int][]string{64: {digest(65)}}, nil, "mismatched", "[measurement_65]", true},
		"NVDEC, off":              {map[int][]string{35: {digest(0)}}, map[int][]string{0: {digest(1)}}, nil, "matched", "[]", false},
		"NVDEC, on":               {map[int][]string{35: {digest(0)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.set(11, []byte{0xaa}) }, "mismatched", "[measurement_36]", true},
		"NVDEC, not said":         {map[int][]string{35: {digest(0)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.drop(11) }, "mismatched", "[measurement_36]", true},
		"another driver":          {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.set(3, []byte("550.90.08")) }, "absent", "[]", true},
		"another project":         {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.set(17, []byte("1011")) }, "absent", "[]", true},
		"a path for a version":    {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.set(3, []byte("../../x")) }, "absent", "[]", true},
		"matched, debug firmware": {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.reflag(t, 0x10) }, "matched", "[]", true},
		"matched, not secure":     {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.reflag(t, 0x40) }, "matched", "[]", true},
		"matched, recovery":       {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.reflag(t, 0x20) }, "matched", "[]", true},
		"matched, in the field":   {map[int][]string{7: {digest(8)}}, map[int][]string{0: {digest(1)}}, func(s *sim) { s.reflag(t, 0x80) }, "matched", "[]", false},
	} {
		s := newSim(t, "GH100")
		if tc.edit != nil {
			tc.edit(s)
		}
		cfg := s.config()
		cfg.TestRIMRoots = []*x509.Certificate{signer.root()}
		cfg.RIMs = map[string][]byte{driver: manifest(t, signer, "550.90.07", tc.driver), vbios: manifest(t, signer, "96.00.9f.00.01", tc.vbios)}
		cl, err := newVerifier(t, cfg).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c := cl.NVIDIA.(*nvidia.Claims); c.RIM != tc.want || fmt.Sprint(c.RIMMismatches) != tc.mismatches || cl.Debuggable != tc.debuggable {
			t.Errorf("%s: %s, mismatches %s, debuggable %t", name, c.RIM, c.RIMMismatches, cl.Debuggable)
		}
	}
	// A manifest under another's name.
	s := newSim(t, "GH100")
	cfg := s.config()
	cfg.TestRIMRoots = []*x509.Certificate{signer.root()}
	cfg.RIMs = map[string][]byte{driver: manifest(t, signer, "550.90.08", map[int][]string{7: {digest(8)}}), vbios: manifest(t, signer, "96.00.9F.00.01", map[int][]string{0: {digest(1)}})}
	cl, err := newVerifier(t, cfg).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
	if err != nil || cl.NVIDIA.(*nvidia.Claims).RIM != "absent" {
		t.Errorf("under another's name: %+v, %v", cl.NVIDIA, err)
	}
}

// TestReadRIMs: a folder of signed manifests. What is wrong with one stops the broker, and the error names it.
func TestReadRIMs(t *testing.T) {
	signer := newRIMSigner(t)
	good := string(signer.sign(t, goodRIM))
	signed := func(old, with string) string { return string(signer.sign(t, replace(old, with)(goodRIM))) }
	for name, tc := range map[string]struct {
		files map[string]string
		err   string
	}{
		"two":                    {map[string]string{"A.xml": good, "B.xml": good, "README": "text"}, ""},
		"none":                   {map[string]string{"README": good}, "no manifest"},
		"one broken":             {map[string]string{"A.xml": good, "B.xml": good[:200]}, "B.xml"},
		"one unsigned":           {map[string]string{"A.xml": good, "B.xml": goodRIM}, "B.xml"},
		"one changed":            {map[string]string{"A.xml": good, "B.xml": replace("0808", "6666")(good)}, "B.xml"},
		"empty":                  {map[string]string{"A.xml": ""}, "A.xml"},
		"another root element":   {map[string]string{"A.xml": string(signer.sign(t, `<a></a>`))}, "root element"},
		"a payload in another":   {map[string]string{"A.xml": string(signer.sign(t, strings.Replace(strings.Replace(goodRIM, "<Payload>", "<Payload><Payload>", 1), "</Payload>", "</Payload></Payload>", 1)))}, "no active measurement"},
		"two payloads":           {map[string]string{"A.xml": signed("</SoftwareIdentity>", "<Payload></Payload></SoftwareIdentity>")}, "2 Payload"},
		"no meta":                {map[string]string{"A.xml": string(signer.sign(t, strings.ReplaceAll(goodRIM, "Meta", "Mata")))}, "0 Meta"},
		"no version":             {map[string]string{"A.xml": signed(`colloquialVersion="1"`, "")}, "colloquialVersion"},
		"active, in lower case":  {map[string]string{"A.xml": signed("True", "true")}, "active"},
		"a short digest":         {map[string]string{"A.xml": signed("0808", "08")}, "hex digits"},
		"a digest of no SHA-384": {map[string]string{"A.xml": signed("h:Hash0", "Hash0")}, "hex digits"},
	} {
		dir := t.TempDir()
		for f, text := range tc.files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		rims, err := nvidia.ReadRIMs(dir)
		if err == nil {
			_, err = nvidia.New(nvidia.Config{RIMs: rims, TestRIMRoots: []*x509.Certificate{signer.root()}})
		}
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v, want %q", name, err, tc.err)
		}
	}
	if _, err := nvidia.ReadRIMs(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a folder that is not there")
	}
}

// releaf gives the leaf's key another certificate.
func (s *sim) releaf(t testing.TB, edit func(*x509.Certificate)) {
	t.Helper()
	tmpl := leafTemplate(t, strings.Fields(s.chain[0].Subject.CommonName)[0])
	edit(&tmpl)
	s.chain[0] = s.issue(t, tmpl, s.keys[0].Public(), s.chain[1], s.keys[1])
}

func (s *sim) reflag(t testing.TB, flags byte) {
	t.Helper()
	s.releaf(t, func(c *x509.Certificate) { c.ExtraExtensions = tcbInfo(t, flags) })
}

// redevice gives the device's key another certificate, and the leaf its issuer's new name.
func (s *sim) redevice(t testing.TB, edit func(*x509.Certificate)) {
	t.Helper()
	tmpl := deviceTemplate(strings.Fields(s.chain[1].Subject.CommonName)[0])
	edit(&tmpl)
	s.chain[1] = s.issue(t, tmpl, &s.keys[1].PublicKey, s.chain[2], s.keys[2])
	s.releaf(t, func(*x509.Certificate) {})
	s.answers[0] = s.answer(t, 1, ocsp.Good)
}

// TestForgeries: what an attacker can have, put together in every wrong way.
func TestForgeries(t *testing.T) {
	const malformed, chainReason, mismatch = attest.ReasonMalformed, attest.ReasonChain, attest.ReasonMismatch
	set := func(typ uint16, v []byte) func(*testing.T, *sim) {
		return func(_ *testing.T, s *sim) { s.set(typ, v) }
	}
	response := func(edit func(*ocsp.Response)) func(*testing.T, *sim) {
		return func(t *testing.T, s *sim) {
			r := ocsp.Response{Status: ocsp.Good, SerialNumber: s.chain[1].SerialNumber, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
			edit(&r)
			s.answers[0] = s.answerWith(t, r, 1, nil, s.keys[2])
		}
	}
	responder := func(edit func(*x509.Certificate)) func(*testing.T, *sim) {
		return func(t *testing.T, s *sim) {
			k := newKey(t, elliptic.P384())
			tmpl := x509.Certificate{Subject: pkix.Name{CommonName: "responder"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}}
			edit(&tmpl)
			c := s.issue(t, tmpl, &k.PublicKey, s.chain[2], s.keys[2])
			s.answers[0] = s.answerWith(t, ocsp.Response{Status: ocsp.Good, SerialNumber: s.chain[1].SerialNumber, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}, 1, c, k)
		}
	}
	for name, tc := range map[string]struct {
		edit   func(t *testing.T, s *sim)
		check  string // empty: believed
		reason attest.Reason
	}{
		"of another request":      {func(_ *testing.T, s *sim) { s.nonce = make([]byte, 32) }, "nvidia.binding", attest.ReasonBinding},
		"the digest of 64, cut":   {func(_ *testing.T, s *sim) { d := transcript.Digest64(); s.nonce = d[:32] }, "nvidia.binding", attest.ReasonBinding},
		"SPDM 1.2":                {func(_ *testing.T, s *sim) { s.request[0], s.head[0] = 0x12, 0x12 }, "nvidia.format", malformed},
		"another request":         {func(_ *testing.T, s *sim) { s.request[1] = 0xe1 }, "nvidia.format", malformed},
		"no signature asked for":  {func(_ *testing.T, s *sim) { s.request[2] = 0 }, "nvidia.format", malformed},
		"one block asked for":     {func(_ *testing.T, s *sim) { s.request[3] = 1 }, "nvidia.format", malformed},
		"an error for a response": {func(_ *testing.T, s *sim) { s.head[1] = 0x7f }, "nvidia.format", malformed},
		"no blocks":               {func(_ *testing.T, s *sim) { s.blocks = nil }, "nvidia.format", malformed},
		"a block of 32":           {func(_ *testing.T, s *sim) { s.blocks[3] = make([]byte, 32) }, "nvidia.format", malformed},
		"a field twice":           {func(_ *testing.T, s *sim) { s.fields = append(s.fields, field{3, []byte("550.90.08")}) }, "nvidia.format", malformed},
		"a field of a kilobyte":   {set(98, make([]byte, 1024)), "nvidia.format", malformed},
		"another signer":          {func(t *testing.T, s *sim) { s.keys[0] = newKey(t, elliptic.P384()) }, "nvidia.signature", attest.ReasonSignature},
		"signed on P-256":         {func(t *testing.T, s *sim) { s.keys[0] = newKey(t, elliptic.P256()) }, "nvidia.format", malformed},
		"signed by the boot ROM":  {func(_ *testing.T, s *sim) { s.keys[0] = s.keys[1]; s.chain = s.chain[1:] }, "nvidia.chain", chainReason},
		"other firmware":          {set(20, make([]byte, 48)), "nvidia.fwid", mismatch},
		"the firmware, cut":       {set(20, firmware[:32]), "nvidia.fwid", mismatch},
		"no firmware named":       {func(_ *testing.T, s *sim) { s.drop(20) }, "", ""},
		"another chip":            {set(35, []byte("GB100\x00")), "nvidia.identity", mismatch},
		"its chip":                {set(35, []byte("GH100\x00")), "", ""},
		"no VBIOS version":        {func(_ *testing.T, s *sim) { s.drop(6) }, "nvidia.identity", malformed},
		"a VBIOS version of more": {set(6, []byte{0, 0x9f, 0, 0x96, 1, 1, 0, 0}), "nvidia.identity", malformed},
		"a driver of control":     {set(3, []byte("550\n90")), "nvidia.identity", malformed},
		"half an identifier":      {set(22, make([]byte, 12)), "nvidia.identity", malformed},
		"a chip of the future":    {func(t *testing.T, s *sim) { *s = *newSim(t, "GX100") }, "nvidia.chain", chainReason},
		"boot ROM of another chip": {func(t *testing.T, s *sim) {
			s.redevice(t, func(c *x509.Certificate) { c.Subject.CommonName = "GB100 A01 GSP BROM" })
		}, "nvidia.chain", chainReason},
		"a device without a PDI": {func(t *testing.T, s *sim) { s.redevice(t, func(c *x509.Certificate) { c.Subject.SerialNumber = "" }) }, "nvidia.chain", chainReason},
		"a short PDI": {func(t *testing.T, s *sim) {
			s.redevice(t, func(c *x509.Certificate) { c.Subject.SerialNumber = "4101" })
		}, "nvidia.chain", chainReason},

		// A whole chain of the attacker's own, under NVIDIA's names.
		"another root":          {func(t *testing.T, s *sim) { *s = *newSim(t, "GH100") }, "nvidia.chain", chainReason},
		"another chain, root":   {func(t *testing.T, s *sim) { r := s.chain[3]; *s = *newSim(t, "GH100"); s.chain[3] = r }, "nvidia.chain", chainReason},
		"no root":               {func(_ *testing.T, s *sim) { s.chain = s.chain[:3] }, "nvidia.chain", chainReason},
		"no intermediate":       {func(_ *testing.T, s *sim) { s.chain = slices.Delete(s.chain, 2, 3) }, "nvidia.chain", chainReason},
		"root first":            {func(_ *testing.T, s *sim) { slices.Reverse(s.chain) }, "nvidia.chain", chainReason},
		"two in another order":  {func(_ *testing.T, s *sim) { s.chain[1], s.chain[2] = s.chain[2], s.chain[1] }, "nvidia.chain", chainReason},
		"leaf and root only":    {func(_ *testing.T, s *sim) { s.chain = []*x509.Certificate{s.chain[0], s.chain[3]} }, "nvidia.chain", malformed},
		"no certificates":       {func(_ *testing.T, s *sim) { s.chain = nil }, "nvidia.chain", malformed},
		"nine certificates":     {func(_ *testing.T, s *sim) { s.chain = append(s.chain, slices.Concat(s.chain, s.chain[:1])...) }, "nvidia.format", malformed},
		"seventeen answers":     {func(_ *testing.T, s *sim) { s.answers = slices.Repeat(s.answers[:1], 17) }, "nvidia.format", malformed},
		"a leaf below the leaf": {func(t *testing.T, s *sim) { s.below(t) }, "nvidia.chain", chainReason},
		"a leaf that is a CA": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) {
				c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
			})
		}, "nvidia.chain", chainReason},
		"not for signatures": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
		}, "nvidia.chain", chainReason},
		"no firmware digest": {func(t *testing.T, s *sim) { s.releaf(t, func(c *x509.Certificate) { c.ExtraExtensions = nil }) }, "nvidia.chain", chainReason},
		"two firmware digests": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, tcbInfo(t, 0)...) })
		}, "nvidia.chain", chainReason},
		"a firmware digest of 32": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) { c.ExtraExtensions = compositeID(t, firmware[:32]) })
		}, "nvidia.chain", chainReason},
		"critical extension": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) {
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
			})
		}, "nvidia.chain", chainReason},
		"a device that may not issue": {func(t *testing.T, s *sim) {
			s.redevice(t, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
		}, "nvidia.chain", chainReason},
		"a path that is too long": {func(t *testing.T, s *sim) {
			tmpl := ca("TEST SIMULATED Provisioner ICA")
			tmpl.MaxPathLenZero = true
			s.chain[2] = s.issue(t, tmpl, &s.keys[2].PublicKey, s.chain[3], s.keys[3])
		}, "nvidia.chain", chainReason},
		"an RSA leaf": {func(t *testing.T, s *sim) {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			s.chain[0] = s.issue(t, leafTemplate(t, "GH100"), &k.PublicKey, s.chain[1], s.keys[1])
		}, "nvidia.chain", malformed},
		"a leaf on P-521": {func(t *testing.T, s *sim) {
			k := newKey(t, elliptic.P521())
			s.chain[0] = s.issue(t, leafTemplate(t, "GH100"), &k.PublicKey, s.chain[1], s.keys[1])
		}, "nvidia.chain", malformed},
		"signed with SHA-256": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA256 })
		}, "nvidia.chain", malformed},
		"expired": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Second) })
		}, "nvidia.validity", attest.ReasonValidity},
		"not yet valid": {func(t *testing.T, s *sim) {
			s.releaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Second), now.Add(time.Hour) })
		}, "nvidia.validity", attest.ReasonValidity},

		// Revocation.
		"no answers":            {func(_ *testing.T, s *sim) { s.answers = nil }, "nvidia.revocation", attest.ReasonCollateralMissing},
		"no answer for the ICA": {func(_ *testing.T, s *sim) { s.answers = s.answers[:1] }, "nvidia.revocation", attest.ReasonCollateralMissing},
		"answers in any order":  {func(_ *testing.T, s *sim) { slices.Reverse(s.answers) }, "", ""},
		"revoked":               {func(t *testing.T, s *sim) { s.answers[0] = s.answer(t, 1, ocsp.Revoked) }, "nvidia.revocation", attest.ReasonRevoked},
		"revoked, and good":     {func(t *testing.T, s *sim) { s.answers = append(s.answers, s.answer(t, 2, ocsp.Revoked)) }, "nvidia.revocation", attest.ReasonRevoked},
		"not known":             {func(t *testing.T, s *sim) { s.answers[0] = s.answer(t, 1, ocsp.Unknown) }, "nvidia.revocation", attest.ReasonCollateralInvalid},
		"an old answer":         {response(func(r *ocsp.Response) { r.ThisUpdate, r.NextUpdate = now.Add(-2*time.Hour), now.Add(-time.Hour) }), "nvidia.revocation", attest.ReasonCollateralMissing},
		"an answer of tomorrow": {response(func(r *ocsp.Response) { r.ThisUpdate, r.NextUpdate = now.Add(time.Hour), now.Add(2*time.Hour) }), "nvidia.revocation", attest.ReasonCollateralMissing},
		"an answer without end": {response(func(r *ocsp.Response) { r.NextUpdate = time.Time{} }), "nvidia.revocation", attest.ReasonCollateralMissing},
		"an old word: revoked": {response(func(r *ocsp.Response) {
			r.Status, r.RevokedAt, r.ThisUpdate, r.NextUpdate = ocsp.Revoked, now, now.Add(-2*time.Hour), now.Add(-time.Hour)
		}), "nvidia.revocation", attest.ReasonRevoked},
		"of another certificate": {response(func(r *ocsp.Response) { r.SerialNumber = big.NewInt(9) }), "nvidia.revocation", attest.ReasonCollateralInvalid},
		"signed by the device": {func(t *testing.T, s *sim) {
			s.answers[0] = s.answerWith(t, ocsp.Response{SerialNumber: s.chain[1].SerialNumber, ThisUpdate: now, NextUpdate: now.Add(time.Hour)}, 1, nil, s.keys[1])
		}, "nvidia.revocation", attest.ReasonCollateralInvalid},
		"junk for an answer":  {func(_ *testing.T, s *sim) { s.answers[0] = []byte("junk") }, "nvidia.revocation", attest.ReasonCollateralInvalid},
		"by a responder":      {responder(func(*x509.Certificate) {}), "", ""},
		"by no responder":     {responder(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), "nvidia.revocation", attest.ReasonCollateralInvalid},
		"by an old responder": {responder(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) }), "nvidia.revocation", attest.ReasonCollateralMissing},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, "GH100")
			cfg := s.config()
			if name == "a chip of the future" {
				f := newSim(t, "GX100")
				cfg, tc.edit = f.config(), func(_ *testing.T, s *sim) { *s = *f }
			}
			tc.edit(t, s)
			_, err := newVerifier(t, cfg).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
			if tc.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, tc.check, tc.reason)
		})
	}
	// Answers are optional where evidence is looked at; what they say is not.
	s := newSim(t, "GH100")
	cfg := s.config()
	cfg.OCSPOptional = true
	s.answers = [][]byte{s.answer(t, 1, ocsp.Revoked)}
	_, err := newVerifier(t, cfg).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
	wantError(t, err, "nvidia.revocation", attest.ReasonRevoked)
	s.answers = nil
	cl, err := newVerifier(t, cfg).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if c := cl.NVIDIA.(*nvidia.Claims); c.Revocation != "unknown" || len(c.RevocationMissing) != 2 || cl.Collateral.State != attest.CollateralExpired {
		t.Errorf("claims without answers %+v, %+v", cl, c)
	}
}

// below has the leaf issue another leaf, and sign with that.
func (s *sim) below(t testing.TB) {
	t.Helper()
	k := newKey(t, elliptic.P384())
	c := s.issue(t, leafTemplate(t, "GH100"), &k.PublicKey, s.chain[0], s.keys[0])
	s.chain, s.keys[0] = append([]*x509.Certificate{c}, s.chain...), k
}

// TestSwitchIdentity: a switch reports the identifier that it is certified for.
func TestSwitchIdentity(t *testing.T) {
	s := newSim(t, "LS_10")
	s.set(22, bytes.Repeat([]byte{9}, 8))
	_, err := newVerifier(t, s.config()).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
	wantError(t, err, "nvidia.identity", attest.ReasonMismatch)
	s.drop(22)
	_, err = newVerifier(t, s.config()).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now)
	wantError(t, err, "nvidia.identity", attest.ReasonMismatch)
}

// TestBlocks: the measurement record is one list, in order, and as long as it says.
func TestBlocks(t *testing.T) {
	s := newSim(t, "GH100")
	const size = 55
	for name, tc := range map[string]struct {
		edit func([]byte) []byte
		n    int
	}{
		"an index twice":    {func(b []byte) []byte { b[size] = 1; return b }, 64},
		"two exchanged":     {func(b []byte) []byte { b[0], b[size] = 2, 1; return b }, 64},
		"index zero":        {func(b []byte) []byte { b[0] = 0; return b }, 64},
		"not DMTF's":        {func(b []byte) []byte { b[1] = 2; return b }, 64},
		"a size of more":    {func(b []byte) []byte { b[2]++; return b }, 64},
		"a value of more":   {func(b []byte) []byte { b[5]++; return b }, 64},
		"one fewer":         {func(b []byte) []byte { return b[:63*size] }, 64},
		"one fewer counted": {func(b []byte) []byte { return b }, 63},
		"half a block":      {func(b []byte) []byte { return b[:63*size+20] }, 64},
		"junk behind":       {func(b []byte) []byte { return append(b, 1, 2, 3) }, 64},
	} {
		report := s.sign(t, tc.edit(s.record()), tc.n)
		_, err := newVerifier(t, s.config()).Verify(t.Context(), attest.Evidence{Type: attest.TypeNVIDIA, Report: report, Endorsements: s.endorsements()}, attest.BindTo(transcript), nil, now)
		if err == nil {
			t.Errorf("%s: believed", name)
			continue
		}
		wantError(t, err, "nvidia.format", attest.ReasonMalformed)
	}
}

// TestEndorsements: PEM of two types, and nothing beside it.
func TestEndorsements(t *testing.T) {
	s := newSim(t, "GH100")
	report, good := s.report(t), s.endorsements()
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})
	for name, e := range map[string][]byte{
		"text before":   append([]byte("text\n"), good...),
		"text behind":   append(slices.Clone(good), "text"...),
		"another type":  append(slices.Clone(good), key...),
		"a broken one":  append([]byte("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), good...),
		"one cut":       good[:len(good)-5],
		"an empty one":  append([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), good...),
		"a large one":   append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: make([]byte, 9<<10)}), good...),
		"too much":      bytes.Repeat(good, 20),
		"no line break": bytes.Replace(good, []byte("-----\n-----BEGIN"), []byte("----------BEGIN"), 1),
	} {
		_, err := newVerifier(t, s.config()).Verify(t.Context(), attest.Evidence{Type: attest.TypeNVIDIA, Report: report, Endorsements: e}, attest.BindTo(transcript), nil, now)
		if err == nil {
			t.Errorf("%s: believed", name)
			continue
		}
		wantError(t, err, "nvidia.format", attest.ReasonMalformed)
	}
	if _, err := newVerifier(t, nvidia.Config{}).Verify(t.Context(), s.evidence(t), attest.BindTo(transcript), nil, now); err == nil {
		t.Error("a test root was believed without being one")
	}
}

// TestHugeResponder: a responder's key is bounded, and vouched for, before it is used.
func TestHugeResponder(t *testing.T) {
	s := newSim(t, "GH100")
	k := newKey(t, elliptic.P384())
	tmpl := x509.Certificate{Subject: pkix.Name{CommonName: "responder"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}}
	fresh := ocsp.Response{Status: ocsp.Good, SerialNumber: s.chain[1].SerialNumber, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	huge := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 39999, 1), E: 1<<31 - 1}
	other := newSim(t, "GH100")
	stranger := other.issue(t, tmpl, &k.PublicKey, other.chain[2], other.keys[2])
	for want, c := range map[string]*x509.Certificate{"40000 bits": s.issue(t, tmpl, huge, s.chain[2], s.keys[2]), "no responder of": stranger} {
		s.answers[0] = s.answerWith(t, fresh, 1, c, k)
		_, err := newVerifier(t, s.config()).Verify(t.Context(), s.evidence(t), attest.Unbound(), nil, now)
		wantError(t, err, "nvidia.revocation", attest.ReasonCollateralInvalid)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, chip := range []string{"GH100", "LS_10"} {
		s := newSim(f, chip)
		f.Add(s.report(f), s.endorsements())
	}
	f.Add([]byte{0x11, 0xe0, 1, 0xff}, []byte("-----BEGIN CERTIFICATE-----\n"))
	v := newVerifier(f, nvidia.Config{OCSPOptional: true})
	f.Fuzz(func(t *testing.T, report, endorsements []byte) {
		ev := attest.Evidence{Type: attest.TypeNVIDIA, Report: report, Endorsements: endorsements}
		_, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, now)
		if attest.ReasonOf(err) == attest.ReasonInternal && err != nil {
			t.Errorf("internal: %v", err)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(goodRIM))
	f.Add([]byte("<a><b></a>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if product, version, golden, err := nvidia.ParseManifest(b); err == nil && (product == "" || version == "" || len(golden) == 0) {
			t.Errorf("a manifest without a name, or of nothing: %q, %q, %v", product, version, golden)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := newSim(b, "GH100")
	v := newVerifier(b, s.config())
	benchmark(b, s, func() *nvidia.Verifier { return v })
}

// BenchmarkVerifyCold has the signatures of the chain and of the OCSP answers beside the report's.
func BenchmarkVerifyCold(b *testing.B) {
	s := newSim(b, "GH100")
	benchmark(b, s, func() *nvidia.Verifier { return newVerifier(b, s.config()) })
}

func benchmark(b *testing.B, s *sim, verifier func() *nvidia.Verifier) {
	ev := s.evidence(b)
	benchtest.Loop(b, func() error {
		_, err := verifier().Verify(b.Context(), ev, attest.BindTo(transcript), nil, now)
		return err
	})
}

// BenchmarkFloor: the report's signature; chain and OCSP answers are remembered.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.P384) }
