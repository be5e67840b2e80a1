package broker

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Exposure is the blast radius of a subject: what was released to it, by one audit log.
type Exposure struct {
	Log      string // its origin
	Entries  uint64 // looked at
	Pruned   uint64 // entries whose content was gone before they could be looked at
	Releases uint64 // that concern the subject
	Versions []ExposedVersion
}

// ExposedVersion is one version of one resource that was released to the subject.
type ExposedVersion struct {
	Resource, Version string
	Releases          uint64
	First, Last       time.Time
}

// Add counts a record in if it released something to the subject. (A release that a
// later record withholds is the caller's to leave out.)
func (x *Exposure) Add(r Record, s Subject, since time.Time) {
	x.Entries++
	if r.Outcome != Released || r.Time.Before(since) || !r.concerns(s) {
		return
	}
	x.Releases++
	for _, res := range r.Resources {
		switch {
		case res.Unchanged,
			s.Kind == RevokeResource && res.Path != s.Value,
			s.Kind == RevokeSecretVersion && res.Path+"@"+res.Version != s.Value:
			continue
		}
		i, found := slices.BinarySearchFunc(x.Versions, res, func(v ExposedVersion, r RecordResource) int {
			return cmp.Or(strings.Compare(v.Resource, r.Path), strings.Compare(v.Version, r.Version))
		})
		if !found {
			x.Versions = slices.Insert(x.Versions, i, ExposedVersion{Resource: res.Path, Version: res.Version, First: r.Time, Last: r.Time})
		}
		v := &x.Versions[i]
		v.Releases++
		if r.Time.Before(v.First) { // records of one moment are in no order
			v.First = r.Time
		}
		if r.Time.After(v.Last) {
			v.Last = r.Time
		}
	}
}

// concerns says whether the record is about the subject: what a revocation of it would have stopped.
func (r Record) concerns(s Subject) bool {
	s = s.Canonical()
	return slices.ContainsFunc(r.Subjects(), func(o Subject) bool { return o.Canonical() == s })
}

// Subjects are everything in the record that can be revoked.
func (r Record) Subjects() []Subject {
	out := []Subject{{RevokeTCB, r.HardwareModel + "/" + r.TCBStatus}, {RevokeChip, r.ChipID}, {RevokeWorkload, r.HostData}, {RevokePolicy, r.PolicyDigest}, {RevokeSession, r.Session}}
	for _, id := range r.Identities {
		out = append(out, Subject{RevokeChip, id})
	}
	for _, d := range r.Devices {
		_, chip, _ := strings.Cut(d, "=")
		out = append(out, Subject{RevokeChip, chip})
	}
	for _, t := range r.DeviceTCB {
		out = append(out, Subject{RevokeTCB, t})
	}
	for _, m := range r.Measurements {
		_, value, _ := strings.Cut(m, "=")
		out = append(out, Subject{RevokeMeasurement, value})
	}
	for _, a := range r.Advisories {
		out = append(out, Subject{RevokeAdvisory, a})
	}
	for _, x := range r.Resources {
		out = append(out, Subject{RevokeResource, x.Path})
		if x.Version != "" {
			out = append(out, Subject{RevokeSecretVersion, x.Path + "@" + x.Version})
		}
	}
	return slices.DeleteFunc(out, func(s Subject) bool { return s.Value == "" })
}
