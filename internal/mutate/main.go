// Command mutate changes the source in one place at a time, runs the tests and
// reports the changes that none of them noticed. It writes nothing into the
// tree: all mutants of a package are compiled at once, through an overlay, and
// a variable of the environment says which one is on. Each test is run once
// without any, to learn which mutants it reaches; a mutant is then tried with
// those tests only, the fastest first, until one fails or takes five times as
// long as it should.
//
// It leaves alone what only a reader sees: strings, and calls that write the log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// target is a package, and where the tests are that should notice.
type target struct {
	pkg   string
	files []string // base names; empty: all
	tests []string // packages beside its own
}

type options struct {
	path, only, fn, equivalent, out, again string
	sample, procs                          int
	seed                                   uint64
	goal                                   float64
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	fs := flag.NewFlagSet("mutate", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.path, "path", "", "file of packages to mutate, one a line: PACKAGE [FILE…] [| PACKAGE OF MORE TESTS…]")
	fs.StringVar(&o.only, "only", "", "only the file of this name")
	fs.StringVar(&o.fn, "func", "", "only the functions of these names (Type.Method), with commas between")
	fs.IntVar(&o.sample, "sample", 0, "try only so many mutants of each package")
	fs.Uint64Var(&o.seed, "seed", 1, "which ones")
	fs.StringVar(&o.equivalent, "list", "", "file of equivalent mutants, which no test can notice: FILE, FUNCTION, CHANGE, REASON, with tabs between")
	fs.StringVar(&o.out, "out", "", "write what became of each mutant to this file")
	fs.StringVar(&o.again, "again", "", "try only what survived by this file, which -out wrote")
	fs.IntVar(&o.procs, "procs", 1, "mutants to try at once")
	fs.Float64Var(&o.goal, "goal", 0, "fail if a smaller part than this (in percent) of all is killed")
	if err := fs.Parse(args); err != nil {
		return err
	}
	targets, err := targets(o, fs.Args())
	if err != nil {
		return err
	}
	equivalent, err := readEquivalent(o.equivalent)
	if err != nil {
		return err
	}
	again, err := readSurvivors(o.again)
	if err != nil {
		return err
	}
	r := report{stdout: stdout, equivalent: equivalent, results: map[string]result{}}
	for _, t := range targets {
		if err := r.mutate(ctx, t, o, again, stderr); err != nil {
			return err
		}
	}
	if o.out != "" {
		if err := r.write(o.out); err != nil {
			return err
		}
	}
	return r.summary(o.goal)
}

// mutate tries the mutants of one package.
func (r *report) mutate(ctx context.Context, t target, o options, again map[string]bool, stderr io.Writer) error {
	start := time.Now()
	p, err := load(t.pkg, t.files, func(m *mutant) bool {
		return (o.only == "" || path.Base(m.file) == o.only) && (o.fn == "" || slices.Contains(strings.Split(o.fn, ","), m.fn)) && (again == nil || again[m.name()])
	})
	if err != nil {
		return err
	}
	if len(p.mutants) == 0 {
		return nil
	}
	tmp, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	bins, err := build(p, append([]string{t.pkg}, t.tests...), tmp)
	if err != nil {
		return err
	}
	var units []*unit
	for _, b := range bins {
		us, err := b.units(ctx, tmp)
		if err != nil {
			return err
		}
		units = append(units, us...)
	}
	ms := sample(p.mutants, o.sample, o.seed)
	fmt.Fprintf(stderr, "%s: %d mutants, %d tests; prepared in %s\n", t.pkg, len(ms), len(units), time.Since(start).Round(time.Second))
	for _, m := range p.unusable {
		r.tell(m, unusable)
	}
	err = tryAll(ctx, ms, units, o.procs, r.tell)
	fmt.Fprintf(stderr, "%s: done after %s\n", t.pkg, time.Since(start).Round(time.Second))
	return err
}

// sample is n of the mutants, in their order.
func sample(ms []*mutant, n int, seed uint64) []*mutant {
	if n <= 0 || n >= len(ms) {
		return ms
	}
	var out []*mutant
	take := rand.New(rand.NewPCG(seed, 0)).Perm(len(ms))[:n]
	for i, m := range ms {
		if slices.Contains(take, i) {
			out = append(out, m)
		}
	}
	return out
}

func targets(o options, args []string) ([]target, error) {
	if o.path == "" {
		if len(args) == 0 {
			return nil, errors.New("which package?")
		}
		return []target{{pkg: args[0], tests: args[1:]}}, nil
	}
	text, err := os.ReadFile(o.path)
	if err != nil {
		return nil, err
	}
	var ts []target
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		what, tests, _ := strings.Cut(line, "|")
		f := strings.Fields(what)
		if len(f) == 0 || len(args) > 0 && !slices.Contains(args, f[0]) {
			continue
		}
		ts = append(ts, target{f[0], f[1:], strings.Fields(tests)})
	}
	return ts, nil
}
