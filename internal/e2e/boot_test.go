package e2e

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/internal/testservers"
)

const (
	bootLimit = 4 * time.Minute // under software emulation, beside other work
	cmdline   = "console=ttyS0 quiet panic=-1"
)

// register predicts what an image measures on machines like golden and registers
// it: nobody copies a hash out of a log, but for the firmware's, which cannot be
// computed (docs/reference-values.md): it is observed on a machine of ours, which boots observer.
func (w *world) register(t *testing.T, golden *machine, observer, i image) {
	t.Helper()
	if err := os.WriteFile(golden.disk, append([]byte("GOLDEN"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	g := golden.boot(t, observer)
	g.Await(t, bootLimit, " END")
	_, text, _ := strings.Cut(g.Console(), "LOG ")
	text, _, _ = strings.Cut(text, " END")
	log, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		t.Fatalf("event log of the golden machine: %v", err)
	}
	logFile := w.path(golden.name + ".log")
	if err := os.WriteFile(logFile, log, 0o600); err != nil {
		t.Fatal(err)
	}
	set := w.command(t, "claviger", append([]string{"reference", "compute", "tpm", "--from-log", logFile, "--output", "json"}, i.compute...)...)
	file := w.path(golden.name + ".json")
	if err := os.WriteFile(file, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	w.command(t, "claviger", "reference", "add", golden.name, "--policy", "*", "--file", file)
}

func login(t *testing.T, g *testservers.Guest) {
	t.Helper()
	g.Await(t, bootLimit, "claviger-guest login:")
	g.Type(t, "root\n")
	g.Await(t, time.Minute, "# ")
}

// TestBoot is the job of `make e2e-boot`: a machine that cannot boot without its
// key gets it at every boot, and every other machine, image and trick is refused
// with a reason that the operator sees.
func TestBoot(t *testing.T) {
	need(t, "boot")
	w := newWorld(t)
	initrd := w.initrd(t, "initrd", "release 1", nil)
	m := w.newMachine(t, "m1", w.maker, 64)
	release := m.direct(w.kernel, initrd, cmdline)
	w.register(t, w.newMachine(t, "release-1", w.maker, 64), release, release)

	var chip string
	t.Run("first boot", func(t *testing.T) {
		g := m.boot(t, release)
		login(t, g)
		if out := g.Run(t, "echo from the first boot > /root/mark; sync; mount | grep mapper"); !strings.Contains(out, "/dev/mapper/root on / type ext4") {
			t.Errorf("the root is not on the encrypted disk: %s", out)
		}
		// Whoever gets into the running system does not get the key again: PCR 15 was extended.
		if out := g.Run(t, "claviger-agent get 'disks/'$(claviger-agent tpm --output json | sed -n 's/.*\"chip_id\": *\"\\([0-9a-f]*\\)\".*/\\1/p') | wc -c"); !strings.Contains(out, "0") {
			t.Errorf("a second fetch in one boot printed %s bytes", out)
		}
		d := w.lastDecision(t)
		if !strings.Contains(d.rules(), "door_closed") {
			t.Errorf("a second fetch in one boot: the audit log says %+v", d)
		}
		chip = d.Entry.ChipID
		if d.Entry.Simulated || chip == "" {
			t.Errorf("decision %+v", d)
		}
		g.Type(t, "sync; poweroff -f\n")
		g.Off(t, time.Minute)
		t.Logf("QEMU used %s of CPU; console:\n%s", g.CPUTime().Round(time.Second), timings(g))
	})
	t.Run("second boot", func(t *testing.T) {
		g := m.boot(t, release)
		login(t, g)
		if out := g.Run(t, "cat /root/mark"); !strings.Contains(out, "from the first boot") {
			t.Errorf("the disk is not the one of the first boot: %s", out)
		}
		d := w.lastDecision(t)
		if d.Entry.Outcome != "released" || d.Entry.Resources[0].Path != "disks/"+chip || d.Entry.Resources[0].Version != "1" {
			t.Errorf("decision %+v", d)
		}
		g.Type(t, "poweroff -f\n")
		g.Off(t, time.Minute)
		t.Logf("QEMU used %s of CPU; console:\n%s", g.CPUTime().Round(time.Second), timings(g))
	})

	t.Run("another command line", func(t *testing.T) {
		m.refused(t, m.direct(w.kernel, initrd, cmdline+" init=/bin/sh"), "cmdline_unknown")
	})
	t.Run("another initrd", func(t *testing.T) {
		m.refused(t, m.direct(w.kernel, w.initrd(t, "evil", "not release 1", nil), cmdline), "initrd_unknown")
	})
	t.Run("a TPM of another manufacturer", func(t *testing.T) {
		other := w.newMachine(t, "m2", w.newMaker(t, "other"), 64)
		other.refused(t, release, "ek_certificate")
	})
	t.Run("a disk whose header was changed", func(t *testing.T) {
		// As a host would: other sectors, in both copies of the header, with right checksums.
		disk, err := os.ReadFile(m.disk)
		if err != nil {
			t.Fatal(err)
		}
		if err := testservers.RewriteLUKS(disk, `"sector_size":512`, `"sector_size":4096`); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(m.disk, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		g := m.boot(t, release)
		g.Await(t, bootLimit, "REFUSED", "login:")
		g.Off(t, time.Minute)
		if !strings.Contains(g.Console(), "not the one that was enrolled") {
			t.Error("the console does not say that the header is another one")
		}
		t.Logf("the console:\n%s", timings(g))
	})
}

// refused boots an image that gets no key, and finds the reason in the audit log.
func (m *machine) refused(t *testing.T, i image, want ...string) {
	t.Helper()
	g := m.boot(t, i)
	if g.Await(t, bootLimit, "REFUSED", "login:") == "login:" {
		t.Error("it booted")
	}
	g.Off(t, time.Minute)
	d := m.w.lastDecision(t)
	for _, text := range want {
		if !strings.Contains(d.rules()+" "+d.Entry.Error, text) {
			t.Errorf("the audit log says %q and %q, not %q", d.rules(), d.Entry.Error, text)
		}
	}
	if d.Entry.Outcome == "released" {
		t.Errorf("released: %+v", d)
	}
	t.Logf("the audit log says: %s %s\nthe console:\n%s", d.rules(), d.Entry.Error, timings(g))
}

// timings are the lines of the console that a person reads first.
func timings(g *testservers.Guest) string {
	var keep []string
	for line := range strings.Lines(g.Console()) {
		if strings.Contains(line, "claviger") || strings.HasPrefix(line, "INIT") || strings.HasPrefix(line, "UNLOCK") || strings.HasPrefix(line, "FILLED") || strings.HasPrefix(line, "REFUSED") {
			keep = append(keep, strings.TrimRight(line, "\n"))
		}
	}
	return strings.Join(keep, "\n")
}
