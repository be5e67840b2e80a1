// Package e2e boots virtual machines whose disks open only with a key from a
// broker: the real commands, a real HashiCorp Vault, OVMF's measured boot, a
// software TPM with a certified endorsement key, Debian's kernel. Nothing in
// that chain is simulated but the silicon: it is measured boot with a TPM, not
// confidential computing, as the host here can read the guest's memory.
//
// It takes minutes, so `make e2e-boot` and `make e2e-boot-full` ask for it.
package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/claviger/claviger/internal/dev"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
)

// need skips unless this level was asked for: "boot" or "full".
func need(t *testing.T, level string) {
	t.Helper()
	switch got := os.Getenv("CLAVIGER_E2E"); {
	case got == "":
		t.Skip("boots virtual machines; run `make e2e-boot` or `make e2e-boot-full`")
	case level == "full" && got != "full":
		t.Skip("run `make e2e-boot-full`")
	}
	testservers.NeedGuests(t)
}

// world is a broker as its operator runs it, and what machines are made of.
type world struct {
	root     string // of the repository
	dir      string // short: sockets live here
	env      []string
	config   server.Config
	identity string // of the broker, base64
	ca       string // PEM file
	port     string
	maker    *testservers.TPMMaker
	vault    *testservers.Vault
	kernel   string
	modules  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{root: testservers.Root(t)}
	var err error
	if w.dir, err = os.MkdirTemp("/tmp", "e2e-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(w.dir) })
	w.kernel = filepath.Join(w.root, ".cache", "kernel", "vmlinuz")
	modules, err := filepath.Glob(filepath.Join(w.root, ".cache", "kernel", "lib", "modules", "*"))
	if err != nil || len(modules) != 1 {
		t.Fatalf("no kernel in .cache/kernel: run `make e2e-boot`, which fetches it")
	}
	w.modules = modules[0]
	w.maker = w.newMaker(t, "maker")
	w.vault = testservers.StartVault(t)
	w.startBroker(t, w.vault)
	return w
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// newMaker is a TPM manufacturer. Its CA comes with its first TPM.
func (w *world) newMaker(t *testing.T, name string) *testservers.TPMMaker {
	t.Helper()
	m, err := testservers.MakeTPMMaker(w.path(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Make(w.path(name+"-first"), "first"); err != nil {
		t.Fatal(err)
	}
	return m
}

// startBroker sets Vault up by deploy/vault/setup.sh and runs `claviger serve` with a production configuration.
func (w *world) startBroker(t *testing.T, v *testservers.Vault) {
	t.Helper()
	setup := exec.Command(filepath.Join(w.root, "deploy", "vault", "setup.sh"))
	setup.Env = append(os.Environ(), "VAULT="+testservers.VaultBinary(t), "VAULT_ADDR="+v.Address, "VAULT_TOKEN="+v.Token,
		"SECRET_ID_FILE="+w.path("secret-id"), "HOME="+w.dir)
	setup.Stderr = os.Stderr
	printed, err := setup.Output()
	if err != nil {
		t.Fatalf("deploy/vault/setup.sh: %v", err)
	}
	var fromSetup server.Config
	if err := yaml.Unmarshal(printed, &fromSetup); err != nil {
		t.Fatal(err)
	}
	// For its certificates and its copy of the example policies only: no test root is configured below.
	files, err := dev.Prepare(w.path("files"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.ca = w.path("files", "ca.pem")
	w.withoutSecureBoot(t)
	w.laterPolicy(t)
	listen, admin := freePort(t), freePort(t)
	_, w.port, _ = net.SplitHostPort(listen)
	noLimit := 0.0
	w.config = server.Config{
		Listen: listen, Metrics: "off", DataDir: w.path("data"),
		TLS:    files.Config.TLS,
		Admin:  server.Admin{Listen: admin, ClientCA: w.ca, Operators: files.Config.Admin.Operators},
		Policy: files.Config.Policy,
		Vault:  fromSetup.Vault,
		Evidence: server.Evidence{Offline: true, TPM: server.TPM{
			EKRoots: w.maker.Root, EKIntermediates: w.maker.Intermediate,
		}},
		Limits: server.Limits{PeerRate: &noLimit},
		Catalog: []server.Entry{
			{Pattern: "disks/{chip}", Source: "vault", Key: "disks/{chip}", Policy: "measured_boot", CreateBytes: 32, Rekey: true},
			{Pattern: "grub/{chip}", Source: "vault", Key: "disks/{chip}", Policy: "measured_boot_grub", CreateBytes: 32},
			// For what is opened later in the boot, when the door of the first is closed.
			{Pattern: "later/{chip}/{name}", Source: "local", Key: "later/{chip}/{name}", Policy: "measured_boot_later", CreateBytes: 32},
		},
		Log: server.LogConfig{Format: "text", Level: "warn"},
	}
	b, err := yaml.Marshal(w.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.path("claviger.yaml"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	w.env = append(os.Environ(), "CLAVIGER_ADMIN="+admin, "CLAVIGER_ADMIN_CA="+w.ca,
		"CLAVIGER_ADMIN_CERT="+w.path("files", "operator.pem"), "CLAVIGER_ADMIN_KEY="+w.path("files", "operator.key"))
	serve := exec.Command(w.bin("claviger"), "serve", "--config", w.path("claviger.yaml"))
	var said bytes.Buffer
	serve.Stdout, serve.Stderr = &said, &said
	if err := serve.Start(); err != nil {
		t.Fatalf("start the broker: %v", err)
	}
	t.Cleanup(func() {
		_ = serve.Process.Signal(os.Interrupt)
		_ = serve.Wait()
		if t.Failed() {
			t.Logf("the broker said:\n%s", said.String())
		}
	})
	var status struct {
		Identity string `json:"identity"`
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := w.try("claviger", "status", "--output", "json")
		if err == nil {
			if err := json.Unmarshal([]byte(out), &status); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the broker did not start: %v\n%s", err, said.String())
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.identity = status.Identity
	if der, err := base64.StdEncoding.DecodeString(w.identity); err != nil || len(der) == 0 {
		t.Fatalf("status says identity %q: %v", w.identity, err)
	}
}

// withoutSecureBoot takes the demand for Secure Boot out of measured_boot: the firmware of most of these machines has no keys.
func (w *world) withoutSecureBoot(t *testing.T) {
	t.Helper()
	file := w.path("files", "policies", "measured_boot", "measured_boot.rego")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `"secure_boot": true`, `"secure_boot": "any"`, 1)
	if text == string(b) {
		t.Fatal("measured_boot does not demand Secure Boot")
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// laterPolicy is measured_boot for the running system: without the door that `unlock` closes behind the root disk.
func (w *world) laterPolicy(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(w.path("files", "policies", "measured_boot", "measured_boot.rego"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), "package claviger.release.measured_boot", "package claviger.release.measured_boot_later", 1)
	text = strings.Replace(text, "deny contains r if some r in tpm.door_denials(15)", "", 1)
	dir := w.path("files", "policies", "measured_boot_later")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "later.rego"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (w *world) bin(name string) string { return filepath.Join(w.root, "bin", name) }

// try runs one of our commands as the operator.
func (w *world) try(name string, args ...string) (string, error) {
	return w.tryWith(nil, name, args...)
}

func (w *world) tryWith(stdin []byte, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, w.bin(name), args...)
	c.Env, c.Stdin = w.env, bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (w *world) command(t *testing.T, name string, args ...string) string {
	t.Helper()
	return w.commandWith(t, nil, name, args...)
}

func (w *world) commandWith(t *testing.T, stdin []byte, name string, args ...string) string {
	t.Helper()
	out, err := w.tryWith(stdin, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// decision is one entry of the audit log.
type decision struct {
	Index uint64 `json:"index"`
	Entry struct {
		Outcome   string `json:"outcome"`
		Unproven  bool   `json:"unproven"`
		Simulated bool   `json:"simulated"`
		Error     string `json:"error"`
		ChipID    string `json:"chip_id"`
		Resources []struct {
			Path    string `json:"path"`
			Version string `json:"version"`
			Reasons []struct {
				Rule    string `json:"rule"`
				Claim   string `json:"claim"`
				Got     string `json:"got"`
				Nearest string `json:"nearest"`
			} `json:"reasons"`
		} `json:"resources"`
	} `json:"entry"`
}

func (d decision) rules() string {
	var all []string
	for _, r := range d.Entry.Resources {
		for _, reason := range r.Reasons {
			all = append(all, reason.Rule)
		}
	}
	return strings.Join(all, " ")
}

// lastDecision is what `claviger audit tail` shows last.
func (w *world) lastDecision(t *testing.T) decision {
	t.Helper()
	time.Sleep(600 * time.Millisecond) // a checkpoint
	var d decision
	out := w.command(t, "claviger", "audit", "tail", "--limit", "1", "--output", "json")
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("audit tail: %v\n%s", err, out)
	}
	return d
}

// machine is what outlives a guest's power cycles: its TPM, its firmware's variables and its disk.
type machine struct {
	w    *world
	name string
	tpm  string
	vars string
	disk string
	more []string // further disks

	firmware string
	secure   bool
	memoryMB int
}

// image is what a machine boots: a kernel directly, or EFI programs from a folder.
type image struct {
	kernel, initrd, cmdline string
	esp                     string
	compute                 []string // what `claviger reference compute tpm` is told about it
}

func (w *world) newMachine(t *testing.T, name string, maker *testservers.TPMMaker, diskMB int64) *machine {
	t.Helper()
	m := &machine{w: w, name: name, memoryMB: 512, firmware: filepath.Join(testservers.OVMF, "OVMF_CODE_4M.fd"), tpm: w.path(name, "tpm"), vars: w.path(name, "vars.fd"), disk: w.path(name, "disk.img")}
	if err := maker.Make(m.tpm, name); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(testservers.OVMF, "OVMF_VARS_4M.fd"), m.vars)
	m.blankDisk(t, diskMB)
	return m
}

func (m *machine) blankDisk(t *testing.T, mb int64) {
	t.Helper()
	f, err := os.Create(m.disk)
	if err == nil {
		err = f.Truncate(mb << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// secureBoot gives the machine firmware with Secure Boot on, and with the keys of a file of OVMF's.
func (m *machine) secureBoot(t *testing.T, vars string) {
	t.Helper()
	m.secure, m.firmware = true, filepath.Join(testservers.OVMF, "OVMF_CODE_4M.secboot.fd")
	copyFile(t, filepath.Join(testservers.OVMF, vars), m.vars)
}

// boot starts the machine.
func (m *machine) boot(t *testing.T, i image) *testservers.Guest {
	t.Helper()
	return testservers.StartGuest(t, testservers.GuestConfig{
		Dir: m.w.path(m.name), TPMState: m.tpm, Firmware: m.firmware, Vars: m.vars, Secure: m.secure,
		Kernel: i.kernel, Initrd: i.initrd, Cmdline: i.cmdline, ESP: i.esp, Disks: append([]string{m.disk}, m.more...), Network: true, MemoryMB: m.memoryMB,
	})
}

// direct is a kernel that QEMU starts.
func (m *machine) direct(kernel, initrd, cmdline string) image {
	return image{kernel: kernel, initrd: initrd, cmdline: cmdline, compute: []string{
		"--kernel", kernel, "--initrd", initrd, "--cmdline", cmdline, "--memory", fmt.Sprintf("%dM", m.memoryMB)}}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
