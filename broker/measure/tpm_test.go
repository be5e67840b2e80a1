package measure

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/eventlog"
)

// recorded is a boot of QEMU, OVMF and swtpm: the digests in its log, and the PCRs that were quoted.
func recorded(t *testing.T, name string) (map[int][][]byte, map[string]string) {
	t.Helper()
	log, err := eventlog.ParseTPM(evidence(t, "tpm/boot/"+name+"/eventlog.bin"))
	if err != nil {
		t.Fatal(err)
	}
	digests := map[int][][]byte{}
	for _, e := range log.Events {
		if e.Type != eventlog.EVNoAction {
			digests[e.Register] = append(digests[e.Register], e.Digest)
		}
	}
	claims := map[string]string{}
	if err := json.Unmarshal(evidence(t, "tpm/boot/"+name+"/claims.json"), &claims); err != nil {
		t.Fatal(err)
	}
	return digests, claims
}

func (v Values) want(t *testing.T, claim, want string) {
	t.Helper()
	if !slices.Contains(v[claim], want) {
		t.Errorf("%s is %v, want %s", claim, v[claim], want)
	}
}

// TestRecordedBoots: from the digests of the parts and the command line, the PCRs that TPMs quoted.
func TestRecordedBoots(t *testing.T) {
	t.Run("direct", func(t *testing.T) {
		digests, claims := recorded(t, "direct")
		v := Values{}
		v.directKernel(digests[4][0])
		v.want(t, "pcr4", claims["pcr4"])
		v.want(t, "boot_chain", claims["efi_app0"])
		d := DirectBoot{Initrd: []byte{}, Cmdline: "console=ttyS0 quiet panic=-1"}
		v.linuxStub([][]byte{d.stubDigests(sum256)[0], digests[9][1]})
		v.want(t, "cmdline", claims["load_options_sha256"])
		v.want(t, "initrd", claims["initrd_sha256"])
		v.want(t, "pcr9", claims["pcr9"])
	})
	for _, name := range []string{"uki", "uki-sb"} {
		t.Run(name, func(t *testing.T) {
			digests, claims := recorded(t, name)
			v := Values{}
			v.programs(digests[4][2:]...)
			v.want(t, "pcr4", claims["pcr4"])
			if secureBoot := name == "uki-sb"; (len(digests[4]) == 3) != secureBoot {
				t.Errorf("%d events in PCR 4", len(digests[4]))
			}
			v.linuxStub([][]byte{sum256(utf16z("console=ttyS0 quiet panic=-1 gotpmtools")), digests[9][1]})
			v.want(t, "cmdline", claims["load_options_sha256"])
			v.want(t, "pcr9", claims["pcr9"])
			sections := map[string][]byte{".linux": digests[11][1], ".osrel": digests[11][3], ".cmdline": digests[11][5], ".initrd": digests[11][7]}
			var pcr11 [][]byte
			for _, name := range ukiSections {
				if d := sections[name]; d != nil {
					pcr11 = append(pcr11, sum256([]byte(name+"\x00")), d)
				}
			}
			v.set("pcr11", extend(sum256, pcr11...))
			v.want(t, "pcr11", claims["pcr11"])
		})
	}
	t.Run("grub-sb", func(t *testing.T) {
		digests, claims := recorded(t, "grub-sb")
		v := Chain(digests[4][2:]...)
		v.want(t, "pcr4", claims["pcr4"])
		v.want(t, "boot_chain", strings.Join([]string{claims["efi_app0"], claims["efi_app1"], claims["efi_app2"], claims["efi_app3"]}, ","))
	})
	for _, name := range []string{"direct", "uki", "uki-sb", "grub-sb"} {
		_, claims := recorded(t, name)
		v, err := ObservedTPM(evidence(t, "tpm/boot/"+name+"/eventlog.bin"))
		if err != nil {
			t.Fatal(err)
		}
		v.want(t, "pcr0", claims["pcr0"])
		v.want(t, "pcr7", claims["pcr7"])
	}
}

// testKernel is a PE file with a setup header.
func testKernel() []byte {
	k := testPE(testSection{".text", strings.Repeat("kernel", 200)})
	copy(k[hdrMagic:], "HdrS")
	binary.LittleEndian.PutUint16(k[hdrVersion:], 0x20f)
	k[hdrLoadFlags] = loadedHigh
	binary.LittleEndian.PutUint32(k[hdrInitrdMax:], 0x7fffffff)
	binary.LittleEndian.PutUint16(k[hdrXLoadFlags:], above4G)
	return k
}

// TestPatch: what QEMU 7.2 writes into the header, by hand. That it is all and right is seen in a real boot (TestBoot).
func TestPatch(t *testing.T) {
	for _, c := range []struct {
		memory  uint64
		initrd  int
		address uint32
	}{
		{512 << 20, 0x1234, 0x20000000 - 0x28000 - 0x2000},  // below the ACPI tables, to a whole page
		{2 << 30, 0x1000, 0x80000000 - 0x28000 - 0x2000},    // one byte less than a whole page: one more page
		{0xb0000000, 0x1000, 0x80000000 - 0x28000 - 0x2000}, // from there on, q35 has 2 GiB of low memory
		{64 << 30, 1, 0x80000000 - 0x28000 - 0x1000},
	} {
		k, err := DirectBoot{Kernel: testKernel(), Initrd: make([]byte, c.initrd), Memory: c.memory}.loaded()
		if err != nil {
			t.Fatal(err)
		}
		if a, n := binary.LittleEndian.Uint32(k[hdrInitrd:]), binary.LittleEndian.Uint32(k[hdrInitrd+4:]); a != c.address || n != uint32(c.initrd) {
			t.Errorf("memory %#x: initrd of %#x at %#x, want %#x at %#x", c.memory, n, a, c.initrd, c.address)
		}
		if k[hdrLoader] != 0xb0 || k[hdrLoadFlags] != 0x81 || binary.LittleEndian.Uint16(k[hdrHeapEnd:]) != 0xfe00 || binary.LittleEndian.Uint32(k[hdrCmdline:]) != 0x20000 {
			t.Errorf("header %x", k[hdrLoader:hdrInitrdMax])
		}
	}
	raw := DirectBoot{Kernel: testKernel(), Cmdline: "quiet", RawKernel: true}
	if k, err := raw.loaded(); err != nil || &k[0] != &raw.Kernel[0] {
		t.Errorf("the raw kernel is patched, or %v", err)
	}
}

func TestDirectBootRefuses(t *testing.T) {
	old, low := testKernel(), testKernel()
	binary.LittleEndian.PutUint16(old[hdrVersion:], 0x20b)
	low[hdrLoadFlags] = 0
	for _, c := range []struct {
		boot DirectBoot
		want string
	}{
		{DirectBoot{Kernel: testKernel(), Memory: 1 << 30}, "cmdline: neither"},
		{DirectBoot{Kernel: testKernel(), Memory: 1 << 30, Cmdline: "a\x00b"}, "not printable ASCII"},
		{DirectBoot{Kernel: testKernel(), Memory: 1 << 30, Cmdline: "extra=ü"}, "not printable ASCII"},
		{DirectBoot{Kernel: testKernel(), Memory: 1 << 30, Cmdline: "vga=ask"}, "vga="},
		{DirectBoot{Kernel: testKernel(), Cmdline: "quiet"}, "memory"},
		{DirectBoot{Kernel: testKernel(), Cmdline: "quiet", Memory: 4096, Initrd: []byte{1}}, "memory: 4096"},
		{DirectBoot{Kernel: testKernel(), Cmdline: "quiet", Memory: 1 << 20, Initrd: make([]byte, 1<<20)}, "initrd"},
		{DirectBoot{Kernel: []byte("MZ"), Cmdline: "quiet", Memory: 1 << 30}, "kernel: not a Linux bzImage"},
		{DirectBoot{Kernel: old, Cmdline: "quiet", Memory: 1 << 30}, "2.11 is too old"},
		{DirectBoot{Kernel: low, Cmdline: "quiet", Memory: 1 << 30}, "too old"},
		{DirectBoot{Kernel: []byte("MZ"), Cmdline: "quiet", RawKernel: true}, "kernel: not a PE file"},
	} {
		if _, err := c.boot.TPM(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
		if _, err := c.boot.TDX(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func testUKI(version string, more ...testSection) []byte {
	return testPE(append([]testSection{
		{".sdmagic", "#### LoaderInfo: systemd-stub " + version + " ####\x00"}, {".osrel", "ID=debian\n"}, {".cmdline", "quiet\x00"},
		{".initrd", "files"}, {".linux", string(testKernel())}, {".sbat", "sbat,1\n"}, {".uname", "6.1\n"},
	}, more...)...)
}

func TestUKI(t *testing.T) {
	hexSum := func(s string) string { return hex.EncodeToString(sum256([]byte(s))) }
	v, err := UKI(testUKI("252.39-1~deb12u2"), false)
	if err != nil {
		t.Fatal(err)
	}
	for claim, want := range map[string]string{
		"uki_linux": hexSum(string(testKernel())), "uki_osrel": hexSum("ID=debian\n"), "uki_cmdline": hexSum("quiet\x00"), "uki_initrd": hexSum("files"),
		"initrd": hexSum("files"), "cmdline": hexSum("q\x00u\x00i\x00e\x00t\x00\x00\x00"),
	} {
		v.want(t, claim, want)
	}
	if len(v["pcr11"]) != 2 || len(v["pcr9"]) != 2 || v["uki_sbat"] != nil || v["uki_uname"] != nil {
		t.Errorf("%v", v)
	}
	if n := strings.Count(v["boot_chain"][0], ","); n != 1 {
		t.Errorf("boot chain of %d", n+1)
	}
	later, err := UKI(testUKI("257.9"), true)
	if err != nil {
		t.Fatal(err)
	}
	if later["uki_sbat"] == nil || later["uki_uname"] == nil || later["pcr9"] != nil || later["initrd"] != nil || later["cmdline"] == nil || strings.Contains(later["boot_chain"][0], ",") {
		t.Errorf("%v", later)
	}
	if signed, err := UKI(testUKI("252", testSection{".pcrsig", "{}"}), false); err != nil || signed["pcr9"] != nil || signed["pcr11"][0] != v["pcr11"][0] {
		t.Errorf("%v %v", signed, err)
	}
	for want, file := range map[string][]byte{
		"not a unified kernel image of systemd-stub": testUKI("251"),
		"section .sbat":            testPE(testSection{".sdmagic", "#### LoaderInfo: systemd-stub 253.1 ####"}, testSection{".sbat", "x"}),
		"section .profile":         testUKI("257", testSection{".profile", "ID=a"}),
		"section .ucode":           testUKI("257", testSection{".ucode", "a"}, testSection{".ucode", "b"}),
		"two sections .osrel":      testUKI("252", testSection{".osrel", "ID=other"}),
		"no section .linux":        testPE(testSection{".sdmagic", "#### LoaderInfo: systemd-stub 252 ####"}),
		"section .linux: not a PE": testPE(testSection{".sdmagic", "#### LoaderInfo: systemd-stub 252 ####"}, testSection{".linux", "vmlinux"}),
		"section .cmdline":         testPE(testSection{".sdmagic", "#### LoaderInfo: systemd-stub 252 ####"}, testSection{".linux", string(testKernel())}, testSection{".cmdline", "quiet\n"}),
	} {
		if _, err := UKI(file, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestParseMemory(t *testing.T) {
	for s, want := range map[string]uint64{"512": 512 << 20, "512M": 512 << 20, "4G": 4 << 30, "4g": 4 << 30, "2048k": 2 << 20, "1T": 1 << 40} {
		if got, err := ParseMemory(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "M", "-1", "1.5G", "4GB", "99999999999"} {
		if got, err := ParseMemory(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
}
