package testservers

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Section of a unified kernel image.
type Section struct{ Name, File string }

// BuildUKI puts sections behind a stub of systemd 252 or older, as one did
// before there was ukify: .osrel, .cmdline, .linux, .initrd, in this order.
func BuildUKI(t testing.TB, stub, out string, sections ...Section) {
	t.Helper()
	address := map[string]string{".osrel": "0x20000", ".cmdline": "0x30000", ".linux": "0x2000000", ".initrd": "0x3000000"}
	var args []string
	for _, s := range sections {
		args = append(args, "--add-section", s.Name+"="+s.File, "--change-section-vma", s.Name+"="+address[s.Name])
	}
	if b, err := exec.Command("objcopy", append(args, stub, out)...).CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v\n%s", err, b)
	}
}

// SignEFI signs an EFI program for Secure Boot with the key that Debian
// publishes for OVMF_VARS_4M.snakeoil.fd. It skips the test without sbsign.
func SignEFI(t testing.TB, program, out string) {
	t.Helper()
	const snakeoil = "/usr/share/ovmf/PkKek-1-snakeoil"
	key := filepath.Join(t.TempDir(), "key.pem")
	for _, cmd := range [][]string{
		{"openssl", "rsa", "-in", snakeoil + ".key", "-passin", "pass:snakeoil", "-out", key},
		{"sbsign", "--key", key, "--cert", snakeoil + ".pem", "--output", out, program},
	} {
		if b, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no image is signed (Debian: apt-get install sbsigntool): %v\n%s", err, b)
		}
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
}
