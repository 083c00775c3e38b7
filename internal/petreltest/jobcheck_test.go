package petreltest

import (
	"fmt"
	"slices"
	"testing"
)

// jobSample is a flawless run: two hooks, five messages; the last is dead for the first hook, and the one before it died for the second
// without ever having reached it. One was delivered twice: the first time the runner died before it could write that down.
func jobSample() *JobEvidence {
	e := &JobEvidence{Hooks: []string{"h0", "h1"}, Ledgers: map[string]JobLedger{}, Dead: map[string][]DeadJob{}}
	call := func(hook string, m, attempt, status int) {
		id := fmt.Sprintf("id-%s-%d", hook, m)
		e.Calls = append(e.Calls, JobCall{
			Hook: hook, Cause: fmt.Sprint("m", m), Event: id, Body: `{"event_id":"` + id + `"}`, Attempt: attempt, Alone: hook == "h0", Status: status,
		})
	}
	for m := range 5 {
		e.Causes = append(e.Causes, fmt.Sprint("m", m))
		if m < 4 {
			call("h0", m, 1, 500)
			call("h0", m, 3, 200)
		}
		if m != 3 {
			call("h1", m, 2, 204)
		}
	}
	call("h0", 0, 4, 200)
	call("h0", 4, 1, 0)
	call("h0", 4, 2, 503)
	call("h1", 0, 1, 200) // in a batch: the header may be another's
	for _, n := range []string{"n1", "n2", "n3"} {
		e.Ledgers[n] = JobLedger{Accepted: 10, Done: 8, Dead: 2, Attempts: 20, Failed: 8, Interrupted: 4}
		e.Dead[n] = []DeadJob{{"1.0.1", "id-h0-4", "h0"}, {"1.0.2", "never-came", "h1"}}
	}
	return e
}

// TestJobChecks spoils a flawless run in one way each, and holds the checker to finding that.
func TestJobChecks(t *testing.T) {
	t.Parallel()
	ledgers := func(change func(l *JobLedger)) func(e *JobEvidence) {
		return func(e *JobEvidence) {
			for n, l := range e.Ledgers {
				change(&l)
				e.Ledgers[n] = l
			}
		}
	}
	drop := func(cond func(c JobCall) bool) func(e *JobEvidence) {
		return func(e *JobEvidence) { e.Calls = slices.DeleteFunc(e.Calls, cond) }
	}
	first := func(e *JobEvidence, change func(c *JobCall)) { change(&e.Calls[1]) } // the second call of m0 to h0
	for _, c := range []struct {
		name  string
		want  []string // "": nothing
		spoil func(e *JobEvidence)
	}{
		{"flawless", nil, func(*JobEvidence) {}},
		{"a job was dropped when the leader changed", []string{CheckVanished}, drop(func(c JobCall) bool { return c.Hook == "h0" && c.Cause == "m2" })},
		{"a failed one was dropped", []string{CheckVanished}, drop(func(c JobCall) bool { return c.Hook == "h0" && c.Cause == "m2" && c.Status == 200 })},
		{"a dropped one, and a ledger that knows", []string{CheckLedger, CheckLedger, CheckLedger, CheckVanished}, func(e *JobEvidence) {
			drop(func(c JobCall) bool { return c.Hook == "h0" && c.Cause == "m2" })(e)
			ledgers(func(l *JobLedger) { l.Accepted--; l.Done-- })(e)
		}},
		{"an event id was made anew", []string{CheckEventID, CheckEventID}, func(e *JobEvidence) { first(e, func(c *JobCall) { c.Event = "another" }) }},
		{"one event id for two hooks", []string{CheckEventID, CheckEventID, CheckBody}, func(e *JobEvidence) {
			e.Calls = append(e.Calls, JobCall{Hook: "h1", Cause: "m3", Event: "id-h0-1", Body: "x", Attempt: 9, Status: 200})
			e.Dead["n1"][1].Event, e.Dead["n2"][1].Event, e.Dead["n3"][1].Event = "id-h0-4", "id-h0-4", "id-h0-4"
		}},
		{"another body", []string{CheckBody, CheckBody}, func(e *JobEvidence) { first(e, func(c *JobCall) { c.Body = "{}" }) }},
		{"an attempt came twice", []string{CheckAttempt}, func(e *JobEvidence) { first(e, func(c *JobCall) { c.Attempt = 1 }) }},
		{"an attempt without a number", []string{CheckAttempt}, func(e *JobEvidence) { first(e, func(c *JobCall) { c.Attempt = 0 }) }},
		{"something that nobody said", []string{CheckInvented}, func(e *JobEvidence) {
			e.Calls = append(e.Calls, JobCall{Hook: "h0", Cause: "m9", Event: "id-9", Attempt: 1, Status: 200})
		}},
		{"a dead job too many", []string{CheckDeadLists, CheckDeadLists, CheckDeadLists, CheckInvented}, func(e *JobEvidence) {
			for n := range e.Dead {
				e.Dead[n] = append(e.Dead[n], DeadJob{"9.0.0", "of nobody", "h0"})
			}
		}},
		{"a dead job is not listed", []string{CheckDeadLists, CheckDeadLists, CheckDeadLists, CheckVanished}, func(e *JobEvidence) {
			for n := range e.Dead {
				e.Dead[n] = e.Dead[n][1:]
			}
		}},
		{"a node lists others", []string{CheckDeadLists}, func(e *JobEvidence) {
			e.Dead["n2"] = []DeadJob{{"1.0.1", "id-h0-4", "h0"}, {"1.0.3", "never-came", "h1"}}
		}},
		{"a node has another ledger", []string{CheckLedger}, func(e *JobEvidence) { e.Ledgers["n3"] = JobLedger{Accepted: 10, Done: 7, Dead: 2} }},
		{"a job waits for ever", []string{CheckLedger, CheckLedger, CheckLedger}, ledgers(func(l *JobLedger) { l.Done--; l.Waiting++ })},
		{"an attempt without an end", []string{CheckLedger, CheckLedger, CheckLedger}, ledgers(func(l *JobLedger) { l.Attempts++ })},
		{"no ledger", []string{CheckLedger}, func(e *JobEvidence) { e.Ledgers = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := jobSample()
			c.spoil(e)
			var got []string
			for _, f := range e.Check() {
				got = append(got, f.Check)
				t.Log(f)
			}
			slices.Sort(got)
			if want := slices.Sorted(slices.Values(c.want)); !slices.Equal(got, want) {
				t.Errorf("found %q, want %q", got, want)
			}
		})
	}
}
