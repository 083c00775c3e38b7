package job

import (
	"encoding/json"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Sizes of schedules.
const (
	MaxScheduleData = 8 << 10 // bytes of a schedule's data, without spaces between its parts
	// MaxMissed is up to where times are counted that were missed.
	MaxMissed = 1_000
)

// Schedule is something that comes again and again. When its time has come it is fired: an entry of the log that says so, moves it
// to its next time, and brings the jobs of whoever wants to be told.
type Schedule struct {
	App  petrel.AppID
	Name petrel.ScheduleName
	When string // as ParseWhen reads it
	Zone string // IANA's name of the time zone; empty: UTC
	// Data is a JSON value that is told when it fires; nil: none.
	Data   []byte
	Paused bool

	Next int64 // Unix milliseconds when it is due; 0: not, it is paused. Commands ignore it, and what follows
	// Due is when it was due last that it fired, 0: never did. Fired counts that; Missed counts times that passed while nobody could
	// fire it, which the next firing told.
	Due           int64
	Fired, Missed uint64

	made, version uint64
}

// same reports whether two schedules are set alike.
func (s Schedule) same(o Schedule) bool {
	return s.When == o.When && s.Zone == o.Zone && string(s.Data) == string(o.Data) && s.Paused == o.Paused
}

// ShownSchedule is a schedule as callers and operators see it.
type ShownSchedule struct {
	Name   petrel.ScheduleName `json:"name"`
	When   string              `json:"when" doc:"A cron expression of five fields, one of @hourly @daily @weekly @monthly @yearly, or an interval: every 90s."`
	Zone   string              `json:"zone" doc:"The time zone in which a cron expression is read."`
	Data   json.RawMessage     `json:"data,omitempty" doc:"Told when it fires."`
	Paused bool                `json:"paused"`
	NextAt string              `json:"next_at,omitempty" doc:"When it is due. Not of one that is paused."`
	LastAt string              `json:"last_due_at,omitempty" doc:"The last time that was told."`
	Fired  uint64              `json:"fired" doc:"How often it was told."`
	Missed uint64              `json:"missed" doc:"Times that passed while no node could tell them: each was counted in the next one that was told."`
}

// Show makes the form that people and callers see.
func (s Schedule) Show() ShownSchedule {
	out := ShownSchedule{Name: s.Name, When: s.When, Zone: s.Zone, Data: s.Data, Paused: s.Paused, Fired: s.Fired, Missed: s.Missed}
	if s.Next > 0 {
		out.NextAt = moment(s.Next)
	}
	if s.Due > 0 {
		out.LastAt = moment(s.Due)
	}
	return out
}

// ShownSchedules is a page of schedules as callers and operators see it.
type ShownSchedules struct {
	Schedules []ShownSchedule `json:"schedules" nullable:"false" doc:"In the order of their names."`
	More      bool            `json:"more"`
}

// Show makes the form that people and callers see.
func (p SchedulePage) Show() ShownSchedules {
	out := ShownSchedules{Schedules: make([]ShownSchedule, len(p.Schedules)), More: p.More}
	for i, s := range p.Schedules {
		out.Schedules[i] = s.Show()
	}
	return out
}
