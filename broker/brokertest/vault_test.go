package brokertest

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestVault: the whole job with a real HashiCorp Vault behind it, two machines
// racing at their first boot, and a Vault that goes away.
func TestVault(t *testing.T) {
	v := testservers.StartVault(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(v.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	b := Start(t, func(c *server.Config) {
		c.Vault = []server.Vault{{Name: "vault", Address: v.Address, TokenFile: token, Timeout: server.Duration(time.Second)}}
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "fleet/{vm}", Source: "vault", Key: "fleet/{vm}", Policy: "disks", CreateBytes: 32})
	})
	keys := make([]string, 2)
	var wg sync.WaitGroup
	for i := range keys {
		c := b.Client(t, teesim.ReportOptions{})
		wg.Go(func() {
			s, _, err := c.Get(t.Context(), "fleet/vm-1")
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = string(s[0].Value)
		})
	}
	wg.Wait()
	if len(keys[0]) != 32 || keys[0] != keys[1] {
		t.Fatalf("two machines at their first boot got %x and %x", keys[0], keys[1])
	}
	// Its history goes as well, as when an older snapshot is restored: an alarm, and no new key until an operator says so.
	c := b.Client(t, teesim.ReportOptions{})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, v.Address+"/v1/secret/metadata/fleet/vm-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", v.Token)
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%v %v", resp, err)
	}
	if _, _, err := c.Get(t.Context(), "fleet/vm-1"); !errors.Is(err, agent.ErrDenied) {
		t.Fatalf("a key that vanished: %v", err)
	}
	b.told(t, "does not say that it was deleted")
	problem := func() bool {
		s, err := b.Admin.GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.GetProblems(), func(p *pb.Problem) bool { return p.GetKind() == "key" && p.GetName() == "vault fleet/vm-1" })
	}
	eventually(t, "the status says so", problem)
	if _, err := b.Admin.ForgetKey(t.Context(), &pb.ForgetKeyRequest{Resource: "fleet/vm-2"}); status.Code(err) != codes.NotFound {
		t.Errorf("forgot what was never there: %v", err)
	}
	if _, err := b.Admin.ForgetKey(t.Context(), &pb.ForgetKeyRequest{Resource: "fleet/vm-1"}); err != nil {
		t.Fatal(err)
	}
	if s, _, err := c.Get(t.Context(), "fleet/vm-1"); err != nil || string(s[0].Value) == keys[0] {
		t.Fatalf("after an operator's word: %v", err)
	}
	eventually(t, "the alarm ended", func() bool { return !problem() })
	v.Kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, _, err := c.Get(ctx, "fleet/vm-1"); !errors.Is(err, agent.ErrUnreachable) {
		t.Fatalf("without Vault: got %v, want retries until the deadline", err)
	}
	get(t, c, "disks/vm-1") // other sources go on
}
