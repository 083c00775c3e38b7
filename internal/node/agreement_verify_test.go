package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// stoppedFolder is the data folder of a node that ran alone and was stopped.
func stoppedFolder(t *testing.T) (data string) {
	t.Helper()
	cfg := cellConfig(t, "n1")
	cfg.Peer, cfg.Bus = "", ""
	n := startNode(t, cfg)
	app, err := n.CreateApp(t.Context(), NewApp{Name: "proven"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		room := petrel.RoomID(fmt.Sprint("room", i))
		do(t, n, app.ID, chat.CreateRoom{ID: room, Kind: event.RoomOpen})
		do(t, n, app.ID, chat.PostMessage{Room: room, Text: fmt.Sprint("what was said ", i)})
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	return cfg.Data
}

func verifyFolder(t *testing.T, data string) (FolderVerification, string, error) {
	t.Helper()
	var said strings.Builder
	before := folders(t, data)
	v, err := VerifyFolder(t.Context(), data, func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) })
	if after := folders(t, data); len(after) != len(before) {
		t.Errorf("left behind: %q, before %q", after, before)
	}
	return v, said.String(), err
}

// TestVerifyFolder: replay equals live, until somebody changes a row behind the log's back; then it is named.
func TestVerifyFolder(t *testing.T) {
	t.Parallel()
	data := stoppedFolder(t)
	path := filepath.Join(data, "shard-0", "projection.db")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v, said, err := verifyFolder(t, data)
	if err != nil || !v.Equal || !v.FromStart || v.Replayed != v.Index || v.Entries != v.Index || v.Index < 12 || v.Rows < 20 || v.Tables < 8 {
		t.Fatalf("%+v, %v", v, err)
	}
	if !strings.Contains(said, "The log is whole") || !strings.Contains(said, "from the first one on") {
		t.Errorf("said:\n%s", said)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) || !exists(path+".seal") {
		t.Error("the projection was changed by looking at it", err)
	}

	s, err := projection.Open(t.Context(), projection.Options{Path: path, Modules: modules()})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(t.Context(), func(tx *projection.Tx) error {
		_, err := tx.Exec(`UPDATE chat_message SET text = 'what was saId 3' WHERE text = 'what was said 3'`)
		return err
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	v, _, err = verifyFolder(t, data)
	if err != nil || v.Equal || !v.DigestEqual || len(v.Differences) != 1 || v.Differences[0].Table != "chat_message" || len(v.Differences[0].Keys) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestVerifyFolderRefuses: what is damaged, in use or no data folder is told so.
func TestVerifyFolderRefuses(t *testing.T) {
	t.Parallel()
	data := stoppedFolder(t)
	if _, _, err := verifyFolder(t, t.TempDir()); petrel.CodeOf(err) != petrel.CodeNotFound {
		t.Errorf("an empty folder: %v", err)
	}
	lock, err := lockFolder(data)
	if err != nil {
		t.Fatal(err)
	}
	var locked *LockedError
	if _, _, err := verifyFolder(t, data); !errors.As(err, &locked) {
		t.Errorf("in use: %v", err)
	}
	if err := lock.release(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(data, "shard-0", "projection.db")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(raw[len(raw)/2:], "garbage")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := verifyFolder(t, data); !errors.Is(err, projection.ErrUnreadable) {
		t.Errorf("a damaged projection: %v", err)
	}
	segments, err := filepath.Glob(filepath.Join(data, "shard-0", "log", "wal", "*.wal"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	raw, err = os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(raw), "what was said")
	raw[at] ^= 1
	if err := os.WriteFile(segments[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := verifyFolder(t, data); !errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("a damaged log: %v", err)
	}
}

// TestVerifyRemote asks a running cell over its admin listener.
func TestVerifyRemote(t *testing.T) {
	t.Parallel()
	nodes, _ := comparingCell(t, 2)
	op, err := NewRemote(nodes[1].AdminAddr(), nodes[1].cfg.Data)
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	var v Verification
	until(t, "both were compared", func() bool { // not both may answer in time
		if v, err = op.BeginVerify(t.Context()); err != nil || v.Began.IsZero() {
			t.Fatalf("%+v, %v", v, err)
		}
		until(t, "it ends", func() bool {
			v, err = op.Verified(t.Context())
			return err != nil || !v.Running
		})
		return err != nil || v.Equal
	})
	if err != nil || !v.Equal || len(v.Nodes) != 2 || v.Nodes[0].Hash != v.Nodes[1].Hash || v.Nodes[0].Hash == "" {
		t.Errorf("%+v, %v", v, err)
	}
	alone := cellConfig(t, "alone")
	alone.Peer, alone.Bus = "", ""
	if _, err := startNode(t, alone).BeginVerify(t.Context()); petrel.CodeOf(err) != petrel.CodeConflict {
		t.Errorf("alone: %v", err)
	}
}
