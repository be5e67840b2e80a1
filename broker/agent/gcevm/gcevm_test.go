package gcevm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/agent/tpmdev/tpmdevtest"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/gce"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/testservers"
)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// cpu is a SIMULATED one.
type cpu struct{ *teesim.Device }

func (c cpu) Raw(_ context.Context, d [64]byte) (attest.Evidence, error) {
	return c.Evidence(d, teesim.ReportOptions{})
}

// TestDevice: what the device makes is believed by the verifier, for this request only.
func TestDevice(t *testing.T) {
	now := time.Now()
	root, err := teesim.NewRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	device, err := root.NewDevice(teesim.DeviceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	collateral, err := root.Collateral(now)
	if err != nil {
		t.Fatal(err)
	}
	socket := testservers.NewTPMMaker(t).StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "vm")
	public := tpmdevtest.Key(t, socket, 0)
	d, err := tpmdev.Open(tpmdev.Config{Path: socket, EventLog: filepath.Join(t.TempDir(), "none"), PCRs: []int{0, 4, 7}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(d, cpu{device}, nil).Evidence(t.Context(), transcript); err == nil || !strings.Contains(err.Error(), "is this a VM of Google's?") {
		t.Errorf("a TPM of somebody else's: %v", err)
	}
	d.Close()

	// Google's CA, SIMULATED, and its certificate of the key, with the instance's name.
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TEST SIMULATED EK/AK CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &ca.PublicKey, ca)
	if err != nil {
		t.Fatal(err)
	}
	rootCert, err := x509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	property := func(tag int, v any) asn1.RawValue {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: der}
	}
	info, err := asn1.Marshal(struct {
		Zone          string `asn1:"utf8"`
		ProjectNumber int64
		ProjectID     string `asn1:"utf8"`
		InstanceID    int64
		InstanceName  string          `asn1:"utf8"`
		Security      []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}{"us-central1-a", 101, "project-1", 2185573726, "vm-1", []asn1.RawValue{property(0, 3), property(1, true), property(2, true)}})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "2185573726"}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 1, 21}, Value: info}},
	}, rootCert, public, ca)
	if err != nil {
		t.Fatal(err)
	}
	tpmdevtest.NV(t, socket, akCertIndex, leaf)
	tpmdevtest.NV(t, socket, akTemplateIndex, tpm2.Marshal(tpmdevtest.Template()))
	if d, err = tpmdev.Open(tpmdev.Config{Path: socket, EventLog: filepath.Join(t.TempDir(), "none"), PCRs: []int{0, 4, 7}}); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := New(d, cpu{device}, nil).Evidence(t.Context(), transcript); err == nil || !strings.Contains(err.Error(), "ak_issuers") {
		t.Errorf("without issuers: %v", err)
	}
	ev, err := New(d, cpu{device}, [][]byte{rootDER}).Evidence(t.Context(), transcript)
	if err != nil {
		t.Fatal(err)
	}
	s, err := snp.New(snp.Config{TestRoots: []snp.TestRoot{{Product: "Milan", ARK: root.ARK()}}})
	if err != nil {
		t.Fatal(err)
	}
	v := gce.New(gce.Config{AKRoots: []*x509.Certificate{rootCert}, SNP: s})
	cl, err := v.Verify(t.Context(), ev, attest.BindTo(transcript), teetest.MapCollateral(collateral), now)
	if err != nil {
		t.Fatalf("%v\n%+v", err, cl.Checks)
	}
	if !cl.Bound || !cl.BoundToCPUTEE || !cl.Simulated || cl.Measurements["vtpm_pcr4"] == "" || cl.Measurements["pcr4"] != "" {
		t.Errorf("claims %+v", cl)
	}
	other := transcript
	other.Nonce = []byte("another")
	if _, err := v.Verify(t.Context(), ev, attest.BindTo(other), teetest.MapCollateral(collateral), now); err == nil {
		t.Error("another request is believed")
	}
}
