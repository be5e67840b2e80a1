// Package vectors holds that no shared vector is forgotten. Every evidence
// type has table tests of its own over ../shared/evidence; each of them knows
// the files that it reads, and none of them would notice a file that nobody
// reads. coverage.txt is the whole list: each file with the test that runs it,
// or with the reason why none does.
package vectors

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var strace = flag.Bool("strace", false, "run every test that coverage.txt names under strace, and want each to open the files it is named for")

const (
	root   = "../.."
	shared = root + "/../shared/evidence"
)

// line is one line of coverage.txt:
//
//	pattern [count] -> package Test[, package Test…]
//	pattern [count] | reason
//
// The pattern is one of path.Match, below ../shared/evidence. One with a
// wildcard says how many files it stands for: a file added to a folder must
// not vanish in a line that was written before it.
type line struct {
	number  int
	pattern string
	count   int
	tests   []test
	reason  string
}

type test struct{ pkg, name string }

var (
	lineRE = regexp.MustCompile(`^(\S+?)(?: (\d+))? (->|\|) (\S.*)$`)
	testRE = regexp.MustCompile(`^(\S+) (Test[A-Z]\w*)$`)
)

func parse(t *testing.T, text string) []line {
	t.Helper()
	var ls []line
	seen := map[string]int{}
	for i, s := range strings.Split(text, "\n") {
		if s == "" || strings.HasPrefix(s, "#") {
			continue
		}
		m := lineRE.FindStringSubmatch(s)
		if m == nil {
			t.Errorf("coverage.txt:%d: not `pattern [count] -> package Test` and not `pattern [count] | reason`", i+1)
			continue
		}
		l := line{number: i + 1, pattern: m[1], count: 1}
		if at, ok := seen[l.pattern]; ok {
			t.Errorf("coverage.txt:%d: %s has line %d already", l.number, l.pattern, at)
		}
		seen[l.pattern] = l.number
		if _, err := path.Match(l.pattern, ""); err != nil {
			t.Errorf("coverage.txt:%d: %s: %v", l.number, l.pattern, err)
		}
		if wild := strings.ContainsAny(l.pattern, `*?[`); wild != (m[2] != "") {
			t.Errorf("coverage.txt:%d: a pattern with a wildcard has a count, and a path has none", l.number)
		} else if wild {
			l.count, _ = strconv.Atoi(m[2])
		}
		if m[3] == "|" {
			l.reason = m[4]
		} else {
			for f := range strings.SplitSeq(m[4], ", ") {
				tm := testRE.FindStringSubmatch(f)
				if tm == nil {
					t.Errorf("coverage.txt:%d: %q is not `package Test`", l.number, f)
					continue
				}
				l.tests = append(l.tests, test{tm[1], tm[2]})
			}
		}
		ls = append(ls, l)
	}
	return ls
}

// files are the paths below ../shared/evidence, without its two lists.
func files(t *testing.T) []string {
	t.Helper()
	if _, err := os.Stat(shared); err != nil {
		t.Skip("no ../shared/evidence beside the repository")
	}
	var ps []string
	err := fs.WalkDir(os.DirFS(shared), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && p != "INDEX.md" && p != "VERIFIED.txt" {
			ps = append(ps, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

// assign gives each file its line: the one that names it, or else the only
// pattern that matches it.
func assign(ls []line, ps []string) (map[string]line, []error) {
	byFile := map[string]line{}
	found := map[int]int{}
	var errs []error
	for _, p := range ps {
		var named, matched []line
		for _, l := range ls {
			if l.pattern == p {
				named = append(named, l)
			} else if ok, _ := path.Match(l.pattern, p); ok {
				matched = append(matched, l)
			}
		}
		if len(named) > 0 {
			matched = named
		}
		switch len(matched) {
		case 0:
			errs = append(errs, fmt.Errorf("%s: no line: name the test that runs it, or say why none does", p))
		case 1:
			byFile[p] = matched[0]
			found[matched[0].number]++
		default:
			errs = append(errs, fmt.Errorf("%s: lines %d and %d both match", p, matched[0].number, matched[1].number))
		}
	}
	for _, l := range ls {
		if found[l.number] != l.count {
			errs = append(errs, fmt.Errorf("coverage.txt:%d: %s stands for %d files and there are %d", l.number, l.pattern, l.count, found[l.number]))
		}
	}
	return byFile, errs
}

func coverage(t *testing.T) []line {
	t.Helper()
	text, err := os.ReadFile("coverage.txt")
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(text))
}

// TestCoverage: every file has a line, every line has its files. With -v it
// reports each file by name.
func TestCoverage(t *testing.T) {
	ls, ps := coverage(t), files(t)
	byFile, errs := assign(ls, ps)
	for _, err := range errs {
		t.Error(err)
	}
	run := 0
	for _, p := range ps {
		l := byFile[p]
		if l.tests == nil {
			t.Logf("%-90s not run: %s", p, l.reason)
			continue
		}
		run++
		t.Logf("%-90s %v", p, l.tests)
	}
	t.Logf("%d files, %d of them run by a test", len(ps), run)
}

// TestNamedTestsExist needs no vectors: a test that is renamed or removed
// takes its line along.
func TestNamedTestsExist(t *testing.T) {
	exists := map[string]map[string]bool{}
	for _, l := range coverage(t) {
		for _, w := range l.tests {
			if exists[w.pkg] == nil {
				exists[w.pkg] = testsOf(t, w.pkg)
			}
			if !exists[w.pkg][w.name] {
				t.Errorf("coverage.txt:%d: %s has no %s", l.number, w.pkg, w.name)
			}
		}
	}
}

var funcRE = regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\)`)

func testsOf(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range funcRE.FindAllSubmatch(b, -1) {
			names[string(m[1])] = true
		}
	}
	return names
}

var openRE = regexp.MustCompile(`openat\([^"]*"([^"]*)", [^)]*\) = \d`)

// TestNamedTestsRead is what makes the list more than a promise: it runs the
// tests that coverage.txt names under strace, and wants each to open the files
// that it is named for. It compiles and runs a dozen packages again, so it is
// asked for: go test ./internal/vectors -strace.
func TestNamedTestsRead(t *testing.T) {
	if !*strace {
		t.Skip("asked for by -strace")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("no strace")
	}
	byFile, _ := assign(coverage(t), files(t))
	want := map[test][]string{}
	for p, l := range byFile {
		for _, w := range l.tests {
			want[w] = append(want[w], p)
		}
	}
	for _, w := range slices.SortedFunc(maps.Keys(want), func(a, b test) int {
		return strings.Compare(a.pkg+a.name, b.pkg+b.name)
	}) {
		t.Run(path.Join(w.pkg, w.name), func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "trace")
			cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^"+w.name+"$",
				"-exec", "strace -f -qq --seccomp-bpf -e trace=openat -e signal=none -o "+log, "./"+w.pkg)
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", cmd, err, out)
			}
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			opened := map[string]bool{}
			for _, m := range openRE.FindAllSubmatch(b, -1) {
				if _, p, ok := strings.Cut(string(m[1]), "shared/evidence/"); ok {
					opened[path.Clean(p)] = true
				}
			}
			for _, p := range slices.Sorted(slices.Values(want[w])) {
				if !opened[p] {
					t.Errorf("%s is not opened", p)
				}
			}
			for _, p := range slices.Sorted(maps.Keys(opened)) {
				if l, ok := byFile[p]; ok && l.tests == nil {
					t.Errorf("%s is opened, and coverage.txt:%d says why no test does", p, l.number)
				}
			}
		})
	}
}

// TestAssign: the list does not pass in silence what it is there to find.
func TestAssign(t *testing.T) {
	list := "# all of it\na/x -> broker TestX\na/* 2 | material\n"
	for name, tc := range map[string]struct {
		list string
		ps   []string
		want string
	}{
		"all":             {list, []string{"a/x", "a/y", "a/z"}, ""},
		"a new file":      {list, []string{"a/x", "a/y", "a/z", "b/x"}, "b/x: no line"},
		"one more":        {list, []string{"a/x", "a/y", "a/z", "a/new"}, "a/* stands for 2 files and there are 3"},
		"one that went":   {list, []string{"a/y", "a/z"}, "a/x stands for 1 files and there are 0"},
		"a deeper folder": {list, []string{"a/x", "a/y", "a/z", "a/b/c"}, "a/b/c: no line"},
		"two lines":       {list + "?/y 1 | twice\n", []string{"a/x", "a/y", "a/z"}, "a/y: lines 3 and 4 both match"},
	} {
		_, errs := assign(parse(t, tc.list), tc.ps)
		if got := fmt.Sprint(errs); (len(errs) == 0) != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s, want %q", name, got, tc.want)
		}
	}
}
