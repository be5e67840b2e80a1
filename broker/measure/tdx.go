package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// Attributes of a section in TDVF metadata (Intel, "TDX Virtual Firmware Design Guide", 11.2).
const (
	tdvfExtend  = 1 << 0 // measure the contents
	tdvfAugment = 1 << 1 // not part of the initial memory
)

// Types of section whose contents may be measured: firmware and its configuration.
const (
	tdvfBFV = 0
	tdvfCFV = 1
)

// MRTD predicts the measurement of a TD's initial memory: TDH.MEM.PAGE.ADD for
// each page, TDH.MR.EXTEND for each 256 bytes of measured contents ("Intel TDX
// Module Base Architecture Specification", MRTD). VMMs differ in the order:
// both values stand for the same memory, page by page first, then section by section.
func MRTD(firmware []byte) (Values, error) {
	f, err := parseOVMF(firmware)
	if err != nil {
		return nil, bad("firmware", "%w", err)
	}
	list, err := f.descriptors(guidTDX, "TDVF", 32)
	if err != nil {
		return nil, bad("firmware", "%w", err)
	}
	interleaved, passes := sha512.New384(), sha512.New384()
	measured := false
	for _, d := range list {
		s, err := parseTDVFSection(f, d)
		if err != nil {
			return nil, bad("firmware", "TDVF section: %w", err)
		}
		measured = measured || s.data != nil
		for at := uint64(0); at < s.size; at += pageSize {
			s.add(interleaved, at)
			s.extend(interleaved, at)
			s.add(passes, at)
		}
		for at := uint64(0); at < s.size; at += pageSize {
			s.extend(passes, at)
		}
	}
	if !measured {
		return nil, bad("firmware", "no section of it is measured")
	}
	v := Values{}
	v.set("mrtd", interleaved.Sum(nil), passes.Sum(nil))
	return v, nil
}

// tdvfSection is a region of a TD's memory.
type tdvfSection struct {
	address, size uint64
	augmented     bool
	data          []byte // as long as the region; nil: not measured
}

// parseTDVFSection reads u32 offset and size in the image, u64 address and size in memory, u32 type and attributes.
func parseTDVFSection(f *ovmf, d []byte) (tdvfSection, error) {
	le := binary.LittleEndian
	offset, raw := int64(le.Uint32(d)), int64(le.Uint32(d[4:]))
	s := tdvfSection{address: le.Uint64(d[8:]), size: le.Uint64(d[16:])}
	typ, attributes := le.Uint32(d[24:]), le.Uint32(d[28:])
	s.augmented = attributes&tdvfAugment != 0
	if err := region(s.address, s.size); err != nil {
		return s, err
	}
	if attributes&tdvfExtend == 0 {
		return s, nil
	}
	if s.augmented {
		return s, errors.New("measured memory that is not there at the start")
	}
	if typ != tdvfBFV && typ != tdvfCFV {
		return s, fmt.Errorf("type %d is measured, which only firmware and configuration volumes should be", typ)
	}
	if offset+raw > int64(len(f.raw)) || uint64(raw) != s.size {
		return s, fmt.Errorf("%#x bytes at %#x of the image for %#x bytes of memory", raw, offset, s.size)
	}
	s.data = f.raw[offset : offset+raw]
	return s, nil
}

func (s tdvfSection) add(h hash.Hash, at uint64) {
	if !s.augmented {
		h.Write(mrtdEntry("MEM.PAGE.ADD", s.address+at))
	}
}

func (s tdvfSection) extend(h hash.Hash, at uint64) {
	if s.data == nil {
		return
	}
	const chunk = 256
	for i := at; i < at+pageSize; i += chunk {
		h.Write(mrtdEntry("MR.EXTEND", s.address+i))
		h.Write(s.data[i : i+chunk])
	}
}

// mrtdEntry is 128 bytes: the operation's name, at 16 the address, little-endian.
func mrtdEntry(operation string, address uint64) []byte {
	e := make([]byte, 128)
	copy(e, operation)
	binary.LittleEndian.PutUint64(e[16:], address)
	return e
}

// TDX predicts RTMR1 and RTMR2 of a direct boot: what firmware measures into a
// TPM's PCR 4 and 5 goes into RTMR1, what the kernel's EFI stub measures into
// PCR 9 goes into RTMR2 (UEFI 38.4.1).
func (d DirectBoot) TDX() (Values, error) {
	kernel, err := d.loaded()
	if err != nil {
		return nil, err
	}
	digest, err := Authenticode(kernel, sha512.New384)
	if err != nil {
		return nil, bad("kernel", "%w", err)
	}
	v := Values{}
	v.set("rtmr1", rtmr1(digest)...)
	v.set("rtmr2", extend(sum384, d.stubDigests(sum384)...))
	return v, nil
}

// rtmr1 has two values: older OVMF has the separator before ready-to-boot in RTMR0 only.
func rtmr1(kernel []byte) [][]byte {
	return [][]byte{
		extend(sum384, kernel, sum384(callingApp), sum384(separator), sum384(exitStarted), sum384(exitDone)),
		extend(sum384, kernel, sum384(callingApp), sum384(exitStarted), sum384(exitDone)),
	}
}
