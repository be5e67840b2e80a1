package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// edited is a copy of a configuration file with more in it.
func edited(t *testing.T, file string, more map[string]any) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg := map[string]any{}
	if err := json.Unmarshal(b, &cfg); err != nil {
		t.Fatal(err)
	}
	for k, v := range more {
		cfg[k] = v
	}
	if b, err = json.Marshal(cfg); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "agent.json")
	if err := os.WriteFile(out, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBrokerList(t *testing.T) {
	b, flags := start(t)
	addr, _, _ := b.Server.Addresses()
	rest := flags[2:]
	array := edited(t, flags[1], map[string]any{"broker": []string{"127.0.0.1:1", addr}})
	command(t, nil, with(rest, "get", "db/test", "--config", array)...).want(t, 0)
	command(t, []string{"CLAVIGER_BROKER=127.0.0.1:1, " + addr}, with(flags, "get", "db/test")...).want(t, 0)
	command(t, nil, with(flags, "get", "db/test", "--broker", addr+",nonsense")...).want(t, exitFailed, `"nonsense"`, "host:port")
	for field, c := range map[string]map[string]any{
		"broker: want":    {"broker": 7},
		"network.address": {"network": map[string]any{"address": "10.0.2.15"}},
		"network.gateway": {"network": map[string]any{"address": "10.0.2.15/24", "gateway": "::1"}},
		"network.dns[0]":  {"network": map[string]any{"dns": []string{"dns.example"}}},
		"nameserver":      {"network": map[string]any{"nameserver": "10.0.2.3"}},
	} {
		command(t, nil, with(rest, "get", "db/test", "--config", edited(t, flags[1], c))...).want(t, exitUsage, field)
	}
}

// TestNetworkAtBoot: a machine that has nothing but lo says so, once; when its
// card appears, it gives it its address, and asks.
func TestNetworkAtBoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	for _, tool := range []string{"ip", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	b, flags := start(t)
	addr, _, _ := b.Server.Addresses()

	// The broker's side of the cable: a network of its own, from which connections are passed on.
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
	ip("link", "add", "h0", "type", "veth", "peer", "name", "g0")
	ip("addr", "add", "192.0.2.2/24", "dev", "h0")
	ip("link", "set", "h0", "up")
	l, err := net.Listen("tcp", "192.0.2.2:7443")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go passOn(l, addr)

	cfg := edited(t, flags[1], map[string]any{"broker": "192.0.2.2:7443", "server_name": "localhost", "network": map[string]any{"address": "192.0.2.15/24", "gateway": "192.0.2.2"}})
	c := exec.CommandContext(t.Context(), "unshare", append([]string{"-n", os.Args[0], "get", "db/test", "--config", cfg}, flags[2:]...)...)
	c.Env = []string{"TEST_AS_COMMAND=1", "PATH=" + os.Getenv("PATH")}
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second) // longer than it waits before its first attempt
	ip("link", "set", "g0", "netns", strconv.Itoa(c.Process.Pid))
	begun := time.Now()
	if err := c.Wait(); err != nil || out.String() != password {
		t.Fatalf("got %q: %v\n%s", out.String(), err, errs.String())
	}
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("asked only %s after the network was there", d)
	}
	const said = "no network interface but lo"
	if n := strings.Count(errs.String(), said); n != 1 {
		t.Errorf("said %q %d times:\n%s", said, n, errs.String())
	}
}

// passOn passes connections on to a broker; who dials is a thread in the broker's network.
func passOn(l net.Listener, addr string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			up, err := net.Dial("tcp", addr)
			if err != nil {
				return
			}
			defer up.Close()
			go func() { _, _ = io.Copy(up, c) }()
			_, _ = io.Copy(c, up)
		}()
	}
}

// TestBuiltAt: the linker's word counts, and nonsense is no date, which would make every clock wrong.
func TestBuiltAt(t *testing.T) {
	defer func(was string) { built = was }(built)
	built = "2026-01-02T03:04:05+02:00"
	if got, want := builtAt(), time.Date(2026, 1, 2, 1, 4, 5, 0, time.UTC); !got.Equal(want) {
		t.Errorf("got %s, want %s", got, want)
	}
	built = "yesterday"
	if got := builtAt(); !got.IsZero() {
		t.Errorf("got %s", got)
	}
}
