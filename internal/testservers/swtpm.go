package testservers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TPMMaker is a TPM manufacturer's CA for swtpm: software TPMs with
// certificates like those of real ones.
type TPMMaker struct {
	Dir string
	// Root and Intermediate are PEM files. They exist once the first TPM was made.
	Root, Intermediate string
}

// NewTPMMaker makes a CA.
func NewTPMMaker(t testing.TB) *TPMMaker {
	t.Helper()
	skipShort(t, "swtpm")
	for _, tool := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (Debian: apt-get install swtpm swtpm-tools): %v", tool, err)
		}
	}
	m, err := MakeTPMMaker(filepath.Join(t.TempDir(), "tpm-maker"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// MakeTPMMaker makes a CA's folder.
func MakeTPMMaker(dir string) (*TPMMaker, error) {
	m := &TPMMaker{Dir: dir, Root: filepath.Join(dir, "swtpm-localca-rootca-cert.pem"), Intermediate: filepath.Join(dir, "issuercert.pem")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"setup.conf":   fmt.Sprintf("create_certs_tool=/usr/bin/swtpm_localca\ncreate_certs_tool_config=%[1]s/localca.conf\ncreate_certs_tool_options=%[1]s/localca.options\nactive_pcr_banks=sha256\n", dir),
		"localca.conf": fmt.Sprintf("statedir=%[1]s\nsigningkey=%[1]s/signkey.pem\nissuercert=%[1]s/issuercert.pem\ncertserial=%[1]s/certserial\n", dir),
		"localca.options": "--tpm-manufacturer id:00001014 --tpm-model swtpm --tpm-version id:20191023\n" +
			"--platform-manufacturer QEMU --platform-version 7.2 --platform-model virt\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Make makes a TPM's state with endorsement key certificates, in a folder of its own.
func (m *TPMMaker) Make(dir, name string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cmd := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", dir, "--config", filepath.Join(m.Dir, "setup.conf"),
		"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--vmid", name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm_setup: %w\n%s", err, out)
	}
	return nil
}

// StartTPM starts a TPM of this maker and returns the path of its Unix socket.
// The state folder is made if it does not exist; starting again on it is a reboot.
func (m *TPMMaker) StartTPM(t testing.TB, state, name string) string {
	t.Helper()
	if _, err := os.Stat(state); err != nil {
		if err := m.Make(state, name); err != nil {
			t.Fatal(err)
		}
	}
	// Unix socket paths are short.
	dir, err := os.MkdirTemp("/tmp", "claviger-tpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "tpm")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+filepath.Join(dir, "ctrl"), "--flags", "not-need-init,startup-clear")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 500 {
		// (The socket is there a moment before anybody listens.)
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("swtpm did not start")
	return ""
}
