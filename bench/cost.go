package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/petrel-chat/petrel/bench/rig"
)

// CostRow is what the processes of a cell take. Numbers of a cell are sums over its nodes.
type CostRow struct {
	Nodes int `json:"nodes"`
	// After the start, and after the posts of the row.
	IdleRSS int64 `json:"idle_rss_bytes"`
	RSS     int64 `json:"rss_bytes"`
	Heap    int64 `json:"heap_bytes"` // in use, after the posts
	// Idle is the share of one processor with nobody there, in percent.
	Idle float64 `json:"idle_cpu_percent"`
	// Post is the processor time of one message over HTTP at 500/s with nobody listening, in microseconds, without what idles.
	Post float64 `json:"post_cpu_us"`
	// Delivery is that of one delivery to a socket: 50 posts a second to so many subscribers, without what the same posts take
	// with nobody there.
	Delivery    float64 `json:"delivery_cpu_us"`
	Subscribers int     `json:"subscribers"`
	Delivered   int     `json:"delivered"`
	Bus         float64 `json:"bus_frames_per_second"` // all kinds, sent by all nodes, at 500 posts a second
}

// subscribers of the delivery load, spread over the nodes.
const subscribers = 300

func costRows(ctx context.Context, dir string, o CellOptions) ([]CostRow, error) {
	rounds := map[int][]CostRow{}
	for round := range o.Rounds {
		for _, size := range sizes {
			fmt.Fprintf(o.Progress, "cost: %d of %d, %d nodes\n", round+1, o.Rounds, size)
			row, err := costRound(ctx, dir, size, o)
			if err != nil {
				return nil, err
			}
			rounds[size] = append(rounds[size], row)
		}
	}
	var rows []CostRow
	for _, size := range sizes {
		all := rounds[size]
		r := all[0]
		r.IdleRSS, r.RSS = int64(middle(all, func(c CostRow) float64 { return float64(c.IdleRSS) })), int64(middle(all, func(c CostRow) float64 { return float64(c.RSS) }))
		r.Heap, r.Idle = int64(middle(all, func(c CostRow) float64 { return float64(c.Heap) })), middle(all, func(c CostRow) float64 { return c.Idle })
		r.Post, r.Delivery = middle(all, func(c CostRow) float64 { return c.Post }), middle(all, func(c CostRow) float64 { return c.Delivery })
		r.Bus = middle(all, func(c CostRow) float64 { return c.Bus })
		rows = append(rows, r)
	}
	return rows, nil
}

func costRound(ctx context.Context, dir string, size int, o CellOptions) (row CostRow, err error) {
	row = CostRow{Nodes: size, Subscribers: subscribers}
	v, err := newVillage(ctx, dir, size, o)
	if err != nil {
		return row, err
	}
	defer v.stop()
	if err := v.openRooms(v.nodes[0]); err != nil {
		return row, err
	}
	tokens, err := v.tokens(64)
	if err != nil {
		return row, err
	}
	transport := &http.Transport{MaxIdleConns: 512, MaxIdleConnsPerHost: 512}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	do := func(ctx context.Context, s int) error {
		return postHTTP(ctx, client, "http://"+v.nodes[s%size].owner.Listen, "Bearer "+tokens[s], room(s))
	}
	for s := range tokens { // everybody joins first
		if err := do(ctx, s); err != nil {
			return row, err
		}
	}

	// each runs a load and returns what the nodes' processors and buses did meanwhile.
	each := func(load func() error) (cpu time.Duration, frames float64, now metrics, err error) {
		before, err := v.sum(ctx)
		if err != nil {
			return 0, 0, nil, err
		}
		if err := load(); err != nil {
			return 0, 0, nil, err
		}
		now, err = v.sum(ctx)
		d := now.since(before)
		for _, to := range []string{"all", "bucket", "node"} {
			frames += d[`petrel_bus_sent_total{to="`+to+`"}`]
		}
		return time.Duration(d["process_cpu_seconds_total"] * 1e9), frames, now, err
	}
	wait := func() error { return rig.Pause(ctx, o.Duration) }
	idle, _, now, err := each(wait)
	if err != nil {
		return row, err
	}
	row.IdleRSS = int64(now["process_resident_memory_bytes"])
	row.Idle = 100 * idle.Seconds() / o.Duration.Seconds()
	run := func(rate int) (rec *recorder, took time.Duration) {
		return openLoop(ctx, rate, len(tokens), o.Duration, do)
	}

	var rec *recorder
	var took time.Duration
	cpu, frames, now, err := each(func() error { rec, took = run(500); return ctx.Err() })
	if err != nil {
		return row, err
	}
	posts := rec.row("", "", took)
	if posts.Errors > 0 {
		return row, errors.New(posts.FirstErr)
	}
	background := time.Duration(row.Idle / 100 * float64(took))
	row.Post = float64((cpu - background).Microseconds()) / float64(posts.Done)
	row.RSS, row.Heap, row.Bus = int64(now["process_resident_memory_bytes"]), int64(now["go_memstats_heap_inuse_bytes"]), frames/took.Seconds()

	unheard, _, _, err := each(func() error { rec, took = run(50); return ctx.Err() })
	if err != nil {
		return row, err
	}
	unheard -= time.Duration(row.Idle / 100 * float64(took))

	var delivered atomic.Int64
	for i := range subscribers {
		p := v.nodes[i%size]
		s, err := subscribeTo(ctx, p.owner.Listen, tokens[i%len(tokens)], benchRooms, func(string, time.Time) { delivered.Add(1) })
		if err != nil {
			return row, err
		}
		defer s.close()
	}
	calm, _, _, err := each(wait) // with their pings and presence
	if err != nil {
		return row, err
	}
	cpu, _, _, err = each(func() error {
		rec, took = run(50)
		want := rec.row("", "", took).Done * subscribers
		return arrive(ctx, func() int { return max(0, want-int(delivered.Load())) })
	})
	if err != nil {
		return row, err
	}
	posts = rec.row("", "", took)
	row.Delivered = int(delivered.Load())
	rest := cpu - time.Duration(calm.Seconds()/o.Duration.Seconds()*float64(took)) - unheard
	row.Delivery = float64(rest.Microseconds()) / float64(max(row.Delivered, 1))
	return row, nil
}

// sum adds the metrics of all nodes.
func (v *village) sum(ctx context.Context) (metrics, error) {
	all := metrics{}
	for _, p := range v.nodes {
		m, err := scrape(ctx, p.owner.Admin)
		if err != nil {
			return nil, err
		}
		for name, value := range m {
			all[name] += value
		}
	}
	return all, nil
}
