package main

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
)

// What other tools write about evidence in JSON, theirs differ in names and
// encodings and change: so what is taken out of a document is whatever in it is
// evidence, wherever it stands. Nothing is believed for it: the verifiers look
// at the bytes.

const (
	maxDocument = 8 << 20
	maxNested   = 4 // documents in documents, as text or base64
)

// findings is what a document holds.
type findings struct {
	evidence []attest.Evidence
	certs    []*x509.Certificate
	log      []byte // of a confidential VM (CCEL), in TCG's form
}

// fromJSON is the piece of evidence of that index in a document of another tool;
// none if there is none. Certificates and a log beside it go with it.
func fromJSON(doc []byte, index int) (ev attest.Evidence, found bool, err error) {
	if len(doc) > maxDocument {
		return ev, false, fmt.Errorf("a JSON document of %d bytes, want at most %d", len(doc), maxDocument)
	}
	v, err := strictjson.Numbers(doc)
	if err != nil {
		return ev, false, err
	}
	var f findings
	f.look(v, "", maxNested)
	switch {
	case len(f.evidence) == 0:
		return ev, false, nil
	case index < 0 || index >= len(f.evidence):
		return ev, false, fmt.Errorf("%w: --index: %d of %d pieces of evidence: %s", errUsage, index, len(f.evidence), f.types())
	}
	ev = f.evidence[index]
	if ev.EventLog == nil && (ev.Type == attest.TypeTDX || ev.Type == attest.TypeAzure) {
		ev.EventLog = f.log
	}
	if ev.Type == attest.TypeSNP || ev.Type == attest.TypeAzure {
		for _, c := range f.certs {
			if strings.HasPrefix(c.Subject.CommonName, "SEV-V") { // VCEK or VLEK
				ev.Endorsements = asTable(c.Raw)
				break
			}
		}
	}
	return ev, true, nil
}

func (f *findings) types() string {
	var out []string
	for _, e := range f.evidence {
		out = append(out, string(e.Type))
	}
	return strings.Join(out, ", ")
}

// look finds evidence in a value; name is the member that it is of.
func (f *findings) look(v any, name string, nested int) {
	switch v := v.(type) {
	case map[string]any:
		if r, ok := azureOf(v); ok {
			f.add(attest.TypeAzure, r)
		} else if r, ok := snpOf(v); ok {
			f.add(attest.TypeSNP, r)
			return
		}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			f.look(v[k], k, nested)
		}
	case []any:
		if b, ok := octets(v); ok {
			f.bytes(b, name, nested)
			return
		}
		for _, x := range v {
			f.look(x, name, nested)
		}
	case string:
		f.bytes(decoded([]byte(v)), name, nested)
	}
}

func (f *findings) bytes(b []byte, name string, nested int) {
	trimmed := bytes.TrimSpace(b)
	// (A quote has certificates in PEM in it.)
	if raw := unwrapped(b); len(raw) > 0 {
		if t := guess(raw); t != "" && !f.inside(raw) {
			f.add(t, raw)
			return
		}
	}
	if c, err := x509.ParseCertificate(b); err == nil {
		f.certs = append(f.certs, c)
		return
	} else if bytes.Contains(b, []byte("-----BEGIN CERTIFICATE")) {
		f.certs = append(f.certs, chainOf(b)...)
		return
	}
	if nested > 0 && (bytes.HasPrefix(trimmed, []byte("{")) || bytes.HasPrefix(trimmed, []byte("["))) {
		if v, err := strictjson.Numbers(trimmed); err == nil {
			f.look(v, "", nested-1)
			return
		}
	}
	switch name {
	case "cc_eventlog", "event_log", "eventlog", "ccel":
		f.log = b
	}
}

// inside says whether what was found already holds it: a report in an HCL blob, a quote of Azure.
func (f *findings) inside(raw []byte) bool {
	return slices.ContainsFunc(f.evidence, func(e attest.Evidence) bool {
		if bytes.Contains(e.Report, raw) {
			return true
		}
		a, err := attest.DecodeAzureReport(e.Report)
		return err == nil && (bytes.Contains(a.HCLReport, raw) || bytes.Equal(a.TDQuote, raw))
	})
}

func (f *findings) add(t attest.Type, report []byte) {
	ev := attest.Evidence{Type: t, Report: report}
	if t == attest.TypeSNP && len(report) > snpReportSize {
		ev.Report, ev.Endorsements = report[:snpReportSize], report[snpReportSize:]
	}
	f.evidence = append(f.evidence, ev)
}

// octets are bytes as a list of numbers.
func octets(list []any) ([]byte, bool) {
	if len(list) < 16 {
		return nil, false
	}
	out := make([]byte, len(list))
	for i, x := range list {
		n, ok := x.(json.Number)
		if !ok {
			return nil, false
		}
		b, err := strconv.ParseUint(n.String(), 10, 8)
		if err != nil {
			return nil, false
		}
		out[i] = byte(b)
	}
	return out, true
}

// member is the bytes that an object's member of one of the names holds, in whatever form.
func member(m map[string]any, names ...string) []byte {
	for _, n := range names {
		switch v := m[n].(type) {
		case string:
			return decoded([]byte(v))
		case []any:
			if b, ok := octets(v); ok {
				return b
			}
		}
	}
	return nil
}

// azureOf is a vTPM's quote with an HCL report beside it, as Trustee's clients have written it in three versions.
func azureOf(m map[string]any) ([]byte, bool) {
	hcl := member(m, "hcl_report", "report")
	quote, ok := m["tpm_quote"].(map[string]any)
	if !ok {
		quote, ok = m["quote"].(map[string]any)
	}
	if !ok || !bytes.HasPrefix(hcl, []byte("HCLA")) {
		return nil, false
	}
	signature := member(quote, "signature")
	// TPMT_SIGNATURE (TPM 2.0 part 2, 11.3.4): RSASSA, SHA-256, size.
	wrapped := append(binary.BigEndian.AppendUint16([]byte{0x00, 0x14, 0x00, 0x0b}, uint16(len(signature))), signature...)
	r := attest.AzureReport{HCLReport: hcl, TDQuote: member(m, "td_quote"), Quote: member(quote, "message"), Signature: wrapped}
	pcrs, _ := quote["pcrs"].([]any)
	for i, p := range pcrs {
		r.PCRs = append(r.PCRs, attest.PCR{Index: i, Digest: member(map[string]any{"": p}, "")})
	}
	b, err := r.Encode()
	if err != nil {
		return nil, false
	}
	_, err = attest.DecodeAzureReport(b)
	return b, err == nil
}

// snpOf is a report as the fields that the sev crate serializes (lists of
// numbers, or hex), put back into its 1184 bytes (SEV-SNP firmware ABI, table
// 23). If a field is not what was signed, the signature does not verify.
func snpOf(m map[string]any) ([]byte, bool) {
	signature, ok := m["signature"].(map[string]any)
	if !ok || member(m, "measurement") == nil || m["reported_tcb"] == nil {
		return nil, false
	}
	r := make([]byte, snpReportSize)
	number := func(in map[string]any, bits int, names ...string) uint64 {
		for _, n := range names {
			if x, is := in[n].(json.Number); is {
				v, err := strconv.ParseUint(x.String(), 10, bits)
				ok = ok && err == nil
				return v
			}
		}
		return 0
	}
	put32 := func(at int, names ...string) {
		binary.LittleEndian.PutUint32(r[at:], uint32(number(m, 32, names...)))
	}
	put64 := func(at int, names ...string) { binary.LittleEndian.PutUint64(r[at:], number(m, 64, names...)) }
	put := func(at, size int, b []byte) {
		ok = ok && len(b) == size
		copy(r[at:at+size], b)
	}
	tcb := func(at int, name string) {
		t, is := m[name].(map[string]any)
		if !is {
			ok = false
			return
		}
		part := func(n string) byte { return byte(number(t, 8, n)) }
		if _, turin := t["fmc"].(json.Number); turin {
			copy(r[at:], []byte{part("fmc"), part("bootloader"), part("tee"), part("snp"), 0, 0, 0, part("microcode")})
		} else {
			copy(r[at:], []byte{part("bootloader"), part("tee"), 0, 0, 0, 0, part("snp"), part("microcode")})
		}
	}
	build := func(at int, name string) {
		from, prefix := m, name+"_"
		if v, is := m[name].(map[string]any); is {
			from, prefix = v, ""
		}
		for i, part := range []string{"build", "minor", "major"} {
			r[at+i] = byte(number(from, 8, prefix+part))
		}
	}
	put32(0x00, "version")
	put32(0x04, "guest_svn")
	put64(0x08, "policy")
	put(0x10, 16, member(m, "family_id"))
	put(0x20, 16, member(m, "image_id"))
	put32(0x30, "vmpl")
	put32(0x34, "sig_algo")
	tcb(0x38, "current_tcb")
	put64(0x40, "plat_info")
	put32(0x48, "key_info", "_author_key_en")
	put(0x50, 64, member(m, "report_data"))
	put(0x90, 48, member(m, "measurement"))
	put(0xc0, 32, member(m, "host_data"))
	put(0xe0, 48, member(m, "id_key_digest"))
	put(0x110, 48, member(m, "author_key_digest"))
	put(0x140, 32, member(m, "report_id"))
	put(0x160, 32, member(m, "report_id_ma"))
	tcb(0x180, "reported_tcb")
	for i, n := range []string{"cpuid_fam_id", "cpuid_mod_id", "cpuid_step"} {
		r[0x188+i] = byte(number(m, 8, n))
	}
	put(0x1a0, 64, member(m, "chip_id"))
	tcb(0x1e0, "committed_tcb")
	build(0x1e8, "current")
	build(0x1ec, "committed")
	tcb(0x1f0, "launch_tcb")
	put64(0x1f8, "launch_mit_vector")
	put64(0x200, "current_mit_vector")
	put(0x2a0, 72, member(signature, "r"))
	put(0x2e8, 72, member(signature, "s"))
	return r, ok
}

// chainOf is the certificates of a PEM text; what is none is passed over.
func chainOf(b []byte) (out []*x509.Certificate) {
	blocks, err := pemfile.Blocks(b)
	if err != nil {
		return nil
	}
	for _, p := range blocks {
		if c, err := x509.ParseCertificate(p.Bytes); err == nil {
			out = append(out, c)
		}
	}
	return out
}
