package broker

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// RevocationKind says what kind of thing is revoked.
type RevocationKind string

// Kinds, with the form of Value.
const (
	RevokeChip          RevocationKind = "chip"           // any identity of the machine: Claims.ChipID, Claims.Identities, and what is known to be the same
	RevokeMeasurement   RevocationKind = "measurement"    // any of Claims.Measurements and Claims.Components
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

// Canonical is the form that is stored and compared: hex and TCB levels are lower
// case, and advisories upper case.
func (s Subject) Canonical() Subject {
	switch s.Kind {
	case RevokeChip, RevokeMeasurement, RevokeWorkload, RevokePolicy, RevokeTCB:
		s.Value = strings.ToLower(s.Value)
	case RevokeAdvisory:
		s.Value = strings.ToUpper(s.Value)
	}
	return s
}

// forms of values, by kind; of what is canonical.
var forms = map[RevocationKind]struct {
	match *regexp.Regexp
	want  string
}{
	RevokeChip:          {regexp.MustCompile(`^[0-9a-z][0-9a-z:._-]{15,}$`), "a whole chip id, of 16 characters or more"},
	RevokeMeasurement:   {regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}|sha(256|384|512):[0-9a-f]+)$`), "a whole digest in hex, of 20, 32, 48 or 64 bytes"},
	RevokeWorkload:      {regexp.MustCompile(`^[0-9a-f]{40,}$`), "the whole HOST_DATA in hex"},
	RevokePolicy:        {regexp.MustCompile(`^sha256:[0-9a-f]{64}$`), "the whole digest of a bundle, sha256:…"},
	RevokeResource:      {regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`), "a path, without * and {variables}"},
	RevokeSecretVersion: {regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*@[^@ ]+$`), "{resource}@{version}"},
	RevokeAdvisory:      {regexp.MustCompile(`^[A-Z][A-Z0-9]*-[A-Z0-9-]*[0-9]$`), "an advisory as INTEL-SA-00837"},
	RevokeSession:       {regexp.MustCompile(`^[A-Z2-7]{26}$`), "the whole id of a session"},
}

// Check says why a value, in canonical form, cannot be that of anything. Validate
// asks for less: what is stored stays readable when Check learns something.
func (s Subject) Check() error {
	if s.Kind == RevokeTCB {
		_, level, ok := strings.Cut(s.Value, "/")
		if !ok || !slices.ContainsFunc(attest.TCBStatuses, func(known string) bool { return strings.EqualFold(known, level) }) {
			return fmt.Errorf("want {hardware model}/{TCB status}, with a status of %s", strings.Join(attest.TCBStatuses, ", "))
		}
		return nil
	}
	if f := forms[s.Kind]; !f.match.MatchString(s.Value) {
		return fmt.Errorf("%q is not %s", clip(s.Value), f.want)
	}
	return nil
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
	// RevokedMeasurement is one of the measurements of that many hex digits that are revoked, if any is.
	RevokedMeasurement(digits int) (Subject, bool, error)
}

// pcrDigits is the length of digests that a TPM's quote and log can have: SHA-256 in hex.
const pcrDigits = 64

// evidenceRevoked says whether anything about the evidence is revoked. Evidence that leaves out what
// a revoked measurement could stand in is no better than one that shows it: a guest
// would evade the revocation of its initrd by not sending the log.
func (b *Broker) evidenceRevoked(c attest.Claims, more ...Subject) error {
	subjects := append(subjectsOf(c), more...)
	var omits []string
	for _, of := range append([]attest.Claims{c}, c.Devices...) {
		for _, id := range b.identities(of) {
			subjects = append(subjects, Subject{RevokeChip, id})
		}
		for _, d := range of.Components {
			subjects = append(subjects, Subject{RevokeMeasurement, d})
		}
		for _, name := range of.Omits {
			omits = append(omits, string(of.Type)+"."+name)
		}
	}
	if err := b.revoked(subjects...); err != nil || len(omits) == 0 {
		return err
	}
	hit, yes, err := b.cfg.Revocations.RevokedMeasurement(pcrDigits)
	if err != nil {
		return fmt.Errorf("%w: check revocations: %w", ErrUnavailable, err)
	}
	if yes {
		return fmt.Errorf("%w: revoked: %s, and the evidence does not show that it is not there: it omits %s", ErrDenied, hit, strings.Join(omits, ", "))
	}
	return nil
}

func subjectsOf(c attest.Claims) []Subject {
	s := []Subject{{RevokeTCB, c.HardwareModel + "/" + c.TCB.Status}}
	for _, id := range identitiesOf(c) {
		s = append(s, Subject{RevokeChip, id})
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
