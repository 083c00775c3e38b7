package job

import (
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/projection"
)

// scheduleSchema holds the schedules. next is what the leader looks for; made and version are indexes of entries.
const scheduleSchema = `
CREATE TABLE job_schedule (
  app      TEXT NOT NULL,
  name     TEXT NOT NULL,
  due_when TEXT NOT NULL,
  zone     TEXT NOT NULL,
  data     BLOB,
  paused   INTEGER NOT NULL,
  next     INTEGER NOT NULL,           -- Unix milliseconds, 0: never
  due      INTEGER NOT NULL DEFAULT 0, -- of the last time that it fired
  fired    INTEGER NOT NULL DEFAULT 0,
  missed   INTEGER NOT NULL DEFAULT 0,
  made     INTEGER NOT NULL,
  version  INTEGER NOT NULL,
  PRIMARY KEY (app, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_schedule_next ON job_schedule (next, app, name) WHERE next > 0;
`

const (
	sqlSetSchedule = `INSERT INTO job_schedule (app, name, due_when, zone, data, paused, next, made, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)
		ON CONFLICT (app, name) DO UPDATE SET due_when = excluded.due_when, zone = excluded.zone, data = excluded.data, paused = excluded.paused, next = excluded.next, version = excluded.version`
	sqlRemoveSchedule  = `DELETE FROM job_schedule WHERE app = ? AND name = ?`
	sqlFireSchedule    = `UPDATE job_schedule SET next = ?3, due = ?4, fired = fired + 1, missed = missed + ?5, version = ?6 WHERE app = ?1 AND name = ?2`
	sqlScheduleVersion = `SELECT version FROM job_schedule WHERE app = ? AND name = ?`
	sqlSchedulesOf     = `SELECT count(*), coalesce(max(made), 0) FROM job_schedule WHERE app = ?`
)

func (f *fold) scheduleSet(ev event.ScheduleSet) error {
	var data any
	if len(ev.Data) > 0 {
		data = ev.Data
	}
	return f.one(sqlSetSchedule, ev.App, ev.Name, ev.When, ev.Zone, data, ev.Paused, ev.Next, f.s.Index)
}

func (f *fold) scheduleFired(ev event.ScheduleFired) error {
	return f.one(sqlFireSchedule, ev.App, ev.Name, ev.Next, ev.Due, ev.Missed, f.s.Index)
}

// countSchedules says how many an app has, and which entry made the last of them: who makes another rests on that.
func countSchedules(r *projection.Reader, app any) (n int, made uint64, err error) {
	_, err = r.Get(sqlSchedulesOf, func(row *projection.Row) { n, made = int(row.Int(0)), row.Uint(1) }, app)
	return n, made, err
}
