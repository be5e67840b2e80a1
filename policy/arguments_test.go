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
	"github.com/claviger/claviger/broker/attest"
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
	"indices":    {`9`, `"9"`, `null`, `{}`, `["9"]`, `[null]`, `[-1]`, `[0.5]`},
	"minimums":   {`null`, `9`, `"a"`, `[]`, `{}`, `{"a": null}`, `{"a": "9"}`, `{"a": -1}`, `{"a": [9]}`},
	"versions":   {`null`, `9`, `"1.2.3"`, `[]`, `{}`, `{"a": null}`, `{"a": 1}`, `{"a": ""}`, `{"a": "v1"}`, `{"a": "1."}`, `{"a": ["1"]}`},
	"bit":        {`null`, `0`, `1`, `"true"`, `"some"`, `[]`, `{}`, `{true}`},
}

var good = map[string][]string{
	"text": {`"a"`}, "texts": {`{"a"}`, `["a", "b"]`}, "exceptions": {`set()`, `[]`, `{"a"}`}, "number": {`0`, `9`}, "numbers": {`[0, 7]`, `{9}`},
	"floors": {`{"Milan": {"snp": 0}}`}, "values": {`{"8": {"a"}}`, `{"a/b": [1, true]}`}, "time": {`"2026-01-01T00:00:00Z"`},
	"indices": {`[]`, `set()`, `{0, 7}`}, "minimums": {`{"a": 0}`}, "versions": {`{"a": "1.2.3"}`, `{"a": "0", "b": "1.0.0+7"}`}, "bit": {`"any"`, `false`, `true`},
}

func libShapes(t *testing.T) shapes {
	t.Helper()
	lib, err := loadLib(capabilities())
	if err != nil {
		t.Fatal(err)
	}
	c := newCompiler(capabilities())
	if err := compile(c, lib); err != nil {
		t.Fatal(err)
	}
	s, err := shapesOf(constants(c))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kinds are all that a helper may be given; optional ones are members of others.
func (s shapes) kinds() []string {
	return slices.Concat(sortedKeys(kindWords), sortedKeys(s.members), sortedKeys(s.bits))
}

// object writes an object in Rego.
func object(members map[string]string) string {
	var out []string
	for _, k := range sortedKeys(members) {
		out = append(out, fmt.Sprintf("%q: %s", k, members[k]))
	}
	return "{" + strings.Join(out, ", ") + "}"
}

// goodMembers is an object of a kind, by member.
func (s shapes) goodMembers(kind string) map[string]string {
	out := map[string]string{}
	for name, member := range s.membersOf(kind) {
		all := s.good(member)
		out[name] = all[len(all)-1]
		if s.optional[member] != "" {
			out[name] = all[0]
		}
	}
	return out
}

// good are values of a kind, in Rego.
func (s shapes) good(kind string) []string {
	if s.membersOf(kind) == nil {
		return good[kind]
	}
	out := []string{object(s.goodMembers(kind))}
	if s.optional[kind] != "" {
		out = append(out, `"none"`)
	}
	return out
}

// bad are values that are not of a kind, in Rego: of requirements, those that lack
// a member, have one that nothing reads, or one of another kind.
func (s shapes) bad(kind string) []string {
	members := s.membersOf(kind)
	if members == nil {
		return bad[kind]
	}
	out := []string{`null`, `9`, `"any"`, `[]`, `{}`, `{"a": 9}`}
	m := s.goodMembers(kind)
	m["unknown"] = `"any"`
	out = append(out, object(m))
	for _, name := range sortedKeys(members) {
		m := s.goodMembers(kind)
		delete(m, name)
		out = append(out, object(m))
		for _, v := range s.bad(members[name]) {
			m[name] = v
			out = append(out, object(m))
		}
	}
	if s.optional[kind] == "" && s.bits[kind] == nil {
		out = append(out, `"none"`)
	}
	return out
}

func resourceInput(t *testing.T, policy string) broker.PolicyInput {
	in := snpInput(t)
	in.Resource.Policy = policy
	return in
}

// TestKinds: the two readings of a kind, at loading and at a decision, are one.
func TestKinds(t *testing.T) {
	shapes := libShapes(t)
	for _, kind := range shapes.kinds() {
		t.Run(kind, func(t *testing.T) {
			good, bad := shapes.good(kind), shapes.bad(kind)
			if len(good) == 0 || kind != "any" && len(bad) < 4 {
				t.Errorf("values of the kind: %q, of others: %q", good, bad)
			}
			body := "default allow := false\n\nallow if input.attestation.bound == true\n\nwrong contains n if {\n\tsome n, v in values\n\tdata.claviger.lib.arguments.wrong([[\"f\", 1, kind, [v]]]) != set()\n}\n\n" +
				"deny contains sprintf(\"%d\", [count(values) - count(wrong)])\n\ndeny contains sprintf(\"good %d\", [n]) if { some n in wrong; n < goods }\n\n" +
				fmt.Sprintf("kind := %q\n\ngoods := %d\n\nvalues := [%s]\n", kind, len(good), strings.Join(append(slices.Clone(good), bad...), ", "))
			d, err := ask(t, newEngine(t, Config{Dir: one(t, body)}), "p")
			if err != nil || len(d.Reasons) != 1 || d.Reasons[0].Message != fmt.Sprint(len(good)) {
				t.Errorf("in Rego, want %d good ones of %d: %+v, %v", len(good), len(good)+len(bad), d.Reasons, err)
			}
			for _, v := range good {
				if !shapes.isKind(kind, ast.MustParseTerm(v).Value) {
					t.Errorf("%s is not of the kind: %s", v, shapes.fault(kind, ast.MustParseTerm(v).Value))
				}
			}
			for _, v := range bad {
				x := ast.MustParseTerm(v).Value
				if shapes.isKind(kind, x) || shapes.fault(kind, x) == "" {
					t.Errorf("%s is of the kind", v)
				}
			}
		})
	}
}

// TestHelpersFailClosed runs every helper with every argument undefined, and of
// each wrong shape: as a constant the policy does not load; from data, it denies
// and says which argument is wrong.
func TestHelpersFailClosed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long, and nothing of it runs at once")
	}
	shapes := libShapes(t)
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
			// Without claims there is a reason, whatever is demanded: no helper is undefined.
			var demands []string
			for _, k := range kinds {
				all := shapes.good(k)
				demands = append(demands, all[len(all)-1])
			}
			e := newEngine(t, Config{Dir: write(t, map[string]string{"p.rego": policy(demands)})})
			in := resourceInput(t, "p")
			in.Attestation, in.Resource.Params, in.Chip = attest.Claims{}, nil, broker.PolicyChip{}
			if d, err := e.Decide(t.Context(), in); err != nil || (len(d.Reasons) == 0 || d.Reasons[0].Rule == "no_rule_allowed") && name != "tdx.advisory_denials" { // there are no advisories
				t.Errorf("without claims: %+v, %v", d, err)
			}
			for i := range kinds {
				args := func(v string) []string {
					var out []string
					for _, k := range kinds {
						out = append(out, shapes.good(k)[0])
					}
					out[i] = v
					return out
				}
				wrong := shapes.bad(kinds[i])
				some := wrong[:3] // TestKinds has them all
				if shapes.membersOf(kinds[i]) != nil {
					some = wrong[5:8]
				}
				for _, v := range some {
					if _, err := New(Config{Dir: write(t, map[string]string{"p.rego": policy(args(v))})}); err == nil || !strings.Contains(err.Error(), name) {
						t.Errorf("argument %d is %s: %v", i+1, v, err)
					}
				}
				// The guest chooses the name. All in one policy: the last two are undefined.
				values := map[string]any{}
				for j, v := range wrong {
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
						t.Errorf("argument %d is %v: allow %t, %.300v", i+1, values[tenant], d.Allow, d.Reasons)
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
