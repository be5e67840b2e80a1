package seal

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write proto/testdata/wrapping.json anew, with fresh keys")

const vectorFile = "../../proto/testdata/wrapping.json"

// wrapVector is a published wrapped secret with the key that opens it. Bytes
// are standard base64. The private key is raw for HPKE (32-byte seed) and
// X25519 (32 bytes), else PKCS #8, DER.
type wrapVector struct {
	Suite      Suite  `json:"suite"`
	PrivateKey []byte `json:"private_key"`
	PublicKey  []byte `json:"public_key"`
	Thumbprint string `json:"thumbprint"` // base64url
	Identity   []byte `json:"broker_identity"`
	Resource   string `json:"resource"`
	Nonce      []byte `json:"nonce"`
	Time       int64  `json:"time"` // Unix seconds at which it is valid
	Secret     []byte `json:"secret"`
	JWE        string `json:"jwe"`
}

func makeVectors(t *testing.T) []wrapVector {
	id, err := IdentityFromSeed([]byte("claviger wrapping vectors seed!!"))
	if err != nil {
		t.Fatal(err)
	}
	var out []wrapVector
	for _, s := range Suites() {
		k := testKey(t, s)
		var priv []byte
		switch key := k.key.(type) {
		case hpke.PrivateKey:
			priv, err = key.Bytes()
		case *ecdh.PrivateKey:
			priv = key.Bytes()
		default:
			priv, err = x509.MarshalPKCS8PrivateKey(key)
		}
		if err != nil {
			t.Fatal(err)
		}
		thumb := Thumbprint(s, k.public)
		out = append(out, wrapVector{
			Suite: s, PrivateKey: priv, PublicKey: k.public, Thumbprint: encode(thumb[:]), Identity: id.PublicKey(),
			Resource: "disks/vm-1", Nonce: []byte("nonce"), Time: now.Unix(), Secret: statement().Secret, JWE: sealTo(t, id, k, statement()),
		})
	}
	return out
}

func (v wrapVector) key(t *testing.T) *PrivateKey {
	t.Helper()
	var key any
	var err error
	switch v.Suite {
	case Hybrid:
		key, err = hpke.MLKEM768X25519().NewPrivateKey(v.PrivateKey)
	case X25519:
		key, err = ecdh.X25519().NewPrivateKey(v.PrivateKey)
	default:
		key, err = x509.ParsePKCS8PrivateKey(v.PrivateKey)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &PrivateKey{v.Suite, key, v.PublicKey}
}

// TestVectors opens the published vectors: what other implementations are tested with.
func TestVectors(t *testing.T) {
	if *update {
		b, err := json.MarshalIndent(makeVectors(t), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var vs []wrapVector
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) != len(Suites()) {
		t.Fatalf("%d vectors for %d suites", len(vs), len(Suites()))
	}
	for _, v := range vs {
		t.Run(string(v.Suite), func(t *testing.T) {
			k := v.key(t)
			if pub, ok := k.key.(*ecdsa.PrivateKey); ok {
				if raw, err := pub.PublicKey.Bytes(); err != nil || string(raw) != string(v.PublicKey) {
					t.Fatal("public key is not that of the private key")
				}
			}
			if th := Thumbprint(v.Suite, v.PublicKey); base64.RawURLEncoding.EncodeToString(th[:]) != v.Thumbprint {
				t.Error("thumbprint differs")
			}
			st, err := Open(k, v.JWE, Expect{Identity: v.Identity, Resource: v.Resource, Nonce: v.Nonce, Now: time.Unix(v.Time, 0)})
			if err != nil {
				t.Fatal(err)
			}
			if string(st.Secret) != string(v.Secret) {
				t.Errorf("got %q, want %q", st.Secret, v.Secret)
			}
		})
	}
}
