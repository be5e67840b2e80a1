package results_test

import (
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/results"
)

var sharedRoot = filepath.Join("..", "..", "..", "..", "shared", "evidence")

// shared reads a file under ../shared/evidence, or skips the test.
func shared(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(sharedRoot, path))
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	maaDir  = "maa/teaclave-sgx-sdk/"
	itaJava = "intel-trust-authority/trustauthority-client-for-java/"
	itaGo   = "intel-trust-authority/trustauthority-client-for-go/"
	oakDir  = "gcp-confidential-space/oak/"
	hostDir = "gcp-confidential-space/confidential-space/host/"
	earDir  = "ear/draft-ietf-rats-ear/"
	jwkDir  = "ear/trustee/jwk/"
)

// sharedConfig pins the keys that stand beside the vectors.
func sharedConfig(t *testing.T) results.Config {
	ita := must(results.ParseKeys(shared(t, itaJava+"validJwks.json")))
	return results.Config{Issuers: []results.Issuer{
		{Name: "maa", Dialect: results.MAA, URL: "https://sharedeus.eus.attest.azure.net", Keys: must(results.ParseKeys(shared(t, maaDir+"maa_sgx.jwks.json")))},
		// Nobody kept the keys of this one; others are pinned.
		{Name: "maa-weu", Dialect: results.MAA, URL: "https://sharedweu.weu.attest.azure.net", Keys: must(results.ParseKeys(shared(t, maaDir+"maa_sgx.jwks.json")))},
		{Name: "ita", Dialect: results.ITA, URL: "Intel Trust Authority", Keys: ita},
		{Name: "amber", Dialect: results.ITA, URL: "AS Attestation Token Issuer", Keys: ita},
		{Name: "google", Dialect: results.Google, URL: "https://confidentialcomputing.googleapis.com", Audience: "z08381475938604996746", Roots: must(results.ParseRoots(shared(t, oakDir+"oak_attestation_gcp/confidential_space_root.pem")))},
		// Intel's hand-made tokens have no iss: so do they get as far as their kid.
		{Name: "none", Dialect: results.EAR, Keys: ita},
	}}
}

// TestSharedTokens: each token of INDEX.md, at its time, with the keys beside it.
func TestSharedTokens(t *testing.T) {
	cfg := sharedConfig(t)
	nonce := must(hex.DecodeString("75a91c8dbe289f190d5e70ab1cb70c93cc14d7243f0ef3ff5326a622ead220a6"))
	handMade := time.Unix(1516239022, 0)
	// Intel's held data counts because the report's hash is over it.
	var intel struct {
		Held []byte `json:"attester_held_data"`
	}
	if err := json.Unmarshal(unb64(strings.Split(string(shared(t, itaJava+"validToken.txt")), ".")[1]), &intel); err != nil {
		t.Fatal(err)
	}
	held := intel.Held
	for _, tc := range []struct {
		file   string
		at     time.Time
		bind   []byte // nil: unbound
		check  string
		reason attest.Reason
		says   string // in the error
	}{
		{file: maaDir + "maa_sgx.jwt", at: time.Unix(1695737747, 0), bind: []byte("This is some runtime data")},
		{maaDir + "maa_sgx.jwt", time.Unix(1695737747, 0), []byte("This is other runtime data"), "result.binding", attest.ReasonBinding, "not the digest"},
		{maaDir + "maa_sgx.jwt", now, nil, "result.validity", attest.ReasonValidity, "expired"},
		{"maa/confidential-computing-cvm-guest-attestation/maa_cvm_1.jwt", time.Unix(1680173374, 0), nil, "result.key", attest.ReasonChain, "no pinned key has the kid"},
		{file: itaJava + "validToken.txt", at: time.Unix(1703136668, 0), bind: held},
		{itaJava + "validToken.txt", now, nil, "result.validity", attest.ReasonValidity, "expired"},
		{itaJava + "tokenWrongKid.txt", handMade, nil, "result.key", attest.ReasonChain, `no pinned key has the kid "1234"`},
		{itaJava + "tokenInvalidKid.txt", handMade, nil, "result.format", attest.ReasonMalformed, "kid"},
		{itaJava + "tokenMissingKid.txt", handMade, nil, "result.key", attest.ReasonChain, "no kid"},
		// Its signature is of another length than that of any key of Intel's; its key was not kept.
		{itaJava + "invalidToken.txt", handMade, nil, "result.key", attest.ReasonChain, "no pinned key has the kid"},
		{itaJava + "tokenInvalidAlg.txt", time.Unix(1703136668, 0), nil, "result.header", attest.ReasonUnsupported, "HS384"},
		{itaGo + "token.jwt", handMade, nil, "result.key", attest.ReasonChain, "no pinned key has the kid"},
		{itaGo + "tokenInvalid.jwt", handMade, nil, "result.key", attest.ReasonChain, "no pinned key has the kid"},
		{itaGo + "tokenMissingKID.jwt", handMade, nil, "result.key", attest.ReasonChain, "no kid"},
		{itaGo + "tokenInvalidKID.jwt", handMade, nil, "result.format", attest.ReasonMalformed, "kid"},
		{itaGo + "tokenWrongKID.jwt", handMade, nil, "result.key", attest.ReasonChain, `no pinned key has the kid "1234"`},
		{itaGo + "cli_verify.jwt", time.Unix(1671799568, 0), nil, "result.key", attest.ReasonChain, "no pinned key has the kid"},
		{file: oakDir + "ctf_sha2/sample.jwt", at: time.Unix(1757060250, 0), bind: nonce},
		{oakDir + "ctf_sha2/sample.jwt", time.Unix(1757060250, 0), nonce[:16], "result.binding", attest.ReasonBinding, "not the digest"},
		{oakDir + "ctf_sha2/sample.jwt", now, nil, "result.key", attest.ReasonValidity, "expired"},
	} {
		t.Run(filepath.Base(tc.file)+" "+tc.check, func(t *testing.T) {
			binding := attest.Unbound()
			if tc.bind != nil {
				binding = attest.BindExact(tc.bind)
			}
			token := []byte(strings.TrimSpace(string(shared(t, tc.file))))
			cl, err := newVerifier(t, cfg).Verify(t.Context(), evidence(token), binding, nil, tc.at)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				if err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%v does not say %q", err, tc.says)
				}
				return
			}
			if err != nil || cl.Bound != (tc.bind != nil) || cl.Debuggable || !cl.BoundToCPUTEE || cl.Simulated {
				t.Fatalf("%v: %+v", err, cl)
			}
			for name, prefix := range map[string]map[string]string{
				"maa_sgx.jwt":    {"x-ms-sgx-mrenclave": "f56735aa", "x-ms-sgx-mrsigner": "a595c6c5"},
				"validToken.txt": {"sgx_mrenclave": "0a756a65", "sgx_mrsigner": "d412a4f0"},
				"sample.jwt":     {"image_digest": "e2e5e367", "image_id": "956e0377"},
			}[filepath.Base(tc.file)] {
				if !strings.HasPrefix(cl.Measurements[name], prefix) {
					t.Errorf("%s = %q, want %s…", name, cl.Measurements[name], prefix)
				}
			}
		})
	}
}

// TestSharedOtherRoot: Google's chain is nothing under another pinned root.
func TestSharedOtherRoot(t *testing.T) {
	cfg := sharedConfig(t)
	cfg.Issuers[4].Roots = must(results.ParseRoots(shared(t, jwkDir+"scenario01-trust.pem")))
	_, err := newVerifier(t, cfg).Verify(t.Context(), evidence(shared(t, oakDir+"ctf_sha2/sample.jwt")), attest.Unbound(), nil, time.Unix(1757060250, 0))
	wantError(t, err, "result.key", attest.ReasonChain)
}

// TestSharedClaims: payloads that came without a signature, signed here by a test key.
func TestSharedClaims(t *testing.T) {
	keys := []results.PinnedKey{{ID: "k", Public: p256.Public()}}
	google := results.Issuer{Name: "google", Dialect: results.Google, URL: "https://confidentialcomputing.googleapis.com", Keys: keys, MaxAge: time.Hour}
	ear := results.Issuer{Name: "ear", Dialect: results.EAR, Keys: keys}
	maa := results.Issuer{Name: "maa", Dialect: results.MAA, URL: "https://sharedweu.weu.attest.azure.net", Keys: keys}
	ita := results.Issuer{Name: "ita", Dialect: results.ITA, URL: "AS Attestation Token Issuer", Keys: keys}
	oak := oakDir + "oak_attestation_gcp/"
	oakTime, earTime := time.Unix(1751391092, 0), time.Unix(1666529184, 0)
	nonce := must(hex.DecodeString("24d7de62139d1f034903e97922d4de79bb9d8897cf0bb921098432eadd40f489"))
	claims := func(c attest.Claims) *results.Claims { return c.Result.(*results.Claims) }
	for _, tc := range []struct {
		file   string
		issuer results.Issuer
		at     time.Time
		bind   []byte
		check  string
		reason attest.Reason
		want   func(attest.Claims) bool
	}{
		{oak + "claims.json", google, oakTime, nonce, "", "", func(c attest.Claims) bool {
			// SEV without SNP: Google says so, no CPU does.
			return !c.Debuggable && !c.BoundToCPUTEE && strings.HasPrefix(c.Measurements["image_digest"], "313b8a83")
		}},
		{oak + "claims.json", google, oakTime, make([]byte, 32), "result.binding", attest.ReasonBinding, nil},
		{oak + "policy_claims.json", google, time.Unix(1750688551, 0), must(hex.DecodeString("2935a604535385a318b059531d8393720bec96310c5833e88a28de28088a5203")), "", "", func(c attest.Claims) bool { return !c.Debuggable }},
		{oak + "debug_claims.json", google, oakTime, nonce, "", "", func(c attest.Claims) bool { return c.Debuggable }},
		{oak + "expired_claims.json", google, time.Unix(1751394692, 0), nonce, "result.validity", attest.ReasonValidity, nil},
		// It is valid for a hundred years. Its age is bounded all the same.
		{oak + "long_lived_claims.json", google, time.Unix(1750688551, 0), nil, "", "", func(c attest.Claims) bool { return !c.Debuggable }},
		{oak + "long_lived_claims.json", google, time.Unix(1750688551+7200, 0), nil, "result.validity", attest.ReasonValidity, nil},
		{"maa/confidential-computing-cvm-guest-attestation/maa_cvm_1.jwt", maa, time.Unix(1680173374, 0), []byte("ADE0101"), "", "", func(c attest.Claims) bool {
			return !c.Debuggable && c.BoundToCPUTEE && strings.HasPrefix(c.Measurements["x-ms-sevsnpvm-launchmeasurement"], "89625359") && claims(c).Bound == "x-ms-runtime.client-payload.nonce"
		}},
		// Of before the claims had their names: not a token that is known.
		{itaGo + "cli_verify.jwt", ita, time.Unix(1671799568, 0), nil, "result.claims", attest.ReasonMalformed, nil},
		{earDir + "ear-json-1.diag", ear, earTime, nil, "", "", func(c attest.Claims) bool {
			return claims(c).Status == "contraindicated" && claims(c).Submods["PSA"].Vector["executables"] == 96 && !c.BoundToCPUTEE && c.Debuggable
		}},
		{earDir + "ear-json-1.diag", ear, earTime, nonce, "result.binding", attest.ReasonBinding, nil},
		{earDir + "ear-json-2.diag", ear, time.Unix(1666529300, 0), nil, "", "", func(c attest.Claims) bool {
			return claims(c).Status == "affirming" && len(claims(c).Submods) == 2 && !c.BoundToCPUTEE
		}},
		{earDir + "ext-teep-json-1.diag", ear, earTime, nil, "", "", func(c attest.Claims) bool { return claims(c).Status == "contraindicated" }},
		{earDir + "ext-veraison-json-1.diag", ear, earTime, nil, "", "", func(c attest.Claims) bool { return claims(c).Status == "contraindicated" }},
		{earDir + "ext-veraison-json-2.diag", ear, earTime, nil, "", "", func(c attest.Claims) bool { return claims(c).Status == "affirming" }},
		// CWT is not read.
		{earDir + "ear-cbor-1.diag", ear, earTime, nil, "result.format", attest.ReasonMalformed, nil},
		{earDir + "ext-teep-cbor-1.diag", ear, earTime, nil, "result.format", attest.ReasonMalformed, nil},
		{earDir + "ext-veraison-cbor-1.diag", ear, earTime, nil, "result.format", attest.ReasonMalformed, nil},
	} {
		t.Run(filepath.Base(tc.file)+" "+tc.check, func(t *testing.T) {
			payload := shared(t, tc.file)
			if p := strings.Split(string(payload), "."); strings.HasSuffix(tc.file, ".jwt") {
				var again object
				if err := json.Unmarshal(unb64(p[1]), &again); err != nil {
					t.Fatal(err)
				}
				payload = must(json.Marshal(again))
			}
			binding := attest.Unbound()
			if tc.bind != nil {
				binding = attest.BindExact(tc.bind)
			}
			token := signRaw(p256, head("ES256", "k"), payload)
			cl, err := newVerifier(t, results.Config{Issuers: []results.Issuer{tc.issuer}}).Verify(t.Context(), evidence(token), binding, nil, tc.at)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
			} else if err != nil || !tc.want(cl) {
				t.Errorf("%v: %+v", err, cl)
			}
		})
	}
}

// TestSharedKeys: keys and chains that came without a token.
func TestSharedKeys(t *testing.T) {
	for file, says := range map[string]string{
		itaJava + "validJwks.json":                           "",
		itaJava + "invalidJwks.json":                         "modulus too small",
		itaJava + "leafVerificationFailureJWKS.json":         "certificate 0",
		itaJava + "intermediateVerificationFailureJWKS.json": "certificate 1",
		itaJava + "rootVerificationFailureJWKS.json":         "certificate 2",
		maaDir + "maa_sgx.jwks.json":                         "",
		jwkDir + "as-fixture/expected-jwks.json":             "",
	} {
		keys, err := results.ParseKeys(shared(t, file))
		if (err == nil) != (says == "") || (err != nil && !strings.Contains(err.Error(), says)) || (err == nil && len(keys) == 0) {
			t.Errorf("%s: %v", file, err)
		}
	}
	fixture := must(results.ParseKeys(shared(t, jwkDir+"as-fixture/expected-jwks.json")))[0]
	if c := must(results.ParseRoots(shared(t, jwkDir+"as-fixture/cert-chain.pem")))[0]; !p256Equal(c.PublicKey, fixture.Public) {
		t.Error("as-fixture: the certificate is of another key")
	}
	for n, says := range map[string]string{
		"01": "", "02": "jwk is not the key", "03": "no chain", "04": "unknown authority", "05": "", "06": "", "07": "",
	} {
		err := results.Chained(must(results.ParseRoots(shared(t, jwkDir+"scenario"+n+"-trust.pem"))), "RS256", shared(t, jwkDir+"scenario"+n+"-jwk.json"), now)
		if (err == nil) != (says == "") || (err != nil && !strings.Contains(err.Error(), says)) {
			t.Errorf("scenario %s: %v", n, err)
		}
	}
}

// TestSharedFiles: no file of the four folders is left out; what is no token is refused as such.
func TestSharedFiles(t *testing.T) {
	shared(t, "INDEX.md")
	v := newVerifier(t, issuers())
	others := []string{
		hostDir + "cel_launch_event_log.bin", hostDir + "ekc_dev.bin", hostDir + "gmes_eventlog.bin", hostDir + "payload_key_cert_dev.bin", hostDir + "scribe_cert_0_dev.bin",
		hostDir + "scribe_cert_2_prod.bin", hostDir + "scribe_cert_prod.bin", hostDir + "titan_dice_cert_chain_dev.bin", hostDir + "titan_quote_prod.bin",
		oakDir + "oak_attestation_gcp/endorsement.json", "ear/trustee/rvps/test-rim.b64", "ear/trustee/rvps/unsigned-example-corim.cbor", itaJava + "kid.txt",
	}
	for _, f := range others {
		_, err := v.Verify(t.Context(), evidence(shared(t, f)), attest.Unbound(), nil, now)
		wantError(t, err, "result.format", attest.ReasonMalformed)
	}
	this := string(must(os.ReadFile("shared_test.go")))
	for _, dir := range []string{"ear", "maa", "intel-trust-authority", "gcp-confidential-space"} {
		err := filepath.WalkDir(filepath.Join(sharedRoot, dir), func(path string, d fs.DirEntry, err error) error {
			name := filepath.Base(path)
			// Scenarios are named by their number.
			if err == nil && !d.IsDir() && !strings.HasPrefix(name, "scenario") && !strings.Contains(this, name+`"`) {
				t.Errorf("%s is in no table", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
