package cca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	_ "crypto/sha256" // of the binder
	_ "crypto/sha512"
	"errors"
	"fmt"
	"slices"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/cose"
)

// Profiles of the two tokens. A realm token without a profile is of RMM 1.0's first releases.
const (
	ProfilePlatformLegacy = "http://arm.com/CCA-SSD/1.0.0"
	ProfilePlatform       = "tag:arm.com,2023:cca_platform#1.0.0"
	ProfileRealm          = "tag:arm.com,2023:realm#1.0.0"
)

// Sizes in bytes (RMM specification §A7.2.3).
const (
	challengeSize       = 64
	personalizationSize = 64
	extensible          = 4 // measurements
	coordinateSize      = 48
)

// CBOR tags of three bytes: of RMM 1.0, and of a collection of conceptual
// messages (RFC 9999), which later releases make.
var (
	tagToken = []byte{0xd9, 0x01, 0x8f} // 399
	tagCMW   = []byte{0xd9, 0x03, 0x8b} // 907
)

// cwtFormat is application/eat+cwt as a CoAP content format.
const cwtFormat = 263

var errUnsupported = errors.New("not supported")

// split takes a token apart into the COSE_Sign1 of the platform and of the
// realm. Nobody signs what else a collection holds, and it is passed over.
func split(b []byte) (platform, realm []byte, err error) {
	switch {
	case bytes.HasPrefix(b, tagToken):
		var m struct {
			Platform cose.Bytes `cbor:"44234,keyasint"`
			Realm    cose.Bytes `cbor:"44241,keyasint"`
		}
		err = cose.Unmarshal(b[len(tagToken):], &m)
		return m.Platform, m.Realm, err
	case bytes.HasPrefix(b, tagCMW):
		type record struct {
			_      struct{} `cbor:",toarray"`
			Format uint64
			Token  cose.Bytes
		}
		var m struct {
			Platform record `cbor:"44234,keyasint"`
			Realm    record `cbor:"44241,keyasint"`
		}
		if err := cose.Unmarshal(b[len(tagCMW):], &m); err != nil {
			return nil, nil, err
		}
		if m.Platform.Format != cwtFormat || m.Realm.Format != cwtFormat {
			return nil, nil, fmt.Errorf("collection: content formats %d and %d, want %d", m.Platform.Format, m.Realm.Format, cwtFormat)
		}
		return m.Platform.Token, m.Realm.Token, nil
	default:
		return nil, nil, errors.New("no CCA token: neither CBOR tag 399 nor 907")
	}
}

// platformToken holds the platform's claims, as they were sent.
type platformToken struct {
	Profile        *string         `cbor:"265,keyasint"`
	Challenge      cose.Bytes      `cbor:"10,keyasint"`
	Implementation cose.Bytes      `cbor:"2396,keyasint"`
	Instance       cose.Bytes      `cbor:"256,keyasint"`
	Config         cose.Bytes      `cbor:"2401,keyasint"`
	Lifecycle      *uint64         `cbor:"2395,keyasint"`
	Components     []arm.Component `cbor:"2399,keyasint"`
	Service        *string         `cbor:"2400,keyasint"`
	HashAlgorithm  *string         `cbor:"2402,keyasint"`
}

func decodePlatform(payload []byte) (platformToken, error) {
	var t platformToken
	if err := cose.Unmarshal(payload, &t); err != nil {
		return t, err
	}
	switch {
	case t.Profile == nil:
		return t, errors.New("profile: missing")
	case *t.Profile != ProfilePlatformLegacy && *t.Profile != ProfilePlatform:
		return t, fmt.Errorf("%w: profile %.64q", errUnsupported, *t.Profile)
	case !arm.HashSize(len(t.Challenge)):
		return t, fmt.Errorf("challenge: %d bytes, want 32, 48 or 64", len(t.Challenge))
	case len(t.Config) == 0:
		return t, errors.New("config: missing")
	}
	if _, err := hashOf("hash algorithm", t.HashAlgorithm); err != nil {
		return t, err
	}
	return t, t.identity().Check()
}

func (t platformToken) identity() arm.Identity {
	return arm.Identity{Instance: t.Instance, Implementation: t.Implementation}
}

// realmToken holds the realm's claims, as they were sent.
type realmToken struct {
	Profile         *string      `cbor:"265,keyasint"`
	Challenge       cose.Bytes   `cbor:"10,keyasint"`
	Personalization cose.Bytes   `cbor:"44235,keyasint"`
	HashAlgorithm   *string      `cbor:"44236,keyasint"`
	PublicKey       cose.Bytes   `cbor:"44237,keyasint"`
	Initial         cose.Bytes   `cbor:"44238,keyasint"`
	Extensible      []cose.Bytes `cbor:"44239,keyasint"`
	PublicKeyHash   *string      `cbor:"44240,keyasint"`
}

// decodeRealm reads the realm's claims. Measurements need not be as long as the
// hash that they name: published tokens have 64 bytes under "sha-256".
func decodeRealm(payload []byte) (realmToken, error) {
	var t realmToken
	if err := cose.Unmarshal(payload, &t); err != nil {
		return t, err
	}
	switch {
	case t.Profile != nil && *t.Profile != ProfileRealm:
		return t, fmt.Errorf("%w: profile %.64q", errUnsupported, *t.Profile)
	case len(t.Challenge) != challengeSize:
		return t, fmt.Errorf("challenge: %d bytes, want %d", len(t.Challenge), challengeSize)
	case len(t.Personalization) != personalizationSize:
		return t, fmt.Errorf("personalization value: %d bytes, want %d", len(t.Personalization), personalizationSize)
	case !arm.HashSize(len(t.Initial)):
		return t, fmt.Errorf("initial measurement: %d bytes, want 32, 48 or 64", len(t.Initial))
	case len(t.Extensible) != extensible:
		return t, fmt.Errorf("extensible measurements: %d, want %d", len(t.Extensible), extensible)
	}
	for i, m := range t.Extensible {
		if !arm.HashSize(len(m)) {
			return t, fmt.Errorf("extensible measurement %d: %d bytes, want 32, 48 or 64", i, len(m))
		}
	}
	_, err := hashOf("hash algorithm", t.HashAlgorithm)
	return t, err
}

// key is the realm attestation key (RAK): a COSE_Key, or the uncompressed point
// (97 bytes) in tokens without a profile. It is on P-384, as monitors have it.
func (t realmToken) key() (*ecdsa.PublicKey, error) {
	point := []byte(t.PublicKey)
	if t.Profile != nil {
		var k struct {
			Type  int64      `cbor:"1,keyasint"`
			Curve int64      `cbor:"-1,keyasint"`
			X     cose.Bytes `cbor:"-2,keyasint"`
			Y     cose.Bytes `cbor:"-3,keyasint"`
		}
		if err := cose.Unmarshal(t.PublicKey, &k); err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		const ec2, p384 = 2, 2 // RFC 9053 §7.1
		if k.Type != ec2 || k.Curve != p384 || len(k.X) != coordinateSize || len(k.Y) != coordinateSize {
			return nil, fmt.Errorf("%w: public key of type %d on curve %d, want one on P-384", errUnsupported, k.Type, k.Curve)
		}
		point = slices.Concat([]byte{4}, k.X, k.Y)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return key, nil
}

// keyHash is what a platform's challenge must be: the hash of the key as it stands in the realm's token.
func (t realmToken) keyHash() ([]byte, error) {
	h, err := hashOf("public key hash algorithm", t.PublicKeyHash)
	if err != nil {
		return nil, err
	}
	w := h.New()
	w.Write(t.PublicKey)
	return w.Sum(nil), nil
}

// hashOf is the algorithm by its name in IANA's "Named Information Hash Algorithm" registry.
func hashOf(claim string, name *string) (crypto.Hash, error) {
	if name == nil {
		return 0, fmt.Errorf("%s: missing", claim)
	}
	switch *name {
	case "sha-256":
		return crypto.SHA256, nil
	case "sha-384":
		return crypto.SHA384, nil
	case "sha-512":
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("%w: %s %.64q", errUnsupported, claim, *name)
}
