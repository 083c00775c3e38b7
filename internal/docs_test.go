package internal_test

import (
	"context"
	"fmt"
	"go/ast"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestDocsCommands runs what README.md and docs/*.md tell people to type. A document's blocks
// run in their order, in one bash that stops at the first failure, in an empty folder, with a
// freshly built petrel first in PATH:
//
//	```sh          runs and must succeed
//	```sh serve    starts a server in the background, waits until /readyz answers, and stops it
//	               at the next such block or at the end of the document
//	```console     is only shown, as is any other language
//
// The ports of the defaults, 8080 and 8081, are replaced by free ones in the text, and PETREL_LISTEN,
// PETREL_ADMIN and PETREL_URL say the same to commands that name none. make runs in the repository,
// with the data folder in the empty one.
func TestDocsCommands(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the binary and starts servers")
	}
	if _, err := os.Stat("../cmd/petrel/main.go"); err != nil {
		t.Skip("cmd/petrel does not exist yet")
	}
	for _, tool := range []string{"bash", "curl", "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is needed to run the commands of the documents", tool)
			}
			t.Skipf("%s is not installed", tool)
		}
	}
	repo, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "petrel"), "./cmd/petrel")
	build.Dir = repo
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range append([]string{"../README.md", "../CONTRIBUTING.md"}, docs...) {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		blocks := shellBlocks(filepath.Base(doc), string(text))
		if len(blocks) == 0 {
			continue
		}
		t.Run(filepath.Base(doc), func(t *testing.T) {
			t.Parallel()
			if out, err := runDocument(t, repo, bin, blocks); err != nil {
				t.Errorf("the document's commands fail: %v\n%s", err, out)
			}
		})
	}
}

// shellBlock is one fenced block of a document.
type shellBlock struct {
	where string // "README.md:12"
	serve bool
	text  string
}

// shellBlocks returns the blocks of text that are to be run.
func shellBlocks(name, text string) (blocks []shellBlock) {
	var open *shellBlock
	fence, indent := "", ""
	for n, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case fence == "" && strings.HasPrefix(trimmed, "```"):
			info := strings.TrimLeft(trimmed, "`")
			fence, indent = trimmed[:len(trimmed)-len(info)], line[:len(line)-len(trimmed)]
			if words := strings.Fields(info); len(words) > 0 && words[0] == "sh" {
				open = &shellBlock{where: fmt.Sprintf("%s:%d", name, n+1), serve: slices.Contains(words[1:], "serve")}
			}
		case fence != "" && strings.TrimSpace(line) == fence:
			if open != nil {
				blocks = append(blocks, *open)
			}
			open, fence = nil, ""
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	return blocks
}

// preamble is what the blocks of a document find around them.
const preamble = `
set -euo pipefail
make() { command make -C "$REPO" DATA="$PWD/petrel-data" "$@"; }
server=
stop_server() {
	if [ -n "$server" ]; then
		kill -TERM -- "-$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
		server=
	fi
}
trap stop_server EXIT
trap 'exit 1' TERM
wait_ready() {
	for _ in {1..600}; do
		if curl -fsS -o /dev/null "http://$PETREL_ADMIN/readyz" 2>/dev/null; then return 0; fi
		if ! kill -0 "$server" 2>/dev/null; then echo "the server ended before it was ready"; return 1; fi
		sleep 0.2
	done
	echo "the server was not ready after two minutes"
	return 1
}
`

// script joins the blocks of a document into one.
func script(blocks []shellBlock) string {
	var b strings.Builder
	b.WriteString(preamble)
	for _, block := range blocks {
		fmt.Fprintf(&b, "echo '--- %s'\n", block.where)
		if block.serve {
			fmt.Fprintf(&b, "stop_server\nset -m\n(\nset -e\n%s) &\nserver=$!\nset +m\nwait_ready\n", block.text)
		} else {
			b.WriteString(block.text)
		}
	}
	return b.String()
}

func runDocument(t *testing.T, repo, bin string, blocks []shellBlock) (out []byte, err error) {
	t.Helper()
	listen, admin := freeAddress(t), freeAddress(t)
	port := func(address string) string { return address[strings.LastIndex(address, ":"):] }
	text := strings.NewReplacer(":8080", port(listen), ":8081", port(admin)).Replace(script(blocks))

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", text)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Dir = t.TempDir()
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PETREL_") && !strings.HasPrefix(kv, "PUSHER_") && !strings.HasPrefix(kv, "MAKE") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "REPO="+repo, "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"),
		"PETREL_LISTEN="+listen, "PETREL_ADMIN="+admin, "PETREL_URL=http://"+listen)
	return cmd.CombinedOutput()
}

// freeAddress returns an address that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestShellBlocks(t *testing.T) {
	t.Parallel()
	text := strings.ReplaceAll("# Title\n\n'''sh\nmake run\n'''\n\n'''console\n$ rm -rf /\n'''\n\n1. Then\n\n   '''sh serve\n   petrel serve \\\n     --demo\n   '''\n\n````md\n'''sh\nnot ours\n'''\n````\n", "'''", "```")
	want := []shellBlock{
		{where: "a.md:3", text: "make run\n"},
		{where: "a.md:13", serve: true, text: "petrel serve \\\n  --demo\n"},
	}
	if diff := cmp.Diff(want, shellBlocks("a.md", text), cmp.AllowUnexported(shellBlock{})); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
}

func TestRunDocument(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("bash is not installed")
	}
	for _, tt := range []struct {
		name   string
		blocks []shellBlock
		ok     bool
	}{
		{"variables last", []shellBlock{{text: "x=1\n"}, {text: "test $x = 1\n"}}, true},
		{"a command fails", []shellBlock{{text: "false\ntrue\n"}, {text: "true\n"}}, false},
		{"a pipe fails", []shellBlock{{text: "false | true\n"}}, false},
		{"a server ends", []shellBlock{{serve: true, text: "true\n"}}, false},
		{"addresses", []shellBlock{{text: "test $PETREL_LISTEN = 127.0.0.1:8080\ntest $PETREL_ADMIN = 127.0.0.1:8081\n"}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if out, err := runDocument(t, "", "", tt.blocks); (err == nil) != tt.ok {
				t.Errorf("err = %v, want success %t\n%s", err, tt.ok, out)
			}
		})
	}
}

var link = regexp.MustCompile(`(?:^|[^!])\[[^\]]*\]\(([^)#:\s]+)(#[^)\s]*)?\)`)

// TestDocsLinks follows the links between files, pictures left out, in every document that is committed.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	var docs []string
	for _, pattern := range []string{"../*.md", "*.md", "../docs/*.md", "../docs/adr/*.md", "../bench/*.md", "../sdk/js/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, found...)
	}
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(text), "\n") {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
					t.Errorf("%s:%d: links to %s, which does not exist", doc, n+1, m[1])
				}
			}
		}
	}
}

// TestDocsNameTests holds docs/*.md to the tests that they name: what a page says is covered, is.
func TestDocsNameTests(t *testing.T) {
	t.Parallel()
	h, err := loadHouse(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, p := range h.pkgs {
		for _, f := range p.files {
			for _, decl := range f.ast.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && f.test {
					known[fn.Name.Name] = true
				}
			}
		}
	}
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`")
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(text), "\n") {
			for _, m := range name.FindAllStringSubmatch(line, -1) {
				if !known[m[1]] {
					t.Errorf("%s:%d: names the test %s, which does not exist", doc, n+1, m[1])
				}
			}
		}
	}
}
