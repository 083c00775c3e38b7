package effect

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// work starts a runner over the shelf and stops it at the end of the bubble.
func work(t *testing.T, s *shelf, run HandlerFunc, change func(*Options)) *Runner {
	t.Helper()
	o := Options{Book: s, Node: "n1", Leading: func() (uint64, bool) { return 1, true }, Kinds: map[string]Handler{"test": run}}
	if change != nil {
		change(&o)
	}
	r := New(o)
	s.notify = r.Notice
	r.Start()
	t.Cleanup(r.Stop)
	return r
}

// TestFairTurns: an app with 100,000 waiting jobs delays another's by less than a second, also while each of its own takes long.
func TestFairTurns(t *testing.T) {
	t.Parallel()
	for _, takes := range []time.Duration{0, 50 * time.Millisecond, 8 * time.Second} {
		t.Run(takes.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newShelf()
				s.queue(map[bool]int{true: 20_000, false: 100_000}[takes == 0], "heavy", "h", 0)
				var mu sync.Mutex
				worst := time.Duration(0)
				r := work(t, s, func(ctx context.Context, j job.Job, _ int) error {
					if j.App == "light" {
						mu.Lock()
						worst = max(worst, time.Since(time.UnixMilli(j.Due)))
						mu.Unlock()
						return nil
					}
					pause(ctx, takes)
					return nil
				}, func(o *Options) { o.TargetPlaces = 1 << 20 })
				for range 50 {
					time.Sleep(100 * time.Millisecond)
					s.queue(1, "light", "", time.Now().UnixMilli())
				}
				time.Sleep(10 * time.Second)
				if done, _ := s.counts("light"); done != 50 {
					t.Errorf("%d of 50 are done", done)
				}
				if worst >= time.Second {
					t.Errorf("a job of the light app waited for %s", worst)
				}
				r.Stop()
			})
		})
	}
}

// TestAHangingTargetHoldsItsOwnPlaces: other targets of the same app go on.
func TestAHangingTargetHoldsItsOwnPlaces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.queue(5000, "a", "hangs", 0)
		s.queue(500, "a", "works", 0)
		r := work(t, s, func(ctx context.Context, j job.Job, _ int) error {
			if j.Target == "hangs" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, nil)
		time.Sleep(2 * time.Second)
		if done, _ := s.counts("a"); done != 500 {
			t.Errorf("%d of 500 jobs for the target that works are done", done)
		}
		r.Stop()
	})
}

// TestRetries: an attempt that fails is followed by others, later and later, until the job is dead; Permanent ends it at once, Retry chooses.
func TestRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		var mu sync.Mutex
		at := map[string][]time.Duration{}
		began := time.Now()
		for _, target := range []string{"fails", "permanent", "gone", "retry", "panics", "hangs", "recovers"} {
			s.queue(1, "a", target, 0)
		}
		r := work(t, s, func(ctx context.Context, j job.Job, attempt int) error {
			mu.Lock()
			at[j.Target] = append(at[j.Target], time.Since(began))
			mu.Unlock()
			switch j.Target {
			case "permanent":
				return Permanent(errors.New("no such thing"))
			case "gone":
				return Gone(errors.New("410"))
			case "retry":
				return Retry{After: time.Hour, Err: errors.New("later")}
			case "panics":
				panic("oh")
			case "hangs":
				<-ctx.Done()
				return fmt.Errorf("call: %w", ctx.Err())
			case "recovers":
				if attempt > 2 {
					return nil
				}
			}
			return errors.New("500")
		}, func(o *Options) {
			o.Policies = map[string]Policy{"test": {Attempts: 4, First: time.Second, Longest: 3 * time.Second, Timeout: 5 * time.Second}}
			o.Jitter = func(d time.Duration) time.Duration { return d - 1 }
		})
		time.Sleep(10 * time.Hour)
		r.Stop()
		for target, want := range map[string]int{"fails": 4, "permanent": 1, "gone": 1, "retry": 4, "panics": 4, "hangs": 4, "recovers": 3} {
			if got := len(at[target]); got != want {
				t.Errorf("%s: %d attempts, want %d: %v", target, got, want, at[target])
			}
		}
		if f := at["fails"]; len(f) == 4 {
			for i, want := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
				if got := f[i+1] - f[i]; got < want-50*time.Millisecond || got > want+500*time.Millisecond {
					t.Errorf("pause %d was %s, want %s", i+1, got, want)
				}
			}
		}
		if done, dead := s.counts("a"); done != 1 || dead != 6 {
			t.Errorf("%d done, %d dead, want 1 and 6", done, dead)
		}
		for _, j := range s.jobs {
			if j.Target == "hangs" && j.Error != "no end after 5s" {
				t.Errorf("the error of what hung: %q", j.Error)
			}
		}
	})
}

// TestWaitsAgain: a job that waits again by the same step that takes the last of its lane is not forgotten.
func TestWaitsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		gate := make(chan struct{})
		const lanes = 50
		r := work(t, s, func(_ context.Context, j job.Job, attempt int) error {
			if <-gate; attempt == 1 && j.ID <= lanes {
				return errors.New("500")
			}
			return nil
		}, func(o *Options) {
			o.Policies = map[string]Policy{"test": {Attempts: 4, First: time.Second, Longest: time.Second, Timeout: time.Hour}}
		})
		both := func() {
			for i := range lanes {
				s.queue(1, "a", fmt.Sprint("t", i), time.Now().UnixMilli())
			}
		}
		both()
		time.Sleep(time.Second) // the first of each lane run
		both()
		close(gate)
		time.Sleep(lookAgain / 2) // before the next look through everything, which would find it
		if done, _ := s.counts("a"); done != 2*lanes {
			t.Errorf("%d of %d are done", done, 2*lanes)
		}
		r.Stop()
	})
}

// TestLooksAgain: a job that nobody gave notice of is found all the same.
func TestLooksAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.queue(1, "a", "t", 0)
		r := work(t, s, func(context.Context, job.Job, int) error { return nil }, nil)
		time.Sleep(2 * time.Second)
		s.mu.Lock()
		s.notify = nil
		s.mu.Unlock()
		s.queue(1, "a", "other", 0)
		time.Sleep(2 * lookAgain)
		if done, _ := s.counts("a"); done != 2 {
			t.Errorf("%d of 2 are done", done)
		}
		r.Stop()
	})
}

// TestAnotherRunner: what one runner was at when another took over is repeated by that one, and the first writes nothing more.
func TestAnotherRunner(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		var leads sync.Map
		leads.Store("n1", true)
		runs := map[string]int{}
		var mu sync.Mutex
		start := func(name petrel.NodeID) *Runner {
			return work(t, s, func(ctx context.Context, j job.Job, _ int) error {
				mu.Lock()
				runs[string(name)]++
				mu.Unlock()
				if name == "n1" {
					pause(ctx, 5*time.Second)
				}
				return nil
			}, func(o *Options) {
				o.Node = name
				o.Leading = func() (uint64, bool) { v, ok := leads.Load(string(name)); return 7, ok && v.(bool) }
			})
		}
		first := start("n1")
		s.queue(10, "a", "", 0)
		time.Sleep(time.Second)
		second := start("n2")
		leads.Store("n1", false)
		leads.Store("n2", true)
		time.Sleep(time.Minute)
		mu.Lock()
		if runs["n1"] != 10 || runs["n2"] != 10 {
			t.Errorf("attempts: %v, want 10 by each", runs)
		}
		mu.Unlock()
		if done, _ := s.counts("a"); done != 10 {
			t.Errorf("%d done, want 10, each once", done)
		}
		for id, j := range s.jobs {
			if j.Interrupted != 1 || j.Attempts != 2 {
				t.Errorf("job %d: %d attempts, %d interrupted", id, j.Attempts, j.Interrupted)
			}
		}
		first.Stop()
		second.Stop()
	})
}

// TestTheLogDoesNotAnswer: while the disk is full nothing is lost or begun; an entry of unknown outcome that was written after all
// is found, and what it began is counted as interrupted.
func TestTheLogDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		runs := 0
		var mu sync.Mutex
		r := work(t, s, func(ctx context.Context, _ job.Job, _ int) error {
			mu.Lock()
			runs++
			mu.Unlock()
			pause(ctx, time.Second)
			return nil
		}, nil)
		s.queue(10, "a", "", 0)
		time.Sleep(500 * time.Millisecond)
		s.mu.Lock()
		s.err = petrel.Errorf(petrel.CodeDiskFull, "Full.")
		s.mu.Unlock()
		s.queue(5, "a", "", 0)
		time.Sleep(time.Minute)
		mu.Lock()
		if runs != 10 {
			t.Errorf("%d attempts while the disk was full, want 10", runs)
		}
		mu.Unlock()
		s.mu.Lock()
		s.err = nil
		s.after = []error{petrel.Errorf(petrel.CodeUnknownOutcome, "Who knows.")}
		s.mu.Unlock()
		time.Sleep(time.Minute)
		if done, _ := s.counts("a"); done != 15 {
			t.Errorf("%d done, want 15", done)
		}
		for id, j := range s.jobs {
			if want := map[bool]int{true: 1, false: 0}[id > 10]; j.Interrupted != want {
				t.Errorf("job %d was interrupted %d times, want %d", id, j.Interrupted, want)
			}
		}
		r.Stop()
	})
}

// TestRest: attempts that end soon are written down, others are interrupted and written down so; nothing begins.
func TestRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		r := work(t, s, func(ctx context.Context, j job.Job, _ int) error {
			if j.Target == "long" {
				<-ctx.Done()
				return ctx.Err()
			}
			pause(ctx, time.Second)
			return nil
		}, nil)
		s.queue(3, "a", "long", 0)
		s.queue(3, "a", "short", 0)
		time.Sleep(500 * time.Millisecond)
		began := time.Now()
		r.Rest(t.Context())
		if took := time.Since(began); took > restGrace+time.Second {
			t.Errorf("it took %s to rest", took)
		}
		s.queue(3, "a", "short", 0)
		time.Sleep(time.Minute)
		if done, _ := s.counts("a"); done != 3 {
			t.Errorf("%d done, want 3", done)
		}
		for _, j := range s.jobs {
			if j.Target == "long" && (j.State != job.Waiting || j.Interrupted != 1) {
				t.Errorf("a long one is %s, interrupted %d times", j.State, j.Interrupted)
			}
		}
		r.Resume()
		time.Sleep(time.Minute)
		if done, _ := s.counts("a"); done != 6 {
			t.Errorf("%d done after it resumed, want 6", done)
		}
		r.Stop()
	})
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// TestAHeldAppWaits: jobs of a suspended app wait and are not attempted, others go on; what runs comes to its end; afterwards all are done.
func TestAHeldAppWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		var held atomic.Bool
		r := work(t, s, func(ctx context.Context, _ job.Job, _ int) error {
			pause(ctx, 200*time.Millisecond)
			return ctx.Err()
		}, func(o *Options) { o.Held = func(app petrel.AppID) bool { return app == "bad" && held.Load() } })
		s.queue(3, "bad", "t", 0)
		time.Sleep(100 * time.Millisecond)
		held.Store(true)
		s.queue(50, "bad", "t", 0)
		s.queue(50, "good", "t", 0)
		time.Sleep(10 * time.Minute)
		if bad, _ := s.counts("bad"); bad != 3 {
			t.Errorf("while it is held %d of its jobs came to their end, want the 3 that ran", bad)
		}
		if good, _ := s.counts("good"); good != 50 {
			t.Errorf("%d of 50 jobs of the other app are done", good)
		}
		held.Store(false)
		time.Sleep(2 * time.Second)
		if bad, dead := s.counts("bad"); bad != 53 || dead != 0 {
			t.Errorf("afterwards %d of 53 are done, %d dead", bad, dead)
		}
		r.Stop()
	})
}

// TestRestIsInTime: what hangs is interrupted as soon as the time for it is over, not when the runner next looks around.
func TestRestIsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		r := work(t, s, func(ctx context.Context, _ job.Job, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}, nil)
		s.queue(1, "a", "hangs", 0)
		time.Sleep(500 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		r.Rest(ctx)
		if ctx.Err() != nil {
			t.Error("its end was not in the log in time")
		}
		r.Stop()
	})
}

// TestRestTakesTheTimeItHas: with a deadline, attempts may go on until shortly before it; those that then have no end are written down as
// interrupted before Rest returns. Another call may have less time, and none gets more.
func TestRestTakesTheTimeItHas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		r := work(t, s, func(ctx context.Context, j job.Job, _ int) error {
			if j.Target == "hangs" {
				<-ctx.Done()
				return ctx.Err()
			}
			pause(ctx, 7*time.Second)
			return ctx.Err()
		}, func(o *Options) {
			o.Policies = map[string]Policy{"test": {Timeout: time.Hour}}
		})
		s.queue(3, "a", "slow", 0)
		s.queue(3, "a", "hangs", 0)
		time.Sleep(500 * time.Millisecond)
		began := time.Now()
		long, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go r.Rest(long)
		short, cancel2 := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel2()
		r.Rest(short)
		if took := time.Since(began); took < 9*time.Second || short.Err() != nil {
			t.Errorf("it took %s to rest", took)
		}
		if done, _ := s.counts("a"); done != 3 {
			t.Errorf("%d done, want the 3 slow ones", done)
		}
		for _, j := range s.jobs {
			if j.Target == "hangs" && (j.State != job.Waiting || j.Interrupted != 1) {
				t.Errorf("one that hangs is %s, interrupted %d times", j.State, j.Interrupted)
			}
		}
		r.Stop()
	})
}
