//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/petrel-chat/petrel/bench/peers/load"
)

// report is results.json: everything that was measured, run by run.
type report struct {
	At       time.Time    `json:"at"`
	Commit   string       `json:"commit"`
	Machine  string       `json:"machine"`
	Settings string       `json:"settings"`
	Servers  []entrant    `json:"servers"`
	Cases    []caseRecord `json:"cases"`
	Runs     []record     `json:"runs"`
}

type entrant struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Version string `json:"version"`
}

type caseRecord struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	Unit  string `json:"unit"`
}

// record is one run.
type record struct {
	Case   string       `json:"case"`
	Server string       `json:"server"`
	Round  int          `json:"round"`
	At     time.Time    `json:"at"`
	Took   float64      `json:"took_s"`
	Job    load.Job     `json:"job"`
	Result *load.Result `json:"result,omitempty"`
	Error  string       `json:"error,omitempty"`
}

func newReport(ctx context.Context, b *bench) report {
	r := report{
		At: time.Now(), Commit: firstLine(ctx, "git", "describe", "--always", "--dirty"), Machine: machineText(ctx),
		Settings: fmt.Sprintf("%d rounds, windows of %s after %s, idle %d connections for %s, %d bytes of payload", b.s.rounds, b.s.times.measure, b.s.times.warmup, b.s.conns, b.s.times.idle, b.s.payload),
	}
	for _, s := range b.servers {
		r.Servers = append(r.Servers, entrant{s.name, s.kind, s.version})
	}
	for _, c := range b.s.cases {
		r.Cases = append(r.Cases, caseRecord{c.name, c.title, c.unit})
	}
	return r
}

func machineText(ctx context.Context) string {
	model, memory := "", ""
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(v, "\t :"))
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib int64
		if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kib); err == nil {
			memory = fmt.Sprintf("%d GB", (kib+1<<19)>>20)
		}
	}
	return fmt.Sprintf("%d x %s, %s, kernel %s, %s", runtime.NumCPU(), model, memory, firstLine(ctx, "uname", "-r"), runtime.Version())
}

// save replaces results.json at once, so that an interrupted benchmark leaves a whole one.
func (r *report) save(dir string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "results.json")
	if err := os.WriteFile(name+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// metric is a line of the summary. A case may have several.
type metric struct {
	label, unit string
	value       func(r *load.Result) float64
	aim         string // for Petrel; empty: there is none
	alone       bool   // a ratio of it says nothing
}

func metrics(c benchCase) []metric {
	all := []metric{{label: c.name, unit: c.unit, value: c.value, aim: c.aim}}
	switch c.name {
	case "idle":
		all = append(all, metric{
			label: "idle: after", unit: "bytes of RSS a connection, at the end",
			value: func(r *load.Result) float64 { return over(float64(r.After.RSS-r.Base.RSS), r.Connect.Count) },
		}, metric{
			label: "idle: CPU", unit: "ms of CPU a second, heartbeats on", aim: "20",
			value: func(r *load.Result) float64 { return r.ServerCPU / 1000 / max(r.Seconds, 1e-9) },
		}, metric{
			label: "idle: heartbeats", unit: "heartbeats a second, as the server wants them", alone: true,
			value: func(r *load.Result) float64 { return float64(r.Heartbeats) / max(r.Seconds, 1e-9) },
		}, metric{
			label: "idle: connect", unit: "µs of CPU to connect and subscribe",
			value: func(r *load.Result) float64 { return over(r.Connect.ServerCPU, r.Connect.Count) },
		})
	case "storm":
		all = append(all, metric{label: "storm: all back", unit: "ms until the last one is back", value: func(r *load.Result) float64 {
			if r.Storm == nil {
				return 0
			}
			return r.Storm.All * 1000
		}})
	}
	return all
}

// spread are the values of one server over the rounds.
type spread struct{ median, least, most float64 }

func spreadOf(values []float64) (s spread, ok bool) {
	if len(values) == 0 {
		return s, false
	}
	v := slices.Sorted(slices.Values(values))
	return spread{median(v), v[0], v[len(v)-1]}, true
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// results are those of a case and server, by round; failed is how many have none.
func (r *report) results(caseName, server string) (by map[int]*load.Result, failed int, first string) {
	by = map[int]*load.Result{}
	for i := range r.Runs {
		run := &r.Runs[i]
		switch {
		case run.Case != caseName || run.Server != server:
		case run.Result != nil:
			by[run.Round] = run.Result
		default:
			failed++
			if first == "" {
				first = run.Error
			}
		}
	}
	return by, failed, first
}

// yardstick is the server that a case is held against: one without a compiler has the Go twin.
func (r *report) yardstick(c benchCase) string {
	has := func(name string) bool { by, _, _ := r.results(c.name, name); return len(by) > 0 }
	if has(c.yardstick) {
		return c.yardstick
	}
	return strings.Replace(c.yardstick, "limit", "bare", 1)
}

// figures are a metric's values of a server, and their ratios to the yardstick's of the same rounds.
func (r *report) figures(c benchCase, m metric, server string) (value, ratio spread, runs int) {
	by, _, _ := r.results(c.name, server)
	yard, _, _ := r.results(c.name, r.yardstick(c))
	var values, ratios []float64
	for round, res := range by {
		v := m.value(res)
		values = append(values, v)
		if y := yard[round]; y != nil && m.value(y) > 0 {
			ratios = append(ratios, v/m.value(y))
		}
	}
	value, _ = spreadOf(values)
	ratio, _ = spreadOf(ratios)
	return value, ratio, len(values)
}

// chosen are the cases of the report, as this program knows them.
func (r *report) chosen() []benchCase {
	var all []benchCase
	for _, c := range allCases() {
		if slices.ContainsFunc(r.Cases, func(o caseRecord) bool { return o.Name == c.name }) {
			all = append(all, c)
		}
	}
	return all
}

func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, "%s, commit %s\n%s\n%s\n", r.At.Format(time.RFC3339), r.Commit, r.Machine, r.Settings)
	for _, s := range r.Servers {
		fmt.Fprintf(w, "  %-14s %s\n", s.Name, s.Version)
	}
	fmt.Fprint(w, "\nMedians; in brackets the median of the ratios to the bare server of the same round (limit; for max-N the one that coalesces).\n\n")
	r.writeSummary(w)
	for _, c := range r.chosen() {
		fmt.Fprintf(w, "\n%s: %s\n\n", c.name, c.title)
		r.writeCase(w, c)
	}
}

func table(w io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
}

func (r *report) writeSummary(w io.Writer) {
	t := table(w)
	fmt.Fprint(t, "\t")
	for _, s := range r.Servers {
		fmt.Fprintf(t, "%s\t", s.Name)
	}
	fmt.Fprintln(t, "\t")
	for _, c := range r.chosen() {
		for _, m := range metrics(c) {
			fmt.Fprintf(t, "%s\t", m.label)
			for _, s := range r.Servers {
				value, ratio, runs := r.figures(c, m, s.Name)
				switch {
				case runs == 0:
					fmt.Fprint(t, "-\t")
				case ratio.median == 0 || m.alone || s.Name == r.yardstick(c):
					fmt.Fprintf(t, "%s\t", number(value.median))
				default:
					fmt.Fprintf(t, "%s (%.2f)\t", number(value.median), ratio.median)
				}
			}
			fmt.Fprintf(t, "%s\t\n", m.unit)
		}
	}
	_ = t.Flush() // into memory or onto a terminal
}

func (r *report) writeCase(w io.Writer, c benchCase) {
	t := table(w)
	fmt.Fprintf(t, "\truns\t%s\tleast\tmost\tratio\tleast\tmost\tper second\tp50 ms\tp99 ms\tp99.9 ms\tmax ms\tanswer p99 ms\tlost\tgaps\tdisorder\tbroken\trefused\tload µs\tsteal\tothers\t\n", c.unit)
	var notes []string
	for _, s := range r.Servers {
		by, failed, first := r.results(c.name, s.Name)
		if failed > 0 {
			notes = append(notes, fmt.Sprintf("%s: %d runs failed, first: %s", s.Name, failed, firstLines(first, 2)))
		}
		value, ratio, runs := r.figures(c, metric{value: c.value}, s.Name)
		if runs == 0 {
			continue
		}
		middle := func(f func(*load.Result) float64) float64 {
			var all []float64
			for _, res := range by {
				all = append(all, f(res))
			}
			sp, _ := spreadOf(all)
			return sp.median
		}
		sum := func(f func(*load.Result) int) (n int) {
			for _, res := range by {
				n += f(res)
			}
			return n
		}
		ms := func(f func(*load.Result) int64) string {
			return number(middle(func(r *load.Result) float64 { return float64(f(r)) / 1000 }))
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.0f\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%.2f\t%.2f\t\n",
			s.Name, runs, number(value.median), number(value.least), number(value.most), ratio.median, ratio.least, ratio.most,
			middle(func(r *load.Result) float64 { return float64(max(r.Delivered, r.Published)) / r.Seconds }),
			ms(func(r *load.Result) int64 { return r.Delivery.P50 }), ms(func(r *load.Result) int64 { return r.Delivery.P99 }),
			ms(func(r *load.Result) int64 { return r.Delivery.P999 }), ms(func(r *load.Result) int64 { return r.Delivery.Max }),
			ms(func(r *load.Result) int64 { return r.Request.P99 }),
			sum(func(r *load.Result) int { return r.Lost }), sum(func(r *load.Result) int { return r.Gaps }), sum(func(r *load.Result) int { return r.Disorder }),
			sum(func(r *load.Result) int { return r.Disconnected }), sum(func(r *load.Result) int { return r.PublishErrors }),
			number(middle(func(r *load.Result) float64 { return over(r.LoadCPU, max(r.Delivered, r.Published)) })),
			middle(func(r *load.Result) float64 { return r.Steal }), middle(func(r *load.Result) float64 { return r.Others }))
		for _, res := range by {
			if text := res.FirstError; text != "" {
				notes = append(notes, fmt.Sprintf("%s: first error: %s", s.Name, firstLines(text, 1)))
				break
			}
		}
	}
	_ = t.Flush() // likewise
	for _, n := range notes {
		fmt.Fprintln(w, n)
	}
}

// number has three digits that mean something.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100:
		return count(int(math.Round(v)))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// count has a comma between thousands.
func count(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", count(n/1000), n%1000)
}
