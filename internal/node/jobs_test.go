package node

import (
	"context"
	"io"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/effect"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// worker is a kind of job that notes every attempt, and hangs while it is told to.
type worker struct {
	mu   sync.Mutex // guards what follows
	seen map[string][]int
	hang bool
}

func (w *worker) Run(ctx context.Context, j job.Job, attempt int) error {
	w.mu.Lock()
	w.seen[j.Event] = append(w.seen[j.Event], attempt)
	hang := w.hang
	w.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (w *worker) attempts() (jobs, attempts int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.seen {
		attempts += len(a)
	}
	return len(w.seen), attempts
}

func openWorking(t *testing.T, dir string, w *worker) *Node {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Data, cfg.Listen, cfg.Admin = dir, "127.0.0.1:0", "127.0.0.1:0"
	n, err := Open(t.Context(), Options{Config: cfg, Logger: NewLogger(io.Discard, "debug", "json"), Jobs: map[string]effect.Handler{"test": w}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Stop() })
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *Node) enqueue(t *testing.T, app petrel.AppID, jobs ...job.New) []job.ID {
	t.Helper()
	res, err := n.Desk().Do(t.Context(), petrel.Actor{Kind: petrel.ActorSystem, App: app}, command.Meta{}, job.Enqueue{Jobs: jobs})
	if err != nil {
		t.Fatal(err)
	}
	return res.Answer.([]job.ID)
}

func (n *Node) ledger(t *testing.T, app petrel.AppID) (l job.Ledger) {
	t.Helper()
	if err := n.shard.store.View(t.Context(), func(r *projection.Reader) (err error) {
		l, err = job.LedgerOf(r, app)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestJobsRun: what is queued runs, once.
func TestJobsRun(t *testing.T) {
	t.Parallel()
	w := &worker{seen: map[string][]int{}}
	n := openWorking(t, t.TempDir(), w)
	jobs := make([]job.New, 300)
	for i := range jobs {
		jobs[i] = job.New{Kind: "test", Body: []byte("x")}
	}
	n.enqueue(t, "1001", jobs...)
	until(t, "all are done", func() bool { return n.ledger(t, "1001").Done == 300 })
	if jobs, attempts := w.attempts(); jobs != 300 || attempts != 300 {
		t.Errorf("%d jobs in %d attempts, want 300 in 300", jobs, attempts)
	}
}

// TestJobsGoOnAfterARestart: what runs when a node stops was interrupted, is counted so, and runs again under the same event id.
func TestJobsGoOnAfterARestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	w := &worker{seen: map[string][]int{}, hang: true}
	n := openWorking(t, dir, w)
	n.enqueue(t, "1001", job.New{Kind: "test"}, job.New{Kind: "test"})
	until(t, "both began", func() bool { jobs, _ := w.attempts(); return jobs == 2 })
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.hang = false
	w.mu.Unlock()
	n = openWorking(t, dir, w)
	until(t, "both are done", func() bool { return n.ledger(t, "1001").Done == 2 })
	if l := n.ledger(t, "1001"); l.Interrupted != 2 || l.Attempts != 4 || l.Off() != 0 {
		t.Errorf("ledger %+v, want 2 of 4 attempts interrupted", l)
	}
	if jobs, attempts := w.attempts(); jobs != 2 || attempts != 4 {
		t.Errorf("%d event ids in %d attempts, want 2 in 4", jobs, attempts)
	}
}

// BenchmarkJobs is jobs per second on one node, from queueing until their end is in the log: trivial ones, of four apps.
func BenchmarkJobs(b *testing.B) {
	done := effect.HandlerFunc(func(context.Context, job.Job, int) error { return nil })
	cfg := DefaultConfig()
	cfg.Data, cfg.Listen, cfg.Admin = b.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	n, err := Open(b.Context(), Options{Config: cfg, Jobs: map[string]effect.Handler{"test": done}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = n.Stop() })
	if err := n.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	ended := func() (all uint64) {
		ledgers, err := n.JobLedgers(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for _, l := range ledgers {
			all += l.Done
		}
		return all
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	b.ResetTimer()
	for i := 0; i < b.N; {
		jobs := make([]job.New, min(100, b.N-i))
		for k := range jobs {
			jobs[k] = job.New{Kind: "test", Target: strconv.Itoa(k % 2), Body: []byte(`{"a":1}`)}
		}
		app := petrel.AppID(strconv.Itoa(1001 + i/100%4))
		if _, err := n.Desk().Do(b.Context(), petrel.Actor{Kind: petrel.ActorSystem, App: app}, command.Meta{}, job.Enqueue{Jobs: jobs}); err != nil {
			b.Fatal(err)
		}
		i += len(jobs)
	}
	for ended() < uint64(b.N) { //nolint:gosec // positive
		<-tick.C
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}
