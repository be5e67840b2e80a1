package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/claviger/claviger/broker"
)

// grammar has what each capital stands for. I is a read of input of its own, R a reference
// to rules, C a comprehension, V a new variable, U one that is used again (L). What
// follows ¦ is a literal of its own, before or after.
var capital, grammar = regexp.MustCompile(`[A-Z]`), map[string][]string{
	"S": {`"a"`, `"a"`, `"b"`, "1", "1.0", "1e0", "1", "1.0", "true", "false", "null", `"m0"`},
	"H": {"", "", `"a"`, `"b"`, "1", "1.0", "1e0", "1", "true"}, // a key of a head; a variable if empty
	"K": {"_", "V¦V = S", "V¦V = I; V = S", "U¦some U in [S, S]", "U¦some U in {S, S}", `U¦some U in {"x": S}`, "[[S], [S]][1][0]", "data.base.k[0]", "data.base.k[3]", "data.base.k[_]", "T", "L", `$"b{""}"`, `$"{"a"}"`, "I", "S", "S", "S", "S", "S"},
	"T": {"S", "I", "I", "[T, T]", "[T, T][1]", `{S: T, "z": T}`, `{"z": T}.z`, "{T}", `$"x{R}"`, "json.marshal(T)", "C", "C", "L", "L[K]", "R", "R", "R", "R", "R"},
	"C": {"[T]", "{T}", `{"a": T}`, "count({T})"}, // T: with a body
	"W": {"", "", "", "", "", " with input.w as T", " with input.w.b as T", " with input.o as T", " with input.o.b as T"},
	"E": {"not RW", "not RW", "every e in [T, 1.0] { e != 3; T }", "U = TW", "U := TW", "some U in TW", "[U, _] = TW", `{"a": U} = TW`, "walk(T, [_, U])W", "T == TW", "T != TW", "T in TW", "RW", "RW", "RW", "RW"},
	"D": {"data.base.a[K]", "data.base.k[K]", "data.base.b[K][K]", "data.base[K]", "data.base.b.a.a"},
	"A": {"U", "U", "[U, _]", `{"a": U}`, "S"}, // an argument of a function
}

// wilds writes random policies, a rule to a line.
type wilds struct {
	*rand.Rand
	inputs, vars int
	modules      map[string][]string // lines by file; a package may have two
	rules        []regoRule          // what refers to them comes after them: no recursion
	pkg          string
	body, used   []string // used: variables, that the strict compiler wants to be
}

type regoRule struct {
	pkg, name string
	function  bool
	keys      [][]string // of the heads
}

func (g *wilds) of(s ...string) string { return s[g.IntN(len(s))] }

// text fills in the capitals of a template; d bounds how deep.
func (g *wilds) text(template string, d int) string {
	if i := strings.IndexAny(template, "VU"); i >= 0 {
		g.vars++
		v := fmt.Sprint("v", g.vars)
		if template[i] == 'U' {
			g.used = append(g.used, v)
		}
		template = strings.NewReplacer("V", v, "U", v).Replace(template)
	}
	template, literal, ok := strings.Cut(template, "¦")
	if ok {
		g.body = append(g.body, g.text(literal, d))
	}
	return capital.ReplaceAllStringFunc(template, func(s string) string {
		switch {
		case s == "I" || d < 0 && strings.Contains("TRCK", s) && g.IntN(2) == 0:
			g.inputs++
			return strings.ReplaceAll(g.of("input.#", "input.#", `input["#"]`, "input.#.a", "input.o.#", g.of("input.w", "input.o.b", "input.w.b", "input.time")), "#", fmt.Sprint("i", g.inputs))
		case d < 0 && strings.Contains("TRCKD", s) || s == "L" && len(g.used) == 0:
			s = "S"
		case s == "L":
			return g.of(g.used...)
		case s == "R":
			return g.ref(d - 1)
		case s == "C":
			body, used := g.body, len(g.used)
			g.body = nil
			term := g.text(g.of("T", "T¦E"), d-1)
			term = strings.Replace(g.of(grammar[s]...), "T", term+" | "+g.close(g.used[used:]), 1)
			g.body, g.used = body, g.used[:used]
			return term
		}
		return g.text(g.of(grammar[s]...), d-1)
	})
}

// ref is a reference to rules: by a head's keys, or not quite.
func (g *wilds) ref(d int) string {
	if len(g.rules) == 0 || g.IntN(9) == 0 {
		return g.text("D", d)
	}
	r := g.rules[max(g.IntN(len(g.rules)), g.IntN(len(g.rules)))]
	out := "data." + r.pkg + "." + r.name
	switch n := g.IntN(8); {
	case r.pkg == g.pkg && n < 4:
		out = r.name
	case r.function:
	case n == 4:
		out = g.text("data."+r.pkg+"[V]¦V = "+g.of(`"`+r.name+`"`, `["`+r.name+`"][_]`), d)
	case n == 5 && r.pkg == "team" && g.pkg != "team":
		out = g.text("data[V]."+r.name+`¦V = "team"`, d)
	}
	if len(r.keys) == 0 {
		return out + g.text(map[bool]string{true: "(T)"}[r.function]+g.of("", "", "[K]"), d)
	}
	for _, k := range r.keys[g.IntN(len(r.keys))] {
		switch n := g.IntN(16); {
		case n == 0:
			return out
		case k == "" || n < 3:
			k = g.text("K", d)
		case n < 9 && k[0] == '1':
			k = g.of("1", "1.0", "1e0")
		}
		out += "[" + g.text(g.of(k, k, "V¦V = "+k), d) + "]"
	}
	return out
}

func (g *wilds) close(used []string) string {
	return strings.Join(append(g.body, "["+strings.Join(used, ", ")+"] != 0"), "; ")
}

// rule writes a rule with a number of branches.
func (g *wilds) rule(head, value string, branches int) {
	g.body, g.used = nil, nil
	out := g.text(head, 1) // that has the arguments, and keys that are used in all branches or none
	args := g.used
	for i := range branches {
		if i > 0 {
			g.body, g.used, value = nil, slices.Clone(args), " else := T"
		}
		out += g.text(value+g.of("", "", "¦E"), 1) + " if { " + g.close(g.used) + " }"
	}
	file := g.pkg + g.of("", "", "#2")
	g.modules[file] = append(g.modules[file], out)
}

// group writes the rules of one name.
func (g *wilds) group(name string) {
	r := regoRule{pkg: g.pkg, name: name}
	kind, value := g.IntN(9), g.of(" := T", " := S", " := R", " contains T")
	for range 1 + g.IntN(3) {
		if r.function = kind == 2; kind < 3 {
			g.rule(name+[]string{"", "", "(A)"}[kind], []string{" := T", " contains T", " := T"}[kind], 1+g.IntN([]int{3, 1, 2}[kind]))
			continue
		}
		keys, head := make([]string, 1+g.IntN(3)), name
		for i := range keys {
			keys[i] = g.of(grammar["H"]...)
			head += "[" + cmp.Or(keys[i], "K") + "]"
		}
		r.keys = append(r.keys, keys)
		g.rule(head, value, 1+g.IntN(5)/4)
	}
	g.rules = append(g.rules, r)
}

// bundle makes modules that compile: lines with errors are left out.
func (g *wilds) bundle(caps *ast.Capabilities) (mods map[string]*ast.Module) {
	defer func() { _ = recover() }() // also of OPA's compiler, for m[null].a beside a package m: no modules
	pkgs := []string{g.of("team.m0", "team.a", "base.z", `team["a b"]`), "team", g.of("claviger.release.q", "claviger.release.p.a", "tean")}
	for _, g.pkg = range append(pkgs[g.IntN(3):], "claviger.release.p") {
		for i := range 1 + g.IntN(3)/2 {
			g.group(fmt.Sprint("m", i))
		}
	}
	g.rule("allow", "", 1+g.IntN(2))
	for range 2 {
		g.rule("deny", " contains [S, R]", 1)
	}
	for range 24 {
		var bad ast.Errors
		parsed := map[string]*ast.Module{}
		for f, lines := range g.modules {
			head, rules := "package "+strings.TrimSuffix(f, "#2"), strings.Join(lines, "\n")
			if strings.Contains(rules, "data.team.") && g.vars%2 == 0 {
				head, rules = head+"; import data.team as tt", strings.ReplaceAll(rules, "data.team.", "tt.")
			}
			var err error
			if parsed[f], err = ast.ParseModuleWithOpts(f, head+"\n"+rules, parserOptions(caps)); err != nil {
				bad = append(bad, err.(ast.Errors)...)
			}
		}
		if len(bad) == 0 {
			c := newCompiler(caps).SetErrorLimit(0)
			if c.Compile(parsed); !c.Failed() {
				return parsed
			}
			bad = c.Errors
		}
		for _, e := range bad {
			g.modules[e.Location.File][e.Location.Row-2] = "" // below the package
		}
	}
	return nil
}

// TestViewRandom: random policies answer with their view as with everything.
func TestViewRandom(t *testing.T) {
	if testing.Short() {
		t.Skip("hundreds of bundles")
	}
	const seed, n = 2, 500
	caps, conv, a := capabilities(), converter{}, map[string]any{"a": map[string]any{"b": "a", "1": []any{1, map[string]any{"a": true}}}}
	data := map[string]any{"base": map[string]any{"a": a, "b": a, "n": 1, "k": []any{"team", "a", "m0", 1, json.Number("1.0"), true, nil}}}
	store, _ := newStore(data, nil, nil)
	lib := map[string]*ast.Module{"lib": ast.MustParseModule("package claviger.lib.common\nfloor_denials := set()")}
	ran, narrow, answers := 0, 0, 0
	for i := range n {
		g := &wilds{Rand: rand.New(rand.NewPCG(seed, uint64(i))), modules: map[string][]string{}}
		c, err := compileSources(&sources{modules: g.bundle(caps), data: data}, lib, caps, nil, testTime, false)
		if err != nil {
			continue
		}
		s, v := &snapshot{compiled: c, store: store, steps: defaultSteps}, c.views["p"]
		if ran++; v.input != nil && len(v.input) < g.inputs {
			narrow++
		}
		for range 8 {
			doc, o := map[string]any{"time": "2026-01-01T00:00:00Z"}, map[string]any{}
			for i := range 2 * (g.inputs + 2) {
				name := cmp.Or(map[int]string{0: "w", 1: "b"}[i/2], fmt.Sprint("i", i/2-1))
				if m := []map[string]any{doc, o}[i%2]; g.IntN(4) > 0 {
					m[name] = []any{true, true, true, false, "a", "b", nil, json.Number("1"), json.Number("1.0"), []any{"a"}, map[string]any{"a": true, "b": 1}}[g.IntN(11)]
				}
			}
			doc["o"] = []any{o, doc["w"]}[g.IntN(9)/8]
			decide := func(v selection) (broker.Decision, error) {
				shown, _ := conv.convert(doc, v, 1<<20) // fails for what is too large
				return s.decide(t.Context(), "p", shown, testTime, nil)
			}
			want, wantErr := decide(nil)
			doc["time"] = map[bool]any{false: "another", true: doc["time"]}[v.clock]
			got, gotErr := decide(v.input)
			if (gotErr == nil) != (wantErr == nil) || gotErr == nil && !reflect.DeepEqual(got, want) {
				t.Fatalf("bundle %d sees %s:\nwith its view %+v, %v\nwith everything %+v, %v\n%v\n%s", i, v, got, gotErr, want, wantErr, doc, g.modules)
			}
			if wantErr == nil && (want.Allow || want.Reasons[0].Rule != RuleNoRuleAllowed) {
				answers++
			}
		}
	}
	if ran < n/2 || narrow < n/2 || answers < 3*n {
		t.Errorf("%d of %d bundles ran, %d with a narrow view, %d answers: the test tries too little", ran, n, narrow, answers)
	}
}
