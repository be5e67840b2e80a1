package policy

import (
	"maps"
	"slices"
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

var inputVar = ast.InputRootDocument.Value.(ast.Var)

// readsOf finds out what the rules of a policy, and all rules that these can
// come to, name of the input. It may find too much and never too little: what is
// named by a variable counts as all that the variable can stand for.
func readsOf(rules *ruleIndex, pkg ast.Ref) selection {
	r := finder{rules: rules, seen: map[*ast.Rule]bool{}, input: selection{}}
	asked := []ast.Ref{floorDenials}
	for _, answer := range answers {
		asked = append(asked, pkg.Append(ast.StringTerm(answer)))
	}
	for _, ref := range asked {
		for _, rule := range rules.of(ref) {
			r.rule(rule)
		}
	}
	return r.input
}

// ruleIndex finds all rules that a reference can come to: those of its package and
// name, whatever is below. OPA's graph of dependencies, and its lookup of rules,
// go further and leave out m[1] where m[1.0] or a variable of that value is
// meant, and rules beside the one asked for whose errors count; evaluation does not.
type ruleIndex struct {
	compiler *ast.Compiler
	names    []rulesOfName
	found    map[string][]*ast.Rule // by the constant part of a reference
}

// rulesOfName are the rules of one name: data, the package's path, and the name.
type rulesOfName struct {
	path  ast.Ref
	rules []*ast.Rule
}

func newRuleIndex(c *ast.Compiler) *ruleIndex {
	x := &ruleIndex{compiler: c, found: map[string][]*ast.Rule{}}
	at := map[string]int{}
	for _, m := range c.Modules {
		for _, rule := range m.Rules {
			path := rule.Ref()[:len(m.Package.Path)+1]
			i, ok := at[path.String()]
			if !ok {
				i = len(x.names)
				at[path.String()] = i
				x.names = append(x.names, rulesOfName{path: path})
			}
			x.names[i].rules = append(x.names[i].rules, rule)
		}
	}
	return x
}

func (x *ruleIndex) of(ref ast.Ref) []*ast.Rule {
	if !ref[0].Equal(ast.DefaultRootDocument) {
		return nil
	}
	prefix := ref.StringPrefix()
	key := prefix.String()
	out, ok := x.found[key]
	if !ok {
		for _, n := range x.names {
			if l := min(len(prefix), len(n.path)); prefix[:l].Equal(n.path[:l]) {
				out = append(out, n.rules...)
			}
		}
		x.found[key] = out
	}
	return out
}

type finder struct {
	rules *ruleIndex
	seen  map[*ast.Rule]bool
	input selection
}

func (r *finder) rule(rule *ast.Rule) {
	if rule == nil || r.seen[rule] {
		return
	}
	r.seen[rule] = true
	reached := r.terms(rule.Head)
	reached = append(reached, r.terms(rule.Body)...)
	ast.WalkWiths(rule, func(w *ast.With) bool {
		if ref, ok := w.Target.Value.(ast.Ref); !ok || !ref[0].Equal(ast.InputRootDocument) { // replaced data or functions
			r.input = nil
		}
		return false
	})
	for dep := range r.rules.compiler.Graph.Dependencies(rule) { // OPA's own opinion, which is not enough: see ruleIndex
		if d, ok := dep.(*ast.Rule); ok {
			reached = append(reached, d)
		}
	}
	for _, d := range reached {
		r.rule(d)
	}
	r.rule(rule.Else)
}

// terms looks at every reference and variable in x, a node of Rego's syntax. It
// returns the rules that the references can come to.
func (r *finder) terms(x any) (reached []*ast.Rule) {
	ast.NewGenericVisitor(func(x any) bool {
		switch v := x.(type) {
		case *ast.Head:
			for _, e := range v.Reference { // the visitor leaves these out
				reached = append(reached, r.terms(e)...)
			}
		case ast.Var:
			if v.Equal(inputVar) {
				r.input = nil
			}
		case ast.Ref:
			r.ref(v)
			reached = append(reached, r.rules.of(v)...)
			if _, ok := v[0].Value.(ast.Var); !ok { // a call or a collection whose member is asked for
				reached = append(reached, r.terms(v[0])...)
			}
			for _, e := range v[1:] {
				reached = append(reached, r.terms(e)...)
			}
			return true
		}
		return false
	}).Walk(x)
	return reached
}

// ref selects what a reference names of the input.
func (r *finder) ref(ref ast.Ref) {
	if !ref[0].Equal(ast.InputRootDocument) {
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
	r.input = r.input.with(path)
}

// Reading says what a policy reads.
type Reading struct {
	Policy string `json:"policy"` // "disks"
	// Input are paths below input, sorted, each with all that is below it. "." is all
	// of the input, which a policy reads that names a part of it by a variable.
	Input []string `json:"input"`
}

// Reads finds out what the policies in a folder, a bundle or .rego files read.
func Reads(paths []string) ([]Reading, error) {
	c, err := compilePaths(paths, nil, time.Time{})
	if err != nil {
		return nil, err
	}
	out := make([]Reading, 0, len(c.names))
	for _, name := range c.names {
		out = append(out, Reading{Policy: name, Input: c.reads[name].paths()})
	}
	return out, nil
}
