package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/internal/node"
)

// CellParts are what Cell can measure, in its order.
var cellParts = [...]string{"commit", "delivery", "cost", "relay", "pause"}

// CellParts returns the names of what Cell can measure, in its order.
func CellParts() []string { return slices.Clone(cellParts[:]) }

// CellOptions of Cell.
type CellOptions struct {
	Dir      string        // on the disk to measure; empty: the system's temporary folder
	Duration time.Duration // per row
	Rounds   int           // of each row, one node and three in turn
	Parts    []string      // of CellParts
	Kills    int           // of a leader
	Leaves   int           // of a leader, in order
	Binary   string        // petrel, for the parts that need processes of their own
	Profile  string        // path for a CPU profile of commit; empty: none
	Progress io.Writer     // a line per row as it begins
	Build    node.Build
}

// CellReport is what Cell measured. Each row stands for Rounds runs of which the median of each number is shown.
type CellReport struct {
	At       time.Time  `json:"at"`
	Build    node.Build `json:"build"`
	Machine  string     `json:"machine"`
	CPUs     int        `json:"cpus"`
	Rounds   int        `json:"rounds"`
	Fsync    Row        `json:"fsync"` // the probe alone
	Commit   []CellRow  `json:"commit,omitempty"`
	Delivery []CellRow  `json:"delivery,omitempty"`
	Cost     []CostRow  `json:"cost,omitempty"`
	Relay    []RelayRow `json:"relay,omitempty"`
	Pauses   []PauseRow `json:"pauses,omitempty"`
}

// CellRow is a load on a cell of so many nodes.
type CellRow struct {
	Nodes int `json:"nodes"`
	Row
	// CPU of the whole process per operation, in microseconds: all nodes and the senders.
	CPU float64 `json:"cpu_us_per_op"`
	// Slowest and fastest round.
	LeastPerSec float64 `json:"least_per_second"`
	MostPerSec  float64 `json:"most_per_second"`
}

// Cell measures what a cell of three nodes costs beside a node that runs alone, both on this machine.
func Cell(ctx context.Context, o CellOptions) (*CellReport, error) {
	dir, err := os.MkdirTemp(o.Dir, "petrel-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer os.RemoveAll(dir)
	r := &CellReport{At: time.Now().UTC().Truncate(time.Second), Build: o.Build, Machine: machine(), CPUs: runtime.NumCPU(), Rounds: o.Rounds}
	if r.Fsync, err = fsyncAlone(ctx, dir, o.Duration); err != nil {
		return nil, err
	}
	for _, part := range cellParts {
		if !slices.Contains(o.Parts, part) {
			continue
		}
		switch part {
		case "commit":
			err = profiled(o.Profile, func() error { r.Commit, err = commitRows(ctx, dir, o); return err })
		case "delivery":
			r.Delivery, err = deliveryRows(ctx, dir, o)
		case "cost":
			r.Cost, err = costRows(ctx, dir, o)
		case "relay":
			r.Relay, err = relayRows(ctx, o)
		case "pause":
			r.Pauses, err = pauseRows(ctx, dir, o)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part, err)
		}
	}
	return r, ctx.Err()
}

func profiled(path string, do func() error) (err error) {
	if path == "" {
		return do()
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return do()
}

// house is nodes of one cell in this process; a house of one is a node without a cell.
type house struct {
	nodes []*node.Node
}

// newHouse starts the nodes and waits until all of them vote.
func newHouse(ctx context.Context, dir string, size int, o CellOptions) (h *house, err error) {
	h = &house{}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.stop())
		}
	}()
	data, err := os.MkdirTemp(dir, "house-")
	if err != nil {
		return h, err
	}
	for i := range size {
		cfg := node.DefaultConfig()
		cfg.Name = fmt.Sprint("n", i+1)
		cfg.Data, cfg.Listen, cfg.Admin = filepath.Join(data, cfg.Name), "127.0.0.1:0", "127.0.0.1:0"
		cfg.AppID, cfg.AppKey, cfg.AppSecret = string(benchApp), benchKey, benchSecret
		if size > 1 {
			cfg.Peer, cfg.Bus = "127.0.0.1:0", "127.0.0.1:0"
		}
		if i > 0 {
			first, err := h.nodes[0].Cell(ctx)
			if err != nil {
				return h, err
			}
			cfg.Join, cfg.CellSecretFile = first.Nodes[0].Peer, filepath.Join(data, "n1", "cell-secret")
		}
		n, err := node.Open(ctx, node.Options{Config: cfg, Build: o.Build, Logger: node.NewLogger(o.Progress, "error", "text")})
		if err != nil {
			return h, err
		}
		h.nodes = append(h.nodes, n)
		if err := n.Start(ctx); err != nil {
			return h, err
		}
	}
	return h, until(ctx, func() (bool, error) {
		info, err := h.nodes[0].Cell(ctx)
		return info.Voters == size && info.Leader != "", err
	})
}

// until asks again and again, until it is so or ctx ends.
func until(ctx context.Context, so func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := so(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// stop ends all nodes, each without regard for the others.
func (h *house) stop() error {
	var g errgroup.Group
	for _, n := range h.nodes {
		g.Go(n.Stop)
	}
	return g.Wait()
}

// leader is the node that leads, and the others.
func (h *house) leader(ctx context.Context) (leads *node.Node, others []*node.Node, err error) {
	err = until(ctx, func() (bool, error) {
		leads, others = nil, nil
		for _, n := range h.nodes {
			info, err := n.Cell(ctx)
			if err != nil {
				return false, err
			}
			for _, i := range info.Nodes {
				if i.Self && (i.Role == "leader" || len(h.nodes) == 1) {
					leads = n
				}
			}
			if leads != n {
				others = append(others, n)
			}
		}
		return leads != nil && len(others) == len(h.nodes)-1, nil
	})
	return leads, others, err
}

// sizes are compared with each other, in turn.
var sizes = [...]int{1, 3}

// commitRows loads the internal path of one node and of three.
func commitRows(ctx context.Context, dir string, o CellOptions) ([]CellRow, error) {
	all := newMedians()
	for round := range o.Rounds {
		for _, size := range sizes {
			fmt.Fprintf(o.Progress, "commit: %d of %d, %d nodes\n", round+1, o.Rounds, size)
			if err := commitRound(ctx, dir, size, o, all); err != nil {
				return nil, err
			}
		}
	}
	return all.rows(), nil
}

func commitRound(ctx context.Context, dir string, size int, o CellOptions, all *medians) (err error) {
	h, err := newHouse(ctx, dir, size, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	if err := settle(ctx, h.nodes[0], openSenders); err != nil {
		return err
	}
	leads, others, err := h.leader(ctx)
	if err != nil {
		return err
	}
	at := func(nodes ...*node.Node) call {
		return func(ctx context.Context, s int) error { return post(ctx, nodes[s%len(nodes)], s) }
	}
	type load struct {
		name          string
		senders, rate int
		do            call
	}
	loads := []load{{"closed 512, all nodes", 512, 0, at(h.nodes...)}, {"open 500/s, leader", openSenders, 500, at(leads)}}
	if size > 1 {
		loads = append(loads, load{"open 500/s, follower", openSenders, 500, at(others[0])}, load{"closed 512, leader", 512, 0, at(leads)})
	}
	for _, l := range loads {
		if err := caughtUp(ctx, h); err != nil {
			return err
		}
		p := startProbe(ctx, dir, 50*time.Millisecond)
		began := processCPU()
		var rec *recorder
		var took time.Duration
		if l.rate == 0 {
			rec, took = closedLoop(ctx, l.senders, o.Duration, l.do)
		} else {
			rec, took = openLoop(ctx, l.rate, l.senders, o.Duration, l.do)
		}
		cpu := processCPU() - began
		times, err := p.end()
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		row := CellRow{Nodes: size, Row: rec.row("desk", l.name, took)}
		row.FsyncP50, row.FsyncP99, row.FsyncMax = quantile(times, 0.5), quantile(times, 0.99), quantile(times, 1)
		row.Stall = p.stall.Microseconds()
		row.CPU = float64(cpu.Microseconds()) / float64(max(row.Done, 1))
		all.add(row)
	}
	return nil
}

// caughtUp waits until all nodes are where the first is, so that no load pays for the one before.
func caughtUp(ctx context.Context, h *house) error {
	return until(ctx, func() (bool, error) {
		info, err := h.nodes[0].Cell(ctx)
		return !slices.ContainsFunc(info.Nodes, func(n node.NodeInfo) bool { return n.Lag > 0 || n.Applied == 0 }), err
	})
}

// medians gathers rows by size and load over the rounds.
type medians struct {
	keys []string
	all  map[string][]CellRow
}

func newMedians() *medians { return &medians{all: map[string][]CellRow{}} }

func (m *medians) add(r CellRow) {
	key := fmt.Sprint(r.Load, "\x00", r.Nodes)
	if len(m.all[key]) == 0 {
		m.keys = append(m.keys, key)
	}
	m.all[key] = append(m.all[key], r)
}

// rows are the medians, one node beside three.
func (m *medians) rows() (out []CellRow) {
	slices.SortStableFunc(m.keys, func(a, b string) int { return strings.Compare(m.all[a][0].Load, m.all[b][0].Load) })
	for _, key := range m.keys {
		rounds := m.all[key]
		r := rounds[0]
		r.Done, r.Errors = 0, 0
		for _, x := range rounds {
			r.Done, r.Errors, r.Late = r.Done+x.Done, r.Errors+x.Errors, r.Late+x.Late
			if r.FirstErr == "" {
				r.FirstErr = x.FirstErr
			}
		}
		r.PerSec, r.CPU = middle(rounds, func(x CellRow) float64 { return x.PerSec }), middle(rounds, func(x CellRow) float64 { return x.CPU })
		r.LeastPerSec = slices.MinFunc(rounds, func(a, b CellRow) int { return cmpFloat(a.PerSec, b.PerSec) }).PerSec
		r.MostPerSec = slices.MaxFunc(rounds, func(a, b CellRow) int { return cmpFloat(a.PerSec, b.PerSec) }).PerSec
		for _, f := range []func(*Row) *int64{
			func(x *Row) *int64 { return &x.P50 }, func(x *Row) *int64 { return &x.P90 }, func(x *Row) *int64 { return &x.P99 }, func(x *Row) *int64 { return &x.P999 },
			func(x *Row) *int64 { return &x.Max }, func(x *Row) *int64 { return &x.FsyncP50 }, func(x *Row) *int64 { return &x.FsyncP99 },
			func(x *Row) *int64 { return &x.FsyncMax }, func(x *Row) *int64 { return &x.Stall },
		} {
			*f(&r.Row) = int64(middle(rounds, func(x CellRow) float64 { return float64(*f(&x.Row)) }))
		}
		out = append(out, r)
	}
	return out
}

func cmpFloat(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// middle is the median; of an even number, the lower one.
func middle[T any](all []T, of func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, x := range all {
		values[i] = of(x)
	}
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}
