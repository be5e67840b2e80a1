package seal

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func testKey(t testing.TB, s Suite) *PrivateKey {
	t.Helper()
	if s == RSA {
		k, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ImportRSA(k)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	k, err := GenerateKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testIdentity(t testing.TB) *Identity {
	t.Helper()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func statement() Statement {
	return Statement{
		Resource: "disks/vm-1", Decision: "d1", IssuedAt: now.Unix(), Expires: now.Add(time.Minute).Unix(),
		Nonce: encode([]byte("nonce")), Version: "7", Policy: "sha256:00", Secret: []byte("correct horse"),
	}
}

func expect(id *Identity) Expect {
	return Expect{Identity: id.PublicKey(), Resource: "disks/vm-1", Nonce: []byte("nonce"), Now: now, Skew: time.Second}
}

func sealTo(t testing.TB, id *Identity, k *PrivateKey, st Statement) string {
	t.Helper()
	r, err := ParseRecipient(k.Suite(), k.Public())
	if err != nil {
		t.Fatal(err)
	}
	tok, err := Seal(id, r, st)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestRoundTrip(t *testing.T) {
	id := testIdentity(t)
	for _, s := range Suites() {
		t.Run(string(s), func(t *testing.T) {
			k := testKey(t, s)
			tok := sealTo(t, id, k, statement())
			if strings.Contains(tok, "correct") {
				t.Fatal("secret in the clear")
			}
			got, err := Open(k, tok, expect(id))
			if err != nil {
				t.Fatal(err)
			}
			want := statement()
			th, bid := Thumbprint(s, k.public), id.ID()
			want.Issuer, want.Thumbprint = encode(bid[:]), encode(th[:])
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestOpenRefuses holds guarantee G3: the guest takes a secret only from its
// broker, for its resource, nonce and key.
func TestOpenRefuses(t *testing.T) {
	id, other := testIdentity(t), testIdentity(t)
	k := testKey(t, Hybrid)
	good := sealTo(t, id, k, statement())
	otherKey := testKey(t, Hybrid)
	tests := map[string]struct {
		token string
		key   *PrivateKey
		want  func(*Expect)
	}{
		"signed by another broker": {token: sealTo(t, other, k, statement())},
		"another resource":         {want: func(e *Expect) { e.Resource = "disks/vm-2" }},
		"another nonce":            {want: func(e *Expect) { e.Nonce = []byte("other") }},
		"expired":                  {want: func(e *Expect) { e.Now = now.Add(time.Hour) }},
		"from the future":          {want: func(e *Expect) { e.Now = now.Add(-time.Hour) }},
		"another key":              {key: otherKey},
		"truncated":                {token: good[:len(good)-8]},
		"huge":                     {token: strings.Repeat("a", MaxJWE+1)},
		"a signed but unencrypted token": {token: func() string {
			s, _ := id.Sign(typeSecret, []byte(`{}`))
			return string(s)
		}()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, key, tok := expect(id), k, good
			if tt.want != nil {
				tt.want(&e)
			}
			if tt.key != nil {
				key = tt.key
			}
			if tt.token != "" {
				tok = tt.token
			}
			if st, err := Open(key, tok, e); err == nil {
				t.Fatalf("accepted: %+v", st)
			}
		})
	}
	// A statement relayed to another key keeps its old thumbprint.
	t.Run("re-encrypted to another key", func(t *testing.T) {
		st := statement()
		r, _ := ParseRecipient(Hybrid, otherKey.Public())
		r.thumbprint = Thumbprint(Hybrid, k.Public())
		tok, err := Seal(id, r, st)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(otherKey, tok, expect(id)); err == nil {
			t.Fatal("accepted a statement made for another key")
		}
	})
}

// TestOpenSaysHowFarOff: a person who reads it knows which way to set the clock.
func TestOpenSaysHowFarOff(t *testing.T) {
	id, k := testIdentity(t), testKey(t, Hybrid)
	st := statement()
	tok := sealTo(t, id, k, st)
	for want, at := range map[string]time.Time{
		"that is in 3h0m0s":     time.Unix(st.IssuedAt, 0).Add(-3 * time.Hour),
		"that was 26h0m0s ago":  time.Unix(st.Expires, 0).Add(26 * time.Hour),
		"and 1m0s is let pass;": time.Unix(st.Expires, 0).Add(time.Minute),
	} {
		e := expect(id)
		e.Now, e.Skew = at, time.Minute
		if _, err := Open(k, tok, e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("at %s: got %v, want %q", at, err, want)
		}
	}
}

func TestOpenRefusesEveryFlippedCharacter(t *testing.T) {
	id, k := testIdentity(t), testKey(t, X25519)
	tok := sealTo(t, id, k, statement())
	for i := range tok {
		c := byte('A')
		if tok[i] == 'A' {
			c = 'w'
		}
		if tok[i] == '.' {
			continue
		}
		bad := tok[:i] + string(c) + tok[i+1:]
		if _, err := Open(k, bad, expect(id)); err == nil {
			// The last character of a base64url part can carry unused bits.
			if i+1 < len(tok) && tok[i+1] != '.' {
				t.Fatalf("accepted with character %d changed", i)
			}
		}
	}
}

func TestVerifyTellsTypesApart(t *testing.T) {
	id := testIdentity(t)
	tok, err := id.Sign(TypeReceipt, []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(id.PublicKey(), typeSecret, string(tok)); err == nil {
		t.Fatal("a receipt passed for a secret")
	}
}

func TestParseRecipientRefuses(t *testing.T) {
	small, _ := rsa.GenerateKey(rand.Reader, 2048)
	smallKey, _ := ImportRSA(small)
	tests := map[string]struct {
		s   Suite
		key []byte
	}{
		"unknown suite":      {"none", make([]byte, 32)},
		"empty":              {X25519, nil},
		"small-order point":  {X25519, make([]byte, 32)},
		"point at infinity":  {P256, []byte{0}},
		"off the curve":      {P256, append([]byte{4}, make([]byte, 64)...)},
		"hybrid truncated":   {Hybrid, make([]byte, 1215)},
		"RSA of 2048 bits":   {RSA, smallKey.Public()},
		"Ed25519 passed off": {RSA, testIdentity(t).PublicKey()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseRecipient(tt.s, tt.key); err == nil {
				t.Fatal("accepted")
			}
		})
	}
}

func FuzzOpen(f *testing.F) {
	id, _ := IdentityFromSeed(make([]byte, ed25519.SeedSize))
	k := testKey(f, Hybrid)
	f.Add(sealTo(f, id, k, statement()))
	f.Fuzz(func(t *testing.T, tok string) {
		_, _ = Open(k, tok, Expect{Identity: id.PublicKey(), Now: now})
	})
}

func BenchmarkSeal(b *testing.B) {
	id := testIdentity(b)
	for _, s := range []Suite{Hybrid, X25519, P256} {
		k := testKey(b, s)
		r, err := ParseRecipient(s, k.Public())
		if err != nil {
			b.Fatal(err)
		}
		st := statement()
		b.Run(string(s), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Seal(id, r, st); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
