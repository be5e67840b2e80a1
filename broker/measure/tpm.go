package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// TPM predicts the PCRs of a direct boot. Firmware measures the kernel into
// PCR 4 before it says that it calls a boot option, because QEMU's kernel is
// none; Linux's EFI stub (6.1 and later) measures load options and initrd into
// PCR 9.
func (d DirectBoot) TPM() (Values, error) {
	kernel, err := d.loaded()
	if err != nil {
		return nil, err
	}
	digest, err := Authenticode(kernel, sha256.New)
	if err != nil {
		return nil, bad("kernel", "%w", err)
	}
	v := Values{}
	v.directKernel(digest)
	v.linuxStub(d.stubDigests(sum256))
	return v, nil
}

func (v Values) directKernel(digest []byte) {
	v.bootChain(digest)
	v.setPCR(4, extend(sum256, digest, sum256(callingApp), sum256(separator)))
}

// linuxStub is PCR 9 with the load options and, if there is one, the initrd.
func (v Values) linuxStub(digests [][]byte) {
	v.set("cmdline", digests[0])
	if len(digests) > 1 {
		v.set("initrd", digests[1])
	}
	v.setPCR(9, extend(sum256, digests...))
}

// bootChain is the claim that lists the programs started.
func (v Values) bootChain(digests ...[]byte) {
	var chain []string
	for _, d := range digests {
		chain = append(chain, hex.EncodeToString(d))
	}
	v["boot_chain"] = []string{strings.Join(chain, ",")}
}

// Chain predicts PCR 4 of a boot from a disk, from the Authenticode SHA-256
// digests of the EFI programs in the order in which they are loaded: shim, boot
// loader, kernel. A program that is loaded or checked twice stands in it twice:
// GRUB under shim and Secure Boot does that to the kernel.
func Chain(digests ...[]byte) Values {
	v := Values{}
	v.programs(digests...)
	return v
}

// programs: the boot option is called, then each program is measured as it is loaded.
func (v Values) programs(digests ...[]byte) {
	v.bootChain(digests...)
	v.setPCR(4, extend(sum256, append([][]byte{sum256(callingApp), sum256(separator)}, digests...)...))
}

// Sections of a unified kernel image that systemd-stub measures, in its order
// ("UAPI.5 Unified Kernel Image", "PCR 11"); laterSections not before systemd 255.
var (
	ukiSections   = []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"}
	laterSections = []string{".uname", ".sbat"}
	// Sections that change what else is booted or measured, in ways that are not modelled here.
	otherSections = []string{".ucode", ".profile", ".dtbauto", ".hwids", ".efifw"}
)

// UKI predicts the PCRs of a unified kernel image with systemd-stub, started by
// firmware without a boot menu. Without Secure Boot firmware measures also the
// kernel inside, as the stub loads it; with it the stub has checked that itself.
//
// PCR 11 has two values: before systemd measures the first phase of the boot,
// and after "enter-initrd". PCR 9 and the initrd are predicted only for stubs
// of systemd 252 in images without a PCR signature: others add files of their own to the initrd.
func UKI(file []byte, secureBoot bool) (Values, error) {
	v, err := readUKI(file, secureBoot)
	if err != nil {
		return nil, bad("uki", "%w", err)
	}
	return v, nil
}

func readUKI(file []byte, secureBoot bool) (Values, error) {
	m, err := parsePE(file)
	if err != nil {
		return nil, err
	}
	stub, err := m.stubVersion()
	if err != nil {
		return nil, err
	}
	for _, name := range otherSections {
		if m.has(name) {
			return nil, fmt.Errorf("section %s: images with it cannot be predicted", name)
		}
	}
	v := Values{}
	content := map[string][]byte{}
	var pcr11 [][]byte
	for _, name := range ukiSections {
		c, ok, err := m.content(name)
		if err != nil {
			return nil, err
		}
		later := slices.Contains(laterSections, name)
		if later && ok && (stub == 253 || stub == 254) {
			return nil, fmt.Errorf("section %s: whether systemd-stub %d measures it is not known here", name, stub)
		}
		if !ok || later && stub < 255 {
			continue
		}
		content[name] = c
		pcr11 = append(pcr11, sum256([]byte(name+"\x00")), sum256(c))
		v.set("uki"+strings.ReplaceAll(name, ".", "_"), sum256(c))
	}
	if content[".linux"] == nil {
		return nil, errors.New("not a unified kernel image: no section .linux")
	}
	v.set("pcr11", extend(sum256, pcr11...), extend(sum256, append(pcr11, sum256([]byte("enter-initrd")))...))
	return v, v.ukiBoot(m, content, stub, secureBoot)
}

func (v Values) ukiBoot(m *image, content map[string][]byte, stub int, secureBoot bool) error {
	outer, err := m.authenticode(sha256.New)
	if err != nil {
		return err
	}
	inner, err := Authenticode(content[".linux"], sha256.New)
	if err != nil {
		return fmt.Errorf("section .linux: %w", err)
	}
	if secureBoot {
		v.programs(outer)
	} else {
		v.programs(outer, inner)
	}
	// Versions of the stub differ in what they do to blanks at the ends and to control characters.
	cmdline := string(bytes.TrimSuffix(content[".cmdline"], []byte{0}))
	if cmdline == "" || strings.TrimSpace(cmdline) != cmdline || strings.ContainsFunc(cmdline, notASCII) {
		return fmt.Errorf("section .cmdline: %q is not one line of ASCII without blanks at its ends", cmdline)
	}
	digests := [][]byte{sum256(utf16z(cmdline))}
	if stub != 252 || m.has(".pcrsig") || content[".pcrpkey"] != nil {
		v.set("cmdline", digests[0])
		return nil
	}
	if initrd := content[".initrd"]; initrd != nil {
		digests = append(digests, sum256(initrd))
	}
	v.linuxStub(digests)
	return nil
}

func notASCII(r rune) bool { return r < 0x20 || r > 0x7e }

// stubVersion reads the systemd version that the stub carries in its section .sdmagic.
func (m *image) stubVersion() (int, error) {
	c, _, err := m.content(".sdmagic")
	if err != nil {
		return 0, err
	}
	_, after, ok := bytes.Cut(c, []byte("LoaderInfo: systemd-stub "))
	digits := after[:min(3, len(after))]
	n, err := strconv.Atoi(string(digits))
	if !ok || err != nil || n < 252 {
		return 0, errors.New("not a unified kernel image of systemd-stub 252 or later")
	}
	return n, nil
}

// DirectBoot is a boot of QEMU's -kernel, -initrd and -append by OVMF.
type DirectBoot struct {
	Kernel  []byte
	Initrd  []byte // nil: none
	Cmdline string // as given to -append
	// Memory is the machine's, in bytes: QEMU (machine type q35) writes the
	// initrd's address into the kernel's header, and that depends on it.
	Memory uint64
	// RawKernel says that the kernel is measured as the file is: for
	// confidential guests of SEV, and where firmware takes the unpatched
	// kernel that newer QEMU offers.
	RawKernel bool
}

// options are the load options that OVMF gives to the kernel.
func (d DirectBoot) options() string {
	if d.Initrd == nil {
		return d.Cmdline
	}
	return d.Cmdline + " initrd=initrd"
}

// stubDigests is what the kernel's EFI stub measures.
func (d DirectBoot) stubDigests(sum func([]byte) []byte) [][]byte {
	digests := [][]byte{sum(utf16z(d.options()))}
	if d.Initrd != nil {
		digests = append(digests, sum(d.Initrd))
	}
	return digests
}

// loaded is the kernel as firmware gets it.
func (d DirectBoot) loaded() ([]byte, error) {
	if strings.ContainsFunc(d.Cmdline, notASCII) {
		return nil, bad("cmdline", "%q is not printable ASCII, and firmware changes other text", d.Cmdline)
	}
	if d.options() == "" {
		return nil, bad("cmdline", "neither it nor an initrd is given")
	}
	if d.RawKernel {
		return d.Kernel, nil
	}
	return d.patched()
}

// Fields of the Linux setup header, by offset in the file (Documentation/arch/x86/boot.rst).
const (
	hdrMagic       = 0x202
	hdrVersion     = 0x206
	hdrLoader      = 0x210
	hdrLoadFlags   = 0x211
	hdrInitrd      = 0x218 // address, then size
	hdrHeapEnd     = 0x224
	hdrCmdline     = 0x228
	hdrInitrdMax   = 0x22c
	hdrXLoadFlags  = 0x236
	hdrEnd         = 0x268
	loadedHigh     = 0x01
	canUseHeap     = 0x80
	above4G        = 0x02
	loaderQEMU     = 0xb0
	qemuRealAddr   = 0x10000
	qemuCmdline    = 0x20000
	qemuACPIData   = 0x28000    // kept free for ACPI tables below the end of low memory
	qemuLowMem     = 0xb0000000 // of q35, if the machine has less memory than that
	qemuLowMemMore = 0x80000000 // … and if it has more
	minProtocol    = 0x20c      // 2.12, of Linux 3.8; the EFI stub with measurement is 6.1
)

// patched does what QEMU does to the setup header of a kernel that it loads
// (hw/i386/x86-common.c, x86_load_linux), as a boot loader would.
func (d DirectBoot) patched() ([]byte, error) {
	le := binary.LittleEndian
	if len(d.Kernel) < hdrEnd || string(d.Kernel[hdrMagic:hdrMagic+4]) != "HdrS" {
		return nil, bad("kernel", "not a Linux bzImage: no setup header")
	}
	k := bytes.Clone(d.Kernel)
	if p := le.Uint16(k[hdrVersion:]); p < minProtocol || k[hdrLoadFlags]&loadedHigh == 0 {
		return nil, bad("kernel", "boot protocol %d.%d is too old", p>>8, p&0xff)
	}
	if strings.Contains(d.Cmdline, "vga=") {
		return nil, bad("cmdline", "vga= goes into the kernel's header, which cannot be predicted")
	}
	if d.Memory == 0 {
		return nil, bad("memory", "the kernel's measurement depends on its size")
	}
	k[hdrLoader] = loaderQEMU
	k[hdrLoadFlags] |= canUseHeap
	le.PutUint16(k[hdrHeapEnd:], qemuCmdline-qemuRealAddr-0x200)
	le.PutUint32(k[hdrCmdline:], qemuCmdline)
	if d.Initrd == nil {
		return k, nil
	}
	low := d.Memory
	if low >= qemuLowMem {
		low = qemuLowMemMore
	}
	top := uint64(le.Uint32(k[hdrInitrdMax:]))
	if le.Uint16(k[hdrXLoadFlags:])&above4G != 0 {
		top = 1<<32 - 1
	}
	if low <= qemuACPIData {
		return nil, bad("memory", "%d bytes are too few", d.Memory)
	}
	top = min(top, low-qemuACPIData-1)
	size := uint64(len(d.Initrd))
	if size >= top {
		return nil, bad("initrd", "%d bytes do not fit below %#x, with memory of %d bytes and this kernel", size, top, d.Memory)
	}
	le.PutUint32(k[hdrInitrd:], uint32((top-size)&^0xfff))
	le.PutUint32(k[hdrInitrd+4:], uint32(size))
	return k, nil
}
