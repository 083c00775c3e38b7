//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/bench/peers/load"
)

// writeMarkdown is what a document says of the report: the summary, how late deliveries were, and what went wrong.
func (r *report) writeMarkdown(w io.Writer) {
	fmt.Fprintf(w, "Measured %s at commit %s on %s.\n", r.At.Format("2006-01-02"), r.Commit, r.Machine)
	for s := range strings.SplitSeq(r.Settings, "\n") {
		fmt.Fprintf(w, "%s.\n", s)
	}
	var versions []string
	for _, s := range r.Servers {
		if !bareServer(s.Name) {
			versions = append(versions, s.Name+": "+s.Version)
		}
	}
	fmt.Fprintf(w, "%s.\n\n", strings.Join(versions, "; "))

	r.markdownTable(w, "median (ratio to the limit)", []string{"rounds", "aim"}, func(row func(label string, cells ...string)) {
		for _, c := range r.chosen() {
			for _, m := range metrics(c) {
				var cells []string
				fewest, most := 0, 0
				for _, s := range r.columns(c) {
					value, ratio, runs := r.figures(c, m, s)
					if runs > 0 {
						most = max(most, runs)
						if fewest == 0 || runs < fewest {
							fewest = runs
						}
					}
					cells = append(cells, cell(runs, number(value.median), ratio.median, m.alone || s == r.yardstick(c)))
				}
				rounds := fmt.Sprint(most)
				if fewest < most {
					rounds = fmt.Sprintf("%d–%d", fewest, most)
				}
				row(r.titleOf(c)+"; "+m.unit, append(cells, rounds, m.aim)...)
			}
		}
	})
	fmt.Fprintln(w)
	r.markdownTable(w, "ms: p50 / p99 / p99.9", nil, func(row func(label string, cells ...string)) {
		for _, c := range r.chosen() {
			times, what := latency(c)
			if times == nil {
				continue
			}
			var cells []string
			for _, s := range r.columns(c) {
				var all []string
				for _, of := range []func(load.Times) int64{
					func(t load.Times) int64 { return t.P50 }, func(t load.Times) int64 { return t.P99 }, func(t load.Times) int64 { return t.P999 },
				} {
					value, _, runs := r.figures(c, metric{value: func(res *load.Result) float64 { return float64(of(times(res))) / 1000 }}, s)
					if runs > 0 {
						all = append(all, number(value.median))
					}
				}
				cells = append(cells, strings.Join(all, " / "))
			}
			row(r.titleOf(c)+"; "+what, cells...)
		}
	})
	fmt.Fprintln(w)
	r.markdownComplaints(w)
}

// markdownTable has a column for the limit, one for each server that is no bare one, and others after them.
func (r *report) markdownTable(w io.Writer, corner string, after []string, rows func(row func(label string, cells ...string))) {
	head := append(r.columns(benchCase{yardstick: "limit"}), after...)
	head[0] = "limit"
	if !slices.ContainsFunc(r.Servers, func(s entrant) bool { return s.Name == "limit" }) {
		head[0] = "bare" // its twin, where there is no C compiler
	}
	fmt.Fprintf(w, "| %s | %s |\n|---|%s\n", corner, strings.Join(head, " | "), strings.Repeat("--:|", len(head)))
	rows(func(label string, cells ...string) {
		fmt.Fprintf(w, "| %s | %s |\n", label, strings.Join(cells, " | "))
	})
}

// columns are the servers that a document shows of a case: what they are held against, and those that are no bare ones.
func (r *report) columns(c benchCase) []string {
	names := []string{r.yardstick(c)}
	for _, s := range r.Servers {
		if !bareServer(s.Name) {
			names = append(names, s.Name)
		}
	}
	return names
}

func bareServer(name string) bool {
	return slices.Contains([]string{"limit", "limit-coalesce", "bare", "bare-coalesce"}, name)
}

func cell(runs int, value string, ratio float64, alone bool) string {
	switch {
	case runs == 0:
		return ""
	case ratio == 0 || alone:
		return value
	}
	return value + " (" + number(ratio) + ")"
}

// titleOf a case, with how many connections it had where its title does not say.
func (r *report) titleOf(c benchCase) string {
	for _, run := range r.Runs {
		if run.Case == c.name && run.Job.Kind != load.FanOut {
			return count(run.Job.Subscribers) + " " + c.title
		}
	}
	return c.title
}

// latency of a case, where it means something: where the server's own pace does not set it.
func latency(c benchCase) (times func(*load.Result) load.Times, what string) {
	switch {
	case strings.HasPrefix(c.name, "rate-"):
		return func(res *load.Result) load.Times { return res.Delivery }, "to a subscriber"
	case c.name == "publish":
		return func(res *load.Result) load.Times { return res.Request }, "to the answer"
	}
	return nil, ""
}

// markdownComplaints says what was lost or failed, of whom, and that nothing else was.
func (r *report) markdownComplaints(w io.Writer) {
	runs := 0
	for _, s := range r.Servers {
		for _, c := range r.chosen() {
			by, failed, first := r.results(c.name, s.Name)
			var sum load.Result
			runs += len(by) + failed
			for _, round := range slices.Sorted(maps.Keys(by)) {
				sum.Add(by[round])
			}
			text := strings.TrimPrefix(sum.Complaints(), ", ")
			if failed > 0 {
				text = strings.TrimPrefix(fmt.Sprintf("%s, %d runs failed: %s", text, failed, firstLines(first, 1)), ", ")
			}
			if text != "" {
				fmt.Fprintf(w, "- %s, %s, in %d runs: %s.\n", s.Name, c.name, len(by)+failed, text)
			}
		}
	}
	fmt.Fprintf(w, "\nIn all other of the %s runs nothing was lost, doubled or out of order, and no connection broke.\n", count(runs))
}
