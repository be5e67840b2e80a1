package server

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/collateral"
	"github.com/claviger/claviger/broker/reread"
)

type anything struct{}

func (anything) CheckCollateral(context.Context, attest.CollateralRef, attest.CollateralItem, attest.Collateral) error {
	return nil
}

// aList is a revocation list in DER, by nobody.
func aList(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "nobody"}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(nil, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestBundleIsReadAgain: a site without a way out brings new collateral in a bundle, and
// restarts nothing. One that is not signed by the key changes nothing.
func TestBundleIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	keyFile, bundle, pack := filepath.Join(dir, "key.pem"), filepath.Join(dir, "b.tar.gz"), filepath.Join(dir, "pack")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(pack, string(attest.SNPCRL), "milan", "vcek")
	if err := os.MkdirAll(filepath.Dir(list), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(key ed25519.PrivateKey) {
		t.Helper()
		if err := collateral.WriteBundle(bundle, pack, key); err != nil {
			t.Fatal(err)
		}
	}
	write(key)
	src, err := collateral.New(collateral.Config{Checker: anything{}})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: Config{Evidence: Evidence{Bundle: bundle, BundleKey: keyFile}}, collateral: src}
	var file *trustFile
	for _, f := range s.trustFiles() {
		if f.name == "evidence.bundle" {
			file = f
		}
	}
	ref := attest.CollateralRef{Kind: attest.SNPCRL, Key: "milan/vcek"}
	if _, err := src.Get(t.Context(), ref); err == nil {
		t.Fatal("there is a list already")
	}
	was := file.seen
	if err := os.WriteFile(list, aList(t), 0o600); err != nil {
		t.Fatal(err)
	}
	write(other)
	if err := file.apply(t.Context()); err == nil {
		t.Error("takes a bundle that another key signed")
	}
	write(key)
	if reread.DigestOf(file.paths()...) == was {
		t.Error("does not see that the bundle changed")
	}
	if err := file.apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if it, err := src.Get(t.Context(), ref); err != nil || it.Source != "bundle" {
		t.Errorf("from %q: %v", it.Source, err)
	}
}
