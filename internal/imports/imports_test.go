// Package imports holds the direction of dependencies (docs/architecture.md) as tests.
package imports

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/claviger/claviger/"

type pkg struct {
	path    string
	imports []string // direct, without tests
	deps    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-tags", "grpcnotrace", "-f", `{{.ImportPath}}|{{join .Imports " "}}|{{join .Deps " "}}`, module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var ps []pkg
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		ps = append(ps, pkg{f[0], strings.Fields(f[1]), strings.Fields(f[2])})
	}
	if len(ps) < 20 {
		t.Fatalf("go list found %d packages", len(ps))
	}
	return ps
}

// TestOneImporter: each third-party system, and each dangerous package of
// ours, has exactly the importers named here.
func TestOneImporter(t *testing.T) {
	only := map[string][]string{
		"github.com/open-policy-agent/opa":        {"policy"},
		"go.etcd.io/etcd":                         {"broker/etcd", "internal/testservers"},
		"github.com/hashicorp/vault":              {"broker/vault"},
		"github.com/transparency-dev":             {"broker/audit"},
		"github.com/google/go-sev-guest":          {"broker/tee/snp"},
		"github.com/google/go-tdx-guest":          {}, // tests only: an oracle
		"github.com/google/go-configfs-tsm":       {"broker/agent"},
		"github.com/google/go-tpm":                {"broker/tee/tpm", "broker/tpmquote", "broker/tpmquote/tpmquotetest", "broker/agent/tpmdev", "broker/agent/tpmdev/tpmdevtest", "internal/testservers"},
		"filippo.io/edwards25519":                 {"broker/tee/keystone"},
		"github.com/fxamacker/cbor":               {"broker/tee/nitro", "broker/agent/nsm", "broker/cose", "broker/cose/cosetest"},
		"github.com/lestrrat-go/jwx":              {"broker/seal", "broker/token", "broker/tee/results"},
		"go.yaml.in/yaml":                         {"internal/strictyaml"},
		"golang.org/x/crypto":                     {"broker/tee/nvidia"},
		"github.com/prometheus":                   {"broker/telemetry"},
		module + "broker/internal/grant":          {"broker"},
		module + "broker/tee/teesim":              {"internal/dev", "internal/load", "cmd/claviger-agent", "broker/brokertest"},
		module + "internal/dev":                   {"cmd/claviger", "broker/brokertest"},
		module + "broker/dcap/dcaptest":           {},
		module + "broker/cose/cosetest":           {},
		module + "broker/tee/teetest":             {},
		module + "broker/agent/tpmdev/tpmdevtest": {},
		module + "broker/tpmquote/tpmquotetest":   {},
		module + "internal/testservers":           {},
		module + "internal/bench/benchtest":       {},
	}
	for _, p := range packages(t) {
		for _, imp := range p.imports {
			for prefix, allowed := range only {
				if imp != prefix && !strings.HasPrefix(imp, prefix+"/") {
					continue
				}
				rel := strings.TrimPrefix(p.path, module)
				if strings.HasPrefix(p.path+"/", prefix+"/") || slices.Contains(allowed, rel) {
					continue
				}
				t.Errorf("%s imports %s; allowed: %v", rel, imp, allowed)
			}
		}
	}
}

// TestDirection: what stands below knows nothing of what stands above.
func TestDirection(t *testing.T) {
	adapters := []string{"broker/audit", "broker/etcd", "broker/vault", "broker/local", "broker/rpc", "broker/agent", "broker/collateral", "broker/telemetry", "broker/token"}
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.path, module)
		ours := slices.DeleteFunc(slices.Clone(p.deps), func(d string) bool { return !strings.HasPrefix(d, module) })
		for i := range ours {
			ours[i] = strings.TrimPrefix(ours[i], module)
		}
		forbid := func(why string, deps ...string) {
			for _, d := range deps {
				if slices.Contains(ours, d) {
					t.Errorf("%s depends on %s: %s", rel, d, why)
				}
			}
		}
		switch {
		case rel == "broker/attest" || rel == "broker/strictjson":
			for _, d := range p.deps {
				if strings.Contains(strings.SplitN(d, "/", 2)[0], ".") && d != module+"broker/strictjson" {
					t.Errorf("%s depends on %s: it is standard library only, but for strictjson", rel, d)
				}
			}
		case rel == "broker":
			forbid("the domain knows no adapter", append(adapters, "policy", "broker/tee", "broker/state")...)
		case slices.Contains(adapters, rel):
			forbid("adapters do not know each other", slices.DeleteFunc(slices.Clone(adapters), func(a string) bool { return a == rel })...)
			forbid("adapters do not know the wiring", "internal/server", "internal/dev")
		case strings.HasPrefix(rel, "broker/tee/"):
			forbid("a verifier knows neither the broker nor a sibling", "broker", "policy")
			for _, d := range ours {
				if strings.HasPrefix(d, "broker/tee/") && d != rel && rel != "broker/tee" {
					t.Errorf("%s depends on its sibling %s", rel, d)
				}
			}
		case rel == "broker/measure":
			for _, d := range ours {
				if d != "broker/eventlog" {
					t.Errorf("broker/measure depends on %s: it hashes, and knows no broker", d)
				}
			}
		case rel == "broker/agent/netup":
			if i := slices.IndexFunc(p.deps, func(d string) bool { return strings.Contains(strings.SplitN(d, "/", 2)[0], ".") }); i >= 0 {
				t.Errorf("broker/agent/netup depends on %s: it is standard library only", p.deps[i])
			}
		case rel == "internal/server":
			forbid("a configured broker can load no test root", "broker/tee/teesim", "internal/dev")
		case rel == "cmd/claviger-agent":
			forbid("the agent is small", "broker", "policy", "broker/tee/snp", "broker/tee/tdx", "broker/rpc", "internal/server", "broker/vault", "broker/etcd")
			for _, d := range p.deps {
				for _, big := range []string{"github.com/open-policy-agent", "go.etcd.io", "github.com/hashicorp", "github.com/google/go-sev-guest", "github.com/prometheus"} {
					if strings.HasPrefix(d, big) {
						t.Errorf("the agent depends on %s", d)
					}
				}
			}
		}
	}
}
