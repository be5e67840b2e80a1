package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/claviger/claviger/broker"
)

// TestViews: what a policy is found to see. The clock counts unless it is asked
// for the validity of the broker's own reference sets only.
func TestViews(t *testing.T) {
	const imports = "import data.claviger.lib.common\nimport data.claviger.lib.reference\nimport data.claviger.lib.tdx\n"
	for _, tc := range []struct {
		name, module, want string
		clock              bool
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
		{name: "whole", module: `allow if object.get(input, ["chip", "a"], 1) == 1`, want: ".", clock: true},
		{name: "whole in a collection", module: `allow if [input][0].chip.a`, want: ".", clock: true},
		{name: "whole by a variable", module: `allow if { some k; input[k].a }`, want: ".", clock: true},
		{name: "whole walked", module: `allow if { walk(input, [p, 1]); count(p) == 2 }`, want: ".", clock: true},
		{name: "whole by the library", module: `deny contains common.got("x") if true`, want: ".", clock: true},
		{name: "all rules", module: `allow if { some n; data.claviger.lib[n] }`, want: ".", clock: true},
		{name: "with data", module: `allow if reference.match("tdx", ["mrtd"]) with data.reference as data.mine`, want: ".", clock: true},
		{name: "mocked", module: `allow if count([1]) == input.chip.a with count as 3`, want: ".", clock: true},
		{name: "clock", module: `allow if time.parse_rfc3339_ns(input.time) > 7`, want: "time", clock: true},
		{name: "clock by the library", module: `allow if reference.now > 7`, want: "time", clock: true},
		{name: "validity of its own set", module: `allow if reference.usable({"state": "active", "not_before": "2026-01-01T00:00:00Z"})`, want: "time", clock: true},
		{name: "references", module: `allow if reference.match("tdx", ["mrtd"])`, want: "attestation.host_data attestation.measurements attestation.type time"},
		{name: "enrolment", module: `deny contains r if some r in reference.chip_denials("tdx")`, want: "attestation.chip_id time"},
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
			want := view{input: viewOf(newRuleIndex(s.compiler), ast.MustParseRef("data.claviger.release.silent")).input} // what every policy reads
			for _, path := range strings.Fields(tc.want) {
				want.input = want.input.with(strings.FieldsFunc(path, func(c rune) bool { return c == '.' }))
			}
			if v := s.views["p"]; v.String() != want.String() || v.clock != tc.clock {
				t.Errorf("sees %q, clock %t; want %q, clock %t", v, v.clock, want, tc.clock)
			}
		})
	}
}

// TestExamplesSee: no example needs the clock, nor anything that is new in every
// request, so that guests with the same claims have one decision.
func TestExamplesSee(t *testing.T) {
	s := newEngine(t, Config{Dir: "../examples/policies"}).inForce.Load()
	for _, name := range s.names {
		if v := s.views[name]; v.clock || v.input == nil || v.input["attestation"] == nil && name != "gpu_guest" {
			t.Errorf("%s: clock %t, sees %s", name, v.clock, v)
		}
	}
	want := "attestation.bound attestation.bound_to_cpu_tee attestation.collateral.state attestation.debuggable attestation.devices " +
		"attestation.host_data attestation.measurements attestation.simulated attestation.tcb.advisories attestation.tcb.date attestation.tcb.status " +
		"attestation.tdx.platform_tcb attestation.tdx.qe_tcb attestation.tdx.tdattributes attestation.tdx.tdx_module_tcb attestation.type time"
	if got := s.views["tdx_strict"].String(); got != want {
		t.Errorf("tdx_strict sees\n%s\nwant\n%s", got, want)
	}
}

// TestValidityRules: the rules of the library that compare a reference set that
// they are given with the time are those that viewOf knows.
func TestValidityRules(t *testing.T) {
	lib, err := loadLib(capabilities())
	if err != nil {
		t.Fatal(err)
	}
	m := lib["claviger/lib/reference.rego"]
	timely := map[string]bool{"now": true}
	mentions := func(r *ast.Rule) (found bool) {
		ast.WalkVars(r, func(v ast.Var) bool {
			found = found || timely[string(v)]
			return false
		})
		return found
	}
	for range m.Rules { // until nothing is added
		for _, r := range m.Rules {
			for _, arg := range r.Head.Args {
				if arg.Value.Compare(ast.Var("set")) == 0 && mentions(r) {
					timely[string(r.Head.Name)] = true
				}
			}
		}
	}
	if got := slices.Sorted(maps.Keys(timely)); !slices.Equal(got, slices.Sorted(slices.Values(validityRules))) {
		t.Errorf("the library's rules are %v, viewOf knows %v", got, validityRules)
	}
	// All others have their sets from data.reference.
	for _, r := range m.Rules {
		if len(r.Head.Args) > 0 && !slices.Contains([]string{"set", "type", "claim", "claims"}, r.Head.Args[0].String()) && mentions(r) {
			t.Errorf("%s: what does its first argument stand for?", r.Head)
		}
	}
}

// TestViewIsEnough changes claims at random: a policy that is shown only what
// it was found to see, and whose decisions are remembered, answers as one that
// is shown everything each time.
func TestViewIsEnough(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	e := newEngine(t, Config{Dir: "../examples/policies"})
	fixtures, err := filepath.Glob("../examples/policies/*/fixtures/*.json")
	if err != nil || len(fixtures) < 10 {
		t.Fatal(fixtures, err)
	}
	var docs []map[string]any
	var sets []broker.ReferenceSet
	for i, f := range fixtures {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		var in broker.PolicyInput
		if json.Unmarshal(b, &doc) != nil || json.Unmarshal(b, &in) != nil {
			t.Fatal(f)
		}
		doc["resource"] = map[string]any{"params": map[string]any{"vm": in.Attestation.ChipID, "device": in.Attestation.ChipID, "workload": "payments"}}
		docs = append(docs, doc)
		s := broker.ReferenceSet{Name: fmt.Sprintf("s%d", i), Type: in.Attestation.Type, State: broker.ReferenceActive, Values: map[string][]string{
			"host_data": {in.Attestation.HostData}, "chip_id": {in.Attestation.ChipID}, "workload": {"payments"},
		}}
		for name, v := range in.Attestation.Measurements {
			s.Values[name] = []string{v}
		}
		if i%2 == 0 {
			s.NotBefore, s.NotAfter = testTime.Add(-time.Hour), testTime.Add(time.Hour)
		}
		sets = append(sets, s)
	}
	if err := e.SetReferences(sets, nil); err != nil {
		t.Fatal(err)
	}
	s := e.inForce.Load()
	n := 4000
	if testing.Short() {
		n = 1000
	}
	allowed, recalled := map[string]int{}, 0
	for range n {
		name := s.names[rng.IntN(len(s.names))]
		own := filepath.Join("policies", name, "fixtures")
		i := rng.IntN(len(docs))
		for !strings.Contains(fixtures[i], own) && rng.IntN(20) > 0 {
			i = rng.IntN(len(docs))
		}
		doc := clone(docs[i]).(map[string]any)
		now := testTime.Add(time.Duration(rng.IntN(7)-3) * time.Hour / 2).Add(time.Duration(rng.IntN(3) - 1))
		doc["time"] = now.UTC().Format(time.RFC3339Nano)
		if rng.IntN(3) > 0 {
			change(rng, doc["attestation"])
		}
		whole, err := e.conv.convert(doc, nil, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := s.decide(t.Context(), name, whole, now, nil)

		v := s.views[name]
		doc["time"] = since(s.changes, now).UTC().Format(time.RFC3339Nano)
		shown, err := e.conv.convert(doc, v.input, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := s.memory.recall(name, shown)
		var gotErr error
		if ok {
			recalled++
		} else if got, gotErr = s.decide(t.Context(), name, shown, since(s.changes, now), nil); gotErr == nil {
			s.memory.keep(name, shown, got)
		}
		if !reflect.DeepEqual(got, want) || (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("%s at %s, recalled %t:\nwith its view %+v, %v\nwith everything %+v, %v\n%s", name, now, ok, got, gotErr, want, wantErr, whole)
		}
		if got.Allow {
			allowed[name]++
		}
	}
	if recalled < n/20 || len(allowed) < 8 {
		t.Errorf("%d of %d recalled, allowed %v: the test tries too little", recalled, n, allowed)
	}
}

func clone(v any) any {
	switch x := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, v := range x {
			out[k] = clone(v)
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i, v := range x {
			out[i] = clone(v)
		}
		return out
	default:
		return v
	}
}

// change replaces or removes one value, somewhere in v.
func change(rng *rand.Rand, v any) {
	o, ok := v.(map[string]any)
	if !ok || len(o) == 0 {
		return
	}
	name := slices.Sorted(maps.Keys(o))[rng.IntN(len(o))]
	if m, ok := o[name].(map[string]any); ok && len(m) > 0 && rng.IntN(4) > 0 {
		change(rng, m)
		return
	}
	switch rng.IntN(4) {
	case 0:
		delete(o, name)
	case 1:
		o[name] = []any{nil, true, false, "", "00", json.Number("7"), []any{}, map[string]any{}}[rng.IntN(8)]
	default:
		switch x := o[name].(type) {
		case bool:
			o[name] = !x
		case string:
			o[name] = []string{"", "stale", "OutOfDate", x + "0"}[rng.IntN(4)]
		case float64:
			o[name] = x + float64(rng.IntN(3)-1)
		default:
			o[name] = []any{map[string]any{"type": "nvidia-gpu", "bound": true}}
		}
	}
}

// TestRemembered: one decision for all that look alike to the policy, and
// another one as soon as bundle, reference values, validity or claims differ.
func TestRemembered(t *testing.T) {
	e := newEngine(t, Config{Dir: "../examples/policies/disks"})
	in := snpInput(t)
	set := snpSet("fleet", in)
	set.NotBefore, set.NotAfter = in.Time, in.Time.Add(time.Hour)
	if err := e.SetReferences([]broker.ReferenceSet{set}, nil); err != nil {
		t.Fatal(err)
	}
	ask := func(allow bool, entries int, change func(*broker.PolicyInput)) {
		t.Helper()
		in := in
		in.Attestation.Measurements = maps.Clone(in.Attestation.Measurements)
		change(&in)
		for range 2 {
			d, err := e.Decide(t.Context(), in)
			if err != nil || d.Allow != allow {
				t.Errorf("allow %t, reasons %+v, error %v", d.Allow, d.Reasons, err)
			}
			for i := range d.Reasons {
				d.Reasons[i] = broker.DecisionReason{} // the caller's own
			}
			if got := len(e.inForce.Load().memory.m); got != entries {
				t.Errorf("%d decisions are remembered, want %d", got, entries)
			}
		}
	}
	ask(true, 1, func(*broker.PolicyInput) {})
	ask(true, 1, func(in *broker.PolicyInput) { in.Attestation.ChipID, in.Resource.Path = "00", "disks/other" })
	ask(true, 1, func(in *broker.PolicyInput) { in.Time = set.NotAfter })
	ask(false, 2, func(in *broker.PolicyInput) { in.Time = set.NotAfter.Add(1) })
	ask(false, 3, func(in *broker.PolicyInput) { in.Time = set.NotBefore.Add(-1) })
	ask(false, 4, func(in *broker.PolicyInput) { in.Attestation.Debuggable = true })
	ask(false, 5, func(in *broker.PolicyInput) { in.Attestation.Measurements["measurement"] = "00" })
	ask(true, 5, func(in *broker.PolicyInput) { in.Time = set.NotAfter.Add(-1) })
	in2 := in
	in2.Resource.Policy = "none"
	if d, err := e.Decide(t.Context(), in2); !errors.Is(err, ErrUnknownPolicy) || d.Allow || len(e.inForce.Load().memory.m) != 5 {
		t.Errorf("allow %t, error %v, %d remembered", d.Allow, err, len(e.inForce.Load().memory.m))
	}

	if anew, remembered := e.Decisions(); anew != 6 || remembered != 11 {
		t.Errorf("%d decisions anew, %d remembered", anew, remembered)
	}

	if err := e.SetReferences(nil, nil); err != nil {
		t.Fatal(err)
	}
	ask(false, 1, func(*broker.PolicyInput) {})
	if err := e.SetReferences([]broker.ReferenceSet{set}, nil); err != nil {
		t.Fatal(err)
	}
	ask(true, 1, func(*broker.PolicyInput) {})

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in.Resource.Path = "disks/unheard-of"
	in.Attestation.Simulated = true
	if _, err := e.Decide(ctx, in); err == nil || len(e.inForce.Load().memory.m) != 1 {
		t.Errorf("error %v, %d remembered", err, len(e.inForce.Load().memory.m))
	}
}

func TestAskAlways(t *testing.T) {
	e := newEngine(t, Config{Dir: "../examples/policies/disks", AskAlways: true})
	in := snpInput(t)
	if err := e.SetReferences([]broker.ReferenceSet{snpSet("fleet", in)}, nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if d, err := e.Decide(t.Context(), in); err != nil || !d.Allow {
			t.Fatal(d, err)
		}
	}
	if anew, remembered := e.Decisions(); anew != 3 || remembered != 0 {
		t.Errorf("%d decisions anew, %d remembered", anew, remembered)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var m memory
	keep := func(input *ast.Term, d broker.Decision) {
		m.keep("p", input, d)
		sum := 0
		for _, r := range m.m {
			sum += r.weight
		}
		if sum != m.sum || sum > maxRememberedWeight || len(m.m) > maxRemembered {
			t.Fatalf("%d decisions are remembered, of %d bytes, counted as %d", len(m.m), sum, m.sum)
		}
	}
	for i := range 2 * maxRemembered {
		keep(ast.IntNumberTerm(i/2), broker.Decision{}) // each twice
	}
	long := strings.Repeat("x", maxRememberedWeight/16)
	many := make([]*ast.Term, maxRememberedWeight/16/50)
	for i := range many {
		many[i] = ast.ArrayTerm()
	}
	for _, large := range []*ast.Term{ast.StringTerm(long), ast.NewTerm(ast.Number(long)), ast.ArrayTerm(many...), ast.ObjectTerm([2]*ast.Term{ast.StringTerm(long), ast.NullTerm()})} {
		keep(large, broker.Decision{})
		if _, ok := m.recall("p", large); ok {
			t.Error("something too large is remembered")
		}
	}
	keep(ast.IntNumberTerm(0), broker.Decision{Reasons: []broker.DecisionReason{{Got: long}}})
	if len(m.m) != maxRemembered {
		t.Errorf("%d decisions are remembered, want %d", len(m.m), maxRemembered)
	}
	for i := range 1000 {
		in := ast.ArrayTerm(ast.IntNumberTerm(i), ast.StringTerm(long[:len(long)/2]))
		keep(in, broker.Decision{})
		if _, ok := m.recall("p", in); !ok {
			t.Fatal("the last decision is forgotten")
		}
	}
}

// TestSame: to the letter, where Rego sees no difference.
func TestSame(t *testing.T) {
	values := []string{`1`, `1.0`, `1e0`, `0`, `-0`, `"1"`, `true`, `null`, `[]`, `[1]`, `[1.0]`, `[1, 2]`, `{}`, `{"a": 1}`, `{"a": 1.0}`, `{"b": 1}`, `{"a": 1, "b": 2}`, `{"a": [{"b": 1}]}`, `{"a": [{"b": 1.0}]}`}
	for i, a := range values {
		for j, b := range values {
			x, err := ast.ValueFromReader(strings.NewReader(a))
			if err != nil {
				t.Fatal(err)
			}
			y, err := ast.ValueFromReader(strings.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if same(x, y) != (i == j) {
				t.Errorf("same(%s, %s) is %t", a, b, same(x, y))
			}
		}
	}
	if same(ast.NewSet(), ast.NewSet()) {
		t.Error("sets are not of JSON")
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

// TestSince: to the nanosecond, and never later than now.
func TestSince(t *testing.T) {
	at := testTime
	sets := []broker.ReferenceSet{{NotBefore: at, NotAfter: at.Add(time.Hour)}, {NotAfter: at.Add(-time.Hour)}, {}}
	c := changes(sets)
	epoch := time.Unix(0, 0)
	for now, want := range map[time.Time]time.Time{
		epoch.Add(-1):            epoch.Add(-1),
		epoch:                    epoch,
		at.Add(-time.Hour):       epoch,
		at.Add(-time.Hour + 1):   at.Add(-time.Hour + 1),
		at.Add(-1):               at.Add(-time.Hour + 1),
		at:                       at,
		at.Add(time.Hour):        at,
		at.Add(time.Hour + 1):    at.Add(time.Hour + 1),
		at.Add(1000 * time.Hour): at.Add(time.Hour + 1),
	} {
		if got := since(c, now); !got.Equal(want) {
			t.Errorf("since %s: %s, want %s", now, got, want)
		}
	}
}

// TestOneHash: inputs with the same hash are told apart.
func TestOneHash(t *testing.T) {
	var m memory
	a, b := ast.MustParseTerm(`{"a": 1}`), ast.MustParseTerm(`{"a": 2}`)
	m.keep("p", a, broker.Decision{Allow: true})
	m.m[question{"p", b.Value.Hash()}] = m.m[question{"p", a.Value.Hash()}]
	if _, ok := m.recall("p", b); ok {
		t.Error("another input's decision was recalled")
	}
	if _, ok := m.recall("q", a); ok {
		t.Error("another policy's decision was recalled")
	}
	if d, ok := m.recall("p", ast.MustParseTerm(`{"a": 1}`)); !ok || !d.Allow {
		t.Error("forgotten")
	}
}

// TestConcurrentRecall is for the race detector: OPA sorts an object's keys when it first compares it.
func TestConcurrentRecall(t *testing.T) {
	e := newEngine(t, Config{Dir: "../examples/policies/disks"})
	in := snpInput(t)
	if err := e.SetReferences([]broker.ReferenceSet{snpSet("fleet", in)}, nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				in := in
				in.Attestation.TCB.Status = []string{"UpToDate", "Revoked"}[i%2]
				if d, err := e.Decide(t.Context(), in); err != nil || d.Allow == (i%2 == 1) {
					t.Errorf("allow %t, error %v", d.Allow, err)
				}
			}
		})
	}
	wg.Wait()
}
