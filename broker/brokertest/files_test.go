package brokertest

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestTrustFilesAreReread: a file that says whose evidence is believed counts as
// it is now, without a restart: for new requests and for what runs. One that
// cannot be used changes nothing and shows in the status.
func TestTrustFilesAreReread(t *testing.T) {
	var keys []*rsa.PrivateKey
	for range 2 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	file := filepath.Join(t.TempDir(), "jwks.json")
	write := func(k *rsa.PrivateKey) {
		b64 := base64.RawURLEncoding.EncodeToString
		jwks, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes()),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, jwks, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(keys[0])
	b := Start(t, func(c *server.Config) {
		c.Evidence.Results = []server.Result{{Name: "theirs", Dialect: "google", Issuer: "https://verifier.example", Audience: "claviger", JWKS: file}}
		addPolicy(t, c, "trusts", `package claviger.release.trusts

import data.claviger.lib.reference
import data.claviger.lib.result

default allow := false

allow if reference.match("attestation-result", ["image_digest"])

deny contains r if some r in result.without_denials({"theirs"}, {"migratable"})
`)
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "trusts/{vm}", Source: "local", Key: "trusts/{vm}", Policy: "trusts", CreateBytes: 32})
	})
	b.putReferences(t, &pb.ReferenceSet{
		Name: "image", Type: "attestation-result", State: "active", Values: map[string]*pb.ReferenceValues{"image_digest": {Values: []string{strings.Repeat("1d", 32)}}},
	})
	clients := []*agent.Client{b.clientOf(t, verifierDevice{key: keys[0]}), b.clientOf(t, verifierDevice{key: keys[1]})}
	released := func(c *agent.Client) bool {
		_, _, err := c.Get(t.Context(), "trusts/vm-1")
		if err != nil && !errors.Is(err, agent.ErrDenied) {
			t.Fatal(err)
		}
		return err == nil
	}
	if !released(clients[0]) || released(clients[1]) {
		t.Fatal("at the start, the first key does not count, or the second does")
	}
	running := watch(t, clients[0], "trusts/vm-1")
	running.next(t, 10*time.Second)

	if err := os.WriteFile(file, []byte(`{"keys":[`), 0o600); err != nil {
		t.Fatal(err)
	}
	problem := func() bool {
		st, err := b.Admin.GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range st.GetProblems() {
			if p.GetKind() == "file" && p.GetName() == "evidence" && strings.Contains(p.GetReason(), "evidence.results[0].jwks") {
				return true
			}
		}
		return false
	}
	awaited(t, time.Minute, "the status names the broken file", problem)
	if !released(clients[0]) {
		t.Error("a broken file took from a guest what it may have")
	}

	write(keys[1])
	awaited(t, time.Minute, "the second key counts", func() bool { return released(clients[1]) })
	if released(clients[0]) {
		t.Error("the first key still counts")
	}
	if problem() {
		t.Error("the status still names the file")
	}
	if err := running.ended(t, 20*time.Second); !errors.Is(err, agent.ErrDenied) {
		t.Errorf("what runs on the withdrawn key ended with %v", err)
	}
}
