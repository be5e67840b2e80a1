// Package luks reads LUKS2 headers as what they are on a disk that a host can
// write to: attacker's bytes. It holds them against a list of what is safe,
// binds them to the disk's key, and writes out what it has checked, so that
// cryptsetup opens exactly that (docs/adr/0023-luks-header-guard.md). It
// encrypts and opens nothing itself.
//
// Specification: "LUKS2 On-Disk Format Specification" 1.1.1.
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
	"slices"
	"strconv"
	"strings"
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
	doc      map[string]any // the whole JSON area
}

// Meta is the part of the JSON area that decides how the disk is opened. Numbers past 2^53 are decimal strings there.
type Meta struct {
	Keyslots map[string]Keyslot
	Segments map[string]Segment
	Digests  map[string]Digest
	Tokens   map[string]Token
	Config   Config
}

// Keyslot holds the volume key, encrypted under a passphrase or key.
type Keyslot struct {
	Type    string `json:"type"`
	KeySize int    `json:"key_size"`
	Area    struct {
		Type       string `json:"type"`
		Offset     string `json:"offset"`
		Size       string `json:"size"`
		Encryption string `json:"encryption"`
		KeySize    int    `json:"key_size"`
	} `json:"area"`
	KDF struct {
		Type       string `json:"type"`
		Hash       string `json:"hash"`
		Iterations int    `json:"iterations"`
	} `json:"kdf"`
	AF struct {
		Type string `json:"type"`
		Hash string `json:"hash"`
	} `json:"af"`
}

// Segment is a part of the disk.
type Segment struct {
	Type       string          `json:"type"`
	Offset     string          `json:"offset"`
	Size       string          `json:"size"`
	IVTweak    string          `json:"iv_tweak"`
	Encryption string          `json:"encryption"`
	SectorSize int             `json:"sector_size"`
	Integrity  json.RawMessage `json:"integrity"`
	Flags      []string        `json:"flags"`
}

// Digest proves that an unlocked volume key is the right one.
type Digest struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Segments   []string `json:"segments"`
	Hash       string   `json:"hash"`
	Iterations int      `json:"iterations"`
	Salt       string   `json:"salt"`
	Digest     string   `json:"digest"`
}

// Config is the persistent configuration.
type Config struct {
	JSONSize     string          `json:"json_size"`
	KeyslotsSize string          `json:"keyslots_size"`
	Flags        []string        `json:"flags"`
	Requirements json.RawMessage `json:"requirements"`
}

// Read reads the header of a disk. Of its two copies it takes the valid one with
// the higher sequence number, as a write may have been cut off.
func Read(disk io.ReaderAt) (*Header, error) {
	h, err := readCopy(disk, 0, "LUKS\xba\xbe")
	switch {
	case errors.Is(err, errVersion):
		return nil, err
	case err == nil:
		if second, err := readCopy(disk, int64(h.size), "SKUL\xba\xbe"); err == nil && second.sequence > h.sequence {
			h = second
		}
	default:
		for size := int64(minHeaderSize); h == nil && size <= maxHeaderSize; size *= 2 {
			h, _ = readCopy(disk, size, "SKUL\xba\xbe") // what is wrong with the first says more
		}
		if h == nil {
			return nil, err
		}
	}
	if _, err := h.dataOffset(); err != nil {
		return nil, err
	}
	return h, nil
}

var errVersion = errors.New("the header is of LUKS1, which is not accepted")

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
		return nil, errVersion
	} else if v != 2 {
		return nil, fmt.Errorf("%w: version %d", ErrNotLUKS2, v)
	}
	h := &Header{size: be.Uint64(bin[8:]), sequence: be.Uint64(bin[16:]), Label: text(bin[24:72]), UUID: text(bin[168:208])}
	if h.size < minHeaderSize || h.size > maxHeaderSize || h.size&(h.size-1) != 0 {
		return nil, fmt.Errorf("LUKS2 header at %d: size %d", offset, h.size)
	}
	if at := be.Uint64(bin[256:]); at != uint64(offset) {
		return nil, fmt.Errorf("LUKS2 header at %d says that it is at %d", offset, at)
	}
	if offset != 0 && uint64(offset) != h.size {
		return nil, fmt.Errorf("LUKS2 header at %d: size %d", offset, h.size)
	}
	if alg := text(bin[72:104]); alg != "sha256" {
		return nil, fmt.Errorf("LUKS2 header at %d: checksum %q, want sha256", offset, alg)
	}
	whole := make([]byte, h.size)
	if _, err := disk.ReadAt(whole, offset); err != nil {
		return nil, fmt.Errorf("read LUKS2 header at %d: %w", offset, err)
	}
	sum := bytes.Clone(whole[448 : 448+sha256.Size])
	clear(whole[448:512])
	if got := sha256.Sum256(whole); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("LUKS2 header at %d: checksum does not match", offset)
	}
	area, _, _ := bytes.Cut(whole[binarySize:], []byte{0})
	if err := h.decode(area); err != nil {
		return nil, fmt.Errorf("LUKS2 header at %d: %w", offset, err)
	}
	return h, nil
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// decode reads the JSON area so that no other reader could see something else
// in it: no key twice, in whatever case.
func (h *Header) decode(area []byte) error {
	dec := json.NewDecoder(bytes.NewReader(area))
	dec.UseNumber()
	doc, err := value(dec, 0)
	if err != nil {
		return fmt.Errorf("JSON area: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("JSON area: data after its end")
	}
	var ok bool
	if h.doc, ok = doc.(map[string]any); !ok {
		return errors.New("JSON area: not an object")
	}
	for name, to := range map[string]any{
		"keyslots": &h.Meta.Keyslots, "segments": &h.Meta.Segments, "digests": &h.Meta.Digests, "config": &h.Meta.Config,
	} {
		b, err := json.Marshal(h.doc[name])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := json.Unmarshal(b, to); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return h.decodeTokens()
}

// value is the next JSON value. It differs from Decode in that a key that occurs twice is an error.
func value(dec *json.Decoder, depth int) (any, error) {
	if depth > 16 {
		return nil, errors.New("nested too deeply")
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch tok {
	case json.Delim('{'):
		out, seen := map[string]any{}, map[string]bool{}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			name := key.(string)
			if folded := strings.ToLower(name); seen[folded] {
				return nil, fmt.Errorf("key %q occurs twice", name)
			} else {
				seen[folded] = true
			}
			if out[name], err = value(dec, depth+1); err != nil {
				return nil, err
			}
		}
		_, err = dec.Token()
		return out, err
	case json.Delim('['):
		out := []any{}
		for dec.More() {
			v, err := value(dec, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		_, err = dec.Token()
		return out, err
	}
	return tok, nil
}

// dataOffset is where the first segment begins; all before it is header and keyslots.
func (h *Header) dataOffset() (int64, error) {
	seg, ok := h.Meta.Segments["0"]
	if !ok {
		return 0, errors.New("LUKS2 header: no segment 0")
	}
	n, err := strconv.ParseInt(seg.Offset, 10, 64)
	if err != nil || n < int64(2*h.size) || n > MaxArea || n%512 != 0 {
		return 0, fmt.Errorf("LUKS2 header: the data begins at %q, want %d to %d", seg.Offset, 2*h.size, MaxArea)
	}
	return n, nil
}

// WriteDetached makes a detached header for cryptsetup: the disk's header and
// keyslots, up to the data, with both copies of the header saying what h says.
// So what was checked is what is opened, whatever the disk says by then.
func (h *Header) WriteDetached(out io.WriterAt, disk io.ReaderAt) error {
	doc, err := json.Marshal(h.doc)
	if err != nil {
		return fmt.Errorf("encode LUKS2 header: %w", err)
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
		copy(b[24:72], h.Label)
		copy(b[72:], "sha256")
		copy(b[168:208], h.UUID)
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
