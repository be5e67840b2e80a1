package broker_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
)

// TestSubjects: what can be revoked, the form in which it is compared, and what cannot be the value of anything.
func TestSubjects(t *testing.T) {
	hex := func(n int) string { return strings.Repeat("ab", n) }
	session := strings.Repeat("A2", 13)
	for kind, tt := range map[broker.RevocationKind]struct {
		good      []string
		canonical string // of the first in the other case
		bad       []string
		want      string // of what is wrong
	}{
		broker.RevokeChip:          {[]string{hex(64), "gpu-0123456789ab", "0123456789abcdef"}, hex(64), []string{"0123456789abcde", "-123456789abcdef0", "0123456789abcde g"}, "a whole chip id"},
		broker.RevokeMeasurement:   {[]string{hex(48), hex(20), hex(32), hex(64), "sha256:ab"}, hex(48), []string{hex(19), hex(21), hex(47), hex(65), "sha1:ab", "zz"}, "a whole digest in hex"},
		broker.RevokeWorkload:      {[]string{hex(32), hex(20)}, hex(32), []string{hex(19), "zz"}, "the whole HOST_DATA"},
		broker.RevokePolicy:        {[]string{"sha256:" + hex(32)}, "sha256:" + hex(32), []string{hex(32), "sha256:" + hex(31)}, "the whole digest of a bundle"},
		broker.RevokeResource:      {[]string{"Disks/vm-1", "a"}, "Disks/vm-1", []string{"disks/*", "disks/{vm}", "/a", "a/", "a//b"}, "a path"},
		broker.RevokeTCB:           {[]string{"Milan/Unknown", "a b/OutOfDate", "x/revoked"}, "milan/unknown", []string{"Milan", "Milan/", "Milan/Old", "tdx/a/OutOfDate"}, "{hardware model}/{TCB status}"},
		broker.RevokeSecretVersion: {[]string{"db/Orders@V1", "a@1"}, "db/Orders@V1", []string{"db/*@1", "db/orders", "db/orders@", "@1", "a@1@2", "a@1 2"}, "{resource}@{version}"},
		broker.RevokeAdvisory:      {[]string{"INTEL-SA-00837", "AMD-SB-3"}, "INTEL-SA-00837", []string{"INTEL", "-SA-1", "INTEL-SA-", "INTEL SA 1"}, "an advisory"},
		broker.RevokeSession:       {[]string{session}, session, []string{session[1:], session + "A", strings.ToLower(session), session[1:] + "1"}, "the whole id of a session"},
	} {
		t.Run(string(kind), func(t *testing.T) {
			for _, v := range tt.good {
				s := broker.Subject{Kind: kind, Value: v}
				if err := s.Validate(); err != nil {
					t.Error(err)
				}
				if err := s.Canonical().Check(); err != nil {
					t.Errorf("%q: %v", v, err)
				}
				if s.String() != string(kind)+" "+v {
					t.Errorf("prints as %q", s)
				}
			}
			other := broker.Subject{Kind: kind, Value: tt.good[0]}
			switch kind {
			case broker.RevokeAdvisory:
				other.Value = strings.ToLower(other.Value)
			case broker.RevokeChip, broker.RevokeMeasurement, broker.RevokeWorkload, broker.RevokePolicy:
				other.Value = strings.ToUpper(other.Value)
			}
			if got := other.Canonical(); got.Value != tt.canonical || got.Kind != kind {
				t.Errorf("%s becomes %s, want %q", other, got, tt.canonical)
			}
			for _, v := range tt.bad {
				if err := (broker.Subject{Kind: kind, Value: v}).Check(); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%q: %v, want %q", v, err, tt.want)
				}
			}
		})
	}
	for _, bad := range []broker.Subject{{Kind: "none", Value: "x"}, {Kind: broker.RevokeChip}, {Kind: broker.RevokeChip, Value: strings.Repeat("a", 513)}, {Value: "x"}} {
		if bad.Validate() == nil {
			t.Errorf("%q is valid", bad)
		}
	}
	if err := (broker.Subject{Kind: broker.RevokeChip, Value: strings.Repeat("a", 512)}).Validate(); err != nil {
		t.Error(err)
	}
}

// TestExposure: what was released to a subject is counted by version, and nothing else is.
func TestExposure(t *testing.T) {
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	record := func(minute int, outcome broker.Outcome, rs ...broker.RecordResource) broker.Record {
		return broker.Record{
			Time: at.Add(time.Duration(minute) * time.Minute), Outcome: outcome, HardwareModel: "Milan", TCBStatus: "Unknown", ChipID: "AA", HostData: "0bff", PolicyDigest: "sha256:00",
			Session: "S", Devices: []string{"nvidia-gpu=GPU-1"}, DeviceTCB: []string{"GH100/OutOfDate"}, Measurements: []string{"measurement=11", "nvidia-gpu/driver=22"},
			Advisories: []string{"NV-1"}, Resources: rs,
		}
	}
	res := func(path, version string) broker.RecordResource {
		return broker.RecordResource{Path: path, Version: version}
	}
	unchanged := res("c", "9")
	unchanged.Unchanged = true
	records := []broker.Record{
		record(5, broker.Released, res("a", "2"), res("b", "1"), unchanged),
		record(3, broker.Released, res("a", "2")),
		record(9, broker.Released, res("a", "2"), res("a", "1")),
		record(7, broker.Denied, res("d", "1")),
		record(8, broker.Failed, res("e", "1")),
		record(1, broker.Released, res("f", "")),
	}
	count := func(s broker.Subject, since time.Time) (broker.Exposure, []string) {
		var x broker.Exposure
		for _, r := range records {
			x.Add(r, s, since)
		}
		var versions []string
		for _, v := range x.Versions {
			versions = append(versions, v.Resource+"@"+v.Version)
		}
		return x, versions
	}
	for _, s := range []broker.Subject{
		{Kind: broker.RevokeChip, Value: "aa"}, {Kind: broker.RevokeChip, Value: "gpu-1"}, {Kind: broker.RevokeTCB, Value: "milan/unknown"}, {Kind: broker.RevokeTCB, Value: "GH100/OutOfDate"},
		{Kind: broker.RevokeMeasurement, Value: "11"}, {Kind: broker.RevokeMeasurement, Value: "22"}, {Kind: broker.RevokeAdvisory, Value: "nv-1"},
		{Kind: broker.RevokeWorkload, Value: "0BFF"}, {Kind: broker.RevokePolicy, Value: "sha256:00"}, {Kind: broker.RevokeSession, Value: "S"},
	} {
		x, versions := count(s, time.Time{})
		if x.Entries != 6 || x.Releases != 4 || !slices.Equal(versions, []string{"a@1", "a@2", "b@1", "f@"}) {
			t.Fatalf("%s: %+v", s, x)
		}
		if v := x.Versions[1]; v.Releases != 3 || !v.First.Equal(at.Add(3*time.Minute)) || !v.Last.Equal(at.Add(9*time.Minute)) {
			t.Errorf("%s: %+v", s, v)
		}
		if v := x.Versions[0]; v.Releases != 1 || !v.First.Equal(v.Last) || !v.Last.Equal(at.Add(9*time.Minute)) {
			t.Errorf("%s: %+v", s, v)
		}
		s.Value += "0"
		if x, _ := count(s, time.Time{}); x.Releases != 0 || x.Entries != 6 {
			t.Errorf("%s: %+v", s, x)
		}
	}
	if x, versions := count(broker.Subject{Kind: broker.RevokeResource, Value: "a"}, time.Time{}); x.Releases != 3 || !slices.Equal(versions, []string{"a@1", "a@2"}) {
		t.Errorf("a resource: %+v", x)
	}
	if x, versions := count(broker.Subject{Kind: broker.RevokeSecretVersion, Value: "a@2"}, time.Time{}); x.Releases != 3 || !slices.Equal(versions, []string{"a@2"}) {
		t.Errorf("a version: %+v", x)
	}
	if x, _ := count(broker.Subject{Kind: broker.RevokeChip, Value: "aa"}, at.Add(5*time.Minute)); x.Releases != 2 {
		t.Errorf("since the fifth minute: %+v", x)
	}
	if got := (broker.Record{Resources: []broker.RecordResource{{Path: "a"}}}).Subjects(); !slices.Equal(got, []broker.Subject{{Kind: broker.RevokeTCB, Value: "/"}, {Kind: broker.RevokeResource, Value: "a"}}) {
		t.Errorf("of an empty record: %v", got)
	}
}
