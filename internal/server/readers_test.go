package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRootsFile: a file of roots counts as a whole, or the broker does not start with it.
func TestRootsFile(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	good := block("CERTIFICATE", der)
	second := fmt.Sprintf("line %d", strings.Count(good, "\n")+1)
	negative := strings.Replace(string(der), "\x02\x01\x07", "\x02\x01\xf7", 1)
	for name, tc := range map[string]struct{ text, want string }{
		"comments":                 {text: "# Infineon\n" + good + "# STM\r\n" + strings.ReplaceAll(good, "\n", "\r\n")},
		"a negative serial number": {good + block("CERTIFICATE", []byte(negative)), "roots.pem: " + second + ": certificate 2"},
		"a key behind":             {good + block("EC PRIVATE KEY", der), "roots.pem: " + second + `: a PEM block "EC PRIVATE KEY"`},
		"a broken block":           {strings.Replace(good, "MI", "M", 1) + good, "roots.pem: line 1"},
	} {
		file := filepath.Join(t.TempDir(), "roots.pem")
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		certs, err1 := certificates(file)
		_, err2 := openPool(slog.New(slog.DiscardHandler), file)
		for _, err := range []error{err1, err2} {
			if tc.want == "" && (err != nil || len(certs) != 2) || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%s: %d certificates, %v, want %q", name, len(certs), err, tc.want)
			}
		}
	}
}

// TestLoadOneReading: a configuration means what it looks like, or the error names the line.
func TestLoadOneReading(t *testing.T) {
	load := func(text string) (Config, error) {
		file := filepath.Join(t.TempDir(), "claviger.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(file)
	}
	c, err := load("admin: {listen: off}\nmetrics_listen: off\ncatalog:\n- {pattern: db/*, source: local, key: 0123, policy: disks, ttl: 5m}\nlimits: {peer_rate: 0}\n")
	if err != nil || c.Admin.Listen != "off" || c.Metrics != "off" || c.Catalog[0].Key != "0123" || *c.Limits.PeerRate != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := Load("../../deploy/claviger.yaml"); err != nil {
		t.Error(err)
	}
	for want, text := range map[string]string{
		`line 3: catalog[0]: unknown field "Policy": it is written "policy"`: "catalog:\n- pattern: db/*\n  Policy: a\n  policy: b",
		`line 4: catalog[0]: the name "policy" occurs twice`:                 "catalog:\n- pattern: db/*\n  policy: a\n  policy: b",
		`line 2: catalog[0]: an anchor or alias`:                             "catalog:\n- &x {pattern: a}\n- *x",
		`line 1: policy.config.strict: "off" has several readings`:           "policy: {config: {strict: off}}",
		`a second document`: "listen: a:1\n---\nlisten: b:1",
	} {
		if _, err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestChainWithABrokenBlock: crypto/tls would serve the chain without it.
func TestChainWithABrokenBlock(t *testing.T) {
	dir := t.TempDir()
	files := TLSFiles{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k")}
	writeCertificate(t, files, "leaf", time.Now())
	load := func() error {
		_, err := openPair(slog.New(slog.DiscardHandler), files.Cert, files.Key)
		return err
	}
	if err := load(); err != nil {
		t.Fatal(err)
	}
	leaf, err := os.ReadFile(files.Cert)
	if err != nil {
		t.Fatal(err)
	}
	broken := string(leaf) + "# issuer\n" + strings.Replace(string(leaf), "MI", "M", 1)
	if err := os.WriteFile(files.Cert, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := load(); err == nil || !strings.Contains(err.Error(), "no base64") {
		t.Errorf("got %v", err)
	}
}
