package main

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

	"github.com/google/go-sev-guest/verify/testdata"

	"github.com/claviger/claviger/broker/attest"
)

// asFields is a report as the sev crate serializes its fields: as lists of numbers, or in hex.
func asFields(r []byte, form func([]byte) any) map[string]any {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(r[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(r[at:]) }
	tcb := func(at int) any {
		return map[string]any{"fmc": nil, "bootloader": r[at], "tee": r[at+1], "snp": r[at+6], "microcode": r[at+7]}
	}
	build := func(at int) any { return map[string]any{"build": r[at], "minor": r[at+1], "major": r[at+2]} }
	f := map[string]any{
		"version": u32(0), "guest_svn": u32(4), "policy": u64(8), "family_id": form(r[0x10:0x20]), "image_id": form(r[0x20:0x30]), "vmpl": u32(0x30), "sig_algo": u32(0x34),
		"current_tcb": tcb(0x38), "plat_info": u64(0x40), "key_info": u32(0x48), "report_data": form(r[0x50:0x90]), "measurement": form(r[0x90:0xc0]), "host_data": form(r[0xc0:0xe0]),
		"id_key_digest": form(r[0xe0:0x110]), "author_key_digest": form(r[0x110:0x140]), "report_id": form(r[0x140:0x160]), "report_id_ma": form(r[0x160:0x180]),
		"reported_tcb": tcb(0x180), "cpuid_fam_id": nil, "cpuid_mod_id": nil, "cpuid_step": nil, "chip_id": form(r[0x1a0:0x1e0]), "committed_tcb": tcb(0x1e0),
		"current": build(0x1e8), "committed": build(0x1ec), "launch_tcb": tcb(0x1f0), "signature": map[string]any{"r": form(r[0x2a0:0x2e8]), "s": form(r[0x2e8:0x330])},
	}
	if u32(0) >= 3 {
		f["cpuid_fam_id"], f["cpuid_mod_id"], f["cpuid_step"] = r[0x188], r[0x189], r[0x18a]
	}
	return f
}

func numbers(b []byte) any {
	var out []int
	for _, x := range b {
		out = append(out, int(x))
	}
	return out
}

func read(t *testing.T, index int, doc any) (attest.Evidence, error) {
	t.Helper()
	b, ok := doc.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(doc); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "evidence.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return (&evidenceFlags{index: index}).read(file)
}

// TestForms: evidence is found in what other tools write about it, with what goes with it.
func TestForms(t *testing.T) {
	report := testdata.AttestationBytes
	if len(report) < snpReportSize {
		t.Fatalf("a report of %d bytes", len(report))
	}
	report = report[:snpReportSize]
	vcek := testdata.VcekBytes
	b64, url := base64.StdEncoding.EncodeToString, base64.RawURLEncoding.EncodeToString
	asHex := func(b []byte) any { return hex.EncodeToString(b) }
	inner, err := json.Marshal(map[string]any{"attestation_report": asFields(report, asHex), "cert_chain": nil})
	if err != nil {
		t.Fatal(err)
	}
	quote := append([]byte{4, 0, 2, 0, 0x81, 0, 0, 0}, make([]byte, 1000)...)
	nitro := append([]byte("\x84\x44\xa1\x01\x38\x22\xa0\x59\x10\x00\xa9imodule_id"), make([]byte, 100)...)
	for name, tc := range map[string]struct {
		doc   any
		typ   attest.Type
		bytes []byte
		certs bool
		log   string
	}{
		"Trustee's SNP, numbers":  {map[string]any{"attestation_report": asFields(report, numbers), "cert_chain": []any{map[string]any{"cert_type": "VCEK", "data": numbers(vcek)}}}, attest.TypeSNP, report, true, ""},
		"Trustee's SNP, hex":      {map[string]any{"version": 1, "attestation_report": asFields(report, asHex), "cert_chain": nil}, attest.TypeSNP, report, false, ""},
		"base64 and PEM":          {map[string]any{"platform": "snp", "evidence": map[string]any{"report": b64(report), "vcek": "-----BEGIN CERTIFICATE-----\n" + b64(vcek) + "\n-----END CERTIFICATE-----\n"}}, attest.TypeSNP, report, true, ""},
		"base64url, in a request": {map[string]any{"verification_requests": []any{map[string]any{"tee": "snp", "evidence": url(inner)}}}, attest.TypeSNP, report, false, ""},
		"ITA's":                   {map[string]any{"quote": b64(quote), "runtime_data": b64([]byte("some")), "event_log": b64([]byte("a log of events"))}, attest.TypeTDX, quote, false, "a log of events"},
		"ITA's, composite":        {map[string]any{"tdx": map[string]any{"quote": b64(quote), "verifier_nonce": map[string]any{"val": b64([]byte("n")), "iat": "", "signature": ""}}, "policy_ids": []string{}}, attest.TypeTDX, quote, false, ""},
		"Trustee's TDX":           {map[string]any{"cc_eventlog": b64([]byte("log")), "quote": b64(quote), "aa_eventlog": nil}, attest.TypeTDX, quote, false, "log"},
		"dstack's":                {map[string]any{"quote": hex.EncodeToString(quote), "event_log": `[{"imr":0}]`, "vm_config": `{"a":1}`}, attest.TypeTDX, quote, false, ""},
		"Nitro's":                 {map[string]any{"attestation_document": b64(nitro)}, attest.TypeNitro, nitro, false, ""},
		"a token":                 {map[string]any{"token": "eyJhbGciOiJub25lIn0.e30."}, attest.TypeResult, []byte("eyJhbGciOiJub25lIn0.e30."), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ev, err := read(t, 0, tc.doc)
			if err != nil {
				t.Fatal(err)
			}
			if ev.Type != tc.typ || !bytes.Equal(ev.Report, tc.bytes) || (len(ev.Endorsements) > 0) != tc.certs || string(ev.EventLog) != tc.log {
				t.Errorf("%s, the very bytes: %t, %d bytes of endorsements, log %q", ev.Type, bytes.Equal(ev.Report, tc.bytes), len(ev.Endorsements), ev.EventLog)
			}
		})
	}
	both := map[string]any{"a": b64(report), "b": map[string]any{"quote": b64(quote)}}
	for i, want := range []attest.Type{attest.TypeSNP, attest.TypeTDX} {
		if ev, err := read(t, i, both); err != nil || ev.Type != want {
			t.Errorf("piece %d: %s, %v", i, ev.Type, err)
		}
	}
	for name, tc := range map[string]struct {
		doc   any
		index int
		says  string
	}{
		"behind the last":  {both, 2, "2 of 2 pieces of evidence: sev-snp, tdx"},
		"before the first": {both, -1, "--index"},
		"nothing in it":    {map[string]any{"hello": "world"}, 0, "not recognised"},
		"cut short":        {[]byte(`{"quote":"` + b64(quote)), 0, "evidence.json"},
		"a name twice":     {[]byte(`{"quote":"` + b64(quote) + `","quote":""}`), 0, "twice"},
		"fields missing":   {map[string]any{"attestation_report": map[string]any{"measurement": asHex(make([]byte, 48)), "reported_tcb": map[string]any{}, "signature": map[string]any{}}}, 0, "not recognised"},
	} {
		if ev, err := read(t, tc.index, tc.doc); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %s, %v", name, ev.Type, err)
		}
	}
}

// TestSharedForms reads the documents of real machines.
func TestSharedForms(t *testing.T) {
	shared := filepath.Join("..", "..", "..", "shared", "evidence")
	if _, err := os.Stat(shared); err != nil {
		t.Skipf("no shared evidence: %v", err)
	}
	for file, want := range map[string]struct {
		typ   attest.Type
		certs bool
	}{
		"azure-vtpm/trustee/az-snp-vtpm/evidence-v0.json":    {attest.TypeAzure, true},
		"azure-vtpm/trustee/az-snp-vtpm/evidence-v1.json":    {attest.TypeAzure, true},
		"azure-vtpm/trustee/az-snp-vtpm/evidence-v2.json":    {attest.TypeAzure, true},
		"azure-vtpm/trustee/az-snp-vtpm/evidence-genoa.json": {attest.TypeAzure, true},
		"azure-vtpm/trustee/az-tdx-vtpm/evidence-v0.json":    {attest.TypeAzure, false},
		"azure-vtpm/trustee/az-tdx-vtpm/evidence-v1.json":    {attest.TypeAzure, false},
		"tdx/dstack/quote-report.json":                       {attest.TypeTDX, false},
		"tdx/dstack/tdx-lite-getquote.json":                  {attest.TypeTDX, false},
		"sgx/trustee/sgx/as-request-sgx.json":                {attest.TypeSGX, false},
		"sgx/trustee/sgx/as-request-check.json":              {attest.TypeSGX, false},
		"nvidia-gpu/services/blackwell-evidence.json":        {attest.TypeNVIDIA, true},
	} {
		ev, err := (&evidenceFlags{}).read(filepath.Join(shared, filepath.FromSlash(file)))
		if err != nil || ev.Type != want.typ || (len(ev.Endorsements) > 0) != want.certs {
			t.Errorf("%s: %s, %d bytes of endorsements, %v", file, ev.Type, len(ev.Endorsements), err)
		}
		var out bytes.Buffer
		if err := (&evidenceFlags{at: "2026-02-10T00:00:00Z"}).run(t.Context(), &out, filepath.Join(shared, filepath.FromSlash(file)), "", true); err != nil && !errors.Is(err, errFailed) || !strings.Contains(out.String(), "laims") {
			t.Errorf("%s: %v\n%.600s", file, err, out.String())
		}
	}
}

// FuzzFromJSON: no document makes it panic, and what it finds is of a known type.
func FuzzFromJSON(f *testing.F) {
	f.Add([]byte(`{"attestation_report":{"measurement":"00","reported_tcb":{},"signature":{"r":[1],"s":"x"}},"cert_chain":[{"data":[1,2]}]}`))
	f.Add([]byte(`[{"tee":"tdx","evidence":"e30"},{"quote":{"message":[],"pcrs":[[1]]},"report":"SENMQQ"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ev, found, err := fromJSON(b, 0); found && (err != nil || ev.Type == "") {
			t.Errorf("found %q, %v", ev.Type, err)
		}
	})
}
