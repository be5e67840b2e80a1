package seal

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwe"
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
		"issued at 2026-11-24T12:00:00Z: by this machine's clock that is in 2h0m0s":    time.Unix(st.IssuedAt, 0).Add(-2 * time.Hour).Local(),
		"expired at 2026-11-24T12:01:00Z: by this machine's clock that was 2h0m0s ago": time.Unix(st.Expires, 0).Add(2 * time.Hour),
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

// TestOpenNamesWhatIsWrong: each step of Open refuses for itself, and does not leave it to the next.
func TestOpenNamesWhatIsWrong(t *testing.T) {
	id, k := testIdentity(t), testKey(t, Hybrid)
	good := sealTo(t, id, k, statement())
	_, rest, _ := strings.Cut(good, ".")
	header := func(ek string) string {
		return encode([]byte(`{"alg":"HPKE-MLKEM768-X25519-KE","cty":"JWT","ek":"`+ek+`","enc":"A256GCM","typ":"claviger-secret+jwt"}`)) + "." + rest
	}
	for want, token := range map[string]string{
		"has 196609 bytes":             strings.Repeat("a", MaxJWE+1),
		"not the compact form":         strings.Repeat("a", MaxJWE),
		"header: illegal base64":       "?." + rest,
		`decode "ek": illegal base64`:  header("A"),
		`decode "ek": base64url with`:  header(`AA\nAA`),
		"decapsulate":                  header(""),
		"decrypt: ":                    good[:len(good)-4] + "AAAA",
		"broker signature":             sealTo(t, testIdentity(t), k, statement()),
		"wrapped secret: header: JSON": encode([]byte(`{"alg":1}`)) + "." + rest,
	} {
		if _, err := Open(k, token, expect(id)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestLargestSecret: a secret of MaxSecret bytes fits into what a guest reads, whatever its key.
func TestLargestSecret(t *testing.T) {
	id, st := testIdentity(t), statement()
	st.Secret = make([]byte, MaxSecret)
	for _, s := range Suites() {
		k := testKey(t, s)
		if _, err := Open(k, sealTo(t, id, k, st), expect(id)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestParseRecipientRefuses(t *testing.T) {
	// Of an RSA key only the size, the lowest bit and the exponent are looked at.
	rsaOf := func(bits, lowest uint, e int) []byte {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n.SetBit(n, 0, lowest), E: e})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	rsaKey := func(bits uint, e int) []byte { return rsaOf(bits, 1, e) }
	for _, bits := range []uint{3072, 4096} {
		if _, err := ParseRecipient(RSA, rsaKey(bits, 65537)); err != nil {
			t.Errorf("RSA of %d bits: %v", bits, err)
		}
	}
	tests := map[string]struct {
		s    Suite
		key  []byte
		want string
	}{
		"RSA, even modulus":  {RSA, rsaOf(3072, 0, 65537), "even modulus"},
		"unknown suite":      {"none", make([]byte, 32), "unknown key algorithm"},
		"empty":              {X25519, nil, "parse ECDH-ES+A256KW/X25519 key"},
		"small-order point":  {X25519, make([]byte, 32), "small-order"},
		"point at infinity":  {P256, []byte{0}, "parse ECDH-ES+A256KW/P-256 key"},
		"off the curve":      {P256, append([]byte{4}, make([]byte, 64)...), "parse ECDH-ES+A256KW/P-256 key"},
		"hybrid truncated":   {Hybrid, make([]byte, 1215), "parse HPKE-MLKEM768-X25519-KE key"},
		"hybrid with a tail": {Hybrid, append(testKey(t, Hybrid).Public(), 0), "parse HPKE-MLKEM768-X25519-KE key"},
		"RSA of 3071 bits":   {RSA, rsaKey(3071, 65537), "3071 bits"},
		"RSA of 4097 bits":   {RSA, rsaKey(4097, 65537), "4097 bits"},
		"RSA, exponent 3":    {RSA, rsaKey(3072, 3), "exponent"},
		"RSA, no DER":        {RSA, []byte("no key"), "asn1"},
		"RSA with a tail":    {RSA, append(rsaKey(3072, 65537), 0), "trailing data"},
		"Ed25519 passed off": {RSA, testIdentity(t).PublicKey(), "not an RSA key"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if r, err := ParseRecipient(tt.s, tt.key); err == nil || r != nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
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

// TestHeadersHaveOneReading: a header with members that one reader acts on and another skips, and other forms of JOSE, are
// refused, even where the signature is right.
func TestHeadersHaveOneReading(t *testing.T) {
	id := testIdentity(t)
	sign := func(header string) string {
		in := encode([]byte(header)) + "." + encode([]byte(`{"sub":"x"}`))
		return in + "." + encode(ed25519.Sign(id.key, []byte(in)))
	}
	good := `{"alg":"EdDSA","kid":"k","typ":"claviger-receipt+jwt"}`
	if _, err := Verify(id.PublicKey(), TypeReceipt, sign(good)); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(sign(good), ".")
	for name, c := range map[string]struct{ token, want string }{
		"typ twice":           {sign(`{"alg":"EdDSA","typ":"x","typ":"claviger-receipt+jwt"}`), `"typ" occurs twice`},
		"typ in another case": {sign(`{"alg":"EdDSA","typ":"x","Typ":"claviger-receipt+jwt"}`), `"Typ" is not "typ"`},
		"NUL in a name":       {sign(`{"alg":"EdDSA","typ":"claviger-receipt+jwt","typ\u0000":"x"}`), "control characters"},
		"crit":                {sign(`{"alg":"EdDSA","typ":"claviger-receipt+jwt","crit":["exp"],"exp":1}`), `"crit" is unknown`},
		"b64":                 {sign(`{"alg":"EdDSA","typ":"claviger-receipt+jwt","crit":["b64"],"b64":false}`), `"crit" is unknown`},
		"b64 alone":           {sign(`{"alg":"EdDSA","typ":"claviger-receipt+jwt","b64":false}`), `"b64" is unknown`},
		"jwk":                 {sign(`{"alg":"EdDSA","typ":"claviger-receipt+jwt","jwk":{}}`), `"jwk" is unknown`},
		"trailing data":       {sign(good + "{}"), "after top-level value"},
		"a line end":          {sign(good) + "\n", "line end"},
		"JSON serialization":  {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, "compact form"},
		"four parts":          {sign(good) + ".x", "compact form"},
	} {
		if _, err := Verify(id.PublicKey(), TypeReceipt, c.token); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	// Anybody can encrypt to the guest's key, and have it inflate what he likes.
	k := testKey(t, X25519)
	bomb, err := jwe.Encrypt(make([]byte, 1<<20), jwe.WithKey(jwa.ECDH_ES_A256KW(), k.key.(*ecdh.PrivateKey).PublicKey()), jwe.WithCompress(jwa.Deflate()), jwe.WithCompact())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(k, string(bomb), expect(id)); err == nil || !strings.Contains(err.Error(), `"zip" is unknown`) {
		t.Errorf("compressed: %v", err)
	}
}
