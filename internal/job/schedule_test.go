package job

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func (w *world) schedule(name petrel.ScheduleName) Schedule {
	w.T.Helper()
	return mustView(w, func(r *projection.Reader) (Schedule, error) { return ScheduleByName(r, "100", name) })
}

func set(name petrel.ScheduleName, when string) SetSchedule {
	return SetSchedule{Schedule: Schedule{App: "100", Name: name, When: when}, Max: 3}
}

func fire(name petrel.ScheduleName) FireSchedule { return FireSchedule{App: "100", Name: name} }

// at sets the world's clock.
func (w *world) at(s string) {
	w.T.Helper()
	t, err := time.Parse(dayFirst, s)
	if err != nil {
		w.T.Fatal(err)
	}
	w.now = t.UnixMilli()
}

func show(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return time.UnixMilli(ms).UTC().Format(dayFirst)
}

// TestScheduleLife: set, due, fired, late, paused, gone on, changed, removed.
func TestScheduleLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	backend := of(petrel.ActorApp, "100")
	w.at("2026-01-01 12:00")
	c := set("nightly", " 0  3 * * * ")
	c.Schedule.Zone, c.Schedule.Data = "Europe/Berlin", []byte(`{ "report": "sales" }`)
	s := must[Schedule](w, backend, c)
	if s.When != "0 3 * * *" || s.Zone != "Europe/Berlin" || string(s.Data) != `{"report":"sales"}` || show(s.Next) != "2026-01-02 02:00" {
		t.Errorf("it was set as %+v, due %s", s, show(s.Next))
	}
	if f := must[Fired](w, system, fire("nightly")); f.Did {
		t.Error("it was fired before it was due")
	}
	before := len(w.Records)
	if again := must[Schedule](w, backend, c); again.Next != s.Next || len(w.Records) != before {
		t.Error("the same again made an entry, or another answer")
	}
	w.at("2026-01-02 02:00")
	if f := must[Fired](w, system, fire("nightly")); !f.Did || show(f.Due) != "2026-01-02 02:00" || f.Missed != 0 {
		t.Errorf("fired %+v", f)
	}
	if f := must[Fired](w, system, fire("nightly")); f.Did {
		t.Error("it was fired twice")
	}
	// Nobody could fire it for three days.
	w.at("2026-01-06 01:00")
	if f := must[Fired](w, system, fire("nightly")); !f.Did || show(f.Due) != "2026-01-03 02:00" || f.Missed != 2 {
		t.Errorf("fired late: %+v", f)
	}
	if s = w.schedule("nightly"); show(s.Next) != "2026-01-06 02:00" || show(s.Due) != "2026-01-03 02:00" || s.Fired != 2 || s.Missed != 2 {
		t.Errorf("after that: %+v, next %s", s, show(s.Next))
	}
	// Other data, the same times: it is due when it was.
	c.Schedule.Data = nil
	if s = must[Schedule](w, operator, c); show(s.Next) != "2026-01-06 02:00" || s.Data != nil || s.Fired != 2 {
		t.Errorf("with other data: %+v", s)
	}
	c.Schedule.Paused = true
	if s = must[Schedule](w, backend, c); s.Next != 0 {
		t.Errorf("paused, and due %s", show(s.Next))
	}
	w.at("2026-01-10 01:00")
	if f := must[Fired](w, system, fire("nightly")); f.Did {
		t.Error("it was fired although it is paused")
	}
	c.Schedule.Paused = false
	if s = must[Schedule](w, backend, c); show(s.Next) != "2026-01-10 02:00" || s.Missed != 2 {
		t.Errorf("gone on: %+v, next %s", s, show(s.Next))
	}
	c.Schedule.When = "every 1h"
	if s = must[Schedule](w, backend, c); show(s.Next) != "2026-01-10 02:00" {
		t.Errorf("changed: next %s", show(s.Next))
	}
	if s = must[Schedule](w, backend, RemoveSchedule{App: "100", Name: "nightly"}); s.When != "every 1h" {
		t.Errorf("removed: %+v", s)
	}
	if f := must[Fired](w, system, fire("nightly")); f.Did {
		t.Error("it was fired although it is gone")
	}
	if _, err := w.do(backend, RemoveSchedule{App: "100", Name: "nightly"}); petrel.CodeOf(err) != petrel.CodeScheduleNotFound {
		t.Errorf("removed twice: %v", err)
	}
	w.agree()
}

// TestScheduleOnce: of those who decide the same on one snapshot, one does it.
func TestScheduleOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	backend := of(petrel.ActorApp, "100")
	must[Schedule](w, backend, set("tick", "every 10s"))
	w.now += 10_000
	plans := []applytest.Planned{}
	for _, cmd := range []command{fire("tick"), fire("tick"), RemoveSchedule{App: "100", Name: "tick"}} {
		actor := system
		if _, ok := cmd.(RemoveSchedule); ok {
			actor = backend
		}
		p, err := w.plan(actor, cmd)
		if err != nil {
			t.Fatal(err)
		}
		plans = append(plans, p)
	}
	if o := w.Fold(plans...); o[0].Conflicted || !o[1].Conflicted || !o[2].Conflicted {
		t.Errorf("conflicted: %v %v %v", o[0].Conflicted, o[1].Conflicted, o[2].Conflicted)
	}
	if s := w.schedule("tick"); s.Fired != 1 {
		t.Errorf("fired %d times", s.Fired)
	}
	// Makers of the last one that there may be: they rest on how many there are, and one is decided again.
	must[Schedule](w, backend, set("two", "every 10s"))
	a, err := w.plan(backend, set("three", "every 10s"))
	b, err2 := w.plan(backend, set("four", "every 10s"))
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if o := w.Fold(a, b); o[0].Conflicted || !o[1].Conflicted {
		t.Errorf("of two that make the last one: conflicted %v %v", o[0].Conflicted, o[1].Conflicted)
	}
	if _, err := w.do(backend, set("four", "every 10s")); petrel.CodeOf(err) != petrel.CodeLimitReached {
		t.Errorf("one too many: %v", err)
	}
	must[Schedule](w, backend, set("three", "every 20s")) // one that is there may be changed
	must[Schedule](w, backend, RemoveSchedule{App: "100", Name: "two"})
	must[Schedule](w, backend, set("four", "every 10s"))
	page := mustView(w, func(r *projection.Reader) (SchedulePage, error) { return Schedules(r, "100", "four", 1) })
	if len(page.Schedules) != 1 || page.Schedules[0].Name != "three" || !page.More {
		t.Errorf("the page is %+v", page)
	}
	w.agree()
}

// TestPauseSchedule: it changes that one thing. What another changes at the same moment stays.
func TestPauseSchedule(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	backend := of(petrel.ActorApp, "100")
	must[Schedule](w, backend, set("s", "every 10s"))
	pause := PauseSchedule{App: "100", Name: "s", Paused: true}
	other := set("s", "every 20s")
	other.Schedule.Data = []byte(`1`)
	a, err := w.plan(operator, other)
	b, err2 := w.plan(backend, pause)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if o := w.Fold(a, b); o[0].Conflicted || !o[1].Conflicted {
		t.Errorf("of two who decide on one snapshot: conflicted %v %v", o[0].Conflicted, o[1].Conflicted)
	}
	if s := must[Schedule](w, backend, pause); s.When != "every 20s" || string(s.Data) != "1" || !s.Paused || s.Next != 0 {
		t.Errorf("paused: %+v", s)
	}
	before := len(w.Records)
	if s := must[Schedule](w, operator, pause); !s.Paused || len(w.Records) != before {
		t.Error("pausing it again made an entry")
	}
	w.now += 60_000
	pause.Paused = false
	if s := must[Schedule](w, operator, pause); s.Paused || s.Next != w.now+20_000 || string(s.Data) != "1" {
		t.Errorf("gone on: %+v", s)
	}
	if s := w.schedule("s"); s.Paused || s.Next != w.now+20_000 || string(s.Data) != "1" {
		t.Errorf("folded: %+v", s)
	}
	for _, c := range []struct {
		actor petrel.Actor
		name  petrel.ScheduleName
		want  petrel.Code
	}{
		{of(petrel.ActorApp, "200"), "s", petrel.CodeForbidden},
		{of(petrel.ActorUser, "100"), "s", petrel.CodeForbidden},
		{backend, "", petrel.CodeInvalidID},
		{backend, "nothing", petrel.CodeScheduleNotFound},
	} {
		if _, err := w.do(c.actor, PauseSchedule{App: "100", Name: c.name}); petrel.CodeOf(err) != c.want {
			t.Errorf("%v, %q: %v, want %s", c.actor, c.name, err, c.want)
		}
	}
	w.agree()
}

// letIn writes a schedule as a build did that was less strict.
type letIn struct{ event.ScheduleSet }

func (letIn) CommandKind() string { return "test.let_in" }

func (c letIn) Decide(*projection.Reader, event.Stamp) (event.Decision, error) {
	return event.Decision{Events: []event.Event{c.ScheduleSet}, Answer: func(event.Stamp, []uint64) any { return nil }}, nil
}

// TestLetInBefore: what a less strict build let in is fired, paused and said again as it was; only anew it is refused.
func TestLetInBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	backend := of(petrel.ActorApp, "100")
	odd := "*/90 * * * *"
	if _, err := w.do(system, letIn{event.ScheduleSet{App: "100", Name: "s", When: odd, Zone: "UTC", Next: w.now}}); err != nil {
		t.Fatal(err)
	}
	if f := must[Fired](w, system, FireSchedule{App: "100", Name: "s"}); !f.Did {
		t.Error("it was not fired")
	}
	if s := w.schedule("s"); s.Next <= w.now || s.Next > w.now+3_600_000 {
		t.Errorf("it goes on at %d", s.Next)
	}
	must[Schedule](w, backend, PauseSchedule{App: "100", Name: "s", Paused: true})
	if s := must[Schedule](w, backend, PauseSchedule{App: "100", Name: "s"}); s.Paused || s.Next <= w.now {
		t.Errorf("gone on: %+v", s)
	}
	before := len(w.Records)
	if s := must[Schedule](w, backend, set("s", odd)); s.When != odd || len(w.Records) != before {
		t.Errorf("said again: %+v", s)
	}
	for name, when := range map[petrel.ScheduleName]string{"t": odd, "s": "*/91 * * * *"} {
		if _, err := w.do(backend, set(name, when)); petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("%s: %v", when, err)
		}
	}
	w.agree()
}

// TestSchedulesDue: in the order in which they became due, page by page; what is paused is not among them.
func TestSchedulesDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	begin := w.now
	for i := range 7 {
		app := petrel.AppID(fmt.Sprint(100 + i%2))
		s := Schedule{App: app, Name: petrel.ScheduleName(fmt.Sprint("s", i)), When: fmt.Sprintf("every %ds", 10+i/3), Paused: i == 3}
		must[Schedule](w, of(petrel.ActorApp, app), SetSchedule{Schedule: s, Max: 10})
	}
	due := func(now int64) (got []string) {
		for after, more := (ScheduleDue{}), true; more; {
			page := mustView(w, func(r *projection.Reader) ([]ScheduleDue, error) { return SchedulesDue(r, now, after, 2) })
			for _, d := range page {
				got = append(got, fmt.Sprintf("%s/%s+%d", d.App, d.Name, (d.Due-begin)/1000))
				after = d
			}
			more = len(page) == 2
		}
		return got
	}
	for now, want := range map[int64]string{
		begin: "", begin + 10_000: "100/s0+10 100/s2+10 101/s1+10",
		begin + 11_500: "100/s0+10 100/s2+10 101/s1+10 100/s4+11 101/s5+11", begin + 60_000: "100/s0+10 100/s2+10 101/s1+10 100/s4+11 101/s5+11 100/s6+12",
	} {
		if got := strings.Join(due(now), " "); got != want {
			t.Errorf("%d ms later are due: %s, want %s", now-begin, got, want)
		}
	}
	for now, want := range map[int64]int64{begin: 10_000, begin + 10_000: 11_000, begin + 12_000: -begin} {
		if got := mustView(w, func(r *projection.Reader) (int64, error) { return NextSchedule(r, now) }); got-begin != want {
			t.Errorf("behind %d comes %d, want %d", now-begin, got-begin, want)
		}
	}
}

// TestScheduleRefusals: who may not, what cannot be, what is too long.
func TestScheduleRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	backend := of(petrel.ActorApp, "100")
	with := func(change func(*Schedule)) SetSchedule {
		c := set("s", "@daily")
		change(&c.Schedule)
		return c
	}
	for _, c := range []struct {
		actor petrel.Actor
		cmd   command
		want  petrel.Code
	}{
		{of(petrel.ActorApp, "200"), set("s", "@daily"), petrel.CodeForbidden},
		{of(petrel.ActorUser, "100"), set("s", "@daily"), petrel.CodeForbidden},
		{of(petrel.ActorApp, "200"), RemoveSchedule{App: "100", Name: "s"}, petrel.CodeForbidden},
		{backend, fire("s"), petrel.CodeForbidden},
		{operator, fire("s"), petrel.CodeForbidden},
		{backend, set("", "@daily"), petrel.CodeInvalidID},
		{backend, set("a b", "@daily"), petrel.CodeInvalidID},
		{backend, set("-x", "@daily"), petrel.CodeInvalidID},
		{backend, set(petrel.ScheduleName(strings.Repeat("s", 65)), "@daily"), petrel.CodeInvalidID},
		{backend, set("s", "now and then"), petrel.CodeInvalidField},
		{backend, with(func(s *Schedule) { s.Zone = "Moon/Tycho" }), petrel.CodeInvalidField},
		{backend, with(func(s *Schedule) { s.Data = []byte("{") }), petrel.CodeInvalidField},
		{backend, with(func(s *Schedule) { s.Data = []byte("\"\xff\"") }), petrel.CodeInvalidField},
		{backend, with(func(s *Schedule) { s.Data = []byte(`"` + strings.Repeat("x", MaxScheduleData) + `"`) }), petrel.CodeTooLarge},
		{backend, SetSchedule{Schedule: Schedule{App: "100", Name: "s", When: "@daily"}}, petrel.CodeLimitReached},
	} {
		if _, err := w.do(c.actor, c.cmd); petrel.CodeOf(err) != c.want {
			t.Errorf("%+v: %v, want %s", c.cmd, err, c.want)
		}
	}
	for _, data := range []string{"null", " ", " null "} {
		if s := must[Schedule](w, backend, with(func(s *Schedule) { s.Data = []byte(data) })); s.Data != nil {
			t.Errorf("the data %q became %q", data, s.Data)
		}
	}
	if _, err := view(w, func(r *projection.Reader) (SchedulePage, error) { return Schedules(r, "100", "", MaxPage+1) }); petrel.CodeOf(err) != petrel.CodeInvalidField {
		t.Errorf("a long page: %v", err)
	}
}
