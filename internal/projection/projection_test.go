package projection_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var notes = projection.Module{Name: "notes", Migrations: []string{
	`CREATE TABLE note (room TEXT NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL, body BLOB, PRIMARY KEY (room, seq)) STRICT, WITHOUT ROWID;
	 CREATE UNIQUE INDEX note_id ON note (room, id);`,
}}

const (
	insertNote = `INSERT INTO note (room, seq, id, body) VALUES (?, ?, ?, ?)`
	selectNote = `SELECT id, body FROM note WHERE room = ? AND seq > ? ORDER BY seq`
	countNotes = `SELECT count(*) FROM note`
)

func open(t testing.TB, path string, change ...func(*projection.Options)) *projection.Store {
	t.Helper()
	o := projection.Options{Path: path, Modules: []projection.Module{notes}}
	for _, c := range change {
		c(&o)
	}
	s, err := projection.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func fresh(t testing.TB) string { return filepath.Join(t.TempDir(), "p.db") }

// add inserts notes n.. and moves the position to the last.
func add(t testing.TB, s *projection.Store, from, to int) {
	t.Helper()
	err := s.Update(context.Background(), func(tx *projection.Tx) error {
		for i := from; i <= to; i++ {
			if _, err := tx.Exec(insertNote, petrel.RoomID("r"), i, fmt.Sprint("id", i), []byte("body")); err != nil {
				return err
			}
		}
		return tx.SetApplied(at(to))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func at(i int) petrel.Applied {
	return petrel.Applied{Index: uint64(i), Hash: petrel.Hash{byte(i)}, Mark: uint64(2 * i), Digest: petrel.Hash{1, byte(i)}, Epoch: "e1"}
}

func count(t testing.TB, s *projection.Store) (n int) {
	t.Helper()
	err := s.View(context.Background(), func(r *projection.Reader) error {
		_, err := r.Get(countNotes, func(row *projection.Row) { n = int(row.Int(0)) })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUpdateMovesRowsAndPositionTogether(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	s := open(t, path)
	if d := cmp.Diff(petrel.Applied{}, s.Applied()); d != "" {
		t.Errorf("a new projection (-want +got):\n%s", d)
	}
	add(t, s, 1, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if d := cmp.Diff(at(3), s.Applied()); d != "" {
		t.Errorf("opened again (-want +got):\n%s", d)
	}
	if n := count(t, s); n != 3 {
		t.Errorf("%d notes, want 3", n)
	}
}

func TestUpdateStoresNothingAfterAnError(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for name, fn := range map[string]func(*projection.Tx) error{
		"returned": func(tx *projection.Tx) error {
			_, err := tx.Exec(insertNote, "r", 9, "x", nil)
			return errors.Join(err, tx.SetApplied(at(9)), boom)
		},
		"swallowed": func(tx *projection.Tx) error {
			_, _ = tx.Exec(insertNote, "r", 1, "twice", nil) // the seq is taken
			_, _ = tx.Exec(insertNote, "r", 9, "x", nil)
			_ = tx.SetApplied(at(9))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, fresh(t))
			add(t, s, 1, 1)
			if err := s.Update(t.Context(), fn); err == nil {
				t.Fatal("no error")
			}
			if got := s.Applied(); got != at(1) {
				t.Errorf("applied is %+v", got)
			}
			if n := count(t, s); n != 1 {
				t.Errorf("%d notes, want 1", n)
			}
			add(t, s, 2, 2) // and goes on
		})
	}
}

// TestDiskFull: a transaction that finds no room changes nothing, and works once there is room. SQLite's
// own page limit stands for the disk.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := open(t, fresh(t))
	add(t, s, 1, 1)
	limit := func(pragma string) {
		err := s.Update(t.Context(), func(tx *projection.Tx) error {
			_, err := tx.Get(pragma, func(*projection.Row) {})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	limit("PRAGMA max_page_count = 1") // it takes the present size instead
	fill := func(tx *projection.Tx) error {
		for i := 2; i < 100; i++ {
			if _, err := tx.Exec(insertNote, "r", i, fmt.Sprint("id", i), make([]byte, 4096)); err != nil {
				return err
			}
		}
		return tx.SetApplied(at(99))
	}
	for range 3 {
		if err := s.Update(t.Context(), fill); !errors.Is(err, petrel.ErrDiskFull) {
			t.Fatalf("without room: %v", err)
		}
		if s.Applied() != at(1) || count(t, s) != 1 {
			t.Fatalf("%d notes at %+v", count(t, s), s.Applied())
		}
	}
	limit("PRAGMA max_page_count = 100000")
	if err := s.Update(t.Context(), fill); err != nil || count(t, s) != 99 {
		t.Errorf("with room: %v, %d notes", err, count(t, s))
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	reg := prometheus.NewRegistry()
	s := open(t, path, func(o *projection.Options) { o.Registerer = reg })
	add(t, s, 1, 10)
	count(t, s)
	_ = s.ViewBudget(t.Context(), projection.Budget{Steps: 1}, func(r *projection.Reader) error {
		_, err := r.Get(countNotes, func(*projection.Row) {})
		return err
	})
	want := map[string]float64{
		"petrel_projection_update_seconds": 1, "petrel_projection_rows_total": 11, "petrel_projection_view_seconds": 2,
		"petrel_projection_read_budget_refusals_total": 1, "petrel_projection_checkpoint_failures_total": 0, "petrel_projection_checkpoint_seconds": 0,
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range all {
		m := f.GetMetric()[0]
		if f.GetName() == "petrel_projection_file_bytes" || f.GetName() == "petrel_projection_wal_bytes" {
			if m.GetGauge().GetValue() <= 0 {
				t.Errorf("%s is %v", f.GetName(), m.GetGauge().GetValue())
			}
			continue
		}
		got[f.GetName()] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, func(o *projection.Options) { o.Registerer = reg }) // the same registry serves again
}

// TestCheckpointsKeepTheLogShort: under load without a pause the write-ahead log begins anew. How long it
// gets before depends on the disk, so the test waits for a stretch of writes in which it does not grow.
func TestCheckpointsKeepTheLogShort(t *testing.T) {
	t.Parallel()
	s := open(t, fresh(t), func(o *projection.Options) { o.CheckpointBytes = 128 << 10 })
	const stretch = 20_000 // rows: several times what may lie in the log
	var before int64
	for round := range 20 {
		for i := round * stretch; i < (round+1)*stretch; i += 100 {
			add(t, s, i+1, i+100)
		}
		_, wal := s.Bytes()
		if wal == before {
			return
		}
		before = wal
	}
	file, wal := s.Bytes()
	t.Errorf("the log has %d bytes beside a file of %d and grows on", wal, file)
}
