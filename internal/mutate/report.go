package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// report collects what became of the mutants.
type report struct {
	stdout     io.Writer
	equivalent map[string]string // reason by name
	results    map[string]result
	order      []*mutant
	wrong      []string // of the list of equivalent mutants
}

func (r *report) tell(m *mutant, how result) {
	r.results[m.name()] = how
	r.order = append(r.order, m)
	_, equivalent := r.equivalent[m.name()]
	switch {
	case equivalent && how == killed:
		r.wrong = append(r.wrong, "listed as equivalent, but killed: "+m.name())
	case !equivalent && (how == survived || how == uncovered):
		fmt.Fprintf(r.stdout, "%-9s %s:%d %s: %s\n", how, m.file, m.line, m.fn, strings.TrimPrefix(m.name(), m.file+"\t"+m.fn+"\t"))
	}
}

func (r *report) write(file string) error {
	var b strings.Builder
	for _, m := range r.order {
		fmt.Fprintf(&b, "%s\t%s\n", r.results[m.name()], m.name())
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// summary prints the score of each file, and fails below the goal.
func (r *report) summary(goal float64) error {
	type score struct{ killed, total, equivalent, unusable int }
	files := map[string]*score{}
	var all score
	for _, m := range r.order {
		s := files[m.file]
		if s == nil {
			s = &score{}
			files[m.file] = s
		}
		_, equivalent := r.equivalent[m.name()]
		switch how := r.results[m.name()]; {
		case how == unusable:
			s.unusable++
		case equivalent && how != killed:
			s.equivalent++
		case how == killed:
			s.killed, s.total = s.killed+1, s.total+1
		default:
			s.total++
		}
	}
	line := func(name string, s score) {
		fmt.Fprintf(r.stdout, "%-34s %5d of %5d %5.1f %%  (%d equivalent, %d do not compile)\n", name, s.killed, s.total, percent(s.killed, s.total), s.equivalent, s.unusable)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		s := *files[name]
		line(name, s)
		all = score{all.killed + s.killed, all.total + s.total, all.equivalent + s.equivalent, all.unusable + s.unusable}
	}
	line("all", all)
	for _, w := range r.wrong {
		fmt.Fprintln(r.stdout, w)
	}
	if got := percent(all.killed, all.total); got < goal {
		return fmt.Errorf("killed %.1f %% of the mutants, the goal is %.1f %%", got, goal)
	}
	return nil
}

func percent(n, of int) float64 {
	if of == 0 {
		return 100
	}
	return 100 * float64(n) / float64(of)
}

// readEquivalent reads the list of mutants that no test can notice, each with its reason.
func readEquivalent(file string) (map[string]string, error) {
	list := map[string]string{}
	if file == "" {
		return list, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 4 || f[3] == "" {
			return nil, fmt.Errorf("%s:%d: want file, function, change and reason, with tabs between", file, n)
		}
		list[strings.Join(f[:3], "\t")] = f[3]
	}
	return list, nil
}

// readSurvivors reads, of what -out wrote, what was not killed; nil if there is no file.
func readSurvivors(file string) (map[string]bool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		how, name, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if result(how) == survived || result(how) == uncovered {
			names[name] = true
		}
	}
	return names, nil
}
