package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/util"

	"github.com/claviger/claviger/internal/strictyaml"
)

// TestOneReading: files that OPA would read leniently, and other readers otherwise. Those that are accepted are those of the
// other tests, and of examples/policies.
func TestOneReading(t *testing.T) {
	token := func(header, payload string) string {
		e := base64.RawURLEncoding.EncodeToString
		return `{"signatures":["` + e([]byte(header)) + "." + e([]byte(payload)) + `.AAAA"]}`
	}
	for name, c := range map[string]struct{ file, text, want string }{
		"name twice":             {"data.json", `{"floors":{"a":1,"a":2}}`, `data.json: JSON at byte 17, in floors: the name "a" occurs twice`},
		"name twice, escaped":    {"data.json", `{"floor":1,"\u0066loor":2}`, "occurs twice"},
		"trailing data":          {"data.json", `{"floor":1}{"floor":2}`, "after top-level value"},
		"half a surrogate pair":  {"data.json", `{"floor":"\ud800"}`, "surrogate"},
		"a list":                 {"data.json", `[]`, "not a JSON object"},
		"of a folder":            {"a/data.json", `{"b":1,"b":2}`, "a/data.json: "},
		"YAML name twice":        {"data.yaml", "floor: 1\nfloor: 2", `data.yaml: line 2: the name "floor" occurs twice`},
		"YAML boolean":           {"data.yml", "strict: off", "several readings"},
		"YAML octal":             {"data.yaml", "floor: 010", "several readings"},
		"YAML anchor":            {"data.yaml", "a: &x [1]\nb: *x", "anchor"},
		"YAML merge key":         {"data.yaml", "a: {<<: {b: 1}}", "merge key"},
		"YAML and JSON":          {"data.yaml", "other: 1", "also in data.json"},
		"manifest name twice":    {".manifest", `{"roots":["a"],"roots":[""]}`, "occurs twice"},
		"manifest other case":    {".manifest", `{"Roots":[""]}`, `"Roots" is not "roots"`},
		"manifest unknown":       {".manifest", `{"root":[""]}`, `"root" is unknown`},
		"manifest of a folder":   {"a/.manifest", `{}`, "belongs in the bundle's own folder"},
		"signatures of a folder": {"a/.signatures.json", `{"signatures":[]}`, "belongs in the bundle's own folder"},
		"signatures twice":       {".signatures.json", `{"signatures":[],"signatures":[]}`, "occurs twice"},
		"signed files twice":     {".signatures.json", token(`{"alg":"RS256"}`, `{"files":[],"files":[]}`), `signatures[0]: payload: JSON at byte 12: the name "files" occurs twice`},
		"header twice":           {".signatures.json", token(`{"alg":"RS256","alg":"none"}`, `{"files":[]}`), "signatures[0]: header"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := one(t, "allow if input.resource.path == data.x")
			if name == "YAML and JSON" {
				put(t, dir, "data.json", `{"x": 1}`)
			}
			put(t, dir, c.file, c.text)
			if _, err := New(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("folder: got %v, want %q", err, c.want)
			}
			packed := t.TempDir()
			pack(t, dir, filepath.Join(packed, "b.tar.gz"))
			if _, err := New(Config{Dir: packed}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("archive: got %v, want %q", err, c.want)
			}
		})
	}
	dir := one(t, "allow if input.resource.path == data.a.x")
	put(t, dir, ".manifest", `{"revision":"7","roots":["claviger/release","a"],"metadata":{"who":"ops"}}`)
	put(t, dir, "a/data.yaml", "x: disks/1\nlevels: [1, 2.5, text, true, \"off\"]\n")
	newEngine(t, Config{Dir: dir})
}

// TestVerificationKeyHasOneReading: OPA gets the one key that stands in the PEM.
func TestVerificationKeyHasOneReading(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	good := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	for name, c := range map[string]struct{ text, want string }{
		"good":           {text: "# the release key\n" + good},
		"two keys":       {good + good, "a second PEM block"},
		"a broken block": {strings.Replace(good, "MFkw", "MF*w", 1) + good, "line 1"},
		"another kind":   {strings.ReplaceAll(good, "PUBLIC KEY", "RSA PUBLIC KEY"), "RSA PUBLIC KEY"},
		"trailing DER":   {string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: append(der[:len(der):len(der)], 0)})), "trailing data"},
	} {
		_, err := verificationConfig(map[string]VerificationKey{"k": {PEM: c.text, Algorithm: "ES256"}})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// pack makes a bundle of a folder as tar does, of all its files.
func pack(t *testing.T, dir, file string) {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	if err := tw.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// FuzzYAMLData: data in YAML that is accepted reads the same to OPA's reader of YAML.
func FuzzYAMLData(f *testing.F) {
	for _, s := range []string{"a: 1\nb: [x, \"off\", 1.5, -3, 1e3]\nc: {d: null, e: ~, f: }\n", "a: >-\n  b\n  c\nd: |\n  e\n", "\"a b\": 'c'\n? d\n: e", "a: 12:30", "a: 0o7", "a: 1_0", "x: .5\ny: +1\nz: =", "a: 1.", "a: 0x1F\nb: True"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkData(rawFile{path: "data.yaml", data: b}) != nil {
			return
		}
		var ours, theirs map[string]any
		if err := strictyaml.Unmarshal(b, &ours); err != nil {
			t.Fatal(err)
		}
		if err := util.Unmarshal(b, &theirs); err != nil {
			return // OPA refuses it, and so the bundle
		}
		x, err1 := json.Marshal(ours)
		y, err2 := json.Marshal(theirs)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		var p, q any
		if err := errors.Join(json.Unmarshal(x, &p), json.Unmarshal(y, &q)); err != nil {
			t.Fatal(err)
		}
		if len(ours)+len(theirs) > 0 && !reflect.DeepEqual(p, q) {
			t.Errorf("%q: ours %s, OPA's %s", b, x, y)
		}
	})
}
