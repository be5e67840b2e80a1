package measure

import (
	"encoding/binary"
	"slices"
)

type testSection struct {
	name string
	data string
}

// testPE is a PE32+ file of an EFI application with these sections, each padded
// to 512 bytes, and some bytes behind them.
func testPE(sections ...testSection) []byte {
	le := binary.LittleEndian
	const align, table = 512, 0x44 + 20 + 240
	b := make([]byte, 2*align)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x44:], 0x8664)
	le.PutUint16(b[0x46:], uint16(len(sections)))
	le.PutUint16(b[0x44+16:], 240)
	opt := b[0x44+20:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[32:], 0x1000)
	le.PutUint32(opt[36:], align)
	le.PutUint32(opt[60:], uint32(len(b)))
	le.PutUint16(opt[68:], 10)
	le.PutUint32(opt[108:], 16)
	for i, s := range sections {
		padded := make([]byte, (len(s.data)+align-1)/align*align)
		copy(padded, s.data)
		h := b[table+40*i:]
		copy(h, s.name)
		le.PutUint32(h[8:], uint32(len(s.data)))
		le.PutUint32(h[12:], uint32(0x1000*(i+1)))
		le.PutUint32(h[16:], uint32(len(padded)))
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(b, padded...)
	}
	return append(b, "trailing"...)
}

// testFirmware is two pages with OVMF's table, SEV metadata and TDVF metadata.
func testFirmware() []byte {
	le := binary.LittleEndian
	b := make([]byte, 2*pageSize)
	for i := range b[:pageSize] {
		b[i] = byte(i * 7)
	}
	at := pageSize + 0x100
	metadata := func(signature string, words ...uint32) uint32 {
		start := at
		copy(b[at:], signature)
		for i, w := range words {
			le.PutUint32(b[at+4+4*i:], w)
		}
		at += 4 + 4*len(words)
		return uint32(len(b) - start)
	}
	sev := metadata("ASEV", 52, 1, 3, 0x800000, 0x2000, sevMemory, 0x802000, 0x1000, sevSecrets, 0x803000, 0x1000, sevCPUID)
	tdx := metadata("TDVF", 16+3*32, 1, 3,
		0, 2*pageSize, uint32(fourGiB-2*pageSize), 0, 2*pageSize, 0, tdvfBFV, tdvfExtend,
		0, 0, 0x810000, 0, 0x2000, 0, 3, 0,
		0, 0, 0x900000, 0, 0x1000, 0, 4, tdvfAugment)
	entry := func(g guid, words ...uint32) []byte {
		var data []byte
		for _, w := range words {
			data = le.AppendUint32(data, w)
		}
		data = le.AppendUint16(data, uint16(len(data)+guidEntry))
		return append(data, g[:]...)
	}
	table := slices.Concat(entry(guidSEVReset, 0x80b004), entry(guidTDX, tdx), entry(guidSEVSection, sev))
	table = le.AppendUint16(table, uint16(len(table)+guidEntry))
	table = append(table, guidTable[:]...)
	copy(b[len(b)-resetVector-len(table):], table)
	return b
}
