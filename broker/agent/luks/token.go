package luks

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/claviger/claviger/broker/strictjson"
)

// TokenType is the type of the LUKS2 tokens that the agent writes.
const TokenType = "claviger"

// Token ties keyslots to a secret of a broker and, by its MAC, the header to that secret.
type Token struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"`
	Resource string   `json:"claviger_resource"`
	Version  string   `json:"claviger_version"` // of the secret that opens the keyslots
	MAC      string   `json:"claviger_mac"`     // base64; see MAC
}

// decodeTokens takes our tokens. Other programs' have to be objects with a type, as cryptsetup
// wants them; what else they say is for their own programs.
func (h *Header) decodeTokens(tokens map[string]json.RawMessage) error {
	h.Meta.Tokens = map[string]Token{}
	for _, name := range sorted(tokens) {
		if err := id(name); err != nil {
			return fmt.Errorf("tokens: %w", err)
		}
		var kind struct {
			Type string `json:"type"`
		}
		if err := strictjson.Unmarshal(tokens[name], &kind); err != nil {
			return fmt.Errorf("token %s: %w", name, err)
		}
		if kind.Type != TokenType {
			continue
		}
		var t Token
		if err := exactly(tokens[name], &t); err != nil {
			return fmt.Errorf("token %s: %w", name, err)
		}
		h.Meta.Tokens[name] = t
	}
	return nil
}

// Ours are the ids of the agent's tokens that name a keyslot, the newest version first.
func (h *Header) Ours() []string {
	ids := slices.DeleteFunc(sorted(h.Meta.Tokens), func(id string) bool { return len(h.Meta.Tokens[id].Keyslots) == 0 })
	version := func(id string) int {
		n, err := strconv.Atoi(h.Meta.Tokens[id].Version)
		if err != nil {
			return -1
		}
		return n
	}
	slices.SortStableFunc(ids, func(a, b string) int { return version(b) - version(a) })
	return ids
}

const macLabel = "claviger/v1/luks-header"

// MAC is over what decides how the data is read: the UUID, and every member of
// the segment and of the volume key's digest that WriteDetached writes (those
// that Check wants absent or fixed are left out). Keyslots are left out on purpose, so that a person
// may add a passphrase: one that does not yield the volume key of the digest opens nothing.
func (h *Header) MAC(key []byte) ([]byte, error) {
	k, err := hkdf.Key(sha256.New, key, nil, macLabel, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	defer clear(k)
	m := hmac.New(sha256.New, k)
	m.Write([]byte(macLabel))
	for _, field := range h.volume() {
		m.Write(binary.BigEndian.AppendUint32(nil, uint32(len(field))))
		m.Write([]byte(field))
	}
	return m.Sum(nil), nil
}

// volume is what MAC is over.
func (h *Header) volume() []string {
	seg := h.Meta.Segments["0"]
	_, d := h.digest()
	return []string{
		h.UUID, seg.Type, seg.Offset, seg.Size, seg.IVTweak, seg.Encryption, strconv.Itoa(seg.SectorSize),
		d.Type, d.Hash, strconv.Itoa(d.Iterations), d.Salt, d.Digest,
	}
}

// SameVolume says whether two headers describe the same data and the same volume key, whatever keyslots and tokens they have.
func (h *Header) SameVolume(other *Header) bool { return slices.Equal(h.volume(), other.volume()) }

// NewToken makes the token of a keyslot.
func (h *Header) NewToken(keyslot, resource, version string, key []byte) (Token, error) {
	mac, err := h.MAC(key)
	if err != nil {
		return Token{}, err
	}
	return Token{TokenType, []string{keyslot}, resource, version, base64.StdEncoding.EncodeToString(mac)}, nil
}

// ErrNotEnrolled: the header is not the one that the token was made for.
var ErrNotEnrolled = errors.New("the disk's header is not the one that was enrolled with this key: the disk was swapped or its header changed")

// Verify holds the header against a token of its own, with the key that the broker gave for it.
func (h *Header) Verify(id string, key []byte) error {
	want, err := base64.StdEncoding.DecodeString(h.Meta.Tokens[id].MAC)
	if err != nil {
		return ErrNotEnrolled
	}
	got, err := h.MAC(key)
	if err != nil {
		return err
	}
	if !hmac.Equal(got, want) {
		return ErrNotEnrolled
	}
	return nil
}
