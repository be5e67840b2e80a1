package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/lineage"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/strictjson"
)

// TestConfig says which tests to run.
type TestConfig struct {
	Paths []string // folders or .rego files; tests are the test_ rules in *_test.rego
	// Fixtures is a folder of claims documents ({"attestation": …}, as `claviger
	// evidence show --output json` prints them); x.json becomes
	// data.fixtures.x. Folders named fixtures under Paths are read as well.
	Fixtures string
	Coverage bool
	Run      string        // regular expression over <package>.<test>; empty: all
	Timeout  time.Duration // of each test; default 5 s
	Limits   Limits
}

// TestReport is what ran and how it went.
type TestReport struct {
	Results  []TestResult `json:"results"` // sorted by file and row
	Passed   int          `json:"passed"`
	Failed   int          `json:"failed"`
	Skipped  int          `json:"skipped"`
	Coverage float64      `json:"coverage,omitempty"` // percent of the policies' lines, without library and tests
	// Uncovered are "file:row" or "file:row-row".
	Uncovered []string `json:"uncovered,omitempty"`
}

// TestResult is one test rule.
type TestResult struct {
	Package  string        `json:"package"`
	Name     string        `json:"name"`
	File     string        `json:"file"`
	Row      int           `json:"row"`
	Outcome  string        `json:"outcome"` // "pass", "fail", "error", "skip"
	Detail   string        `json:"detail,omitempty"`
	Output   string        `json:"output,omitempty"` // what print() wrote
	Duration time.Duration `json:"duration"`
}

// OK reports whether something ran and nothing failed.
func (r TestReport) OK() bool { return r.Failed == 0 && r.Passed > 0 }

// Write prints the report as text: failures with what they printed, and, if
// verbose, everything else.
func (r TestReport) Write(w io.Writer, verbose bool) error {
	var b strings.Builder
	for _, t := range r.Results {
		if !verbose && t.Outcome != "fail" && t.Outcome != "error" {
			continue
		}
		fmt.Fprintf(&b, "%-5s %s:%d: %s.%s (%s)\n", strings.ToUpper(t.Outcome), t.File, t.Row, t.Package, t.Name, t.Duration.Round(time.Microsecond))
		for _, s := range []string{t.Detail, t.Output} {
			for line := range strings.Lines(strings.TrimRight(s, "\n")) {
				fmt.Fprintf(&b, "      %s\n", strings.TrimRight(line, "\n"))
			}
		}
	}
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped\n", r.Passed, r.Failed, r.Skipped)
	if r.Coverage > 0 || len(r.Uncovered) > 0 {
		fmt.Fprintf(&b, "coverage %.1f %%\n", r.Coverage)
		for _, u := range r.Uncovered {
			fmt.Fprintf(&b, "      not covered: %s\n", u)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Test runs the tests of policies with the language and library that the engine
// gives them. An error means that nothing ran; failed tests are in the report.
func Test(ctx context.Context, cfg TestConfig) (TestReport, error) {
	caps := capabilities()
	lib, err := loadLib(caps)
	if err != nil {
		return TestReport{}, err
	}
	s, err := loadSources(cfg.Paths, caps, cfg.Limits)
	if err != nil {
		return TestReport{}, err
	}
	fixtures, err := loadFixtures(cfg)
	if err != nil {
		return TestReport{}, err
	}
	return runTests(ctx, cfg, s, lib, fixtures, caps)
}

func runTests(ctx context.Context, cfg TestConfig, s *sources, lib map[string]*ast.Module, fixtures map[string]any, caps *ast.Capabilities) (TestReport, error) {
	mods := map[string]*ast.Module{}
	for _, set := range []map[string]*ast.Module{lib, s.modules, s.tests} {
		for k, m := range set {
			mods[k] = m
		}
	}
	data := map[string]any{"fixtures": fixtures}
	for k, v := range s.data {
		data[k] = v
	}
	store, err := newStore(data, seen{}, map[string]any{})
	if err != nil {
		return TestReport{}, err
	}
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return TestReport{}, err
	}
	defer store.Abort(ctx, txn)
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	compiler := newCompiler(caps).WithEnablePrintStatements(true)
	run := tester.NewRunner().
		SetCompiler(compiler).
		SetDefaultRegoVersion(ast.RegoV1).
		SetStore(store).
		SetModules(mods).
		SetParallel(1). // OPA's json.patch sorts objects that parallel tests share: a data race
		CapturePrintOutput(true).
		RaiseBuiltinErrors(true).
		SetTimeout(cfg.Timeout).
		Filter(cfg.Run)
	cov := cover.New()
	if cfg.Coverage {
		run = run.SetCoverageQueryTracer(cov)
	}
	ch, err := runGuarded(ctx, run, txn)
	if err != nil {
		return TestReport{}, fmt.Errorf("compiling tests: %w", err)
	}
	var rep TestReport
	for r := range ch {
		rep.add(r)
	}
	slices.SortFunc(rep.Results, func(a, b TestResult) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Row - b.Row
	})
	if cfg.Coverage {
		rep.cover(cov, s.modules)
	}
	return rep, ctx.Err()
}

func runGuarded(ctx context.Context, r *tester.Runner, txn storage.Transaction) (ch chan *tester.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return r.RunTests(ctx, txn)
}

func (r *TestReport) add(t *tester.Result) {
	out := TestResult{Package: strings.TrimPrefix(t.Package, "data."), Name: t.Name, Duration: t.Duration, Output: string(t.Output), Outcome: "pass"}
	if t.Location != nil {
		out.File, out.Row = t.Location.File, t.Location.Row
	}
	switch {
	case t.Skip:
		out.Outcome = "skip"
		r.Skipped++
	case t.Error != nil:
		out.Outcome, out.Detail = "error", t.Error.Error()
		r.Failed++
	case t.Fail:
		out.Outcome = "fail"
		if t.FailedAt != nil && t.FailedAt.Location != nil {
			out.Detail = fmt.Sprintf("line %d is not true: %s", t.FailedAt.Location.Row, strings.TrimSpace(string(t.FailedAt.Location.Text)))
		}
		for names, sub := range t.SubResults.Iter {
			if sub.Fail && len(sub.SubResults) == 0 {
				out.Detail += "\ncase " + strings.Join(names, "/")
			}
		}
		r.Failed++
	default:
		r.Passed++
	}
	r.Results = append(r.Results, out)
}

// plain says of a rule that it is a value and nothing else: there is nothing to
// cover in it, and where a helper is given it, the value is (checkArguments).
func plain(r *ast.Rule) bool {
	if len(r.Head.Args) > 0 || r.Else != nil || r.Head.Value == nil || len(r.Body) != 1 {
		return false
	}
	if t, ok := r.Body[0].Terms.(*ast.Term); !ok || !isBool(t, true) {
		return false
	}
	value := true
	ast.WalkTerms(r.Head.Value, func(t *ast.Term) bool {
		switch v := t.Value.(type) {
		case ast.Call, *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension, *ast.TemplateString:
			value = false
		case ast.Ref:
			value = value && !v.HasPrefix(ast.InputRootRef)
		}
		return !value
	})
	return value
}

// cover adds the coverage of modules, leaving out library and tests.
func (r *TestReport) cover(c *cover.Cover, modules map[string]*ast.Module) {
	byFile := map[string]*ast.Module{}
	for _, m := range modules {
		rest := *m
		rest.Rules = slices.DeleteFunc(slices.Clone(m.Rules), plain)
		byFile[m.Package.Location.File] = &rest
	}
	rep := c.Report(byFile)
	lines, hit := 0, 0
	for name, f := range rep.Files {
		if byFile[name] == nil {
			continue
		}
		lines += f.CoveredLines + f.NotCoveredLines
		hit += f.CoveredLines
		for _, n := range f.NotCovered {
			at := fmt.Sprintf("%s:%d", name, n.Start.Row)
			if n.End.Row > n.Start.Row {
				at += fmt.Sprintf("-%d", n.End.Row)
			}
			r.Uncovered = append(r.Uncovered, at)
		}
	}
	slices.Sort(r.Uncovered)
	if lines > 0 {
		r.Coverage = 100 * float64(hit) / float64(lines)
	}
}

// loadSources reads folders and single files, unsigned, tests included. File
// names in errors and reports are as given plus the path within.
func loadSources(paths []string, caps *ast.Capabilities, limits Limits) (*sources, error) {
	r := reader{limits: limits.withDefaults()}
	var raw []rawBundle
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("reading policies: %w", err)
		}
		if fi.IsDir() {
			bs, err := r.folder(p)
			if err != nil {
				return nil, err
			}
			for i := range bs {
				if bs[i].loose {
					bs[i].name = strings.TrimSuffix(p, "/")
				}
			}
			raw = append(raw, bs...)
			continue
		}
		b, err := readBounded(p, r.limits.MaxArchive)
		if err != nil {
			return nil, err
		}
		if isArchive(p) {
			rb, err := r.archive(p, b)
			if err != nil {
				return nil, err
			}
			raw = append(raw, rb)
			continue
		}
		rb := rawBundle{name: filepath.Dir(p)}
		if err := r.add(&rb, filepath.Base(p), b); err != nil {
			return nil, err
		}
		raw = append(raw, rb)
	}
	s, err := gather(raw, nil, caps, r.limits)
	if err != nil {
		return nil, err
	}
	for _, set := range []map[string]*ast.Module{s.modules, s.tests} {
		for name, m := range set {
			rename(m, name)
		}
	}
	return s, nil
}

// rename gives all nodes of a module the file name that the user knows. OPA's
// locations are shared pointers, so each is renamed in place.
func rename(m *ast.Module, file string) {
	set := func(l *ast.Location) {
		if l != nil {
			l.File = file
		}
	}
	ast.WalkNodes(m, func(n ast.Node) bool {
		set(n.Loc())
		return false
	})
}

// loadFixtures reads the claims documents that tests use as input.
func loadFixtures(cfg TestConfig) (map[string]any, error) {
	limits := cfg.Limits.withDefaults()
	dirs := []string{}
	if cfg.Fixtures != "" {
		dirs = append(dirs, cfg.Fixtures)
	}
	for _, p := range cfg.Paths {
		err := filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "fixtures" && !slices.Contains(dirs, path) {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading fixtures: %w", err)
		}
	}
	out := map[string]any{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			return nil, err
		}
		if len(files)+len(out) > limits.MaxFiles {
			return nil, fmt.Errorf("reading fixtures: over %d files: %w", limits.MaxFiles, ErrTooLarge)
		}
		for _, f := range files {
			b, err := readBounded(f, limits.MaxFile)
			if err != nil {
				return nil, err
			}
			var v any
			if err := errors.Join(strictjson.Check(b), util.UnmarshalJSON(b, &v)); err != nil {
				return nil, fmt.Errorf("fixture %s: %w", f, err)
			}
			name := strings.TrimSuffix(filepath.Base(f), ".json")
			// Policies side by side may share a fixture, but one name cannot mean two documents.
			if other, ok := out[name]; ok && !reflect.DeepEqual(other, v) {
				return nil, fmt.Errorf("fixture %s: another document of this name was read before", f)
			}
			out[name] = v
		}
	}
	return out, nil
}

// Problem is a finding of Check.
type Problem struct {
	File    string `json:"file"`
	Row     int    `json:"row"`
	Message string `json:"message"`
}

// Error is String: what one mistake says where nothing can be compiled for it.
func (p Problem) Error() string { return p.String() }

func (p Problem) String() string {
	if p.File == "" {
		return p.Message
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Row, p.Message)
}

// Check compiles policies and their tests as strictly as the engine does, and
// looks for what vet finds.
func Check(paths []string) ([]Problem, error) {
	caps := capabilities()
	lib, err := loadLib(caps)
	if err != nil {
		return nil, err
	}
	s, err := loadSources(paths, caps, Limits{})
	if err != nil {
		if ps := problems(err); len(ps) > 0 {
			return ps, nil
		}
		return nil, err
	}
	mods := map[string]*ast.Module{}
	for _, set := range []map[string]*ast.Module{lib, s.modules, s.tests} {
		for k, m := range set {
			mods[k] = m
		}
	}
	var out []Problem
	c := newCompiler(caps).WithEnablePrintStatements(true).WithPathConflictsCheck(s.taken)
	if err := compile(c, mods); err != nil {
		if out = problems(err); len(out) == 0 {
			return nil, fmt.Errorf("compiling policies: %w", err)
		}
	}
	if c.Failed() {
		return out, nil
	}
	rules := newRuleIndex(c)
	asked, err := askable(s, c, rules)
	if p, ok := errors.AsType[Problem](err); ok {
		return []Problem{p}, nil
	}
	if err != nil {
		return nil, err
	}
	return vet(s, asked, rules, nil), nil
}

func problems(err error) []Problem {
	var out []Problem
	list, ok := errors.AsType[ast.Errors](err)
	if !ok {
		one, ok := errors.AsType[*ast.Error](err)
		if !ok {
			return nil
		}
		list = ast.Errors{one}
	}
	for _, e := range list {
		p := Problem{Message: e.Code + ": " + e.Message}
		if e.Location != nil {
			p.File, p.Row = e.Location.File, e.Location.Row
		}
		out = append(out, p)
	}
	return out
}

func isBool(t *ast.Term, want bool) bool {
	if t == nil {
		return false
	}
	b, ok := t.Value.(ast.Boolean)
	return ok && bool(b) == want
}

// EvalConfig is one question to a policy, for `claviger policy eval`.
type EvalConfig struct {
	Dir        string // folder, bundle or .rego file
	Policy     string // "disks"
	Input      []byte // JSON: the whole input, or only {"attestation": …}
	References []broker.ReferenceSet
	ExtraData  map[string]any
	Explain    bool
	Timeout    time.Duration // default 5 s: tracing is slow
	Now        time.Time     // for an input without time
}

// EvalResult is the answer. Explanation is the trace of what failed, or empty.
type EvalResult struct {
	Decision    broker.Decision `json:"decision"`
	Explanation string          `json:"explanation,omitempty"`
}

// compilePaths compiles folders, bundles or .rego files, as the engine would.
func compilePaths(paths []string, config map[string]any, now time.Time) (*compiled, error) {
	caps := capabilities()
	lib, err := loadLib(caps)
	if err != nil {
		return nil, err
	}
	src, err := loadSources(paths, caps, Limits{})
	if err != nil {
		return nil, err
	}
	return compileSources(src, lib, caps, config, now, true)
}

// Eval decides once, as the engine would.
func Eval(ctx context.Context, cfg EvalConfig) (EvalResult, error) {
	config, err := document(cfg.ExtraData)
	if err != nil {
		return EvalResult{}, fmt.Errorf("policy configuration: %w", err)
	}
	c, err := compilePaths([]string{cfg.Dir}, config, cfg.Now)
	if err != nil {
		return EvalResult{}, err
	}
	refs, err := newReferences(cfg.References, nil)
	if err != nil {
		return EvalResult{}, err
	}
	stores, err := newStores(c, refs, config)
	if err != nil {
		return EvalResult{}, err
	}
	in, now, err := evalInput(cfg)
	if err != nil {
		return EvalResult{}, err
	}
	input, err := new(converter).convert(in, math.MaxInt)
	if err != nil {
		return EvalResult{}, fmt.Errorf("policy input: %w", err)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	s := &snapshot{compiled: c, stores: stores, steps: defaultSteps}
	var tracer topdown.QueryTracer
	buf := topdown.NewBufferTracer()
	if cfg.Explain {
		tracer = buf
	}
	d, err := s.decide(ctx, cfg.Policy, input, now, tracer)
	res := EvalResult{Decision: d}
	if cfg.Explain && !d.Allow {
		var b bytes.Buffer
		topdown.PrettyTraceWithLocation(&b, lineage.Fails(*buf))
		res.Explanation = b.String()
	}
	return res, err
}

// evalInput fills in what a claims document lacks.
func evalInput(cfg EvalConfig) (map[string]any, time.Time, error) {
	if len(cfg.Input) > 1<<20 {
		return nil, time.Time{}, fmt.Errorf("policy input: %w", ErrTooLarge)
	}
	var in map[string]any
	if err := errors.Join(strictjson.Check(cfg.Input), util.UnmarshalJSON(cfg.Input, &in)); err != nil {
		return nil, time.Time{}, fmt.Errorf("policy input: %w", err)
	}
	now := cfg.Now
	if now.IsZero() {
		now = time.Now()
	}
	if s, ok := in["time"].(string); ok {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("policy input: time: %w", err)
		}
		now = t
	} else if in != nil {
		in["time"] = now.UTC().Format(time.RFC3339Nano)
	}
	return in, now, nil
}

// SigningKey signs a bundle.
type SigningKey struct {
	PEM       string // private key
	Algorithm string // ES256 by default
	KeyID     string // the name in Config.VerificationKeys
}

// Build writes the policies under dir as one bundle, without tests and
// fixtures, signed if key is not nil. It refuses what the engine would refuse,
// and returns the digest that the engine will report for it.
func Build(dir string, out io.Writer, revision string, key *SigningKey) (string, error) {
	caps := capabilities()
	lib, err := loadLib(caps)
	if err != nil {
		return "", err
	}
	r := reader{limits: Limits{}.withDefaults()}
	raw, err := r.folder(dir)
	if err != nil {
		return "", err
	}
	if len(raw) != 1 {
		return "", fmt.Errorf("building bundle: %s holds %d bundles, not one", dir, len(raw))
	}
	raw[0].loose = false // it leaves as a whole
	raw[0].files = slices.DeleteFunc(raw[0].files, func(f rawFile) bool {
		return strings.HasSuffix(f.path, "_test.rego") || strings.HasSuffix(f.path, ".signatures.json")
	})
	s, err := gather(raw, nil, caps, r.limits)
	if err != nil {
		return "", err
	}
	c, err := compileSources(s, lib, caps, nil, time.Time{}, true)
	if err != nil {
		return "", err
	}
	b, err := parseBundle(raw[0], nil, caps, r.limits)
	if err != nil {
		return "", err
	}
	if revision != "" {
		b.Manifest.Revision = revision
	}
	b.Manifest.SetRegoVersion(ast.RegoV1)
	if key != nil {
		alg := key.Algorithm
		if alg == "" {
			alg = "ES256"
		}
		if err := b.GenerateSignature(bundle.NewSigningConfig(key.PEM, alg, ""), key.KeyID, false); err != nil {
			return "", fmt.Errorf("signing bundle: %w", err)
		}
	}
	if err := bundle.NewWriter(out).DisableFormat(true).Write(b); err != nil {
		return "", fmt.Errorf("writing bundle: %w", err)
	}
	return c.digest, nil
}
