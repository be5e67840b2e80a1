package psa_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/cose/cosetest"
	"github.com/claviger/claviger/broker/tee/psa"
)

const sharedDir = "../../../../shared/evidence/psa"

// shared reads a file under ../shared/evidence/psa, or skips the test.
func shared(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.FromSlash(sharedDir), path))
	if os.IsNotExist(err) {
		t.Skipf("no shared evidence: %v", err)
	} else if err != nil {
		t.Fatal(err)
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

func parsePEM(t testing.TB, b []byte) any {
	t.Helper()
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatal("not PEM")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestSharedTokens: each token that INDEX.md names under psa.
func TestSharedTokens(t *testing.T) {
	tfm := parsePEM(t, shared(t, "psatoken/tf-m/public.pem"))
	endorsed := func(file string) any {
		var e struct {
			Attributes struct {
				Key string `json:"iak-pub"`
			}
		}
		if err := json.Unmarshal(shared(t, file), &e); err != nil {
			t.Fatal(err)
		}
		return parsePEM(t, []byte(e.Attributes.Key))
	}
	veraison, old := endorsed("services/psa-iot/ta-integ-endorsements.json"), endorsed("services/psa-iot/ta-endorsements.json")
	tfmInstance := "01fa58755f658627ce5460f29b75296713248cae7ad9e2984b90280efcbcb50248"
	veraisonInstance := "01ceebae7b8927a3227e5303cf5e0f1f7b34bb542ad7250ac03fbcde36ec2f1508"
	for _, tc := range []struct {
		file, instance string
		key            any
		check          string
		reason         attest.Reason
	}{
		{file: "psatoken/tf-m/psa-2_0_0_sign1.bin", instance: tfmInstance, key: tfm},
		{file: "psatoken/tf-m/psa-iot-1_sign1.bin", instance: tfmInstance, key: tfm},
		{file: "psatoken/tf-m/psa-2_0_0_sign1.bin", instance: tfmInstance, key: veraison, check: "psa.signature", reason: attest.ReasonSignature},
		{file: "psatoken/tf-m/psa-2_0_0_mac0.bin", instance: tfmInstance, key: tfm, check: "psa.format", reason: attest.ReasonUnsupported},
		{file: "psatoken/tf-m/psa-iot-1_mac0.bin", instance: tfmInstance, key: tfm, check: "psa.format", reason: attest.ReasonUnsupported},
		{file: "services/psa-iot/psa.good.cose", instance: veraisonInstance, key: veraison},
		{file: "services/psa-iot/psaintegtoken.cbor", instance: veraisonInstance, key: veraison},
		{file: "services/psa-iot/psa-token.cbor", instance: "0107060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918", key: old},
	} {
		t.Run(tc.file, func(t *testing.T) {
			v := newVerifier(t, psa.Config{Endorsements: []arm.Endorsement{{InstanceID: unhex(t, tc.instance), Key: tc.key}}})
			cl, err := v.Verify(t.Context(), evidence(shared(t, tc.file)), attest.Unbound(), nil, now)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := cl.PSA.(*psa.Claims)
			// The private halves of all but the old key are known to be published.
			if cl.ChipID != tc.instance || cl.Simulated != (tc.key != old) || (c.KeyPublished != "") != cl.Simulated || c.LifecycleState != arm.Secured || !cl.BoundToCPUTEE {
				t.Errorf("claims %+v, %+v", cl, c)
			}
			if cl, err := v.Verify(t.Context(), evidence(shared(t, tc.file)), attest.BindExact(unhex(t, cl.ReportData)), nil, now); err != nil || !cl.Bound {
				t.Errorf("bound to its nonce: %v", err)
			}
		})
	}
}

// jsonNames are the names of psatoken's JSON form, by those of labels.
var jsonNames = map[string]string{
	"psa-client-id": "client", "psa-security-lifecycle": "lifecycle", "psa-implementation-id": "implementation", "psa-boot-seed": "seed",
	"psa-certification-reference": "certification", "psa-software-components": "components", "psa-no-software-measurements": "none",
	"psa-nonce": "nonce", "psa-instance-id": "instance", "psa-verification-service-indicator": "service",
	"measurement-type": "1", "measurement-value": "2", "version": "4", "signer-id": "5", "measurement-description": "6",
}

// TestSharedClaims: psatoken's claims, good and bad by the name of their file.
// They are JSON there; here they are encoded and signed as a device would.
func TestSharedClaims(t *testing.T) {
	shared(t, "psatoken/claims/test-token-valid-full.json")
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(sharedDir), "psatoken", "claims", "*.json"))
	if err != nil || len(files) < 25 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	// Claim sets beside tokens and for a signing tool.
	more := map[string]bool{
		"services/psa-iot/psa.good.json":                             true,
		"../cca/evcli/psa-claims-profile-1.json":                     true,
		"../cca/evcli/psa-claims-profile-2.json":                     true,
		"../cca/evcli/psa-claims-profile-2-integ.json":               true,
		"../cca/evcli/psa-claims-profile-2-without-nonce.json":       false,
		"../cca/evcli/psa-claims-profile-2-integ-without-nonce.json": false,
		"../cca/evcli/psa-claims-bad-no-implid.json":                 false,
	}
	good := map[string]bool{}
	for file, ok := range more {
		file = filepath.Join(filepath.FromSlash(sharedDir), filepath.FromSlash(file))
		files, good[file] = append(files, file), ok
	}
	decode := func(name string, v any) any {
		switch v := v.(type) {
		case float64:
			return int64(v)
		case string:
			switch name {
			case "implementation", "seed", "nonce", "instance", "2", "5":
				b, err := base64.StdEncoding.DecodeString(v)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
		}
		return v
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var doc map[string]any
			if err := json.Unmarshal(b, &doc); err != nil {
				t.Fatal(err)
			}
			members := map[string]string{psa.Profile1: "psa-profile", psa.Profile2: "eat-profile"}
			// A file is of each profile that it names, and of the first if it names none.
			of := []string{}
			for profile, member := range members {
				if doc[member] != nil {
					of = append(of, profile)
				}
			}
			switch {
			case filepath.Base(file) == "test-boot-seed-invalid-missing.json":
				// Profile 2, which it names, has an optional seed (P2ClaimsMandatoryOnly.diag has none).
				of, doc["psa-profile"] = []string{psa.Profile1}, psa.Profile1
			case filepath.Base(file) == "test-profile-invalid-missing.json":
				of = []string{psa.Profile2} // profile 1 may be missing (test-profile-valid-missing.json)
			case len(of) == 0:
				of = []string{psa.Profile1}
			}
			accepted := false
			for _, profile := range of {
				d := newDevice(t, profile)
				d.claims, d.extra = map[string]any{}, map[any]any{}
				if name := doc[members[profile]]; name != nil {
					d.claims["profile"] = name
				}
				for k, v := range doc {
					n, known := jsonNames[k]
					if _, has := labels[profile][n]; !known || !has {
						continue // of the other profile
					}
					if list, ok := v.([]any); ok {
						var out []any
						for _, c := range list {
							m := map[any]any{}
							for k, v := range c.(map[string]any) {
								n := jsonNames[k]
								m[int(n[0]-'0')] = decode(n, v)
							}
							out = append(out, m)
						}
						v = out
						if out == nil {
							v = []any{}
						}
					}
					d.claims[n] = decode(n, v)
				}
				if _, err := newVerifier(t, psa.Config{Unendorsed: true}).Verify(t.Context(), evidence(d.token(t)), attest.Unbound(), nil, now); err == nil {
					accepted = true
				} else {
					t.Logf("%s: %v", profile, err)
				}
			}
			if want := good[file] || strings.Contains(file, "-valid-"); accepted != want {
				t.Errorf("accepted %v, want %v", accepted, want)
			}
		})
	}
}

// TestSharedDiagnostic: the same source's claims in CBOR's diagnostic notation,
// which are whole tokens but for their signature.
func TestSharedDiagnostic(t *testing.T) {
	shared(t, "psatoken/claims/P1ClaimsAll.diag")
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(sharedDir), "psatoken", "claims", "*.diag"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range append(files, filepath.Join(filepath.FromSlash(sharedDir), "psatoken", "tf-m", "psa-2_0_0_claims.diag")) {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			d := newDevice(t, psa.Profile2)
			token := cosetest.Sign(t, d.key, cosetest.Encode(t, fromDiagnostic(t, b)))
			_, err = newVerifier(t, psa.Config{Unendorsed: true}).Verify(t.Context(), evidence(token), attest.Unbound(), nil, now)
			want := !strings.Contains(name, "Missing") && !strings.Contains(name, "Invalid")
			if (err == nil) != want || err != nil && !strings.HasPrefix(err.Error(), "psa.format") {
				t.Errorf("%v, want it accepted: %v", err, want)
			}
		})
	}
}

// fromDiagnostic reads as much of CBOR's diagnostic notation (RFC 8949 §8) as
// these files use, by way of JSON: a map of numbers.
func fromDiagnostic(t *testing.T, b []byte) any {
	t.Helper()
	s := regexp.MustCompile(`/ [^/\n]* /`).ReplaceAllString(string(b), "")
	s = regexp.MustCompile(`h'([0-9A-Fa-f]*)'`).ReplaceAllString(s, `"hex:$1"`)
	s = regexp.MustCompile(`([{,]\s*)(-?[0-9]+): `).ReplaceAllString(s, `$1"$2": `)
	var doc any
	if err := json.Unmarshal([]byte(s), &doc); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	var convert func(v any) any
	convert = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			m := map[any]any{}
			for k, x := range v {
				n, err := strconv.Atoi(k)
				if err != nil {
					t.Fatal(err)
				}
				m[n] = convert(x)
			}
			return m
		case []any:
			out := []any{}
			for _, x := range v {
				out = append(out, convert(x))
			}
			return out
		case float64:
			return int64(v)
		case string:
			if h, ok := strings.CutPrefix(v, "hex:"); ok {
				return unhex(t, h)
			}
		}
		return v
	}
	return convert(doc)
}
