package job

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// statements has every statement of the package by name; TestEveryStatementIsListed keeps it whole.
var statements = map[string]string{
	"sqlAdd": sqlAdd, "sqlAddBody": sqlAddBody, "sqlAccept": sqlAccept, "sqlBegin": sqlBegin, "sqlWaitAgain": sqlWaitAgain, "sqlLose": sqlLose,
	"sqlDie": sqlDie, "sqlFinish": sqlFinish, "sqlRepeat": sqlRepeat, "sqlRemove": sqlRemove, "sqlPrune": sqlPrune, "sqlBodyOf": sqlBodyOf,
	"sqlLeaveBody": sqlLeaveBody, "sqlDropBody": sqlDropBody, "sqlMove": sqlMove, "sqlKept": sqlKept, "sqlSetRunner": sqlSetRunner, "sqlStepped": sqlStepped,
	"sqlVersion": sqlVersion, "sqlRunnerVer": sqlRunnerVer, "sqlJob": sqlJob, "sqlDueNow": sqlDueNow, "sqlDueThen": sqlDueThen, "sqlBody": sqlBody,
	"sqlJobs": sqlJobs, "sqlRunning": sqlRunning, "sqlStanding": sqlStanding, "sqlNextLane": sqlNextLane, "sqlThisLane": sqlThisLane,
	"sqlRunner": sqlRunner, "sqlLedger": sqlLedger, "sqlLedgers": sqlLedgers, "sqlCount": sqlCount,
	"sqlSetSchedule": sqlSetSchedule, "sqlRemoveSchedule": sqlRemoveSchedule, "sqlFireSchedule": sqlFireSchedule, "sqlScheduleVersion": sqlScheduleVersion,
	"sqlSchedulesOf": sqlSchedulesOf, "sqlSchedule": sqlSchedule, "sqlSchedules": sqlSchedules, "sqlSchedulesDue": sqlSchedulesDue, "sqlScheduleNext": sqlScheduleNext,
}

// TestNoFullScans: no statement walks a table, or sorts what it read.
func TestNoFullScans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	err := w.Store.View(t.Context(), func(r *projection.Reader) error {
		for name, sql := range statements {
			if full, plan := projection.ExplainFullScan(r, sql); full || strings.Contains(plan, "TEMP B-TREE") {
				t.Errorf("%s:\n%s", name, plan)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryStatementIsListed(t *testing.T) {
	t.Parallel()
	parts := map[string]bool{"sqlColumns": true, "sqlLedgerWords": true, "sqlScheduleColumns": true}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*(?:const |var )?(sql[A-Z]\w*)\s*=`).FindAllStringSubmatch(string(raw), -1) {
			if _, ok := statements[m[1]]; !ok && !parts[m[1]] {
				t.Errorf("%s: %s is not among the statements", f, m[1])
			}
		}
	}
}

// TestReadsCostWhatTheyReturn: with one app of many waiting jobs beside another of few, the runner's reads stay within a few rows.
func TestReadsCostWhatTheyReturn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var plans []applytest.Planned
	for n := range 20 {
		jobs := make([]New, 1000)
		for i := range jobs {
			jobs[i] = New{Kind: "mail", Target: fmt.Sprint(i % 3), Due: int64(i%2) * (w.now + int64(n))}
		}
		p, err := w.plan(of(petrel.ActorSystem, "big"), Enqueue{Jobs: jobs})
		if err != nil {
			t.Fatal(err)
		}
		plans = append(plans, p)
	}
	w.Fold(plans...)
	must[[]ID](w, of(petrel.ActorSystem, "small"), Enqueue{Jobs: []New{{Kind: "mail"}}})
	runner := must[uint64](w, system, BeginRunner{Node: "n1"})
	reads := map[string]func(r *projection.Reader) error{
		"lanes": func(r *projection.Reader) error {
			lanes, err := Lanes(r, Lane{}, 10)
			if len(lanes) != 4 {
				t.Errorf("%d lanes: %v", len(lanes), lanes)
			}
			return err
		},
		"step": func(r *projection.Reader) error {
			_, err := Step{Runner: runner, Take: []Take{{Lane: Lane{"big", "1"}, N: 5}, {Lane: Lane{"small", ""}, N: 5}}}.Decide(r, event.Stamp{Actor: system, At: w.now})
			return err
		},
		"list": func(r *projection.Reader) error {
			_, err := List(r, ListQuery{App: "big", State: Waiting, Limit: 5})
			return err
		},
		"enqueue": func(r *projection.Reader) error { _, err := Queue(r, "big", Limits{}, New{Kind: "mail"}); return err },
		"running": func(r *projection.Reader) error { _, err := ListRunning(r, Job{}, 5); return err },
	}
	for name, fn := range reads {
		if err := w.Store.ViewBudget(t.Context(), projection.Budget{Steps: 50}, fn); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAudit: a row that vanished, or a ledger that was changed past the folds, is found.
func TestAudit(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"a job vanished":    `DELETE FROM job WHERE key = (SELECT min(key) FROM job)`,
		"a job came alive":  `UPDATE job SET state = 2 WHERE key = (SELECT min(key) FROM job)`,
		"a count was lost":  `UPDATE job_ledger SET accepted = accepted - 1`,
		"a count was moved": `UPDATE job_ledger SET waiting = waiting - 1, done = done + 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			must[[]ID](w, of(petrel.ActorSystem, "a"), Enqueue{Jobs: []New{{Kind: "mail"}, {Kind: "mail"}}})
			audit := func(r *projection.Reader) (uint64, error) { return Audit(r, "a") }
			if off := mustView(w, audit); off != 0 {
				t.Fatalf("%d off before", off)
			}
			if err := w.Store.Update(t.Context(), func(tx *projection.Tx) error { _, err := tx.Exec(sql); return err }); err != nil {
				t.Fatal(err)
			}
			if off := mustView(w, audit); off == 0 {
				t.Error("not found")
			}
		})
	}
}
