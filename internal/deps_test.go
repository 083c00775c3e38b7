package internal_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/dependencies.txt")

// TestDependencies keeps the list of everything that the production binary links from
// others, with who brings it in, so that a new dependency is seen in review.
func TestDependencies(t *testing.T) {
	t.Parallel()
	const name = "../docs/dependencies.txt"
	got := dependencies(binaryDeps(t))
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/dependencies.txt is not what cmd/petrel links. If the change is meant: make gen (-listed +linked)\n%s", diff)
	}
}

// dependencies writes one line per package of others: its path, and who imports it. Ours come
// first and by their short names; of others that import it, one is enough to see where it comes from.
func dependencies(deps []dep) string {
	by := map[string][]string{}
	for _, d := range deps {
		short, ours := shortPath(d.path)
		for _, imported := range d.imports {
			if ours {
				by[imported] = append(by[imported], short)
			}
		}
	}
	for _, d := range deps {
		if _, ours := shortPath(d.path); ours {
			continue
		}
		for _, imported := range d.imports {
			if len(by[imported]) == 0 {
				by[imported] = append(by[imported], "("+d.path+")")
			}
		}
	}
	var lines []string
	for _, d := range deps {
		if _, ours := shortPath(d.path); !ours {
			slices.Sort(by[d.path])
			lines = append(lines, fmt.Sprintf("%-60s %s\n", d.path, strings.Join(by[d.path], " ")))
		}
	}
	slices.Sort(lines)
	return "# What bin/petrel links from others on Linux, and who of ours imports it, or in brackets who of theirs.\n" +
		"# Written by make gen, kept true by a test.\n\n" + strings.Join(lines, "")
}

func TestDependenciesNamesWhoImports(t *testing.T) {
	t.Parallel()
	got := dependencies([]dep{
		{module + "/internal/raftlog", []string{"context", "example.org/raft"}},
		{module + "/cmd/petrel", []string{module + "/internal/raftlog", "example.org/raft"}},
		{"example.org/raft", []string{"example.org/metrics"}},
		{"example.org/metrics", nil},
	})
	want := fmt.Sprintf("%-60s %s\n%-60s %s\n", "example.org/metrics", "(example.org/raft)", "example.org/raft", "cmd/petrel raftlog")
	if _, lines, _ := strings.Cut(got, "\n\n"); lines != want {
		t.Errorf("got:\n%s\nwant:\n%s", lines, want)
	}
}
