package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// issue makes a certificate for public, signed by a, or by key itself without one.
func issue(t *testing.T, name string, public crypto.PublicKey, a authority, ca bool) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	parent := a.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newAuthority(t *testing.T, name string, above authority) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if above.key == nil {
		above.key = key
	}
	return authority{issue(t, name, key.Public(), above, true), key}
}

func rsaOf(bits, e int) *rsa.PublicKey {
	n := new(big.Int).SetBit(big.NewInt(1), bits-1, 1)
	return &rsa.PublicKey{N: n, E: e}
}

// TestBounds: which keys a certificate may hold.
func TestBounds(t *testing.T) {
	ec := func(c elliptic.Curve) crypto.PublicKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all := []Kind{RSA, P256, P384, P521, Ed25519}
	for name, tc := range map[string]struct {
		key   crypto.PublicKey
		kinds []Kind
		want  string // in the error; empty: taken
	}{
		"RSA-2048":                    {rsaOf(2048, 65537), all, ""},
		"RSA-4096":                    {rsaOf(4096, 3), all, ""},
		"RSA-2047":                    {rsaOf(2047, 65537), all, "2047 bits"},
		"RSA-4097":                    {rsaOf(4097, 65537), all, "4097 bits"},
		"RSA-59200":                   {rsaOf(59200, 1<<31-1), all, "59200 bits"},
		"the largest exponent":        {rsaOf(2048, 1<<31-1), all, ""},
		"an even exponent":            {rsaOf(2048, 65536), all, "exponent 65536"},
		"the exponent 1":              {rsaOf(2048, 1), all, "exponent 1"},
		"a larger exponent":           {rsaOf(2048, 1<<31+1), all, "exponent"},
		"RSA where none is used":      {rsaOf(2048, 65537), []Kind{P384}, "is RSA"},
		"P-256":                       {ec(elliptic.P256()), all, ""},
		"P-224":                       {ec(elliptic.P224()), all, "on P-224"},
		"P-521 where none is used":    {ec(elliptic.P521()), []Kind{P256, P384}, "is P-521"},
		"Ed25519":                     {ed, all, ""},
		"Ed25519 where none is used":  {ed, []Kind{RSA}, "is Ed25519"},
		"no key":                      {nil, all, "<nil>"},
		"an RSA key without a number": {&rsa.PublicKey{E: 3}, all, "0 bits"},
	} {
		err := CheckKey(tc.key, tc.kinds...)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	root := newAuthority(t, "root", authority{})
	huge := issue(t, "huge", rsaOf(16384, 65537), root, true)
	if _, err := Parse(huge.Raw, all...); err == nil {
		t.Error("a certificate of a key of 16384 bits is taken")
	}
	long := issue(t, strings.Repeat("x", MaxSize), rsaOf(2048, 65537), root, true)
	if _, err := Parse(long.Raw, all...); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a certificate of %d bytes: %v", len(long.Raw), err)
	}
}

// TestAuthorities: a chain may come in any order; what nobody vouches for in it
// does no harm, and no good.
func TestAuthorities(t *testing.T) {
	root := newAuthority(t, "root", authority{})
	upper := newAuthority(t, "upper", root)
	lower := newAuthority(t, "lower", upper)
	forged := newAuthority(t, "lower", newAuthority(t, "root", authority{}))
	public := lower.key.Public()
	leaf, forgedLeaf := issue(t, "leaf", public, lower, false), issue(t, "leaf", public, forged, false)
	known := NewAuthorities([]*x509.Certificate{root.cert}, []*x509.Certificate{upper.cert})
	alone := NewAuthorities([]*x509.Certificate{root.cert}, nil)
	type list = []*x509.Certificate
	for name, tc := range map[string]struct {
		to   *Authorities
		leaf *x509.Certificate
		sent list
		good bool
	}{
		"in order":                   {alone, leaf, list{lower.cert, upper.cert}, true},
		"out of order":               {alone, leaf, list{upper.cert, root.cert, lower.cert}, true},
		"one known already":          {known, leaf, list{lower.cert}, true},
		"a stranger among them":      {alone, leaf, list{forged.cert, lower.cert, upper.cert}, true},
		"one missing":                {alone, leaf, list{lower.cert}, false},
		"by a stranger of that name": {alone, forgedLeaf, list{forged.cert, lower.cert, upper.cert}, false},
		"nothing is trusted":         {NewAuthorities(nil, nil), leaf, list{lower.cert, upper.cert, root.cert}, false},
		"too many":                   {alone, leaf, list{lower.cert, upper.cert, root.cert, root.cert, root.cert, root.cert, root.cert, root.cert, root.cert}, false},
	} {
		chain, err := tc.to.Verify(tc.leaf, tc.sent, now)
		if good := err == nil; good != tc.good {
			t.Errorf("%s: %v, want good = %v", name, err, tc.good)
		}
		if tc.good && (len(chain) != 4 || !chain[3].Equal(root.cert)) {
			t.Errorf("%s: a chain of %d", name, len(chain))
		}
	}
	if _, err := alone.Verify(leaf, list{lower.cert, upper.cert}, now.Add(2*time.Hour)); err == nil {
		t.Error("an expired chain verifies")
	}
}

// TestStrangersKeysAreNotUsed: a key is used to check a signature only after
// somebody vouched for it.
func TestStrangersKeysAreNotUsed(t *testing.T) {
	root := newAuthority(t, "root", authority{})
	ours := newAuthority(t, "issuer", root)
	stranger := newAuthority(t, "issuer", newAuthority(t, "root", authority{}))
	below := issue(t, "below", stranger.key.Public(), stranger, true)
	got := vouched([]*x509.Certificate{below, stranger.cert, ours.cert}, []*x509.Certificate{root.cert})
	if len(got) != 1 || !got[0].Equal(ours.cert) {
		t.Errorf("vouched for are %d certificates, want the one that the root signed", len(got))
	}
}
