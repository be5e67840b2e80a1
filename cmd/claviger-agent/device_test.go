package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent/nsm"
	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/tpm"
	"github.com/claviger/claviger/internal/testservers"
)

// TestTPMCommands: what an operator is shown of a TPM, and evidence that a verifier believes as far as it goes.
func TestTPMCommands(t *testing.T) {
	socket := testservers.NewTPMMaker(t).StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "guest")
	boot := testservers.NewBoot()
	boot.Extend(t, socket)
	dir := t.TempDir()

	var facts tpmFacts
	for range 4 { // each lets go of the TPM, which has room for three keys
		r := command(t, nil, "tpm", "--tpm", socket, "--output", "json").want(t, 0)
		if err := json.Unmarshal([]byte(r.stdout), &facts); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := hex.DecodeString(facts.ChipID); err != nil || len(b) != 32 || !strings.Contains(facts.EKIssuer, "swtpm-localca") || facts.EKSerial == "" {
		t.Errorf("%+v", facts)
	}
	block, _ := pem.Decode([]byte(facts.AKPublic))
	if block == nil {
		t.Fatalf("no PEM: %q", facts.AKPublic)
	}
	if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		t.Error(err)
	}
	r := command(t, nil, "tpm", "--tpm", socket).want(t, 0)
	for _, want := range []string{facts.ChipID, facts.AKName, "swtpm-localca"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("table lacks %q:\n%s", want, r.stdout)
		}
	}

	config := filepath.Join(dir, "agent.json")
	text, err := json.Marshal(map[string]any{"tpm": map[string]any{"device": socket, "event_log": boot.Log(t), "pcrs": []int{0, 4, 7, 9}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{7}, 32)
	out, log := filepath.Join(dir, "tpm.json"), filepath.Join(dir, "boot.log")
	command(t, []string{"CLAVIGER_EVIDENCE=tpm"}, "evidence", "--config", config, "--report-data", hex.EncodeToString(data), "--out", out, "--event-log", log).want(t, 0)
	ev := attest.Evidence{Type: attest.TypeTPM}
	if ev.Report, err = os.ReadFile(out); err != nil {
		t.Fatal(err)
	}
	if ev.EventLog, err = os.ReadFile(log); err != nil {
		t.Fatal(err)
	}
	report, err := attest.DecodeTPMReport(ev.Report)
	if err != nil || len(report.PCRs) != 4 || report.PCRs[3].Index != 9 {
		t.Errorf("PCRs %v: %v", report.PCRs, err)
	}
	v, err := tpm.New(tpm.Config{Unvouched: true})
	if err != nil {
		t.Fatal(err)
	}
	// Nobody vouches for the key in a file, so it is not bound; the quote, the log and the data in it are looked at all the same.
	claims, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, time.Now())
	if err != nil || claims.ReportData != hex.EncodeToString(data) {
		t.Errorf("report data %q: %v", claims.ReportData, err)
	}
	command(t, nil, "evidence", "--tpm", socket, "--report-data", strings.Repeat("07", 33), "--out", out).want(t, exitFailed, "32 bytes")
	command(t, nil, "tpm", "--tpm", filepath.Join(dir, "none")).want(t, exitFailed, "none", "drivers")
}

func TestEvidenceChoice(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	command(t, nil, "evidence", "--evidence", "sgx", "--out", out).want(t, exitUsage, "sgx", "tsm", "nsm", "tpm")
	if !there(nsm.DefaultPath) {
		command(t, nil, "evidence", "--evidence", "nsm", "--out", out).want(t, exitFailed, "Nitro Secure Module")
	}
	command(t, nil, "tpm", "--output", "yaml").want(t, exitUsage, "--output")
	config := filepath.Join(dir, "agent.json")
	for name, text := range map[string]string{"absent": filepath.Join(dir, "none"), "no PEM": config} {
		b, err := json.Marshal(map[string]any{"evidence": "tpm", "tpm": map[string]string{"ak_certificate": text}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(config, b, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			command(t, nil, "evidence", "--config", config, "--out", out).want(t, exitFailed, "tpm.ak_certificate")
		})
	}
	if there(tsmFolder) || there(nsm.DefaultPath) || there(tpmdev.DefaultPath) {
		t.Skip("this machine has a device: that there is none cannot be tested")
	}
	command(t, nil, "evidence", "--out", out).want(t, exitFailed, tsmFolder, nsm.DefaultPath, tpmdev.DefaultPath)
}

// TestEKCertificateFile: a TPM that holds no certificate is known by the file that its manufacturer issued.
func TestEKCertificateFile(t *testing.T) {
	maker := testservers.NewTPMMaker(t)
	dir := t.TempDir()
	holder := maker.StartTPM(t, filepath.Join(dir, "tpm"), "guest")
	other := maker.StartTPM(t, filepath.Join(dir, "other"), "other")
	d, err := tpmdev.Open(tpmdev.Config{Path: holder})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := d.EKCertificate()
	if err != nil {
		t.Fatal(err)
	}
	want, err := d.ChipID()
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	for name, c := range map[string]struct {
		file []byte
		code int
		text string
	}{
		"PEM":           {block, 0, want},
		"DER":           {cert.Raw, 0, want},
		"padded DER":    {append(bytes.Clone(cert.Raw), make([]byte, 512)...), 0, want},
		"a private key": {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), exitFailed, "holds a PRIVATE KEY"},
		"nonsense":      {[]byte("nonsense"), exitFailed, "endorsement key certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			file, config := filepath.Join(t.TempDir(), "ek"), filepath.Join(t.TempDir(), "agent.json")
			text, err := json.Marshal(map[string]any{"tpm": map[string]any{"device": other, "ek_certificate": file}})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(file, c.file, 0o600), os.WriteFile(config, text, 0o600)); err != nil {
				t.Fatal(err)
			}
			r := command(t, nil, "tpm", "--config", config) // the other TPM holds another one
			if r.want(t, c.code); !strings.Contains(r.stdout+r.stderr, c.text) {
				t.Errorf("it says %q %q, not %q", r.stdout, r.stderr, c.text)
			}
		})
	}
}
