package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// unit is what is run at once to see whether a mutant is noticed: a test, or one of its subtests.
type unit struct {
	bin       *binary
	test, sub string
	took      time.Duration
	reaches   map[int]bool
}

// binary is the tests of one package, built with all mutants.
type binary struct{ path, dir string }

// result says how a mutant ended.
type result string

const (
	killed    result = "killed"
	survived  result = "survived"
	uncovered result = "uncovered" // survived: no test reaches it
	unusable  result = "unusable"  // it does not compile
)

// build compiles the tests of the packages with the mutants in p.
func build(p *program, tests []string, tmp string) ([]*binary, error) {
	replace := map[string]string{}
	for i, file := range slices.Sorted(maps.Keys(p.overlay)) {
		to := filepath.Join(tmp, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(to, []byte(p.overlay[file]), 0o600); err != nil {
			return nil, err
		}
		replace[file] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(tmp, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return nil, err
	}
	var bins []*binary
	for i, pkg := range tests {
		out, err := exec.Command("go", "list", "-f", "{{.Dir}}", pkg).Output()
		if err != nil {
			return nil, fmt.Errorf("go list %s: %w%s", pkg, err, stderrOf(err))
		}
		b := &binary{filepath.Join(tmp, fmt.Sprintf("%d.test", i)), strings.TrimSpace(string(out))}
		if out, err := exec.Command("go", "test", "-c", "-overlay", file, "-o", b.path, pkg).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the tests of %s: %w: %s", pkg, err, out)
		}
		if _, err := os.Stat(b.path); err == nil { // none if there are no tests
			bins = append(bins, b)
		}
	}
	return bins, nil
}

// run runs tests with a mutant (0: none) and says what they printed.
func (b *binary) run(ctx context.Context, limit time.Duration, mutant int, trace string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := exec.CommandContext(ctx, b.path, args...)
	c.Dir, c.WaitDelay = b.dir, time.Second
	c.Env = append(os.Environ(), "MUTATE="+strconv.Itoa(mutant), "MUTATE_TRACE="+trace)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err
}

// slow tests are run by subtest, so that a mutant waits only for those that reach it.
const slow = 300 * time.Millisecond

// baselineLimit is for all tests of one function, without a mutant.
const baselineLimit = 5 * time.Minute

// units runs each test once without a mutant, and notes what it reaches and how long it takes.
func (b *binary) units(ctx context.Context, tmp string) ([]*unit, error) {
	out, err := b.run(ctx, time.Minute, 0, "", "-test.list", ".")
	if err != nil {
		return nil, fmt.Errorf("list tests: %w: %s", err, out)
	}
	var us []*unit
	for test := range strings.FieldsSeq(out) {
		if !strings.HasPrefix(test, "Test") && !strings.HasPrefix(test, "Fuzz") && !strings.HasPrefix(test, "Example") {
			continue
		}
		u := &unit{bin: b, test: test}
		out, err := u.baseline(ctx, tmp)
		if err != nil {
			return nil, err
		}
		subs := subtests(test, out)
		if u.took < slow || len(subs) == 0 {
			us = append(us, u)
			continue
		}
		for _, sub := range subs {
			s := &unit{bin: b, test: test, sub: sub}
			if _, err := s.baseline(ctx, tmp); err != nil {
				return nil, err
			}
			us = append(us, s)
		}
	}
	return us, nil
}

var ran = regexp.MustCompile(`(?m)^=== RUN +(\S+)$`)

// subtests finds the direct subtests of a test in what it printed.
func subtests(test, out string) (subs []string) {
	for _, m := range ran.FindAllStringSubmatch(out, -1) {
		if sub, ok := strings.CutPrefix(m[1], test+"/"); ok && !strings.Contains(sub, "/") {
			subs = append(subs, sub)
		}
	}
	return subs
}

func (u *unit) pattern() string {
	p := "^" + u.test + "$"
	if u.sub != "" {
		p += "/^" + regexp.QuoteMeta(u.sub) + "$"
	}
	return p
}

func (u *unit) baseline(ctx context.Context, tmp string) (string, error) {
	trace := filepath.Join(tmp, "trace")
	_ = os.Remove(trace)
	start := time.Now()
	out, err := u.bin.run(ctx, baselineLimit, 0, trace, "-test.v", "-test.run", u.pattern())
	if err != nil {
		return "", fmt.Errorf("%s fails without a mutant: %w: %s", u.pattern(), err, out)
	}
	u.took, u.reaches = time.Since(start), map[int]bool{}
	reached, err := os.ReadFile(trace)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for id := range strings.FieldsSeq(string(reached)) {
		n, err := strconv.Atoi(id)
		if err != nil {
			return "", fmt.Errorf("trace: %w", err)
		}
		u.reaches[n] = true
	}
	return out, nil
}

// try runs the tests that reach a mutant, the fastest first, until one fails.
func try(ctx context.Context, m *mutant, units []*unit) (result, error) {
	var mine []*unit
	for _, u := range units {
		if u.reaches[m.id] {
			mine = append(mine, u)
		}
	}
	if len(mine) == 0 {
		return uncovered, nil
	}
	slices.SortStableFunc(mine, func(a, b *unit) int { return cmp.Compare(a.took, b.took) })
	for len(mine) > 0 {
		// Those of one binary that are about as fast run in one process.
		var group []string
		var took time.Duration
		first := mine[0]
		rest := mine[:0:0]
		for _, u := range mine {
			if u.bin == first.bin && (u.sub == "" && first.sub == "" && u.took < slow || u.test == first.test) {
				if u.sub != "" {
					group = append(group, regexp.QuoteMeta(u.sub))
				} else {
					group = append(group, u.test)
				}
				took += u.took
			} else {
				rest = append(rest, u)
			}
		}
		pattern := "^(" + strings.Join(group, "|") + ")$"
		if first.sub != "" {
			pattern = "^" + first.test + "$/" + pattern
		}
		if _, err := first.bin.run(ctx, 15*time.Second+5*took, m.id, "", "-test.failfast", "-test.run", pattern); err != nil {
			return killed, ctx.Err()
		}
		mine = rest
	}
	return survived, ctx.Err()
}

// tryAll tries the mutants, procs at a time, and tells of each in order.
func tryAll(ctx context.Context, ms []*mutant, units []*unit, procs int, tell func(*mutant, result)) error {
	results := make([]chan result, len(ms))
	for i := range results {
		results[i] = make(chan result, 1)
	}
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work := make(chan int)
	for range procs {
		wg.Go(func() {
			for i := range work {
				r, err := try(ctx, ms[i], units)
				if err != nil {
					once.Do(func() { failed = err; cancel() })
				}
				results[i] <- r
			}
		})
	}
	wg.Go(func() {
		defer close(work)
		for i := range ms {
			work <- i
		}
	})
	for i, m := range ms {
		r := <-results[i]
		if ctx.Err() == nil {
			tell(m, r)
		}
	}
	wg.Wait()
	return failed
}
