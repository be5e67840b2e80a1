package brokertest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// verifierDevice asks another verifier for a token about its guest: one of the
// test's own, that writes as Google's does and vouches for whatever it is told.
type verifierDevice struct {
	key    *rsa.PrivateKey
	claims map[string]any // beside those that are always there
	change func(attest.Transcript) attest.Transcript
}

func (d verifierDevice) Evidence(_ context.Context, t attest.Transcript) (attest.Evidence, error) {
	if d.change != nil {
		t = d.change(t)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	digest, now := t.Digest48(), time.Now().Unix()
	claims := map[string]any{
		"iss": "https://verifier.example", "aud": "claviger", "iat": now, "nbf": now, "exp": now + 600,
		"hwmodel": "GCP_INTEL_TDX", "swname": "CONFIDENTIAL_SPACE", "dbgstat": "disabled-since-boot", "eat_nonce": b64(digest[:]),
		"submods": map[string]any{"container": map[string]any{"image_digest": "sha256:" + strings.Repeat("1d", 32)}},
		"tdx":     map[string]any{"gcp_attester_tcb_status": "UpToDate", "gcp_attester_tcb_date": "2024-03-13T00:00:00Z"},
	}
	maps.Copy(claims, d.claims)
	body, err := json.Marshal(claims)
	if err != nil {
		return attest.Evidence{}, err
	}
	in := b64([]byte(`{"alg":"RS256","kid":"k1","typ":"JWT"}`)) + "." + b64(body)
	sum := sha256.Sum256([]byte(in))
	sig, err := rsa.SignPKCS1v15(rand.Reader, d.key, crypto.SHA256, sum[:])
	return attest.Evidence{Type: attest.TypeResult, Report: []byte(in + "." + b64(sig))}, err
}

// TestResult: another verifier's word releases a secret only where the operator
// configured its issuer and the policy names it.
func TestResult(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	jwks, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	b := Start(t, func(c *server.Config) {
		file := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(file, jwks, 0o600); err != nil {
			t.Fatal(err)
		}
		c.Evidence.Results = []server.Result{{Name: "theirs", Dialect: "google", Issuer: "https://verifier.example", Audience: "claviger", JWKS: file}}
		for name, issuers := range map[string]string{"trusts": `{"theirs"}`, "trusts_others": `{"google"}`} {
			addPolicy(t, c, name, "package claviger.release."+name+`

import data.claviger.lib.reference
import data.claviger.lib.result

default allow := false

allow if reference.match("attestation-result", ["image_digest"])

deny contains r if some r in result.without_denials(`+issuers+`, {"migratable"})

deny contains r if some r in reference.denials("attestation-result", ["image_digest"])
`)
			c.Catalog = append(c.Catalog, server.Entry{Pattern: name + "/{vm}", Source: "local", Key: name + "/{vm}", Policy: name, CreateBytes: 32})
		}
	})
	b.putReferences(t, &pb.ReferenceSet{
		Name: "image", Type: "attestation-result", State: "active", Values: map[string]*pb.ReferenceValues{"image_digest": {Values: []string{strings.Repeat("1d", 32)}}},
	})
	good := verifierDevice{key: key}
	secrets, _ := get(t, b.clientOf(t, good), "trusts/vm-1")
	if len(secrets[0].Value) != 32 {
		t.Errorf("a key of %d bytes", len(secrets[0].Value))
	}
	b.told(t, `"evidence_type":"attestation-result"`)

	with := func(name string, v any) verifierDevice {
		return verifierDevice{key: key, claims: map[string]any{name: v}}
	}
	for _, tc := range []struct {
		name, resource, want string
		device               agent.Device
	}{
		{"the policy names another", "trusts_others/vm-1", "verifier_untrusted", good},
		{"a policy for hardware", "disks/vm-1", `"rule":"attestation_result"`, good},
		{"another key", "trusts/vm-1", "result.signature", verifierDevice{key: other}},
		{"another issuer", "trusts/vm-1", "result.issuer", with("iss", "https://elsewhere.example")},
		{"for another audience", "trusts/vm-1", "result.audience", with("aud", "others")},
		{"expired", "trusts/vm-1", "result.validity", with("exp", time.Now().Add(-time.Hour).Unix())},
		{"debugged", "trusts/vm-1", `"rule":"debuggable"`, with("dbgstat", "enabled")},
		{"another image", "trusts/vm-1", "image_digest_unknown", with("submods", map[string]any{"container": map[string]any{"image_digest": "sha256:" + strings.Repeat("2e", 32)}})},
		{"bound to nothing", "trusts/vm-1", "result.binding", with("eat_nonce", "a nonce of their own choice")},
		{"made for another request", "trusts/vm-1", "result.binding", verifierDevice{key: key, change: func(t attest.Transcript) attest.Transcript {
			t.Resources = []string{"trusts/vm-2"}
			return t
		}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			denied(t, b.clientOf(t, tc.device), tc.resource)
			b.told(t, tc.want)
		})
	}
}
