package event

import "github.com/petrel-chat/petrel/internal/petrel"

// Kinds of job events.
const (
	KindJobsQueued     Kind = 60
	KindJobsBegun      Kind = 61
	KindJobsReported   Kind = 62
	KindJobRunnerBegan Kind = 63
	KindJobsRepeated   Kind = 64
	KindJobsDiscarded  Kind = 65
)

// Guards of jobs.
const (
	GuardJobRunner GuardKind = 40 // no key: who runs the jobs of the shard, and its last step. Version 0: nobody did yet
	GuardJob       GuardKind = 41 // key: the job's number, decimal
)

// MaxJobsQueued is how many jobs one JobsQueued may bring: a job's number has eight bits for its place in the event.
const MaxJobsQueued = 256

// JobsQueued accepts work of the entry's app, in the entry of what caused it. Job n of event i of an entry has the number
// index<<16 | i<<8 | n: it needs no counter, and it says where in the log the job came from.
type JobsQueued struct {
	// Batch is drawn by the proposer: with its place in Jobs it names a job to the world, in every attempt alike. (The
	// number does not: a recovery from one survivor may give an index to another entry.)
	Batch petrel.EntryID `cbor:"1,keyasint"`
	Jobs  []QueuedJob    `cbor:"2,keyasint"`
	// Bodies that several jobs share, or that are long: a row that changes often does not hold them.
	Bodies [][]byte `cbor:"3,keyasint,omitempty"`
}

// QueuedJob is one job of JobsQueued.
type QueuedJob struct {
	Kind   string `cbor:"1,keyasint"`
	Target string `cbor:"2,keyasint,omitempty"` // whom it bothers: a target has its own places
	Data   []byte `cbor:"3,keyasint,omitempty"` // its body, unless Body names one
	Body   uint   `cbor:"4,keyasint,omitempty"` // 1 is the first of Bodies
	Cause  uint   `cbor:"5,keyasint,omitempty"` // 1 is the entry's first event: the row keeps the seq that it took
	Due    int64  `cbor:"6,keyasint,omitempty"` // Unix milliseconds; 0: at once
}

// JobsBegun says that an attempt at each of these waiting jobs begins: it is in the log before anything is done outside.
type JobsBegun struct {
	App  petrel.AppID `cbor:"1,keyasint"`
	Jobs []uint64     `cbor:"2,keyasint"`
}

// JobsReported says what became of attempts.
type JobsReported struct {
	App  petrel.AppID `cbor:"1,keyasint"`
	Jobs []JobReport  `cbor:"2,keyasint"`
}

// JobReport is the end of one attempt.
type JobReport struct {
	Job     uint64     `cbor:"1,keyasint"`
	Outcome JobOutcome `cbor:"2,keyasint"`
	Due     int64      `cbor:"3,keyasint,omitempty"` // of the next attempt, Unix milliseconds, drawn by the runner; not of done and dead
	Error   string     `cbor:"4,keyasint,omitempty"` // for people
}

// JobOutcome is what became of an attempt. Numbers are written into the log.
type JobOutcome uint8

// Outcomes of an attempt.
const (
	JobDone        JobOutcome = 1
	JobFailed      JobOutcome = 2 // another attempt follows at Due
	JobDead        JobOutcome = 3 // none follows, unless somebody asks for it
	JobInterrupted JobOutcome = 4 // its runner ended, so nobody knows what it did: it is repeated, and not held against the job
)

// JobRunnerBegan says that this node runs the shard's jobs from here on. Begun and Reported entries change the same row and are guarded
// by it, so what a former runner still has to say is conflicted.
type JobRunnerBegan struct {
	Node petrel.NodeID `cbor:"1,keyasint"`
	Term uint64        `cbor:"2,keyasint,omitempty"` // of the node's leadership, for people
}

// JobsRepeated gives dead jobs another round of attempts, from now on.
type JobsRepeated struct {
	App  petrel.AppID `cbor:"1,keyasint"`
	Jobs []uint64     `cbor:"2,keyasint"`
}

// JobsDiscarded removes jobs that wait or are dead, because somebody wants it so.
type JobsDiscarded struct {
	App  petrel.AppID `cbor:"1,keyasint"`
	Jobs []uint64     `cbor:"2,keyasint"`
}

// EventKind implements Event.
func (JobsQueued) EventKind() Kind { return KindJobsQueued }

// EventKind implements Event.
func (JobsBegun) EventKind() Kind { return KindJobsBegun }

// EventKind implements Event.
func (JobsReported) EventKind() Kind { return KindJobsReported }

// EventKind implements Event.
func (JobRunnerBegan) EventKind() Kind { return KindJobRunnerBegan }

// EventKind implements Event.
func (JobsRepeated) EventKind() Kind { return KindJobsRepeated }

// EventKind implements Event.
func (JobsDiscarded) EventKind() Kind { return KindJobsDiscarded }
