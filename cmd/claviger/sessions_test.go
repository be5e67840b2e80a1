package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
)

// TestSessions is an operator's day: who has what, a rotation, a revocation with its blast radius.
func TestSessions(t *testing.T) {
	b := brokertest.Start(t, func(c *server.Config) {
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "api/{name}", Source: "local", Key: "api/{name}", Policy: "disks", CreateBytes: 32, Rotatable: true})
	})
	_, admin, _ := b.Server.Addresses()
	file := func(name string) string { return filepath.Join(b.Env.Dir, name) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	versions := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- b.Client(t, teesim.ReportOptions{}).Watch(ctx, []string{"api/key", "db/orders"}, func(_ context.Context, s agent.Secret) error {
			versions <- s.Resource + "@" + s.Version
			return nil
		})
	}()
	next := func() string {
		t.Helper()
		select {
		case v := <-versions:
			return v
		case <-time.After(10 * time.Second):
			t.Fatal("no version")
			return ""
		}
	}
	next()
	next()
	for range 100 {
		if strings.Contains(command(t, env, "holders", "api/key").stdout, "1 of 1 on version 1") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	command(t, env, "holders", "api/key").want(t, 0, "1 of 1 on version 1", "SIMULATED")
	command(t, env, "holders", "api/key", "--behind", "--output", "json").want(t, 0, `"holders": []`)
	command(t, env, "holders", "nothing/here").want(t, 1, "no catalog entry")
	command(t, env, "sessions").want(t, 0, "SIMULATED", "api/key")
	command(t, env, "notify", "db/orders").want(t, 0)
	command(t, env, "notify", "nothing/here").want(t, 1, "no catalog entry")
	command(t, env, "token", "rotate").want(t, 1, "tokens.issuer")
	command(t, env, "revoke", "measurement", "00", "--dry-run").want(t, 0, "not revoked (dry run)", "0 releases")
	command(t, env, "revoke", "chip", "00", "--dry-run", "--rotate").want(t, 2, "--dry-run")
	command(t, env, "revoke", "chip", "00", "--since", "yesterday").want(t, 2, "--since")
	command(t, env, "revoke", "planet", "earth").want(t, 1, "kind")
	// The version leaked: nobody gets it any more, and whoever watches gets the next one.
	command(t, env, "revoke", "secret_version", "api/key@1", "--rotate", "--reason", "found in a log").want(t, 0, "1 releases", "rotated api/key: version 2")
	if v := next(); v != "api/key@2" {
		t.Errorf("got %s", v)
	}
	command(t, env, "revoke", "resource", "db/orders", "--rotate").want(t, 1, "not rotatable")
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a revoked resource is still watched")
	}
	command(t, env, "revocations").want(t, 0, "api/key@1", "found in a log", "db/orders")
	command(t, env, "unrevoke", "resource", "db/orders").want(t, 0)
}
