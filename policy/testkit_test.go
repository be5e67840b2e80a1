package policy

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/format"

	"github.com/claviger/claviger/broker"
)

func report(t *testing.T, r TestReport) {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b, false); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + b.String())
	if !r.OK() {
		t.Error("tests failed")
	}
}

func TestLibrary(t *testing.T) {
	caps := capabilities()
	s, err := loadSources([]string{"testdata/lib"}, caps, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	lib, err := loadLib(caps)
	if err != nil {
		t.Fatal(err)
	}
	s.modules = lib // for coverage
	r, err := runTests(t.Context(), TestConfig{Coverage: true}, s, nil, nil, caps)
	if err != nil {
		t.Fatal(err)
	}
	report(t, r)
	if r.Coverage < 95 {
		t.Errorf("coverage of the library %.1f %%", r.Coverage)
	}
}

func TestExamples(t *testing.T) {
	for _, name := range []string{"disks", "workload", "tdx_strict", "measured_boot", "measured_boot_grub", "enclave", "azure_disk", "gce_workload", "nitro_enclave", "keystone_enclave", "confidential_space", "psa_device", "cca_realm", "gpu_h100", "gpu_guest"} {
		dir := filepath.Join("..", "examples", "policies", name)
		r, err := Test(t.Context(), TestConfig{Paths: []string{dir}, Coverage: true})
		if err != nil {
			t.Fatal(err)
		}
		report(t, r)
		if r.Coverage < 100 {
			t.Errorf("%s: coverage %.1f %%", name, r.Coverage)
		}
		ps, err := Check([]string{dir})
		if err != nil || len(ps) > 0 {
			t.Errorf("%s: %v, error %v", name, ps, err)
		}
	}
}

func TestRegoIsFormatted(t *testing.T) {
	for _, pattern := range []string{"lib/*.rego", "testdata/lib/*.rego", "../examples/policies/*/*.rego"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, error %v", pattern, len(files), err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			out, err := format.SourceWithOpts(f, b, format.Opts{RegoVersion: ast.RegoV1})
			if err != nil {
				t.Errorf("%s: %v", f, err)
				continue
			}
			if os.Getenv("REGO_FMT") != "" {
				if err := os.WriteFile(f, out, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(b, out) {
				t.Errorf("%s is not formatted (REGO_FMT=1 go test -run Formatted writes it)", f)
			}
		}
	}
}

func TestTestReportsFailures(t *testing.T) {
	dir := write(t, map[string]string{
		"p.rego": "package claviger.release.p\ndefault allow := false\nallow if input.attestation.bound\ndeny contains \"x\" if input.never\n",
		"p_test.rego": `package claviger.release.p_test
import data.claviger.release.p
test_good if p.allow with input as data.fixtures.good
test_bad if { print("seen", 42); not p.allow with input as data.fixtures.good }
test_error if { to_number("x") == 1 }
todo_test_later if false
`,
		"fixtures/good.json": `{"attestation": {"bound": true}}`,
	})
	r, err := Test(t.Context(), TestConfig{Paths: []string{dir}, Coverage: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Passed != 1 || r.Failed != 2 || r.Skipped != 1 || r.OK() {
		t.Errorf("report %+v", r)
	}
	var b bytes.Buffer
	if err := r.Write(&b, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"seen 42", "p_test.rego:4", "test_bad", "eval_builtin_error", "coverage", "p.rego:4"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("report lacks %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "test_good") {
		t.Error("a passed test is reported without verbose")
	}
	r, err = Test(t.Context(), TestConfig{Paths: []string{dir}, Run: "test_good"})
	if err != nil || !r.OK() || len(r.Results) != 1 {
		t.Errorf("with Run: %+v, %v", r, err)
	}
	// Tests have no more language than policies.
	put(t, dir, "p_test.rego", "package p_test\ntest_x if http.send({\"url\": \"http://127.0.0.1\", \"method\": \"get\"})")
	if _, err := Test(t.Context(), TestConfig{Paths: []string{dir}}); err == nil {
		t.Error("http.send in a test")
	}
}

func TestCheck(t *testing.T) {
	for body, want := range map[string]string{
		"allow if input.x":                                          "default allow := false",
		"default allow := true":                                     "the default of allow must be false",
		"default allow := false\nallow := true":                     "without a condition",
		"default allow := false\nallow if true":                     "without a condition",
		"default allow := false\nallow if { input.x } else := true": "without a condition",
		"default allow := false\nallow := input.x":                  "neither true nor false",
		"default allow := false\ndeny := [] if input.x":             "deny contains",
		"default allow := false\ndeny if input.x":                   "deny contains",
		"default allow := false\nallow if {":                        "rego_parse_error",
		"default allow := false\nallow if http.send({})":            "undefined function http.send",
		"default allow := false\nallow if { x := 1 }":               "unused",
		"default allow := false\nallow if input.x":                  "",
	} {
		dir := one(t, body)
		ps, err := Check([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, p := range ps {
			all = append(all, p.String())
			if !strings.Contains(p.File, "p.rego") || p.Row == 0 {
				t.Errorf("%q: no place in %+v", body, p)
			}
		}
		got := strings.Join(all, "\n")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", body, got, want)
		}
	}
	// Conditions in tests are the author's business.
	dir := write(t, map[string]string{"p.rego": "package claviger.release.p\ndefault allow := false", "p_test.rego": "package claviger.release.p\nallow if true"})
	if ps, err := Check([]string{dir}); err != nil || len(ps) > 0 {
		t.Errorf("%v, %v", ps, err)
	}
}

func TestEval(t *testing.T) {
	dir := filepath.Join("..", "examples", "policies", "disks")
	fixture, err := os.ReadFile(filepath.Join(dir, "fixtures", "snp_milan.json"))
	if err != nil {
		t.Fatal(err)
	}
	set := snpSet("fleet", snpInput(t))
	r, err := Eval(t.Context(), EvalConfig{Dir: dir, Policy: "disks", Input: fixture, References: []broker.ReferenceSet{set}, Explain: true, Now: testTime})
	if err != nil || !r.Decision.Allow || r.Explanation != "" {
		t.Errorf("%+v, %v", r, err)
	}
	set.Values["measurement"] = []string{"00"}
	r, err = Eval(t.Context(), EvalConfig{Dir: dir, Policy: "disks", Input: fixture, References: []broker.ReferenceSet{set}, Explain: true, Now: testTime})
	if err != nil || r.Decision.Allow || rules(r.Decision) != "measurement_unknown" || !strings.Contains(r.Explanation, "disks.rego") {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "[]", "{", `{"time": "yesterday"}`} {
		if r, err := Eval(t.Context(), EvalConfig{Dir: dir, Policy: "disks", Input: []byte(bad)}); err == nil || r.Decision.Allow {
			t.Errorf("input %q: %v", bad, err)
		}
	}
}
