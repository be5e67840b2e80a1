package snp

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/claviger/claviger/broker/pemfile"
)

// GUIDs of the certificate table (AMD publication 56421, MSG_REPORT_REQ), in
// the byte order of RFC 4122. The table has one GUID for ASK and ASVK.
const (
	guidVCEK = "\x63\xda\x75\x8d\xe6\x64\x45\x64\xad\xc5\xf4\xb9\x3b\xe8\xac\xcd"
	guidVLEK = "\xa8\x07\x4b\xc2\xa2\x5a\x48\x3e\xaa\xe6\x39\xc0\x45\xa0\xb8\xa1"
	guidASK  = "\x4a\xb7\xb3\x79\xbb\xac\x4f\xe4\xa0\x2f\x05\xae\xf3\x27\xc7\x82"
	guidARK  = "\xc0\xb4\x06\xa4\xa8\x03\x49\x52\x97\x43\x3f\xb6\x01\x4c\xd0\xae"
)

const (
	tableEntrySize  = 24 // GUID, offset uint32 LE, length uint32 LE
	maxTableEntries = 32
)

// certTable holds the certificates of the table, DER; nil where absent.
// Nothing in it is trusted.
type certTable struct {
	vcek, vlek, ask, ark []byte
}

// parseCertTable reads the table. We do not use go-sev-guest's abi.CertTable:
// at v0.15.0 its 32-bit sum of offset and length wraps, so that an entry makes
// it allocate 4 GiB or panic.
func parseCertTable(b []byte) (certTable, error) {
	var t certTable
	if len(b) == 0 {
		return t, nil
	}
	for i := 0; ; i++ {
		if i > maxTableEntries || len(b) < (i+1)*tableEntrySize {
			return certTable{}, fmt.Errorf("the table has no last entry within %d bytes", len(b))
		}
		e := b[i*tableEntrySize:][:tableEntrySize]
		if isZero(e) {
			return t, nil
		}
		off, n := uint64(binary.LittleEndian.Uint32(e[16:])), uint64(binary.LittleEndian.Uint32(e[20:]))
		if off < tableEntrySize || off+n > uint64(len(b)) {
			return certTable{}, fmt.Errorf("entry %d: bytes %d to %d of %d", i, off, off+n, len(b))
		}
		var dst *[]byte
		switch string(e[:16]) {
		case guidVCEK:
			dst = &t.vcek
		case guidVLEK:
			dst = &t.vlek
		case guidASK:
			dst = &t.ask
		case guidARK:
			dst = &t.ark
		default:
			continue // hosts add entries of their own
		}
		// Two answers to one question: which one counts must not depend on the reader.
		if *dst != nil {
			return certTable{}, fmt.Errorf("entry %d: a second certificate of the same kind", i)
		}
		der, err := certDER(b[off : off+n])
		if err != nil {
			return certTable{}, fmt.Errorf("entry %d: %w", i, err)
		}
		*dst = der
	}
}

// certDER takes a certificate as DER or PEM: hosts write both.
func certDER(b []byte) ([]byte, error) {
	if len(b) > 0 && b[0] == 0x30 {
		return b, nil
	}
	blocks, err := pemfile.Bare(bytes.TrimRight(b, "\x00 \r\n\t"))
	if err != nil {
		return nil, fmt.Errorf("neither a DER nor a PEM certificate: %w", err)
	}
	if len(blocks) != 1 || blocks[0].Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%d PEM blocks, want one certificate", len(blocks))
	}
	return blocks[0].Bytes, nil
}
