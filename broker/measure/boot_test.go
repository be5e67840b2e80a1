package measure

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/internal/testservers"
)

// machine is a kind of machine: its firmware, and QEMU's options for it.
type machine struct {
	code, vars string
	options    []string
}

var (
	plain = machine{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", []string{"-machine", "q35"}}
	// secure has Secure Boot on, with the key that Debian publishes for that.
	secure = machine{
		"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd",
		[]string{"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"},
	}
)

// TestBoot boots machines in QEMU, with OVMF and a software TPM, and compares
// what they measured with what was predicted. Minutes, so only with CLAVIGER_E2E=1.
func TestBoot(t *testing.T) {
	if testing.Short() || os.Getenv("CLAVIGER_E2E") != "1" {
		t.Skip("boots machines: set CLAVIGER_E2E=1")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("qemu is not installed: %v", err)
	}
	if _, err := os.Stat(plain.code); err != nil {
		t.Skipf("OVMF is not installed: %v", err)
	}
	maker := testservers.NewTPMMaker(t)
	vmlinuz, initrd := kernel(t), testInitrd(t)
	const cmdline = "console=ttyS0 quiet panic=-1"
	kernelFile, initrdFile := tempFile(t, "vmlinuz", vmlinuz), tempFile(t, "initrd", initrd)

	var first *booted
	direct := func(memory, cmdline string) {
		bytes, err := ParseMemory(memory)
		if err != nil {
			t.Fatal(err)
		}
		v, err := DirectBoot{Kernel: vmlinuz, Initrd: initrd, Cmdline: cmdline, Memory: bytes}.TPM()
		if err != nil {
			t.Fatal(err)
		}
		b := boot(t, maker, plain, "-m", memory, "-kernel", kernelFile, "-initrd", initrdFile, "-append", cmdline)
		b.compare(t, v, "pcr4", "pcr9", "boot_chain", "cmdline", "initrd")
		if first == nil {
			first = b
		}
	}
	direct("512M", cmdline)
	direct("1G", cmdline+" extra=1")
	observed, err := ObservedTPM(first.log)
	if err != nil {
		t.Fatal(err)
	}

	const stub = "../../.cache/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		t.Logf("no image with systemd-stub is booted (run deploy/e2e/efi.sh .cache/efi): %v", err)
		return
	}
	ukiFile := filepath.Join(t.TempDir(), "uki.efi")
	testservers.BuildUKI(t, stub, ukiFile, testservers.Section{Name: ".osrel", File: tempFile(t, "osrel", []byte("ID=test\n"))},
		testservers.Section{Name: ".cmdline", File: tempFile(t, "cmdline", []byte(cmdline))}, testservers.Section{Name: ".linux", File: kernelFile}, testservers.Section{Name: ".initrd", File: initrdFile})
	uki, err := os.ReadFile(ukiFile)
	if err != nil {
		t.Fatal(err)
	}
	fromDisk := func(m machine, uki []byte, v Values) *booted {
		disk := t.TempDir()
		if err := os.MkdirAll(filepath.Join(disk, "EFI/BOOT"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(disk, "EFI/BOOT/BOOTX64.EFI"), uki, 0o600); err != nil {
			t.Fatal(err)
		}
		b := boot(t, maker, m, "-m", "512M", "-drive", "if=none,id=d,format=raw,readonly=on,file=fat:"+disk, "-device", "virtio-blk-pci,drive=d")
		b.compare(t, v, "pcr4", "pcr9", "pcr11", "boot_chain", "cmdline", "initrd", "uki_linux", "uki_osrel", "uki_cmdline", "uki_initrd")
		return b
	}
	v, err := UKI(uki, false)
	if err != nil {
		t.Fatal(err)
	}
	// Firmware and Secure Boot are as the first boot showed them. With another
	// size of memory PCR 0 is another: OVMF measures its PEI volume after it has run from there.
	fromDisk(plain, uki, v).compare(t, observed, "pcr0", "pcr7")

	signedFile := filepath.Join(t.TempDir(), "signed.efi")
	testservers.SignEFI(t, ukiFile, signedFile)
	signed, err := os.ReadFile(signedFile)
	if err != nil {
		t.Fatal(err)
	}
	if v, err = UKI(signed, true); err != nil {
		t.Fatal(err)
	}
	fromDisk(secure, signed, v)
}

// booted is what a guest reported.
type booted struct {
	pcrs map[string]string
	log  []byte
}

// compare compares PCRs with what the guest read from its TPM, and the rest with its event log.
func (b *booted) compare(t *testing.T, v Values, claims ...string) {
	t.Helper()
	for _, claim := range claims {
		if len(v[claim]) == 0 {
			t.Errorf("%s is not predicted", claim)
			continue
		}
		if strings.HasPrefix(claim, "pcr") {
			if !slices.Contains(v[claim], b.pcrs[claim]) {
				t.Errorf("%s is %s, predicted %v", claim, b.pcrs[claim], v[claim])
			}
			continue
		}
		for _, digest := range strings.Split(v[claim][0], ",") {
			raw, err := hex.DecodeString(digest)
			if err != nil || !bytes.Contains(b.log, raw) {
				t.Errorf("%s %s is not in the event log: %v", claim, digest, err)
			}
		}
	}
}

// boot starts a machine with a new TPM and waits until it is off.
func boot(t *testing.T, maker *testservers.TPMMaker, m machine, args ...string) *booted {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("/tmp", "claviger-boot-") // Unix socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := maker.Make(filepath.Join(dir, "tpm"), "guest"); err != nil {
		t.Fatal(err)
	}
	tpm := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir+"/tpm", "--ctrl", "type=unixio,path="+dir+"/ctrl", "--terminate")
	if err := tpm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = tpm.Wait() }()
	for range 100 {
		if _, err = os.Stat(dir + "/ctrl"); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	vars, err := os.ReadFile(m.vars)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/vars", vars, 0o600); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	var out bytes.Buffer
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", slices.Concat(m.options, []string{
		"-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-nic", "none",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + m.code, "-drive", "if=pflash,format=raw,unit=1,file=" + dir + "/vars",
		"-chardev", "socket,id=chrtpm,path=" + dir + "/ctrl", "-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device", "tpm-crb,tpmdev=tpm0",
	}, args)...)
	qemu.Stdout, qemu.Stderr = &out, &out
	if err := qemu.Run(); err != nil {
		t.Fatalf("qemu: %v\n%.4000s", err, out.String())
	}
	b := &booted{pcrs: map[string]string{}}
	ended := false
	lines := bufio.NewScanner(&out)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		switch f := strings.Fields(lines.Text()); {
		case len(f) == 3 && f[0] == "PCR":
			b.pcrs["pcr"+f[1]] = f[2]
		case len(f) == 2 && f[0] == "LOG":
			if b.log, err = hex.DecodeString(f[1]); err != nil {
				t.Fatal(err)
			}
		case len(f) == 1 && f[0] == "END":
			ended = true
		case len(f) > 0 && f[0] == "FAILED":
			t.Fatal(lines.Text())
		}
	}
	if err := lines.Err(); err != nil || !ended {
		t.Fatalf("the guest did not report: %v\n%v", err, b.pcrs)
	}
	t.Logf("booted in %s: PCR 0 %s", time.Since(started).Round(time.Second), b.pcrs["pcr0"])
	return b
}

func tempFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// testInitrd is an initramfs ("newc" cpio archive) of testdata/init alone.
func testInitrd(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	add := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", b.Len(), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	add("init", 0o100755, program)
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}
