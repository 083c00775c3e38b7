package job

import (
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

const sqlScheduleColumns = `app, name, due_when, zone, data, paused, next, due, fired, missed, made, version`

const (
	sqlSchedule     = `SELECT ` + sqlScheduleColumns + ` FROM job_schedule WHERE app = ? AND name = ?`
	sqlSchedules    = `SELECT ` + sqlScheduleColumns + ` FROM job_schedule WHERE app = ? AND name > ? ORDER BY name LIMIT ?`
	sqlSchedulesDue = `SELECT next, app, name FROM job_schedule WHERE next > 0 AND next <= ?1 AND (next, app, name) > (?2, ?3, ?4) ORDER BY next, app, name LIMIT ?5`
	sqlScheduleNext = `SELECT next FROM job_schedule WHERE next > ? AND next > 0 ORDER BY next LIMIT 1`
)

// ScheduleByName returns a schedule of the app, or CodeScheduleNotFound.
func ScheduleByName(r *projection.Reader, app petrel.AppID, name petrel.ScheduleName) (Schedule, error) {
	s, err := scheduleAt(r, app, name)
	if err == nil && s.version == 0 {
		return Schedule{}, errNoSchedule(name)
	}
	return s, err
}

// scheduleAt returns a schedule; version 0 where there is none.
func scheduleAt(r *projection.Reader, app petrel.AppID, name petrel.ScheduleName) (s Schedule, err error) {
	_, err = r.Get(sqlSchedule, func(row *projection.Row) { s = scanSchedule(row) }, app, name)
	return s, err
}

// SchedulePage is a page of schedules, in the order of their names.
type SchedulePage struct {
	Schedules []Schedule
	More      bool
}

// Schedules returns a page of an app's schedules behind a name. limit 0 is 100; at most MaxPage.
func Schedules(r *projection.Reader, app petrel.AppID, after petrel.ScheduleName, limit int) (SchedulePage, error) {
	switch {
	case limit == 0:
		limit = 100
	case limit < 0 || limit > MaxPage:
		return SchedulePage{}, petrel.Errorf(petrel.CodeInvalidField, "The limit is a number from 1 to %d.", MaxPage)
	}
	p := SchedulePage{Schedules: []Schedule{}}
	err := r.Query(sqlSchedules, func(row *projection.Row) error {
		if p.More = len(p.Schedules) == limit; !p.More {
			p.Schedules = append(p.Schedules, scanSchedule(row))
		}
		return nil
	}, app, after, limit+1)
	return p, err
}

// ScheduleDue is a schedule whose time has come.
type ScheduleDue struct {
	Due  int64 // Unix milliseconds
	App  petrel.AppID
	Name petrel.ScheduleName
}

// SchedulesDue returns schedules that are due at a time, behind one, in the order in which they became so.
func SchedulesDue(r *projection.Reader, now int64, after ScheduleDue, limit int) (due []ScheduleDue, err error) {
	err = r.Query(sqlSchedulesDue, func(row *projection.Row) error {
		due = append(due, ScheduleDue{row.Int(0), petrel.AppID(row.Text(1)), petrel.ScheduleName(row.Text(2))})
		return nil
	}, now, after.Due, after.App, after.Name, limit)
	return due, err
}

// NextSchedule returns when the first schedule behind a time is due, Unix milliseconds; 0: none.
func NextSchedule(r *projection.Reader, now int64) (next int64, err error) {
	_, err = r.Get(sqlScheduleNext, func(row *projection.Row) { next = row.Int(0) }, now)
	return next, err
}

func scanSchedule(row *projection.Row) Schedule {
	return Schedule{
		App: petrel.AppID(row.Text(0)), Name: petrel.ScheduleName(row.Text(1)), When: row.Text(2), Zone: row.Text(3), Data: row.Bytes(4), Paused: row.Bool(5),
		Next: row.Int(6), Due: row.Int(7), Fired: row.Uint(8), Missed: row.Uint(9), made: row.Uint(10), version: row.Uint(11),
	}
}
