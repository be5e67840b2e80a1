package brokertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
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
	v.Kill(t)
	c := b.Client(t, teesim.ReportOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, _, err := c.Get(ctx, "fleet/vm-1"); !errors.Is(err, agent.ErrUnreachable) {
		t.Fatalf("without Vault: got %v, want retries until the deadline", err)
	}
	get(t, c, "disks/vm-1") // other sources go on
}
