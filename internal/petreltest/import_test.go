package petreltest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// said is one message of a log, as this file's own parser reads it.
type said struct {
	nick, text, clock, file string
	line                    int
	action                  bool
}

// TestImportIRC sends twelve real days through the public API and compares counts, order and people with
// the files, which it parses by itself: no code is shared with the importer. A run that is killed half-way
// is finished by the next, and one more adds nothing.
func TestImportIRC(t *testing.T) {
	t.Parallel()
	files := ircFiles(t)
	var want []said
	for _, name := range files {
		want = append(want, readSaid(t, name)...)
	}
	server := Start(t, Options{Dir: t.TempDir()})
	const room = "ubuntu"

	first := importIRC(t, server, room, files)
	Until(t, "a quarter of the import was there", func() bool {
		return head(t, server, room) > uint64(len(want)/4) || exited(first)
	})
	_ = first.Process.Kill()
	_ = first.Wait()
	half := head(t, server, room)
	if half >= uint64(len(want)) {
		t.Errorf("the import was over before it could be interrupted: %d", half)
	}

	started := time.Now()
	second := importIRC(t, server, room, files)
	if err := second.Wait(); err != nil {
		t.Fatalf("import: %v\n%s", err, second.Stderr)
	}
	t.Logf("%d messages; interrupted at seq %d; the rest took %s", len(want), half, time.Since(started).Round(time.Millisecond))

	events, err := History(t.Context(), http.DefaultClient, server.URL, room)
	if err != nil {
		t.Fatal(err)
	}
	compareImport(t, want, events)

	third := importIRC(t, server, room, files)
	if err := third.Wait(); err != nil {
		t.Fatalf("import again: %v\n%s", err, third.Stderr)
	}
	if h := head(t, server, room); h != uint64(len(events)) {
		t.Errorf("importing again moved the head from %d to %d", len(events), h)
	}
	if out := fmt.Sprint(third.Stdout); !strings.Contains(out, fmt.Sprintf("0 messages sent, %d had been there", len(want))) {
		t.Errorf("importing again said %q", out)
	}
	server.Terminate(t)
}

func importIRC(t *testing.T, server *Server, room string, files []string) *exec.Cmd {
	t.Helper()
	args := append([]string{"import", "irc", "--app", AppID, "--room", room, "--speed", "max", "--data", server.Dir}, files...)
	cmd := petrelCommand(t, args...)
	cmd.Stdout, cmd.Stderr = &logBuffer{}, &logBuffer{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

func exited(cmd *exec.Cmd) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func head(t *testing.T, server *Server, room string) uint64 {
	t.Helper()
	var page struct{ Head uint64 }
	_, err := Call(t.Context(), http.DefaultClient, server.URL, "", http.MethodGet, "/v1/rooms/"+room+"/events?after=0&limit=1", nil, &page)
	if p, ok := err.(*Problem); ok && p.Code == "room_not_found" {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return page.Head
}

func compareImport(t *testing.T, want []said, events []Event) {
	t.Helper()
	var got []Message
	people, wantPeople := map[string]bool{}, map[string]bool{}
	for _, ev := range events {
		if ev.Type != "message.new" {
			continue
		}
		var m Message
		if err := json.Unmarshal(ev.Data, &m); err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
		people[m.User] = true
	}
	if len(got) != len(want) {
		t.Errorf("the room has %d messages, the files %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		w, m := want[i], got[i]
		wantPeople[w.nick] = true
		// A user id is read back as a nick: "=7C" is to ids what "%7C" is to URLs.
		nick, err := url.PathUnescape(strings.ReplaceAll(m.User, "=", "%"))
		var custom struct {
			IRC struct {
				Nick, Time, File string
				Line             int
				Action           bool
			}
		}
		if err == nil {
			err = json.Unmarshal(m.Custom, &custom)
		}
		c := custom.IRC
		if err != nil || nick != w.nick || c.Nick != w.nick || m.Text != w.text || c.Line != w.line || c.File != w.file || c.Action != w.action || (w.clock != "" && c.Time != w.clock) {
			t.Fatalf("message %d is %+v (%v), the file has %+v", i, m, err, w)
		}
	}
	if len(people) != len(wantPeople) {
		t.Errorf("%d people spoke in the room, %d in the files", len(people), len(wantPeople))
	}
	t.Logf("%d messages by %d people agree with the files", len(got), len(people))
}

// ircFiles finds the twelve days beside the repository.
func ircFiles(t *testing.T) []string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", "..", "shared", "data", "ubuntu-irc"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.raw.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 12 {
		const why = "the twelve IRC days are not at ../shared/data/ubuntu-irc beside the repository (%d files found)"
		if os.Getenv("REQUIRE_DATA") == "1" {
			t.Fatalf(why, len(files))
		}
		t.Skipf(why, len(files))
	}
	slices.Sort(files)
	return files
}

// readSaid is the second, independent reading of a log: by cutting at marks, without expressions.
func readSaid(t *testing.T, name string) []said {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var all []said
	for n, line := range strings.Split(string(b), "\n") {
		s := said{file: filepath.Base(name), line: n}
		switch {
		case len(line) > 8 && line[0] == '[' && line[6:9] == "] <":
			s.clock = line[1:6]
			s.nick, s.text, _ = strings.Cut(line[9:], ">")
			s.text = strings.TrimPrefix(s.text, " ")
		case len(line) > 8 && line[0] == '[' && strings.HasPrefix(strings.TrimLeft(line[7:], " "), "* "):
			s.clock, s.action = line[1:6], true
			s.nick, s.text, _ = strings.Cut(strings.TrimLeft(line[7:], " *"), " ")
		case strings.HasPrefix(line, "=== ") && !notice(strings.TrimPrefix(line, "=== ")):
			s.action = true
			s.nick, s.text, _ = strings.Cut(strings.TrimPrefix(line, "=== "), " ")
		default:
			continue
		}
		var text strings.Builder
		for _, r := range s.text {
			if r == '\t' || r >= ' ' && r != 0x7f {
				text.WriteRune(r)
			}
		}
		if s.text = text.String(); strings.TrimSpace(s.text) != "" {
			all = append(all, s)
		}
	}
	return all
}

func notice(s string) bool {
	words := strings.Fields(s)
	for i, w := range words {
		if w == "has" && i > 0 && strings.HasSuffix(words[i-1], "]") && i+1 < len(words) && slices.Contains([]string{"joined", "left", "quit"}, words[i+1]) {
			return true
		}
	}
	return strings.HasPrefix(s, "mode/") ||
		len(words) == 6 && strings.Join(words[1:5], " ") == "is now known as" ||
		len(words) > 4 && strings.Join(words[1:4], " ") == "was kicked off"
}
