package nitro_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/nitro"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// sim is a simulated hypervisor: what it signs, and with what.
type sim struct {
	root, inter, leaf *x509.Certificate
	rootKey, interKey *ecdsa.PrivateKey
	key               *ecdsa.PrivateKey
	doc               map[string]any
	protected         []byte
	unprotected       any
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
func issue(t testing.TB, tmpl x509.Certificate, public any, parent *x509.Certificate, signer any) *x509.Certificate {
	t.Helper()
	tmpl.SerialNumber = big.NewInt(int64(len(tmpl.Subject.CommonName)) + 7)
	tmpl.BasicConstraintsValid = true
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = now.Add(-time.Hour), now.Add(2*time.Hour)
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
	return x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0)}
}

func leafTemplate() x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: "i-0123456789abcdef0-enc0.test.aws"}, KeyUsage: x509.KeyUsageDigitalSignature}
}

func newSim(t testing.TB) *sim {
	t.Helper()
	s := &sim{rootKey: newKey(t, elliptic.P384()), interKey: newKey(t, elliptic.P384()), key: newKey(t, elliptic.P384())}
	s.root = issue(t, ca("TEST SIMULATED aws.nitro-enclaves"), &s.rootKey.PublicKey, nil, s.rootKey)
	s.inter = issue(t, ca("TEST SIMULATED zone"), &s.interKey.PublicKey, s.root, s.rootKey)
	s.leaf = issue(t, leafTemplate(), &s.key.PublicKey, s.inter, s.interKey)
	d := transcript.Digest64()
	s.doc = map[string]any{
		"module_id": "i-0123456789abcdef0-enc0123456789abcdef", "timestamp": uint64(now.UnixMilli()), "digest": "SHA384",
		"pcrs": pcrs(16, 48), "certificate": s.leaf.Raw, "cabundle": [][]byte{s.root.Raw, s.inter.Raw},
		"public_key": []byte("a key"), "user_data": d[:], "nonce": nil,
	}
	s.protected, s.unprotected = []byte{0xa1, 0x01, 0x38, 0x22}, map[int]int{}
	return s
}

func pcrs(n, size int) map[uint64][]byte {
	m := map[uint64][]byte{}
	for i := range n {
		m[uint64(i)] = bytes.Repeat([]byte{byte(i + 1)}, size)
	}
	return m
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	em, err := cbor.EncOptions{Sort: cbor.SortBytewiseLexical}.EncMode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := em.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sign makes a document as the module does.
func (s *sim) sign(t testing.TB) []byte {
	t.Helper()
	return s.signPayload(t, encode(t, s.doc))
}

func (s *sim) signPayload(t testing.TB, payload []byte) []byte {
	t.Helper()
	h := sha512.Sum384(encode(t, []any{"Signature1", s.protected, []byte{}, payload}))
	r, z, err := ecdsa.Sign(rand.Reader, s.key, h[:])
	if err != nil {
		t.Fatal(err)
	}
	n := (s.key.Curve.Params().BitSize + 7) / 8
	return encode(t, []any{s.protected, s.unprotected, payload, append(r.FillBytes(make([]byte, n)), z.FillBytes(make([]byte, n))...)})
}

func (s *sim) verifier(t testing.TB) *nitro.Verifier {
	t.Helper()
	return newVerifier(t, nitro.Config{TestRoots: []*x509.Certificate{s.root}})
}

func evidence(report []byte) attest.Evidence {
	return attest.Evidence{Type: attest.TypeNitro, Report: report}
}

func TestConformance(t *testing.T) {
	s := newSim(t)
	d := s.doc["user_data"].([]byte)
	vector := func(name string, report []byte) teetest.Vector {
		return teetest.Vector{Name: name, Evidence: evidence(report), Now: now, ReportData: d, NotYetValid: now.Add(-2 * time.Hour), Expired: now.Add(3 * time.Hour)}
	}
	good := []teetest.Vector{vector("enclave", s.sign(t)), vector("tagged", append([]byte{0xd2}, s.sign(t)...))}
	delete(s.doc, "pcrs")
	s.doc["nitrotpm_pcrs"], s.doc["module_id"] = pcrs(24, 48), "i-0123456789abcdef0-tpm0000000000000000"
	good = append(good, vector("nitrotpm", s.sign(t)))
	teetest.Run(t, teetest.Suite{New: func(t *testing.T) attest.Verifier { return s.verifier(t) }, Good: good})
}

func TestClaims(t *testing.T) {
	s := newSim(t)
	cl, err := s.verifier(t).Verify(t.Context(), evidence(s.sign(t)), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	c := cl.Nitro.(*nitro.Claims)
	pcr2 := hex.EncodeToString(bytes.Repeat([]byte{3}, 48))
	if !cl.Bound || !cl.Simulated || cl.Debuggable || cl.BoundToCPUTEE || cl.ChipID != "" || cl.HardwareModel != "Nitro Enclave" || cl.TCB.Status != attest.TCBUnknown ||
		cl.Measurements["pcr2"] != pcr2 || len(cl.Measurements) != 16 || cl.ReportData != hex.EncodeToString(s.doc["user_data"].([]byte)) {
		t.Errorf("claims %+v", cl)
	}
	if c.Kind != nitro.Enclave || c.InstanceID != "i-0123456789abcdef0" || !c.Timestamp.Equal(now) || c.TimestampMS != "1772366400000" || c.Digest != "SHA384" ||
		c.PCRs["2"] != pcr2 || c.PublicKey != hex.EncodeToString([]byte("a key")) || c.Nonce != "" || c.CertificateSubject != "CN=i-0123456789abcdef0-enc0.test.aws" {
		t.Errorf("Nitro claims %+v", c)
	}
	delete(s.doc, "pcrs")
	s.doc["nitrotpm_pcrs"], s.doc["module_id"] = pcrs(24, 48), "no instance"
	cl, err = s.verifier(t).Verify(t.Context(), evidence(s.sign(t)), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if c := cl.Nitro.(*nitro.Claims); c.Kind != nitro.TPM || cl.HardwareModel != "NitroTPM" || cl.BoundToCPUTEE || cl.Debuggable || c.InstanceID != "" || len(cl.Measurements) != 24 || cl.Measurements["nitrotpm_pcr4"] != c.PCRs["4"] || cl.Measurements["pcr4"] != "" {
		t.Errorf("claims of NitroTPM %+v", cl)
	}
}

// TestDebug: an enclave whose image is not measured is debuggable.
func TestDebug(t *testing.T) {
	for name, edit := range map[string]func(map[uint64][]byte){
		"debug mode":    func(m map[uint64][]byte) { m[0], m[1], m[2] = make([]byte, 48), make([]byte, 48), make([]byte, 48) },
		"PCR0 alone":    func(m map[uint64][]byte) { m[0] = make([]byte, 48) },
		"PCR2 alone":    func(m map[uint64][]byte) { m[2] = make([]byte, 48) },
		"PCR0 left out": func(m map[uint64][]byte) { delete(m, 0) },
	} {
		s := newSim(t)
		edit(s.doc["pcrs"].(map[uint64][]byte))
		cl, err := s.verifier(t).Verify(t.Context(), evidence(s.sign(t)), attest.BindTo(transcript), nil, now)
		if err != nil || !cl.Debuggable {
			t.Errorf("%s: debuggable %t, %v", name, cl.Debuggable, err)
		}
	}
}

// TestForgeries: what an attacker can have, put together in every wrong way.
func TestForgeries(t *testing.T) {
	zero := func(n int) []byte { return make([]byte, n) }
	set := func(name string, v any) func(*testing.T, *sim) {
		return func(_ *testing.T, s *sim) { s.doc[name] = v }
	}
	// releaf gives the hypervisor's key another certificate.
	releaf := func(edit func(*x509.Certificate)) func(*testing.T, *sim) {
		return func(t *testing.T, s *sim) {
			tmpl := leafTemplate()
			edit(&tmpl)
			s.doc["certificate"] = issue(t, tmpl, &s.key.PublicKey, s.inter, s.interKey).Raw
		}
	}
	curve := func(c elliptic.Curve) func(*testing.T, *sim) {
		return func(t *testing.T, s *sim) {
			s.key = newKey(t, c)
			s.doc["certificate"] = issue(t, leafTemplate(), &s.key.PublicKey, s.inter, s.interKey).Raw
		}
	}
	for name, tc := range map[string]struct {
		edit   func(t *testing.T, s *sim)
		check  string
		reason attest.Reason
	}{
		"of another request":       {set("user_data", zero(64)), "nitro.binding", attest.ReasonBinding},
		"the digest in nonce":      {func(_ *testing.T, s *sim) { s.doc["nonce"], s.doc["user_data"] = s.doc["user_data"], nil }, "nitro.binding", attest.ReasonBinding},
		"user_data with a tail":    {func(_ *testing.T, s *sim) { s.doc["user_data"] = append(s.doc["user_data"].([]byte), 0) }, "nitro.binding", attest.ReasonBinding},
		"too old":                  {set("timestamp", uint64(now.Add(-5*time.Minute-time.Millisecond).UnixMilli())), "nitro.age", attest.ReasonValidity},
		"from the future":          {set("timestamp", uint64(now.Add(time.Minute+time.Millisecond).UnixMilli())), "nitro.age", attest.ReasonValidity},
		"its timestamp in seconds": {set("timestamp", uint64(now.Unix())), "nitro.age", attest.ReasonValidity},
		"no timestamp":             {set("timestamp", 0), "nitro.format", attest.ReasonMalformed},
		"a negative timestamp":     {set("timestamp", -1), "nitro.format", attest.ReasonMalformed},
		"an endless timestamp":     {set("timestamp", uint64(1<<63)), "nitro.format", attest.ReasonMalformed},

		// A whole chain of the attacker's own, under AWS's names.
		"another root": {func(t *testing.T, s *sim) {
			o := newSim(t)
			s.key, s.doc["certificate"], s.doc["cabundle"] = o.key, o.leaf.Raw, [][]byte{o.root.Raw, o.inter.Raw}
		}, "nitro.chain", attest.ReasonChain},
		"another root, the genuine bundle": {func(t *testing.T, s *sim) {
			o := newSim(t)
			s.key, s.doc["certificate"] = o.key, o.leaf.Raw
		}, "nitro.chain", attest.ReasonChain},
		"no intermediate": {func(_ *testing.T, s *sim) { s.doc["cabundle"] = [][]byte{s.root.Raw} }, "nitro.chain", attest.ReasonChain},
		"a self-signed leaf": {func(t *testing.T, s *sim) {
			s.doc["certificate"] = issue(t, leafTemplate(), &s.key.PublicKey, nil, s.key).Raw
		}, "nitro.chain", attest.ReasonChain},
		"issued by a leaf": {func(t *testing.T, s *sim) {
			k := newKey(t, elliptic.P384())
			s.doc["certificate"] = issue(t, leafTemplate(), &k.PublicKey, s.leaf, s.key).Raw
			s.doc["cabundle"] = [][]byte{s.root.Raw, s.inter.Raw, s.leaf.Raw}
			s.key = k
		}, "nitro.chain", attest.ReasonChain},
		"signed by an intermediate": {func(_ *testing.T, s *sim) { s.key, s.doc["certificate"] = s.interKey, s.inter.Raw }, "nitro.chain", attest.ReasonChain},
		"signed by the root":        {func(_ *testing.T, s *sim) { s.key, s.doc["certificate"] = s.rootKey, s.root.Raw }, "nitro.chain", attest.ReasonChain},
		"not for signatures":        {releaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "nitro.chain", attest.ReasonChain},
		"junk for a certificate":    {set("certificate", []byte("junk")), "nitro.chain", attest.ReasonMalformed},
		"junk in the bundle":        {set("cabundle", [][]byte{[]byte("junk")}), "nitro.chain", attest.ReasonMalformed},
		"expired":                   {releaf(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) }), "nitro.validity", attest.ReasonValidity},
		"not yet valid":             {releaf(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), now.Add(2*time.Hour) }), "nitro.validity", attest.ReasonValidity},
		"made before its key": {func(t *testing.T, s *sim) {
			s.doc["timestamp"] = uint64(now.Add(-2 * time.Minute).UnixMilli())
			releaf(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Minute), now.Add(time.Hour) })(t, s)
		}, "nitro.validity", attest.ReasonValidity},
		"expired since": {func(t *testing.T, s *sim) {
			s.doc["timestamp"] = uint64(now.Add(-2 * time.Minute).UnixMilli())
			releaf(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(-time.Minute) })(t, s)
		}, "nitro.validity", attest.ReasonValidity},
		"signed by another key": {func(t *testing.T, s *sim) { s.key = newKey(t, elliptic.P384()) }, "nitro.signature", attest.ReasonSignature},

		// Keys on other curves made other verifiers panic, before any trust.
		"a leaf on P-256": {curve(elliptic.P256()), "nitro.format", attest.ReasonMalformed},
		"a leaf on P-521": {curve(elliptic.P521()), "nitro.format", attest.ReasonMalformed},
		"a leaf on P-521, signature cut": {func(t *testing.T, s *sim) {
			k := newKey(t, elliptic.P521())
			s.doc["certificate"] = issue(t, leafTemplate(), &k.PublicKey, s.inter, s.interKey).Raw
		}, "nitro.chain", attest.ReasonMalformed},
		"an RSA leaf": {func(t *testing.T, s *sim) {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			s.doc["certificate"] = issue(t, leafTemplate(), &k.PublicKey, s.inter, s.interKey).Raw
		}, "nitro.chain", attest.ReasonMalformed},
		"signed with SHA-256": {releaf(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA256 }), "nitro.chain", attest.ReasonMalformed},

		// The header.
		"ES256":                      {func(_ *testing.T, s *sim) { s.protected = []byte{0xa1, 0x01, 0x26} }, "nitro.format", attest.ReasonUnsupported},
		"no algorithm":               {func(_ *testing.T, s *sim) { s.protected = []byte{0xa0} }, "nitro.format", attest.ReasonUnsupported},
		"an empty header":            {func(_ *testing.T, s *sim) { s.protected = []byte{} }, "nitro.format", attest.ReasonUnsupported},
		"a critical header":          {func(_ *testing.T, s *sim) { s.protected = []byte{0xa2, 0x01, 0x38, 0x22, 0x02, 0x81, 0x18, 0x63} }, "nitro.format", attest.ReasonUnsupported},
		"an unprotected header":      {func(_ *testing.T, s *sim) { s.unprotected = map[int]int{1: -7} }, "nitro.format", attest.ReasonMalformed},
		"null for a header":          {func(_ *testing.T, s *sim) { s.unprotected = nil }, "nitro.format", attest.ReasonMalformed},
		"an array for a payload":     {func(_ *testing.T, s *sim) { s.doc = map[string]any{} }, "nitro.format", attest.ReasonMalformed},
		"SHA-1":                      {set("digest", "SHA1"), "nitro.format", attest.ReasonUnsupported},
		"PCRs of SHA-512":            {set("digest", "SHA512"), "nitro.format", attest.ReasonMalformed},
		"a short PCR":                {func(_ *testing.T, s *sim) { s.doc["pcrs"].(map[uint64][]byte)[15] = zero(47) }, "nitro.format", attest.ReasonMalformed},
		"an empty PCR":               {func(_ *testing.T, s *sim) { s.doc["pcrs"].(map[uint64][]byte)[0] = nil }, "nitro.format", attest.ReasonMalformed},
		"PCR 32":                     {func(_ *testing.T, s *sim) { s.doc["pcrs"].(map[uint64][]byte)[32] = zero(48) }, "nitro.format", attest.ReasonMalformed},
		"no PCRs":                    {set("pcrs", map[uint64][]byte{}), "nitro.format", attest.ReasonMalformed},
		"null for PCRs":              {set("pcrs", nil), "nitro.format", attest.ReasonMalformed},
		"PCRs by name":               {set("pcrs", map[string][]byte{"0": zero(48)}), "nitro.format", attest.ReasonMalformed},
		"PCRs of both kinds":         {set("nitrotpm_pcrs", pcrs(24, 48)), "nitro.format", attest.ReasonMalformed},
		"PCR 24 of NitroTPM":         {func(_ *testing.T, s *sim) { delete(s.doc, "pcrs"); s.doc["nitrotpm_pcrs"] = pcrs(25, 48) }, "nitro.format", attest.ReasonMalformed},
		"no module":                  {set("module_id", ""), "nitro.format", attest.ReasonMalformed},
		"a long module":              {set("module_id", string(bytes.Repeat([]byte("i"), 129))), "nitro.format", attest.ReasonMalformed},
		"a number for a module":      {set("module_id", 7), "nitro.format", attest.ReasonMalformed},
		"no certificate":             {set("certificate", nil), "nitro.format", attest.ReasonMalformed},
		"a long certificate":         {set("certificate", zero(1025)), "nitro.format", attest.ReasonMalformed},
		"no bundle":                  {set("cabundle", nil), "nitro.format", attest.ReasonMalformed},
		"a bundle without end":       {set("cabundle", slices.Repeat([][]byte{zero(1)}, 9)), "nitro.format", attest.ReasonMalformed},
		"an empty one in the bundle": {set("cabundle", [][]byte{{}}), "nitro.format", attest.ReasonMalformed},
		"a long one in the bundle":   {set("cabundle", [][]byte{zero(1025)}), "nitro.format", attest.ReasonMalformed},
		"a long public key":          {set("public_key", zero(1025)), "nitro.format", attest.ReasonMalformed},
		"long user data":             {set("user_data", zero(1025)), "nitro.format", attest.ReasonMalformed},
		"a long nonce":               {set("nonce", zero(1025)), "nitro.format", attest.ReasonMalformed},
		"text for user data":         {set("user_data", "text"), "nitro.format", attest.ReasonMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t)
			v := s.verifier(t)
			tc.edit(t, s)
			cl, err := v.Verify(t.Context(), evidence(s.sign(t)), attest.BindTo(transcript), nil, now)
			wantError(t, err, tc.check, tc.reason)
			if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Outcome != attest.Failed || cl.Checks[n-1].Name != tc.check {
				t.Errorf("checks %+v do not end with %s", cl.Checks, tc.check)
			}
		})
	}
}

// TestTwoMembersOfOneName: the same name twice, or in two spellings, never
// makes us read another document than its signer wrote.
func TestTwoMembersOfOneName(t *testing.T) {
	s := newSim(t)
	payload := encode(t, s.doc) // a map of n<24 members in one byte
	member := func(name string, v any) []byte { return slices.Concat(encode(t, name), encode(t, v)) }
	more := func(b []byte) []byte {
		return slices.Concat([]byte{payload[0] + 1}, payload[1:], b)
	}
	v := s.verifier(t)
	_, err := v.Verify(t.Context(), evidence(s.signPayload(t, more(member("pcrs", pcrs(16, 48))))), attest.BindTo(transcript), nil, now)
	wantError(t, err, "nitro.format", attest.ReasonMalformed)
	want, err := v.Verify(t.Context(), evidence(s.signPayload(t, payload)), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(t.Context(), evidence(s.signPayload(t, more(member("PCRs", map[uint64][]byte{0: make([]byte, 48)})))), attest.BindTo(transcript), nil, now)
	if err != nil || !maps.Equal(got.Measurements, want.Measurements) {
		t.Errorf("another spelling of a name counts: %v, %v", got.Measurements, err)
	}
}

// TestMalleability: the other signature that holds says nothing else.
func TestMalleability(t *testing.T) {
	s := newSim(t)
	v := s.verifier(t)
	report := s.sign(t)
	want, err := v.Verify(t.Context(), evidence(report), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(report)
	z := other[len(other)-48:]
	n := elliptic.P384().Params().N
	new(big.Int).Sub(n, new(big.Int).SetBytes(z)).FillBytes(z)
	got, err := v.Verify(t.Context(), evidence(other), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatalf("n-s: %v", err)
	}
	if bytes.Equal(report, other) || got.Nitro.(*nitro.Claims).UserData != want.Nitro.(*nitro.Claims).UserData || !maps.Equal(got.Measurements, want.Measurements) {
		t.Error("n-s changes the claims")
	}
	for name, edge := range map[string][]byte{"zero": make([]byte, 48), "n": n.FillBytes(make([]byte, 48)), "all ones": bytes.Repeat([]byte{0xff}, 48)} {
		for _, at := range []int{96, 48} {
			bad := slices.Clone(report)
			copy(bad[len(bad)-at:], edge)
			_, err := v.Verify(t.Context(), evidence(bad), attest.BindTo(transcript), nil, now)
			if attest.ReasonOf(err) != attest.ReasonSignature {
				t.Errorf("%s, %d bytes before the end: %v", name, at, err)
			}
		}
	}
}

// TestEveryByte: no flipped bit of a document is accepted, one in each byte, and no cut.
func TestEveryByte(t *testing.T) {
	if testing.Short() {
		t.Skip("some thousands of signatures")
	}
	s := newSim(t)
	v := s.verifier(t)
	report := s.sign(t)
	for bit := 0; bit < 8*len(report); bit += 7 {
		report[bit/8] ^= 1 << (bit % 8)
		if _, err := v.Verify(t.Context(), evidence(report), attest.Unbound(), nil, now); err == nil {
			t.Errorf("bit %d: accepted", bit)
		}
		report[bit/8] ^= 1 << (bit % 8)
	}
	for n := range report {
		if _, err := v.Verify(t.Context(), evidence(report[:n]), attest.Unbound(), nil, now); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
}

// TestRoot: what is embedded is the root that AWS publishes, and nothing near it.
func TestRoot(t *testing.T) {
	const published = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
	for file, want := range map[string]bool{"dstack/nsm-qvl/AWS_NitroEnclaves_Root-G1.pem": true, "rust-sgx/aws.crt": true, "rust-sgx/tampered_root_cert.crt": false, "rust-sgx/unknown_ca.crt": false} {
		block, _ := pem.Decode(shared(t, file))
		if block == nil {
			t.Fatalf("%s: not PEM", file)
		}
		if d := sha256.Sum256(block.Bytes); (hex.EncodeToString(d[:]) == published) != want {
			t.Errorf("%s: digest %x", file, d)
		}
	}
	// A copy of the root's names with a key of the attacker's, beside the pinned one.
	s := newSim(t)
	_, err := newVerifier(t, nitro.Config{}).Verify(t.Context(), evidence(s.sign(t)), attest.BindTo(transcript), nil, now)
	wantError(t, err, "nitro.chain", attest.ReasonChain)
}

func TestConfig(t *testing.T) {
	if _, err := nitro.New(nitro.Config{MaxAge: -1}); err == nil {
		t.Error("a negative age was accepted")
	}
	s := newSim(t)
	s.doc["timestamp"] = uint64(now.Add(-10 * time.Minute).UnixMilli())
	v := newVerifier(t, nitro.Config{MaxAge: 10 * time.Minute, TestRoots: []*x509.Certificate{s.root}})
	if _, err := v.Verify(t.Context(), evidence(s.sign(t)), attest.BindTo(transcript), nil, now); err != nil {
		t.Error(err)
	}
}

// FuzzVerify: whatever the bytes, no panic, and nothing is believed that was not signed.
func FuzzVerify(f *testing.F) {
	s := newSim(f)
	v := s.verifier(f)
	f.Add(s.sign(f))
	delete(s.doc, "pcrs")
	s.doc["nitrotpm_pcrs"] = pcrs(24, 48)
	f.Add(s.sign(f))
	k := newKey(f, elliptic.P521())
	s.doc["certificate"] = issue(f, leafTemplate(), &k.PublicKey, s.inter, s.interKey).Raw
	f.Add(s.sign(f))
	signed := []string{hex.EncodeToString(bytes.Repeat([]byte{1}, 48))}
	f.Fuzz(func(t *testing.T, report []byte) {
		cl, err := v.Verify(t.Context(), evidence(report), attest.Unbound(), nil, now)
		if err == nil && !slices.Contains(signed, cl.Measurements["pcr0"]+cl.Measurements["nitrotpm_pcr0"]) {
			t.Errorf("a forged document was believed: %+v", cl)
		}
		if err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Errorf("refused without a reason: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := newSim(b)
	v := s.verifier(b)
	benchmark(b, s, func() *nitro.Verifier { return v })
}

// BenchmarkVerifyCold has three signatures for this chain; AWS's has five certificates.
func BenchmarkVerifyCold(b *testing.B) {
	s := newSim(b)
	benchmark(b, s, func() *nitro.Verifier { return s.verifier(b) })
}

func benchmark(b *testing.B, s *sim, verifier func() *nitro.Verifier) {
	ev := evidence(s.sign(b))
	benchtest.Loop(b, func() error {
		_, err := verifier().Verify(b.Context(), ev, attest.BindTo(transcript), nil, now)
		return err
	})
}

// BenchmarkFloor: the document's signature; those of the chain are remembered.
func BenchmarkFloor(b *testing.B) { benchtest.Floor(b, benchtest.P384) }
