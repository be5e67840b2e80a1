package luks

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Rules say what a header may ask for. The zero value is what `claviger-agent` makes itself.
type Rules struct {
	// Ciphers of data and keyslots; default aes-xts-plain64 alone.
	Ciphers []string
}

// MinIterations is far below what a passphrase needs: keyslots here are opened
// by random keys of 256 bits, where iterations add nothing.
const MinIterations = 1000

// stripes is how many times a key is spread (LUKS_STRIPES): cryptsetup uses this number whatever the header says.
const stripes = 4000

// Check refuses a header that could make the machine write its data where
// others can read it. LUKS2 authenticates nothing (CVE-2025-59054,
// CVE-2025-58356): a host can put a null cipher there, with which any key opens the disk.
//
//  1. One segment, of type crypt, to the end of the disk, without integrity or
//     flags: no second one that is plain, no data elsewhere.
//  2. Its cipher, and those of all keyslots, are allowed ones, with whole keys.
//  3. Keyslots are of type luks2, in the header's own area, behind PBKDF2 or Argon2 with an accepted hash.
//  4. One digest, for that segment, so that a volume key is held against something.
//  5. No requirements, such as a re-encryption under way, and no flags; sizes that are the header's own.
func (h *Header) Check(r Rules) error {
	if len(r.Ciphers) == 0 {
		r.Ciphers = []string{"aes-xts-plain64"}
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("the disk's LUKS2 header is not acceptable: "+format, args...)
	}
	m := h.Meta
	seg, ok := m.Segments["0"]
	switch {
	case len(m.Segments) != 1 || !ok:
		return refuse("it has segments %q, want one", sorted(m.Segments))
	case seg.Type != "crypt":
		return refuse("segment 0 is of type %q: it would not be encrypted", seg.Type)
	case !slices.Contains(r.Ciphers, seg.Encryption):
		return refuse("the data's cipher is %q, accepted: %q", seg.Encryption, r.Ciphers)
	case seg.Size != "dynamic":
		return refuse("segment 0 has size %q, want dynamic", seg.Size)
	case seg.IVTweak != "0":
		return refuse("segment 0 has iv_tweak %q, want 0", seg.IVTweak)
	case seg.SectorSize != 512 && seg.SectorSize != 4096:
		return refuse("segment 0 has sectors of %d bytes", seg.SectorSize)
	case seg.Integrity != nil || len(seg.Flags) > 0:
		return refuse("segment 0 has integrity or flags")
	}
	end, err := h.dataOffset()
	if err != nil {
		return refuse("%w", err)
	}
	if len(m.Keyslots) == 0 {
		return refuse("it has no keyslots")
	}
	for _, slot := range sorted(m.Keyslots) {
		if err := errors.Join(id(slot), m.Keyslots[slot].check(r, int64(2*h.size), end)); err != nil {
			return refuse("keyslot %s: %w", slot, err)
		}
	}
	name, d := h.digest()
	switch {
	case name == "":
		return refuse("it has digests %q, want one", sorted(m.Digests))
	case d.Type != "pbkdf2" || !strongHash(d.Hash) || d.Iterations < MinIterations || !isBase64(d.Digest) || !isBase64(d.Salt):
		return refuse("digest %s is %s with %s and %d iterations", name, d.Type, d.Hash, d.Iterations)
	case !slices.Equal(d.Segments, []string{"0"}):
		return refuse("digest %s is for segments %q", name, d.Segments)
	}
	for _, slot := range d.Keyslots {
		if _, ok := m.Keyslots[slot]; !ok {
			return refuse("digest %s names keyslot %s, which is not there", name, slot)
		}
	}
	return h.checkConfig(refuse)
}

// digest is the only digest and its name. The name is "" if there is not one digest.
func (h *Header) digest() (string, Digest) {
	if len(h.Meta.Digests) != 1 {
		return "", Digest{}
	}
	name := sorted(h.Meta.Digests)[0]
	return name, h.Meta.Digests[name]
}

func (h *Header) checkConfig(refuse func(format string, args ...any) error) error {
	c := h.Meta.Config
	if len(c.Flags) > 0 {
		return refuse("it sets flags %q", c.Flags)
	}
	if c.Requirements != nil && len(c.Requirements.Mandatory) > 0 {
		return refuse("it has requirements %q: is a re-encryption under way?", c.Requirements.Mandatory)
	}
	if want := strconv.FormatUint(h.size-binarySize, 10); c.JSONSize != want {
		return refuse("config.json_size is %q, want %q", c.JSONSize, want)
	}
	if n, err := number(c.KeyslotsSize); c.KeyslotsSize != "" && (err != nil || n > MaxArea) {
		return refuse("config.keyslots_size is %q", c.KeyslotsSize)
	}
	return nil
}

func (k Keyslot) check(r Rules, begin, end int64) error {
	offset, err1 := number(k.Area.Offset)
	size, err2 := number(k.Area.Size)
	switch {
	case k.Type != "luks2" || k.Area.Type != "raw" || k.AF.Type != "luks1":
		return fmt.Errorf("type %q in a %q area", k.Type, k.Area.Type)
	case !slices.Contains(r.Ciphers, k.Area.Encryption):
		return fmt.Errorf("its cipher is %q, accepted: %q", k.Area.Encryption, r.Ciphers)
	case k.KeySize < 32 || k.KeySize > 64 || k.Area.KeySize < 32 || k.Area.KeySize > 64:
		return fmt.Errorf("keys of %d and %d bytes", k.KeySize, k.Area.KeySize)
	case err1 != nil || err2 != nil || offset < begin || offset > end || size > end-offset:
		return fmt.Errorf("area at %q of %q bytes is not between header and data", k.Area.Offset, k.Area.Size)
	case !strongHash(k.AF.Hash) || k.AF.Stripes != stripes:
		return fmt.Errorf("hash %q in %d stripes", k.AF.Hash, k.AF.Stripes)
	case !isBase64(k.KDF.Salt):
		return fmt.Errorf("salt %q", k.KDF.Salt)
	case k.Priority != nil && (*k.Priority < 0 || *k.Priority > 2):
		return fmt.Errorf("priority %d", *k.Priority)
	}
	switch k.KDF.Type {
	case "argon2i", "argon2id":
		if k.KDF.Hash != "" || k.KDF.Iterations != 0 {
			return fmt.Errorf("%s with PBKDF2's hash or iterations", k.KDF.Type)
		}
	case "pbkdf2":
		if !strongHash(k.KDF.Hash) || k.KDF.Iterations < MinIterations {
			return fmt.Errorf("PBKDF2 with %q and %d iterations", k.KDF.Hash, k.KDF.Iterations)
		}
		if k.KDF.Time != 0 || k.KDF.Memory != 0 || k.KDF.CPUs != 0 {
			return errors.New("PBKDF2 with Argon2's costs")
		}
	default:
		return fmt.Errorf("key derivation %q", k.KDF.Type)
	}
	return nil
}

// isBase64 says whether s is bytes in base64, as there is one way to write them. Readers in C pass over more.
func isBase64(s string) bool {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil && len(b) > 0 && base64.StdEncoding.EncodeToString(b) == s
}

func strongHash(name string) bool { return name == "sha256" || name == "sha512" }
