package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// hostile has what terminals obey, and what readers do not see.
const hostile = "a\x1b[2J\x1b]0;owned\x07\r\x08\x7f\u0085\u009b31m\u202eevil\u2066\u200b\u200d\ufeff\u2028\U000e0041\u3164\u034f\ufe0f\x9b\xffz"

// check fails if b has anything in it that does more than print.
func check(t *testing.T, what string, b []byte) {
	t.Helper()
	if !utf8.Valid(b) {
		t.Errorf("%s: not UTF-8: %q", what, b)
	}
	for _, r := range string(b) {
		if r != '\n' && r != '\t' && !prints(r) {
			t.Errorf("%s: has %U: %q", what, r, b)
			return
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                     "",
		"disks/vm-1":           "disks/vm-1",
		"Zürich 東京 ✓ … é":      "Zürich 東京 ✓ … é",
		"a\nb\tc":              `a\u000ab\u0009c`,
		"\x1b[2J":              `\u001b[2J`,
		"\x7f\u0085\u202e":     `\u007f\u0085\u202e`,
		"\U000e0041":           `\udb40\udc41`,
		"\x9b\ufffd\xe2\x80":   `\x9b` + "\ufffd" + `\xe2\x80`,
		"no\u00a0break\u2800.": `no\u00a0break\u2800.`,
	} {
		if got := Text(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	check(t, "hostile", []byte(Text(hostile)))
}

// TestWriter: however a text is cut into writes, the terminal gets the same.
func TestWriter(t *testing.T) {
	text := hostile + "\n\tZürich 東京\n"
	want := escape(text, true)
	for size := 1; size < 9; size++ {
		var out bytes.Buffer
		w := Plain(&out)
		for rest := []byte(text); len(rest) > 0; {
			n := min(size, len(rest))
			if m, err := w.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		if out.String() != want {
			t.Errorf("in pieces of %d: %q, want %q", size, out.String(), want)
		}
		check(t, "writer", out.Bytes())
	}
}

// TestWriterKeepsJSON: JSON means the same after it.
func TestWriterKeepsJSON(t *testing.T) {
	in := map[string]string{"text": strings.ToValidUTF8(hostile, "?"), "back": `\` + "\u009b", "quote": "\"\u202e\""}
	b, err := json.MarshalIndent(in, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := Plain(&out).Write(b); err != nil {
		t.Fatal(err)
	}
	check(t, "JSON", out.Bytes())
	got := map[string]string{}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	for k, v := range in {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
}

// TestFprintf: an argument stays on its line, whatever its type and verb.
func TestFprintf(t *testing.T) {
	type name string
	var out bytes.Buffer
	Fprintf(&out, "%s|%v|%q|%-6s|%d|%[1]s\n", "a\nb", fmt.Errorf("x\x1b\n: %w", ErrUsage), "c\n", name("d\n"), 7)
	if got, want := out.String(), "a\\u000ab|x\\u001b\\u000a: usage|\"c\\n\"|d\\u000a    |7|a\\u000ab\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	out.Reset()
	Fprintln(&out, "a\n", 1)
	if got, want := out.String(), "a\\u000a 1\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	out.Reset()
	Fail(&out, "claviger", "one\nclaviger: all is well\x1b\n")
	if got, want := out.String(), "claviger: one\n    claviger: all is well\\u001b\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestCommandsPrintPlain: no command prints with package fmt, which passes on
// what it is given, or to the process's own streams.
func TestCommandsPrintPlain(t *testing.T) {
	banned := map[string]bool{
		"fmt.Print": true, "fmt.Printf": true, "fmt.Println": true, "fmt.Fprint": true, "fmt.Fprintf": true, "fmt.Fprintln": true,
		"os.Stdout": true, "os.Stderr": true,
	}
	// Streams that are handed over once (main), and another program's.
	allowed := map[string]int{"../../cmd/claviger/main.go": 2, "../../cmd/claviger/audit.go": 1, "../../cmd/claviger-agent/main.go": 1, "../../cmd/claviger-agent/device.go": 1}
	files, err := filepath.Glob("../../cmd/*/*.go")
	if err != nil || len(files) < 10 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		ast.Inspect(f, func(node ast.Node) bool {
			sel, ok := node.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if name := ""; ok {
				if name = pkg.Name + "." + sel.Sel.Name; banned[name] {
					if n++; n > allowed[file] {
						t.Errorf("%s: %s: print with package cli", fset.Position(node.Pos()), name)
					}
				}
			}
			return true
		})
	}
}
