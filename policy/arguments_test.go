package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/claviger/claviger/broker"
)

// bad are values that are not of a kind, in Rego.
var bad = map[string][]string{
	"text":       {`""`, `9`, `null`, `true`, `["a"]`, `{"a"}`, `{"a": 1}`},
	"texts":      {`set()`, `[]`, `"a"`, `9`, `null`, `{}`, `{"a": "b"}`, `["a", 1]`, `[""]`, `{null}`, `[["a"]]`},
	"exceptions": {`"a"`, `9`, `null`, `{}`, `[1]`, `[null]`},
	"number":     {`"9"`, `null`, `true`, `[]`, `{9}`, `-1`, `1.5`, `{}`},
	"numbers":    {`9`, `"9"`, `null`, `[]`, `set()`, `["9"]`, `[null]`, `[-1]`, `{"a": 9}`},
	"floors":     {`null`, `9`, `"Milan"`, `[]`, `{}`, `{"Milan": {}}`, `{"Milan": []}`, `{"Milan": 9}`, `{"Milan": {"snp": null}}`, `{"Milan": {"snp": "9"}}`, `{"Milan": {"snp": [9]}}`, `{"Milan": {"snp": 9}, "Genoa": {}}`},
	"values":     {`null`, `9`, `"8"`, `[]`, `{}`, `{"8": {}}`, `{"8": set()}`, `{"8": []}`, `{"8": "a"}`, `{"8": [null]}`, `["8"]`},
	"time":       {`null`, `9`, `""`, `"today"`, `"2026-01-01"`, `[]`, `{}`},
}

var good = map[string][]string{
	"text": {`"a"`}, "texts": {`{"a"}`, `["a", "b"]`}, "exceptions": {`set()`, `[]`, `{"a"}`}, "number": {`0`, `9`}, "numbers": {`[0, 7]`, `{9}`},
	"floors": {`{"Milan": {"snp": 0}}`}, "values": {`{"8": {"a"}}`, `{"a/b": [1, true]}`}, "time": {`"2026-01-01T00:00:00Z"`},
}

func resourceInput(t *testing.T, policy string) broker.PolicyInput {
	in := snpInput(t)
	in.Resource.Policy = policy
	return in
}

// TestKinds: the two readings of a kind, at loading and at a decision, are one.
func TestKinds(t *testing.T) {
	body := "default allow := false\n\nallow if input.attestation.bound == true\n\n"
	want := map[string]bool{} // by "kind value"
	for kind := range kindWords {
		if good[kind] == nil || bad[kind] == nil {
			t.Errorf("no values for kind %s", kind)
		}
		for i, v := range slices.Concat(good[kind], bad[kind]) {
			name := kind + " " + v
			want[name] = i < len(good[kind])
			if isKind(kind, ast.MustParseTerm(v).Value) != want[name] {
				t.Errorf("%s: %t", name, !want[name])
			}
			body += fmt.Sprintf("deny contains %q if data.claviger.lib.arguments.wrong([[\"f\", 1, %q, [%s]]]) == set()\n\n", name, kind, v)
		}
	}
	d, err := ask(t, newEngine(t, Config{Dir: one(t, body)}), "p")
	if err != nil {
		t.Fatal(err)
	}
	for name, is := range want {
		if slices.ContainsFunc(d.Reasons, func(r broker.DecisionReason) bool { return r.Message == name }) != is {
			t.Errorf("in Rego, %s: %t", name, !is)
		}
	}
}

// TestHelpersFailClosed runs every helper with every argument undefined, and of
// each wrong shape: as a constant the policy does not load; from data, it denies
// and says which argument is wrong.
func TestHelpersFailClosed(t *testing.T) {
	for name, kinds := range takes {
		t.Run(name, func(t *testing.T) {
			pkg, rule, _ := strings.Cut(name, ".")
			policy := func(args []string) string {
				more := ""
				if name == "snp.guest_svn_denials" { // does not load alone
					more = "\ndeny contains r if some r in snp.id_key_denials({\"aa\"})\n"
				}
				return fmt.Sprintf("package claviger.release.p\n\nimport data.claviger.lib.%s\n\ndefault allow := false\n\nallow if input.attestation.bound == true\n\ndeny contains r if some r in %s.%s(%s)\n", pkg, pkg, rule, strings.Join(args, ", ")) + more
			}
			for i := range kinds {
				args := func(v string) []string {
					var out []string
					for _, k := range kinds {
						out = append(out, good[k][0])
					}
					out[i] = v
					return out
				}
				for _, v := range bad[kinds[i]] {
					if _, err := New(Config{Dir: write(t, map[string]string{"p.rego": policy(args(v))})}); err == nil || !strings.Contains(err.Error(), name) {
						t.Errorf("argument %d is %s: %v", i+1, v, err)
					}
				}
				// The guest chooses the name. All in one policy: the last two are undefined.
				values := map[string]any{}
				for j, v := range bad[kinds[i]] {
					x, err := ast.JSON(ast.MustParseTerm(v).Value)
					if err != nil {
						t.Fatal(err)
					}
					if strings.HasPrefix(v, "{") && !strings.Contains(v, ":") && v != "{}" || v == "set()" {
						continue // JSON has no sets
					}
					values[fmt.Sprint(j)] = x
				}
				data, err := json.Marshal(map[string]any{"shop": map[string]any{"values": values}})
				if err != nil {
					t.Fatal(err)
				}
				e := newEngine(t, Config{Dir: write(t, map[string]string{"p.rego": policy(args("data.shop.values[input.resource.params.tenant]")), "data.json": string(data)})})
				for _, tenant := range append(sortedKeys(values), "unknown", "") {
					in := resourceInput(t, "p")
					in.Resource.Params = map[string]string{"tenant": tenant}
					if tenant == "" {
						in.Resource.Params = nil
					}
					d, err := e.Decide(t.Context(), in)
					if err != nil {
						t.Fatal(err)
					}
					if d.Allow || !slices.ContainsFunc(d.Reasons, func(r broker.DecisionReason) bool {
						return r.Rule == "argument" && strings.Contains(r.Message, fmt.Sprintf("%s: argument %d", name, i+1))
					}) {
						t.Errorf("argument %d is %v: allow %t, %+v", i+1, values[tenant], d.Allow, d.Reasons)
					}
				}
			}
		})
	}
}

// TestCalls are mistakes around a call of a helper, and forms that are none.
func TestCalls(t *testing.T) {
	const head = `package claviger.release.p

IMPORTS
default allow := false

allow if input.attestation.bound == true

floors := {"Milan": {"snp": 1}}

`
	for body, says := range map[string]string{
		`deny contains r if some r in snp.tcb_denials(floors)`:                                                     "",
		`deny contains r if some r in amd.tcb_denials({"Milan": {"snp": 1}})`:                                      "",
		`deny contains r if some r in data.claviger.lib.snp.tcb_denials(floors)`:                                   "",
		`deny contains r if { some r in snp.tcb_denials({"Milan": object.get(floors, input.resource.path, {})}) }`: "",
		"deny contains r if { f := {\"Milan\": {\"snp\": 1}}; some r in snp.tcb_denials(f) }":                      "",
		"deny contains r if { f := [x | x := input.resource.params.f]; some r in snp.id_key_denials(f) }":          "",
		`deny contains r if { f := floors[input.resource.path]; some r in snp.tcb_denials({"Milan": f}) }`:         "write it into the call",
		`deny contains r if { f := input.resource.params.f; some r in amd.id_key_denials([f]) }`:                   "write it into the call",
		"low := {\"Milan\": {}}\n\ndeny contains r if some r in snp.tcb_denials(low)":                              "snp.tcb_denials: argument 1",
		`deny contains "x" if snp.tcb_denials(floors)`:                                                             "nobody looks at",
		`deny contains r if snp.tcb_denials(floors, r)`:                                                            "nobody looks at",
		`deny contains r if some r in snp.tcb_denials()`:                                                           "argument",
		`deny contains r if some r in snp.tcb_denials(floors, floors)`:                                             "takes 1 argument",
		`deny contains r if some r in amd.tcb_denials({"Milan": {}})`:                                              "snp.tcb_denials: argument 1",
		`mine(t) := snp.tcb_denials({"Milan": {}})` + "\n\ndeny contains r if some r in mine(1)":                   "snp.tcb_denials: argument 1",
		`deny contains r if some r in {x | some x in snp.tcb_denials({"Milan": {}})}`:                              "snp.tcb_denials: argument 1",
		`deny contains r if { some t in input.resource.params; some r in snp.id_key_denials([t]) }`:                "",
		`deny contains r if { some r in snp.vmpl_denials(0) with input.attestation as {} }`:                        "",
	} {
		imports := ""
		if strings.Contains(body, " snp.") {
			imports += "import data.claviger.lib.snp\n"
		}
		if strings.Contains(body, " amd.") {
			imports += "import data.claviger.lib.snp as amd\n"
		}
		_, err := New(Config{Dir: write(t, map[string]string{"p.rego": strings.Replace(head, "IMPORTS", imports, 1) + body + "\n"})})
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v, want %q", body, err, says)
		}
	}
}

// TestOwnFunctions: deny takes reasons from a policy's own function, which is
// undefined for what the guest sends: that denies, too.
func TestOwnFunctions(t *testing.T) {
	e := newEngine(t, Config{Dir: write(t, map[string]string{"p.rego": `package claviger.release.p

import data.claviger.lib.snp

default allow := false

allow if input.attestation.bound == true

floors := {"a": {"Milan": {"snp": 0}}}

tenant_denials(tenant) := {r | some r in snp.tcb_denials(floors[tenant])}

listed_denials(tenant) := set() if tenant in {"a", "b"}

deny contains r if some r in tenant_denials(input.resource.params.tenant)

deny contains r if some r in listed_denials(input.resource.params.tenant)
`})})
	for tenant, want := range map[string]string{"b": "snp.tcb_denials: argument 1", "": "tenant_denials", "c": "listed_denials gives nothing"} {
		in := resourceInput(t, "p")
		in.Resource.Params = map[string]string{"tenant": tenant}
		if tenant == "" {
			in.Resource.Params = nil
		}
		d, err := e.Decide(t.Context(), in)
		if err != nil || d.Allow || !strings.Contains(fmt.Sprint(d.Reasons), want) {
			t.Errorf("%q: allow %t, %v, %v", tenant, d.Allow, d.Reasons, err)
		}
	}
}

// TestSharedArguments: the cases that were found.
func TestSharedArguments(t *testing.T) {
	shared := filepath.Join("..", "..", "shared", "cases", "policies")
	if _, err := os.Stat(shared); err != nil {
		t.Skipf("no shared cases: %v", err)
	}
	for _, name := range []string{"emptyfloor", "scalars"} {
		if _, err := New(Config{Dir: filepath.Join(shared, name)}); err == nil {
			t.Errorf("%s loads", name)
		}
	}
	e := newEngine(t, Config{Dir: filepath.Join(shared, "tenant-floors")})
	in := resourceInput(t, "t")
	in.Resource.Params = map[string]string{"tenant": "nobody"}
	if d, err := e.Decide(t.Context(), in); err != nil || d.Allow || !strings.Contains(fmt.Sprint(d.Reasons), "snp.id_key_denials: argument 1") {
		t.Errorf("allow %t, %v, %v", d.Allow, d.Reasons, err)
	}
}
