package cca

import (
	"encoding/hex"
	"fmt"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
)

// Claims are the claims of both tokens under the specification's names. Byte
// strings are lower-case hex. What is absent is empty.
type Claims struct {
	Platform Platform `json:"platform"`
	Realm    Realm    `json:"realm"`
}

// Platform is what the platform's firmware says.
type Platform struct {
	Profile             string                  `json:"profile"`
	ImplementationID    string                  `json:"implementation_id"` // 32 bytes
	InstanceID          string                  `json:"instance_id"`       // 33 bytes
	Config              string                  `json:"config"`            // the maker's encoding
	Lifecycle           uint64                  `json:"lifecycle"`
	LifecycleState      arm.Lifecycle           `json:"lifecycle_state"` // "secured", …
	SoftwareComponents  []arm.SoftwareComponent `json:"sw_components"`
	VerificationService string                  `json:"verification_service"`
	HashAlgorithm       string                  `json:"hash_algo_id"` // of components that do not name theirs
	// Key is the endorsed key (CPAK): SHA-256 of its SubjectPublicKeyInfo; empty where evidence is looked at without one.
	Key string `json:"key"`
	// KeyPublished says who published the private half of the key, for keys that prove nothing.
	KeyPublished string `json:"key_published,omitempty"`
}

// Realm is what the realm management monitor says of the realm.
type Realm struct {
	Profile                string   `json:"profile"`               // empty: before profiles
	PersonalizationValue   string   `json:"personalization_value"` // 64 bytes, by who created the realm
	InitialMeasurement     string   `json:"initial_measurement"`
	ExtensibleMeasurements []string `json:"extensible_measurements"` // four
	HashAlgorithm          string   `json:"hash_algo_id"`            // of the measurements
	PublicKey              string   `json:"public_key"`              // as it was sent
	PublicKeyHashAlgorithm string   `json:"public_key_hash_algo_id"`
}

func claimsOf(p platformToken, r realmToken) (*Claims, error) {
	state, err := arm.ParseLifecycle(p.Lifecycle)
	if err != nil {
		return nil, fmt.Errorf("platform: %w", err)
	}
	c := &Claims{
		Platform: Platform{
			Profile: *p.Profile, ImplementationID: hex.EncodeToString(p.Implementation), InstanceID: hex.EncodeToString(p.Instance),
			Config: hex.EncodeToString(p.Config), Lifecycle: *p.Lifecycle, LifecycleState: state, HashAlgorithm: *p.HashAlgorithm,
		},
		Realm: Realm{
			PersonalizationValue: hex.EncodeToString(r.Personalization), InitialMeasurement: hex.EncodeToString(r.Initial),
			HashAlgorithm: *r.HashAlgorithm, PublicKey: hex.EncodeToString(r.PublicKey), PublicKeyHashAlgorithm: *r.PublicKeyHash,
		},
	}
	if r.Profile != nil {
		c.Realm.Profile = *r.Profile
	}
	for _, m := range r.Extensible {
		c.Realm.ExtensibleMeasurements = append(c.Realm.ExtensibleMeasurements, hex.EncodeToString(m))
	}
	if c.Platform.VerificationService, err = arm.Text("verification service", p.Service); err != nil {
		return nil, fmt.Errorf("platform: %w", err)
	}
	if c.Platform.SoftwareComponents, err = arm.Components("platform_", p.Components); err != nil {
		return nil, fmt.Errorf("platform: %w", err)
	}
	return c, nil
}

func (c *Claims) normalised(bound bool, challenge []byte) attest.Claims {
	out := attest.Claims{
		Type: attest.TypeCCA, HardwareModel: "CCA", Bound: bound,
		Debuggable:    c.Platform.LifecycleState != arm.Secured,
		BoundToCPUTEE: true,
		ChipID:        c.Platform.InstanceID,
		TCB:           attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}},
		Measurements:  map[string]string{"rim": c.Realm.InitialMeasurement},
		HostData:      c.Realm.PersonalizationValue,
		ReportData:    hex.EncodeToString(challenge),
		Collateral:    attest.CollateralState{State: attest.CollateralFresh},
		CCA:           c,
	}
	for i, m := range c.Realm.ExtensibleMeasurements {
		out.Measurements[fmt.Sprintf("rem%d", i)] = m
	}
	for _, s := range c.Platform.SoftwareComponents {
		out.Measurements[s.Name] = s.Value
	}
	return out
}
