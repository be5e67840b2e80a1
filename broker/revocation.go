package broker

import (
	"fmt"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// RevocationKind says what kind of thing is revoked.
type RevocationKind string

// Kinds, with the form of Value.
const (
	RevokeChip          RevocationKind = "chip"           // Claims.ChipID
	RevokeMeasurement   RevocationKind = "measurement"    // any of Claims.Measurements
	RevokePolicy        RevocationKind = "policy"         // bundle digest, "sha256:…"
	RevokeResource      RevocationKind = "resource"       // path
	RevokeTCB           RevocationKind = "tcb"            // "{hardware_model}/{TCB status}"
	RevokeSecretVersion RevocationKind = "secret_version" // "{resource}@{version}"
	RevokeAdvisory      RevocationKind = "advisory"       // any of Claims.TCB.Advisories
	RevokeSession       RevocationKind = "session"        // a session's id
	RevokeWorkload      RevocationKind = "workload"       // Claims.HostData
)

// Subject is one thing that can be revoked.
type Subject struct {
	Kind  RevocationKind `json:"kind"`
	Value string         `json:"value"`
}

func (s Subject) String() string { return fmt.Sprintf("%s %s", s.Kind, s.Value) }

// Validate names the field that is wrong.
func (s Subject) Validate() error {
	switch s.Kind {
	case RevokeChip, RevokeMeasurement, RevokePolicy, RevokeResource, RevokeTCB, RevokeSecretVersion, RevokeAdvisory, RevokeSession, RevokeWorkload:
	default:
		return fmt.Errorf("kind: %q is none of chip, measurement, policy, resource, tcb, secret_version, advisory, session, workload", s.Kind)
	}
	if s.Value == "" || len(s.Value) > 512 {
		return fmt.Errorf("value: want 1 to 512 bytes, got %d", len(s.Value))
	}
	return nil
}

// Canonical is the form that is stored and compared: hex is lower case.
func (s Subject) Canonical() Subject {
	if s.Kind == RevokeChip || s.Kind == RevokeMeasurement || s.Kind == RevokeWorkload {
		s.Value = strings.ToLower(s.Value)
	}
	return s
}

// Revocation is an operator's decision about a subject.
type Revocation struct {
	Subject
	Reason    string    `json:"reason"`
	RevokedBy string    `json:"revoked_by"`
	RevokedAt time.Time `json:"revoked_at"`
}

// Revocations answers whether any of the subjects is revoked, from memory. It
// returns an error if its view may be older than a second or so: the caller
// then releases nothing. Safe for concurrent use.
type Revocations interface {
	Revoked(subjects ...Subject) (Subject, bool, error)
}

func subjectsOf(c attest.Claims) []Subject {
	s := []Subject{{RevokeTCB, c.HardwareModel + "/" + c.TCB.Status}}
	if c.ChipID != "" {
		s = append(s, Subject{RevokeChip, c.ChipID})
	}
	for _, m := range c.Measurements {
		s = append(s, Subject{RevokeMeasurement, m})
	}
	for _, a := range c.TCB.Advisories {
		s = append(s, Subject{RevokeAdvisory, a})
	}
	if c.HostData != "" {
		s = append(s, Subject{RevokeWorkload, c.HostData})
	}
	for _, d := range c.Devices {
		s = append(s, subjectsOf(d)...)
	}
	return s
}
