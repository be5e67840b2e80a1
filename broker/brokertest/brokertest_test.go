package brokertest

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/audit"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func get(t *testing.T, c *agent.Client, resources ...string) ([]agent.Secret, agent.Receipt) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	secrets, receipt, err := c.Get(ctx, resources...)
	if err != nil {
		t.Fatal(err)
	}
	return secrets, receipt
}

func denied(t *testing.T, c *agent.Client, resources ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, _, err := c.Get(ctx, resources...); !errors.Is(err, agent.ErrDenied) {
		t.Fatalf("got %v, want ErrDenied", err)
	}
}

// clientOf is a guest with these devices, the first of which is b's own if nil.
func (b *Broker) clientOf(t *testing.T, first agent.Device, devices ...agent.Device) *agent.Client {
	t.Helper()
	addr, _, _ := b.Server.Addresses()
	cfg := b.clientConfig(t, teesim.ReportOptions{}, addr)
	if first != nil {
		cfg.Device = first
	}
	cfg.Devices = devices
	c, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// addPolicy writes the package claviger.release.<name> into c's folder of policies.
func addPolicy(t *testing.T, c *server.Config, name, text string) {
	t.Helper()
	dir := filepath.Join(c.Policy.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".rego"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// putReferences puts a set in force, for every policy if it is nobody's.
func (b *Broker) putReferences(t *testing.T, set *pb.ReferenceSet) {
	t.Helper()
	if set.GetOwner() == nil {
		set.Owner = &pb.ReferenceOwner{Policies: []string{"*"}}
	}
	if _, err := b.Admin.PutReferenceSet(t.Context(), &pb.PutReferenceSetRequest{Set: set}); err != nil {
		t.Fatal(err)
	}
}

// newest is the newest decision, as operators are told.
func (b *Broker) newest(t *testing.T) string {
	t.Helper()
	ds, err := b.Admin.ListDecisions(t.Context(), &pb.ListDecisionsRequest{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(ds.GetDecisions()) == 0 {
		return ""
	}
	return ds.GetDecisions()[0].GetEntry()
}

// told wants the newest decision to say something: a guest that has its answer
// finds the operators knowing of it.
func (b *Broker) told(t *testing.T, want string) {
	t.Helper()
	if entry := b.newest(t); !strings.Contains(entry, want) {
		t.Errorf("the operator is told %s, want %q", entry, want)
	}
}

// TestWholeJob is the job of issue 2, over real gRPC and TLS.
func TestWholeJob(t *testing.T) {
	b := Start(t, nil)
	c := b.Client(t, teesim.ReportOptions{})
	secrets, receipt := get(t, c, "disks/vm-1", "db/orders")
	if len(secrets) != 2 || len(secrets[0].Value) != 32 || !strings.HasPrefix(string(secrets[1].Value), "dev-") {
		t.Fatalf("got %v", secrets)
	}
	again, _ := get(t, c, "disks/vm-1")
	if string(again[0].Value) != string(secrets[0].Value) {
		t.Error("the disk key changed between boots")
	}
	if n := b.metric(t, "claviger_policy_decisions_total"); n != 3 {
		t.Errorf("%d decisions, want 3", n)
	}
	if err := c.Prove(t.Context(), &receipt); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.VerifyProof(audit.Proof{Index: receipt.LogIndex, LeafHash: receipt.LeafHash, Path: receipt.Path, Checkpoint: receipt.Checkpoint},
		b.Server.LogVerifierKey()); err != nil {
		t.Error(err)
	}
	denied(t, b.Client(t, teesim.ReportOptions{Measurement: teesim.Measurement("evil")}), "disks/vm-1")
	denied(t, c, "no/such")

	ds, err := b.Admin.ListDecisions(t.Context(), &pb.ListDecisionsRequest{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, d := range ds.GetDecisions() {
		all += d.GetEntry() + "\n"
	}
	for _, want := range []string{"measurement_unknown", "demo-image", `"simulated":true`, "unknown_resource", `"outcome":"released"`} {
		if !strings.Contains(all, want) {
			t.Errorf("the operator's view does not mention %q:\n%s", want, all)
		}
	}
	if strings.Contains(all, string(secrets[1].Value)) || strings.Contains(all, hex.EncodeToString(secrets[0].Value)) {
		t.Error("a secret stands in the audit log")
	}
}

// TestRevokeAndUnrevoke: in force with the acknowledgement, and reversible.
func TestRevokeAndUnrevoke(t *testing.T) {
	b := Start(t, nil)
	c := b.Client(t, teesim.ReportOptions{})
	get(t, c, "db/orders")
	chip := hex.EncodeToString(b.Env.Device.ChipID())
	if _, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: chip, Reason: "test"}}); err != nil {
		t.Fatal(err)
	}
	denied(t, c, "db/orders") // the broker that took it uses it at once
	if _, err := b.Admin.Unrevoke(t.Context(), &pb.UnrevokeRequest{Kind: "chip", Value: chip}); err != nil {
		t.Fatal(err)
	}
	get(t, c, "db/orders")
}

// TestPolicyReload: a changed policy is in force a moment later; a broken one leaves the old in force and says so.
func TestPolicyReload(t *testing.T) {
	b := Start(t, nil)
	c := b.Client(t, teesim.ReportOptions{})
	get(t, c, "db/orders")
	file := filepath.Join(b.Env.Dir, "policies", "disks", "disks.rego")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	eventually := func(what string, ok func(*pb.GetPolicyResponse) bool) {
		t.Helper()
		for range 1200 { // a minute
			if p, err := b.Admin.GetPolicy(t.Context(), &pb.GetPolicyRequest{}); err == nil && ok(p) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("never: %s", what)
	}
	first, err := b.Admin.GetPolicy(t.Context(), &pb.GetPolicyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("package claviger.release.disks\nthis is not rego")
	eventually("the broken bundle is reported", func(p *pb.GetPolicyResponse) bool { return p.GetError() != "" && p.GetDigest() == first.GetDigest() })
	if st, err := b.Admin.GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil || len(st.GetProblems()) != 1 || !strings.Contains(st.GetProblems()[0].GetReason(), "refused") || st.GetProblems()[0].GetStopsAll() {
		t.Errorf("the status says %v: %v", st.GetProblems(), err)
	}
	get(t, c, "db/orders")
	write(string(good) + "\ndeny contains {\"rule\": \"closed\", \"message\": \"closed for the night\"}\n")
	eventually("the new bundle is in force", func(p *pb.GetPolicyResponse) bool { return p.GetError() == "" && p.GetDigest() != first.GetDigest() })
	denied(t, c, "db/orders")
	// Pin the first one: every broker goes back to it.
	if _, err := b.Admin.ActivatePolicy(t.Context(), &pb.ActivatePolicyRequest{Digest: first.GetDigest()}); err != nil {
		t.Fatal(err)
	}
	eventually("the pinned bundle is in force", func(p *pb.GetPolicyResponse) bool { return p.GetPinned() == first.GetDigest() })
	get(t, c, "db/orders")
}

// TestRestart: identity, secrets, references and spent state survive.
func TestRestart(t *testing.T) {
	env, err := dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	env.Config.Listen, env.Config.Admin.Listen, env.Config.Metrics = "127.0.0.1:0", "127.0.0.1:0", "off"
	run := func(t *testing.T) (id, key string) {
		b := StartEnv(t, env, nil)
		s, _ := get(t, b.Client(t, teesim.ReportOptions{}), "disks/vm-1")
		return string(b.Server.Identity()), string(s[0].Value)
	}
	var ids, keys [2]string
	for i := range 2 {
		t.Run("run", func(t *testing.T) { ids[i], keys[i] = run(t) })
	}
	if ids[0] != ids[1] || keys[0] != keys[1] || ids[0] == "" {
		t.Error("identity or disk key changed over a restart")
	}
}

// TestPinSurvivesRestart: a pinned policy is in force after a restart, whatever the folder holds by then; a broker
// that does not have it releases nothing.
func TestPinSurvivesRestart(t *testing.T) {
	env, err := dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	env.Config.Listen, env.Config.Admin.Listen, env.Config.Metrics = "127.0.0.1:0", "127.0.0.1:0", "off"
	evil := teesim.ReportOptions{Measurement: teesim.Measurement("evil")}
	var pinned string
	t.Run("pin", func(t *testing.T) {
		b := StartEnv(t, env, nil)
		p, err := b.Admin.GetPolicy(t.Context(), &pb.GetPolicyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		pinned = p.GetDigest()
		if _, err := b.Admin.ActivatePolicy(t.Context(), &pb.ActivatePolicyRequest{Digest: "sha256:" + strings.Repeat("00", 32)}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a bundle that nobody has was pinned: %v", err)
		}
		if _, err := b.Admin.ActivatePolicy(t.Context(), &pb.ActivatePolicyRequest{Digest: pinned}); err != nil {
			t.Fatal(err)
		}
	})
	lax := "package claviger.release.disks\n\ndefault allow := false\n\nallow if input.attestation.type == \"sev-snp\"\n"
	if err := os.WriteFile(filepath.Join(env.Dir, "policies", "disks", "disks.rego"), []byte(lax), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("restart", func(t *testing.T) {
		b := StartEnv(t, env, nil)
		if p, err := b.Admin.GetPolicy(t.Context(), &pb.GetPolicyRequest{}); err != nil || p.GetDigest() != pinned || p.GetPinned() != pinned {
			t.Fatalf("%v: %v", p, err)
		}
		denied(t, b.Client(t, evil), "disks/vm-1")
		get(t, b.Client(t, teesim.ReportOptions{}), "disks/vm-1")
	})
	if err := os.RemoveAll(filepath.Join(env.Config.DataDir, "policy-bundles")); err != nil {
		t.Fatal(err)
	}
	t.Run("lost", func(t *testing.T) {
		b := StartEnv(t, env, nil)
		p, err := b.Admin.GetPolicy(t.Context(), &pb.GetPolicyRequest{})
		if err != nil || p.GetDigest() != "" || p.GetPinned() != pinned || !strings.Contains(p.GetError(), pinned) {
			t.Fatalf("%v: %v", p, err)
		}
		if _, err := b.Workload.Release(t.Context(), releaseRequest(t, b)); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		if _, err := b.Admin.ActivatePolicy(t.Context(), &pb.ActivatePolicyRequest{Digest: ""}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestProductionRefusesSimulated: without test roots in the code, the same
// configuration believes no simulated device, and cannot be told to.
func TestProductionRefusesSimulated(t *testing.T) {
	env, err := dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := env.Config
	cfg.Listen, cfg.Admin.Listen, cfg.Metrics = "127.0.0.1:0", "127.0.0.1:0", "off"
	s, err := server.Start(t.Context(), cfg, server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	b := &Broker{Env: env, Server: s}
	denied(t, b.Client(t, teesim.ReportOptions{}), "db/orders")
	cfg.TestRoot = filepath.Join(env.Dir, "root.pem")
	if _, err := server.Start(t.Context(), cfg, server.Options{}); err == nil || !strings.Contains(err.Error(), "test_root") {
		t.Errorf("got %v", err)
	}
}

// TestTwoReplicas: two brokers on one etcd cluster have one identity; a nonce
// of one is honoured by the other, and spent on one is spent on both.
func TestTwoReplicas(t *testing.T) {
	cluster := testservers.StartEtcd(t, 1)
	env, err := dev.Prepare(filepath.Join(t.TempDir(), "dev"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	env.Config.Listen, env.Config.Admin.Listen, env.Config.Metrics = "127.0.0.1:0", "127.0.0.1:0", "off"
	sealKey := filepath.Join(env.Dir, "seal.key")
	if err := os.WriteFile(sealKey, []byte(strings.Repeat("ab", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(name string) *Broker {
		return StartEnv(t, env, func(c *server.Config) {
			c.DataDir, c.SealKey, c.Etcd.Endpoints, c.Audit.Origin = filepath.Join(env.Dir, name), sealKey, cluster.Endpoints, "test/"+name
		})
	}
	a, b := start("a"), start("b")
	if string(a.Server.Identity()) != string(b.Server.Identity()) {
		t.Fatal("two identities")
	}
	ka, _ := get(t, a.Client(t, teesim.ReportOptions{}), "disks/vm-1")
	kb, _ := get(t, b.Client(t, teesim.ReportOptions{}), "disks/vm-1")
	if string(ka[0].Value) != string(kb[0].Value) {
		t.Error("two disk keys")
	}
	req := releaseRequest(t, a)
	if _, err := b.Workload.Release(t.Context(), req); err != nil {
		t.Fatalf("a nonce of one replica at the other: %v", err)
	}
	if _, err := a.Workload.Release(t.Context(), req); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("spent on one, replayed at the other: %v", err)
	}
	chip := hex.EncodeToString(a.Env.Device.ChipID())
	if _, err := a.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: chip}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	denied(t, b.Client(t, teesim.ReportOptions{}), "disks/vm-1")
}
