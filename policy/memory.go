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
	maxRemembered      = 2048
	maxRememberedBytes = 4 << 20 // of strings and keys; in Rego's form they take some times that
)

// memory has the decisions of one snapshot by all that they are a function of:
// the policy, and what of the input it can see. It is emptied by every change
// of bundle or reference values, because those make another snapshot.
type memory struct {
	mu   sync.RWMutex
	m    map[question]remembered
	size int // of all inputs, in bytes
}

// question finds what may be remembered; that it is the same input is compared.
type question struct {
	policy string
	hash   int
}

type remembered struct {
	input    *ast.Term // what the policy was shown; never changed
	size     int       // of its strings and keys, in bytes
	decision broker.Decision
}

func (m *memory) recall(policy string, input *ast.Term) (broker.Decision, bool) {
	m.mu.RLock()
	r, ok := m.m[question{policy, input.Value.Hash()}]
	m.mu.RUnlock()
	if !ok || !ast.ValueEqual(r.input.Value, input.Value) {
		return broker.Decision{}, false
	}
	d := r.decision
	d.Reasons = slices.Clone(d.Reasons)
	return d, true
}

// keep remembers a decision, and forgets others if there are too many. size is
// that of the input. Of several inputs with one hash, the last one is kept.
func (m *memory) keep(policy string, input *ast.Term, size int, d broker.Decision) {
	if size > maxRememberedBytes/16 {
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
		if len(m.m) < maxRemembered && m.size+size <= maxRememberedBytes {
			break
		}
		m.forget(other)
	}
	m.m[q] = remembered{input, size, d}
	m.size += size
}

func (m *memory) forget(q question) {
	m.size -= m.m[q].size
	delete(m.m, q)
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

// since is the last of the changes at or before now, or the first second of 1970.
func since(changes []time.Time, now time.Time) time.Time {
	i, found := slices.BinarySearchFunc(changes, now, time.Time.Compare)
	switch {
	case found:
		return now
	case i == 0:
		return time.Unix(0, 0)
	default:
		return changes[i-1]
	}
}
