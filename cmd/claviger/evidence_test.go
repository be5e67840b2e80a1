package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
)

// TestGuess: evidence is told from its bytes.
func TestGuess(t *testing.T) {
	encoded := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	keystone := func(size, data int) []byte {
		b := bytes.Repeat([]byte{0xa5}, size)
		binary.LittleEndian.PutUint64(b[64:], uint64(data))
		return b
	}
	one, pcrs := []byte{1}, []attest.PCR{{Index: 4, Digest: make([]byte, 32)}}
	for name, tc := range map[string]struct {
		report []byte
		want   attest.Type
	}{
		"SNP v2":         {append([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0x1f}, make([]byte, snpReportSize)...), attest.TypeSNP},
		"SNP v3":         {append([]byte{3, 0, 0, 0, 0, 0, 0, 0, 0x1f}, make([]byte, snpReportSize)...), attest.TypeSNP},
		"SNP v5, SVN":    {append([]byte{5, 0, 0, 0, 0x81, 0, 0, 0, 0x1f}, make([]byte, snpReportSize)...), attest.TypeSNP},
		"SGX quote v3":   {[]byte{3, 0, 2, 0, 0, 0, 0, 0, 9}, attest.TypeSGX},
		"SGX quote v4":   {[]byte{4, 0, 2, 0, 0, 0, 0, 0, 0}, attest.TypeSGX},
		"TDX quote v4":   {[]byte{4, 0, 2, 0, 0x81, 0, 0, 0, 0}, attest.TypeTDX},
		"TDX quote v5":   {[]byte{5, 0, 2, 0, 0x81, 0, 0, 0, 0}, attest.TypeTDX},
		"TPM":            {encoded(attest.TPMReport{Quote: one, Signature: one, AKPublic: one, PCRs: pcrs}.Encode()), attest.TypeTPM},
		"Azure":          {encoded(attest.AzureReport{HCLReport: one, Quote: one, Signature: one, PCRs: pcrs}.Encode()), attest.TypeAzure},
		"GCE":            {encoded(attest.GCEReport{Hardware: attest.TypeTDX, HardwareReport: one, Quote: one, Signature: one, AKCertificates: [][]byte{one}, PCRs: pcrs}.Encode()), attest.TypeGCE},
		"Nitro":          {[]byte("\x84\x44\xa1\x01\x38\x22\xa0\x59\x11\x7a\xa9\x69module_id"), attest.TypeNitro},
		"Nitro, tagged":  {[]byte("\xd2\x84\x44\xa1\x01\x38\x22\xa0\x59\x11\x7a\xa9\x69module_id"), attest.TypeNitro},
		"Keystone":       {keystone(1352, 64), attest.TypeKeystone},
		"Keystone, cut":  {keystone(328+32, 32), attest.TypeKeystone},
		"Keystone, JSON": {[]byte(`{"security_monitor": {}, "enclave": {}}`), attest.TypeKeystone},
		"PSA":            {[]byte{0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x58}, attest.TypePSA},
		"PSA, tagged":    {[]byte{0xd2, 0x84, 0x43, 0xa1, 0x01, 0x26, 0xa0, 0x58}, attest.TypePSA},
		"PSA, Mac0":      {[]byte{0xd1, 0x84, 0x43, 0xa1, 0x01, 0x05, 0xa0, 0x58}, attest.TypePSA},
		"CCA":            {[]byte{0xd9, 0x01, 0x8f, 0xa2, 0x19, 0xac, 0xca}, attest.TypeCCA},
		"CCA in a CMW":   {[]byte{0xd9, 0x03, 0x8b, 0xa2, 0x19, 0xac, 0xca}, attest.TypeCCA},
		"another length": {keystone(328+32, 33), ""},
		"JWT":            {[]byte("eyJhbGciOiJub25lIn0.e30."), attest.TypeResult},
		"NVIDIA":         {append([]byte{0x11, 0xe0, 0x01, 0xff}, make([]byte, 4096)...), attest.TypeNVIDIA},
		"nothing at all": {nil, ""},
	} {
		if got := guess(tc.report); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// TestIssuerKeys: a token is believed with the keys of its issuer, and without any it is said that there are none.
func TestIssuerKeys(t *testing.T) {
	shared := filepath.Join("..", "..", "..", "shared", "evidence")
	maa := filepath.Join(shared, "maa", "teaclave-sgx-sdk")
	google := filepath.Join(shared, "gcp-confidential-space", "oak")
	if _, err := os.Stat(maa); err != nil {
		t.Skipf("no shared evidence: %v", err)
	}
	for name, tc := range map[string]struct {
		flags evidenceFlags
		file  string
		says  string
		ok    bool
	}{
		"key set":     {evidenceFlags{issuerKeys: filepath.Join(maa, "maa_sgx.jwks.json"), at: "2023-09-26T14:15:50Z"}, filepath.Join(maa, "maa_sgx.jwt"), "VERIFIED: what another verifier says", true},
		"root":        {evidenceFlags{issuerKeys: filepath.Join(google, "oak_attestation_gcp", "confidential_space_root.pem"), at: "2025-09-05T08:20:00Z"}, filepath.Join(google, "ctf_sha2", "sample.jwt"), "to a pinned root", true},
		"no keys":     {evidenceFlags{at: "2023-09-26T14:15:50Z"}, filepath.Join(maa, "maa_sgx.jwt"), "not verified, no keys", false},
		"others' key": {evidenceFlags{issuerKeys: filepath.Join(maa, "maa_sgx.jwks.json"), at: "2025-09-05T08:20:00Z"}, filepath.Join(google, "ctf_sha2", "sample.jwt"), "no pinned key has the kid", false},
	} {
		var out bytes.Buffer
		err := tc.flags.run(t.Context(), &out, tc.file, "", true)
		if (err == nil) != tc.ok || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%s: %v\n%s", name, err, out.String())
		}
	}
}

func TestFromSDK(t *testing.T) {
	list := []byte(`[{"arch": "HOPPER", "nonce": "00", "evidence": "AQ==", "certificate": "Ag=="}, {"evidence": "Aw==", "certificate": "BA=="}]`)
	for i, want := range []byte{1, 3} {
		ev, err := fromSDK(list, i)
		if err != nil || ev.Type != attest.TypeNVIDIA || !bytes.Equal(ev.Report, []byte{want}) || !bytes.Equal(ev.Endorsements, []byte{want + 1}) {
			t.Errorf("device %d: %+v, %v", i, ev, err)
		}
	}
	for name, tc := range map[string]struct {
		list  []byte
		index int
	}{
		"behind the end": {list, 2}, "before the start": {list, -1}, "empty": {[]byte("[]"), 0}, "cut": {list[:20], 0},
		"not base64": {[]byte(`[{"evidence": "!"}]`), 0}, "endless": {append(list, bytes.Repeat([]byte(" "), 4<<20)...), 0},
	} {
		if ev, err := fromSDK(tc.list, tc.index); err == nil {
			t.Errorf("%s: %+v", name, ev)
		}
	}
}

func TestDecoded(t *testing.T) {
	for in, want := range map[string]string{
		"0a0b\n": "\n\v", "CgsM\nDQ==\n": "\n\v\f\r", "\x02\x00": "\x02\x00", "{}": "{}", "": "", "\n": "\n", "eyJh.e30.": "eyJh.e30.",
	} {
		if got := string(decoded([]byte(in))); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
