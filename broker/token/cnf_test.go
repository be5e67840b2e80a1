package token

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"slices"
	"testing"

	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/claviger/claviger/broker/seal"
)

// TestConfirm is a property over many keys of the guest's choice: the JWK is
// read back, by jwx, as exactly the key that was attested, and the thumbprint is the one of DESIGN.
func TestConfirm(t *testing.T) {
	for _, suite := range seal.Suites() {
		n := 300 // enough to meet coordinates with leading zeros on P-256 and P-384
		switch suite {
		case seal.RSA:
			n = 2
		case seal.Hybrid:
			n = 20
		}
		for range n {
			k := newGuestKey(t, suite)
			r, err := seal.ParseRecipient(suite, k)
			if err != nil {
				t.Fatal(err)
			}
			c, err := confirm(r, k)
			if err != nil {
				t.Fatal(err)
			}
			// seal.Thumbprint, made here from its text.
			sum := sha256.Sum256(slices.Concat([]byte("claviger/v1/recipient\x00"), []byte(suite), []byte{0}, k))
			if c.Thumbprint != b64(sum[:]) || c.Suite != suite {
				t.Fatalf("%s: thumbprint %s of %s", suite, c.Thumbprint, c.Suite)
			}
			if suite == seal.Hybrid {
				if c.JWK != nil {
					t.Fatal("a JWK for a key that has none")
				}
				continue
			}
			b, err := json.Marshal(c.JWK)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := jwk.ParseKey(b)
			if err != nil {
				t.Fatalf("%s: %v", b, err)
			}
			if use, _ := parsed.KeyUsage(); use != "enc" {
				t.Fatalf("use %q: a key for agreement must not verify signatures", use)
			}
			if private, err := jwk.IsPrivateKey(parsed); err != nil || private {
				t.Fatalf("private %t, %v", private, err)
			}
			if got := exported(t, parsed); !slices.Equal(got, k) {
				t.Fatalf("%s: %x reads back as %x", suite, k, got)
			}
			// And it is in RFC 7638's canonical form: jwx's own import of the key has the same thumbprint.
			raw, err := jwk.PublicRawKeyOf(parsed)
			if err != nil {
				t.Fatal(err)
			}
			again, err := jwk.Import(raw)
			if err != nil {
				t.Fatal(err)
			}
			a, _ := parsed.Thumbprint(crypto.SHA256)
			b2, _ := again.Thumbprint(crypto.SHA256)
			if !slices.Equal(a, b2) {
				t.Fatalf("%s: thumbprints differ", suite)
			}
		}
	}
}

// newGuestKey is a public key in the suite's encoding.
func newGuestKey(t testing.TB, s seal.Suite) []byte {
	t.Helper()
	if s == seal.RSA {
		k, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			t.Fatal(err)
		}
		b, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k, err := seal.GenerateKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

// exported is a key in package seal's encoding.
func exported(t testing.TB, k jwk.Key) []byte {
	t.Helper()
	var raw any
	if err := jwk.Export(k, &raw); err != nil {
		t.Fatal(err)
	}
	var b []byte
	var err error
	switch p := raw.(type) {
	case *ecdsa.PublicKey:
		b, err = p.Bytes()
	case *ecdh.PublicKey:
		b = p.Bytes()
	case *rsa.PublicKey:
		b, err = x509.MarshalPKIXPublicKey(p)
	default:
		t.Fatalf("%T", raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestConfirmRefuses what is no key of the recipient's suite, bit by bit.
func TestConfirmRefuses(t *testing.T) {
	for _, suite := range []seal.Suite{seal.P256, seal.P384} {
		k := newGuestKey(t, suite)
		r, err := seal.ParseRecipient(suite, k)
		if err != nil {
			t.Fatal(err)
		}
		for i := range k {
			bad := slices.Clone(k)
			bad[i] ^= 1
			if c, err := confirm(r, bad); err == nil {
				t.Fatalf("%s: byte %d changed, still on the curve: %+v", suite, i, c)
			}
			if _, err := confirm(r, k[:i]); err == nil {
				t.Fatalf("%s: %d bytes accepted", suite, i)
			}
		}
		if _, err := confirm(r, newGuestKey(t, seal.X25519)); err == nil {
			t.Errorf("%s: accepted an X25519 key", suite)
		}
	}
	if _, err := confirm(nil, nil); err == nil {
		t.Error("no key accepted")
	}
}
