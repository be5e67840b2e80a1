// Package luks reads LUKS2 headers as what they are on a disk that a host can
// write to: attacker's bytes. It accepts only headers that have one reading,
// holds them against a list of what is safe, binds them to the disk's key, and
// writes out what it has understood and nothing else, so that cryptsetup opens
// exactly that (docs/adr/0023-luks-header-guard.md, 0026-one-reading.md). It
// encrypts and opens nothing itself.
//
// Specification: "LUKS2 On-Disk Format Specification" 1.1.1. Where cryptsetup
// reads more than that, as json-c reads a name up to its first NUL, the header is refused.
package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"unicode"
	"unicode/utf8"
)

// Sizes of the format (section 2.1).
const (
	binarySize    = 4096
	minHeaderSize = 0x4000
	maxHeaderSize = 0x400000
	// MaxArea bounds what is copied: headers and keyslots, up to where the data begins.
	MaxArea = 128 << 20
)

// ErrNotLUKS2: there is no header of this format.
var ErrNotLUKS2 = errors.New("no LUKS2 header")

// Header is a decoded header.
type Header struct {
	UUID  string
	Label string
	Meta  Meta

	size     uint64 // of one copy, binary part and JSON
	sequence uint64
}

// Meta is the JSON area. Numbers past 2^53 are decimal strings there. An empty
// list is not an absent one: what is written is what was read.
type Meta struct {
	Keyslots map[string]Keyslot `json:"keyslots,omitzero"`
	Tokens   map[string]Token   `json:"tokens"` // ours; other programs' are theirs to read, and cryptsetup needs none of them
	Segments map[string]Segment `json:"segments,omitzero"`
	Digests  map[string]Digest  `json:"digests,omitzero"`
	Config   Config             `json:"config"`
}

// Keyslot holds the volume key, encrypted under a passphrase or key.
type Keyslot struct {
	Type     string `json:"type"`
	KeySize  int    `json:"key_size"`
	Priority *int   `json:"priority,omitzero"`
	AF       AF     `json:"af"`
	Area     Area   `json:"area"`
	KDF      KDF    `json:"kdf"`
}

// AF is how the key is spread over the keyslot's area, so that it can be erased.
type AF struct {
	Type    string `json:"type"`
	Stripes int    `json:"stripes"`
	Hash    string `json:"hash"`
}

// Area is where a keyslot's bytes are, and their cipher.
type Area struct {
	Type       string `json:"type"`
	Offset     string `json:"offset"`
	Size       string `json:"size"`
	Encryption string `json:"encryption"`
	KeySize    int    `json:"key_size"`
}

// KDF makes a keyslot's key of a passphrase: PBKDF2 has Hash and Iterations, Argon2 the other three.
type KDF struct {
	Type       string `json:"type"`
	Hash       string `json:"hash,omitzero"`
	Iterations int    `json:"iterations,omitzero"`
	Time       int    `json:"time,omitzero"`
	Memory     int    `json:"memory,omitzero"`
	CPUs       int    `json:"cpus,omitzero"`
	Salt       string `json:"salt"`
}

// Segment is a part of the disk.
type Segment struct {
	Type       string          `json:"type"`
	Offset     string          `json:"offset"`
	Size       string          `json:"size"`
	IVTweak    string          `json:"iv_tweak,omitzero"`
	Encryption string          `json:"encryption,omitzero"`
	SectorSize int             `json:"sector_size,omitzero"`
	Integrity  json.RawMessage `json:"integrity,omitzero"`
	Flags      []string        `json:"flags,omitzero"`
}

// Digest proves that an unlocked volume key is the right one.
type Digest struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Segments   []string `json:"segments"`
	Hash       string   `json:"hash,omitzero"`
	Iterations int      `json:"iterations,omitzero"`
	Salt       string   `json:"salt"`
	Digest     string   `json:"digest"`
}

// Config is the persistent configuration.
type Config struct {
	JSONSize     string        `json:"json_size"`
	KeyslotsSize string        `json:"keyslots_size,omitzero"`
	Flags        []string      `json:"flags,omitzero"`
	Requirements *Requirements `json:"requirements,omitzero"`
}

// Requirements are what a program has to be able to do before it touches the disk.
type Requirements struct {
	Mandatory []string `json:"mandatory"`
}

// Read reads the header of a disk. Of its two copies it takes the valid one with
// the higher sequence number, as a write may have been cut off. cryptsetup does
// the same, but it accepts more: so a copy that is whole, and has a second
// reading, makes the disk unacceptable even if the other copy is fine.
func Read(disk io.ReaderAt) (*Header, error) {
	h, err := readCopy(disk, 0, "LUKS\xba\xbe")
	switch {
	case err == nil:
		if h, err = newer(disk, h); err != nil {
			return nil, err
		}
	case !errors.Is(err, ErrNotLUKS2) && !errors.Is(err, errDamaged):
		return nil, err
	default:
		for size := int64(minHeaderSize); h == nil && size <= maxHeaderSize; size *= 2 {
			var second error
			if h, second = readCopy(disk, size, "SKUL\xba\xbe"); second != nil && !errors.Is(second, ErrNotLUKS2) && !errors.Is(second, errDamaged) {
				return nil, second
			}
		}
		if h == nil {
			return nil, err // what is wrong with the first says more
		}
	}
	if _, err := h.dataOffset(); err != nil {
		return nil, err
	}
	return h, nil
}

// UUID is what a disk's header says that its UUID is, or "". Nothing is checked: it is for finding the disk whose header Read then refuses or not.
func UUID(disk io.ReaderAt) string {
	bin := make([]byte, binarySize)
	if _, err := disk.ReadAt(bin, 0); err == nil && string(bin[:6]) == "LUKS\xba\xbe" {
		return text(bin[168:208])
	}
	if h, err := Read(disk); err == nil {
		return h.UUID
	}
	return ""
}

// newer is the second copy, if that is the newer one, else first.
func newer(disk io.ReaderAt, first *Header) (*Header, error) {
	second, err := readCopy(disk, int64(first.size), "SKUL\xba\xbe")
	switch {
	case errors.Is(err, ErrNotLUKS2) || errors.Is(err, errDamaged):
		return first, nil
	case err != nil:
		return nil, err
	case second.sequence > first.sequence:
		return second, nil
	case second.sequence == first.sequence && !reflect.DeepEqual(first, second):
		return nil, fmt.Errorf("the two copies of the LUKS2 header have one sequence number, %d, and differ", first.sequence)
	}
	return first, nil
}

var (
	errLUKS1   = errors.New("the header is of LUKS1, which is not accepted")
	errDamaged = errors.New("a copy of the LUKS2 header is damaged")
)

// Fields of the binary header (section 2.1), all of whose other bytes are zero.
var fields = []struct {
	name       string
	begin, end int
	used       bool // or has to be zero
	text       bool // up to the first NUL, and zeros behind it
}{
	{"label", 24, 72, true, true},
	{"checksum algorithm", 72, 104, true, true},
	{"salt", 104, 168, true, false},
	{"UUID", 168, 208, true, true},
	{"subsystem", 208, 256, true, true},
	{"padding", 264, 448, false, false},
	{"checksum beyond SHA-256", 448 + sha256.Size, 512, false, false},
	{"padding", 512, binarySize, false, false},
}

func readCopy(disk io.ReaderAt, offset int64, magic string) (*Header, error) {
	bin := make([]byte, binarySize)
	if _, err := disk.ReadAt(bin, offset); err != nil {
		return nil, fmt.Errorf("%w at %d: %w", ErrNotLUKS2, offset, err)
	}
	if string(bin[:6]) != magic {
		return nil, fmt.Errorf("%w at %d", ErrNotLUKS2, offset)
	}
	be := binary.BigEndian
	if v := be.Uint16(bin[6:]); v == 1 {
		return nil, errLUKS1
	} else if v != 2 {
		return nil, fmt.Errorf("%w: version %d", ErrNotLUKS2, v)
	}
	whole, err := readWhole(disk, offset, bin)
	if err != nil {
		return nil, fmt.Errorf("LUKS2 header at %d: %w", offset, err)
	}
	h := &Header{size: be.Uint64(bin[8:]), sequence: be.Uint64(bin[16:]), Label: text(bin[24:72]), UUID: text(bin[168:208])}
	if err := checkBinary(bin); err != nil {
		return nil, fmt.Errorf("LUKS2 header at %d: %w", offset, err)
	}
	area, rest, _ := bytes.Cut(whole[binarySize:], []byte{0})
	if !zero(rest) || len(area) == len(whole)-binarySize {
		return nil, fmt.Errorf("LUKS2 header at %d: JSON area: data after its end", offset)
	}
	if err := h.decode(area); err != nil {
		return nil, fmt.Errorf("LUKS2 header at %d: JSON area: %w", offset, err)
	}
	return h, nil
}

// readWhole reads a copy of which bin is the binary part, and checks its checksum.
func readWhole(disk io.ReaderAt, offset int64, bin []byte) ([]byte, error) {
	be := binary.BigEndian
	size := be.Uint64(bin[8:])
	switch {
	case size < minHeaderSize || size > maxHeaderSize || size&(size-1) != 0 || offset != 0 && uint64(offset) != size:
		return nil, fmt.Errorf("%w: size %d", errDamaged, size)
	case be.Uint64(bin[256:]) != uint64(offset):
		return nil, fmt.Errorf("%w: it says that it is at %d", errDamaged, be.Uint64(bin[256:]))
	}
	if alg := text(bin[72:104]); alg != "sha256" {
		return nil, fmt.Errorf("checksum %q, want sha256", alg)
	}
	whole := make([]byte, size)
	if _, err := disk.ReadAt(whole, offset); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	sum := bytes.Clone(whole[448 : 448+sha256.Size])
	clear(whole[448:512])
	if got := sha256.Sum256(whole); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("%w: its checksum does not match", errDamaged)
	}
	if !bytes.Equal(bin[:448], whole[:448]) || !bytes.Equal(bin[512:], whole[512:binarySize]) {
		return nil, fmt.Errorf("%w: it changed while it was read", errDamaged)
	}
	return whole, nil
}

// checkBinary refuses bytes of a binary header that one reader skips and another might not.
func checkBinary(bin []byte) error {
	for _, f := range fields {
		b := bin[f.begin:f.end]
		switch s, rest, ended := bytes.Cut(b, []byte{0}); {
		case f.text && (!ended || !zero(rest)):
			return fmt.Errorf("its %s has no end, or bytes after it", f.name)
		case f.text && (!utf8.Valid(s) || bytes.ContainsFunc(s, unicode.IsControl)):
			return fmt.Errorf("its %s is %q, which is no text", f.name, s)
		case !f.used && !zero(b):
			return fmt.Errorf("its %s is not zero", f.name)
		}
	}
	if id := text(bin[168:208]); !uuidForm.MatchString(id) {
		return fmt.Errorf("its UUID is %q", id)
	}
	return nil
}

var uuidForm = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

func zero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// dataOffset is where the first segment begins; all before it is header and keyslots.
func (h *Header) dataOffset() (int64, error) {
	seg, ok := h.Meta.Segments["0"]
	if !ok {
		return 0, errors.New("LUKS2 header: no segment 0")
	}
	n, err := number(seg.Offset)
	if err != nil || n < int64(2*h.size) || n > MaxArea || n%512 != 0 {
		return 0, fmt.Errorf("LUKS2 header: the data begins at %q, want %d to %d", seg.Offset, 2*h.size, MaxArea)
	}
	return n, nil
}

// WriteDetached makes a detached header for cryptsetup: the disk's header and
// keyslots, up to the data, with both copies of the header saying what h says,
// and nothing that it did not understand. So what was checked is what is
// opened, whatever the disk says by then.
func (h *Header) WriteDetached(out io.WriterAt, disk io.ReaderAt) error {
	doc, err := h.document()
	if err != nil {
		return err
	}
	if len(doc) >= int(h.size)-binarySize {
		return errors.New("encode LUKS2 header: it does not fit")
	}
	for i, magic := range []string{"LUKS\xba\xbe", "SKUL\xba\xbe"} {
		b := make([]byte, h.size)
		copy(b, magic)
		be := binary.BigEndian
		be.PutUint16(b[6:], 2)
		be.PutUint64(b[8:], h.size)
		be.PutUint64(b[16:], h.sequence)
		copy(b[24:71], h.Label)
		copy(b[72:], "sha256")
		copy(b[168:207], h.UUID)
		be.PutUint64(b[256:], uint64(i)*h.size)
		copy(b[binarySize:], doc)
		sum := sha256.Sum256(b)
		copy(b[448:], sum[:])
		if _, err := out.WriteAt(b, int64(i)*int64(h.size)); err != nil {
			return fmt.Errorf("write LUKS2 header: %w", err)
		}
	}
	end, err := h.dataOffset()
	if err != nil {
		return err
	}
	begin := int64(2 * h.size)
	if _, err := io.Copy(io.NewOffsetWriter(out, begin), io.NewSectionReader(disk, begin, end-begin)); err != nil {
		return fmt.Errorf("copy LUKS2 keyslots: %w", err)
	}
	return nil
}

// sorted are the keys of m, in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
