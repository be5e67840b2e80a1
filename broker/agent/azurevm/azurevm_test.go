package azurevm

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/agent/tpmdev/tpmdevtest"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap/dcaptest"
	"github.com/claviger/claviger/broker/tee/azure"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/testservers"
)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

// vm is a software TPM as Azure's paravisor would leave it, with a SIMULATED CPU below.
func vm(t *testing.T, hardware func(reportData [64]byte) (report []byte, typ uint32)) *tpmdev.Device {
	t.Helper()
	socket := testservers.NewTPMMaker(t).StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "vm")
	n := base64.RawURLEncoding.EncodeToString(tpmdevtest.Key(t, socket, akHandle).N.Bytes())
	data := fmt.Sprintf(`{"keys":[{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"%s"}],"vm-configuration":{"secure-boot":true},"user-data":"%0128d"}`, n, 0)
	var reportData [64]byte
	sum := sha256.Sum256([]byte(data))
	copy(reportData[:], sum[:])
	report, typ := hardware(reportData)
	b := append([]byte("HCLA"), 2, 0, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0)
	b = append(append(b, make([]byte, 16)...), report...)
	b = append(b, make([]byte, headerSize+hardwareSize-len(b))...)
	for _, n := range []uint32{uint32(20 + len(data)), 1, typ, 1, uint32(len(data))} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	tpmdevtest.NV(t, socket, hclIndex, append(b, data...))
	d, err := tpmdev.Open(tpmdev.Config{Path: socket, EventLog: filepath.Join(t.TempDir(), "none"), PCRs: []int{0, 4, 7}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestSNP: what the device makes is believed by the verifier, for this request only.
func TestSNP(t *testing.T) {
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
	tpm := vm(t, func(d [64]byte) ([]byte, uint32) {
		ev, err := device.Evidence(d, teesim.ReportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return ev.Report, typeSNP
	})
	imds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata") != "true" || r.URL.Path != "/metadata/THIM/amd/certification" {
			http.Error(w, "not so", http.StatusBadRequest)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"vcekCert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: device.Leaf()}))})
	}))
	defer imds.Close()
	ev, err := New(tpm, imds.URL).Evidence(t.Context(), transcript)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(ev.Endorsements, device.Leaf()) {
		t.Errorf("endorsements of %d bytes are not the chip's certificate", len(ev.Endorsements))
	}
	ev.Endorsements = device.CertTable() // a simulated ASK is nowhere else
	s, err := snp.New(snp.Config{TestRoots: []snp.TestRoot{{Product: "Milan", ARK: root.ARK()}}})
	if err != nil {
		t.Fatal(err)
	}
	v := azure.New(azure.Config{SNP: s})
	cl, err := v.Verify(t.Context(), ev, attest.BindTo(transcript), teetest.MapCollateral(collateral), now)
	if err != nil {
		t.Fatalf("%v\n%+v", err, cl.Checks)
	}
	if !cl.Bound || !cl.BoundToCPUTEE || !cl.Simulated || cl.Measurements["pcr4"] == "" {
		t.Errorf("claims %+v", cl)
	}
	other := transcript
	other.Nonce = []byte("another")
	if _, err := v.Verify(t.Context(), ev, attest.BindTo(other), teetest.MapCollateral(collateral), now); attest.ReasonOf(err) != attest.ReasonBinding {
		t.Errorf("another request: %v", err)
	}
	imds.Close()
	if ev, err := New(tpm, imds.URL).Evidence(t.Context(), transcript); err != nil || len(ev.Endorsements) > 0 {
		t.Errorf("without the metadata service: %d bytes of endorsements, %v", len(ev.Endorsements), err)
	}
}

// TestTDX: the host's quoting enclave turns the TDREPORT into a quote.
func TestTDX(t *testing.T) {
	now := time.Now().UTC()
	platform, err := dcaptest.New(now)
	if err != nil {
		t.Fatal(err)
	}
	collateral, err := platform.Collateral()
	if err != nil {
		t.Fatal(err)
	}
	var quote []byte
	tdreport := bytes.Repeat([]byte{7}, tdReportSize)
	tpm := vm(t, func(d [64]byte) ([]byte, uint32) {
		td := platform.TD()
		td.REPORTDATA = d
		if quote, err = platform.QuoteTD(4, td); err != nil {
			t.Fatal(err)
		}
		return tdreport, typeTDX
	})
	answer := func(w http.ResponseWriter) {
		json.NewEncoder(w).Encode(map[string]string{"quote": base64.RawURLEncoding.EncodeToString(quote)})
	}
	imds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		want := `{"report":"` + base64.RawURLEncoding.EncodeToString(tdreport) + `"}`
		if r.Method != http.MethodPost || r.URL.Path != "/acc/tdquote" || string(b) != want {
			http.Error(w, "not so", http.StatusBadRequest)
			return
		}
		answer(w)
	}))
	defer imds.Close()
	ev, err := New(tpm, imds.URL).Evidence(t.Context(), transcript)
	if err != nil {
		t.Fatal(err)
	}
	v := azure.New(azure.Config{TDX: tdx.New(tdx.Config{TestRoots: []*x509.Certificate{platform.Root.Certificate}})})
	if cl, err := v.Verify(t.Context(), ev, attest.BindTo(transcript), teetest.MapCollateral(collateral), now); err != nil || !cl.BoundToCPUTEE || !cl.Simulated {
		t.Errorf("%v\n%+v", err, cl.Checks)
	}
	for want, a := range map[string]func(http.ResponseWriter){
		"500":             func(w http.ResponseWriter) { http.Error(w, "x", http.StatusInternalServerError) },
		"without a quote": func(w http.ResponseWriter) { io.WriteString(w, `{"quote": "!"}`) },
		"invalid char":    func(w http.ResponseWriter) { io.WriteString(w, "<html>") },
	} {
		answer = a
		if _, err := New(tpm, imds.URL).Evidence(t.Context(), transcript); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestNotAzure: a TPM of somebody else's.
func TestNotAzure(t *testing.T) {
	socket := testservers.NewTPMMaker(t).StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "vm")
	tpm, err := tpmdev.Open(tpmdev.Config{Path: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	if _, err := New(tpm, "").Evidence(t.Context(), transcript); err == nil || !strings.Contains(err.Error(), "is this a confidential VM?") {
		t.Errorf("%v", err)
	}
	var data [64]byte
	data[40] = 1
	if _, err := New(tpm, "").Raw(t.Context(), data); err == nil || !strings.Contains(err.Error(), "32 bytes") {
		t.Errorf("%v", err)
	}
}
