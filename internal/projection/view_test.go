package projection_test

import (
	"testing"

	"github.com/petrel-chat/petrel/internal/projection"
)

func TestExplainFullScan(t *testing.T) {
	t.Parallel()
	s := open(t, fresh(t))
	err := s.View(t.Context(), func(r *projection.Reader) error {
		for sql, want := range map[string]bool{
			selectNote:                                                                    false,
			countNotes:                                                                    true,
			`SELECT id FROM note WHERE id = ?`:                                            true, // the index begins with room
			`SELECT id FROM note WHERE body = ?`:                                          true,
			`SELECT id FROM note ORDER BY room LIMIT 10`:                                  true,
			`INSERT INTO note (room, seq, id) VALUES (?, ?, ?)`:                           false,
			`UPDATE note SET body = ? WHERE room = ? AND id = ?`:                          false,
			`DELETE FROM note WHERE seq = ?`:                                              true,
			`SELECT value FROM json_each(?)`:                                              false,
			`SELECT n.id FROM json_each(?) j JOIN note n ON n.room = j.value`:             false,
			`WITH a AS MATERIALIZED (SELECT id FROM note WHERE room = ?) SELECT * FROM a`: false,
			`WITH a AS MATERIALIZED (SELECT id FROM note) SELECT * FROM a`:                true,
			`SELECT 1`: false,
			`SELEC 1`:  true,
		} {
			if got, plan := projection.ExplainFullScan(r, sql); got != want {
				t.Errorf("%s: full scan %v, want %v\n%s", sql, got, want, plan)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
