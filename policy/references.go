package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/claviger/claviger/broker"
)

// references are reference-value sets in Rego's form. They are never changed; the
// next ones take over what stays the same, so that one set among ten thousand costs little to replace.
type references struct {
	sets map[string]convertedSet
}

// seen is data.reference and its index, as the policies of one group see them.
type seen struct{ doc, index ast.Object }

type convertedSet struct {
	set broker.ReferenceSet
	doc *ast.Term
}

// newReferences converts what is not in old, which may be nil. It requires of a
// set what ReferenceSet.Usable does, and nothing else.
func newReferences(sets []broker.ReferenceSet, old *references) (*references, error) {
	r := &references{sets: make(map[string]convertedSet, len(sets))}
	for _, s := range sets {
		if err := s.Usable(); err != nil {
			return nil, fmt.Errorf("reference set %q: %w", clip(s.Name), err)
		}
		if _, ok := r.sets[s.Name]; ok {
			return nil, fmt.Errorf("reference set %q occurs twice", s.Name)
		}
		kept, ok := convertedSet{}, false
		if old != nil {
			kept, ok = old.sets[s.Name]
		}
		if !ok || !sameSet(kept.set, s) {
			var err error
			if kept, err = convertSet(s); err != nil {
				return nil, fmt.Errorf("reference set %q: %w", s.Name, err)
			}
		}
		r.sets[s.Name] = kept
	}
	return r, nil
}

// forPolicies is what each policy sees: the sets that are for it, or for one of those
// whose sets it asks for (compiled.others). Policies that see the same share it.
func (r *references) forPolicies(c *compiled) map[string]seen {
	out := make(map[string]seen, len(c.names))
	if len(r.sets) == 0 {
		return out
	}
	owners := map[string]bool{} // that have sets of their own
	for _, s := range r.sets {
		for _, p := range s.set.Policies {
			owners[p] = true
		}
	}
	groups := map[string]seen{}
	for _, name := range c.names {
		sees := append([]string{name}, c.others[name]...)
		key := broker.AllPolicies
		if !slices.Contains(sees, key) {
			sees = slices.DeleteFunc(sees, func(p string) bool { return !owners[p] })
			slices.Sort(sees)
			key = strings.Join(slices.Compact(sees), " ")
		}
		group, ok := groups[key]
		if !ok {
			group = r.of(func(s broker.ReferenceSet) bool {
				return key == broker.AllPolicies || s.SeenBy("") || slices.ContainsFunc(sees, s.SeenBy)
			})
			groups[key] = group
		}
		out[name] = group
	}
	return out
}

// of is the document and the index of some of the sets.
func (r *references) of(some func(broker.ReferenceSet) bool) seen {
	var members [][2]*ast.Term
	x := indexer{}
	for _, name := range sortedKeys(r.sets) {
		if s := r.sets[name]; some(s.set) {
			term := ast.StringTerm(name)
			members = append(members, [2]*ast.Term{term, s.doc})
			x.add(s.set, term)
		}
	}
	return seen{ast.NewObject(members...), x.object()}
}

func convertSet(s broker.ReferenceSet) (convertedSet, error) {
	values := make(map[string][]string, len(s.Values))
	for claim, list := range s.Values {
		values[claim] = slices.Clone(list)
	}
	s.Policies, s.Resources = slices.Clone(s.Policies), slices.Clone(s.Resources)
	b, err := json.Marshal(s)
	if err != nil {
		return convertedSet{}, err
	}
	var plain any
	if err := util.UnmarshalJSON(b, &plain); err != nil {
		return convertedSet{}, err
	}
	v, err := ast.InterfaceToValue(plain)
	if err != nil {
		return convertedSet{}, err
	}
	if s.Values != nil {
		s.Values = values // what the caller does with its own does not matter
	}
	return convertedSet{set: s, doc: ast.NewTerm(v)}, nil
}

func sameSet(a, b broker.ReferenceSet) bool {
	return a.Name == b.Name && a.Type == b.Type && a.State == b.State && a.NotBefore.Equal(b.NotBefore) && a.NotAfter.Equal(b.NotAfter) &&
		a.Provenance == b.Provenance && slices.Equal(a.Policies, b.Policies) && slices.Equal(a.Resources, b.Resources) && (a.Values == nil) == (b.Values == nil) && maps.EqualFunc(a.Values, b.Values, slices.Equal[[]string])
}

// indexer makes data.reference_index: by type, claim and value, the names of the
// reference sets that list it, so that a match among thousands of sets costs what
// it costs among ten. It only proposes: reference.rego holds each candidate
// against data.reference itself. Without an index (tests that put their own
// data.reference in place) the library looks at all sets.
type indexer map[string]map[string]map[string][]*ast.Term

func (x indexer) add(s broker.ReferenceSet, name *ast.Term) {
	if len(s.Values) == 0 {
		return
	}
	byClaim := inner(x, string(s.Type))
	for claim, list := range s.Values {
		byValue := inner(byClaim, claim)
		for _, v := range list {
			byValue[v] = append(byValue[v], name)
		}
	}
}

func inner[M ~map[string]map[string]V, V any](m M, key string) map[string]V {
	if m[key] == nil {
		m[key] = map[string]V{}
	}
	return m[key]
}

func (x indexer) object() ast.Object {
	return objectOf(x, func(byClaim map[string]map[string][]*ast.Term) *ast.Term {
		return ast.NewTerm(objectOf(byClaim, func(byValue map[string][]*ast.Term) *ast.Term {
			return ast.NewTerm(objectOf(byValue, func(names []*ast.Term) *ast.Term { return ast.ArrayTerm(names...) }))
		}))
	})
}

func objectOf[M ~map[string]V, V any](m M, term func(V) *ast.Term) ast.Object {
	members := make([][2]*ast.Term, 0, len(m))
	for key, v := range m {
		members = append(members, [2]*ast.Term{ast.StringTerm(key), term(v)})
	}
	return ast.NewObject(members...)
}
