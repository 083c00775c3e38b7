package internal_test

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/petrel-chat/petrel"

// house is one tree of Go packages with its floor plan, as the rules of arch_test.go see it:
// the repository, or a fixture that breaks a rule. It is made by the parser alone (no build, no
// go list), so that the whole test takes about a second.
type house struct {
	fset  *token.FileSet
	rows  []row
	doors []door
	pkgs  map[string]*pkg // by short path
	deps  []dep           // what the production binary links, std left out
}

// row is a line of the floor plan: one package and all that it imports of ours.
type row struct {
	floor   int // besides floors: beside
	name    string
	imports []string
}

// Floors that rules name.
const (
	domains = 2
	beside  = 99 // what stands next to the house: test benches, which may import everything
)

// door is a line of the table of third parties.
type door struct {
	paths  []string // import path prefixes
	places []string // short paths; "tests", "anywhere" and "floor N and up" are special
	reason string
}

// pkg is one folder of Go files. Its short path is the import path without the module and
// without "internal/": "chat", "raftlog/raftlogtest", "cmd/petrel".
type pkg struct {
	path  string
	files []*file

	info  *types.Info // made by house.check
	types *types.Package
}

type file struct {
	name    string // within the tree
	test    bool
	ast     *ast.File
	lines   int
	imports []*ast.ImportSpec
}

// dep is one package that the production binary links, and what it imports itself.
type dep struct {
	path    string
	imports []string
}

// forTests says whether a package exists for tests only.
func forTests(short string) bool { return strings.HasSuffix(short, "test") }

func shortPath(importPath string) (short string, ours bool) {
	short, ours = strings.CutPrefix(importPath, module+"/")
	return strings.TrimPrefix(short, "internal/"), ours
}

func importPath(spec *ast.ImportSpec) string {
	p, _ := strconv.Unquote(spec.Path.Value) // the parser let it through
	return p
}

// pos names a place for a finding.
func (h *house) pos(p token.Pos) string {
	at := h.fset.Position(p)
	return fmt.Sprintf("%s:%d", at.Filename, at.Line)
}

func (h *house) sorted() []*pkg {
	var all []*pkg
	for _, p := range h.pkgs {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pkg) int { return strings.Compare(a.path, b.path) })
	return all
}

func (h *house) row(short string) (row, bool) {
	i := slices.IndexFunc(h.rows, func(r row) bool { return r.name == short })
	if i < 0 {
		return row{}, false
	}
	return h.rows[i], true
}

// loadHouse reads every Go file below fsys except testdata, tools (a module of its own) and what
// other ecosystems keep there, and the floor plan in internal/README.md.
func loadHouse(fsys fs.FS) (*house, error) {
	h := &house{fset: token.NewFileSet(), pkgs: map[string]*pkg{}}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules" || name == "tools" || name == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		return h.addFile(fsys, name)
	})
	if err != nil {
		return nil, err
	}
	plan, err := fs.ReadFile(fsys, "internal/README.md")
	if err != nil {
		return nil, err
	}
	return h, h.readPlan(string(plan))
}

func (h *house) addFile(fsys fs.FS, name string) error {
	src, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	tree, err := parser.ParseFile(h.fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	short, _ := shortPath(module + "/" + path.Dir(name))
	p := h.pkgs[short]
	if p == nil {
		p = &pkg{path: short}
		h.pkgs[short] = p
	}
	p.files = append(p.files, &file{
		name:    name,
		test:    strings.HasSuffix(name, "_test.go"),
		ast:     tree,
		lines:   bytes.Count(src, []byte("\n")),
		imports: tree.Imports,
	})
	return nil
}

var (
	bold     = regexp.MustCompile(`^\*\*(.+)\*\*$`)
	backtick = regexp.MustCompile("`([^`]+)`")
)

// readPlan reads the two tables of internal/README.md. Their headings say which is which:
// "floor | package | … | imports" and "third party | only in | why".
func (h *house) readPlan(text string) error {
	var in string
	floor := -1
	for n, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "|") {
			in = ""
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case in == "":
			in = cells[0]
			continue
		case strings.HasPrefix(cells[0], "---"):
			continue
		}
		switch {
		case in == "floor" && len(cells) == 4:
			name := bold.FindStringSubmatch(cells[1])
			if name == nil {
				return fmt.Errorf("internal/README.md:%d: the second cell is not **a package**", n+1)
			}
			switch first := strings.Fields(cells[0]); {
			case len(first) == 0: // as above
			case first[0] == "Beside":
				floor = beside
			default:
				var err error
				if floor, err = strconv.Atoi(first[0]); err != nil {
					return fmt.Errorf("internal/README.md:%d: the floor is not a number: %w", n+1, err)
				}
			}
			r := row{floor: floor, name: name[1]}
			if cells[3] != "nothing" {
				r.imports = strings.Split(cells[3], ", ")
			}
			h.rows = append(h.rows, r)
		case in == "third party" && len(cells) == 3:
			d := door{places: strings.Split(cells[1], ", "), reason: cells[2]}
			for _, m := range backtick.FindAllStringSubmatch(cells[0], -1) {
				d.paths = append(d.paths, m[1])
			}
			h.doors = append(h.doors, d)
		default:
			return fmt.Errorf("internal/README.md:%d: a line of no known table, or with the wrong number of cells", n+1)
		}
	}
	if len(h.rows) == 0 {
		return errors.New("internal/README.md has no table of packages")
	}
	return nil
}

// check gives a package types, as far as our own sources go: packages of others are empty
// to it, and what needs them has no type. That is enough to know a map of ours and a package variable.
func (h *house) check(p *pkg) *types.Info {
	if p.info != nil {
		return p.info
	}
	p.info = &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}
	var files []*ast.File
	for _, f := range p.files {
		if !f.test {
			files = append(files, f.ast)
		}
	}
	conf := types.Config{Importer: ourImporter{h}, Error: func(error) {}}
	p.types, _ = conf.Check(module+"/"+p.path, h.fset, files, p.info) // errors: see above
	return p.info
}

type ourImporter struct{ h *house }

func (i ourImporter) Import(p string) (*types.Package, error) {
	if p == "unsafe" {
		return types.Unsafe, nil
	}
	if short, ours := shortPath(p); ours {
		if q := i.h.pkgs[short]; q != nil {
			i.h.check(q)
			if q.types != nil {
				return q.types, nil
			}
		}
	}
	empty := types.NewPackage(p, path.Base(p))
	empty.MarkComplete()
	return empty, nil
}
