package psa

import (
	"encoding/hex"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
)

// Claims are the claims of a token under the names of RFC 9783. Byte strings
// are lower-case hex. What is absent is empty.
type Claims struct {
	Profile string `json:"profile"`
	// ClientID is who asked for the token: negative on the non-secure side, positive in a secure partition.
	ClientID          int64         `json:"client_id"`
	InstanceID        string        `json:"instance_id"`       // 33 bytes
	ImplementationID  string        `json:"implementation_id"` // 32 bytes
	SecurityLifecycle uint64        `json:"security_lifecycle"`
	LifecycleState    arm.Lifecycle `json:"lifecycle_state"` // "secured", …
	// BootSeed is random for each boot: two tokens with one seed are of one boot.
	BootSeed                     string                  `json:"boot_seed"`
	CertificationReference       string                  `json:"certification_reference"`
	SoftwareComponents           []arm.SoftwareComponent `json:"software_components"` // empty for a device that measures nothing (profile 1)
	VerificationServiceIndicator string                  `json:"verification_service_indicator"`
	// Key is the endorsed key: SHA-256 of its SubjectPublicKeyInfo; empty where evidence is looked at without one.
	Key string `json:"key"`
	// KeyPublished says who published the private half of the key, for keys that prove nothing.
	KeyPublished string `json:"key_published,omitempty"`
}

func (t token) claims(profile string) (*Claims, error) {
	state, err := arm.ParseLifecycle(t.Lifecycle)
	if err != nil {
		return nil, err
	}
	c := &Claims{
		Profile: profile, ClientID: *t.ClientID,
		InstanceID: hex.EncodeToString(t.Instance), ImplementationID: hex.EncodeToString(t.Implementation),
		SecurityLifecycle: *t.Lifecycle, LifecycleState: state,
		BootSeed: hex.EncodeToString(t.BootSeed), SoftwareComponents: []arm.SoftwareComponent{},
	}
	if c.CertificationReference, err = arm.Text("certification reference", t.Certification); err != nil {
		return nil, err
	}
	if c.VerificationServiceIndicator, err = arm.Text("verification service indicator", t.Service); err != nil {
		return nil, err
	}
	if t.NoMeasurements == nil {
		c.SoftwareComponents, err = arm.Components("", t.Components)
	}
	return c, err
}

func (c *Claims) normalised(bound bool, nonce []byte) attest.Claims {
	out := attest.Claims{
		Type: attest.TypePSA, HardwareModel: "PSA", Bound: bound,
		Debuggable: c.LifecycleState != arm.Secured,
		// A client on the non-secure side keeps its keys where no TEE guards them.
		BoundToCPUTEE: c.ClientID > 0,
		ChipID:        c.InstanceID,
		TCB:           attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}},
		Measurements:  map[string]string{},
		ReportData:    hex.EncodeToString(nonce),
		Collateral:    attest.CollateralState{State: attest.CollateralFresh},
		PSA:           c,
	}
	for _, s := range c.SoftwareComponents {
		out.Measurements[s.Name] = s.Value
	}
	return out
}
