package job

import (
	"slices"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// New is a job to be queued.
type New struct {
	Kind   string // 1 to MaxKind of a–z 0–9 _ -
	Target string // 0 to MaxTarget printable ASCII: whom it bothers, e.g. a hook's id. Keep them few: each takes its turns
	Body   []byte // up to MaxBody; equal ones of one call are kept once
	// Due is when it may begin, Unix milliseconds; 0: at once.
	Due int64
	// Cause is the place of the event in its entry, from 1, whose seq the job keeps; 0: none.
	Cause int
}

// Queue returns the events that accept the jobs for an app, to go into the entry of what causes them. It draws their
// names, so it is for a command's Decide, never for a fold. An app over its limits is refused: CodeJobsFull.
func Queue(r *projection.Reader, app petrel.AppID, l Limits, jobs ...New) ([]event.Event, error) {
	if len(jobs) == 0 {
		return nil, nil
	}
	if app == "" {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "A job is of an app.")
	}
	for _, j := range jobs {
		if err := check(j); err != nil {
			return nil, err
		}
	}
	ledger, err := LedgerOf(r, app)
	if err != nil {
		return nil, err
	}
	if err := fits(ledger, l, len(jobs)); err != nil {
		return nil, err
	}
	var events []event.Event
	for part := range slices.Chunk(jobs, event.MaxJobsQueued) {
		events = append(events, queued(petrel.NewEntryID(), part))
	}
	return events, nil
}

// The commands. Enqueue, Repeat and Discard are for an app's backend, operators and the system; the others for the runner alone.

// Enqueue queues jobs for the actor's app and answers with their ids ([]ID). Only the system may: apps cause jobs by what they do.
type Enqueue struct {
	Jobs   []New
	Limits Limits
}

// Repeat gives dead jobs of an app another round of attempts. It answers with those it changed ([]ID). A job that is no
// longer dead is CodeJobState, one that is not there CodeJobNotFound; with Lenient both are passed over.
type Repeat struct {
	App     petrel.AppID
	Jobs    []ID // up to MaxStep
	Lenient bool
	Limits  Limits
}

// Discard removes jobs of an app that wait or are dead, and answers as Repeat.
type Discard struct {
	App     petrel.AppID
	Jobs    []ID // up to MaxStep
	Lenient bool
}

// BeginRunner makes the node the shard's runner of jobs and answers with the version (uint64) that its steps name.
type BeginRunner struct {
	Node petrel.NodeID
	Term uint64
}

// Step is one step of the runner: it reports attempts that ended and begins others, in one entry. It answers with Stepped.
// When another node has become the runner meanwhile it is refused with an error that wraps ErrNotRunner.
type Step struct {
	Runner  uint64   // what BeginRunner answered, or the step before this one
	Reports []Report // up to MaxStep, of up to MaxStepApps apps
	Take    []Take   // up to MaxStep jobs together, of up to MaxStepApps apps
	// MaxBytes of bodies together that are begun; the first is begun however long it is. 0: no bound.
	MaxBytes int
}

// MaxStepApps is of how many apps the reports of one step, and the jobs it begins, may be: each makes an event.
const MaxStepApps = 120

// Lane is the queue of one app for one target.
type Lane struct {
	App    petrel.AppID
	Target string
}

// Take asks for up to N due jobs of a lane. Of those that were due at once and those that were due at a time (retries,
// schedules) each gets half; with Odd the others get the one more.
type Take struct {
	Lane
	N   int
	Odd bool
}

// Report is the end of an attempt.
type Report struct {
	App     petrel.AppID
	ID      ID
	Outcome event.JobOutcome
	Due     int64  // of the next attempt, Unix milliseconds
	Error   string // cut to MaxError
}

// Now is a due time that has come, whatever the clock says.
const Now = 1

// Stepped is what a Step did.
type Stepped struct {
	Runner uint64  // for the next step
	Begun  []Job   // with their bodies; State, Attempts and At are those of the attempt
	Next   []int64 // for each Take, when the lane's next job is due, Unix milliseconds; 0: no other waits, Now: one is
	Lost   []ID    // reported, but not running: they were never this runner's
}

// CommandKind names the kind of command: a label of metrics.
func (Enqueue) CommandKind() string { return "job.enqueue" }

// CommandKind is as in Enqueue.
func (Repeat) CommandKind() string { return "job.repeat" }

// CommandKind is as in Enqueue.
func (Discard) CommandKind() string { return "job.discard" }

// CommandKind is as in Enqueue.
func (BeginRunner) CommandKind() string { return "job.begin_runner" }

// CommandKind is as in Enqueue.
func (Step) CommandKind() string { return "job.step" }

// Decide queues the jobs or refuses.
func (c Enqueue) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkSystem(s.Actor); err != nil {
		return event.Decision{}, err
	}
	events, err := Queue(r, s.App, c.Limits, c.Jobs...)
	if err != nil {
		return event.Decision{}, err
	}
	return event.Decision{Events: events, Answer: func(s event.Stamp, _ []uint64) any {
		ids := make([]ID, len(c.Jobs))
		for i := range ids {
			ids[i] = idOf(s.Index, i/event.MaxJobsQueued, i%event.MaxJobsQueued)
		}
		return ids
	}}, nil
}

// Decide repeats the jobs or refuses.
func (c Repeat) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkOwner(s.Actor, c.App, len(c.Jobs)); err != nil {
		return event.Decision{}, err
	}
	found, err := loadStates(r, c.App, c.Jobs)
	if err != nil {
		return event.Decision{}, err
	}
	ledger, err := LedgerOf(r, c.App)
	if err != nil {
		return event.Decision{}, err
	}
	return decideRepeat(found, ledger, c)
}

// Decide discards the jobs or refuses.
func (c Discard) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkOwner(s.Actor, c.App, len(c.Jobs)); err != nil {
		return event.Decision{}, err
	}
	found, err := loadStates(r, c.App, c.Jobs)
	if err != nil {
		return event.Decision{}, err
	}
	return decideDiscard(found, c)
}

// Decide makes the node the runner.
func (c BeginRunner) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkSystem(s.Actor); err != nil {
		return event.Decision{}, err
	}
	now, err := RunnerOf(r)
	if err != nil {
		return event.Decision{}, err
	}
	return event.Decision{
		Events: []event.Event{event.JobRunnerBegan{Node: c.Node, Term: c.Term}},
		Guards: []event.Guard{guardRunner(now.Version)},
		Answer: func(s event.Stamp, _ []uint64) any { return s.Index },
	}, nil
}

// Decide chooses what begins, and keeps of the reports what is running.
func (c Step) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkSystem(s.Actor); err != nil {
		return event.Decision{}, err
	}
	now, err := RunnerOf(r)
	if err != nil {
		return event.Decision{}, err
	}
	if now.Version != c.Runner || c.Runner == 0 { // 0: nobody has begun, and there is no row to step on
		return event.Decision{}, errNotRunner(now)
	}
	ids := make([]ID, len(c.Reports))
	for i, rep := range c.Reports {
		ids[i] = rep.ID
	}
	found, err := loadStates(r, "", ids)
	if err != nil {
		return event.Decision{}, err
	}
	due, next, err := loadDue(r, s.At, c.Take, c.MaxBytes)
	if err != nil {
		return event.Decision{}, err
	}
	return decideStep(found, due, next, s.At, c), nil
}
