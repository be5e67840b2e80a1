// Package strictyaml reads the files that operators write, in YAML or JSON, so
// that they mean what they look like. YAML has several readings of much that
// looks plain: `off`, `010`, `1.10` and `12e4` are a boolean or numbers to one
// reader and text to another. Here the field decides: what goes into a text
// field is text as it is written, and elsewhere what has two readings is an error.
package strictyaml

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/claviger/claviger/broker/strictjson"
)

// Unmarshal decodes one document into v by its json tags. Refused are
//
//  1. names that v has no field for, in whatever case, and names that come twice
//  2. anchors, aliases, merge keys and explicit tags, and further documents
//  3. numbers that are not written as JSON has them, in fields for numbers
//  4. plain text in fields of any type, if some reader takes it for something else
//
// An error names the line.
func Unmarshal(b []byte, v any) error {
	if json.Valid(b) {
		return strictjson.UnmarshalKnown(b, v) // readers of YAML differ in JSON's escapes
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file sets nothing
	} else if err != nil {
		return err
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("line %d: a second document", max(more.Line, doc.Line))
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return errors.New("not one document")
	}
	var out bytes.Buffer
	if err := write(&out, doc.Content[0], reflect.TypeOf(v), ""); err != nil {
		return err
	}
	return known(out.Bytes(), v)
}

// known decodes the JSON that was made of a file, in which offsets mean nothing to anybody.
func known(b []byte, v any) error {
	if err := strictjson.UnmarshalKnown(b, v); err != nil {
		if e, ok := errors.AsType[*strictjson.Error](err); ok {
			return fmt.Errorf("%s: %s", e.Path, e.Reason)
		}
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("%s: %s is not for a field of type %s", e.Field, e.Value, e.Type)
		}
		return err
	}
	return nil
}

// write writes a node as the JSON that a value of type t wants.
func write(out *bytes.Buffer, n *yaml.Node, t reflect.Type, path string) error {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return refuse(n, path, "an anchor or alias")
	case n.Style&yaml.TaggedStyle != 0:
		return refuse(n, path, "a tag, %s", n.Tag)
	}
	switch n.Kind {
	case yaml.MappingNode:
		return writeMapping(out, n, t, path)
	case yaml.SequenceNode:
		out.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := write(out, item, elem(t), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		out.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		return writeScalar(out, n, t, path)
	}
	return refuse(n, path, "neither a mapping, a list nor a value")
}

func refuse(n *yaml.Node, path, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if path == "" {
		return fmt.Errorf("line %d: %s", n.Line, what)
	}
	return fmt.Errorf("line %d: %s: %s", n.Line, strings.TrimPrefix(path, "."), what)
}

func writeMapping(out *bytes.Buffer, n *yaml.Node, t reflect.Type, path string) error {
	seen := map[string]bool{}
	out.WriteByte('{')
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0:
			return refuse(key, path, "a name that is no text")
		case key.Tag == "!!merge":
			return refuse(key, path, "a merge key")
		case seen[key.Value]:
			return refuse(key, path, "the name %q occurs twice", key.Value)
		}
		seen[key.Value] = true
		if isAny(elemOf(t)) && key.Style == 0 && (key.Value == "" || numberForm.MatchString(key.Value) || ambiguous(key.Value)) {
			return refuse(key, path, "the name %q has several readings in YAML: put it in quotes", key.Value)
		}
		member, fields := strictjson.Member(t, key.Value)
		if _, ok := fields[key.Value]; !ok && fields != nil {
			return refuse(key, path, "unknown field %q%s", key.Value, meant(fields, key.Value))
		}
		if i > 0 {
			out.WriteByte(',')
		}
		if err := quote(out, key, path); err != nil {
			return err
		}
		out.WriteByte(':')
		if err := write(out, value, member, path+"."+key.Value); err != nil {
			return err
		}
	}
	out.WriteByte('}')
	return nil
}

// meant is the field that somebody may have meant who wrote it in another case.
func meant(fields map[string]reflect.Type, name string) string {
	for f := range fields {
		if strings.EqualFold(f, name) {
			return fmt.Sprintf(": it is written %q", f)
		}
	}
	return ""
}

var (
	numberForm = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)
	nulls      = []string{"", "~", "null", "Null", "NULL"}
	booleans   = map[string]string{"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
	// words are what some reader of YAML takes for something else than text; numberLike is what is a number or date to one.
	words      = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", ".inf", "-.inf", "+.inf", ".nan", "=", "<<"}
	numberLike = regexp.MustCompile(`^[-+]?(0[xob][0-9a-f_]+|[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?(e[-+]?[0-9]+)?|\.[0-9_]+(e[-+]?[0-9]+)?)$|^[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?([t ].*)?$`)
)

func writeScalar(out *bytes.Buffer, n *yaml.Node, t reflect.Type, path string) error {
	quoted := n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	if quoted {
		return quote(out, n, path)
	}
	if slices.Contains(nulls, n.Value) {
		out.WriteString("null")
		return nil
	}
	switch k := kind(t); k {
	case reflect.String:
		return quote(out, n, path)
	case reflect.Bool:
		b, ok := booleans[strings.ToLower(n.Value)]
		if !ok {
			return refuse(n, path, "%q is neither true nor false", n.Value)
		}
		out.WriteString(b)
		return nil
	case reflect.Int, reflect.Float64:
		if !numberForm.MatchString(n.Value) {
			return refuse(n, path, "%q is no decimal number", n.Value)
		}
		out.WriteString(n.Value)
		return nil
	}
	switch {
	case n.Value == "true" || n.Value == "false" || numberForm.MatchString(n.Value):
		out.WriteString(n.Value)
		return nil
	case ambiguous(n.Value):
		return refuse(n, path, "%q has several readings in YAML: put it in quotes if it is text", n.Value)
	}
	return quote(out, n, path)
}

// ambiguous says whether some reader of YAML takes plain text for something else.
func ambiguous(s string) bool {
	s = strings.ToLower(s)
	return slices.Contains(words, s) || numberLike.MatchString(s)
}

// elemOf is the type of the members of a mapping without fields.
func elemOf(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && t.Kind() == reflect.Map {
		return t.Elem()
	}
	return t
}

func isAny(t reflect.Type) bool { return t == nil || t.Kind() == reflect.Interface }

// quote writes the text of a node. What is not UTF-8, the parser has refused.
func quote(out *bytes.Buffer, n *yaml.Node, path string) error {
	b, err := json.Marshal(n.Value)
	if err != nil {
		return refuse(n, path, "%v", err)
	}
	out.Write(b)
	return nil
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
)

// kind is String, Bool, Int, Float64, or Invalid for what can be anything.
func kind(t reflect.Type) reflect.Kind {
	for t != nil {
		switch p := reflect.PointerTo(t); {
		case t.Implements(textUnmarshaler) || p.Implements(textUnmarshaler):
			return reflect.String
		case t.Implements(jsonUnmarshaler) || p.Implements(jsonUnmarshaler):
			return reflect.Invalid
		case t.Kind() != reflect.Pointer:
			switch {
			case t.Kind() == reflect.String || t.Kind() == reflect.Bool:
				return t.Kind()
			case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
				return reflect.Int
			case t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64:
				return reflect.Float64
			}
			return reflect.Invalid
		}
		t = t.Elem()
	}
	return reflect.Invalid
}

// elem is the type of a list's items.
func elem(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		return t.Elem()
	}
	return nil
}

// Line is where a field stands, as "vault[0].name" in errors, or what it is part
// of if it is not there; 0 if nothing of it is.
func Line(b []byte, path string) int {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil || len(doc.Content) != 1 {
		return 0
	}
	at, line := doc.Content[0], 0
	for _, name := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next := child(at, name)
		if next == nil {
			break
		}
		at, line = next.value, next.line
	}
	return line
}

type member struct {
	value *yaml.Node
	line  int
}

// child is a member of a mapping, or an element of a sequence; nil if there is none.
func child(n *yaml.Node, name string) *member {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				return &member{n.Content[i+1], n.Content[i].Line}
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(n.Content) {
			return &member{n.Content[i], n.Content[i].Line}
		}
	}
	return nil
}
