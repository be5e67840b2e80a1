package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// TestMain lets the test binary be the command itself: its exit code and what takes its place are tested.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_AS_COMMAND") == "1" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

type result struct {
	code           int
	stdout, stderr string
}

// command runs claviger-agent as a user would, with nothing of ours in the environment but env.
func command(t *testing.T, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append([]string{"TEST_AS_COMMAND=1", "PATH=" + os.Getenv("PATH")}, env...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	} else if ok && exit.ExitCode() < 0 {
		t.Fatalf("%v: %s", err, errs.String())
	}
	return result{c.ProcessState.ExitCode(), out.String(), errs.String()}
}

func (r result) want(t *testing.T, code int, texts ...string) result {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d\n%s", r.code, code, r.stderr)
	}
	for _, s := range texts {
		if !strings.Contains(r.stderr, s) {
			t.Errorf("standard error does not say %q:\n%s", s, r.stderr)
		}
	}
	return r
}

const password = "pa55 word\n"

func start(t *testing.T) (*brokertest.Broker, []string) {
	t.Helper()
	b := brokertest.Start(t, nil)
	for k, v := range map[string]string{"db/test": password, "db/nul": "a\x00b"} {
		if _, err := b.Admin.PutSecret(t.Context(), &pb.PutSecretRequest{Key: k, Value: []byte(v)}); err != nil {
			t.Fatal(err)
		}
	}
	return b, []string{"--config", filepath.Join(b.Env.Dir, "agent.json"), "--simulated-device", filepath.Join(b.Env.Dir, "device.json"), "--timeout", "20s"}
}

func with(base []string, more ...string) []string { return slices.Concat(more, base) }

func TestAgainstBroker(t *testing.T) {
	b, flags := start(t)
	dir := t.TempDir()

	t.Run("get", func(t *testing.T) {
		r := command(t, nil, with(flags, "get", "db/test")...).want(t, 0, "SIMULATED")
		if r.stdout != password {
			t.Errorf("got %q", r.stdout)
		}
	})
	t.Run("file is private and replaced as a whole", func(t *testing.T) {
		out := filepath.Join(dir, "secret")
		if err := os.WriteFile(out, []byte("a much longer old value, readable by all"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(out, filepath.Join(dir, "old")); err != nil {
			t.Fatal(err)
		}
		command(t, nil, with(flags, "get", "db/test", "--out", out)...).want(t, 0)
		got, err := os.ReadFile(out)
		if err != nil || string(got) != password {
			t.Errorf("%q: %v", got, err)
		}
		if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %s: %v", info.Mode(), err)
		}
		if old, _ := os.ReadFile(filepath.Join(dir, "old")); strings.Contains(string(old), "pa55") {
			t.Error("written in place: a reader may see half of it, and the old mode stays")
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".secret*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("folder", func(t *testing.T) {
		command(t, nil, with(flags, "get", "db/test", "disks/vm-1", "--out", dir+"/all/")...).want(t, 0)
		got, err := os.ReadFile(filepath.Join(dir, "all", "db", "test"))
		if err != nil || string(got) != password {
			t.Errorf("%q: %v", got, err)
		}
		if info, err := os.Stat(filepath.Join(dir, "all", "disks", "vm-1")); err != nil || info.Size() != 32 || info.Mode().Perm() != 0o600 {
			t.Errorf("disk key: %v", err)
		}
		if info, err := os.Stat(filepath.Join(dir, "all", "db")); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("folder: %v", err)
		}
	})
	t.Run("json", func(t *testing.T) {
		r := command(t, nil, with(flags, "get", "db/test", "disks/vm-1", "--output", "json")...).want(t, 0)
		var items []struct {
			Resource, Version string
			Value             []byte
			Expires           time.Time
		}
		if err := json.Unmarshal([]byte(r.stdout), &items); err != nil {
			t.Fatal(err)
		}
		if len(items) != 2 || items[0].Resource != "db/test" || string(items[0].Value) != password || items[0].Version != "1" || len(items[1].Value) != 32 {
			t.Errorf("got %s", r.stdout)
		}
		if d := time.Until(items[0].Expires); d <= 0 || d > time.Hour {
			t.Errorf("expires in %s", d)
		}
	})
	t.Run("exec", func(t *testing.T) {
		command(t, nil, with(flags, "exec", "-e", "PW=db/test")...).want(t, exitUsage, "after --")
		args := append(with(flags, "exec", "-e", "PW=db/test"), "--", "sh", "-c", `printf '%s|%s' "$PW" "$KEEP"; exit 7`)
		if r := command(t, []string{"KEEP=kept"}, args...).want(t, 7); r.stdout != password+"|kept" {
			t.Errorf("got %q", r.stdout)
		}
		args = append(with(flags, "exec", "-e", "PW=db/nul"), "--", "sh", "-c", "echo ran")
		if r := command(t, nil, args...).want(t, exitFailed, "db/nul", "NUL"); r.stdout != "" {
			t.Errorf("ran: %q", r.stdout)
		}
		command(t, nil, append(with(flags, "exec", "-e", "PW"), "--", "true")...).want(t, exitUsage, "NAME=RESOURCE")
		command(t, nil, append(with(flags, "exec"), "--", "true")...).want(t, exitUsage, "--env")
		command(t, nil, append(with(flags, "exec", "-e", "PW=db/test"), "--", "no-such-command")...).want(t, exitFailed, "no-such-command")
	})
	t.Run("denied", func(t *testing.T) {
		out := filepath.Join(dir, "denied")
		command(t, nil, with(flags, "get", "db/test", "--simulated-measurement", "evil", "--out", out)...).want(t, exitDenied, "denied the request", "audit log", "claviger audit tail --id ")
		command(t, nil, with(flags, "get", "no/such")...).want(t, exitDenied, "denied the request")
		if _, err := os.Stat(out); err == nil {
			t.Error("wrote a file")
		}
	})
	t.Run("another identity pinned", func(t *testing.T) {
		// Evidence is bound to the pinned broker, so this one could not use it: said before it is made.
		other := bytes.Clone(b.Server.Identity())
		other[len(other)-1] ^= 1
		r := command(t, nil, with(flags, "get", "db/test", "--identity", base64.StdEncoding.EncodeToString(other))...).want(t, exitFailed, "the pin is wrong")
		if r.stdout != "" {
			t.Errorf("got %q", r.stdout)
		}
	})
	t.Run("untrusted TLS", func(t *testing.T) {
		stranger := brokertest.Start(t, nil)
		begun := time.Now()
		r := command(t, nil, append(with(flags, "get", "db/test", "--ca", filepath.Join(stranger.Env.Dir, "ca.pem")), "--timeout", "1s")...)
		r.want(t, exitUnreachable, "no answer in time", "certificate")
		if d := time.Since(begun); d > 10*time.Second {
			t.Errorf("took %s", d)
		}
		command(t, nil, with(flags, "get", "db/test", "--ca", filepath.Join(b.Env.Dir, "device.json"))...).want(t, exitFailed, `no PEM block "CERTIFICATE"`)
	})
	t.Run("precedence", func(t *testing.T) {
		addr, _, _ := b.Server.Addresses()
		// The file is right, the variable is not: the variable counts. The flag counts more.
		env := []string{"CLAVIGER_BROKER=127.0.0.1:1"}
		command(t, env, append(with(flags, "get", "db/test"), "--timeout", "500ms")...).want(t, exitUnreachable, "127.0.0.1:1")
		command(t, env, append(with(flags, "get", "db/test"), "--broker", addr)...).want(t, 0)
		command(t, []string{"CLAVIGER_TIMEOUT=never"}, with(flags, "get", "db/test")...).want(t, 0)
		command(t, []string{"CLAVIGER_TIMEOUT=never"}, with(flags[:4], "get", "db/test")...).want(t, exitUsage, "never")
	})
	t.Run("receipt", func(t *testing.T) {
		file := filepath.Join(dir, "receipt.json")
		command(t, nil, with(flags, "get", "db/test", "--receipt", file, "--prove")...).want(t, 0)
		raw, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(raw), "pa55") || !strings.Contains(string(raw), `"checkpoint"`) {
			t.Errorf("%s: %v", raw, err)
		}
	})
}

// TestEnvironmentDoesNotBeatPin: at boot, words of the kernel's command line are
// variables of whoever init starts. Whom the measured file trusts, they do not change; where it says nothing, they count.
func TestEnvironmentDoesNotBeatPin(t *testing.T) {
	good, flags := start(t)
	evil, _ := start(t)
	if _, err := evil.Admin.PutSecret(t.Context(), &pb.PutSecretRequest{Key: "db/test", Value: []byte("the attacker's")}); err != nil {
		t.Fatal(err)
	}
	addr, _, _ := evil.Server.Addresses()
	identity, ca := base64.StdEncoding.EncodeToString(evil.Server.Identity()), filepath.Join(evil.Env.Dir, "ca.pem")
	env := []string{"CLAVIGER_IDENTITY=" + identity, "CLAVIGER_CA=" + ca}
	if r := command(t, env, with(flags, "get", "db/test")...).want(t, 0); r.stdout != password {
		t.Errorf("got %q", r.stdout)
	}
	if r := command(t, append(env, "CLAVIGER_BROKER="+addr), append(with(flags, "get", "db/test"), "--timeout", "2s")...); r.code == 0 {
		t.Errorf("got %q", r.stdout)
	}
	device := []string{"--simulated-device", filepath.Join(evil.Env.Dir, "device.json"), "--timeout", "20s"}
	byFlag := append(with(device, "get", "db/test", "--config", filepath.Join(good.Env.Dir, "agent.json")), "--identity", identity, "--ca", ca, "--broker", addr)
	if r := command(t, nil, byFlag...).want(t, 0); r.stdout != "the attacker's" {
		t.Errorf("a flag does not count: %q", r.stdout)
	}
	none := filepath.Join(t.TempDir(), "agent.json")
	if err := os.WriteFile(none, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := command(t, []string{env[0], env[1], "CLAVIGER_BROKER=" + addr}, with(device, "get", "db/test", "--config", none)...).want(t, 0); r.stdout != "the attacker's" {
		t.Errorf("a variable does not count where the file says nothing: %q", r.stdout)
	}
}

// TestUnreachable: nobody there, or somebody who says nothing: the deadline holds.
func TestUnreachable(t *testing.T) {
	_, flags := start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // accepts in the kernel, never answers
	for _, addr := range []string{"127.0.0.1:1", l.Addr().String()} {
		begun := time.Now()
		command(t, nil, append(with(flags, "get", "db/test"), "--broker", addr, "--timeout", "700ms")...).want(t, exitUnreachable, "no answer in time", addr)
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("%s: took %s", addr, d)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.json")
	if err := os.WriteFile(file, []byte(`{"broker":"a:1","simulated_device":"device.json"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	id := base64.StdEncoding.EncodeToString(make([]byte, 44))
	command(t, nil, "get", "x").want(t, exitUsage, "--broker", "CLAVIGER_BROKER", `"broker" in`, "agent.json")
	command(t, nil, "get", "x", "--broker", "a:1").want(t, exitUsage, "--identity", "CLAVIGER_IDENTITY", `"identity" in`)
	command(t, nil, "get").want(t, exitUsage, "at least one resource")
	command(t, nil, "get", "a", "b").want(t, exitUsage, "--output json")
	command(t, nil, "get", "a", "--output", "yaml").want(t, exitUsage, "yaml")
	command(t, nil, "get", "a", "--nope").want(t, exitUsage, "nope")
	command(t, nil, "fetch").want(t, exitUsage, "fetch")
	command(t, nil, "evidence", "x").want(t, exitUsage)
	command(t, nil, "get", "a", "--config", file).want(t, exitUsage, "simulated_device") // never from a file
	command(t, nil, "get", "a", "--config", file+".none").want(t, exitUsage, "configuration file")
	for text, want := range map[string]string{
		`{"broker":"a:1","broker":"b:1"}`:                        `"broker" occurs twice`,
		`{"Identity":"x"}`:                                       `"Identity" is not "identity"`,
		`{"volumes":[{"name":"root","Resource":"disks/other"}]}`: `in volumes[0]: the name "Resource" is not "resource"`,
		`{"volumes":[{"name":"root","format\u0000":"blank"}]}`:   "control characters",
		`{"broker":"a:1"} {"broker":"b:1"}`:                      "after top-level value",
	} {
		odd := filepath.Join(dir, "odd.json")
		if err := os.WriteFile(odd, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, nil, "get", "a", "--config", odd).want(t, exitUsage, "odd.json", want)
	}
	command(t, nil, "get", "a", "--broker", "a:1", "--identity", file).want(t, exitFailed, "PUBLIC KEY")
	command(t, nil, "get", "a", "--broker", "a:1", "--identity", id, "--simulated-measurement", "x").want(t, exitUsage, "--simulated-device")
	command(t, nil, "evidence", "--report-data", "zz").want(t, exitUsage, "hex")
	if r := command(t, nil); r.code != 0 || !strings.Contains(r.stdout, "claviger-agent") {
		t.Errorf("no help: %+v", r)
	}
}

// TestSmall: the agent fits an initramfs, and links nothing of the broker.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the command")
	}
	out, err := exec.Command("go", "list", "-deps", "-tags", "grpcnotrace", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	for _, big := range []string{"open-policy-agent", "etcd", "hashicorp/vault", "broker/rpc", "internal/server", "go-sev-guest", "prometheus"} {
		for _, d := range deps {
			if strings.Contains(d, big) {
				t.Errorf("links %s", d)
			}
		}
	}
	bin := filepath.Join(t.TempDir(), "claviger-agent")
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "grpcnotrace", "-o", bin, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	if mib := float64(info.Size()) / (1 << 20); mib > 15 {
		t.Errorf("%.1f MiB, want at most 15", mib)
	} else {
		t.Logf("%.1f MiB", mib)
	}
}

// TestUnwrap gets an exportable key of Vault's that the broker never sees, from the command line.
func TestUnwrap(t *testing.T) {
	v := testservers.StartVault(t)
	post := func(path string, body map[string]any) {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, v.Address+"/v1/"+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", v.Token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("%s: %s", path, resp.Status)
		}
	}
	post("sys/mounts/transit", map[string]any{"type": "transit"})
	post("transit/keys/app", map[string]any{"type": "aes256-gcm96", "exportable": true})
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(v.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	b := brokertest.Start(t, func(c *server.Config) {
		c.Vault = []server.Vault{{Name: "vault", Address: v.Address, TokenFile: token}}
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "export/app", Source: "vault", Kind: "transit_export", Key: "app", Policy: "disks"})
	})
	if _, err := b.Admin.PutSecret(t.Context(), &pb.PutSecretRequest{Key: "db/test", Value: []byte(password)}); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--config", filepath.Join(b.Env.Dir, "agent.json"), "--simulated-device", filepath.Join(b.Env.Dir, "device.json"), "--timeout", "20s"}
	out := filepath.Join(t.TempDir(), "app.key")
	command(t, nil, with(flags, "get", "export/app", "--unwrap", "--out", out)...).want(t, 0)
	key, err := os.ReadFile(out)
	if err != nil || len(key) != 32 {
		t.Fatalf("a key of %d bytes: %v", len(key), err)
	}
	again := command(t, nil, with(flags, "get", "export/app", "--unwrap")...).want(t, 0)
	if again.stdout != string(key) {
		t.Error("another key the second time")
	}
	command(t, nil, with(flags, "get", "db/test", "--unwrap")...).want(t, 1, "--unwrap", "db/test", "transit_export")
	command(t, nil, with(flags, "get", "export/app")...).want(t, 3)
}
