package policy

import (
	"slices"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/claviger/claviger/broker"
)

// Bounds on what is remembered, in all, by one snapshot.
const (
	maxRemembered       = 2048
	maxRememberedWeight = 16 << 20 // about as many bytes
)

// memory has the decisions of one snapshot by all that they are a function of:
// the policy, and what of the input it can see. It is emptied by every change
// of bundle or reference values, because those make another snapshot.
type memory struct {
	mu  sync.RWMutex
	m   map[question]remembered
	sum int // of all weights
}

// question finds what may be remembered; that it is the same input is compared.
type question struct {
	policy string
	hash   int
}

type remembered struct {
	input    *ast.Term // what the policy was shown; never changed
	decision broker.Decision
	weight   int // about how many bytes it takes
}

func (m *memory) recall(policy string, input *ast.Term) (broker.Decision, bool) {
	m.mu.RLock()
	r, ok := m.m[question{policy, input.Value.Hash()}]
	m.mu.RUnlock()
	if !ok || !same(r.input.Value, input.Value) {
		return broker.Decision{}, false
	}
	d := r.decision
	d.Reasons = slices.Clone(d.Reasons)
	return d, true
}

// keep remembers a decision, and forgets others if there are too many. Of
// several inputs with one hash, the last one is kept.
func (m *memory) keep(policy string, input *ast.Term, d broker.Decision) {
	weight := weigh(input, d)
	if weight > maxRememberedWeight/16 {
		return
	}
	d.Reasons = slices.Clone(d.Reasons)
	q := question{policy, input.Value.Hash()}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[question]remembered{}
	}
	m.forget(q)
	for other := range m.m { // in Go's order, which is none
		if len(m.m) < maxRemembered && m.sum+weight <= maxRememberedWeight {
			break
		}
		m.forget(other)
	}
	m.m[q] = remembered{input, d, weight}
	m.sum += weight
}

func (m *memory) forget(q question) {
	m.sum -= m.m[q].weight
	delete(m.m, q)
}

// same says that two values of JSON are the same to the letter. To Rego, and to
// its hash, 1 and 1.0 are equal; but a policy that writes them down can tell them apart.
func same(a, b ast.Value) bool {
	switch a := a.(type) {
	case ast.Null, ast.Boolean, ast.String, ast.Number:
		return a == b
	case *ast.Array:
		b, ok := b.(*ast.Array)
		if !ok || a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Elem(i).Value, b.Elem(i).Value) {
				return false
			}
		}
		return true
	case ast.Object:
		b, ok := b.(ast.Object)
		return ok && a.Len() == b.Len() && !a.Until(func(k, v *ast.Term) bool {
			other := b.Get(k) // keys are strings
			return other == nil || !same(v.Value, other.Value)
		})
	default:
		return false // not of JSON
	}
}

// weigh is about how many bytes a remembered decision takes: OPA keeps each value, however short, in some structures.
func weigh(input *ast.Term, d broker.Decision) int {
	const value, reason = 96, 96
	n := 0
	ast.WalkTerms(input, func(t *ast.Term) bool {
		n += value
		switch v := t.Value.(type) {
		case ast.String:
			n += len(v)
		case ast.Number:
			n += len(v)
		}
		return false
	})
	for _, r := range d.Reasons {
		n += reason + len(r.Rule) + len(r.Message) + len(r.Claim) + len(r.Got) + len(r.Nearest)
	}
	return n
}

// changes are the moments at which a reference set becomes valid, or is no
// longer so, in order.
func changes(sets []broker.ReferenceSet) []time.Time {
	var out []time.Time
	for _, s := range sets {
		if !s.NotBefore.IsZero() {
			out = append(out, s.NotBefore)
		}
		if !s.NotAfter.IsZero() {
			out = append(out, s.NotAfter.Add(1)) // it is valid in that nanosecond
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return out
}

// since is the last of the changes at or before now; before all of them, the first second of 1970.
func since(changes []time.Time, now time.Time) time.Time {
	i, found := slices.BinarySearchFunc(changes, now, time.Time.Compare)
	switch {
	case found:
		return now
	case i == 0 && now.Before(time.Unix(0, 0)):
		return now
	case i == 0:
		return time.Unix(0, 0)
	default:
		return changes[i-1]
	}
}
