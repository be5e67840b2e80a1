package main

import (
	"bytes"
	"encoding/binary"
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
		"SNP v2":         {[]byte{2, 0, 0, 0, 0, 0, 0, 0, 0x1f}, attest.TypeSNP},
		"SNP v3":         {[]byte{3, 0, 0, 0, 0, 0, 0, 0, 0x1f}, attest.TypeSNP},
		"SNP v5, SVN":    {[]byte{5, 0, 0, 0, 0x81, 0, 0, 0, 0x1f}, attest.TypeSNP},
		"SGX quote v3":   {[]byte{3, 0, 2, 0, 0, 0, 0, 0, 9}, attest.TypeSGX},
		"SGX quote v4":   {[]byte{4, 0, 2, 0, 0, 0, 0, 0, 0}, attest.TypeSGX},
		"TDX quote v4":   {[]byte{4, 0, 2, 0, 0x81, 0, 0, 0, 0}, attest.TypeTDX},
		"TDX quote v5":   {[]byte{5, 0, 2, 0, 0x81, 0, 0, 0, 0}, attest.TypeTDX},
		"TPM":            {encoded(attest.TPMReport{Quote: one, Signature: one, AKPublic: one, PCRs: pcrs}.Encode()), attest.TypeTPM},
		"Azure":          {encoded(attest.AzureReport{HCLReport: one, Quote: one, Signature: one, PCRs: pcrs}.Encode()), attest.TypeAzure},
		"GCE":            {encoded(attest.GCEReport{Hardware: attest.TypeTDX, HardwareReport: one, Quote: one, Signature: one, AKCertificates: [][]byte{one}, PCRs: pcrs}.Encode()), attest.TypeGCE},
		"Nitro":          {[]byte{0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0}, attest.TypeNitro},
		"Nitro, tagged":  {[]byte{0xd2, 0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0}, attest.TypeNitro},
		"Keystone":       {keystone(1352, 64), attest.TypeKeystone},
		"Keystone, cut":  {keystone(328+32, 32), attest.TypeKeystone},
		"Keystone, JSON": {[]byte(`{"security_monitor": {}, "enclave": {}}`), attest.TypeKeystone},
		"another length": {keystone(328+32, 33), attest.TypeSNP},
		"NVIDIA":         {append([]byte{0x11, 0xe0, 0x01, 0xff}, make([]byte, 4096)...), attest.TypeNVIDIA},
		"nothing at all": {nil, attest.TypeSNP},
	} {
		if got := guess(tc.report); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
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
