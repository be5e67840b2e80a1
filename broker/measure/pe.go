package measure

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
)

// image is a PE file, read as far as its measurement needs (Microsoft "PE
// Format"; "Windows Authenticode Portable Executable Signature Format").
type image struct {
	raw      []byte
	headers  int // SizeOfHeaders
	checksum int // offset of the optional header's CheckSum
	certs    int // offset of the data directory's entry of the certificate table; 0 if there is none
	certLen  int // length of the certificate table
	sections []section
}

type section struct {
	name         string
	virtual      uint32 // VirtualSize
	offset, size uint32 // PointerToRawData, SizeOfRawData
}

const (
	maxSections     = 96 // the Windows loader's limit
	directoryOfCert = 4  // IMAGE_DIRECTORY_ENTRY_SECURITY
)

// parsePE checks all offsets against the file.
func parsePE(b []byte) (*image, error) {
	le := binary.LittleEndian
	if len(b) < 0x40 || string(b[:2]) != "MZ" {
		return nil, errors.New("not a PE file: no MZ header")
	}
	pe := int64(le.Uint32(b[0x3c:]))
	if pe+24 > int64(len(b)) || string(b[pe:pe+4]) != "PE\x00\x00" {
		return nil, errors.New("not a PE file: no PE header")
	}
	coff := int(pe) + 4
	opt, optLen := coff+20, int(le.Uint16(b[coff+16:]))
	table := opt + optLen
	count := int(le.Uint16(b[coff+2:]))
	if count > maxSections {
		return nil, fmt.Errorf("PE file of %d sections", count)
	}
	if optLen < 2 || table+40*count > len(b) {
		return nil, errors.New("PE headers are cut short")
	}
	var dirs int // offset of NumberOfRvaAndSizes in the optional header
	switch magic := le.Uint16(b[opt:]); magic {
	case 0x10b:
		dirs = 92
	case 0x20b:
		dirs = 108
	default:
		return nil, fmt.Errorf("PE optional header of type %#x", magic)
	}
	if optLen < dirs+4 {
		return nil, errors.New("PE optional header is cut short")
	}
	headers := int64(le.Uint32(b[opt+60:]))
	if headers < int64(table+40*count) || headers > int64(len(b)) {
		return nil, fmt.Errorf("PE header size %d does not fit", headers)
	}
	m := &image{raw: b, headers: int(headers), checksum: opt + 64}
	if le.Uint32(b[opt+dirs:]) > directoryOfCert {
		entry := dirs + 4 + 8*directoryOfCert
		if optLen < entry+8 {
			return nil, errors.New("PE data directory is cut short")
		}
		m.certs = opt + entry
		at, n := int64(le.Uint32(b[m.certs:])), int64(le.Uint32(b[m.certs+4:]))
		if n != 0 && (at < int64(m.headers) || at+n != int64(len(b))) {
			return nil, errors.New("PE certificate table is not at the end of the file")
		}
		m.certLen = int(n)
	}
	for h := range slices.Chunk(b[table:table+40*count], 40) {
		name, _, _ := bytes.Cut(h[:8], []byte{0})
		s := section{string(name), le.Uint32(h[8:]), le.Uint32(h[20:]), le.Uint32(h[16:])}
		if int64(s.offset)+int64(s.size) > int64(len(b)) {
			return nil, fmt.Errorf("PE section %q ends beyond the file", s.name)
		}
		m.sections = append(m.sections, s)
	}
	return m, nil
}

// authenticode computes the digest that UEFI firmware measures and signatures
// cover: all of the file but its checksum and its certificates, the sections in
// the order of their offsets, then what stands behind them. As the
// specification has it, "behind" is counted by bytes hashed so far.
func (m *image) authenticode(newHash func() hash.Hash) ([]byte, error) {
	h := newHash()
	h.Write(m.raw[:m.checksum])
	if m.certs == 0 {
		h.Write(m.raw[m.checksum+4 : m.headers])
	} else {
		h.Write(m.raw[m.checksum+4 : m.certs])
		h.Write(m.raw[m.certs+8 : m.headers])
	}
	hashed := int64(m.headers)
	for _, s := range slices.SortedFunc(slices.Values(m.sections), func(a, b section) int { return cmp.Compare(a.offset, b.offset) }) {
		h.Write(m.raw[s.offset : s.offset+s.size])
		hashed += int64(s.size)
	}
	end := int64(len(m.raw) - m.certLen)
	if hashed > end {
		return nil, errors.New("PE sections overlap each other or the certificate table")
	}
	h.Write(m.raw[hashed:end])
	return h.Sum(nil), nil
}

// Authenticode is the Authenticode digest of a PE file.
func Authenticode(file []byte, newHash func() hash.Hash) ([]byte, error) {
	m, err := parsePE(file)
	if err != nil {
		return nil, err
	}
	return m.authenticode(newHash)
}

// content returns a section's data without the padding to the file's alignment.
func (m *image) content(name string) ([]byte, bool, error) {
	var out []byte
	found := false
	for _, s := range m.sections {
		if s.name != name {
			continue
		}
		if found {
			return nil, false, fmt.Errorf("two sections %s", name)
		}
		if s.virtual > s.size {
			return nil, false, fmt.Errorf("section %s is longer in memory than in the file", name)
		}
		out, found = m.raw[s.offset:s.offset+s.virtual], true
	}
	return out, found, nil
}

func (m *image) has(name string) bool {
	return slices.ContainsFunc(m.sections, func(s section) bool { return s.name == name })
}
