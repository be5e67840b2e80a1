package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// TestExamples: the examples' tests pass and cover all of them, `policy check`
// has nothing to say, and each row of a README names a test of its own.
func TestExamples(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long, and nothing of it runs at once")
	}
	root := filepath.Join("..", "examples", "policies")
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) < 15 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			dir := filepath.Join(root, e.Name())
			r, err := Test(t.Context(), TestConfig{Paths: []string{dir}, Coverage: true})
			if err != nil {
				t.Fatal(err)
			}
			report(t, r)
			if r.Coverage < 100 {
				t.Errorf("coverage %.1f %%", r.Coverage)
			}
			ps, err := Check([]string{dir})
			if err != nil || len(ps) > 0 {
				t.Errorf("%v, error %v", ps, err)
			}
			passed := map[string]bool{}
			for _, x := range r.Results {
				passed[x.Name] = x.Outcome == "pass"
			}
			b, err := os.ReadFile(filepath.Join(dir, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			pinned, left, err := tableOf(string(b))
			if err != nil {
				t.Fatal(err)
			}
			if len(pinned) < 5 || len(left) < 1 {
				t.Errorf("README.md pins %d things, and leaves %d to others", len(pinned), len(left))
			}
			for _, name := range append(pinned, left...) {
				if !passed[name] {
					t.Errorf("README.md names %s, which is no test or does not pass", name)
				}
			}
		})
	}
}

// tableOf reads the one table of an example's README: the tests of what the
// policy pins, and of what it leaves to others.
func tableOf(text string) (pinned, left []string, err error) {
	const head = "| What | Who decides | Why | Test |\n|---|---|---|---|\n"
	_, body, found := strings.Cut(text, head)
	if !found || strings.Contains(body, "|---|") {
		return nil, nil, fmt.Errorf("README.md has not one table with the head %q", head)
	}
	body, _, _ = strings.Cut(body, "\n\n")
	seen := map[string]bool{}
	for _, row := range strings.Split(strings.TrimSpace(body), "\n") {
		cells := strings.Split(strings.Trim(row, "|"), "|")
		if len(cells) != 4 {
			return nil, nil, fmt.Errorf("README.md: %q has %d cells", row, len(cells))
		}
		who, name := strings.TrimSpace(cells[1]), strings.Trim(cells[3], " `")
		if strings.TrimSpace(cells[0]) == "" || strings.TrimSpace(cells[2]) == "" || !regexp.MustCompile(`^test_[a-z0-9_]+$`).MatchString(name) || seen[name] {
			return nil, nil, fmt.Errorf("README.md: %q does not say what, why and its own test", row)
		}
		seen[name] = true
		switch {
		case strings.HasPrefix(who, "pinned"):
			pinned = append(pinned, name)
		case strings.HasPrefix(who, "left to "):
			left = append(left, name)
		default:
			return nil, nil, fmt.Errorf("README.md: %q says neither pinned nor left to somebody", row)
		}
	}
	return pinned, left, nil
}

func TestTableOf(t *testing.T) {
	const head = "# x\n\n| What | Who decides | Why | Test |\n|---|---|---|---|\n"
	pinned, left, err := tableOf(head + "| a | pinned (set) | b | `test_a` |\n| c | left to the host | d | `test_b` |\n\nmore\n")
	if err != nil || !slices.Equal(pinned, []string{"test_a"}) || !slices.Equal(left, []string{"test_b"}) {
		t.Error(pinned, left, err)
	}
	for _, bad := range []string{
		"", head + "| a | pinned | b |\n", head + "| a | pinned | b | none |\n", head + "| a | pinned |  | `test_a` |\n", head + "| a | maybe | b | `test_a` |\n",
		head + "| a | pinned | b | `test_a` |\n| c | pinned | d | `test_a` |\n", head + "| a | pinned | b | `test_a` |\n\n| x |\n|---|\n",
	} {
		if _, _, err := tableOf(bad); err == nil {
			t.Errorf("%q is a table", bad)
		}
	}
}

// TestSharedDecisions: claims that an example allowed, and should not have.
func TestSharedDecisions(t *testing.T) {
	shared := filepath.Join("..", "..", "shared", "cases")
	inputs, err := filepath.Glob(filepath.Join(shared, "decisions", "*.input.json"))
	if err != nil || len(inputs) == 0 {
		t.Skipf("no shared cases in %s: %v", shared, err)
	}
	policies := map[string]string{
		"azure": "azure_disk", "cs": "confidential_space", "disks": "disks", "gce": "gce_workload", "gpu": "gpu_guest",
		"mb": "measured_boot", "tdx": "tdx_strict", "tenant": "t", "workload": "workload",
	}
	for _, file := range inputs {
		name := strings.TrimSuffix(filepath.Base(file), ".input.json")
		t.Run(name, func(t *testing.T) {
			kind, _, _ := strings.Cut(name, "_")
			policy := policies[kind]
			dir := filepath.Join("..", "examples", "policies", policy)
			if policy == "t" {
				dir = filepath.Join(shared, "policies", "tenant-floors")
			}
			var in broker.PolicyInput
			var sets []broker.ReferenceSet
			for f, to := range map[string]any{file: &in, strings.TrimSuffix(file, ".input.json") + ".refs.json": &sets} {
				b, err := os.ReadFile(f)
				if err == nil {
					err = json.Unmarshal(b, to)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			e := newEngine(t, Config{Dir: dir})
			if err := e.SetReferences(sets, nil); err != nil {
				t.Fatal(err)
			}
			in.Resource.Policy, in.Time = policy, testTime
			d, err := e.Decide(t.Context(), in)
			if err != nil || d.Allow || len(d.Reasons) == 0 || d.Reasons[0].Rule == "policy_error" {
				t.Errorf("allow %t, %+v, %v", d.Allow, d.Reasons, err)
			}
			t.Log(rules(d))
		})
	}
}

// exampleInput is claims that an example allows, and a set that lists them.
func exampleInput(t *testing.T, name string) (map[string]any, broker.ReferenceSet) {
	t.Helper()
	read := func(file string) map[string]any {
		b, err := os.ReadFile(filepath.Join("..", "examples", "policies", name, "fixtures", file))
		var doc map[string]any
		if err == nil {
			err = json.Unmarshal(b, &doc)
		}
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	files, err := os.ReadDir(filepath.Join("..", "examples", "policies", name, "fixtures"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	doc := read(files[len(files)-1].Name()) // of two, the other is a GPU's
	a := doc["attestation"].(map[string]any)
	if len(files) > 1 {
		gpu := read(files[0].Name())["attestation"].(map[string]any)
		gpu["vouched_by"], a["devices"], doc["chip"] = a["type"], []any{gpu}, map[string]any{"networks": 1}
	}
	measurements := a["measurements"].(map[string]any)
	if name == "measured_boot_grub" {
		measurements["pcr8"] = strings.Repeat("8", 64)
		a["tpm"].(map[string]any)["pcrs"].(map[string]any)["8"] = measurements["pcr8"]
	}
	params := map[string]any{"chip": a["chip_id"], "device": a["chip_id"], "vm": "payments", "workload": "payments"}
	if azure, ok := a["azure_vtpm"].(map[string]any); ok {
		params["vm"] = azure["vm_configuration"].(map[string]any)["vm_unique_id"]
	}
	doc["resource"], doc["time"] = map[string]any{"path": "x", "params": params}, testTime.UTC().Format(time.RFC3339Nano)
	set := broker.ReferenceSet{Name: "r", Type: attest.Type(a["type"].(string)), State: broker.ReferenceActive, Values: map[string][]string{}}
	for m, v := range measurements {
		set.Values[m] = []string{v.(string)}
	}
	return doc, set
}

// TestClaimsMissing: an example denies, and says why, whichever claim that it
// demands is missing, null, or of another type. Those that it does not demand are
// written down (UPDATE_GOLDEN=1 writes them anew), so that none joins them unseen:
// what README.md leaves to others, what says the same as another claim, and what
// the example's own reference set or requirements make needless.
func TestClaimsMissing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long, and nothing of it runs at once")
	}
	golden := filepath.Join("testdata", "indifferent.txt")
	var all []string
	defer func() {
		text := strings.Join(all, "\n") + "\n"
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
				t.Error(err)
			}
		} else if want, err := os.ReadFile(golden); err != nil || string(want) != text {
			t.Errorf("%v: examples do not look at\n%s", err, text)
		}
	}()
	e := newEngine(t, Config{Dir: "../examples/policies"})
	s := e.inForce.Load()
	for _, name := range s.names {
		t.Run(name, func(t *testing.T) {
			doc, set := exampleInput(t, name)
			if err := e.SetReferences([]broker.ReferenceSet{set}, nil); err != nil {
				t.Fatal(err)
			}
			s := e.inForce.Load()
			decide := func() broker.Decision {
				input, err := e.conv.convert(doc, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				d, err := s.decide(t.Context(), name, input, testTime, nil)
				if err != nil {
					return broker.Decision{Reasons: []broker.DecisionReason{{Rule: "policy_error", Message: err.Error()}}}
				}
				return d
			}
			if d := decide(); !d.Allow {
				t.Fatalf("%+v", d.Reasons)
			}
			var passed []string
			var walk func(path string, x any, set func(any))
			walk = func(path string, x any, set func(any)) {
				for _, v := range []any{nil, "x", 7.5, true, []any{}, map[string]any{}} {
					if fmt.Sprintf("%T", v) == fmt.Sprintf("%T", x) && v != nil {
						continue
					}
					set(v)
					if d := decide(); d.Allow {
						passed = append(passed, path)
					} else if len(d.Reasons) == 0 || d.Reasons[0].Rule == "no_rule_allowed" {
						t.Errorf("%s is %v: %+v", path, v, d.Reasons)
					}
				}
				set(x)
				switch x := x.(type) {
				case map[string]any:
					for _, k := range sortedKeys(x) {
						v := x[k]
						delete(x, k)
						if d := decide(); d.Allow {
							passed = append(passed, path+"."+k)
						} else if len(d.Reasons) == 0 || d.Reasons[0].Rule == "no_rule_allowed" {
							t.Errorf("%s.%s is missing: %+v", path, k, d.Reasons)
						}
						x[k] = v
						walk(path+"."+k, v, func(v any) { x[k] = v })
					}
				case []any:
					for i := range x {
						walk(path+"."+fmt.Sprint(i), x[i], func(v any) { x[i] = v })
					}
				}
			}
			walk("attestation", doc["attestation"], func(v any) { doc["attestation"] = v })
			slices.Sort(passed)
			last := "-"
			for _, path := range slices.Compact(passed) {
				if !strings.HasPrefix(path, last+".") {
					all, last = append(all, name+" "+path), path
				}
			}
		})
	}
}
