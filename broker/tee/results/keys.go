package results

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
)

const (
	maxKeys   = 64
	maxKeySet = 256 << 10
	maxChain  = 6
)

// algorithms are those that are accepted, with the key that each is for: "RSA",
// or the name of a curve. None is symmetric, so that a public key is never a secret.
var algorithms = map[string]string{
	"RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
	"ES256": "P-256", "ES384": "P-384", "ES512": "P-521",
}

// kinds of keys that an issuer, or an authority above it, may have.
var kinds = []certs.Kind{certs.RSA, certs.P256, certs.P384, certs.P521}

// kindOf is "RSA", the name of a curve, or empty for what no algorithm is for.
func kindOf(key crypto.PublicKey) string {
	return string(certs.KindOf(key))
}

// fits says why a key cannot be used with an algorithm, or nil.
func fits(alg string, key crypto.PublicKey) error {
	if kind := kindOf(key); algorithms[alg] == "" || algorithms[alg] != kind {
		return fmt.Errorf("%s with a key of type %q", alg, kind)
	}
	return certs.CheckKey(key, kinds...)
}

// PinnedKey is a public key of an issuer.
type PinnedKey struct {
	ID        string // the token's kid; empty: for tokens without one
	Algorithm string // the only one that the key is for; empty: each that fits its type
	Public    crypto.PublicKey
}

// ParseKeys reads a JSON Web Key Set (RFC 7517 §5). All its keys must be RSA or
// EC public keys. A certificate of a short one verifies nothing, but may stand
// there, as in Microsoft's sets. A key that is given by its certificate only (x5c, as Microsoft
// does) is that of the first one: the file is what is trusted, not the certificate.
func ParseKeys(b []byte) ([]PinnedKey, error) {
	if len(b) > maxKeySet {
		return nil, fmt.Errorf("key set of %d bytes", len(b))
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := strictjson.Unmarshal(b, &set); err != nil {
		return nil, err
	}
	if len(set.Keys) == 0 || len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys: want 1 to %d", len(set.Keys), maxKeys)
	}
	var keys []PinnedKey
	known := map[string]bool{}
	for i, raw := range set.Keys {
		k, err := parseKey(raw)
		if err != nil {
			return nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
		if k.ID != "" && known[k.ID] {
			return nil, fmt.Errorf("keys[%d]: kid %q comes twice", i, k.ID)
		}
		known[k.ID] = true
		keys = append(keys, k)
	}
	return keys, nil
}

func parseKey(raw json.RawMessage) (PinnedKey, error) {
	var doc struct {
		ID        string   `json:"kid"`
		Algorithm string   `json:"alg"`
		Use       string   `json:"use"`
		Modulus   string   `json:"n"`
		X         string   `json:"x"`
		Chain     []string `json:"x5c"`
	}
	if err := strictjson.Unmarshal(raw, &doc); err != nil {
		return PinnedKey{}, err
	}
	k := PinnedKey{ID: doc.ID, Algorithm: doc.Algorithm}
	if doc.Use != "" && doc.Use != "sig" {
		return k, fmt.Errorf("use %q: want sig", doc.Use)
	}
	if doc.Modulus != "" || doc.X != "" || len(doc.Chain) == 0 {
		public, err := publicKey(raw)
		if err != nil {
			return k, err
		}
		k.Public = public
	}
	if err := k.certify(doc.Chain); err != nil {
		return k, fmt.Errorf("x5c: %w", err)
	}
	kind := kindOf(k.Public)
	if k.Algorithm != "" && algorithms[k.Algorithm] != kind {
		return k, fmt.Errorf("alg %q for a key of type %q", k.Algorithm, kind)
	}
	if !slices.Contains(slices.Collect(maps.Values(algorithms)), kind) {
		return k, fmt.Errorf("a key of type %q", kind)
	}
	return k, nil
}

// certify holds a key against its certificates, of which each is signed by the
// next (RFC 7517 §4.7), and takes it from the first where there is no other. A
// set that contradicts itself is not what its issuer published.
func (k *PinnedKey) certify(chain []string) error {
	var below *x509.Certificate
	for i, s := range chain {
		der, err := x5c(s)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", i, err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", i, err)
		}
		switch {
		case below != nil:
			if err := below.CheckSignatureFrom(c); err != nil {
				return fmt.Errorf("certificate %d did not sign the one before it: %w", i, err)
			}
		case k.Public == nil:
			k.Public = c.PublicKey
		case !sameKey(k.Public, c.PublicKey):
			return errors.New("the first certificate is of another key")
		}
		below = c
	}
	return nil
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// publicKey reads a JWK that is a public key; a private or a secret one is an error.
// Its certificates are not looked at: not everybody encodes them as the library expects.
func publicKey(raw json.RawMessage) (crypto.PublicKey, error) {
	var members map[string]json.RawMessage
	if err := strictjson.Unmarshal(raw, &members); err != nil {
		return nil, err
	}
	for _, name := range []string{"x5c", "x5t", "x5t#S256", "x5u"} {
		delete(members, name)
	}
	bare, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	key, err := jwk.ParseKey(bare)
	if err != nil {
		return nil, err
	}
	var public any
	if err := jwk.Export(key, &public); err != nil {
		return nil, err
	}
	switch public.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
		return public, nil
	}
	return nil, fmt.Errorf("a key of type %T: want an RSA or EC public key", public)
}

// ParseRoots reads a PEM file of one or more certificates.
func ParseRoots(b []byte) ([]*x509.Certificate, error) { return pemfile.Certificates(b, kinds...) }

// x5c reads an item of that name: base64 (RFC 7517 §4.7), or base64url as
// Confidential Containers writes it.
func x5c(s string) ([]byte, error) {
	enc := base64.StdEncoding
	if strings.ContainsAny(s, "-_") || len(s)%4 != 0 {
		enc = base64.RawURLEncoding
	}
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("base64 with a line end") // which the library skips
	}
	return enc.Strict().DecodeString(s)
}

// pinned returns the key of an issuer that a header names.
func (i *issuer) pinned(h header) (crypto.PublicKey, error) {
	id := ""
	if h.KeyID != nil {
		if id = *h.KeyID; id == "" {
			return nil, errors.New("an empty kid")
		}
	}
	for _, k := range i.keys {
		if k.ID != id {
			continue
		}
		if k.Algorithm != "" && k.Algorithm != h.Algorithm {
			return nil, fmt.Errorf("%s with a key for %s", h.Algorithm, k.Algorithm)
		}
		return k.Public, fits(h.Algorithm, k.Public)
	}
	if id == "" {
		return nil, errors.New("the token has no kid, and each pinned key has one")
	}
	return nil, fmt.Errorf("no pinned key has the kid %q", id)
}

// chain is a chain whose signatures lead to a pinned root, and when all of it is valid.
type chain struct {
	key         crypto.PublicKey
	subject     string
	after, till time.Time
}

// chained returns the key of the first certificate that came in a header, once
// its chain ends at a pinned root. Certificates of another root are no reason
// to believe anything, and a jwk beside them must be the same key.
func (i *issuer) chained(h header, now time.Time) (*chain, error) {
	sent := h.x5c()
	if len(sent) > maxChain {
		return nil, fmt.Errorf("x5c of %d certificates", len(sent))
	}
	c, err := i.chains.Get(memo.Key([]byte(strings.Join(sent, "."))), func() (*chain, error) { return i.verifyChain(sent, now) })
	if err != nil {
		return nil, err
	}
	if h.key != nil {
		stated, err := publicKey(h.key)
		if err != nil {
			return nil, fmt.Errorf("jwk: %w", err)
		}
		if !sameKey(c.key, stated) {
			return nil, errors.New("jwk is not the key of its certificate")
		}
	}
	if now.Before(c.after) || now.After(c.till) {
		return nil, x509.CertificateInvalidError{Reason: x509.Expired, Detail: fmt.Sprintf("valid from %s to %s", c.after.Format(time.RFC3339), c.till.Format(time.RFC3339))}
	}
	return c, fits(h.Algorithm, c.key)
}

func (h header) x5c() []string {
	if len(h.Chain) > 0 || h.Key == nil {
		return h.Chain
	}
	return h.Key.Chain
}

func (i *issuer) verifyChain(sent []string, now time.Time) (*chain, error) {
	var list []*x509.Certificate
	for n, s := range sent {
		der, err := x5c(s)
		if err != nil {
			return nil, fmt.Errorf("x5c[%d]: %w", n, err)
		}
		c, err := certs.Parse(der, kinds...)
		if err != nil {
			return nil, fmt.Errorf("x5c[%d]: %w", n, err)
		}
		list = append(list, c)
	}
	leaf := list[0]
	// What the certificates are for differs by vendor; Google's issuing CA is for TPM keys. The root says enough.
	verified, err := i.roots.Verify(leaf, list[1:], now)
	if err != nil {
		return nil, err
	}
	out := &chain{key: leaf.PublicKey, subject: leaf.Subject.String(), after: leaf.NotBefore, till: leaf.NotAfter}
	for _, c := range verified {
		if c.NotBefore.After(out.after) {
			out.after = c.NotBefore
		}
		if c.NotAfter.Before(out.till) {
			out.till = c.NotAfter
		}
	}
	return out, nil
}
