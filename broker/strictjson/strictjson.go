// Package strictjson decodes JSON documents that have one reading only. It
// exists because encoding/json is lenient where another reader of the same
// bytes need not be: it takes "SVN" for the field "svn" (and "ſvn" too), takes
// the last of two members of one name, replaces invalid UTF-8, and rounds
// numbers. What one program has checked is then not what the next one reads
// (docs/adr/0026-one-reading.md).
//
// It says nothing about what a document means: that is for its caller.
package strictjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is how deeply objects and arrays may be nested.
const MaxDepth = 64

// Error says what is wrong with a document, and where.
type Error struct {
	Path   string // such as tcbInfo.tcbLevels[3].tcb; empty for the document itself
	Offset int    // in bytes
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("JSON at byte %d: %s", e.Offset, e.Reason)
	}
	return fmt.Sprintf("JSON at byte %d, in %s: %s", e.Offset, e.Path, e.Reason)
}

// Unmarshal decodes doc into v as json.Unmarshal does, once it has refused
//
//  1. what is not exactly one JSON value, and nesting beyond MaxDepth
//  2. invalid UTF-8, and halves of surrogate pairs
//  3. two members of one name in one object, after unescaping
//  4. control characters in a member's name
//  5. a name that differs from that of a field of v, but only in its case
//  6. a number for an `any` that a float64 would change
//
// Members that v has no field for are ignored: formats grow.
func Unmarshal(doc []byte, v any) error { return unmarshal(doc, v, false) }

// UnmarshalKnown is Unmarshal, and refuses members that v has no field for.
func UnmarshalKnown(doc []byte, v any) error { return unmarshal(doc, v, true) }

func unmarshal(doc []byte, v any, known bool) error {
	if err := walk(doc, reflect.TypeOf(v), known); err != nil {
		return err
	}
	if err := json.Unmarshal(doc, v); err != nil {
		return fmt.Errorf("JSON: %w", err)
	}
	return nil
}

// Check applies rules 1 to 4 of Unmarshal, for documents that another library decodes.
func Check(doc []byte) error { return walk(doc, nil, false) }

// Numbers decodes doc into maps, slices and json.Numbers, which keep each number as it is written.
func Numbers(doc []byte) (any, error) {
	if err := Check(doc); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("JSON: %w", err)
	}
	return v, nil
}

func walk(doc []byte, t reflect.Type, known bool) error {
	if !json.Valid(doc) {
		var whole json.RawMessage
		return fmt.Errorf("JSON: %w", json.Unmarshal(doc, &whole))
	}
	w := walker{doc: doc, known: known, fields: map[reflect.Type]map[string]reflect.Type{}}
	return w.value(t, 0)
}

// walker goes through a document whose syntax is right.
type walker struct {
	doc   []byte
	at    int
	path  []string
	known bool
	// fields of the types met so far: a list has many objects of one type
	fields map[reflect.Type]map[string]reflect.Type
}

func (w *walker) refuse(at int, format string, args ...any) error {
	return &Error{strings.TrimPrefix(strings.Join(w.path, ""), "."), at, fmt.Sprintf(format, args...)}
}

// next skips white space and returns the byte behind it.
func (w *walker) next() byte {
	for w.at < len(w.doc) && strings.IndexByte(" \t\r\n", w.doc[w.at]) >= 0 {
		w.at++
	}
	return w.doc[w.at]
}

func (w *walker) value(t reflect.Type, depth int) error {
	if depth > MaxDepth {
		return w.refuse(w.at, "nested more than %d deep", MaxDepth)
	}
	t = target(t)
	switch c := w.next(); c {
	case '{':
		return w.object(t, depth)
	case '[':
		return w.array(t, depth)
	case '"':
		_, err := w.text()
		return err
	default:
		begin := w.at
		for w.at < len(w.doc) && strings.IndexByte(" \t\r\n,]}", w.doc[w.at]) < 0 {
			w.at++
		}
		if isAny(t) && (c == '-' || c >= '0' && c <= '9') && !exact(string(w.doc[begin:w.at])) {
			return w.refuse(begin, "the number %.40s is not kept exactly", w.doc[begin:w.at])
		}
		return nil
	}
}

func (w *walker) object(t reflect.Type, depth int) error {
	fields := w.fields[t]
	if fields == nil {
		fields = fieldsOf(t)
		w.fields[t] = fields
	}
	seen := map[string]bool{}
	w.at++
	for w.next() != '}' {
		if w.doc[w.at] == ',' {
			w.at++
			w.next()
		}
		begin := w.at
		name, err := w.text()
		if err != nil {
			return err
		}
		if err := w.name(begin, name, seen, fields); err != nil {
			return err
		}
		w.next() // ':'
		w.at++
		w.path = append(w.path, "."+printable(name))
		if err := w.value(memberType(t, fields, name), depth+1); err != nil {
			return err
		}
		w.path = w.path[:len(w.path)-1]
	}
	w.at++
	return nil
}

// name holds a member's name against those before it and the fields that it could be meant for.
func (w *walker) name(at int, name string, seen map[string]bool, fields map[string]reflect.Type) error {
	if strings.ContainsFunc(name, unicode.IsControl) {
		return w.refuse(at, "the name %q has control characters", name)
	}
	if seen[name] {
		return w.refuse(at, "the name %q occurs twice", name)
	}
	seen[name] = true
	if _, ok := fields[name]; ok || fields == nil {
		return nil
	}
	for f := range fields {
		if strings.EqualFold(f, name) {
			return w.refuse(at, "the name %q is not %q", name, f)
		}
	}
	if w.known {
		return w.refuse(at, "the name %q is unknown", name)
	}
	return nil
}

func (w *walker) array(t reflect.Type, depth int) error {
	var elem reflect.Type
	switch {
	case isAny(t):
		elem = t
	case t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array):
		elem = t.Elem()
	}
	w.at++
	for i := 0; w.next() != ']'; i++ {
		if w.doc[w.at] == ',' {
			w.at++
			w.next()
		}
		w.path = append(w.path, "["+strconv.Itoa(i)+"]")
		if err := w.value(elem, depth+1); err != nil {
			return err
		}
		w.path = w.path[:len(w.path)-1]
	}
	w.at++
	return nil
}

// text reads a string, whose first quote is next, and returns it unescaped.
func (w *walker) text() (string, error) {
	begin := w.at
	escaped := false
	for w.at++; w.doc[w.at] != '"'; w.at++ {
		if w.doc[w.at] != '\\' {
			continue
		}
		escaped = true
		w.at++
		if w.doc[w.at] != 'u' {
			continue
		}
		if r := hex4(w.doc[w.at+1:]); utf16.IsSurrogate(r) {
			rest := w.doc[w.at+5:]
			if len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' || utf16.DecodeRune(r, hex4(rest[2:])) == utf8.RuneError {
				return "", w.refuse(w.at-1, "half of a surrogate pair")
			}
			w.at += 6
		}
	}
	w.at++
	raw := w.doc[begin:w.at]
	if !utf8.Valid(raw) {
		return "", w.refuse(begin, "invalid UTF-8")
	}
	if !escaped {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", w.refuse(begin, "%v", err)
	}
	return s, nil
}

func hex4(b []byte) rune {
	n, err := strconv.ParseUint(string(b[:min(4, len(b))]), 16, 16)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}

// exact reports whether a float64 keeps a number. Fractions are kept as far as any reader keeps them.
func exact(literal string) bool {
	f, err := strconv.ParseFloat(literal, 64)
	if err != nil {
		return false
	}
	mantissa, _, _ := strings.Cut(strings.ToLower(literal), "e")
	if f == 0 {
		return strings.Trim(mantissa, "-0.") == ""
	}
	n, ok := new(big.Rat).SetString(literal)
	if !ok {
		return false
	}
	if n.IsInt() {
		return new(big.Rat).SetFloat64(f).Cmp(n) == 0
	}
	return len(strings.TrimLeft(strings.ReplaceAll(mantissa, ".", ""), "-0")) <= 17
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// target is the type whose fields and elements count: what t points at, or nil if it decodes itself.
func target(t reflect.Type) reflect.Type {
	for t != nil {
		if t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler) {
			return nil
		}
		if t.Kind() != reflect.Pointer {
			return t
		}
		t = t.Elem()
	}
	return nil
}

func isAny(t reflect.Type) bool {
	return t != nil && t.Kind() == reflect.Interface && t.NumMethod() == 0
}

func memberType(t reflect.Type, fields map[string]reflect.Type, name string) reflect.Type {
	switch {
	case isAny(t):
		return t
	case t != nil && t.Kind() == reflect.Map:
		return t.Elem()
	}
	return fields[name]
}

// Member is the type that Unmarshal gives the member of that name in a value of type t, and the names that t has for members.
// They are nil if nothing says.
func Member(t reflect.Type, name string) (reflect.Type, map[string]reflect.Type) {
	t = target(t)
	fields := fieldsOf(t)
	return memberType(t, fields, name), fields
}

// fieldsOf are the fields of a struct by name; nil of all else.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	fields := map[string]reflect.Type{}
	addFields(fields, t)
	return fields
}

// addFields adds the names by which encoding/json knows the fields of t, those of embedded structs included.
func addFields(to map[string]reflect.Type, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Tag.Get("json") == "-" {
			continue
		}
		if inner := target(f.Type); f.Anonymous && name == "" && inner != nil && inner.Kind() == reflect.Struct {
			addFields(to, inner)
			continue
		}
		if !f.IsExported() {
			continue
		}
		if name == "" {
			name = f.Name
		}
		to[name] = f.Type
	}
}

// printable keeps a stranger's names from writing to a terminal.
func printable(name string) string {
	q := strconv.QuoteToASCII(name)
	if len(q) > 80 {
		return q[:80] + "…"
	}
	return q[1 : len(q)-1]
}
