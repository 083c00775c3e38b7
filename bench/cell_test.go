package bench

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/petreltest"
)

func TestMain(m *testing.M) {
	defer petreltest.RemoveBinary()
	m.Run()
}

// TestCell runs every part for a moment, so that the benchmark does not rot. Nothing is said about how fast anything is.
func TestCell(t *testing.T) {
	t.Parallel()
	o := CellOptions{
		Dir: t.TempDir(), Duration: 200 * time.Millisecond, Rounds: 1, Parts: []string{"commit", "delivery", "relay"}, Kills: 1, Leaves: 1, Progress: t.Output(),
	}
	if !testing.Short() {
		o.Parts, o.Binary = CellParts(), petreltest.Binary(t)
	}
	r, err := Cell(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Concat(r.Commit, r.Delivery) {
		if c.Errors > 0 {
			t.Errorf("%s, %d nodes: %d errors, the first: %s", c.Load, c.Nodes, c.Errors, c.FirstErr)
		}
	}
	if len(r.Commit) != 2+4 || len(r.Delivery) < 6 || len(r.Relay) != 3 {
		t.Errorf("%d rows of commit, %d of delivery, %d of relay", len(r.Commit), len(r.Delivery), len(r.Relay))
	}
	for _, c := range r.Commit {
		if c.Done == 0 {
			t.Errorf("%s, %d nodes: nothing was done", c.Load, c.Nodes)
		}
	}
	if !testing.Short() {
		if len(r.Cost) != 2 || r.Cost[1].Delivered == 0 || r.Cost[1].RSS == 0 || len(r.Pauses) != 2 || r.Pauses[0].Worst == 0 {
			t.Errorf("cost %+v, pauses %+v", r.Cost, r.Pauses)
		}
	}
	var table strings.Builder
	if err := r.Write(&table); err != nil || !strings.Contains(table.String(), "open 500/s, follower") {
		t.Errorf("the table is %q, %v", table.String(), err)
	}
}

// TestQuantilesOfScrapes reads a histogram that was scraped twice.
func TestQuantilesOfScrapes(t *testing.T) {
	t.Parallel()
	before := metrics{`x_bucket{node="a",le="0.001"}`: 5, `x_bucket{node="a",le="+Inf"}`: 5}
	after := metrics{
		`x_bucket{node="a",le="0.001"}`: 55, `x_bucket{node="a",le="0.002"}`: 94, `x_bucket{node="a",le="+Inf"}`: 95,
		`x_bucket{node="b",le="0.001"}`: 10, `x_bucket{node="b",le="0.002"}`: 10, `x_bucket{node="b",le="+Inf"}`: 10, "y": 1,
	}
	r := after.since(before).row("x", "", "", time.Second)
	if r.Done != 100 || r.P50 != 1000 || r.P90 != 2000 || r.Max != 2000 {
		t.Errorf("%+v", r)
	}
}

func TestLongestGap(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	w := &writer{acks: []time.Time{at(10), at(0), at(30), at(35), at(20)}}
	if got := w.gap(time.Time{}, at(100)); got != 10*time.Millisecond {
		t.Errorf("the longest gap is %s", got)
	}
	if got := w.gap(at(30), at(100)); got != 5*time.Millisecond {
		t.Errorf("after 30 ms it is %s", got)
	}
	if w.since(at(20)) != 2 {
		t.Errorf("%d after 20 ms", w.since(at(20)))
	}
}
