package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// background runs claviger-agent until stopped.
type background struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *background) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func run2(t *testing.T, args ...string) *background {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	b := &background{cmd: exec.CommandContext(ctx, os.Args[0], args...)}
	b.cmd.Env = []string{"TEST_AS_COMMAND=1", "PATH=" + os.Getenv("PATH")}
	b.cmd.Stdout, b.cmd.Stderr = b, b
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *background) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 300 {
		if ok() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("never: %s; it said:\n%s", what, b.said())
}

// stop sends SIGTERM and returns the exit code.
func (b *background) stop(t *testing.T) int {
	t.Helper()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	_ = b.cmd.Wait()
	return b.cmd.ProcessState.ExitCode()
}

// TestServe: files that follow a rotation at the broker, a command that runs
// then, wiped at the end; and a denial that ends it with its own code.
func TestServe(t *testing.T) {
	b, base := start(t)
	shm, err := os.MkdirTemp("/dev/shm", "claviger-test-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	dir, ran := filepath.Join(shm, "secrets"), filepath.Join(shm, "ran")
	put := func(value string) {
		t.Helper()
		if _, err := b.Admin.PutSecret(t.Context(), &pb.PutSecretRequest{Key: "db/test", Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want string) func() bool {
		return func() bool {
			got, _ := os.ReadFile(filepath.Join(dir, "current", "db", "test"))
			return string(got) == want
		}
	}
	a := run2(t, with(base, "serve", "db/test", "--dir", dir, "--on-change", "touch "+ran, "--socket", filepath.Join(shm, "sock"))...)
	a.until(t, "the first version", has(password))
	a.until(t, "the command ran", func() bool { _, err := os.Stat(ran); return err == nil })
	put("second")
	a.until(t, "the second version", has("second"))
	a.until(t, "acknowledged", func() bool {
		h, err := b.Admin.ListHolders(t.Context(), &pb.ListHoldersRequest{Resource: "db/test"})
		return err == nil && len(h.GetHolders()) == 1 && h.GetHolders()[0].GetVersion() == "2"
	})
	if strings.Contains(a.said(), "second") {
		t.Errorf("a secret stands in the log: %s", a.said())
	}
	if code := a.stop(t); code != 0 {
		t.Errorf("exit code %d: %s", code, a.said())
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	denied := run2(t, with(base, "serve", "db/test", "--dir", dir, "--simulated-measurement", "evil")...)
	_ = denied.cmd.Wait()
	if code := denied.cmd.ProcessState.ExitCode(); code != exitDenied {
		t.Errorf("exit code %d: %s", code, denied.said())
	}
	config := filepath.Join(t.TempDir(), "agent.json")
	for text, want := range map[string]string{
		`{"broker":"x:1","identity":"x","serve":{"fils":[]}}`:                                       "fils",
		`{"broker":"x:1","identity":"x","serve":{"files":[{"resource":"a","mode":"rw"}]}}`:          "mode",
		`{"broker":"x:1","identity":"x","serve":{"on_change":{"pid_file":"p","signal":"SIGNONE"}}}`: "SIGNONE",
	} {
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, nil, "serve", "--config", config, "--identity", filepath.Join(b.Env.Dir, "identity.pem")).want(t, exitUsage, want)
	}
}

// TestExecWatch: the command restarts with the new secret, and its exit code is the agent's.
func TestExecWatch(t *testing.T) {
	b, base := start(t)
	a := run2(t, append(with(base, "exec", "--watch", "restart", "--env", "P=db/test"), "--", "sh", "-c", `echo "got $P"; test "$P" = bye && exit 7; while :; do sleep 0.05; done`)...)
	a.until(t, "the first run", func() bool { return strings.Contains(a.said(), "got pa55 word") })
	if _, err := b.Admin.PutSecret(t.Context(), &pb.PutSecretRequest{Key: "db/test", Value: []byte("bye")}); err != nil {
		t.Fatal(err)
	}
	_ = a.cmd.Wait()
	if code := a.cmd.ProcessState.ExitCode(); code != 7 || !strings.Contains(a.said(), "got bye") {
		t.Errorf("exit code %d: %s", code, a.said())
	}
	command(t, nil, with(base, "exec", "--watch", "sometimes", "--env", "P=db/test", "true")...).want(t, exitUsage, "--watch")
}
