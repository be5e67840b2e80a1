package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/claviger/claviger/broker/attest"
)

func TestReferenceSetValidate(t *testing.T) {
	digest := strings.Repeat("ab", 48)
	good := func() ReferenceSet {
		return ReferenceSet{Name: "fleet-1.2", Type: attest.TypeSNP, State: ReferenceCanary, Values: map[string][]string{"measurement": {digest}}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	day := func(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
	for _, tc := range []struct {
		field  string // the error begins with it; "" for none
		change func(*ReferenceSet)
		usable bool // by a broker that finds it in the store
	}{
		{"name", func(s *ReferenceSet) { s.Name = "" }, false},
		{"name", func(s *ReferenceSet) { s.Name = "Fleet" }, false},
		{"name", func(s *ReferenceSet) { s.Name = "a/b" }, false},
		{"name", func(s *ReferenceSet) { s.Name = "a\n" }, false},
		{"name", func(s *ReferenceSet) { s.Name = strings.Repeat("a", 129) }, false},
		{"state", func(s *ReferenceSet) { s.State = "" }, false},
		{"state", func(s *ReferenceSet) { s.State = "Active" }, false},
		{"not_after", func(s *ReferenceSet) { s.NotAfter = day(2300) }, false},
		{"not_after", func(s *ReferenceSet) { s.NotAfter = day(1969) }, false},
		{"not_before", func(s *ReferenceSet) { s.NotBefore = day(2263) }, false},
		{"", func(s *ReferenceSet) { s.NotBefore, s.NotAfter = day(1970), day(2200) }, true},
		{"not_after", func(s *ReferenceSet) { s.NotBefore, s.NotAfter = day(2030), day(2029) }, true},
		{"not_after", func(s *ReferenceSet) { s.NotBefore, s.NotAfter = day(2030), day(2030) }, true},
		{"type", func(s *ReferenceSet) { s.Type = "" }, true},
		{"type", func(s *ReferenceSet) { s.Type = "snp" }, true},
		{"values", func(s *ReferenceSet) { s.Values = nil }, true},
		{"values.measurement", func(s *ReferenceSet) { s.Values["measurement"] = nil }, true},
		{"values", func(s *ReferenceSet) { s.Values[""] = []string{"x"} }, true},
		{"values", func(s *ReferenceSet) { s.Values["a\x00"] = []string{"x"} }, true},
		{"values.measurement[1]", func(s *ReferenceSet) { s.Values["measurement"] = []string{digest, ""} }, true},
		{"values.measurement[0]", func(s *ReferenceSet) { s.Values["measurement"] = []string{digest[:94]} }, true},
		{"values.measurement[0]", func(s *ReferenceSet) { s.Values["measurement"] = []string{"0x" + digest[2:]} }, true},
		{"values.measurement[0]", func(s *ReferenceSet) { s.Values["measurement"] = []string{digest + " "} }, true},
		{"values.mine[0]", func(s *ReferenceSet) { s.Type, s.Values["mine"] = attest.TypeTPM, []string{"\x1b[2J"} }, true},
		{"values.mine[0]", func(s *ReferenceSet) { s.Type, s.Values["mine"] = attest.TypeTPM, []string{"\xff"} }, true},
		{"values.mine[0]", func(s *ReferenceSet) { s.Type, s.Values["mine"] = attest.TypeTPM, []string{strings.Repeat("x", 1025)} }, true},
		{"", func(s *ReferenceSet) { s.Type, s.Values["mine"] = attest.TypeTPM, []string{"any text: é"} }, true},
		{"", func(s *ReferenceSet) { s.Values["chip_id"] = []string{strings.Repeat("ab", 64)} }, true},
		{"values", func(s *ReferenceSet) { s.Values["measurment"] = []string{digest} }, true},
		{"", func(s *ReferenceSet) { s.Type, s.Values = attest.TypePSA, map[string][]string{"BL": {digest}} }, true},
		{"", func(s *ReferenceSet) { s.Values["measurement"] = []string{strings.ToUpper(digest)} }, true},
		{"values", func(s *ReferenceSet) {
			s.Type = attest.TypeTPM
			for i := range 1000 {
				s.Values["mine"] = append(s.Values["mine"], fmt.Sprintf("%0100d", i))
			}
		}, true},
	} {
		s := good()
		tc.change(&s)
		err := s.Validate()
		if tc.field == "" && err != nil || tc.field != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.field+":")) {
			t.Errorf("%+v: %v, want an error about %q", s, err, tc.field)
		}
		if err := s.Usable(); (err == nil) != tc.usable {
			t.Errorf("%+v: usable: %v, want %t", s, err, tc.usable)
		}
	}
}

// TestReferenceSetNormal: digests are compared as claims have them.
func TestReferenceSetNormal(t *testing.T) {
	upper, lower := strings.Repeat("AB", 48), strings.Repeat("ab", 48)
	s := ReferenceSet{Type: attest.TypeSNP, Values: map[string][]string{"measurement": {upper, lower, upper}, "mine": {"ABC", "a-b"}}}
	if diff := cmp.Diff(map[string][]string{"measurement": {lower}, "mine": {"ABC", "a-b"}}, s.Normal().Values); diff != "" {
		t.Error(diff)
	}
	s.Type = attest.TypeResult // another verifier's claims are as that wrote them
	if got := s.Normal().Values["measurement"]; len(got) != 2 || got[0] != upper {
		t.Errorf("%q", got)
	}
	if len(s.Values["measurement"]) != 3 {
		t.Error("changed the caller's")
	}
}

// TestPlanCatalog: what cannot be used blocks the paths that it is about, and no others.
func TestPlanCatalog(t *testing.T) {
	entry := func(pattern string) CatalogEntry {
		return CatalogEntry{Pattern: pattern, Source: "local", Key: "k", Policy: "disks"}
	}
	file := []CatalogEntry{entry("disks/{vm}"), entry("db/{name}")}
	shared := []CatalogEntry{entry("disks/{vm}"), entry("disks/root"), entry("disks/{other}"), entry("apps/{a}"), entry("apps/{b}"), entry("apps/x/y"), {Pattern: "odd"}}
	c, bad, err := PlanCatalog(file, shared, map[string]error{"apps/{team}/{app}": nil, "db/orders": nil})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"disks/{other}", "apps/{b}", "odd"} {
		if bad[p] == nil {
			t.Errorf("%s is accepted", p)
		}
	}
	if len(bad) != 3 {
		t.Errorf("refuses %v", bad)
	}
	for path, want := range map[string]string{
		"disks/vm-1": "", "disks/root": "", "apps/one": "", "apps/x/y": "", "db/orders": "", "odd": "", // blocked
		"db/invoices": "db/{name}",
	} {
		if e, _, ok := c.Lookup(path); ok != (want != "") || e.Pattern != want {
			t.Errorf("%s: found %q, want %q", path, e.Pattern, want)
		}
	}
	if _, _, err := PlanCatalog([]CatalogEntry{entry("a/{b}"), entry("a/{c}")}, nil, nil); err == nil {
		t.Error("accepts a file whose entries do not go together")
	}
	c, bad, err = PlanCatalog(file, nil, nil)
	if err != nil || len(bad) != 0 || len(c.Entries()) != 2 {
		t.Errorf("%v %v %v", c, bad, err)
	}
}

func TestValidPattern(t *testing.T) {
	for _, p := range []string{"a", "a/{b}", "A-1/x.y_z/{q1}"} {
		if err := ValidPattern(p); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []string{"", "/", "a/", "a//b", "..", "a/../b", "{B}", "{}", "a/{b}c", "ä", "a\n"} {
		if ValidPattern(p) == nil {
			t.Errorf("%q is accepted", p)
		}
	}
}
