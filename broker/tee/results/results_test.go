package results_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/results"
	"github.com/claviger/claviger/broker/tee/teetest"
	"github.com/claviger/claviger/internal/bench/benchtest"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

var transcript = attest.Transcript{Nonce: []byte("nonce"), KeyAlgorithm: "test", PublicKey: []byte("key"), Resources: []string{"disks/a"}}

var (
	digest64 = func() []byte { d := transcript.Digest64(); return d[:] }()
	digest48 = func() []byte { d := transcript.Digest48(); return d[:] }()
	digest32 = func() []byte { d := transcript.Digest32(); return d[:] }()
)

// Keys of issuers, and of nobody. Each is made once: RSA keys are slow to make.
var (
	rsaKey   = must(rsa.GenerateKey(rand.Reader, 2048))
	otherRSA = must(rsa.GenerateKey(rand.Reader, 2048))
	p256     = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384     = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// sign makes a compact JWS with the standard library alone.
func sign(key any, head, claims map[string]any) []byte {
	return signRaw(key, head, must(json.Marshal(claims)))
}

func signRaw(key any, head map[string]any, payload []byte) []byte {
	in := b64(must(json.Marshal(head))) + "." + b64(payload)
	alg, _ := head["alg"].(string)
	h := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[max(0, len(alg)-3):]]
	var sum, sig []byte
	if h != 0 {
		w := h.New()
		w.Write([]byte(in))
		sum = w.Sum(nil)
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if strings.HasPrefix(alg, "PS") {
			sig = must(rsa.SignPSS(rand.Reader, k, h, sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		} else {
			sig = must(rsa.SignPKCS1v15(rand.Reader, k, h, sum))
		}
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, sum)
		if err != nil {
			panic(err)
		}
		n := (k.Curve.Params().BitSize + 7) / 8
		sig = append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...)
	case []byte: // HMAC
		m := hmac.New(sha256.New, k)
		m.Write([]byte(in))
		sig = m.Sum(nil)
	}
	return []byte(in + "." + b64(sig))
}

// issuers, one of each dialect; the names are those of the dialects.
func issuers() results.Config {
	pinned := func(kid, alg string, k crypto.PublicKey) []results.PinnedKey {
		return []results.PinnedKey{{ID: kid, Algorithm: alg, Public: k}}
	}
	return results.Config{Issuers: []results.Issuer{
		{Name: "ear", Dialect: results.EAR, URL: "https://ear.example", Keys: pinned("e", "", p256.Public()), NonceAttested: true},
		{Name: "coco", Dialect: results.EAR, Keys: pinned("", "ES384", p384.Public())},
		{Name: "maa", Dialect: results.MAA, URL: "https://maa.example", Keys: pinned("m", "", rsaKey.Public())},
		{Name: "ita", Dialect: results.ITA, URL: "Intel Trust Authority", Keys: pinned("i", "PS384", rsaKey.Public())},
		{Name: "google", Dialect: results.Google, URL: "https://confidentialcomputing.googleapis.com", Audience: "claviger", Keys: pinned("g", "RS256", rsaKey.Public())},
	}}
}

func newVerifier(t testing.TB, cfg results.Config) *results.Verifier {
	t.Helper()
	v, err := results.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func evidence(token []byte) attest.Evidence {
	return attest.Evidence{Type: attest.TypeResult, Report: token}
}

type object = map[string]any

// with is a copy of o with more members.
func with(o object, more object) object {
	c := maps.Clone(o)
	maps.Copy(c, more)
	return c
}

func times() object {
	return object{"iat": now.Unix() - 10, "nbf": now.Unix() - 10, "exp": now.Unix() + 290}
}

// sample is a token that is believed.
type sample struct {
	name   string
	key    any
	head   object
	claims object
	data   []byte // what it is bound to
	bound  string
	want   attest.Claims // the normalised part
	status string
}

func (s sample) token() []byte { return sign(s.key, s.head, s.claims) }

func head(alg, kid string) object { return object{"alg": alg, "kid": kid, "typ": "JWT"} }

var (
	unknown   = attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}}
	notStated = attest.TCB{Status: attest.TCBUnstated, Advisories: []string{}}
)

func hexOf(b string, n int) string { return strings.Repeat(b, n) }

// samples have one token of each kind that the dialects know.
func samples() []sample {
	maa, ita, google := with(times(), object{"iss": "https://maa.example"}), with(times(), object{"iss": "Intel Trust Authority"}), with(times(), object{"iss": "https://confidentialcomputing.googleapis.com", "aud": "claviger"})
	snp := object{
		"x-ms-attestation-type": "sevsnpvm", "x-ms-sevsnpvm-is-debuggable": false, "x-ms-sevsnpvm-migration-allowed": false, "x-ms-sevsnpvm-launchmeasurement": hexOf("ab", 48),
		"x-ms-sevsnpvm-hostdata": hexOf("4a", 32), "x-ms-sevsnpvm-reportdata": hexOf("00", 64),
	}
	space := with(google, object{
		"hwmodel": "GCP_INTEL_TDX", "swname": "CONFIDENTIAL_SPACE", "dbgstat": "disabled-since-boot", "eat_nonce": []string{"another nonce", b64(digest48)},
		"submods": object{"container": object{"image_digest": "sha256:" + hexOf("1d", 32)}}, "tdx": object{"gcp_attester_tcb_status": "UpToDate", "gcp_attester_tcb_date": "2024-03-13T00:00:00Z"},
	})
	// What Intel's clients put into report_data: a hash over its nonce and the held data.
	long := func(nonce string) string {
		d := sha512.Sum512(append([]byte(nonce), digest64...))
		return hex.EncodeToString(d[:])
	}
	short := func(nonce string) string {
		d := sha256.Sum256(append([]byte(nonce), digest64...))
		return hex.EncodeToString(append(d[:], make([]byte, 32)...))
	}
	date := time.Date(2024, 3, 13, 0, 0, 0, 0, time.UTC)
	good := object{"hardware": 2, "runtime-opaque": 2}
	return []sample{
		{
			"MAA SNP", rsaKey, head("RS256", "m"), with(with(maa, snp), object{"x-ms-runtime": object{"nonce": b64(digest32)}}), digest32, "x-ms-runtime.nonce",
			attest.Claims{HardwareModel: "sevsnpvm", BoundToCPUTEE: true, TCB: unknown, HostData: hexOf("4a", 32), Measurements: map[string]string{"x-ms-sevsnpvm-launchmeasurement": hexOf("ab", 48)}}, "",
		},
		{
			"MAA SNP, in the report itself", rsaKey, head("RS512", "m"), with(with(maa, snp), object{"x-ms-sevsnpvm-reportdata": hex.EncodeToString(digest64)}), digest64, "x-ms-sevsnpvm-reportdata",
			attest.Claims{HardwareModel: "sevsnpvm", BoundToCPUTEE: true, TCB: unknown, HostData: hexOf("4a", 32), Measurements: map[string]string{"x-ms-sevsnpvm-launchmeasurement": hexOf("ab", 48)}}, "",
		},
		{
			"MAA Azure VM", rsaKey, head("RS256", "m"), with(maa, object{
				"x-ms-attestation-type": "azurevm", "x-ms-isolation-tee": snp,
				"x-ms-azurevm-debuggersdisabled": true, "x-ms-azurevm-kerneldebug-enabled": false, "x-ms-azurevm-hypervisordebug-enabled": false, "x-ms-azurevm-bootdebug-enabled": false,
				// The client's library encodes what it is given, here the text of a digest.
				"x-ms-runtime": object{"client-payload": object{"nonce": base64.StdEncoding.EncodeToString([]byte(b64(digest32)))}},
			}), digest32, "x-ms-runtime.client-payload.nonce",
			attest.Claims{HardwareModel: "sevsnpvm", BoundToCPUTEE: true, TCB: unknown, HostData: hexOf("4a", 32), Measurements: map[string]string{"x-ms-sevsnpvm-launchmeasurement": hexOf("ab", 48)}}, "",
		},
		{
			"MAA SGX", rsaKey, head("RS384", "m"), with(maa, object{
				"x-ms-attestation-type": "sgx", "x-ms-sgx-is-debuggable": false, "x-ms-sgx-mrenclave": hexOf("e0", 32), "x-ms-sgx-mrsigner": hexOf("51", 32), "x-ms-sgx-ehd": b64(digest64),
			}), digest64, "x-ms-sgx-ehd",
			attest.Claims{HardwareModel: "sgx", BoundToCPUTEE: true, Unstated: []string{"tcb.status"}, TCB: notStated, Measurements: map[string]string{"x-ms-sgx-mrenclave": hexOf("e0", 32), "x-ms-sgx-mrsigner": hexOf("51", 32)}}, "",
		},
		{
			"MAA TDX", rsaKey, head("RS256", "m"), with(maa, object{
				"x-ms-attestation-type": "tdxvm", "tdx_td_attributes_debug": false, "tdx_td_attributes": "0000001000000000", "tdx_mrtd": hexOf("d0", 48), "tdx_report_data": hex.EncodeToString(digest64), "attester_tcb_status": "UpToDate",
			}), digest64, "tdx_report_data",
			attest.Claims{HardwareModel: "tdxvm", BoundToCPUTEE: true, TCB: attest.TCB{Status: "UpToDate", Advisories: []string{}}, Measurements: map[string]string{"tdx_mrtd": hexOf("d0", 48)}}, "",
		},
		{
			"ITA TDX", rsaKey, head("PS384", "i"), with(ita, object{
				"attester_type": "TDX", "tdx_is_debuggable": false, "tdx_td_attributes": "0000001000000000", "dbgstat": "disabled", "tdx_mrtd": hexOf("d0", 48), "tdx_rtmr3": hexOf("33", 48), "tdx_mrconfigid": hexOf("c0", 48), "attester_held_data": base64.StdEncoding.EncodeToString(digest64), "tdx_report_data": long("inteltoday"),
				"verifier_nonce":      object{"val": base64.StdEncoding.EncodeToString([]byte("intel")), "iat": base64.StdEncoding.EncodeToString([]byte("today"))},
				"attester_tcb_status": "OutOfDate", "attester_tcb_date": "2024-03-13T00:00:00Z", "attester_advisory_ids": []string{"INTEL-SA-00586"},
			}), digest64, "attester_held_data",
			attest.Claims{HardwareModel: "TDX", BoundToCPUTEE: true, HostData: hexOf("c0", 48), TCB: attest.TCB{Status: "OutOfDate", Advisories: []string{"INTEL-SA-00586"}, Date: &date}, Measurements: map[string]string{"tdx_mrtd": hexOf("d0", 48), "tdx_rtmr3": hexOf("33", 48)}}, "",
		},
		{
			"ITA, several attesters", rsaKey, head("PS384", "i"), with(ita, object{
				"tdx":   object{"attester_type": "TDX", "tdx_is_debuggable": false, "tdx_td_attributes": "0000001000000000", "tdx_mrtd": hexOf("d0", 48), "attester_held_data": base64.StdEncoding.EncodeToString(digest64), "tdx_report_data": long(""), "attester_tcb_status": "UpToDate"},
				"nvgpu": object{"attester_type": "NVGPU"},
			}), digest64, "attester_held_data",
			attest.Claims{HardwareModel: "TDX", BoundToCPUTEE: true, TCB: attest.TCB{Status: "UpToDate", Advisories: []string{}}, Measurements: map[string]string{"tdx_mrtd": hexOf("d0", 48)}}, "",
		},
		{
			"ITA SGX", rsaKey, head("PS384", "i"), with(ita, object{
				"attester_type": "SGX", "sgx_is_debuggable": false, "sgx_mrenclave": hexOf("e0", 32), "attester_held_data": base64.StdEncoding.EncodeToString(digest64), "sgx_report_data": short(""), "attester_tcb_status": "UpToDate",
			}), digest64, "attester_held_data",
			attest.Claims{HardwareModel: "SGX", BoundToCPUTEE: true, TCB: attest.TCB{Status: "UpToDate", Advisories: []string{}}, Measurements: map[string]string{"sgx_mrenclave": hexOf("e0", 32)}}, "",
		},
		{
			"ITA, Azure TDX", rsaKey, head("PS384", "i"), with(ita, object{
				"attester_type": "TDX", "tdx_is_debuggable": false, "tdx_td_attributes_debug": false, "tdx_td_attributes": "0000001000000000", "tdx_mrtd": hexOf("d0", 48), "tdx_report_data": hexOf("77", 64), "attester_tcb_status": "UpToDate",
				"attester_held_data": base64.StdEncoding.EncodeToString(digest64), "attester_runtime_data": object{"user-data": strings.ToUpper(long(""))},
			}), digest64, "attester_held_data",
			attest.Claims{HardwareModel: "TDX", BoundToCPUTEE: true, TCB: attest.TCB{Status: "UpToDate", Advisories: []string{}}, Measurements: map[string]string{"tdx_mrtd": hexOf("d0", 48)}}, "",
		},
		{
			"ITA SEV-SNP", rsaKey, head("PS384", "i"), with(ita, object{"sevsnp": object{
				"attester_type": "SEVSNP", "sevsnp_is_debuggable": false, "sevsnp_migration_allowed": false, "sevsnp_launchmeasurement": hexOf("ab", 48), "sevsnp_hostdata": hexOf("4a", 32), "sevsnp_reportdata": hex.EncodeToString(digest64),
			}}), digest64, "sevsnp_reportdata",
			attest.Claims{HardwareModel: "SEVSNP", BoundToCPUTEE: true, HostData: hexOf("4a", 32), TCB: unknown, Measurements: map[string]string{"sevsnp_launchmeasurement": hexOf("ab", 48)}}, "",
		},
		{
			"Google TDX", rsaKey, head("RS256", "g"), space, digest48, "eat_nonce[1]",
			attest.Claims{HardwareModel: "GCP_INTEL_TDX", BoundToCPUTEE: true, Migratable: true, Unstated: []string{"migratable"}, TCB: attest.TCB{Status: "UpToDate", Advisories: []string{}, Date: &date}, Measurements: map[string]string{"image_digest": hexOf("1d", 32)}}, "",
		},
		{
			// Its memory is encrypted, but nothing attests that from outside.
			"Google SEV", rsaKey, head("RS256", "g"), with(space, object{"hwmodel": "GCP_AMD_SEV", "eat_nonce": hex.EncodeToString(digest32), "aud": []string{"others", "claviger"}}), digest32, "eat_nonce[0]",
			attest.Claims{HardwareModel: "GCP_AMD_SEV", Migratable: true, Unstated: []string{"migratable"}, TCB: unknown, Measurements: map[string]string{"image_digest": hexOf("1d", 32)}}, "",
		},
		{
			"Veraison", p256, head("ES256", "e"), with(times(), object{
				"iss": "https://ear.example", "eat_profile": "tag:github.com,2023:veraison/ear", "eat_nonce": b64(digest48),
				"submods": object{"REALM": object{"ear.status": "affirming", "ear.trustworthiness-vector": good, "ear.appraisal-policy-id": "p"}},
			}), digest48, "eat_nonce[0]",
			attest.Claims{HardwareModel: "REALM", BoundToCPUTEE: true, Migratable: true, Unstated: []string{"migratable", "tcb.status"}, TCB: notStated, Measurements: map[string]string{}}, "affirming",
		},
		{
			"draft-03 of Claviger", p256, head("ES256", "e"), with(times(), object{
				"iss": "https://ear.example", "eat_profile": "tag:ietf.org,2026:rats/ear#03", "ear_status": "affirming",
				"submods": object{"tdx": object{
					"ear_status": "affirming", "ear_trustworthiness_vector": good, "ear_appraisal_policy_ids": []string{"p"}, "eat_nonce": b64(digest64),
					"ear_claviger_annotated_evidence": object{
						"type": "tdx", "hardware_model": "TDX", "chip_id": "c1", "bound_to_cpu_tee": true, "debuggable": false, "migratable": false, "simulated": false,
						"tcb": object{"status": "UpToDate", "advisories": []string{}}, "measurements": object{"mrtd": hexOf("d0", 48)}, "host_data": "4a", "report_data": hex.EncodeToString(digest64),
					},
				}},
			}), digest64, "submods.tdx.eat_nonce",
			attest.Claims{HardwareModel: "TDX", BoundToCPUTEE: true, ChipID: "c1", HostData: "4a", TCB: attest.TCB{Status: "UpToDate", Advisories: []string{}}, Measurements: map[string]string{"tdx.mrtd": hexOf("d0", 48)}}, "affirming",
		},
		{
			"Confidential Containers", p384, object{"alg": "ES384", "typ": "JWT"}, with(times(), object{
				"eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
				"submods": object{
					"cpu0": object{
						"ear.status": "warning", "ear.trustworthiness-vector": object{"hardware": 2, "executables": 33}, "ear.appraisal-policy-id": "default",
						"ear.veraison.annotated-evidence": object{
							"snp":         object{"measurement": hexOf("ab", 48), "policy_debug_allowed": false, "policy_migrate_ma": "0", "chip_id": hexOf("c1", 64)},
							"report_data": hex.EncodeToString(digest64), "init_data": hexOf("1d", 32),
						},
					},
					"gpu0": object{"ear.status": "affirming", "ear.trustworthiness-vector": object{"hardware": 2}, "ear.veraison.annotated-evidence": object{"nvidia": object{}, "report_data": hexOf("00", 64)}},
				},
			}), digest64, "submods.cpu0.annotated-evidence.report_data",
			attest.Claims{HardwareModel: "snp", BoundToCPUTEE: true, ChipID: hexOf("c1", 64), HostData: hexOf("1d", 32), TCB: unknown, Measurements: map[string]string{"cpu0.measurement": hexOf("ab", 48)}}, "warning",
		},
		{
			"Confidential Containers, runtime data", p384, object{"alg": "ES384"}, with(times(), object{
				"submods": object{"cpu0": object{
					"ear.status": "affirming", "ear.trustworthiness-vector": object{"hardware": 2},
					"ear.veraison.annotated-evidence": object{
						"tdx":         object{"td_attributes": object{"debug": false}, "quote": object{"body": object{"mr_td": hexOf("d0", 48), "rtmr_0": hexOf("20", 48), "td_attributes": "0000001000000000"}}, "tcb_status": "UpToDate", "advisory_ids": []string{}},
						"report_data": hexOf("77", 64), "runtime_data_claims": object{"nonce": base64.StdEncoding.EncodeToString(digest32)},
					},
				}},
			}), digest32, "submods.cpu0.annotated-evidence.runtime_data_claims.nonce",
			attest.Claims{HardwareModel: "tdx", BoundToCPUTEE: true, TCB: attest.TCB{Status: "UpToDate", Advisories: []string{}}, Measurements: map[string]string{"cpu0.mr_td": hexOf("d0", 48), "cpu0.rtmr_0": hexOf("20", 48)}}, "affirming",
		},
	}
}

// named returns the sample of that name.
func named(name string) sample {
	all := samples()
	return all[slices.IndexFunc(all, func(s sample) bool { return s.name == name })]
}

// TestDialects: each dialect's claims in their normalised form, bound to a request.
func TestDialects(t *testing.T) {
	v := newVerifier(t, issuers())
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			cl, err := v.Verify(t.Context(), evidence(s.token()), attest.BindTo(transcript), nil, now)
			if err != nil {
				t.Fatal(err)
			}
			c := cl.Result.(*results.Claims)
			if c.Bound != s.bound || cl.ReportData != hex.EncodeToString(s.data) || c.Status != s.status {
				t.Errorf("bound by %q to %s, status %q", c.Bound, cl.ReportData, c.Status)
			}
			got := cl
			got.Result, got.Checks, got.ReportData = nil, nil, ""
			want := s.want
			want.Type, want.Bound, want.Collateral = attest.TypeResult, true, attest.CollateralState{State: attest.CollateralFresh}
			if g, w := string(must(json.Marshal(got))), string(must(json.Marshal(want))); g != w {
				t.Errorf("claims\n%s, want\n%s", g, w)
			}
		})
	}
}

func TestConformance(t *testing.T) {
	suite := teetest.Suite{New: func(t *testing.T) attest.Verifier { return newVerifier(t, issuers()) }, Stride: 101}
	for _, s := range samples() {
		suite.Good = append(suite.Good, teetest.Vector{
			Name: s.name, Evidence: evidence(s.token()), Now: now, ReportData: s.data,
			NotYetValid: now.Add(-time.Hour), Expired: now.Add(time.Hour),
		})
	}
	teetest.Run(t, suite)
}

// TestEveryBit: no single flipped bit of a token is accepted.
func TestEveryBit(t *testing.T) {
	v := newVerifier(t, issuers())
	token := named("Veraison").token()
	for bit := range len(token) * 8 {
		bad := slices.Clone(token)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := v.Verify(t.Context(), evidence(bad), attest.Unbound(), nil, now); err == nil {
			t.Errorf("bit %d flipped: accepted", bit)
		}
	}
}

func wantError(t *testing.T, err error, check string, r attest.Reason) {
	t.Helper()
	e, ok := errors.AsType[*attest.Error](err)
	if !ok || e.Check != check || e.Reason != r {
		t.Errorf("got %v, want %s: %s", err, check, r)
	}
}

func spki(k crypto.PublicKey) []byte { return must(x509.MarshalPKIXPublicKey(k)) }

func TestAttacks(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(must(json.Marshal(object{"keys": []object{jwkRSA(&otherRSA.PublicKey, "other")}})))
	}))
	defer server.Close()
	maa, google := named("MAA SNP"), named("Google TDX")
	ear := named("Veraison")
	root, leaf := authority("attacker")
	sum := func(key any, h object) []byte { return sign(key, h, maa.claims) }
	edit := func(s sample, more object) []byte { return sign(s.key, s.head, with(s.claims, more)) }
	without := func(s sample, names ...string) []byte {
		c := maps.Clone(s.claims)
		for _, n := range names {
			delete(c, n)
		}
		return sign(s.key, s.head, c)
	}
	raw := func(payload string) []byte { return signRaw(maa.key, maa.head, []byte(payload)) }
	for name, tc := range map[string]struct {
		token  []byte
		check  string
		reason attest.Reason
	}{
		"alg none":                        {sum(nil, head("none", "m")), "result.header", attest.ReasonUnsupported},
		"alg none, capitals":              {sum(nil, head("nOnE", "m")), "result.header", attest.ReasonUnsupported},
		"alg missing":                     {sum(nil, object{"kid": "m"}), "result.header", attest.ReasonUnsupported},
		"HMAC with the public key":        {sum(spki(rsaKey.Public()), head("HS256", "m")), "result.header", attest.ReasonUnsupported},
		"HMAC with the modulus":           {sum(rsaKey.N.Bytes(), head("HS256", "m")), "result.header", attest.ReasonUnsupported},
		"EdDSA":                           {sum(nil, head("EdDSA", "m")), "result.header", attest.ReasonUnsupported},
		"an EC algorithm for an RSA key":  {sum(p256, head("ES256", "m")), "result.key", attest.ReasonChain},
		"an RSA algorithm for an EC key":  {sign(rsaKey, head("RS256", "e"), ear.claims), "result.key", attest.ReasonChain},
		"another curve":                   {sign(p384, head("ES384", "e"), ear.claims), "result.key", attest.ReasonChain},
		"an algorithm that is not pinned": {sign(rsaKey, head("RS384", "g"), google.claims), "result.key", attest.ReasonChain},
		"PSS where PKCS #1 is said":       {otherPadding(maa), "result.signature", attest.ReasonSignature},
		"another's key":                   {sum(otherRSA, head("RS256", "m")), "result.signature", attest.ReasonSignature},
		"kid of another issuer":           {sum(rsaKey, head("RS256", "g")), "result.key", attest.ReasonChain},
		"kid unknown":                     {sum(rsaKey, head("RS256", "x")), "result.key", attest.ReasonChain},
		"kid empty":                       {sum(rsaKey, head("RS256", "")), "result.key", attest.ReasonChain},
		"kid missing":                     {sum(rsaKey, object{"alg": "RS256"}), "result.key", attest.ReasonChain},
		"kid a number":                    {sum(rsaKey, object{"alg": "RS256", "kid": 7}), "result.format", attest.ReasonMalformed},
		"jku":                             {sum(otherRSA, with(head("RS256", "other"), object{"jku": server.URL})), "result.key", attest.ReasonChain},
		"jku with a kid that is pinned":   {sum(otherRSA, with(head("RS256", "m"), object{"jku": server.URL})), "result.signature", attest.ReasonSignature},
		"x5u":                             {sum(otherRSA, with(head("RS256", "other"), object{"x5u": server.URL})), "result.key", attest.ReasonChain},
		"jwk":                             {sum(otherRSA, object{"alg": "RS256", "jwk": jwkRSA(&otherRSA.PublicKey, "")}), "result.key", attest.ReasonChain},
		"x5c to no pinned root":           {sum(otherRSA, object{"alg": "RS256", "kid": "m", "x5c": []string{leaf, root}}), "result.signature", attest.ReasonSignature},
		"crit":                            {sum(rsaKey, with(head("RS256", "m"), object{"crit": []string{"exp"}})), "result.header", attest.ReasonUnsupported},
		"crit, empty":                     {sum(rsaKey, with(head("RS256", "m"), object{"crit": []string{}})), "result.header", attest.ReasonUnsupported},
		"an access token":                 {sum(rsaKey, with(head("RS256", "m"), object{"typ": "at+jwt"})), "result.header", attest.ReasonUnsupported},
		"a header's member twice":         {doubled(maa), "result.format", attest.ReasonMalformed},
		"issuer unknown":                  {edit(maa, object{"iss": "https://maa.example/"}), "result.issuer", attest.ReasonChain},
		"issuer a number":                 {edit(maa, object{"iss": 1}), "result.issuer", attest.ReasonChain},
		"issuer empty":                    {edit(ear, object{"iss": ""}), "result.issuer", attest.ReasonChain},
		"issuer another of ours":          {edit(maa, object{"iss": "https://ear.example"}), "result.key", attest.ReasonChain},
		"expired":                         {edit(maa, object{"exp": now.Unix() - 31}), "result.validity", attest.ReasonValidity},
		"not yet":                         {edit(maa, object{"nbf": now.Unix() + 31}), "result.validity", attest.ReasonValidity},
		"issued in the future":            {edit(maa, object{"iat": now.Unix() + 31}), "result.validity", attest.ReasonValidity},
		"issued long ago":                 {edit(maa, object{"iat": now.Unix() - 331}), "result.validity", attest.ReasonValidity},
		"no iat":                          {without(maa, "iat"), "result.validity", attest.ReasonValidity},
		"exp a string":                    {edit(maa, object{"exp": "4000000000"}), "result.validity", attest.ReasonValidity},
		"exp past all time":               {edit(maa, object{"exp": 1e300}), "result.validity", attest.ReasonValidity},
		"another audience":                {edit(google, object{"aud": "others"}), "result.audience", attest.ReasonMismatch},
		"no audience":                     {without(google, "aud"), "result.audience", attest.ReasonMismatch},
		"unbound":                         {without(maa, "x-ms-runtime"), "result.binding", attest.ReasonBinding},
		"unbound, Google":                 {without(google, "eat_nonce"), "result.binding", attest.ReasonBinding},
		// Who asks Azure for a token can have any nonce repeated, for whatever evidence he brings.
		"a nonce that is repeated only":  {edit(maa, object{"x-ms-runtime": object{}, "nonce": b64(digest32), "x-ms-nonce": b64(digest32)}), "result.binding", attest.ReasonBinding},
		"held data that no report holds": {edit(named("ITA TDX"), object{"tdx_report_data": hexOf("00", 64)}), "result.binding", attest.ReasonBinding},
		"held data, another nonce":       {edit(named("ITA TDX"), object{"verifier_nonce": object{}}), "result.binding", attest.ReasonBinding},
		"a digest cut short":             {edit(google, object{"eat_nonce": b64(digest64[:32])}), "result.binding", attest.ReasonBinding},
		"a digest and more":              {edit(google, object{"eat_nonce": b64(append(slices.Clone(digest48), 0))}), "result.binding", attest.ReasonBinding},
		"another request's":              {edit(google, object{"eat_nonce": b64(make([]byte, 48))}), "result.binding", attest.ReasonBinding},
		"no appraisal":                   {edit(maa, object{"x-ms-attestation-type": "tpm"}), "result.claims", attest.ReasonMalformed},
		"no status":                      {edit(ear, object{"submods": object{"a": object{}}}), "result.claims", attest.ReasonMalformed},
		"two statuses":                   {edit(ear, object{"submods": object{"a": object{"ear_status": "affirming", "ear.status": "contraindicated"}}}), "result.claims", attest.ReasonMalformed},
		"no submods":                     {edit(ear, object{"submods": object{}}), "result.claims", attest.ReasonMalformed},
		"a vector of words":              {edit(ear, object{"submods": object{"a": object{"ear_status": "affirming", "ear_trustworthiness_vector": object{"hardware": "2"}}}}), "result.claims", attest.ReasonMalformed},
		"deep JSON":                      {raw(`{"a":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + "}"), "result.format", attest.ReasonMalformed},
		"wide JSON":                      {raw(`{"a":[` + strings.Repeat("1,", 8000) + "1]}"), "result.format", attest.ReasonMalformed},
		"oversized":                      {raw(`{"a":"` + strings.Repeat("a", attest.MaxReportSize) + `"}`), "result.format", attest.ReasonMalformed},
		"a claim twice":                  {raw(`{"iss":"https://maa.example","iss":"https://maa.example"}`), "result.format", attest.ReasonMalformed},
		"a claim twice, escaped":         {raw(`{"iss":"https://maa.example","\u0069ss":"https://maa.example"}`), "result.format", attest.ReasonMalformed},
		"NUL in a claim's name":          {raw(`{"iss":"https://maa.example","exp\u0000":1}`), "result.format", attest.ReasonMalformed},
		"half a surrogate pair":          {raw(`{"iss":"\ud800"}`), "result.format", attest.ReasonMalformed},
		"invalid UTF-8":                  {raw("{\"iss\":\"\xff\"}"), "result.format", attest.ReasonMalformed},
		"alg in another case":            {sum(rsaKey, with(head("RS256", "m"), object{"Alg": "none"})), "result.format", attest.ReasonMalformed},
		"crit in another case":           {sum(rsaKey, with(head("RS256", "m"), object{"Crit": nil})), "result.format", attest.ReasonMalformed},
		"b64":                            {sum(rsaKey, with(head("RS256", "m"), object{"b64": false})), "result.format", attest.ReasonMalformed},
		"a list":                         {raw(`[]`), "result.format", attest.ReasonMalformed},
		"two documents":                  {raw(`{}{}`), "result.format", attest.ReasonMalformed},
		"no JSON":                        {raw(`{`), "result.format", attest.ReasonMalformed},
		"a line end":                     {append(maa.token(), '\n'), "result.format", attest.ReasonMalformed},
		"padding":                        {append(maa.token(), '='), "result.format", attest.ReasonMalformed},
		"an encrypted token":             {[]byte("e30.e30.e30.e30.e30"), "result.format", attest.ReasonMalformed},
		"JSON serialization":             {[]byte(`{"payload":"e30","signatures":[]}`), "result.format", attest.ReasonMalformed},
		"no signature":                   {maa.token()[:strings.LastIndex(string(maa.token()), ".")+1], "result.signature", attest.ReasonSignature},
	} {
		t.Run(name, func(t *testing.T) {
			cl, err := newVerifier(t, issuers()).Verify(t.Context(), evidence(tc.token), attest.BindTo(transcript), nil, now)
			wantError(t, err, tc.check, tc.reason)
			if n := len(cl.Checks); n == 0 || cl.Checks[n-1].Outcome != attest.Failed || cl.Checks[n-1].Name != tc.check {
				t.Errorf("checks %+v do not end with %s", cl.Checks, tc.check)
			}
		})
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d requests were made to a place that a token named", n)
	}
}

// otherPadding is a token whose header says RS256, with a signature for PS256.
func otherPadding(s sample) []byte {
	in := b64(must(json.Marshal(head("RS256", "m")))) + "." + b64(must(json.Marshal(s.claims)))
	sum := sha256.Sum256([]byte(in))
	return []byte(in + "." + b64(must(rsa.SignPSS(rand.Reader, rsaKey, crypto.SHA256, sum[:], nil))))
}

// doubled is a token whose header has alg twice.
func doubled(s sample) []byte {
	in := b64([]byte(`{"alg":"none","kid":"m","alg":"RS256"}`)) + "." + b64(must(json.Marshal(s.claims)))
	sum := sha256.Sum256([]byte(in))
	return []byte(in + "." + b64(must(rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, sum[:]))))
}

func jwkRSA(k *rsa.PublicKey, kid string) object {
	o := object{"kty": "RSA", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}
	if kid != "" {
		o["kid"] = kid
	}
	return o
}

// TestWeakClaims: what a token does not state is not assumed.
func TestWeakClaims(t *testing.T) {
	v := newVerifier(t, issuers())
	for name, tc := range map[string]struct {
		s     sample
		more  object
		check func(attest.Claims) bool
	}{
		"MAA, debug":               {named("MAA SNP"), object{"x-ms-sevsnpvm-is-debuggable": true}, func(c attest.Claims) bool { return c.Debuggable }},
		"MAA, debug not stated":    {named("MAA SNP"), object{"x-ms-sevsnpvm-is-debuggable": nil}, func(c attest.Claims) bool { return c.Debuggable }},
		"MAA, kernel debug":        {named("MAA Azure VM"), object{"x-ms-azurevm-kerneldebug-enabled": true}, func(c attest.Claims) bool { return c.Debuggable }},
		"ITA, debug":               {named("ITA TDX"), object{"tdx_is_debuggable": true}, func(c attest.Claims) bool { return c.Debuggable }},
		"ITA, debug in attributes": {named("ITA TDX"), object{"tdx_td_attributes_debug": true}, func(c attest.Claims) bool { return c.Debuggable }},
		"ITA, dbgstat":             {named("ITA TDX"), object{"dbgstat": "enabled"}, func(c attest.Claims) bool { return c.Debuggable }},
		"Google, debug":            {named("Google TDX"), object{"dbgstat": "enabled"}, func(c attest.Claims) bool { return c.Debuggable }},
		"Google, no debug":         {named("Google TDX"), object{"dbgstat": nil}, func(c attest.Claims) bool { return c.Debuggable }},
		"Google, shielded":         {named("Google TDX"), object{"hwmodel": "GCP_SHIELDED_VM"}, func(c attest.Claims) bool { return !c.BoundToCPUTEE }},
		"Google, another image":    {named("Google TDX"), object{"swname": "GCE"}, func(c attest.Claims) bool { return len(c.Measurements) == 0 }},
		"Google, a TCB nobody has": {named("Google TDX"), object{"tdx": object{"gcp_attester_tcb_status": "Fine"}}, func(c attest.Claims) bool { return c.TCB.Status == "Fine" }},
		"EAR, contraindicated": {named("Veraison"), object{"submods": object{"R": object{"ear.status": "contraindicated", "ear.trustworthiness-vector": object{"hardware": 2, "runtime-opaque": 2}}}}, func(c attest.Claims) bool {
			return !c.BoundToCPUTEE && c.Result.(*results.Claims).Status == "contraindicated"
		}},
		"EAR, another hardware": {named("Veraison"), object{"submods": object{"R": object{"ear.status": "affirming", "ear.trustworthiness-vector": object{"hardware": 97, "runtime-opaque": 2}}}}, func(c attest.Claims) bool { return !c.BoundToCPUTEE }},
		"EAR, readable memory":  {named("Veraison"), object{"submods": object{"R": object{"ear.status": "affirming", "ear.trustworthiness-vector": object{"hardware": 2, "runtime-opaque": 96}}}}, func(c attest.Claims) bool { return !c.BoundToCPUTEE && c.Debuggable }},
		"EAR, the sample attester": {named("Confidential Containers, runtime data"), object{"submods": object{"cpu0": object{"ear.status": "affirming", "ear.trustworthiness-vector": object{"hardware": 2}, "ear.veraison.annotated-evidence": object{"sample": object{}, "report_data": hex.EncodeToString(digest64)}}}}, func(c attest.Claims) bool {
			return c.Simulated && !c.BoundToCPUTEE
		}},
	} {
		cl, err := v.Verify(t.Context(), evidence(sign(tc.s.key, tc.s.head, with(tc.s.claims, tc.more))), attest.BindTo(transcript), nil, now)
		if err != nil || !tc.check(cl) {
			t.Errorf("%s: %v, %+v", name, err, cl)
		}
	}
	// Numbers that not every reader takes for the same are strings.
	s := named("Google TDX")
	cl, err := v.Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, object{"big": json.Number("9007199254740993"), "small": 7, "huge": json.Number("1e400")}))), attest.BindTo(transcript), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	token := cl.Result.(*results.Claims).Token
	if token["big"] != "9007199254740993" || token["huge"] != "1e400" || token["small"] != json.Number("7") {
		t.Errorf("numbers %v, %v, %v", token["big"], token["huge"], token["small"])
	}
}

// TestNonceOfEAR: a top-level nonce counts only where the operator says that the verifier compares it with the evidence.
func TestNonceOfEAR(t *testing.T) {
	cfg, s := issuers(), named("Veraison")
	cfg.Issuers[0].NonceAttested = false
	_, err := newVerifier(t, cfg).Verify(t.Context(), evidence(s.token()), attest.BindTo(transcript), nil, now)
	wantError(t, err, "result.binding", attest.ReasonBinding)
}

// TestTwoCPUs: a token is about one machine.
func TestTwoCPUs(t *testing.T) {
	v, s := newVerifier(t, issuers()), named("Veraison")
	one := s.claims["submods"].(object)["REALM"]
	_, err := v.Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, object{"submods": object{"a": one, "b": one}}))), attest.BindTo(transcript), nil, now)
	wantError(t, err, "result.claims", attest.ReasonMalformed)
}

// TestOff: without configuration nothing is believed, and the check says so.
func TestOff(t *testing.T) {
	_, err := newVerifier(t, results.Config{}).Verify(t.Context(), evidence(named("MAA SNP").token()), attest.BindTo(transcript), nil, now)
	wantError(t, err, "result.issuer", attest.ReasonChain)
	if err == nil || !strings.Contains(err.Error(), "evidence.results") {
		t.Errorf("%v does not name the setting", err)
	}
}

// authority is a root and a leaf for otherRSA under it, as items of x5c.
func authority(name string) (root, leaf string) {
	ca := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, ca.Public(), ca))
	issued := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name + "'s leaf"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	low := must(x509.CreateCertificate(rand.Reader, issued, must(x509.ParseCertificate(der)), otherRSA.Public(), ca))
	return base64.StdEncoding.EncodeToString(der), base64.StdEncoding.EncodeToString(low)
}

// huge is a certificate for an RSA key of 16384 bits.
func huge() string {
	ca := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ours"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	n := new(big.Int).SetBit(big.NewInt(1), 16383, 1)
	return base64.StdEncoding.EncodeToString(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &rsa.PublicKey{N: n, E: 65537}, ca)))
}

// TestChains: tokens with their chain, to a pinned root.
func TestChains(t *testing.T) {
	root, leaf := authority("ours")
	foreignRoot, foreignLeaf := authority("ours") // the same name, another key
	s := named("Google TDX")
	cfg := results.Config{Issuers: []results.Issuer{{
		Name: "google", Dialect: results.Google, URL: s.claims["iss"].(string), MaxAge: 48 * time.Hour,
		Roots: []*x509.Certificate{must(x509.ParseCertificate(must(base64.StdEncoding.DecodeString(root))))},
	}}}
	late := now.Add(2 * time.Hour)
	still := with(s.claims, object{"exp": late.Unix() + 60})
	url := func(std string) string { return b64(must(base64.StdEncoding.DecodeString(std))) }
	for name, tc := range map[string]struct {
		key    any
		head   object
		at     time.Time
		check  string
		reason attest.Reason
	}{
		"good":                  {otherRSA, object{"alg": "RS256", "x5c": []string{leaf, root}}, now, "", ""},
		"without the root":      {otherRSA, object{"alg": "RS256", "x5c": []string{leaf}}, now, "", ""},
		"in a JWK":              {otherRSA, object{"alg": "RS256", "jwk": with(jwkRSA(&otherRSA.PublicKey, ""), object{"x5c": []string{url(leaf), url(root)}})}, now, "", ""},
		"in a JWK of another":   {otherRSA, object{"alg": "RS256", "jwk": with(jwkRSA(&rsaKey.PublicKey, ""), object{"x5c": []string{leaf, root}})}, now, "result.key", attest.ReasonChain},
		"beside another JWK":    {otherRSA, object{"alg": "RS256", "jwk": jwkRSA(&rsaKey.PublicKey, ""), "x5c": []string{leaf, root}}, now, "result.key", attest.ReasonChain},
		"signed by another":     {rsaKey, object{"alg": "RS256", "x5c": []string{leaf, root}}, now, "result.signature", attest.ReasonSignature},
		"another root":          {otherRSA, object{"alg": "RS256", "x5c": []string{foreignLeaf, foreignRoot}}, now, "result.key", attest.ReasonChain},
		"another root, ours to": {otherRSA, object{"alg": "RS256", "x5c": []string{foreignLeaf, foreignRoot, root}}, now, "result.key", attest.ReasonChain},
		"no chain":              {otherRSA, object{"alg": "RS256", "kid": "m"}, now, "result.key", attest.ReasonChain},
		"an EC algorithm":       {p256, object{"alg": "ES256", "x5c": []string{leaf, root}}, now, "result.key", attest.ReasonChain},
		"expired":               {otherRSA, object{"alg": "RS256", "x5c": []string{leaf, root}}, late, "result.key", attest.ReasonValidity},
		"no certificate":        {otherRSA, object{"alg": "RS256", "x5c": []string{"AAAA"}}, now, "result.key", attest.ReasonChain},
		"a huge key":            {otherRSA, object{"alg": "RS256", "x5c": []string{leaf, huge()}}, now, "result.key", attest.ReasonChain},
		"too many":              {otherRSA, object{"alg": "RS256", "x5c": []string{leaf, root, root, root, root, root, root}}, now, "result.key", attest.ReasonChain},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVerifier(t, cfg)
			if _, err := v.Verify(t.Context(), evidence(sign(otherRSA, object{"alg": "RS256", "x5c": []string{leaf, root}}, still)), attest.BindTo(transcript), nil, now); err != nil {
				t.Fatal(err) // what is remembered must change nothing
			}
			for range 2 {
				_, err := v.Verify(t.Context(), evidence(sign(tc.key, tc.head, still)), attest.BindTo(transcript), nil, tc.at)
				if tc.check == "" && err != nil {
					t.Error(err)
				} else if tc.check != "" {
					wantError(t, err, tc.check, tc.reason)
				}
			}
		})
	}
}

func TestConfig(t *testing.T) {
	for field, spoil := range map[string]func(*results.Config){
		"(): name:":                           func(c *results.Config) { c.Issuers[0].Name = "" },
		"issuer 1 (ear): name:":               func(c *results.Config) { c.Issuers[1].Name = "ear" },
		"dialect:":                            func(c *results.Config) { c.Issuers[0].Dialect = "x" },
		"issuer 2 (maa): issuer: missing":     func(c *results.Config) { c.Issuers[2].URL = "" },
		"issuer: \"https://ear.example\"":     func(c *results.Config) { c.Issuers[2].URL = "https://ear.example" },
		"jwks:":                               func(c *results.Config) { c.Issuers[0].Keys = nil },
		"max_age:":                            func(c *results.Config) { c.Issuers[0].MaxAge = -1 },
		"issuer 2 (maa): nonce_attested: is ": func(c *results.Config) { c.Issuers[2].NonceAttested = true },
	} {
		c := issuers()
		spoil(&c)
		if _, err := results.New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestParseKeys: a key set has public keys for signatures, and nothing else.
func TestParseKeys(t *testing.T) {
	ok := jwkRSA(&rsaKey.PublicKey, "a")
	set := func(keys ...object) []byte { return must(json.Marshal(object{"keys": keys})) }
	keys, err := results.ParseKeys(set(ok, with(ok, object{"kid": "b", "use": "sig", "alg": "PS256"})))
	if err != nil || len(keys) != 2 || keys[0].ID != "a" || keys[1].Algorithm != "PS256" || !rsaKey.PublicKey.Equal(keys[0].Public) {
		t.Fatalf("%v, %v", keys, err)
	}
	for name, b := range map[string][]byte{
		"none":          set(),
		"no JSON":       []byte("{"),
		"twice":         set(ok, ok),
		"keys twice":    bytes.Replace(set(ok), []byte(`{"keys":`), []byte(`{"keys":[],"keys":`), 1),
		"other case":    bytes.Replace(set(ok), []byte(`"keys"`), []byte(`"Keys"`), 1),
		"kid twice":     bytes.Replace(set(ok), []byte(`"kid":`), []byte(`"kid":"x","kid":`), 1),
		"trailing":      append(set(ok), "{}"...),
		"for encrypt":   set(with(ok, object{"use": "enc"})),
		"a private key": set(with(ok, object{"d": b64(rsaKey.D.Bytes())})),
		"a secret":      set(object{"kty": "oct", "k": "AAAA", "kid": "a"}),
		"Ed25519":       set(object{"kty": "OKP", "crv": "Ed25519", "x": b64(digest32), "kid": "a"}),
		"off the curve": set(object{"kty": "EC", "crv": "P-256", "x": b64(digest32), "y": b64(digest32), "kid": "a"}),
		"1024 bits":     set(jwkRSA(&must(rsa.GenerateKey(rand.Reader, 1024)).PublicKey, "a")),
		"HS256":         set(with(ok, object{"alg": "HS256"})),
		"another type":  set(with(ok, object{"alg": "ES256"})),
		"too big":       []byte(strings.Repeat(" ", 1<<20)),
	} {
		if _, err := results.ParseKeys(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A short key may stand in a set as a certificate, and verifies nothing.
	short := must(rsa.GenerateKey(rand.Reader, 1024))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, short.Public(), short))
	s, cfg := named("MAA SNP"), issuers()
	cfg.Issuers[2].Keys = must(results.ParseKeys(set(object{"kty": "RSA", "kid": "m", "x5c": []string{base64.StdEncoding.EncodeToString(der)}})))
	_, err = newVerifier(t, cfg).Verify(t.Context(), evidence(sign(short, s.head, s.claims)), attest.BindTo(transcript), nil, now)
	wantError(t, err, "result.key", attest.ReasonChain)
	for _, b := range []string{"", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"} {
		if _, err := results.ParseRoots([]byte(b)); err == nil {
			t.Errorf("roots %q: accepted", b)
		}
	}
}

// FuzzVerify: whatever the bytes, no panic, and nothing is believed that was not signed.
func FuzzVerify(f *testing.F) {
	v := newVerifier(f, issuers())
	signed := map[string]bool{}
	for _, s := range samples() {
		b := s.token()
		signed[string(b)] = true
		f.Add(b)
	}
	f.Add([]byte("e30.e30."))
	f.Add([]byte("eyJhbGciOiJub25lIn0.e30."))
	f.Fuzz(func(t *testing.T, token []byte) {
		_, err := v.Verify(t.Context(), evidence(token), attest.Unbound(), nil, now)
		if err == nil && !signed[string(token)] {
			t.Errorf("a forged token was believed: %s", token)
		}
		if err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Errorf("refused without a reason: %v", err)
		}
	})
}

// FuzzClaims: whatever an issuer signs, no panic; what is believed is JSON, and
// bound only if one of the digests of the request is in it.
func FuzzClaims(f *testing.F) {
	cfg := issuers()
	for i := range cfg.Issuers {
		cfg.Issuers[i].Keys = []results.PinnedKey{{ID: "k", Public: p256.Public()}}
	}
	v := newVerifier(f, cfg)
	for _, s := range samples() {
		f.Add(must(json.Marshal(s.claims)))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		token := evidence(signRaw(p256, head("ES256", "k"), payload))
		cl, err := v.Verify(t.Context(), token, attest.BindTo(transcript), nil, now)
		if err == nil && !slices.Contains([]string{hex.EncodeToString(digest64), hex.EncodeToString(digest48), hex.EncodeToString(digest32)}, cl.ReportData) {
			t.Errorf("bound by %s", cl.ReportData)
		}
		if err != nil && attest.ReasonOf(err) == attest.ReasonInternal {
			t.Errorf("refused without a reason: %v", err)
		}
		if cl, err = v.Verify(t.Context(), token, attest.Unbound(), nil, now); err != nil {
			return
		}
		if _, err := json.Marshal(cl); err != nil || cl.Bound {
			t.Errorf("unbound: %v, %v", cl.Bound, err)
		}
	})
}

// benchSamples are tokens by the kind of their signature.
var benchSamples = []struct {
	name, sample string
	signature    benchtest.Signature
}{{"RS256", "Google TDX", benchtest.RSA2048}, {"ES256", "Veraison", benchtest.P256}}

func BenchmarkVerify(b *testing.B) {
	v := newVerifier(b, issuers())
	for _, s := range benchSamples {
		ev := evidence(named(s.sample).token())
		b.Run(s.name, func(b *testing.B) {
			benchtest.Loop(b, func() error {
				_, err := v.Verify(b.Context(), ev, attest.BindTo(transcript), nil, now)
				return err
			})
		})
	}
}

// BenchmarkFloor: the token's signature. The issuer's keys are configured, so cold is warm.
func BenchmarkFloor(b *testing.B) {
	for _, s := range benchSamples {
		b.Run(s.name, func(b *testing.B) { benchtest.Floor(b, s.signature) })
	}
}

func unb64(s string) []byte { return must(base64.RawURLEncoding.DecodeString(s)) }

func p256Equal(a, b crypto.PublicKey) bool {
	k, ok := a.(*ecdsa.PublicKey)
	return ok && k.Equal(b)
}

// TestMigrationAllowed: Microsoft says that an agent may take the guest's memory elsewhere, in whatever form.
func TestMigrationAllowed(t *testing.T) {
	const claim = "x-ms-sevsnpvm-migration-allowed"
	for _, tc := range []struct {
		value any
		want  bool
	}{{true, true}, {"true", true}, {1, true}, {false, false}} {
		s := named("MAA SNP")
		c, err := newVerifier(t, issuers()).Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, object{claim: tc.value}))), attest.BindTo(transcript), nil, now)
		if err != nil || c.Migratable != tc.want {
			t.Errorf("%v: migratable %v, %v", tc.value, c.Migratable, err)
		}
	}
}

// TestOneMachine: of several parts, none's good word covers for another's bad one. cpu0 is a debug guest with the
// good measurement, which the verifier advises against, and cpu1 the guest that asks.
func TestOneMachine(t *testing.T) {
	s, v := named("Confidential Containers"), newVerifier(t, issuers())
	cpu := func(status, measurement, chip string, reportData []byte, more object) object {
		return object{
			"ear.status": status, "ear.trustworthiness-vector": object{"hardware": 2, "executables": 3},
			"ear.veraison.annotated-evidence": object{
				"snp":         with(object{"measurement": hexOf(measurement, 48), "policy_debug_allowed": false, "policy_migrate_ma": false, "chip_id": hexOf(chip, 64)}, more),
				"report_data": hex.EncodeToString(reportData),
			},
		}
	}
	mine := cpu("affirming", "66", "c1", digest64, nil)
	for name, tc := range map[string]struct {
		other object
		check func(attest.Claims) bool
	}{
		"debug":      {cpu("contraindicated", "ab", "c0", make([]byte, 64), object{"policy_debug_allowed": true}), func(c attest.Claims) bool { return c.Debuggable }},
		"migratable": {cpu("contraindicated", "ab", "c0", make([]byte, 64), object{"policy_migrate_ma": "1"}), func(c attest.Claims) bool { return c.Migratable }},
		"unstated": {cpu("contraindicated", "ab", "c0", make([]byte, 64), object{"policy_debug_allowed": nil}), func(c attest.Claims) bool {
			return slices.Equal(c.Unstated, []string{"debuggable"})
		}},
		"not genuine": {cpu("contraindicated", "ab", "c0", make([]byte, 64), nil), func(c attest.Claims) bool { return !c.Debuggable }},
	} {
		for _, order := range [][2]string{{"cpu0", "cpu1"}, {"cpu1", "cpu0"}} {
			c, err := v.Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, object{"submods": object{order[0]: tc.other, order[1]: mine}}))), attest.BindTo(transcript), nil, now)
			if err != nil {
				t.Fatal(err)
			}
			if !tc.check(c) || c.BoundToCPUTEE || !c.Bound || c.ChipID != hexOf("c1", 64) ||
				!maps.Equal(c.Measurements, map[string]string{order[1] + ".measurement": hexOf("66", 48)}) {
				t.Errorf("%s, %s first: %+v", name, order[0], c)
			}
		}
	}
	// The request is the other part's: what is bound is not what is genuine.
	_, err := v.Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, object{"submods": object{
		"cpu0": cpu("contraindicated", "66", "c0", digest64, nil), "cpu1": cpu("affirming", "ab", "c1", make([]byte, 64), nil),
	}}))), attest.BindTo(transcript), nil, now)
	wantError(t, err, "result.binding", attest.ReasonBinding)
	// One part with the evidence of two.
	both := cpu("affirming", "66", "c1", digest64, nil)
	both["ear.veraison.annotated-evidence"].(object)["tdx"] = object{"td_attributes": object{"debug": false}}
	twice := with(mine, object{"ear_claviger_annotated_evidence": object{"bound_to_cpu_tee": true, "debuggable": false}})
	for _, part := range []object{both, twice} {
		_, err := v.Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, object{"submods": object{"cpu0": part}}))), attest.BindTo(transcript), nil, now)
		wantError(t, err, "result.claims", attest.ReasonMalformed)
	}
}

// TestUnstated: what a token leaves out is known to be left out, and has its worst value.
func TestUnstated(t *testing.T) {
	for _, tc := range []struct {
		name string
		more object
		want []string
	}{
		{"MAA TDX", object{"attester_tcb_status": nil}, []string{"tcb.status"}},
		{"MAA TDX", object{"attester_tcb_status": "Unknown"}, []string{"tcb.status"}},
		{"MAA TDX", object{"tdx_td_attributes": nil, "tdx_td_attributes_debug": nil}, []string{"debuggable", "migratable"}},
		{"MAA SNP", object{"x-ms-sevsnpvm-migration-allowed": nil}, []string{"migratable"}},
		{"MAA Azure VM", object{"x-ms-azurevm-kerneldebug-enabled": nil}, []string{"debuggable"}},
		{"MAA SGX", nil, []string{"tcb.status"}},
		{"ITA TDX", object{"attester_tcb_status": nil, "tdx_is_debuggable": nil}, []string{"debuggable", "tcb.status"}},
		{"ITA SGX", object{"attester_tcb_status": nil}, []string{"tcb.status"}},
		{"Google TDX", object{"tdx": nil}, []string{"migratable", "tcb.status"}},
		{"Google TDX", object{"dbgstat": nil}, []string{"debuggable", "migratable"}},
		{"ITA SEV-SNP", nil, nil},
		{"Confidential Containers", nil, nil},
	} {
		s := named(tc.name)
		c, err := newVerifier(t, issuers()).Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, tc.more))), attest.BindTo(transcript), nil, now)
		if err != nil || !slices.Equal(c.Unstated, tc.want) {
			t.Errorf("%s, %v: unstated %q, %v", tc.name, tc.more, c.Unstated, err)
		}
		for _, name := range c.Unstated {
			if worst := map[string]bool{"debuggable": c.Debuggable, "migratable": c.Migratable, "tcb.status": c.TCB.Status == attest.TCBUnstated}; !worst[name] {
				t.Errorf("%s: %s is unstated, and good", tc.name, name)
			}
		}
	}
}

// TestTDAttributes: a service TD, or the attribute, in either order of the bytes, or what is none.
func TestTDAttributes(t *testing.T) {
	s := named("MAA TDX")
	for _, tc := range []struct {
		attributes, agent string
		want              bool
	}{
		{"0000001000000000", "", false}, {"0000001000000000", hexOf("00", 48), false}, {"0000003000000000", "", true}, {"0000000020000000", "", true},
		{"0000001000000000", hexOf("ba", 48), true}, {"00000010", "", true}, {"x", "", true},
	} {
		c, err := newVerifier(t, issuers()).Verify(t.Context(), evidence(sign(s.key, s.head, with(s.claims, object{"tdx_td_attributes": tc.attributes, "tdx_mrservicetd": tc.agent}))), attest.BindTo(transcript), nil, now)
		if err != nil || c.Migratable != tc.want || c.BoundToCPUTEE == tc.want || c.Unstated != nil {
			t.Errorf("%q, %.4q: migratable %v, in a TEE %v, unstated %q, %v", tc.attributes, tc.agent, c.Migratable, c.BoundToCPUTEE, c.Unstated, err)
		}
	}
}
