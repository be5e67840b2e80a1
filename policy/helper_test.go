package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
)

// rewrite changes the files of an archive; edit returns an empty name to drop one.
func rewrite(t *testing.T, in string, edit func(name, content string) (string, string), more ...[2]string) string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader([]byte(in)))
	if err != nil {
		t.Fatal(err)
	}
	var files [][2]string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if n, c := edit(h.Name, string(b)); n != "" {
			files = append(files, [2]string{n, c})
		}
	}
	return archiveList(append(files, more...))
}

// resign replaces p.rego and signs again, without our own checks.
func resign(t *testing.T, in, key, module string) string {
	t.Helper()
	b, err := bundle.NewReader(bytes.NewReader([]byte(in))).WithSkipBundleVerification(true).WithRegoVersion(ast.RegoV1).Read()
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.Modules {
		b.Modules[i].Raw = []byte(module)
	}
	if err := b.GenerateSignature(bundle.NewSigningConfig(key, "ES256", ""), "k1", false); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := bundle.NewWriter(&out).DisableFormat(true).Write(b); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
