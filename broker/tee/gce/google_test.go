package gce

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// TestGoogleCertificates: certificates of attestation and endorsement keys that
// Google issued, by both of its CAs. Their issuers are not at hand, so each is
// made a root of its own: dates, purpose and instance are what is tested.
func TestGoogleCertificates(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tpm-tools").Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("go-tpm-tools is not in the module cache: %v", err)
	}
	const project, number = "google.com:wuale-gcp-testing", "117478743145"
	for file, want := range map[string]*Instance{
		"pca_tpm_rsa_sign_cert.pem": {Zone: "us-central1-a", ProjectID: project, ProjectNumber: number, ID: "218557372616137117", Name: "cs-debug-pca"},
		"pca_tpm_ecc_sign_cert.pem": {Zone: "us-central1-a", ProjectID: project, ProjectNumber: number, ID: "218557372616137117", Name: "cs-debug-pca"},
		"uca_tpm_rsa_sign_cert.pem": {Zone: "us-central1-a", ProjectID: project, ProjectNumber: number, ID: "5780156274199835632", Name: "cs-debug"},
		"uca_tpm_ecc_sign_cert.pem": {Zone: "us-central1-a", ProjectID: project, ProjectNumber: number, ID: "5780156274199835632", Name: "cs-debug"},
		"pca_tpm_rsa_enc_cert.pem":  nil,
		"uca_tpm_rsa_enc_cert.pem":  nil,
	} {
		raw, err := os.ReadFile(filepath.Join(dir, "internal", "test", "certificates", file))
		if err != nil {
			t.Skipf("no certificates: %v", err)
		}
		block, _ := pem.Decode(raw)
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		v := New(Config{AKRoots: []*x509.Certificate{root}})
		certs, _, err := parseCertificates([][]byte{block.Bytes})
		if err != nil {
			t.Fatal(err)
		}
		reason, err := v.checkCertificate(certs[0], nil, time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC))
		if want == nil {
			if err == nil || reason != attest.ReasonChain {
				t.Errorf("%s: an endorsement key passed for an attestation key: %v", file, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		got, _, err := instance(certs[0])
		if err != nil || *got != *want {
			t.Errorf("%s: %+v, %v; want %+v", file, got, err, want)
		}
		if reason, err := v.checkCertificate(certs[0], nil, time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC)); reason != attest.ReasonValidity {
			t.Errorf("%s: in 2060: %v", file, err)
		}
	}
}
