package api

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// between returns the part of a document between its markers.
func between(t *testing.T, file, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/" + file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "<!-- begin "+name+" -->\n")
	part, _, ok2 := strings.Cut(rest, "<!-- end "+name+" -->")
	if !ok || !ok2 {
		t.Fatalf("%s has no markers of %s", file, name)
	}
	return strings.TrimSpace(part) + "\n"
}

// TestErrorsAreDocumented: docs/ERRORS.md has a line for every code, and says what the code says.
func TestErrorsAreDocumented(t *testing.T) {
	t.Parallel()
	meanings := gateway.Meanings()
	codes := slices.SortedFunc(maps.Keys(meanings), func(a, b petrel.Code) int {
		return cmp.Or(meanings[a].Status-meanings[b].Status, strings.Compare(string(a), string(b)))
	})
	var want strings.Builder
	want.WriteString("| code | status | meaning | what to do |\n|---|---|---|---|\n")
	for _, c := range codes {
		m := meanings[c]
		fmt.Fprintf(&want, "| `%s` | %d | %s | %s |\n", c, m.Status, m.Title, m.Do)
	}
	if diff := gocmp.Diff(want.String(), between(t, "ERRORS.md", "codes")); diff != "" {
		t.Errorf("docs/ERRORS.md and internal/gateway/problem.go differ (-code +page):\n%s", diff)
	}
}

// TestEveryCodeHasAStatus reads the list of codes in the source: a code without a line in the table would be answered as 500.
func TestEveryCodeHasAStatus(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../petrel/errors.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(b)) {
		_, rest, ok := strings.Cut(line, "Code = \"")
		if !ok {
			continue
		}
		text, _, _ := strings.Cut(rest, "\"")
		found++
		if _, ok := gateway.Meanings()[petrel.Code(text)]; !ok {
			t.Errorf("%s has no status", text)
		}
	}
	if found != len(gateway.Meanings()) {
		t.Errorf("%d codes in the source, %d in the table", found, len(gateway.Meanings()))
	}
}

// TestCloseCodesAreDocumented holds docs/PROTOCOL.md against internal/conn/codes.go.
func TestCloseCodesAreDocumented(t *testing.T) {
	t.Parallel()
	codes := conn.Codes()
	var want strings.Builder
	want.WriteString("| close code | name | a client does |\n|---|---|---|\n")
	for _, c := range slices.Sorted(maps.Keys(codes)) {
		fmt.Fprintf(&want, "| %d | %s | %s |\n", c, strings.ReplaceAll(codes[c], "_", " "), c.Advice())
	}
	if diff := gocmp.Diff(want.String(), between(t, "PROTOCOL.md", "close codes")); diff != "" {
		t.Errorf("docs/PROTOCOL.md and internal/conn/codes.go differ (-code +page):\n%s", diff)
	}
}

// TestFramesAreDocumented: every op that the server reads or writes stands on the page.
func TestFramesAreDocumented(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	for op := range fields {
		if !strings.Contains(string(b), "`"+op+"`") {
			t.Errorf("docs/PROTOCOL.md does not speak of %s", op)
		}
	}
	for _, op := range []string{"hello", "ok", "error", "event", "resync", "unsubscribed", "reconnect", "presence", "stale"} {
		if !strings.Contains(string(b), "`"+op+"`") {
			t.Errorf("docs/PROTOCOL.md does not speak of %s", op)
		}
	}
}
