package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// runtime is what mutated source calls. MUTATE names the one mutant that is on; MUTATE_TRACE a file for the numbers of
// those that were reached.
const runtime = `package %s

import (
	mutateos "os"
	mutateconv "strconv"
	mutatesync "sync"
)

var (
	mutateActive, _ = mutateconv.Atoi(mutateos.Getenv("MUTATE"))
	mutateTrace     = mutateos.Getenv("MUTATE_TRACE")
	mutateSeen      mutatesync.Map
)

func mutateOn(id int) bool {
	if mutateTrace != "" {
		if _, seen := mutateSeen.LoadOrStore(id, true); !seen {
			if f, err := mutateos.OpenFile(mutateTrace, mutateos.O_APPEND|mutateos.O_CREATE|mutateos.O_WRONLY, 0o600); err == nil {
				_, _ = f.WriteString(mutateconv.Itoa(id) + "\n")
				_ = f.Close()
			}
		}
	}
	return mutateActive == id
}

func mutateZero[T any](id int, v T) T {
	if mutateOn(id) {
		var zero T
		return zero
	}
	return v
}

func mutatePick[T any](id int, v, instead T) T {
	if mutateOn(id) {
		return instead
	}
	return v
}
`

type goPackage struct {
	Dir, ImportPath, Name, Export string
	GoFiles                       []string
	Module                        *struct{ Dir string }
}

// program is a package with all its mutants in it.
type program struct {
	goPackage
	mutants  []*mutant
	unusable []*mutant         // that do not compile
	overlay  map[string]string // file: its text
}

// load finds the mutants of the named files of a package (all, if none is named).
func load(dir string, files []string, keep func(*mutant) bool) (*program, error) {
	out, err := exec.Command("go", "list", "-export", "-deps", "-json=Dir,ImportPath,Name,Export,GoFiles,Module", "os", "strconv", "sync", dir).Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w%s", dir, err, stderrOf(err))
	}
	exports := map[string]string{}
	p := &program{overlay: map[string]string{}}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var g goPackage
		if err := d.Decode(&g); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		exports[g.ImportPath] = g.Export
		p.goPackage = g // the last is the one asked for
	}
	lookup := func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(exports[path])
	}
	fset := token.NewFileSet()
	imp := importer.ForCompiler(fset, "gc", lookup)
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	asts, sources := map[string]*ast.File{}, map[string][]byte{}
	var list []*ast.File
	for _, name := range p.GoFiles {
		src, err := os.ReadFile(filepath.Join(p.Dir, name))
		if err != nil {
			return nil, err
		}
		a, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		asts[name], sources[name], list = a, src, append(list, a)
	}
	pkg, err := (&types.Config{Importer: imp}).Check(p.ImportPath, fset, list, info)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", dir, err)
	}
	id := 0
	sites := map[string][]*site{}
	for _, name := range p.GoFiles {
		if len(files) > 0 && !slices.Contains(files, name) || ast.IsGenerated(asts[name]) {
			continue
		}
		rel, err := filepath.Rel(p.Module.Dir, filepath.Join(p.Dir, name))
		if err != nil {
			return nil, err
		}
		f := &finder{
			src: sources[name], name: filepath.ToSlash(rel), fset: fset, info: info, pkg: pkg, imports: map[string]string{}, sites: map[[2]int]*site{},
			next: func() int { id++; return id }, seen: map[string]int{}, keep: keep,
		}
		for _, s := range asts[name].Imports {
			path, _ := strconv.Unquote(s.Path.Value)
			f.imports[path] = filepath.Base(path)
			if s.Name != nil {
				f.imports[path] = s.Name.Name
			}
		}
		f.file(asts[name])
		for _, s := range f.sites {
			sites[name] = append(sites[name], s)
		}
	}
	// What does not compile is taken out until everything does.
	unusable := map[int]bool{}
	for range 100 {
		var texts []*ast.File
		checked := token.NewFileSet()
		for _, name := range p.GoFiles {
			text := sources[name]
			if len(sites[name]) > 0 {
				text = []byte(render(sources[name], sites[name], unusable))
				p.overlay[filepath.Join(p.Dir, name)] = string(text)
			}
			a, err := parser.ParseFile(checked, name, text, parser.SkipObjectResolution)
			if err != nil {
				return nil, fmt.Errorf("mutated source: %w", err)
			}
			texts = append(texts, a)
		}
		run := fmt.Sprintf(runtime, p.Name)
		p.overlay[filepath.Join(p.Dir, "zz_mutate_runtime.go")] = run
		a, err := parser.ParseFile(checked, "zz_mutate_runtime.go", run, 0)
		if err != nil {
			return nil, err
		}
		bad := len(unusable)
		var first error
		conf := types.Config{Importer: imp, Error: func(err error) {
			var e types.Error
			if !errors.As(err, &e) {
				return
			}
			if first == nil {
				first = err
			}
			for _, t := range texts {
				if t.FileStart <= e.Pos && e.Pos < t.FileEnd {
					for _, id := range blame(t, e.Pos) {
						unusable[id] = true
					}
				}
			}
		}}
		_, _ = conf.Check(p.ImportPath, checked, append(texts, a), nil)
		if first == nil {
			p.collect(sites, unusable)
			return p, nil
		}
		if len(unusable) == bad {
			return nil, fmt.Errorf("mutated source: %w", first)
		}
	}
	return nil, errors.New("mutated source does not compile")
}

func (p *program) collect(sites map[string][]*site, unusable map[int]bool) {
	seen := map[int]bool{}
	for _, ss := range sites {
		for _, s := range ss {
			for _, m := range s.mutants {
				switch {
				case seen[m.id]:
				case unusable[m.id]:
					p.unusable = append(p.unusable, m)
				default:
					p.mutants = append(p.mutants, m)
				}
				seen[m.id] = true
			}
		}
	}
	slices.SortFunc(p.mutants, func(a, b *mutant) int { return cmp.Compare(a.id, b.id) })
	slices.SortFunc(p.unusable, func(a, b *mutant) int { return cmp.Compare(a.id, b.id) })
}

// render is the source with all mutants but the unusable in it.
func render(src []byte, sites []*site, unusable map[int]bool) string {
	slices.SortFunc(sites, func(a, b *site) int { return cmp.Or(cmp.Compare(a.start, b.start), -cmp.Compare(a.end, b.end)) })
	var out func(start, end int, inside []*site) string
	out = func(start, end int, inside []*site) string {
		var b strings.Builder
		at := start
		for len(inside) > 0 {
			s := inside[0]
			n := 1
			for n < len(inside) && inside[n].start < s.end {
				n++
			}
			b.Write(src[at:s.start])
			text := out(s.start, s.end, inside[1:n])
			for i, w := range s.wrap {
				if !unusable[s.mutants[i].id] {
					text = w(s.mutants[i].id, text)
				}
			}
			b.WriteString(text)
			at, inside = s.end, inside[n:]
		}
		b.Write(src[at:end])
		return b.String()
	}
	return out(0, len(src), sites)
}

var calls = regexp.MustCompile(`^mutate(On|Zero|Pick)$`)

// blame finds the mutants in the smallest piece of source around an error.
func blame(file *ast.File, pos token.Pos) (ids []int) {
	var path []ast.Node
	ast.Inspect(file, func(n ast.Node) bool {
		if n == nil || pos < n.Pos() || pos >= n.End() {
			return false
		}
		path = append(path, n)
		return true
	})
	for _, n := range slices.Backward(path) {
		ast.Inspect(n, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fun := c.Fun
			if x, ok := fun.(*ast.IndexExpr); ok {
				fun = x.X
			}
			if name, ok := fun.(*ast.Ident); ok && calls.MatchString(name.Name) && len(c.Args) > 0 {
				if lit, ok := c.Args[0].(*ast.BasicLit); ok {
					id, _ := strconv.Atoi(lit.Value)
					ids = append(ids, id)
				}
			}
			return true
		})
		if len(ids) > 0 {
			return ids[:1] // the outermost; if it was not that one, the next round takes the next
		}
	}
	return nil
}

func stderrOf(err error) string {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return ": " + string(e.Stderr)
	}
	return ""
}
