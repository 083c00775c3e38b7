package projectiontest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func updateMovesRowsAndPositionTogether(t *testing.T, fresh func(testing.TB) Place) {
	at := fresh(t)
	s := Open(t, at)
	if d := cmp.Diff(petrel.Applied{}, s.Applied()); d != "" {
		t.Errorf("a new projection (-want +got):\n%s", d)
	}
	Add(t, s, 1, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = Open(t, at)
	if d := cmp.Diff(At(3), s.Applied()); d != "" {
		t.Errorf("opened again (-want +got):\n%s", d)
	}
	if n := Count(t, s); n != 3 {
		t.Errorf("%d notes, want 3", n)
	}
}

func updateStoresNothingAfterAnError(t *testing.T, fresh func(testing.TB) Place) {
	boom := errors.New("boom")
	for name, fn := range map[string]func(*projection.Tx) error{
		"returned": func(tx *projection.Tx) error {
			_, err := tx.Exec(InsertNote, "r", 9, "x", nil)
			return errors.Join(err, tx.SetApplied(At(9)), boom)
		},
		"swallowed": func(tx *projection.Tx) error {
			_, _ = tx.Exec(InsertNote, "r", 1, "twice", nil) // the seq is taken
			_, _ = tx.Exec(InsertNote, "r", 9, "x", nil)
			_ = tx.SetApplied(At(9))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Open(t, fresh(t))
			Add(t, s, 1, 1)
			if err := s.Update(t.Context(), fn); err == nil {
				t.Fatal("no error")
			}
			if got := s.Applied(); got != At(1) {
				t.Errorf("applied is %+v", got)
			}
			if n := Count(t, s); n != 1 {
				t.Errorf("%d notes, want 1", n)
			}
			Add(t, s, 2, 2) // and goes on
		})
	}
}

// noRoom: a transaction that finds no room changes nothing, and works once there is room. SQLite's
// own page limit stands for the disk.
func noRoom(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	Add(t, s, 1, 1)
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
			if _, err := tx.Exec(InsertNote, "r", i, fmt.Sprint("id", i), make([]byte, 4096)); err != nil {
				return err
			}
		}
		return tx.SetApplied(At(99))
	}
	for range 3 {
		if err := s.Update(t.Context(), fill); !errors.Is(err, petrel.ErrDiskFull) {
			t.Fatalf("without room: %v", err)
		}
		if s.Applied() != At(1) || Count(t, s) != 1 {
			t.Fatalf("%d notes at %+v", Count(t, s), s.Applied())
		}
	}
	limit("PRAGMA max_page_count = 100000")
	if err := s.Update(t.Context(), fill); err != nil || Count(t, s) != 99 {
		t.Errorf("with room: %v, %d notes", err, Count(t, s))
	}
}

func migrations(t *testing.T, fresh func(testing.TB) Place) {
	at := fresh(t)
	first := Open(t, at)
	Add(t, first, 1, 2)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	more := projection.Module{Name: "notes", Migrations: append(Notes().Migrations[:1:1],
		`ALTER TABLE note ADD COLUMN stars INTEGER; UPDATE note SET stars = seq * 10;`,
		`CREATE INDEX note_stars ON note (stars)`,
	)}
	broken := more
	broken.Migrations = append(more.Migrations[:2:2], `CREATE TABLE ok (x); CREATE TABLE note (y)`)

	if _, err := projection.Open(t.Context(), options(at, func(o *projection.Options) { o.Modules = []projection.Module{broken} })); err == nil ||
		!strings.Contains(err.Error(), "module notes, step 3") {
		t.Fatalf("a broken step: %v", err)
	}
	for range 2 { // the second Open has nothing left to do
		s := Open(t, at, func(o *projection.Options) { o.Modules = []projection.Module{more} })
		var stars int64
		err := s.View(t.Context(), func(r *projection.Reader) error {
			_, err := r.Get(`SELECT stars FROM note WHERE room = ? AND seq = ?`, func(row *projection.Row) { stars = row.Int(0) }, "r", 2)
			return err
		})
		if err != nil || stars != 20 {
			t.Errorf("stars %d, %v", stars, err)
		}
		if s.Applied() != At(2) {
			t.Errorf("applied %+v", s.Applied())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := projection.Open(t.Context(), options(at, func(o *projection.Options) { o.Modules = []projection.Module{Notes()} })); !errors.Is(err, projection.ErrNewerSchema) {
		t.Errorf("an older build: %v", err)
	}
}

// refusesDamage: what is not a projection, or a newer one, is refused at every Open.
func refusesDamage(t *testing.T, fresh func(testing.TB) Place) {
	for sql, want := range map[string]error{
		`DELETE FROM projection_applied`:                        projection.ErrUnreadable,
		`DROP TABLE projection_applied`:                         projection.ErrUnreadable,
		`DROP TABLE projection_migration`:                       projection.ErrUnreadable,
		`UPDATE projection_applied SET digest = x'00'`:          projection.ErrUnreadable,
		`INSERT INTO projection_migration VALUES ('notes', 2)`:  projection.ErrNewerSchema,
		`INSERT INTO projection_migration VALUES ('later', 1)`:  projection.ErrNewerSchema,
		`UPDATE projection_applied SET idx = idx WHERE id != 1`: nil,
	} {
		at := fresh(t)
		s := Open(t, at)
		Add(t, s, 1, 5)
		err := s.Update(t.Context(), func(tx *projection.Tx) error {
			_, err := tx.Exec(sql)
			return err
		})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		for range 2 { // asking twice does not help
			s, err := projection.Open(t.Context(), options(at))
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", sql, err, want)
			}
			if err == nil {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}
