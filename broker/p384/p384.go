// Package p384 is for chains whose keys are on P-384 and nothing else, as those of AWS and NVIDIA.
package p384

import (
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"math/big"

	"github.com/claviger/claviger/broker/certs"
)

// SignatureSize is that of r ‖ s, 48 bytes each, big endian.
const SignatureSize = 96

// ParseCertificate takes P-384 keys, and signatures by such, only. A leaf on
// another curve is what made other verifiers panic.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := certs.Parse(der, certs.P384)
	if err != nil {
		return nil, err
	}
	if c.SignatureAlgorithm != x509.ECDSAWithSHA384 {
		return nil, fmt.Errorf("signed with %s, want ECDSA-SHA384", c.SignatureAlgorithm)
	}
	return c, nil
}

// Verify checks a signature of SignatureSize bytes over a digest of 48, by the
// key of a certificate that ParseCertificate took. It can be changed into
// another that holds (s to n-s): it identifies nothing.
func Verify(signer *x509.Certificate, digest, signature []byte) bool {
	key, ok := signer.PublicKey.(*ecdsa.PublicKey)
	if !ok || len(signature) != SignatureSize {
		return false
	}
	const half = SignatureSize / 2
	return ecdsa.Verify(key, digest, new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:]))
}
