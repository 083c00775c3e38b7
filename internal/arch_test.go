// Package internal_test guards how the house is built: the floor plan and the doors of
// README.md beside it, purity of folds, comments, sizes, and what the production binary links.
// Every rule has a fixture in testdata/arch that breaks it.
package internal_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// rules in the order of the house rules. Each returns its findings, one sentence each, that
// say where, what, and why or what to do instead.
var rules = []struct {
	name string
	find func(*house) []string
}{
	{"imports", importsAreListed},
	{"doors", thirdPartiesHaveOneDoor},
	{"fold", foldsArePure},
	{"apply", applyReadsNoClock},
	{"testpackages", testPackagesStayInTests},
	{"comments", packagesAreExplained},
	{"sizes", sizesStaySmall},
	{"binary", binaryLinksNoTests},
	{"sleep", testsDoNotSleep},
	{"state", packagesHoldNoState},
}

func TestHouse(t *testing.T) {
	t.Parallel()
	h, err := loadHouse(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	h.deps = binaryDeps(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, f := range r.find(h) {
				t.Error(f)
			}
		})
	}
}

// TestRulesFail runs each rule over the tree in testdata/arch/RULE.txtar, whose file "want" lists
// what it must find there, and what it must not by leaving it out.
func TestRulesFail(t *testing.T) {
	t.Parallel()
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(filepath.Join("testdata", "arch", r.name+".txtar"))
			if err != nil {
				t.Fatal(err)
			}
			tree, want, deps := fstest.MapFS{}, "", []dep(nil)
			for _, f := range archive.Files {
				switch f.Name {
				case "want":
					want = string(f.Data)
				case "deps":
					deps = parseDeps(string(f.Data))
				case "long": // a file too long to write out: its name
					tree[strings.TrimSpace(string(f.Data))] = &fstest.MapFile{Data: []byte("package chat\n" + strings.Repeat("\n", 1000))}
				default:
					tree[f.Name] = &fstest.MapFile{Data: f.Data}
				}
			}
			h, err := loadHouse(tree)
			if err != nil {
				t.Fatal(err)
			}
			h.deps = deps
			got := r.find(h)
			if len(got) == 0 {
				t.Fatal("the rule finds nothing in a tree that breaks it")
			}
			if diff := cmp.Diff(strings.Split(strings.TrimSpace(want), "\n"), got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// Rule 1: the import table, both ways, and no import of a higher floor.
func importsAreListed(h *house) (found []string) {
	for _, r := range h.rows {
		if h.pkgs[r.name] == nil {
			found = append(found, fmt.Sprintf("%s: internal/README.md lists it, and there is no such package: the table holds only what exists", r.name))
		}
	}
	for _, p := range h.sorted() {
		if !slices.ContainsFunc(p.files, func(f *file) bool { return !f.test }) {
			continue // nothing but tests, as internal itself
		}
		r, ok := h.row(p.path)
		if !ok {
			found = append(found, fmt.Sprintf("%s: not in the table of internal/README.md: give it a line, or put its code into a package that has one", p.path))
			continue
		}
		used := map[string]bool{}
		for _, f := range p.files {
			if f.test {
				continue
			}
			for _, spec := range f.imports {
				short, ours := shortPath(importPath(spec))
				if !ours {
					continue
				}
				used[short] = true
				if !slices.Contains(r.imports, short) {
					found = append(found, fmt.Sprintf("%s: %s may not import %s: its line in internal/README.md does not name it", h.pos(spec.Pos()), p.path, short))
				}
			}
		}
		for _, listed := range r.imports {
			if !used[listed] {
				found = append(found, fmt.Sprintf("%s: internal/README.md lists an import of %s that nothing uses: take it out", p.path, listed))
			}
			if lower, ok := h.row(listed); ok && lower.floor > r.floor {
				found = append(found, fmt.Sprintf("%s: on floor %d, may not import %s of floor %d: imports go down", p.path, r.floor, listed, lower.floor))
			}
		}
	}
	return found
}

// Rule 2: third parties have one door, so that each can be replaced in one place.
func thirdPartiesHaveOneDoor(h *house) (found []string) {
	used := make([]bool, len(h.doors))
	for _, p := range h.sorted() {
		for _, f := range p.files {
			inTests := f.test || forTests(p.path)
			for _, spec := range f.imports {
				imported := importPath(spec)
				if _, ours := shortPath(imported); ours {
					continue
				}
				listed := false
				for i, d := range h.doors {
					if !slices.ContainsFunc(d.paths, func(prefix string) bool {
						return imported == prefix || strings.HasPrefix(imported, prefix+"/")
					}) {
						continue
					}
					listed, used[i] = true, true
					if !inTests && !h.opens(d, p.path) {
						found = append(found, fmt.Sprintf("%s: %s may not import %s, which has its door in %s: %s",
							h.pos(spec.Pos()), p.path, imported, strings.Join(d.places, ", "), d.reason))
					}
				}
				if !listed && strings.Contains(strings.SplitN(imported, "/", 2)[0], ".") {
					found = append(found, fmt.Sprintf("%s: %s has no line in the table of third parties in internal/README.md: say where its door is, and why", h.pos(spec.Pos()), imported))
				}
			}
		}
	}
	for i, d := range h.doors {
		if !used[i] {
			found = append(found, fmt.Sprintf("internal/README.md has a door for %s that nobody goes through: take it out", strings.Join(d.paths, ", ")))
		}
	}
	return found
}

func (h *house) opens(d door, short string) bool {
	r, _ := h.row(short)
	for _, place := range d.places {
		if place == short || place == "anywhere" {
			return true
		}
		if from, ok := strings.CutPrefix(place, "floor "); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(from, " and up"))
			if err == nil && r.floor >= n {
				return true
			}
		}
	}
	return false
}

// impure are packages whose results differ between replicas or between runs.
var impure = []string{"math/rand", "crypto/rand", "os", "net", "runtime", "syscall", "github.com/google/uuid"}

// clocks are the names of package time that read a clock, or know this machine's zone; timers wait for one.
var (
	clocks = []string{"Now", "Since", "Until", "Local"}
	timers = []string{"After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep"}
)

// Rule 3a: a fold gives the same result on every replica, whenever it runs. Above the domains a
// fold.go is something else: a measurement of folds, for one.
func foldsArePure(h *house) (found []string) {
	for _, p := range h.sorted() {
		if r, ok := h.row(p.path); ok && r.floor > domains {
			continue
		}
		for _, f := range p.files {
			if base := path.Base(f.name); f.test || (base != "fold.go" && !strings.HasPrefix(base, "fold_")) {
				continue
			}
			say := func(n ast.Node, format string, args ...any) {
				found = append(found, h.pos(n.Pos())+": a fold "+fmt.Sprintf(format, args...))
			}
			for _, spec := range f.imports {
				if imported := importPath(spec); isImpure(imported) {
					say(spec, "may not import %s: replicas would differ; stamp it into the entry before it is appended", imported)
				}
			}
			info := h.check(p)
			sortedKeys := map[ast.Node]bool{}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					if isSelector(n.Fun, "slices", "Sorted", "SortedFunc", "SortedStableFunc") && len(n.Args) > 0 {
						if inner, ok := n.Args[0].(*ast.CallExpr); ok {
							sortedKeys[inner.Fun] = true
						}
					}
				case *ast.SelectorExpr:
					switch {
					case isSelector(n, "time", clocks...) || isSelector(n, "time", timers...):
						say(n, "may not use time.%s: its clock is the entry's stamp", n.Sel.Name)
					case isSelector(n, "petrel", "NewEntryID", "NewName", "NewEpoch"):
						say(n, "may not make an id (petrel.%s): the proposer stamps ids into the entry", n.Sel.Name)
					case isSelector(n, "maps", "Keys", "Values", "All") && !sortedKeys[n]:
						say(n, "may not go through a map in the map's order: slices.Sorted(maps.Keys(m)) has one order")
					}
				case *ast.GoStmt:
					say(n, "may not start a goroutine: its outcome would depend on the scheduler")
				case *ast.RangeStmt:
					if t := info.TypeOf(n.X); t != nil {
						if _, isMap := t.Underlying().(*types.Map); isMap {
							say(n, "may not range over a map, whose order differs from run to run: range over slices.Sorted(maps.Keys(m))")
						}
					}
				case *ast.Ident:
					if n.Name == "float64" || n.Name == "float32" {
						say(n, "may not use floats: they may differ between machines; count in integers")
					}
				case *ast.BasicLit:
					if n.Kind == token.FLOAT {
						say(n, "may not use floats: they may differ between machines; count in integers")
					}
				}
				return true
			})
		}
	}
	return found
}

// Rule 3b: apply runs on every replica between an entry and its fold. It measures with the clock
// that it is handed (Options), and reads none by itself (ADR 4). It may wait, for room on a full disk:
// that changes when it goes on, never with what.
func applyReadsNoClock(h *house) (found []string) {
	p := h.pkgs["apply"]
	if p == nil {
		return nil
	}
	for _, f := range p.files {
		if f.test {
			continue
		}
		for _, spec := range f.imports {
			if imported := importPath(spec); isImpure(imported) {
				found = append(found, fmt.Sprintf("%s: apply may not import %s: replicas would differ", h.pos(spec.Pos()), imported))
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && isSelector(sel, "time", clocks...) {
				found = append(found, fmt.Sprintf("%s: apply may not use time.%s: take the clock that Options hands in, for metrics only", h.pos(n.Pos()), sel.Sel.Name))
			}
			return true
		})
	}
	return found
}

func isImpure(imported string) bool {
	return slices.ContainsFunc(impure, func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") })
}

// isSelector says whether e is pkg.name for one of the names. It goes by the word: nobody here
// renames an import or calls a variable "time".
func isSelector(e ast.Expr, pkg string, names ...string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg && slices.Contains(names, sel.Sel.Name)
}

// Rule 4: what is written for tests is imported by tests.
func testPackagesStayInTests(h *house) (found []string) {
	for _, p := range h.sorted() {
		if forTests(p.path) {
			continue
		}
		for _, f := range p.files {
			if f.test {
				continue
			}
			for _, spec := range f.imports {
				imported := importPath(spec)
				short, ours := shortPath(imported)
				if ours && forTests(short) || imported == "testing" || strings.HasPrefix(imported, "testing/") || imported == "net/http/httptest" {
					found = append(found, fmt.Sprintf("%s: %s imports %s outside of tests: it would be linked into the binary", h.pos(spec.Pos()), p.path, imported))
				}
			}
		}
	}
	return found
}

// Rule 5: every package says once what it is, and on floors 1 to 4 what always holds in it.
func packagesAreExplained(h *house) (found []string) {
	for _, p := range h.sorted() {
		var comments []*file
		sources := 0
		for _, f := range p.files {
			if f.test {
				continue
			}
			sources++
			if f.ast.Doc != nil {
				comments = append(comments, f)
			}
		}
		if sources == 0 {
			continue
		}
		if len(comments) != 1 {
			found = append(found, fmt.Sprintf("%s: has %d package comments; one file has it, the others have none", p.path, len(comments)))
			continue
		}
		r, ok := h.row(p.path)
		if ok && r.floor >= 1 && r.floor <= 4 && !strings.Contains(comments[0].ast.Doc.Text(), "\n# Invariants\n") {
			found = append(found, fmt.Sprintf("%s: its package comment has no heading \"# Invariants\": say what always holds, so that the next change can keep it", comments[0].name))
		}
	}
	return found
}

// Rule 6: sizes.
const (
	maxFileLines  = 1000   // explain yourself at 600
	maxOurImports = 12     // except node and petreltest, which know everybody
	smallHouse    = 20_000 // lines; below it shares mean nothing
	maxShare      = 15     // per cent of it
)

func sizesStaySmall(h *house) (found []string) {
	lines, all := map[string]int{}, 0
	for _, p := range h.sorted() {
		ours := map[string]bool{}
		for _, f := range p.files {
			if f.test {
				continue
			}
			lines[p.path] += f.lines
			all += f.lines
			if f.lines > maxFileLines {
				found = append(found, fmt.Sprintf("%s: %d lines; more than %d are two files", f.name, f.lines, maxFileLines))
			}
			for _, spec := range f.imports {
				if short, ok := shortPath(importPath(spec)); ok {
					ours[short] = true
				}
			}
		}
		if len(ours) > maxOurImports && p.path != "node" && !forTests(p.path) {
			found = append(found, fmt.Sprintf("%s: imports %d packages of ours; more than %d are several duties", p.path, len(ours), maxOurImports))
		}
	}
	if all < smallHouse {
		return found
	}
	for _, p := range h.sorted() {
		if share := lines[p.path] * 100 / all; share > maxShare {
			found = append(found, fmt.Sprintf("%s: %d %% of the house's %d lines; more than %d %% are several packages", p.path, share, all, maxShare))
		}
	}
	return found
}

// testOnly are modules that a test wants and an operator does not.
var testOnly = []string{
	"github.com/stretchr/testify", "go.uber.org/goleak", "github.com/google/go-cmp", "pgregory.net/rapid",
	"github.com/rogpeppe/go-internal", "github.com/coder/websocket", "github.com/anishathalye/porcupine",
}

// linksTesting are packages of others that import testing in what they ship; ours to bear.
var linksTesting = map[string]string{
	"github.com/hashicorp/raft": "testing.go of the raft package has a cluster for tests of its users",
}

// Rule 7: the production binary links neither testing nor what comes with it.
func binaryLinksNoTests(h *house) (found []string) {
	for _, d := range h.deps {
		if slices.ContainsFunc(testOnly, func(m string) bool { return d.path == m || strings.HasPrefix(d.path, m+"/") }) {
			found = append(found, fmt.Sprintf("cmd/petrel links %s, which is for tests", d.path))
		}
		if short, ours := shortPath(d.path); ours && forTests(short) {
			found = append(found, fmt.Sprintf("cmd/petrel links %s, which is for tests", d.path))
		}
		if _, known := linksTesting[d.path]; slices.Contains(d.imports, "testing") && !known {
			found = append(found, fmt.Sprintf("cmd/petrel links testing, because %s imports it", d.path))
		}
	}
	return found
}

// binaryDeps asks the go command, which test binaries always have beside them, what cmd/petrel links
// on Linux, whatever this machine is.
func binaryDeps(t *testing.T) []dep {
	t.Helper()
	if _, err := os.Stat("../cmd/petrel/main.go"); err != nil {
		t.Log("cmd/petrel does not exist yet: nothing is linked")
		return nil
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", depFormat, "./cmd/petrel")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return parseDeps(string(out))
}

const depFormat = `{{if not .Standard}}{{.ImportPath}}: {{join .Imports " "}}{{end}}`

func parseDeps(text string) (deps []dep) {
	for line := range strings.Lines(text) {
		if p, imports, ok := strings.Cut(line, ":"); ok {
			deps = append(deps, dep{path: p, imports: strings.Fields(imports)})
		}
	}
	return deps
}

// Rule 8: tests do not sleep. A test waits for what it waits for, or runs in a synctest bubble, where
// sleeping costs nothing.
func testsDoNotSleep(h *house) (found []string) {
	for _, p := range h.sorted() {
		for _, f := range p.files {
			if !f.test && !forTests(p.path) || slices.ContainsFunc(f.imports, func(s *ast.ImportSpec) bool { return importPath(s) == "testing/synctest" }) {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok && isSelector(sel, "time", "Sleep") {
					found = append(found, h.pos(n.Pos())+": a test may not sleep: wait for a signal, or use testing/synctest")
				}
				return true
			})
		}
	}
	return found
}

// Rule 9: no init, and no package variable that anything writes after it was made, or that exists to
// be written (a lock, a counter): everything arrives through a constructor.
func packagesHoldNoState(h *house) (found []string) {
	for _, p := range h.sorted() {
		info := h.check(p)
		for _, f := range p.files {
			if f.test {
				continue
			}
			say := func(n ast.Node, format string, args ...any) {
				found = append(found, h.pos(n.Pos())+": "+fmt.Sprintf(format, args...))
			}
			for _, decl := range f.ast.Decls {
				switch decl := decl.(type) {
				case *ast.FuncDecl:
					if decl.Recv == nil && decl.Name.Name == "init" {
						say(decl, "func init: what must be set up is set up by a constructor that main calls")
					}
				case *ast.GenDecl:
					for _, spec := range decl.Specs {
						v, ok := spec.(*ast.ValueSpec)
						if ok && decl.Tok == token.VAR && isForWriting(v.Type) {
							say(v, "package variable %s exists to be written: make it a field of what a constructor returns", v.Names[0].Name)
						}
					}
				}
			}
			written := func(target ast.Expr) {
				if name := packageVar(info, p, target); name != "" {
					say(target, "writes the package variable %s: make it a field of what a constructor returns", name)
				}
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.AssignStmt:
					if n.Tok != token.DEFINE {
						for _, target := range n.Lhs {
							written(target)
						}
					}
				case *ast.IncDecStmt:
					written(n.X)
				}
				return true
			})
		}
	}
	return found
}

// isForWriting knows the types of packages sync and sync/atomic.
func isForWriting(t ast.Expr) bool {
	switch t := t.(type) {
	case *ast.IndexExpr: // atomic.Pointer[T]
		return isForWriting(t.X)
	case *ast.SelectorExpr:
		x, ok := t.X.(*ast.Ident)
		return ok && (x.Name == "sync" || x.Name == "atomic")
	}
	return false
}

// packageVar returns the name of the package variable that target is, or is a part of.
func packageVar(info *types.Info, p *pkg, target ast.Expr) string {
	for {
		switch t := target.(type) {
		case *ast.ParenExpr:
			target = t.X
		case *ast.IndexExpr:
			target = t.X
		case *ast.SelectorExpr:
			target = t.X
		case *ast.StarExpr:
			target = t.X
		case *ast.Ident:
			v, ok := info.Uses[t].(*types.Var)
			if ok && p.types != nil && v.Parent() == p.types.Scope() {
				return v.Name()
			}
			return ""
		default:
			return ""
		}
	}
}
