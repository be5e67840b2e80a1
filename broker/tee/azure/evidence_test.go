package azure_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/tee/azure"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
	"github.com/claviger/claviger/broker/tpmquote"
)

// shared reads a file under ../shared/evidence/azure-vtpm, or skips the test.
func shared(t testing.TB, path string) []byte {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	b, err := os.ReadFile(filepath.Join(dir, "..", "shared", "evidence", "azure-vtpm", path))
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	return b
}

// vector is evidence of the field, taken apart.
type vector struct {
	report attest.AzureReport
	vcek   []byte // DER
	log    []byte
}

func (v vector) evidence(t testing.TB) attest.Evidence {
	t.Helper()
	raw, err := v.report.Encode()
	if err != nil {
		t.Fatal(err)
	}
	ev := attest.Evidence{Type: attest.TypeAzure, Report: raw, EventLog: v.log}
	if v.vcek != nil {
		ev.Endorsements = table(v.vcek)
	}
	return ev
}

func (v vector) clone() vector {
	c := v
	c.report.HCLReport, c.report.Quote, c.report.Signature = bytes.Clone(v.report.HCLReport), bytes.Clone(v.report.Quote), bytes.Clone(v.report.Signature)
	c.report.TDQuote = bytes.Clone(v.report.TDQuote)
	c.report.PCRs = nil
	for _, p := range v.report.PCRs {
		c.report.PCRs = append(c.report.PCRs, attest.PCR{Index: p.Index, Digest: bytes.Clone(p.Digest)})
	}
	return c
}

// table is a GUID certificate table with a VCEK alone.
func table(der []byte) []byte {
	guid := []byte{0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd}
	b := binary.LittleEndian.AppendUint32(guid, 48)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(der)))
	return append(append(b, make([]byte, 24)...), der...)
}

// signature is a TPMT_SIGNATURE of RSASSA with SHA-256.
func signature(raw []byte) []byte {
	b := []byte{0x00, 0x14, 0x00, 0x0b}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
}

// octets are the forms that one peer's JSON has bytes in: a list of numbers,
// base64url, hex, PEM.
type octets []byte

func (o *octets) UnmarshalJSON(b []byte) error {
	var list []int
	if json.Unmarshal(b, &list) == nil {
		for _, n := range list {
			*o = append(*o, byte(n))
		}
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if block, _ := pem.Decode([]byte(s)); block != nil {
		*o = block.Bytes
		return nil
	}
	raw, err := hex.DecodeString(s)
	if err != nil {
		raw, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
	}
	*o = raw
	return err
}

type peerQuote struct {
	Message, Signature octets
	PCRs               []octets `json:"pcrs"`
}

// peer reads the evidence of Confidential Containers' attester.
func peer(t testing.TB, path string) vector {
	t.Helper()
	var doc struct {
		Quote     *peerQuote
		TPMQuote  *peerQuote `json:"tpm_quote"`
		Report    octets
		HCLReport octets `json:"hcl_report"`
		VCEK      octets
		TDQuote   octets `json:"td_quote"`
	}
	if err := json.Unmarshal(shared(t, path), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.TPMQuote == nil {
		doc.TPMQuote = doc.Quote
	}
	if doc.HCLReport == nil {
		doc.HCLReport = doc.Report
	}
	v := vector{vcek: doc.VCEK, report: attest.AzureReport{
		HCLReport: doc.HCLReport, TDQuote: doc.TDQuote, Quote: doc.TPMQuote.Message, Signature: signature(doc.TPMQuote.Signature),
	}}
	for i, d := range doc.TPMQuote.PCRs {
		v.report.PCRs = append(v.report.PCRs, attest.PCR{Index: i, Digest: d})
	}
	return v
}

// lenient believes AMD's and Intel's roots, and misses no collateral.
func lenient(t testing.TB) *azure.Verifier {
	t.Helper()
	s, err := snp.New(snp.Config{CRLOptional: true})
	if err != nil {
		t.Fatal(err)
	}
	return azure.New(azure.Config{SNP: s, TDX: tdx.New(tdx.Config{CollateralOptional: true})})
}

var vectorTime = time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPeerEvidence: machines of Azure, each bound to what its source states.
func TestPeerEvidence(t *testing.T) {
	for path, want := range map[string]struct {
		data     string // hex
		pcr0     string
		model    string
		hardware attest.Type
	}{
		"trustee/az-snp-vtpm/evidence-v0.json": {hex.EncodeToString([]byte("challenge")), "e15c4479", "Milan", attest.TypeSNP},
		"trustee/az-snp-vtpm/evidence-v1.json": {hex.EncodeToString([]byte("challenge")), "e15c4479", "Milan", attest.TypeSNP},
		"trustee/az-snp-vtpm/evidence-v2.json": {"982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef", "84275b2f", "Milan", attest.TypeSNP},
		"trustee/az-snp-vtpm/evidence-genoa.json": {"0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f", "afd689d0", "Genoa",
			attest.TypeSNP},
		"trustee/az-tdx-vtpm/evidence-v0.json": {hex.EncodeToString([]byte("challenge")), "782b20b1", "TDX", attest.TypeTDX},
		"trustee/az-tdx-vtpm/evidence-v1.json": {hex.EncodeToString([]byte("challenge")), "782b20b1", "TDX", attest.TypeTDX},
	} {
		t.Run(path, func(t *testing.T) {
			vec := peer(t, path)
			data := unhex(t, want.data)
			v := lenient(t)
			cl, err := v.Verify(t.Context(), vec.evidence(t), attest.BindExact(data), nil, vectorTime)
			if err != nil {
				t.Fatal(err)
			}
			c := cl.Azure.(*azure.Claims)
			if !cl.Bound || !cl.BoundToCPUTEE || cl.Simulated || cl.Debuggable || cl.HardwareModel != want.model || c.Hardware != want.hardware ||
				!strings.HasPrefix(cl.Measurements["pcr0"], want.pcr0) || (cl.SNP == nil) == (want.hardware == attest.TypeSNP) || (cl.TDX == nil) == (want.hardware == attest.TypeTDX) {
				t.Errorf("claims %+v", cl)
			}
			if tpm := cl.TPM.(*tpmquote.Claims); tpm.AK.Trust != tpmquote.TrustHardware || tpm.EventLog != tpmquote.EventLogAbsent || len(tpm.PCRs) != 24 {
				t.Errorf("TPM claims %+v", tpm)
			}
			if len(c.VMConfiguration.VMUniqueID) != 36 || !c.VMConfiguration.SecureBoot || strings.HasPrefix(c.UserData, want.data) != strings.Contains(path, "v2") {
				t.Errorf("azure claims %+v", c)
			}
			t.Logf("%+v; measurement %s mrtd %s", c, cl.Measurements["measurement"], cl.Measurements["mrtd"])
			_, err = v.Verify(t.Context(), vec.evidence(t), attest.BindExact([]byte{0x12, 0x3a, 0xbc}), nil, vectorTime)
			wantError(t, err, "azure.binding", attest.ReasonBinding)
			// A broker wants collateral.
			s, err := snp.New(snp.Config{})
			if err != nil {
				t.Fatal(err)
			}
			strict := azure.New(azure.Config{SNP: s, TDX: tdx.New(tdx.Config{})})
			if _, err := strict.Verify(t.Context(), vec.evidence(t), attest.BindExact(data), nil, vectorTime); attest.ReasonOf(err) != attest.ReasonCollateralMissing {
				t.Errorf("without collateral: %v", err)
			}
		})
	}
}

// TestPeerNegatives: what the peers' unit tests change, and more of the kind.
func TestPeerNegatives(t *testing.T) {
	snpVector, tdxVector := "trustee/az-snp-vtpm/evidence-v1.json", "trustee/az-tdx-vtpm/evidence-v1.json"
	for name, tc := range map[string]struct {
		path   string
		change func(v *vector)
		check  string
		reason attest.Reason
	}{
		"SNP: reported TCB":      {snpVector, func(v *vector) { v.report.HCLReport[0x1a6] = 0 }, "snp.reported_tcb", attest.ReasonMismatch},
		"SNP: runtime data":      {snpVector, func(v *vector) { v.report.HCLReport[0x6e0]++ }, "azure.runtime_data", attest.ReasonMismatch},
		"SNP: key":               {snpVector, func(v *vector) { v.report.HCLReport[0x540] = 0 }, "azure.ak", attest.ReasonMalformed},
		"SNP: signature":         {snpVector, func(v *vector) { v.report.Signature[6] ^= 1 }, "azure.quote_signature", attest.ReasonSignature},
		"SNP: PCR":               {snpVector, func(v *vector) { v.report.PCRs[0].Digest[0] ^= 1 }, "azure.pcrs", attest.ReasonMismatch},
		"SNP: PCR left out":      {snpVector, func(v *vector) { v.report.PCRs = v.report.PCRs[:23] }, "azure.pcrs", attest.ReasonMismatch},
		"SNP: VMPL":              {snpVector, func(v *vector) { v.report.HCLReport[32+0x30] = 2 }, "snp.signature", attest.ReasonSignature},
		"SNP: as TDX":            {snpVector, func(v *vector) { v.report.HCLReport[1216+8] = 4 }, "azure.format", attest.ReasonMalformed},
		"SNP: VBS":               {snpVector, func(v *vector) { v.report.HCLReport[1216+8] = 1 }, "azure.format", attest.ReasonUnsupported},
		"SNP: hash":              {snpVector, func(v *vector) { v.report.HCLReport[1216+12] = 2 }, "azure.format", attest.ReasonUnsupported},
		"SNP: with a TD quote":   {snpVector, func(v *vector) { v.report.TDQuote = []byte{1} }, "azure.format", attest.ReasonMalformed},
		"TDX: runtime data":      {tdxVector, func(v *vector) { v.report.HCLReport[0x880]++ }, "azure.runtime_data", attest.ReasonMismatch},
		"TDX: TD quote":          {tdxVector, func(v *vector) { v.report.TDQuote[48+200] ^= 1 }, "tdx.quote_signature", attest.ReasonSignature},
		"TDX: no TD quote":       {tdxVector, func(v *vector) { v.report.TDQuote = nil }, "tdx.format", attest.ReasonMalformed},
		"TDX: with endorsements": {tdxVector, func(v *vector) { v.vcek = []byte{1} }, "azure.format", attest.ReasonMalformed},
		"another machine's quote": {snpVector, func(v *vector) {
			o := peer(t, tdxVector)
			v.report.Quote, v.report.Signature, v.report.PCRs = o.report.Quote, o.report.Signature, o.report.PCRs
		}, "azure.quote_signature", attest.ReasonSignature},
		"another machine's runtime data": {snpVector, func(v *vector) {
			o := peer(t, "trustee/az-snp-vtpm/evidence-v2.json")
			v.report.HCLReport = append(v.report.HCLReport[:1216:1216], o.report.HCLReport[1216:]...)
		}, "azure.runtime_data", attest.ReasonMismatch},
		"another machine's VCEK": {snpVector, func(v *vector) { v.vcek = peer(t, "trustee/az-snp-vtpm/evidence-v2.json").vcek }, "snp.chip_id", attest.ReasonMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			v := peer(t, tc.path)
			tc.change(&v)
			_, err := lenient(t).Verify(t.Context(), v.evidence(t), attest.BindExact([]byte("challenge")), nil, vectorTime)
			wantError(t, err, tc.check, tc.reason)
		})
	}
}

// TestPeerFlips: no flipped bit in what is signed is accepted.
func TestPeerFlips(t *testing.T) {
	for _, path := range []string{"trustee/az-snp-vtpm/evidence-v1.json", "trustee/az-tdx-vtpm/evidence-v1.json"} {
		good := peer(t, path)
		v := lenient(t)
		try := func(part string, bit int, change func(*vector)) {
			c := good.clone()
			change(&c)
			if _, err := v.Verify(t.Context(), c.evidence(t), attest.Unbound(), nil, vectorTime); err == nil {
				t.Errorf("%s: %s: bit %d: accepted", path, part, bit)
			}
		}
		flip := func(b []byte, bit int) { b[bit/8] ^= 1 << (bit % 8) }
		n := int(binary.LittleEndian.Uint32(good.report.HCLReport[1232:]))
		for bit := 1236 * 8; bit < (1236+n)*8; bit += 37 {
			try("runtime data", bit, func(v *vector) { flip(v.report.HCLReport, bit) })
		}
		if good.report.TDQuote == nil {
			for bit := 32 * 8; bit < (32+0x2a0+2*48)*8; bit += 61 {
				if at := bit/8 - 32; at >= 0x2a0+48 && at < 0x2a0+72 {
					continue // r is 48 bytes in a field of 72
				}
				try("report", bit, func(v *vector) { flip(v.report.HCLReport, bit) })
			}
		} else {
			for bit := 0; bit < (48+584)*8; bit += 61 {
				try("TD quote", bit, func(v *vector) { flip(v.report.TDQuote, bit) })
			}
		}
		for bit := 0; bit < len(good.report.Quote)*8; bit += 3 {
			try("quote", bit, func(v *vector) { flip(v.report.Quote, bit) })
		}
		for bit := 0; bit < len(good.report.Signature)*8; bit += 17 {
			try("signature", bit, func(v *vector) { flip(v.report.Signature, bit) })
		}
		for bit := 0; bit < 24*256; bit += 19 {
			try("PCRs", bit, func(v *vector) { flip(v.report.PCRs[bit/256].Digest, bit%256) })
		}
		for n := range len(good.report.HCLReport) {
			if n < 1236+int(binary.LittleEndian.Uint32(good.report.HCLReport[1232:])) {
				try("HCL report cut", n, func(v *vector) { v.report.HCLReport = v.report.HCLReport[:n] })
			}
		}
	}
}

// flatYAML reads "key: value" and "key: |" blocks at the start of a line.
func flatYAML(s string) map[string]string {
	d := map[string]string{}
	var key string
	for line := range strings.Lines(s) {
		if key != "" && (strings.HasPrefix(line, "  ") || strings.TrimSpace(line) == "") {
			d[key] += strings.TrimPrefix(line, "  ")
			continue
		}
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		key = ""
		switch v = strings.TrimSpace(v); {
		case v == "|" || v == "|-" || v == ">-" || v == "":
			key = k
		case strings.HasPrefix(v, `"`):
			var s string
			if json.Unmarshal([]byte(v), &s) == nil {
				d[k] = s
			}
		default:
			d[k] = v
		}
	}
	return d
}

type byKind map[attest.CollateralKind]attest.CollateralItem

func (c byKind) Get(_ context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	it, ok := c[ref.Kind]
	if !ok {
		return it, attest.Errorf("test", attest.ReasonCollateralMissing, "no %s", ref.Kind)
	}
	return it, nil
}

func qvl(t testing.TB, path string) byKind {
	t.Helper()
	d := flatYAML(string(shared(t, path)))
	for k, v := range d {
		d[k] = strings.TrimSpace(v)
	}
	signed := func(name, key string) attest.CollateralItem {
		return attest.CollateralItem{Data: []byte(`{"` + name + `":` + d[key] + `,"signature":"` + d[key+"_signature"] + `"}`), IssuerChain: []byte(d[key+"_issuer_chain"])}
	}
	return byKind{
		attest.TDXTCBInfo: signed("tcbInfo", "tcb_info"), attest.TDXQEID: signed("enclaveIdentity", "qe_identity"),
		attest.PCKCRL: {Data: unhex(t, d["pck_crl"])}, attest.IntelRootCRL: {Data: unhex(t, d["root_ca_crl"])},
	}
}

// flashbots reads the YAML of that project's attested TLS.
func flashbots(t testing.TB, path string) vector {
	t.Helper()
	text := string(shared(t, path))
	d := flatYAML(text)
	b64 := func(key string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.Join(strings.Fields(d[key]), ""), "="))
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		return b
	}
	number := regexp.MustCompile(`\d+`)
	numbers := func(from, to string) []byte {
		_, s, ok := strings.Cut(text, from)
		if !ok {
			t.Fatalf("no %s", from)
		}
		s, _, _ = strings.Cut(s, to)
		var out []byte
		for _, n := range number.FindAllString(s, -1) {
			i, err := strconv.Atoi(n)
			if err != nil || i > 255 {
				t.Fatalf("%s: %q", from, n)
			}
			out = append(out, byte(i))
		}
		return out
	}
	v := vector{report: attest.AzureReport{HCLReport: b64("hcl_report_base64"), TDQuote: b64("tdx_quote_base64"),
		Signature: signature(numbers("signature:", "message:")), Quote: numbers("message:", "pcrs:")}}
	for i, p := 0, numbers("pcrs:", "event_log:"); len(p) >= 32; i, p = i+1, p[32:] {
		v.report.PCRs = append(v.report.PCRs, attest.PCR{Index: i, Digest: p[:32]})
	}
	return v
}

// TestFlashbotsEvidence: TDX machines with all collateral of their time. Their
// certificates of the attestation key are not looked at: the hardware vouches for it.
func TestFlashbotsEvidence(t *testing.T) {
	const dir = "attested-tls/attested-tls/"
	for _, tc := range []struct {
		file, collateral string
		at               int64
	}{
		{"azure-tdx-with-ak-intermediates-1780922561.yaml", "azure-collateral-with-ak-intermediates-1780922561.yaml", 1780922561},
		{"azure-tdx-1764662251380464271.yaml", "azure-collateral02.yaml", 1771423480},
	} {
		t.Run(tc.file, func(t *testing.T) {
			vec := flashbots(t, dir+tc.file)
			v := azure.New(azure.Config{TDX: tdx.New(tdx.Config{})})
			coll := qvl(t, dir+tc.collateral)
			cl, err := v.Verify(t.Context(), vec.evidence(t), attest.BindExact(make([]byte, 32)), coll, time.Unix(tc.at, 0))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("TCB %+v, %+v", cl.TCB, cl.Azure)
			if !cl.Bound || cl.Simulated || cl.HardwareModel != "TDX" {
				t.Errorf("claims %+v", cl)
			}
			_, err = v.Verify(t.Context(), vec.evidence(t), attest.BindExact(bytes.Repeat([]byte{1}, 32)), coll, time.Unix(tc.at, 0))
			wantError(t, err, "azure.binding", attest.ReasonBinding)
			_, err = v.Verify(t.Context(), vec.evidence(t), attest.BindExact(make([]byte, 32)), coll, time.Unix(tc.at, 0).AddDate(1, 0, 0))
			if r := attest.ReasonOf(err); r != attest.ReasonCollateralExpired {
				t.Errorf("a year later: %v", err)
			}
		})
	}
}

// TestOtherReports: HCL reports without a quote that fits them, against a quote of another machine.
func TestOtherReports(t *testing.T) {
	firstDER := func(path string) []byte {
		block, _ := pem.Decode(shared(t, path))
		return block.Bytes
	}
	for path, tc := range map[string]struct {
		report []byte
		vcek   []byte
		td     []byte
		check  string
		reason attest.Reason
	}{
		// Its certificates are another machine's.
		"azure-cvm-tooling/hcl-report-snp.bin": {vcek: firstDER("azure-cvm-tooling/certs.pem"), check: "snp.chip_id", reason: attest.ReasonMismatch},
		// No TD quote comes with these three: another machine's does not do.
		"azure-cvm-tooling/hcl-report-tdx.bin":                         {td: peer(t, "trustee/az-tdx-vtpm/evidence-v1.json").report.TDQuote, check: "azure.runtime_data", reason: attest.ReasonMismatch},
		"attested-tls/attested-tls/hclreport.bin":                      {td: peer(t, "trustee/az-tdx-vtpm/evidence-v1.json").report.TDQuote, check: "azure.runtime_data", reason: attest.ReasonMismatch},
		"trustauthority-client-for-go/azureRuntimeDataB64.b64":         {td: peer(t, "trustee/az-tdx-vtpm/evidence-v1.json").report.TDQuote, check: "azure.runtime_data", reason: attest.ReasonMismatch},
		"trustee/az-snp-vtpm/hcl-report.bin":                           {vcek: firstDER("trustee/az-snp-vtpm/vcek-genoa.pem"), check: "snp.reported_tcb", reason: attest.ReasonMismatch},
		"trustee/az-tdx-vtpm/hcl-report.bin":                           {td: shared(t, "trustee/az-tdx-vtpm/td-quote.bin"), check: "azure.quote_signature", reason: attest.ReasonSignature},
		"confidential-sidecar-containers/snp_report.bin (no HCL part)": {report: shared(t, "confidential-sidecar-containers/snp_report.bin"), check: "azure.format", reason: attest.ReasonMalformed},
	} {
		t.Run(path, func(t *testing.T) {
			v := peer(t, "trustee/az-snp-vtpm/evidence-v2.json")
			v.vcek, v.report.TDQuote = tc.vcek, tc.td
			if v.report.HCLReport = tc.report; tc.report == nil {
				v.report.HCLReport = shared(t, path)
			}
			if strings.HasSuffix(path, ".b64") {
				b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(v.report.HCLReport)))
				if err != nil {
					t.Fatal(err)
				}
				v.report.HCLReport = b
			}
			_, err := lenient(t).Verify(t.Context(), v.evidence(t), attest.Unbound(), nil, vectorTime)
			wantError(t, err, tc.check, tc.reason)
		})
	}
}

// TestACI: a container group on Azure has no vTPM; its report is plain SNP, and
// HOST_DATA is the digest of its policy.
func TestACI(t *testing.T) {
	const dir = "confidential-sidecar-containers/"
	policy, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(shared(t, dir+"uvm_security_policy.base64"))))
	if err != nil {
		t.Fatal(err)
	}
	s, err := snp.New(snp.Config{CRLOptional: true})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(shared(t, dir+"uvm_host_amd_certificate.pem"))
	cl, err := s.Verify(t.Context(), attest.Evidence{Type: attest.TypeSNP, Report: shared(t, dir+"snp_report.bin"), Endorsements: table(block.Bytes)}, attest.Unbound(), nil, vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(policy); cl.HostData != hex.EncodeToString(sum[:]) {
		t.Errorf("HOST_DATA %s, policy %x", cl.HostData, sum)
	}
}

// bincode takes apart a quote as that crate writes it: u64 lengths, then
// signature, message and PCRs.
func bincode(t testing.TB, path string) (signature, message []byte, pcrs []attest.PCR) {
	t.Helper()
	b := shared(t, path)
	take := func(unit uint64) []byte {
		n := binary.LittleEndian.Uint64(b) * unit
		out := b[8 : 8+n]
		b = b[8+n:]
		return out
	}
	signature, message = take(1), take(1)
	for i, p := 0, take(32); len(p) > 0; i, p = i+1, p[32:] {
		pcrs = append(pcrs, attest.PCR{Index: i, Digest: p[:32]})
	}
	return signature, message, pcrs
}

// TestLooseQuotes: quotes without a hardware report of theirs, under the key that their source gives.
func TestLooseQuotes(t *testing.T) {
	block, _ := pem.Decode(shared(t, "azure-cvm-tooling/akpub.pem"))
	akpub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	hclKey := func(path string) crypto.PublicKey {
		var doc struct {
			Keys []struct{ N string }
		}
		h := shared(t, path)
		if err := json.Unmarshal(h[1236:1236+binary.LittleEndian.Uint32(h[1232:])], &doc); err != nil {
			t.Fatal(err)
		}
		n, err := base64.RawURLEncoding.DecodeString(doc.Keys[0].N)
		if err != nil {
			t.Fatal(err)
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	}
	for path, public := range map[string]crypto.PublicKey{
		"azure-cvm-tooling/quote.bin":   akpub,
		"trustee/az-snp-vtpm/quote.bin": hclKey("trustee/az-snp-vtpm/hcl-report.bin"),
		"trustee/az-tdx-vtpm/quote.bin": hclKey("trustee/az-tdx-vtpm/hcl-report.bin"),
	} {
		sig, message, pcrs := bincode(t, path)
		key, err := tpmquote.NewKey(public)
		if err != nil {
			t.Fatal(err)
		}
		q, err := tpmquote.Parse(message, signature(sig))
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Verify(dcap.NewTrail("test"), key, pcrs); err != nil || string(q.ExtraData()) != "challenge" {
			t.Errorf("%s: qualifying data %q, %v", path, q.ExtraData(), err)
		}
	}
	for path, hcl := range map[string]string{
		"trustee/az-snp-vtpm/tpm-quote-v1.json": "trustee/az-snp-vtpm/hcl-report.bin",
		"trustee/az-tdx-vtpm/tpm-quote-v1.json": "trustee/az-tdx-vtpm/hcl-report.bin",
	} {
		var doc struct {
			Signature string
			Message   string
			PCRs      []string
		}
		if err := json.Unmarshal(shared(t, path), &doc); err != nil {
			t.Fatal(err)
		}
		var pcrs []attest.PCR
		for i, s := range doc.PCRs {
			pcrs = append(pcrs, attest.PCR{Index: i, Digest: unhex(t, s)})
		}
		key, err := tpmquote.NewKey(hclKey(hcl))
		if err != nil {
			t.Fatal(err)
		}
		q, err := tpmquote.Parse(unhex(t, doc.Message), signature(unhex(t, doc.Signature)))
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Verify(dcap.NewTrail("test"), key, pcrs); err != nil || string(q.ExtraData()) != "challenge" {
			t.Errorf("%s: qualifying data %q, %v", path, q.ExtraData(), err)
		}
	}
	// This one is by a key that is nowhere in the collection: of another machine.
	key, err := tpmquote.NewKey(hclKey("trustee/az-snp-vtpm/hcl-report.bin"))
	if err != nil {
		t.Fatal(err)
	}
	q, err := tpmquote.Parse(shared(t, "trustee/az-snp-vtpm/tpm-quote.msg"), signature(shared(t, "trustee/az-snp-vtpm/tpm-quote.sig")))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Verify(dcap.NewTrail("test"), key, nil); attest.ReasonOf(err) != attest.ReasonSignature || string(q.ExtraData()) == "" {
		t.Errorf("tpm-quote.msg: qualifying data %q, %v", q.ExtraData(), err)
	}
}
