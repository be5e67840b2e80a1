package policy

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// selection is a part of a document: the members that are named, each with its
// own selection. Nil is everything, and an empty selection nothing.
type selection map[string]selection

// with adds what path leads to, and all below it.
func (s selection) with(path []string) selection {
	if s == nil || len(path) == 0 {
		return nil
	}
	old, ok := s[path[0]]
	if !ok {
		old = selection{}
	}
	s[path[0]] = old.with(path[1:])
	return s
}

// member is the selection within a member of the document, if it is selected.
func (s selection) member(name string) (selection, bool) {
	if s == nil {
		return nil, true
	}
	m, ok := s[name]
	return m, ok
}

// paths are "a.b.c" for what is selected, sorted; of everything, ".".
func (s selection) paths() []string {
	if s == nil {
		return []string{"."}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if s[name] == nil {
			out = append(out, name)
			continue
		}
		for _, p := range s[name].paths() {
			out = append(out, name+"."+p)
		}
	}
	return out
}

// view is what a policy can see: a decision is a function of that, of the
// bundle and of the reference values.
type view struct {
	input selection
	// clock: it matters what the time is. Where it does not, a policy asks of
	// input.time at most whether reference sets are within their validity, and any
	// time since that last changed is as good as now.
	clock bool
}

const (
	referencePackage = libPackage + ".reference"
	timeMember       = "time"
)

var (
	inputVar = ast.InputRootDocument.Value.(ast.Var)

	// validityRules of the library compare input.time with a reference set that
	// they are given. Rules that call them with sets of data.reference are all in
	// the library: TestValidityRules.
	validityRules = []string{"now", "begun", "ended", "usable", "usable_rank"}
)

// viewOf finds out what the rules of a policy, and all rules that these can
// come to, name of the input. It may find too much and never too little: what is
// named by a variable counts as all that the variable can stand for.
func viewOf(c *ast.Compiler, pkg ast.Ref) view {
	r := viewer{compiler: c, seen: map[*ast.Rule]bool{}, view: view{input: selection{}}}
	for _, answer := range []string{"allow", "deny", "obligations"} {
		for _, rule := range r.rules(pkg.Append(ast.StringTerm(answer))) {
			r.rule(rule)
		}
	}
	return r.view
}

type viewer struct {
	compiler *ast.Compiler
	seen     map[*ast.Rule]bool
	view     view
}

func (r *viewer) rule(rule *ast.Rule) {
	if rule == nil || r.seen[rule] {
		return
	}
	r.seen[rule] = true
	in, before := rule.Module.Package.Path.String(), r.view.clock
	r.terms(rule.Head)
	r.terms(rule.Body)
	if in == referencePackage && rule.Head.Name == "now" { // := time.parse_rfc3339_ns(input.time)
		r.view.clock = before
	}
	ast.WalkWiths(rule, func(w *ast.With) bool {
		// Replaced data or functions: reference sets may come from anywhere.
		if ref, ok := w.Target.Value.(ast.Ref); !ok || !ref[0].Equal(ast.InputRootDocument) {
			r.everything()
		}
		return false
	})
	r.rule(rule.Else)
	for d := range r.dependencies(rule) {
		if in != referencePackage && d.Module.Package.Path.String() == referencePackage && slices.Contains(validityRules, string(d.Head.Name)) {
			r.view.clock = true // of a set that the policy made itself, or for itself
		}
		r.rule(d)
	}
}

// dependencies are all rules that a rule can come to. OPA's graph alone leaves
// some out: a variable that is unified with 1.0 counts as that there, and a rule
// for 1 as another one, though the two are equal when it comes to it. So the
// references are looked up as well as they stand, with variables for anything.
func (r *viewer) dependencies(rule *ast.Rule) map[*ast.Rule]bool {
	out := map[*ast.Rule]bool{}
	for dep := range r.compiler.Graph.Dependencies(rule) {
		if d, ok := dep.(*ast.Rule); ok {
			out[d] = true
		}
	}
	ast.WalkRefs(rule, func(ref ast.Ref) bool {
		for _, d := range r.rules(ref) {
			out[d] = true
		}
		return false
	})
	return out
}

func (r *viewer) rules(ref ast.Ref) []*ast.Rule {
	return r.compiler.GetRulesDynamicWithOpts(ref, ast.RulesOptions{IncludeHiddenModules: true})
}

func (r *viewer) everything() { r.view = view{input: nil, clock: true} }

// terms looks at every reference and variable in x, a node of Rego's syntax.
func (r *viewer) terms(x any) {
	ast.NewGenericVisitor(func(x any) bool {
		switch v := x.(type) {
		case *ast.Head:
			for _, e := range v.Reference { // the visitor leaves these out
				r.terms(e)
			}
		case ast.Var:
			if v.Equal(inputVar) {
				r.everything()
			}
		case ast.Ref:
			r.ref(v)
			for _, e := range v[1:] {
				r.terms(e)
			}
			return true
		}
		return false
	}).Walk(x)
}

func (r *viewer) ref(ref ast.Ref) {
	if !ref[0].Equal(ast.InputRootDocument) {
		if _, ok := ref[0].Value.(ast.Var); !ok {
			r.terms(ref[0]) // a call or a collection whose member is asked for
		}
		return
	}
	var path []string
	for _, e := range ref[1:] {
		name, ok := e.Value.(ast.String)
		if !ok {
			break
		}
		path = append(path, string(name))
	}
	if len(path) > 0 && path[0] == timeMember {
		r.view.clock = true
	}
	if len(path) == 0 {
		r.everything()
	}
	r.view.input = r.view.input.with(path)
}

// String lists what is seen of the input, for people.
func (v view) String() string { return strings.Join(v.input.paths(), " ") }

// Reading says what a policy reads.
type Reading struct {
	Policy string `json:"policy"` // "disks"
	// Input are paths below input, sorted, each with all that is below it. "." is all
	// of the input, which a policy reads that names a part of it by a variable.
	Input []string `json:"input"`
	// Clock: the decision depends on the time, and not only by the validity of reference sets.
	Clock bool `json:"clock"`
	// Remembered: a decision is given again, without asking the policy, to all
	// requests that are alike in Input.
	Remembered bool `json:"remembered"`
}

// Reads finds out what the policies in a folder, a bundle or .rego files read.
func Reads(paths []string) ([]Reading, error) {
	caps := capabilities()
	lib, err := loadLib(caps)
	if err != nil {
		return nil, err
	}
	src, err := loadSources(paths, caps, Limits{})
	if err != nil {
		return nil, err
	}
	c, err := compileSources(src, lib, caps, nil, time.Time{})
	if err != nil {
		return nil, err
	}
	out := make([]Reading, 0, len(c.names))
	for _, name := range c.names {
		v := c.views[name]
		out = append(out, Reading{Policy: name, Input: v.input.paths(), Clock: v.clock, Remembered: !v.clock})
	}
	return out, nil
}
