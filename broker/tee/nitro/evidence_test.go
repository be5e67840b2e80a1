package nitro_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/nitro"
)

// shared reads a file under ../shared/evidence/nitro, or skips the test.
func shared(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "shared", "evidence", "nitro", path))
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".b64") {
		if b, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(b))); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// unframe cuts what dstack puts around a document: lengths before it, and its own members behind it.
func unframe(t *testing.T, b []byte) []byte {
	t.Helper()
	i := bytes.Index(b, []byte{0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x59})
	if i < 0 {
		t.Fatal("no document inside")
	}
	b = b[i:]
	return b[:8+2+int(binary.BigEndian.Uint16(b[8:]))+2+96]
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

// TestSharedEvidence: each file that INDEX.md names under nitro, at its time.
func TestSharedEvidence(t *testing.T) {
	const zeros = "0000000000000000"
	for _, tc := range []struct {
		file   string
		now    time.Time
		framed bool
		// Either what it says,
		instance, pcr0 string
		debug          bool
		// or why it is refused.
		check  string
		reason attest.Reason
	}{
		{file: "NitroProver/attestation.bin", now: at("2024-04-10T07:09:01Z"), instance: "i-058bac400e426cc24", pcr0: "ea6ff0cc"},
		{file: "NitroProver/sample_attestation.bin", now: at("2024-02-26T07:02:01Z"), instance: "i-0df237f0418feb41e", pcr0: "17bf8f04"},
		{file: "NitroProver/sample_attestation2.bin", now: at("2024-04-03T13:08:22Z"), instance: "i-058bac400e426cc24", pcr0: "ea6ff0cc"},
		{file: "dstack/nsm-qvl/nitro_attestation.bin", framed: true, now: at("2025-12-25T13:15:37Z"), instance: "i-0827e799ec9232d44", pcr0: "5cb70295"},
		{file: "dstack/dstack-attest/nitro_attestation.bin", framed: true, now: at("2025-12-25T16:04:19Z"), instance: "i-0827e799ec9232d44", pcr0: "eb7d0dab08ff4154"},
		{file: "dstack/dstack-attest/nitro_attestation_dbg.bin", framed: true, now: at("2025-12-25T08:20:46Z"), instance: "i-0fd3fdaad4e904e69", pcr0: zeros, debug: true},
		{file: "go-nitro-attestation/sample_attestation_doc_full.bin", now: at("2024-01-24T18:14:25Z"), instance: "i-0e4fe5de7ee5abe78", pcr0: zeros, debug: true},
		{file: "go-nitro-attestation/sample_prod_doc.bin", now: at("2023-09-21T23:09:57Z"), instance: "i-07ceff4b3ab54305f", pcr0: "0f0b6b3e"},
		{file: "go-nitro-attestation/sample_prod_doc.bin", now: at("2050-01-01T00:00:00Z"), check: "nitro.validity", reason: attest.ReasonValidity},
		{file: "go-nitro-attestation/sample_prod_doc_with_publickey.bin", now: at("2021-03-24T16:10:41Z"), instance: "i-0a6d65e7122308898", pcr0: "672cd3c9"},
		{file: "nitrite/nitro_attestation.b64", now: at("2024-09-07T14:37:39Z"), instance: "i-0a22e5c5f24d22174", pcr0: "e72a46ca"},
		{file: "nitrite/nitro_attestation_debug.b64", now: at("2024-09-07T14:38:06Z"), instance: "i-0a22e5c5f24d22174", pcr0: zeros, debug: true},
		// Its unprotected header is null, and its cabundle empty: refused before its root, of its own, is looked for.
		{file: "nitrite/selfsigned_attestation.b64", now: at("2024-04-08T00:00:00Z"), check: "nitro.format", reason: attest.ReasonMalformed},
		{file: "nitro-validator/real_attestation_2026-01-03_truncated_pubkey.b64", now: at("2026-01-03T20:41:07Z"), check: "nitro.format", reason: attest.ReasonMalformed},
		{file: "rust-sgx/request_proper.bin", now: time.UnixMilli(1631182760215), instance: "i-02e3a660059b27d87", pcr0: zeros, debug: true},
		{file: "rust-sgx/request_proper.bin", now: at("2021-09-08T00:00:00Z"), check: "nitro.validity", reason: attest.ReasonValidity},
		{file: "rust-sgx/request_proper.bin", now: at("2021-09-10T00:00:00Z"), check: "nitro.validity", reason: attest.ReasonValidity},
		{file: "rust-sgx/expired_attestation.bin", now: at("2026-11-26T00:00:00Z"), check: "nitro.validity", reason: attest.ReasonValidity},
		{file: "rust-sgx/tampered_signature.bin", now: time.UnixMilli(1631182760215), check: "nitro.signature", reason: attest.ReasonSignature},
		{file: "rust-sgx/tampered_certificate.bin", now: time.UnixMilli(1631182760215), check: "nitro.chain", reason: attest.ReasonMalformed},
		// A payload and a Sig_structure, without their signature.
		{file: "NitroProver/attestation_payload_L53.bin", now: at("2024-02-26T07:02:01Z"), check: "nitro.format", reason: attest.ReasonMalformed},
		{file: "NitroProver/payload_tobesigned_L60.bin", now: at("2024-02-26T07:02:01Z"), check: "nitro.format", reason: attest.ReasonMalformed},
	} {
		t.Run(tc.file+" "+tc.now.Format(time.DateOnly), func(t *testing.T) {
			raw := shared(t, tc.file)
			if tc.framed {
				raw = unframe(t, raw)
			}
			cl, err := newVerifier(t, nitro.Config{}).Verify(t.Context(), attest.Evidence{Type: attest.TypeNitro, Report: raw}, attest.Unbound(), nil, tc.now)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := cl.Nitro.(*nitro.Claims)
			if c.InstanceID != tc.instance || c.Kind != nitro.Enclave || !strings.HasPrefix(cl.Measurements["pcr0"], tc.pcr0) || cl.Debuggable != tc.debug || cl.Simulated || cl.Bound || cl.BoundToCPUTEE {
				t.Errorf("claims %+v, %+v", cl, c)
			}
			// The clock in a bound appraisal is held to the document's.
			late := c.Timestamp.Add(6 * time.Minute)
			data, err := hex.DecodeString(c.UserData)
			if err != nil || len(data) == 0 {
				return
			}
			v := newVerifier(t, nitro.Config{})
			if cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeNitro, Report: raw}, attest.BindExact(data), nil, tc.now); err != nil || !cl.Bound {
				t.Errorf("bound: %v", err)
			}
			_, err = v.Verify(t.Context(), attest.Evidence{Type: attest.TypeNitro, Report: raw}, attest.BindExact(data), nil, late)
			wantError(t, err, "nitro.age", attest.ReasonValidity)
		})
	}
}

// TestSharedSnapshot: a document says what another verifier reads of it.
func TestSharedSnapshot(t *testing.T) {
	parts := strings.SplitN(string(shared(t, "dstack/dstack-attest/nitro_verify__nitro_report.snap")), "---\n", 3)
	var want struct {
		ModuleID  string            `json:"module_id"`
		PCRs      map[string]string `json:"pcrs"`
		UserData  string            `json:"user_data"`
		Timestamp int64             `json:"timestamp"`
	}
	if err := json.Unmarshal([]byte(parts[len(parts)-1]), &want); err != nil {
		t.Fatal(err)
	}
	raw := unframe(t, shared(t, "dstack/dstack-attest/nitro_attestation.bin"))
	cl, err := newVerifier(t, nitro.Config{}).Verify(t.Context(), attest.Evidence{Type: attest.TypeNitro, Report: raw}, attest.Unbound(), nil, time.UnixMilli(want.Timestamp))
	if err != nil {
		t.Fatal(err)
	}
	c := cl.Nitro.(*nitro.Claims)
	if !strings.HasPrefix(want.ModuleID, c.InstanceID+"-enc") || c.UserData != want.UserData || c.Timestamp.UnixMilli() != want.Timestamp || len(want.PCRs) != 3 {
		t.Errorf("claims %+v, want %+v", c, want)
	}
	for name, v := range want.PCRs {
		if cl.Measurements[name] != v {
			t.Errorf("%s is %s, want %s", name, cl.Measurements[name], v)
		}
	}
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

func newVerifier(t testing.TB, cfg nitro.Config) *nitro.Verifier {
	t.Helper()
	v, err := nitro.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
