package event

import "github.com/petrel-chat/petrel/internal/petrel"

// Kinds of events about schedules; job folds them.
const (
	KindScheduleSet     Kind = 66
	KindScheduleRemoved Kind = 67
	KindScheduleFired   Kind = 68
)

// Guards of schedules.
const (
	GuardSchedule  GuardKind = 42 // keys: app, name
	GuardSchedules GuardKind = 43 // key: the app: which schedule was made last. Removing one may change it too
)

// ScheduleSet gives an app a schedule, or replaces all settings of the one that it has by that name.
type ScheduleSet struct {
	App    petrel.AppID        `cbor:"1,keyasint"`
	Name   petrel.ScheduleName `cbor:"2,keyasint"`
	When   string              `cbor:"3,keyasint"`
	Zone   string              `cbor:"4,keyasint"` // IANA's name
	Data   []byte              `cbor:"5,keyasint,omitempty"`
	Paused bool                `cbor:"6,keyasint,omitempty"`
	// Next is when it is due, Unix milliseconds, as the proposer made it out: a fold knows no time zones. 0: not, it is paused.
	Next int64 `cbor:"7,keyasint,omitempty"`
}

// ScheduleRemoved ends a schedule.
type ScheduleRemoved struct {
	App  petrel.AppID        `cbor:"1,keyasint"`
	Name petrel.ScheduleName `cbor:"2,keyasint"`
}

// ScheduleFired says that a schedule's time has come. The jobs of it are in the same entry.
type ScheduleFired struct {
	App    petrel.AppID        `cbor:"1,keyasint"`
	Name   petrel.ScheduleName `cbor:"2,keyasint"`
	Due    int64               `cbor:"3,keyasint"`           // Unix milliseconds
	Next   int64               `cbor:"4,keyasint,omitempty"` // when it is due again; 0: never
	Missed uint                `cbor:"5,keyasint,omitempty"` // times between Due and the entry that have no entry of their own
}

// EventKind implements Event.
func (ScheduleSet) EventKind() Kind { return KindScheduleSet }

// EventKind implements Event.
func (ScheduleRemoved) EventKind() Kind { return KindScheduleRemoved }

// EventKind implements Event.
func (ScheduleFired) EventKind() Kind { return KindScheduleFired }
