package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// call does one operation as one of a lane's senders; senders never share a number at one time.
type call func(ctx context.Context, sender int) error

// Row is what one load on one layer came to. Times are in microseconds, so that a row compares
// with any other by eye.
type Row struct {
	Layer    string  `json:"layer"`
	Load     string  `json:"load"`
	Seconds  float64 `json:"seconds"`
	Done     int     `json:"done"`
	PerSec   float64 `json:"per_second"`
	P50      int64   `json:"p50_us"`
	P90      int64   `json:"p90_us"`
	P99      int64   `json:"p99_us"`
	P999     int64   `json:"p999_us"`
	Max      int64   `json:"max_us"`
	Errors   int     `json:"errors"`
	FirstErr string  `json:"first_error,omitempty"`
	Late     int     `json:"late,omitempty"` // open loop: started more than 10 ms after their time because every sender was busy
	FsyncP50 int64   `json:"fsync_p50_us,omitempty"`
	FsyncP99 int64   `json:"fsync_p99_us,omitempty"`
	FsyncMax int64   `json:"fsync_max_us,omitempty"`
	// Stall is the latest that a timer of 50 ms came: long where the whole machine stood still or its processors were taken.
	Stall int64 `json:"stall_us,omitempty"`
}

// recorder gathers latencies. Each sender has its own list: nothing is shared while it runs.
type recorder struct {
	lists    [][]time.Duration
	failures []int
	firstErr atomic.Pointer[string]
	late     atomic.Int64
}

func newRecorder(senders int) *recorder {
	r := &recorder{lists: make([][]time.Duration, senders), failures: make([]int, senders)}
	for i := range r.lists {
		r.lists[i] = make([]time.Duration, 0, 4096)
	}
	return r
}

func (r *recorder) note(sender int, d time.Duration, err error) {
	if err != nil {
		r.failures[sender]++
		text := err.Error()
		r.firstErr.CompareAndSwap(nil, &text)
		return
	}
	r.lists[sender] = append(r.lists[sender], d)
}

func (r *recorder) row(layer, load string, took time.Duration) Row {
	all := slices.Concat(r.lists...)
	slices.Sort(all)
	row := Row{Layer: layer, Load: load, Seconds: took.Seconds(), Done: len(all), PerSec: float64(len(all)) / took.Seconds(), Late: int(r.late.Load())}
	for _, n := range r.failures {
		row.Errors += n
	}
	if e := r.firstErr.Load(); e != nil {
		row.FirstErr = *e
	}
	row.P50, row.P90, row.P99, row.P999, row.Max = quantile(all, 0.5), quantile(all, 0.9), quantile(all, 0.99), quantile(all, 0.999), quantile(all, 1)
	return row
}

func quantile(sorted []time.Duration, q float64) int64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)].Microseconds()
}

// closedLoop lets every sender start its next operation when its last is answered.
func closedLoop(ctx context.Context, senders int, d time.Duration, do call) (*recorder, time.Duration) {
	rec := newRecorder(senders)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	start := time.Now()
	end := start.Add(d)
	for s := range senders {
		wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				if began.After(end) {
					return
				}
				err := do(ctx, s)
				rec.note(s, time.Since(began), err)
			}
		})
	}
	wg.Wait()
	return rec, time.Since(start)
}

// openLoop starts operations at a fixed rate whatever becomes of those before, and measures from the time
// at which each was due: waiting for a free sender counts, so that a stall is not hidden by the senders
// that it stops.
func openLoop(ctx context.Context, rate, senders int, d time.Duration, do call) (*recorder, time.Duration) {
	rec := newRecorder(senders)
	due := make(chan time.Time, rate) // a second's worth may wait
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for at := range due {
				if time.Since(at) > 10*time.Millisecond {
					rec.late.Add(1)
				}
				err := do(ctx, s)
				rec.note(s, time.Since(at), err)
			}
		})
	}
	start := time.Now()
	total := int(float64(rate) * d.Seconds())
	gap := time.Second / time.Duration(rate)
	p := newPace()
	defer p.stop()
	for i := 0; i < total && ctx.Err() == nil; {
		for now := time.Since(start); i < total && gap*time.Duration(i) <= now; i++ {
			due <- start.Add(gap * time.Duration(i))
		}
		p.until(start.Add(gap * time.Duration(i)))
	}
	close(due)
	wg.Wait()
	return rec, time.Since(start)
}

// probe measures the disk by itself: 4 KiB appended and fsynced, over and over, in a file beside the data.
// Beside a load it does so 20 times a second, so that a stall of the disk is told apart from one of ours.
type probe struct {
	stop  context.CancelFunc
	done  chan struct{}
	times []time.Duration // read after done
	stall time.Duration   // likewise
	err   error
}

func startProbe(ctx context.Context, dir string, pause time.Duration) *probe {
	ctx, cancel := context.WithCancel(ctx)
	p := &probe{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = p.run(ctx, dir, pause)
	}()
	return p
}

func (p *probe) run(ctx context.Context, dir string, pause time.Duration) error {
	f, err := os.Create(filepath.Join(dir, "fsync-probe"))
	if err != nil {
		return fmt.Errorf("make the file of the fsync probe: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	// Like a segment of the log: allocated and written once before, so that a write changes no size.
	const size = 16 << 20
	if _, err := f.Write(make([]byte, size)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	block := make([]byte, 4096)
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for off := int64(0); ; off = (off + 4096) % size {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		began := time.Now()
		p.stall = max(p.stall, began.Sub(due))
		if _, err := f.WriteAt(block, off); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		p.times = append(p.times, time.Since(began))
		due = time.Now().Add(pause)
		timer.Reset(pause)
	}
}

// end stops the probe and returns its times, sorted.
func (p *probe) end() ([]time.Duration, error) {
	p.stop()
	<-p.done
	slices.Sort(p.times)
	return p.times, p.err
}
