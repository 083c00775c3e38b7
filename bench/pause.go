package bench

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// PauseRow is for how long nobody's write was acknowledged when the leader went, seen by clients of the nodes that stay.
type PauseRow struct {
	What    string  `json:"what"` // kill -9, SIGTERM
	Times   []int64 `json:"times_us"`
	Median  int64   `json:"median_us"`
	Worst   int64   `json:"worst_us"`
	Refused int     `json:"refused"`      // writes that got an error in all runs, most of them 503 while there was no leader
	Before  int64   `json:"usual_gap_us"` // the longest time between two acknowledgements before, median: what a pause is to be held against
}

// pauseEvery is how often a client of each node that stays begins a write; each write goes on until it is answered.
const pauseEvery = 5 * time.Millisecond

// maxUnderWay are a client's writes at once: as many as it begins in five seconds.
const maxUnderWay = 1024

// pauseRows kills leaders, and lets them leave in order.
func pauseRows(ctx context.Context, dir string, o CellOptions) ([]PauseRow, error) {
	v, err := newVillage(ctx, dir, 3, o)
	if err != nil {
		return nil, err
	}
	defer v.stop()
	if err := v.openRooms(v.nodes[0]); err != nil {
		return nil, err
	}
	tokens, err := v.tokens(2)
	if err != nil {
		return nil, err
	}
	var rows []PauseRow
	for _, way := range []struct {
		what  string
		times int
		end   func(*process) error
	}{{"leader killed (kill -9)", o.Kills, (*process).kill}, {"leader leaves (SIGTERM)", o.Leaves, (*process).terminate}} {
		row := PauseRow{What: way.what}
		var before []int64
		for i := range way.times {
			fmt.Fprintf(o.Progress, "pause: %s, %d of %d\n", way.what, i+1, way.times)
			p, err := v.pause(tokens, way.end)
			if err != nil {
				return nil, err
			}
			row.Times, row.Refused = append(row.Times, p.longest.Microseconds()), row.Refused+p.refused
			before = append(before, p.before.Microseconds())
		}
		if len(row.Times) > 0 {
			row.Median = int64(middle(row.Times, func(t int64) float64 { return float64(t) }))
			row.Before = int64(middle(before, func(t int64) float64 { return float64(t) }))
			row.Worst = slices.Max(row.Times)
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// onePause is what one loss of a leader came to.
type onePause struct {
	longest, before time.Duration
	refused         int
}

// pause ends the leader while clients write through both others, and starts it again.
func (v *village) pause(tokens []string, end func(*process) error) (out onePause, err error) {
	leads, others, err := v.leader()
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	writers := make([]*writer, len(others))
	var wg sync.WaitGroup
	for i, p := range others {
		writers[i] = &writer{base: "http://" + p.owner.Listen, auth: "Bearer " + tokens[i], user: i}
		wg.Go(func() { writers[i].run(ctx) })
	}
	enough := func(n int) func() (bool, error) {
		return func() (bool, error) {
			for _, w := range writers {
				if w.count() < n {
					return false, nil
				}
			}
			return true, nil
		}
	}
	if err := until(ctx, enough(200)); err != nil { // about a second of calm
		return out, err
	}
	at := time.Now()
	if err := end(leads); err != nil {
		return out, err
	}
	<-leads.exited
	gone := time.Now()
	// Until writes through each of them have gone on for a while.
	err = until(ctx, func() (bool, error) {
		for _, w := range writers {
			if w.since(gone) < 200 {
				return false, nil
			}
		}
		return true, nil
	})
	cancel()
	wg.Wait()
	if err != nil {
		return out, err
	}
	for _, w := range writers {
		out.longest = max(out.longest, w.gap(at, time.Now()))
		out.before = max(out.before, w.gap(time.Time{}, at))
		out.refused += w.refused
	}
	if err := v.start(leads); err != nil {
		return out, err
	}
	if err := v.whole(); err != nil {
		return out, err
	}
	return out, nil
}

// writer begins a write every few milliseconds through one node, and notes when each was acknowledged.
type writer struct {
	base, auth string
	user       int

	mu      sync.Mutex // guards what follows
	acks    []time.Time
	refused int
}

func (w *writer) run(ctx context.Context) {
	transport := &http.Transport{MaxIdleConns: 2048, MaxIdleConnsPerHost: 2048}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	tick := time.NewTicker(pauseEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	under := make(chan struct{}, maxUnderWay)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case under <- struct{}{}:
		default:
			continue
		}
		wg.Go(func() {
			defer func() { <-under }()
			err := postHTTP(ctx, client, w.base, w.auth, room(w.user))
			at := time.Now()
			w.mu.Lock()
			defer w.mu.Unlock()
			if err == nil {
				w.acks = append(w.acks, at)
			} else if ctx.Err() == nil {
				w.refused++
			}
		})
	}
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acks)
}

func (w *writer) since(t time.Time) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, at := range w.acks {
		if at.After(t) {
			n++
		}
	}
	return n
}

// gap is the longest time between two acknowledgements of which the second lies between from and to.
func (w *writer) gap(from, to time.Time) (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortFunc(w.acks, time.Time.Compare)
	for i := 1; i < len(w.acks); i++ {
		if at := w.acks[i]; at.After(from) && !at.After(to) {
			longest = max(longest, at.Sub(w.acks[i-1]))
		}
	}
	return longest
}
