// Package brokertest runs a whole broker in the test's process, with SIMULATED
// hardware under a test root, for our tests and our users': real gRPC over TLS,
// the example policies, an embedded store and the audit log.
package brokertest

import (
	"context"
	"crypto/tls"
	"path/filepath"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Broker is a running broker.
type Broker struct {
	Env    *dev.Env
	Server *server.Server
	Admin  pb.AdminClient
	// Workload is the raw client, for tests of the protocol.
	Workload pb.KeyBrokerClient
}

// Start runs a broker until the test ends. change, if not nil, alters its configuration.
func Start(t testing.TB, change func(*server.Config)) *Broker {
	t.Helper()
	env, err := dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	env.Config.Listen, env.Config.Admin.Listen, env.Config.Metrics = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	return StartEnv(t, env, change)
}

// StartEnv runs a broker from a prepared folder, which a second one may share the hardware of.
func StartEnv(t testing.TB, env *dev.Env, change func(*server.Config)) *Broker {
	t.Helper()
	cfg := env.Config
	if change != nil {
		change(&cfg)
	}
	s, err := server.Start(t.Context(), cfg, server.Options{Version: "test", TestRoots: env.TestRoots()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	if err := env.Finish(s); err != nil {
		t.Fatal(err)
	}
	if err := env.Seed(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	b := &Broker{Env: env, Server: s}
	admin, err := env.Dial(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	b.Admin = pb.NewAdminClient(admin)
	workload, err := env.DialWorkloads(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { workload.Close() })
	b.Workload = pb.NewKeyBrokerClient(workload)
	return b
}

// Device is the simulated hardware with a given launch.
func (b *Broker) Device(o teesim.ReportOptions) agent.Device {
	if o.Measurement == ([48]byte{}) {
		o.Measurement = teesim.Measurement("")
	}
	return device{b.Env.Device, o}
}

type device struct {
	*teesim.Device
	options teesim.ReportOptions
}

// Evidence implements agent.Device.
func (d device) Evidence(_ context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d.Device.Evidence(t.Digest64(), d.options)
}

// Client makes a guest's client with the registered image, or another one.
func (b *Broker) Client(t testing.TB, o teesim.ReportOptions) *agent.Client {
	t.Helper()
	addr, _, _ := b.Server.Addresses()
	c, err := agent.New(b.clientConfig(t, o, addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (b *Broker) clientConfig(t testing.TB, o teesim.ReportOptions, addr string) agent.Config {
	t.Helper()
	roots, err := b.Env.Roots()
	if err != nil {
		t.Fatal(err)
	}
	return agent.Config{Address: addr, TLS: &tls.Config{RootCAs: roots}, Identity: b.Server.Identity(), Device: b.Device(o)}
}
