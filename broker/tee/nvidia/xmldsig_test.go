package nvidia_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/nvidia"
)

// rimSigner signs manifests as NVIDIA does, under a root of its own.
type rimSigner struct {
	sim
	// Edits of what is signed, and of the whole Signature element.
	info, signature func(string) string
}

func newRIMSigner(t testing.TB) *rimSigner {
	t.Helper()
	s := new(rimSigner)
	for range 3 {
		s.keys = append(s.keys, newKey(t, elliptic.P384()))
	}
	root := s.issue(t, ca("TEST SIMULATED NVIDIA CoRIM signing Root CA"), &s.keys[2].PublicKey, nil, s.keys[2])
	ica := s.issue(t, ca("TEST SIMULATED Reference Value CA"), &s.keys[1].PublicKey, root, s.keys[2])
	s.chain = []*x509.Certificate{nil, ica, root}
	s.releaf(t, func(*x509.Certificate) {})
	return s
}

// releaf has the CA issue the signer's certificate anew.
func (s *rimSigner) releaf(t testing.TB, edit func(*x509.Certificate)) {
	t.Helper()
	c := ca("TEST SIMULATED RIM Signer")
	c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
	edit(&c)
	s.chain[0] = s.issue(t, c, &s.keys[0].PublicKey, s.chain[1], s.keys[1])
}

func (s *rimSigner) root() *x509.Certificate { return s.chain[len(s.chain)-1] }

const infoForm = `<ds:CanonicalizationMethod Algorithm="http://www.w3.org/2006/12/xml-c14n11"></ds:CanonicalizationMethod>` +
	`<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"></ds:SignatureMethod>` +
	`<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"></ds:Transform>` +
	`<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"></ds:Transform></ds:Transforms>` +
	`<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"></ds:DigestMethod><ds:DigestValue>%s</ds:DigestValue></ds:Reference>`

const declareDS = `xmlns:ds="http://www.w3.org/2000/09/xmldsig#"`

var declaration = regexp.MustCompile(`xmlns(:\w+)?="[^"]*"`)

// sign puts a signature at the end of a document's root element. The canonical
// form of SignedInfo is made by hand: it has the namespaces of the root, sorted, and its own.
func (s *rimSigner) sign(t testing.TB, doc string) []byte {
	t.Helper()
	content, err := nvidia.CanonicalXML([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	d := sha512.Sum384(content)
	inner := fmt.Sprintf(infoForm, base64.StdEncoding.EncodeToString(d[:]))
	if s.info != nil {
		inner = s.info(inner)
	}
	spaces := append(declaration.FindAllString(doc[:strings.Index(doc, ">")], -1), declareDS)
	slices.SortFunc(spaces, func(a, b string) int { // the default first
		return strings.Compare(strings.ReplaceAll(a, "=", " "), strings.ReplaceAll(b, "=", " "))
	})
	h := sha512.Sum384([]byte("<ds:SignedInfo " + strings.Join(spaces, " ") + ">" + inner + "</ds:SignedInfo>"))
	r, z, err := ecdsa.Sign(rand.Reader, s.keys[0], h[:])
	if err != nil {
		t.Fatal(err)
	}
	size := (s.keys[0].Curve.Params().BitSize + 7) / 8
	value := base64.StdEncoding.EncodeToString(append(r.FillBytes(make([]byte, size)), z.FillBytes(make([]byte, size))...))
	sig := `<ds:Signature ` + declareDS + `><ds:SignedInfo>` + inner + `</ds:SignedInfo><ds:SignatureValue>` + value + `</ds:SignatureValue><ds:KeyInfo><ds:X509Data>`
	for _, c := range s.chain {
		sig += `<ds:X509Certificate>` + base64.StdEncoding.EncodeToString(c.Raw) + "\n</ds:X509Certificate>"
	}
	sig += `</ds:X509Data></ds:KeyInfo></ds:Signature>`
	if s.signature != nil {
		sig = s.signature(sig)
	}
	end := strings.LastIndex(doc, "</")
	return []byte(doc[:end] + sig + doc[end:])
}

// goodRIM is in canonical form.
var goodRIM = `<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384"><Meta colloquialVersion="1" product="GH100"></Meta>` +
	`<Payload><Resource active="True" alternatives="1" index="7" size="48" type="Measurement" h:Hash0="` + strings.Repeat("08", 48) + `"></Resource></Payload></SoftwareIdentity>`

// signedRIM is what New makes of a manifest.
func signedRIM(b []byte, s *rimSigner) error {
	_, err := nvidia.New(nvidia.Config{RIMs: map[string][]byte{"A": b}, TestRIMRoots: []*x509.Certificate{s.root()}})
	return err
}

// TestSharedSignatures: NVIDIA's manifests, and those that it has for its tests of failures.
func TestSharedSignatures(t *testing.T) {
	const changed, good = "not the one that was signed", ""
	for file, want := range map[string]string{
		"go-nvattest-tools/rim/NV_GPU_DRIVER_GH100_550.90.07.xml":                                  good,
		"go-nvattest-tools/rim/NV_GPU_VBIOS_1010_0200_882_96009F0001.xml":                          good,
		"go-nvattest-tools/rim/success_valid_rim.xml":                                              good,
		"go-nvattest-tools/rim/valid_signed_xml.xml":                                               "processing instruction",
		"attestation-sdk/base/NV_GPU_DRIVER_GH100_550.144.03.xml":                                  good,
		"attestation-sdk/base/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml":          good,
		"attestation-sdk/base/incorrect_signature_driver_rim.xml":                                  "signature does not verify",
		"attestation-sdk/base/incorrect_cert_chain_driver_rim.xml":                                 "Root CA Debug Only,O=NVIDIA Corporation,C=US, which is not the pinned root",
		"attestation-sdk/samples/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml":           changed,
		"attestation-sdk/samples/NV_GPU_DRIVER_GH100_570.124.03_expired.xml":                       changed,
		"attestation-sdk/samples/NV_SWITCH_BIOS_5612_0002_890_9610550001_invalid_signature.xml":    changed,
		"attestation-sdk/samples/NV_SWITCH_BIOS_5612_0002_890_9610550001_measurement_mismatch.xml": changed,
		"attestation-sdk/samples/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml":   good, // as published: what it does not match is a report
	} {
		_, err := nvidia.New(nvidia.Config{RIMs: map[string][]byte{"A": shared(t, file)}})
		if want == good && err != nil || want != good && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(shared(t, "../ear/trustee/rvps/test-rim.b64"))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nvidia.New(nvidia.Config{RIMs: map[string][]byte{"A": b}}); err != nil {
		t.Errorf("test-rim.b64: %v", err)
	}
}

// TestSignedForms: what canonical form takes away makes no difference.
func TestSignedForms(t *testing.T) {
	s := newRIMSigner(t)
	signed := string(s.sign(t, goodRIM))
	for name, edit := range map[string]func(string) string{
		"as it is":      func(d string) string { return d },
		"single quotes": func(d string) string { return strings.ReplaceAll(d, `"`, `'`) },
		"spaces in tags": func(d string) string {
			return strings.ReplaceAll(strings.ReplaceAll(d, ` active=`, "\n\t active = "), "</Meta>", "</Meta >")
		},
		"attributes exchanged":  replace(`index="7" size="48"`, `size="48" index="7"`),
		"empty-element tags":    replace(`></Meta>`, `/>`),
		"declared again":        replace(`<Meta `, `<Meta xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" `),
		"line breaks around it": func(d string) string { return "\n" + d + "\n\n" },
		"SignedInfo as NVIDIA's": func(d string) string {
			return regexp.MustCompile(`></ds:(\w+Method|Transform)>`).ReplaceAllString(d, "/>")
		},
	} {
		content, err := nvidia.SignedContent([]byte(edit(signed)), s.root())
		if err != nil || string(content) != goodRIM {
			t.Errorf("%s: %v, %s", name, err, content)
		}
		if err := signedRIM([]byte(edit(signed)), s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func replace(old, with string) func(string) string {
	return func(d string) string {
		if !strings.Contains(d, old) {
			panic("the document has no " + old)
		}
		return strings.Replace(d, old, with, 1)
	}
}

// TestSignatureAttacks: each is refused, and for its own reason.
func TestSignatureAttacks(t *testing.T) {
	const meta, swid = `<Meta `, `xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"`
	const changed, broken = "its digest differs", "signature does not verify"
	signature := regexp.MustCompile(`(?s)<ds:Signature .*</ds:Signature>`)
	move := func(to string) func(string) string {
		return func(d string) string {
			return replace(to, to+signature.FindString(d))(signature.ReplaceAllString(d, ""))
		}
	}
	evil := strings.Replace(goodRIM, "0808", "6666", 1)
	for name, tc := range map[string]struct {
		edit func(string) string
		want string
	}{
		"a digest changed":   {replace("0808", "6666"), changed},
		"a digest behind it": {replace("</Payload>", `<Resource></Resource></Payload>`), changed},
		"white space":        {replace("<Payload>", "<Payload> "), changed},
		"text":               {replace("</Payload>", "x</Payload>"), changed},
		"an attribute":       {replace(meta, `<Meta a="b" `), changed},
		"a prefix": {func(d string) string {
			return strings.ReplaceAll(replace(meta, `<n:Meta xmlns:n=`+swid[6:]+` `)(d), "</Meta>", "</n:Meta>")
		}, changed},
		"another namespace":     {replace(meta, `<Meta xmlns="http://example.com/" `), changed},
		"no namespace":          {replace(meta, `<Meta xmlns="" `), changed},
		"one more namespace":    {replace("<SoftwareIdentity ", `<SoftwareIdentity xmlns:x="http://example.com/" `), broken},
		"behind the signature":  {replace("</ds:Signature>", "</ds:Signature>x"), changed},
		"no signature":          {func(d string) string { return signature.ReplaceAllString(d, "") }, "0 signatures"},
		"two signatures":        {func(d string) string { s := signature.FindString(d); return replace(s, s+s)(d) }, "2 signatures"},
		"a signature in it":     {replace("<ds:KeyInfo>", "<ds:KeyInfo><ds:Signature/>"), "2 signatures"},
		"under another prefix":  {replace("</Payload>", `<z:Signature xmlns:z="http://www.w3.org/2000/09/xmldsig#"/></Payload>`), "2 signatures"},
		"deeper":                {move("<Payload>"), "not a child of the root"},
		"first":                 {move("schema.xsd\" xmlns:h=\"http://www.w3.org/2001/04/xmlenc#sha384\">"), ""},
		"wrapped in an element": {func(d string) string { return "<Evil>" + d + "</Evil>" }, "not a child of the root"},
		"wrapped in a payload":  {func(d string) string { return replace("</Payload>", d+"</Payload>")(evil) }, "not a child of the root"},
		"wrapped in its object": {func(d string) string {
			return replace("</Payload>", "</Payload>"+replace("</ds:KeyInfo>", "</ds:KeyInfo><ds:Object>"+goodRIM+"</ds:Object>")(signature.FindString(d)))(evil)
		}, `want ["SignedInfo" "SignatureValue" "KeyInfo"]`},
		"on another manifest":     {func(d string) string { return replace("</Payload>", "</Payload>"+signature.FindString(d))(evil) }, changed},
		"two documents":           {func(d string) string { return evil + d }, "second root"},
		"the other way round":     {func(d string) string { return d + evil }, "second root"},
		"a comment in a digest":   {replace("GH100", "GH<!-- -->100"), "comment"},
		"a comment":               {replace(meta, "<!-- --><Meta "), "comment"},
		"a document type":         {func(d string) string { return "<!DOCTYPE a>" + d }, "document type"},
		"a CDATA section":         {replace(meta, "<![CDATA[]]><Meta "), "CDATA"},
		"an XML declaration":      {func(d string) string { return `<?xml version="1.0"?>` + d }, "XML declaration"},
		"an instruction":          {replace(meta, "<?a b?><Meta "), "processing instruction"},
		"an entity":               {replace("GH100", "GH10&#48;"), "an entity"},
		"a carriage return":       {replace(meta, "\r\n<Meta "), "carriage return"},
		"Latin-1":                 {replace("GH100", "GH\xe9"), "not UTF-8"},
		"a zero":                  {replace("GH100", "GH\x00"), "illegal character"},
		"a byte order mark":       {func(d string) string { return "\ufeff" + d }, "text outside"},
		"text before":             {func(d string) string { return "x" + d }, "text outside"},
		"text behind":             {func(d string) string { return d + "x" }, "text outside"},
		"cut":                     {func(d string) string { return d[:len(d)-19] }, "ends before"},
		"an end":                  {func(d string) string { return d + "</a>" }, "no start"},
		"ends exchanged":          {replace("</Payload>", "</Meta>"), "within"},
		"xml:lang":                {replace(meta, `<Meta xml:lang="en" `), `prefix "xml"`},
		"xml:base":                {replace("<SoftwareIdentity ", `<SoftwareIdentity xml:base="a" `), `prefix "xml"`},
		"xml, declared":           {replace(meta, `<Meta xmlns:xml="http://www.w3.org/XML/1998/namespace" `), `prefix "xml" stands`},
		"xml, another":            {replace(meta, `<Meta xmlns:xml="http://example.com/" xml:a="b" `), `prefix "xml"`},
		"xmlns, declared":         {replace(meta, `<Meta xmlns:xmlns="http://www.w3.org/2000/xmlns/" `), `prefix "xmlns" stands`},
		"a prefix undeclared":     {replace(meta, `<Meta xmlns:h="" `), `prefix "h" stands`},
		"a relative namespace":    {replace(meta, `<Meta xmlns:x="x" `), `prefix "x" stands`},
		"an unknown prefix":       {replace(meta, `<Meta x:y="z" `), `prefix "x"`},
		"two colons":              {replace(meta, `<Meta h:y:z="z" `), "name"},
		"a colon":                 {replace(meta, `<Meta h:="z" `), "name"},
		"declared twice":          {replace(meta, `<Meta xmlns:x="http://a" xmlns:x="http://b" `), "declared twice"},
		"an attribute twice":      {replace(meta, `<Meta product="GB100" `), "twice"},
		"twice, by two prefixes":  {replace(`h:Hash0=`, `xmlns:g="http://www.w3.org/2001/04/xmlenc#sha384" g:Hash0="" h:Hash0=`), "twice"},
		"a line break in a value": {replace("GH100", "GH\n100"), "line break"},
		"a value without quotes":  {replace(`"GH100"`, "GH100"), "unquoted"},
		"too deep":                {replace("</Payload>", strings.Repeat("<a>", 20)+strings.Repeat("</a>", 20)+"</Payload>"), "deeper than"},
		"too many elements":       {replace("</Payload>", strings.Repeat("<a/>", 5000)+"</Payload>"), "more than 4096 elements"},
		"too many namespaces": {func(d string) string {
			var b strings.Builder
			for i := range 40 {
				fmt.Fprintf(&b, ` xmlns:a%d="http://a"`, i)
			}
			return replace("<SoftwareIdentity", "<SoftwareIdentity"+b.String())(d)
		}, "more than 32 namespaces"},
		"too large": {func(d string) string { return d + strings.Repeat("\n", 1<<20) }, "at most"},

		"an Id":        {replace("<ds:SignedInfo>", `<ds:SignedInfo Id="a">`), broken},
		"an Id of all": {replace("<ds:Signature ", `<ds:Signature Id="a" `), `Signature has attribute "Id"`},
		"a key":        {replace("<ds:KeyInfo>", "<ds:KeyInfo><ds:KeyValue/>"), `KeyInfo has the elements ["KeyValue" "X509Data"]`},
		"a subject":    {replace("<ds:X509Data>", "<ds:X509Data><ds:X509SubjectName/>"), "X509SubjectName"},
		"no KeyInfo": {func(d string) string {
			return regexp.MustCompile(`(?s)<ds:KeyInfo>.*</ds:KeyInfo>`).ReplaceAllString(d, "")
		}, "KeyInfo"},
		"no certificate": {func(d string) string {
			return regexp.MustCompile(`(?s)<ds:X509C.*</ds:X509Certificate>`).ReplaceAllString(d, "")
		}, "0 elements"},
		"text in it":         {replace("<ds:KeyInfo>", "<ds:KeyInfo>x"), "KeyInfo has text"},
		"an element of none": {replace("<ds:KeyInfo>", "<KeyInfo/><ds:KeyInfo>"), "KeyInfo"},
		"a short value": {func(d string) string {
			return regexp.MustCompile(`<ds:SignatureValue>.{16}`).ReplaceAllString(d, "<ds:SignatureValue>")
		}, "84 bytes"},
		"a value of zeros": {func(d string) string {
			return regexp.MustCompile(`<ds:SignatureValue>.{128}`).ReplaceAllString(d, "<ds:SignatureValue>"+strings.Repeat("A", 128))
		}, broken},
		"a value of text":   {replace("<ds:SignatureValue>", "<ds:SignatureValue>!"), "base64"},
		"an element in one": {replace("<ds:SignatureValue>", "<ds:SignatureValue><a/>"), "SignatureValue has an element"},
		"SHA-256":           {replace("xmldsig-more#sha384", "xmldsig-more#sha256"), broken},
		"a certificate cut": {replace("<ds:X509Certificate>MIIB", "<ds:X509Certificate>"), "certificate"},
	} {
		s := newRIMSigner(t)
		_, err := nvidia.SignedContent([]byte(tc.edit(string(s.sign(t, goodRIM)))), s.root())
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestSignedInfo: whoever holds the key signs something that is not what NVIDIA signs.
func TestSignedInfo(t *testing.T) {
	const c14n11 = "http://www.w3.org/2006/12/xml-c14n11"
	method, reference := `<ds:CanonicalizationMethod Algorithm="`, regexp.MustCompile(`<ds:Reference.*</ds:Reference>`)
	for name, edit := range map[string]func(string) string{
		"another canonical form": replace(method+c14n11, method+"http://www.w3.org/2001/10/xml-exc-c14n#"),
		"canonical form 1.0":     replace(method+c14n11, method+"http://www.w3.org/TR/2001/REC-xml-c14n-20010315"),
		"with comments":          replace(c14n11+`"></ds:T`, c14n11+`#WithComments"></ds:T`),
		"HMAC":                   replace("xmldsig-more#ecdsa-sha384", "xmldsig-more#hmac-sha384"),
		"ECDSA with SHA-256":     replace("xmldsig-more#ecdsa-sha384", "xmldsig-more#ecdsa-sha256"),
		"SHA-1":                  replace("http://www.w3.org/2001/04/xmldsig-more#sha384", "http://www.w3.org/2000/09/xmldsig#sha1"),
		"no transform": func(d string) string {
			return regexp.MustCompile(`<ds:Transforms>.*</ds:Transforms>`).ReplaceAllString(d, "")
		},
		"no enveloped-signature": replace("http://www.w3.org/2000/09/xmldsig#enveloped-signature", c14n11),
		"XPath":                  replace("http://www.w3.org/2000/09/xmldsig#enveloped-signature", "http://www.w3.org/TR/1999/REC-xpath-19991116"),
		"XSLT behind":            replace("</ds:Transforms>", `<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"></ds:Transform></ds:Transforms>`),
		"a parameter":            replace(`c14n11"></ds:Transform>`, `c14n11"><ds:XPath>/</ds:XPath></ds:Transform>`),
		"another document":       replace(`URI=""`, `URI="http://example.com/"`),
		"an element":             replace(`URI=""`, `URI="#a"`),
		"no URI":                 replace(` URI=""`, ``),
		"a type":                 replace(`URI=""`, `Type="http://www.w3.org/2000/09/xmldsig#Manifest" URI=""`),
		"two references":         func(d string) string { return d + reference.FindString(d) },
		"none":                   func(d string) string { return reference.ReplaceAllString(d, "") },
		"another namespace":      replace("<ds:Transforms>", `<ds:Transforms xmlns:ds="http://example.com/">`),
		"text":                   replace("<ds:Transforms>", `<ds:Transforms>x`),
		"no digest": func(d string) string {
			return regexp.MustCompile(`(<ds:DigestValue>).*(</ds:DigestValue>)`).ReplaceAllString(d, "$1$2")
		},
		"a short digest": func(d string) string { return regexp.MustCompile(`(<ds:DigestValue>)....`).ReplaceAllString(d, "$1") },
		"a digest of another thing": func(d string) string {
			return regexp.MustCompile(`(<ds:DigestValue>)....`).ReplaceAllString(d, "${1}AAAA")
		},
		"two digests": replace("</ds:DigestValue>", "</ds:DigestValue><ds:DigestValue>AAAA</ds:DigestValue>"),
		"a digest in a digest": func(d string) string {
			return regexp.MustCompile(`<ds:DigestValue>(.*)</ds:DigestValue>`).ReplaceAllString(d, "<ds:DigestValue><ds:DigestValue>$1</ds:DigestValue></ds:DigestValue>")
		},
	} {
		s := newRIMSigner(t)
		s.info = edit
		_, err := nvidia.SignedContent(s.sign(t, goodRIM), s.root())
		// It verifies, or the test is of no use.
		if err == nil || strings.Contains(err.Error(), "signature does not verify") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRIMSigner: who may sign.
func TestRIMSigner(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*rimSigner)
		want string
	}{
		"the signer":            {func(*rimSigner) {}, ""},
		"another root":          {func(s *rimSigner) { *s = *newRIMSigner(t) }, "not the pinned root"},
		"another chain, root":   {func(s *rimSigner) { r := s.root(); *s = *newRIMSigner(t); s.chain[2] = r }, "not issued by"},
		"no CA":                 {func(s *rimSigner) { s.chain = slices.Delete(s.chain, 1, 2) }, "not issued by"},
		"the root alone":        {func(s *rimSigner) { s.chain = s.chain[2:] }, "1 elements"},
		"root first":            {func(s *rimSigner) { slices.Reverse(s.chain) }, "not the pinned root"},
		"nine certificates":     {func(s *rimSigner) { s.chain = slices.Repeat(s.chain, 3) }, "9 elements"},
		"a CA that signs":       {func(s *rimSigner) { s.chain, s.keys = s.chain[1:], s.keys[1:] }, "is a CA"},
		"not for signatures":    {func(s *rimSigner) { s.releaf(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }) }, "not for signatures"},
		"another's certificate": {func(s *rimSigner) { s.keys[0] = newKey(t, elliptic.P384()) }, "does not verify"},
		"a key on P-256":        {func(s *rimSigner) { s.keys[0] = newKey(t, elliptic.P256()); s.releaf(t, func(*x509.Certificate) {}) }, "want [P-384]"},
	} {
		s := newRIMSigner(t)
		root := s.root()
		tc.edit(s)
		_, err := nvidia.SignedContent(s.sign(t, goodRIM), root)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	s := newRIMSigner(t)
	if _, err := nvidia.New(nvidia.Config{RIMs: map[string][]byte{"A": s.sign(t, goodRIM)}}); err == nil || !strings.Contains(err.Error(), "A.xml") {
		t.Errorf("a test root was believed without being one: %v", err)
	}
}

// TestFlippedBytes: a changed byte is refused, or changes nothing.
func TestFlippedBytes(t *testing.T) {
	s := newRIMSigner(t)
	docs := map[string][]byte{"ours": s.sign(t, goodRIM)}
	roots := []*x509.Certificate{s.root()}
	if b, err := os.ReadFile("../../../../shared/evidence/nvidia-gpu/go-nvattest-tools/rim/NV_GPU_DRIVER_GH100_550.90.07.xml"); err == nil {
		docs["NVIDIA's"] = b
		root, err := nvidia.RIMRoot()
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	for name, doc := range docs {
		want, err := nvidia.SignedContent(doc, roots...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		passed := 0
		for i := 0; i < len(doc); i += len(doc) / 250 {
			for _, flip := range []byte{1, 0x20, 0x80, doc[i] ^ ' '} {
				if flip == 0 {
					continue
				}
				b := bytes.Clone(doc)
				b[i] ^= flip
				got, err := nvidia.SignedContent(b, roots...)
				if err != nil {
					continue
				}
				if passed++; !bytes.Equal(got, want) {
					t.Fatalf("%s: byte %d as %q: believed, and read as %s", name, i, b[i], got)
				}
			}
		}
		t.Logf("%s: %d changes made no difference", name, passed)
	}
}

// TestCanonicalXML: forms by hand, after the rules of Canonical XML 1.1, section 1.1 and 2.3.
func TestCanonicalXML(t *testing.T) {
	for doc, want := range map[string]string{
		`<a/>`:                       `<a></a>`,
		"\n<a  b = 'c'\n>\n </a >\n": "<a b=\"c\">\n </a>",
		`<a b='"' c="'>">></a>`:      `<a b="&quot;" c="'>">&gt;</a>`,
		`<a xmlns:z="http://z" xmlns:b="http://b" xmlns="http://a" c="" b:d="" z:a="" B=""/>`:                                                             `<a xmlns="http://a" xmlns:b="http://b" xmlns:z="http://z" B="" c="" b:d="" z:a=""></a>`,
		`<a xmlns:b="http://z" xmlns:z="http://b" b:a="" z:b=""/>`:                                                                                        `<a xmlns:b="http://z" xmlns:z="http://b" z:b="" b:a=""></a>`, // by namespace, not by prefix
		`<a xmlns="http://a"><b xmlns="http://a"><c xmlns=""><d xmlns=""/></c></b></a>`:                                                                   `<a xmlns="http://a"><b><c xmlns=""><d></d></c></b></a>`,
		`<a xmlns=""><b xmlns=""/></a>`:                                                                                                                   `<a><b></b></a>`,
		`<a xmlns:x="http://a"><x:b xmlns:x="http://a" xmlns:y="http://y"><c xmlns:x="http://x"><d xmlns:x="http://a" xmlns:y="http://y"/></c></x:b></a>`: `<a xmlns:x="http://a"><x:b xmlns:y="http://y"><c xmlns:x="http://x"><d xmlns:x="http://a"></d></c></x:b></a>`,
		`<é à="ü">ß</é>`: `<é à="ü">ß</é>`,
	} {
		got, err := nvidia.CanonicalXML([]byte(doc))
		if err != nil || string(got) != want {
			t.Errorf("%s:\n got %s, %v\nwant %s", doc, got, err, want)
		}
	}
}

func FuzzCanonicalXML(f *testing.F) {
	f.Add([]byte(goodRIM))
	f.Add([]byte("\n<a:b xmlns:a='http://a' a:c=\"d\">x<e xmlns='http://e'/></a:b>"))
	f.Add([]byte(`<a xmlns="http://a"><b xmlns=""/></a>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := nvidia.CanonicalXML(b)
		if err != nil {
			return
		}
		again, err := nvidia.CanonicalXML(c)
		if err != nil {
			if !bytes.ContainsRune(c, '&') { // quotes and angles, escaped
				t.Errorf("%q is not read again: %v", c, err)
			}
		} else if !bytes.Equal(c, again) {
			t.Errorf("%q becomes %q", c, again)
		}
	})
}

func FuzzSignedRIM(f *testing.F) {
	s := newRIMSigner(f)
	f.Add(s.sign(f, goodRIM))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := nvidia.SignedContent(b, s.root()); err == nil && string(c) != goodRIM {
			t.Errorf("believed: %s", c)
		}
	})
}

// TestExpiredRIM: a manifest counts while its signer's certificates are valid.
func TestExpiredRIM(t *testing.T) {
	dev, s := newSim(t, "GH100"), newRIMSigner(t)
	cfg := dev.config()
	cfg.TestRIMRoots = []*x509.Certificate{s.root()}
	vbios := manifest(t, s, "96.00.9F.00.01", map[int][]string{0: {strings.Repeat("01", 48)}})
	s.releaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.AddDate(0, 0, -1), now.AddDate(0, 0, 1) })
	cfg.RIMs = map[string][]byte{
		"NV_GPU_DRIVER_GH100_550.90.07":         manifest(t, s, "550.90.07", map[int][]string{7: {strings.Repeat("08", 48)}}),
		"NV_GPU_VBIOS_1010_0200_882_96009F0001": vbios,
	}
	dev.answers = nil
	cfg.OCSPOptional = true
	for days, want := range map[int]string{0: "matched", 2: "expired", -2: "expired"} {
		cl, err := newVerifier(t, cfg).Verify(t.Context(), dev.evidence(t), attest.BindTo(transcript), nil, now.AddDate(0, 0, days))
		if err != nil {
			t.Fatal(err)
		}
		if c := cl.NVIDIA.(*nvidia.Claims); c.RIM != want || cl.Debuggable != (want != "matched") || len(c.RIMMismatches) != 0 {
			t.Errorf("after %d days: %+v, debuggable %t", days, c, cl.Debuggable)
		}
	}
}

// TestTestRIMRoot: what a test root vouches for makes a device simulated, however real it is.
func TestTestRIMRoot(t *testing.T) {
	const tools, driver, vbios = "go-nvattest-tools/", "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"
	ev := attest.Evidence{Type: attest.TypeNVIDIA, Report: sharedReport(t, tools+"test_raw_gpu_attestation_report.dat"), Endorsements: shared(t, tools+"test_gpu_attestation_certificate_chain.dat")}
	s := newRIMSigner(t)
	s.releaf(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = at("2025-01-01T00:00:00Z"), at("2027-01-01T00:00:00Z")
	})
	published := map[string][]byte{driver: shared(t, tools+"rim/"+driver+".xml"), vbios: shared(t, tools+"rim/"+vbios+".xml")}
	root, err := nvidia.RIMRoot()
	if err != nil {
		t.Fatal(err)
	}
	own, err := nvidia.SignedContent(published[vbios], root)
	if err != nil {
		t.Fatal(err)
	}
	mixed := map[string][]byte{driver: published[driver], vbios: s.sign(t, string(own))}
	for simulated, rims := range map[bool]map[string][]byte{false: published, true: mixed} {
		v := newVerifier(t, nvidia.Config{OCSPOptional: true, RIMs: rims, TestRIMRoots: []*x509.Certificate{s.root()}})
		cl, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, at("2025-12-01T00:00:00Z"))
		if err != nil || cl.Simulated != simulated || cl.NVIDIA.(*nvidia.Claims).RIM != "matched" {
			t.Errorf("simulated %t, want %t: %+v, %v", cl.Simulated, simulated, cl.NVIDIA, err)
		}
	}
}
