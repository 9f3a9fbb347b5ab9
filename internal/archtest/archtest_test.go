package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/revokd/revokd"

// file is one Go file of the module, whatever its build tags.
type file struct {
	name    string // from the root of the module
	pkg     string // its directory
	source  string
	ast     *ast.File
	test    bool
	command bool // part of a command
	made    bool // generated
}

func parse(name, source string) (file, error) {
	tree, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return file{}, err
	}
	pkg := path.Dir(name)
	return file{
		name: name, pkg: pkg, source: source, ast: tree, test: strings.HasSuffix(name, "_test.go"),
		command: strings.HasPrefix(pkg, "cmd/") || tree.Name.Name == "main", made: ast.IsGenerated(tree),
	}, nil
}

// module parses all files of this module and none of the modules within it.
func module(t *testing.T) []file {
	t.Helper()
	root := "../.."
	var files []file
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == root {
				return nil
			}
			_, err := os.Stat(filepath.Join(name, "go.mod"))
			if err == nil || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		f, err := parse(filepath.ToSlash(relative), string(source))
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// imported returns the paths that f imports.
func (f *file) imported() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		paths = append(paths, p)
	}
	return paths
}

// calls hands fn every call in f of a function of the package with that path, and of builtins if it is empty.
func (f *file) calls(packagePath string, fn func(name string, call *ast.CallExpr)) {
	local := ""
	for _, spec := range f.ast.Imports {
		if spec.Path.Value != strconv.Quote(packagePath) {
			continue
		}
		if local = path.Base(packagePath); spec.Name != nil {
			local = spec.Name.Name
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		switch fun := call.Fun.(type) {
		case *ast.Ident:
			if packagePath == "" {
				fn(fun.Name, call)
			}
		case *ast.SelectorExpr:
			if x, ok := fun.X.(*ast.Ident); ok && local != "" && x.Name == local {
				fn(fun.Sel.Name, call)
			}
		}
		return true
	})
}

// within reports whether the import path p is the module or package m, or lies within it.
func within(p, m string) bool { return p == m || strings.HasPrefix(p, m+"/") }

// problems collects what is wrong, and which rows of a table were needed.
type problems struct {
	found []string
	used  map[string]bool
}

func (p *problems) add(format string, args ...any) {
	p.found = append(p.found, fmt.Sprintf(format, args...))
}

func (p *problems) use(row string) {
	if p.used == nil {
		p.used = map[string]bool{}
	}
	p.used[row] = true
}

// stale reports the rows that nothing needed.
func stale[V any](p *problems, table string, rows map[string]V) {
	for row := range rows {
		if !p.used[row] {
			p.add("%s is in the table of %s and needs not be", row, table)
		}
	}
}

func checkImports(files []file, allowed map[string]string) []string {
	var p problems
	for _, f := range files {
		p.use(f.pkg)
		row, known := allowed[f.pkg]
		if !known {
			p.add("%s: package %s is not in the table of imports", f.name, f.pkg)
			continue
		}
		for _, imp := range f.imported() {
			if f.test || !within(imp, modulePath) {
				continue
			}
			if short := strings.TrimPrefix(imp, modulePath+"/"); !slices.Contains(strings.Fields(row), short) {
				p.add("%s: %s may not import %s", f.name, f.pkg, short)
			}
		}
	}
	stale(&p, "imports", allowed)
	return p.found
}

func checkPackageComments(files []file) []string {
	var p problems
	comments := map[string][]string{}
	pure := map[string]bool{} // packages of tests only, or of generated files only
	for _, f := range files {
		if _, seen := comments[f.pkg]; !seen {
			comments[f.pkg], pure[f.pkg] = nil, true
		}
		pure[f.pkg] = pure[f.pkg] && f.test
	}
	for _, f := range files {
		if f.made || f.test && !pure[f.pkg] {
			continue
		}
		p.use(f.pkg)
		if f.ast.Doc == nil {
			continue
		}
		comments[f.pkg] = append(comments[f.pkg], f.name)
		begin := "Package " + f.ast.Name.Name + " "
		if f.ast.Name.Name == "main" {
			begin = "Command " + path.Base(f.pkg) + " "
		}
		if !strings.HasPrefix(f.ast.Doc.Text(), begin) {
			p.add("%s: the package comment does not begin with %q", f.name, begin)
		}
	}
	for pkg, in := range comments {
		if p.used[pkg] && len(in) != 1 {
			p.add("package %s has %d package comments, want one: %v", pkg, len(in), in)
		}
	}
	return p.found
}

func checkClockReaders(files []file, allowed map[string]string) []string {
	var p problems
	for _, f := range files {
		f.calls("time", func(name string, _ *ast.CallExpr) {
			if f.test || name != "Now" && name != "Since" && name != "Until" {
				return
			}
			p.use(f.pkg)
			if allowed[f.pkg] == "" {
				p.add("%s: time.%s: the time is given, see internal/clock", f.name, name)
			}
		})
	}
	stale(&p, "clock readers", allowed)
	return p.found
}

func checkPanics(files []file, allowed map[string]string) []string {
	var p problems
	for _, f := range files {
		if f.test || f.command || f.made {
			continue
		}
		f.calls("", func(name string, _ *ast.CallExpr) {
			switch name {
			case "panic":
				p.use(f.name)
				if allowed[f.name] == "" {
					p.add("%s: panic: return an error", f.name)
				}
			case "print", "println":
				p.add("%s: %s: nobody reads it", f.name, name)
			}
		})
		f.calls("fmt", func(name string, _ *ast.CallExpr) {
			if strings.HasPrefix(name, "Print") {
				p.add("%s: fmt.%s: only commands own the standard output", f.name, name)
			}
		})
		f.calls("os", func(name string, _ *ast.CallExpr) {
			if name == "Exit" {
				p.add("%s: os.Exit: return an error", f.name)
			}
		})
		if slices.Contains(f.imported(), "log") {
			p.add("%s: imports log: use the hclog.Logger of the configuration", f.name)
		}
	}
	stale(&p, "panics", allowed)
	return p.found
}

func checkWord(files []file, packages []string) []string {
	var p problems
	for _, f := range files {
		if f.test || !slices.Contains(packages, f.pkg) {
			continue
		}
		for i, line := range strings.Split(f.source, "\n") {
			if strings.Contains(strings.ToLower(line), "token") {
				p.add("%s:%d: %s knows keys, bits, frames and deadlines, not tokens", f.name, i+1, f.pkg)
			}
		}
	}
	return p.found
}

// checkLibraries goes by the imports, not by the comments in go.mod.
func checkLibraries(files []file, allowed []library) []string {
	var p problems
	rows := map[string]bool{}
	for _, l := range allowed {
		rows[l.path] = true
	}
	for _, f := range files {
		for _, imp := range f.imported() {
			if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") || within(imp, modulePath) {
				continue // the standard library, or this module
			}
			i := -1
			for j, l := range allowed { // a module may lie within another
				if within(imp, l.path) && (i < 0 || len(l.path) > len(allowed[i].path)) {
					i = j
				}
			}
			if i < 0 {
				p.add("%s: %s belongs to no library in the table", f.name, imp)
				continue
			}
			p.use(allowed[i].path)
			if !f.test && !slices.Contains(strings.Fields(allowed[i].users), f.pkg) {
				p.add("%s: %s may not import %s", f.name, f.pkg, imp)
			}
		}
	}
	stale(&p, "libraries", rows)
	for _, l := range allowed {
		if l.licence == "" || l.why == "" {
			p.add("%s: no licence or no reason", l.path)
		}
	}
	return p.found
}

// checkLogs wants a name for every value that is logged: hclog takes any number of arguments and logs what is left over as EXTRA_VALUE_AT_END.
func checkLogs(files []file) []string {
	var p problems
	for _, f := range files {
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || call.Ellipsis.IsValid() {
				return true
			}
			fun, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !isLogger(fun.X) {
				return true
			}
			args := call.Args
			switch fun.Sel.Name {
			case "Trace", "Debug", "Info", "Warn", "Error":
				args = args[min(1, len(args)):] // the message
			case "With":
			default:
				return true
			}
			for i := 0; i < len(args); i += 2 {
				if lit, ok := args[i].(*ast.BasicLit); ok && lit.Kind != token.STRING {
					p.add("%s: %s logs %s without a name", f.name, fun.Sel.Name, lit.Value)
				}
			}
			if len(args)%2 != 0 {
				p.add("%s: %s logs an odd number of names and values", f.name, fun.Sel.Name)
			}
			return true
		})
	}
	return p.found
}

// isLogger goes by what loggers are called here.
func isLogger(x ast.Expr) bool {
	name := ""
	switch x := x.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	return name == "log" || name == "logger" || name == "Logger"
}

// checkFaults compares the names that are asked for with those that internal/faults knows.
func checkFaults(files []file) []string {
	var p problems
	known := map[string]map[string]bool{"Value": {}, "Mutant": {}}
	for _, f := range files {
		if f.name == "internal/faults/faults.go" {
			keys(f.ast, "names", known["Value"])
			keys(f.ast, "mutants", known["Mutant"])
		}
	}
	for _, f := range files {
		check := func(name string, call *ast.CallExpr) {
			if f.test || known[name] == nil || len(call.Args) != 1 {
				return
			}
			lit, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				return // passed on: the caller has the literal
			}
			fault, _ := strconv.Unquote(lit.Value)
			p.use(fault)
			if !known[name][fault] {
				p.add("%s: internal/faults knows no %q for %s", f.name, fault, name)
			}
		}
		f.calls(modulePath+"/internal/faults", check)
		// A package may keep faults.Mutant in a field or variable, by the name mutant.
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				switch fun := call.Fun.(type) {
				case *ast.Ident:
					if fun.Name == "mutant" {
						check("Mutant", call)
					}
				case *ast.SelectorExpr:
					if fun.Sel.Name == "mutant" {
						check("Mutant", call)
					}
				}
			}
			return true
		})
	}
	p.use("mutant") // read by internal/faults itself
	stale(&p, "values in internal/faults", known["Value"])
	stale(&p, "mutants in internal/faults", known["Mutant"])
	return p.found
}

// checkRules compares the rules of replication that can be left out with those whose loss a test called TestMutants finds.
func checkRules(files []file) []string {
	const dir = "cluster/replication/"
	var p problems
	known := map[string]bool{}
	for _, f := range files {
		switch f.name {
		case dir + "mutants_test.go":
			keys(f.ast, "mutants", known)
		case dir + "internal/sim/mutants.go":
			keys(f.ast, "Mutants", known)
		}
	}
	for _, f := range files {
		if f.test || !strings.HasPrefix(f.name, dir) || f.name == dir+"internal/sim/mutants.go" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if name, err := strconv.Unquote(n.Value); err == nil {
					p.use(name)
				}
			case *ast.CallExpr:
				fun, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || fun.Sel.Name != "without" || len(n.Args) != 1 {
					break
				}
				if lit, ok := n.Args[0].(*ast.BasicLit); ok {
					if name, _ := strconv.Unquote(lit.Value); !known[name] {
						p.add("%s: no test is for the rule %q", f.name, name)
					}
				}
			}
			return true
		})
	}
	stale(&p, "mutants of cluster/replication", known)
	return p.found
}

// keys collects the keys of the map literal that a variable of a file is set to.
func keys(f *ast.File, variable string, into map[string]bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != variable || len(spec.Values) != 1 {
			return true
		}
		if lit, ok := spec.Values[0].(*ast.CompositeLit); ok {
			for _, element := range lit.Elts {
				if kv, ok := element.(*ast.KeyValueExpr); ok {
					if key, ok := kv.Key.(*ast.BasicLit); ok {
						name, _ := strconv.Unquote(key.Value)
						into[name] = true
					}
				}
			}
		}
		return false
	})
}

func report(t *testing.T, found []string) {
	t.Helper()
	slices.Sort(found)
	for _, problem := range found {
		t.Error(problem)
	}
}

func TestImports(t *testing.T)         { report(t, checkImports(module(t), imports)) }
func TestPackageComments(t *testing.T) { report(t, checkPackageComments(module(t))) }
func TestClockReaders(t *testing.T)    { report(t, checkClockReaders(module(t), clockReaders)) }
func TestPanics(t *testing.T)          { report(t, checkPanics(module(t), panics)) }
func TestWord(t *testing.T)            { report(t, checkWord(module(t), wordless)) }
func TestLibraries(t *testing.T)       { report(t, checkLibraries(module(t), libraries)) }
func TestLogs(t *testing.T)            { report(t, checkLogs(module(t))) }
func TestFaults(t *testing.T)          { report(t, checkFaults(module(t))) }
func TestRules(t *testing.T)           { report(t, checkRules(module(t))) }

// The licences that go into a product without conditions on its own code.
func TestLicences(t *testing.T) {
	good := []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "MIT", "MPL-2.0"}
	for _, l := range libraries {
		if !slices.Contains(good, l.licence) {
			t.Errorf("%s: licence %s", l.path, l.licence)
		}
	}
}
