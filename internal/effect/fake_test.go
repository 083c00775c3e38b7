package effect

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shelf is a Book of a few maps, for bubbles: no SQLite, no log. A step takes a while, as a commit does.
type shelf struct {
	mu     sync.Mutex // guards all below
	jobs   map[job.ID]*job.Job
	lanes  map[job.Lane][]job.ID // that wait, by when they are due, then in the order of queueing
	next   job.ID
	runner uint64
	steps  uint64
	took   time.Duration
	err    error   // of every step, while set
	after  []error // of the next steps: these errors are told, what was asked is done all the same
	done   map[petrel.AppID]int
	dead   map[petrel.AppID]int
	notify func(...job.Notice)
}

func newShelf() *shelf {
	return &shelf{jobs: map[job.ID]*job.Job{}, lanes: map[job.Lane][]job.ID{}, done: map[petrel.AppID]int{}, dead: map[petrel.AppID]int{}, took: 2 * time.Millisecond}
}

func laneOf(j *job.Job) job.Lane { return job.Lane{App: j.App, Target: j.Target} }

func (s *shelf) queue(n int, app petrel.AppID, target string, due int64) {
	s.mu.Lock()
	for range n {
		s.next++
		j := &job.Job{ID: s.next, App: app, Kind: "test", Target: target, State: job.Waiting, At: due, Due: due, Event: "e"}
		s.jobs[j.ID] = j
		s.wait(j)
	}
	notify := s.notify
	s.mu.Unlock()
	if notify != nil {
		notify(job.Notice{Lane: job.Lane{App: app, Target: target}, Due: due})
	}
}

func (s *shelf) wait(j *job.Job) {
	l := s.lanes[laneOf(j)]
	at, _ := slices.BinarySearchFunc(l, j, func(id job.ID, x *job.Job) int {
		return cmp.Or(cmp.Compare(s.jobs[id].At, x.At), cmp.Compare(id, x.ID))
	})
	s.lanes[laneOf(j)] = slices.Insert(l, at, j.ID)
}

func (s *shelf) Begin(ctx context.Context, _ petrel.NodeID, _ uint64) (uint64, error) {
	pause(ctx, s.took)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps++
	s.runner = s.steps
	return s.runner, s.err
}

func (s *shelf) Step(ctx context.Context, step job.Step) (job.Stepped, error) {
	pause(ctx, s.took)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return job.Stepped{}, s.err
	}
	if step.Runner != s.runner {
		return job.Stepped{}, petrel.Errorf(petrel.CodeConflict, "Another.").Because(job.ErrNotRunner)
	}
	var did job.Stepped
	now := time.Now().UnixMilli()
	for _, t := range step.Take {
		l := s.lanes[t.Lane]
		n := 0
		for n < len(l) && n < t.N && s.jobs[l[n]].At <= now {
			j := s.jobs[l[n]]
			j.State, j.Attempts, j.At = job.Running, j.Attempts+1, now
			did.Begun = append(did.Begun, *j)
			n++
		}
		s.lanes[t.Lane] = l[n:]
		next := int64(0)
		if n < len(l) {
			if next = max(s.jobs[l[n]].At, job.Now); next <= now {
				next = job.Now
			}
		}
		did.Next = append(did.Next, next)
	}
	// As the desk decides: what is due is read before the reports of the same step are folded.
	for _, rep := range step.Reports {
		j := s.jobs[rep.ID]
		if j == nil || j.State != job.Running {
			did.Lost = append(did.Lost, rep.ID)
			continue
		}
		s.report(j, rep)
	}
	s.steps++
	s.runner, did.Runner = s.steps, s.steps
	if len(s.after) > 0 {
		err := s.after[0]
		s.after = s.after[1:]
		return job.Stepped{}, err
	}
	return did, nil
}

func (s *shelf) report(j *job.Job, rep job.Report) {
	j.Error = rep.Error
	switch rep.Outcome {
	case event.JobDone:
		j.State = job.Done
		s.done[j.App]++
	case event.JobDead:
		j.State = job.Dead
		s.dead[j.App]++
	case event.JobFailed, event.JobInterrupted:
		j.State, j.At, j.Due = job.Waiting, rep.Due, rep.Due
		if rep.Outcome == event.JobFailed {
			j.Failures++
		} else {
			j.Interrupted++
			j.Losses++
		}
		s.wait(j)
	}
}

func (s *shelf) Running(context.Context) (all []job.Job, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := job.ID(1); id <= s.next; id++ {
		if j := s.jobs[id]; j.State == job.Running {
			all = append(all, *j)
		}
	}
	return all, nil
}

func (s *shelf) Lanes(_ context.Context, app petrel.AppID) (all []job.LaneDue, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for lane, ids := range s.lanes {
		if len(ids) > 0 && (app == "" || lane.App == app) {
			all = append(all, job.LaneDue{Lane: lane, Due: s.jobs[ids[0]].At})
		}
	}
	return all, nil
}

func (s *shelf) Any(context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ids := range s.lanes {
		if len(ids) > 0 {
			return true, nil
		}
	}
	for _, j := range s.jobs {
		if j.State == job.Running {
			return true, nil
		}
	}
	return false, nil
}

func (s *shelf) counts(app petrel.AppID) (done, dead int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done[app], s.dead[app]
}
