package luks

import (
	"encoding/json"
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

// Check refuses a header that could make the machine write its data where
// others can read it. LUKS2 authenticates nothing (CVE-2025-59054,
// CVE-2025-58356): a host can put a null cipher there, with which any key opens the disk.
//
//  1. One segment, of type crypt, to the end of the disk, without integrity or
//     flags: no second one that is plain, no data elsewhere.
//  2. Its cipher, and those of all keyslots, are allowed ones, with whole keys.
//  3. Keyslots are of type luks2, in the header's own area, behind PBKDF2 or Argon2 with an accepted hash.
//  4. One digest, for that segment, so that a volume key is held against something.
//  5. No requirements, such as a re-encryption under way, and no flags.
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
	for _, id := range sorted(m.Keyslots) {
		if err := m.Keyslots[id].check(r, int64(2*h.size), end); err != nil {
			return refuse("keyslot %s: %w", id, err)
		}
	}
	d, ok := m.Digests["0"]
	switch {
	case len(m.Digests) != 1 || !ok:
		return refuse("it has digests %q, want one", sorted(m.Digests))
	case d.Type != "pbkdf2" || !strongHash(d.Hash) || d.Iterations < MinIterations || d.Digest == "" || d.Salt == "":
		return refuse("digest 0 is %s with %s and %d iterations", d.Type, d.Hash, d.Iterations)
	case !slices.Equal(d.Segments, []string{"0"}):
		return refuse("digest 0 is for segments %q", d.Segments)
	}
	for _, id := range d.Keyslots {
		if _, ok := m.Keyslots[id]; !ok {
			return refuse("digest 0 names keyslot %s, which is not there", id)
		}
	}
	if len(m.Config.Flags) > 0 {
		return refuse("it sets flags %q", m.Config.Flags)
	}
	var requirements struct {
		Mandatory []string `json:"mandatory"`
	}
	if m.Config.Requirements != nil && (json.Unmarshal(m.Config.Requirements, &requirements) != nil || len(requirements.Mandatory) > 0) {
		return refuse("it has requirements %s: is a re-encryption under way?", m.Config.Requirements)
	}
	return nil
}

func (k Keyslot) check(r Rules, begin, end int64) error {
	offset, err1 := strconv.ParseInt(k.Area.Offset, 10, 64)
	size, err2 := strconv.ParseInt(k.Area.Size, 10, 64)
	switch {
	case k.Type != "luks2" || k.Area.Type != "raw" || k.AF.Type != "luks1":
		return fmt.Errorf("type %q in a %q area", k.Type, k.Area.Type)
	case !slices.Contains(r.Ciphers, k.Area.Encryption):
		return fmt.Errorf("its cipher is %q, accepted: %q", k.Area.Encryption, r.Ciphers)
	case k.KeySize < 32 || k.KeySize > 64 || k.Area.KeySize < 32 || k.Area.KeySize > 64:
		return fmt.Errorf("keys of %d and %d bytes", k.KeySize, k.Area.KeySize)
	case err1 != nil || err2 != nil || size < 0 || offset < begin || offset > end || size > end-offset:
		return fmt.Errorf("area at %q of %q bytes is not between header and data", k.Area.Offset, k.Area.Size)
	case !strongHash(k.AF.Hash):
		return fmt.Errorf("hash %q", k.AF.Hash)
	}
	switch k.KDF.Type {
	case "argon2i", "argon2id":
	case "pbkdf2":
		if !strongHash(k.KDF.Hash) || k.KDF.Iterations < MinIterations {
			return fmt.Errorf("PBKDF2 with %q and %d iterations", k.KDF.Hash, k.KDF.Iterations)
		}
	default:
		return fmt.Errorf("key derivation %q", k.KDF.Type)
	}
	return nil
}

func strongHash(name string) bool { return name == "sha256" || name == "sha512" }
