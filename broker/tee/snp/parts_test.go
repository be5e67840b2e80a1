package snp

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
)

// TestBits: each bit of POLICY and PLATFORM_INFO has its own claim.
func TestBits(t *testing.T) {
	for p, want := range map[uint64]Policy{
		0:          {UnknownBits: "0"},
		0x0201:     {ABIMajor: 2, ABIMinor: 1, UnknownBits: "0"},
		1 << 16:    {SMT: true, UnknownBits: "0"},
		1 << 17:    {UnknownBits: "0"},
		1 << 18:    {MigrateMA: true, UnknownBits: "0"},
		1 << 19:    {Debug: true, UnknownBits: "0"},
		1 << 20:    {SingleSocket: true, UnknownBits: "0"},
		1 << 21:    {CXLAllow: true, UnknownBits: "0"},
		1 << 22:    {MemAES256XTS: true, UnknownBits: "0"},
		1 << 23:    {RAPLDis: true, UnknownBits: "0"},
		1 << 24:    {CiphertextHidingDRAM: true, UnknownBits: "0"},
		1 << 25:    {PageSwapDisable: true, UnknownBits: "0"},
		1<<26 | 1:  {ABIMinor: 1, UnknownBits: decimal(1 << 26)},
		1<<63 | 16: {ABIMinor: 16, UnknownBits: decimal(1 << 63)},
	} {
		want.Raw = decimal(p)
		if d := cmp.Diff(want, parsePolicy(p)); d != "" {
			t.Errorf("policy %#x (-want +got):\n%s", p, d)
		}
	}
	for p, want := range map[uint64]PlatformInfo{
		0:       {UnknownBits: "0"},
		1 << 0:  {SMTEn: true, UnknownBits: "0"},
		1 << 1:  {TSMEEn: true, UnknownBits: "0"},
		1 << 2:  {ECCEn: true, UnknownBits: "0"},
		1 << 3:  {RAPLDis: true, UnknownBits: "0"},
		1 << 4:  {CiphertextHidingDRAMEn: true, UnknownBits: "0"},
		1 << 5:  {AliasCheckComplete: true, UnknownBits: "0"},
		1 << 6:  {UnknownBits: "64"},
		1 << 7:  {TIOEn: true, UnknownBits: "0"},
		1 << 8:  {UnknownBits: "256"},
		1 << 63: {UnknownBits: decimal(1 << 63)},
	} {
		want.Raw = decimal(p)
		if d := cmp.Diff(want, parsePlatformInfo(p)); d != "" {
			t.Errorf("platform info %#x (-want +got):\n%s", p, d)
		}
	}
}

// TestProductOf: the models of each line begin and end where AMD says.
func TestProductOf(t *testing.T) {
	for cpu, want := range map[[2]uint8]struct {
		l     line
		model string
	}{
		{0x19, 0x00}: {milan, "Milan"}, {0x19, 0x0f}: {milan, "Milan"}, {0x19, 0x10}: {genoa, "Genoa"}, {0x19, 0x1f}: {genoa, "Genoa"}, {0x19, 0x20}: {},
		{0x19, 0x9f}: {}, {0x19, 0xa0}: {genoa, "Siena or Bergamo"}, {0x19, 0xaf}: {genoa, "Siena or Bergamo"}, {0x19, 0xb0}: {},
		{0x1a, 0x00}: {turin, "Turin"}, {0x1a, 0x11}: {turin, "Turin"}, {0x1a, 0x12}: {}, {0x18, 0x01}: {}, {0x1b, 0x01}: {},
	} {
		l, model, err := (&report{family: cpu[0], model: cpu[1]}).product()
		if l != want.l || model != want.model || (err == nil) != (want.l != "") {
			t.Errorf("CPUID %#x: %q, %q, %v", cpu, l, model, err)
		}
	}
	for k, want := range map[signingKey]string{keyVCEK: "vcek", keyVLEK: "vlek", keyNone: "none", 2: "none"} {
		if k.String() != want {
			t.Errorf("SIGNING_KEY %d is %q", k, k)
		}
	}
}

// TestReserved: every reserved range is looked at from its first byte to its last, and no other byte.
func TestReserved(t *testing.T) {
	l := newLab(t)
	for version, ranges := range map[uint32][][2]int{
		2: {{0x4c, 0x50}, {0x188, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x1f8, 0x2a0}, {0x330, 0x4a0}},
		3: {{0x4c, 0x50}, {0x18b, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x1f8, 0x2a0}, {0x330, 0x4a0}},
		4: {{0x4c, 0x50}, {0x18b, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x1f8, 0x2a0}, {0x330, 0x4a0}},
		5: {{0x4c, 0x50}, {0x18b, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x208, 0x2a0}, {0x330, 0x4a0}},
	} {
		good := l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{Version: version}).Report
		for _, z := range ranges {
			for off, refused := range map[int]bool{z[0] - 1: false, z[0]: true, z[1] - 1: true, z[1]: false} {
				if off == reportSize {
					continue
				}
				b := bytes.Clone(good)
				b[off] ^= 1
				if off == 0x4b {
					continue // the key flags, whose own bits are reserved
				}
				if _, err := parseReport(b, &appraisal{}); (err != nil) != refused {
					t.Errorf("version %d, byte %#x: %v", version, off, err)
				}
			}
		}
	}
}

// checksOf is "name outcome" of each check, in order.
func checksOf(cl attest.Claims) string {
	var out []string
	for _, c := range cl.Checks {
		name := strings.TrimPrefix(c.Name, "snp.")
		if c.Outcome != attest.Passed {
			name += " " + string(c.Outcome)
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// TestVersions: what a version adds is claimed from that version on; and all checks are listed, in their order.
func TestVersions(t *testing.T) {
	const (
		before = "report, version, signature_algo, reserved, report_data, signing_key, tcb_order, product, cert_table, leaf, kds_extensions, reported_tcb, "
		after  = ", chain, validity, crl, revocation, signature"
	)
	l := newLab(t)
	d, provider := l.device(t, teesim.DeviceOptions{}), l.device(t, teesim.DeviceOptions{VLEK: true, CSPID: "csp"})
	for _, c := range []struct {
		version     uint32
		cpuid, mits bool
	}{{2, false, false}, {3, true, false}, {4, true, false}, {5, true, true}} {
		cl, err := l.verify(t, evidence(t, d, teesim.ReportOptions{Version: c.version, Patch: func(b []byte) {
			b[0x48] |= 1 | 2 // AUTHOR_KEY_EN, MASK_CHIP_KEY
			if c.cpuid {
				b[0x18a] = 3
			}
			if c.mits {
				b[0x1f8], b[0x200], b[0x207] = 4, 5, 1
			}
		}}))
		if err != nil {
			t.Errorf("version %d: %v", c.version, err)
			continue
		}
		s := cl.SNP.(*Claims)
		if !s.AuthorKeyEn || !s.MaskChipKey || s.SigningKey != "VCEK" || s.SignatureAlgo != 1 || s.Version != c.version || cl.HardwareModel != "Milan" || s.HostRequested {
			t.Errorf("version %d: %+v", c.version, s)
		}
		if c.cpuid != (s.CPUIDFamID != nil && s.CPUIDModID != nil && s.CPUIDStep != nil) || c.cpuid && (*s.CPUIDFamID != 0x19 || *s.CPUIDModID > 0x0f || *s.CPUIDStep != 3) {
			t.Errorf("version %d: CPUID %v %v %v", c.version, s.CPUIDFamID, s.CPUIDModID, s.CPUIDStep)
		}
		if want := map[bool][2]string{true: {"4", decimal(1<<56 | 5)}}[c.mits]; [2]string{s.LaunchMitVector, s.CurrentMitVector} != want {
			t.Errorf("version %d: mitigations %q %q", c.version, s.LaunchMitVector, s.CurrentMitVector)
		}
		want := before + "chip_id" + after
		if c.version == 2 { // the certificate says
			want = strings.Replace(strings.Replace(want, "product, ", "", 1), "chip_id", "chip_id, product", 1)
		}
		if got := checksOf(cl); got != want {
			t.Errorf("version %d: checks %s\nwant %s", c.version, got, want)
		}
	}
	cl, err := l.verify(t, evidence(t, provider, teesim.ReportOptions{}))
	if got := checksOf(cl); err != nil || got != before+"chip_id skipped"+after || cl.SNP.(*Claims).CSPID != "csp" || cl.SNP.(*Claims).SigningKey != "VLEK" {
		t.Errorf("VLEK: %v, checks %s", err, got)
	}
	cl, err = l.verifier.Verify(t.Context(), evidence(t, d, teesim.ReportOptions{}), attest.Unbound(), l.collateral, simNow)
	if err != nil || cl.Bound || outcome(cl, checkReportData) != attest.Skipped {
		t.Errorf("without a binding: %v, checks %s", err, checksOf(cl))
	}
	for name, c := range map[string]attest.Evidence{
		"a byte of event log":  {Type: attest.TypeSNP, EventLog: []byte{1}},
		"another type":         {Type: attest.TypeTDX},
		"a table that is huge": {Type: attest.TypeSNP, Endorsements: make([]byte, attest.MaxEndorsementsSize+1)},
	} {
		c.Report = evidence(t, d, teesim.ReportOptions{}).Report
		cl, err := l.verify(t, c)
		reason := attest.ReasonMalformed
		if c.Type != attest.TypeSNP {
			reason = attest.ReasonUnsupported
		}
		t.Run(name, func(t *testing.T) { wantFailure(t, cl, err, checkReport, reason) })
	}
	// The longest table is read, and this one has no end.
	long := evidence(t, d, teesim.ReportOptions{})
	long.Endorsements = bytes.Repeat([]byte{1}, attest.MaxEndorsementsSize)
	cl, err = l.verify(t, long)
	wantFailure(t, cl, err, checkCertTable, attest.ReasonMalformed)
	// An error is the last check's detail.
	ev := evidence(t, d, teesim.ReportOptions{})
	ev.Endorsements = []byte("no table")
	cl, err = l.verify(t, ev)
	wantFailure(t, cl, err, checkCertTable, attest.ReasonMalformed)
	if got := cl.Checks[len(cl.Checks)-1].Detail; err == nil || got != err.Error() {
		t.Errorf("detail %q", got)
	}
}

// TestKDSExtensionForms: AMD's extensions are complete and in form, and each refusal says which is not.
func TestKDSExtensionForms(t *testing.T) {
	oid := func(arc ...int) asn1.ObjectIdentifier { return append(slices.Clone(oidKDS), arc...) }
	hwid := bytes.Repeat([]byte{7}, hwidSize)
	for name, c := range map[string]struct {
		change map[string][]byte // by arc; nil: none
		want   string            // of the error
	}{
		"complete":              {nil, ""},
		"Turin":                 {map[string][]byte{"2": []byte("\x16\x08Turin-B0"), "3.4": nil, "3.9": {2, 1, 99}}, ""},
		"no level of microcode": {map[string][]byte{"3.8": nil}, "no security patch level 8"},
		"another in its place":  {map[string][]byte{"3.8": nil, "3.9": {2, 1, 0}}, "no security patch level 8"},
		"one too many":          {map[string][]byte{"3.9": {2, 1, 0}}, "9 security patch levels, want 8"},
		"no number of a level":  {map[string][]byte{"3": {2, 1, 0}}, "unknown extension"},
		"levels of a level":     {map[string][]byte{"3.8.1": {2, 1, 0}}, "unknown extension"},
		"two arcs elsewhere":    {map[string][]byte{"4.1": {2, 1, 0}}, "unknown extension"},
		"two arcs below 2":      {map[string][]byte{"2.1": {0x16, 1, 'x'}}, "unknown extension"},
		"two arcs below 1":      {map[string][]byte{"1.1": {2, 1, 0}}, "unknown extension"},
		"two arcs below 5":      {map[string][]byte{"5.1": {0x16, 1, 'x'}}, "unknown extension"},
		"structure's version":   {map[string][]byte{"1": {2, 1, 0}}, ""},
		"no line of products":   {map[string][]byte{"2": {0x16, 2, 'M', 'i'}}, `unknown product name "Mi"`},
		"level is no integer":   {map[string][]byte{"3.8": {4, 1, 0}}, "3.8: asn1"},
		"a bad HWID":            {map[string][]byte{"4": {1}}, ".4: asn1"},
		"a bad CSP_ID":          {map[string][]byte{"5": {1}}, ".5: asn1"},
	} {
		values := map[string][]byte{"2": []byte("\x16\x08Milan-B0"), "4": hwid}
		for i := range 8 {
			values[fmt.Sprintf("3.%d", i+1)] = []byte{2, 1, byte(10 + i)}
		}
		maps.Copy(values, c.change)
		var cert x509.Certificate
		for _, arc := range slices.Sorted(maps.Keys(values)) {
			if values[arc] == nil {
				continue
			}
			var id []int
			for n := range strings.SplitSeq(arc, ".") {
				id = append(id, int(n[0]-'0'))
			}
			cert.Extensions = append(cert.Extensions, pkix.Extension{Id: oid(id...), Value: values[arc]})
		}
		k, err := parseKDSExtensions(&cert)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) || k.line != "" {
				t.Errorf("%s: %+v, %v; want %q", name, k, err, c.want)
			}
			continue
		}
		want := kdsExtensions{milan, "Milan-B0", [8]byte{10, 11, 13, 14, 15, 16, 12, 17}, hwid, ""}
		if name == "Turin" {
			want = kdsExtensions{turin, "Turin-B0", [8]byte{99, 10, 11, 12, 14, 15, 16, 17}, hwid, ""}
		}
		if err != nil || !cmp.Equal(k, want, cmp.AllowUnexported(kdsExtensions{})) {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
	ia5Of := func(n int) []byte {
		b, err := asn1.MarshalWithParams(strings.Repeat("x", n), "ia5")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		der  []byte
		n    int
		want string
	}{
		{ia5Of(1), 1, ""}, {ia5Of(maxNameSize), maxNameSize, ""}, {ia5Of(maxNameSize + 1), 0, "a string of 257 bytes, 0 after it"}, {ia5Of(0), 0, "a string of 0 bytes"},
		{append(ia5Of(2), 0), 0, "2 bytes, 1 after it"}, {[]byte{0x0c, 1, 'x'}, 0, "not an IA5String"}, {nil, 0, "asn1"}, {[]byte{2, 1, 1}, 0, "asn1"},
	} {
		if s, err := ia5(c.der); len(s) != c.n || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("string of %x: %q, %v; want %q", c.der, s, err, c.want)
		}
	}
	for _, c := range []struct {
		der  []byte
		n    uint8
		want string
	}{
		{[]byte{2, 1, 0}, 0, ""}, {[]byte{2, 2, 0, 255}, 255, ""}, {[]byte{2, 2, 1, 0}, 0, "level 256"}, {[]byte{2, 1, 0xff}, 0, "level -1"}, {[]byte{2, 1, 5, 0}, 0, "level 5"},
		{nil, 0, "asn1"}, {[]byte{4, 1, 5}, 0, "asn1"},
	} {
		if n, err := uint8DER(c.der); n != c.n || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("level of %x: %d, %v; want %q", c.der, n, err, c.want)
		}
	}
	for _, c := range []struct {
		b    []byte
		n    int
		want string
	}{
		{hwid, hwidSize, ""}, {hwid[:8], turinHWIDSize, ""}, {append([]byte{4, 64}, hwid...), hwidSize, ""}, {append([]byte{4, 8}, hwid[:8]...), turinHWIDSize, ""},
		{append([]byte{4, 63}, hwid[:63]...), 0, "63 bytes"}, {append([]byte{4, 9}, hwid[:9]...), 0, "9 bytes"}, {append([]byte{4, 8}, hwid[:9]...), 0, "8 bytes"}, {nil, 0, "asn1"}, {[]byte{2, 1, 5}, 0, "asn1"},
	} {
		if b, err := octets(c.b); len(b) != c.n || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("hardware id of %x: %x, %v; want %q", c.b, b, err, c.want)
		}
	}
}

// TestCoversCAs: a list is for authorities whatever its distribution point says of where it is, and nothing else.
func TestCoversCAs(t *testing.T) {
	for _, c := range []struct {
		der string
		ok  bool
	}{
		{"\x30\x00", true}, {"\x30\x02\xa0\x00", true}, {"\x30\x03\x82\x01\xff", true}, {"\x30\x05\xa0\x00\x82\x01\xff", true},
		{"\x30\x03\x81\x01\xff", false}, {"\x30\x02\x83\x00", false}, {"\x30\x05\xa0\x00\x81\x01\xff", false}, {"\x30\x05\x81\x01\xff\xa0\x00", false}, {"\x30\x03\x84\x01\xff", false},
		{"\x30\x03\x02\x01\x01", false}, {"\x30\x02\x40\x00", false}, {"\x30\x00\x00", false}, {"\x30\x00\x00\x00", false}, {"\x31\x00", false}, {"\x30\x02\xa0\x01", false}, {"\x30", false}, {"", false},
	} {
		if got := coversCAs([]byte(c.der)); got != c.ok {
			t.Errorf("%x: %v", c.der, got)
		}
	}
}

// TestCRLBounds: a list is as long as it may be, and no longer.
func TestCRLBounds(t *testing.T) {
	root, key := ca(t, pkix.Name{CommonName: "r"}, nil, nil)
	root.SubjectKeyId = []byte{1}
	r := anchor{cert: root, simulated: true}
	list := func(change func(*x509.RevocationList)) []byte {
		l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: simNow, NextUpdate: simNow.Add(time.Hour)}
		change(l)
		der, err := x509.CreateRevocationList(rand.Reader, l, root, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	sized := func(size int) []byte {
		n := size - 500
		for range 100 { // the signature varies by a few bytes
			der := list(func(l *x509.RevocationList) {
				l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, n)}}
			})
			if len(der) == size {
				return der
			}
			n += size - len(der)
		}
		t.Fatalf("no list of %d bytes", size)
		return nil
	}
	point := func(critical bool, value string) []byte {
		return list(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: oidIssuingDistributionPoint, Critical: critical, Value: []byte(value)}}
		})
	}
	for name, c := range map[string]struct {
		der  []byte
		want string
	}{
		"the longest":     {sized(maxCRLSize), ""},
		"longer":          {sized(maxCRLSize + 1), fmt.Sprintf("%d bytes, more than %d", maxCRLSize+1, maxCRLSize)},
		"for authorities": {point(true, "\x30\x03\x82\x01\xff"), ""},
		"for others":      {point(true, "\x30\x03\x81\x01\xff"), "critical extension 2.5.29.28"},
		"for others, lax": {point(false, "\x30\x03\x81\x01\xff"), ""},
		"a byte after it": {append(list(func(*x509.RevocationList) {}), 0), "1 bytes after the list"},
		"nothing":         {nil, "x509"},
		"another critical": {list(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte("\x30\x00")}}
		}), "critical extension 1.2.3"},
	} {
		rl, err := parseCRL(c.der, r)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil && (!rl.thisUpdate.Equal(simNow) || !rl.nextUpdate.Equal(simNow.Add(time.Hour)) || rl.number.Int64() != 1) {
			t.Errorf("%s: %+v", name, rl)
		}
	}
}

// TestCRLEdition: a list is older than another by its number or by its date; each alone keeps it from coming back.
func TestCRLEdition(t *testing.T) {
	root, key := ca(t, pkix.Name{CommonName: "r"}, nil, nil)
	root.SubjectKeyId = []byte{1}
	at := func(number int64, age time.Duration) attest.Collateral {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: simNow.Add(-age), NextUpdate: simNow.Add(time.Hour)}, root, key)
		if err != nil {
			t.Fatal(err)
		}
		return teetest.MapCollateral{{Kind: attest.SNPCRL, Key: "milan/vcek"}: {Data: der}}
	}
	ch := &chain{leaf: &leaf{kind: keyVCEK}, root: anchor{cert: root, simulated: true}, line: milan}
	for name, c := range map[string]struct {
		number int64
		age    time.Duration
		ok     bool
	}{"newer": {6, time.Minute, true}, "the same": {5, time.Hour, true}, "a lower number": {4, time.Minute, false}, "an earlier date": {5, 2 * time.Hour, false}} {
		v := &Verifier{}
		if _, err := v.crl(t.Context(), ch, at(5, time.Hour), simNow, &appraisal{}); err != nil {
			t.Fatal(err)
		}
		if _, err := v.crl(t.Context(), ch, at(c.number, c.age), simNow, &appraisal{}); (err == nil) != c.ok || err != nil && attest.ReasonOf(err) != attest.ReasonCollateralExpired {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLinkAlgorithms: below a root of AMD, RSA-PSS signs issuers and leaves, and nothing else does.
func TestLinkAlgorithms(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecIssuer, ecKey := ca(t, pkix.Name{CommonName: "SEV-Milan"}, nil, nil)
	make := func(cn string, alg x509.SignatureAlgorithm, parent *x509.Certificate, pub, signer any) *x509.Certificate {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: simNow.AddDate(-1, 0, 0), NotAfter: simNow.AddDate(9, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: alg}
		if parent == nil {
			parent = tmpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const pss, pkcs1, ec = x509.SHA384WithRSAPSS, x509.SHA384WithRSA, x509.ECDSAWithSHA384
	root := make("ARK-Milan", pss, nil, key.Public(), key)
	issuer, weak := make("SEV-Milan", pss, root, key.Public(), key), make("SEV-Milan", pkcs1, root, key.Public(), key)
	curve := make("SEV-Milan", pss, root, ecIssuer.PublicKey, key)
	for name, c := range map[string]struct {
		issuer, leaf *x509.Certificate
		want         string
	}{
		"as AMD signs":            {issuer, make("SEV-VCEK", pss, issuer, ecIssuer.PublicKey, key), ""},
		"a leaf by PKCS #1":       {issuer, make("SEV-VCEK", pkcs1, issuer, ecIssuer.PublicKey, key), "signature algorithm SHA384-RSA"},
		"a leaf by ECDSA":         {curve, make("SEV-VCEK", ec, curve, ecIssuer.PublicKey, ecKey), "signature algorithm ECDSA"},
		"an issuer by PKCS #1":    {weak, make("SEV-VCEK", pss, weak, ecIssuer.PublicKey, key), `issuer "SEV-Milan": signature algorithm SHA384-RSA`},
		"a leaf by another":       {issuer, make("SEV-VCEK", ec, ecIssuer, ecIssuer.PublicKey, ecKey), "signature algorithm ECDSA"},
		"a leaf of another's key": {curve, make("SEV-VCEK", pss, issuer, ecIssuer.PublicKey, key), `vcek under "SEV-Milan"`},
		"of another issuer":       {issuer, make("SEV-VCEK", pss, root, ecIssuer.PublicKey, key), `issuer "CN=SEV-Milan", want "CN=ARK-Milan"`},
	} {
		v := &Verifier{anchors: map[line][]anchor{milan: {{cert: root}}}}
		ch, err := v.link(&leaf{cert: c.leaf, kind: keyVCEK, kds: kdsExtensions{line: milan}}, source{issuer: c.issuer, der: c.issuer.Raw})
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || v.chains.Len() > 0) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil && (ch.line != milan || ch.issuer != c.issuer || ch.root.cert != root || v.chains.Len() != 1) {
			t.Errorf("%s: %+v", name, ch)
		}
	}
	// Where the root has another name.
	v := &Verifier{anchors: map[line][]anchor{milan: {{cert: ecIssuer}}}}
	lf := &leaf{cert: make("SEV-VCEK", pss, issuer, ecIssuer.PublicKey, key), kind: keyVCEK, kds: kdsExtensions{line: milan}}
	if _, err := v.link(lf, source{issuer: issuer, der: issuer.Raw}); err == nil || !strings.Contains(err.Error(), "is no pinned root of milan") {
		t.Error(err)
	}
	if err := (anchor{cert: ecIssuer}).signed(weak); err == nil || !strings.Contains(err.Error(), `is issued by "ARK-Milan", not by the root`) {
		t.Error(err)
	}
}

// TestBuildWithoutIssuer: where AMD's issuer is not built in, collateral has to bring one.
func TestBuildWithoutIssuer(t *testing.T) {
	l := newLab(t)
	lf, err := parseLeaf(l.device(t, teesim.DeviceOptions{}).Leaf(), keyVCEK)
	if err != nil {
		t.Fatal(err)
	}
	v := &Verifier{anchors: map[line][]anchor{milan: {{cert: l.root.ARK(), simulated: true}}}}
	for name, c := range map[string]struct {
		chain  []byte // nil: none
		ask    []byte
		reason attest.Reason
		want   string
	}{
		"none":               {nil, nil, attest.ReasonCollateralMissing, "milan/vcek"},
		"no chain":           {[]byte("x"), nil, attest.ReasonCollateralInvalid, "collateral chain of milan"},
		"another's":          {pemOf(l.root.ASK("Genoa")), nil, attest.ReasonChain, `issuer "SEV-Genoa", want "SEV-Milan"`},
		"the guest's is bad": {nil, []byte{0x30, 0}, attest.ReasonChain, "issuer: x509"},
		"both are bad":       {pemOf(l.root.ASK("Genoa")), []byte{0x30, 0}, attest.ReasonChain, `issuer "SEV-Genoa", want "SEV-Milan"`},
		"the right one":      {pemOf(l.root.ASK("Milan")), []byte{0x30, 0}, "", ""},
	} {
		m := teetest.MapCollateral{}
		if c.chain != nil {
			m[attest.CollateralRef{Kind: attest.SNPChain, Key: "milan/vcek"}] = attest.CollateralItem{Data: c.chain}
		}
		ch, err := v.build(t.Context(), lf, certTable{ask: c.ask}, m, &appraisal{})
		if c.want == "" {
			if err != nil || ch == nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		e, ok := errors.AsType[*attest.Error](err)
		if ch != nil || !ok || e.Check != checkChain || e.Reason != c.reason || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s %q", name, err, c.reason, c.want)
		}
	}
}

// TestKindOfMemoised: a chip's certificate that is known does not pass for a provider's.
func TestKindOfMemoised(t *testing.T) {
	l := newLab(t)
	d := l.device(t, teesim.DeviceOptions{})
	if _, err := l.verify(t, evidence(t, d, teesim.ReportOptions{})); err != nil {
		t.Fatal(err)
	}
	ev := evidence(t, d, teesim.ReportOptions{Patch: func(b []byte) { b[0x48] |= byte(keyVLEK) << 2 }})
	ev.Endorsements = certTableOf{guidVLEK: d.Leaf(), guidASK: l.root.ASK("Milan").Raw}.encode()
	cl, err := l.verify(t, ev)
	wantFailure(t, cl, err, checkLeaf, attest.ReasonMismatch)
}

// TestLeafKinds: a provider's certificate names the provider, and no chip.
func TestLeafKinds(t *testing.T) {
	l := newLab(t)
	good, err := x509.ParseCertificate(l.device(t, teesim.DeviceOptions{VLEK: true}).Leaf())
	if err != nil {
		t.Fatal(err)
	}
	amd := slices.DeleteFunc(slices.Clone(good.Extensions), func(e pkix.Extension) bool {
		return len(e.Id) <= len(oidKDS) || !e.Id[:len(oidKDS)].Equal(oidKDS)
	})
	hwid := pkix.Extension{Id: append(slices.Clone(oidKDS), 4), Value: make([]byte, hwidSize)}
	cl, err := l.verify(t, l.evidence(t, teesim.DeviceOptions{VLEK: true, Extensions: append(slices.Clone(amd), pkix.Extension{Id: append(slices.Clone(oidKDS), 6), Value: []byte{5, 0}})}, teesim.ReportOptions{}))
	wantFailure(t, cl, err, checkKDSExtensions, attest.ReasonMalformed)
	if !strings.Contains(err.Error(), "unknown extension") {
		t.Error(err)
	}
	noCSP := slices.DeleteFunc(slices.Clone(amd), func(e pkix.Extension) bool { return e.Id[len(oidKDS)] == 5 })
	for name, ext := range map[string][]pkix.Extension{"with a chip": append(slices.Clone(amd), hwid), "without a provider": noCSP, "a chip's": append(slices.Clone(noCSP), hwid)} {
		cl, err := l.verify(t, l.evidence(t, teesim.DeviceOptions{VLEK: true, Extensions: ext}, teesim.ReportOptions{}))
		t.Run(name, func(t *testing.T) {
			wantFailure(t, cl, err, checkKDSExtensions, attest.ReasonMalformed)
			if !strings.Contains(err.Error(), "a VLEK needs a CSP_ID and no HWID") {
				t.Error(err)
			}
		})
	}
}

// TestPEMBounds: certificates and nothing else, and not many.
func TestPEMBounds(t *testing.T) {
	one := newLab(t).root.RootPEM()
	for _, c := range []struct {
		b  []byte
		n  int
		ok bool
	}{{bytes.Repeat(one, 4), 4, true}, {bytes.Repeat(one, 5), 0, false}, {[]byte("x"), 0, false}, {append(bytes.Clone(one), 'x'), 0, false}} {
		if list, err := parsePEM(c.b); len(list) != c.n || (err == nil) != c.ok {
			t.Errorf("%d certificates, %v", len(list), err)
		}
		if list, err := parseChainPEM(c.b); len(list) != c.n || (err == nil) != c.ok {
			t.Errorf("a chain of %d certificates, %v", len(list), err)
		}
	}
	if _, err := parseChainPEM(nil); err == nil {
		t.Error("a chain without certificates")
	}
}

// TestChangedRoots: go-sev-guest's variables anybody can change: a verifier with another root in them is not made.
func TestChangedRoots(t *testing.T) {
	was := trust.AskArkTurinVlekBytes
	defer func() { trust.AskArkTurinVlekBytes = was }()
	trust.AskArkTurinVlekBytes = trust.AskArkMilanVlekBytes
	if v, err := New(Config{}); err == nil || v != nil || !strings.Contains(err.Error(), "AMD bundle of turin vlek") {
		t.Errorf("got %v", err)
	}
}

// TestTableEntries: as many as may be, and an end.
func TestTableEntries(t *testing.T) {
	for n, ok := range map[int]bool{maxTableEntries: true, maxTableEntries + 1: false} {
		var b []byte
		for range n {
			e := append(bytes.Repeat([]byte("u"), 16), make([]byte, 8)...)
			binary.LittleEndian.PutUint32(e[16:], tableEntrySize)
			b = append(b, e...)
		}
		if _, err := parseCertTable(append(b, make([]byte, tableEntrySize)...)); (err == nil) != ok {
			t.Errorf("%d entries: %v", n, err)
		}
	}
}

// TestDescribe: what a report says, as it says it, and which certificates would prove it.
func TestDescribe(t *testing.T) {
	l := newLab(t)
	chip := bytes.Repeat([]byte{0x5a}, 64)
	milanKey, genoaKey := "milan/"+strings.Repeat("5a", 64)+"/db18000000000004", "genoa/"+strings.Repeat("5a", 64)+"/db18000000000004"
	milanDevice, turinDevice := l.device(t, teesim.DeviceOptions{ChipID: chip}), l.device(t, teesim.DeviceOptions{Product: "Turin", ChipID: chip[:8]})
	for name, c := range map[string]struct {
		d       *teesim.Device
		o       teesim.ReportOptions
		model   string
		line    string
		missing []string
	}{
		"version 2": {milanDevice, teesim.ReportOptions{Version: 2}, "unknown", "", []string{milanKey, genoaKey}},
		"version 3": {milanDevice, teesim.ReportOptions{Version: 3}, "Milan", "milan", []string{milanKey}},
		"Turin":     {turinDevice, teesim.ReportOptions{}, "Turin", "turin", []string{"turin/" + strings.Repeat("5a", 8) + "/6100000005020301"}},
		"masked":    {milanDevice, teesim.ReportOptions{MaskChipID: true}, "Milan", "milan", nil},
		"VLEK":      {milanDevice, teesim.ReportOptions{Patch: func(b []byte) { b[0x48] |= byte(keyVLEK) << 2 }}, "Milan", "milan", nil},
	} {
		cl, missing, err := Describe(evidence(t, c.d, c.o).Report)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s := cl.SNP.(*Claims)
		if cl.HardwareModel != c.model || s.ProductLine != c.line || !slices.Equal(missing, c.missing) || cl.BoundToCPUTEE || cl.Bound || s.LeafSerial != "" || s.LeafExpires != "" || s.HWID != "" || s.ReportData == "" {
			t.Errorf("%s: model %q, missing %q, claims %+v", name, cl.HardwareModel, missing, s)
		}
	}
	for name, b := range map[string][]byte{
		"a byte short":    evidence(t, milanDevice, teesim.ReportOptions{}).Report[1:],
		"unknown product": evidence(t, milanDevice, teesim.ReportOptions{Patch: func(b []byte) { b[0x188] = 0x17 }}).Report,
	} {
		if cl, missing, err := Describe(b); err == nil || cl.SNP != nil || missing != nil {
			t.Errorf("%s: %+v, %v", name, cl, err)
		}
	}
}

// TestBlame: what is wrong with a VCEK is the guest's fault if the guest brought it, or the root beside it.
func TestBlame(t *testing.T) {
	der := []byte{0x30}
	for name, c := range map[string]struct {
		key   signingKey
		table certTable
		err   error
		want  attest.Reason
	}{
		"malformed":        {keyVCEK, certTable{}, attest.Errorf("c", attest.ReasonMalformed, "x"), attest.ReasonCollateralInvalid},
		"another's":        {keyVCEK, certTable{}, attest.Errorf("c", attest.ReasonMismatch, "x"), attest.ReasonCollateralInvalid},
		"no chain":         {keyVCEK, certTable{}, attest.Errorf("c", attest.ReasonChain, "x"), attest.ReasonCollateralInvalid},
		"missing":          {keyVCEK, certTable{}, attest.Errorf("c", attest.ReasonCollateralMissing, "x"), attest.ReasonCollateralMissing},
		"only the ASK":     {keyVCEK, certTable{ask: der}, attest.Errorf("c", attest.ReasonChain, "x"), attest.ReasonCollateralInvalid},
		"the guest's":      {keyVCEK, certTable{vcek: der}, attest.Errorf("c", attest.ReasonChain, "x"), attest.ReasonChain},
		"the guest's root": {keyVCEK, certTable{ark: der}, attest.Errorf("c", attest.ReasonChain, "x"), attest.ReasonChain},
		"a VLEK":           {keyVLEK, certTable{}, attest.Errorf("c", attest.ReasonChain, "x"), attest.ReasonChain},
		"something else":   {keyVCEK, certTable{}, errors.New("x"), attest.ReasonInternal},
	} {
		err := (&report{signingKey: c.key}).blame(c.table, c.err)
		if got := attest.ReasonOf(err); got != c.want || (c.want != attest.ReasonCollateralInvalid) != (err == c.err) {
			t.Errorf("%s: %v", name, err)
		}
		if e, ok := errors.AsType[*attest.Error](err); ok && (e.Check != "c" || c.want == attest.ReasonCollateralInvalid && e.Err.Error() != "VCEK from collateral: x") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := (&appraisal{}).failed(errors.New("x")); len(got) != 1 || got[0] != (attest.Check{Name: checkInternal, Outcome: attest.Failed, Detail: "x"}) {
		t.Errorf("an error of no check: %+v", got)
	}
	inner := errors.New("x")
	bare := &attest.Error{Check: "c"}
	if cause(inner) != inner || cause(bare) != error(bare) || cause(fmt.Errorf("y: %w", &attest.Error{Check: "c", Err: inner})) != inner {
		t.Error("the cause is another")
	}
}

// source of collateral for the test.
type sourceFunc func(context.Context, attest.CollateralRef) (attest.CollateralItem, error)

func (f sourceFunc) Get(ctx context.Context, r attest.CollateralRef) (attest.CollateralItem, error) {
	return f(ctx, r)
}

// TestCollateralErrors: whatever a source says, the check that asked fails, and says which piece is missing.
func TestCollateralErrors(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	ref := attest.CollateralRef{Kind: attest.SNPCRL, Key: "milan/vcek"}
	for name, c := range map[string]struct {
		ctx    context.Context
		err    error
		reason attest.Reason
		text   string
	}{
		"an error":                 {t.Context(), errors.New("x"), attest.ReasonCollateralMissing, "snp-crl milan/vcek: x"},
		"an error of its own":      {t.Context(), attest.Errorf("c", attest.ReasonCollateralInvalid, "x"), attest.ReasonCollateralInvalid, "x"},
		"an internal one":          {t.Context(), attest.Errorf("c", attest.ReasonInternal, "x"), attest.ReasonCollateralMissing, "x"},
		"an error at the deadline": {ended, errors.New("x"), attest.ReasonInternal, "snp-crl milan/vcek: x"},
		"another at the deadline":  {ended, attest.Errorf("c", attest.ReasonCollateralExpired, "x"), attest.ReasonCollateralExpired, "x"},
	} {
		a := &appraisal{}
		_, err := a.get(c.ctx, checkCRL, sourceFunc(func(context.Context, attest.CollateralRef) (attest.CollateralItem, error) {
			return attest.CollateralItem{}, c.err
		}), ref)
		e, ok := err.(*attest.Error)
		if !ok || e.Check != checkCRL || e.Reason != c.reason || e.Err.Error() != c.text {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (&appraisal{}).get(t.Context(), checkCRL, nil, ref); attest.ReasonOf(err) != attest.ReasonCollateralMissing || !strings.Contains(err.Error(), "no source") {
		t.Error(err)
	}
	// A VCEK from collateral that is none is the service's fault, and of two products both are asked for.
	l := newLab(t)
	for version, n := range map[uint32]int{2: 2, 3: 1} {
		ev := l.evidence(t, teesim.DeviceOptions{}, teesim.ReportOptions{Version: version})
		ev.Endorsements = nil
		var asked []string
		verify := func(data []byte) error {
			asked = nil
			cl, err := l.verifier.Verify(t.Context(), ev, attest.Unbound(), sourceFunc(func(_ context.Context, r attest.CollateralRef) (attest.CollateralItem, error) {
				if asked = append(asked, string(r.Kind)+" "+strings.Split(r.Key, "/")[0]); data == nil {
					return attest.CollateralItem{}, fmt.Errorf("nothing of %s", r.Key[:5])
				}
				return attest.CollateralItem{Data: data}, nil
			}), simNow)
			wantFailure(t, cl, err, checkLeaf, map[bool]attest.Reason{true: attest.ReasonCollateralMissing, false: attest.ReasonCollateralInvalid}[data == nil])
			return err
		}
		if err := verify(nil); !strings.Contains(err.Error(), "nothing of milan") || strings.Contains(err.Error(), "does not name the product") != (n == 2) || len(asked) != n {
			t.Errorf("version %d: asked for %q, %v", version, asked, err)
		}
		if err := verify([]byte("xx")); !strings.Contains(err.Error(), ": VCEK: neither") || len(asked) != 1 {
			t.Errorf("version %d: asked for %q, %v", version, asked, err)
		}
		if err := verify([]byte{0x30, 0}); !strings.Contains(err.Error(), "VCEK from collateral") {
			t.Errorf("version %d: %v", version, err)
		}
	}
}
