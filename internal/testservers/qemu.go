package testservers

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Guest is a virtual machine: QEMU under software emulation with OVMF firmware
// and a software TPM, its serial console on pipes.
type Guest struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu: all that the console said
}

// GuestConfig is a machine. Files are read, but for Disks and Vars, which the guest writes.
type GuestConfig struct {
	Dir      string // for sockets; short, as socket paths have to be
	TPMState string // folder of a TPM that TPMMaker.Make made
	Firmware string // OVMF code
	Vars     string // OVMF variables, this machine's own copy
	// Secure is for firmware built for Secure Boot, which wants system management mode.
	Secure bool
	// Kernel, Initrd and Cmdline boot directly. Without Kernel the firmware boots
	// from ESP, a folder that the guest sees as its last disk, with a FAT file system.
	Kernel, Initrd, Cmdline string
	ESP                     string
	Disks                   []string // raw images, the first is vda
	MemoryMB                int      // default 512
	Network                 bool     // user networking: 10.0.2.2 in the guest is the host's loopback
}

// OVMF is where Debian keeps its firmware.
const OVMF = "/usr/share/OVMF"

// NeedGuests skips the test where virtual machines cannot be started.
func NeedGuests(t testing.TB) {
	t.Helper()
	skipShort(t, "QEMU")
	for _, tool := range []string{"qemu-system-x86_64", "swtpm", "swtpm_setup", "cpio", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (see .ci/run): %v", tool, err)
		}
	}
	if _, err := os.Stat(filepath.Join(OVMF, "OVMF_CODE_4M.fd")); err != nil {
		t.Skipf("no OVMF firmware (Debian: apt-get install ovmf): %v", err)
	}
}

// StartGuest starts a machine; it is stopped with the test at the latest.
func StartGuest(t testing.TB, c GuestConfig) *Guest {
	t.Helper()
	socket := filepath.Join(c.Dir, "swtpm")
	_ = os.Remove(socket)
	// It ends with the machine.
	start(t, exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+c.TPMState, "--ctrl", "type=unixio,path="+socket, "--terminate"))
	waitFor(t, "swtpm", func() error { _, err := os.Stat(socket); return err })

	memory := c.MemoryMB
	if memory == 0 {
		memory = 512
	}
	machine := "q35"
	if c.Secure {
		machine = "q35,smm=on"
	}
	args := []string{
		"-machine", machine, "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "1", "-m", strconv.Itoa(memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-device", "virtio-rng-pci",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + c.Firmware, "-drive", "if=pflash,format=raw,unit=1,file=" + c.Vars,
		"-chardev", "socket,id=chrtpm,path=" + socket, "-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device", "tpm-crb,tpmdev=tpm0",
	}
	if c.Secure {
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	if c.Kernel != "" {
		args = append(args, "-kernel", c.Kernel, "-initrd", c.Initrd, "-append", c.Cmdline)
	}
	if c.Network {
		args = append(args, "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=")
	}
	for i, disk := range c.Disks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,file=%s", i, disk), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	if c.ESP != "" {
		args = append(args, "-drive", "if=none,id=esp,format=raw,readonly=on,file=fat:"+c.ESP, "-device", "virtio-blk-pci,drive=esp,bootindex=0")
	}
	g := &Guest{cmd: exec.Command("qemu-system-x86_64", args...), done: make(chan struct{})}
	var err error
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	g.cmd.Stdout, g.cmd.Stderr = g, g
	ownGroup(g.cmd)
	if err := g.cmd.Start(); err != nil {
		t.Fatalf("start QEMU: %v", err)
	}
	go func() {
		defer close(g.done)
		_ = g.cmd.Wait()
	}()
	t.Cleanup(func() {
		g.Stop()
		if t.Failed() {
			t.Logf("the guest's console:\n%s", g.Console())
		}
	})
	return g
}

// Write implements io.Writer for the console.
func (g *Guest) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.out.Write(b)
}

// Console is what the console has said so far.
func (g *Guest) Console() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.ReplaceAll(g.out.String(), "\r", "")
}

// Await waits until the console says one of the texts, and returns which.
func (g *Guest) Await(t testing.TB, limit time.Duration, texts ...string) string {
	t.Helper()
	deadline := time.Now().Add(limit)
	for ended := false; ; {
		said := g.Console()
		for _, text := range texts {
			if strings.Contains(said, text) {
				return text
			}
		}
		if ended {
			t.Fatalf("the guest ended without saying any of %q", texts)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest did not say any of %q within %s", texts, limit)
		}
		select {
		case <-g.done:
			ended = true // once more: it may have said so last
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Run types a command at a shell's prompt and returns what it printed.
func (g *Guest) Run(t testing.TB, command string) string {
	t.Helper()
	before := len(g.Console())
	// The mark is split, so that the echo of the command line is not taken for the answer.
	if _, err := io.WriteString(g.in, command+"; echo do''ne\n"); err != nil {
		t.Fatalf("type into the guest: %v", err)
	}
	deadline := time.Now().Add(3 * time.Minute)
	for time.Now().Before(deadline) {
		_, after, ok := strings.Cut(g.Console()[before:], "\n")
		if text, _, found := strings.Cut(after, "done\n"); ok && found {
			return text
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the guest did not answer to %q", command)
	return ""
}

// Type types at the console.
func (g *Guest) Type(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(g.in, text); err != nil {
		t.Fatalf("type into the guest: %v", err)
	}
}

// Off waits for the guest to power off.
func (g *Guest) Off(t testing.TB, limit time.Duration) {
	t.Helper()
	select {
	case <-g.done:
	case <-time.After(limit):
		t.Fatalf("the guest did not power off within %s", limit)
	}
}

// Stop is a power cut.
func (g *Guest) Stop() {
	killGroup(g.cmd)
	<-g.done
}

// CPUTime is what QEMU used, once the guest is off.
func (g *Guest) CPUTime() time.Duration {
	<-g.done
	return g.cmd.ProcessState.UserTime() + g.cmd.ProcessState.SystemTime()
}
