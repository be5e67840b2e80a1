package policy

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/broker/tee"
)

// Problems are mistakes in policies, as `policy check` prints them.
type Problems []Problem

// Error is the first ones, a line each.
func (p Problems) Error() string {
	const most = 10
	var lines []string
	for _, x := range p[:min(len(p), most)] {
		lines = append(lines, x.String())
	}
	if len(p) > most {
		lines = append(lines, fmt.Sprintf("and %d more", len(p)-most))
	}
	return strings.Join(lines, "\n")
}

// vet finds mistakes that compile, and with which a policy would release more
// than its author meant, or nothing at all. `policy check` lists them, and the
// engine puts no bundle in force that has one. c is what the modules are asked by.
func vet(s *sources, c *compiled, rules *ruleIndex, config map[string]any) Problems {
	v := vetter{src: s, rules: rules, asked: c, compiler: c.compiler, vendor: vendorClaims()}
	v.names()
	for _, key := range sortedKeys(s.modules) {
		m := c.compiler.Modules[key]
		_, release := policyName(m.Package.Path)
		for _, r := range m.Rules {
			v.rule(r, release)
		}
		v.references(m, s.loose[key])
		v.inputs(m)
		if release {
			v.signedBlock(m)
		}
		v.comparisons(s.modules[key])
		v.conditions(s.modules[key])
	}
	v.defaults()
	v.owners()
	v.testFiles()
	if len(v.found) == 0 {
		if err := v.probes(config); err != nil {
			v.found = append(v.found, Problem{Message: err.Error()})
		}
	}
	slices.SortFunc(v.found, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Row-b.Row, strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(v.found)
}

// probes makes the data that policies are probed with: without reference sets, and with sets of others.
func (v *vetter) probes(config map[string]any) error {
	none, err := newStore(v.src.data, seen{}, config)
	if err != nil {
		return err
	}
	refs, err := newReferences(ofOthers(), nil)
	if err != nil {
		return err
	}
	others, err := newStore(v.src.data, refs.of(func(broker.ReferenceSet) bool { return true }), config)
	if err != nil {
		return err
	}
	v.probe(none, others)
	return nil
}

type vetter struct {
	src      *sources
	rules    *ruleIndex
	asked    *compiled
	compiler *ast.Compiler
	vendor   map[string]reflect.Type // what stands under a member of the claims, in the vendor's words
	found    Problems
}

func (v *vetter) say(at *ast.Location, format string, args ...any) {
	v.found = append(v.found, Problem{at.File, at.Row, fmt.Sprintf(format, args...)})
}

// names refuses a bundle without policies, and a package in several files of an unpacked folder: if one of
// them is lost or not there yet, what is left must not be a laxer policy. (A bundle arrives whole.)
func (v *vetter) names() {
	releases := 0
	first := map[string]string{}
	for _, key := range sortedKeys(v.src.modules) {
		m := v.src.modules[key]
		if _, ok := policyName(m.Package.Path); ok {
			releases++
		}
		name := m.Package.Path.String()
		if other, ok := first[name]; ok && v.src.loose[key] {
			v.say(m.Package.Location, "package %s is also in %s: in a folder a package is one file, so that none of its rules can be lost (a bundle, from `claviger policy build`, may have several)",
				strings.TrimPrefix(name, "data."), other)
		} else if !ok {
			first[name] = key
		}
	}
	if releases == 0 {
		v.found = append(v.found, Problem{Message: "no package under claviger.release: nothing to release by"})
	}
}

func (v *vetter) rule(r *ast.Rule, release bool) {
	for x := r; x != nil; x = x.Else {
		if hollow(x.Body) {
			v.say(x.Location, "the body of %s is empty: it is always true", x.Head.Ref())
		}
	}
	if !release {
		return
	}
	switch ref := r.Head.Ref().GroundPrefix().String(); {
	case meant(ref) != "" && !v.used(r):
		v.say(r.Location, "nobody asks for %s: do you mean %s?", ref, meant(ref))
	case r.Head.RuleKind() == ast.MultiValue && !slices.Contains(answers, ref) && ref != referencesRule && !v.used(r):
		v.say(r.Location, "nobody asks for %s, so that what it says denies nothing: the engine asks for %s", ref, strings.Join(answers, ", "))
	case ref == "allow" && r.Default:
		if !isBool(r.Head.Value, false) {
			v.say(r.Location, "the default of allow must be false")
		}
	case ref == "allow":
		if !v.readsEvidence(r) {
			v.say(r.Location, "allow is true without a condition on input.attestation")
		}
		for x := r; x != nil; x = x.Else {
			if !isBool(x.Head.Value, true) && !isBool(x.Head.Value, false) {
				v.say(x.Location, "allow is neither true nor false: write the condition after if")
			}
		}
	case ref == "obligations":
		for x := r; x != nil; x = x.Else {
			if x.Head.Value == nil || !isConstant(x.Head.Value) {
				continue
			}
			if _, err := obligations(x.Head.Value.Value); err != nil {
				v.say(x.Location, "%v", err)
			}
		}
	case (ref == "deny" || ref == "waived") && r.Head.RuleKind() != ast.MultiValue:
		v.say(r.Location, "%[1]s must be a set: write %[1]s contains … if", ref)
	case ref == "waived":
		for x := r; x != nil; x = x.Else {
			if x.Head.Key == nil || !isConstant(x.Head.Key) { // or the guest might choose it, by the path that it asks for
				v.say(x.Location, "waived: write the name of the rule, so that a review of the policy shows what it releases in spite of")
				continue
			}
			if _, err := waivers(ast.NewSet(x.Head.Key)); err != nil {
				v.say(x.Location, "%v", err)
			}
		}
	}
}

// readsEvidence says whether each branch of a rule that can make it true depends on the claims.
func (v *vetter) readsEvidence(rule *ast.Rule) bool {
	for x := rule; x != nil; x = x.Else {
		if isBool(x.Head.Value, false) {
			continue
		}
		w := finder{rules: v.rules, seen: map[*ast.Rule]bool{}, input: selection{}}
		branch := *x
		branch.Else = nil
		w.rule(&branch)
		if _, ok := w.input.member("attestation"); !ok {
			return false
		}
	}
	return true
}

// hollow: nothing stands between the braces. Rego takes {} for an empty object, which is true.
func hollow(b ast.Body) bool {
	if len(b) != 1 || b[0].Negated || len(b[0].With) > 0 {
		return false
	}
	t, ok := b[0].Terms.(*ast.Term)
	if !ok {
		return false
	}
	o, ok := t.Value.(ast.Object)
	return ok && o.Len() == 0
}

// references refuses names of data that nothing defines. They are undefined for ever, and a deny
// rule that asks for them never denies: a file that was lost, or a misspelt name.
// In a folder, neither may a name be left open where packages are: one whose file was lost would not be missed.
func (v *vetter) references(m *ast.Module, loose bool) {
	seen := map[string]bool{}
	ast.WalkRefs(m, func(ref ast.Ref) bool {
		if !ref.HasPrefix(ast.DefaultRootRef) || len(ref) == 1 {
			return false
		}
		at := ref[0].Location
		if at == nil {
			at = m.Package.Location
		}
		if n := v.open(ref); loose && n > 0 && !seen[ref[:n].String()] {
			seen[ref[:n].String()] = true
			v.say(at, "%s[…] is whatever packages there are, so that one whose file is lost is not missed: name each (or deploy a bundle, from `claviger policy build`)", ref[:n])
		}
		missing, ok := v.missing(ref)
		if ok || seen[missing] {
			return false
		}
		seen[missing] = true
		v.say(at, "%s is not defined anywhere in the bundle, so what asks for it is never true", missing)
		return false
	})
}

// vendorClaims are the types of the claims in vendors' words, by their member of attest.Claims.
func vendorClaims() map[string]reflect.Type {
	out := map[string]reflect.Type{}
	v := reflect.ValueOf(tee.Claims())
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Interface && !f.IsNil() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			out[name] = f.Elem().Type()
		}
	}
	return out
}

// inputs refuses names that no input has: what asks for one is never true, and a deny rule
// that does never denies.
func (v *vetter) inputs(m *ast.Module) {
	seen := map[string]bool{}
	ast.WalkRefs(m, func(ref ast.Ref) bool {
		if !ref.HasPrefix(ast.InputRootRef) {
			return false
		}
		n := v.unknownInput(ref)
		if n == 0 || seen[ref[:n].String()] {
			return false
		}
		seen[ref[:n].String()] = true
		at := ref[0].Location
		if at == nil {
			at = m.Package.Location
		}
		v.say(at, "%s is in no input, so what asks for it is never true", ref[:n])
		return false
	})
}

// signedBlock refuses a policy that asks for a GUEST_SVN and not for who signed it: the number
// stands in the ID block, and firmware takes one that anybody signed (SEV-SNP ABI, SNP_LAUNCH_FINISH).
func (v *vetter) signedBlock(m *ast.Module) {
	var at *ast.Location
	signer := false
	ast.WalkRefs(m, func(ref ast.Ref) bool {
		switch name, _ := ref[len(ref)-1].Value.(ast.String); name {
		case "guest_svn_denials", "guest_svn":
			if ref[0].Location != nil && at == nil {
				at = ref[0].Location
			}
		case "id_key_denials", "author_key_denials", "id_key_digest", "author_key_digest":
			signer = true
		}
		return false
	})
	if at != nil && !signer {
		v.say(at, "GUEST_SVN is the word of whoever signed the ID block, and anybody can sign one: say who, with snp.id_key_denials or snp.author_key_denials")
	}
}

// unknownInput is how much of ref it takes to name what no input has, or 0.
func (v *vetter) unknownInput(ref ast.Ref) int {
	t := reflect.TypeFor[broker.PolicyInput]()
	for i, x := range ref[1:] {
		name, ok := x.Value.(ast.String)
		member, names := strictjson.Member(t, string(name))
		switch {
		case t.Kind() == reflect.Slice:
			member = t.Elem()
		case ok && names != nil && names[string(name)] == nil:
			return i + 2
		case !ok: // any member
			return 0
		}
		if t = member; t != nil && t.Kind() == reflect.Interface {
			t = v.vendor[string(name)]
		}
		if t == nil {
			return 0 // whatever there is, as in another verifier's token
		}
	}
	return 0
}

// missing is the shortest part of ref that nothing defines; ok if there is none.
func (v *vetter) missing(ref ast.Ref) (part string, ok bool) {
	for _, free := range []string{"reference", "reference_index"} { // the operators fill these
		if ref.HasPrefix(ast.DefaultRootRef.Append(ast.StringTerm(free))) {
			return "", true
		}
	}
	if ref.HasPrefix(configRef) {
		return "", true
	}
	tree, data := v.compiler.RuleTree.Child(ast.DefaultRootDocument.Value), any(v.src.data)
	for i, t := range ref[1:] {
		name, isString := t.Value.(ast.String)
		if !isString {
			return "", true
		}
		if tree != nil {
			tree = tree.Child(name)
		}
		var known bool
		if object, isObject := data.(map[string]any); isObject {
			data, known = object[string(name)]
		}
		switch {
		case tree != nil && len(tree.Values) > 0, known && !isContainer(data):
			return "", true // within a rule's value, or an array
		case tree == nil && !known:
			return ref[:i+2].String(), false
		case !known:
			data = nil
		}
	}
	return "", true
}

// open is how much of ref comes before a variable in the place of a package's name, or 0.
func (v *vetter) open(ref ast.Ref) int {
	tree := v.compiler.RuleTree.Child(ast.DefaultRootDocument.Value)
	for i, t := range ref[1:] {
		if tree == nil || len(tree.Values) > 0 {
			return 0
		}
		if _, ok := t.Value.(ast.String); ok {
			tree = tree.Child(t.Value)
			continue
		}
		for _, below := range tree.Children {
			if len(below.Values) == 0 {
				return i + 1
			}
		}
		return 0
	}
	return 0
}

func isContainer(v any) bool { _, ok := v.(map[string]any); return ok }

var configRef = ast.MustParseRef("data.claviger.config")

// defaults wants every policy to say what it does where no rule applies.
func (v *vetter) defaults() {
	has := map[string]bool{}
	at := map[string]*ast.Location{}
	for _, key := range sortedKeys(v.src.modules) {
		m := v.src.modules[key]
		name, ok := policyName(m.Package.Path)
		if !ok {
			continue
		}
		if at[name] == nil {
			at[name] = m.Package.Location
		}
		for _, r := range m.Rules {
			has[name] = has[name] || r.Default && r.Head.Ref().String() == "allow"
		}
	}
	for name, l := range at {
		if !has[name] {
			v.say(l, "claviger.release.%s does not say default allow := false", name)
		}
	}
}

// owners refuses references_of for a policy that there is not: its sets are nobody's here.
func (v *vetter) owners() {
	names := map[string]bool{broker.AllPolicies: true}
	for _, m := range v.src.modules {
		if name, ok := policyName(m.Package.Path); ok {
			names[name] = true
		}
	}
	for _, key := range sortedKeys(v.src.modules) {
		m := v.src.modules[key]
		_, release := policyName(m.Package.Path)
		asked, err := referencesOf(m) // of a policy's module, askable has refused the error
		if !release && (err != nil || len(asked) > 0) {
			v.say(m.Package.Location, "%s: only a policy (claviger.release.…) sees reference sets", referencesRule)
			continue
		}
		for _, name := range asked {
			if !names[name] {
				v.say(m.Package.Location, "%s: there is no policy %s in the bundle", referencesRule, name)
			}
		}
	}
}

// used says whether another rule of the bundle asks for this one by name.
func (v *vetter) used(rule *ast.Rule) bool {
	name := rule.Module.Package.Path.Extend(rule.Head.Ref().GroundPrefix())
	used := false
	for _, key := range sortedKeys(v.src.modules) {
		for _, r := range v.compiler.Modules[key].Rules {
			if r.Head.Ref().Equal(rule.Head.Ref()) {
				continue // itself
			}
			ast.WalkRefs(r, func(ref ast.Ref) bool {
				used = used || ref.HasPrefix(name)
				return used
			})
		}
	}
	return used
}

// meant is which of a policy's answers a name is that is nearly one, or "".
func meant(name string) string {
	for _, answer := range answers {
		if name != answer && near(strings.ToLower(name), answer) {
			return answer
		}
	}
	return ""
}

// near: a is b, but for one letter (more, less, another, or two exchanged), or for how the word ends.
func near(a, b string) bool {
	switch {
	case a == b:
		return true
	case strings.TrimRight(a, "eids") == strings.TrimRight(b, "eiys"): // denies, denied, allows, obligation
		return true
	}
	if len(a) > len(b) {
		a, b = b, a
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	switch a, b = a[i:], b[i:]; {
	case len(b) > len(a)+1:
		return false
	case len(b) > len(a):
		return a == b[1:]
	case a[1:] == b[1:]:
		return true
	}
	return len(a) > 1 && a[0] == b[1] && a[1] == b[0] && a[2:] == b[2:]
}

// conditions refuses what stands in the place of a condition and is none: in Rego
// all but false and undefined is true, an empty set too, and so is what a function
// gives that does not say yes or no. m is as it was parsed.
func (v *vetter) conditions(m *ast.Module) {
	ast.WalkExprs(m, func(e *ast.Expr) bool {
		holds := "always"
		if e.Negated {
			holds = "never"
		}
		switch terms := e.Terms.(type) {
		case *ast.Term:
			switch x := terms.Value.(type) {
			case ast.Number, ast.String, ast.Null, *ast.Array, ast.Set, *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension:
				v.say(e.Location, "%v is %s true, whatever is in it: compare it with something", terms, holds)
			case ast.Object:
				if x.Len() > 0 || e.Negated {
					v.say(e.Location, "%v is %s true, whatever is in it: compare it with something", terms, holds)
				}
			}
		case *ast.SomeDecl:
			if len(terms.Symbols) != 1 {
				return false
			}
			if member, ok := terms.Symbols[0].Value.(ast.Call); ok && isEmpty(member[len(member)-1].Value) {
				v.say(e.Location, "there is nothing in %v, so this is never true", member[len(member)-1])
			}
		case []*ast.Term:
			name := terms[0].String()
			b := ast.BuiltinMap[name]
			if b != nil && !b.Relation && len(terms) == len(b.Decl.FuncArgs().Args)+1 && b.Decl.Result() != nil && types.Compare(b.Decl.Result(), types.B) != 0 && b.Infix == "" {
				v.say(e.Location, "%s gives neither true nor false, so this is %s true: compare what it gives with something", name, holds)
			}
			if len(terms) == 3 && terms[1].Equal(terms[2]) {
				if _, ok := terms[1].Value.(ast.Ref); ok {
					v.say(e.Location, "%v is compared with itself", terms[1])
				}
			}
		}
		return false
	})
}

func isEmpty(x ast.Value) bool {
	switch x := x.(type) {
	case *ast.Array:
		return x.Len() == 0
	case ast.Set:
		return x.Len() == 0
	case ast.Object:
		return x.Len() == 0
	}
	return false
}

// comparisons refuses those whose outcome is always the same: of a claim with a
// constant of another kind (in Rego a number is less than any text), and with a
// word without quotes, which is a variable and equals anything. m is as it was parsed.
func (v *vetter) comparisons(m *ast.Module) {
	for _, r := range m.Rules {
		uses := map[ast.Var]int{}
		ast.WalkVars(r, func(x ast.Var) bool { uses[x]++; return false })
		ast.WalkExprs(r, func(e *ast.Expr) bool {
			terms, ok := e.Terms.([]*ast.Term)
			if !ok || len(terms) != 3 {
				return false
			}
			op := ast.Var(terms[0].String())
			switch string(op) {
			case "eq", "equal", "neq", "lt", "lte", "gt", "gte":
			default:
				return false
			}
			for i, side := range terms[1:] {
				other := terms[2-i]
				if x, ok := side.Value.(ast.Var); ok && string(op) == "eq" && uses[x] == 1 && !x.IsGenerated() && !x.IsWildcard() {
					v.say(e.Location, "%s is a variable, which equals anything: write %q for the text, and == to compare", x, string(x))
				}
				ref, ok := side.Value.(ast.Ref)
				if !ok || !ref.HasPrefix(ast.InputRootRef) {
					continue
				}
				if is, want := v.kindOf(ref), kindOf(other.Value); is != "" && want != "" && is != want {
					v.say(e.Location, "%s is a %s, and is compared with %s: the outcome is always the same", ref, is, other)
				}
			}
			return false
		})
	}
}

func kindOf(v ast.Value) string {
	switch v.(type) {
	case ast.Number:
		return "number"
	case ast.String:
		return "text"
	case ast.Boolean:
		return "boolean"
	}
	return ""
}

// kindOf is the kind of a member of the input that is a scalar, or "".
func (v *vetter) kindOf(ref ast.Ref) string {
	t := reflect.TypeFor[broker.PolicyInput]()
	for _, x := range ref[1:] {
		name, ok := x.Value.(ast.String)
		switch {
		case t.Kind() == reflect.Slice:
			t = t.Elem()
		case !ok:
			return ""
		default:
			if t, _ = strictjson.Member(t, string(name)); t != nil && t.Kind() == reflect.Interface {
				t = v.vendor[string(name)]
			}
		}
		if t == nil {
			return ""
		}
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
	}
	if t == reflect.TypeFor[time.Time]() {
		return "text"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float64:
		return "number"
	}
	return ""
}

// testFiles refuses rules of a policy in a file of tests: a broker does not load it.
func (v *vetter) testFiles() {
	for _, key := range sortedKeys(v.src.tests) {
		m := v.src.tests[key]
		if _, ok := policyName(m.Package.Path); !ok {
			continue
		}
		for _, r := range m.Rules {
			if name := r.Head.Ref().GroundPrefix().String(); slices.Contains(answers, name) {
				v.say(r.Location, "%s stands in a file of tests (*_test.rego), which no broker loads", name)
			}
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
