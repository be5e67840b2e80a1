package policy

import (
	"context"
	"slices"
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
			"bound": false, "debuggable": true, "simulated": true, "bound_to_cpu_tee": false,
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
// A policy that is sure to deny such a guest does not release.
func (v *vetter) allows(store storage.Store, pkg ast.Ref, claims map[string]any) (way string, ok bool) {
	ways, ok := v.ways(store, pkg.String()+".allow == true", claims)
	if !ok || len(ways) == 0 {
		return "", false
	}
	if denied, ok := v.ways(store, "some _ in "+pkg.String()+".deny", claims); ok && slices.Contains(denied, "") {
		return "", false
	}
	slices.SortFunc(ways, func(a, b string) int { return len(a) - len(b) })
	return ways[0], true
}

// ways are the conditions under which query is true of a guest with these claims,
// "" being none; ok if that could be found out. What partial evaluation leaves to a
// rule is not among them: whether that can be true is not known.
func (v *vetter) ways(store storage.Store, query string, claims map[string]any) (ways []string, ok bool) {
	defer func() {
		if recover() != nil { // OPA runs on what strangers wrote
			ways, ok = nil, false
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	pq, err := rego.New(rego.Compiler(v.compiler), rego.Store(store), rego.Query(query),
		rego.Input(map[string]any{"attestation": claims, "chip": broker.PolicyChip{Networks: 1}, "time": time.Now().UTC()}),
		rego.Unknowns([]string{"input.resource", "input.request"})).Partial(ctx)
	if err != nil {
		return nil, false
	}
	for _, q := range pq.Queries {
		decided := true
		ast.WalkRefs(q, func(ref ast.Ref) bool {
			decided = decided && !ref.HasPrefix(ast.DefaultRootRef)
			return !decided
		})
		if decided {
			ways = append(ways, q.String())
		}
	}
	return ways, true
}
