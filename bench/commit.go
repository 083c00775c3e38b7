// Package bench measures Petrel from inside its own process: the durable path through each of its layers,
// beside a probe of the disk. What it prints is evidence, so it says on what machine and of what commit.
//
// # Invariants
//
//   - It starts a node of its own in a fresh folder and touches nobody else's data.
//   - Latencies of an open loop count from when an operation was due, not from when a sender was free.
//   - An operation that fails is counted as an error and never as a fast one.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Options of Commit.
type Options struct {
	Dir      string        // on the disk to measure; empty: the system's temporary folder
	Duration time.Duration // per row
	Layers   []string      // fold, desk, http, socket
	Profile  string        // path for a CPU profile of the rows; empty: none
	Progress io.Writer     // a line per row as it begins
	Build    node.Build
}

// Report is what Commit measured.
type Report struct {
	At      time.Time  `json:"at"`
	Build   node.Build `json:"build"`
	Machine string     `json:"machine"`
	CPUs    int        `json:"cpus"`
	Fsync   Row        `json:"fsync"` // the probe alone, as fast as it goes
	Rows    []Row      `json:"rows"`
}

const (
	benchApp    = petrel.AppID("1")
	benchKey    = "benchkey"
	benchSecret = "ssssssssssssssssssssssssssssssss"
	benchRooms  = 16
	// openSenders may wait at once in an open loop: 4,000/s with a disk that stalls for a quarter of a second.
	openSenders = 1024
)

// text is of the length that people's messages have on average in the IRC days of the tests: 60 bytes.
const text = "I moved the notes into the shared folder, please have a look"

// Commit runs the benchmark.
func Commit(ctx context.Context, o Options) (*Report, error) {
	dir, err := os.MkdirTemp(o.Dir, "petrel-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer os.RemoveAll(dir)
	r := &Report{At: time.Now().UTC().Truncate(time.Second), Build: o.Build, Machine: machine(), CPUs: runtime.NumCPU()}
	if r.Fsync, err = fsyncAlone(ctx, dir, o.Duration); err != nil {
		return nil, err
	}
	if o.Profile != "" {
		f, err := os.Create(o.Profile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	if slices.Contains(o.Layers, "fold") {
		rows, err := foldAlone(ctx, dir, o)
		if err != nil {
			return nil, err
		}
		r.Rows = append(r.Rows, rows...)
	}
	for _, layer := range []string{"desk", "http", "socket"} {
		if !slices.Contains(o.Layers, layer) {
			continue
		}
		rows, err := layerRows(ctx, dir, layer, o)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", layer, err)
		}
		r.Rows = append(r.Rows, rows...)
	}
	return r, ctx.Err()
}

func fsyncAlone(ctx context.Context, dir string, d time.Duration) (Row, error) {
	p := startProbe(ctx, dir, 0)
	select {
	case <-ctx.Done():
	case <-time.After(min(d, 3*time.Second)):
	case <-p.done:
	}
	times, err := p.end()
	rec := &recorder{lists: [][]time.Duration{times}}
	return rec.row("fsync", "alone", min(d, 3*time.Second)), err
}

// layerRows starts a node for one layer, so that every layer meets a projection of the same size.
func layerRows(ctx context.Context, dir, layer string, o Options) (rows []Row, err error) {
	data, err := os.MkdirTemp(dir, layer+"-")
	if err != nil {
		return nil, err
	}
	cfg := node.DefaultConfig()
	cfg.Data, cfg.Listen, cfg.Admin = data, "127.0.0.1:0", "127.0.0.1:0"
	cfg.AppID, cfg.AppKey, cfg.AppSecret = string(benchApp), benchKey, benchSecret
	n, err := node.Open(ctx, node.Options{Config: cfg, Build: o.Build, Logger: node.NewLogger(o.Progress, "warn", "text")})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Stop()) }()
	if err := n.Start(ctx); err != nil {
		return nil, err
	}
	loads := []struct {
		name          string
		senders, rate int
	}{{"closed 64", 64, 0}, {"closed 512", 512, 0}, {"open 500/s", openSenders, 500}, {"open 4000/s", openSenders, 4000}}
	if err := settle(ctx, n, openSenders); err != nil {
		return nil, err
	}
	for _, l := range loads {
		fmt.Fprintf(o.Progress, "%s, %s for %s\n", layer, l.name, o.Duration)
		do, done, err := caller(ctx, n, layer, l.senders)
		if err != nil {
			return nil, err
		}
		p := startProbe(ctx, dir, 50*time.Millisecond)
		var rec *recorder
		var took time.Duration
		if l.rate == 0 {
			rec, took = closedLoop(ctx, l.senders, o.Duration, do)
		} else {
			rec, took = openLoop(ctx, l.rate, l.senders, o.Duration, do)
		}
		times, err := p.end()
		done()
		if err != nil {
			return nil, err
		}
		row := rec.row(layer, l.name, took)
		row.FsyncP50, row.FsyncP99, row.FsyncMax = quantile(times, 0.5), quantile(times, 0.99), quantile(times, 1)
		row.Stall = p.stall.Microseconds()
		rows = append(rows, row)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return rows, nil
}

func room(sender int) petrel.RoomID {
	return petrel.RoomID("bench-" + strconv.Itoa(sender%benchRooms))
}
func user(sender int) petrel.UserID { return petrel.UserID("user-" + strconv.Itoa(sender)) }

// settle makes the rooms and lets everybody join, so that what is measured is posts only.
func settle(ctx context.Context, n *node.Node, senders int) error {
	app := petrel.Actor{Kind: petrel.ActorApp, App: benchApp}
	for i := range benchRooms {
		if _, err := n.Desk().Do(ctx, app, command.Meta{}, chat.CreateRoom{ID: room(i), Kind: event.RoomOpen}); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(256)
	for s := range senders {
		g.Go(func() error { return post(ctx, n, s) })
	}
	return g.Wait()
}

func post(ctx context.Context, n *node.Node, sender int) error {
	actor := petrel.Actor{Kind: petrel.ActorUser, App: benchApp, User: user(sender)}
	_, err := n.Desk().Do(ctx, actor, command.Meta{Command: petrel.CommandID(petrel.NewName())}, chat.PostMessage{Room: room(sender), Text: text})
	return err
}

// caller returns how a layer is called, and what to do afterwards.
func caller(ctx context.Context, n *node.Node, layer string, senders int) (do call, done func(), err error) {
	switch layer {
	case "desk":
		return func(ctx context.Context, s int) error { return post(ctx, n, s) }, func() {}, nil
	case "http":
		tokens := make([]string, senders)
		for s := range tokens {
			t, err := n.MintToken(ctx, benchApp, user(s), time.Hour)
			if err != nil {
				return nil, nil, err
			}
			tokens[s] = "Bearer " + t.Token
		}
		transport := &http.Transport{MaxIdleConns: senders, MaxIdleConnsPerHost: senders}
		client := &http.Client{Transport: transport}
		return func(ctx context.Context, s int) error {
			return postHTTP(ctx, client, "http://"+n.Addr(), tokens[s], room(s))
		}, transport.CloseIdleConnections, nil
	case "socket":
		// An open loop has more sends under way than sockets: a socket takes many at once.
		sockets := make([]*socket, min(senders, 512))
		closeAll := func() {
			for _, s := range sockets {
				if s != nil {
					s.close()
				}
			}
		}
		for s := range sockets {
			t, err := n.MintToken(ctx, benchApp, user(s), time.Hour)
			if err == nil {
				sockets[s], err = dialSocket(ctx, n.Addr(), t.Token)
			}
			if err != nil {
				closeAll()
				return nil, nil, err
			}
		}
		var id atomic.Int64
		run := petrel.NewName()
		return func(ctx context.Context, s int) error {
			return sockets[s%len(sockets)].send(ctx, string(room(s)), run+"-"+strconv.FormatInt(id.Add(1), 10), text)
		}, closeAll, nil
	}
	return nil, nil, fmt.Errorf("there is no layer %q", layer)
}

func postHTTP(ctx context.Context, c *http.Client, base, auth string, room petrel.RoomID) error {
	body := strings.NewReader(`{"id":"` + petrel.NewName() + `","text":"` + text + `"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/rooms/"+string(room)+"/messages", body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", auth)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %.200s", resp.Status, b)
	}
	return err
}

// Write prints the report as a table.
func (r *Report) Write(w io.Writer) error {
	fmt.Fprintf(w, "%s, commit %s, %s\n%s\n\n", r.At.Format(time.RFC3339), r.Build.Commit, r.Build.Go, r.Machine)
	fmt.Fprintf(w, "fsync of 4 KiB alone: %.0f/s, p50 %s, p99 %s, max %s\n\n", r.Fsync.PerSec, ms(r.Fsync.P50), ms(r.Fsync.P99), ms(r.Fsync.Max))
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "layer\tload\tdone/s\tp50\tp90\tp99\tp99.9\tmax\terrors\tfsync p50\tp99\tmax\tstall\t")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t\n", row.Layer, row.Load, row.PerSec,
			ms(row.P50), ms(row.P90), ms(row.P99), ms(row.P999), ms(row.Max), row.Errors, ms(row.FsyncP50), ms(row.FsyncP99), ms(row.FsyncMax), ms(row.Stall))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, row := range r.Rows {
		if row.FirstErr != "" {
			fmt.Fprintf(w, "%s, %s: the first of %d errors: %s\n", row.Layer, row.Load, row.Errors, row.FirstErr)
		}
	}
	return nil
}

func ms(us int64) string {
	if us == 0 {
		return "-"
	}
	return strconv.FormatFloat(float64(us)/1000, 'f', 2, 64) + " ms"
}

// machine says on what this ran: processor, memory, kernel.
func machine() string {
	field := func(path, name string) string {
		b, _ := os.ReadFile(path) // absent outside Linux
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
				return strings.TrimSpace(v)
			}
		}
		return "unknown"
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d × %s, memory %s, %s/%s, kernel %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
		field("/proc/meminfo", "MemTotal"), runtime.GOOS, runtime.GOARCH, strings.TrimSpace(string(kernel)))
}
