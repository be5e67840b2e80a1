// Package eventlog reads measured-boot event logs: the crypto-agile log of the
// TCG ("PC Client Platform Firmware Profile", section 10). Its register index is
// a PCR for a TPM; in a Confidential Computing event log it means, by the UEFI
// specification (38.4.1, "Virtual Platform CC Event Log"), 0 for MRTD and 1 to 4
// for RTMR0 to RTMR3 of Intel TDX. The package replays the log; it trusts
// nothing in it, and knows little of what events mean.
package eventlog

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the hashes of Parse
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits on a log, checked before and while it is read.
const (
	MaxSize   = 1 << 20
	MaxEvents = 8192
)

// Registers is the number of run-time measurement registers.
const Registers = 4

// PCRs is the number of platform configuration registers of a TPM.
const PCRs = 24

// Event types that this package or its users tell apart.
const (
	EVNoAction = 0x03 // never extended into a register
	EVIPL      = 0x0d
)

const (
	maxAlgs     = 8
	maxEventLen = 512 << 10
)

// Log is a parsed log.
type Log struct {
	Events []Event
	bank   bank
	tpm    bool
	// Locality at which the TPM was started (PCR 0 starts with it); 0 as a rule.
	Locality uint8
}

// bank is one of the digest algorithms that a log may hold side by side.
type bank struct {
	alg  uint16 // TPM_ALG_ID
	hash crypto.Hash
	name string
}

var (
	sha256Bank = bank{0x000b, crypto.SHA256, "SHA-256"}
	sha384Bank = bank{0x000c, crypto.SHA384, "SHA-384"}
)

func (b bank) sum(parts ...[]byte) []byte {
	h := b.hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Event is one entry. Only Register and Digest take part in the replay; Data is
// whatever the firmware, or who tampered with the log, put beside them.
type Event struct {
	Register int // index as in the log: a PCR; in a CC log 1 is RTMR0
	Type     uint32
	Digest   []byte // nil for events that are never extended
	Data     []byte
	bank     bank
}

// ParseCC reads a Confidential Computing event log with SHA-384 digests. It
// takes logs of OVMF, of cloud firmware and of td-shim, with or without the
// padding (0xff or zeros) of the buffer they stand in.
func ParseCC(b []byte) (*Log, error) { return parse(b, &Log{bank: sha384Bank}) }

// ParseTPM reads the log of a TPM's SHA-256 bank, as Linux shows it in
// /sys/kernel/security/tpm0/binary_bios_measurements.
func ParseTPM(b []byte) (*Log, error) { return parse(b, &Log{bank: sha256Bank, tpm: true}) }

func parse(b []byte, log *Log) (*Log, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("event log of %d bytes, at most %d", len(b), MaxSize)
	}
	r := &reader{b: b}
	sizes, err := parseHeader(r, log.bank)
	if err != nil {
		return nil, fmt.Errorf("event log header: %w", err)
	}
	end := len(trimPadding(b))
	for r.off < len(b) {
		if r.off >= end && padding(b[r.off:]) {
			return log, nil
		}
		if len(log.Events) == MaxEvents {
			return nil, fmt.Errorf("event log of more than %d events", MaxEvents)
		}
		e, err := log.parseEvent(r, sizes)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", len(log.Events), err)
		}
		log.Events = append(log.Events, e)
	}
	return log, nil
}

// parseHeader reads the first entry, in the format of TPM 1.2, which holds a
// TCG_EfiSpecIdEvent. It returns the digest size of each algorithm.
func parseHeader(r *reader, bank bank) (map[uint16]int, error) {
	r.u32() // register index: 0 or 1 in practice; the entry is never extended
	typ := r.u32()
	r.take(20)
	h := &reader{b: r.take(int64(r.u32()))}
	if r.short {
		return nil, errors.New("cut short")
	}
	if typ != EVNoAction || string(h.take(16)) != "Spec ID Event03\x00" {
		return nil, errors.New("not a crypto-agile log")
	}
	h.take(4 + 4) // platform class; versions and the size of UINTN
	n := h.u32()
	if n == 0 || n > maxAlgs {
		return nil, fmt.Errorf("%d digest algorithms", n)
	}
	sizes := map[uint16]int{}
	for range n {
		alg, size := h.u16(), int(h.u16())
		if size == 0 || size > 64 {
			return nil, fmt.Errorf("digest of %d bytes", size)
		}
		sizes[alg] = size
	}
	h.take(int64(h.u8())) // vendor information
	if h.short {
		return nil, errors.New("cut short")
	}
	if sizes[bank.alg] != bank.hash.Size() {
		return nil, fmt.Errorf("no %s digests", bank.name)
	}
	return sizes, nil
}

func (l *Log) parseEvent(r *reader, sizes map[uint16]int) (Event, error) {
	e := Event{bank: l.bank}
	index, typ, n := r.u32(), r.u32(), r.u32()
	if r.short {
		return e, errors.New("cut short")
	}
	if n > maxAlgs {
		return e, fmt.Errorf("%d digests", n)
	}
	e.Type = typ
	for range n {
		alg := r.u16()
		size, ok := sizes[alg]
		if !ok {
			return e, fmt.Errorf("digest algorithm %#x is not in the header", alg)
		}
		d := r.take(int64(size))
		if alg != l.bank.alg {
			continue
		}
		if e.Digest != nil {
			return e, fmt.Errorf("two %s digests", l.bank.name)
		}
		e.Digest = d
	}
	size := r.u32()
	if size > maxEventLen {
		return e, fmt.Errorf("event of %d bytes", size)
	}
	e.Data = r.take(int64(size))
	if r.short {
		return e, errors.New("cut short")
	}
	if typ == EVNoAction {
		e.Digest = nil
		if l.tpm {
			l.startup(e.Data)
			e.Register = int(min(index, PCRs))
			return e, nil
		}
	}
	if l.tpm && index >= PCRs || !l.tpm && index > Registers {
		return e, fmt.Errorf("register index %d", index)
	}
	e.Register = int(index)
	if typ == EVNoAction {
		return e, nil
	}
	if index == 0 && !l.tpm {
		return e, errors.New("event for MRTD, which cannot be extended")
	}
	if e.Digest == nil {
		return e, fmt.Errorf("no %s digest", l.bank.name)
	}
	return e, nil
}

// startup reads a TCG_EfiStartupLocalityEvent (PFP 10.4.5.3). A lie in it makes the replay fail.
func (l *Log) startup(data []byte) {
	if b, ok := bytes.CutPrefix(data, []byte("StartupLocality\x00")); ok && len(b) == 1 {
		l.Locality = b[0]
	}
}

// ReplayPCRs is what the PCRs come to. touched says which ones the log extends at all.
func (l *Log) ReplayPCRs() (pcr [PCRs][]byte, touched [PCRs]bool) {
	size := l.bank.hash.Size()
	for i := range pcr {
		pcr[i] = make([]byte, size)
	}
	pcr[0][size-1] = l.Locality
	for _, e := range l.Events {
		if e.Type == EVNoAction {
			continue
		}
		pcr[e.Register] = l.bank.sum(pcr[e.Register], e.Digest)
		touched[e.Register] = true
	}
	return pcr, touched
}

// ReplayRTMRs is what the registers of a CC log come to. touched says which ones the log extends at all.
func (l *Log) ReplayRTMRs() (rtmr [Registers][48]byte, touched [Registers]bool) {
	for _, e := range l.Events {
		if e.Type == EVNoAction {
			continue
		}
		i := e.Register - 1
		rtmr[i] = [48]byte(l.bank.sum(rtmr[i][:], e.Digest))
		touched[i] = true
	}
	return rtmr, touched
}

// Content returns the bytes that the event's digest is the hash of, if they
// are found in Data: all of it, or what specifications and boot loaders measure
// of it. Nothing else in Data is covered by the register, so nothing else may
// be believed.
func (e *Event) Content() ([]byte, bool) {
	if e.Type == EVNoAction {
		return nil, false
	}
	candidates := [][]byte{e.Data, bytes.TrimSuffix(e.Data, []byte{0})}
	if e.Type == EVIPL {
		// grub logs "grub_cmd: linux …" and measures what follows the label.
		if _, after, ok := bytes.Cut(e.Data, []byte(": ")); ok {
			candidates = append(candidates, after, bytes.TrimSuffix(after, []byte{0}))
		}
	}
	if v, ok := variableData(e.Data); ok {
		candidates = append(candidates, v)
	}
	for _, c := range candidates {
		if bytes.Equal(e.bank.sum(c), e.Digest) {
			return c, true
		}
	}
	return nil, false
}

// Variable is a UEFI variable as firmware measured it.
type Variable struct {
	GUID  string // of the vendor, as 8-4-4-4-12 hex digits
	Name  string
	Value []byte
}

// Variable returns the UEFI variable that the event measures, if its digest
// covers all of it: some events cover the value only, and then the name is hearsay.
func (e *Event) Variable() (Variable, bool) {
	if e.Type == EVNoAction || !bytes.Equal(e.bank.sum(e.Data), e.Digest) {
		return Variable{}, false
	}
	return variable(e.Data)
}

func variableData(b []byte) ([]byte, bool) {
	v, ok := variable(b)
	return v.Value, ok
}

// variable reads a UEFI_VARIABLE_DATA: GUID, u64 length of the name in UTF-16
// units, u64 length of the value, name, value.
func variable(b []byte) (Variable, bool) {
	r := &reader{b: b}
	g := r.take(16)
	nameLen, valueLen := r.u64(), r.u64()
	if r.short || nameLen > 256 || valueLen > uint64(len(b)) {
		return Variable{}, false
	}
	name := r.take(int64(2 * nameLen))
	v := Variable{Value: r.take(int64(valueLen))}
	if r.short || r.off != len(b) {
		return Variable{}, false
	}
	units := make([]uint16, nameLen)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(name[2*i:])
	}
	v.Name = string(utf16.Decode(units))
	le := binary.LittleEndian
	v.GUID = fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
	return v, true
}

// Text returns verified content that is printable text, without a final NUL:
// UTF-8, or ASCII in UTF-16, which is how UEFI programs measure command lines.
func (e *Event) Text() (string, bool) {
	c, ok := e.Content()
	if !ok {
		return "", false
	}
	if s := strings.TrimSuffix(string(c), "\x00"); printable(s) {
		return s, true
	}
	if len(c)%2 != 0 {
		return "", false
	}
	narrow := make([]byte, len(c)/2)
	for i := range narrow {
		if c[2*i] > unicode.MaxASCII || c[2*i+1] != 0 {
			return "", false
		}
		narrow[i] = c[2*i]
	}
	s := strings.TrimSuffix(string(narrow), "\x00")
	if !printable(s) {
		return "", false
	}
	return s, true
}

// printable keeps control characters away from the operator's terminal.
func printable(s string) bool {
	return s != "" && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' })
}

// trimPadding returns b without the run of 0xff or zeros at its end.
func trimPadding(b []byte) []byte {
	n := len(b)
	if n == 0 || b[n-1] != 0xff && b[n-1] != 0 {
		return b
	}
	for c := b[n-1]; n > 0 && b[n-1] == c; n-- {
	}
	return b[:n]
}

func padding(b []byte) bool { return len(trimPadding(b)) == 0 }

// reader reads little-endian fields; once it runs out, short stays set and
// every further read is empty.
type reader struct {
	b     []byte
	off   int
	short bool
}

func (r *reader) take(n int64) []byte {
	if r.short || n < 0 || n > int64(len(r.b)-r.off) {
		r.short = true
		return nil
	}
	s := r.b[r.off : r.off+int(n)]
	r.off += int(n)
	return s
}

func (r *reader) uint(size int) uint64 {
	var b [8]byte
	copy(b[:size], r.take(int64(size)))
	return binary.LittleEndian.Uint64(b[:])
}

func (r *reader) u8() uint8   { return uint8(r.uint(1)) }
func (r *reader) u16() uint16 { return uint16(r.uint(2)) }
func (r *reader) u32() uint32 { return uint32(r.uint(4)) }
func (r *reader) u64() uint64 { return r.uint(8) }
