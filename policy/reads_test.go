package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// TestReads: what a policy is found to read of the input.
func TestReads(t *testing.T) {
	const imports = "import data.claviger.lib.common\nimport data.claviger.lib.reference\nimport data.claviger.lib.tdx\n"
	for _, tc := range []struct {
		name, module, want string
	}{
		{name: "nothing", module: `allow if 1 == 1`, want: ""},
		{name: "path", module: `allow if input.attestation.tcb.status == "UpToDate"`, want: "attestation.tcb.status"},
		{name: "alias", module: `allow if { a := input.attestation; a.tcb.status == "x" }`, want: "attestation"},
		{name: "two of one member", module: "allow if input.chip.networks == 1\ndeny contains input.chip.networks if input.chip.x.y", want: "chip.networks chip.x.y"},
		{name: "a member and a part of it", module: "allow if input.chip.x\ndeny contains 1 if input.chip.x.y", want: "chip.x"},
		{name: "obligations", module: `obligations := {"ttl": input.resource.labels.ttl}`, want: "resource.labels.ttl"},
		{name: "variable", module: `allow if input.attestation.measurements[input.resource.params.x] == "y"`, want: "attestation.measurements resource.params.x"},
		{name: "index", module: `allow if input.attestation.devices[0].bound`, want: "attestation.devices"},
		{name: "negated", module: `allow if not input.attestation.devices`, want: "attestation.devices"},
		{name: "every", module: `allow if { every k, v in input.attestation.measurements { v != input.resource.params[k] } }`, want: "attestation.measurements resource.params"},
		{name: "comprehension", module: `allow if count([x | some x in input.request.resources]) == 1`, want: "request.resources"},
		{name: "in a template", module: "deny contains $\"{input.chip.a}\" if true", want: "chip.a"},
		{name: "head", module: "allow if data.claviger.release.p.f.a\nf[input.chip.name] := input.chip.value", want: "chip.name chip.value"},
		{name: "ref head", module: "allow if f.a.b == 1\nf[input.chip.name].b := 1", want: "chip.name"},
		{name: "else", module: "allow if { input.chip.a } else if { input.chip.b } else if { input.chip.c }", want: "chip.a chip.b chip.c"},
		{name: "default", module: "default limit := 3\nlimit := input.chip.limit\nallow if limit == 3", want: "chip.limit"},
		{name: "function", module: "f(x) := y if y := input.chip[x]\nallow if f(\"a\")", want: "chip"},
		{name: "argument", module: "f(x) := x.a\nallow if f(input.chip)", want: "chip"},
		{name: "other package", module: "allow if data.claviger.release.q.x", want: "chip.q"},
		{name: "some package", module: "allow if { some n; data.claviger.release[n].x }", want: "chip.q"},
		{name: "member of a call", module: `allow if object.union(input.chip, {"a": 1}).a == 1`, want: "chip"},
		{name: "member of a collection", module: `allow if {"a": input.chip.b}.a == 1`, want: "chip.b"},
		{name: "with input", module: `allow if data.claviger.release.q.x with input.chip as input.resource.labels`, want: "chip resource.labels"},
		{name: "whole", module: `allow if object.get(input, ["chip", "a"], 1) == 1`, want: "."},
		{name: "whole in a collection", module: `allow if [input][0].chip.a`, want: "."},
		{name: "whole by a variable", module: `allow if { some k; input[k].a }`, want: "."},
		{name: "whole walked", module: `allow if { walk(input, [p, 1]); count(p) == 2 }`, want: "."},
		{name: "whole by the library", module: `deny contains common.got("x") if true`, want: "."},
		{name: "all rules", module: `allow if { some n; data.claviger.lib[n] }`, want: "."},
		{name: "with data", module: `allow if reference.match("tdx", ["mrtd"]) with data.reference as data.mine`, want: "."},
		{name: "mocked", module: `allow if count([1]) == input.chip.a with count as 3`, want: "."},
		{name: "clock", module: `allow if time.parse_rfc3339_ns(input.time) > 7`, want: "time"},
		{name: "clock by the library", module: `allow if reference.now > 7`, want: "time"},
		{name: "validity of its own set", module: `allow if reference.usable({"state": "active", "not_before": "2026-01-01T00:00:00Z"})`, want: "resource.path time"},
		{name: "references", module: `allow if reference.match("tdx", ["mrtd"])`, want: "attestation.host_data attestation.measurements attestation.type resource.path time"},
		{name: "enrolment", module: `deny contains r if some r in reference.chip_denials("tdx")`, want: "attestation.chip_id resource.path time"},
		{name: "quote", module: `deny contains r if some r in tdx.owner_denials("mrowner", {"00"})`, want: "attestation.tdx.mrconfigid attestation.tdx.mrowner attestation.tdx.mrownerconfig"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			used := ""
			for line := range strings.Lines(imports) {
				name := line[strings.LastIndex(line, ".")+1 : len(line)-1]
				if strings.Contains(tc.module, name+".") {
					used += line
				}
			}
			dir := write(t, map[string]string{
				"p.rego": "package claviger.release.p\n" + used + tc.module,
				"q.rego": "package claviger.release.q\nx if input.chip.q",
			})
			s := newEngine(t, Config{Dir: dir}).inForce.Load()
			want := readsOf(newRuleIndex(s.compiler), ast.MustParseRef("data.claviger.release.silent")) // what every policy reads
			for _, path := range strings.Fields(tc.want) {
				want = want.with(strings.FieldsFunc(path, func(c rune) bool { return c == '.' }))
			}
			if got := s.reads["p"].paths(); !slices.Equal(got, want.paths()) {
				t.Errorf("reads %q, want %q", got, want.paths())
			}
		})
	}
}

// TestExamplesRead: what the reviewers of an example are shown.
func TestExamplesRead(t *testing.T) {
	s := newEngine(t, Config{Dir: "../examples/policies"}).inForce.Load()
	for _, name := range s.names {
		if in := s.reads[name]; in == nil || in["attestation"] == nil && name != "gpu_guest" {
			t.Errorf("%s reads %s", name, in.paths())
		}
	}
	got := s.reads["tdx_strict"].paths()
	for _, want := range []string{"attestation.tcb.status", "attestation.measurements", "attestation.tdx.tdattributes", "resource.path", "time"} {
		if !slices.Contains(got, want) {
			t.Errorf("tdx_strict reads %s, and not %s", got, want)
		}
	}
}

// TestCompilerPanics: OPA's compiler panics for these modules, and nothing of ours does.
func TestCompilerPanics(t *testing.T) {
	dir := write(t, map[string]string{"p.rego": "package claviger.release.p\nallow := true\nm[1].a := 1", "q.rego": "package claviger.release.p.m\nx := 1"})
	if _, err := Reads([]string{dir}); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("Reads: %v", err)
	}
	if _, err := Check([]string{dir}); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("Check: %v", err)
	}
	if _, err := New(Config{Dir: dir}); err == nil {
		t.Error("New: no error")
	}
}
