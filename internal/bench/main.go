// Command bench prints what it costs to appraise each type of evidence, to
// release a secret and to evaluate a policy, beside the floor: the cryptography
// that cannot be avoided, measured in the same run. `make bench` calls it.
//
// The benchmarks are those of the packages' tests. Per type of evidence they are
// Verify (warm: chains and collateral are remembered), VerifyCold (where
// anything is remembered) and Floor, whose last part is named for what it counts.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// suite is a package with benchmarks, and the type of evidence that it appraises.
type suite struct {
	dir  string
	name attest.Type
}

var types = []suite{
	{"broker/tee/snp", attest.TypeSNP},
	{"broker/tee/tdx", attest.TypeTDX},
	{"broker/tee/sgx", attest.TypeSGX},
	{"broker/tee/tpm", attest.TypeTPM},
	{"broker/tee/azure", attest.TypeAzure},
	{"broker/tee/gce", attest.TypeGCE},
	{"broker/tee/nitro", attest.TypeNitro},
	{"broker/tee/keystone", attest.TypeKeystone},
	{"broker/tee/psa", attest.TypePSA},
	{"broker/tee/cca", attest.TypeCCA},
	{"broker/tee/nvidia", attest.TypeNVIDIA},
	{"broker/tee/results", attest.TypeResult},
}

const (
	releases   = "broker"
	policies   = "policy"
	benchmarks = "^Benchmark(Verify|VerifyCold|Floor|Release|ReleaseFloor|ReleaseCold|Evaluate|Decide|Recall)$"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 8, "how often each benchmark runs; the least counts")
	benchtime := flag.Duration("benchtime", 100*time.Millisecond, "how long each run is")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	r, err := measure(ctx, *rounds, *benchtime)
	if err != nil {
		log.Fatal("bench: ", err)
	}
	if err := r.print(os.Stdout, *rounds, *benchtime); err != nil {
		log.Fatal("bench: ", err)
	}
}

// measure builds the tests of all packages, and then runs them in turn, round
// after round: what disturbs the machine for some seconds does not meet all
// runs of a benchmark while it spares its floor.
func measure(ctx context.Context, rounds int, benchtime time.Duration) (results, error) {
	tmp, err := os.MkdirTemp("", "claviger-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	dirs := []string{releases, policies}
	for _, s := range types {
		dirs = append(dirs, s.dir)
	}
	args := []string{"test", "-c", "-o", tmp + "/"}
	for _, d := range dirs {
		args = append(args, "./"+d)
	}
	log.Printf("building the tests of %d packages", len(dirs))
	if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the tests: %w\n%s", err, out)
	}
	r := results{}
	for i := range rounds {
		log.Printf("round %d of %d", i+1, rounds)
		for _, d := range dirs {
			cmd := exec.CommandContext(ctx, filepath.Join(tmp, path.Base(d)+".test"),
				"-test.run=^$", "-test.bench="+benchmarks, "-test.cpu=1", "-test.benchtime="+benchtime.String())
			cmd.Dir = d
			cmd.Env = append(os.Environ(), "GOGC="+strconv.Itoa(broker.GCPercent)) // as the command runs
			out, err := cmd.CombinedOutput()
			if err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", d, err, out)
			}
			if err := r.add(d, string(out)); err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", d, err, out)
			}
		}
	}
	return r, nil
}

// key names a measurement: in broker/tee/azure, Floor of variant tdx.
type key struct{ dir, kind, variant string }

// cost is the least CPU time in nanoseconds; of a floor also what it counts.
type cost struct {
	ns     float64
	counts string
}

type results map[key]cost

// add takes the output of a test. Sub-benchmarks are variants, and the last part of a floor is what it counts.
func (r results) add(dir, output string) error {
	for line := range strings.Lines(output) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		i := slices.Index(f, "cpu-ns/op")
		if i < 1 {
			return fmt.Errorf("no CPU time in %q", line)
		}
		ns, err := strconv.ParseFloat(f[i-1], 64)
		if err != nil || !(ns > 0) {
			return fmt.Errorf("no CPU time in %q", line)
		}
		name := strings.Split(strings.TrimPrefix(f[0], "Benchmark"), "/")
		k, c := key{dir: dir, kind: name[0]}, cost{ns: ns}
		if strings.HasSuffix(k.kind, "Floor") {
			c.counts = strings.NewReplacer("+", " + ", "_", " ").Replace(name[len(name)-1])
			name = name[:len(name)-1]
		}
		k.variant = strings.Join(name[1:], "/")
		if old, ok := r[k]; !ok || c.ns < old.ns {
			r[k] = c
		}
	}
	return nil
}

// variants of a kind of benchmark in dir, sorted.
func (r results) variants(dir, kind string) ([]string, error) {
	var vs []string
	for k := range r {
		if k.dir == dir && k.kind == kind {
			vs = append(vs, k.variant)
		}
	}
	if len(vs) == 0 {
		return nil, fmt.Errorf("%s: no Benchmark%s ran", dir, kind)
	}
	slices.Sort(vs)
	return vs, nil
}

func (r results) print(to io.Writer, rounds int, benchtime time.Duration) error {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	// measured prints a line with a floor; without one there is nothing to print.
	measured := func(name, dir, warm, floor, variant string) error {
		c, f := r[key{dir, warm, variant}], r[key{dir, floor, variant}]
		if f.ns == 0 {
			return fmt.Errorf("%s: Benchmark%s %s ran without Benchmark%s", dir, warm, variant, floor)
		}
		cold := r[key{dir, warm + "Cold", variant}]
		row(name, micros(c.ns), micros(cold.ns), micros(f.ns), fmt.Sprintf("%10.2f", c.ns/f.ns), f.counts)
		return nil
	}

	row("evidence", "    warm", "    cold", "   floor", "warm/floor", "what the floor is")
	for _, s := range types {
		vs, err := r.variants(s.dir, "Verify")
		if err != nil {
			return err
		}
		for _, v := range vs {
			name := string(s.name)
			if v != "" {
				name += " " + v
			}
			if err := measured(name, s.dir, "Verify", "Floor", v); err != nil {
				return err
			}
		}
	}
	row("whole release", "", "", "", "", "")
	vs, err := r.variants(releases, "Release")
	if err != nil {
		return err
	}
	for _, v := range vs {
		if err := measured(v, releases, "Release", "ReleaseFloor", v); err != nil {
			return err
		}
	}
	row("policy", "", "", "", "", "")
	if vs, err = r.variants(policies, "Evaluate"); err != nil {
		return err
	}
	for _, v := range vs {
		whole, recall := r[key{policies, "Decide", v}], r[key{policies, "Recall", v}]
		if whole.ns == 0 || recall.ns == 0 {
			return fmt.Errorf("%s: BenchmarkEvaluate %s ran without BenchmarkDecide or BenchmarkRecall", policies, v)
		}
		row(v, micros(recall.ns), micros(r[key{policies, "Evaluate", v}].ns), micros(0), micros(0),
			"goal: under 100; "+strings.TrimSpace(micros(whole.ns))+" with the conversion of the claims")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(to, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(to, `
Of releases and policies, warm is with a decision that was made before for claims that look the same to
the policy, as those of one fleet do; cold is with one made anew.
CPU time in microseconds, garbage collection included: the least of %d runs of %v, GOMAXPROCS=1.
Other work on the machine slows down even the least, by its use of caches and of the core's other thread;
the runs of all lines take turns, so that it slows down a line and its floor alike.
`, rounds, benchtime)
	return err
}

// micros is ns in microseconds, right-aligned; "-" for what was not measured.
func micros(ns float64) string {
	if ns == 0 {
		return fmt.Sprintf("%8s", "-")
	}
	return fmt.Sprintf("%8.0f", math.Round(ns/1000))
}
