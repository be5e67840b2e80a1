package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

func sharedFile(t testing.TB, path string) []byte {
	t.Helper()
	return readEvidence(t, strings.Split(path, "/")...)
}

func sharedCert(t testing.TB, path string) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(sharedFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func toPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// document is a TCB info or QE identity, whichever the file has, with its
// issuer chain: its own in the container of rust-sgx, else the one given.
func document(t testing.TB, file, chain string) (member string, it attest.CollateralItem) {
	t.Helper()
	it.Data = sharedFile(t, file)
	switch b := sharedFile(t, chain); {
	case strings.HasSuffix(chain, ".der"):
		it.IssuerChain = toPEM(b)
	default:
		s, err := url.PathUnescape(string(b))
		if err != nil {
			t.Fatal(err)
		}
		it.IssuerChain = []byte(s)
	}
	var own struct {
		TCBInfo    string   `json:"raw_tcb_info"`
		QEIdentity string   `json:"raw_enclave_identity"`
		Signature  []int    `json:"signature"` // bytes of an ECDSA-Sig-Value
		Chain      []string `json:"ca_chain"`
	}
	if strings.Contains(file, "rust-sgx/pcs/") && json.Unmarshal(it.Data, &own) == nil && own.TCBInfo+own.QEIdentity != "" {
		member = "tcbInfo"
		if own.QEIdentity != "" {
			member = "enclaveIdentity"
		}
		var der []byte
		for _, c := range own.Signature {
			der = append(der, byte(c))
		}
		var sig struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(der, &sig); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		return member, attest.CollateralItem{
			Data:        fmt.Appendf(nil, `{"%s":%s,"signature":"%064x%064x"}`, member, own.TCBInfo+own.QEIdentity, sig.R, sig.S),
			IssuerChain: []byte(strings.Join(own.Chain, "")),
		}
	}
	if member = "enclaveIdentity"; strings.Contains(string(it.Data), `"tcbInfo"`) {
		member = "tcbInfo"
	}
	return member, it
}

// TestSharedDocuments: what Intel signed verifies under Intel's root and is
// current on the given day, and what others made of it does not.
func TestSharedDocuments(t *testing.T) {
	const (
		// The two certificates are of one key, valid 2018 to 2025 and 2025 to 2032.
		until2025 = "sgx/oasis-core/tcb_info_v3_fmspc_00606A000000_certs.pem"
		signing   = "sgx/automata-dcap-attestation/signing.der"
		tinfoil   = "tdx/verifier/tcb_info_00a06d080000_chain.txt"

		unsigned = "does not verify"
		oldRoot  = "want one certificate under" // with the root's certificate of before 2020
	)
	root := sharedCert(t, "sgx/automata-dcap-attestation/root.der")
	v := New(Config{})
	if simulated, err := v.checkRoot(root); err != nil || simulated {
		t.Fatalf("root: %v, simulated %v", err, simulated)
	}
	for _, tc := range []struct {
		file, chain string
		id          string // TDX, SGX; TD_QE, QE
		at          string
		want        string // in the error
	}{
		{file: "tdx/verifier/tcb_info_00a06d080000.json", chain: tinfoil, id: "TDX", at: "2026-02-01"},
		{file: "tdx/verifier/tcb_info_90c06f000000.json", chain: tinfoil, id: "TDX", at: "2026-02-01"},
		{file: "tdx/verifier/tcb_info_00a06d080000.json", chain: tinfoil, at: "2026-02-20", want: "was due for renewal"},
		{file: "tdx/verifier/qe_identity.json", chain: "tdx/verifier/qe_identity_chain.txt", id: "TD_QE", at: "2026-02-01"},
		{file: "tdx/automata-dcap-attestation/identity.json", chain: signing, id: "TD_QE", at: "2025-11-01"},
		{file: "tdx/automata-dcap-attestation/qe_td.json", chain: signing, id: "TD_QE", at: "2025-06-20"},
		{file: "tdx/automata-dcap-attestation/tcb_info.json", chain: signing, id: "TDX", at: "2025-11-01"},
		{file: "tdx/automata-dcap-attestation/tcbinfo.json", chain: signing, want: "TCB info version 2"},
		{file: "tdx/automata-dcap-attestation/tcbinfov3_00806f050000.json", chain: signing, id: "TDX", at: "2025-06-20"},
		{file: "tdx/automata-dcap-attestation/tcbinfov3_90C06F000000.json", chain: signing, id: "TDX", at: "2025-06-20"},
		{file: "tdx/automata-dcap-attestation/sgxtcbeval.json", chain: signing, want: `unexpected name "tcbEvaluationDataNumbers"`},
		{file: "tdx/automata-dcap-attestation/tdxtcbeval.json", chain: signing, want: `unexpected name "tcbEvaluationDataNumbers"`},
		{file: "sgx/automata-dcap-attestation/sgxtcbeval.json", chain: signing, want: `unexpected name "tcbEvaluationDataNumbers"`},
		{file: "sgx/automata-dcap-attestation/qe_identity.json", chain: signing, id: "TD_QE", at: "2025-08-01"},
		{file: "sgx/automata-dcap-attestation/sgx_qeidentity_v4.json", chain: signing, id: "QE", at: "2025-09-01"},
		{file: "sgx/automata-dcap-attestation/sgx_tcbinfov3_00606a000000.json", chain: signing, id: "SGX", at: "2025-09-01"},
		{file: "sgx/automata-dcap-attestation/tcb_info_v3_sgx.json", chain: signing, id: "SGX", at: "2025-06-01"},
		{file: "sgx/automata-dcap-attestation/tcb_info_v3_with_tdx_module.json", chain: signing, id: "TDX", at: "2025-08-01"},
		{file: "tdx/trustee/tdx-collateral/enclaveIdentity.json", chain: signing, id: "TD_QE", at: "2025-11-01"},
		{file: "tdx/trustee/tdx-collateral/tcbInfo.json", chain: signing, id: "TDX", at: "2025-11-01"},
		{file: "tdx/go-tdx-guest/sample_qeIdentity_response", chain: until2025, id: "TD_QE", at: "2023-07-01"},
		{file: "tdx/go-tdx-guest/sample_tcbInfo_response", chain: until2025, id: "TDX", at: "2023-07-01"},
		{file: "tdx/go-tdx-guest/sample_tcbinfo_response_v5", chain: signing, id: "TDX", at: "2026-02-10"},
		{file: "tdx/go-tdx-guest/sample_tcbinfo_response_v5", chain: until2025, at: "2026-02-10", want: "expired on 2025-05-21"},
		{file: "sgx/rust-sgx/pcs/qeid-sgx.json", chain: "sgx/rust-sgx/pcs/cert-chain-1.cert", id: "QE", at: "2026-02-01"},
		{file: "sgx/rust-sgx/pcs/qeid-tdx.json", chain: "sgx/rust-sgx/pcs/cert-chain-1.cert", id: "TD_QE", at: "2026-02-01"},
		{file: "sgx/rust-sgx/pcs/tcb-sgx.json", chain: signing, id: "SGX", at: "2026-03-20"},
		{file: "sgx/rust-sgx/pcs/tcb-tdx.json", chain: signing, id: "TDX", at: "2026-03-20"},
		{file: "sgx/rust-sgx/pcs/tcb-tdx-2.json", chain: signing, id: "TDX", at: "2026-03-20"},
		{file: "sgx/rust-sgx/pcs/00606a000000-17.tcb", chain: signing, id: "SGX", at: "2025-06-20"},
		{file: "sgx/rust-sgx/pcs/00606a000000-18.tcb", chain: signing, id: "SGX", at: "2025-06-20"},
		{file: "sgx/rust-sgx/pcs/00606a000000-19.tcb", chain: signing, id: "SGX", at: "2025-06-20"},
		{file: "sgx/rust-sgx/pcs/00906ed50000-19.tcb", chain: signing, id: "SGX", at: "2025-06-20"},
		{file: "sgx/rust-sgx/pcs/90806f000000-19.tcb", chain: signing, id: "SGX", at: "2025-08-20"},
		{file: "sgx/rust-sgx/pcs/qe3_identity-17.id", chain: signing, id: "QE", at: "2025-06-20"},
		{file: "sgx/rust-sgx/pcs/qe3_identity-18.id", chain: signing, id: "QE", at: "2025-06-20"},
		{file: "sgx/rust-sgx/pcs/qe3_identity-19.id", chain: signing, id: "QE", at: "2025-06-20"},
		{file: "sgx/rust-sgx/pcs/qe3_identity-8.id", chain: signing, want: oldRoot},
		{file: "sgx/rust-sgx/pcs/qe3_identity.id", chain: signing, want: oldRoot},
		{file: "sgx/rust-sgx/pcs/00906ea10000.tcb", chain: signing, want: oldRoot},
		{file: "sgx/rust-sgx/dcap-ql/qe3_identity.json", chain: until2025, id: "QE", at: "2020-06-01"},
		{file: "sgx/rust-sgx/dcap-ql/corrupt_qe3_identity.json", chain: until2025, want: unsigned},
		{file: "tdx/SGXDataCenterAttestationPrimitives/appraisal/tcb_info.json", chain: signing, want: unsigned},   // Intel's samples
		{file: "tdx/SGXDataCenterAttestationPrimitives/appraisal/tcb_info_4.json", chain: signing, want: unsigned}, // are not Intel's word
	} {
		t.Run(tc.file, func(t *testing.T) {
			member, it := document(t, tc.file, tc.chain)
			var id string
			var issued, next time.Time
			var signer *x509.Certificate
			var err error
			if member == "tcbInfo" {
				var info *tcbInfo
				if info, err = v.tcbInfo(it, root); err == nil {
					id, issued, next, signer = info.ID, info.IssueDate, info.NextUpdate, info.signer
				}
			} else {
				var qe *qeIdentity
				if qe, err = v.qeIdentity(it, root); err == nil {
					id, issued, next, signer = qe.ID, qe.IssueDate, qe.NextUpdate, qe.signer
				}
			}
			if err == nil && tc.at != "" {
				if err = checkDates(day(tc.at), signer); err == nil {
					err = checkUpdates(member, issued, next, day(tc.at))
				}
			}
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
				return
			}
			if err != nil || id != tc.id {
				t.Errorf("%v, id %q, want %q", err, id, tc.id)
			}
		})
	}
}

// TestSharedCRLs: each list verifies under its own CA alone, and is current on
// the given day.
func TestSharedCRLs(t *testing.T) {
	chain, err := url.PathUnescape(string(sharedFile(t, "tdx/verifier/pck_crl_processor_chain.txt")))
	if err != nil {
		t.Fatal(err)
	}
	processor, err := parseChain([]byte(chain))
	if err != nil {
		t.Fatal(err)
	}
	chain, err = url.PathUnescape(string(sharedFile(t, "tdx/verifier/pck_crl_platform_chain.txt")))
	if err != nil {
		t.Fatal(err)
	}
	platform, err := parseChain([]byte(chain))
	if err != nil {
		t.Fatal(err)
	}
	root, err := parseChain(sharedFile(t, "tdx/verifier/sgx_root_ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	issuers := map[string]*x509.Certificate{"root": root[0], "platform": platform[0], "processor": processor[0]}
	v := New(Config{})
	for _, tc := range []struct {
		file, issuer, at string
		revoked          int
	}{
		{"tdx/verifier/root_ca.crl", "root", "2026-02-01", 0},
		{"tdx/verifier/pck_crl_platform.crl", "platform", "2026-02-01", 51},
		{"tdx/verifier/pck_crl_processor.crl", "processor", "2026-02-01", 0},
		{"tdx/go-tdx-guest/rootcrl.der", "root", "2023-07-01", 0},
		{"tdx/go-tdx-guest/pckcrl", "platform", "2023-07-01", 44},
		{"tdx/automata-dcap-attestation/pck_crl.der", "platform", "2025-11-01", 44},
		{"sgx/automata-dcap-attestation/intel_root_ca_crl.der", "root", "2025-08-01", 0},
		{"sgx/automata-dcap-attestation/pck_platform_crl.der", "platform", "2025-08-01", 44},
		{"sgx/automata-dcap-attestation/platform_crl.der", "platform", "2025-09-01", 44},
		{"sgx/rust-sgx/pcs/IntelSGXRootCA.der", "root", "2026-03-20", 0},
		{"sgx/rust-sgx/pcs/platform.crl", "platform", "2025-05-20", 44},
		{"sgx/rust-sgx/pcs/processor.crl", "processor", "2020-06-01", 0},
	} {
		der := sharedFile(t, tc.file)
		var own struct {
			CRL string `json:"crl"`
		}
		if json.Unmarshal(der, &own) == nil {
			b, _ := pem.Decode([]byte(own.CRL))
			der = b.Bytes
		}
		for name, issuer := range issuers {
			list, err := v.crl(der, issuer)
			if name != tc.issuer {
				if ReasonOf(err) != attest.ReasonCollateralInvalid {
					t.Errorf("%s under %s: %v", tc.file, name, err)
				}
				continue
			}
			if err == nil {
				err = list.check(day(tc.at))
			}
			if err != nil || len(list.revoked) != tc.revoked {
				t.Errorf("%s: %v, %+v", tc.file, err, list)
				continue
			}
			if err := list.check(list.nextUpdate.Add(time.Hour)); ReasonOf(err) != attest.ReasonCollateralExpired {
				t.Errorf("%s, lapsed: %v", tc.file, err)
			}
		}
		// Without the chain of its issuer, whatever its date.
		for _, ref := range []attest.CollateralRef{{Kind: attest.IntelRootCRL}, {Kind: attest.PCKCRL, Key: "platform"}, {Kind: attest.PCKCRL, Key: "processor"}} {
			its := ref.Key == tc.issuer || ref.Key == "" && tc.issuer == "root"
			err := v.CheckCollateral(t.Context(), ref, attest.CollateralItem{Data: der}, collateralMap{attest.IntelRootCRL: {Data: sharedFile(t, "tdx/verifier/root_ca.crl")}})
			if its && err != nil || !its && attest.ReasonOf(err) != attest.ReasonCollateralInvalid {
				t.Errorf("%s as %s %s: %v", tc.file, ref.Kind, ref.Key, err)
			}
		}
	}
	// The same in hex, as the old service sent it, is not what a source hands over.
	if _, err := v.crl(sharedFile(t, "sgx/rust-sgx/pcs/IntelSGXRootCA.crl"), root[0]); ReasonOf(err) != attest.ReasonCollateralInvalid {
		t.Errorf("CRL in hex: %v", err)
	}
}

// TestSharedPCKChains: certificates that stand alone in the collection make a
// chain, those under Intel's old root certificate or under nobody do not.
func TestSharedPCKChains(t *testing.T) {
	v := New(Config{})
	root := toPEM(sharedFile(t, "sgx/automata-dcap-attestation/root.der"))
	platform := toPEM(sharedFile(t, "sgx/automata-dcap-attestation/platform.der"))
	leaf := toPEM(sharedFile(t, "sgx/automata-dcap-attestation/pck.der"))
	join := func(certs ...[]byte) (b []byte) {
		for _, c := range certs {
			b = append(append(b, bytes.TrimSpace(c)...), '\n') // not all files end with a line end
		}
		return b
	}
	chain, err := v.pckChain(join(leaf, platform, root))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%x", chain.pck.FMSPC) != "00606a000000" || chain.pck.CA != "platform" || chain.simulated {
		t.Errorf("PCK %+v", chain.pck)
	}
	if _, err := v.pckChain(join(leaf, sharedFile(t, "sgx/rust-sgx/pcs/cert-chain-pck.cert"), sharedFile(t, "sgx/rust-sgx/pcs/cert-chain-2.cert"))); err != nil {
		t.Errorf("the same CA and root of another source: %v", err)
	}
	bad := map[string][]byte{
		"TCB signing certificate as CA": join(leaf, toPEM(sharedFile(t, "sgx/automata-dcap-attestation/signing.der")), root),
		// root_ca.cert is the processor CA, and the other way round.
		"root of before 2020":          join(sharedFile(t, "sgx/rust-sgx/dcap-ql/pck_quote.cert"), sharedFile(t, "sgx/rust-sgx/dcap-ql/root_ca.cert"), sharedFile(t, "sgx/rust-sgx/dcap-ql/processor_ca.cert")),
		"that root, of another source": join(leaf, platform, toPEM(sharedFile(t, "sgx/rust-sgx/pcs/root_SGX_CA_der.cert"))),
	}
	for i := range 7 {
		bad[fmt.Sprintf("Intel's sample %d, signed by itself", i)] = join(sharedFile(t, fmt.Sprintf("tdx/SGXDataCenterAttestationPrimitives/appraisal/pck%d_sample.pem", i)), platform, root)
	}
	for name, b := range bad {
		if _, err := v.pckChain(b); ReasonOf(err) != attest.ReasonChain {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSharedMalformedDocuments: Open Enclave's documents were never signed by
// Intel, so that every one of them is refused. The second column is what is
// found if the signature is not looked at. One lacks a field and is read: a
// tcbEvaluationDataNumber that is missing counts as the lowest.
func TestSharedMalformedDocuments(t *testing.T) {
	const (
		version = "TCB info version 2" // of before TDX
		field   = "lacks a field"
		// A member that is missing under its own name, and there in capitals, which encoding/json would take for it.
		otherCase = "is not"
		decode    = "decode: "
		split     = "" // the envelope already
		read      = "read"
	)
	root := sharedCert(t, "sgx/automata-dcap-attestation/root.der")
	v := New(Config{})
	for name, want := range map[string]string{
		"qe_identity_missing_attributes":         field,
		"qe_identity_missing_attributesmask":     field,
		"qe_identity_missing_id":                 field,
		"qe_identity_missing_issuedate":          field,
		"qe_identity_missing_isvprodid":          field,
		"qe_identity_missing_isvsvn":             split,
		"qe_identity_missing_miscselect":         field,
		"qe_identity_missing_miscselectmask":     field,
		"qe_identity_missing_mrsigner":           field,
		"qe_identity_missing_nextupdate":         field,
		"qe_identity_missing_qeidentity":         split,
		"qe_identity_missing_signature":          split,
		"qe_identity_missing_tcb_date":           field,
		"qe_identity_missing_tcb_eval_data_num":  read,
		"qe_identity_missing_tcb_levels":         field,
		"qe_identity_missing_tcb_status":         field,
		"qe_identity_missing_version":            "QE identity version 0",
		"qe_identity_ok":                         read,
		"qe_identity_with_advisoryids":           read,
		"qve_identity_ok":                        read, // id QVE: of the verification enclave, which nothing asks for
		"tcbInfo":                                version,
		"tcbInfoAdvisoryIds":                     version,
		"tcbInfoNegativeCompSvn":                 version,
		"tcbInfoNegativeFloat":                   decode,
		"tcbInfoNegativeIntegerOverflow":         decode,
		"tcbInfoNegativeIntegerWithSign":         "TCB info version -1",
		"tcbInfoNegativeInvalidIssueDate":        "month out of range",
		"tcbInfoNegativeInvalidNextUpdate":       "month out of range",
		"tcbInfoNegativeMissingNextUpdate":       version,
		"tcbInfoNegativePceSvn":                  decode,
		"tcbInfoNegativePropertyMissingLevel0":   split,
		"tcbInfoNegativePropertyMissingLevel1":   otherCase,
		"tcbInfoNegativePropertyMissingLevel2":   otherCase,
		"tcbInfoNegativePropertyMissingLevel3":   otherCase,
		"tcbInfoNegativePropertyWrongTypeLevel0": split,
		"tcbInfoNegativePropertyWrongTypeLevel1": decode,
		"tcbInfoNegativePropertyWrongTypeLevel2": decode,
		"tcbInfoNegativePropertyWrongTypeLevel3": version,
		"tcbInfoNegativeSignature":               split,
		"tcbInfoNegativeStringEscape":            decode,
		"tcbInfoNegativeTcbType":                 "TCB type 1",
		"tcbInfo_with_pceid":                     version,
		"tcbinfo_sgx":                            read,
		"tcbinfo_tdx":                            read,
	} {
		t.Run(name, func(t *testing.T) {
			it := attest.CollateralItem{Data: sharedFile(t, "sgx/openenclave/collateral-negatives/"+name+".json"), IssuerChain: toPEM(sharedFile(t, "sgx/automata-dcap-attestation/signing.der"))}
			member := "enclaveIdentity"
			if strings.HasPrefix(name, "tcb") {
				member = "tcbInfo"
			}
			var err error
			if member == "tcbInfo" {
				_, err = v.tcbInfo(it, root)
			} else {
				_, err = v.qeIdentity(it, root)
			}
			if ReasonOf(err) != attest.ReasonCollateralInvalid {
				t.Errorf("%v", err)
			}
			raw, _, err := splitSigned(it.Data, member)
			if (err != nil) != (want == split) {
				t.Errorf("envelope: %v", err)
			}
			if err != nil {
				return
			}
			if member == "tcbInfo" {
				_, err = parseTCBInfo(raw, nil)
			} else {
				_, err = parseQEIdentity(raw, nil)
			}
			if (err == nil) != (want == read) || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}
