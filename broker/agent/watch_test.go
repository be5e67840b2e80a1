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
	w := &watcher{c: c, key: key, identity: id.PublicKey(), resources: []string{"db/orders"}, session: "s", nonce: nonce, sequence: 4}
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

	// A new session, of which anybody on the way can tell, counts from 1 for new evidence only.
	if err := w.started("another", nonce); err == nil || w.sequence != 5 {
		t.Errorf("a session for old evidence: %v, sequence %d", err, w.sequence)
	}
	if err := w.started("another", nil); err == nil {
		t.Error("a session that nobody asked for")
	}
	fresh := []byte("the nonce of new evidence")
	if err := w.started("another", fresh); err != nil {
		t.Fatal(err)
	}
	if _, err := w.open(version(id, "db/orders", nonce, 6)); err == nil {
		t.Error("a version of the session before is accepted in the new one")
	}
	if _, err := w.open(version(id, "db/orders", fresh, 1)); err != nil {
		t.Errorf("the first version of a new session: %v", err)
	}
	if _, err := w.open(version(id, "db/orders", fresh, 1)); err == nil {
		t.Error("it is accepted twice")
	}
	// Within a session the sequence goes on, with new evidence too.
	if err := w.started("another", []byte("a third nonce")); err != nil || w.sequence != 1 {
		t.Errorf("%v, sequence %d", err, w.sequence)
	}
}
