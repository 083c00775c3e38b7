package bench

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestOpenLoopCountsFromDue: a server that stands still is seen by every operation that was due meanwhile, not
// only by the one that a sender had begun. All bounds are lower ones: a slow machine changes nothing.
func TestOpenLoopCountsFromDue(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	rec, took := openLoop(t.Context(), 100, 1, 500*time.Millisecond, func(context.Context, int) error {
		if n.Add(1) == 10 {
			<-time.After(300 * time.Millisecond)
		}
		return nil
	})
	row := rec.row("", "", took)
	if row.Done != 50 || row.Max < 300_000 {
		t.Errorf("%+v: want 50 done, the worst at least 300 ms", row)
	}
	if row.Late < 20 {
		t.Errorf("%d operations are called late, about 29 were due during the stall", row.Late)
	}
}

func TestClosedLoopCountsErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		rec, took := closedLoop(t.Context(), 4, time.Second, func(context.Context, int) error {
			time.Sleep(10 * time.Millisecond)
			if n.Add(1)%10 == 0 {
				return errors.New("every tenth")
			}
			return nil
		})
		row := rec.row("", "", took)
		if total := row.Done + row.Errors; total < 390 || total > 410 || row.Errors != total/10 || row.FirstErr != "every tenth" {
			t.Errorf("%+v: want about 400 operations, every tenth an error", row)
		}
	})
}

// TestCommit runs every layer for a moment, so that the benchmark does not rot.
func TestCommit(t *testing.T) {
	t.Parallel()
	report, err := Commit(t.Context(), Options{
		Dir: t.TempDir(), Duration: 200 * time.Millisecond, Layers: []string{"fold", "desk", "http", "socket"}, Progress: &strings.Builder{},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Rows) != 3+3*4 {
		t.Errorf("%d rows", len(report.Rows))
	}
	for _, r := range report.Rows {
		if r.Done == 0 || r.Errors > 0 {
			t.Errorf("%s, %s: %d done, %d errors, the first: %s", r.Layer, r.Load, r.Done, r.Errors, r.FirstErr)
		}
	}
	var table strings.Builder
	if err := report.Write(&table); err != nil || !strings.Contains(table.String(), "closed 512") {
		t.Errorf("the table is %q, %v", table.String(), err)
	}
}
