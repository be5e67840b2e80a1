package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"strconv"
	"strings"
)

// A mutant is one change to the source, switched on by its number.
type mutant struct {
	id     int
	file   string // from the module's root
	fn     string
	line   int
	change string // what is changed, with the source that it is changed in: unique in a function, together with nth
	nth    int    // of the same change in the same function, from 1
}

// name tells mutants apart without line numbers, which move.
func (m mutant) name() string {
	s := m.file + "\t" + m.fn + "\t" + m.change
	if m.nth > 1 {
		s += fmt.Sprintf(" #%d", m.nth)
	}
	return s
}

// site is a piece of source that mutants wrap, each on its own.
type site struct {
	start, end int // offsets
	mutants    []*mutant
	wrap       []func(id int, inner string) string
}

// finder collects the mutants of one file.
type finder struct {
	src     []byte
	name    string // from the module's root
	fset    *token.FileSet
	info    *types.Info
	pkg     *types.Package
	imports map[string]string // path: name in this file
	sites   map[[2]int]*site
	fn      string
	results *ast.FieldList // of the innermost function
	stack   []ast.Node
	next    func() int
	seen    map[string]int
	keep    func(m *mutant) bool
}

func (f *finder) text(n ast.Node) string {
	return string(f.src[f.offset(n.Pos()):f.offset(n.End())])
}

func (f *finder) offset(p token.Pos) int { return f.fset.Position(p).Offset }

// add registers a mutant of n: wrap makes, of the source of n with the other mutants in it, source in which the
// mutant's number decides.
func (f *finder) add(n ast.Node, change string, wrap func(id int, inner string) string) {
	m := &mutant{file: f.name, fn: f.fn, line: f.fset.Position(n.Pos()).Line, change: change}
	key := m.name()
	f.seen[key]++
	m.nth = f.seen[key]
	m.id = f.next()
	if !f.keep(m) {
		return
	}
	at := [2]int{f.offset(n.Pos()), f.offset(n.End())}
	s := f.sites[at]
	if s == nil {
		s = &site{start: at[0], end: at[1]}
		f.sites[at] = s
	}
	s.mutants = append(s.mutants, m)
	s.wrap = append(s.wrap, wrap)
}

// short is source on one line.
func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 90 {
		s = string(r[:60]) + " … " + string(r[len(r)-27:])
	}
	return s
}

func (f *finder) parent(back int) ast.Node {
	if len(f.stack) < back+1 {
		return nil
	}
	return f.stack[len(f.stack)-1-back]
}

// file finds the mutants of all functions and initialised variables.
func (f *finder) file(file *ast.File) {
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			f.fn = d.Name.Name
			if d.Recv != nil && len(d.Recv.List) > 0 {
				f.fn = strings.TrimPrefix(f.text(d.Recv.List[0].Type), "*") + "." + f.fn
			}
			if d.Body != nil {
				f.function(d.Type, d.Body)
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			for _, s := range d.Specs {
				s := s.(*ast.ValueSpec)
				f.fn = s.Names[0].Name
				for _, v := range s.Values {
					f.walk(v)
				}
			}
		}
	}
}

func (f *finder) function(t *ast.FuncType, body *ast.BlockStmt) {
	outer := f.results
	f.results = t.Results
	f.walk(body)
	f.results = outer
}

func (f *finder) walk(root ast.Node) {
	ast.Inspect(root, func(n ast.Node) bool {
		if n == nil {
			f.stack = f.stack[:len(f.stack)-1]
			return true
		}
		if lit, ok := n.(*ast.FuncLit); ok {
			f.function(lit.Type, lit.Body)
			return false
		}
		f.stack = append(f.stack, n)
		f.node(n)
		switch n.(type) {
		case *ast.ArrayType, *ast.MapType, *ast.FuncType, *ast.StructType, *ast.InterfaceType:
			f.stack = f.stack[:len(f.stack)-1]
			return false // types: nothing runs
		case *ast.DeclStmt:
			if g, ok := n.(*ast.DeclStmt).Decl.(*ast.GenDecl); ok && g.Tok != token.VAR {
				f.stack = f.stack[:len(f.stack)-1]
				return false
			}
		}
		return true
	})
}

func (f *finder) node(n ast.Node) {
	switch n := n.(type) {
	case *ast.IfStmt:
		f.condition(n.Cond, true)
	case *ast.ForStmt:
		if n.Cond != nil {
			f.condition(n.Cond, false)
		}
	case *ast.SwitchStmt:
		for _, c := range n.Body.List {
			for _, e := range c.(*ast.CaseClause).List {
				if n.Tag == nil {
					f.condition(e, true)
				} else {
					f.zero(e, "no case")
				}
			}
		}
	case *ast.BinaryExpr:
		f.binary(n)
	case *ast.ReturnStmt:
		f.returns(n)
	case *ast.ExprStmt:
		if c, ok := n.X.(*ast.CallExpr); ok && !f.uninteresting(c) {
			f.drop(n)
		}
	case *ast.DeferStmt:
		f.drop(n)
	case *ast.IncDecStmt:
		if _, ok := f.parent(1).(*ast.ForStmt); !ok {
			f.drop(n)
		}
	case *ast.BranchStmt:
		if n.Tok == token.CONTINUE {
			f.drop(n)
		}
	case *ast.AssignStmt:
		f.assign(n)
	case *ast.CompositeLit:
		f.composite(n)
	case *ast.CallExpr:
		f.swap(n)
	case *ast.BasicLit:
		f.literal(n)
	}
}

// condition is never, or always, true.
func (f *finder) condition(e ast.Expr, always bool) {
	if tv := f.info.Types[e]; tv.Value != nil {
		return
	}
	f.add(e, "never: "+short(f.text(e)), func(id int, in string) string { return fmt.Sprintf("(!mutateOn(%d) && (%s))", id, in) })
	if always {
		f.add(e, "always: "+short(f.text(e)), func(id int, in string) string { return fmt.Sprintf("(mutateOn(%d) || (%s))", id, in) })
	}
}

func (f *finder) binary(n *ast.BinaryExpr) {
	if f.info.Types[n].Value != nil {
		return
	}
	x, y := f.text(n.X), f.text(n.Y)
	instead := func(what, text string) {
		f.add(n, what, func(id int, in string) string {
			return fmt.Sprintf("(mutateOn(%[1]d) && (%[2]s) || !mutateOn(%[1]d) && (%[3]s))", id, text, in)
		})
	}
	switch n.Op {
	case token.LAND, token.LOR:
		instead("without the left of: "+short(f.text(n)), y)
		instead("without the right of: "+short(f.text(n)), x)
	case token.LSS, token.LEQ, token.GTR, token.GEQ:
		other := map[token.Token]string{token.LSS: "<=", token.LEQ: "<", token.GTR: ">=", token.GEQ: ">"}[n.Op]
		instead("boundary of: "+short(f.text(n)), x+" "+other+" "+y)
	case token.EQL, token.NEQ:
		switch p := f.parent(1).(type) {
		case *ast.IfStmt, *ast.CaseClause:
		case *ast.BinaryExpr:
			if p.Op == token.LAND || p.Op == token.LOR {
				f.negate(n)
			}
		default:
			if _, ok := p.(*ast.ReturnStmt); !ok {
				f.negate(n)
			}
		}
	case token.ADD, token.SUB:
		b, ok := f.info.TypeOf(n).Underlying().(*types.Basic)
		if !ok || b.Info()&types.IsNumeric == 0 {
			return
		}
		other := map[token.Token]string{token.ADD: "-", token.SUB: "+"}[n.Op]
		f.add(n, "sign of: "+short(f.text(n)), func(id int, in string) string {
			return fmt.Sprintf("mutatePick(%d, %s, %s %s %s)", id, in, x, other, y)
		})
	}
}

func (f *finder) negate(n ast.Node) {
	f.add(n, "not: "+short(f.text(n)), func(id int, in string) string { return fmt.Sprintf("(mutateOn(%d) != (%s))", id, in) })
}

func (f *finder) returns(n *ast.ReturnStmt) {
	if f.results == nil || len(n.Results) == 0 {
		return
	}
	if last := n.Results[len(n.Results)-1]; isError(f.info.TypeOf(f.results.List[len(f.results.List)-1].Type)) && len(n.Results) == f.results.NumFields() && !isNil(last) {
		before := string(f.src[f.offset(n.Pos()):f.offset(last.Pos())])
		f.add(n, "no error from: "+short(f.text(n)), func(id int, in string) string {
			return fmt.Sprintf("if mutateOn(%d) { %s nil }; %s", id, before, in)
		})
	}
	for _, e := range n.Results {
		t := f.info.TypeOf(e)
		if _, tuple := t.(*types.Tuple); tuple || isError(t) || isNil(e) {
			continue
		}
		if b, ok := t.Underlying().(*types.Basic); ok && b.Info()&types.IsBoolean != 0 {
			if id, ok := e.(*ast.Ident); ok && id.Name == "false" && len(n.Results) > 1 {
				continue // beside an error or a zero value it is not looked at
			}
			f.negate(e)
			continue
		}
		f.zero(e, "return zero")
	}
}

// zero puts a type's zero value in the place of e.
func (f *finder) zero(e ast.Expr, what string) {
	switch x := e.(type) {
	case *ast.CompositeLit:
		if x.Type == nil || len(x.Elts) == 0 {
			return
		}
	case *ast.Ident:
		if x.Name == "nil" || x.Name == "false" || x.Name == "none" { // var none T: zero already
			return
		}
	}
	tv := f.info.Types[e]
	if tv.IsType() || tv.Type == nil || zeroConstant(tv.Value) {
		return
	}
	f.add(e, what+": "+short(f.text(e)), func(id int, in string) string {
		return fmt.Sprintf("mutateZero%s(%d, %s)", f.instance(tv), id, in)
	})
}

func zeroConstant(v constant.Value) bool {
	if v == nil {
		return false
	}
	switch v.Kind() {
	case constant.String:
		return constant.StringVal(v) == ""
	case constant.Int, constant.Float:
		return constant.Sign(v) == 0
	case constant.Bool:
		return !constant.BoolVal(v)
	}
	return false
}

// instance names the type of a constant, which would otherwise be inferred as int or string.
func (f *finder) instance(tv types.TypeAndValue) string {
	if tv.Value == nil {
		return ""
	}
	ok := true
	s := types.TypeString(tv.Type, func(p *types.Package) string {
		if p == f.pkg {
			return ""
		}
		name, imported := f.imports[p.Path()]
		ok = ok && imported
		return name
	})
	if !ok || strings.Contains(s, "untyped") {
		return ""
	}
	return "[" + s + "]"
}

// drop leaves a statement out.
func (f *finder) drop(n ast.Stmt) {
	switch p := f.parent(1).(type) {
	case *ast.BlockStmt, *ast.CaseClause:
	case *ast.CommClause:
		if p.Comm == n {
			return
		}
	default:
		return // the init of an if
	}
	f.add(n, "without: "+short(f.text(n)), func(id int, in string) string { return fmt.Sprintf("if !mutateOn(%d) { %s }", id, in) })
}

func (f *finder) assign(n *ast.AssignStmt) {
	if n.Tok == token.DEFINE {
		return
	}
	for _, l := range n.Lhs {
		if id, ok := l.(*ast.Ident); ok && id.Name == "_" {
			return
		}
	}
	f.drop(n)
}

// uninteresting calls write log lines, or end the process.
func (f *finder) uninteresting(c *ast.CallExpr) bool {
	name := f.text(c.Fun)
	return name == "panic" || strings.Contains(name, "Logger.") || strings.Contains(name, "logger.") || strings.HasPrefix(name, "slog.")
}

func (f *finder) composite(n *ast.CompositeLit) {
	t := f.info.TypeOf(n)
	if t == nil {
		return
	}
	if _, ok := t.Underlying().(*types.Struct); ok {
		for _, e := range n.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok {
				f.zero(kv.Value, "no field "+f.text(kv.Key))
			} else {
				f.zero(e, "no field")
			}
		}
		return
	}
	if n.Type == nil || len(n.Elts) == 0 || strings.HasPrefix(f.text(n.Type), "[...]") {
		return
	}
	if _, array := t.Underlying().(*types.Array); array {
		return
	}
	for i, e := range n.Elts {
		var rest []string
		for j, o := range n.Elts {
			if i != j {
				rest = append(rest, f.text(o))
			}
		}
		typ := f.text(n.Type)
		f.add(n, "no element: "+short(f.text(e)), func(id int, in string) string {
			return fmt.Sprintf("func() %[1]s { if mutateOn(%[2]d) { return %[1]s{%[3]s} }; return %[4]s }()", typ, id, strings.Join(rest, ", "), in)
		})
	}
}

// swap exchanges neighbouring arguments of one type.
func (f *finder) swap(c *ast.CallExpr) {
	for _, quiet := range []string{"fmt.", "errors.", "append", "slog.", "attest.Errorf", "slices.Equal", "bytes.Equal", "hmac.Equal", "strings.EqualFold", "max", "min"} {
		if strings.HasPrefix(f.text(c.Fun), quiet) {
			return
		}
	}
	if f.info.Types[c.Fun].IsType() || f.uninteresting(c) {
		return
	}
	for i := 1; i < len(c.Args); i++ {
		a, b := c.Args[i-1], c.Args[i]
		if !plain(a) || !plain(b) || f.text(a) == f.text(b) || !types.Identical(f.info.TypeOf(a), f.info.TypeOf(b)) || isNil(a) {
			continue
		}
		ta, tb := f.text(a), f.text(b)
		all := make([]string, len(c.Args))
		for j, x := range c.Args {
			all[j] = f.text(x)
		}
		f.add(a, "swap "+short(ta)+" and "+short(tb)+" in: "+short(f.text(c)), func(id int, in string) string { return fmt.Sprintf("mutatePick(%d, %s, %s)", id, in, tb) })
		// The same number switches the second half.
		m := f.sites[[2]int{f.offset(a.Pos()), f.offset(a.End())}]
		if m == nil {
			continue
		}
		id := m.mutants[len(m.mutants)-1].id
		at := [2]int{f.offset(b.Pos()), f.offset(b.End())}
		s := f.sites[at]
		if s == nil {
			s = &site{start: at[0], end: at[1]}
			f.sites[at] = s
		}
		s.mutants = append(s.mutants, m.mutants[len(m.mutants)-1])
		s.wrap = append(s.wrap, func(_ int, in string) string { return fmt.Sprintf("mutatePick(%d, %s, %s)", id, in, ta) })
	}
}

// plain expressions can be evaluated twice.
func plain(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return true
	case *ast.SelectorExpr:
		return plain(e.X)
	}
	return false
}

// literal is a number one too high.
func (f *finder) literal(n *ast.BasicLit) {
	if n.Kind != token.INT {
		return
	}
	tv := f.info.Types[n]
	switch p := f.parent(1).(type) {
	case *ast.IndexExpr, *ast.CaseClause, *ast.KeyValueExpr:
		if kv, ok := p.(*ast.KeyValueExpr); !ok || kv.Key == n {
			return
		}
	}
	v, err := strconv.ParseInt(strings.ReplaceAll(n.Value, "_", ""), 0, 64)
	if err != nil {
		return
	}
	f.add(n, fmt.Sprintf("%d for %s in: %s", v+1, n.Value, short(f.text(f.parent(1)))), func(id int, in string) string {
		return fmt.Sprintf("mutatePick%s(%d, %s, %d)", f.instance(tv), id, in, v+1)
	})
}

func isError(t types.Type) bool {
	return t != nil && types.Identical(t, types.Universe.Lookup("error").Type())
}

func isNil(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "nil"
}
