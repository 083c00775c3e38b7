package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/petrel-chat/petrel/bench/rig"
)

// verdict collects what was seen.
type verdict struct {
	published, moves, resets, slow, slowAway, silent, half atomic.Int64

	mu       sync.Mutex // guards findings
	findings []string   // the first thirty
	found    int

	phase   atomic.Int32
	latency [2]histogram // before the slow ones came, and since
	samples []sample     // written by one goroutine, read when it has ended
}

func newVerdict() *verdict { return &verdict{} }

// find notes something that must not be.
func (v *verdict) find(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.found++; v.found <= 30 {
		v.findings = append(v.findings, fmt.Sprintf(format, args...))
	}
}

func (v *verdict) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.found
}

func (v *verdict) delivered(took time.Duration) { v.latency[v.phase.Load()].add(took) }

// histogram counts times in steps of 5 %.
type histogram struct{ counts [600]atomic.Int64 }

const (
	step  = 1.05
	least = float64(time.Microsecond)
)

func (h *histogram) add(d time.Duration) {
	i := int(math.Log(max(float64(d), least)/least) / math.Log(step))
	h.counts[min(i, len(h.counts)-1)].Add(1)
}

func (h *histogram) total() (n int64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// at is the time within which that share came.
func (h *histogram) at(share float64) time.Duration {
	left := int64(share * float64(h.total()))
	for i := range h.counts {
		if left -= h.counts[i].Load(); left < 0 {
			return time.Duration(least * math.Pow(step, float64(i+1)))
		}
	}
	return 0
}

// sample is what the server takes at one moment.
type sample struct {
	at                    time.Duration
	goroutines, rss, heap float64
}

// observe asks the server every second, and tells what goes on.
func (w *world) observe(ctx context.Context, d *crowd, tell func(format string, args ...any)) {
	begun, before, beforeAt := time.Now(), int64(0), time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m, err := rig.Scrape(ctx, w.http, w.target.admin)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.verdict.find("its metrics: %v", err)
			continue
		}
		s := sample{time.Since(begun), m["go_goroutines"], m["process_resident_memory_bytes"], m["go_memstats_heap_inuse_bytes"]}
		w.verdict.samples = append(w.verdict.samples, s)
		w.verdict.slowAway.Store(int64(m["petrel_conn_slow_total"]))
		if i%10 == 0 {
			h := &w.verdict.latency[w.verdict.phase.Load()]
			now := w.verdict.latency[0].total() + w.verdict.latency[1].total()
			tell("%5.0f s: %d connections that keep up, %.0f deliveries/s, p99 %s, %.0f goroutines, %.0f MiB (heap %.0f), %d slow ones sent away, %d findings\n",
				s.at.Seconds(), d.size(), float64(now-before)/time.Since(beforeAt).Seconds(), round(h.at(0.99)), s.goroutines, s.rss/(1<<20), s.heap/(1<<20), w.verdict.slowAway.Load(), w.verdict.count())
			before, beforeAt = now, time.Now()
		}
	}
}

// window is the median of a share of the samples, as parts of the whole time.
func (v *verdict) window(from, to float64, of func(sample) float64) float64 {
	n := float64(len(v.samples))
	var values []float64
	for _, s := range v.samples[int(from*n):int(to*n)] {
		values = append(values, of(s))
	}
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func goroutines(s sample) float64 { return s.goroutines }
func resident(s sample) float64   { return s.rss }

// judgeCost looks for what grew. Where the slow ones are, there is more of everything, so what is compared are the third and the last fifth.
func (v *verdict) judgeCost() {
	if a, b := v.window(0.4, 0.6, goroutines), v.window(0.8, 1, goroutines); b > a*1.05+20 {
		v.find("goroutines grow: %.0f in the middle, %.0f at the end", a, b)
	}
	if a, b := v.window(0.4, 0.6, resident), v.window(0.8, 1, resident); b > a*1.1+16<<20 {
		v.find("memory grows: %.0f MiB in the middle, %.0f MiB at the end", a/(1<<20), b/(1<<20))
	}
	if calm, now := v.latency[0].at(0.99), v.latency[1].at(0.99); now > 2*calm+5*time.Millisecond {
		v.find("the slow ones slow the others: p99 %s before they came, %s since", round(calm), round(now))
	}
}

func (v *verdict) report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d publications, %d deliveries to those who keep up; %d times somebody came to or left a channel, %d connections were reset;\nof %d slow readers %d were sent away as slow, and %d silent ones and %d who never end a request\n\n",
		v.published.Load(), v.latency[0].total()+v.latency[1].total(), v.moves.Load(), v.resets.Load(), v.slow.Load(), v.slowAway.Load(), v.silent.Load(), v.half.Load())
	for i, name := range []string{"before the slow ones came", "since"} {
		h := &v.latency[i]
		fmt.Fprintf(&b, "from publishing to hearing, %-26s p50 %-9s p99 %-9s p99.9 %-9s of %d\n", name+":", round(h.at(0.5)), round(h.at(0.99)), round(h.at(0.999)), h.total())
	}
	fmt.Fprintf(&b, "\n%-12s %10s %10s %10s\n", "fifth", "goroutines", "RSS MiB", "heap MiB")
	for i := range 5 {
		from, to := float64(i)/5, float64(i+1)/5
		fmt.Fprintf(&b, "%-12d %10.0f %10.1f %10.1f\n", i+1, v.window(from, to, goroutines), v.window(from, to, resident)/(1<<20),
			v.window(from, to, func(s sample) float64 { return s.heap })/(1<<20))
	}
	if v.found == 0 {
		b.WriteString("\nNo findings: nothing lost, nothing doubled, nobody sent away who kept up, and everybody's list is right.\n")
		return b.String()
	}
	fmt.Fprintf(&b, "\n%d FINDINGS, of which the first are:\n", v.found)
	for _, f := range v.findings {
		b.WriteString("  " + f + "\n")
	}
	return b.String()
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
