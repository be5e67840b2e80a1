package keystone

import (
	"bytes"
	"crypto/sha3"
	"errors"

	"filippo.io/edwards25519"
)

// publicKey is a key of Keystone's signatures: Ed25519 with SHA3-512 wherever RFC
// 8032 has SHA-512. crypto/ed25519 accepts none of them.
type publicKey struct {
	encoded [keySize]byte
	minus   *edwards25519.Point // -A
}

// newPublicKey takes the one encoding of a point. Under a key of small order
// there are signatures that hold for any message; all zeros is such a key.
func newPublicKey(b [keySize]byte) (publicKey, error) {
	a, err := new(edwards25519.Point).SetBytes(b[:])
	if err != nil || !bytes.Equal(a.Bytes(), b[:]) {
		return publicKey{}, errors.New("is not the encoding of a point")
	}
	if new(edwards25519.Point).MultByCofactor(a).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return publicKey{}, errors.New("is of small order")
	}
	return publicKey{b, a.Negate(a)}, nil
}

// verify checks R = S·B - k·A with k = SHA3-512(R ‖ A ‖ message), without
// cofactors, as Keystone's own C does (sm/src/ed25519/verify.c), and S < L, so
// that there is no second signature.
func (k publicKey) verify(message []byte, signature [signatureSize]byte) bool {
	s, err := new(edwards25519.Scalar).SetCanonicalBytes(signature[32:])
	if err != nil {
		return false
	}
	h := sha3.New512()
	h.Write(signature[:32])
	h.Write(k.encoded[:])
	h.Write(message)
	c, err := new(edwards25519.Scalar).SetUniformBytes(h.Sum(nil))
	if err != nil {
		return false
	}
	r := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(c, k.minus, s)
	return bytes.Equal(r.Bytes(), signature[:32])
}

// weakKeys are the security monitor's public keys that upstream's boot ROM can
// derive for an SM hash that begins with this byte. It means to seed the key pair
// with SHA3-512(device secret key ‖ SM hash), but hashes sizeof(*pointer) bytes of
// each, one (bootrom/bootloader.c). Anybody can try all seeds, and then sign for
// every enclave on the device.
func weakKeys(hash0 byte) (map[[keySize]byte]bool, error) {
	keys := make(map[[keySize]byte]bool, 256)
	for secret0 := range 256 {
		seed := sha3.Sum512([]byte{byte(secret0), hash0})
		private := sha3.Sum512(seed[:32])
		s, err := new(edwards25519.Scalar).SetBytesWithClamping(private[:32])
		if err != nil {
			return nil, err
		}
		keys[[keySize]byte(new(edwards25519.Point).ScalarBaseMult(s).Bytes())] = true
	}
	return keys, nil
}
