package petreltest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TortureOptions of Torture.
type TortureOptions struct {
	Seed     uint64
	Faults   int           // to be done at least; default 300
	Duration time.Duration // to go on at least; default 0
	PerRound int           // faults between two verdicts; default 15
	Only     []Fault       // default: Faults()
	Workload WorkloadOptions
	// Tolerate are checks whose findings are counted and do not fail.
	Tolerate []string
	// Keep is where logs and journals go when something is found; default: a temporary folder, which is removed when nothing is.
	Keep string
}

// Verdict of a torture.
type Verdict struct {
	Seed      uint64
	Rounds    int
	Took      time.Duration
	Faults    []Did
	Findings  []Finding
	Tolerated int
	Acked     int
	Unknown   int
	Reads     int
	Offered   int
	Kept      string // folder with logs and journals; "" when nothing was found
}

// Torture hurts a fleet under load, round by round, and judges each round. It stops at the first one with a finding.
func Torture(tb testing.TB, o TortureOptions) Verdict {
	tb.Helper()
	if o.Faults == 0 {
		o.Faults = 300
	}
	if o.PerRound == 0 {
		o.PerRound = 15
	}
	if o.Only == nil {
		o.Only = Faults()
	}
	if o.Keep == "" {
		dir, err := os.MkdirTemp("", "petrel-torture-") //nolint:usetesting // it outlives the test when something is found
		if err != nil {
			tb.Fatal(err)
		}
		o.Keep = dir
	}
	fleet := StartFleet(tb, FleetOptions{Seed: o.Seed, Logs: o.Keep})
	n := NewNemesis(fleet, o.Seed, tb.Logf)
	v := Verdict{Seed: o.Seed}
	for (len(n.Done) < o.Faults || time.Since(n.began) < o.Duration) && len(v.Findings) == 0 {
		v.Rounds++
		w := o.Workload
		w.Sites, w.Life, w.Name, w.Seed = fleet.Sites(), fleet.Life, fmt.Sprintf("r%d", v.Rounds), o.Seed+uint64(v.Rounds)
		e, found := n.round(tb.Context(), o, w)
		v.add(e, found, o.Tolerate)
	}
	v.Faults, v.Took = n.Done, time.Since(n.began)
	if len(v.Findings) > 0 {
		v.Kept = o.Keep
	} else {
		_ = os.RemoveAll(o.Keep)
	}
	return v
}

// round is one workload under some faults, judged.
func (n *Nemesis) round(ctx context.Context, o TortureOptions, wo WorkloadOptions) (*Evidence, []Finding) {
	w, err := StartWorkload(ctx, wo)
	if err != nil {
		return nil, []Finding{{CheckStuck, "", err.Error()}}
	}
	defer w.Close()
	n.Watch(w.Journal())
	goal := min(o.Faults, len(n.Done)+o.PerRound)
	var found []Finding
	for len(n.Done) < goal && len(found) == 0 {
		wait(ctx, nil, 200*time.Millisecond+time.Duration(n.rng.Int64N(int64(time.Second))))
		if found = append(found, n.Strike(ctx, n.chain(o, len(n.Done))...)...); len(found) > 0 {
			n.fleet.Autopsy()
		}
	}
	var e *Evidence
	if len(found) == 0 {
		wait(ctx, nil, 500*time.Millisecond)
		e, found = w.Settle(ctx, Patience)
		if why, err := n.fleet.Verify(ctx); err != nil || why != "" {
			found = append(found, Finding{CheckDiverged, "", fmt.Sprint("the rows of the replicas are not equal: ", why, err)})
		}
	}
	if slices.ContainsFunc(found, func(f Finding) bool { return !slices.Contains(o.Tolerate, f.Check) }) {
		if err := w.Journal().Save(filepath.Join(o.Keep, wo.Name+".jsonl")); err != nil {
			found = append(found, Finding{CheckStuck, "", err.Error()})
		}
	}
	return e, found
}

// chain draws one to three faults that may come together. A short list is gone through in its order, one by one.
func (n *Nemesis) chain(o TortureOptions, done int) []Fault {
	if len(o.Only) == o.Faults {
		return o.Only[done : done+1]
	}
	chain := []Fault{n.Any(o.Only)}
	for more := []int{0, 0, 0, 0, 1, 1, 2}[n.rng.IntN(7)]; more > 0; more-- {
		if f := n.Any(o.Only); !f.Destructive {
			chain = append(chain, f)
		}
	}
	return chain
}

func (v *Verdict) add(e *Evidence, found []Finding, tolerate []string) {
	for _, f := range found {
		if slices.Contains(tolerate, f.Check) {
			v.Tolerated++
		} else {
			v.Findings = append(v.Findings, f)
		}
	}
	if e == nil {
		return
	}
	for _, op := range e.Journal.Ops() {
		switch {
		case op.ID == "":
			v.Reads++
		case op.Outcome == Done:
			v.Acked++
		case op.Outcome == Unknown:
			v.Unknown++
		}
	}
	for _, seen := range e.Seen {
		v.Offered += len(seen)
	}
}

// Markdown is the verdict as it stands in docs/RELIABILITY.md.
func (v Verdict) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d faults in %d rounds and %s; %d commands acknowledged, %d of unknown outcome, %d reads, %d events offered to watchers\n\n",
		v.Seed, len(v.Faults), v.Rounds, v.Took.Round(time.Second), v.Acked, v.Unknown, v.Reads, v.Offered)
	type row struct {
		n, alone      int
		healed, pause []time.Duration
	}
	rows := map[string]*row{}
	for _, d := range v.Faults {
		r := rows[d.Fault]
		if r == nil {
			r = &row{}
			rows[d.Fault] = r
		}
		r.n++
		if d.Alone {
			r.alone++
			r.healed, r.pause = append(r.healed, d.Healed), append(r.pause, d.Pause)
		}
	}
	b.WriteString("| fault | times | of them alone | longest pause of writes: median, worst | healthy again after: median, worst |\n|---|---|---|---|---|\n")
	for _, name := range sortedKeys(rows) {
		r := rows[name]
		fmt.Fprintf(&b, "| %s | %d | %d | %s | %s |\n", name, r.n, r.alone, spread(r.pause), spread(r.healed))
	}
	if v.Tolerated > 0 {
		fmt.Fprintf(&b, "\n%d findings of checks that are not counted yet\n", v.Tolerated)
	}
	if len(v.Findings) == 0 {
		b.WriteString("\nverdict: nothing found\n")
		return b.String()
	}
	fmt.Fprintf(&b, "\nverdict: FAILED; logs and journals are kept in %s\n", v.Kept)
	for _, f := range v.Findings {
		fmt.Fprintf(&b, "- %s\n", f)
	}
	return b.String()
}

func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "–"
	}
	slices.Sort(all)
	return fmt.Sprintf("%.2f s, %.2f s", all[len(all)/2].Seconds(), all[len(all)-1].Seconds())
}
