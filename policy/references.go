package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/claviger/claviger/broker"
)

// references are reference-value sets in Rego's form: data.reference and its
// index. They are never changed; the next ones take over what stays the same,
// so that one set among ten thousand costs little to replace.
type references struct {
	sets    map[string]convertedSet
	doc     ast.Object
	index   ast.Object
	changes []time.Time // of the sets' validity
}

type convertedSet struct {
	set broker.ReferenceSet
	doc *ast.Term
}

// newReferences converts what is not in old, which may be nil. It requires of a
// set what ReferenceSet.Usable does, and nothing else.
func newReferences(sets []broker.ReferenceSet, old *references) (*references, error) {
	r := &references{sets: make(map[string]convertedSet, len(sets)), changes: changes(sets)}
	members := make([][2]*ast.Term, 0, len(sets))
	x := indexer{}
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
		name := ast.StringTerm(s.Name)
		members = append(members, [2]*ast.Term{name, kept.doc})
		x.add(s, name)
	}
	r.doc, r.index = ast.NewObject(members...), x.object()
	return r, nil
}

func convertSet(s broker.ReferenceSet) (convertedSet, error) {
	values := make(map[string][]string, len(s.Values))
	for claim, list := range s.Values {
		values[claim] = slices.Clone(list)
	}
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
		a.Provenance == b.Provenance && (a.Values == nil) == (b.Values == nil) && maps.EqualFunc(a.Values, b.Values, slices.Equal[[]string])
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
