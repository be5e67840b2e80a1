package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// ReferenceState is the stage of a reference-value set's life.
type ReferenceState string

// States. A policy usually accepts canary, active and retiring.
const (
	ReferenceCanary   ReferenceState = "canary"
	ReferenceActive   ReferenceState = "active"
	ReferenceRetiring ReferenceState = "retiring"
	ReferenceRetired  ReferenceState = "retired"
)

// ReferenceSet is a named set of reference values (RFC 9334). Policies see it
// as data.reference[name].
type ReferenceSet struct {
	Name      string         `json:"name"` // [a-z0-9][a-z0-9._-]*
	Type      attest.Type    `json:"type"`
	State     ReferenceState `json:"state"`
	NotBefore time.Time      `json:"not_before,omitzero"`
	NotAfter  time.Time      `json:"not_after,omitzero"`
	// Policies are the names of those that see the set ("disks"), or AllPolicies; empty is the
	// same, and is found in sets from before they had owners only (ADR 0041).
	Policies []string `json:"policies,omitempty"`
	// Resources are the patterns of the resources that the library matches it for, as in
	// the catalog ("disks/{vm}"); empty: all that these policies release.
	Resources []string `json:"resources,omitempty"`
	// Values are the accepted values per claim name: {"measurement": ["ab…"], "host_data": ["…"]}.
	Values     map[string][]string `json:"values"`
	Provenance Provenance          `json:"provenance"`
}

// Provenance says where a set came from.
type Provenance struct {
	Source  string    `json:"source"` // what produced it: a build, a file
	AddedBy string    `json:"added_by"`
	AddedAt time.Time `json:"added_at"`
	Comment string    `json:"comment,omitempty"`
}

// AllPolicies in Policies shows a set to every policy, those to come included.
const AllPolicies = "*"

// SeenBy says whether the policy of that name sees the set without asking for others' sets.
func (s ReferenceSet) SeenBy(policy string) bool {
	return len(s.Policies) == 0 || slices.Contains(s.Policies, policy) || slices.Contains(s.Policies, AllPolicies)
}

// ForPattern says whether the set is for a resource that the catalog's pattern matches.
func (s ReferenceSet) ForPattern(pattern string) bool {
	path := strings.Split(pattern, "/")
	return len(s.Resources) == 0 || slices.ContainsFunc(s.Resources, func(r string) bool {
		segs := strings.Split(r, "/")
		for i := range min(len(segs), len(path)) {
			if segs[i] != path[i] && !isVariable(segs[i]) && !isVariable(path[i]) {
				return false
			}
		}
		return len(segs) == len(path)
	})
}

// ErrRefused: what an operator asks for cannot take effect, so it is not stored. The text after it says why.
var ErrRefused = errors.New("refused")

// Limits of a set.
const (
	MaxReferenceSetBytes = 64 << 10 // as JSON
	maxReferenceValue    = 1024
	maxReferenceOwners   = 64 // policies, or resources
)

var (
	referenceName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,127}$`)
	referenceClaim = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,127}$`)
	hexDigits      = regexp.MustCompile(`^[0-9A-Fa-f]{32,}$`)
)

// referenceTypes are those that evidence can have.
var referenceTypes = []attest.Type{
	attest.TypeSNP, attest.TypeTDX, attest.TypeTPM, attest.TypeSGX, attest.TypeAzure, attest.TypeGCE, attest.TypeNitro,
	attest.TypeKeystone, attest.TypeResult, attest.TypePSA, attest.TypeCCA, attest.TypeNVIDIA,
}

// Usable says whether policies can be given the set: what every broker requires
// of a set that is stored. It is less than Validate requires of one that is
// written, so that no set stops being usable when Validate learns something.
func (s ReferenceSet) Usable() error {
	if !referenceName.MatchString(s.Name) {
		return fmt.Errorf("name: %q is not [a-z0-9][a-z0-9._-]*, at most 128 bytes", clip(s.Name))
	}
	switch s.State {
	case ReferenceCanary, ReferenceActive, ReferenceRetiring, ReferenceRetired:
	default:
		return fmt.Errorf("state: %q is none of canary, active, retiring, retired", clip(string(s.State)))
	}
	for _, d := range []struct {
		field string
		time  time.Time
	}{{"not_before", s.NotBefore}, {"not_after", s.NotAfter}} {
		// Rego counts nanoseconds in 64 bits; an error there would deny every request.
		if !d.time.IsZero() && (d.time.Year() < 1970 || d.time.Year() > 2200) {
			return fmt.Errorf("%s: the year %d is outside 1970 to 2200", d.field, d.time.Year())
		}
	}
	return nil
}

// Validate names the field that is wrong. Of types whose claims
// have no fixed names, or lengths, only the form is checked.
func (s ReferenceSet) Validate() error {
	if err := s.Usable(); err != nil {
		return err
	}
	if !slices.Contains(referenceTypes, s.Type) {
		return fmt.Errorf("type: %q is no type of evidence, want one of %v", clip(string(s.Type)), referenceTypes)
	}
	if !s.NotBefore.IsZero() && !s.NotAfter.IsZero() && !s.NotBefore.Before(s.NotAfter) {
		return fmt.Errorf("not_after: %s is not after not_before, %s", s.NotAfter.Format(time.RFC3339), s.NotBefore.Format(time.RFC3339))
	}
	if err := s.validateOwner(); err != nil {
		return err
	}
	if len(s.Values) == 0 {
		return errors.New("values: missing: a set without any matches nothing")
	}
	for claim, values := range s.Values {
		if !referenceClaim.MatchString(claim) {
			return fmt.Errorf("values: claim %q is not [A-Za-z0-9][A-Za-z0-9 ._:/-]*, at most 128 bytes", clip(claim))
		}
		known, fixed := digestBytes[s.Type]
		if _, ok := known[claim]; fixed && !ok {
			return fmt.Errorf("values: %q is no claim of %s that can be compared, want %s", clip(claim), s.Type, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if len(values) == 0 {
			return fmt.Errorf("values.%s: lists nothing", claim)
		}
		for i, v := range values {
			if err := checkReferenceValue(s.Type, claim, v); err != nil {
				return fmt.Errorf("values.%s[%d]: %w", claim, i, err)
			}
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if len(b) > MaxReferenceSetBytes {
		return fmt.Errorf("values: the set has %d bytes, want at most %d", len(b), MaxReferenceSetBytes)
	}
	return nil
}

func (s ReferenceSet) validateOwner() error {
	if len(s.Policies) > maxReferenceOwners || len(s.Resources) > maxReferenceOwners {
		return fmt.Errorf("policies, resources: more than %d of one", maxReferenceOwners)
	}
	for i, p := range s.Policies {
		if p != AllPolicies && !policyName.MatchString(p) {
			return fmt.Errorf("policies[%d]: %q is not the name of a policy, as in the catalog, nor %s", i, clip(p), AllPolicies)
		}
	}
	for i, r := range s.Resources {
		for seg := range strings.SplitSeq(r, "/") {
			if !validSegment(seg) && !pathVariable.MatchString(seg) {
				return fmt.Errorf("resources[%d]: %q is not a pattern as in the catalog, for example disks/{vm}", i, clip(r))
			}
		}
	}
	return nil
}

// SameMachine is the name under which a set lists identities of one machine, so
// that revoking one revokes all. It is no claim: nothing is compared with it.
const SameMachine = "same_machine"

// digestBytes are the lengths of the claims that have always the same one. A
// value of another length, or that is not in hex, matches nothing.
var digestBytes = map[attest.Type]map[string]int{
	attest.TypeSNP: {"measurement": 48, "host_data": 32, "chip_id": 64, SameMachine: 64},
	attest.TypeTDX: {"mrtd": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rtmr3": 48, "mrseam": 48, "mrservicetd": 48, "host_data": 48, "chip_id": 16, SameMachine: 16},
	attest.TypeSGX: {"mrenclave": 32, "mrsigner": 32, "host_data": 64, "chip_id": 16, SameMachine: 16},
}

func checkReferenceValue(t attest.Type, claim, v string) error {
	switch {
	case v == "":
		return errors.New("is empty, which equals nothing")
	case len(v) > maxReferenceValue:
		return fmt.Errorf("has %d bytes, want at most %d", len(v), maxReferenceValue)
	}
	for _, r := range v {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return fmt.Errorf("%q has control characters or is no UTF-8", clip(v))
		}
	}
	if n, ok := digestBytes[t][claim]; ok && (!hexDigits.MatchString(v) || len(v) != 2*n) {
		return fmt.Errorf("%q is not %d bytes in hex", clip(v), n)
	}
	return nil
}

// Normal is the form that is stored and compared: hex is in lower case, as claims
// have it (but for those of other verifiers, which are as these wrote them), and no value is listed twice.
func (s ReferenceSet) Normal() ReferenceSet {
	values := make(map[string][]string, len(s.Values))
	for claim, list := range s.Values {
		out := make([]string, 0, len(list))
		for _, v := range list {
			if s.Type != attest.TypeResult && hexDigits.MatchString(v) {
				v = strings.ToLower(v)
			}
			if !slices.Contains(out, v) {
				out = append(out, v)
			}
		}
		values[claim] = out
	}
	s.Values = values
	s.Policies, s.Resources = sortedSet(s.Policies), sortedSet(s.Resources)
	return s
}

func sortedSet(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

// clip shortens what came from outside for a message.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
