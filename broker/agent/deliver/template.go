package deliver

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/template"
)

var errTooLong = errors.New("the result is too long")

// limited stops a template that runs away.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxRendered {
		return 0, errTooLong
	}
	return l.Buffer.Write(p)
}

// resourcesOf renders with a stand-in for every secret, only to learn which it asks for.
func resourcesOf(source string) ([]string, error) {
	var names []string
	note := func(name string) string { names = append(names, name); return "" }
	t, err := parse(source, template.FuncMap{
		"secret": note,
		"json":   func(name string) (map[string]any, error) { note(name); return map[string]any{}, nil },
	}, "missingkey=zero")
	if err != nil {
		return nil, err
	}
	if err := t.Execute(&limited{}, nil); err != nil {
		return nil, fmt.Errorf("template %s: %w", source, err)
	}
	return names, nil
}

// render fills a template in. A missing secret or field is an error, never an empty text.
func render(source string, held map[string]*version) ([]byte, error) {
	get := func(name string) (*version, error) {
		v, ok := held[name]
		if !ok {
			return nil, fmt.Errorf("secret %q was not asked for when the agent started", name)
		}
		return v, nil
	}
	t, err := parse(source, template.FuncMap{
		"secret": func(name string) (string, error) {
			v, err := get(name)
			if err != nil {
				return "", err
			}
			return string(v.value), nil
		},
		"json": func(name string) (map[string]any, error) {
			v, err := get(name)
			if err != nil {
				return nil, err
			}
			var out map[string]any
			if err := json.Unmarshal(v.value, &out); err != nil {
				return nil, fmt.Errorf("secret %q is not a JSON object", name)
			}
			return out, nil
		},
	}, "missingkey=error")
	if err != nil {
		return nil, err
	}
	var out limited
	if err := t.Execute(&out, nil); err != nil {
		return nil, fmt.Errorf("template %s: %w", source, err)
	}
	return out.Bytes(), nil
}

func parse(source string, funcs template.FuncMap, option string) (*template.Template, error) {
	b, err := os.ReadFile(source)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	funcs["base64"] = func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	t, err := template.New(source).Option(option).Funcs(funcs).Parse(string(b))
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	return t, nil
}
