// Package cosetest signs as a device would, for tests.
package cosetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// Key makes a key on a curve.
func Key(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Encode is v in CBOR.
func Encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Sign is a COSE_Sign1 with its tag, by the algorithm of the key's curve.
func Sign(t testing.TB, key *ecdsa.PrivateKey, payload []byte) []byte {
	t.Helper()
	alg, h := -7, crypto.SHA256
	switch key.Curve {
	case elliptic.P384():
		alg, h = -35, crypto.SHA384
	case elliptic.P521():
		alg, h = -36, crypto.SHA512
	}
	protected := Encode(t, map[int]int{1: alg})
	digest := h.New()
	digest.Write(Encode(t, []any{"Signature1", protected, []byte{}, payload}))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	n := (key.Params().BitSize + 7) / 8
	sig := make([]byte, 2*n)
	r.FillBytes(sig[:n])
	s.FillBytes(sig[n:])
	return Encode(t, cbor.Tag{Number: 18, Content: []any{protected, map[int]any{}, payload, sig}})
}

// PEM is a public key as operators write it down.
func PEM(t testing.TB, key crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
