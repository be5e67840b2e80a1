// Package certs parses certificates and keys that come from outside, and
// bounds what they cost. Anybody can send a certificate with a key of 60,000
// bits that nobody vouches for, and to check one signature with it takes half a
// second. Every verifier parses certificates here, and so has one bound.
//
// Package certs concludes nothing: who is trusted, and for what, is the verifier's to decide.
package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bounds.
const (
	MaxSize  = 16 << 10 // bytes of a certificate in DER; vendors' are below 3 KiB
	MaxChain = 8        // certificates of issuers that come with one
	MinRSA   = 2048     // bits
	MaxRSA   = 4096
)

// Kind is a kind of key: RSA, or the name of a curve.
type Kind string

// Kinds.
const (
	RSA     Kind = "RSA"
	P256    Kind = "P-256"
	P384    Kind = "P-384"
	P521    Kind = "P-521"
	Ed25519 Kind = "Ed25519"
)

// Parse parses a certificate of at most MaxSize bytes whose key is of one of
// kinds and within the bounds. A signature made with that key may then be
// checked at a known cost.
func Parse(der []byte, kinds ...Kind) (*x509.Certificate, error) {
	if len(der) > MaxSize {
		return nil, fmt.Errorf("a certificate of %d bytes, want at most %d", len(der), MaxSize)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return c, CheckKey(c.PublicKey, kinds...)
}

// CheckKey refuses a key that is of none of kinds, or outside the bounds.
func CheckKey(key crypto.PublicKey, kinds ...Kind) error {
	kind := KindOf(key)
	if !slices.Contains(kinds, kind) {
		have := string(kind)
		if k, ok := key.(*ecdsa.PublicKey); ok && kind == "" {
			have = "on " + k.Curve.Params().Name
		} else if kind == "" {
			have = fmt.Sprintf("a %T", key)
		}
		return fmt.Errorf("its key is %s, want %v", have, kinds)
	}
	if k, ok := key.(*rsa.PublicKey); ok {
		return checkRSA(k)
	}
	return nil
}

// KindOf is the kind of a key, or empty for what is of no kind.
func KindOf(key crypto.PublicKey) Kind {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return RSA
	case ed25519.PublicKey:
		return Ed25519
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256
		case elliptic.P384():
			return P384
		case elliptic.P521():
			return P521
		}
	}
	return ""
}

func checkRSA(k *rsa.PublicKey) error {
	if k.N == nil || k.N.BitLen() < MinRSA || k.N.BitLen() > MaxRSA {
		bits := 0
		if k.N != nil {
			bits = k.N.BitLen()
		}
		return fmt.Errorf("its RSA key has %d bits, want %d to %d", bits, MinRSA, MaxRSA)
	}
	// The work grows with the exponent; an even one is no key at all.
	if k.E < 3 || k.E%2 == 0 || int64(k.E) > 1<<31-1 {
		return fmt.Errorf("its RSA key has the exponent %d, want an odd one of 3 to 2^31-1", k.E)
	}
	if k.N.Bit(0) == 0 {
		return errors.New("its RSA key has an even modulus")
	}
	return nil
}

// Authorities are certificates that chains end at.
type Authorities struct {
	known   []*x509.Certificate // roots and intermediates
	roots   *x509.CertPool
	between *x509.CertPool
}

// NewAuthorities takes the roots that are trusted, and intermediates for
// evidence that comes without them.
func NewAuthorities(roots, between []*x509.Certificate) *Authorities {
	return &Authorities{slices.Concat(roots, between), pool(roots), pool(between)}
}

// Empty says that nothing is trusted.
func (a *Authorities) Empty() bool { return a == nil || len(a.known) == 0 }

// Verify verifies a certificate up to a root, whatever it is for, by way of
// those that were sent with it. It returns the chain, the certificate first.
func (a *Authorities) Verify(leaf *x509.Certificate, sent []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	if len(sent) > MaxChain {
		return nil, fmt.Errorf("%d certificates, want at most %d", 1+len(sent), 1+MaxChain)
	}
	between := a.between
	if vouched := vouched(sent, a.known); len(vouched) > 0 {
		between = between.Clone()
		for _, c := range vouched {
			between.AddCert(c)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: a.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, err
	}
	return chains[0], nil
}

// vouched returns those of certs to which signatures lead from issuers. Only a
// key that somebody vouched for is used to check a signature: crypto/x509 by
// itself goes from the leaf up, and uses a stranger's keys first.
func vouched(certs, issuers []*x509.Certificate) []*x509.Certificate {
	var vouched []*x509.Certificate
	issuers, rest := slices.Clone(issuers), slices.Clone(certs)
	for len(issuers) > 0 && len(rest) > 0 {
		issuer := issuers[0]
		issuers = issuers[1:]
		rest = slices.DeleteFunc(rest, func(c *x509.Certificate) bool {
			if !bytes.Equal(c.RawIssuer, issuer.RawSubject) || c.CheckSignatureFrom(issuer) != nil {
				return false
			}
			vouched, issuers = append(vouched, c), append(issuers, c)
			return true
		})
	}
	return vouched
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}
