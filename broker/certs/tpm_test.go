package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"
)

// manufacturer signs what it is given, in whatever encoding.
type manufacturer struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newManufacturer(t testing.TB) manufacturer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TPM maker"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return manufacturer{key, cert}
}

func (m manufacturer) certificate(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(77), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageKeyEncipherment}
	der, err := x509.CreateCertificate(rand.Reader, template, m.cert, key.Public(), m.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// signed puts a certificate together around a TBSCertificate in any encoding.
func (m manufacturer) signed(t testing.TB, tbs []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(tbs)
	sig, err := ecdsa.SignASN1(rand.Reader, m.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	alg, err := asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}})
	if err != nil {
		t.Fatal(err)
	}
	bits, err := asn1.Marshal(asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)})
	if err != nil {
		t.Fatal(err)
	}
	return long(0x30, slices.Concat(tbs, alg, bits))
}

// long is an element whose length takes three bytes, needed or not.
func long(tag byte, content []byte) []byte {
	return append([]byte{tag, 0x83, 0, byte(len(content) >> 8), byte(len(content))}, content...)
}

// loosened is b with all elements in long form, integers with leading zeros, and true as 1.
func loosened(t testing.TB, b []byte) (out []byte) {
	t.Helper()
	for len(b) > 0 {
		e, rest, err := readTLV(b)
		if err != nil {
			t.Fatal(err)
		}
		content := e.content
		switch {
		case e.tag&0x20 != 0:
			content = loosened(t, content)
		case e.tag == 0x02:
			content = append([]byte{0, 0}, content...)
		case e.tag == 0x01:
			content = []byte{1}
		case e.tag == 0x04 && len(content) > 0 && content[0] == 0x30:
			content = loosened(t, content)
		case e.tag == 0x03 && len(content) > 1 && content[1] == 0x30:
			content = append([]byte{0}, loosened(t, content[1:])...)
		}
		out, b = append(out, long(e.tag, content)...), rest
	}
	return out
}

// TestParseTPM: certificates as they are found in TPMs, whose signature counts over the bytes that were signed.
func TestParseTPM(t *testing.T) {
	m := newManufacturer(t)
	plain := m.certificate(t)
	header := append([]byte{0x10, 0x01, 0x00, byte((len(plain.Raw) + 2) >> 8), byte(len(plain.Raw) + 2), 0x10, 0x02}, plain.Raw...)
	loose := m.signed(t, loosened(t, plain.RawTBSCertificate))
	if _, err := x509.ParseCertificate(loose); err == nil {
		t.Fatal("x509 parses what is not DER: this test shows nothing")
	}
	to := NewAuthorities([]*x509.Certificate{m.cert}, nil)
	for name, b := range map[string][]byte{
		"plain":                      plain.Raw,
		"padded with zeros":          append(bytes.Clone(plain.Raw), make([]byte, 300)...),
		"padded with ones":           append(bytes.Clone(plain.Raw), bytes.Repeat([]byte{0xff}, 300)...),
		"behind a header":            header,
		"behind a header and padded": append(bytes.Clone(header), make([]byte, 100)...),
		"not minimal":                loose,
		"not minimal, and padded":    append(bytes.Clone(loose), 0, 0, 0),
	} {
		c, err := ParseTPM(b, RSA)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(c.RawSubjectPublicKeyInfo, plain.RawSubjectPublicKeyInfo) || c.SerialNumber.Int64() != 77 {
			t.Errorf("%s: another certificate", name)
		}
		if _, err := to.Verify(c, nil, time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Two encodings of one certificate are two documents: only the one that was signed verifies.
	for name, b := range map[string][]byte{
		"made DER by somebody else":   must(minimal(loose, 0)),
		"loosened by somebody else":   loosened(t, plain.Raw),
		"something behind it":         append(bytes.Clone(plain.Raw), 1),
		"of another key than allowed": m.cert.Raw,
		"cut short":                   plain.Raw[:len(plain.Raw)-1],
		"nothing":                     nil,
	} {
		c, err := ParseTPM(b, RSA)
		if err == nil {
			_, err = to.Verify(c, nil, time.Now())
		}
		if err == nil {
			t.Errorf("%s: believed", name)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func FuzzParseTPM(f *testing.F) {
	m := newManufacturer(f)
	c := m.certificate(f)
	f.Add(c.Raw)
	f.Add(m.signed(f, loosened(f, c.RawTBSCertificate)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseTPM(b, RSA, P256)
		if err == nil && !bytes.Contains(b, c.Raw) {
			t.Error("bytes that were not sent")
		}
		if again, err := minimal(b, 0); err == nil {
			if twice, err := minimal(again, 0); err != nil || !bytes.Equal(twice, again) {
				t.Errorf("not minimal: %v", err)
			}
		}
	})
}

// TestMinimalDepth: each level of nesting copies what is in it, so the levels are bounded.
func TestMinimalDepth(t *testing.T) {
	nested := func(levels int) []byte {
		var b []byte
		for range levels {
			b = append(appendLength([]byte{0x30}, len(b)), b...)
		}
		return b
	}
	if out, err := minimal(nested(maxDepth), 0); err != nil || len(out) != len(nested(maxDepth)) {
		t.Errorf("%d levels: %d bytes, %v", maxDepth, len(out), err)
	}
	for _, levels := range []int{17, 5000} {
		if _, err := minimal(nested(levels), 0); err == nil {
			t.Errorf("%d levels are taken", levels)
		}
	}
}
