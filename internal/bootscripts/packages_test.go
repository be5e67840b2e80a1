package bootscripts

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPackages: packages say what they are for, are the same whoever builds them,
// and work whatever that user's umask. The programs in them are stand-ins, for another machine.
func TestPackages(t *testing.T) {
	for _, p := range []string{"bash", "dpkg-deb", "git"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
	var first map[string][32]byte
	for _, umask := range []int{0o022, 0o077} {
		dir := t.TempDir()
		old := syscall.Umask(umask)
		debs := buildPackages(t, dir)
		syscall.Umask(old)
		if len(debs) != 5 {
			t.Fatalf("packages %v", debs)
		}
		sums := map[string][32]byte{}
		for _, deb := range debs {
			b, err := os.ReadFile(deb)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Base(deb)
			sums[name] = sha256.Sum256(b)
			if first != nil && first[name] != sums[name] {
				t.Errorf("%s: the same files make another package under umask %03o", name, umask)
			}
			if !strings.Contains(name, "_1.0.0~rc1_") || !strings.HasSuffix(name, "_arm64.deb") && !strings.HasSuffix(name, "_all.deb") {
				t.Errorf("%s: want 1.0.0~rc1 for arm64", name)
			}
			list := tool(t, "dpkg-deb", "-c", deb)
			for line := range strings.Lines(list) {
				f := strings.Fields(line)
				if f[1] != "root/root" || !strings.Contains("drwxr-xr-x -rwxr-xr-x -rw-r--r--", f[0]) {
					t.Errorf("%s: %s", name, line)
				}
				if strings.HasPrefix(f[5], "./lib") || strings.HasPrefix(f[5], "./bin") || strings.HasPrefix(f[5], "./sbin") {
					t.Errorf("%s: a file in an aliased folder: %s", name, line)
				}
			}
			control := tool(t, "dpkg-deb", "-f", deb)
			for what, want := range map[string]string{
				"claviger-clevis_": "clevis-luks", "claviger-initramfs_": "claviger-agent (>= 1.0.0~rc1)", "claviger-agent_": "Architecture: arm64",
			} {
				if strings.HasPrefix(name, what) && !strings.Contains(control, want) {
					t.Errorf("%s: not %q in\n%s", name, want, control)
				}
			}
			// Who upgrades one of these gets a new image.
			if !strings.HasPrefix(name, "claviger_") && !strings.Contains(tool(t, "dpkg-deb", "--info", deb, "triggers"), "update-initramfs") {
				t.Errorf("%s does not have initial RAM disks made again", name)
			}
		}
		first = sums
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// buildPackages builds from a copy of deploy, in dir.
func buildPackages(t *testing.T, dir string) []string {
	t.Helper()
	tool(t, "cp", "-r", "../../deploy", "../../LICENSE", dir)
	main := filepath.Join(dir, "main.go")
	if err := os.WriteFile(main, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"claviger", "claviger-agent"} {
		c := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "bin", p), main)
		c.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	c := exec.Command(filepath.Join(dir, "deploy/deb/build.sh"), "v1.0.0-rc1")
	c.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1796073416")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "dist", "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	return debs
}
