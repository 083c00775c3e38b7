package projectiontest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// forever never ends by itself and returns no row.
const forever = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0`

type (
	named  string
	level  uint8
	blob   []byte
	truth  bool
	signed int16
)

func budget(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t), func(o *projection.Options) { o.Readers = 1 })
	Add(t, s, 1, 100)
	all := func(r *projection.Reader) error {
		return r.Query(SelectNote, func(*projection.Row) error { return nil }, "r", 0)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name   string
		ctx    context.Context
		budget projection.Budget
		fn     func(*projection.Reader) error
		want   petrel.Code
	}{
		{"within", t.Context(), projection.Budget{Steps: 102}, all, ""},
		{"rows", t.Context(), projection.Budget{Steps: 101}, all, petrel.CodeReadBudget},
		{"statements", t.Context(), projection.Budget{Steps: 2}, func(r *projection.Reader) error {
			for range 2 {
				if _, err := r.Get(SelectNote, func(*projection.Row) {}, "none", 0); err != nil {
					return err
				}
			}
			return nil
		}, petrel.CodeReadBudget},
		{"swallowed", t.Context(), projection.Budget{Steps: 10}, func(r *projection.Reader) error { _ = all(r); return nil }, petrel.CodeReadBudget},
		{"time", t.Context(), projection.Budget{Time: time.Millisecond}, func(r *projection.Reader) error {
			return r.Query(forever, func(*projection.Row) error { return nil })
		}, petrel.CodeReadBudget},
		{"the caller's own deadline", over, projection.Budget{}, all, petrel.CodeTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) { // one after the other: the pool has one place
			err := s.ViewBudget(tc.ctx, tc.budget, tc.fn)
			if got := petrel.CodeOf(err); got != tc.want {
				t.Fatalf("%v, want code %q", err, tc.want)
			}
			var e *petrel.Error
			if tc.want == petrel.CodeReadBudget && (!errors.As(err, &e) || e.RetryAfter != time.Second) {
				t.Errorf("%+v does not say when to come back", e)
			}
			if n := Count(t, s); n != 100 { // and the connection is as good as before
				t.Errorf("%d notes", n)
			}
		})
	}
}

// budgetWhileWaiting: the wait for a place is part of the budget.
func budgetWhileWaiting(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t), func(o *projection.Options) { o.Readers = 1 })
	err := s.View(t.Context(), func(*projection.Reader) error {
		inner := make(chan error)
		go func() {
			inner <- s.ViewBudget(t.Context(), projection.Budget{Time: time.Millisecond}, func(*projection.Reader) error { return nil })
		}()
		return <-inner
	})
	if petrel.CodeOf(err) != petrel.CodeReadBudget {
		t.Errorf("%v", err)
	}
}

func viewIsASnapshot(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	Add(t, s, 1, 1)
	err := s.View(t.Context(), func(r *projection.Reader) error {
		for i := 2; i <= 4; i++ {
			var n int64
			_, err := r.Get(CountNotes, func(row *projection.Row) { n = row.Int(0) })
			a, err2 := r.Applied()
			if err := errors.Join(err, err2); err != nil {
				return err
			}
			if n != 1 || a != At(1) {
				t.Errorf("%d notes at %d in the middle of a View", n, a.Index)
			}
			Add(t, s, i, i)
		}
		return nil
	})
	if err != nil || Count(t, s) != 4 {
		t.Errorf("%v, %d notes afterwards", err, Count(t, s))
	}
}

func viewReturnsFnsError(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	Add(t, s, 1, 3)
	boom := errors.New("boom")
	rows := 0
	err := s.View(t.Context(), func(r *projection.Reader) error {
		return r.Query(SelectNote, func(*projection.Row) error { rows++; return boom }, "r", 0)
	})
	if err != boom || rows != 1 { //nolint:errorlint // as it is, not wrapped
		t.Errorf("%v after %d rows", err, rows)
	}
	func() {
		defer func() { _ = recover() }()
		_ = s.View(t.Context(), func(r *projection.Reader) error {
			return r.Query(SelectNote, func(*projection.Row) error { panic("in the middle of rows") }, "r", 0)
		})
	}()
	if n := Count(t, s); n != 3 {
		t.Errorf("%d notes after a panic", n)
	}
}

func readersCannotWrite(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	for _, sql := range []string{`DELETE FROM note`, `CREATE TABLE x (y)`, `PRAGMA user_version = 3`} {
		err := s.View(t.Context(), func(r *projection.Reader) error {
			return r.Query(sql, func(*projection.Row) error { return nil })
		})
		if err == nil {
			t.Errorf("%s: no error", sql)
		}
	}
}

func arguments(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	for _, tc := range []struct {
		arg  any
		want string
	}{
		{nil, "null "},
		{"text", "text text"},
		{"", "text "},
		{"a\x00b", "text a\x00b"},
		{named("n"), "text n"},
		{petrel.RoomID("r"), "text r"},
		{petrel.UserID("u"), "text u"},
		{petrel.AppID("a"), "text a"},
		{petrel.MessageID("m"), "text m"},
		{petrel.CommandID("c"), "text c"},
		{petrel.RequestID("q"), "text q"},
		{petrel.Epoch("e"), "text e"},
		{petrel.NodeID("n1"), "text n1"},
		{petrel.ActorApp, "integer 2"},
		{7, "integer 7"},
		{int64(math.MinInt64), "integer -9223372036854775808"},
		{uint64(math.MaxInt64), "integer 9223372036854775807"},
		{level(200), "integer 200"},
		{signed(-3), "integer -3"},
		{true, "integer 1"},
		{truth(false), "integer 0"},
		{[]byte("b"), "blob b"},
		{[]byte{}, "blob "},
		{[]byte(nil), "null "},
		{blob("b"), "blob b"},
		{petrel.Hash{'h'}, "blob h" + strings.Repeat("\x00", 31)},
		{petrel.EntryID{'i'}, "blob i" + strings.Repeat("\x00", 15)},
	} {
		var got string
		err := s.View(t.Context(), func(r *projection.Reader) error {
			_, err := r.Get(`SELECT typeof(?1), ?1`, func(row *projection.Row) { got = row.Text(0) + " " + row.Text(1) }, tc.arg)
			return err
		})
		if err != nil || got != tc.want {
			t.Errorf("%T %v: %q, want %q (%v)", tc.arg, tc.arg, got, tc.want, err)
		}
	}
	for _, arg := range []any{1.5, float32(1), uint64(math.MaxUint64), []int{1}, struct{}{}, time.Now(), new(int)} {
		err := s.View(t.Context(), func(r *projection.Reader) error {
			_, err := r.Get(`SELECT ?`, func(*projection.Row) {}, arg)
			return err
		})
		if err == nil {
			t.Errorf("%T: no error", arg)
		}
	}
	for _, args := range [][]any{{}, {1, 2}} {
		err := s.View(t.Context(), func(r *projection.Reader) error {
			return r.Query(`SELECT ?`, func(*projection.Row) error { return nil }, args...)
		})
		if err == nil {
			t.Errorf("%d arguments for one parameter: no error", len(args))
		}
	}
}

func columns(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	var got []any
	err := s.View(t.Context(), func(r *projection.Reader) error {
		_, err := r.Get(`SELECT 7, 'x', x'0102', NULL`, func(row *projection.Row) {
			got = []any{row.Int(0), row.Uint(0), row.Bool(0), row.Text(1), row.Bytes(2), row.IsNull(3), row.Bytes(3), row.Text(3), row.Int(3), row.Bool(3), row.IsNull(0)}
		})
		return err
	})
	want := []any{int64(7), uint64(7), true, "x", []byte{1, 2}, true, []byte(nil), "", int64(0), false, false}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// nestedQuery runs a statement within its own rows.
func nestedQuery(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t))
	Add(t, s, 1, 3)
	var got []string
	err := s.View(t.Context(), func(r *projection.Reader) error {
		return r.Query(SelectNote, func(outer *projection.Row) error {
			return r.Query(SelectNote, func(inner *projection.Row) error {
				got = append(got, outer.Text(0)+inner.Text(0))
				return nil
			}, "r", 1)
		}, "r", 1)
	})
	if d := cmp.Diff([]string{"id2id2", "id2id3", "id3id2", "id3id3"}, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// manyStatements: SQL made at run time does not fill the cache of statements without end.
func manyStatements(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t), func(o *projection.Options) { o.Readers = 1 })
	err := s.View(t.Context(), func(r *projection.Reader) error {
		for i := range 1500 {
			if _, err := r.Get(fmt.Sprint("SELECT ", i), func(*projection.Row) {}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func concurrentReadsAndWrites(t *testing.T, fresh func(testing.TB) Place) {
	s := Open(t, fresh(t), func(o *projection.Options) { o.CheckpointBytes = 64 << 10 })
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				err := s.ViewBudget(context.Background(), projection.Budget{Time: time.Minute}, func(r *projection.Reader) error {
					var n uint64
					_, err := r.Get(CountNotes, func(row *projection.Row) { n = row.Uint(0) })
					a, err2 := r.Applied()
					if a.Index != n {
						t.Errorf("%d notes at %d", n, a.Index)
					}
					return errors.Join(err, err2)
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := 0; i < 2000; i += 10 {
		Add(t, s, i+1, i+10)
	}
	close(done)
	wg.Wait()
}
