package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestListingsInPages: what is longer than a message is listed as a whole.
func TestListingsInPages(t *testing.T) {
	none := 0.0
	b := brokertest.Start(t, func(c *server.Config) { c.Limits.PeerRate, c.Limits.Queue = &none, 1<<20 })
	_, admin, _ := b.Server.Addresses()
	file := func(n string) string { return filepath.Join(b.Env.Dir, n) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}

	// 1,100 revocations of 1 KiB: more than a page's items, and than its bytes.
	const revocations = 1100
	var writes errgroup.Group
	writes.SetLimit(64)
	for i := range revocations {
		writes.Go(func() error {
			_, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "resource", Value: fmt.Sprintf("none/%d", i), Reason: strings.Repeat("x", 1000)}})
			return err
		})
	}
	if err := writes.Wait(); err != nil {
		t.Fatal(err)
	}
	r := command(t, env, "revocations", "--output", "json").want(t, 0)
	var list struct{ Revocations []struct{ Value string } }
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, x := range list.Revocations {
		seen[x.Value] = true
	}
	if len(list.Revocations) != revocations || len(seen) != revocations {
		t.Errorf("%d revocations are listed, %d of them different, want %d", len(list.Revocations), len(seen), revocations)
	}
	if strings.Contains(r.stdout, "next_page_token\": \"") && !strings.Contains(r.stdout, "next_page_token\": \"\"") {
		t.Error("a token of a page is in the whole")
	}

	// Denials of 16 resources each: 400 of them are longer than an answer.
	const denials = 400
	c := b.Client(t, teesim.ReportOptions{})
	var resources []string
	for i := range 16 {
		resources = append(resources, fmt.Sprintf("none/%s%d", strings.Repeat("a", 200), i))
	}
	var wg sync.WaitGroup
	work := make(chan struct{}, denials)
	for range denials {
		work <- struct{}{}
	}
	close(work)
	for range 32 {
		wg.Go(func() {
			for range work {
				if _, _, err := c.Get(t.Context(), resources...); err == nil {
					t.Error("not denied")
				}
			}
		})
	}
	wg.Wait()
	r = command(t, env, "audit", "tail", "-n", "1000", "--output", "json").want(t, 0)
	next := uint64(0)
	for line := range strings.Lines(r.stdout) {
		var e struct{ Index uint64 }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Index != next {
			t.Fatalf("line %.80s: index %d, want %d; %v", line, e.Index, next, err)
		}
		next++
	}
	if next != denials {
		t.Errorf("%d decisions are listed, want %d", next, denials)
	}
	if n := len(r.stdout); n < 1<<20 {
		t.Errorf("%d bytes: nothing is tried", n)
	}
	if n := strings.Count(command(t, env, "audit", "tail", "-n", "3", "--output", "json").want(t, 0).stdout, "\n"); n != 3 {
		t.Errorf("%d decisions, want 3", n)
	}
}
