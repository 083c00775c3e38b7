package commit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/commit"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLog is an Appender that a test steers: every append waits for an answer.
type fakeLog struct {
	mu     sync.Mutex
	stored []string
	sizes  []int
	max    int // appends at once, seen
	now    int
	answer chan error // nil stores; errFailed does not; any other stores and returns it
}

var errLostReply = fmt.Errorf("the reply was lost: %w", petrel.ErrUnknownOutcome)

func newFakeLog() *fakeLog { return &fakeLog{answer: make(chan error)} }

func (l *fakeLog) Append(ctx context.Context, payloads [][]byte) (uint64, error) {
	l.mu.Lock()
	l.now++
	l.max = max(l.max, l.now)
	l.sizes = append(l.sizes, len(payloads))
	l.mu.Unlock()
	var err error
	select {
	case err = <-l.answer:
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", petrel.ErrUnknownOutcome, ctx.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now--
	first := uint64(len(l.stored)) + 1
	if err == nil || errors.Is(err, errLostReply) {
		for _, p := range payloads {
			l.stored = append(l.stored, string(p))
		}
	}
	return first, err
}

type answer struct {
	index uint64
	err   error
}

// commitAll starts a caller per payload, one after the other, and returns where their answers come.
func commitAll(ctx context.Context, p *commit.Pipeline, payloads ...string) []chan answer {
	out := make([]chan answer, len(payloads))
	for i, s := range payloads {
		out[i] = make(chan answer, 1)
		go func() {
			index, err := p.Commit(ctx, []byte(s))
			out[i] <- answer{index, err}
		}()
		synctest.Wait() // it has joined before the next one does
	}
	return out
}

func names(from, to int) (s []string) {
	for i := from; i <= to; i++ {
		s = append(s, fmt.Sprint("p", i))
	}
	return s
}

func TestGathersWhileOneIsInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newFakeLog()
		p := commit.New(commit.Options{Appender: log, MaxEntries: 4})
		p.Start()
		p.Start()
		defer p.Stop()
		calls := commitAll(t.Context(), p, names(1, 10)...)
		for range 4 {
			synctest.Wait()
			log.answer <- nil
		}
		for i, c := range calls {
			if a := <-c; a.err != nil || a.index != uint64(i)+1 {
				t.Errorf("caller %d: %+v", i, a)
			}
		}
		// The first went alone, at once; the others gathered behind it, at most four together.
		if d := cmp.Diff([]int{1, 4, 4, 1}, log.sizes); d != "" {
			t.Errorf("sizes (-want +got):\n%s", d)
		}
		if d := cmp.Diff(names(1, 10), log.stored); d != "" || log.max != 1 {
			t.Errorf("stored, %d at once (-want +got):\n%s", log.max, d)
		}
	})
}

func TestBatchesByBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newFakeLog()
		p := commit.New(commit.Options{Appender: log, MaxBytes: 10})
		p.Start()
		defer p.Stop()
		calls := commitAll(t.Context(), p, "a", "12345", "12345", "1", "123456789012345", "2")
		for range 5 {
			synctest.Wait()
			select {
			case log.answer <- nil:
			default:
			}
		}
		for _, c := range calls {
			if a := <-c; a.err != nil {
				t.Error(a.err)
			}
		}
		if d := cmp.Diff([]int{1, 2, 1, 1, 1}, log.sizes); d != "" {
			t.Errorf("sizes (-want +got):\n%s", d)
		}
	})
}

// TestErrorsReachAllCallers is the table "failed" and "failed, but stored".
func TestErrorsReachAllCallers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		err      error
		want     error
		not      error
		inTheLog int
	}{
		{"not appended", fmt.Errorf("no leader: %w", petrel.ErrNotAppended), petrel.ErrNotAppended, petrel.ErrUnknownOutcome, 0},
		{"disk full", fmt.Errorf("no room: %w", petrel.ErrDiskFull), petrel.ErrDiskFull, petrel.ErrUnknownOutcome, 0},
		{"log stopped", fmt.Errorf("closed: %w", petrel.ErrStopped), petrel.ErrStopped, petrel.ErrUnknownOutcome, 0},
		{"failed, but stored", errLostReply, petrel.ErrUnknownOutcome, petrel.ErrNotAppended, 2},
		{"an error that says nothing", errors.New("?"), petrel.ErrUnknownOutcome, petrel.ErrNotAppended, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log := newFakeLog()
				p := commit.New(commit.Options{Appender: log})
				calls := commitAll(t.Context(), p, "a", "b")
				p.Start()
				defer p.Stop()
				log.answer <- tc.err
				for i, c := range calls {
					if a := <-c; !errors.Is(a.err, tc.want) || errors.Is(a.err, tc.not) || a.index != 0 {
						t.Errorf("caller %d: %+v", i, a)
					}
				}
				if len(log.stored) != tc.inTheLog {
					t.Errorf("stored %q", log.stored)
				}
				// The next batch goes on, and nothing was sent twice.
				next := commitAll(t.Context(), p, "c")
				log.answer <- nil
				if a := <-next[0]; a.err != nil || a.index != uint64(tc.inTheLog)+1 {
					t.Errorf("after the failure: %+v", a)
				}
			})
		})
	}
}

func TestLeaving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newFakeLog()
		p := commit.New(commit.Options{Appender: log})
		p.Start()
		defer p.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		sent := commitAll(ctx, p, "sent")
		waiting := commitAll(ctx, p, "waiting")
		stays := commitAll(t.Context(), p, "stays")
		if a := <-sent[0]; !errors.Is(a.err, petrel.ErrUnknownOutcome) || !errors.Is(a.err, context.DeadlineExceeded) {
			t.Errorf("left after its batch was sent: %+v", a)
		}
		if a := <-waiting[0]; petrel.CodeOf(a.err) != petrel.CodeTimeout {
			t.Errorf("left before its batch was sent: %+v", a)
		}
		if _, err := p.Commit(ctx, []byte("late")); petrel.CodeOf(err) != petrel.CodeTimeout {
			t.Errorf("came with a context that was over: %v", err)
		}
		log.answer <- nil
		log.answer <- nil
		if a := <-stays[0]; a.err != nil || a.index != 2 {
			t.Errorf("the one behind: %+v", a)
		}
		if d := cmp.Diff([]string{"sent", "stays"}, log.stored); d != "" {
			t.Errorf("stored (-want +got):\n%s", d)
		}
	})
}

func TestFull(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]commit.Options{
		"entries": {MaxWaiting: 3},
		"bytes":   {MaxWaitingBytes: 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log := newFakeLog()
				o := o
				o.Appender = log
				p := commit.New(o)
				p.Start()
				defer p.Stop()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				held := commitAll(t.Context(), p, "p1", "p2")
				leaves := commitAll(ctx, p, "p3")
				_, err := p.Commit(t.Context(), []byte("p4"))
				var e *petrel.Error
				if !errors.As(err, &e) || e.Code != petrel.CodeBusy || e.RetryAfter != time.Second {
					t.Fatalf("one too many: %v", err)
				}
				cancel() // who leaves makes room
				<-leaves[0]
				held = append(held, commitAll(t.Context(), p, "p5")...)
				log.answer <- nil
				log.answer <- nil
				for _, c := range held {
					if a := <-c; a.err != nil {
						t.Error(a.err)
					}
				}
				again := commitAll(t.Context(), p, "p6", "p7", "p8") // all places are free again
				log.answer <- nil
				log.answer <- nil
				for _, c := range again {
					if a := <-c; a.err != nil {
						t.Error(a.err)
					}
				}
			})
		})
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	p := commit.New(commit.Options{Appender: newFakeLog()})
	if _, err := p.Commit(t.Context(), make([]byte, event.MaxEntryBytes+1)); petrel.CodeOf(err) != petrel.CodeTooLarge {
		t.Error(err)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	t.Run("never started", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			p := commit.New(commit.Options{Appender: newFakeLog()})
			calls := commitAll(t.Context(), p, "a")
			p.Stop()
			p.Stop()
			p.Start()
			isStopped(t, (<-calls[0]).err)
		})
	})
	t.Run("lets the append end", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			log := newFakeLog()
			p := commit.New(commit.Options{Appender: log})
			p.Start()
			calls := commitAll(t.Context(), p, "a", "b")
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(p.Stop)
			}
			synctest.Wait()
			_, err := p.Commit(t.Context(), []byte("late"))
			isStopped(t, err)
			log.answer <- nil
			wg.Wait()
			if a := <-calls[0]; a.err != nil || a.index != 1 {
				t.Errorf("in flight: %+v", a)
			}
			isStopped(t, (<-calls[1]).err)
			if len(log.stored) != 1 {
				t.Errorf("stored %q", log.stored)
			}
		})
	})
	t.Run("loses patience", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			p := commit.New(commit.Options{Appender: newFakeLog(), StopGrace: 3 * time.Second})
			p.Start()
			calls := commitAll(t.Context(), p, "a")
			begin := time.Now()
			p.Stop()
			if d := time.Since(begin); d != 3*time.Second {
				t.Errorf("Stop took %v", d)
			}
			if a := <-calls[0]; !errors.Is(a.err, petrel.ErrUnknownOutcome) {
				t.Errorf("in flight: %+v", a)
			}
		})
	})
}

func isStopped(t *testing.T, err error) {
	t.Helper()
	if petrel.CodeOf(err) != petrel.CodeDraining || !errors.Is(err, petrel.ErrStopped) || !errors.Is(err, petrel.ErrNotAppended) {
		t.Errorf("got %v, want a refusal because of the stop", err)
	}
}

// instantLog stores nothing and answers at once, or after as long as an fsync.
type instantLog struct {
	next  uint64
	fsync time.Duration
}

func (l *instantLog) Append(_ context.Context, payloads [][]byte) (uint64, error) {
	if l.fsync > 0 {
		<-time.After(l.fsync)
	}
	first := l.next + 1
	l.next += uint64(len(payloads))
	return first, nil
}

// TestManyCallers has real goroutines and a real clock, for the race detector.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	p := commit.New(commit.Options{Appender: &instantLog{}})
	p.Start()
	defer p.Stop()
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%8 == 0 {
					go cancel()
				}
				index, err := p.Commit(ctx, []byte("x"))
				cancel()
				if err != nil {
					if i%8 != 0 {
						t.Error(err)
					}
					continue
				}
				mu.Lock()
				if seen[index] {
					t.Errorf("index %d was given twice", index)
				}
				seen[index] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// BenchmarkCommit is one caller's way through the pipeline, with an append that costs nothing and one
// that takes as long as an fsync.
func BenchmarkCommit(b *testing.B) {
	payload := make([]byte, 256)
	for _, fsync := range []time.Duration{0, time.Millisecond} {
		for _, senders := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("append=%v/senders=%d", fsync, senders), func(b *testing.B) {
				p := commit.New(commit.Options{Appender: &instantLog{fsync: fsync}})
				p.Start()
				defer p.Stop()
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for s := range senders {
					wg.Go(func() {
						for i := s; i < b.N; i += senders {
							if _, err := p.Commit(b.Context(), payload); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			})
		}
	}
}
