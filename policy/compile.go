package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/pemfile"
)

//go:embed lib/*.rego
var libFiles embed.FS

const (
	releasePackage = "data.claviger.release"
	libPackage     = "data.claviger.lib"
	referencesRule = "references_of"
)

// VerificationKey is a key that policy bundles may be signed with.
type VerificationKey struct {
	PEM       string // public key, PKIX
	Algorithm string // JWS name: ES256, ES384, ES512, RS256…, PS256…, EdDSA
}

// compiled is one good bundle, ready to be asked. It is immutable.
type compiled struct {
	digest   string
	revision string
	compiler *ast.Compiler
	data     map[string]any       // the bundles' own data
	queries  map[string]ast.Body  // by policy name
	reads    map[string]selection // by policy name: what its rules name of the input
	others   map[string][]string  // by policy name: whose reference sets it sees beside its own
	wants    map[string][]string  // by policy name: members of input.resource without which it always denies, as "params.vm"
	names    []string             // sorted
	loadedAt time.Time
}

// loadLib parses the embedded helper library.
func loadLib(caps *ast.Capabilities) (map[string]*ast.Module, error) {
	names, err := fs.Glob(libFiles, "lib/*.rego")
	if err != nil {
		return nil, err
	}
	mods := make(map[string]*ast.Module, len(names))
	for _, n := range names {
		b, err := libFiles.ReadFile(n)
		if err != nil {
			return nil, err
		}
		m, err := ast.ParseModuleWithOpts("claviger/"+n, string(b), parserOptions(caps))
		if err != nil {
			return nil, fmt.Errorf("parsing the policy library: %w", err)
		}
		mods["claviger/"+n] = m
	}
	return mods, checkTakes(mods)
}

func parserOptions(caps *ast.Capabilities) ast.ParserOptions {
	return ast.ParserOptions{Capabilities: caps, RegoVersion: ast.RegoV1, ProcessAnnotation: false}
}

// verificationConfig turns keys into OPA's form; nil keys ask for no signature.
func verificationConfig(keys map[string]VerificationKey) (*bundle.VerificationConfig, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	out := make(map[string]*bundle.KeyConfig, len(keys))
	for id, k := range keys {
		switch k.Algorithm {
		case "ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA":
		default:
			// An HMAC key verifies what it can also forge.
			return nil, fmt.Errorf("verification key %q: algorithm %q is not an asymmetric signature", id, k.Algorithm)
		}
		der, err := pemfile.One([]byte(k.PEM), "PUBLIC KEY")
		if err == nil {
			_, err = x509.ParsePKIXPublicKey(der)
		}
		if err != nil || id == "" {
			return nil, fmt.Errorf("verification key %q: not a PEM public key with an id: %w", id, err)
		}
		// Written anew: OPA gets the key that was read here, and no other beside it.
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		out[id] = &bundle.KeyConfig{Key: string(text), Algorithm: k.Algorithm}
	}
	return bundle.NewVerificationConfig(out, "", "", nil), nil
}

// parseBundle runs OPA's bundle reader over raw. The reader checks the
// signature, if keys are configured, against the very bytes it then parses.
func parseBundle(raw rawBundle, keys *bundle.VerificationConfig, caps *ast.Capabilities, limits Limits) (bundle.Bundle, error) {
	for _, f := range raw.files {
		if strings.HasSuffix(f.path, "patch.json") {
			return bundle.Bundle{}, fmt.Errorf("%s: delta bundles are not accepted", raw.name)
		}
		if !understood(f.path) {
			return bundle.Bundle{}, fmt.Errorf("%s: %s would not be read: data files are named data.json or data.yaml (documents for tests go into a folder named fixtures)", raw.name, f.path)
		}
	}
	if err := oneReading(raw); err != nil {
		return bundle.Bundle{}, err
	}
	r := bundle.NewCustomReader(&memLoader{files: raw.files}).
		WithRegoVersion(ast.RegoV1).
		WithCapabilities(caps).
		WithSizeLimitBytes(limits.MaxFile + 1)
	if keys != nil {
		r = r.WithBundleVerificationConfig(keys)
	} else {
		r = r.WithSkipBundleVerification(true)
	}
	b, err := r.Read()
	if err != nil {
		return bundle.Bundle{}, fmt.Errorf("%s: %w", raw.name, err)
	}
	// Compiled code in a bundle is not what a reviewer reads.
	if len(b.WasmModules) > 0 || len(b.PlanModules) > 0 || len(b.Manifest.WasmResolvers) > 0 {
		return bundle.Bundle{}, fmt.Errorf("%s: WebAssembly and plans are not accepted", raw.name)
	}
	for _, m := range b.Modules {
		if m.Parsed == nil || m.Parsed.RegoVersionSpan() != ast.RegoVersionSpanOf(ast.RegoV1) {
			return bundle.Bundle{}, fmt.Errorf("%s: %s: not Rego v1", raw.name, m.RelativePath)
		}
	}
	return b, nil
}

// understood says whether OPA's bundle reader, or a test, reads the file. What it would pass over in silence is refused.
func understood(name string) bool {
	switch path.Ext(name) {
	case ".json", ".yaml", ".yml":
	default:
		return true
	}
	switch path.Base(name) {
	case "data.json", "data.yaml", "data.yml", ".manifest", ".signatures.json":
		return true
	}
	return slices.Contains(strings.Split(path.Dir(name), "/"), "fixtures")
}

// sources are the modules and data of all bundles in a folder.
type sources struct {
	modules  map[string]*ast.Module // without tests and without the library
	tests    map[string]*ast.Module
	loose    map[string]bool // modules of an unpacked folder
	data     map[string]any
	revision string
	entries  []entry // what the digest covers
}

type entry struct{ path, content string }

// gather merges bundles. Each package and each data root comes from one bundle
// only: otherwise a second bundle could add an allow rule to another team's policy.
func gather(bundles []rawBundle, keys *bundle.VerificationConfig, caps *ast.Capabilities, limits Limits) (*sources, error) {
	s := &sources{modules: map[string]*ast.Module{}, tests: map[string]*ast.Module{}, loose: map[string]bool{}, data: map[string]any{}}
	owner := map[string]string{} // of packages' roots and, in the same way, of data's
	own := func(root, bundle string) (other string, ok bool) {
		if o := owner[root]; o != "" && o != bundle {
			return o, false
		}
		owner[root] = bundle
		return "", true
	}
	var revisions []string
	for _, raw := range bundles {
		b, err := parseBundle(raw, keys, caps, limits)
		if err != nil {
			return nil, err
		}
		if b.Manifest.Revision != "" {
			revisions = append(revisions, b.Manifest.Revision)
		}
		for _, m := range b.Modules {
			key := raw.name + "/" + strings.TrimPrefix(m.RelativePath, "/")
			if err := checkPackage(m.Parsed.Package.Path); err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			if strings.HasSuffix(m.RelativePath, "_test.rego") {
				s.tests[key] = m.Parsed
				continue
			}
			root := packageRoot(m.Parsed.Package.Path)
			if o, ok := own(root, raw.name); !ok {
				return nil, fmt.Errorf("%s: package %s is also in %s", key, root, o)
			}
			s.modules[key] = m.Parsed
			s.loose[key] = raw.loose
			s.entries = append(s.entries, entry{"rego:" + strings.TrimPrefix(m.RelativePath, "/"), string(m.Raw)})
		}
		for k, v := range b.Data {
			if k == "claviger" || k == "reference" || k == "reference_index" || k == "fixtures" {
				return nil, fmt.Errorf("%s: data.%s does not belong to bundles", raw.name, k)
			}
			// (A package of that name would stand before the data, or add to it.)
			if o, ok := own(ast.DefaultRootRef.Append(ast.StringTerm(k)).String(), raw.name); !ok {
				return nil, fmt.Errorf("%s: data.%s is also in another bundle, %s", raw.name, k, o)
			}
			s.data[k] = v
		}
	}
	s.revision = strings.Join(revisions, ",")
	return s, nil
}

// checkPackage keeps bundles out of the names that others fill.
func checkPackage(p ast.Ref) error {
	name := p.String()
	switch {
	case below(name, "data.reference") || below(name, "data.reference_index"):
		return fmt.Errorf("%s holds the reference values, no package can be named so", name)
	case below(name, "data.fixtures"):
		return errors.New("data.fixtures holds test inputs, no package can be named so")
	case below(name, "data.claviger"):
		if len(p) < 4 || !strings.HasPrefix(name, releasePackage+".") {
			return fmt.Errorf("package %s: under claviger, a bundle defines claviger.release.<name> only", strings.TrimPrefix(name, "data."))
		}
	}
	return nil
}

// below says that name is root, or a part of it.
func below(name, root string) bool {
	rest, ok := strings.CutPrefix(name, root)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// packageRoot is what one bundle owns: the policy, or the first element of any other package.
func packageRoot(p ast.Ref) string {
	n := 2
	if strings.HasPrefix(p.String(), releasePackage+".") {
		n = 4
	}
	if len(p) < n {
		n = len(p)
	}
	return p[:n].String()
}

// taken says that data stands at the path: a rule there would be seen in its stead.
func (s *sources) taken(path []string) (bool, error) {
	var at any = s.data
	for _, name := range path {
		object, _ := at.(map[string]any)
		if at = object[name]; at == nil {
			return false, nil
		}
	}
	return true, nil
}

// compileSources makes a bundle askable.
func compileSources(s *sources, lib map[string]*ast.Module, caps *ast.Capabilities, config map[string]any, now time.Time, vetted bool) (*compiled, error) {
	mods := make(map[string]*ast.Module, len(s.modules)+len(lib))
	for k, m := range lib {
		mods[k] = m
	}
	for k, m := range s.modules {
		mods[k] = m
	}
	c := newCompiler(caps).WithPathConflictsCheck(s.taken)
	if err := compile(c, mods); err != nil {
		return nil, fmt.Errorf("compiling policies: %w", err)
	}
	rules := newRuleIndex(c)
	out, err := askable(s, c, rules)
	if err != nil {
		return nil, err
	}
	out.loadedAt = now
	if vetted {
		if problems := vet(s, out, rules, config); len(problems) > 0 {
			return nil, problems
		}
	}
	if out.digest, err = digest(s, config); err != nil {
		return nil, err
	}
	return out, nil
}

// askable is what the policies of modules that c has compiled are asked by.
func askable(s *sources, c *ast.Compiler, rules *ruleIndex) (*compiled, error) {
	out := &compiled{compiler: c, data: s.data, revision: s.revision, queries: map[string]ast.Body{}, reads: map[string]selection{}, others: map[string][]string{}, wants: map[string][]string{}}
	for _, key := range sortedKeys(s.modules) {
		m := s.modules[key]
		name, ok := policyName(m.Package.Path)
		if !ok {
			continue
		}
		others, err := referencesOf(m)
		if err != nil {
			return nil, err
		}
		out.others[name] = append(out.others[name], others...)
		out.wants[name] = append(out.wants[name], wantedArguments(m)...)
		if out.queries[name] != nil {
			continue
		}
		q, err := compileQuery(c, m.Package.Path)
		if err != nil {
			return nil, err
		}
		out.queries[name], out.reads[name] = q, readsOf(rules, m.Package.Path)
		out.names = append(out.names, name)
	}
	slices.Sort(out.names)
	return out, nil
}

// referencesOf are the policies whose reference sets the module's policy asks for beside its
// own: references_of contains "disks", or "*". They are constants, so that who uses a set can be told.
func referencesOf(m *ast.Module) (names []string, err error) {
	for _, r := range m.Rules {
		if r.Head.Ref().GroundPrefix().String() != referencesRule {
			continue
		}
		var name ast.String
		constant := r.Head.RuleKind() == ast.MultiValue && r.Head.Key != nil && r.Else == nil && len(r.Body) == 1 && r.Body[0].Equal(ast.NewExpr(ast.BooleanTerm(true)))
		if constant {
			name, constant = r.Head.Key.Value.(ast.String)
		}
		if !constant || name != broker.AllPolicies && !identifier.MatchString(string(name)) {
			return nil, Problem{r.Location.File, r.Location.Row, fmt.Sprintf("write %s contains \"name\", with the name of a policy or \"*\", and no condition", referencesRule)}
		}
		names = append(names, string(name))
	}
	return names, nil
}

// wantedArguments are the members of input.resource that a module's deny gives to a function
// and asks for nothing before: where one is missing, that denies (checkArguments).
func wantedArguments(m *ast.Module) (paths []string) {
	for _, r := range m.Rules {
		if r.Head.Ref().GroundPrefix().String() != "deny" || len(r.Body) != 1 || r.Body[0].Negated || len(r.Body[0].With) > 0 {
			continue
		}
		decl, ok := r.Body[0].Terms.(*ast.SomeDecl)
		if !ok || len(decl.Symbols) != 1 {
			continue
		}
		member, ok := decl.Symbols[0].Value.(ast.Call) // some x in y
		if !ok {
			continue
		}
		call, ok := member[len(member)-1].Value.(ast.Call)
		if !ok || ast.BuiltinMap[call[0].Value.String()] != nil { // OPA's own, undefined where an argument is, denies nothing
			continue
		}
		for _, arg := range call[1:] {
			switch arg.Value.(type) {
			case *ast.SetComprehension, *ast.ArrayComprehension, *ast.ObjectComprehension: // always defined
				continue
			}
			ast.WalkRefs(arg, func(ref ast.Ref) bool {
				if path, ok := strings.CutPrefix(ref.GroundPrefix().String(), "input.resource."); ok && len(ref) == 4 {
					paths = append(paths, path)
				}
				return false
			})
		}
	}
	return paths
}

// compile contains OPA's panics: for a rule m[1] beside a package m, for one.
func compile(c *ast.Compiler, mods map[string]*ast.Module) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if c.Compile(mods); c.Failed() {
		return c.Errors
	}
	return nil
}

func newCompiler(caps *ast.Capabilities) *ast.Compiler {
	return ast.NewCompiler().WithCapabilities(caps).WithStrict(true).WithDefaultRegoVersion(ast.RegoV1).
		WithStageAfterID(ast.StageResolveRefs, ast.CompilerStageDefinition{Name: "CheckArguments", MetricName: "compile_stage_check_arguments", Stage: checkArguments})
}

// policyName is "disks" for data.claviger.release.disks.
func policyName(p ast.Ref) (string, bool) {
	if len(p) != 4 || !p[:3].Equal(releaseRef) {
		return "", false
	}
	s, ok := p[3].Value.(ast.String)
	return string(s), ok && identifier.MatchString(string(s))
}

var releaseRef = ast.MustParseRef(releasePackage)

var identifier = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// compileQuery asks for the policy's answers only, not for the whole package,
// which would evaluate every helper rule, and for what every policy denies. Each is wrapped
// in an array, so that an undefined one is an empty array and not an undefined query.
func compileQuery(c *ast.Compiler, pkg ast.Ref) (ast.Body, error) {
	var parts []string
	for _, answer := range answers {
		parts = append(parts, fmt.Sprintf("%s = [v | v = %s.%[1]s]", answer, pkg))
	}
	parts = append(parts, fmt.Sprintf("unless_waived = [v | v = %s]", floorDenials))
	q := strings.Join(parts, "; ")
	body, err := ast.ParseBodyWithOpts(q, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err != nil {
		return nil, fmt.Errorf("query for %s: %w", pkg, err)
	}
	out, err := c.QueryCompiler().Compile(body)
	if err != nil {
		return nil, fmt.Errorf("query for %s: %w", pkg, err)
	}
	return out, nil
}

// digest names what decides: library, modules, data and configuration. Tests,
// fixtures, the manifest and file times do not count, so that an unpacked
// folder and the bundle built from it have one digest.
func digest(s *sources, config map[string]any) (string, error) {
	entries := slices.Clone(s.entries)
	names, err := fs.Glob(libFiles, "lib/*.rego")
	if err != nil {
		return "", err
	}
	for _, n := range names {
		b, err := libFiles.ReadFile(n)
		if err != nil {
			return "", err
		}
		entries = append(entries, entry{n, string(b)})
	}
	if len(s.data) > 0 {
		b, err := json.Marshal(s.data) // sorts keys
		if err != nil {
			return "", fmt.Errorf("digest of data: %w", err)
		}
		entries = append(entries, entry{"data:", string(b)})
	}
	if len(config) > 0 {
		b, err := json.Marshal(config)
		if err != nil {
			return "", fmt.Errorf("digest of configuration: %w", err)
		}
		entries = append(entries, entry{"config:", string(b)})
	}
	slices.SortFunc(entries, func(a, b entry) int {
		if c := strings.Compare(a.path, b.path); c != 0 {
			return c
		}
		return strings.Compare(a.content, b.content)
	})
	h := sha256.New()
	h.Write([]byte("claviger/v1/policy"))
	for _, e := range entries {
		writeLP(h, []byte(e.path))
		writeLP(h, []byte(e.content))
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
