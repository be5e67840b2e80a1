package pemfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

func makeCertificate(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func block(typ string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
}

func TestCertificates(t *testing.T) {
	der := makeCertificate(t, "good")
	good := block(certificate, der)
	for name, text := range map[string]string{
		"two":                   good + good,
		"comments":              "# Infineon\n" + good + "\n# STM: good\n" + good + "# end",
		"CRLF":                  strings.ReplaceAll("# a\n"+good+good, "\n", "\r\n"),
		"as openssl prints it":  "Certificate:\n    Data:\n        Version: 3 (0x2)\n" + good + good,
		"spaces at lines' ends": strings.ReplaceAll(good+good, "\n", " \t\n"),
		"one long line":         strings.Repeat("-----BEGIN CERTIFICATE-----\n"+base64.StdEncoding.EncodeToString(der)+"\n-----END CERTIFICATE-----\n", 2),
	} {
		if certs, err := Certificates([]byte(text)); err != nil || len(certs) != 2 || !bytes.Equal(certs[1].Raw, der) {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
	}
	negative := bytes.Replace(der, []byte{0x02, 0x01, 0x07}, []byte{0x02, 0x01, 0xf7}, 1)
	longer := append(slices.Clone(der), 0)
	for name, c := range map[string]struct{ text, want string }{
		"negative serial number":    {good + block(certificate, negative), "certificate 2: x509: negative serial"},
		"trailing bytes in the DER": {good + block(certificate, longer), "certificate 2: x509: trailing data"},
		"a private key":             {good + block("PRIVATE KEY", der), `a PEM block "PRIVATE KEY"`},
		"another type":              {block("TRUSTED CERTIFICATE", der), `line 1: a PEM block "TRUSTED CERTIFICATE"`},
		"broken base64":             {good + strings.Replace(good, "MII", "M*I", 1), "no base64"},
		"bits behind the end":       {"-----BEGIN CERTIFICATE-----\nQUJ=\n-----END CERTIFICATE-----\n", "no base64"},
		"empty":                     {"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "empty"},
		"headers":                   {strings.Replace(good, "CERTIFICATE-----\n", "CERTIFICATE-----\nProc-Type: 4,ENCRYPTED\n\n", 1), `line 2: "Proc-Type`},
		"no end":                    {good + strings.TrimSuffix(good, "-----END CERTIFICATE-----\n"), "has no end"},
		"another end":               {strings.Replace(good, "END CERTIFICATE", "END CERT", 1), `inside the PEM block "CERTIFICATE" of line 1`},
		"a block inside a block":    {strings.Replace(good, "-----END", "-----BEGIN CERTIFICATE-----\n-----END", 1), "inside the PEM block"},
		"a boundary that is short":  {"----BEGIN CERTIFICATE-----\n" + good, "line 1:"},
		"a boundary with a tail":    {"-----BEGIN CERTIFICATE----- x\n" + good, "no boundary"},
		"a boundary after a space":  {" " + good, "line 1:"},
		"two on one line":           {strings.Replace(good+good, "-----END CERTIFICATE-----\n", "-----END CERTIFICATE-----", 1), "inside"},
		"a NUL":                     {good + "\x00", "not PEM"},
		"a byte order mark":         {"\ufeff" + good, "line 1:"},
		"nothing":                   {"# none yet\n", "no PEM block"},
		"DER":                       {string(der), "PEM"},
	} {
		certs, err := Certificates([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d certificates, %v, want %q", name, len(certs), err, c.want)
		}
		if _, err := Pool([]byte(c.text)); err == nil {
			t.Errorf("%s: a pool was made", name)
		}
	}
	if _, err := BareCertificates([]byte("# comment\n" + good)); err == nil || !strings.Contains(err.Error(), `line 1: "# comment"`) {
		t.Errorf("a comment in a machine's: %v", err)
	}
	if certs, err := BareCertificates([]byte("\n" + good + "\r\n\n" + good + "\n\n")); err != nil || len(certs) != 2 {
		t.Errorf("%d, %v", len(certs), err)
	}
}

func TestOne(t *testing.T) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	text := block("PUBLIC KEY", der)
	if k, err := Ed25519([]byte("# the broker's\n" + text)); err != nil || !k.Equal(public) {
		t.Errorf("%v, %v", k, err)
	}
	for want, bad := range map[string]string{
		"second PEM block":          text + text,
		`a PEM block "PRIVATE KEY"`: block("PRIVATE KEY", der),
		`no PEM block "PUBLIC KEY"`: "",
		"trailing data":             block("PUBLIC KEY", append(slices.Clone(der), 0)),
	} {
		if _, err := Ed25519([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// FuzzBlocks: what is read is what encoding/pem finds, too.
func FuzzBlocks(f *testing.F) {
	f.Add([]byte("# a\n-----BEGIN A-----\nQUJD\n-----END A-----\n-----BEGIN B-----\r\nQQ==\r\n-----END B-----"))
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks, err := Blocks(b)
		if err != nil {
			return
		}
		rest := b
		for _, want := range blocks {
			var got *pem.Block
			if got, rest = pem.Decode(rest); got == nil || got.Type != want.Type || !bytes.Equal(got.Bytes, want.Bytes) || len(got.Headers) > 0 {
				t.Fatalf("encoding/pem reads %+v, want %+v", got, want)
			}
		}
		if more, _ := pem.Decode(rest); more != nil {
			t.Fatalf("encoding/pem reads a further block, %q", more.Type)
		}
	})
}
