package nvidia

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker/p384"
)

// Sizes in bytes, and codes, of SPDM 1.1 (DMTF DSP0274 §10.11).
const (
	requestSize = 37 // header, nonce, slot
	nonceOffset = 4
	nonceSize   = 32
	headerSize  = 8  // of the response, before its measurement record
	digestSize  = 48 // SHA-384

	spdm11             = 0x11
	codeGetMeasurement = 0xe0
	codeMeasurements   = 0x60
	askSignature       = 0x01
	askAll             = 0xff
	dmtfMeasurement    = 0x01
)

// Types of opaque fields (opaque_data.py of NVIDIA/nvtrust, gpu and nvswitch).
// 22 to 26 mean one thing in a GPU's report and another in a switch's.
const (
	fieldDriverVersion = 3
	fieldGPUInfo       = 4
	fieldVBIOSVersion  = 6
	fieldNVDEC0Status  = 11
	fieldBoardID       = 14
	fieldChipSKU       = 15
	fieldProject       = 17
	fieldProjectSKU    = 18
	fieldFWID          = 20
	fieldProtectedPCIe = 21
	fieldPDIs          = 22 // GPU: of the switches that it is linked to; switch: its own
	fieldLockStatus    = 25 // switch
	fieldGPUPDIs       = 26 // switch: of the GPUs that it is linked to
	fieldDataVersion   = 34
	fieldChipInfo      = 35
	fieldFeatureFlag   = 36
)

const (
	pdiSize  = 8
	maxField = 512 // bytes; the longest known has 256
)

// report is what NVML returns: a GET_MEASUREMENTS request and its answer,
// numbers little endian:
//
//	0   request: version, code, param1, param2, nonce[32], slot
//	37  response: version, code, param1, param2, number of blocks u8,
//	    record length u24, blocks, nonce[32], opaque length u16, opaque data,
//	    signature r ‖ s [96]
//
// The requester's nonce is ours; the responder adds its own.
type report struct {
	nonce     []byte   // of the request
	blocks    [][]byte // digests of 48 bytes; block i is index i+1
	fields    map[uint16][]byte
	signed    []byte
	signature []byte
}

// parse reads a report. Behind the signature at most one byte may stand, and it
// is zero: driver 580.95 counts one that it does not write.
func parse(b []byte) (*report, error) {
	if len(b) < requestSize+headerSize {
		return nil, fmt.Errorf("report of %d bytes", len(b))
	}
	if !bytes.Equal(b[:nonceOffset], []byte{spdm11, codeGetMeasurement, askSignature, askAll}) || b[requestSize-1] != 0 {
		return nil, fmt.Errorf("the request %x is not GET_MEASUREMENTS of SPDM 1.1 for all blocks, signed, in slot 0", b[:nonceOffset])
	}
	h := b[requestSize:]
	if !bytes.Equal(h[:4], []byte{spdm11, codeMeasurements, 0, 0}) {
		return nil, fmt.Errorf("the response %x is not MEASUREMENTS of SPDM 1.1", h[:4])
	}
	r := &report{nonce: bytes.Clone(b[nonceOffset : nonceOffset+nonceSize])}
	record := int(h[5]) | int(h[6])<<8 | int(h[7])<<16
	rest := h[headerSize:]
	if record > len(rest)-nonceSize-2 {
		return nil, fmt.Errorf("measurement record of %d bytes in %d", record, len(rest))
	}
	var err error
	if r.blocks, err = parseBlocks(rest[:record], int(h[4])); err != nil {
		return nil, err
	}
	rest = rest[record+nonceSize:]
	n := int(binary.LittleEndian.Uint16(rest))
	if rest = rest[2:]; n > len(rest) {
		return nil, fmt.Errorf("opaque data of %d bytes in %d", n, len(rest))
	}
	if r.fields, err = parseFields(rest[:n]); err != nil {
		return nil, fmt.Errorf("opaque data: %w", err)
	}
	rest = rest[n:]
	switch extra := len(rest) - p384.SignatureSize; {
	case extra == 0, extra == 1 && rest[p384.SignatureSize] == 0:
	default:
		return nil, fmt.Errorf("%d bytes behind the opaque data, want a signature of %d", len(rest), p384.SignatureSize)
	}
	r.signed, r.signature = b[:len(b)-len(rest)], rest[:p384.SignatureSize]
	return r, nil
}

// parseBlocks reads measurement blocks: index u8, specification u8, size u16,
// then (DMTF) value type u8, value size u16, value. With an index twice or left
// out, two readers could see two things.
func parseBlocks(b []byte, n int) ([][]byte, error) {
	var blocks [][]byte
	const head = 7
	for len(b) > 0 {
		if len(b) < head+digestSize {
			return nil, fmt.Errorf("measurement record: %d bytes behind block %d", len(b), len(blocks))
		}
		size, valueSize := binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint16(b[5:])
		if int(b[0]) != len(blocks)+1 || b[1] != dmtfMeasurement || size != head-4+digestSize || valueSize != digestSize {
			return nil, fmt.Errorf("measurement block %d: header %x, want index %d and a DMTF measurement of %d bytes", len(blocks)+1, b[:head], len(blocks)+1, digestSize)
		}
		blocks = append(blocks, b[head:head+digestSize])
		b = b[head+digestSize:]
	}
	if len(blocks) != n || n == 0 {
		return nil, fmt.Errorf("measurement record with %d blocks, the response says %d", len(blocks), n)
	}
	return blocks, nil
}

// parseFields reads opaque data: type u16, size u16, value. Unknown types are
// signed like the others, and of no consequence.
func parseFields(b []byte) (map[uint16][]byte, error) {
	fields := map[uint16][]byte{}
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, fmt.Errorf("%d bytes left", len(b))
		}
		typ, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if b = b[4:]; n > len(b) || n > maxField {
			return nil, fmt.Errorf("field %d of %d bytes in %d", typ, n, len(b))
		}
		if _, ok := fields[typ]; ok {
			return nil, fmt.Errorf("field %d twice", typ)
		}
		fields[typ] = b[:n]
		b = b[n:]
	}
	return fields, nil
}

var errText = errors.New("is not printable text")

// text is a field of ASCII, padded with zeros; empty where the field is absent.
func (r *report) text(field uint16) (string, error) {
	s := strings.TrimRight(string(r.fields[field]), "\x00")
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("opaque field %d %w", field, errText)
		}
	}
	return s, nil
}

// hexField is a field in hex, in the byte order of the report.
func (r *report) hexField(field uint16) string { return hex.EncodeToString(r.fields[field]) }

// switchPDIs are the switches that a GPU is linked to: one identifier for each
// of its links, each with its bytes in the other order than in the switch's certificate.
func (r *report) switchPDIs() ([]string, error) {
	b := slices.Clone(r.fields[fieldPDIs])
	if len(b)%pdiSize != 0 {
		return nil, fmt.Errorf("opaque field %d of %d bytes, want identifiers of %d", fieldPDIs, len(b), pdiSize)
	}
	for id := range slices.Chunk(b, pdiSize) {
		slices.Reverse(id)
	}
	return pdis(b), nil
}

// Identifiers in the field of a switch about its GPUs. Behind them stands, for
// each port, the index of the GPU that it leads to.
const gpusOfSwitch = 8

// gpuPDIs are the GPUs that a switch is linked to, in the byte order of their certificates.
func (r *report) gpuPDIs() ([]string, error) {
	b := r.fields[fieldGPUPDIs]
	if len(b) == 0 {
		return []string{}, nil
	}
	if len(b) < gpusOfSwitch*pdiSize {
		return nil, fmt.Errorf("opaque field %d of %d bytes, want %d identifiers of %d", fieldGPUPDIs, len(b), gpusOfSwitch, pdiSize)
	}
	return pdis(b[:gpusOfSwitch*pdiSize]), nil
}

// pdis are identifiers in hex, sorted, each once. Zeros and ones mean: none.
func pdis(b []byte) []string {
	ids := []string{}
	for id := range slices.Chunk(b, pdiSize) {
		if s := hex.EncodeToString(id); strings.Trim(s, "0") != "" && strings.Trim(s, "f") != "" {
			ids = append(ids, s)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// vbiosVersion is "96.00.9F.00.01". A switch writes it as text; a GPU as
// two numbers of 32 bits, the second with one byte in use:
// 00 9f 00 96 01 00 00 00 is that version.
func (r *report) vbiosVersion(k kind) (string, error) {
	if k == nvSwitch {
		s, err := r.text(fieldVBIOSVersion)
		return strings.ToUpper(s), err
	}
	b := r.fields[fieldVBIOSVersion]
	if len(b) != 8 || b[5]|b[6]|b[7] != 0 {
		return "", fmt.Errorf("VBIOS version %x", b)
	}
	return fmt.Sprintf("%02X.%02X.%02X.%02X.%02X", b[3], b[2], b[1], b[0], b[4]), nil
}
