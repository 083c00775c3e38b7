// Package projectiontest holds the contract suite that a projection passes wherever it lies.
package projectiontest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Place says where one projection lies: it sets Options.Path or Options.Memory, at every call the same.
type Place func(*projection.Options)

// Run runs the whole suite; fresh makes a Place where nothing lies yet.
func Run(t *testing.T, fresh func(t testing.TB) Place) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, fresh func(testing.TB) Place)
	}{
		{"an update moves rows and position together", updateMovesRowsAndPositionTogether},
		{"an update stores nothing after an error", updateStoresNothingAfterAnError},
		{"no room", noRoom},
		{"migrations", migrations},
		{"what is not a projection is refused", refusesDamage},
		{"the budget of a view", budget},
		{"the wait for a place is part of the budget", budgetWhileWaiting},
		{"a view is a snapshot and holds up no update", viewIsASnapshot},
		{"a view returns what its function returned", viewReturnsFnsError},
		{"readers cannot write", readersCannotWrite},
		{"arguments", arguments},
		{"columns", columns},
		{"nested queries", nestedQuery},
		{"many statements", manyStatements},
		{"concurrent reads and writes", concurrentReadsAndWrites},
		{"a snapshot is pinned", snapshotIsPinned},
		{"a snapshot stops", snapshotStops},
		{"restore migrates", restoreMigrates},
		{"restore refuses", restoreRefuses},
		{"restore under readers", restoreUnderReaders},
		{"closed", closed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.run(t, fresh)
		})
	}
}

// Notes is a small module to write into.
func Notes() projection.Module {
	return projection.Module{Name: "notes", Migrations: []string{
		`CREATE TABLE note (room TEXT NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL, body BLOB, PRIMARY KEY (room, seq)) STRICT, WITHOUT ROWID;
	 CREATE UNIQUE INDEX note_id ON note (room, id);`,
	}}
}

// Statements over Notes.
const (
	InsertNote = `INSERT INTO note (room, seq, id, body) VALUES (?, ?, ?, ?)`
	SelectNote = `SELECT id, body FROM note WHERE room = ? AND seq > ? ORDER BY seq`
	CountNotes = `SELECT count(*) FROM note`
)

// options of a projection that lies there and holds notes.
func options(at Place, change ...func(*projection.Options)) projection.Options {
	o := projection.Options{Modules: []projection.Module{Notes()}, Budget: projection.Budget{Time: time.Minute}} // a slow disk is no failure
	at(&o)
	for _, c := range change {
		c(&o)
	}
	return o
}

// Open opens a projection of Notes, until the test ends.
func Open(t testing.TB, at Place, change ...func(*projection.Options)) *projection.Store {
	t.Helper()
	s, err := projection.Open(t.Context(), options(at, change...))
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

// Add inserts the notes from … to in the room r, and moves the position to the last.
func Add(t testing.TB, s *projection.Store, from, to int) {
	t.Helper()
	err := s.Update(context.Background(), func(tx *projection.Tx) error {
		for i := from; i <= to; i++ {
			if _, err := tx.Exec(InsertNote, petrel.RoomID("r"), i, fmt.Sprint("id", i), []byte("body")); err != nil {
				return err
			}
		}
		return tx.SetApplied(At(to))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// At is the position that Add stores with note i.
func At(i int) petrel.Applied {
	return petrel.Applied{Index: uint64(i), Hash: petrel.Hash{byte(i)}, Mark: uint64(2 * i), Digest: petrel.Hash{1, byte(i)}, Epoch: "e1"}
}

// Count returns how many notes there are.
func Count(t testing.TB, s *projection.Store) (n int) {
	t.Helper()
	err := s.View(context.Background(), func(r *projection.Reader) error {
		_, err := r.Get(CountNotes, func(row *projection.Row) { n = int(row.Int(0)) })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
