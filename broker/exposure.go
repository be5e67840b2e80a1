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
	Releases uint64 // that concern the subject
	Versions []ExposedVersion
}

// ExposedVersion is one version of one resource that was released to the subject.
type ExposedVersion struct {
	Resource, Version string
	Releases          uint64
	First, Last       time.Time
}

// Add counts a record in if it released something to the subject.
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
			x.Versions = slices.Insert(x.Versions, i, ExposedVersion{Resource: res.Path, Version: res.Version, First: r.Time})
		}
		x.Versions[i].Releases++
		x.Versions[i].Last = r.Time
	}
}

// concerns says whether the record is about the subject.
func (r Record) concerns(s Subject) bool {
	s = s.Canonical()
	switch s.Kind {
	case RevokeChip:
		return r.ChipID == s.Value
	case RevokeMeasurement:
		return slices.ContainsFunc(r.Measurements, func(m string) bool { return strings.HasSuffix(m, "="+s.Value) })
	case RevokePolicy:
		return r.PolicyDigest == s.Value
	case RevokeTCB:
		return r.HardwareModel+"/"+r.TCBStatus == s.Value
	case RevokeAdvisory:
		return slices.Contains(r.Advisories, s.Value)
	case RevokeSession:
		return r.Session == s.Value
	case RevokeWorkload:
		return r.HostData == s.Value
	case RevokeResource:
		return slices.ContainsFunc(r.Resources, func(x RecordResource) bool { return x.Path == s.Value })
	case RevokeSecretVersion:
		return slices.ContainsFunc(r.Resources, func(x RecordResource) bool { return x.Path+"@"+x.Version == s.Value })
	}
	return false
}
