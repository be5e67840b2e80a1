// Package seal signs secrets as the broker and encrypts them to the guest's
// attested key, and opens them on the guest's side (DESIGN §3, proto/README.md).
// It decides nothing: whoever calls Seal has already decided.
package seal

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/lestrrat-go/jwx/v3/jwa"
)

// Suite names a key management algorithm together with the kind of key.
type Suite string

// Suites, with the encoding of the public key.
const (
	// Hybrid is HPKE base mode (RFC 9180), KEM 0x647a (MLKEM768-X25519, "X-Wing"),
	// HKDF-SHA256, AES-256-GCM, as a JWE "Key Encryption" algorithm. Public key: 1216 bytes.
	Hybrid Suite = "HPKE-MLKEM768-X25519-KE"
	// X25519 is ECDH-ES+A256KW (RFC 7518, RFC 8037). Public key: 32 bytes.
	X25519 Suite = "ECDH-ES+A256KW/X25519"
	// P256 is ECDH-ES+A256KW. Public key: 65 bytes, uncompressed SEC 1 point.
	P256 Suite = "ECDH-ES+A256KW/P-256"
	// P384 is ECDH-ES+A256KW. Public key: 97 bytes, uncompressed SEC 1 point.
	P384 Suite = "ECDH-ES+A256KW/P-384"
	// RSA is RSA-OAEP-256 for keys held in hardware. Public key:
	// SubjectPublicKeyInfo, DER, of 3072 to 4096 bits.
	RSA Suite = "RSA-OAEP-256"
)

// Suites lists all, the preferred first.
func Suites() []Suite { return []Suite{Hybrid, X25519, P256, P384, RSA} }

// PostQuantum says whether the suite resists an attacker with a quantum computer.
func (s Suite) PostQuantum() bool { return s == Hybrid }

func (s Suite) algorithm() (jwa.KeyEncryptionAlgorithm, error) {
	switch s {
	case Hybrid:
		registerHybrid()
		return hybridAlgorithm(), nil
	case X25519, P256, P384:
		return jwa.ECDH_ES_A256KW(), nil
	case RSA:
		return jwa.RSA_OAEP_256(), nil
	}
	return jwa.KeyEncryptionAlgorithm{}, fmt.Errorf("unknown key algorithm %q", string(s))
}

func hybridAlgorithm() jwa.KeyEncryptionAlgorithm {
	return jwa.NewKeyEncryptionAlgorithm(string(Hybrid))
}

// jwx refuses headers whose algorithm is not in its registry.
var registerHybrid = sync.OnceFunc(func() { jwa.RegisterKeyEncryptionAlgorithm(hybridAlgorithm()) })

// A Recipient is a guest's parsed public key. It holds no secret.
type Recipient struct {
	suite      Suite
	key        any // hpke.PublicKey, *ecdh.PublicKey, *ecdsa.PublicKey, *rsa.PublicKey
	thumbprint [32]byte
}

// ParseRecipient checks and parses a public key. Small-order and off-curve
// points, RSA keys outside 3072…4096 bits and trailing bytes are refused.
func ParseRecipient(s Suite, public []byte) (*Recipient, error) {
	r := &Recipient{suite: s, thumbprint: Thumbprint(s, public)}
	switch s {
	case Hybrid:
		k, err := hpke.MLKEM768X25519().NewPublicKey(public)
		if err != nil {
			return nil, fmt.Errorf("parse %s key: %w", s, err)
		}
		r.key = k
	case X25519:
		k, err := ecdh.X25519().NewPublicKey(public)
		if err != nil {
			return nil, fmt.Errorf("parse %s key: %w", s, err)
		}
		if smallOrder(k) {
			return nil, fmt.Errorf("parse %s key: small-order point", s)
		}
		r.key = k
	case P256, P384:
		curve := elliptic.P256()
		if s == P384 {
			curve = elliptic.P384()
		}
		k, err := ecdsa.ParseUncompressedPublicKey(curve, public)
		if err != nil {
			return nil, fmt.Errorf("parse %s key: %w", s, err)
		}
		r.key = k
	case RSA:
		k, err := x509.ParsePKIXPublicKey(public)
		if err != nil {
			return nil, fmt.Errorf("parse %s key: %w", s, err)
		}
		pub, ok := k.(*rsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("parse %s key: not an RSA key", s)
		}
		if n := pub.N.BitLen(); n < 3072 || n > 4096 {
			return nil, fmt.Errorf("parse %s key: %d bits, want 3072 to 4096", s, n)
		}
		if pub.N.Bit(0) == 0 {
			return nil, fmt.Errorf("parse %s key: even modulus", s)
		}
		if pub.E != 65537 {
			return nil, fmt.Errorf("parse %s key: public exponent is not 65537", s)
		}
		r.key = pub
	default:
		return nil, fmt.Errorf("unknown key algorithm %q", string(s))
	}
	return r, nil
}

// smallOrder finds points for which every shared secret is zero: such a "key"
// would let anybody read the secret.
func smallOrder(pub *ecdh.PublicKey) bool {
	priv, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return true
	}
	_, err = priv.ECDH(pub)
	return err != nil
}

// Suite is the algorithm of the key.
func (r *Recipient) Suite() Suite { return r.suite }

// Thumbprint identifies a public key: SHA-256 of "claviger/v1/recipient" ‖ 0x00 ‖ suite ‖ 0x00 ‖ key.
func Thumbprint(s Suite, public []byte) [32]byte {
	return sha256.Sum256(slices.Concat([]byte("claviger/v1/recipient\x00"), []byte(s), []byte{0}, public))
}

// A PrivateKey is the guest's ephemeral key.
type PrivateKey struct {
	suite  Suite
	key    any // hpke.PrivateKey, *ecdh.PrivateKey, *ecdsa.PrivateKey
	public []byte
}

// GenerateKey makes an ephemeral key for any suite but RSA, whose keys live in hardware.
func GenerateKey(s Suite) (*PrivateKey, error) {
	switch s {
	case Hybrid:
		k, err := hpke.MLKEM768X25519().GenerateKey()
		if err != nil {
			return nil, fmt.Errorf("generate %s key: %w", s, err)
		}
		return &PrivateKey{s, k, k.PublicKey().Bytes()}, nil
	case X25519:
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate %s key: %w", s, err)
		}
		return &PrivateKey{s, k, k.PublicKey().Bytes()}, nil
	case P256, P384:
		curve := elliptic.P256()
		if s == P384 {
			curve = elliptic.P384()
		}
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate %s key: %w", s, err)
		}
		pub, err := k.PublicKey.Bytes()
		if err != nil {
			return nil, fmt.Errorf("encode %s key: %w", s, err)
		}
		return &PrivateKey{s, k, pub}, nil
	case RSA:
		return nil, errors.New("RSA keys are held in hardware; use ImportRSA")
	}
	return nil, fmt.Errorf("unknown key algorithm %q", string(s))
}

// ImportRSA wraps an existing RSA key.
func ImportRSA(k *rsa.PrivateKey) (*PrivateKey, error) {
	pub, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("encode RSA key: %w", err)
	}
	return &PrivateKey{RSA, k, pub}, nil
}

// Suite is the algorithm of the key.
func (k *PrivateKey) Suite() Suite { return k.suite }

// Public is the public key in the suite's encoding.
func (k *PrivateKey) Public() []byte { return slices.Clone(k.public) }
