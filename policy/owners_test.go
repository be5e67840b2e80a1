package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker"
)

// TestReferenceOwners: a policy sees its own sets, in whatever way it looks, and
// others' if it says so.
func TestReferenceOwners(t *testing.T) {
	const (
		head    = "\nimport data.claviger.lib.reference\ndefault allow := false\n"
		library = "allow if reference.match(\"sev-snp\", [\"measurement\"])\ndeny contains r if some r in reference.denials(\"sev-snp\", [\"measurement\"])\n"
		byHand  = "\ndefault allow := false\nallow if { some set in data.reference; input.attestation.measurements.measurement in set.values.measurement }\n"
		byIndex = "\ndefault allow := false\nallow if { some name in data.reference_index[input.attestation.type].measurement[input.attestation.measurements.measurement]; name != \"\" }\n"
	)
	files := map[string]string{
		"disks.rego":   "package claviger.release.disks" + head + library,
		"team.rego":    "package claviger.release.team" + head + library,
		"hand.rego":    "package claviger.release.hand" + byHand,
		"index.rego":   "package claviger.release.index" + byIndex,
		"asks.rego":    "package claviger.release.asks" + head + library + "references_of contains \"team\"\n",
		"all.rego":     "package claviger.release.all" + head + library + "references_of contains \"*\"\n",
		"allhand.rego": "package claviger.release.allhand" + byHand + "references_of contains \"*\"\n",
	}
	everybody := []string{"all", "allhand", "asks", "disks", "hand", "index", "team"}
	in := snpInput(t)
	in.Resource.Path, in.Resource.Params = "disks/vm-1", map[string]string{"vm": "vm-1"}
	set := func(edit func(*broker.ReferenceSet)) broker.ReferenceSet {
		s := snpSet("release-1", in)
		edit(&s)
		return s
	}
	other := set(func(s *broker.ReferenceSet) { // of another image, so that there are groups
		s.Name, s.Policies = "release-0", []string{"disks", "hand"}
		s.Values = map[string][]string{"measurement": {strings.Repeat("00", 48)}}
	})
	e, err := New(Config{Dir: write(t, files)})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		set  broker.ReferenceSet
		want []string
		rule string // for the policy disks, if it denies
	}{
		{"one", set(func(s *broker.ReferenceSet) { s.Policies = []string{"team"} }), []string{"all", "allhand", "asks", "team"}, "measurement_unknown"},
		{"two", set(func(s *broker.ReferenceSet) { s.Policies = []string{"disks", "hand"} }), []string{"all", "allhand", "disks", "hand"}, ""},
		{"all", set(func(s *broker.ReferenceSet) { s.Policies = []string{broker.AllPolicies} }), everybody, ""},
		{"from before there were owners", set(func(*broker.ReferenceSet) {}), everybody, ""},
		{"nobody here", set(func(s *broker.ReferenceSet) { s.Policies = []string{"gone"} }), []string{"all", "allhand"}, "measurement_unknown"},
		{"this resource", set(func(s *broker.ReferenceSet) {
			s.Policies, s.Resources = []string{"disks"}, []string{"other/x", "disks/{vm}"}
		}), []string{"all", "allhand", "disks"}, ""},
		{"another resource", set(func(s *broker.ReferenceSet) {
			s.Policies, s.Resources = []string{"disks"}, []string{"disks/{vm}/root", "dbs/{vm}", "disks/vm-2", "{x}"}
		}), []string{"allhand"}, "measurement_not_for_resource"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := e.SetReferences([]broker.ReferenceSet{other, tc.set}, nil); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range everybody {
				in := in
				in.Resource.Policy = p
				d, err := e.Decide(t.Context(), in)
				if err != nil {
					t.Fatal(err)
				}
				if d.Allow {
					got = append(got, p)
				} else if p == "disks" && rules(d) != tc.rule {
					t.Errorf("denied for %s, want %s: %+v", rules(d), tc.rule, d.Reasons)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("released by %v, want %v", got, tc.want)
			}
		})
	}
	elsewhere := map[string]string{"disks.rego": "package claviger.release.disks" + head + library, "team.rego": "package team\nreferences_of contains \"disks\" if input.attestation.bound\n"}
	if _, err := New(Config{Dir: write(t, elsewhere)}); err == nil || !strings.Contains(err.Error(), "only a policy") {
		t.Errorf("in another package: %v", err)
	}
	for body, want := range map[string]string{
		`references_of contains "teem"`:                             "no policy teem",
		`references_of contains "disks" if input.attestation.bound`: "no condition",
		`references_of contains input.resource.policy`:              "no condition",
		`references_of := {"disks"}`:                                "no condition",
		`references_of contains x if some x in {"disks"}`:           "no condition",
	} {
		dir := write(t, map[string]string{"disks.rego": "package claviger.release.disks" + head + library + body})
		if found, err := Check([]string{dir}); err != nil || len(found) == 0 || !strings.Contains(found[0].String(), "disks.rego:") || !strings.Contains(found[0].Message, want) {
			t.Errorf("%s: check finds %v, %v, want %q", body, found, err, want)
		}
		_, err := New(Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
}
