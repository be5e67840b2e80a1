package sgx_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/sgx"
)

// shared reads a file under ../shared/evidence/sgx, or skips the test.
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
	b, err := os.ReadFile(filepath.Join(dir, "..", "shared", "evidence", "sgx", path))
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

func phala(t testing.TB) byKind {
	var d map[string]string
	if err := json.Unmarshal(shared(t, "dcap-qvl/sgx_quote_collateral.json"), &d); err != nil {
		t.Fatal(err)
	}
	return byKind{
		attest.SGXTCBInfo:   {Data: []byte(`{"tcbInfo":` + d["tcb_info"] + `,"signature":"` + d["tcb_info_signature"] + `"}`), IssuerChain: []byte(d["tcb_info_issuer_chain"])},
		attest.SGXQEID:      {Data: []byte(`{"enclaveIdentity":` + d["qe_identity"] + `,"signature":"` + d["qe_identity_signature"] + `"}`), IssuerChain: []byte(d["qe_identity_issuer_chain"])},
		attest.PCKCRL:       {Data: unhex(t, d["pck_crl"])},
		attest.IntelRootCRL: {Data: unhex(t, d["root_ca_crl"])},
	}
}

func oasis(t testing.TB, certs string) byKind {
	return byKind{
		attest.SGXTCBInfo: {Data: shared(t, "oasis-core/tcb_info_v3_fmspc_00606A000000.json"), IssuerChain: shared(t, "oasis-core/"+certs)},
		attest.SGXQEID:    {Data: shared(t, "oasis-core/qe_identity_v2.json"), IssuerChain: shared(t, "oasis-core/tcb_info_v3_fmspc_00606A000000_certs.pem")},
	}
}

// TestSharedCollateral: quotes of the field with Intel's collateral, each at
// the time that its source states.
func TestSharedCollateral(t *testing.T) {
	good := func(t testing.TB) byKind { return oasis(t, "tcb_info_v3_fmspc_00606A000000_certs.pem") }
	for name, tc := range map[string]struct {
		quote      string
		collateral func(testing.TB) byKind
		at         int64
		strict     bool // the source has CRLs
		status     string
		advisories []string
		check      string
		reason     attest.Reason
	}{
		"dcap-qvl": {quote: "dcap-qvl/sgx_quote", collateral: phala, at: time.Date(2025, 6, 20, 0, 0, 0, 0, time.UTC).Unix(), strict: true,
			status: attest.TCBConfigAndSWHardening, advisories: []string{"INTEL-SA-00289", "INTEL-SA-00615"}},
		"dcap-qvl, collateral lapsed": {quote: "dcap-qvl/sgx_quote", collateral: phala, at: time.Date(2025, 9, 20, 0, 0, 0, 0, time.UTC).Unix(), strict: true,
			check: "sgx.pck_crl", reason: attest.ReasonCollateralExpired},
		"dcap-qvl, root CRL as PCK CRL": {quote: "dcap-qvl/sgx_quote", at: time.Date(2025, 6, 20, 0, 0, 0, 0, time.UTC).Unix(), strict: true,
			collateral: func(t testing.TB) byKind {
				c := phala(t)
				c[attest.PCKCRL] = c[attest.IntelRootCRL]
				return c
			}, check: "sgx.pck_crl", reason: attest.ReasonCollateralInvalid},
		"oasis": {quote: "oasis-core/quote_v3_ecdsa_p256_pck_chain.bin", collateral: good, at: 1671497404,
			status: attest.TCBSWHardeningNeeded, advisories: []string{"INTEL-SA-00615", "INTEL-SA-00657"}},
		"oasis, PCK expired": {quote: "oasis-core/quote_v3_ecdsa_p256_pck_chain.bin", collateral: good, at: 1891163522, check: "sgx.pck_chain", reason: attest.ReasonValidity},
		// At this time the QE identity is from the future, as its source says; so is the TCB info, which comes first.
		"oasis, QE id to come":  {quote: "oasis-core/quote_v3_ecdsa_p256_pck_chain.bin", collateral: good, at: 1671194735, check: "sgx.tcb_info", reason: attest.ReasonValidity},
		"oasis, bad TCB chain":  {quote: "oasis-core/quote_v3_ecdsa_p256_pck_chain.bin", at: 1671497404, collateral: func(t testing.TB) byKind { return oasis(t, "tcb_info_v3_fmspc_00606A000000_certs_bad.pem") }, check: "sgx.tcb_info", reason: attest.ReasonCollateralInvalid},
		"oasis, encrypted PPID": {quote: "oasis-core/quote_v3_ecdsa_p256_eppid.bin", collateral: good, at: 1671497404, check: "sgx.format", reason: attest.ReasonUnsupported},
		"oasis, another platform": {quote: "dcap-qvl/sgx_quote", collateral: good, at: time.Date(2025, 6, 20, 0, 0, 0, 0, time.UTC).Unix(),
			check: "sgx.tcb_info", reason: attest.ReasonMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			v := sgx.New(sgx.Config{CollateralOptional: !tc.strict})
			cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: shared(t, tc.quote)}, attest.Unbound(), tc.collateral(t), time.Unix(tc.at, 0))
			if tc.reason != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cl.TCB.Status != tc.status || !slices.Equal(cl.TCB.Advisories, tc.advisories) || cl.Simulated || cl.Bound {
				t.Errorf("claims %+v", cl)
			}
		})
	}
}

// TestSharedQuotes: every SGX quote of the collection, without collateral.
func TestSharedQuotes(t *testing.T) {
	at := time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC)
	type want struct {
		mrenclave string
		debug     bool
		check     string
		reason    attest.Reason
	}
	for path, w := range map[string]want{
		"automata-dcap-attestation/quote_sgx.bin":      {debug: true},
		"automata-dcap-attestation/quotev3.hex":        {},
		"automata-dcap-attestation/quote_tdx.bin":      {check: "sgx.format", reason: attest.ReasonUnsupported},
		"dcap-qvl/sgx_quote":                           {},
		"oasis-core/quote_v3_ecdsa_p256_eppid.bin":     {check: "sgx.format", reason: attest.ReasonUnsupported},
		"oasis-core/quote_v3_ecdsa_p256_pck_chain.bin": {mrenclave: "68823bc6"},
		"openenclave/sgx_quote":                        {debug: true},
		"trustee/sgx/occlum_quote.dat":                 {mrenclave: "8f173e46", debug: true},
		// Their root is Intel's certificate of before 2020 (same key, another certificate), which is not the one pinned.
		"rust-sgx/dcap-ql/quote_pck_cert_chain.bin":           {check: "sgx.pck_chain", reason: attest.ReasonChain},
		"rust-sgx/dcap-ql/quote_pck_cert_chain_corrupted.bin": {check: "sgx.pck_chain", reason: attest.ReasonChain},
		"rust-sgx/pcs/quote.bin":                              {check: "sgx.pck_chain", reason: attest.ReasonChain},
		"rust-sgx/dcap-ql/quote_raw_tcb.bin":                  {check: "sgx.format", reason: attest.ReasonUnsupported},
	} {
		t.Run(path, func(t *testing.T) {
			v := sgx.New(sgx.Config{CollateralOptional: true})
			raw := shared(t, path)
			ev := attest.Evidence{Type: attest.TypeSGX, Report: raw}
			cl, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, at)
			if w.reason != "" {
				wantError(t, err, w.check, w.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := cl.SGX.(*sgx.Claims)
			t.Logf("FMSPC %s, attributes %+v, mrenclave %s, mrsigner %s", c.FMSPC, c.ATTRIBUTES, c.MRENCLAVE, c.MRSIGNER)
			if cl.Debuggable != w.debug || !c.ATTRIBUTES.Init || !strings.HasPrefix(c.MRENCLAVE, w.mrenclave) {
				t.Errorf("claims %+v", c)
			}
			// A broker wants collateral.
			_, err = sgx.New(sgx.Config{}).Verify(t.Context(), ev, attest.Unbound(), nil, at)
			wantError(t, err, "sgx.root_crl", attest.ReasonCollateralMissing)
			// A flipped bit anywhere in what the enclave or the platform said.
			for bit := 0; bit < (48+384)*8; bit += 131 {
				bad := bytes.Clone(raw)
				bad[bit/8] ^= 1 << (bit % 8)
				if _, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: bad}, attest.Unbound(), nil, at); err == nil {
					t.Errorf("accepted with bit %d flipped", bit)
				}
			}
		})
	}
}

// TestSharedBundle: a quote and its TCB info in Oasis's container. The time is
// that of the documents, whose QE identity is read from beside it.
func TestSharedBundle(t *testing.T) {
	raw := shared(t, "oasis-core/pcs_quote_bundle.cbor")
	_, quote, ok := bytes.Cut(raw, []byte("equoteY")) // text of 5 bytes, byte string with a length of 16 bits
	if !ok {
		t.Fatal("no quote")
	}
	quote = quote[2:][:binary.BigEndian.Uint16(quote)]
	v := sgx.New(sgx.Config{CollateralOptional: true})
	at := time.Date(2023, 1, 10, 0, 0, 0, 0, time.UTC)
	cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: quote}, attest.Unbound(), nil, at)
	if err != nil {
		t.Fatal(err)
	}
	if c := cl.SGX.(*sgx.Claims); !c.ATTRIBUTES.Init || cl.Simulated || len(c.MRENCLAVE) != 64 {
		t.Errorf("claims %+v", cl)
	}
	if _, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: raw}, attest.Unbound(), nil, at); attest.ReasonOf(err) != attest.ReasonUnsupported {
		t.Errorf("the container as a quote: %v", err)
	}
	// Certificates of RA-TLS, made to be refused, and collateral are no quotes.
	for _, path := range []string{"openenclave/sgx_cert_ec_bad.der", "openenclave/sgx_cert_rsa_bad.der", "openenclave/endorsements", "rust-sgx/dcap-ql/encrypted_ppid.bin"} {
		_, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: shared(t, path)}, attest.Unbound(), nil, at)
		if r := attest.ReasonOf(err); r != attest.ReasonUnsupported && r != attest.ReasonMalformed {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestOldRoot: quotes whose root is Intel's certificate of before 2020, where
// that is trusted. Two have their chain in another order than Intel's (leaf,
// root, CA), which is put right here: no signature covers it.
func TestOldRoot(t *testing.T) {
	// OE header: version, type, u64 length; then the quote.
	oe := shared(t, "openenclave/sgx_report_bad.bin")
	oe = oe[16 : 16+binary.LittleEndian.Uint64(oe[8:])]
	for name, tc := range map[string]struct {
		quote  []byte
		check  string
		reason attest.Reason
	}{
		"good":      {shared(t, "rust-sgx/dcap-ql/quote_pck_cert_chain.bin"), "", ""},
		"pcs":       {shared(t, "rust-sgx/pcs/quote.bin"), "", ""},
		"corrupted": {shared(t, "rust-sgx/dcap-ql/quote_pck_cert_chain_corrupted.bin"), "sgx.quote_signature", attest.ReasonSignature},
		"OE, bad":   {oe, "sgx.pck_chain", attest.ReasonChain},
	} {
		start := bytes.Index(tc.quote, []byte("-----BEGIN"))
		var root *x509.Certificate
		var blocks [][]byte
		for rest := tc.quote[start:]; ; {
			block, more := pem.Decode(rest)
			if block == nil {
				break
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			text := bytes.TrimSpace(rest[:len(rest)-len(more)])
			switch rest = more; {
			case bytes.Equal(c.RawIssuer, c.RawSubject):
				root = c
				blocks = append(blocks, text)
			case c.IsCA:
				blocks = slices.Insert(blocks, 1, text)
			default:
				blocks = append(blocks, text)
			}
		}
		chain := bytes.Join(blocks, []byte("\n"))
		tail := tc.quote[start+len(chain):]
		quote := slices.Concat(tc.quote[:start], chain, tail)
		v := sgx.New(sgx.Config{TestRoots: []*x509.Certificate{root}, CollateralOptional: true})
		cl, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: quote}, attest.Unbound(), nil, time.Date(2021, 5, 10, 0, 0, 0, 0, time.UTC))
		switch {
		case tc.check != "":
			t.Log(name)
			wantError(t, err, tc.check, tc.reason)
		case err != nil || !cl.Simulated:
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenEnclave: quotes inside that project's own wrapping.
func TestOpenEnclave(t *testing.T) {
	v := sgx.New(sgx.Config{CollateralOptional: true})
	at := time.Date(2022, 5, 10, 0, 0, 0, 0, time.UTC)
	// A licence notice before the quote.
	raw := shared(t, "openenclave/evidence")
	_, quote, ok := bytes.Cut(raw, []byte("MIT License.\n"))
	if !ok {
		t.Fatal("no notice")
	}
	if _, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: quote}, attest.Unbound(), nil, at); err != nil {
		t.Errorf("evidence: %v", err)
	}
	if _, err := v.Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: raw}, attest.Unbound(), nil, at); attest.ReasonOf(err) != attest.ReasonUnsupported {
		t.Errorf("evidence with its notice: %v", err)
	}
}

// TestTrusteeClaims: the quote of another project's request, bound to the data that it states.
func TestTrusteeClaims(t *testing.T) {
	var outer struct {
		Evidence string `json:"evidence"`
	}
	if err := json.Unmarshal(shared(t, "trustee/sgx/as-request-check.json"), &outer); err != nil {
		t.Fatal(err)
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(outer.Evidence, "="))
	if err != nil {
		t.Fatal(err)
	}
	var inner struct {
		Quote []byte `json:"quote"`
	}
	if err := json.Unmarshal(b, &inner); err != nil {
		t.Fatal(err)
	}
	file := shared(t, "trustee/sgx/occlum_quote.dat")
	if !bytes.Equal(inner.Quote, file) {
		t.Errorf("the request has %d bytes of quote, the file %d", len(inner.Quote), len(file))
	}
	// The request in its later form.
	var later struct {
		Requests []struct {
			Evidence string `json:"evidence"`
		} `json:"verification_requests"`
	}
	if err := json.Unmarshal(shared(t, "trustee/sgx/as-request-sgx.json"), &later); err != nil || len(later.Requests) != 1 || strings.TrimRight(later.Requests[0].Evidence, "=") != strings.TrimRight(outer.Evidence, "=") {
		t.Errorf("as-request-sgx.json has other evidence (%v)", err)
	}
	data := make([]byte, 64)
	copy(data, "test")
	cl, err := sgx.New(sgx.Config{CollateralOptional: true}).Verify(t.Context(), attest.Evidence{Type: attest.TypeSGX, Report: inner.Quote},
		attest.BindExact(data), nil, time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	c := cl.SGX.(*sgx.Claims)
	piid := unhex(t, "7a3a6941065cd5060bd93d3db2cfc0c8")
	slices.Reverse(piid) // they print the octets of the certificate backwards
	if !cl.Bound || !strings.HasSuffix(c.MRENCLAVE, "1c68") || !strings.HasPrefix(c.MRSIGNER, "83d719e7") || c.FMSPC != "00606a000000" || cl.ChipID != hex.EncodeToString(piid) {
		t.Errorf("claims %+v", c)
	}
}
