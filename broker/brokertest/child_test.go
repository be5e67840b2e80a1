package brokertest

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/tee"
	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
)

// A child is a broker in a process of its own, so that it can be killed as a
// power cut does. The test binary runs itself again.
type child struct {
	Config server.Config
	Roots  map[string][]byte // ARK by product, DER
	Addr   string            // file to write the addresses to
}

const childEnv = "CLAVIGER_TEST_CHILD"

func TestMain(m *testing.M) {
	if file := os.Getenv(childEnv); file != "" {
		if err := runChild(file); err != nil {
			fmt.Fprintln(os.Stderr, "child broker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var c child
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	var roots []tee.TestRoot
	for product, der := range c.Roots {
		ark, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		roots = append(roots, tee.TestRoot{Product: product, ARK: ark})
	}
	s, err := server.Start(ctx, c.Config, server.Options{Version: "child", TestRoots: roots, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	workloads, _, _ := s.Addresses()
	if err := os.WriteFile(c.Addr+".tmp", []byte(workloads), 0o600); err != nil {
		return err
	}
	if err := os.Rename(c.Addr+".tmp", c.Addr); err != nil {
		return err
	}
	return s.Wait(ctx)
}

// startChild runs a broker with this configuration until it is killed or the test ends.
func startChild(t *testing.T, env *dev.Env, cfg server.Config) (addr string, kill func()) {
	t.Helper()
	dir := t.TempDir()
	c := child{Config: cfg, Roots: map[string][]byte{}, Addr: filepath.Join(dir, "addr")}
	for _, r := range env.TestRoots() {
		c.Roots[r.Product] = r.ARK.Raw
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "child.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+file)
	var out strings.Builder
	cmd.Stderr = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	kill = func() { _ = cmd.Process.Kill(); <-done }
	t.Cleanup(func() {
		kill()
		if t.Failed() {
			t.Logf("the child broker said:\n%s", out.String())
		}
	})
	for range 400 {
		if b, err := os.ReadFile(c.Addr); err == nil {
			return string(b), kill
		}
		select {
		case <-done:
			t.Fatalf("the child broker ended:\n%s", out.String())
		case <-time.After(25 * time.Millisecond):
		}
	}
	t.Fatal("the child broker did not start")
	return "", nil
}
