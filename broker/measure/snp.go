package measure

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// Types of page of SNP_LAUNCH_UPDATE (AMD publication 56860, table of PAGE_TYPE).
const (
	pageNormal  = 1
	pageVMSA    = 2
	pageZero    = 3
	pageSecrets = 5
	pageCPUID   = 6
)

// Types of region in OVMF's SEV metadata (OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	sevMemory       = 1
	sevSecrets      = 2
	sevCPUID        = 3
	sevSVSMCallArea = 4
	sevKernelHashes = 0x10
)

// vmsaAddress is where the processors' state counts as placed.
const vmsaAddress = 0xFFFFFFFFF000

// VMMs whose way to start a guest is known.
const (
	QEMU = "qemu"
	EC2  = "ec2" // Amazon's
)

// vcpuTypes are QEMU's CPU models: the CPUID signature that a processor has in RDX when it starts.
var vcpuTypes = map[string]uint32{
	"EPYC": signature(23, 1, 2), "EPYC-Rome": signature(23, 49, 0), "EPYC-Milan": signature(25, 1, 1),
	"EPYC-Genoa": signature(25, 17, 0), "EPYC-Turin": signature(26, 0, 0),
}

// vcpuVersion is the end of a versioned model's name. QEMU's versions of a model differ in
// features, which are not measured, and not in the signature.
var vcpuVersion = regexp.MustCompile(`-v[1-9]$`)

// vcpuSignature is that of a model, of a version of it, or of an alias of one.
func vcpuSignature(name string) (uint32, bool) {
	if name == "EPYC-IBPB" {
		name = "EPYC-v2"
	}
	sig, ok := vcpuTypes[vcpuVersion.ReplaceAllString(name, "")]
	return sig, ok
}

// VCPUTypes lists the names of processors for SNP.VCPUType, without versions.
func VCPUTypes() []string { return slices.Sorted(maps.Keys(vcpuTypes)) }

// signature is EAX of CPUID function 1 (AMD publication 25481) for a family of 15 and more.
func signature(family, model, stepping uint32) uint32 {
	return (family-0xf)<<20 | model>>4<<16 | 0xf<<8 | model&0xf<<4 | stepping
}

// SNP is a guest as its host launches it.
type SNP struct {
	Firmware []byte // an OVMF image for SEV-SNP, in one file
	VCPUs    int
	VCPUType string // one of VCPUTypes, or a version of one: EPYC-v4
	VMM      string // QEMU or EC2
	// GuestFeatures is SEV_FEATURES of the processors' state: 0x1 is SEV-SNP
	// alone, 0x21 with debug swap, which some versions of KVM add by themselves.
	GuestFeatures uint64
	// Direct boot with kernel-hashes=on; a nil kernel means a boot from a disk.
	Kernel, Initrd []byte
	Cmdline        string
}

// Digest computes MEASUREMENT (publication 56860, 8.17.2): for each page in
// the order of the host's SNP_LAUNCH_UPDATE commands, a PAGE_INFO is hashed
// that begins with the digest so far.
func (s SNP) Digest() (Values, error) {
	sig, ok := vcpuSignature(s.VCPUType)
	if !ok {
		return nil, bad("vcpu-type", "%q, want one of %v, or a version of one (EPYC-v4)", s.VCPUType, VCPUTypes())
	}
	if s.VCPUs < 1 || s.VCPUs > 4096 {
		return nil, bad("vcpus", "%d, want 1 to 4096", s.VCPUs)
	}
	if s.VMM != QEMU && s.VMM != EC2 {
		return nil, bad("vmm", "%q, want %s or %s", s.VMM, QEMU, EC2)
	}
	if s.GuestFeatures&1 == 0 {
		return nil, bad("guest-features", "%#x is without bit 0, SEV-SNP", s.GuestFeatures)
	}
	if s.Kernel == nil && (s.Initrd != nil || s.Cmdline != "") {
		return nil, bad("kernel", "none, but an initrd or a command line")
	}
	f, err := parseOVMF(s.Firmware)
	if err != nil {
		return nil, bad("firmware", "%w", err)
	}
	ld := make([]byte, 48)
	ld = launchPages(ld, pageNormal, fourGiB-uint64(len(f.raw)), f.raw)
	if ld, err = s.regions(ld, f); err != nil {
		return nil, bad("firmware", "%w", err)
	}
	const resetEIP = 0xfffffff0
	apEIP, ok := f.number(guidSEVReset)
	if !ok && s.VCPUs > 1 {
		return nil, bad("firmware", "no reset address for further processors")
	}
	for i := range s.VCPUs {
		eip := uint32(resetEIP)
		if i > 0 {
			eip = apEIP
		}
		ld = launchPages(ld, pageVMSA, vmsaAddress, s.vmsa(eip, sig))
	}
	v := Values{}
	v.set("measurement", ld)
	return v, nil
}

// regions adds the memory that the firmware's metadata asks for, in its order;
// EC2 keeps the CPUID pages for the end.
func (s SNP) regions(ld []byte, f *ovmf) ([]byte, error) {
	list, err := f.descriptors(guidSEVSection, "ASEV", 12)
	if err != nil {
		return nil, err
	}
	hashed := false
	var last []uint64
	for _, d := range list {
		gpa, size := uint64(binary.LittleEndian.Uint32(d)), uint64(binary.LittleEndian.Uint32(d[4:]))
		if err := region(gpa, size); err != nil {
			return nil, err
		}
		switch typ := binary.LittleEndian.Uint32(d[8:]); {
		case typ == sevKernelHashes && s.Kernel != nil:
			page, err := s.hashesPage(f, gpa)
			if err != nil {
				return nil, err
			}
			ld, hashed = launchPages(ld, pageNormal, gpa, page), true
		case typ == sevMemory, typ == sevSVSMCallArea, typ == sevKernelHashes:
			for at := gpa; at < gpa+size; at += pageSize {
				ld = launchPage(ld, pageZero, at, nil)
			}
		case typ == sevSecrets:
			ld = launchPage(ld, pageSecrets, gpa, nil)
		case typ == sevCPUID && s.VMM == EC2:
			last = append(last, gpa)
		case typ == sevCPUID:
			ld = launchPage(ld, pageCPUID, gpa, nil)
		default:
			return nil, fmt.Errorf("region of unknown type %#x", typ)
		}
	}
	for _, gpa := range last {
		ld = launchPage(ld, pageCPUID, gpa, nil)
	}
	if s.Kernel != nil && !hashed {
		return nil, errors.New("it has no region for kernel hashes: use OVMF's AmdSev build for a direct boot")
	}
	return ld, nil
}

// launchPages adds whole pages of data.
func launchPages(ld []byte, typ byte, gpa uint64, data []byte) []byte {
	for page := range slices.Chunk(data, pageSize) {
		ld = launchPage(ld, typ, gpa, page)
		gpa += pageSize
	}
	return ld
}

// launchPage hashes one PAGE_INFO. Pages whose contents the processor or the
// host fills in (nil) count as 48 zeros.
func launchPage(ld []byte, typ byte, gpa uint64, page []byte) []byte {
	const length = 0x70
	info := make([]byte, length)
	copy(info, ld)
	if page != nil {
		copy(info[48:], sum384(page))
	}
	binary.LittleEndian.PutUint16(info[96:], length)
	info[98] = typ
	binary.LittleEndian.PutUint64(info[104:], gpa)
	return sum384(info)
}

// hashesPage is the page with the table of hashes that OVMF checks kernel,
// initrd and command line against (QEMU, target/i386/sev.c).
func (s SNP) hashesPage(f *ovmf, gpa uint64) ([]byte, error) {
	at, ok := f.number(guidSEVHashes)
	if !ok || uint64(at)&^(pageSize-1) != gpa {
		return nil, errors.New("its place for the table of kernel hashes is not in the region for it")
	}
	cmdline, initrd, kernel := sha256.Sum256(append([]byte(s.Cmdline), 0)), sha256.Sum256(s.Initrd), sha256.Sum256(s.Kernel)
	type entry struct {
		g guid
		b []byte
	}
	var body []byte
	for _, e := range []entry{
		{parseGUID(0x97d02dd8, 0xbd20, 0x4c94, 0xaa78e7714d36ab2a), cmdline[:]},
		{parseGUID(0x44baf731, 0x3a2f, 0x4bd7, 0x9af141e29169781d), initrd[:]},
		{parseGUID(0x4de79437, 0xabd2, 0x427f, 0xb835d5b172d2045b), kernel[:]},
	} {
		body = append(body, lengthed(e.g, e.b)...)
	}
	table := lengthed(parseGUID(0x9438d606, 0x4f22, 0x4cc9, 0xb479a793d411fd21), body)
	page, offset := make([]byte, pageSize), int(at)%pageSize
	if offset+len(table) > pageSize {
		return nil, errors.New("its place for the table of kernel hashes is at the end of a page")
	}
	copy(page[offset:], table)
	return page, nil
}

// lengthed is data behind its GUID and the length of all three.
func lengthed(g guid, data []byte) []byte {
	out := append([]byte{}, g[:]...)
	out = binary.LittleEndian.AppendUint16(out, uint16(guidEntry+len(data)))
	return append(out, data...)
}

// vmsa is the page of a processor's state at its start (AMD64 Architecture
// Programmer's Manual, volume 2, table B-4), as KVM fills it in.
func (s SNP) vmsa(eip, sig uint32) []byte {
	page := make([]byte, pageSize)
	le := binary.LittleEndian
	segment := func(offset int, selector, attributes uint16, limit uint32, base uint64) {
		le.PutUint16(page[offset:], selector)
		le.PutUint16(page[offset+2:], attributes)
		le.PutUint32(page[offset+4:], limit)
		le.PutUint64(page[offset+8:], base)
	}
	var cs, ss, tr uint16 = 0x9b, 0x93, 0x8b
	if s.VMM == EC2 {
		ss, tr, sig = 0x92, 0x83, 0
		if eip == 0xfffffff0 {
			cs = 0x9a
		}
	}
	segment(0x00, 0, 0x93, 0xffff, 0)                         // ES
	segment(0x10, 0xf000, cs, 0xffff, uint64(eip&0xffff0000)) // CS
	segment(0x20, 0, ss, 0xffff, 0)                           // SS
	segment(0x30, 0, 0x93, 0xffff, 0)                         // DS
	segment(0x40, 0, 0x93, 0xffff, 0)                         // FS
	segment(0x50, 0, 0x93, 0xffff, 0)                         // GS
	segment(0x60, 0, 0, 0xffff, 0)                            // GDTR
	segment(0x70, 0, 0x82, 0xffff, 0)                         // LDTR
	segment(0x80, 0, 0, 0xffff, 0)                            // IDTR
	segment(0x90, 0, tr, 0xffff, 0)                           // TR
	for offset, value := range map[int]uint64{
		0xd0:  0x1000,               // EFER: SVME
		0x148: 0x40,                 // CR4: MCE
		0x158: 0x10,                 // CR0: ET
		0x160: 0x400,                // DR7
		0x168: 0xffff0ff0,           // DR6
		0x170: 2,                    // RFLAGS
		0x178: uint64(eip & 0xffff), // RIP
		0x268: 0x0007040600070406,   // G_PAT
		0x310: uint64(sig),          // RDX
		0x3b0: s.GuestFeatures,      // SEV_FEATURES
		0x3e8: 1,                    // XCR0
	} {
		le.PutUint64(page[offset:], value)
	}
	if s.VMM == QEMU {
		le.PutUint32(page[0x408:], 0x1f80) // MXCSR
		le.PutUint16(page[0x410:], 0x37f)  // x87 FCW
	}
	return page
}
