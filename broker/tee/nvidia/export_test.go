package nvidia

import "crypto/x509"

// CanonicalXML is a document in canonical form.
func CanonicalXML(b []byte) ([]byte, error) {
	root, err := parseXML(b)
	if err != nil {
		return nil, err
	}
	return root.canonical(nil), nil
}

// ParseManifest reads a manifest without its signature.
func ParseManifest(b []byte) (product, version string, golden map[int][]string, err error) {
	m, err := parseManifest(b)
	if err != nil {
		return "", "", nil, err
	}
	return m.product, m.version, m.golden, nil
}

// SignedContent is what is signed of a document, under one of roots.
func SignedContent(b []byte, roots ...*x509.Certificate) ([]byte, error) {
	content, _, err := signedContent(b, roots)
	return content, err
}

// RIMRoot is NVIDIA's.
func RIMRoot() (*x509.Certificate, error) { return pinned(rimRoot, rimRootSHA256) }
