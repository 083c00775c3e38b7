package job

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Bounds of what says when a schedule is due.
const (
	maxWhen     = 128 // bytes
	minInterval = 10 * time.Second
	maxInterval = 366 * 24 * time.Hour
	// maxChanges of a time zone's offset are looked through for the next time: there are two in most years.
	maxChanges = 64
)

// When says at what times something is due: by the calendar and the clock of a time zone, or at an interval.
type When struct {
	text  string
	every time.Duration // 0: by the calendar
	cron  cron.Schedule // of a clock that never changes
	zone  *time.Location
	// hourly is set when the expression leaves the hour open: then it goes by time that passes, also where the clock is changed.
	hourly bool
}

// ParseWhen reads a cron expression of five fields (minute, hour, day of month, month, day of week), one of @hourly @daily @midnight @weekly
// @monthly @yearly @annually, or "every 90s" with a duration of Go; and the name of a time zone, "" for UTC. CodeInvalidField for anything
// else, and for what never comes.
//
// The library reads the expression and finds the next match on a clock that is never changed; what follows where a zone's clock is changed is
// decided here, because the library's own way loses matches in the hour that is left out, and finds some twice in the hour that comes twice.
func ParseWhen(text, zone string) (w When, err error) { return readAs(text, zone, true) }

// readWhen reads what a schedule has: a build that was less strict may have let it in, and goes on to be understood as that did.
func readWhen(s *Schedule) (When, error) { return readAs(s.When, s.Zone, false) }

func readAs(text, zone string, strict bool) (w When, err error) {
	text = strings.Join(strings.Fields(text), " ")
	if w.zone, err = loadZone(zone); err != nil {
		return w, err
	}
	if len(text) > maxWhen || strings.ContainsFunc(text, notInWhen) {
		return w, errWhen("It has up to %d characters of A–Z a–z 0–9 * , - / @ . ? and spaces.", maxWhen)
	}
	w.text = text
	if d, ok := strings.CutPrefix(strings.TrimPrefix(text, "@"), "every "); ok {
		w.every, err = time.ParseDuration(d)
		if err != nil || w.every < minInterval || w.every > maxInterval || w.every%time.Second != 0 {
			return w, errWhen("An interval is in whole seconds, from %s to %s: every 30s, every 90m, every 1h30m.", "10s", "8784h")
		}
		return w, nil
	}
	fields := strings.Fields(text)
	if len(fields) != 1 || fields[0][0] != '@' {
		if err := checkFields(fields, strict); err != nil {
			return w, err
		}
		w.hourly = strings.HasPrefix(fields[1], "*") || fields[1][0] == '?'
	} else {
		w.hourly = text == "@hourly"
	}
	if w.cron, err = cron.ParseStandard(text); err != nil {
		return w, errWhen("There are @hourly, @daily, @weekly, @monthly and @yearly, and every 90m.")
	}
	if w.Next(time.Unix(0, 0)).IsZero() {
		return w, errWhen("There is no such day.")
	}
	return w, nil
}

// cronFields are the five of an expression, in their order.
var cronFields = [...]struct {
	name   string
	values int
	are    string
}{
	{"minute", 60, "0 to 59"},
	{"hour", 24, "0 to 23"},
	{"day of month", 31, "1 to 31"},
	{"month", 12, "1 to 12, or jan to dec"},
	{"day of week", 7, "0 to 6, or sun to sat"},
}

// checkFields refuses what the library refuses, in our words, and, when it is strict, what the library reads as something else than it seems to say.
func checkFields(fields []string, strict bool) error {
	if len(fields) != len(cronFields) {
		return errWhen("A cron expression has five fields: minute, hour, day of month, month, day of week. It has %d.", len(fields))
	}
	for i, f := range fields {
		kind := cronFields[i]
		alone := []string{"*", "*", "*", "*", "*"}
		alone[i] = f
		_, err := cron.ParseStandard(strings.Join(alone, " "))
		for part := range strings.SplitSeq(f, ",") {
			odd := part == "" || len(part) > 1 && strings.ContainsAny(part[:1], "*?") && part[1] != '/' || strings.ContainsAny(f, "@.")
			if err != nil || strict && odd {
				return errWhen("The field %.40q does not read as the %s: that is %s, or *, with , - / between them.", f, kind.name, kind.are)
			}
			_, step, _ := strings.Cut(part, "/")
			if n, err := strconv.ParseUint(step, 10, 64); strict && err == nil && n > uint64(kind.values) { //nolint:gosec // not negative
				return errWhen("The step of the field %.40q leads beyond its last %s each time. An interval reads like every 90m.", f, kind.name)
			}
		}
	}
	return nil
}

func notInWhen(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !slices.Contains([]rune{'*', ',', '-', '/', '@', '.', '?', ' '}, r)
}

func errWhen(format string, args ...any) error {
	return petrel.Errorf(petrel.CodeInvalidField, "The schedule says when it is due in a way that is not understood. "+format, args...)
}

// Next is the first time after one that is due; the zero time if there is none. An interval counts from that time.
func (w When) Next(after time.Time) time.Time {
	if w.every > 0 {
		return after.Add(w.every)
	}
	t := after.In(w.zone)
	begin, _ := t.ZoneBounds()
	shift := offset(t)
	clock := t.Unix() + shift // what the clock shows, as if it were in UTC: what is looked for is behind it
	if !begin.IsZero() && !w.hourly {
		clock = max(clock, begin.Unix()+offset(begin.Add(-time.Second))-1) // it has shown all of that already
	}
	for range maxChanges {
		match, ok := w.match(clock)
		if !ok {
			return time.Time{}
		}
		_, end := t.ZoneBounds()
		if !end.IsZero() && !end.After(t) {
			end = t.Add(24 * time.Hour) // far ahead, the bounds that Go knows are those of a year of 365 days
		}
		if end.IsZero() || match-shift < end.Unix() {
			return time.Unix(match-shift, 0).UTC()
		}
		// The clock is changed before that.
		old, now := end.Unix()+shift, end.Unix()+offset(end)
		switch {
		case w.hourly:
			clock = now - 1
		case old <= match && match < now:
			return end.UTC() // it never shows that: at once when it is changed
		default:
			clock = max(old, now) - 1 // in the hour that comes twice, it has shown that
		}
		t, shift = end, offset(end)
	}
	return time.Time{}
}

// match is the first match behind what a clock shows.
func (w When) match(clock int64) (int64, bool) {
	t := time.Unix(clock, 0).UTC()
	for range 3 { // the library looks five years ahead; the 29th of February may be eight years away
		if m := w.cron.Next(t); !m.IsZero() {
			return m.Unix(), true
		}
		t = time.Date(t.Year()+5, 1, 1, 0, 0, 0, 0, time.UTC).Add(-time.Second)
	}
	return 0, false
}

func offset(t time.Time) int64 {
	_, s := t.Zone()
	return int64(s)
}

// after is the next time behind now of what was due, and how many times lie between the two, up to MaxMissed.
func (w When) after(due, now time.Time) (next time.Time, missed uint) {
	if w.every > 0 {
		n := max(0, now.Sub(due)/w.every)
		return due.Add((n + 1) * w.every), uint(min(n, MaxMissed)) //nolint:gosec // not negative
	}
	for t := w.Next(due); missed < MaxMissed && !t.IsZero() && !t.After(now); t = w.Next(t) {
		missed++
	}
	return w.Next(now), missed
}
