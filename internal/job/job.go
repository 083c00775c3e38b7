// Package job holds durable work: webhooks and whatever else is done outside because of an entry, and schedules, which cause entries by the clock. A job is accepted in the
// entry of what caused it, waits until it is due, is attempted, and ends done or dead; dead ones can be looked at, repeated and
// discarded. Here are the rules; package effect runs what they say.
//
// A command is decided against one snapshot of the projection (command.go, decide.go), its events are folded into rows by every
// replica alike (fold.go). Producers make jobs with Queue, for the entry of their own command. docs/JOBS.md tells it to users.
//
// # States
//
//	            ┌──────── failed, interrupted ───────┐
//	            ▼                                    │
//	queue ─► waiting ── begin (one attempt) ─► running ─► done (counted; the row goes after a while)
//	            ▲  │                              │
//	            │  └─ discard ─► (counted)        ▼
//	            └──────── repeat ─────────────── dead ── discard ─► (counted)
//
// # Invariants
//
//   - A job is in exactly one state, and the ledger of its app says how many are in each: accepted = waiting + running + done +
//     dead + discarded, after every event. Nothing else ends a job.
//   - An attempt is in the log before anything is done outside, and its end is. What is running in the log and not in its runner's
//     memory was interrupted: it is reported so, counted, and repeated under the same event id.
//   - One runner at a time, one step after the other: each Step is guarded by the row that the one before it changed, and
//     BeginRunner. What a former runner still has to say is conflicted, and so is a step that comes twice.
//   - Who decides on one job guards its row: of a begin and a discard that meet, one is decided again.
//   - The fold draws nothing: due times, with their jitter, come with the report.
//   - Folding one event costs a bounded number of rows: a few for each job that it names.
//   - A schedule is fired by an entry that moves it to its next time, which the proposer made out, and that is guarded by its row: each of its
//     times is told once at most, and one that could not be told in time is counted in the next entry that tells.
//   - The rows of an app are bounded: Limits for what waits and what is dead, KeepDone for what is done. What would pass the
//     limits is refused before the log, by CodeJobsFull; commands that are decided at the same moment may pass them together.
//
// What callers may not rely on: keys of rows, and the text of an error. Every refusal is a petrel.Error; any other error means
// that the projection failed.
package job

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Sizes.
const (
	MaxKind   = 32       // bytes of a kind
	MaxTarget = 128      // bytes of a target
	MaxError  = 500      // bytes of what is kept of an attempt's error
	MaxBody   = 96 << 10 // bytes of a job's body: it shares its entry with what caused it
	MaxPage   = 1_000
	// MaxStep is how many jobs one Step may begin, and how many it may report. The guards of an entry bound the first.
	MaxStep = event.MaxEntryGuards - 2
	// KeepDone is how many rows of done jobs an app keeps, the youngest. It is part of what the log means: changing
	// it needs a new feature level.
	KeepDone = 1_000
	// inline is up to how many bytes a body lies in the job's own row.
	inline = 512
)

// ID is the number of a job in its shard: it says which entry brought it.
type ID uint64

// idOf is the number of job n of an event.
func idOf(index uint64, place, n int) ID { return ID(index<<16 | uint64(place)<<8 | uint64(n)) } //nolint:gosec // both are below 256

// String returns the form that people and callers see: index of the entry, event, job.
func (id ID) String() string {
	return fmt.Sprintf("%d.%d.%d", uint64(id)>>16, uint64(id)>>8&0xff, uint64(id)&0xff)
}

// ParseID reads what String wrote; anything else is CodeInvalidID.
func ParseID(s string) (ID, error) {
	parts := strings.Split(s, ".")
	var n [3]uint64
	for i, p := range parts {
		if i == len(n) {
			break
		}
		v, err := strconv.ParseUint(p, 10, 47)
		if err != nil {
			break
		}
		n[i] = v
	}
	id := ID(n[0]<<16 | n[1]<<8 | n[2])
	if n[1] > math.MaxUint8 || n[2] > math.MaxUint8 || id.String() != s {
		return 0, petrel.Errorf(petrel.CodeInvalidID, "The job id is not one that this server gave out. It looks like 1234.1.0.")
	}
	return id, nil
}

// State of a job. Numbers are written into rows.
type State uint8

// States of a job.
const (
	Waiting State = 1 // until it is due, and its turn comes
	Running State = 2 // an attempt has begun
	Done    State = 3
	Dead    State = 4 // attempted as often as it may be, or hopeless: somebody has to look at it
)

// stateNames by number; never written after initialisation.
var stateNames = []string{Waiting: "waiting", Running: "running", Done: "done", Dead: "dead"}

func (s State) String() string {
	if s == 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return stateNames[s]
}

// ParseState reads what String wrote; anything else is CodeInvalidField.
func ParseState(s string) (State, error) {
	for i, name := range stateNames {
		if i > 0 && name == s {
			return State(i), nil //nolint:gosec // 4 of them
		}
	}
	return 0, petrel.Errorf(petrel.CodeInvalidField, "The state of a job is one of %s.", strings.Join(stateNames[1:], ", "))
}

// Job is one job as it stands.
type Job struct {
	ID     ID
	App    petrel.AppID
	Kind   string
	Target string
	State  State
	// Event names the job to the world: the same in every attempt, and for ever.
	Event string
	// Attempts begun so far, of which Interrupted ended with their runner. Failures are those that count against the job
	// since it was queued or repeated, Losses those that were interrupted since then.
	Attempts, Interrupted, Failures, Losses int
	QueuedAt                                int64 // Unix milliseconds
	// At is when it is due while it waits (0: at once), when the attempt began while it runs, and when it ended after that.
	At    int64
	Due   int64  // when it is or was due, if it waits or was just begun
	Seq   uint64 // that the event which caused it took; 0: none
	Error string // of the last attempt that failed
	Body  []byte // nil where a page of jobs leaves it away, and once it is done

	version uint64
}

// Index of the entry that queued the job.
func (j Job) Index() uint64 { return uint64(j.ID) >> 16 }

// Ledger is what became of all that an app ever queued.
type Ledger struct {
	App                                                 petrel.AppID
	Accepted, Waiting, Running, Done, Dead, Discarded   uint64
	Kept                                                uint64 // rows of done jobs
	Attempts, Failed, Interrupted, Repeated, LastQueued uint64 // of attempts: begun, failed, interrupted; of jobs: repeated
}

// Off is by how much the ledger does not add up: 0, unless this build is wrong.
func (l Ledger) Off() uint64 {
	sum := l.Waiting + l.Running + l.Done + l.Dead + l.Discarded
	return max(l.Accepted, sum) - min(l.Accepted, sum)
}

// Limits of one app; a zero field takes the default.
type Limits struct {
	Waiting int // jobs that wait or run. Default 100,000
	Dead    int // dead ones that nobody has looked at. Default ten times Waiting
}

// DefaultWaiting is the default of Limits.Waiting.
const DefaultWaiting = 100_000

func (l Limits) withDefaults() Limits {
	if l.Waiting <= 0 {
		l.Waiting = DefaultWaiting
	}
	if l.Dead <= 0 {
		l.Dead = 10 * l.Waiting
	}
	return l
}

// Module is the part of the projection that job keeps.
func Module() projection.Module {
	return projection.Module{Name: "job", Migrations: []string{schema, scheduleSchema}}
}

// Kinds returns every kind of event that Fold takes.
func Kinds() []event.Kind {
	return []event.Kind{
		event.KindJobsQueued, event.KindJobsBegun, event.KindJobsReported, event.KindJobRunnerBegan,
		event.KindJobsRepeated, event.KindJobsDiscarded,
		event.KindScheduleSet, event.KindScheduleRemoved, event.KindScheduleFired,
	}
}

// GuardKinds returns every kind of guard that Version answers.
func GuardKinds() []event.GuardKind {
	return []event.GuardKind{event.GuardJobRunner, event.GuardJob, event.GuardSchedule, event.GuardSchedules}
}
