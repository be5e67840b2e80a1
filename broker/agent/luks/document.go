package luks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"github.com/claviger/claviger/broker/strictjson"
)

// decode reads the JSON area. cryptsetup reads it with json-c, which takes the
// last of two members of one name, and C, which takes a string up to its first
// NUL. What they could read otherwise is refused:
//
//  1. what package strictjson refuses: a name twice or in another case, invalid UTF-8, data at the end
//  2. names with anything but ASCII letters, digits and punctuation, and characters written as \u in names
//  3. control characters but line ends and tabs in other programs' tokens, and in our parts all that is not printable ASCII
//  4. members that this package does not know, but in other programs' tokens
//  5. whatever would not be written again as it was read, such as 5e2, -0 or null
func (h *Header) decode(area []byte) error {
	if err := plain(area); err != nil {
		return err
	}
	var sections struct {
		Keyslots json.RawMessage            `json:"keyslots"`
		Tokens   map[string]json.RawMessage `json:"tokens"`
		Segments json.RawMessage            `json:"segments"`
		Digests  json.RawMessage            `json:"digests"`
		Config   json.RawMessage            `json:"config"`
	}
	if err := strictjson.UnmarshalKnown(area, &sections); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		doc  json.RawMessage
		to   any
	}{
		{"keyslots", sections.Keyslots, &h.Meta.Keyslots},
		{"segments", sections.Segments, &h.Meta.Segments},
		{"digests", sections.Digests, &h.Meta.Digests},
		{"config", sections.Config, &h.Meta.Config},
	} {
		if err := exactly(s.doc, s.to); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return h.decodeTokens(sections.Tokens)
}

// plain refuses characters that end or hide something for some reader, in names and values alike.
func plain(area []byte) error {
	dec := json.NewDecoder(bytes.NewReader(area))
	dec.UseNumber()
	for {
		begin := dec.InputOffset()
		tok, err := dec.Token()
		if err != nil {
			return nil // at the end; what is wrong with the syntax, strictjson says
		}
		s, ok := tok.(string)
		if !ok {
			continue
		}
		if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' }) {
			return fmt.Errorf("at byte %d: %q has control characters", begin, s)
		}
		if !isName(dec, area) {
			continue
		}
		written := area[begin:dec.InputOffset()]
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) || bytes.ContainsRune(written, '\\') {
			return fmt.Errorf("at byte %d: the name %q is not one that cryptsetup writes", begin, s)
		}
	}
}

// isName says whether the string that dec read last is a member's name.
func isName(dec *json.Decoder, area []byte) bool {
	rest := bytes.TrimLeft(area[dec.InputOffset():], " \t\r\n")
	return len(rest) > 0 && rest[0] == ':'
}

// exactly decodes one section, all of it: encoding what was understood gives the section again.
func exactly(doc []byte, v any) error {
	if len(doc) == 0 || string(doc) == "null" {
		return errors.New("missing")
	}
	if err := strictjson.UnmarshalKnown(doc, v); err != nil {
		return err
	}
	if bytes.ContainsFunc(doc, func(r rune) bool { return r > '~' || r < ' ' && r != '\n' && r != '\r' && r != '\t' }) || bytes.Contains(bytes.ReplaceAll(doc, []byte(`\/`), nil), []byte(`\`)) {
		return errors.New("it has characters that are not printable ASCII, or escapes but \\/")
	}
	again, err := encode(v)
	if err != nil {
		return err
	}
	read, err := strictjson.Numbers(doc)
	if err != nil {
		return err
	}
	written, err := strictjson.Numbers(again)
	if err != nil {
		return err
	}
	if at := outOfRange(read, ""); at != "" {
		return fmt.Errorf("%s is no whole number from 0 to %d", strings.Trim(at, ". "), maxNumber)
	}
	if at := difference(read, written, ""); at != "" {
		return fmt.Errorf("%s is not as cryptsetup writes it: what was understood would be written otherwise", strings.Trim(at, ". "))
	}
	return nil
}

// maxNumber is the largest number that cryptsetup reads as itself: it keeps numbers in 32 bits, with and without a sign.
const maxNumber = 1<<31 - 1

// outOfRange names the first number that C would take for another one, or is "".
func outOfRange(v any, path string) string {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err != nil || n < 0 || n > maxNumber {
			return path + " "
		}
	case []any:
		for _, x := range v {
			if at := outOfRange(x, path); at != "" {
				return at
			}
		}
	case map[string]any:
		for _, name := range sorted(v) {
			if at := outOfRange(v[name], path+"."+name); at != "" {
				return at
			}
		}
	}
	return ""
}

// difference names the first place where two documents differ, or is "".
func difference(a, b any, path string) string {
	x, ok1 := a.(map[string]any)
	y, ok2 := b.(map[string]any)
	if ok1 && ok2 {
		for _, name := range append(sorted(x), sorted(y)...) {
			v, inX := x[name]
			w, inY := y[name]
			if at := path + "." + name; inX != inY {
				return at
			} else if at := difference(v, w, at); at != "" {
				return at
			}
		}
		return ""
	}
	if reflect.DeepEqual(a, b) {
		return ""
	}
	return path + " "
}

// document is the JSON area as cryptsetup gets it: what was understood, and nothing else.
func (h *Header) document() ([]byte, error) { return encode(h.Meta) }

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // no escapes, as cryptsetup writes none
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode LUKS2 header: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// number reads a decimal string in the one form that it has.
func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%q is no number", s)
	}
	return n, nil
}

// id says whether s is a name of a keyslot, segment, digest or token: cryptsetup looks them up by number.
func id(s string) error {
	if n, err := number(s); err != nil || n > 31 {
		return fmt.Errorf("%q is no number from 0 to 31", s)
	}
	return nil
}
