package tdx_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/tdx"
)

// moduleFile reads a file of the go-tdx-guest module that it does not embed.
func moduleFile(t testing.TB, path string) []byte {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tdx-guest").Output()
	if err != nil {
		t.Fatalf("find go-tdx-guest: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shared reads a file under ../shared/evidence, or skips the test.
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
	b, err := os.ReadFile(filepath.Join(dir, "..", "shared", "evidence", path))
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".hex") {
		b = unhex(t, strings.TrimPrefix(strings.TrimSpace(string(b)), "0x"))
	}
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type byKind map[attest.CollateralKind]attest.CollateralItem

func (c byKind) Get(_ context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	it, ok := c[ref.Kind]
	if !ok {
		return it, attest.Errorf("test", attest.ReasonCollateralMissing, "no %s", ref.Kind)
	}
	return it, nil
}

// qvl reads collateral in the form of Intel's QVL structure, as JSON or as the
// simple YAML that one collection has.
func qvl(t testing.TB, path string) byKind {
	t.Helper()
	b := shared(t, path)
	d := map[string]string{}
	if strings.HasSuffix(path, ".json") {
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatal(err)
		}
	} else {
		d = flatYAML(string(b))
	}
	for k, v := range d {
		d[k] = strings.TrimSpace(v)
	}
	signed := func(name, key string) attest.CollateralItem {
		return attest.CollateralItem{
			Data:        []byte(`{"` + name + `":` + d[key] + `,"signature":"` + d[key+"_signature"] + `"}`),
			IssuerChain: []byte(d[key+"_issuer_chain"]),
		}
	}
	return byKind{
		attest.TDXTCBInfo:   signed("tcbInfo", "tcb_info"),
		attest.TDXQEID:      signed("enclaveIdentity", "qe_identity"),
		attest.PCKCRL:       {Data: unhex(t, d["pck_crl"])},
		attest.IntelRootCRL: {Data: unhex(t, d["root_ca_crl"])},
	}
}

// flatYAML reads "key: value" and "key: |" blocks.
func flatYAML(s string) map[string]string {
	d := map[string]string{}
	var key string
	for line := range strings.Lines(s) {
		if key != "" && strings.HasPrefix(line, "  ") {
			d[key] += line[2:]
			continue
		}
		k, v, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		key = ""
		switch v = strings.TrimSpace(v); {
		case v == "|" || v == "|-" || v == ">-":
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

func tinfoil(t testing.TB, fmspc string) byKind {
	chain := func(path string) []byte { // as in PCS's header
		s, err := url.PathUnescape(string(shared(t, path)))
		if err != nil {
			t.Fatal(err)
		}
		return []byte(s)
	}
	return byKind{
		attest.TDXTCBInfo:   {Data: shared(t, "tdx/verifier/tcb_info_"+fmspc+".json"), IssuerChain: chain("tdx/verifier/tcb_info_" + fmspc + "_chain.txt")},
		attest.TDXQEID:      {Data: shared(t, "tdx/verifier/qe_identity.json"), IssuerChain: chain("tdx/verifier/qe_identity_chain.txt")},
		attest.PCKCRL:       {Data: shared(t, "tdx/verifier/pck_crl_platform.crl")},
		attest.IntelRootCRL: {Data: shared(t, "tdx/verifier/root_ca.crl")},
	}
}

func oasis(t testing.TB, tcb, qe string) byKind {
	chain := shared(t, "tdx/oasis-core/tcb_info_v3_fmspc_00606A000000_certs.pem")
	return byKind{
		attest.TDXTCBInfo:   {Data: shared(t, "tdx/oasis-core/"+tcb), IssuerChain: chain},
		attest.TDXQEID:      {Data: shared(t, "tdx/oasis-core/"+qe), IssuerChain: chain},
		attest.PCKCRL:       {Data: testdata.PckCrlBody},
		attest.IntelRootCRL: {Data: testdata.RootCrlBody},
	}
}

// TestSharedEvidence: quotes of the field with Intel's collateral, each at the
// time its source states.
func TestSharedEvidence(t *testing.T) {
	unix := func(s int64) time.Time { return time.Unix(s, 0) }
	for _, tc := range []struct {
		quote      string
		collateral func(testing.TB) byKind
		at         time.Time
		lenient    bool // the source has no CRLs of the time
		status     string
		check      string
		reason     attest.Reason
	}{
		{quote: "tdx/dcap-qvl/tdx_quote", at: time.Date(2025, 6, 20, 0, 0, 0, 0, time.UTC), status: attest.TCBUpToDate,
			collateral: func(t testing.TB) byKind { return qvl(t, "tdx/dcap-qvl/tdx_quote_collateral.json") }},
		// This, azure_failed and tdx_quote_5 have SVNs (SEAMLDR, component 8, or
		// microcode) below any level of Intel's: their sources verify them with
		// an override, or not at all.
		{quote: "tdx/dcap-qvl/tdx_quote_outdated", at: time.Date(2026, 2, 20, 0, 0, 0, 0, time.UTC),
			check: "tdx.tcb_status", reason: attest.ReasonUnsupported,
			collateral: func(t testing.TB) byKind { return qvl(t, "tdx/dcap-qvl/tdx_quote_outdated_collateral.json") }},
		{quote: "tdx/attested-tls-benchmarks/bench/dcap-tdx-1766059550570652607", at: unix(1769509141), status: attest.TCBUpToDate,
			collateral: func(t testing.TB) byKind {
				return qvl(t, "tdx/attested-tls-benchmarks/bench/dcap-quote-collateral-00.json")
			}},
		{quote: "tdx/attested-tls/attested-tls/dcap-tdx-1766059550570652607", at: unix(1769509141), status: attest.TCBUpToDate,
			collateral: func(t testing.TB) byKind {
				return qvl(t, "tdx/attested-tls/attested-tls/dcap-quote-collateral-00.yaml")
			}},
		{quote: "tdx/attested-tls/attested-tls/gcp-tdx-1782809233226668671", at: unix(1782809233), status: attest.TCBUpToDate,
			collateral: func(t testing.TB) byKind {
				return qvl(t, "tdx/attested-tls/attested-tls/gcp-tdx-collateral-1782809233226668671.yaml")
			}},
		{quote: "tdx/attested-tls/attested-tls/azure_failed_dcap_quote_10.bin", at: unix(1771423480),
			check: "tdx.tcb_status", reason: attest.ReasonUnsupported,
			collateral: func(t testing.TB) byKind { return qvl(t, "tdx/attested-tls/attested-tls/azure-collateral02.yaml") }},
		{quote: "tdx/oasis-core/quote_v4_tdx_ecdsa_p256.bin", at: unix(1725263032), lenient: true, status: attest.TCBUpToDate,
			collateral: func(t testing.TB) byKind {
				return oasis(t, "tcb_info_v3_tdx_fmspc_C0806F000000.json", "qe_identity_v2_tdx2.json")
			}},
		{quote: "tdx/oasis-core/quote_v4_tdx_ecdsa_p256_out_of_date.bin", at: unix(1687091776), lenient: true,
			check: "tdx.tcb_status", reason: attest.ReasonUnsupported,
			collateral: func(t testing.TB) byKind {
				return oasis(t, "tcb_info_v3_tdx_fmspc_50806F000000.json", "qe_identity_v2_tdx.json")
			}},
		{quote: "tdx/go-tdx-guest/quote_v5_sample.dat", at: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), status: attest.TCBUpToDate,
			collateral: func(t testing.TB) byKind { return tinfoil(t, "90c06f000000") }},
		{quote: "tdx/trustee/tdx/tdx_quote_5.dat", at: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC),
			check: "tdx.tcb_status", reason: attest.ReasonUnsupported,
			collateral: func(t testing.TB) byKind { return tinfoil(t, "90c06f000000") }},
		{quote: "tdx/trustee/tdx/tdx_quote_4.dat", at: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC),
			check: "tdx.tcb_info", reason: attest.ReasonMismatch,
			collateral: func(t testing.TB) byKind { return tinfoil(t, "90c06f000000") }},
	} {
		t.Run(tc.quote, func(t *testing.T) {
			ev := attest.Evidence{Type: attest.TypeTDX, Report: shared(t, tc.quote)}
			v := tdx.New(tdx.Config{CollateralOptional: tc.lenient})
			cl, err := v.Verify(t.Context(), ev, attest.Unbound(), tc.collateral(t), tc.at)
			if tc.reason != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := cl.TDX.(*tdx.Claims)
			t.Logf("%s %v: platform %v, module %v, QE %v; %s", cl.TCB.Status, cl.TCB.Advisories, c.Platform, c.Module, c.QE, c.FMSPC)
			if cl.TCB.Status != tc.status || cl.Simulated {
				t.Errorf("TCB status %s, want %s", cl.TCB.Status, tc.status)
			}
		})
	}
}

// TestSharedQuotes: every TDX quote of the collection, without collateral.
func TestSharedQuotes(t *testing.T) {
	v := tdx.New(tdx.Config{CollateralOptional: true})
	at := time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC)
	for path, debug := range map[string]bool{
		"tdx/trustee/tdx/tdx_quote_4.dat":                     true,
		"tdx/trustee/tdx/tdx_quote_5.dat":                     false,
		"tdx/automata-dcap-attestation/alibaba_quote_5.dat":   false,
		"tdx/automata-dcap-attestation/alibaba_quote_5.hex":   false,
		"tdx/automata-dcap-attestation/quotev4.hex":           false,
		"tdx/automata-dcap-attestation/quotev5.dat":           false,
		"tdx/automata-dcap-attestation/tdx_quote_5.dat":       false,
		"tdx/dcap-qvl/quote-from-tappd.hex":                   false,
		"tdx/dcap-qvl/tdx-quote.hex":                          false,
		"tdx/go-tdx-guest/cos-113-tdx-quote.dat":              false,
		"tdx/go-tdx-guest/tdx_prod_quote_SPR_E4.dat":          false,
		"tdx/oasis-core/quote_v4_tdx_ecdsa_p256_trailing.bin": false,
		"tdx/openenclave/tdx_quote":                           false,
		"tdx/openenclave/tdx_quote-moduleupdate-seamldr5.dat": false,
		"tdx/openenclave/tdx_quote.bin":                       false,
		"tdx/openenclave/tdx_quote_v5":                        false,
		"tdx/openenclave/tdx_quote_v5.bin":                    false,
	} {
		cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeTDX, Report: shared(t, path)}, attest.Unbound(), nil, at)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if cl.Debuggable != debug {
			t.Errorf("%s: debuggable %v, want %v", path, cl.Debuggable, debug)
		}
	}
}

// TestSharedWrapped: quotes in what their sources wrap them in; and reports of
// the CPU (TDREPORT), which have a MAC of one machine and no signature.
func TestSharedWrapped(t *testing.T) {
	member := func(path, name string) []byte {
		var doc map[string]string
		if err := json.Unmarshal(shared(t, path), &doc); err != nil {
			t.Fatal(err)
		}
		return unhex(t, doc[name])
	}
	v := tdx.New(tdx.Config{CollateralOptional: true})
	at := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	lite := member("tdx/dstack/tdx-lite-getquote.json", "quote")
	for name, tc := range map[string]struct {
		report []byte
		data   []byte // at the beginning of the report data, if stated
	}{
		"tdx/dstack/quote-report.json":         {member("tdx/dstack/quote-report.json", "quote"), member("tdx/dstack/quote-report.json", "report_data")},
		"tdx/dstack/tdx-lite-getquote.json":    {lite, member("tdx/dstack/tdx-lite-getquote.json", "report_data")},
		"tdx/dstack/tdx-lite-attestation.json": {member("tdx/dstack/tdx-lite-attestation.json", "attestation")[4:], nil},
		"tdx/dstack/attestation.bin":           {shared(t, "tdx/dstack/attestation.bin")[4:], nil},
		"snp/oak/oak/tdx_oc_evidence.binarypb": {shared(t, "snp/oak/oak/tdx_oc_evidence.binarypb")[8:], nil},
	} {
		cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeTDX, Report: tc.report}, attest.Unbound(), nil, at)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if cl.Debuggable || cl.Simulated || !strings.HasPrefix(cl.ReportData, hex.EncodeToString(tc.data)) {
			t.Errorf("%s: debuggable %v, simulated %v, report data %s", name, cl.Debuggable, cl.Simulated, cl.ReportData)
		}
	}
	for _, path := range []string{
		"tdx/go-tdx-guest/report.dat",
		"tdx/trustee/tdx/tdx_report_1.bin",
		"tdx/SGXDataCenterAttestationPrimitives/appraisal/tdreport_for_test.dat",
	} {
		_, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeTDX, Report: shared(t, path)}, attest.Unbound(), nil, at)
		if e, ok := errors.AsType[*attest.Error](err); !ok || e.Check != "tdx.format" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestTrusteeClaims holds our claims against those that another project expects of the same quote.
func TestTrusteeClaims(t *testing.T) {
	var want struct {
		Quote struct {
			Body map[string]string
		}
		PIID string `json:"platform_instance_id"`
		Attr struct {
			Debug         bool `json:"debug"`
			SEPTVEDisable bool `json:"septve_disable"`
			KL            bool `json:"key_locker"`
			PKS           bool `json:"protection_keys"`
			Perfmon       bool `json:"perfmon"`
		} `json:"td_attributes"`
	}
	if err := json.Unmarshal(shared(t, "tdx/trustee/tdx/parse_tdx_claims_expected.json"), &want); err != nil {
		t.Fatal(err)
	}
	ev := attest.Evidence{Type: attest.TypeTDX, Report: shared(t, "tdx/trustee/tdx/tdx_quote_4.dat")}
	v := tdx.New(tdx.Config{CollateralOptional: true})
	at := time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC)
	cl, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, at)
	if err != nil {
		t.Fatal(err)
	}
	c := cl.TDX.(*tdx.Claims)
	for name, got := range map[string]string{
		"mr_config_id": c.MRCONFIGID, "mr_owner": c.MROWNER, "mr_owner_config": c.MROWNERCONFIG, "mr_seam": c.MRSEAM, "mr_td": c.MRTD,
		"mrsigner_seam": c.MRSIGNERSEAM, "report_data": c.REPORTDATA, "rtmr_0": c.RTMR0, "rtmr_1": c.RTMR1, "rtmr_2": c.RTMR2, "rtmr_3": c.RTMR3,
		"seam_attributes": c.SEAMATTRIBUTES, "tcb_svn": c.TEETCBSVN, "td_attributes": c.TDATTRIBUTES.Raw, "xfam": c.XFAM,
	} {
		if got != want.Quote.Body[name] {
			t.Errorf("%s is %s, want %s", name, got, want.Quote.Body[name])
		}
	}
	a := c.TDATTRIBUTES
	if a.Debug != want.Attr.Debug || a.SEPTVEDisable != want.Attr.SEPTVEDisable || a.KL != want.Attr.KL || a.PKS != want.Attr.PKS || a.Perfmon != want.Attr.Perfmon || !cl.Debuggable {
		t.Errorf("TDATTRIBUTES %+v, want %+v", a, want.Attr)
	}
	// They print the octets of the certificate backwards.
	piid := unhex(t, want.PIID)
	slices.Reverse(piid)
	if got := hex.EncodeToString(piid); c.PIID != got || cl.ChipID != got {
		t.Errorf("platform instance %s, want %s", c.PIID, got)
	}
	// The log shipped beside this quote is another machine's.
	ev.EventLog = shared(t, "tdx/trustee/tdx/CCEL_data")[:64<<10]
	_, err = v.Verify(t.Context(), ev, attest.Unbound(), nil, at)
	wantError(t, err, "tdx.event_log", attest.ReasonMismatch)
}
