package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// probeTime bounds one question to one policy. Who cannot be answered in that time is not refused for it.
const probeTime = 2 * time.Second

// stranger is evidence that proves nothing.
type stranger struct {
	says   string // how a message names it
	claims map[string]any
	names  bool // it names itself, so that a request could be for that very name, as a policy may ask: host_data == params.vm
}

// strangers are the guests that no policy may release to, whatever they ask for. The
// last one is there for what only says what must not be: type != "tdx".
func strangers() []stranger {
	all := func() map[string]any {
		return map[string]any{
			"bound": false, "debuggable": true, "migratable": true, "simulated": true, "bound_to_cpu_tee": false,
			"tcb": map[string]any{"status": attest.TCBRevoked}, "collateral": map[string]any{"state": "expired", "age_seconds": 1}, "measurements": map[string]any{},
		}
	}
	unheard, measurements := all(), map[string]any{}
	for _, name := range []string{"measurement", "mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrenclave", "mrsigner", "pcr0", "pcr4", "pcr7", "pcr11", "boot_chain", "cmdline", "initrd"} {
		measurements[name] = unheardOf + "-" + name // no two are the same
	}
	for _, name := range []string{"type", "hardware_model", "chip_id", "host_data", "report_data"} {
		unheard[name] = unheardOf + "-" + name
	}
	unheard["measurements"] = measurements
	return []stranger{
		{"without any claims", map[string]any{}, false},
		{"whose claims are all bad", all(), false},
		{"whose claims are all bad, and of nothing that anybody has heard of", unheard, true},
	}
}

// unheardOf is what no policy means.
const unheardOf = "claviger-probe"

// probe asks the policies whether they allow a stranger, with the resource and the
// request left open, and refuses those of which OPA's partial evaluation leaves a way to
// say yes. It finds what no look at single conditions does: that all of them
// together ask nothing of the evidence.
func (v *vetter) probe(store, others storage.Store) {
	asked := map[string]bool{}
	for _, key := range sortedKeys(v.src.modules) {
		m := v.src.modules[key]
		name, ok := policyName(m.Package.Path)
		if !ok || asked[name] {
			continue
		}
		asked[name] = true
		p := v.probed(name, m.Package.Path)
		for _, s := range strangers() {
			way, ok := v.allows(store, p, s)
			if !ok { // where there are reference sets, none of which is the guest's
				way, ok = v.guess(others, p, s.claims, nil)
			}
			if ok {
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

// probed is a policy that is asked, whole or in part.
type probed struct {
	name    string
	pkg     ast.Ref
	query   ast.Body
	members []string // of input.resource: "path", and the params and labels that it reads, as "params.vm"
}

func (v *vetter) probed(name string, pkg ast.Ref) probed {
	resource, _ := v.asked.reads[name].member("resource")
	var members []string
	for _, path := range resource.paths() {
		if kind, name, ok := strings.Cut(path, "."); ok && (kind == "params" || kind == "labels") {
			members = append(members, kind+"."+name)
		}
	}
	slices.Sort(members)
	return probed{name, pkg, v.asked.queries[name], append([]string{"path"}, slices.Compact(members)...)}
}

// allows is what it takes for the policy to release to a stranger, if it can be done: what is left of its conditions on all else, or "".
func (v *vetter) allows(store storage.Store, p probed, who stranger) (way string, ok bool) {
	claims := who.claims
	q := partly{v.compiler, store, map[string]any{
		"attestation": claims, "chip": broker.PolicyChip{Networks: 1}, "time": time.Now().UTC(),
	}, []string{"input.resource", "input.request"}}
	ways, known, mayDeny := q.allow(p.pkg)
	if known && len(ways) == 0 {
		return v.guess(store, p, claims, nil)
	}
	if !known || who.names { // (what is left open has the guest's own names)
		return v.guess(store, p, claims, constantsOf(v.src.modules))
	}
	open := slices.Clone(ways)
	decided := slices.DeleteFunc(ways, func(b ast.Body) bool { // what is left to a rule may never be true
		left := false
		ast.WalkRefs(b, func(ref ast.Ref) bool {
			left = left || ref.HasPrefix(ast.DefaultRootRef)
			return left
		})
		return left
	})
	if len(decided) == 0 || mayDeny {
		return v.guess(store, p, claims, constantsOf(v.src.modules, open...))
	}
	return slices.MinFunc(decided, func(a, b ast.Body) int { return len(a.String()) - len(b.String()) }).String(), true
}

// guesses bounds how many requests guess makes up for one policy and one stranger, and
// guessSteps what they take together.
const (
	guesses    = 400
	guessSteps = 4 * defaultSteps
)

// guess asks the policy itself, in whole, for requests that are made up of the words that it
// has: what partial evaluation leaves to rules (else, default, not of several
// conditions, a set) it leaves open, and so it does where it takes too long. Who is allowed
// here is allowed.
func (v *vetter) guess(store storage.Store, p probed, claims map[string]any, words []string) (way string, ok bool) {
	s := snapshot{compiled: &compiled{compiler: v.compiler}}
	members := p.members
	words = append([]string{"", unheardOf}, words...)
	left, deadline := guessSteps, time.Now().Add(probeTime)
	ask := func(word func(member int) string, pq bool, at time.Time, networks int) (string, bool) {
		params, labels, path := map[string]any{}, map[string]any{}, unheardOf
		for i, m := range members {
			w := word(i)
			kind, name, _ := strings.Cut(m, ".")
			switch {
			case w == "": // as it is where there is none
			case kind == "params":
				params[name] = w
			case kind == "labels":
				labels[name] = w
			default:
				path = w
			}
		}
		input, err := ast.InterfaceToValue(map[string]any{
			"attestation": claims, "chip": map[string]any{"networks": networks}, "time": at.UTC().Format(time.RFC3339),
			"resource": map[string]any{"path": path, "policy": p.name, "params": params, "labels": labels},
			"request":  map[string]any{"resources": []any{path}, "key_algorithm": "X25519", "post_quantum": pq},
		})
		if err != nil {
			return "", false
		}
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		s.steps = min(left, defaultSteps)
		a, used, err := s.contained(ctx, store, p.query, ast.NewTerm(input), at)
		left -= used
		if err != nil || a.allow == nil || a.allow.Compare(ast.Boolean(true)) != 0 {
			return "", false
		}
		if set, ok := a.deny.(ast.Set); a.deny != nil && (!ok || set.Len() > 0) {
			return "", false
		}
		return fmt.Sprintf("it asks for %q", path), true
	}
	now := time.Now()
	nothing := func(int) string { return "" }
	for _, other := range []struct { // than what partial evaluation was told, each by itself
		networks int
		at       time.Time
	}{{0, now}, {1000, now}, {1, now.AddDate(-50, 0, 0)}, {1, now.AddDate(50, 0, 0)}} {
		if way, ok := ask(nothing, other.networks > 0, other.at, other.networks); ok {
			return way, true
		}
	}
	if len(words) == 2 {
		return "", false
	}
	for i := range members { // one of them
		for _, w := range words[:min(len(words), guesses/len(members)+1)] {
			if way, ok := ask(func(j int) string {
				if j == i {
					return w
				}
				return ""
			}, true, now, 1); ok {
				return way, true
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same ones each time
	for range guesses {
		if left <= 0 || time.Now().After(deadline) {
			break
		}
		if way, ok := ask(func(int) string { return words[random.IntN(len(words))] }, random.IntN(2) == 0, now, 1); ok {
			return way, true
		}
	}
	return "", false
}

// contained is ask, with what it took; a panic is an error.
func (s *snapshot) contained(ctx context.Context, store storage.Store, query ast.Body, input *ast.Term, now time.Time) (a answer, used int, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	a, left, err := s.counted(ctx, store, query, input, now, nil)
	return a, s.steps - left, err
}

// ofOthers are reference sets of guests of every type, and of no stranger.
func ofOthers() []broker.ReferenceSet {
	var sets []broker.ReferenceSet
	for _, t := range []attest.Type{attest.TypeSNP, attest.TypeTDX, attest.TypeTPM, attest.TypeSGX} {
		sets = append(sets, broker.ReferenceSet{
			Name: unheardOf + "-" + string(t), Type: t, State: broker.ReferenceActive,
			Values: map[string][]string{"measurement": {"00"}, "chip_id": {"00"}},
		})
	}
	return sets
}

// constantsOf are the texts that stand in what partial evaluation left open, and in the modules: what a
// condition may compare a request with.
func constantsOf(modules map[string]*ast.Module, open ...ast.Body) (words []string) {
	const most = 100
	add := func(t *ast.Term) bool {
		if s, ok := t.Value.(ast.String); ok && len(words) < most && !slices.Contains(words, string(s)) {
			words = append(words, string(s))
		}
		return false
	}
	for _, b := range open {
		ast.WalkTerms(b, add)
	}
	for _, key := range sortedKeys(modules) {
		ast.WalkTerms(modules[key], add)
	}
	return words
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
	pkg := releaseRef.Append(ast.StringTerm(entry.Policy))
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
		if ways, known, _ := q.allow(pkg); !known || len(ways) > 0 {
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
// does not allow; one that may deny is open.
func (q partly) allow(pkg ast.Ref) (ways []ast.Body, known, open bool) {
	ways, known = q.ways(pkg.String() + ".allow == true")
	if !known || len(ways) == 0 {
		return nil, known, false
	}
	denied, ok := q.ways("some _ in " + pkg.String() + ".deny")
	if ok && slices.ContainsFunc(denied, func(b ast.Body) bool { return len(b) == 0 }) {
		return nil, true, false
	}
	return ways, true, !ok || len(denied) > 0
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
