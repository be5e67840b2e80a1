package policy

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// converter turns Go values into Rego values as encoding/json would name them,
// without going through text: the detour costs more than the evaluation. What it
// does not know it leaves to encoding/json, so the result is always the same
// document (TestConverterIsJSON). It is safe for concurrent use.
type converter struct {
	plans sync.Map // reflect.Type -> *plan
}

// plan says how to convert a type. Types with surprises (marshalers, embedded
// structs, the ",string" option) go through encoding/json.
type plan struct {
	viaJSON bool
	fields  []field
}

type field struct {
	index     int
	name      string
	key       *ast.Term
	omitEmpty bool
	omitZero  bool
}

const maxInputDepth = 16

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	timeType      = reflect.TypeFor[time.Time]()
)

// convert returns v as a term. limit bounds the bytes of all strings and keys.
func (c *converter) convert(v any, limit int) (*ast.Term, error) {
	left := limit
	return c.value(reflect.ValueOf(v), &left, 0)
}

func (c *converter) value(v reflect.Value, left *int, depth int) (*ast.Term, error) {
	if depth > maxInputDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxInputDepth)
	}
	if *left -= 2; *left < 0 {
		return nil, ErrTooLarge
	}
	if !v.IsValid() {
		return ast.NullTerm(), nil
	}
	p := c.plan(v.Type())
	if p.viaJSON {
		return viaJSON(v, left)
	}
	if v.Type() == timeType {
		return text(v.Interface().(time.Time).UTC().Format(time.RFC3339Nano), left)
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return ast.NullTerm(), nil
		}
		return c.value(v.Elem(), left, depth+1)
	case reflect.Bool:
		return ast.InternedTerm(v.Bool()), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return number(v.Int()), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if u := v.Uint(); u <= math.MaxInt32 {
			return number(int64(u)), nil
		}
		return ast.NumberTerm(json.Number(strconv.FormatUint(v.Uint(), 10))), nil
	case reflect.Float32, reflect.Float64:
		// Numbers of decoded JSON; what is not a plain integer is rare.
		if f := v.Float(); f == math.Trunc(f) && math.Abs(f) < 1<<53 && (f != 0 || !math.Signbit(f)) {
			return number(int64(f)), nil
		}
		return viaJSON(v, left)
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			return viaJSON(v, left)
		}
		return text(v.String(), left)
	case reflect.Slice, reflect.Array:
		return c.list(v, left, depth)
	case reflect.Map:
		return c.object(v, left, depth)
	case reflect.Struct:
		pairs := make([][2]*ast.Term, 0, len(p.fields))
		for _, f := range p.fields {
			fv := v.Field(f.index)
			if f.omitEmpty && empty(fv) || f.omitZero && fv.IsZero() {
				continue
			}
			if *left -= len(f.name); *left < 0 {
				return nil, ErrTooLarge
			}
			t, err := c.value(fv, left, depth+1)
			if err != nil {
				return nil, err
			}
			pairs = append(pairs, [2]*ast.Term{f.key, t})
		}
		return ast.ObjectTerm(pairs...), nil
	default:
		return viaJSON(v, left)
	}
}

func (c *converter) list(v reflect.Value, left *int, depth int) (*ast.Term, error) {
	if v.Kind() == reflect.Slice {
		if v.IsNil() {
			return ast.NullTerm(), nil
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return viaJSON(v, left) // base64
		}
	}
	terms := make([]*ast.Term, v.Len())
	for i := range terms {
		t, err := c.value(v.Index(i), left, depth+1)
		if err != nil {
			return nil, err
		}
		terms[i] = t
	}
	return ast.ArrayTerm(terms...), nil
}

func (c *converter) object(v reflect.Value, left *int, depth int) (*ast.Term, error) {
	if v.IsNil() {
		return ast.NullTerm(), nil
	}
	if v.Type().Key().Kind() != reflect.String {
		return viaJSON(v, left)
	}
	pairs := make([][2]*ast.Term, 0, v.Len())
	for it := v.MapRange(); it.Next(); {
		k := it.Key().String()
		if !utf8.ValidString(k) {
			return nil, fmt.Errorf("key %q is not UTF-8", k)
		}
		kt, err := text(k, left)
		if err != nil {
			return nil, err
		}
		t, err := c.value(it.Value(), left, depth+1)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, [2]*ast.Term{kt, t})
	}
	return ast.ObjectTerm(pairs...), nil
}

// number shares the terms of small integers.
func number(n int64) *ast.Term {
	if int64(int(n)) == n {
		return ast.InternedTerm(int(n))
	}
	return ast.NumberTerm(json.Number(strconv.FormatInt(n, 10)))
}

func text(s string, left *int) (*ast.Term, error) {
	if *left -= len(s); *left < 0 {
		return nil, ErrTooLarge
	}
	return ast.StringTerm(s), nil
}

func viaJSON(v reflect.Value, left *int) (*ast.Term, error) {
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return nil, err
	}
	if *left -= len(b); *left < 0 {
		return nil, ErrTooLarge
	}
	x, err := ast.ValueFromReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return ast.NewTerm(x), nil
}

func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	default:
		return v.IsZero()
	}
}

func (c *converter) plan(t reflect.Type) *plan {
	if p, ok := c.plans.Load(t); ok {
		return p.(*plan)
	}
	p := makePlan(t)
	c.plans.Store(t, p)
	return p
}

func makePlan(t reflect.Type) *plan {
	if t == timeType || t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return &plan{}
	}
	if t.Implements(jsonMarshaler) || t.Implements(textMarshaler) || t == reflect.TypeFor[json.Number]() ||
		reflect.PointerTo(t).Implements(jsonMarshaler) || reflect.PointerTo(t).Implements(textMarshaler) {
		return &plan{viaJSON: true}
	}
	if t.Kind() == reflect.Map && t.Key().Implements(textMarshaler) {
		return &plan{viaJSON: true}
	}
	if t.Kind() != reflect.Struct {
		return &plan{}
	}
	p := &plan{}
	seen := map[string]bool{}
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		if tag == "-" || !f.IsExported() && !f.Anonymous {
			continue
		}
		name, opts, _ := strings.Cut(tag, ",")
		if name == "" {
			name = f.Name
		}
		options := strings.Split(opts, ",")
		_, hasIsZero := f.Type.MethodByName("IsZero")
		if f.Anonymous || slices.Contains(options, "string") || seen[name] ||
			slices.Contains(options, "omitzero") && hasIsZero && f.Type != timeType {
			return &plan{viaJSON: true}
		}
		seen[name] = true
		p.fields = append(p.fields, field{
			index: i, name: name, key: ast.StringTerm(name),
			omitEmpty: slices.Contains(options, "omitempty"),
			omitZero:  slices.Contains(options, "omitzero"),
		})
	}
	return p
}
