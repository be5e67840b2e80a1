package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/internal/testservers"
)

// efi is a file of .cache/efi.
func (w *world) efi(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(w.root, ".cache", "efi", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no %s in .cache/efi: run `make e2e-boot-full`, which fetches it: %v", name, err)
	}
	return path
}

// twice boots a new machine to its first login, and again to see that its disk opens.
func (m *machine) twice(t *testing.T, i image) {
	t.Helper()
	for _, command := range []string{"echo from the first boot > /root/mark; sync", "cat /root/mark"} {
		g := m.boot(t, i)
		login(t, g)
		out := g.Run(t, command)
		g.Type(t, "sync; poweroff -f\n")
		g.Off(t, time.Minute)
		if d := m.w.lastDecision(t); d.Entry.Outcome != "released" || d.Entry.Simulated {
			t.Errorf("decision %+v", d)
		}
		if strings.HasPrefix(command, "cat") && !strings.Contains(out, "from the first boot") {
			t.Errorf("the disk is not the one of the first boot: %s", out)
		}
		t.Logf("QEMU used %s of CPU; console:\n%s", g.CPUTime().Round(time.Second), timings(g))
	}
}

// TestUnifiedKernel boots unified kernel images from a disk, without and with
// Secure Boot: one file that firmware measures, predicted from that file.
func TestUnifiedKernel(t *testing.T) {
	need(t, "full")
	w := newWorld(t)
	initrd := w.initrd(t, "initrd", "release 1", nil)
	write := func(name, text string) string {
		path := w.path(name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	uki := func(t *testing.T, name, cmdline string, sign bool) image {
		esp := w.path(name + "-esp")
		if err := os.MkdirAll(filepath.Join(esp, "EFI", "BOOT"), 0o700); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(esp, "EFI", "BOOT", "BOOTX64.EFI")
		unsigned := out
		if sign {
			unsigned = w.path(name + ".efi")
		}
		testservers.BuildUKI(t, w.efi(t, "linuxx64.efi.stub"), unsigned, testservers.Section{Name: ".osrel", File: write(name+".osrel", "ID=claviger-test\n")},
			testservers.Section{Name: ".cmdline", File: write(name+".cmdline", cmdline)}, testservers.Section{Name: ".linux", File: w.kernel}, testservers.Section{Name: ".initrd", File: initrd})
		i := image{esp: esp, compute: []string{"--uki", out}}
		if sign {
			testservers.SignEFI(t, unsigned, out)
			i.compute = append(i.compute, "--secure-boot")
		}
		return i
	}
	for name, secure := range map[string]bool{"plain": false, "secure-boot": true} {
		t.Run(name, func(t *testing.T) {
			machine := func(n string) *machine {
				m := w.newMachine(t, name+"-"+n, w.maker, 64)
				if secure {
					m.secureBoot(t, "OVMF_VARS_4M.snakeoil.fd")
				}
				return m
			}
			release := uki(t, name, cmdline, secure)
			w.register(t, machine("golden"), release, release)
			m := machine("m")
			m.twice(t, release)
			m.refused(t, uki(t, name+"-evil", cmdline+" init=/bin/sh", secure), "cmdline_unknown", "pcr4_unknown")
		})
	}
}

// TestShimGRUB boots Debian's own chain under Secure Boot with Microsoft's and
// Debian's keys: shim, GRUB, kernel, all as they are shipped.
func TestShimGRUB(t *testing.T) {
	need(t, "full")
	w := newWorld(t)
	initrd := w.initrd(t, "initrd", "release 1", map[string]any{
		"volumes": []any{map[string]any{"name": "root", "device": "/dev/vda", "resource": "grub/{chip}", "format": "blank"}},
	})
	grub := func(name, cmdline string) image {
		esp := w.path(name + "-esp")
		shim, loader := w.efi(t, "shimx64.efi"), w.efi(t, "grubx64.efi")
		for to, from := range map[string]string{"EFI/BOOT/BOOTX64.EFI": shim, "EFI/BOOT/grubx64.efi": loader, "vmlinuz": w.kernel, "initrd.img": initrd} {
			copyFile(t, from, filepath.Join(esp, to))
		}
		config := filepath.Join(esp, "EFI", "debian", "grub.cfg")
		if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(config, []byte("linux /vmlinuz "+cmdline+"\ninitrd /initrd.img\nboot\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return image{esp: esp, compute: []string{"--efi", shim, "--efi", loader, "--efi", w.kernel, "--efi", w.kernel, "--observe", "8,9"}}
	}
	machine := func(name string) *machine {
		m := w.newMachine(t, name, w.maker, 64)
		m.secureBoot(t, "OVMF_VARS_4M.ms.fd")
		return m
	}
	release := grub("release", cmdline)
	w.register(t, machine("golden"), release, release)
	m := machine("m")
	m.twice(t, release)
	m.refused(t, grub("evil", cmdline+" init=/bin/sh"), "pcr8_unknown")
}
