package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/seal"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

type noDevice struct{}

func (noDevice) Evidence(context.Context, attest.Transcript) (attest.Evidence, error) {
	return attest.Evidence{}, nil
}

// TestWatcherOpens what the pinned broker sends next, and nothing else: not an
// older version again, not an answer to older evidence, not what nobody asked for.
func TestWatcherOpens(t *testing.T) {
	id, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	key, err := seal.GenerateKey(seal.Hybrid)
	if err != nil {
		t.Fatal(err)
	}
	to, err := seal.ParseRecipient(seal.Hybrid, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("the nonce of the last evidence")
	now := time.Now()
	version := func(signer *seal.Identity, resource string, nonce []byte, sequence uint64) *pb.SecretVersion {
		jwe, err := seal.Seal(signer, to, seal.Statement{
			Resource: resource, Decision: "d", IssuedAt: now.Unix(), Expires: now.Add(time.Minute).Unix(), Version: "8",
			Nonce: base64.RawURLEncoding.EncodeToString(nonce), Sequence: sequence, Secret: []byte("s"),
		})
		if err != nil {
			t.Fatal(err)
		}
		payload, err := json.Marshal(promise{ID: "d", Log: "log", Index: 3, LeafHash: base64.RawURLEncoding.EncodeToString(make([]byte, 32))})
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign(seal.TypeReceipt, payload)
		if err != nil {
			t.Fatal(err)
		}
		return &pb.SecretVersion{Secret: &pb.WrappedSecret{Resource: resource, Jwe: jwe}, Receipt: &pb.Receipt{Promise: string(jws), LogIndex: 3}}
	}
	c := &Client{cfg: Config{Identity: id.PublicKey(), Device: noDevice{}, Now: time.Now, Skew: time.Minute}}
	w := &watcher{c: c, key: key, resources: []string{"db/orders"}, nonce: nonce, sequence: 4}
	other, err := seal.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	wrongReceipt := version(id, "db/orders", nonce, 5)
	wrongReceipt.Receipt = version(other, "db/orders", nonce, 5).Receipt
	for name, c := range map[string]struct {
		m    *pb.SecretVersion
		want string
	}{
		"the same again":     {version(id, "db/orders", nonce, 4), "older version"},
		"an older one":       {version(id, "db/orders", nonce, 1), "older version"},
		"without a sequence": {version(id, "db/orders", nonce, 0), "older version"},
		"older evidence":     {version(id, "db/orders", []byte("another nonce"), 5), "another challenge"},
		"not asked for":      {version(id, "db/users", nonce, 5), "not asked for"},
		"another broker":     {version(other, "db/orders", nonce, 5), "signature"},
		"another's receipt":  {wrongReceipt, "receipt"},
	} {
		if _, err := w.open(c.m); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := w.open(version(id, "db/orders", nonce, 5))
	if err != nil || string(s.Value) != "s" || s.Version != "8" || w.sequence != 5 {
		t.Errorf("%+v %v", s, err)
	}
}
