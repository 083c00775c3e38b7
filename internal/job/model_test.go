package job

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// TestHistories folds random commands of producers, operators and runners that overtake each other, several of them decided on
// one state, and holds rows and ledgers against a model of a few maps after every entry.
func TestHistories(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++ // each history has apps of its own: opening a projection costs more than a history
		h := &history{world: w, rt: rt, jobs: map[ID]*modelJob{}, ledgers: map[petrel.AppID]*Ledger{}}
		for i := range 2 {
			app := petrel.AppID(fmt.Sprintf("%d-%d", n, i))
			h.apps = append(h.apps, app)
			h.ledgers[app] = &Ledger{App: app}
		}
		for range rapid.IntRange(1, 25).Draw(rt, "entries") {
			w.now += rapid.Int64Range(0, 3000).Draw(rt, "pause")
			h.entry()
			h.check()
		}
		h.finish()
	})
	w.agree()
}

// modelJob is what a job should be.
type modelJob struct {
	app                                     petrel.AppID
	kind, target, event                     string
	state                                   State
	at                                      int64
	attempts, interrupted, failures, losses int
	body                                    string
}

type history struct {
	*world
	rt      *rapid.T
	apps    []petrel.AppID
	jobs    map[ID]*modelJob
	ledgers map[petrel.AppID]*Ledger
	runner  uint64   // by the log
	claims  []uint64 // what runners think of themselves
}

// entry decides two commands on one state and folds both: the second may conflict.
func (h *history) entry() {
	var plans []applytest.Planned
	var cmds []command
	for range rapid.IntRange(1, 2).Draw(h.rt, "at once") {
		actor, cmd := h.draw()
		p, err := h.plan(actor, cmd)
		if s, ok := cmd.(Step); ok && s.Runner != h.runner && err == nil {
			h.rt.Fatalf("a runner that was overtaken (%d, now %d) may step", s.Runner, h.runner)
		}
		if code := petrel.CodeOf(err); err != nil {
			if code == petrel.CodeInternal {
				h.rt.Fatalf("%T: %v", cmd, err)
			}
			continue
		}
		if len(p.Decision.Events) > 0 {
			plans, cmds = append(plans, p), append(cmds, cmd)
		}
	}
	if len(plans) == 0 {
		return
	}
	first := uint64(len(h.Records)) + 1
	for i, o := range h.Fold(plans...) {
		if !o.Conflicted {
			h.apply(first+uint64(i), plans[i])
		} else if i == 0 {
			h.rt.Fatalf("%T conflicted with nobody", cmds[0])
		}
	}
}

// apply does to the model what the events say.
func (h *history) apply(index uint64, p applytest.Planned) {
	for place, ev := range p.Entry.Events {
		switch ev.(type) {
		case event.JobsBegun, event.JobsReported, event.JobRunnerBegan:
			h.runner = index
			h.claims = append(h.claims, index)
		}
		switch ev := ev.(type) {
		case event.JobsQueued:
			l := h.ledgers[p.Entry.App]
			for n, q := range ev.Jobs {
				body := q.Data
				if q.Body > 0 {
					body = ev.Bodies[q.Body-1]
				}
				h.jobs[idOf(index, place, n)] = &modelJob{
					app: p.Entry.App, kind: q.Kind, target: q.Target, event: fmt.Sprintf("%s-%d", ev.Batch, n), state: Waiting, at: q.Due, body: string(body),
				}
				l.Accepted++
				l.Waiting++
			}
		case event.JobsBegun:
			for _, key := range ev.Jobs {
				h.move(ID(key), Waiting, Running, p.Entry.At, func(j *modelJob) { j.attempts++ })
			}
		case event.JobsReported:
			for _, rep := range ev.Jobs {
				h.report(rep, p.Entry.At)
			}
		case event.JobsRepeated:
			for _, key := range ev.Jobs {
				h.move(ID(key), Dead, Waiting, 0, func(j *modelJob) { j.failures, j.losses = 0, 0 })
			}
		case event.JobsDiscarded:
			for _, key := range ev.Jobs {
				j := h.jobs[ID(key)]
				h.count(j.app, j.state, -1)
				h.ledgers[j.app].Discarded++
				delete(h.jobs, ID(key))
			}
		}
	}
}

func (h *history) report(rep event.JobReport, at int64) {
	id := ID(rep.Job)
	switch rep.Outcome {
	case event.JobDone:
		h.move(id, Running, Done, at, func(j *modelJob) { j.body = "" })
	case event.JobFailed:
		h.move(id, Running, Waiting, rep.Due, func(j *modelJob) { j.failures++ })
	case event.JobDead:
		h.move(id, Running, Dead, at, func(j *modelJob) { j.failures++ })
	case event.JobInterrupted:
		h.move(id, Running, Waiting, rep.Due, func(j *modelJob) { j.interrupted++; j.losses++ })
	}
}

func (h *history) move(id ID, from, to State, at int64, change func(*modelJob)) {
	j := h.jobs[id]
	if j == nil || j.state != from {
		h.rt.Fatalf("%s goes from %v to %v: %+v", id, from, to, j)
	}
	h.count(j.app, from, -1)
	h.count(j.app, to, 1)
	j.state, j.at = to, at
	change(j)
}

func (h *history) count(app petrel.AppID, s State, by int) {
	l := h.ledgers[app]
	n := map[State]*uint64{Waiting: &l.Waiting, Running: &l.Running, Done: &l.Done, Dead: &l.Dead}[s]
	*n += uint64(by) //nolint:gosec // wraps back
}

// draw chooses a command: good ones mostly.
func (h *history) draw() (petrel.Actor, command) {
	rt := h.rt
	app := rapid.SampledFrom(h.apps).Draw(rt, "app")
	switch rapid.IntRange(0, 9).Draw(rt, "verb") {
	case 0, 1, 2:
		return of(petrel.ActorSystem, app), Enqueue{Jobs: h.drawJobs(), Limits: Limits{Waiting: 40, Dead: 10}}
	case 3:
		return system, BeginRunner{Node: petrel.NodeID(rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "node")), Term: 1}
	case 4:
		return of(petrel.ActorApp, app), Repeat{App: app, Jobs: h.drawIDs(), Lenient: rapid.Bool().Draw(rt, "lenient"), Limits: Limits{Waiting: 40}}
	case 5:
		return operator, Discard{App: app, Jobs: h.drawIDs(), Lenient: rapid.Bool().Draw(rt, "lenient")}
	default:
		return system, h.drawStep()
	}
}

func (h *history) drawJobs() []New {
	shared := bytes.Repeat([]byte("x"), rapid.SampledFrom([]int{0, 3, 600}).Draw(h.rt, "size"))
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) New {
		n := New{Kind: rapid.SampledFrom([]string{"webhook", "mail"}).Draw(t, "kind"), Target: rapid.SampledFrom([]string{"", "h1"}).Draw(t, "target")}
		n.Due = rapid.SampledFrom([]int64{0, 0, h.now - 5, h.now + 2000}).Draw(t, "due")
		if n.Body = shared; rapid.Bool().Draw(t, "own") {
			n.Body = []byte(rapid.StringN(0, 5, -1).Draw(t, "body"))
		}
		return n
	}), 1, 6).Draw(h.rt, "jobs")
}

func (h *history) drawIDs() []ID {
	all := slices.Sorted(maps.Keys(h.jobs))
	all = append(all, 1<<40, 0)
	return rapid.SliceOfN(rapid.SampledFrom(all), 1, 4).Draw(h.rt, "ids")
}

func (h *history) drawStep() Step {
	s := Step{Runner: h.runner, MaxBytes: 1 << 20}
	if len(h.claims) > 0 && rapid.IntRange(0, 4).Draw(h.rt, "overtaken") == 0 {
		s.Runner = rapid.SampledFrom(h.claims).Draw(h.rt, "claim")
	}
	for _, app := range h.apps {
		for _, target := range []string{"", "h1"} {
			if n := rapid.IntRange(0, 4).Draw(h.rt, "take"); n > 0 {
				s.Take = append(s.Take, Take{Lane: Lane{app, target}, N: n, Odd: rapid.Bool().Draw(h.rt, "odd")})
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(h.jobs)) {
		j := h.jobs[id]
		if j.state != Running || rapid.IntRange(0, 2).Draw(h.rt, "goes on") == 0 {
			continue
		}
		rep := Report{App: j.app, ID: id, Outcome: event.JobOutcome(rapid.IntRange(1, 4).Draw(h.rt, "outcome"))} //nolint:gosec // small
		switch rep.Outcome {
		case event.JobFailed, event.JobInterrupted:
			rep.Due, rep.Error = h.now+rapid.Int64Range(1, 4000).Draw(h.rt, "again"), "no ⚓"
		case event.JobDead:
			rep.Error = "never"
		}
		s.Reports = append(s.Reports, rep)
		if rapid.IntRange(0, 9).Draw(h.rt, "twice") == 0 {
			s.Reports = append(s.Reports, rep)
		}
	}
	return s
}

// check compares every row and every ledger with the model.
func (h *history) check() {
	for _, app := range h.apps {
		got := mustView(h.world, func(r *projection.Reader) (Ledger, error) { return LedgerOf(r, app) })
		want := *h.ledgers[app]
		if got.Off() != 0 {
			h.rt.Fatalf("the ledger does not add up: %+v", got)
		}
		want.Kept, want.Attempts, want.Failed, want.Interrupted, want.Repeated, want.LastQueued = want.Done, got.Attempts, got.Failed, got.Interrupted, got.Repeated, got.LastQueued
		if d := cmp.Diff(want, got); d != "" {
			h.rt.Fatalf("ledger (-model +rows):\n%s", d)
		}
		if off := mustView(h.world, func(r *projection.Reader) (uint64, error) { return Audit(r, app) }); off != 0 {
			h.rt.Fatalf("audit: %d rows off", off)
		}
	}
	for id, want := range h.jobs {
		got := mustView(h.world, func(r *projection.Reader) (Job, error) { return Get(r, want.app, id) })
		have := modelJob{got.App, got.Kind, got.Target, got.Event, got.State, got.At, got.Attempts, got.Interrupted, got.Failures, got.Losses, string(got.Body)}
		if d := cmp.Diff(*want, have, cmp.AllowUnexported(modelJob{})); d != "" {
			h.rt.Fatalf("job %s (-model +row):\n%s", id, d)
		}
	}
}

// finish begins and ends all that is left: nothing may stay behind, bodies neither.
func (h *history) finish() {
	h.now += 10_000
	h.runner = must[uint64](h.world, system, BeginRunner{Node: "last"})
	for range 200 {
		s := Step{Runner: h.runner}
		for id, j := range h.jobs {
			if j.state == Running {
				s.Reports = append(s.Reports, Report{App: j.app, ID: id, Outcome: event.JobDone})
			}
		}
		for _, l := range mustView(h.world, func(r *projection.Reader) ([]LaneDue, error) { return Lanes(r, Lane{}, 10) }) {
			if h.ledgers[l.App] != nil {
				s.Take = append(s.Take, Take{Lane: l.Lane, N: 7})
			}
		}
		p, err := h.plan(system, s)
		if err != nil {
			h.rt.Fatal(err)
		}
		if len(p.Decision.Events) == 0 {
			break
		}
		h.Fold(p)
		h.apply(uint64(len(h.Records)), p)
	}
	h.check()
	for _, app := range h.apps {
		var dead []ID
		for id, j := range h.jobs {
			if j.app == app && j.state == Dead {
				dead = append(dead, id)
			}
		}
		if len(dead) > 0 {
			must[[]ID](h.world, operator, Discard{App: app, Jobs: dead})
		}
		l := mustView(h.world, func(r *projection.Reader) (Ledger, error) { return LedgerOf(r, app) })
		if l.Waiting+l.Running+l.Dead != 0 || l.Off() != 0 {
			h.rt.Fatalf("left behind: %+v", l)
		}
	}
	if rest := h.Dump(`SELECT count(*) FROM job_body`); rest != "0\n" {
		h.rt.Fatalf("%s bodies are left behind", rest)
	}
}
