package token

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"

	"github.com/claviger/claviger/broker/seal"
)

// confirmation is the cnf claim (RFC 7800): the attested key, whose private
// half never left the guest.
type confirmation struct {
	// JWK is the key, where JOSE has a form for it; the hybrid key has none.
	JWK *publicKey `json:"jwk,omitempty"`
	// Suite and Thumbprint name the key in Claviger's own terms (seal.Suite, seal.Thumbprint), whatever its kind.
	Suite      seal.Suite `json:"claviger_suite"`
	Thumbprint string     `json:"claviger_thumbprint"` // base64url
}

// publicKey is a JWK (RFC 7517, 7518 §6, 8037 §2). It is for key agreement or
// encryption, as use and alg say, never for signatures.
type publicKey struct {
	Kty string `json:"kty"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
}

// confirm describes a recipient's key. The bytes are the guest's choice: what
// package seal would not wrap a secret to is not put into a token either.
func confirm(r *seal.Recipient, public []byte) (confirmation, error) {
	if r == nil {
		return confirmation{}, errors.New("no attested key")
	}
	suite := r.Suite()
	again, err := seal.ParseRecipient(suite, public)
	if err != nil {
		return confirmation{}, fmt.Errorf("attested key: %w", err)
	}
	thumb := seal.Thumbprint(again.Suite(), public)
	c := confirmation{Suite: suite, Thumbprint: b64(thumb[:])}
	switch suite {
	case seal.X25519:
		c.JWK = &publicKey{Kty: "OKP", Use: "enc", Alg: "ECDH-ES+A256KW", Crv: "X25519", X: b64(public)}
	case seal.P256, seal.P384:
		// 0x04 ‖ X ‖ Y, of fixed length: leading zeros stay (RFC 7518 §6.2.1.2).
		xy := bytes.TrimPrefix(public, []byte{4})
		crv := map[seal.Suite]string{seal.P256: "P-256", seal.P384: "P-384"}[suite]
		c.JWK = &publicKey{Kty: "EC", Use: "enc", Alg: "ECDH-ES+A256KW", Crv: crv, X: b64(xy[:len(xy)/2]), Y: b64(xy[len(xy)/2:])}
	case seal.RSA:
		k, err := x509.ParsePKIXPublicKey(public)
		if err != nil {
			return confirmation{}, fmt.Errorf("attested key: %w", err)
		}
		pub, ok := k.(*rsa.PublicKey)
		if !ok {
			return confirmation{}, errors.New("attested key: not an RSA key")
		}
		c.JWK = &publicKey{Kty: "RSA", Use: "enc", Alg: "RSA-OAEP-256", N: b64(pub.N.Bytes()), E: b64(big.NewInt(int64(pub.E)).Bytes())}
	case seal.Hybrid:
	default:
		return confirmation{}, fmt.Errorf("attested key: no confirmation for %q", suite)
	}
	return c, nil
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
