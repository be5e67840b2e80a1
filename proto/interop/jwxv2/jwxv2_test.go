// Package jwxv2 proves that a client on the older jwx/v2 opens what the broker
// wraps. It is a module of its own: jwx/v2 is deprecated and must not come
// into the broker's dependencies.
package jwxv2

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwe"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/lestrrat-go/jwx/v2/x25519"
)

type vector struct {
	Suite      string `json:"suite"`
	PrivateKey []byte `json:"private_key"`
	Identity   []byte `json:"broker_identity"`
	Secret     []byte `json:"secret"`
	JWE        string `json:"jwe"`
}

const hybrid = "HPKE-MLKEM768-X25519-KE"

func TestOpenVectors(t *testing.T) {
	b, err := os.ReadFile("../../testdata/wrapping.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	jwa.RegisterKeyEncryptionAlgorithm(jwa.KeyEncryptionAlgorithm(hybrid))
	for _, v := range vs {
		t.Run(v.Suite, func(t *testing.T) {
			alg, key := keyOf(t, v)
			inner, err := jwe.Decrypt([]byte(v.JWE), jwe.WithKey(alg, key))
			if err != nil {
				t.Fatal(err)
			}
			pub, err := x509.ParsePKIXPublicKey(v.Identity)
			if err != nil {
				t.Fatal(err)
			}
			payload, err := jws.Verify(inner, jws.WithKey(jwa.EdDSA, pub.(ed25519.PublicKey)))
			if err != nil {
				t.Fatal(err)
			}
			var st struct {
				Secret string `json:"secret"`
			}
			if err := json.Unmarshal(payload, &st); err != nil {
				t.Fatal(err)
			}
			if got, _ := base64.RawURLEncoding.DecodeString(st.Secret); string(got) != string(v.Secret) {
				t.Errorf("got %q, want %q", got, v.Secret)
			}
		})
	}
}

func keyOf(t *testing.T, v vector) (jwa.KeyEncryptionAlgorithm, any) {
	t.Helper()
	switch {
	case v.Suite == hybrid:
		k, err := hpke.MLKEM768X25519().NewPrivateKey(v.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		return hybrid, decrypter{k}
	case strings.HasSuffix(v.Suite, "X25519"):
		k, err := x25519.NewKeyFromSeed(v.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ecdh.X25519().NewPrivateKey(v.PrivateKey); err != nil {
			t.Fatal(err)
		}
		return jwa.ECDH_ES_A256KW, k
	}
	k, err := x509.ParsePKCS8PrivateKey(v.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if v.Suite == "RSA-OAEP-256" {
		return jwa.RSA_OAEP_256, k
	}
	return jwa.ECDH_ES_A256KW, k
}

// decrypter is draft-ietf-jose-hpke-encrypt Key Encryption, written from proto/README.md.
type decrypter struct{ key hpke.PrivateKey }

func (d decrypter) DecryptKey(_ jwa.KeyEncryptionAlgorithm, encrypted []byte, _ jwe.Recipient, m *jwe.Message) ([]byte, error) {
	ek, ok := m.ProtectedHeaders().Get("ek")
	if !ok {
		return nil, errors.New("no ek")
	}
	enc, err := base64.RawURLEncoding.DecodeString(ek.(string))
	if err != nil {
		return nil, err
	}
	r, err := hpke.NewRecipient(enc, d.key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte("JOSE-HPKE rcpt\xffA256GCM\xff"))
	if err != nil {
		return nil, err
	}
	return r.Open(nil, encrypted)
}
