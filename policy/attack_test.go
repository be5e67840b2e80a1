package policy

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker"
)

// TestViewAttacks: constructs that hide a read from who looks for it. Each policy
// denies a guest for a claim that is not of those that every policy reads, with its view as with everything, and
// leaves what it was shown as it was: decisions are remembered by it.
func TestViewAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("each policy is a bundle of its own: that is not short, and nothing of it runs at once")
	}
	const (
		bad   = "\nbad if input.attestation.hotplug"
		team  = "package team" + bad
		other = "package claviger.release.q" + bad
		doc   = `{"attestation": {"hotplug": true, "debuggable": false, "simulated": false, "collateral": {"state": "fresh"}, "tcb": {"status": "UpToDate"}, "bound": true, "devices": [{"bound": true, "debuggable": false, "collateral": {"state": "fresh"}, "tcb": {"status": "UpToDate"}}]}, "chip": {"networks": 1}, "n": 1, "w": "bad",
			"dname": "hotplug", "small": {"hotplug": true, "bound": true}, "nul": null, "arr": ["bad", "x"], "arr1": [1], "team": "tea"}`
	)
	for _, tc := range []struct{ name, policy, other string }{
		{"package by var", "allow if { some x; not g(x); x = \"q\" }\ng(x) if data.claviger.release[x].bad", other},
		{"data root var", `allow if { x = "team"; not data[x].bad }`, team},
		{"data root by input", "allow if { x := input.team; y := concat(\"\", [x, \"m\"]); not h[y] }\nh[k] := v if { k := \"team\"; v := data[k].bad }", team},
		{"head ref data", "allow if not m.bad\nm[data.claviger.release.q.name] := true", "package claviger.release.q\nname := \"bad\" if input.attestation.hotplug"},
		{"head ref data deep", "allow if not m.x.bad.y\nm.x[data.claviger.release.q.name].y := true", "package claviger.release.q\nname := \"bad\" if input.attestation.hotplug"},
		{"head contains data", "allow if not \"bad\" in m.x\nm.x contains data.claviger.release.q.name", "package claviger.release.q\nname := \"bad\" if input.attestation.hotplug"},
		{"head comprehension", "allow if not m[[\"bad\"]]\nm[[x | x := data.claviger.release.q.name]] := true", "package claviger.release.q\nname := \"bad\" if input.attestation.hotplug"},
		{"default comprehension", "default bad := {1 | input.attestation.hotplug}\nbad := {9} if input.chip.x\nallow if count(bad) == 0", ``},
		{"default function", "default f(_) := {1 | input.attestation.hotplug}\nf(x) := {9} if input.chip[x]\nallow if count(f(\"zz\")) == 0", ``},
		{"else chain of q", `allow if data.claviger.release.q.f(4) == false`, "package claviger.release.q\nf(x) := 1 if { x == 2 } else := 2 if { x == 3 } else := bad\nbad := input.attestation.hotplug"},
		{"alias of alias", "import input.attestation as a\nallow if not b.hotplug\nb := a", ``},
		{"import data whole", "import data.team as t\nallow if { some k; count(t[k]) == 0 }", "package team.x\nbad if input.attestation.hotplug"},
		{"unify object", `allow if { {"hotplug": x, "bound": y} = input.small; x == false; y }`, ``},
		{"unify arrays", `allow if { [x, y] = [input.attestation.hotplug, input.attestation.bound]; x == false; y }`, ``},
		{"every nested not", "allow if { every i in [1, 2] { not g(i) } }\ng(2) if input.attestation.hotplug", ``},
		{"arg pattern", "f([x, {\"a\": y}]) := y if x == 1\nallow if f([1, {\"a\": input.attestation.hotplug}]) == false", ``},
		{"template call", "f(x) := input.attestation[x]\nallow if $\"{f(\"hotplug\")}\" == \"false\"", ``},
		{"template with", `allow if $"{data.claviger.release.q.bad}" == "<undefined>"`, other},
		{"with input", `allow if not data.claviger.release.q.bad with input.chip as input.attestation`, "package claviger.release.q\nbad if input.chip.hotplug"},
		{"with input over string", `allow if not data.claviger.release.q.bad with input.w.b as true`, "package claviger.release.q\nbad if { input.w.b; input.attestation.hotplug }"},
		{"with input over array", `allow if not data.claviger.release.q.bad with input.arr.b as true`, "package claviger.release.q\nbad if { input.arr.b; input.attestation.hotplug }"},
		{"with in function", "f(x) := v if { v := [1 | data.claviger.release.q.bad with input.chip as x] }\nallow if count(f(input.attestation)) == 0", "package claviger.release.q\nbad if { input.chip.hotplug }"},
		{"in keys", `allow if { not {input.attestation.hotplug: 1}[true] }`, ``},
		{"json.patch", `allow if { x := json.patch(input.attestation, [{"op": "add", "path": "/zz", "value": 1}]); not x.hotplug; x.zz == 1 }`, ``},
		{"shadow", "allow if { attestation := {\"hotplug\": false}; not attestation.hotplug; not attestation2 }\nattestation2 := input.attestation.hotplug", ``},
		{"local like rule", "bad := input.attestation.hotplug\nallow if { x := bad; bad2 := x; not bad2 }\nbad2 := 3", ``},
		{"some shadows", "bad := input.attestation.hotplug\nallow if { some bad in [true]; bad; not c }\nc if bad", ``},
		{"other policy", `allow if data.claviger.release.q.allow`, "package claviger.release.q\nallow if not input.attestation.hotplug"},
		{"any policy", "deny contains 1 if { some n in [\"q\"]; data.claviger.release[n].bad }\nallow := true", other},
		{"general refs var", "bad[x].foo.bar := v if { x := \"a\"; v := input.attestation.hotplug }\nbad[x].foo.baz := 2 if x := \"a\"\nallow if { k := \"bar\"; not bad.a.foo[k] }", ``},
		{"general refs short", "bad[x].foo.bar := v if { x := \"a\"; v := input.attestation.hotplug }\nallow if { not bad.a.foo == {\"bar\": true} }", ``},
		{"composite key input", "bad[[1]].x := input.attestation.hotplug\nallow if { k = input.arr1; k = [1.0]; not bad[k].x }", ``},
		{"ref in ref", "m := {true: 1}\nallow if not m[input.attestation.hotplug]", ``},
		{"ref in input ref", `allow if not input["attestation"][input.dname]`, ``},
		{"future not", "import future.keywords.not\nallow if { not { input.attestation.hotplug } }", ``},
		{"future or", "import future.keywords.or\nallow if { input.chip.zz or not input.attestation.hotplug }", ``},
		{"numbers range", "allow if { some i in numbers.range(0, 0); not input.arr[i].x; not bad[i].b }\nbad[0].b if input.attestation.hotplug", ``},
		{"package with brackets", `allow if { not data.team["a b"].bad }`, "package team[\"a b\"]\nbad if input.attestation.hotplug"},
		{"graph through function value", "f(x) := g(x)\ng(x) := h(x)\nh(x) := input.attestation[x]\nallow if not f(\"hotplug\")", ``},
		{"function in comprehension in head", "f(x) := input.attestation[x]\nm contains [f(k) | some k in [\"hotplug\"]]\nallow if not [true] in m", ``},
		{"as func alias", "import data.team as g\nallow if not g.f(\"hotplug\")", "package team\nf(x) := input.attestation[x]"},
		{"names", "allow if not g\ng if { some x in {\"team\", \"tean\"}; data[x].bad }", team},
		{"names by list", "allow if not g\ng if { y := [[\"team\"], [\"tean\"]]; data[y[0][0]].bad }", team},
		{"names by list and var", "allow if not g\ng if { y := [[\"team\"], [\"tean\"]]; data[y[_][i]].bad; i == 0 }", team},
		{"set member", "allow if not g\ng if { s := {\"team\", \"tean\"}; x = s[\"team\"]; data[x].bad }", team},
		{"closure", "allow if not g\ng if { x = \"team\"; count([1 | data[x].bad]) == 1 }", team},
		{"negated closure", `allow if { x = "team"; not data[x].bad }`, team},
		{"with on a binding", "allow if not g\ng if { x = \"team\" with input.k as 1; data[x].bad }", team},
		{"in head", "allow if not g[true]\ng contains data[x].bad if { some x in [\"team\"] }", team},
		{"template name", "allow if not g\ng if { x := $\"te{\"am\"}\"; data.team[x] }", "package team\nteam if input.attestation.hotplug"},
		{"comprehension over package", `allow if count({k | some k, _ in data.team}) == 0`, team},
		{"unified package", "allow if not g\ng if { {\"bad\": true} = data.team }", team},
		{"package in with value", "allow if not g with input.k as data.team\ng if input.k.bad", team},
		{"with value call", "f(x) := input.attestation[x]\nallow if not g with input.k as f(\"hotplug\")\ng if input.k", team},
		{"with twice", "allow if not g with input.k as input.attestation.hotplug with input.l as 1\ng if { h with input.l as input.k }\nh if input.l", team},
		{"with in template", "allow if $\"{g}\" == \"<undefined>\"\ng if h with input.k as input.attestation.hotplug\nh if input.k", team},
		{"with in comprehension in head", "allow if not true in g\ng contains [x | x := input.k with input.k as input.attestation.hotplug][0]", team},
		{"function in with target scope", "f(_) := input.k\nallow if not g\ng if f(1) with input.k as data.team.bad", team},
		{"default function of package", `allow if not data.team.f(1)`, "package team\ndefault f(_) := false\nf(x) := input.attestation.hotplug if x == 1"},
		{"partial and complete", `allow if not data.team.m.a.b`, "package team\nm.a := {\"b\": true} if input.attestation.hotplug"},
		{"value below rule by var", "allow if { some k; not g(k); k = \"a\" }\ng(k) if data.team.m[k].b.c", "package team\nm := {\"a\": {\"b\": {\"c\": input.attestation.hotplug}}}"},
		{"mixed depth whole", `allow if not data.team.m == {"a": {"b": true}, "c": {"d": 1}}`, "package team\nm.a[k] := v if { some k in [\"b\"]; v := input.attestation.hotplug }\nm.c.d := 1"},
		{"ref of ref of input", `allow if not data.team.m[data.team.n[input.w]]`, "package team\nm.x := input.attestation.hotplug\nn.bad := \"x\""},
		{"input by rule of input", `allow if not input.attestation[data.team.n]`, "package team\nn := input.dname"},
		{"generated with numbers", "allow if not g\ng if { some i in numbers.range(0, 3); data.team.m[i] }", "package team\nm[2] := input.attestation.hotplug"},
		{"with target import", "import input.k as i\nallow if not g with i as input.attestation\ng if i.hotplug", ``},
		{"not not", "import future.keywords.not\nallow if { not { not { not input.attestation.hotplug } } }", ``},
		{"not body with", "import future.keywords.not\nallow if { not { g with input.k as input.attestation.hotplug } }\ng if input.k", ``},
		{"or with", "import future.keywords.or\nimport future.keywords.and\nallow if not g\ng if { input.zz or h(1) and input.attestation.bound }\nh(1) if input.attestation.hotplug", ``},
		{"input of json", `allow if not json.unmarshal(json.marshal(input.attestation)).hotplug`, ``},

		// Rego's numbers are equal by value, also where OPA's graph of dependencies tells them apart.
		{"number narrowed", "allow if { x = input.n; x = 1.0; not bad[x].b }\nbad[1].b if input.attestation.hotplug", ""},
		{"number with exponent", "allow if { x = input.n; x = 1e0; not bad[x].b }\nbad[1].b if input.attestation.hotplug", ""},
		{"number as index", "allow if { input.arr[i] == \"x\"; i = 1.0; not bad[i].b }\nbad[1].b if input.attestation.hotplug", ""},
		{"number, complete rule", "allow if { x = input.n; x = 1.0; not bad[x] }\nbad[1] := true if input.attestation.hotplug", ""},

		// Below a rule whose head has a variable, evaluation looks at the rules for all keys by value, and their errors count.
		{"number below general rule", "allow if not m[1.0].b\nm[x].foo := 1 if x := \"a\"\nm[1].b if input.attestation.hotplug", ""},
		{"number deeper", "allow if not m.q[1.0].b\nm[x].foo := 1 if x := \"a\"\nm.q[1].b if input.attestation.hotplug", ""},
		{"number with exponent in rule", "allow if not m[100]\nm[x] := false if x := 7\nm[1e2] := true if input.attestation.hotplug", ""},
		{"number of partial object", "allow if not m[1.0]\nm[x] := false if x := 7\nm[1] := true if input.attestation.hotplug", ""},
		{"number of package", "allow if not data.team.m[1.0].b", "package team\nm[x].foo := 1 if x := \"a\"\nm[1].b if input.attestation.hotplug"},
		{"conflict beside", "allow if m[_].bar\nm[x].bar := true if x := \"a\"\nm[x].baz := 1 if x := \"a\"\nm[x].baz := 2 if { x := \"a\"; input.attestation.hotplug }", ""},
		{"conflict behind", "allow if m[_].bar\nm[x].bar := true if x := \"a\"\nm[x].baz := c if x := \"a\"\nc := 1\nc := 2 if input.attestation.hotplug", ""},
		{"collision beside", "allow if m[_].bar\nm[x].bar := true if x := \"a\"\nm[x].baz := {} if x := \"a\"\nm[x].baz.z := 2 if { x := \"a\"; input.attestation.hotplug }", ""},
		{"conflict of package", "allow if data.team.m[_].bar", "package team\nm[x].bar := true if x := \"a\"\nm.b.z := c\nc := 1\nc := 2 if input.attestation.hotplug"},
		{"else of a head with a key", "m.a := v if { v := false; input.zz } else := input.attestation.hotplug\nallow if not m.a", ""},
		{"template of two", "allow if { w := \"ad\"; not data.team[$\"b{w}\"] }", team},

		{"array.concat", "allow if not array.concat(a, a)[3]\na := array.concat([input.attestation.hotplug], input.arr)", ""},
		{"sort", "allow if { sort(input.arr) == [\"bad\", \"x\"]; not sort([input.attestation.hotplug])[0] }", ""},
		{"object.union", "allow if not object.union({\"x\": {}}, object.union(input.attestation, {\"bound\": {\"y\": 1}})).hotplug", ""},
		{"object.union_n", "allow if not object.union_n([{\"bound\": {}}, input.attestation, {\"bound\": {\"y\": 1}}]).hotplug", ""},
		{"object.remove", "allow if object.remove(input.attestation, [\"bound\", \"devices\", \"debuggable\", \"simulated\", \"collateral\", \"tcb\"]) == {\"hotplug\": false}", ""},
		{"json.patch moves", "allow if not json.patch(input.attestation, [{\"op\": \"remove\", \"path\": \"/devices/0\"}, {\"op\": \"move\", \"from\": \"/hotplug\", \"path\": \"/x\"}]).x", ""},
		{"with below", "allow if not bad with input.attestation.bound as false with input.attestation.devices as {}\nbad if { not input.attestation.bound; input.attestation.hotplug }", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{"p.rego": "package claviger.release.p\n" + tc.policy, "u.rego": "package tean.sub\nbad if input.attestation.bound"}
			if tc.other != "" {
				files["other.rego"] = tc.other
			}
			e := newEngine(t, Config{Dir: write(t, files)})
			s := e.inForce.Load()
			decide := func(doc string, v selection) (broker.Decision, error) {
				var in map[string]any
				if err := json.Unmarshal([]byte(doc), &in); err != nil {
					t.Fatal(err)
				}
				shown, err := e.conv.convert(in, v, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				hash := shown.Hash()
				d, err := s.decide(t.Context(), "p", shown, testTime, nil)
				if again, _ := e.conv.convert(in, v, 1<<20); !shown.Equal(again) || shown.String() != again.String() || shown.Hash() != hash {
					t.Errorf("%s became %s", again, shown)
				}
				return d, err
			}
			for _, doc := range []string{doc, strings.ReplaceAll(doc, `"hotplug": true`, `"hotplug": false`), `{}`, `{"attestation": null, "n": "1"}`, strings.ReplaceAll(doc, `"bound": true`, `"bound": []`)} {
				want, wantErr := decide(doc, nil)
				got, gotErr := decide(doc, s.views["p"].input)
				if !reflect.DeepEqual(got, want) || (gotErr == nil) != (wantErr == nil) {
					t.Errorf("sees %s, clock %t:\nwith its view %+v, %v\nwith everything %+v, %v\n%s", s.views["p"], s.views["p"].clock, got, gotErr, want, wantErr, doc)
				}
				if strings.Contains(doc, `"bound": true`) && got.Allow == strings.Contains(doc, `"hotplug": true`) {
					t.Errorf("allow %t, error %v: not what the case is about", got.Allow, gotErr)
				}
			}
		})
	}
}
