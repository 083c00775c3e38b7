// Package scripttest runs stories that are written down: files of steps, each with what it prints.
//
// A file in the testdata of the package under test is a list of steps divided by empty lines. What stands below "----" is what the step prints;
// lines that begin with # are for people. `go test ./that/package -rewrite` writes what the steps print now into the files, to be read in
// the diff.
package scripttest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts print into them")

// MaxLines is what a script may have: one story each.
const MaxLines = 110

// Story is one run of a file, in a world of its own.
type Story struct {
	Step func(lines []string) string // does a step, given without comments, and returns what it prints
	End  func()                      // judges the whole at the end; nil: there is nothing to judge
}

// Run runs all scripts of the package.
func Run(t *testing.T, begin func(t *testing.T) Story) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := run(string(raw), begin(t))
			Compare(t, file, string(raw), got)
			if n := strings.Count(got, "\n"); n > MaxLines {
				t.Errorf("%d lines: one story in at most %d", n, MaxLines)
			}
		})
	}
}

func run(script string, s Story) string {
	var out strings.Builder
	for step := range strings.SplitSeq(strings.TrimSpace(script), "\n\n") {
		input, _, _ := strings.Cut(step, "\n----")
		out.WriteString(input)
		var lines []string
		for line := range strings.SplitSeq(input, "\n") {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			out.WriteString(strings.TrimRight("\n----\n"+strings.TrimSpace(s.Step(lines)), "\n"))
		}
		out.WriteString("\n\n")
	}
	if s.End != nil {
		s.End()
	}
	return strings.TrimSpace(out.String()) + "\n"
}

// Compare fails the test when a file is not what it would be now; with -rewrite it also makes it so.
func Compare(t *testing.T, file, was, now string) {
	t.Helper()
	if *rewrite && was != now {
		if err := os.WriteFile(file, []byte(now), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(was, now); d != "" {
		t.Errorf("%s (-file +now; -rewrite takes it over)\n%s", file, d)
	}
}
