package nvidia

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker/p384"
)

const nsXMLDSig = "http://www.w3.org/2000/09/xmldsig#"

// signedInfo is the one form of SignedInfo that NVIDIA's manifests have, see outline:
// one reference to the whole document, without the signature in it, in Canonical XML 1.1.
var signedInfo = []string{
	`SignedInfo`,
	`SignedInfo/CanonicalizationMethod Algorithm="http://www.w3.org/2006/12/xml-c14n11"`,
	`SignedInfo/SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"`,
	`SignedInfo/Reference URI=""`,
	`SignedInfo/Reference/Transforms`,
	`SignedInfo/Reference/Transforms/Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"`,
	`SignedInfo/Reference/Transforms/Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"`,
	`SignedInfo/Reference/DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"`,
	`SignedInfo/Reference/DigestValue = …`,
}

// signedContent verifies the signature enveloped in an XML document (XML
// Signature 1.1), by a signer that one of roots vouches for, except for dates.
// It returns the bytes that are signed, which are all that may be used of the
// document, and the signer's certificates: the leaf first, the root last.
//
// What is believed is read from canonical forms whose digests are signed, never
// from the document. So an attacker gains nothing from a document that we read
// otherwise than its signer did: what comes of it is not what was signed, and is refused.
func signedContent(doc []byte, roots []*x509.Certificate) (content []byte, certs []*x509.Certificate, err error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, nil, err
	}
	// Elsewhere, or one of several, it would speak for something else than the document.
	found := root.find(nil)
	if len(found) != 1 {
		return nil, nil, fmt.Errorf("%d signatures, want one", len(found))
	}
	sig := found[0]
	if !slices.Contains(root.children, node{elem: sig}) {
		return nil, nil, errors.New("the signature is not a child of the root element")
	}
	parts, err := sig.parts("SignedInfo", "SignatureValue", "KeyInfo")
	if err != nil {
		return nil, nil, err
	}
	if certs, err = parts[2].signer(roots); err != nil {
		return nil, nil, err
	}
	value, err := parts[1].base64(p384.SignatureSize)
	if err != nil {
		return nil, nil, err
	}
	info := parts[0].canonical(nil)
	if !verifyP384(certs[0], info, value) {
		return nil, nil, errors.New("the signature does not verify")
	}
	// From here on, the signer speaks.
	signed, err := parseXML(info)
	if err != nil {
		return nil, nil, fmt.Errorf("SignedInfo: %w", err)
	}
	digest, err := signed.check()
	if err != nil {
		return nil, nil, err
	}
	content = root.canonical(sig)
	if d := sha512.Sum384(content); !bytes.Equal(d[:], digest) {
		return nil, nil, errors.New("the document is not the one that was signed: its digest differs")
	}
	return content, certs, nil
}

// find appends the signatures in e, at any depth, to found.
func (e *element) find(found []*element) []*element {
	if e.space == nsXMLDSig && e.local == "Signature" {
		found = append(found, e)
	}
	for _, c := range e.children {
		if c.elem != nil {
			found = c.elem.find(found)
		}
	}
	return found
}

// parts are the children of an element of a signature: these, without attributes of its own, and no text.
func (e *element) parts(names ...string) ([]*element, error) {
	var parts []*element
	var have []string
	if len(e.attrs) > 0 {
		return nil, fmt.Errorf("%s has attribute %.64q", e.local, e.attrs[0])
	}
	for _, c := range e.children {
		switch {
		case c.elem != nil && c.elem.space == nsXMLDSig:
			parts, have = append(parts, c.elem), append(have, c.elem.local)
		case c.elem != nil:
			return nil, fmt.Errorf("%s has an element %.64q", e.local, c.elem)
		case !blank(c.text):
			return nil, fmt.Errorf("%s has text", e.local)
		}
	}
	if !slices.Equal(have, names) {
		return nil, fmt.Errorf("%s has the elements %.64q, want %q", e.local, have, names)
	}
	return parts, nil
}

// text is the text of an element that has nothing else.
func (e *element) text() (string, error) {
	var s strings.Builder
	for _, c := range e.children {
		if c.elem != nil {
			return "", fmt.Errorf("%s has an element %.64q", e.local, c.elem)
		}
		s.WriteString(c.text)
	}
	if len(e.attrs) > 0 {
		return "", fmt.Errorf("%s has attribute %.64q", e.local, e.attrs[0])
	}
	return s.String(), nil
}

// base64 is the content of an element, of n bytes if n is not zero.
func (e *element) base64(n int) ([]byte, error) {
	s, err := e.text()
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(s)) // passes over line breaks
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.local, err)
	}
	if n > 0 && len(b) != n {
		return nil, fmt.Errorf("%s of %d bytes, want %d", e.local, len(b), n)
	}
	return b, nil
}

// signer verifies the certificates in a KeyInfo.
func (e *element) signer(roots []*x509.Certificate) ([]*x509.Certificate, error) {
	data, err := e.parts("X509Data")
	if err != nil {
		return nil, err
	}
	n := 0
	for _, c := range data[0].children {
		if c.elem != nil {
			n++
		}
	}
	if n < 2 || n > maxCertificates {
		return nil, fmt.Errorf("X509Data with %d elements, want 2 to %d", n, maxCertificates)
	}
	elems, err := data[0].parts(slices.Repeat([]string{"X509Certificate"}, n)...)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for i, e := range elems {
		der, err := e.base64(0)
		if err != nil {
			return nil, err
		}
		c, err := p384.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		certs = append(certs, c)
	}
	if err := checkChain(certs, roots); err != nil {
		return nil, err
	}
	// A CA that signs with its own key.
	if leaf := certs[0]; leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, fmt.Errorf("the signer %s is a CA, or not for signatures", leaf.Subject)
	}
	return certs, nil
}

// check compares a SignedInfo with the form that it has to have, and returns the digest in it.
func (e *element) check() (digest []byte, err error) {
	have := e.outline(nil, "")
	for i := range max(len(have), len(signedInfo)) {
		got, want := "nothing", "nothing"
		if i < len(have) {
			got = have[i]
		}
		if i < len(signedInfo) {
			want = signedInfo[i]
		}
		if got != want {
			return nil, fmt.Errorf("what is signed has %.200s where NVIDIA's has %s", got, want)
		}
	}
	for _, local := range []string{"Reference", "DigestValue"} {
		e = e.children[slices.IndexFunc(e.children, func(n node) bool { return n.elem != nil && n.elem.local == local })].elem
	}
	return e.base64(digestSize)
}

// outline appends, for each element from e on, its path, attributes, and whether it has text.
func (e *element) outline(lines []string, path string) []string {
	if e.space == nsXMLDSig {
		path += e.local
	} else {
		path += e.String()
	}
	line, text := path, false
	for _, a := range e.attrs {
		line += fmt.Sprintf(" %s=%q", a, a.value)
	}
	for _, c := range e.children {
		text = text || !blank(c.text)
	}
	if text {
		line += " = …"
	}
	lines = append(lines, line)
	for _, c := range e.children {
		if c.elem != nil {
			lines = c.elem.outline(lines, path+"/")
		}
	}
	return lines
}

// verifyP384 verifies the signature of a message by a certificate that p384.ParseCertificate took.
func verifyP384(signer *x509.Certificate, message, signature []byte) bool {
	digest := sha512.Sum384(message)
	return p384.Verify(signer, digest[:], signature)
}
