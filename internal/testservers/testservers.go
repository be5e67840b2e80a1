// Package testservers starts the real servers that tests talk to: HashiCorp
// Vault, PostgreSQL and etcd, as processes on loopback. They stop with the test.
package testservers

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Root is the repository's root folder.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// Skip leaves the test out of `make test-short`.
func skipShort(t testing.TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("needs a real %s server; left out with -short", what)
	}
}

// Vault is a running dev server.
type Vault struct {
	Address string
	Token   string
	CAFile  string // with TLS
	cmd     *exec.Cmd
}

// VaultBinary is the vault on PATH, else the one that `make vault` built.
func VaultBinary(t testing.TB) string {
	t.Helper()
	skipShort(t, "HashiCorp Vault")
	bin, err := exec.LookPath("vault")
	if err != nil {
		bin = filepath.Join(Root(t), ".cache", "bin", "vault")
		if _, err := os.Stat(bin); err != nil {
			t.Fatalf("no vault on PATH and none built: run `make vault` (about 6 minutes, once), or `make test-short`: %v", err)
		}
	}
	return bin
}

// PostgresPlugin is Vault's plugin postgresql-database-plugin, which StartVault makes known to it.
func PostgresPlugin(t testing.TB) string {
	t.Helper()
	path := filepath.Join(Root(t), ".cache", "bin", "plugins", "postgresql-database-plugin")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no PostgreSQL plugin for Vault: run `make vault`: %v", err)
	}
	return path
}

// StartVault starts a dev server on loopback, without TLS.
func StartVault(t testing.TB) *Vault {
	t.Helper()
	addr := freeAddr(t)
	return startVault(t, "http://"+addr, http.DefaultClient, "-dev", "-dev-listen-address="+addr)
}

// StartVaultTLS starts one whose listener has TLS, with a certificate of CAFile's CA.
func StartVaultTLS(t testing.TB) *Vault {
	t.Helper()
	addr, dir := freeAddr(t), t.TempDir()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // only to see that it is there
	defer transport.CloseIdleConnections()
	v := startVault(t, "https://"+addr, &http.Client{Transport: transport}, "-dev-tls", "-dev-tls-cert-dir="+dir, "-dev-listen-address="+addr)
	v.CAFile = filepath.Join(dir, "vault-ca.pem")
	return v
}

func startVault(t testing.TB, address string, client *http.Client, args ...string) *Vault {
	t.Helper()
	bin := VaultBinary(t)
	args = append([]string{"server", "-dev-root-token-id=root", "-dev-no-store-token", "-log-level=warn"}, args...)
	if plugins := filepath.Join(Root(t), ".cache", "bin", "plugins"); exists(plugins) {
		args = append(args, "-dev-plugin-dir="+plugins)
	}
	v := &Vault{Address: address, Token: "root", cmd: exec.Command(bin, args...)}
	v.cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	start(t, v.cmd)
	waitFor(t, "vault", func() error {
		resp, err := client.Get(v.Address + "/v1/sys/health")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("health: %s", resp.Status)
		}
		return nil
	})
	return v
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Pause stops the process, as a stalled server would, and returns when it stands still.
func (v *Vault) Pause(t testing.TB) {
	t.Helper()
	signal(t, v.cmd, stopSignal)
	stopped(t, v.cmd)
}

// Resume lets it go on.
func (v *Vault) Resume(t testing.TB) { signal(t, v.cmd, contSignal) }

// Kill ends it.
func (v *Vault) Kill(t testing.TB) {
	t.Helper()
	if err := v.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = v.cmd.Wait()
}

// Etcd is a cluster of processes.
type Etcd struct {
	Endpoints []string
	members   []*exec.Cmd
}

// StartEtcd starts a cluster of n members, built from the very version in go.mod.
func StartEtcd(t testing.TB, n int) *Etcd {
	t.Helper()
	skipShort(t, "etcd")
	bin := filepath.Join(Root(t), ".cache", "bin", "etcd")
	build := exec.Command("go", "build", "-o", bin, "go.etcd.io/etcd/server/v3")
	build.Dir = Root(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build etcd: %v\n%s", err, out)
	}
	e := &Etcd{}
	var peers, cluster []string
	for i := range n {
		e.Endpoints = append(e.Endpoints, "http://"+freeAddr(t))
		peers = append(peers, "http://"+freeAddr(t))
		cluster = append(cluster, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	for i := range n {
		cmd := exec.Command(bin, "--name", fmt.Sprintf("m%d", i), "--data-dir", t.TempDir(), "--log-level", "error",
			"--listen-client-urls", e.Endpoints[i], "--advertise-client-urls", e.Endpoints[i],
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(cluster, ","), "--heartbeat-interval", "50", "--election-timeout", "500")
		start(t, cmd)
		e.members = append(e.members, cmd)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: e.Endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waitFor(t, "etcd", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Get(ctx, "probe")
		return err
	})
	return e
}

// Kill ends member i as a power cut would.
func (e *Etcd) Kill(t testing.TB, i int) {
	t.Helper()
	if err := e.members[i].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = e.members[i].Wait()
}

func start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	t.Cleanup(func() {
		killGroup(cmd)
		_ = cmd.Wait()
		if t.Failed() && out.Len() > 0 {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), out.String())
		}
	})
}

func waitFor(t testing.TB, what string, ready func() error) {
	t.Helper()
	var err error
	for range 600 {
		if err = ready(); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s did not get ready: %v", what, err)
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
