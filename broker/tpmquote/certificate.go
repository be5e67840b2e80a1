package tpmquote

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
)

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// VerifyCertificate verifies the certificate of a TPM's key up to a root, by way of those sent with it.
// x509 does not know directory names in the SAN, which may be critical there:
// nothing is concluded from them. What the certificate is for is the caller's to
// check. It returns the chain, leaf first.
func VerifyCertificate(leaf *x509.Certificate, sent []*x509.Certificate, to *certs.Authorities, now time.Time) ([]*x509.Certificate, attest.Reason, error) {
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidSAN.Equal)
	chain, err := to.Verify(leaf, sent, now)
	if err != nil {
		reason := attest.ReasonChain
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
			reason = attest.ReasonValidity
		}
		return nil, reason, fmt.Errorf("issued by %q: %w", leaf.Issuer, err)
	}
	if leaf.IsCA {
		return nil, attest.ReasonChain, errors.New("is a CA's certificate")
	}
	return chain, "", nil
}

// ParseCertificate parses a certificate of a TPM, or of an authority above it.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	return certs.Parse(der, certs.RSA, certs.P256, certs.P384, certs.P521)
}

// CertifiedBy reports whether the certificate is of this key.
func (k Key) CertifiedBy(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(interface {
		Equal(crypto.PublicKey) bool
	})
	return ok && key.Equal(k.Public)
}
