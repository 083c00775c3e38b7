package job

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// ErrNotRunner is what a Step meets that another runner has overtaken.
var ErrNotRunner = errors.New("job: another node runs the jobs")

// retryFull is what a command is told that would queue more than there is room for.
const retryFull = 5 * time.Second

// queued makes one event of up to MaxJobsQueued jobs. A body that several have, or that is long, is kept beside them.
func queued(batch petrel.EntryID, jobs []New) event.JobsQueued {
	ev := event.JobsQueued{Batch: batch, Jobs: make([]event.QueuedJob, len(jobs))}
	uses := map[string]int{}
	for _, j := range jobs {
		uses[string(j.Body)]++
	}
	places := map[string]uint{}
	for i, j := range jobs {
		q := event.QueuedJob{Kind: j.Kind, Target: j.Target, Due: j.Due, Cause: uint(max(0, j.Cause))} //nolint:gosec // not negative
		body := string(j.Body)
		if len(body) <= inline && (uses[body] == 1 || len(body) <= 16) {
			q.Data = j.Body
		} else {
			if places[body] == 0 {
				ev.Bodies = append(ev.Bodies, j.Body)
				places[body] = uint(len(ev.Bodies))
			}
			q.Body = places[body]
		}
		ev.Jobs[i] = q
	}
	return ev
}

// fits refuses what would pass the app's limits.
func fits(l Ledger, limits Limits, more int) error {
	limits = limits.withDefaults()
	switch {
	case l.Waiting+l.Running+uint64(more) > uint64(limits.Waiting): //nolint:gosec // both are positive
		return petrel.Errorf(petrel.CodeJobsFull, "The app has %d jobs that wait, and may have %d: nothing was done. See why they are not carried out (GET /v1/jobs?state=waiting), or try again later.",
			l.Waiting+l.Running, limits.Waiting).After(retryFull)
	case l.Dead >= uint64(limits.Dead): //nolint:gosec // positive
		return petrel.Errorf(petrel.CodeJobsFull, "The app has %d dead jobs, and may have %d: nothing was done. Look at them (GET /v1/jobs?state=dead), then repeat or discard them.",
			l.Dead, limits.Dead).After(retryFull)
	}
	return nil
}

// standing is a job as far as deciding on it needs it; version 0: there is none.
type standing struct {
	id      ID
	app     petrel.AppID
	state   State
	version uint64
}

func decideRepeat(found []standing, ledger Ledger, c Repeat) (event.Decision, error) {
	var jobs []standing
	for _, j := range found {
		switch {
		case j.state == Dead:
			jobs = append(jobs, j)
		case c.Lenient:
		case j.version == 0:
			return event.Decision{}, errNoJob(j.id)
		case j.state == Done:
			return event.Decision{}, petrel.Errorf(petrel.CodeJobState, "The job %s is done: there is nothing to repeat.", j.id)
		}
	}
	ledger.Dead -= min(ledger.Dead, uint64(len(jobs)))
	if err := fits(ledger, c.Limits, len(jobs)); err != nil {
		return event.Decision{}, err
	}
	return settle(jobs, func(keys []uint64) event.Event { return event.JobsRepeated{App: c.App, Jobs: keys} }), nil
}

func decideDiscard(found []standing, c Discard) (event.Decision, error) {
	var jobs []standing
	for _, j := range found {
		switch {
		case j.state == Dead || j.state == Waiting:
			jobs = append(jobs, j)
		case c.Lenient:
		case j.version == 0:
			return event.Decision{}, errNoJob(j.id)
		default:
			return event.Decision{}, petrel.Errorf(petrel.CodeJobState, "The job %s is %s: only what waits or is dead can be discarded.", j.id, j.state)
		}
	}
	return settle(jobs, func(keys []uint64) event.Event { return event.JobsDiscarded{App: c.App, Jobs: keys} }), nil
}

// settle changes the jobs, each guarded.
func settle(jobs []standing, ev func(keys []uint64) event.Event) event.Decision {
	ids := make([]ID, 0, len(jobs))
	var keys []uint64
	var d event.Decision
	for _, j := range jobs {
		ids, keys = append(ids, j.id), append(keys, uint64(j.id))
		d.Guards = append(d.Guards, guardJob(j.id, j.version))
	}
	d.Repeated = len(jobs) == 0
	if len(jobs) > 0 {
		d.Events = []event.Event{ev(keys)}
	}
	d.Answer = func(event.Stamp, []uint64) any { return ids }
	return d
}

// decideStep reports those of the reports that are running, and begins what is due.
func decideStep(found []standing, due []Job, next []int64, at int64, c Step) event.Decision {
	answer := Stepped{Runner: c.Runner, Next: next}
	d := event.Decision{Answer: func(s event.Stamp, _ []uint64) any {
		if s.Index > 0 {
			answer.Runner = s.Index
		}
		return answer
	}}
	reports := map[petrel.AppID]int{}
	for i, j := range found {
		rep := c.Reports[i]
		if j.state != Running || j.app != rep.App {
			answer.Lost = append(answer.Lost, rep.ID)
			continue
		}
		n, ok := reports[rep.App]
		if !ok {
			n = len(d.Events)
			reports[rep.App] = n
			d.Events = append(d.Events, event.JobsReported{App: rep.App})
		}
		ev := d.Events[n].(event.JobsReported)
		ev.Jobs = append(ev.Jobs, event.JobReport{Job: uint64(rep.ID), Outcome: rep.Outcome, Due: rep.Due, Error: cut(rep.Error, MaxError)})
		d.Events[n] = ev
	}
	begins := map[petrel.AppID]int{}
	for _, j := range due {
		n, ok := begins[j.App]
		if !ok {
			n = len(d.Events)
			begins[j.App] = n
			d.Events = append(d.Events, event.JobsBegun{App: j.App})
		}
		ev := d.Events[n].(event.JobsBegun)
		ev.Jobs = append(ev.Jobs, uint64(j.ID))
		d.Events[n] = ev
		d.Guards = append(d.Guards, guardJob(j.ID, j.version))
		j.State, j.At, j.Attempts = Running, at, j.Attempts+1
		answer.Begun = append(answer.Begun, j)
	}
	if len(d.Events) > 0 {
		d.Guards = append(d.Guards, guardRunner(c.Runner))
	}
	return d
}

// cut shortens s to n bytes of whole characters, and to UTF-8.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func guardRunner(version uint64) event.Guard {
	return event.Guard{Kind: event.GuardJobRunner, Version: version}
}

func guardJob(id ID, version uint64) event.Guard {
	return event.Guard{Kind: event.GuardJob, Key: []string{strconv.FormatUint(uint64(id), 10)}, Version: version}
}

func errNotRunner(now Runner) error {
	return petrel.Errorf(petrel.CodeConflict, "The jobs are run by %s now.", now.Node).Because(ErrNotRunner)
}

func errNoJob(id ID) error {
	return petrel.Errorf(petrel.CodeJobNotFound, "There is no job %s here; what is done is forgotten after a while.", id)
}

func checkSystem(a petrel.Actor) error {
	if a.Kind != petrel.ActorSystem {
		return petrel.Errorf(petrel.CodeForbidden, "Only Petrel itself may do that.")
	}
	return nil
}

// checkOwner lets the app's backend and operators in.
func checkOwner(a petrel.Actor, app petrel.AppID, jobs int) error {
	if a.Kind != petrel.ActorOperator && (a.Kind != petrel.ActorApp || a.App != app) {
		return petrel.Errorf(petrel.CodeForbidden, "Jobs are the business of the app's backend: sign in with its key and secret.")
	}
	if jobs == 0 || jobs > MaxStep {
		return petrel.Errorf(petrel.CodeInvalidField, "Name from 1 to %d jobs.", MaxStep)
	}
	return nil
}

func check(j New) error {
	switch {
	case j.Kind == "" || len(j.Kind) > MaxKind || strings.ContainsFunc(j.Kind, notInKind):
		return petrel.Errorf(petrel.CodeInvalidField, "The kind of a job must be 1 to %d characters of a–z 0–9 _ - only.", MaxKind)
	case len(j.Target) > MaxTarget || strings.ContainsFunc(j.Target, func(r rune) bool { return r < ' ' || r > '~' }):
		return petrel.Errorf(petrel.CodeInvalidField, "The target of a job must be up to %d printable ASCII characters.", MaxTarget)
	case len(j.Body) > MaxBody:
		return petrel.Errorf(petrel.CodeTooLarge, "The body of a job is %d bytes long; at most %d are allowed.", len(j.Body), MaxBody)
	case j.Due < 0 || j.Cause < 0 || j.Cause > event.MaxEntryEvents:
		return petrel.Errorf(petrel.CodeInvalidField, "A job is due before 1970, or caused by an event that no entry has.")
	}
	return nil
}

func notInKind(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !slices.Contains([]rune{'_', '-'}, r)
}
