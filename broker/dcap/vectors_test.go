package dcap

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tdxtesting "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/claviger/claviger/broker/attest"
)

type collateralMap map[attest.CollateralKind]attest.CollateralItem

func (c collateralMap) Get(_ context.Context, ref attest.CollateralRef) (attest.CollateralItem, error) {
	it, ok := c[ref.Kind]
	if !ok {
		return it, attest.Errorf("test", attest.ReasonCollateralMissing, "no %s", ref.Kind)
	}
	return it, nil
}

func headerChain(t *testing.T, h map[string][]string) []byte {
	t.Helper()
	for _, v := range h {
		s, err := url.QueryUnescape(v[0])
		if err != nil {
			t.Fatal(err)
		}
		return []byte(s)
	}
	t.Fatal("no header")
	return nil
}

func googleCollateral(t *testing.T, tcbInfo []byte) collateralMap {
	return collateralMap{
		attest.TDXTCBInfo:   {Data: tcbInfo, IssuerChain: headerChain(t, tdxtesting.TcbInfoHeader)},
		attest.TDXQEID:      {Data: testdata.QeIdentityBody, IssuerChain: headerChain(t, tdxtesting.QeIdentityHeader)},
		attest.PCKCRL:       {Data: testdata.PckCrlBody},
		attest.IntelRootCRL: {Data: testdata.RootCrlBody},
	}
}

func day(s string) time.Time {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return t
}

// TestGoogleVectors: real quotes, with Intel's own collateral of the time.
func TestGoogleVectors(t *testing.T) {
	v := New(Config{})
	q, err := ParseQuote(testdata.RawQuoteV5)
	if err != nil {
		t.Fatal(err)
	}
	// The CRLs lapsed long before this quote's PCK was issued.
	c := googleCollateral(t, testdata.TcbInfoBodyV5)
	// The library takes this TCB info on 2025-01-01, a year before it was issued.
	at := clock{tcbInfo: day("2025-01-01"), qeIdentity: day("2023-07-01"), chain: day("2026-02-10")}
	_, err = v.verify(t.Context(), NewTrail("test"), q, c, at)
	if attest.ReasonOf(err) != attest.ReasonCollateralExpired {
		t.Errorf("v5 with CRLs of 2023: %v", err)
	}
	lenient := New(Config{CollateralOptional: true})
	if _, err := lenient.verify(t.Context(), NewTrail("test"), q, c, at); attest.ReasonOf(err) != attest.ReasonValidity {
		t.Errorf("v5 before issueDate: %v", err)
	}
	at.tcbInfo = at.chain
	tr := NewTrail("test")
	res, err := lenient.verify(t.Context(), tr, q, c, at)
	if err != nil {
		t.Fatal(err)
	}
	if res.TCB.Status != attest.TCBUpToDate || hex.EncodeToString(res.PCK.FMSPC[:]) != "90c06f000000" || res.Simulated {
		t.Errorf("v5: %+v", res)
	}
	for _, c := range tr.Checks() {
		// The TCB signing certificate shipped with it expired in 2025.
		want := attest.Passed
		if strings.HasSuffix(c.Name, "_crl") || c.Name == "test.tcb_info" {
			want = attest.Skipped
		}
		if c.Outcome != want {
			t.Errorf("check %+v", c)
		}
	}

	// The v4 quote is below every level of the TCB info shipped with it: the
	// library's own test expects the same.
	q, err = ParseQuote(testdata.RawQuote)
	if err != nil {
		t.Fatal(err)
	}
	at = clock{day("2023-07-01"), day("2023-07-01"), day("2023-07-01")}
	_, err = v.verify(t.Context(), NewTrail("test"), q, googleCollateral(t, testdata.TcbInfoBody), at)
	if e, ok := errors.AsType[*attest.Error](err); !ok || e.Reason != attest.ReasonUnsupported || e.Check != "test.tcb_status" {
		t.Errorf("v4: %v", err)
	}
	// And the other TCB info is for another platform.
	_, err = v.verify(t.Context(), NewTrail("test"), q, googleCollateral(t, testdata.TcbInfoBodyV5), at)
	if attest.ReasonOf(err) != attest.ReasonMismatch {
		t.Errorf("v4 with another FMSPC: %v", err)
	}
}

// evidence returns a path under ../shared/evidence, or skips.
func evidence(t testing.TB, path ...string) string {
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
	p := filepath.Join(append([]string{dir, "..", "shared", "evidence"}, path...)...)
	if _, err := os.Stat(p); err != nil {
		t.Skipf("no shared evidence: %v", err)
	}
	return p
}

func readEvidence(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(evidence(t, path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSGXVectors: SGX quotes (v3) from the field, for the sgx package to come.
func TestSGXVectors(t *testing.T) {
	certs := readEvidence(t, "sgx", "oasis-core", "tcb_info_v3_fmspc_00606A000000_certs.pem")
	oasis := collateralMap{
		attest.SGXTCBInfo: {Data: readEvidence(t, "sgx", "oasis-core", "tcb_info_v3_fmspc_00606A000000.json"), IssuerChain: certs},
		attest.SGXQEID:    {Data: readEvidence(t, "sgx", "oasis-core", "qe_identity_v2.json"), IssuerChain: certs},
	}
	raw := readEvidence(t, "sgx", "oasis-core", "quote_v3_ecdsa_p256_pck_chain.bin")
	at := time.Unix(1671497404, 0)
	lenient := New(Config{CollateralOptional: true}) // the vector has no CRLs
	q, err := ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	res, err := lenient.Verify(t.Context(), NewTrail("test"), q, oasis, at)
	if err != nil {
		t.Fatal(err)
	}
	if e := q.Enclave; !strings.HasPrefix(hex.EncodeToString(e.MRENCLAVE[:]), "68823bc6") || !strings.HasPrefix(hex.EncodeToString(e.MRSIGNER[:]), "9affcfae") {
		t.Errorf("enclave %x by %x", e.MRENCLAVE, e.MRSIGNER)
	}
	if res.TCB.Status != attest.TCBSWHardeningNeeded || !slices.Equal(res.TCB.Advisories, []string{"INTEL-SA-00615", "INTEL-SA-00657"}) || res.Simulated {
		t.Errorf("TCB %+v", res.TCB)
	}
	if _, err := New(Config{}).Verify(t.Context(), NewTrail("test"), q, oasis, at); attest.ReasonOf(err) != attest.ReasonCollateralMissing {
		t.Errorf("without CRLs: %v", err)
	}
	for _, tc := range []struct {
		unix   int64
		check  string
		reason attest.Reason
	}{
		{1891163522, "test.pck_chain", attest.ReasonValidity},
		{1670238720, "test.tcb_info", attest.ReasonValidity},
		{1671194735, "test.qe_identity", attest.ReasonValidity},
	} {
		_, err := lenient.Verify(t.Context(), NewTrail("test"), q, oasis, time.Unix(tc.unix, 0))
		if e, ok := errors.AsType[*attest.Error](err); !ok || e.Reason != tc.reason {
			t.Errorf("at %d: %v, want %s at %s", tc.unix, err, tc.reason, tc.check)
		}
	}
	bad := readEvidence(t, "sgx", "oasis-core", "tcb_info_v3_fmspc_00606A000000_certs_bad.pem")
	oasis[attest.SGXTCBInfo] = attest.CollateralItem{Data: oasis[attest.SGXTCBInfo].Data, IssuerChain: bad}
	if _, err := lenient.Verify(t.Context(), NewTrail("test"), q, oasis, at); attest.ReasonOf(err) != attest.ReasonCollateralInvalid {
		t.Errorf("bad issuer chain: %v", err)
	}
	if _, err := ParseQuote(readEvidence(t, "sgx", "oasis-core", "quote_v3_ecdsa_p256_eppid.bin")); ReasonOf(err) != attest.ReasonUnsupported {
		t.Errorf("PPID certification data: %v", err)
	}

	// dcap-qvl's has everything, CRLs too; its clock is the window's last second.
	var d map[string]string
	if err := json.Unmarshal(readEvidence(t, "sgx", "dcap-qvl", "sgx_quote_collateral.json"), &d); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	full := collateralMap{
		attest.SGXTCBInfo:   {Data: []byte(`{"tcbInfo":` + d["tcb_info"] + `,"signature":"` + d["tcb_info_signature"] + `"}`), IssuerChain: []byte(d["tcb_info_issuer_chain"])},
		attest.SGXQEID:      {Data: []byte(`{"enclaveIdentity":` + d["qe_identity"] + `,"signature":"` + d["qe_identity_signature"] + `"}`), IssuerChain: []byte(d["qe_identity_issuer_chain"])},
		attest.PCKCRL:       {Data: unhex(d["pck_crl"])},
		attest.IntelRootCRL: {Data: unhex(d["root_ca_crl"])},
	}
	if q, err = ParseQuote(readEvidence(t, "sgx", "dcap-qvl", "sgx_quote")); err != nil {
		t.Fatal(err)
	}
	res, err = New(Config{}).Verify(t.Context(), NewTrail("test"), q, full, time.Date(2025, 6, 20, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	if res.TCB.Status != attest.TCBConfigAndSWHardening || !slices.Equal(res.TCB.Advisories, []string{"INTEL-SA-00289", "INTEL-SA-00615"}) {
		t.Errorf("dcap-qvl: %+v", res.TCB)
	}
	t.Logf("PCK %+v", res.PCK)
}

// TestQuotesVerify: every quote of the collection up to its PCK chain, without collateral.
func TestQuotesVerify(t *testing.T) {
	v := New(Config{CollateralOptional: true})
	for path, want := range map[string]attest.Reason{
		"sgx/automata-dcap-attestation/quote_sgx.bin": "",
		"sgx/openenclave/sgx_quote":                   "",
		// The root certificate of before 2020, same key, which is not the one pinned; two of them in another order.
		"sgx/rust-sgx/dcap-ql/quote_pck_cert_chain.bin":           attest.ReasonChain,
		"sgx/rust-sgx/dcap-ql/quote_pck_cert_chain_corrupted.bin": attest.ReasonChain,
		"sgx/rust-sgx/dcap-ql/quote_raw_tcb.bin":                  attest.ReasonUnsupported,
		"sgx/rust-sgx/pcs/quote.bin":                              attest.ReasonChain,
		"sgx/trustee/sgx/occlum_quote.dat":                        "",
		"sgx/automata-dcap-attestation/quote_tdx.bin":             "",
	} {
		q, err := ParseQuote(readEvidence(t, strings.Split(path, "/")...))
		if err == nil {
			_, err = v.Verify(t.Context(), NewTrail("test"), q, nil, day("2026-02-01"))
		}
		if (err == nil) != (want == "") || err != nil && ReasonOf(err) != want {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func FuzzQuote(f *testing.F) {
	f.Add(testdata.RawQuote)
	f.Add(testdata.RawQuoteV5)
	v := New(Config{CollateralOptional: true})
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := ParseQuote(raw)
		if err != nil {
			if ReasonOf(err) == attest.ReasonInternal {
				t.Fatalf("error without a reason: %v", err)
			}
			return
		}
		if (q.TD == nil) == (q.Enclave == nil) {
			t.Fatal("a quote has one body")
		}
		if _, err := v.Verify(t.Context(), NewTrail("fuzz"), q, nil, day("2026-02-01")); err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Fatalf("error without a reason: %v", err)
		}
	})
}

func FuzzTCBInfo(f *testing.F) {
	for _, b := range [][]byte{testdata.TcbInfoBody, testdata.TcbInfoBodyV5, testdata.QeIdentityBody} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, member := range []string{"tcbInfo", "enclaveIdentity"} {
			raw, _, err := splitSigned(body, member)
			if err != nil {
				raw = body
			}
			// As if it were signed: what follows must hold for whatever Intel signs.
			if info, err := parseTCBInfo(raw, nil); err == nil {
				td := &TDReport{}
				if info.ID != "TDX" {
					td = nil
				}
				platformLevel(info, &PCK{}, td)
				if td != nil {
					moduleLevel(info, td)
					td.TEETCBSVN[1] = 1
					moduleLevel(info, td)
				}
			}
			if id, err := parseQEIdentity(raw, nil); err == nil {
				qeLevel(id, &EnclaveReport{})
			}
		}
	})
}
