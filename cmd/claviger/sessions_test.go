package main

import (
	"context"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
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
		case <-time.After(time.Minute):
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
	command(t, env, "revoke", "measurement", "00", "--dry-run").want(t, 1, "nothing was revoked (dry run)", "whole digest")
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
	case <-time.After(time.Minute):
		t.Error("a revoked resource is still watched")
	}
	command(t, env, "revocations").want(t, 0, "api/key@1", "found in a log", "db/orders")
	command(t, env, "unrevoke", "resource", "db/orders").want(t, 0)
}

// TestRevokeArguments: a revocation matches what the operator means, or is refused; nothing is answered with "revoked" that stops nothing.
func TestRevokeArguments(t *testing.T) {
	b := brokertest.Start(t, nil)
	_, admin, _ := b.Server.Addresses()
	file := func(name string) string { return filepath.Join(b.Env.Dir, name) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got, ended := make(chan string, 10), make(chan error, 1)
	go func() {
		ended <- b.Client(t, teesim.ReportOptions{}).Watch(ctx, []string{"db/orders"}, func(_ context.Context, s agent.Secret) error {
			got <- s.Version
			return nil
		})
	}()
	select {
	case <-got:
	case <-time.After(time.Minute):
		t.Fatal("no secret")
	}
	for range 100 {
		if strings.Contains(command(t, env, "sessions").stdout, "db/orders") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	chip := hex.EncodeToString(b.Env.Device.ChipID())
	m := teesim.Measurement("")
	measurement := hex.EncodeToString(m[:])
	policy := strings.TrimSpace(strings.TrimPrefix(strings.Split(command(t, env, "policy", "status").stdout, "\n")[0], "in force"))

	for _, tt := range []struct {
		args []string
		says string
	}{
		{[]string{"chip", "zz"}, "whole chip id"},
		{[]string{"chip", strings.Repeat("ab", 64)}, "was seen by this broker"},
		{[]string{"chip", chip[:3]}, "too short"},
		{[]string{"chip", "ab12ab12ab12…"}, "give it in full"},
		{[]string{"measurement", "12"}, "whole digest"},
		{[]string{"measurement", measurement[:90] + "ffffff"}, "was seen by this broker"},
		{[]string{"workload", "12"}, "whole HOST_DATA"},
		{[]string{"tcb", "tdx/outofdate"}, "was seen by this broker"},
		{[]string{"tcb", "Milan/Outdated"}, "TCB status"},
		{[]string{"tcb", "Milan"}, "TCB status"},
		{[]string{"resource", "db/*"}, "without *"},
		{[]string{"resource", "disks/{vm}"}, "without *"},
		{[]string{"resource", "dbs/orders"}, "was seen by this broker"},
		{[]string{"secret_version", "db/orders"}, "{resource}@{version}"},
		{[]string{"secret_version", "dbs/orders@1"}, "was seen by this broker"},
		{[]string{"session", "nobody"}, "whole id"},
		{[]string{"session", "AAAAAAAAAAAAAAAAAAAAAAAAAA"}, "was seen by this broker"},
		{[]string{"policy", "latest"}, "sha256:"},
		{[]string{"policy", "sha256:" + strings.Repeat("00", 32)}, "was seen by this broker"},
		{[]string{"advisory", "837"}, "INTEL-SA-00837"},
		{[]string{"advisory", "INTEL-SA-99999"}, "was seen by this broker"},
	} {
		command(t, env, append([]string{"revoke"}, tt.args...)...).want(t, 1, "nothing was revoked", tt.says)
		command(t, env, append([]string{"revoke", "--dry-run"}, tt.args...)...).want(t, 1, "nothing was revoked", tt.says)
	}
	command(t, env, "revocations").want(t, 0)
	// What is wrong in form is refused even with --force; what was never seen is not.
	command(t, env, "revoke", "measurement", "12", "--force").want(t, 1, "whole digest")
	command(t, env, "revoke", "advisory", "intel-sa-99999", "--force").want(t, 0, "revoked: advisory INTEL-SA-99999", "0 releases")
	command(t, env, "unrevoke", "advisory", "INTEL-SA-00000").want(t, 1, "no such advisory")
	command(t, env, "unrevoke", "advisory", "intel-sa-99999").want(t, 0)

	// The beginning of a value, as tables print it, in any case; and what it would match.
	for _, tt := range [][]string{
		{"chip", strings.ToUpper(chip[:16]) + "…", chip}, {"measurement", measurement[:10], measurement}, {"tcb", "milan/unknown", "milan/unknown"},
		{"resource", "db/orders", "db/orders"}, {"policy", policy[:15], policy},
	} {
		command(t, env, "revoke", tt[0], tt[1], "--dry-run").want(t, 0, "not revoked (dry run): "+tt[0]+" "+tt[2], "watching sessions that it would end: 1", "1 releases")
	}
	// Over the wire as well: sixteen digits may be a whole chip id (of AMD Turin), or what a table shows of one.
	if r, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "chip", Value: "00112233aabbccdd"}}); err != nil || r.GetValue() != "00112233aabbccdd" {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: "measurement", Value: measurement[:16]}}); err != nil || r.GetValue() != measurement {
		t.Errorf("%v, %v", r, err)
	}
	for kind, value := range map[string]string{"chip": "zz", "measurement": "12", "resource": "db/*", "session": "nobody", "tcb": "tdx/outdated"} {
		if _, err := b.Admin.Revoke(t.Context(), &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: kind, Value: value}}); err == nil {
			t.Errorf("%s %s was revoked", kind, value)
		}
	}
	command(t, env, "unrevoke", "measurement", measurement[:16]).want(t, 0)
	command(t, env, "revoke", "chip", chip[:16]+"…").want(t, 0, "revoked: chip "+chip, "1 releases")
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("a session on a revoked chip goes on")
	}
	command(t, env, "unrevoke", "chip", chip[:16]+"…").want(t, 0)
}

// TestReferenceSet: a change of state keeps the values; what no broker could use is refused.
func TestReferenceSet(t *testing.T) {
	b := brokertest.Start(t, nil)
	_, admin, _ := b.Server.Addresses()
	file := func(name string) string { return filepath.Join(b.Env.Dir, name) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}
	digest := strings.Repeat("5B", 48)
	set := func(args ...string) result { return command(t, env, append([]string{"reference", "set"}, args...)...) }
	list := func() string { return command(t, env, "reference", "list", "--output", "json").want(t, 0).stdout }
	set("r7", "--policy", "disks", "--resource", "disks/{vm}", "--type", "sev-snp", "--value", "measurement="+digest, "--source", "build 7").want(t, 0)
	for _, state := range []string{"canary", "retiring", "retired", "active"} {
		set("r7", "--state", state).want(t, 0)
		if l := list(); !strings.Contains(l, strings.ToLower(digest)) || !strings.Contains(l, `"state": "`+state+`"`) || !strings.Contains(l, "build 7") {
			t.Errorf("after %s:\n%s", state, l)
		}
	}
	set("r7", "--not-before", "2026-01-01T00:00:00Z", "--not-after", "2027-01-01T00:00:00Z", "--comment", "until 8").want(t, 0)
	if l := list(); !strings.Contains(l, strings.ToLower(digest)) || !strings.Contains(l, "2027-01-01T00:00:00Z") || !strings.Contains(l, "until 8") {
		t.Error(l)
	}
	was := list()
	for says, args := range map[string][]string{
		"one that is new needs values": {"r8", "--state", "retiring"},
		"nothing to set":               {"r7"},
		"--type needs --value":         {"r7", "--type", "tdx"},
		"--type is missing":            {"r9", "--value", "measurement=" + digest},
		"owner.policies: missing":      {"r9", "--type", "sev-snp", "--value", "measurement=" + digest},
		"there is no policy":           {"r7", "--policy", "diskz"},
		"owner.resources: missing":     {"r7", "--policy", "disks"},
		"as in the catalog":            {"r7", "--policy", "disks", "--resource", "disks/*"},
		"no type of evidence":          {"r9", "--policy", "*", "--type", "sev_snp", "--value", "measurement=" + digest},
		"48 bytes in hex":              {"r9", "--policy", "*", "--type", "sev-snp", "--value", "measurement=5b3c"},
		"no claim of sev-snp":          {"r9", "--policy", "*", "--type", "sev-snp", "--value", "measurment=" + digest},
		"CLAIM=VALUE":                  {"r9", "--type", "sev-snp", "--value", digest},
		"state":                        {"r7", "--state", "retried"},
		"--not-after":                  {"r7", "--not-after", "tomorrow"},
		"year 2300":                    {"r7", "--not-after", "2300-01-01T00:00:00Z"},
		"is not after not_before":      {"r7", "--not-after", "2025-01-01T00:00:00Z"},
	} {
		if r := set(args...); r.code == 0 || !strings.Contains(r.stderr, says) {
			t.Errorf("%v: exit code %d, want %q:\n%s", args, r.code, says, r.stderr)
		}
	}
	if l := list(); l != was {
		t.Errorf("a refused change changed something:\n%s", l)
	}

	// Whose it is: kept with new values, changed by itself, and told.
	uses := func() string { return command(t, env, "reference", "uses", "r7").want(t, 0).stdout }
	set("r7", "--type", "sev-snp", "--value", "measurement="+digest).want(t, 0)
	command(t, env, "reference", "list").want(t, 0, "disks", "disks/{vm}")
	if u := uses(); !strings.Contains(u, "owner") || !strings.Contains(u, "disks/{vm}") || strings.Contains(u, "workload") || strings.Contains(u, "shared/{key}") {
		t.Error(u)
	}
	set("r7", "--policy", "*", "--resource", "{any}/{name}").want(t, 0)
	if u := uses(); !strings.Contains(u, "every policy") || !strings.Contains(u, "workload") {
		t.Error(u)
	}
	command(t, env, "reference", "uses", "r8").want(t, 1, "no reference set")
}

// TestCatalogSet: an entry that this broker could release nothing by is refused, and so is one that the configuration file has.
func TestCatalogSet(t *testing.T) {
	b := brokertest.Start(t, nil)
	_, admin, _ := b.Server.Addresses()
	file := func(name string) string { return filepath.Join(b.Env.Dir, name) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}
	set := func(pattern string, args ...string) result {
		return command(t, env, append([]string{"catalog", "set", pattern}, args...)...)
	}
	was := command(t, env, "catalog", "list").want(t, 0, "disks/{vm}").stdout
	for says, args := range map[string][]string{
		"configuration file": {"disks/{vm}", "--key", "x", "--policy", "disks"},
		"the same paths":     {"disks/{host}", "--key", "x", "--policy", "disks"},
		"policy: \"diskz\"":  {"x/{a}", "--key", "x", "--policy", "diskz"},
		"source: \"vualt\"":  {"x/{a}", "--key", "x", "--policy", "disks", "--source", "vualt"},
		"kind: \"kvv\"":      {"x/{a}", "--key", "x", "--policy", "disks", "--kind", "kvv"},
		"embedded store has": {"x/{a}", "--key", "x", "--policy", "disks", "--kind", "database"},
		"ambiguous":          {"{any}/prod", "--key", "x", "--policy", "disks"},
	} {
		if r := set(args[0], args[1:]...); r.code == 0 || !strings.Contains(r.stderr, says) {
			t.Errorf("%v: exit code %d, want %q:\n%s", args, r.code, says, r.stderr)
		}
	}
	if is := command(t, env, "catalog", "list").stdout; is != was {
		t.Errorf("a refused entry changed something:\n%s", is)
	}
	set("x/{a}/y", "--key", "x", "--policy", "disks").want(t, 0)
	command(t, env, "catalog", "list").want(t, 0, "x/{a}/y")
	command(t, env, "catalog", "delete", "x/{a}/y").want(t, 0)
	command(t, env, "catalog", "delete", "disks/{vm}").want(t, 1, "configuration file")
}
