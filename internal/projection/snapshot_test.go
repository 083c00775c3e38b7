package projection_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// files lists what lies beside the projection.
func files(t testing.TB, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestNothingIsLeftBeside: snapshots and restores, good, bad and given up, leave no temporary file.
func TestNothingIsLeftBeside(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	s := open(t, path)
	add(t, s, 1, 300)
	look := func(after string, want ...string) {
		t.Helper()
		if d := cmp.Diff(want, files(t, path)); d != "" {
			t.Errorf("files after %s (-want +got):\n%s", after, d)
		}
	}
	n, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var good bytes.Buffer
	if err := n.WriteTo(t.Context(), &good); err != nil {
		t.Fatal(err)
	}
	look("a snapshot", "p.db", "p.db-shm", "p.db-wal")
	if err := s.Restore(t.Context(), bytes.NewReader(good.Bytes()[:good.Len()-1])); !errors.Is(err, projection.ErrUnreadable) {
		t.Errorf("a torn snapshot: %v", err)
	}
	look("a bad restore", "p.db", "p.db-shm", "p.db-wal")
	held, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(t.Context(), &good); err != nil {
		t.Fatal(err)
	}
	if err := held.WriteTo(t.Context(), &bytes.Buffer{}); !errors.Is(err, petrel.ErrStopped) {
		t.Errorf("the snapshot of the file that is gone: %v", err)
	}
	look("a restore", "p.db", "p.db-shm", "p.db-wal")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	look("Close", "p.db", "p.db.seal")
}

// TestSnapshotsTravel: what a projection in a file wrote, one in memory reads, and back.
func TestSnapshotsTravel(t *testing.T) {
	t.Parallel()
	file := open(t, fresh(t))
	memory := open(t, "", func(o *projection.Options) { o.Memory = &projection.MemoryDisk{} })
	add(t, file, 1, 100)
	for _, way := range [][2]*projection.Store{{file, memory}, {memory, file}} {
		var b bytes.Buffer
		n, err := way[0].Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.WriteTo(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		if err := way[1].Restore(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		next := int(way[1].Applied().Index) + 1
		add(t, way[1], next, next)
		if got := count(t, way[1]); got != next {
			t.Errorf("%d notes, not %d", got, next)
		}
	}
}
