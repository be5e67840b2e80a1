package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// startDev runs `claviger dev` in a process of its own until the test ends.
func startDev(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0], "dev", "--dir", dir, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
	c.Env = append(os.Environ(), "TEST_AS_COMMAND=1")
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	serving := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			if strings.Contains(lines.Text(), "msg=serving") {
				serving <- true
			}
		}
	}()
	for range 600 {
		if _, err := os.Stat(filepath.Join(dir, "env")); err == nil && len(serving) > 0 {
			return c
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("claviger dev does not serve")
	return nil
}

// TestOneProcess: a second broker on the same folder is refused before it writes anything, and the first one goes on.
func TestOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	first := startDev(t, dir)
	before, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	command(t, nil, "dev", "--dir", dir, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "off").want(t, 1, "in use by another broker")
	after, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil || string(after) != string(before) {
		t.Error("the second one changed the first one's certificates")
	}
	file := write(t, filepath.Join(t.TempDir(), "c.yaml"), []byte(`
listen: 127.0.0.1:0
tls: {cert: `+dir+`/server.pem, key: `+dir+`/server.key}
admin: {listen: off}
metrics_listen: off
data_dir: `+dir+`/data
policy: {dir: `+dir+`/policies}
evidence: {offline: true}
`))
	command(t, nil, "serve", "--config", file).want(t, 1, "in use by another broker")
	command(t, nil, "serve", "--config", file, "--check").want(t, 0, "a broker would start with it")

	// SIGHUP ends nothing; SIGTERM does.
	if err := first.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if err := first.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatal("SIGHUP ended the broker: ", err)
	}
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- first.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("SIGTERM did not end the broker")
	}
}

// TestServeCheck: what is wrong is said with file, line and field, all at once, and nothing is started or written.
func TestServeCheck(t *testing.T) {
	dir := t.TempDir()
	check := func(text string) result {
		file := write(t, filepath.Join(dir, "c.yaml"), []byte(text))
		return command(t, nil, "serve", "--config", file, "--check")
	}
	check("listen: 127.0.0.1:0\nlimts: {}\n").want(t, 1, "c.yaml", "line 2", "limts")
	check(`listen: 127.0.0.1:0
tls: {cert: /none.pem, key: /none.key}
admin: {listen: off}
policy: {dir: /none}
sessions:
  max: -4
nonce_lifetime: 1ms
catalog:
  - {pattern: "a/{x}", source: local, key: k, policy: p}
  - {pattern: "b/{x}", source: vualt, key: k, policy: p}
`).want(t, 1, "c.yaml:6: sessions.max", "c.yaml:7: nonce_lifetime", "c.yaml:10: catalog[1].source")
	data := filepath.Join(dir, "data")
	check("tls: {cert: /none.pem, key: /none.key}\nadmin: {listen: off}\ndata_dir: "+data+"\npolicy:\n  dir: /none\n").want(t, 1, "c.yaml:1: tls", "c.yaml:5: policy.dir")
	if _, err := os.Stat(data); err == nil {
		t.Error("--check made the data folder")
	}
	// An entry by which nothing could be released.
	policies := t.TempDir()
	write(t, filepath.Join(policies, "own.rego"), []byte("package claviger.release.own\n\ndefault allow := false\n\nallow if input.attestation.host_data == crypto.sha256(input.resource.params.vm)\n"))
	check("tls: {cert: /none.pem, key: /none.key}\nadmin: {listen: off}\npolicy: {dir: "+policies+"}\ncatalog:\n  - {pattern: \"a/{vm}\", source: local, key: k, policy: own}\n  - {pattern: \"b/{host}\", source: local, key: k, policy: own}\n").
		want(t, 1, "c.yaml:6: catalog[1].policy", "{vm} in the pattern")
}

// TestDevFolder: the folder's name is no part of a command, and another user's folder is not taken.
func TestDevFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a;touch pwned '$(touch pwned)'")
	startDev(t, dir)
	sh := exec.Command("sh", "-c", `. "$1/env" && printf %s "$CLAVIGER_DEV"`, "sh", dir)
	sh.Dir = t.TempDir()
	out, err := sh.Output()
	if err != nil || string(out) != dir {
		t.Errorf("CLAVIGER_DEV=%q, want %q: %v", out, dir, err)
	}
	if entries, _ := os.ReadDir(sh.Dir); len(entries) > 0 {
		t.Errorf("the file env ran a command: %v", entries)
	}
	if os.Geteuid() == 0 {
		other := filepath.Join(t.TempDir(), "other")
		if err := os.Mkdir(other, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(other, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		command(t, nil, "dev", "--dir", other).want(t, 1, "belongs to user 12345")
	}
}

// TestHelpText: each command that does something has an example, and no usage has a quote that the help would take for a flag's argument.
func TestHelpText(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if strings.Contains(f.Usage, "`") {
				t.Errorf("%s --%s: %s", c.CommandPath(), f.Name, f.Usage)
			}
		})
		if c.Runnable() && !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newCommand())
}
