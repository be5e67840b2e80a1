// Package cose reads COSE_Sign1 (RFC 9052 §4.2), the envelope of attestation
// tokens in CBOR, and reads CBOR strictly. It knows no key: who a token names as
// its signer is for the verifier of its type to find out.
package cose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // of the algorithms
	_ "crypto/sha512"
	"errors"
	"fmt"
	"math/big"

	"github.com/fxamacker/cbor/v2"
)

// Algorithm is a number of IANA's "COSE Algorithms".
type Algorithm int64

// Algorithms that are taken (RFC 9053 §2.1, RFC 8230 §2). ECDSA goes with the
// curve of the same strength, so that the key alone says how it signs.
const (
	ES256 Algorithm = -7  // P-256, SHA-256
	ES384 Algorithm = -35 // P-384, SHA-384
	ES512 Algorithm = -36 // P-521, SHA-512
	PS256 Algorithm = -37
	PS384 Algorithm = -38
	PS512 Algorithm = -39
)

// String is IANA's name.
func (a Algorithm) String() string {
	if name, ok := names[a]; ok {
		return name
	}
	return fmt.Sprintf("algorithm %d", int64(a))
}

var names = map[Algorithm]string{ES256: "ES256", ES384: "ES384", ES512: "ES512", PS256: "PS256", PS384: "PS384", PS512: "PS512"}

var hashes = map[Algorithm]crypto.Hash{
	ES256: crypto.SHA256, ES384: crypto.SHA384, ES512: crypto.SHA512,
	PS256: crypto.SHA256, PS384: crypto.SHA384, PS512: crypto.SHA512,
}

var curves = map[Algorithm]elliptic.Curve{ES256: elliptic.P256(), ES384: elliptic.P384(), ES512: elliptic.P521()}

// Sizes of RSA moduli in bits. A larger one costs the verifier more than it adds.
const (
	minRSA = 2048
	maxRSA = 4096
)

// Errors that a verifier tells apart.
var (
	ErrUnsupported = errors.New("not supported")                   // another envelope, algorithm or header than we know
	ErrSignature   = errors.New("the signature does not verify")   // made by another key, or over something else
	ErrKey         = errors.New("the key is not for this purpose") // of another kind than the algorithm
)

// Labels of header parameters (RFC 9052 §3.1).
const (
	labelAlgorithm = 1
	labelCritical  = 2
)

// Sign1 is a COSE_Sign1 that was read, but not verified.
type Sign1 struct {
	Algorithm Algorithm
	Payload   []byte

	protected []byte // as received: the signature is over these very bytes
	signature []byte
}

const (
	tagMac0  = 0xd1 // CBOR tag 17 in one byte
	tagSign1 = 0xd2 // CBOR tag 18 in one byte
)

// Parse reads a COSE_Sign1, with or without its tag. The algorithm is that of
// the protected header: what stands in the unprotected one is nobody's word, and
// is passed over, apart from what may not be there.
func Parse(b []byte) (Sign1, error) {
	s, err := parse(b)
	if err != nil {
		return Sign1{}, fmt.Errorf("COSE_Sign1: %w", err)
	}
	return s, nil
}

func parse(b []byte) (Sign1, error) {
	switch {
	case len(b) > 0 && b[0] == tagMac0:
		return Sign1{}, fmt.Errorf("%w: COSE_Mac0, whose key the verifier would share with the device", ErrUnsupported)
	case len(b) > 0 && b[0] == tagSign1:
		b = b[1:]
	}
	var m struct {
		_           struct{} `cbor:",toarray"`
		Protected   Bytes
		Unprotected map[any]cbor.RawMessage
		Payload     Bytes
		Signature   Bytes
	}
	if err := Unmarshal(b, &m); err != nil {
		return Sign1{}, err
	}
	if m.Unprotected == nil {
		return Sign1{}, errors.New("unprotected header: not a map") // but null
	}
	var protected map[any]cbor.RawMessage
	if err := Unmarshal(m.Protected, &protected); err != nil {
		return Sign1{}, fmt.Errorf("protected header: %w", err)
	}
	for label := range m.Unprotected {
		// An algorithm of the attacker's choice, or a second word on what is signed.
		if _, twice := protected[label]; twice || label == uint64(labelAlgorithm) || label == uint64(labelCritical) {
			return Sign1{}, fmt.Errorf("unprotected header: label %v has no place here", label)
		}
	}
	// Parameters without which the token means something else.
	if _, ok := protected[uint64(labelCritical)]; ok {
		return Sign1{}, fmt.Errorf("%w: critical header parameters", ErrUnsupported)
	}
	var alg int64
	raw, ok := protected[uint64(labelAlgorithm)]
	if !ok {
		return Sign1{}, errors.New("protected header: no algorithm")
	}
	if err := Unmarshal(raw, &alg); err != nil {
		return Sign1{}, fmt.Errorf("%w: protected header: algorithm: %w", ErrUnsupported, err)
	}
	if _, ok := hashes[Algorithm(alg)]; !ok {
		return Sign1{}, fmt.Errorf("%w: %v", ErrUnsupported, Algorithm(alg))
	}
	if len(m.Payload) == 0 {
		return Sign1{}, errors.New("no payload")
	}
	return Sign1{Algorithm: Algorithm(alg), Payload: m.Payload, protected: m.Protected, signature: m.Signature}, nil
}

// CheckKey reports whether key could have signed: it is of the algorithm's kind,
// on its curve, or of 2048 to 4096 bits. Otherwise the error is ErrKey.
func (a Algorithm) CheckKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if curve, ok := curves[a]; ok && k.Curve == curve {
			return nil
		}
		return fmt.Errorf("%w: %v with a key on %s", ErrKey, a, k.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); hashes[a] != 0 && curves[a] == nil && n >= minRSA && n <= maxRSA {
			return nil
		}
		return fmt.Errorf("%w: %v with an RSA key of %d bits", ErrKey, a, k.N.BitLen())
	default:
		return fmt.Errorf("%w: %v with a %T", ErrKey, a, key)
	}
}

// Verify checks the signature by key. The error is ErrKey or ErrSignature. An
// ECDSA signature can be changed into another that holds (s to n-s): it
// identifies nothing.
func (s Sign1) Verify(key crypto.PublicKey) error {
	if err := s.Algorithm.CheckKey(key); err != nil {
		return err
	}
	// Sig_structure, RFC 9052 §4.4. There is no external data.
	signed, err := cbor.Marshal([]any{"Signature1", s.protected, []byte{}, s.Payload})
	if err != nil {
		return err // does not happen: text and byte strings always encode
	}
	h := hashes[s.Algorithm].New()
	h.Write(signed)
	digest := h.Sum(nil)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		n := (k.Params().BitSize + 7) / 8 // r ‖ s, big endian, of n bytes each
		if len(s.signature) != 2*n {
			return fmt.Errorf("%w: %d bytes, want %d", ErrSignature, len(s.signature), 2*n)
		}
		if !ecdsa.Verify(k, digest, new(big.Int).SetBytes(s.signature[:n]), new(big.Int).SetBytes(s.signature[n:])) {
			return ErrSignature
		}
	case *rsa.PublicKey:
		// RFC 8230 §2: the salt is as long as the hash.
		if rsa.VerifyPSS(k, hashes[s.Algorithm], digest, s.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) != nil {
			return ErrSignature
		}
	}
	return nil
}
