package projection_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/projection"
)

var scrubbed = projection.Module{Name: "scrubbed", Local: []string{"here"}, Migrations: []string{`
CREATE TABLE pair (who TEXT, what BLOB, n INTEGER NOT NULL, more TEXT, PRIMARY KEY (who, what)) STRICT, WITHOUT ROWID;
CREATE TABLE plain (id INTEGER PRIMARY KEY, text TEXT) STRICT;
CREATE INDEX plain_text ON plain (text);
CREATE TABLE empty (a INTEGER, b INTEGER, PRIMARY KEY (b, a)) STRICT, WITHOUT ROWID;
CREATE TABLE here (anything TEXT) STRICT;`}}

func openScrubbed(t *testing.T, modules ...projection.Module) *projection.Store {
	t.Helper()
	s, err := projection.Open(t.Context(), projection.Options{Path: fresh(t), Modules: append([]projection.Module{scrubbed}, modules...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func exec(t *testing.T, s *projection.Store, sql string, args ...any) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *projection.Tx) error {
		_, err := tx.Exec(sql, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill writes n rows into each table, in an order that depends on step.
func fill(t *testing.T, s *projection.Store, n, step int) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *projection.Tx) error {
		for j := range n {
			i := j * step % n // every number once, as step and n have no divisor in common
			var what any = []byte(fmt.Sprint("b", i))
			if i%2 == 0 {
				what = []byte{}
			}
			if _, err := tx.Exec(`INSERT INTO pair VALUES (?, ?, ?, ?)`, fmt.Sprint("who", i), what, -i, nil); err != nil {
				return err
			}
			if _, err := tx.Exec(`INSERT INTO plain VALUES (?, ?)`, i-n/2, fmt.Sprint("text", i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// scrub walks all of a store, each call under limit at a state of its own.
func scrub(t *testing.T, s *projection.Store, limit projection.ScrubLimit) (all []projection.Range) {
	t.Helper()
	for from := (projection.Cursor{}); ; {
		n, err := s.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ranges, next, done, err := n.Scrub(t.Context(), from, limit)
		n.Release()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ranges...)
		if done {
			return all
		}
		if next.Table == from.Table && string(next.After) == string(from.After) {
			t.Fatalf("stands still at %+v", from)
		}
		from = next
	}
}

// TestScrub: the same rows give the same ranges, in whatever order they were written, in however many calls they are read.
func TestScrub(t *testing.T) {
	t.Parallel()
	a, b := openScrubbed(t), openScrubbed(t)
	fill(t, a, 100, 1)
	fill(t, b, 100, 37)
	exec(t, b, `INSERT INTO here VALUES ('only on one')`)
	exec(t, b, `DELETE FROM plain WHERE id = 3`)
	exec(t, b, `INSERT INTO plain VALUES (3, 'text53')`)
	want := scrub(t, a, projection.ScrubLimit{Rows: 40})
	if d := cmp.Diff(want, scrub(t, b, projection.ScrubLimit{Rows: 40, Ranges: 1})); d != "" {
		t.Errorf("(-a +b)\n%s", d)
	}
	var got []string
	for _, r := range want {
		got = append(got, fmt.Sprintf("%s (%s] (%s] %d %v", r.Table, projection.KeyText(r.After), projection.KeyText(r.Upto), r.Rows, r.Last))
	}
	if d := cmp.Diff([]string{
		`empty (] (] 0 true`,
		`pair (] ("who44",x''] 40 false`,
		`pair ("who44",x''] ("who80",x''] 40 false`,
		`pair ("who80",x''] (] 20 true`,
		`plain (] (-11] 40 false`,
		`plain (-11] (29] 40 false`,
		`plain (29] (] 20 true`,
	}, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if n := len(scrub(t, a, projection.ScrubLimit{Rows: 50})); n != 1+3+3 {
		t.Errorf("%d ranges of 50 rows: a full one is not known to be the last", n)
	}
}

// TestScrubFindsIt: whatever is changed in a row shows in its range and in no other.
func TestScrubFindsIt(t *testing.T) {
	t.Parallel()
	whole := openScrubbed(t)
	fill(t, whole, 60, 1)
	want := scrub(t, whole, projection.ScrubLimit{Rows: 20})
	for sql, first := range map[string]string{
		`UPDATE plain SET text = 'texu5' WHERE id = -25`:                                                       "plain 1",
		`UPDATE plain SET text = NULL WHERE id = 0`:                                                            "plain 2",
		`UPDATE pair SET more = '' WHERE who = 'who59'`:                                                        "pair 3",
		`UPDATE pair SET what = x'00' WHERE who = 'who0'`:                                                      "pair 1",
		`UPDATE pair SET n = 1 WHERE who = 'who1'`:                                                             "pair 1",
		`DELETE FROM plain WHERE id = 29`:                                                                      "plain 3",
		`INSERT INTO plain VALUES (30, NULL)`:                                                                  "plain 4",
		`INSERT INTO empty VALUES (0, 0)`:                                                                      "empty 1",
		`UPDATE plain SET text = (SELECT group_concat(id) FROM (SELECT id FROM plain LIMIT 1)) WHERE id = -29`: "plain 1",
	} {
		s := openScrubbed(t)
		fill(t, s, 60, 7)
		exec(t, s, sql)
		got := scrub(t, s, projection.ScrubLimit{Rows: 20})
		var differ []string
		number := map[string]int{}
		for i := range min(len(want), len(got)) {
			number[got[i].Table]++
			if !cmp.Equal(want[i], got[i]) {
				differ = append(differ, fmt.Sprint(got[i].Table, " ", number[got[i].Table]))
			}
		}
		if len(differ) != 1 || differ[0] != first {
			t.Errorf("%s: differs in %q, want %s", sql, differ, first)
		}
	}
}

// TestScrubRefuses: a table without a key of its own, and a cursor that is none.
func TestScrubRefuses(t *testing.T) {
	t.Parallel()
	s := openScrubbed(t, projection.Module{Name: "keyless", Migrations: []string{`CREATE TABLE loose (a TEXT, PRIMARY KEY (a)) STRICT`}})
	n, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Release()
	if _, _, _, err := n.Scrub(t.Context(), projection.Cursor{}, projection.ScrubLimit{}); err == nil || !strings.Contains(err.Error(), "loose") {
		t.Errorf("a table without a key: %v", err)
	}
	o := openScrubbed(t)
	m, err := o.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := m.Scrub(t.Context(), projection.Cursor{Table: "pair", After: []byte{9, 9}}, projection.ScrubLimit{}); err == nil {
		t.Error("a cursor that is no key is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, _, err := m.Scrub(ctx, projection.Cursor{}, projection.ScrubLimit{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller is gone: %v", err)
	}
	m.Release()
	if _, _, _, err := m.Scrub(t.Context(), projection.Cursor{}, projection.ScrubLimit{}); err == nil {
		t.Error("a released snapshot is scrubbed")
	}
}

// BenchmarkScrub: ns/op is per row.
func BenchmarkScrub(b *testing.B) {
	s, err := projection.Open(b.Context(), projection.Options{Path: fresh(b), Modules: []projection.Module{scrubbed}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	err = s.Update(b.Context(), func(tx *projection.Tx) error {
		for i := range b.N {
			if _, err := tx.Exec(`INSERT INTO plain VALUES (?, ?)`, i, "a message of some length, as people write them"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	n, err := s.Snapshot(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer n.Release()
	b.ResetTimer()
	for from, done := (projection.Cursor{}), false; !done; {
		if _, from, done, err = n.Scrub(b.Context(), from, projection.ScrubLimit{}); err != nil {
			b.Fatal(err)
		}
	}
}
