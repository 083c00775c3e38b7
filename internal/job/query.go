package job

import (
	"fmt"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

const sqlColumns = `j.key, j.app, j.kind, j.target, j.state, j.at, j.queued_at, j.attempts, j.interrupted, j.failures, j.losses, j.seq, j.batch, j.version, j.error`

const (
	sqlJob         = `SELECT ` + sqlColumns + `, j.data, b.data FROM job j LEFT JOIN job_body b ON b.key = j.body WHERE j.key = ?`
	sqlDueNow      = `SELECT ` + sqlColumns + ` FROM job j WHERE j.state = 1 AND j.app = ? AND j.target = ? AND j.at = 0 ORDER BY j.key LIMIT ?`
	sqlDueThen     = `SELECT ` + sqlColumns + ` FROM job j WHERE j.state = 1 AND j.app = ? AND j.target = ? AND j.at > 0 ORDER BY j.at, j.key LIMIT ?`
	sqlBody        = `SELECT j.data, b.data FROM job j LEFT JOIN job_body b ON b.key = j.body WHERE j.key = ?`
	sqlJobs        = `SELECT ` + sqlColumns + ` FROM job j WHERE j.state = ? AND j.app = ? AND j.key > ? ORDER BY j.key LIMIT ?`
	sqlRunning     = `SELECT ` + sqlColumns + ` FROM job j WHERE j.state = 2 AND (j.app, j.key) > (?, ?) ORDER BY j.app, j.key LIMIT ?`
	sqlStanding    = `SELECT app, state, version FROM job WHERE key = ?`
	sqlNextLane    = `SELECT app, target, at FROM job INDEXED BY job_due WHERE state = 1 AND (app, target) > (?, ?) ORDER BY app, target, at LIMIT 1`
	sqlThisLane    = `SELECT at FROM job WHERE state = 1 AND app = ? AND target = ? ORDER BY at LIMIT 1`
	sqlRunner      = `SELECT node, term, at, version FROM job_runner WHERE one = 1`
	sqlLedgerWords = `app, accepted, waiting, running, done, dead, discarded, kept, attempts, failed, interrupted, repeated, queued_at`
	sqlLedger      = `SELECT ` + sqlLedgerWords + ` FROM job_ledger WHERE app = ?`
	sqlLedgers     = `SELECT ` + sqlLedgerWords + ` FROM job_ledger WHERE app > ? ORDER BY app LIMIT ?`
	sqlCount       = `SELECT count(*) FROM job WHERE state = ? AND app = ?`
)

// Runner is who runs the jobs of the shard; Version 0: nobody did yet.
type Runner struct {
	Node    petrel.NodeID
	Term    uint64
	At      int64 // since when, Unix milliseconds
	Version uint64
}

// RunnerOf returns who runs the jobs.
func RunnerOf(r *projection.Reader) (n Runner, err error) {
	_, err = r.Get(sqlRunner, func(row *projection.Row) {
		n = Runner{petrel.NodeID(row.Text(0)), row.Uint(1), row.Int(2), row.Uint(3)}
	})
	return n, err
}

// Get returns a job of the app with its body, or CodeJobNotFound. An operator's app is empty: any.
func Get(r *projection.Reader, app petrel.AppID, id ID) (j Job, err error) {
	found, err := r.Get(sqlJob, func(row *projection.Row) { j = scan(row); j.Body = firstBytes(row, 15) }, uint64(id))
	if err == nil && (!found || app != "" && app != j.App) {
		return Job{}, errNoJob(id)
	}
	return j, err
}

// ListQuery chooses a page of an app's jobs.
type ListQuery struct {
	App   petrel.AppID
	State State
	After ID  // exclusive; 0: from the beginning
	Limit int // default 100, at most MaxPage
}

// Page is a page of jobs without their bodies, in the order in which they were queued.
type Page struct {
	Jobs []Job
	More bool
}

// List returns a page of the jobs that are in one state.
func List(r *projection.Reader, q ListQuery) (Page, error) {
	switch {
	case q.Limit == 0:
		q.Limit = 100
	case q.Limit < 0 || q.Limit > MaxPage:
		return Page{}, petrel.Errorf(petrel.CodeInvalidField, "The limit is a number from 1 to %d.", MaxPage)
	}
	p := Page{Jobs: []Job{}}
	err := r.Query(sqlJobs, func(row *projection.Row) error {
		if p.More = len(p.Jobs) == q.Limit; !p.More {
			p.Jobs = append(p.Jobs, scan(row))
		}
		return nil
	}, uint8(q.State), q.App, uint64(q.After), q.Limit+1)
	return p, err
}

// ListRunning returns running jobs of all apps behind one, in the order of app and id.
func ListRunning(r *projection.Reader, after Job, limit int) (jobs []Job, err error) {
	err = r.Query(sqlRunning, func(row *projection.Row) error { jobs = append(jobs, scan(row)); return nil }, after.App, uint64(after.ID), limit)
	return jobs, err
}

// LaneDue is a lane and when its first job is due, Unix milliseconds; 0: at once.
type LaneDue struct {
	Lane
	Due int64
}

// Lanes returns lanes in which jobs wait, behind one, in the order of app and target. It costs two rows for each, however many wait.
func Lanes(r *projection.Reader, after Lane, limit int) (lanes []LaneDue, err error) {
	for len(lanes) < limit {
		var l LaneDue
		found, err := r.Get(sqlNextLane, func(row *projection.Row) {
			l = LaneDue{Lane{petrel.AppID(row.Text(0)), row.Text(1)}, row.Int(2)}
		}, after.App, after.Target)
		if err != nil || !found {
			return lanes, err
		}
		lanes, after = append(lanes, l), l.Lane
	}
	return lanes, nil
}

// FirstLane returns the lane of an app's jobs without a target, which Lanes passes over when it begins behind the app's name alone.
func FirstLane(r *projection.Reader, app petrel.AppID) (l LaneDue, found bool, err error) {
	l.App = app
	found, err = r.Get(sqlThisLane, func(row *projection.Row) { l.Due = row.Int(0) }, app, "")
	return l, found, err
}

// LedgerOf returns the ledger of an app; all zero when it never had a job.
func LedgerOf(r *projection.Reader, app petrel.AppID) (l Ledger, err error) {
	l.App = app
	_, err = r.Get(sqlLedger, func(row *projection.Row) { l = scanLedger(row) }, app)
	return l, err
}

// Ledgers returns the ledgers of the apps behind one, in the order of their ids.
func Ledgers(r *projection.Reader, after petrel.AppID, limit int) (all []Ledger, err error) {
	err = r.Query(sqlLedgers, func(row *projection.Row) error { all = append(all, scanLedger(row)); return nil }, after, limit)
	return all, err
}

// Audit counts an app's rows and returns by how many the ledger is off: 0, unless something is broken. It walks the index of
// the app's rows: at most what Limits allow.
func Audit(r *projection.Reader, app petrel.AppID) (off uint64, err error) {
	l, err := LedgerOf(r, app)
	if err != nil {
		return 0, err
	}
	off = l.Off()
	for state, says := range map[State]uint64{Waiting: l.Waiting, Running: l.Running, Dead: l.Dead, Done: l.Kept} {
		var n uint64
		if _, err := r.Get(sqlCount, func(row *projection.Row) { n = row.Uint(0) }, uint8(state), app); err != nil {
			return 0, err
		}
		off += max(n, says) - min(n, says)
	}
	return off, nil
}

// loadStates returns how each of the jobs stands; version 0 where there is none, or not of the app.
func loadStates(r *projection.Reader, app petrel.AppID, ids []ID) ([]standing, error) {
	out := make([]standing, len(ids))
	seen := make(map[ID]bool, len(ids))
	for i, id := range ids {
		j := standing{id: id}
		_, err := r.Get(sqlStanding, func(row *projection.Row) {
			j.app, j.state, j.version = petrel.AppID(row.Text(0)), State(row.Int(1)), row.Uint(2) //nolint:gosec // one of four
		}, uint64(id))
		if err != nil {
			return nil, err
		}
		if out[i] = j; app != "" && j.app != app || seen[id] {
			out[i] = standing{id: id}
		}
		seen[id] = true
	}
	return out, nil
}

// loadDue returns what each lane has due by now, and when the next behind it is.
func loadDue(r *projection.Reader, now int64, takes []Take, maxBytes int) (due []Job, next []int64, err error) {
	next = make([]int64, len(takes))
	bytes := 0
	for i, t := range takes {
		var jobs []Job
		if jobs, next[i], err = loadLane(r, now, t); err != nil {
			return nil, nil, err
		}
		for _, j := range jobs {
			if maxBytes > 0 && bytes > maxBytes {
				next[i] = Now
				break
			}
			if _, err := r.Get(sqlBody, func(row *projection.Row) { j.Body = firstBytes(row, 0) }, uint64(j.ID)); err != nil {
				return nil, nil, err
			}
			bytes += len(j.Body)
			due = append(due, j)
		}
	}
	return due, next, nil
}

// loadLane returns up to N due jobs of a lane without their bodies. What is due at once goes by the log alone, so that
// a node with a clock that is ahead does not hold up what it queues; neither sort waits for the other to run dry.
func loadLane(r *projection.Reader, now int64, t Take) (jobs []Job, next int64, err error) {
	var atOnce, timed []Job
	err = r.Query(sqlDueNow, func(row *projection.Row) error { atOnce = append(atOnce, scan(row)); return nil }, t.App, t.Target, t.N+1)
	if err != nil {
		return nil, 0, err
	}
	later := int64(0)
	err = r.Query(sqlDueThen, func(row *projection.Row) error {
		if j := scan(row); j.At <= now {
			timed = append(timed, j)
		} else if later == 0 {
			later = j.At
		}
		return nil
	}, t.App, t.Target, t.N+1)
	if err != nil {
		return nil, 0, err
	}
	half := t.N / 2
	if t.Odd {
		half = t.N - half
	}
	n := min(len(timed), max(half, t.N-len(atOnce)))
	m := min(len(atOnce), t.N-n)
	if n < len(timed) || m < len(atOnce) {
		later = Now
	}
	return append(timed[:n:n], atOnce[:m]...), later, nil
}

func scan(row *projection.Row) Job {
	id := ID(row.Uint(0))
	j := Job{
		ID: id, App: petrel.AppID(row.Text(1)), Kind: row.Text(2), Target: row.Text(3), State: State(row.Int(4)), //nolint:gosec // one of four
		At: row.Int(5), QueuedAt: row.Int(6), Attempts: int(row.Int(7)), Interrupted: int(row.Int(8)),
		Failures: int(row.Int(9)), Losses: int(row.Int(10)), Seq: row.Uint(11), Event: name(row.Bytes(12), id),
		version: row.Uint(13), Error: row.Text(14),
	}
	if j.State == Waiting {
		j.Due = j.At
		if j.At == 0 {
			j.Due = j.QueuedAt
		}
	}
	return j
}

// firstBytes reads a body, which lies in one of two columns.
func firstBytes(row *projection.Row, i int) []byte {
	if b := row.Bytes(i); b != nil {
		return b
	}
	return row.Bytes(i + 1)
}

// name is what the job is called outside.
func name(batch []byte, id ID) string {
	var b petrel.EntryID
	copy(b[:], batch)
	return fmt.Sprintf("%s-%d", b, uint64(id)&0xff)
}

func scanLedger(row *projection.Row) Ledger {
	return Ledger{
		App: petrel.AppID(row.Text(0)), Accepted: row.Uint(1), Waiting: row.Uint(2), Running: row.Uint(3), Done: row.Uint(4), Dead: row.Uint(5),
		Discarded: row.Uint(6), Kept: row.Uint(7), Attempts: row.Uint(8), Failed: row.Uint(9), Interrupted: row.Uint(10), Repeated: row.Uint(11),
		LastQueued: row.Uint(12),
	}
}
