package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
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
		"allow if input.attestation.bound":                                                                  "default allow := false",
		"default allow := true":                                                                             "the default of allow must be false",
		"default allow := false\nallow := true":                                                             "without a condition",
		"default allow := false\nallow if true":                                                             "without a condition",
		"default allow := false\nallow if 1 == 1":                                                           "without a condition",
		"default allow := false\nallow if input.resource.path == \"disks/a\"":                               "without a condition on input.attestation",
		"default allow := false\nallow if good\ngood := 1 < 2":                                              "without a condition",
		"default allow := false\nallow if { input.attestation.bound } else := true":                         "without a condition",
		"default allow := false\nallow if {}":                                                               "the body of allow is empty",
		"default allow := false\nallow if {\n\t# input.attestation.bound\n}":                                "the body of allow is empty",
		"default allow := false\nallow if { input.attestation.bound; good }\ngood if {}":                    "the body of good is empty",
		"default allow := false\nallow if input.attestation.bound\ndeny contains \"x\" if data.helpers.bad": "data.helpers is not defined",
		"import data.claviger.lib.snp\ndefault allow := false\nallow if input.attestation.bound\ndeny contains r if some r in snp.policy_denial":  "data.claviger.lib.snp.policy_denial is not defined",
		"import data.claviger.lib.spn\ndefault allow := false\nallow if input.attestation.bound\ndeny contains r if some r in spn.policy_denials": "data.claviger.lib.spn is not defined",
		"default allow := false\nallow := input.attestation.bound":                                                                                "neither true nor false",
		"default allow := false\ndeny := [] if input.x":                                                                                           "deny contains",
		"default allow := false\ndeny if input.x":                                                                                                 "deny contains",
		"default allow := false\nallow if {":                                                                                                      "rego_parse_error",
		"default allow := false\nallow if http.send({})":                                                                                          "undefined function http.send",
		"default allow := false\nallow if { x := 1 }":                                                                                             "unused",
		"default allow := false\nallow if input.attestation.bound":                                                                                "",
		"default allow := false\nallow if input.attestation.bound\ndeny contains \"x\" if input.attestation.debugable":                            "input.attestation.debugable is in no input",
		"default allow := false\nallow if input.attestation.bound\ndeny contains \"x\" if input.atestation.debuggable":                            "input.atestation is in no input",
		"default allow := false\nallow if input.attestation.bound\ndeny contains \"x\" if input.attestation.tcb.state == \"Revoked\"":             "input.attestation.tcb.state is in no input",
		"default allow := false\nallow if input.attestation.bound\ndeny contains \"x\" if input.attestation.devices[_].debug":                     "debug is in no input",
		"import input.attestation as a\ndefault allow := false\nallow if a.bound\ndeny contains \"x\" if a.debugable":                             "input.attestation.debugable is in no input",
		"default allow := false\nallow if { input.attestation.bound; input.attestation.sev_snp.vmpl; input.attestation.measurements.x; input.resource.labels.x; input.attestation.devices[0].tcb.status }": "",
		"default allow := false\nallow if not bad\nbad if not input.attestation.bound":                                                                                                                     "",
		"default allow := false\nallow if input.attestation.bound == data.reference.set.values.y[0]\ndeny contains \"x\" if data.claviger.config.strict":                                                   "",
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
	// Conditions in tests are the author's business, but no broker loads what stands there.
	ps, err := Check([]string{write(t, map[string]string{
		"p.rego": "package claviger.release.p\ndefault allow := false", "p_test.rego": "package claviger.release.p\ntest_x if true\ndeny contains \"x\" if true",
	})})
	if err != nil || len(ps) != 1 || !strings.Contains(ps[0].Message, "file of tests") {
		t.Errorf("%v, %v", ps, err)
	}
}

// TestFolders: what `policy check` makes of folders, an engine makes of them as well.
func TestFolders(t *testing.T) {
	const p = "package claviger.release.p\n\ndefault allow := false\n\nallow if input.attestation.bound\n"
	const deny = "package claviger.release.p\n\ndeny contains \"debug\" if not input.attestation.debuggable == false\n"
	link := func(to, name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	outside := write(t, map[string]string{"p.rego": p})
	for name, tt := range map[string]struct {
		files  map[string]string
		change func(t *testing.T, dir string)
		want   string
	}{
		"good":                               {files: map[string]string{"p.rego": p}},
		"helper in its own file":             {files: map[string]string{"p.rego": p + "deny contains \"x\" if data.helpers.bad\n", "h.rego": "package helpers\n\nbad if not input.attestation.bound\n"}},
		"helper lost":                        {files: map[string]string{"p.rego": p + "deny contains \"x\" if data.helpers.bad\n"}, want: "data.helpers is not defined"},
		"any package":                        {files: map[string]string{"p.rego": p + "deny contains r if some r in data.checks[_].deny\n", "a.rego": "package checks.a\n\ndeny contains \"a\" if input.attestation.simulated\n"}, want: "data.checks[…] is whatever packages there are"},
		"any rule of a package":              {files: map[string]string{"p.rego": p + "deny contains r if some r in data.checks[_]\n", "a.rego": "package checks\n\na contains \"a\" if input.attestation.simulated\n"}},
		"data":                               {files: map[string]string{"p.rego": p + "deny contains \"x\" if not data.good[input.attestation.type]\n", "good/data.json": `{"tdx": true}`}},
		"data lost":                          {files: map[string]string{"p.rego": p + "deny contains \"x\" if data.bad[input.attestation.type]\n"}, want: "data.bad is not defined"},
		"data of another name":               {files: map[string]string{"p.rego": p + "deny contains \"x\" if data.bad[input.attestation.type]\n", "bad/bad.json": `{"tdx": true}`}, want: "bad.json"},
		"a package in two files":             {files: map[string]string{"p.rego": p, "deny.rego": deny}, want: "is also in"},
		"empty":                              {want: "no package under claviger.release"},
		"only helpers":                       {files: map[string]string{"h.rego": "package helpers\n\nbad if input.x\n"}, want: "no package under claviger.release"},
		"a linked file":                      {change: link(filepath.Join(outside, "p.rego"), "p.rego")},
		"a linked folder":                    {files: map[string]string{"p.rego": p}, change: link(outside, "more"), want: "link to a folder"},
		"a link to nothing":                  {files: map[string]string{"p.rego": p}, change: link("/nonexistent", "q.rego"), want: "q.rego"},
		"a folder named like one":            {files: map[string]string{"p.rego": p}, change: func(t *testing.T, dir string) { put(t, dir, "q.rego/x.rego", deny) }, want: "is also in"},
		"hidden folder, as Kubernetes makes": {files: map[string]string{"..data/p.rego": p}, change: link("..data/p.rego", "p.rego")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, tt.files)
			if tt.change != nil {
				tt.change(t, dir)
			}
			alias := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(dir, alias); err != nil {
				t.Fatal(err)
			}
			for _, d := range []string{dir, alias, alias + "/"} {
				ps, err := Check([]string{d})
				got := fmt.Sprint(ps, err)
				if clean := err == nil && len(ps) == 0; clean != (tt.want == "") || !strings.Contains(got, tt.want) {
					t.Errorf("check %s: %s, want %q", d, got, tt.want)
				}
				_, err = New(Config{Dir: d})
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("engine %s: %v, want %q", d, err, tt.want)
				}
			}
		})
	}
	// A bundle comes whole, so there a package may have several files.
	var packed bytes.Buffer
	if _, err := Build(write(t, map[string]string{"p.rego": p, "deny.rego": deny}), &packed, "", nil); err != nil {
		t.Fatal(err)
	}
	dir := write(t, map[string]string{"b.tar.gz": packed.String()})
	if _, err := New(Config{Dir: dir}); err != nil {
		t.Error(err)
	}
}

// TestEngineVets: an engine refuses what `policy check` finds, as file and line.
func TestEngineVets(t *testing.T) {
	_, err := New(Config{Dir: one(t, "default allow := true\n")})
	if err == nil || !strings.Contains(err.Error(), "p.rego:3: the default of allow must be false") {
		t.Fatal(err)
	}
}

func TestEval(t *testing.T) {
	dir := filepath.Join("..", "examples", "policies", "disks")
	fixture, err := json.Marshal(snpInput(t))
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
