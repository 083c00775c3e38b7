package petreltest

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seed starts a server on dir, posts n messages to crashRoom(0), and stops it cleanly.
func seed(t *testing.T, dir string, n int) []ack {
	t.Helper()
	server := Start(t, Options{Dir: dir})
	createRoom(t, server.URL, crashRoom(0))
	acks := make([]ack, n)
	for i := range acks {
		a := ack{user: "ada", room: crashRoom(0), id: fmt.Sprintf("m-%d", i), text: fmt.Sprintf("a text to be found again, number %d", i)}
		m, _, err := Post(t.Context(), http.DefaultClient, server.URL, a.user, a.room, a.id, a.text)
		if err != nil {
			t.Fatal(err)
		}
		a.seq = m.Seq
		acks[i] = a
	}
	server.Terminate(t)
	return acks
}

// TestProjectionGarbage overwrites the projection between two starts. It is made from the log: so it is
// set aside, built again, and the log for people says so.
func TestProjectionGarbage(t *testing.T) {
	t.Parallel()
	for name, hurt := range map[string]func(t *testing.T, path string){
		"overwritten": func(t *testing.T, path string) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, bytes.Repeat([]byte("garbage "), int(info.Size()/8)), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"damaged inside": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			for at := int64(4096); at+4096 <= info.Size(); at += 4096 { // every page but the first
				if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, 1000), at); err != nil {
					t.Fatal(err)
				}
			}
		},
		"gone": func(t *testing.T, path string) {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(path + suffix); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			acks := seed(t, dir, 200)
			hurt(t, filepath.Join(dir, "shard-0", "projection.db"))
			server := Start(t, Options{Dir: dir})
			events := checkRoom(t, server.URL, crashRoom(0), acks)
			if len(events) < len(acks) {
				t.Errorf("%d events came back, at least %d were there", len(events), len(acks))
			}
			if name != "gone" {
				loud := server.LogLines(func(l map[string]any) bool {
					return l["level"] == "ERROR" && strings.Contains(fmt.Sprint(l["msg"]), "projection is unreadable")
				})
				if len(loud) != 1 || fmt.Sprint(loud[0]["kept"]) == "" {
					t.Errorf("the rebuilding was not loud: %v", loud)
				}
			}
			server.Terminate(t)
		})
	}
}

// TestFlippedBit turns one bit of an acknowledged message in the log. The log is the truth, so there is
// nothing to repair it from on one node: petrel refuses to start, and says what is damaged and what to do.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	for _, withProjection := range []bool{true, false} {
		t.Run(fmt.Sprintf("projection=%v", withProjection), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			seed(t, dir, 50)
			file := flipBit(t, dir, []byte("a text to be found again, number 25"))
			if !withProjection {
				for _, suffix := range []string{"", "-wal", "-shm"} {
					_ = os.Remove(filepath.Join(dir, "shard-0", "projection.db"+suffix))
				}
			}
			server := Launch(t, Options{Dir: dir})
			if code := server.ExitCode(t); code != 4 {
				t.Errorf("exit code %d, want 4", code)
			}
			last := lastLine(server.Log())
			if !strings.HasPrefix(last, "petrel: ") || !strings.Contains(last, filepath.Base(file)) ||
				!(strings.Contains(last, "backup") || strings.Contains(last, "replica") || strings.Contains(last, "snapshot")) {
				t.Errorf("the last words are %q; they must name %s and say what to do", last, filepath.Base(file))
			}
		})
	}
}

// flipBit finds text in a file of the log and turns its first bit.
func flipBit(t *testing.T, dir string, text []byte) (file string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "shard-0", "log"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if at := bytes.Index(b, text); at >= 0 {
			b[at] ^= 1
			file = path
			return os.WriteFile(path, b, 0o600)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if file == "" {
		t.Fatal("the text is in no file of the log")
	}
	return file
}

// TestDataFolderInUse: two processes never share a folder, and the second one names the first.
func TestDataFolderInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := Start(t, Options{Dir: dir})
	cmd := petrelCommand(t, "serve", "--data", dir, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 3 || !strings.Contains(string(out), fmt.Sprintf("in use by process %d", first.PID)) {
		t.Errorf("the second process ended with %v and said %q", err, out)
	}
}
