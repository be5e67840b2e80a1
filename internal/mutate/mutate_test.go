package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const source = `package calc

import "errors"

// Clamp is tested.
func Clamp(n int) (int, error) {
	if n < 0 {
		return 0, errors.New("negative")
	}
	if n > 10 {
		n = 10
	}
	return n, nil
}

// Both is not.
func Both(a, b bool) bool { return a && b }

type pair struct{ left, right int }

// Pairs is tested, but for what right is.
func Pairs(n int) []pair {
	all := []pair{{left: 1, right: 2}, {left: 3, right: 4}}
	for len(all) < n {
		all = append(all, pair{left: 5, right: 6})
	}
	return all
}
`

const sourceTest = `package calc

import "testing"

func TestClamp(t *testing.T) {
	for in, want := range map[int]int{0: 0, 3: 3, 10: 10, 11: 10} {
		if got, err := Clamp(in); got != want || err != nil {
			t.Error(in, got, err)
		}
	}
	if n, err := Clamp(-1); err == nil || n != 0 {
		t.Error("takes -1")
	}
}

func TestPairs(t *testing.T) {
	for n, want := range []int{2, 2, 2, 3} {
		ps := Pairs(n)
		if len(ps) != want || ps[0].left != 1 || ps[1].left != 3 || want == 3 && ps[2].left != 5 {
			t.Error(ps)
		}
	}
}
`

// module makes a module of the sample, and goes there.
func module(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a module of its own, three times")
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module calc\n\ngo 1.26\n", "calc.go": source, "calc_test.go": sourceTest} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

func mutate(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, progress bytes.Buffer
	err := run(t.Context(), args, &out, &progress)
	t.Logf("%s%s", progress.String(), out.String())
	return out.String(), err
}

// TestMutate: what the tests check is killed, what they do not is named, and the tree stays as it was.
func TestMutate(t *testing.T) {
	module(t)
	out, err := mutate(t, "-procs", "2", "-out", "out.txt", ".")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "survived") || strings.HasPrefix(line, "uncovered") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	want := []string{
		"survived  calc.go:10 Clamp: boundary of: n > 10",
		"uncovered calc.go:17 Both: not: a && b",
		"uncovered calc.go:17 Both: without the left of: a && b",
		"uncovered calc.go:17 Both: without the right of: a && b",
		"survived  calc.go:23 Pairs: no field right: 2",
		"survived  calc.go:23 Pairs: 3 for 2 in: right: 2",
		"survived  calc.go:23 Pairs: no field right: 4",
		"survived  calc.go:23 Pairs: 5 for 4 in: right: 4",
		"survived  calc.go:25 Pairs: no field right: 6",
		"survived  calc.go:25 Pairs: 7 for 6 in: right: 6",
	}
	slices.Sort(lines)
	slices.Sort(want)
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if text, err := os.ReadFile("calc.go"); err != nil || string(text) != source {
		t.Errorf("the source is %s: %v", text, err)
	}
	again, err := mutate(t, "-again", "out.txt", ".")
	if err != nil || !strings.Contains(again, "0 of    10") {
		t.Errorf("%v", err)
	}
}

// TestEquivalent: what no test can notice does not count, unless one does.
func TestEquivalent(t *testing.T) {
	module(t)
	list := "# a comment\ncalc.go\tClamp\tboundary of: n > 10\tten is ten\n"
	if err := os.WriteFile("list.txt", []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := mutate(t, "-func", "Clamp", "-list", "list.txt", "-goal", "100", "."); err != nil || !strings.Contains(out, "100.0 %  (1 equivalent") {
		t.Error(err)
	}
	if _, err := mutate(t, "-func", "Clamp", "-goal", "100", "."); err == nil {
		t.Error("reaches the goal with a survivor")
	}
	if err := os.WriteFile("list.txt", []byte(list+"calc.go\tClamp\tboundary of: n < 0\tnothing is nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := mutate(t, "-func", "Clamp", "-list", "list.txt", "."); err != nil || !strings.Contains(out, "listed as equivalent, but killed: calc.go\tClamp\tboundary of: n < 0") {
		t.Error(err)
	}
	if err := os.WriteFile("list.txt", []byte("calc.go\tClamp\tx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mutate(t, "-list", "list.txt", "."); err == nil {
		t.Error("takes an entry without a reason")
	}
}

// TestSample is the same each time, in order.
func TestSample(t *testing.T) {
	ms := make([]*mutant, 100)
	for i := range ms {
		ms[i] = &mutant{id: i}
	}
	a, b := sample(ms, 10, 1), sample(ms, 10, 1)
	if len(a) != 10 || !slices.Equal(a, b) || !slices.IsSortedFunc(a, func(x, y *mutant) int { return x.id - y.id }) {
		t.Errorf("%v, then %v", a, b)
	}
	if len(sample(ms, 0, 1)) != 100 || len(sample(ms, 200, 1)) != 100 {
		t.Error("no sample is not all")
	}
}

// TestLists: the lists in the repository can be read, and name files that exist.
func TestLists(t *testing.T) {
	root := filepath.Join("..", "..")
	list, err := readEquivalent("equivalent.txt")
	if err != nil {
		t.Fatal(err)
	}
	for name := range list {
		file, _, _ := strings.Cut(name, "\t")
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			t.Error(err)
		}
	}
	ts, err := targets(options{path: "path.txt"}, nil)
	if err != nil || len(ts) < 4 {
		t.Fatalf("%v: %v", ts, err)
	}
	for _, target := range ts {
		for _, f := range target.files {
			if _, err := os.Stat(filepath.Join(root, target.pkg, f)); err != nil {
				t.Error(err)
			}
		}
	}
}
