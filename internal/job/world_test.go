package job

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a shard with a clock that stands still unless a test moves it.
type world struct {
	*applytest.Shard
	now int64 // Unix milliseconds
}

var (
	system   = petrel.Actor{Kind: petrel.ActorSystem}
	operator = petrel.Actor{Kind: petrel.ActorOperator}
)

func of(kind petrel.ActorKind, app petrel.AppID) petrel.Actor {
	return petrel.Actor{Kind: kind, App: app}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{now: 1_700_000_000_000, Shard: applytest.Open(t, Module(), apply.Options{Domains: []apply.Domain{{
		Name: "job", Kinds: Kinds(), Guards: GuardKinds(), Fold: Fold, Version: Version, Publish: Publish,
	}}, Publish: func(p []petrel.Publication) { t.Errorf("job published %v", p) }})}
}

type command = applytest.Command

func (w *world) plan(actor petrel.Actor, cmd command) (applytest.Planned, error) {
	return w.Plan(actor, w.now, "", cmd)
}

// do decides cmd and folds what came of it.
func (w *world) do(actor petrel.Actor, cmd command) (any, error) {
	w.T.Helper()
	p, err := w.plan(actor, cmd)
	if err != nil {
		return nil, err
	}
	if len(p.Decision.Events) > 0 {
		if o := w.Fold(p)[0]; o.Conflicted {
			w.T.Fatalf("%s conflicted with nobody", cmd.CommandKind())
		}
	}
	return p.Decision.Answer(p.Entry.Stamp(uint64(len(w.Records))), nil), nil
}

func must[T any](w *world, actor petrel.Actor, cmd command) T {
	w.T.Helper()
	answer, err := w.do(actor, cmd)
	if err != nil {
		w.T.Fatalf("%s: %v", cmd.CommandKind(), err)
	}
	return answer.(T)
}

func view[T any](w *world, fn func(r *projection.Reader) (T, error)) (T, error) {
	return applytest.View(w.Shard, fn)
}

func mustView[T any](w *world, fn func(r *projection.Reader) (T, error)) T {
	w.T.Helper()
	v, err := view(w, fn)
	if err != nil {
		w.T.Fatal(err)
	}
	return v
}

// agree folds the same records in one go elsewhere: every row must be the same.
func (w *world) agree() {
	w.T.Helper()
	w.Agree(newWorld(w.T).Shard,
		`SELECT concat_ws('|', key, app, state, kind, target, at, queued_at, attempts, interrupted, failures, losses, seq, hex(batch), version, body, hex(data), error) FROM job ORDER BY key`,
		`SELECT concat_ws('|', key, jobs, hex(data)) FROM job_body ORDER BY key`,
		`SELECT concat_ws('|', app, accepted, waiting, running, done, dead, discarded, kept, attempts, failed, interrupted, repeated, queued_at) FROM job_ledger ORDER BY app`,
		`SELECT concat_ws('|', node, term, at, version) FROM job_runner`,
		`SELECT concat_ws('|', app, name, due_when, zone, hex(data), paused, next, due, fired, missed, made, version) FROM job_schedule ORDER BY app, name`,
	)
}
