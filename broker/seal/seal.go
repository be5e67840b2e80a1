package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwe"
	"github.com/lestrrat-go/jwx/v3/jws"

	"github.com/claviger/claviger/broker/strictjson"
)

// JWS types (the "typ" header), so that one kind of signed statement can never stand in for another.
const (
	typeSecret  = "claviger-secret+jwt"
	TypeReceipt = "claviger-receipt+jwt"
	TypeDenial  = "claviger-denial+jwt"
)

// ErrTime: a statement is the pinned broker's and the one asked for, but by this machine's clock it is not its time.
var ErrTime = errors.New("not its time")

// MaxSecret bounds a secret.
const MaxSecret = 64 << 10

// MaxJWE bounds what a guest reads: a 64 KiB secret, twice in base64, with headers.
const MaxJWE = 192 << 10

// recipientInfo is the Recipient_structure of draft-ietf-jose-hpke-encrypt-20 §6.1 for A256GCM, the HPKE info.
const recipientInfo = "JOSE-HPKE rcpt\xffA256GCM\xff"

// Identity is the broker's signing key. Guests pin its public half.
type Identity struct {
	key ed25519.PrivateKey
	der []byte
	id  [32]byte
}

// NewIdentity makes a fresh identity.
func NewIdentity() (*Identity, error) {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	return IdentityFromSeed(seed)
}

// IdentityFromSeed restores an identity from its 32-byte seed (RFC 8032).
func IdentityFromSeed(seed []byte) (*Identity, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("identity seed has %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	k := ed25519.NewKeyFromSeed(seed)
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return nil, fmt.Errorf("encode identity: %w", err)
	}
	return &Identity{key: k, der: der, id: sha256.Sum256(der)}, nil
}

// Seed is the secret half, to be sealed at rest.
func (i *Identity) Seed() []byte { return i.key.Seed() }

// PublicKey is the public half (SubjectPublicKeyInfo, DER).
func (i *Identity) PublicKey() []byte { return bytes.Clone(i.der) }

// ID is SHA-256(PublicKey).
func (i *Identity) ID() [32]byte { return i.id }

// Sign returns a compact JWS (RFC 7515, RFC 8037) over payload with the given
// typ header. It is put together by hand: the payload may hold a secret, of
// which this makes one copy, the result.
func (i *Identity) Sign(typ string, payload []byte) ([]byte, error) {
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
		Typ string `json:"typ"`
	}{"EdDSA", encode(i.id[:]), typ})
	if err != nil {
		return nil, fmt.Errorf("encode header: %w", err)
	}
	enc := base64.RawURLEncoding
	token := make([]byte, 0, enc.EncodedLen(len(header))+1+enc.EncodedLen(len(payload))+1+enc.EncodedLen(ed25519.SignatureSize))
	token = append(enc.AppendEncode(token, header), '.')
	token = enc.AppendEncode(token, payload)
	sig := ed25519.Sign(i.key, token)
	return enc.AppendEncode(append(token, '.'), sig), nil
}

// Verify checks a compact JWS against a pinned identity (SubjectPublicKeyInfo,
// DER) and returns its payload.
func Verify(identity []byte, typ, token string) ([]byte, error) {
	pub, err := x509.ParsePKIXPublicKey(identity)
	if err != nil {
		return nil, fmt.Errorf("parse broker identity: %w", err)
	}
	key, ok := pub.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("broker identity is not an Ed25519 key")
	}
	var h struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
		Typ string `json:"typ"`
	}
	if err := compactHeader(token, 3, &h); err != nil {
		return nil, fmt.Errorf("signed statement: %w", err)
	}
	payload, err := jws.Verify([]byte(token), jws.WithKey(jwa.EdDSA(), key))
	if err != nil {
		return nil, fmt.Errorf("verify broker signature: %w", err)
	}
	if h.Typ != typ {
		return nil, fmt.Errorf("signed statement is a %q, want %q", h.Typ, typ)
	}
	return payload, nil
}

// compactHeader decodes the header of a compact JWS or JWE. The library also
// reads other forms of them, with headers outside of the signature, and acts on
// members that nothing here expects: compression, b64, crit.
func compactHeader(token string, parts int, h any) error {
	texts := strings.SplitN(token, ".", parts+1)
	if len(texts) != parts {
		return fmt.Errorf("not the compact form, in %d parts", parts)
	}
	for _, t := range texts {
		if strings.ContainsAny(t, "\r\n") {
			return errors.New("not the compact form: it has a line end")
		}
	}
	header, err := Decode(texts[0])
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if err := strictjson.UnmarshalKnown(header, h); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	return nil
}

// Statement is what the broker signs about one secret. JSON names are the
// claims of the inner JWT.
type Statement struct {
	Issuer   string `json:"iss"` // broker id, base64url
	Resource string `json:"sub"`
	Decision string `json:"jti"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	Nonce    string `json:"nonce"` // base64url
	Version  string `json:"version"`
	Lease    string `json:"lease,omitempty"`
	// Sequence counts the versions pushed to a session, from 1; 0 for a release without a session.
	Sequence    uint64 `json:"seq,omitempty"`
	ContentType string `json:"secret_cty,omitempty"` // media type of the secret; empty: opaque bytes
	Policy      string `json:"policy"`               // digest of the bundle
	Thumbprint  string `json:"recipient"`            // base64url
	Secret      []byte `json:"-"`
}

// wire is Statement with its secret, base64url.
type wire struct {
	Statement
	Secret secretText `json:"secret"`
}

// secretText marshals straight to base64url without an intermediate string that could not be wiped.
type secretText []byte

func (s secretText) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, s), nil
}

func (s *secretText) UnmarshalText(b []byte) error {
	out, err := base64.RawURLEncoding.Strict().AppendDecode(nil, b)
	*s = out
	return err
}

// Seal signs st (with its secret) and encrypts the result to the recipient.
// Issuer and Thumbprint are filled in. The working copies of the secret that
// this package makes are wiped; st.Secret stays the caller's.
func Seal(id *Identity, to *Recipient, st Statement) (string, error) {
	alg, err := to.suite.algorithm()
	if err != nil {
		return "", err
	}
	st.Issuer, st.Thumbprint = encode(id.id[:]), encode(to.thumbprint[:])
	payload, err := json.Marshal(wire{st, st.Secret})
	if err != nil {
		return "", fmt.Errorf("encode statement: %w", err)
	}
	defer clear(payload)
	inner, err := id.Sign(typeSecret, payload)
	if err != nil {
		return "", err
	}
	defer clear(inner)

	if to.suite == Hybrid {
		return sealHybrid(to.key.(hpke.PublicKey), inner)
	}
	protected := jwe.NewHeaders()
	if err := errors.Join(protected.Set(jwe.TypeKey, typeSecret), protected.Set(jwe.ContentTypeKey, "JWT")); err != nil {
		return "", fmt.Errorf("set headers: %w", err)
	}
	out, err := jwe.Encrypt(inner, jwe.WithKey(alg, to.key), jwe.WithContentEncryption(jwa.A256GCM()),
		jwe.WithProtectedHeaders(protected), jwe.WithCompact())
	if err != nil {
		return "", fmt.Errorf("encrypt: %w", err)
	}
	return string(out), nil
}

// sealHybrid returns a compact JWE (RFC 7516 §5.1; key encryption after
// draft-ietf-jose-hpke-encrypt-20 §6). Like the JWS it is put together by hand,
// so that nothing keeps a copy of the secret, and for speed: it is the default.
func sealHybrid(to hpke.PublicKey, inner []byte) (string, error) {
	ek, sender, err := hpke.NewSender(to, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(recipientInfo))
	if err != nil {
		return "", fmt.Errorf("encapsulate: %w", err)
	}
	var cek [32]byte
	defer clear(cek[:])
	rand.Read(cek[:])
	encryptedKey, err := sender.Seal(nil, cek[:])
	if err != nil {
		return "", fmt.Errorf("encrypt key: %w", err)
	}
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Cty string `json:"cty"`
		EK  string `json:"ek"`
		Enc string `json:"enc"`
		Typ string `json:"typ"`
	}{string(Hybrid), "JWT", encode(ek), "A256GCM", typeSecret})
	if err != nil {
		return "", fmt.Errorf("encode header: %w", err)
	}
	gcm, err := newGCM(cek[:])
	if err != nil {
		return "", fmt.Errorf("encrypt: %w", err)
	}
	return compactJWE(gcm, header, encryptedKey, inner), nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func compactJWE(gcm cipher.AEAD, header, encryptedKey, plain []byte) string {
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	protected := encode(header)
	sealed := gcm.Seal(nil, iv, plain, []byte(protected))
	text, tag := sealed[:len(plain)], sealed[len(plain):]
	return strings.Join([]string{protected, encode(encryptedKey), encode(iv), encode(text), encode(tag)}, ".")
}

type hybridDecrypter struct {
	key hpke.PrivateKey
	ek  string // of the protected header
}

func (d hybridDecrypter) DecryptKey(_ jwa.KeyEncryptionAlgorithm, encrypted []byte, _ jwe.Recipient, _ *jwe.Message) ([]byte, error) {
	enc, err := Decode(d.ek)
	if err != nil {
		return nil, fmt.Errorf(`decode "ek": %w`, err)
	}
	r, err := hpke.NewRecipient(enc, d.key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(recipientInfo))
	if err != nil {
		return nil, fmt.Errorf("decapsulate: %w", err)
	}
	return r.Open(nil, encrypted)
}

// Expect is what the guest asked with; Open accepts nothing else (guarantee G3).
type Expect struct {
	Identity []byte // pinned, SubjectPublicKeyInfo DER
	Resource string
	Nonce    []byte
	Now      time.Time
	// Skew is how far the clocks may be apart. A guest at boot that knows its clock is wrong sets a large one: the
	// nonce already proves freshness.
	Skew time.Duration
}

// Open decrypts and verifies a wrapped secret. The caller wipes Statement.Secret after use.
func Open(k *PrivateKey, token string, want Expect) (Statement, error) {
	if len(token) > MaxJWE {
		return Statement{}, fmt.Errorf("wrapped secret has %d bytes, at most %d are accepted", len(token), MaxJWE)
	}
	var h struct {
		Alg string          `json:"alg"`
		Cty string          `json:"cty"`
		EK  string          `json:"ek"`
		EPK json.RawMessage `json:"epk"`
		Enc string          `json:"enc"`
		Typ string          `json:"typ"`
	}
	if err := compactHeader(token, 5, &h); err != nil {
		return Statement{}, fmt.Errorf("wrapped secret: %w", err)
	}
	alg, err := k.suite.algorithm()
	if err != nil {
		return Statement{}, err
	}
	key := k.key
	if k.suite == Hybrid {
		key = hybridDecrypter{k.key.(hpke.PrivateKey), h.EK}
	}
	inner, err := jwe.Decrypt([]byte(token), jwe.WithKey(alg, key))
	if err != nil {
		return Statement{}, fmt.Errorf("decrypt: %w", err)
	}
	defer clear(inner)
	payload, err := Verify(want.Identity, typeSecret, string(inner))
	if err != nil {
		return Statement{}, err
	}
	defer clear(payload)
	var w wire
	if err := strictjson.Unmarshal(payload, &w); err != nil {
		return Statement{}, fmt.Errorf("decode statement: %w", err)
	}
	st := w.Statement
	st.Secret = w.Secret
	if err := check(st, k, want); err != nil {
		clear(st.Secret)
		return Statement{}, err
	}
	return st, nil
}

func check(st Statement, k *PrivateKey, want Expect) error {
	id, thumb := sha256.Sum256(want.Identity), Thumbprint(k.suite, k.public)
	issued, expires := time.Unix(st.IssuedAt, 0), time.Unix(st.Expires, 0)
	switch {
	case st.Issuer != encode(id[:]):
		return errors.New("issuer is not the pinned broker")
	case st.Resource != want.Resource:
		return fmt.Errorf("secret is for %q, asked for %q", st.Resource, want.Resource)
	case st.Nonce != encode(want.Nonce):
		return errors.New("secret answers another challenge")
	case st.Thumbprint != encode(thumb[:]):
		return errors.New("secret was sealed to another key")
	case want.Now.Add(want.Skew).Before(issued):
		return fmt.Errorf("%w: issued at %s: by this machine's clock that is in %s, and %s is let pass; is the clock slow?", ErrTime, at(issued), off(issued.Sub(want.Now)), want.Skew)
	case !want.Now.Add(-want.Skew).Before(expires):
		return fmt.Errorf("%w: expired at %s: by this machine's clock that was %s ago, and %s is let pass; is the clock fast?", ErrTime, at(expires), off(want.Now.Sub(expires)), want.Skew)
	}
	return nil
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func off(d time.Duration) time.Duration { return d.Round(time.Second) }

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Decode reads base64url without padding, strictly. The library skips line ends.
func Decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("base64url with a line end")
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}
