package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tdx"
)

var testTime = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// write puts files into a new folder.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		put(t, dir, name, content)
	}
	return dir
}

func put(t testing.TB, dir, name, content string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newEngine(t testing.TB, cfg Config) *Engine {
	t.Helper()
	if cfg.EvalTimeout == 0 {
		cfg.EvalTimeout = time.Minute // machines that build other things meanwhile are slow
	}
	cfg.unvetted = true // tests of vet call New
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// one is a folder with the package claviger.release.p of this body.
func one(t testing.TB, body string) string {
	return write(t, map[string]string{"p.rego": "package claviger.release.p\n\n" + body})
}

func ask(t testing.TB, e *Engine, policy string) (broker.Decision, error) {
	t.Helper()
	in := snpInput(t)
	in.Resource.Policy = policy
	return e.Decide(t.Context(), in)
}

// snpInput has the claims of the example fixture, which are those of a real report.
func snpInput(t testing.TB) broker.PolicyInput {
	return fixtureInput(t, "disks/fixtures/snp_milan.json")
}

func fixtureInput(t testing.TB, name string) broker.PolicyInput {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "examples", "policies", name))
	if err != nil {
		t.Fatal(err)
	}
	var in broker.PolicyInput
	if err := json.Unmarshal(b, &in); err != nil {
		t.Fatal(err)
	}
	// The verifiers' own types: the fixture must have no name that they lack.
	for _, v := range []struct {
		doc *any
		to  any
	}{{&in.Attestation.SNP, &snp.Claims{}}, {&in.Attestation.TDX, &tdx.Claims{}}} {
		if *v.doc == nil {
			continue
		}
		b, err := json.Marshal(*v.doc)
		if err != nil {
			t.Fatal(err)
		}
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		if err := dec.Decode(v.to); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		*v.doc = v.to
	}
	in.Time = testTime
	in.Resource = broker.PolicyResource{Path: "disks/payments", Policy: "disks", Params: map[string]string{"vm": "payments", "workload": "payments"}, Labels: map[string]string{}}
	in.Request = broker.PolicyRequest{Resources: []string{"disks/payments"}, KeyAlgorithm: "HPKE", PostQuantum: true}
	return in
}

func snpSet(name string, in broker.PolicyInput) broker.ReferenceSet {
	return broker.ReferenceSet{
		Name: name, Type: attest.TypeSNP, State: broker.ReferenceActive,
		Values:     map[string][]string{"measurement": {in.Attestation.Measurements["measurement"]}},
		Provenance: broker.Provenance{AddedAt: testTime},
	}
}

const allowAll = "default allow := false\nallow if input.attestation.bound\n"

func rules(d broker.Decision) string {
	var out []string
	for _, r := range d.Reasons {
		out = append(out, r.Rule)
	}
	return strings.Join(out, ",")
}

func TestDecideDefaults(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		allow      bool
		err        string
		rules      string
	}{
		{"allowed", allowAll, true, "", ""},
		{"default", "default allow := false", false, "", "no_rule_allowed"},
		{"undefined", "allow if input.nothing", false, "", "no_rule_allowed"},
		{"no allow at all", "x := 1", false, "", "no_rule_allowed"},
		{"string true", `allow := "true"`, false, "allow is string", "policy_error"},
		{"number", `allow := 1`, false, "allow is number", "policy_error"},
		{"null", `allow := null`, false, "allow is null", "policy_error"},
		{"object", `allow := {"x": true}`, false, "allow is object", "policy_error"},
		{"allow is a set", `allow contains true`, false, "allow is set", "policy_error"},
		{"allow but deny", allowAll + `deny contains "no"`, false, "", "denied"},
		{"deny false", allowAll + `deny := false`, false, "deny is boolean", "policy_error"},
		{"deny empty array", allowAll + `deny := []`, false, "deny is array", "policy_error"},
		{"deny object", allowAll + `deny := {}`, false, "deny is object", "policy_error"},
		{"deny with odd entries", allowAll + `deny := {1, null, {"message": "m"}}`, false, "", "denied,denied,denied"},
		{"conflict", "allow if true\nallow := false if true", false, "eval_conflict_error", "policy_error"},
		{"builtin error", "allow if to_number(\"x\") == 1", false, "eval_builtin_error", "policy_error"},
		{"builtin error in deny", allowAll + "deny contains \"x\" if to_number(\"x\") == 1", false, "eval_builtin_error", "policy_error"},
		{"builtin error in obligations", allowAll + "obligations := {\"ttl\": to_number(\"x\")}", false, "eval_builtin_error", "policy_error"},
		{"unknown obligation", allowAll + `obligations := {"max_holder": 1}`, false, "max_holder", "policy_error"},
		{"negative holders", allowAll + `obligations := {"max_holders": -1}`, false, "max_holders", "policy_error"},
		{"holders as string", allowAll + `obligations := {"max_holders": "1"}`, false, "max_holders", "policy_error"},
		{"half a holder", allowAll + `obligations := {"max_holders": 1.5}`, false, "max_holders", "policy_error"},
		{"require_pq as string", allowAll + `obligations := {"require_pq": "yes"}`, false, "require_pq", "policy_error"},
		{"zero ttl", allowAll + `obligations := {"ttl": 0}`, false, "ttl", "policy_error"},
		{"endless ttl", allowAll + `obligations := {"ttl": 1e300}`, false, "ttl", "policy_error"},
		{"obligations set", allowAll + `obligations contains "ttl"`, false, "obligations is set", "policy_error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEngine(t, Config{Dir: one(t, tc.body)})
			d, err := ask(t, e, "p")
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if d.Allow != tc.allow || rules(d) != tc.rules {
				t.Errorf("allow %t for %q, want %t for %q", d.Allow, rules(d), tc.allow, tc.rules)
			}
			if d.PolicyDigest != e.Status().Digest || d.Package != "claviger.release.p" {
				t.Errorf("decision names %s %s", d.Package, d.PolicyDigest)
			}
			if !d.Allow && d.Obligations != (broker.Obligations{}) {
				t.Errorf("a denial has obligations %+v", d.Obligations)
			}
		})
	}
}

func TestObligations(t *testing.T) {
	e := newEngine(t, Config{Dir: one(t, allowAll+`obligations := {"ttl": "90m", "max_holders": 3, "require_pq": true, "approvals": 2}`)})
	d, err := ask(t, e, "p")
	if err != nil {
		t.Fatal(err)
	}
	want := broker.Obligations{TTL: 90 * time.Minute, MaxHolders: 3, RequirePQ: true, Approvals: 2}
	if d.Obligations != want {
		t.Errorf("got %+v, want %+v", d.Obligations, want)
	}
	e = newEngine(t, Config{Dir: one(t, allowAll+`obligations["ttl"] := 60`)})
	if d, err = ask(t, e, "p"); err != nil || d.Obligations.TTL != time.Minute {
		t.Errorf("seconds: %v, %v", d.Obligations.TTL, err)
	}
}

func TestUnknownPolicy(t *testing.T) {
	e := newEngine(t, Config{Dir: write(t, map[string]string{
		"p.rego":      "package claviger.release.p\n" + allowAll,
		"q.rego":      "package claviger.release.p.helper\nallow := true",
		"o.rego":      "package other\nallow := true",
		"p_test.rego": "package claviger.release.p_test\nallow := true",
	})})
	for _, name := range []string{"", "q", "P", "p.helper", "p_test", "../p", "p\x00", "other", strings.Repeat("x", 10000)} {
		d, err := ask(t, e, name)
		if !errors.Is(err, ErrUnknownPolicy) || d.Allow || len(d.Package) > 1000 {
			t.Errorf("policy %q: allow %t, error %v", name, d.Allow, err)
		}
	}
}

func TestReasonsAreDeterministicAndBounded(t *testing.T) {
	e := newEngine(t, Config{Dir: one(t, `
deny contains {"rule": "b", "message": sprintf("m%d", [n]), "got": n} if some n in numbers.range(1, 100)
deny contains {"rule": "a", "message": concat("", [x | some _ in numbers.range(1, 2000); x := "ö"]), "claim": "c", "got": {"x": [1]}, "nearest": "n"}
deny contains "plain"
`)})
	first, err := ask(t, e, "p")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(first.Reasons); n != maxReasons+1 || first.Reasons[n-1].Rule != RuleMore || first.Reasons[n-1].Message != "70 further reasons" {
		t.Fatalf("%d reasons, last %+v", n, first.Reasons[n-1])
	}
	a := first.Reasons[0]
	if a.Rule != "a" || len(a.Message) > maxReasonText+4 || a.Got != `{"x":[1]}` || a.Nearest != "n" || a.Claim != "c" {
		t.Errorf("first reason %+v", a)
	}
	for range 20 {
		d, err := ask(t, e, "p")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, d); diff != "" {
			t.Fatalf("reasons differ between runs: %s", diff)
		}
	}
}

// TestHostilePolicies: a policy that does not end denies in time.
func TestHostilePolicies(t *testing.T) {
	for name, body := range map[string]string{
		"cross product": "allow if { a := numbers.range(1, 20000); some x in a; some y in a; x * y == -1 }",
		"deny":          allowAll + "deny contains x if { a := numbers.range(1, 20000); some x in a; some y in a; x * y == -1 }",
		"comprehension": "allow if count([1 | a := numbers.range(1, 20000); some x in a; some y in a; x < y]) == 0",
		"obligations":   allowAll + "obligations := {\"max_holders\": count([1 | a := numbers.range(1, 20000); some x in a; some y in a; x < y])}",
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, Config{Dir: one(t, body), EvalTimeout: 50 * time.Millisecond})
			start := time.Now()
			d, err := ask(t, e, "p")
			if !errors.Is(err, context.DeadlineExceeded) || d.Allow {
				t.Errorf("allow %t, error %v", d.Allow, err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %s", took)
			}
			// Steps are counted, so that the answer is the same on a machine that has no time for it.
			e = newEngine(t, Config{Dir: one(t, body), EvalSteps: 10_000})
			if d, err := ask(t, e, "p"); !errors.Is(err, ErrTooCostly) || d.Allow {
				t.Errorf("allow %t, error %v", d.Allow, err)
			}
		})
	}
	e := newEngine(t, Config{Dir: one(t, allowAll)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in := snpInput(t)
	in.Resource.Policy = "p"
	if d, err := e.Decide(ctx, in); !errors.Is(err, context.Canceled) || d.Allow {
		t.Errorf("cancelled: allow %t, error %v", d.Allow, err)
	}
}

func TestInputTooLarge(t *testing.T) {
	e := newEngine(t, Config{Dir: one(t, "allow if input.resource.labels.x != \"y\""), MaxInputBytes: 8 << 10})
	in := snpInput(t)
	in.Resource.Policy = "p"
	in.Resource.Labels["x"] = "x"
	if d, err := e.Decide(t.Context(), in); err != nil || !d.Allow {
		t.Fatalf("allow %t, error %v", d.Allow, err)
	}
	in.Resource.Labels["x"] = strings.Repeat("x", 8<<10)
	if d, err := e.Decide(t.Context(), in); !errors.Is(err, ErrTooLarge) || d.Allow {
		t.Errorf("allow %t, error %v", d.Allow, err)
	}
}

// TestRefusedBundles: each of these keeps the engine from starting.
func TestRefusedBundles(t *testing.T) {
	ok := "package claviger.release.p\n" + allowAll
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"empty", nil, "no package under claviger.release"},
		{"no release package", map[string]string{"p.rego": "package x\ny := 1"}, "no package under"},
		{"parse error", map[string]string{"p.rego": "package claviger.release.p\nallow if {"}, "rego_parse_error"},
		{"type error", map[string]string{"p.rego": "package claviger.release.p\nallow if 1 == \"a\""}, "rego_type_error"},
		{"strict: unused variable", map[string]string{"p.rego": "package claviger.release.p\nallow if { x := 1; true }"}, "x unused"},
		{"Rego v0", map[string]string{"p.rego": "package claviger.release.p\nallow { true }", ".manifest": `{"rego_version": 0, "roots": [""]}`}, "not Rego v1"},
		{"certificate", map[string]string{"p.rego": ok + "deny contains 1 if crypto.x509.parse_and_verify_certificates(\"x\")[0]"}, "undefined function crypto.x509"},
		{"http.send", map[string]string{"p.rego": ok + "deny contains r if r := http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1/\"})"}, "undefined function http.send"},
		{"lookup", map[string]string{"p.rego": ok + "deny contains r if r := net.lookup_ip_addr(\"x\")"}, "undefined function"},
		{"runtime", map[string]string{"p.rego": ok + "deny contains r if r := opa.runtime()"}, "undefined function"},
		{"parse_module", map[string]string{"p.rego": ok + "deny contains r if r := rego.parse_module(\"x\", \"package x\")"}, "undefined function"},
		{"random", map[string]string{"p.rego": ok + "deny contains r if r := rand.intn(\"x\", 5)"}, "undefined function"},
		{"uuid", map[string]string{"p.rego": ok + "deny contains r if r := uuid.rfc4122(\"x\")"}, "undefined function"},
		{"clock", map[string]string{"p.rego": ok + "deny contains r if r := time.now_ns()"}, "undefined function"},
		{"trace", map[string]string{"p.rego": ok + "deny contains \"x\" if trace(\"x\")"}, "undefined function"},
		{"aws", map[string]string{"p.rego": ok + "deny contains r if r := providers.aws.sign_req({}, {}, 1)"}, "undefined function"},
		{"forbidden in a helper package", map[string]string{"p.rego": ok, "h.rego": "package h\nx := opa.runtime()"}, "undefined function"},
		{"remote schema", map[string]string{"p.rego": "# METADATA\n# schemas:\n# - input: {\"$ref\": \"http://127.0.0.1:1/x.json\"}\n" + ok}, ""},
		{"library redefined", map[string]string{"p.rego": ok, "l.rego": "package claviger.lib.common\nbound := true"}, "claviger.release.<name> only"},
		{"library parent", map[string]string{"p.rego": ok, "l.rego": "package claviger.lib\ncommon.bound := true"}, "claviger.release.<name> only"},
		{"root package", map[string]string{"p.rego": ok, "l.rego": "package claviger\nlib.common.bound := true"}, "claviger.release.<name> only"},
		{"release package", map[string]string{"p.rego": ok, "l.rego": "package claviger.release\nq.allow := true"}, "claviger.release.<name> only"},
		{"quoted", map[string]string{"p.rego": ok, "l.rego": "package claviger[\"lib\"].common\nx := true"}, "claviger.release.<name> only"},
		{"config", map[string]string{"p.rego": ok, "l.rego": "package claviger.config\nallow_simulated := true"}, "claviger.release.<name> only"},
		{"config data", map[string]string{"p.rego": ok, "claviger/config/data.json": `{"allow_simulated": true}`}, "does not belong"},
		{"reference package", map[string]string{"p.rego": ok, "l.rego": "package reference.x\nstate := \"active\""}, "data.reference"},
		{"reference data", map[string]string{"p.rego": ok, "data.json": `{"reference": {}}`}, "does not belong"},
		{"wasm", map[string]string{"p.rego": ok, "policy.wasm": "\x00asm"}, "WebAssembly"},
		{"delta", map[string]string{"p.rego": ok, "patch.json": `{"data": []}`}, "delta"},
		{"bad manifest", map[string]string{"p.rego": ok, ".manifest": `{`}, "manifest"},
		{"outside its roots", map[string]string{"p.rego": ok, ".manifest": `{"roots": ["x"]}`}, "roots"},
		{"huge file", map[string]string{"p.rego": ok + strings.Repeat("# x\n", 1<<19)}, "too large"},
		{"many files", many(ok, 1100), "too large"},
		{"two bundles, one policy", map[string]string{"p.rego": ok, "b.tar.gz": archive(map[string]string{"x.rego": ok})}, "is also in"},
		{"two bundles, one's data and the other's package", map[string]string{"p.rego": ok, "data.json": `{"tenants": {"chips": ["aa"]}}`, "b.tar.gz": archive(map[string]string{"t.rego": "package tenants\nchips := [\"bb\"]"})}, "is also in"},
		{"two bundles, one's package and the other's data", map[string]string{"p.rego": ok, "t.rego": "package tenants.all\nchips := [\"bb\"]", "b.tar.gz": archive(map[string]string{"data.json": `{"tenants": {"none": ["aa"]}}`})}, "is also in"},
		{"a rule in the place of data", map[string]string{"p.rego": ok, "data.json": `{"tenants": {"chips": ["aa"]}}`, "t.rego": "package tenants\nchips := [\"bb\"]"}, "conflict"},
		{"bomb", map[string]string{"b.tar.gz": archive(bomb(ok))}, "too large"},
		{"name twice", map[string]string{"b.tar.gz": archiveList([][2]string{{"p.rego", ok}, {"./p.rego", ok}})}, "occurs twice"},
		{"path traversal", map[string]string{"b.tar.gz": archiveList([][2]string{{"../p.rego", ok}})}, "file name"},
		{"not gzip", map[string]string{"b.tar.gz": "x"}, "gzip"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := New(Config{Dir: write(t, tc.files)})
			if tc.want == "" {
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("engine %v, error %v, want %q", e != nil, err, tc.want)
			}
		})
	}
}

func many(ok string, n int) map[string]string {
	files := map[string]string{"p.rego": ok}
	for i := range n {
		files[fmt.Sprintf("h%d.rego", i)] = fmt.Sprintf("package h%d\nx := 1", i)
	}
	return files
}

func bomb(ok string) map[string]string {
	files := map[string]string{"p.rego": ok}
	for i := range 40 {
		files[fmt.Sprintf("x%d", i)] = strings.Repeat("\x00", 1<<20)
	}
	return files
}

func archive(files map[string]string) string {
	var list [][2]string
	for n, c := range files {
		list = append(list, [2]string{n, c})
	}
	return archiveList(list)
}

func archiveList(files [][2]string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, f := range files {
		_ = w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))})
		_, _ = w.Write([]byte(f[1]))
	}
	_ = w.Close()
	_ = z.Close()
	return b.String()
}

func keyPair(t *testing.T) (private, public string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: priv})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}))
}

func build(t *testing.T, dir string, key *SigningKey) (string, string) {
	t.Helper()
	var b bytes.Buffer
	digest, err := Build(dir, &b, "r1", key)
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), digest
}

func TestSignedBundles(t *testing.T) {
	priv, pub := keyPair(t)
	otherPriv, _ := keyPair(t)
	keys := map[string]VerificationKey{"k1": {PEM: pub, Algorithm: "ES256"}}
	src := write(t, map[string]string{
		"p.rego": "package claviger.release.p\n" + allowAll, "p_test.rego": "package p_test\ntest_x if true",
		"data.json": `{"team": {"n": 1}}`, "fixtures/x.json": "{}",
	})
	good, digest := build(t, src, &SigningKey{PEM: priv, KeyID: "k1"})
	if e := newEngine(t, Config{Dir: src}); e.Status().Digest != digest {
		t.Errorf("folder has digest %s, its bundle %s", e.Status().Digest, digest)
	}

	e := newEngine(t, Config{Dir: write(t, map[string]string{"b.tar.gz": good}), VerificationKeys: keys})
	if d, err := ask(t, e, "p"); err != nil || !d.Allow || d.PolicyDigest != digest {
		t.Errorf("signed bundle: allow %t, %s, error %v", d.Allow, d.PolicyDigest, err)
	}
	if got := e.Status().Revision; got != "r1" {
		t.Errorf("revision %q", got)
	}

	unsigned, _ := build(t, src, nil)
	wrong, _ := build(t, src, &SigningKey{PEM: otherPriv, KeyID: "k1"})
	unknown, _ := build(t, src, &SigningKey{PEM: priv, KeyID: "k2"})
	for name, files := range map[string]map[string]string{
		"unsigned":          {"b.tar.gz": unsigned},
		"wrong key":         {"b.tar.gz": wrong},
		"unknown key id":    {"b.tar.gz": unknown},
		"loose file beside": {"b.tar.gz": good, "q.rego": "package claviger.release.q\n" + allowAll},
		"unsigned folder":   {"q.rego": "package claviger.release.q\n" + allowAll},
		"file changed": {"b.tar.gz": rewrite(t, good, func(n, c string) (string, string) {
			return n, strings.Replace(c, "attestation.bound", "attestation.type", 1)
		})},
		"file added": {"b.tar.gz": rewrite(t, good, func(n, c string) (string, string) { return n, c }, [2]string{"q.rego", "package claviger.release.q\n" + allowAll})},
		"file removed": {"b.tar.gz": rewrite(t, good, func(n, c string) (string, string) {
			if strings.HasSuffix(n, "data.json") {
				return "", ""
			}
			return n, c
		})},
		"signature removed": {"b.tar.gz": rewrite(t, good, func(n, c string) (string, string) {
			if strings.HasSuffix(n, ".signatures.json") {
				return "", ""
			}
			return n, c
		})},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(Config{Dir: write(t, files), VerificationKeys: keys}); err == nil {
				t.Error("loaded")
			}
		})
	}
	if _, err := New(Config{Dir: src, VerificationKeys: map[string]VerificationKey{"k": {PEM: pub, Algorithm: "HS256"}}}); err == nil {
		t.Error("an HMAC verification key is accepted")
	}
}

// TestForbiddenBuiltinInSignedBundle: a signature does not lend more language.
func TestForbiddenBuiltinInSignedBundle(t *testing.T) {
	priv, pub := keyPair(t)
	src := write(t, map[string]string{"p.rego": "package claviger.release.p\nallow if http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1/\"}).status_code == 200"})
	if _, err := Build(src, &bytes.Buffer{}, "", nil); err == nil || !strings.Contains(err.Error(), "http.send") {
		t.Errorf("Build: %v", err)
	}
	good, _ := build(t, one(t, allowAll), &SigningKey{PEM: priv, KeyID: "k1"})
	// Sign the hostile source with OPA itself, as its own tool would.
	bad := resign(t, good, priv, "package claviger.release.p\nallow if http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1/\"}).status_code == 200")
	_, err := New(Config{Dir: write(t, map[string]string{"b.tar.gz": bad}), VerificationKeys: map[string]VerificationKey{"k1": {PEM: pub, Algorithm: "ES256"}}})
	if err == nil || !strings.Contains(err.Error(), "undefined function http.send") {
		t.Errorf("signed bundle with http.send: %v", err)
	}
}

// TestHotReload: decisions run while bundles and reference values change, and
// each sees one bundle only: both its rules come from the same generation.
func TestHotReload(t *testing.T) {
	gen := func(i int) string {
		return fmt.Sprintf("package claviger.release.p\nallow := false\ndeny contains {\"rule\": \"a%d\", \"message\": \"m\"}\ndeny contains {\"rule\": \"b%d\", \"message\": \"m\"}\n", i, i)
	}
	dir := write(t, map[string]string{"p.rego": gen(0)})
	e := newEngine(t, Config{Dir: dir})
	byDigest := sync.Map{}
	byDigest.Store(e.Status().Digest, "a0,b0")
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			in := snpInput(t)
			in.Resource.Policy = "p"
			for {
				select {
				case <-done:
					return
				default:
				}
				d, err := e.Decide(context.Background(), in)
				if err != nil {
					t.Error(err)
					return
				}
				got := rules(d)
				if n := strings.TrimPrefix(strings.Split(got, ",")[0], "a"); got != "a"+n+",b"+n {
					t.Errorf("mixed answer %s", got)
				}
				if want, ok := byDigest.Load(d.PolicyDigest); ok && want != got {
					t.Errorf("digest %s stands for %s, decision says %s", d.PolicyDigest, want, got)
				}
			}
		})
	}
	for i := 1; i <= 30; i++ {
		put(t, dir, "p.rego", gen(i))
		if err := e.Reload(t.Context()); err != nil {
			t.Error(err)
		}
		byDigest.Store(e.Status().Digest, fmt.Sprintf("a%d,b%d", i, i))
		if err := e.SetReferences([]broker.ReferenceSet{snpSet("s", snpInput(t))}, nil); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
}

func TestBrokenBundleLeavesTheOldOne(t *testing.T) {
	var log bytes.Buffer
	changes := 0
	dir := one(t, allowAll)
	e := newEngine(t, Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil)), OnChange: func(Status) { changes++ }})
	old := e.Status()
	put(t, dir, "p.rego", "package claviger.release.p\nallow if {")
	for range 3 {
		if err := e.Reload(t.Context()); err == nil {
			t.Fatal("a broken bundle loaded")
		}
	}
	s := e.Status()
	if s.Digest != old.Digest || s.Error == "" || s.ErrorAt.IsZero() {
		t.Errorf("status %+v", s)
	}
	if d, err := ask(t, e, "p"); err != nil || !d.Allow || d.PolicyDigest != old.Digest {
		t.Errorf("the old bundle does not decide: %+v, %v", d, err)
	}
	if n := strings.Count(log.String(), "refused"); n != 1 || changes != 1 {
		t.Errorf("logged %d times, told %d times", n, changes)
	}
	put(t, dir, "p.rego", "package claviger.release.p\ndefault allow := false\n")
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := e.Status(); s.Error != "" || s.Digest == old.Digest {
		t.Errorf("status %+v", s)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := e.Reload(t.Context()); err == nil || e.Status().Error == "" {
		t.Errorf("a missing folder is no error: %v", err)
	}
}

func TestRunSeesChanges(t *testing.T) {
	dir := one(t, allowAll)
	e := newEngine(t, Config{Dir: dir, Poll: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	old := e.Status().Digest
	put(t, dir, "p.rego", "package claviger.release.p\ndefault allow := false\n")
	for deadline := time.Now().Add(time.Minute); e.Status().Digest == old; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("change not seen")
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPin(t *testing.T) {
	dir := one(t, "default allow := false\nx := 0\n")
	e := newEngine(t, Config{Dir: dir, Keep: t.TempDir()})
	var digests []string
	load := func(i int) string {
		put(t, dir, "p.rego", fmt.Sprintf("package claviger.release.p\ndefault allow := false\nx := %d\n", i))
		if err := e.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := e.Status()
		if s.Pin != "" {
			return s.Candidates[0].Digest
		}
		return s.Digest
	}
	for i := range 6 {
		digests = append(digests, load(i))
	}
	if n := len(e.Status().Candidates); n != keep-1 {
		t.Errorf("%d candidates", n)
	}
	if err := e.Pinnable(digests[0]); !errors.Is(err, ErrUnknownDigest) {
		t.Errorf("a dropped bundle: %v", err)
	}
	if err := errors.Join(e.Pinnable(digests[3]), e.Pin(digests[3])); err != nil {
		t.Fatal(err)
	}
	for i := 10; i < 16; i++ {
		digests = append(digests, load(i))
		if s := e.Status(); s.Digest != digests[3] || s.Pin != digests[3] || s.Candidates[0].Digest != digests[len(digests)-1] {
			t.Fatalf("status %+v", s)
		}
	}
	if d, _ := ask(t, e, "p"); d.PolicyDigest != digests[3] {
		t.Errorf("decided by %s", d.PolicyDigest)
	}
	if err := e.SetReferences([]broker.ReferenceSet{snpSet("s", snpInput(t))}, nil); err != nil || e.Status().Digest != digests[3] {
		t.Errorf("new references move the pin: %v", err)
	}
	if err := e.Pin(""); err != nil {
		t.Fatal(err)
	}
	if s := e.Status(); s.Digest != digests[len(digests)-1] || s.Pin != "" {
		t.Errorf("status %+v", s)
	}
}

// TestPinThatCannotBeHonoured: while the pinned bundle is not here nothing is decided, whatever the folder holds, then or later;
// once it is here it is in force.
func TestPinThatCannotBeHonoured(t *testing.T) {
	policy := func(i int) string {
		return fmt.Sprintf("default allow := false\nallow if input.attestation.bound\nx := %d\n", i)
	}
	wanted := newEngine(t, Config{Dir: one(t, policy(1))}).Status().Digest
	dir := one(t, policy(2))
	e := newEngine(t, Config{Dir: dir})
	blocked := func() {
		t.Helper()
		d, err := ask(t, e, "p")
		if d.Allow || !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), wanted) {
			t.Fatalf("decided %+v: %v", d, err)
		}
		if s := e.Status(); s.Digest != "" || s.Pin != wanted || !strings.Contains(s.Blocked, wanted) {
			t.Fatalf("status %+v", s)
		}
	}
	if d, err := ask(t, e, "p"); !d.Allow || err != nil {
		t.Fatal(d, err)
	}
	if err := e.Pin(wanted); err != nil {
		t.Fatal(err)
	}
	blocked()
	put(t, dir, "p.rego", "package claviger.release.p\n\n"+policy(3))
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	blocked()
	if err := e.SetReferences([]broker.ReferenceSet{snpSet("s", snpInput(t))}, nil); err != nil {
		t.Fatal(err)
	}
	blocked()
	put(t, dir, "p.rego", "package claviger.release.p\n\n"+policy(1))
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := ask(t, e, "p"); !d.Allow || err != nil || d.PolicyDigest != wanted || e.Status().Blocked != "" {
		t.Errorf("%+v, %v, %+v", d, err, e.Status())
	}
}

// TestKeptOverRestart: a pin, and without one the bundle in force, survive a restart although the folder holds something else, or nothing that loads.
func TestKeptOverRestart(t *testing.T) {
	dir, kept := one(t, "default allow := false\nx := 1\n"), t.TempDir()
	first := newEngine(t, Config{Dir: dir, Keep: kept}).Status().Digest
	put(t, dir, "p.rego", "package claviger.release.p\ndefault allow := false\nx := 2\n")
	e := newEngine(t, Config{Dir: dir, Keep: kept})
	second := e.Status().Digest
	if second == first {
		t.Fatal("the folder's bundle is not in force")
	}
	if err := errors.Join(e.Pinnable(first), e.Pin(first)); err != nil || e.Status().Digest != first {
		t.Fatalf("%v: %+v", err, e.Status())
	}
	put(t, dir, "p.rego", "package claviger.release.p\nallow if {")
	e = newEngine(t, Config{Dir: dir, Keep: kept})
	if s := e.Status(); s.Digest != second || s.Error == "" {
		t.Errorf("after a restart with a broken folder: %+v", s)
	}
	if err := e.Pin(first); err != nil || e.Status().Digest != first {
		t.Errorf("%v: %+v", err, e.Status())
	}
	// What is damaged on disk is not used, and harms nothing else.
	files, err := filepath.Glob(filepath.Join(kept, "*"+keptSuffix))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(Config{Dir: dir, Keep: kept}); err == nil {
		t.Error("started with nothing that loads")
	}
	// With a key, bundles that it did not sign are not taken over either.
	put(t, dir, "p.rego", "package claviger.release.p\ndefault allow := false\n")
	newEngine(t, Config{Dir: dir, Keep: kept})
	_, pub := keyPair(t)
	if _, err := New(Config{Dir: dir, Keep: kept, VerificationKeys: map[string]VerificationKey{"k": {PEM: pub, Algorithm: "ES256"}}}); err == nil {
		t.Error("a kept bundle without a signature was taken over")
	}
}

// TestKeptWithClockSetBack: which bundle was the last one does not depend on the clock.
func TestKeptWithClockSetBack(t *testing.T) {
	dir, kept := one(t, "default allow := false\nx := 1\n"), t.TempDir()
	first := newEngine(t, Config{Dir: dir, Keep: kept}).Status().Digest
	ahead := time.Now().Add(time.Hour) // the clock was ahead then
	if err := os.Chtimes(keeper{kept}.file(first), ahead, ahead); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "p.rego", "package claviger.release.p\ndefault allow := false\nx := 2\n")
	second := newEngine(t, Config{Dir: dir, Keep: kept}).Status().Digest
	put(t, dir, "p.rego", "package claviger.release.p\nallow if {")
	if got := newEngine(t, Config{Dir: dir, Keep: kept}).Status().Digest; got != second {
		t.Errorf("after a restart with a broken folder %s is in force, want %s (the one before was %s)", got, second, first)
	}
}

// TestReferenceStates: state and validity decide, through the example policy.
func TestReferenceStates(t *testing.T) {
	e := newEngine(t, Config{Dir: filepath.Join("..", "examples", "policies", "disks")})
	in := snpInput(t)
	for _, tc := range []struct {
		name  string
		edit  func(*broker.ReferenceSet)
		rules string
	}{
		{"active", func(*broker.ReferenceSet) {}, ""},
		{"canary", func(s *broker.ReferenceSet) { s.State = broker.ReferenceCanary }, ""},
		{"retiring", func(s *broker.ReferenceSet) { s.State = broker.ReferenceRetiring }, ""},
		{"retired", func(s *broker.ReferenceSet) { s.State = broker.ReferenceRetired }, "measurement_retired"},
		{"begins later", func(s *broker.ReferenceSet) { s.NotBefore = testTime.Add(time.Second) }, "measurement_not_valid_now"},
		{"begins now", func(s *broker.ReferenceSet) { s.NotBefore = testTime }, ""},
		{"ended", func(s *broker.ReferenceSet) { s.NotAfter = testTime.Add(-time.Nanosecond) }, "measurement_not_valid_now"},
		{"ends now", func(s *broker.ReferenceSet) { s.NotAfter = testTime }, ""},
		{"other type", func(s *broker.ReferenceSet) { s.Type = attest.TypeTDX }, "measurement_unknown"},
		{"other value", func(s *broker.ReferenceSet) { s.Values["measurement"] = []string{"aa", "bb"} }, "measurement_unknown"},
		{"upper case", func(s *broker.ReferenceSet) {
			s.Values["measurement"] = []string{strings.ToUpper(s.Values["measurement"][0])}
		}, "measurement_unknown"},
		{"no values", func(s *broker.ReferenceSet) { s.Values = nil }, "measurement_unknown"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := snpSet("fleet", in)
			tc.edit(&s)
			if err := e.SetReferences([]broker.ReferenceSet{s}, nil); err != nil {
				t.Fatal(err)
			}
			d, err := e.Decide(t.Context(), in)
			if err != nil || rules(d) != tc.rules || d.Allow != (tc.rules == "") {
				t.Errorf("allow %t, reasons %+v, error %v; want %q", d.Allow, d.Reasons, err, tc.rules)
			}
		})
	}
	if err := e.SetReferences(nil, nil); err != nil {
		t.Fatal(err)
	}
	if d, err := e.Decide(t.Context(), in); err != nil || d.Allow {
		t.Errorf("without references: allow %t, error %v", d.Allow, err)
	}
	for name, s := range map[string]broker.ReferenceSet{
		"bad name":  {Name: "Fleet", State: broker.ReferenceActive},
		"no state":  {Name: "fleet"},
		"odd state": {Name: "fleet", State: "on"},
		"odd time":  {Name: "fleet", State: broker.ReferenceActive, NotBefore: time.Date(1500, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if err := e.SetReferences([]broker.ReferenceSet{s}, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestUnusableReferences: while there is a set that cannot be used, decisions that
// come to read reference values are denials, and say why; others go on. So it is after sets that are refused.
func TestUnusableReferences(t *testing.T) {
	dir := write(t, map[string]string{
		"reads.rego":  "package claviger.release.reads\nallow if not data.reference.revoked\n",
		"lib.rego":    "package claviger.release.lib\nimport data.claviger.lib.reference\nallow if count(reference.denials(\"tdx\", [\"mrtd\"])) >= 0\n",
		"any.rego":    "package claviger.release.any\nallow if { some x in [\"reference\", \"other\"]; data[x] }\n",
		"with.rego":   "package claviger.release.replaced\nallow if input.time with data.reference as {}\n",
		"simple.rego": "package claviger.release.simple\nallow if input.attestation.type == \"sev-snp\"\n",
	})
	e := newEngine(t, Config{Dir: dir})
	in := snpInput(t)
	want := func(when string, stopped bool) {
		t.Helper()
		for _, name := range []string{"reads", "lib", "any", "replaced", "simple"} {
			in.Resource.Policy = name
			d, err := e.Decide(t.Context(), in)
			if stop := stopped && name != "simple" && name != "replaced"; d.Allow == stop || (err != nil) != stop {
				t.Errorf("%s, %s: allow %t, error %v", when, name, d.Allow, err)
			} else if stop && !strings.Contains(d.Reasons[0].Message, "reference values: ") {
				t.Errorf("%s, %s: reasons %v", when, name, d.Reasons)
			}
		}
	}
	good := []broker.ReferenceSet{snpSet("fleet", in)}
	set := func(sets []broker.ReferenceSet, unusable error) error { return e.SetReferences(sets, unusable) }
	want("at first", false)
	if err := set(good, errors.New("set x does not decode")); err != nil {
		t.Fatal(err)
	}
	want("with a set that does not decode", true)
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("after the bundle was read again", true)
	if err := set(good, nil); err != nil {
		t.Fatal(err)
	}
	want("when it was mended", false)
	if err := set([]broker.ReferenceSet{{Name: "no state"}}, nil); err == nil {
		t.Error("accepts a set without a state")
	}
	want("after sets that are refused", true)
	if err := set(nil, nil); err != nil {
		t.Fatal(err)
	}
	want("without sets", false)
}

func TestSimulatedNeedsConfiguration(t *testing.T) {
	in := snpInput(t)
	in.Attestation.Simulated = true
	dir := filepath.Join("..", "examples", "policies", "disks")
	for allow, want := range map[bool]string{true: "", false: "simulated"} {
		e := newEngine(t, Config{Dir: dir, ExtraData: map[string]any{"allow_simulated": allow}})
		if err := e.SetReferences([]broker.ReferenceSet{snpSet("fleet", in)}, nil); err != nil {
			t.Fatal(err)
		}
		if d, err := e.Decide(t.Context(), in); err != nil || rules(d) != want || d.Allow != allow {
			t.Errorf("allow_simulated %t: allow %t, reasons %q, error %v", allow, d.Allow, rules(d), err)
		}
	}
}

func FuzzBundle(f *testing.F) {
	ok := "package claviger.release.p\n" + allowAll
	f.Add([]byte(archive(map[string]string{"p.rego": ok, "data.json": `{"x": 1}`, ".manifest": `{"roots": ["claviger", "x"]}`})), []byte(ok))
	f.Add([]byte("x"), []byte("package claviger.release.p\nallow if {"))
	f.Add([]byte("\x1f\x8b\x08"), []byte("package claviger.lib.snp"))
	caps := capabilities()
	lib, err := loadLib(caps)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, tarball, rego []byte) {
		// Small limits: the mutator likes archives of zeros.
		e := &Engine{cfg: Config{Limits: Limits{MaxTotal: 64 << 10, MaxFile: 16 << 10, MaxFiles: 20}.withDefaults(), Clock: time.Now}, caps: caps, lib: lib}
		r := reader{limits: e.cfg.Limits}
		if raw, err := r.archive("b.tar.gz", tarball); err == nil {
			_, _ = e.compileContained([]rawBundle{raw})
		}
		_, _ = e.compileContained([]rawBundle{{name: "b", files: []rawFile{{path: "p.rego", data: rego}}}})
	})
}

// TestSetVerificationKeys: whose signatures count is as after a restart with
// these keys: what a withdrawn key signed is in force no more, kept or not.
func TestSetVerificationKeys(t *testing.T) {
	priv, pub := keyPair(t)
	nextPriv, nextPub := keyPair(t)
	first, second := map[string]VerificationKey{"k1": {PEM: pub, Algorithm: "ES256"}}, map[string]VerificationKey{"k1": {PEM: nextPub, Algorithm: "ES256"}}
	src := write(t, map[string]string{"p.rego": "package claviger.release.p\n" + allowAll})
	old, digest := build(t, src, &SigningKey{PEM: priv, KeyID: "k1"})
	anew, _ := build(t, src, &SigningKey{PEM: nextPriv, KeyID: "k1"})
	dir := write(t, map[string]string{"b.tar.gz": old})
	kept := t.TempDir()
	e := newEngine(t, Config{Dir: dir, Keep: kept, VerificationKeys: first})

	if err := e.SetVerificationKeys(map[string]VerificationKey{"k1": {PEM: "no key", Algorithm: "ES256"}}); err == nil {
		t.Error("a key that is none is accepted")
	}
	if d, err := ask(t, e, "p"); err != nil || !d.Allow {
		t.Errorf("after keys that cannot be used: allow %t, %v", d.Allow, err)
	}
	if err := e.SetVerificationKeys(second); err != nil {
		t.Fatal(err)
	}
	if st := e.Status(); st.Blocked == "" || st.Digest != "" {
		t.Errorf("what a withdrawn key signed is in force: %+v", st)
	}
	if d, err := ask(t, e, "p"); !errors.Is(err, broker.ErrUnavailable) || d.Allow {
		t.Errorf("with nothing in force: allow %t, %v", d.Allow, err)
	}
	if err := e.SetReferences(nil, nil); err != nil { // applies what is in force
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.tar.gz"), []byte(anew), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := ask(t, e, "p"); err != nil || !d.Allow || d.PolicyDigest != digest {
		t.Errorf("signed by the new key: allow %t, %v", d.Allow, err)
	}
	// What is kept has the signature of today, too.
	again, err := New(Config{Dir: t.TempDir(), Keep: kept, VerificationKeys: second})
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Status().Digest; got != digest {
		t.Errorf("after a restart without the folder, %q is in force", got)
	}
	if err := e.SetVerificationKeys(first); err != nil {
		t.Fatal(err)
	}
	if st := e.Status(); st.Blocked == "" {
		t.Errorf("after the key was withdrawn: %+v", st)
	}
}
