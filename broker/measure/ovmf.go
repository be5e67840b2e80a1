package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ovmf is a firmware image that ends at 4 GiB, with the table of GUIDed entries
// that stands before its reset vector (edk2, OvmfPkg/ResetVector).
type ovmf struct {
	raw   []byte
	table map[guid][]byte
}

// guid is a GUID as stored: the first three fields little-endian.
type guid [16]byte

func parseGUID(a uint32, b, c uint16, rest uint64) guid {
	var g guid
	binary.LittleEndian.PutUint32(g[:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], rest)
	return g
}

var (
	guidTable      = parseGUID(0x96b582de, 0x1fb2, 0x45f7, 0xbaeaa366c55a082d)
	guidSEVHashes  = parseGUID(0x7255371f, 0x3a3b, 0x4b04, 0x927b1da6efa8d454)
	guidSEVReset   = parseGUID(0x00f771de, 0x1a7e, 0x4fcb, 0x890e68c77e2fb44e)
	guidSEVSection = parseGUID(0xdc886566, 0x984a, 0x4798, 0xa75e5585a7bf67cc)
	guidTDX        = parseGUID(0xe47a6535, 0x984a, 0x4798, 0x865e4685a7bf8ec2)
)

const (
	pageSize    = 0x1000
	fourGiB     = 1 << 32
	resetVector = 32 // bytes behind the table
	guidEntry   = 18 // an entry's length and GUID, which stand behind its data
	maxFirmware = 64 << 20
	maxRegions  = 64 // regions of memory that the firmware asks for
)

// parseOVMF reads the table from its end, as it is built.
func parseOVMF(b []byte) (*ovmf, error) {
	if len(b) < pageSize || len(b)%pageSize != 0 || len(b) > maxFirmware {
		return nil, fmt.Errorf("%d bytes are not the size of a firmware image: whole pages, at most 64 MiB", len(b))
	}
	f := &ovmf{raw: b, table: map[guid][]byte{}}
	rest := b[:len(b)-resetVector]
	size, g := entryEnd(rest)
	if g != guidTable {
		return nil, errors.New("no OVMF table before the reset vector: a variable store, or other firmware?")
	}
	if size < guidEntry || size > len(rest) {
		return nil, fmt.Errorf("OVMF table of %d bytes", size)
	}
	for rest = rest[len(rest)-size : len(rest)-guidEntry]; len(rest) > 0; {
		if len(rest) < guidEntry {
			return nil, errors.New("OVMF table is cut short")
		}
		size, g := entryEnd(rest)
		if size < guidEntry || size > len(rest) {
			return nil, fmt.Errorf("OVMF table entry of %d bytes", size)
		}
		f.table[g] = rest[len(rest)-size : len(rest)-guidEntry]
		rest = rest[:len(rest)-size]
	}
	return f, nil
}

// entryEnd reads an entry's length and GUID at the end of b.
func entryEnd(b []byte) (int, guid) {
	end := b[len(b)-guidEntry:]
	return int(binary.LittleEndian.Uint16(end)), guid(end[2:])
}

// number is an entry that begins with a 32-bit number.
func (f *ovmf) number(g guid) (uint32, bool) {
	e := f.table[g]
	if len(e) < 4 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(e), true
}

// descriptors returns count descriptors of size bytes behind a header of four
// 32-bit numbers: signature, length, version 1, count. The table says how far
// from the image's end the header stands.
func (f *ovmf) descriptors(g guid, signature string, size int) ([][]byte, error) {
	offset, ok := f.number(g)
	if !ok {
		return nil, fmt.Errorf("the firmware has no %s metadata: not built for this kind of guest", signature)
	}
	if offset < 16 || int64(offset) > int64(len(f.raw)) {
		return nil, fmt.Errorf("%s metadata at %#x is outside of the firmware", signature, offset)
	}
	b := f.raw[len(f.raw)-int(offset):]
	if string(b[:4]) != signature {
		return nil, fmt.Errorf("%s metadata has no signature", signature)
	}
	version, count := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if version != 1 || count > maxRegions || 16+size*int(count) > len(b) {
		return nil, fmt.Errorf("%s metadata of version %d with %d regions", signature, version, count)
	}
	var out [][]byte
	for i := range int(count) {
		out = append(out, b[16+size*i:][:size])
	}
	return out, nil
}

// maxRegion bounds the memory that a region covers: firmware asks for a few MiB.
const maxRegion = 64 << 20

// region checks a range of guest memory that firmware's metadata names.
func region(address, size uint64) error {
	if address%pageSize != 0 || size%pageSize != 0 || size > maxRegion || address > fourGiB-size {
		return fmt.Errorf("region of %#x bytes at %#x: want whole pages below 4 GiB", size, address)
	}
	return nil
}
