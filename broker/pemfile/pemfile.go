// Package pemfile reads PEM (RFC 7468) so that nothing in it is passed over.
// encoding/pem skips a block that is broken, and x509.CertPool a certificate
// that it cannot parse: a file of roots then counts for less than its owner
// thinks, or another reader finds in it what this one did not.
package pemfile

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/claviger/claviger/broker/certs"
)

// Block is one PEM block.
type Block struct {
	Type  string
	Bytes []byte
	Line  int // of its first boundary, from 1
}

const certificate = "CERTIFICATE"

// Blocks reads all blocks. Text outside of them is a comment, in files that
// people write. It may have no boundary in it, or what looks like one. Inside,
// there is base64 and nothing else: no headers, such as of encrypted keys.
func Blocks(b []byte) ([]Block, error) { return blocks(b, true) }

// Bare is Blocks for what machines write: outside of the blocks there is only white space.
func Bare(b []byte) ([]Block, error) { return blocks(b, false) }

func blocks(b []byte, comments bool) ([]Block, error) {
	var out []Block
	var open *Block
	var body strings.Builder
	n := 0
	for line := range bytes.Lines(b) {
		n++
		text := strings.TrimRight(string(line), " \t\r\n")
		label, boundary := strings.CutPrefix(text, "-----BEGIN ")
		switch {
		case open == nil && boundary:
			label, boundary = strings.CutSuffix(label, "-----")
			if !boundary || strings.Contains(label, "--") {
				return nil, fmt.Errorf("line %d: %.80q is no boundary of PEM", n, text)
			}
			open = &Block{Type: label, Line: n}
			body.Reset()
		case open == nil && (strings.Contains(text, "-----") || strings.ContainsRune(text, 0) || text != "" && !comments):
			return nil, fmt.Errorf("line %d: %.80q is not PEM", n, text)
		case open == nil: // a comment
		case text == "-----END "+open.Type+"-----":
			der, err := base64.StdEncoding.Strict().DecodeString(body.String())
			if err != nil || len(der) == 0 {
				return nil, fmt.Errorf("line %d: the PEM block %q is empty or no base64 (%v)", open.Line, open.Type, err)
			}
			open.Bytes = der
			out, open = append(out, *open), nil
		case strings.ContainsAny(text, "-:"):
			return nil, fmt.Errorf("line %d: %.80q inside the PEM block %q of line %d", n, text, open.Type, open.Line)
		default:
			body.WriteString(text)
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: the PEM block %q has no end", open.Line, open.Type)
	}
	return out, nil
}

// Certificates reads a file of one or more certificates, and of nothing else but comments.
// If kinds are given, each has a key of one of them, within the bounds of package certs.
func Certificates(b []byte, kinds ...certs.Kind) ([]*x509.Certificate, error) {
	blocks, err := Blocks(b)
	return certificates(blocks, err, kinds)
}

// BareCertificates is Certificates without comments.
func BareCertificates(b []byte, kinds ...certs.Kind) ([]*x509.Certificate, error) {
	blocks, err := Bare(b)
	return certificates(blocks, err, kinds)
}

func certificates(blocks []Block, err error, kinds []certs.Kind) ([]*x509.Certificate, error) {
	if err != nil {
		return nil, err
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("no PEM block %q", certificate)
	}
	var out []*x509.Certificate
	for i, block := range blocks {
		if block.Type != certificate {
			return nil, fmt.Errorf("line %d: a PEM block %q, want %q", block.Line, block.Type, certificate)
		}
		parse := x509.ParseCertificate
		if len(kinds) > 0 {
			parse = func(der []byte) (*x509.Certificate, error) { return certs.Parse(der, kinds...) }
		}
		c, err := parse(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("line %d: certificate %d: %w", block.Line, i+1, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// Pool is a pool of all certificates of a file.
func Pool(b []byte) (*x509.CertPool, error) {
	list, err := Certificates(b)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool, nil
}

// One reads a file that has one block, of the type given.
func One(b []byte, typ string) ([]byte, error) {
	blocks, err := Blocks(b)
	switch {
	case err != nil:
		return nil, err
	case len(blocks) == 0:
		return nil, fmt.Errorf("no PEM block %q", typ)
	case blocks[0].Type != typ:
		return nil, fmt.Errorf("line %d: a PEM block %q, want %q", blocks[0].Line, blocks[0].Type, typ)
	case len(blocks) > 1:
		return nil, fmt.Errorf("line %d: a second PEM block, %q", blocks[1].Line, blocks[1].Type)
	}
	return blocks[0].Bytes, nil
}

// Ed25519 reads a file with an Ed25519 public key.
func Ed25519(b []byte) (ed25519.PublicKey, error) {
	der, err := One(b, "PUBLIC KEY")
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a public key of type %T, want Ed25519", k)
	}
	return key, nil
}
