package job

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// SetSchedule gives an app a schedule, or changes the one by that name. The app itself and operators may. It answers with the
// Schedule. One that keeps its times keeps its next one. CodeLimitReached beyond Max.
type SetSchedule struct {
	Schedule Schedule
	Max      int // that the app may have
}

// PauseSchedule pauses a schedule, or lets it go on: nothing else of it is changed, whoever changes it meanwhile. The app itself and operators may.
// It answers with the Schedule; one that is not there is CodeScheduleNotFound.
type PauseSchedule struct {
	App    petrel.AppID
	Name   petrel.ScheduleName
	Paused bool
}

// RemoveSchedule ends a schedule. The app itself and operators may. It answers with the Schedule as it was; one that is not there is
// CodeScheduleNotFound.
type RemoveSchedule struct {
	App  petrel.AppID
	Name petrel.ScheduleName
}

// FireSchedule fires a schedule that is due, for the leader. It answers with Fired; nothing happens when it is not due, because
// another has fired it.
type FireSchedule struct {
	App  petrel.AppID
	Name petrel.ScheduleName
}

// Fired is what FireSchedule did.
type Fired struct {
	Did    bool
	Due    int64 // Unix milliseconds
	Missed uint
}

// CommandKind is as in Enqueue.
func (SetSchedule) CommandKind() string { return "job.set_schedule" }

// CommandKind is as in Enqueue.
func (PauseSchedule) CommandKind() string { return "job.pause_schedule" }

// CommandKind is as in Enqueue.
func (RemoveSchedule) CommandKind() string { return "job.remove_schedule" }

// CommandKind is as in Enqueue.
func (FireSchedule) CommandKind() string { return "job.fire_schedule" }

// Decide sets the schedule, finds it so, or refuses.
func (c SetSchedule) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	want := c.Schedule
	if err := checkScheduler(s.Actor, want.App, want.Name); err != nil {
		return event.Decision{}, err
	}
	now, err := scheduleAt(r, want.App, want.Name)
	if err != nil {
		return event.Decision{}, err
	}
	strict := now.version == 0 || now.When != strings.Join(strings.Fields(want.When), " ") // what it says already it may say again
	when, err := readAs(want.When, want.Zone, strict)
	if err != nil {
		return event.Decision{}, err
	}
	want.When, want.Zone = when.text, when.zone.String()
	if want.Data, err = compactData(want.Data); err != nil {
		return event.Decision{}, err
	}
	count, last, err := countSchedules(r, want.App)
	if err != nil {
		return event.Decision{}, err
	}
	if now.version == 0 && strings.HasPrefix(string(want.Name), "-") { // there may be some of before
		return event.Decision{}, petrel.Errorf(petrel.CodeInvalidID, "The name of a schedule does not begin with -: on a command line that is a flag.")
	}
	if now.version == 0 && count >= c.Max {
		return event.Decision{}, petrel.Errorf(petrel.CodeLimitReached, "The app has %d schedules, and may have %d (its setting max_schedules). Remove one first.", count, c.Max)
	}
	return decideSetSchedule(when, now, want, last, s.At), nil
}

func decideSetSchedule(when When, now, want Schedule, last uint64, at int64) event.Decision {
	want.Due, want.Fired, want.Missed = now.Due, now.Fired, now.Missed
	if now.version != 0 && now.same(want) {
		return event.Decision{Repeated: true, Answer: func(event.Stamp, []uint64) any { return now }}
	}
	switch {
	case want.Paused:
		want.Next = 0
	case now.Next > 0 && now.When == want.When && now.Zone == want.Zone:
		want.Next = now.Next
	default:
		want.Next = unixMilli(when.Next(time.UnixMilli(at)))
	}
	d := event.Decision{
		Events: []event.Event{event.ScheduleSet{
			App: want.App, Name: want.Name, When: want.When, Zone: want.Zone, Data: want.Data, Paused: want.Paused, Next: want.Next,
		}},
		Guards: []event.Guard{guardSchedule(want.App, want.Name, now.version)},
		Answer: func(event.Stamp, []uint64) any { return want },
	}
	if now.version == 0 { // else their number stays
		d.Guards = append(d.Guards, event.Guard{Kind: event.GuardSchedules, Key: []string{string(want.App)}, Version: last})
	}
	return d
}

// Decide pauses the schedule or lets it go on, finds it so, or refuses. The fact is a ScheduleSet with the settings that the schedule has: the guard of
// its row sees to it that it still has them.
func (c PauseSchedule) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkScheduler(s.Actor, c.App, c.Name); err != nil {
		return event.Decision{}, err
	}
	now, err := ScheduleByName(r, c.App, c.Name)
	if err != nil {
		return event.Decision{}, err
	}
	when, err := readWhen(&now)
	if err != nil && !c.Paused { // another build has let it in: it may be paused
		return event.Decision{}, err
	}
	want := now
	want.Paused = c.Paused
	return decideSetSchedule(when, now, want, 0, s.At), nil
}

// Decide removes the schedule or refuses.
func (c RemoveSchedule) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkScheduler(s.Actor, c.App, c.Name); err != nil {
		return event.Decision{}, err
	}
	now, err := ScheduleByName(r, c.App, c.Name)
	if err != nil {
		return event.Decision{}, err
	}
	return event.Decision{
		Events: []event.Event{event.ScheduleRemoved{App: c.App, Name: c.Name}},
		Guards: []event.Guard{guardSchedule(c.App, c.Name, now.version)},
		Answer: func(event.Stamp, []uint64) any { return now },
	}, nil
}

// Decide fires the schedule if it is due.
func (c FireSchedule) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkSystem(s.Actor); err != nil {
		return event.Decision{}, err
	}
	now, err := scheduleAt(r, c.App, c.Name)
	if err != nil {
		return event.Decision{}, err
	}
	if now.Next == 0 || now.Next > s.At {
		return event.Decision{Repeated: true, Answer: func(event.Stamp, []uint64) any { return Fired{} }}, nil
	}
	when, err := readWhen(&now)
	if err != nil { // another build, or another set of time zones, has let it in
		return event.Decision{}, err
	}
	next, missed := when.after(time.UnixMilli(now.Next), time.UnixMilli(s.At))
	return event.Decision{
		Events: []event.Event{event.ScheduleFired{App: c.App, Name: c.Name, Due: now.Next, Next: unixMilli(next), Missed: missed}},
		Guards: []event.Guard{guardSchedule(c.App, c.Name, now.version)},
		Answer: func(event.Stamp, []uint64) any { return Fired{Did: true, Due: now.Next, Missed: missed} },
	}, nil
}

// compactData takes the spaces out of a JSON value; null is none.
func compactData(data []byte) ([]byte, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil || !utf8.Valid(data) {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "The data of the schedule is not JSON.")
	}
	if b.Len() > MaxScheduleData {
		return nil, petrel.Errorf(petrel.CodeTooLarge, "The data of the schedule is %d bytes long; at most %d are allowed.", b.Len(), MaxScheduleData)
	}
	if b.String() == "null" {
		return nil, nil
	}
	return b.Bytes(), nil
}

// checkScheduler lets the app's backend and operators in.
func checkScheduler(a petrel.Actor, app petrel.AppID, name petrel.ScheduleName) error {
	if a.Kind != petrel.ActorOperator && (a.Kind != petrel.ActorApp || a.App != app) {
		return petrel.Errorf(petrel.CodeForbidden, "Schedules are the business of the app's backend: sign in with its key and secret, without Petrel-User.")
	}
	_, err := petrel.ParseScheduleName(string(name))
	return err
}

func guardSchedule(app petrel.AppID, name petrel.ScheduleName, version uint64) event.Guard {
	return event.Guard{Kind: event.GuardSchedule, Key: []string{string(app), string(name)}, Version: version}
}

func errNoSchedule(name petrel.ScheduleName) error {
	return petrel.Errorf(petrel.CodeScheduleNotFound, "The app has no schedule %q.", name)
}

// unixMilli is 0 for the zero time.
func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
