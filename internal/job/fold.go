package job

import (
	"fmt"
	"strconv"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// schema holds the rows. What waits is found by lane (app and target) and due time; every state of an app is listed by key,
// which is the order of queueing. Long and shared bodies have a table of their own, so that a change of state does not rewrite them.
const schema = `
CREATE TABLE job (
  key         INTEGER PRIMARY KEY,  -- index of the entry << 16 | event << 8 | place
  app         TEXT NOT NULL,
  state       INTEGER NOT NULL,
  kind        TEXT NOT NULL,
  target      TEXT NOT NULL,
  at          INTEGER NOT NULL,     -- due (0: at once), begun, or ended
  queued_at   INTEGER NOT NULL,
  attempts    INTEGER NOT NULL DEFAULT 0,
  interrupted INTEGER NOT NULL DEFAULT 0,
  failures    INTEGER NOT NULL DEFAULT 0,  -- since it was queued or repeated, as losses
  losses      INTEGER NOT NULL DEFAULT 0,
  seq         INTEGER NOT NULL,
  batch       BLOB NOT NULL,
  version     INTEGER NOT NULL,
  body        INTEGER,              -- key in job_body
  data        BLOB,                 -- or a short body of its own
  error       TEXT
) STRICT;
CREATE INDEX job_due ON job (app, target, at) WHERE state = 1;
CREATE INDEX job_state ON job (state, app);

CREATE TABLE job_body (
  key  INTEGER PRIMARY KEY,         -- as the key of a job
  jobs INTEGER NOT NULL,            -- that have it
  data BLOB NOT NULL
) STRICT;

CREATE TABLE job_ledger (
  app         TEXT NOT NULL PRIMARY KEY,
  accepted    INTEGER NOT NULL,
  waiting     INTEGER NOT NULL,
  running     INTEGER NOT NULL DEFAULT 0,
  done        INTEGER NOT NULL DEFAULT 0,
  dead        INTEGER NOT NULL DEFAULT 0,
  discarded   INTEGER NOT NULL DEFAULT 0,
  kept        INTEGER NOT NULL DEFAULT 0,  -- rows of done jobs
  attempts    INTEGER NOT NULL DEFAULT 0,
  failed      INTEGER NOT NULL DEFAULT 0,
  interrupted INTEGER NOT NULL DEFAULT 0,
  repeated    INTEGER NOT NULL DEFAULT 0,
  queued_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE job_runner (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  node    TEXT NOT NULL,
  term    INTEGER NOT NULL,
  at      INTEGER NOT NULL,
  version INTEGER NOT NULL   -- index of its last step: each rests on the one before
) STRICT;
`

// State 1 is Waiting, 2 Running, 3 Done, 4 Dead: the partial index wants them as literals.
const (
	sqlAdd       = `INSERT INTO job (key, app, state, kind, target, at, queued_at, seq, batch, version, body, data) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	sqlAddBody   = `INSERT INTO job_body (key, jobs, data) VALUES (?, ?, ?)`
	sqlAccept    = `INSERT INTO job_ledger (app, accepted, waiting, queued_at) VALUES (?1, ?2, ?2, ?3) ON CONFLICT (app) DO UPDATE SET accepted = accepted + ?2, waiting = waiting + ?2, queued_at = ?3`
	sqlBegin     = `UPDATE job SET state = 2, at = ?, attempts = attempts + 1, version = ? WHERE key = ? AND app = ? AND state = 1`
	sqlWaitAgain = `UPDATE job SET state = 1, at = ?, failures = failures + 1, error = ?, version = ? WHERE key = ? AND app = ? AND state = 2`
	sqlLose      = `UPDATE job SET state = 1, at = ?, interrupted = interrupted + 1, losses = losses + 1, error = ?, version = ? WHERE key = ? AND app = ? AND state = 2`
	sqlDie       = `UPDATE job SET state = 4, at = ?, failures = failures + 1, error = ?, version = ? WHERE key = ? AND app = ? AND state = 2`
	sqlFinish    = `UPDATE job SET state = 3, at = ?, version = ?, body = NULL, data = NULL WHERE key = ? AND app = ? AND state = 2`
	sqlRepeat    = `UPDATE job SET state = 1, at = 0, failures = 0, losses = 0, version = ? WHERE key = ? AND app = ? AND state = 4`
	sqlRemove    = `DELETE FROM job WHERE key = ? AND app = ? AND state IN (1, 4)`
	sqlPrune     = `DELETE FROM job WHERE key IN (SELECT key FROM job WHERE state = 3 AND app = ? ORDER BY key LIMIT ?)`
	sqlBodyOf    = `SELECT body, state FROM job WHERE key = ?`
	sqlLeaveBody = `UPDATE job_body SET jobs = jobs - 1 WHERE key = ?`
	sqlDropBody  = `DELETE FROM job_body WHERE key = ? AND jobs = 0`
	sqlMove      = `UPDATE job_ledger SET waiting = waiting + ?2, running = running + ?3, done = done + ?4, dead = dead + ?5, discarded = discarded + ?6, kept = kept + ?7, attempts = attempts + ?8, failed = failed + ?9, interrupted = interrupted + ?10, repeated = repeated + ?11 WHERE app = ?1`
	sqlKept      = `SELECT kept FROM job_ledger WHERE app = ?`
	sqlSetRunner = `INSERT INTO job_runner (one, node, term, at, version) VALUES (1, ?, ?, ?, ?) ON CONFLICT (one) DO UPDATE SET node = excluded.node, term = excluded.term, at = excluded.at, version = excluded.version`
	sqlStepped   = `UPDATE job_runner SET version = ? WHERE one = 1`
	sqlVersion   = `SELECT version FROM job WHERE key = ?`
	sqlRunnerVer = `SELECT version FROM job_runner WHERE one = 1`
)

// Fold turns one event into rows; none of job's takes a seq. It is deterministic and refuses nothing: an error means that the
// projection is not what the log made it, and stops the shard.
func Fold(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
	f := fold{tx: tx, s: s}
	var err error
	switch ev := ev.(type) {
	case event.JobsQueued:
		err = f.queued(ev)
	case event.JobsBegun:
		err = f.begun(ev)
	case event.JobsReported:
		err = f.reported(ev)
	case event.JobRunnerBegan:
		err = f.one(sqlSetRunner, ev.Node, ev.Term, s.At, s.Index)
	case event.JobsRepeated:
		err = f.repeated(ev)
	case event.JobsDiscarded:
		err = f.discarded(ev)
	case event.ScheduleSet:
		err = f.scheduleSet(ev)
	case event.ScheduleRemoved:
		err = f.one(sqlRemoveSchedule, ev.App, ev.Name)
	case event.ScheduleFired:
		err = f.scheduleFired(ev)
	default:
		err = fmt.Errorf("not an event of job")
	}
	if err != nil {
		return 0, fmt.Errorf("job: fold %T of entry %d: %w", ev, s.Index, err)
	}
	return 0, nil
}

// fold is the folding of one event.
type fold struct {
	tx *projection.Tx
	s  event.Stamp
}

// change is what one event does to the ledger of an app.
type change struct {
	waiting, running, done, dead, discarded, kept, attempts, failed, interrupted, repeated int
}

func (f *fold) move(app petrel.AppID, c change) error {
	return f.one(sqlMove, app, c.waiting, c.running, c.done, c.dead, c.discarded, c.kept, c.attempts, c.failed, c.interrupted, c.repeated)
}

func (f *fold) queued(ev event.JobsQueued) error {
	place := len(f.s.Seqs)
	shared := make([]int, len(ev.Bodies))
	for _, j := range ev.Jobs {
		if j.Body > uint(len(ev.Bodies)) {
			return fmt.Errorf("a job has body %d of %d", j.Body, len(ev.Bodies))
		}
		if j.Body > 0 {
			shared[j.Body-1]++
		}
	}
	for n, data := range ev.Bodies {
		if err := f.one(sqlAddBody, uint64(idOf(f.s.Index, place, n)), shared[n], data); err != nil {
			return err
		}
	}
	for n, j := range ev.Jobs {
		var body any
		if j.Body > 0 {
			body = uint64(idOf(f.s.Index, place, int(j.Body)-1)) //nolint:gosec // checked above
		}
		var seq uint64
		if j.Cause > 0 && j.Cause <= uint(place) {
			seq = f.s.Seqs[j.Cause-1]
		}
		if err := f.one(sqlAdd, uint64(idOf(f.s.Index, place, n)), f.s.App, j.Kind, j.Target, j.Due, f.s.At, seq, ev.Batch, f.s.Index, body, j.Data); err != nil {
			return err
		}
	}
	return f.one(sqlAccept, f.s.App, len(ev.Jobs), f.s.At)
}

func (f *fold) begun(ev event.JobsBegun) error {
	for _, key := range ev.Jobs {
		if err := f.one(sqlBegin, f.s.At, f.s.Index, key, ev.App); err != nil {
			return err
		}
	}
	if err := f.one(sqlStepped, f.s.Index); err != nil {
		return err
	}
	return f.move(ev.App, change{waiting: -len(ev.Jobs), running: len(ev.Jobs), attempts: len(ev.Jobs)})
}

func (f *fold) reported(ev event.JobsReported) error {
	var c change
	for _, j := range ev.Jobs {
		var err error
		c.running--
		switch j.Outcome {
		case event.JobDone:
			c.done++
			if err = f.leaveBody(j.Job); err == nil {
				err = f.one(sqlFinish, f.s.At, f.s.Index, j.Job, ev.App)
			}
		case event.JobFailed:
			c.waiting++
			c.failed++
			err = f.one(sqlWaitAgain, j.Due, text(j.Error), f.s.Index, j.Job, ev.App)
		case event.JobDead:
			c.dead++
			c.failed++
			err = f.one(sqlDie, f.s.At, text(j.Error), f.s.Index, j.Job, ev.App)
		case event.JobInterrupted:
			c.waiting++
			c.interrupted++
			err = f.one(sqlLose, j.Due, text(j.Error), f.s.Index, j.Job, ev.App)
		default:
			err = fmt.Errorf("outcome %d", j.Outcome)
		}
		if err != nil {
			return fmt.Errorf("job %s: %w", ID(j.Job), err)
		}
	}
	pruned, err := f.prune(ev.App, c.done)
	if err != nil {
		return err
	}
	c.kept = c.done - pruned
	if err := f.one(sqlStepped, f.s.Index); err != nil {
		return err
	}
	return f.move(ev.App, c)
}

// prune removes the oldest of the rows of done jobs beyond KeepDone: at most twice as many as come.
func (f *fold) prune(app petrel.AppID, come int) (int, error) {
	if come == 0 {
		return 0, nil
	}
	kept := 0
	if _, err := f.tx.Get(sqlKept, func(r *projection.Row) { kept = int(r.Int(0)) }, app); err != nil {
		return 0, err
	}
	n := min(kept+come-KeepDone, 2*come)
	if n <= 0 {
		return 0, nil
	}
	return f.tx.Exec(sqlPrune, app, n)
}

func (f *fold) repeated(ev event.JobsRepeated) error {
	for _, key := range ev.Jobs {
		if err := f.one(sqlRepeat, f.s.Index, key, ev.App); err != nil {
			return err
		}
	}
	return f.move(ev.App, change{waiting: len(ev.Jobs), dead: -len(ev.Jobs), repeated: len(ev.Jobs)})
}

func (f *fold) discarded(ev event.JobsDiscarded) error {
	c := change{discarded: len(ev.Jobs)}
	for _, key := range ev.Jobs {
		state := State(0)
		if _, err := f.tx.Get(sqlBodyOf, func(r *projection.Row) { state = State(r.Int(1)) }, key); err != nil { //nolint:gosec // one of four
			return err
		}
		if state == Dead {
			c.dead--
		} else {
			c.waiting--
		}
		if err := f.leaveBody(key); err != nil {
			return err
		}
		if err := f.one(sqlRemove, key, ev.App); err != nil {
			return err
		}
	}
	return f.move(ev.App, c)
}

// leaveBody removes a body with the last job that has it.
func (f *fold) leaveBody(key uint64) error {
	body := int64(0)
	if _, err := f.tx.Get(sqlBodyOf, func(r *projection.Row) { body = r.Int(0) }, key); err != nil || body == 0 {
		return err
	}
	if err := f.one(sqlLeaveBody, body); err != nil {
		return err
	}
	_, err := f.tx.Exec(sqlDropBody, body)
	return err
}

// one runs a statement that must change exactly one row.
func (f *fold) one(sql string, args ...any) error {
	n, err := f.tx.Exec(sql, args...)
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows changed where one is due", n)
	}
	return err
}

// text is NULL when empty.
func text(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// Version returns the present version of the guarded row, 0 when it is absent.
func Version(r *projection.Reader, _ event.Stamp, g event.Guard) (v uint64, err error) {
	switch {
	case g.Kind == event.GuardJobRunner && len(g.Key) == 0:
		_, err = r.Get(sqlRunnerVer, func(row *projection.Row) { v = row.Uint(0) })
		return v, err
	case g.Kind == event.GuardJob && len(g.Key) == 1:
		key, err := strconv.ParseUint(g.Key[0], 10, 63)
		if err != nil {
			return 0, fmt.Errorf("job: a guard of job %q", g.Key[0])
		}
		_, err = r.Get(sqlVersion, func(row *projection.Row) { v = row.Uint(0) }, key)
		return v, err
	case g.Kind == event.GuardSchedule && len(g.Key) == 2:
		_, err = r.Get(sqlScheduleVersion, func(row *projection.Row) { v = row.Uint(0) }, g.Key[0], g.Key[1])
		return v, err
	case g.Kind == event.GuardSchedules && len(g.Key) == 1:
		_, v, err = countSchedules(r, g.Key[0])
		return v, err
	}
	return 0, fmt.Errorf("job: guard kind %d with %d keys is not one of ours", g.Kind, len(g.Key))
}
