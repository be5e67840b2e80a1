package policy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/claviger/claviger/broker/strictjson"
)

// takes says what the arguments of the library's helpers are, by kind (see
// lib/arguments.rego). A helper that is missing here does not load.
var takes = map[string][]string{
	"azure.own_denials":                  {"text"},
	"azure.paravisor_denials":            {"texts"},
	"azure.production_denials":           {"azure"},
	"cca.config_denials":                 {"texts"},
	"cca.personalization_denials":        {"texts"},
	"cca.platform_signer_denials":        {"texts"},
	"cca.production_denials":             {"cca"},
	"cca.unextended_denials":             {"numbers"},
	"cca.version_denials":                {"versions"},
	"common.chip_networks_denials":       {"number"},
	"common.collateral_denials":          {"texts"},
	"common.type_denials":                {"text"},
	"gce.own_denials":                    {"text"},
	"gce.production_denials":             {"gce"},
	"gce.project_denials":                {"texts"},
	"keystone.monitor_denials":           {"texts"},
	"keystone.production_denials":        {"keystone"},
	"keystone.weak_monitor_denials":      {"texts"},
	"nitro.kind_denials":                 {"text"},
	"nitro.own_denials":                  {"text"},
	"nitro.pcr_denials":                  {"values"},
	"nitro.production_denials":           {"nitro"},
	"nvidia_gpu.device_denials":          {"text"},
	"nvidia_gpu.driver_denials":          {"texts"},
	"nvidia_gpu.gpus_denials":            {"number", "texts"},
	"nvidia_gpu.mode_denials":            {"texts"},
	"nvidia_gpu.model_denials":           {"texts"},
	"nvidia_gpu.production_denials":      {"nvidia"},
	"nvidia_gpu.production_gpus_denials": {"nvidia_beside"},
	"nvidia_gpu.vbios_denials":           {"texts"},
	"psa.client_denials":                 {"texts"},
	"psa.own_denials":                    {"text"},
	"psa.production_denials":             {"psa"},
	"psa.signer_denials":                 {"texts"},
	"psa.version_denials":                {"versions"},
	"reference.chip_denials":             {"text"},
	"reference.denials":                  {"text", "texts"},
	"result.affirming_denials":           {"texts"},
	"result.claim_denials":               {"values"},
	"result.denials":                     {"texts"},
	"result.issuer_denials":              {"texts"},
	"result.production_denials":          {"result"},
	"result.without_denials":             {"texts", "texts"},
	"result.space_denials":               {"space"},
	"result.without_cpu_denials":         {"texts"},
	"sgx.advisory_denials":               {"exceptions"},
	"sgx.attribute_bit_denials":          {"sgx_attributes"},
	"sgx.config_denials":                 {"texts"},
	"sgx.configid_denials":               {"texts"},
	"sgx.identity_denials":               {"texts", "number", "number"},
	"sgx.miscselect_denials":             {"texts"},
	"sgx.production_denials":             {"sgx"},
	"sgx.tcb_date_denials":               {"time"},
	"sgx.tcb_evaluation_denials":         {"number"},
	"sgx.tcb_status_denials":             {"texts"},
	"sgx.xfrm_denials":                   {"texts"},
	"snp.author_key_denials":             {"texts"},
	"snp.committed_tcb_denials":          {"floors"},
	"snp.csp_denials":                    {"exceptions"},
	"snp.guest_svn_denials":              {"number"},
	"snp.host_data_denials":              {"text"},
	"snp.id_key_denials":                 {"texts"},
	"snp.launch_tcb_denials":             {"floors"},
	"snp.mitigation_denials":             {"indices"},
	"snp.platform_denials":               {"snp"},
	"snp.platform_info_denials":          {"snp_platform_info"},
	"snp.policy_bit_denials":             {"snp_policy"},
	"snp.production_denials":             {"snp"},
	"snp.report_version_denials":         {"number"},
	"snp.signing_key_denials":            {"text"},
	"snp.signing_keys_denials":           {"texts"},
	"snp.tcb_denials":                    {"floors"},
	"snp.vmpl_denials":                   {"number"},
	"tdx.advisory_denials":               {"exceptions"},
	"tdx.attribute_bit_denials":          {"tdx_attributes"},
	"tdx.module_denials":                 {"texts"},
	"tdx.module_svn_denials":             {"minimums"},
	"tdx.owner_denials":                  {"text", "texts"},
	"tdx.platform_denials":               {"tdx"},
	"tdx.production_denials":             {"tdx"},
	"tdx.tcb_date_denials":               {"time"},
	"tdx.tcb_evaluation_denials":         {"number"},
	"tdx.tcb_status_denials":             {"texts"},
	"tdx.xfam_denials":                   {"texts"},
	"tpm.door_denials":                   {"number"},
	"tpm.loader_denials":                 {"text"},
	"tpm.log_denials":                    {"numbers"},
	"tpm.own_denials":                    {"text"},
	"tpm.production_denials":             {"tpm"},
}

var (
	argumentsRef = ast.MustParseRef(libPackage + ".arguments.wrong")
	libRef       = ast.MustParseRef(libPackage)
	dotted       = regexp.MustCompile(`^[0-9]+([.+][0-9]+)*$`) // a version, MCUboot's build numbers included: 1.2.3+4
)

// checkArguments is a stage of the compiler, behind the one that resolves names.
// It puts arguments.wrong before each call of a helper in a policy, and refuses
// calls whose arguments are constants of another kind.
func checkArguments(c *ast.Compiler) *ast.Error {
	named := constants(c)
	shapes, err := shapesOf(named)
	if err != nil {
		return ast.NewError(ast.CompileErr, nil, "%v", err)
	}
	for _, key := range sortedKeys(c.Modules) {
		m := c.Modules[key]
		if m.Package.Path.HasPrefix(libRef) || strings.HasSuffix(key, "_test.rego") { // tests call helpers as they are
			continue
		}
		var found *ast.Error
		fail := func(at *ast.Location, format string, args ...any) bool {
			if found == nil {
				found = ast.NewError(ast.CompileErr, at, format, args...)
			}
			return true
		}
		ast.WalkExprs(m, func(e *ast.Expr) bool {
			if terms, ok := e.Terms.([]*ast.Term); ok {
				if name := helperName(terms[0]); name != "" {
					return fail(e.Location, "nobody looks at what %s gives: write deny contains r if some r in %s(…)", name, name)
				}
			}
			return found != nil
		})
		assigned(m, fail)
		done := map[*ast.Term]bool{}
		calls := inDeny(m)
		ast.WalkTerms(m, func(t *ast.Term) bool {
			call, ok := t.Value.(ast.Call)
			if !ok || done[t] || found != nil {
				return found != nil
			}
			name := helperName(call[0])
			args, kinds := call[1:], takes[name]
			var given []*ast.Term
			if name == "" {
				if !calls[t] {
					return false
				}
				name, kinds = call[0].String(), slices.Repeat([]string{"any"}, len(args))
				given = append(given, argument(name, 0, "any", t))
			}
			if len(args) != len(kinds) {
				return fail(t.Location, "%s takes %d arguments, not %d", name, len(kinds), len(args))
			}
			for i, a := range args {
				if value := resolve(a, named); isConstant(value) {
					if !shapes.isKind(kinds[i], value.Value) {
						return fail(t.Location, "%s: argument %d is %s, want %s", name, i+1, shapes.fault(kinds[i], value.Value), shapes.words(kinds[i]))
					}
					if shapes.membersOf(kinds[i]) != nil {
						call[i+1] = shapes.demanded(kinds[i], value)
					}
					continue
				}
				given = append(given, argument(name, i+1, kinds[i], a))
			}
			if given == nil {
				return false
			}
			inner := &ast.Term{Value: call, Location: t.Location}
			done[inner] = true
			// faults | {r | faults == set(); some r in call}
			faults := func() *ast.Term {
				return ast.CallTerm(ast.NewTerm(argumentsRef.Copy()), ast.ArrayTerm(given...).Copy())
			}
			r := ast.VarTerm("claviger_reason")
			some := ast.NewExpr(&ast.SomeDecl{Symbols: []*ast.Term{ast.Member.Call(r, inner)}, Location: t.Location})
			reasons := ast.SetComprehensionTerm(r, ast.NewBody(ast.Equal.Expr(faults(), ast.SetTerm()), some))
			t.Value = ast.Or.Call(faults(), reasons).Value
			locate(t, t.Location)
			return false
		})
		if found != nil {
			return found
		}
	}
	return nil
}

// constants are the values of rules that are nothing but a constant, by the rule's
// full name: floors := {"Milan": …}. A name that another rule adds to is none.
func constants(c *ast.Compiler) map[string]*ast.Term {
	out, rules := map[string]*ast.Term{}, map[string]int{}
	made := map[string]*ast.Term{} // of other constants: {"tcb": floors, …}
	for _, m := range c.Modules {
		for _, r := range m.Rules {
			ref := r.Head.Ref()
			name := m.Package.Path.Extend(ref.GroundPrefix()).String()
			rules[name]++
			if len(r.Body) == 0 {
				continue
			}
			always := len(r.Body) == 1 && !r.Body[0].Negated && len(r.Body[0].With) == 0
			if t, ok := r.Body[0].Terms.(*ast.Term); !always || !ok || !isBool(t, true) || len(ref) != 1 || len(r.Head.Args) > 0 || r.Default ||
				r.Else != nil || r.Head.RuleKind() != ast.SingleValue || r.Head.Value == nil {
				continue
			}
			if isConstant(r.Head.Value) {
				out[name] = r.Head.Value
			} else {
				made[name] = r.Head.Value
			}
		}
	}
	for name, n := range rules {
		if n > 1 {
			delete(out, name)
		}
	}
	for name := range out {
		for other := range rules {
			if strings.HasPrefix(other, name+".") || strings.HasPrefix(other, name+"[") {
				delete(out, name)
			}
		}
	}
	for found := true; found; {
		found = false
		for name, t := range made {
			if value := resolve(t, out); rules[name] == 1 && out[name] == nil && isConstant(value) {
				out[name], found = value, true
			}
		}
	}
	return out
}

// resolve writes constants in place of their names.
func resolve(t *ast.Term, named map[string]*ast.Term) *ast.Term {
	value := func(ref ast.Ref) (ast.Value, error) {
		if c := named[ref.String()]; c != nil {
			return c.Value, nil
		}
		return ref, nil
	}
	out, err := ast.TransformRefs(t.Copy().Value, value)
	if v, ok := out.(ast.Value); ok && err == nil {
		return &ast.Term{Value: v, Location: t.Location}
	}
	return t
}

// argument is one entry of what arguments.wrong is given.
func argument(helper string, number int, kind string, value *ast.Term) *ast.Term {
	v := ast.VarTerm("claviger_argument")
	return ast.ArrayTerm(ast.StringTerm(helper), ast.IntNumberTerm(number), ast.StringTerm(kind),
		ast.ArrayComprehensionTerm(v, ast.NewBody(ast.Assign.Expr(v, value.Copy()))))
}

// inDeny are the calls of a policy's own functions of which deny takes its reasons
// (some r in f(…)): undefined, they would deny nothing either.
func inDeny(m *ast.Module) map[*ast.Term]bool {
	calls := map[*ast.Term]bool{}
	if _, release := policyName(m.Package.Path); !release {
		return calls
	}
	for _, r := range m.Rules {
		if r.Head.Ref().GroundPrefix().String() != "deny" {
			continue
		}
		ast.WalkExprs(r, func(e *ast.Expr) bool {
			d, ok := e.Terms.(*ast.SomeDecl)
			if !ok || len(d.Symbols) != 1 {
				return false
			}
			member, ok := d.Symbols[0].Value.(ast.Call)
			if !ok || len(member) != 3 {
				return false
			}
			if call, ok := member[2].Value.(ast.Call); ok && call[0].Value.(ast.Ref).HasPrefix(ast.DefaultRootRef) {
				calls[member[2]] = true
			}
			return false
		})
	}
	return calls
}

// assigned refuses x := value where x is given to a helper, and value may be
// undefined: the rule ends there, before the helper is called.
func assigned(m *ast.Module, fail func(*ast.Location, string, ...any) bool) {
	ast.WalkBodies(m, func(b ast.Body) bool {
		given := map[ast.Var]string{}
		ast.WalkTerms(b, func(t *ast.Term) bool {
			if call, ok := t.Value.(ast.Call); ok {
				if name := helperName(call[0]); name != "" {
					for _, a := range call[1:] {
						ast.WalkVars(a, func(v ast.Var) bool { given[v] = name; return false })
					}
				}
			}
			return false
		})
		for _, e := range b {
			terms, ok := e.Terms.([]*ast.Term)
			if !ok || len(terms) != 3 || !e.IsAssignment() {
				continue
			}
			v, ok := terms[1].Value.(ast.Var)
			if !ok || given[v] == "" {
				continue
			}
			switch terms[2].Value.(type) {
			case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension:
				continue // always defined
			}
			if !isConstant(terms[2]) {
				return fail(e.Location, "if what %s stands for is undefined, %s is not called and nothing is denied: write it into the call", v, given[v])
			}
		}
		return false
	})
}

// locate gives all of a term that was made here the place of what it stands for.
func locate(t *ast.Term, at *ast.Location) {
	ast.WalkTerms(t, func(x *ast.Term) bool {
		if x.Location == nil {
			x.SetLocation(at)
		}
		return false
	})
	ast.WalkExprs(t, func(x *ast.Expr) bool {
		if x.Location == nil {
			x.SetLocation(at)
		}
		return false
	})
}

// helperName is "snp.tcb_denials" for the operator of a call of the library's, or "".
func helperName(op *ast.Term) string {
	ref, ok := op.Value.(ast.Ref)
	if !ok || len(ref) != len(libRef)+2 || !ref.HasPrefix(libRef) {
		return ""
	}
	pkg, ok1 := ref[len(libRef)].Value.(ast.String)
	rule, ok2 := ref[len(libRef)+1].Value.(ast.String)
	name := string(pkg) + "." + string(rule)
	if _, known := takes[name]; !ok1 || !ok2 || !known {
		return ""
	}
	return name
}

// isConstant: nothing of it is looked up, or computed.
func isConstant(t *ast.Term) bool {
	constant := true
	ast.WalkTerms(t, func(x *ast.Term) bool {
		switch x.Value.(type) {
		case ast.Ref, ast.Var, ast.Call, *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension, *ast.TemplateString:
			constant = false
		}
		return !constant
	})
	return constant
}

var kindWords = map[string]string{
	"text": "a text", "texts": "a set or list of texts with one at least", "exceptions": "a set or list of texts",
	"number": "a whole number from 0 on", "numbers": "a set or list of whole numbers from 0 on, with one at least",
	"floors": "a minimum for each component, by model, with one at least", "values": "the accepted values by name, with one at least each", "time": "a time in RFC 3339",
	"indices": "a set or list of whole numbers from 0 on", "minimums": "a whole number from 0 on by name, with one at least", "versions": "a version (1.2.3) by name, with one at least",
	"bit": "true, false or \"any\"",
}

// shapes are the tables of lib/arguments.rego that say what requirements are made of.
type shapes struct {
	members  map[string]map[string]string // the kind of each member, by kind of requirements
	bits     map[string][]string          // names, by kind
	optional map[string]string            // requirements that may be "none", and what they are else
}

func shapesOf(named map[string]*ast.Term) (shapes, error) {
	var out shapes
	for name, to := range map[string]any{"shapes": &out.members, "bits": &out.bits, "optional": &out.optional} {
		t := named[libPackage+".arguments."+name]
		if t == nil {
			return shapes{}, fmt.Errorf("policy library: arguments.%s is not a constant", name)
		}
		v, err := ast.JSON(t.Value)
		if err != nil {
			return shapes{}, fmt.Errorf("policy library: arguments.%s: %w", name, err)
		}
		b, err := json.Marshal(v)
		if err == nil {
			err = strictjson.Unmarshal(b, to)
		}
		if err != nil {
			return shapes{}, fmt.Errorf("policy library: arguments.%s: %w", name, err)
		}
	}
	return out, nil
}

// membersOf are the kinds of what requirements, or an object of bits, consist of; nil for other kinds.
func (s shapes) membersOf(kind string) map[string]string {
	if other := s.optional[kind]; other != "" {
		kind = other
	}
	if members := s.members[kind]; members != nil {
		return members
	}
	if s.bits[kind] == nil {
		return nil
	}
	members := map[string]string{}
	for _, bit := range s.bits[kind] {
		members[bit] = "bit"
	}
	return members
}

// demanded are requirements without the bits that are "any": nothing looks at
// these, and the helpers are quick where all that they are given has to be so.
func (s shapes) demanded(kind string, t *ast.Term) *ast.Term {
	members := s.membersOf(kind)
	o, ok := t.Value.(ast.Object)
	if members == nil || !ok {
		return t
	}
	out := ast.NewObject()
	o.Foreach(func(k, x *ast.Term) {
		member := members[string(k.Value.(ast.String))]
		if member != "bit" || s.members[kind] != nil || x.Value.Compare(ast.String("any")) != 0 {
			out.Insert(k, s.demanded(member, x))
		}
	})
	return &ast.Term{Value: out, Location: t.Location}
}

func (s shapes) words(kind string) string {
	if w := kindWords[kind]; w != "" {
		return w
	}
	return "an object of exactly " + strings.Join(sortedKeys(s.membersOf(kind)), ", ")
}

// fault says of requirements which members are wrong, and of other values what they are.
func (s shapes) fault(kind string, v ast.Value) string {
	members := s.membersOf(kind)
	o, ok := v.(ast.Object)
	if members == nil || !ok {
		return v.String()
	}
	var wrong []string
	for _, name := range sortedKeys(members) {
		if x := o.Get(ast.StringTerm(name)); x == nil {
			wrong = append(wrong, "without "+name)
		} else if !s.isKind(members[name], x.Value) {
			wrong = append(wrong, fmt.Sprintf("one whose %s is %s, want %s", name, s.fault(members[name], x.Value), s.words(members[name])))
		}
	}
	for _, k := range o.Keys() {
		if name, ok := k.Value.(ast.String); !ok || members[string(name)] == "" {
			wrong = append(wrong, fmt.Sprintf("one with %v, which nothing reads", k))
		}
	}
	return strings.Join(wrong, "; ")
}

// isKind says what is_kind of lib/arguments.rego says.
func (s shapes) isKind(kind string, v ast.Value) bool {
	if members := s.membersOf(kind); members != nil {
		if none, ok := v.(ast.String); ok && none == "none" && s.optional[kind] != "" {
			return true
		}
		o, ok := v.(ast.Object)
		return ok && o.Len() == len(members) && !o.Until(func(k, x *ast.Term) bool {
			name, ok := k.Value.(ast.String)
			return !ok || members[string(name)] == "" || !s.isKind(members[string(name)], x.Value)
		})
	}
	return isKind(kind, v)
}

// isKind is that of kinds that are no requirements.
func isKind(kind string, v ast.Value) bool {
	switch kind {
	case "any":
		return true
	case "text":
		s, ok := v.(ast.String)
		return ok && s != ""
	case "texts":
		n, ok := each(v, func(x ast.Value) bool { return isKind("text", x) })
		return ok && n > 0
	case "exceptions":
		_, ok := each(v, func(x ast.Value) bool { return isKind("text", x) })
		return ok
	case "number":
		n, ok := v.(ast.Number)
		f, exact := n.Float64()
		return ok && exact && f >= 0 && f == float64(int64(f))
	case "numbers":
		n, ok := each(v, func(x ast.Value) bool { return isKind("number", x) })
		return ok && n > 0
	case "indices":
		_, ok := each(v, func(x ast.Value) bool { return isKind("number", x) })
		return ok
	case "minimums":
		return eachMember(v, func(x ast.Value) bool { return isKind("number", x) })
	case "versions":
		return eachMember(v, func(x ast.Value) bool { s, ok := x.(ast.String); return ok && dotted.MatchString(string(s)) })
	case "bit":
		_, ok := v.(ast.Boolean)
		return ok || v.Compare(ast.String("any")) == 0
	case "floors":
		return eachMember(v, func(floor ast.Value) bool {
			return eachMember(floor, func(x ast.Value) bool { return isKind("number", x) })
		})
	case "values":
		return eachMember(v, func(values ast.Value) bool {
			n, ok := each(values, func(x ast.Value) bool { _, null := x.(ast.Null); return !null })
			return ok && n > 0
		})
	case "time":
		s, ok := v.(ast.String)
		_, err := time.Parse(time.RFC3339, string(s))
		return ok && err == nil
	}
	return false
}

// each counts the elements of a set or an array if all are good.
func each(v ast.Value, good func(ast.Value) bool) (n int, ok bool) {
	var all []*ast.Term
	switch v := v.(type) {
	case ast.Set:
		all = v.Slice()
	case *ast.Array:
		for i := range v.Len() {
			all = append(all, v.Elem(i))
		}
	default:
		return 0, false
	}
	return len(all), !slices.ContainsFunc(all, func(t *ast.Term) bool { return !good(t.Value) })
}

// eachMember: v is an object that is not empty, and all its values are good.
func eachMember(v ast.Value, good func(ast.Value) bool) bool {
	o, ok := v.(ast.Object)
	return ok && o.Len() > 0 && !o.Until(func(_, x *ast.Term) bool { return !good(x.Value) })
}

// checkTakes wants an entry in takes for every helper of the library that has arguments.
func checkTakes(lib map[string]*ast.Module) error {
	seen := map[string]bool{}
	for _, m := range lib {
		pkg := strings.TrimPrefix(m.Package.Path.String(), libPackage+".")
		for _, r := range m.Rules {
			name := pkg + "." + r.Head.Ref().String()
			if len(r.Head.Args) == 0 || !strings.HasSuffix(name, "denials") {
				continue
			}
			seen[name] = true
			if n := len(takes[name]); n != len(r.Head.Args) {
				return fmt.Errorf("policy library: %s has %d arguments, of which %d are known", name, len(r.Head.Args), n)
			}
		}
	}
	for name := range takes {
		if !seen[name] {
			return fmt.Errorf("policy library: there is no %s", name)
		}
	}
	return nil
}
