package arm

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
)

// Endorsement is somebody's word that a key is that of a device, or of all
// devices of one make. There is no vendor root above these keys: this list is
// what the operator had from the maker.
type Endorsement struct {
	InstanceID       []byte // 33 bytes; empty: any instance of the implementation
	ImplementationID []byte // 32 bytes; empty: any implementation that claims the instance
	Key              crypto.PublicKey
}

// ParseEndorsements reads a JSON list of {"instance_id", "implementation_id",
// "key"}: hex, hex, and a public key as PEM (SubjectPublicKeyInfo). One of the
// ids may be missing.
func ParseEndorsements(b []byte) ([]Endorsement, error) {
	var list []struct {
		InstanceID       string `json:"instance_id"`
		ImplementationID string `json:"implementation_id"`
		Key              string `json:"key"`
	}
	if err := strictjson.UnmarshalKnown(b, &list); err != nil {
		return nil, err
	}
	var out []Endorsement
	for i, e := range list {
		instance, err := id(e.InstanceID, instanceSize)
		if err != nil {
			return nil, fmt.Errorf("[%d].instance_id: %w", i, err)
		}
		implementation, err := id(e.ImplementationID, implementationSize)
		if err != nil {
			return nil, fmt.Errorf("[%d].implementation_id: %w", i, err)
		}
		der, err := pemfile.One([]byte(e.Key), "PUBLIC KEY")
		if err != nil {
			return nil, fmt.Errorf("[%d].key: not one public key in PEM: %w", i, err)
		}
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("[%d].key: %w", i, err)
		}
		out = append(out, Endorsement{instance, implementation, key})
	}
	if _, err := NewEndorsements(out, nil); err != nil {
		return nil, err
	}
	return out, nil
}

func id(s string, size int) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || (len(b) != 0 && len(b) != size) {
		return nil, fmt.Errorf("%q is not %d hex digits", s, 2*size)
	}
	return b, nil
}

// published are digests (SHA-256 of SubjectPublicKeyInfo) of keys whose private
// half anybody can read. Boards and emulators are shipped with them.
var published = map[string]string{
	"7b1a17147ca907e16cad79901fef13991ec6206e3d148b657068ad6c4cba4626": "Trusted Firmware-M's default attestation key",
	"0928f896cb02326566530a62a1e36329a12d0a4a308f4fc81e8ff5560bca6bca": "the platform key of Trusted Firmware's CCA emulation",
	"51b944cdfa544d4c3273aa6bf350625a7dd53bbb6a71723274f538b19a207760": "the example of RFC 7517",
}

// Endorsements finds the key of a token's signer. The zero value endorses nothing.
type Endorsements struct {
	keys map[ids]Key
}

type ids struct{ instance, implementation string }

// Key is an endorsed key.
type Key struct {
	Public crypto.PublicKey
	Digest string // SHA-256 of its SubjectPublicKeyInfo, hex
	// Simulated says that the key proves nothing: it is of a test, or published.
	Simulated bool
	Note      string // who published it
}

// NewEndorsements takes a list and, for tests and simulators, one whose keys are simulated.
func NewEndorsements(list, test []Endorsement) (Endorsements, error) {
	e := Endorsements{keys: map[ids]Key{}}
	for i, x := range append(list[:len(list):len(list)], test...) {
		if err := certs.CheckKey(x.Key, certs.RSA, certs.P256, certs.P384, certs.P521); err != nil {
			return Endorsements{}, fmt.Errorf("[%d].key: %w", i, err)
		}
		if len(x.InstanceID) == 0 && len(x.ImplementationID) == 0 {
			return Endorsements{}, fmt.Errorf("[%d]: neither instance_id nor implementation_id", i)
		}
		at := ids{string(x.InstanceID), string(x.ImplementationID)}
		if _, twice := e.keys[at]; twice {
			// Two keys of one device would let either speak for it.
			return Endorsements{}, fmt.Errorf("[%d]: a second key of instance %x, implementation %x", i, x.InstanceID, x.ImplementationID)
		}
		der, err := x509.MarshalPKIXPublicKey(x.Key)
		if err != nil {
			return Endorsements{}, fmt.Errorf("[%d].key: %w", i, err)
		}
		d := sha256.Sum256(der)
		key := Key{Public: x.Key, Digest: hex.EncodeToString(d[:])}
		key.Note = published[key.Digest]
		key.Simulated = i >= len(list) || key.Note != ""
		e.keys[at] = key
	}
	return e, nil
}

// Empty says that nothing is endorsed.
func (e Endorsements) Empty() bool { return len(e.keys) == 0 }

// Find returns the key for an instance: the one endorsed for it and its
// implementation, else for it, else for all of its implementation.
func (e Endorsements) Find(id Identity) (Key, bool) {
	instance, implementation := string(id.Instance), string(id.Implementation)
	for _, at := range []ids{{instance, implementation}, {instance, ""}, {"", implementation}} {
		if k, ok := e.keys[at]; ok {
			return k, true
		}
	}
	return Key{}, false
}
