package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestIdentity: a seed is a whole one, and makes the same identity again.
func TestIdentity(t *testing.T) {
	id := testIdentity(t)
	again, err := IdentityFromSeed(id.Seed())
	if err != nil || again.ID() != id.ID() || !bytes.Equal(again.PublicKey(), id.PublicKey()) {
		t.Fatalf("another identity: %v", err)
	}
	if other := testIdentity(t); other.ID() == id.ID() || bytes.Equal(other.Seed(), id.Seed()) {
		t.Error("two identities are one")
	}
	for _, n := range []int{0, ed25519.SeedSize - 1, ed25519.SeedSize + 1} {
		if _, err := IdentityFromSeed(make([]byte, n)); err == nil {
			t.Errorf("takes a seed of %d bytes", n)
		}
	}
	id.PublicKey()[0] ^= 1
	if !bytes.Equal(again.PublicKey(), id.PublicKey()) {
		t.Error("who has the public key can change it")
	}
}

// TestSignNamesTheIdentity: who reads a statement sees from its header whose key to look for; and the payload, which may
// hold a secret, is copied once: a buffer that had to grow would leave a second copy behind.
func TestSignNamesTheIdentity(t *testing.T) {
	id := testIdentity(t)
	for n := range 70 {
		token, err := id.Sign(TypeReceipt, make([]byte, n))
		if err != nil {
			t.Fatal(err)
		}
		if len(token) != cap(token) {
			t.Errorf("payload of %d bytes: %d bytes in a buffer of %d", n, len(token), cap(token))
		}
		header, err := Decode(strings.Split(string(token), ".")[0])
		if err != nil {
			t.Fatal(err)
		}
		bid := id.ID()
		if got, want := string(header), `{"alg":"EdDSA","kid":"`+encode(bid[:])+`","typ":"claviger-receipt+jwt"}`; got != want {
			t.Fatalf("header %s, want %s", got, want)
		}
	}
}

// TestVerifyRefusesOtherIdentities: what is pinned is an Ed25519 key, and nothing else verifies.
func TestVerifyRefusesOtherIdentities(t *testing.T) {
	id := testIdentity(t)
	token, err := id.Sign(TypeReceipt, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := Verify(id.PublicKey(), TypeReceipt, string(token)); err != nil || string(p) != "payload" {
		t.Fatalf("%q %v", p, err)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	for want, pinned := range map[string][]byte{"parse broker identity": []byte("no key"), "not an Ed25519 key": der, "verify broker signature": testIdentity(t).PublicKey()} {
		if p, err := Verify(pinned, TypeReceipt, string(token)); err == nil || p != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q %v", want, p, err)
		}
	}
}

// TestOpenChecksTheStatement: a broker that signs something else than what was asked is not believed, whoever encrypted it.
func TestOpenChecksTheStatement(t *testing.T) {
	id, k := testIdentity(t), testKey(t, Hybrid)
	to, err := ParseRecipient(Hybrid, k.Public())
	if err != nil {
		t.Fatal(err)
	}
	bid := id.ID()
	open := func(typ string, change func(*Statement)) error {
		st := statement()
		st.Issuer, st.Thumbprint = encode(bid[:]), encode(to.thumbprint[:])
		change(&st)
		payload, err := json.Marshal(wire{st, st.Secret})
		if err != nil {
			t.Fatal(err)
		}
		inner, err := id.Sign(typ, payload)
		if err != nil {
			t.Fatal(err)
		}
		token, err := sealHybrid(to.key.(hpke.PublicKey), inner)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Open(k, token, expect(id))
		if err != nil && got.Secret != nil {
			t.Error("a secret beside an error")
		}
		return err
	}
	if err := open(typeSecret, func(*Statement) {}); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Statement){
		"issuer is not":     func(s *Statement) { s.Issuer = encode(make([]byte, 32)) },
		"asked for":         func(s *Statement) { s.Resource = "disks/vm-2" },
		"another key":       func(s *Statement) { s.Thumbprint = encode(make([]byte, 32)) },
		"is the clock slow": func(s *Statement) { s.IssuedAt = now.Add(2 * time.Second).Unix() },
		"is the clock fast": func(s *Statement) { s.Expires = now.Add(-time.Second).Unix() },
	} {
		if err := open(typeSecret, change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// The clocks may be as far apart as was said, and no further.
	if err := open(typeSecret, func(s *Statement) { s.IssuedAt = now.Add(time.Second).Unix() }); err != nil {
		t.Error(err)
	}
	if err := open(typeSecret, func(s *Statement) { s.Expires = now.Unix() }); err != nil {
		t.Error(err)
	}
	if err := open(TypeReceipt, func(*Statement) {}); err == nil || !strings.Contains(err.Error(), `is a "claviger-receipt+jwt"`) {
		t.Errorf("takes a receipt for a secret: %v", err)
	}
	// What is signed must be a statement as well.
	good, err := json.Marshal(statement())
	if err != nil {
		t.Fatal(err)
	}
	for name, payload := range map[string]string{
		"no JSON":             `correct horse`,
		"a secret in base64":  strings.Replace(string(good), `{`, `{"secret":"+/+/",`, 1),
		"bits behind the end": strings.Replace(string(good), `{`, `{"secret":"AB",`, 1),
	} {
		inner, err := id.Sign(typeSecret, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		token, err := sealHybrid(to.key.(hpke.PublicKey), inner)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(k, token, expect(id)); err == nil || !strings.Contains(err.Error(), "decode statement") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHybridHeader is what proto/README.md says.
func TestHybridHeader(t *testing.T) {
	token := sealTo(t, testIdentity(t), testKey(t, Hybrid), statement())
	raw, err := Decode(strings.Split(token, ".")[0])
	if err != nil {
		t.Fatal(err)
	}
	var h map[string]string
	if err := json.Unmarshal(raw, &h); err != nil {
		t.Fatal(err)
	}
	if len(h) != 5 || h["alg"] != string(Hybrid) || h["cty"] != "JWT" || h["enc"] != "A256GCM" || h["typ"] != typeSecret || len(h["ek"]) < 1000 {
		t.Errorf("header %v", h)
	}
	// The content key is random, not what the buffer held before.
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	var parts [][]byte
	for _, text := range strings.Split(token, ".") {
		part, err := Decode(text)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	if _, err := gcm.Open(nil, parts[2], append(parts[3], parts[4]...), []byte(strings.Split(token, ".")[0])); err == nil {
		t.Error("a key of zeros opens it")
	}
	again := sealTo(t, testIdentity(t), testKey(t, Hybrid), statement())
	if strings.Split(token, ".")[2] == strings.Split(again, ".")[2] {
		t.Error("the same iv twice")
	}
}

// TestUnknownSuites: what is not a suite makes, parses, seals and opens nothing.
func TestUnknownSuites(t *testing.T) {
	for s, want := range map[Suite]string{"": "unknown key algorithm", "RSA1_5": "unknown key algorithm", RSA: "held in hardware"} {
		if k, err := GenerateKey(s); err == nil || k != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if r, err := ParseRecipient("RSA1_5", make([]byte, 32)); err == nil || r != nil {
		t.Error("parses a key of an unknown suite")
	}
	id := testIdentity(t)
	if token, err := Seal(id, &Recipient{suite: "none"}, statement()); err == nil || token != "" || !strings.Contains(err.Error(), "unknown key algorithm") {
		t.Errorf("seals to a key of an unknown suite: %v", err)
	}
	if token, err := Seal(id, &Recipient{suite: X25519, key: "no key"}, statement()); err == nil || token != "" {
		t.Error("seals to what is no key")
	}
	if _, err := Open(&PrivateKey{suite: "none"}, sealTo(t, id, testKey(t, Hybrid), statement()), expect(id)); err == nil || !strings.Contains(err.Error(), "unknown key algorithm") {
		t.Errorf("opens with a key of an unknown suite: %v", err)
	}
	if r, err := ParseRecipient(X25519, testKey(t, X25519).Public()); err != nil || r.Suite() != X25519 {
		t.Errorf("%v: a key says another suite than it was parsed for", err)
	}
	if Hybrid.PostQuantum() != true || X25519.PostQuantum() || P256.PostQuantum() || P384.PostQuantum() || RSA.PostQuantum() {
		t.Error("only the hybrid suite is post-quantum")
	}
}
