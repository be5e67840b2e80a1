package deliver

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/claviger/claviger/broker/strictjson"
)

var errTooLong = errors.New("the result is too long")

// action is one of {{secret "R"}}, {{base64 "R"}} and {{field "R" "NAME"}}.
// (text/template would make the agent a third larger: adr/0022.)
var action = regexp.MustCompile(`\{\{\s*(secret|base64|field)\s+"([^"]+)"(?:\s+"([^"]+)")?\s*\}\}`)

// piece is literal text, or an action.
type piece struct {
	text                 []byte
	verb, resource, name string
}

// parse reads a template. Whatever else stands in braces is an error, not text.
func parse(source string) ([]piece, error) {
	b, err := os.ReadFile(source)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	if len(b) > maxRendered {
		return nil, fmt.Errorf("template %s: %w", source, errTooLong)
	}
	var out []piece
	literal := func(from, to int) error {
		if i := bytes.Index(b[from:to], []byte("{{")); i >= 0 {
			line := 1 + bytes.Count(b[:from+i], []byte("\n"))
			return fmt.Errorf(`template %s:%d: want {{secret "R"}}, {{base64 "R"}} or {{field "R" "NAME"}}`, source, line)
		}
		out = append(out, piece{text: b[from:to]})
		return nil
	}
	end := 0
	for _, m := range action.FindAllSubmatchIndex(b, -1) {
		if err := literal(end, m[0]); err != nil {
			return nil, err
		}
		p := piece{verb: string(b[m[2]:m[3]]), resource: string(b[m[4]:m[5]])}
		if m[6] >= 0 {
			p.name = string(b[m[6]:m[7]])
		}
		if (p.verb == "field") != (p.name != "") {
			return nil, fmt.Errorf("template %s: %s: field takes a resource and a name, the others a resource", source, b[m[0]:m[1]])
		}
		out, end = append(out, p), m[1]
	}
	return out, literal(end, len(b))
}

// resourcesOf says which secrets a template asks for.
func resourcesOf(source string) ([]string, error) {
	pieces, err := parse(source)
	var names []string
	for _, p := range pieces {
		if p.verb != "" {
			names = append(names, p.resource)
		}
	}
	return names, err
}

// render fills a template in. A missing secret or field is an error, never an empty text.
func render(source string, held map[string]*version) ([]byte, error) {
	pieces, err := parse(source)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, p := range pieces {
		if p.verb == "" {
			out = append(out, p.text...)
			continue
		}
		v, ok := held[p.resource]
		if !ok {
			return nil, fmt.Errorf("template %s: secret %q was not asked for when the agent started", source, p.resource)
		}
		switch p.verb {
		case "secret":
			out = append(out, v.value...)
		case "base64":
			out = base64.StdEncoding.AppendEncode(out, v.value)
		case "field":
			if out, err = appendField(out, v.value, p.name); err != nil {
				return nil, fmt.Errorf("template %s: secret %q: %w", source, p.resource, err)
			}
		}
		if len(out) > maxRendered {
			return nil, fmt.Errorf("template %s: %w", source, errTooLong)
		}
	}
	return out, nil
}

// appendField adds one field of a JSON object: a string as it is, anything else as JSON.
func appendField(out, object []byte, name string) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := strictjson.Unmarshal(object, &fields); err != nil {
		return nil, errors.New("not a JSON object that has one reading") // the error could quote it
	}
	raw, ok := fields[name]
	if !ok {
		return nil, fmt.Errorf("no field %q", name)
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return append(out, text...), nil
	}
	return append(out, raw...), nil
}
