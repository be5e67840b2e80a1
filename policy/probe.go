package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/claviger/claviger/broker"
)

// probeTime bounds one question to one policy. Who cannot be answered in that time is not refused for it.
const probeTime = 2 * time.Second

// stranger is evidence that proves nothing.
type stranger struct {
	says   string // how a message names it
	claims map[string]any
}

// strangers are the guests that no policy may release to, whatever they ask for.
func strangers() []stranger {
	bad := map[string]any{"state": "expired", "age": 1}
	return []stranger{
		{"without any claims", map[string]any{}},
		{"whose claims are all bad", map[string]any{
			"bound": false, "debuggable": true, "migratable": true, "simulated": true, "bound_to_cpu_tee": false,
			"tcb": map[string]any{"status": "Revoked"}, "collateral": bad, "measurements": map[string]any{},
		}},
	}
}

// probe asks the policies whether they allow a stranger, with the resource and the
// request left open, and refuses those of which OPA's partial evaluation leaves a way to
// say yes. It finds what no look at single conditions does: that all of them
// together ask nothing of the evidence.
func (v *vetter) probe(store storage.Store) {
	asked := map[string]bool{}
	for _, key := range sortedKeys(v.src.modules) {
		m := v.src.modules[key]
		name, ok := policyName(m.Package.Path)
		if !ok || asked[name] {
			continue
		}
		asked[name] = true
		for _, s := range strangers() {
			if way, ok := v.allows(store, m.Package.Path, s.claims); ok {
				at := m.Package.Location
				for _, r := range m.Rules {
					if r.Head.Ref().String() == "allow" && !r.Default {
						at = r.Location
						break
					}
				}
				if way != "" {
					way = " as soon as " + way
				}
				v.say(at, "allow is true for a guest %s%s: ask for a claim (what a not asks for holds where the claim is missing)", s.says, way)
				break
			}
		}
	}
}

// allows is what it takes for the policy to release to a guest with these
// claims, if it can be done: what is left of its conditions on all else, or "".
func (v *vetter) allows(store storage.Store, pkg ast.Ref, claims map[string]any) (way string, ok bool) {
	q := partly{v.compiler, store, map[string]any{
		"attestation": claims, "chip": broker.PolicyChip{Networks: 1}, "time": time.Now().UTC(),
	}, []string{"input.resource", "input.request"}}
	ways, known := q.allow(pkg)
	if !known {
		return "", false
	}
	decided := slices.DeleteFunc(ways, func(b ast.Body) bool { // what is left to a rule may never be true
		left := false
		ast.WalkRefs(b, func(ref ast.Ref) bool {
			left = left || ref.HasPrefix(ast.DefaultRootRef)
			return left
		})
		return left
	})
	if len(decided) == 0 {
		return "", false
	}
	return slices.MinFunc(decided, func(a, b ast.Body) int { return len(a.String()) - len(b.String()) }).String(), true
}

// Fits says why the policy in force could never release a resource of the
// catalog entry: it asks for a parameter that the pattern, or a label that the entry, does not have.
func (e *Engine) Fits(entry broker.CatalogEntry) error {
	s := e.inForce.Load()
	store, ok := s.stores[entry.Policy]
	if s.blocked != nil || !ok {
		return fmt.Errorf("%w: %q", ErrUnknownPolicy, clip(entry.Policy))
	}
	open := []string{"input.attestation", "input.request", "input.chip", "input.time", "input.resource.path"}
	names := map[string]bool{}
	for segment := range strings.SplitSeq(entry.Pattern, "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			name = strings.TrimSuffix(name, "}")
			names[name] = true
			open = append(open, "input.resource.params."+name)
		}
	}
	labels := entry.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	// Reference sets come and go: whether there are any does not count.
	open = append(open, "data.reference", "data.reference_index")
	q := partly{s.compiler, store, map[string]any{"resource": map[string]any{"policy": entry.Policy, "labels": labels, "params": map[string]any{}}}, open}
	pkg := ast.MustParseRef(releasePackage).Append(ast.StringTerm(entry.Policy))
	lacks := func(paths []string) (missing []string) {
		for _, path := range paths {
			if name, ok := strings.CutPrefix(path, "params."); ok && !names[name] {
				missing = append(missing, fmt.Sprintf("{%s} in the pattern", name))
			}
			if _, has := entry.Labels[strings.TrimPrefix(path, "labels.")]; strings.HasPrefix(path, "labels.") && !has {
				missing = append(missing, "the label "+strings.TrimPrefix(path, "labels."))
			}
		}
		return missing
	}
	missing := lacks(s.wants[entry.Policy])
	if len(missing) == 0 {
		if ways, known := q.allow(pkg); !known || len(ways) > 0 {
			return nil
		}
		if resource, ok := s.reads[entry.Policy].member("resource"); ok {
			missing = lacks(resource.paths())
		}
		if len(missing) == 0 {
			return nil
		}
	}
	return fmt.Errorf("%q never releases a resource of %q: it asks for %s", entry.Policy, entry.Pattern, strings.Join(missing, ", "))
}

// partly asks policies of which only a part of the input is known.
type partly struct {
	compiler *ast.Compiler
	store    storage.Store
	input    map[string]any
	open     []string // paths that are not known
}

// allow are the conditions on what is open under which the policy allows, an
// empty one being none; known if that could be found out. A policy that is sure to deny
// does not allow.
func (q partly) allow(pkg ast.Ref) (ways []ast.Body, known bool) {
	ways, known = q.ways(pkg.String() + ".allow == true")
	if !known || len(ways) == 0 {
		return nil, known
	}
	denied, ok := q.ways("some _ in " + pkg.String() + ".deny")
	if ok && slices.ContainsFunc(denied, func(b ast.Body) bool { return len(b) == 0 }) {
		return nil, true
	}
	return ways, true
}

func (q partly) ways(query string) (ways []ast.Body, known bool) {
	defer func() {
		if recover() != nil { // OPA runs on what strangers wrote
			ways, known = nil, false
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	pq, err := rego.New(rego.Compiler(q.compiler), rego.Store(q.store), rego.Query(query), rego.Input(q.input), rego.Unknowns(q.open)).Partial(ctx)
	if err != nil {
		return nil, false
	}
	return pq.Queries, true
}
