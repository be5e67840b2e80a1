// Package docs keeps the documents true where a test can.
package docs

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/claviger/claviger/internal/server"
)

const root = "../../"

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(root + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSecurityNamesRealTests: a claim is worth the test that holds it.
func TestSecurityNamesRealTests(t *testing.T) {
	names := regexp.MustCompile("`(Test[A-Za-z0-9_]+)`").FindAllStringSubmatch(read(t, "SECURITY.md"), -1)
	if len(names) < 30 {
		t.Fatalf("found only %d names", len(names))
	}
	out, err := exec.Command("grep", "-rhoE", "^func Test[A-Za-z0-9_]+", "--include=*_test.go", root+"broker", root+"policy", root+"internal", root+"cmd").Output()
	if err != nil {
		t.Fatal(err)
	}
	have := "\n" + string(out)
	for _, n := range names {
		if !strings.Contains(have, "\nfunc "+n[1]+"\n") {
			t.Errorf("SECURITY.md names %s, which does not exist", n[1])
		}
	}
}

// TestExampleConfiguration: deploy/claviger.yaml is accepted.
func TestExampleConfiguration(t *testing.T) {
	cfg, err := server.Load(root + "deploy/claviger.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Complete(); err != nil {
		t.Error(err)
	}
}

// TestDependenciesAreExplained: each direct dependency is named with its reason.
func TestDependenciesAreExplained(t *testing.T) {
	text := read(t, "docs/dependencies.md")
	for _, line := range strings.Split(read(t, "go.mod"), "\n") {
		f := strings.Fields(line)
		if len(f) != 2 || !strings.Contains(f[0], ".") || strings.HasPrefix(f[0], "go.mod") {
			continue
		}
		parts := strings.Split(f[0], "/")
		if word := parts[min(1, len(parts)-1)]; !strings.Contains(text, word) {
			t.Errorf("docs/dependencies.md does not explain %s", f[0])
		}
	}
}
