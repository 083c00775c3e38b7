package job

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/petrel"
)

const (
	minutely = "2006-01-02 15:04Z07:00"
	dayFirst = "2006-01-02 15:04"
)

func parseWhen(t testing.TB, text, zone string) When {
	t.Helper()
	w, err := ParseWhen(text, zone)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWhen: what comes next, in UTC, also where clocks are changed.
func TestWhen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, when, zone, after string
		want                    []string
	}{
		{"every night", "0 3 * * *", "", "2026-01-01 03:00", []string{"2026-01-02 03:00", "2026-01-03 03:00"}},
		{"names and lists", "0 9 * jan,FEB mon-wed", "", "2026-01-07 12:00", []string{"2026-01-12 09:00", "2026-01-13 09:00"}},
		{"day of month or of week", "0 0 13 * 5", "", "2026-02-07 00:00", []string{"2026-02-13 00:00", "2026-02-20 00:00", "2026-02-27 00:00"}},
		{"a step", "*/25 * * * *", "", "2026-01-01 00:00", []string{"2026-01-01 00:25", "2026-01-01 00:50", "2026-01-01 01:00"}},
		{"daily", "@daily", "Asia/Kolkata", "2026-01-01 00:00", []string{"2026-01-01 18:30", "2026-01-02 18:30"}},
		{"leap day", "0 0 29 2 *", "", "2026-01-01 00:00", []string{"2028-02-29 00:00", "2032-02-29 00:00"}},
		{"leap day over a century", "0 0 29 2 *", "Europe/Berlin", "2096-03-01 00:00", []string{"2104-02-28 23:00"}},
		{"an interval", "every 90s", "Europe/Berlin", "2026-03-29 00:59", []string{"2026-03-29 01:00", "2026-03-29 01:02"}},

		// Berlin, 29 March 2026: 02:00 becomes 03:00.
		{"an hour left out", "30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", []string{"2026-03-29 01:00", "2026-03-30 00:30"}},
		{"several times left out", "0,15,30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", []string{"2026-03-29 01:00", "2026-03-30 00:00", "2026-03-30 00:15"}},
		{"left out and kept", "0 2,3 * * *", "Europe/Berlin", "2026-03-28 12:00", []string{"2026-03-29 01:00", "2026-03-30 00:00", "2026-03-30 01:00"}},
		{"every hour, one left out", "*/30 * * * *", "Europe/Berlin", "2026-03-29 00:00", []string{"2026-03-29 00:30", "2026-03-29 01:00", "2026-03-29 01:30"}},
		{"before and after", "0 1,4 * * *", "Europe/Berlin", "2026-03-28 12:00", []string{"2026-03-29 00:00", "2026-03-29 02:00", "2026-03-29 23:00"}},
		// Berlin, 25 October 2026: 03:00 becomes 02:00.
		{"an hour twice", "30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", []string{"2026-10-25 00:30", "2026-10-26 01:30"}},
		{"fired late, in the second of them", "30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", []string{"2026-10-26 01:30"}},
		{"every hour, one twice", "15 * * * *", "Europe/Berlin", "2026-10-25 00:00", []string{"2026-10-25 00:15", "2026-10-25 01:15", "2026-10-25 02:15"}},
		{"every second hour of the clock", "0 */2 * * *", "Europe/Berlin", "2026-10-24 21:00", []string{"2026-10-24 22:00", "2026-10-25 00:00", "2026-10-25 01:00", "2026-10-25 03:00"}},
		{"three o'clock comes once", "0 3 * * *", "Europe/Berlin", "2026-10-24 12:00", []string{"2026-10-25 02:00", "2026-10-26 02:00"}},

		{"midnight left out", "0 0 * * *", "America/Sao_Paulo", "2018-11-03 12:00", []string{"2018-11-04 03:00", "2018-11-05 02:00"}},
		{"half an hour twice", "45 1 * * *", "Australia/Lord_Howe", "2026-04-04 00:00", []string{"2026-04-04 14:45", "2026-04-05 15:15"}},
		{"a day left out", "0 12 30 12 *", "Pacific/Apia", "2011-12-01 00:00", []string{"2011-12-30 10:00", "2012-12-29 22:00"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := parseWhen(t, c.when, c.zone)
			at, err := time.Parse(dayFirst, c.after)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for range c.want {
				at = w.Next(at)
				got = append(got, at.UTC().Format(dayFirst))
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestWhenRefuses: what does not read as anything is refused, and so is what reads as something else than it seems to say.
func TestWhenRefuses(t *testing.T) {
	t.Parallel()
	for _, when := range []string{
		"", " ", "x", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 7", "-1 * * * *", "1- * * * *",
		"5-1 * * * *", "*/61 * * * *", "5/61 * * * *", "0,*/99 * * * *", "0 */25 * * *", "0 0 */32 * *", "0 0 1 */13 *", "0 0 * * */8", "0 0 L * *", "0 0 * * 1L", "0 0 15W * *", "*/0 * * * *", "1,,2 * * * *", ", * * * *", "*5 * * * *", "*-5 * * * *", "* * * * mon-", "1/2/3 * * * *", "1.5 * * * *",
		"TZ=UTC * * * * *", "CRON_TZ=UTC", "TZ=", "@every", "@every 1s", "@reboot", "@", "every", "every ", "every x", "every 1s", "every 9s", "every -1h", "every 10.5s",
		"every 8785h", "every 1ns", "0 0 30 2 *", "0 0 31 4,6 *", "* * * * *\x00", "０ ０ * * *", strings.Repeat("1,", 100) + "1 * * * *",
	} {
		if w, err := ParseWhen(when, ""); petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("%q: %+v, %v", when, w, err)
		}
	}
	for _, zone := range []string{"Local", "localtime", "posix/Europe/Berlin", "right/UTC", "posixrules", "Europe/Nowhere", "../../etc/passwd", "/etc/localtime", "CEST ", "europe/berlin", "EUROPE/BERLIN", "Europe", "Europe/", "US/Pacific-New", "Europe/Berlin/", strings.Repeat("a", 100), "Europe/Berlin\x00"} {
		if _, err := ParseWhen("@daily", zone); petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("zone %q: %v", zone, err)
		}
	}
}

// TestWhenSays: what is wrong is said in words of cron, not of the code that reads it.
func TestWhenSays(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]string{
		"0 0 L * *":    `The field "L" does not read as the day of month: that is 1 to 31, or *, with , - / between them.`,
		"0 24 * * *":   `The field "24" does not read as the hour: that is 0 to 23,`,
		"0 0 * mai *":  `The field "mai" does not read as the month: that is 1 to 12, or jan to dec,`,
		"*/61 * * * *": `The step of the field "*/61" leads beyond its last minute each time. An interval reads like every 90m.`,
		"@often":       "There are @hourly, @daily, @weekly, @monthly and @yearly, and every 90m.",
	} {
		if _, err := ParseWhen(when, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", when, err, want)
		}
	}
}

// TestZones: every name of the list reads as a zone, each is read once, and the machine's own list is not asked.
func TestZones(t *testing.T) {
	t.Parallel()
	if n := len(zones()); n < 500 {
		t.Errorf("there are %d zones", n)
	}
	for name := range zones() {
		zone, err := loadZone(name)
		if again, _ := loadZone(name); err != nil || zone.String() != name || again != zone {
			t.Errorf("%s: %v, %v", name, zone, err)
		}
	}
}

// TestWhenAfter: times that passed are counted, up to a bound, and the next lies behind now.
func TestWhenAfter(t *testing.T) {
	t.Parallel()
	due := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		when   string
		late   time.Duration
		next   time.Duration
		missed uint
	}{
		{"every 30s", 0, 30 * time.Second, 0},
		{"every 30s", 29 * time.Second, 30 * time.Second, 0},
		{"every 30s", 30 * time.Second, time.Minute, 1},
		{"every 30s", 30 * 24 * time.Hour, 30*24*time.Hour + 30*time.Second, MaxMissed},
		{"0 * * * *", 59 * time.Minute, time.Hour, 0},
		{"0 * * * *", 3 * time.Hour, 4 * time.Hour, 3},
		{"* * * * *", 100 * 24 * time.Hour, 100*24*time.Hour + time.Minute, MaxMissed},
	} {
		next, missed := parseWhen(t, c.when, "").after(due, due.Add(c.late))
		if next.Sub(due) != c.next || missed != c.missed {
			t.Errorf("%s, %s late: next %s after it was due, %d missed; want %s and %d", c.when, c.late, next.Sub(due), missed, c.next, c.missed)
		}
	}
}

// TestWhenAgainstModel: over days on which clocks are changed, the times are those that somebody finds who looks at the clock each minute.
func TestWhenAgainstModel(t *testing.T) {
	t.Parallel()
	changes := map[string]string{
		"Europe/Berlin": "2026-03-29", "America/New_York": "2026-11-01", "Australia/Lord_Howe": "2026-04-04", "America/Sao_Paulo": "2018-11-04",
		"Africa/Casablanca": "2026-02-15", "Asia/Kathmandu": "2026-05-05", "Europe/London": "2026-10-25", "Antarctica/Troll": "2026-03-29",
	}
	zones := []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca", "Asia/Kathmandu", "Europe/London", "Antarctica/Troll"}
	rapid.Check(t, func(t *rapid.T) {
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		minute := rapid.SampledFrom([]string{"0", "30", "59", "*/20", "5,45", "*/7"}).Draw(t, "minute")
		hour := rapid.SampledFrom([]string{"*", "*/3", "0", "1", "2", "1,2,3", "0-4", "3", "23"}).Draw(t, "hour")
		w, err := ParseWhen(fmt.Sprintf("%s %s * * *", minute, hour), zone)
		if err != nil {
			t.Fatal(err)
		}
		day, _ := time.Parse(time.DateOnly, changes[zone])
		begin := day.AddDate(0, 0, -1).Add(time.Duration(rapid.IntRange(0, 1500).Draw(t, "minutes")) * time.Minute)
		end := day.AddDate(0, 0, 2)
		var got []string
		for at := w.Next(begin); at.Before(end); at = w.Next(at) {
			got = append(got, at.Format(minutely))
		}
		if d := cmp.Diff(minutes(w, begin, end), got); d != "" {
			t.Fatalf("%s in %s after %s (-model +now):\n%s", w.text, zone, begin, d)
		}
	})
}

// minutes is the model: it looks at the zone's clock each minute.
func minutes(w When, begin, end time.Time) (out []string) {
	shows := func(clock int64) bool {
		m, ok := w.match(clock - 1)
		return ok && m == clock
	}
	clockAt := func(at time.Time) int64 { return at.Unix() + offset(at.In(w.zone)) }
	most := int64(0) // that the clock has shown
	for at := begin.AddDate(0, 0, -2); at.Before(end); at = at.Add(time.Minute) {
		now, before := clockAt(at), clockAt(at.Add(-time.Minute))
		due := shows(now) && (w.hourly || now > most)
		if !w.hourly {
			for skipped := before + 60; skipped < now; skipped += 60 {
				due = due || shows(skipped)
			}
		}
		most = max(most, now)
		if due && at.After(begin) {
			out = append(out, at.Format(minutely))
		}
	}
	return out
}

// FuzzParseWhen: whatever is asked for, it is refused, or its times come one after the other.
func FuzzParseWhen(f *testing.F) {
	for _, s := range []string{"0 3 * * *", "@daily", "every 30s", "*/5 1-3,7 ? jan-mar mon", "TZ=", "0 0 29 2 *", "1,, * * * *", "*/18446744073709551615 * * * *"} {
		f.Add(s, "Europe/Berlin", int64(1_774_746_000))
	}
	f.Fuzz(func(t *testing.T, text, zone string, at int64) {
		w, err := ParseWhen(text, zone)
		if err != nil {
			if petrel.CodeOf(err) != petrel.CodeInvalidField {
				t.Fatalf("%q in %q: %v", text, zone, err)
			}
			return
		}
		if again, err := ParseWhen(w.text, w.zone.String()); err != nil || again.text != w.text || again.hourly != w.hourly {
			t.Fatalf("%q reads differently the second time: %v", text, err)
		}
		now := time.Unix(min(max(at, 0), 4_102_444_800), 0) // up to 2100
		for range 5 {
			next := w.Next(now)
			if !next.After(now) {
				t.Fatalf("%q in %q: after %s comes %s", text, zone, now, next)
			}
			now = next
		}
	})
}
