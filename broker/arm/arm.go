// Package arm is what the attestation token of PSA (RFC 9783) and the platform
// token of Arm's CCA have in common by specification, the second being made of
// the first: identities, the security lifecycle, software components, and keys
// that somebody endorsed one by one.
package arm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/claviger/claviger/broker/cose"
)

const (
	instanceSize       = 33
	implementationSize = 32
	maxText            = 256 // bytes of a text claim
)

// Identity is who signed: a device, and what make it is of.
type Identity struct {
	Instance       []byte // 33 bytes: a UEID of type RAND (RFC 9711 §4.2.1), 0x01 and 32 bytes
	Implementation []byte // 32 bytes
}

// Check holds the ids to their form.
func (id Identity) Check() error {
	if len(id.Instance) != instanceSize || id.Instance[0] != 1 {
		return fmt.Errorf("instance id: %d bytes, want %d and the first to be 0x01", len(id.Instance), instanceSize)
	}
	if len(id.Implementation) != implementationSize {
		return fmt.Errorf("implementation id: %d bytes, want %d", len(id.Implementation), implementationSize)
	}
	return nil
}

// Lifecycle is the security lifecycle state of a device: the upper of two bytes
// (RFC 9783 §4.3.1; the lower one is the maker's).
type Lifecycle string

// States. In all but Secured somebody may look into the root of trust, or what
// it protects: keys and measurements are then worth little.
const (
	Unknown          Lifecycle = "unknown"
	AssemblyAndTest  Lifecycle = "assembly_and_test"
	Provisioning     Lifecycle = "rot_provisioning"
	Secured          Lifecycle = "secured"
	NonRoTDebug      Lifecycle = "non_rot_debug"
	RecoverableDebug Lifecycle = "recoverable_rot_debug"
	Decommissioned   Lifecycle = "decommissioned"
)

// ParseLifecycle reads the claim. A number outside of the states is an error; nil is a missing claim.
func ParseLifecycle(n *uint64) (Lifecycle, error) {
	states := []Lifecycle{Unknown, AssemblyAndTest, Provisioning, Secured, NonRoTDebug, RecoverableDebug, Decommissioned}
	if n == nil {
		return "", errors.New("lifecycle: missing")
	}
	if state := *n >> 12; state < uint64(len(states)) && *n&0x0f00 == 0 {
		return states[state], nil
	}
	return "", fmt.Errorf("lifecycle: %#x is no state", *n)
}

// Component is a software component, as it stands in a token.
type Component struct {
	Type        *string    `cbor:"1,keyasint"`
	Value       cose.Bytes `cbor:"2,keyasint"`
	Version     *string    `cbor:"4,keyasint"`
	SignerID    cose.Bytes `cbor:"5,keyasint"`
	Description *string    `cbor:"6,keyasint"`
}

// SoftwareComponent is a component as a claim, under RFC 9783's names. Text that is absent is empty.
type SoftwareComponent struct {
	Type        string `json:"measurement_type"`
	Value       string `json:"measurement_value"` // lower-case hex
	Version     string `json:"version"`
	SignerID    string `json:"signer_id"`        // lower-case hex: the hash of the public key of who signed it
	Description string `json:"measurement_desc"` // for example "sha-256"
	// Name is that of its value in measurements.
	Name string `json:"name"`
}

// Components holds components to their form and makes claims of them. Each gets
// a name of its own, from prefix and its type in lower case: a second "bl" is "bl_2".
func Components(prefix string, in []Component) ([]SoftwareComponent, error) {
	if len(in) == 0 {
		return nil, errors.New("software components: none")
	}
	taken := map[string]bool{}
	var out []SoftwareComponent
	for i, c := range in {
		if !HashSize(len(c.Value)) {
			return nil, fmt.Errorf("software component %d: measurement value of %d bytes, want 32, 48 or 64", i, len(c.Value))
		}
		if !HashSize(len(c.SignerID)) {
			return nil, fmt.Errorf("software component %d: signer id of %d bytes, want 32, 48 or 64", i, len(c.SignerID))
		}
		s := SoftwareComponent{Value: hex.EncodeToString(c.Value), SignerID: hex.EncodeToString(c.SignerID)}
		for _, t := range []struct {
			name string
			from *string
			to   *string
		}{{"type", c.Type, &s.Type}, {"version", c.Version, &s.Version}, {"description", c.Description, &s.Description}} {
			var err error
			if *t.to, err = Text(t.name, t.from); err != nil {
				return nil, fmt.Errorf("software component %d: %w", i, err)
			}
		}
		base := prefix + name(s.Type)
		s.Name = base
		for n := 2; taken[s.Name]; n++ {
			s.Name = base + "_" + strconv.Itoa(n)
		}
		taken[s.Name] = true
		out = append(out, s)
	}
	return out, nil
}

// HashSize says that n is the length of a SHA-2 hash that is taken.
func HashSize(n int) bool { return n == 32 || n == 48 || n == 64 }

// Text is the value of a text claim that may be missing.
func Text(name string, s *string) (string, error) {
	switch {
	case s == nil:
		return "", nil
	case len(*s) == 0 || len(*s) > maxText || !utf8.ValidString(*s):
		return "", fmt.Errorf("%s: %d bytes, want 1 to %d", name, len(*s), maxText)
	default:
		return *s, nil
	}
}

// name makes a measurement's name of a component's type: what is no letter or digit becomes "_".
func name(typ string) string {
	if typ == "" {
		return "component"
	}
	return strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return '_'
		}
		return r
	}, strings.ToLower(typ))
}
