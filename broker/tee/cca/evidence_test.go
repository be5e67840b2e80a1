package cca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/cose/cosetest"
	"github.com/claviger/claviger/broker/tee/cca"
)

const sharedDir = "../../../../shared/evidence/cca"

// shared reads a file under ../shared/evidence/cca, or skips the test.
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

type jwk struct {
	Curve string `json:"crv"`
	X     string `json:"x"`
	Y     string `json:"y"`
}

func (k jwk) parse() (*ecdsa.PublicKey, error) {
	x, err := base64.RawURLEncoding.DecodeString(k.X)
	if err != nil {
		return nil, err
	}
	y, err := base64.RawURLEncoding.DecodeString(k.Y)
	if err != nil {
		return nil, err
	}
	curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()}[k.Curve]
	return ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
}

func (k jwk) key(t testing.TB) *ecdsa.PublicKey {
	t.Helper()
	key, err := k.parse()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func parsePEM(t testing.TB, b []byte) crypto.PublicKey {
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

// anchors reads a peer's list of trust anchors.
func anchors(t testing.TB, file string) []arm.Endorsement {
	t.Helper()
	var list []struct {
		Instance       string `json:"instance-id"`
		Implementation string `json:"implementation-id"`
		Key            jwk    `json:"pkey"`
	}
	if err := json.Unmarshal(shared(t, file), &list); err != nil {
		t.Fatal(err)
	}
	var out []arm.Endorsement
	for _, a := range list {
		out = append(out, arm.Endorsement{InstanceID: unhex(t, a.Instance), ImplementationID: unhex(t, a.Implementation), Key: a.Key.key(t)})
	}
	return out
}

// TestSharedTokens: each token that INDEX.md names under cca.
func TestSharedTokens(t *testing.T) {
	const (
		emulated = "0107060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"
		veraison = "010202020202020202020202020202020202020202020202020202020202020202"
	)
	endorsed := func(instance string, key crypto.PublicKey) []arm.Endorsement {
		return []arm.Endorsement{{InstanceID: unhex(t, instance), Key: key}}
	}
	key := func(file string) crypto.PublicKey {
		var k jwk
		if err := json.Unmarshal(shared(t, file), &k); err != nil {
			t.Fatal(err)
		}
		return k.key(t)
	}
	tfRMM := parsePEM(t, shared(t, "ccatoken/tf-rmm/cca_platform.pub"))
	ta := anchors(t, "rust-ccatoken/ta.json")
	for _, tc := range []struct {
		file   string
		list   []arm.Endorsement
		check  string
		reason attest.Reason
	}{
		{file: "ccatoken/tf-rmm/cca_token.cbor", list: endorsed(emulated, tfRMM)},
		{"rust-ccatoken/cca-token-01.cbor", ta, "cca.key", attest.ReasonChain}, // of another instance
		{"rust-ccatoken/cca-token-01.cbor", endorsed(emulated, ta[0].Key), "cca.platform_signature", attest.ReasonSignature},
		{file: "rust-ccatoken/cca-token-02.cbor", list: anchors(t, "rust-ccatoken/ta-02-ok.json")},
		{"rust-ccatoken/cca-token-02.cbor", endorsed(veraison, ta[0].Key), "cca.platform_signature", attest.ReasonSignature},
		{"rust-ccatoken/bug-33-repro.cbor", anchors(t, "rust-ccatoken/ta-tfa.json"), "cca.binder", attest.ReasonChain},
		{file: "rust-ccatoken/cca-token-draft-ffm-00.cbor", list: anchors(t, "rust-ccatoken/ta-tfa.json")},
		{file: "trustee/cca/cca-example-token.cbor", list: anchors(t, "trustee/cca/tastore.json")},
		{file: "services/arm-cca/cca-good.cbor", list: endorsed(veraison, key("services/arm-cca/ec.p256.jwk"))},
		{file: "evcli/token.cbor", list: endorsed(veraison, key("evcli/ec256-pub.json"))},
		// Parsec's token holds one of CCA beside its own.
		{"services/parsec-cca/evidence.cbor", endorsed(veraison, key("services/parsec-cca/ec.p256.jwk")), "cca.format", attest.ReasonMalformed},
	} {
		t.Run(tc.file, func(t *testing.T) {
			v := newVerifier(t, cca.Config{Endorsements: tc.list})
			ev := evidence(shared(t, tc.file))
			cl, err := v.Verify(t.Context(), ev, attest.Unbound(), nil, now)
			if tc.check != "" {
				wantError(t, err, tc.check, tc.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("simulated %v (%s)", cl.Simulated, cl.CCA.(*cca.Claims).Platform.KeyPublished)
			if cl.Debuggable || !cl.BoundToCPUTEE || cl.ChipID != hex.EncodeToString(tc.list[0].InstanceID) || len(cl.Measurements) < 6 {
				t.Errorf("claims %+v", cl)
			}
			if cl, err := v.Verify(t.Context(), ev, attest.BindExact(unhex(t, cl.ReportData)), nil, now); err != nil || !cl.Bound {
				t.Errorf("bound to its challenge: %v", err)
			}
			_, err = v.Verify(t.Context(), ev, attest.BindTo(transcript), nil, now)
			wantError(t, err, "cca.binding", attest.ReasonBinding)
			// In the envelope of later releases.
			platform, realm := inner(t, ev.Report)
			if _, err := v.Verify(t.Context(), evidence(newCMWSim(t).join(t, platform, realm)), attest.Unbound(), nil, now); err != nil {
				t.Errorf("as a collection: %v", err)
			}
		})
	}
	// The bad trust anchor of cca-token-02 is bad in that it is no point: no key comes of it.
	var bad []struct {
		Key jwk `json:"pkey"`
	}
	if err := json.Unmarshal(shared(t, "rust-ccatoken/ta-02-bad.json"), &bad); err != nil {
		t.Fatal(err)
	}
	if _, err := bad[0].Key.parse(); err == nil {
		t.Error("ta-02-bad.json: a key off the curve is taken")
	}
	// What Parsec's token holds.
	parsec := shared(t, "services/parsec-cca/evidence.cbor")
	i := bytes.Index(parsec, []byte{0xd9, 0x01, 0x8f})
	v := newVerifier(t, cca.Config{Endorsements: endorsed(veraison, key("services/parsec-cca/ec.p256.jwk"))})
	if _, err := v.Verify(t.Context(), evidence(parsec[i:]), attest.Unbound(), nil, now); err != nil {
		t.Errorf("Parsec's platform token: %v", err)
	}
}

// inner takes the two byte strings out of a token under tag 399: a2, label, length of 16 bits.
func inner(t testing.TB, b []byte) (platform, realm []byte) {
	t.Helper()
	next := func(b []byte) (item, rest []byte) {
		n := int(b[4])<<8 | int(b[5])
		return b[6 : 6+n], b[6+n:]
	}
	platform, rest := next(b[4:])
	realm, rest = next(rest)
	if len(rest) != 0 || b[3] != 0xa2 {
		t.Fatal("not two byte strings")
	}
	return platform, realm
}

// TestSharedRealmClaims: rust-ccatoken's claim sets, signed here.
func TestSharedRealmClaims(t *testing.T) {
	for file, want := range map[string]bool{
		"realm-claims.cbor": true, "realm-claims+spurious-text-key.cbor": true, "realm-claims+spurious-numeric-key.cbor": true, "realm-claims-missing-challenge.cbor": false,
	} {
		accepted(t, newLegacySim(t), nil, shared(t, "rust-ccatoken/"+file), file, want)
	}
	accepted(t, newLegacySim(t), shared(t, "rust-ccatoken/platform-claims.cbor"), nil, "platform-claims.cbor", true)
}

// accepted signs claim sets as a platform would, with claims of s for one that is nil. A realm's
// signature is by another key than its claims show, so that only their form is judged.
func accepted(t *testing.T, s *sim, platform, realm []byte, name string, want bool) {
	t.Helper()
	sign := func(b []byte, key *ecdsa.PrivateKey, own []byte) []byte {
		if b == nil {
			return own
		}
		return cosetest.Sign(t, key, b)
	}
	_, err := newVerifier(t, cca.Config{Unendorsed: true}).Verify(t.Context(), evidence(s.join(t, sign(platform, s.cpak, s.platformToken(t)), sign(realm, s.rak, s.realmToken(t)))), attest.Unbound(), nil, now)
	switch {
	case want:
		wantError(t, err, "cca.binder", attest.ReasonChain)
	case err == nil || !strings.HasPrefix(err.Error(), "cca.format"):
		t.Errorf("%s: %v", name, err)
	}
}

var labels = map[string]int{
	"cca-platform-profile": profile, "cca-platform-challenge": nonce, "cca-platform-implementation-id": implementation, "cca-platform-instance-id": instance,
	"cca-platform-config": config, "cca-platform-lifecycle": lifecycle, "cca-platform-sw-components": components, "cca-platform-service-indicator": service,
	"cca-platform-hash-algo-id": hashAlgorithm,
	"cca-realm-challenge":       nonce, "cca-realm-personalization-value": personalization, "cca-realm-hash-algo-id": realmHash, "cca-realm-public-key": publicKey,
	"cca-realm-initial-measurement": initial, "cca-realm-extensible-measurements": extensible, "cca-realm-public-key-hash-algo-id": publicKeyHash,
	"measurement-type": 1, "measurement-value": 2, "version": 4, "signer-id": 5, "measurement-description": 6,
}

// bytesAt are the labels of byte strings.
var bytesAt = map[int]bool{
	nonce: true, implementation: true, instance: true, config: true, personalization: true, publicKey: true, initial: true, extensible: true, 2: true, 5: true,
}

// TestSharedClaims: ccatoken's claims, good and bad by the name of their file.
// They are JSON and CBOR diagnostic notation there; here they are encoded and signed.
func TestSharedClaims(t *testing.T) {
	shared(t, "ccatoken/claims/test-token-valid-full.json")
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(sharedDir), "ccatoken", "claims", "*"))
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	bad := regexp.MustCompile(`(?i)invalid|missing|no-sw-components`)
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var doc any
			if strings.HasSuffix(name, ".json") {
				doc = fromJSON(t, b)
			} else {
				doc = fromDiagnostic(t, b)
			}
			m := doc.(map[any]any)
			want := !bad.MatchString(name)
			if name == "test-cca-claims-all-valid.json" {
				want = false // its public key is 96 bytes that are no point
			}
			s := newLegacySim(t)
			if m[config] != nil || m[components] != nil {
				accepted(t, s, cosetest.Encode(t, m), nil, name, want)
			} else {
				accepted(t, s, nil, cosetest.Encode(t, m), name, want)
			}
		})
	}
}

func fromJSON(t *testing.T, b []byte) any {
	t.Helper()
	var doc any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	var convert func(label int, v any) any
	convert = func(label int, v any) any {
		switch v := v.(type) {
		case map[string]any:
			m := map[any]any{}
			for k, x := range v {
				if n, ok := labels[k]; ok {
					m[n] = convert(n, x)
				} else {
					m[k] = x
				}
			}
			return m
		case []any:
			out := []any{}
			for _, x := range v {
				out = append(out, convert(label, x))
			}
			return out
		case float64:
			return int64(v)
		case string:
			if bytesAt[label] {
				raw, err := base64.StdEncoding.DecodeString(v)
				if err != nil {
					return []byte(v) // a value of 49 bytes in test-sw-components-invalid-combo.json
				}
				return raw
			}
		}
		return v
	}
	return convert(0, doc)
}

// fromDiagnostic reads as much of CBOR's diagnostic notation (RFC 8949 §8) as these files use, by way of JSON.
func fromDiagnostic(t *testing.T, b []byte) any {
	t.Helper()
	s := regexp.MustCompile(`/ [^/\n]* /`).ReplaceAllString(string(b), "")
	s = regexp.MustCompile(`h'([0-9A-Fa-f]*)'`).ReplaceAllString(s, `"hex:$1"`)
	s = regexp.MustCompile(`([{,]\s*)(-?[0-9]+): `).ReplaceAllString(s, `$1"$2": `)
	s = regexp.MustCompile(`<<\s*\{`).ReplaceAllString(s, `{"embedded": true,`)
	s = strings.ReplaceAll(s, ">>", "")
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
				if n, err := strconv.Atoi(k); err == nil {
					m[n] = convert(x)
				}
			}
			if v["embedded"] != nil {
				return cosetest.Encode(t, m)
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
