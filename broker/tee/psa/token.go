package psa

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/cose"
)

// Profiles.
const (
	Profile1   = "PSA_IOT_PROFILE_1"                 // labels from -75000 downwards; a token without a profile is of it
	Profile2   = "http://arm.com/psa/2.0.0"          // drafts of RFC 9783: boot seed under 2397
	ProfileRFC = "tag:psacertified.org,2023:psa#tfm" // RFC 9783: boot seed under 268
)

// token holds the claims of any profile, as they were sent.
type token struct {
	Profile        *string
	ClientID       *int64
	Lifecycle      *uint64
	Implementation cose.Bytes
	BootSeed       cose.Bytes
	Certification  *string
	Components     []arm.Component
	NoMeasurements *uint64
	Nonce          cose.Bytes
	Instance       cose.Bytes
	Service        *string
}

// token1 is a token of profile 1. The fields are those of token, under their labels.
type token1 struct {
	Profile        *string         `cbor:"-75000,keyasint"`
	ClientID       *int64          `cbor:"-75001,keyasint"`
	Lifecycle      *uint64         `cbor:"-75002,keyasint"`
	Implementation cose.Bytes      `cbor:"-75003,keyasint"`
	BootSeed       cose.Bytes      `cbor:"-75004,keyasint"`
	Certification  *string         `cbor:"-75005,keyasint"`
	Components     []arm.Component `cbor:"-75006,keyasint"`
	NoMeasurements *uint64         `cbor:"-75007,keyasint"`
	Nonce          cose.Bytes      `cbor:"-75008,keyasint"`
	Instance       cose.Bytes      `cbor:"-75009,keyasint"`
	Service        *string         `cbor:"-75010,keyasint"`
}

type token2 struct {
	Profile        *string         `cbor:"265,keyasint"`
	ClientID       *int64          `cbor:"2394,keyasint"`
	Lifecycle      *uint64         `cbor:"2395,keyasint"`
	Implementation cose.Bytes      `cbor:"2396,keyasint"`
	BootSeed       cose.Bytes      `cbor:"2397,keyasint"`
	Certification  *string         `cbor:"2398,keyasint"`
	Components     []arm.Component `cbor:"2399,keyasint"`
	NoMeasurements *uint64         `cbor:"-"`
	Nonce          cose.Bytes      `cbor:"10,keyasint"`
	Instance       cose.Bytes      `cbor:"256,keyasint"`
	Service        *string         `cbor:"2400,keyasint"`
}

type tokenRFC struct {
	Profile        *string         `cbor:"265,keyasint"`
	ClientID       *int64          `cbor:"2394,keyasint"`
	Lifecycle      *uint64         `cbor:"2395,keyasint"`
	Implementation cose.Bytes      `cbor:"2396,keyasint"`
	BootSeed       cose.Bytes      `cbor:"268,keyasint"`
	Certification  *string         `cbor:"2398,keyasint"`
	Components     []arm.Component `cbor:"2399,keyasint"`
	NoMeasurements *uint64         `cbor:"-"`
	Nonce          cose.Bytes      `cbor:"10,keyasint"`
	Instance       cose.Bytes      `cbor:"256,keyasint"`
	Service        *string         `cbor:"2400,keyasint"`
}

var errProfile = errors.New("unknown profile")

// decode reads the claims of the profile that the token names.
func decode(payload []byte) (token, string, error) {
	var p struct {
		Old *string `cbor:"-75000,keyasint"`
		New *string `cbor:"265,keyasint"`
	}
	if err := cose.Unmarshal(payload, &p); err != nil {
		return token{}, "", err
	}
	var err error
	switch {
	case p.Old != nil && p.New != nil:
		return token{}, "", errors.New("two profiles")
	case p.New == nil && (p.Old == nil || *p.Old == Profile1):
		var t token1
		err = cose.Unmarshal(payload, &t)
		return token(t), Profile1, err
	case p.New != nil && *p.New == Profile2:
		var t token2
		err = cose.Unmarshal(payload, &t)
		return token(t), Profile2, err
	case p.New != nil && *p.New == ProfileRFC:
		var t tokenRFC
		err = cose.Unmarshal(payload, &t)
		return token(t), ProfileRFC, err
	case p.New != nil:
		return token{}, "", fmt.Errorf("%w %.64q", errProfile, *p.New)
	default:
		return token{}, "", fmt.Errorf("%w %.64q", errProfile, *p.Old)
	}
}

// EAN-13, and since profile 2 a number behind it.
var (
	certification1 = regexp.MustCompile(`^[0-9]{13}(-[0-9]{5})?$`)
	certification2 = regexp.MustCompile(`^[0-9]{13}-[0-9]{5}$`)
)

// check holds the claims to their profile (RFC 9783 §4 and §5; for profile 1
// "PSA Attestation API 1.0" §4).
func (t token) check(profile string) error {
	if err := (arm.Identity{Instance: t.Instance, Implementation: t.Implementation}).Check(); err != nil {
		return err
	}
	if !arm.HashSize(len(t.Nonce)) {
		return fmt.Errorf("nonce: %d bytes, want 32, 48 or 64", len(t.Nonce))
	}
	// 0 is nobody: negative ones are of the non-secure side, positive ones of the secure side.
	if t.ClientID == nil || *t.ClientID == 0 || *t.ClientID != int64(int32(*t.ClientID)) {
		return errors.New("client id: want a number of 32 bits other than 0")
	}
	seed, certification := t.BootSeed, certification2
	switch {
	case profile == Profile1:
		certification = certification1
		if len(seed) != 32 {
			return fmt.Errorf("boot seed: %d bytes, want 32", len(seed))
		}
	case seed != nil && (len(seed) < 8 || len(seed) > 32):
		return fmt.Errorf("boot seed: %d bytes, want 8 to 32", len(seed))
	}
	if t.Certification != nil && !certification.MatchString(*t.Certification) {
		return fmt.Errorf("certification reference: %.32q", *t.Certification)
	}
	if t.NoMeasurements != nil && (*t.NoMeasurements != 1 || t.Components != nil) {
		return errors.New("no-software-measurements: want the number 1, and no components beside it")
	}
	return nil
}
