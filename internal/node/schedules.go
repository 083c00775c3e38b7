package node

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/effect"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// openSchedules makes what fires the shard's schedules. It does nothing until Start, and on every node that does not lead.
func (n *Node) openSchedules() {
	n.schedules = effect.NewScheduler(effect.SchedulerOptions{
		Calendar: effect.NewCalendar(n.doForApp, n.shard.store.View), Leading: n.runsJobs, Held: n.held,
		Now: n.opt.Faults.now(), Logger: n.logger, Registerer: n.reg,
	})
}

func (n *Node) stopSchedules() {
	if n.schedules != nil {
		n.schedules.Stop()
	}
}

// held says that nothing is done for an app for now: it is suspended.
func (n *Node) held(app petrel.AppID) bool {
	return petrel.CodeOf(n.directory.Gate(app)) == petrel.CodeAppSuspended
}

// maxSchedules of an app, by its settings.
func (n *Node) maxSchedules(app petrel.AppID) int { return n.directory.Settings(app).MaxSchedules }

// Schedule is what an operator sets.
type Schedule struct {
	Name   petrel.ScheduleName `json:"name"`
	When   string              `json:"when"`
	Zone   string              `json:"zone,omitempty"`
	Data   json.RawMessage     `json:"data,omitempty"`
	Paused bool                `json:"paused,omitempty"`
}

// Schedules implements Operator.
func (n *Node) Schedules(ctx context.Context, app petrel.AppID, after petrel.ScheduleName) (shown job.ShownSchedules, err error) {
	err = n.shard.store.View(ctx, func(r *projection.Reader) error {
		if _, err := identity.AppByID(r, app); err != nil {
			return err
		}
		page, err := job.Schedules(r, app, after, 0)
		shown = page.Show()
		return err
	})
	return shown, err
}

// SetSchedule implements Operator.
func (n *Node) SetSchedule(ctx context.Context, app petrel.AppID, s Schedule) (job.ShownSchedule, error) {
	return n.operateSchedule(ctx, app, job.SetSchedule{
		Schedule: job.Schedule{App: app, Name: s.Name, When: s.When, Zone: s.Zone, Data: s.Data, Paused: s.Paused}, Max: n.maxSchedules(app),
	})
}

// PauseSchedule implements Operator.
func (n *Node) PauseSchedule(ctx context.Context, app petrel.AppID, name petrel.ScheduleName, paused bool) (job.ShownSchedule, error) {
	return n.operateSchedule(ctx, app, job.PauseSchedule{App: app, Name: name, Paused: paused})
}

// RemoveSchedule implements Operator.
func (n *Node) RemoveSchedule(ctx context.Context, app petrel.AppID, name petrel.ScheduleName) (job.ShownSchedule, error) {
	return n.operateSchedule(ctx, app, job.RemoveSchedule{App: app, Name: name})
}

func (n *Node) operateSchedule(ctx context.Context, app petrel.AppID, c command.Command) (job.ShownSchedule, error) {
	if err := n.shard.store.View(ctx, func(r *projection.Reader) error { _, err := identity.AppByID(r, app); return err }); err != nil {
		return job.ShownSchedule{}, err
	}
	res, err := n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorOperator}, command.Meta{}, c)
	if err != nil {
		return job.ShownSchedule{}, err
	}
	s := res.Answer.(job.Schedule) //nolint:forcetypeassert // what these commands answer
	n.logger.Info("an operator changed a schedule", "kind", c.CommandKind(), "app", app, "schedule", s.Name)
	return s.Show(), nil
}

// Schedules implements Operator.
func (r *Remote) Schedules(ctx context.Context, app petrel.AppID, after petrel.ScheduleName) (job.ShownSchedules, error) {
	return ask[job.ShownSchedules](ctx, r, http.MethodGet, appPath(app)+"/schedules?"+url.Values{"after": {string(after)}}.Encode(), nil)
}

// SetSchedule implements Operator.
func (r *Remote) SetSchedule(ctx context.Context, app petrel.AppID, s Schedule) (job.ShownSchedule, error) {
	return ask[job.ShownSchedule](ctx, r, http.MethodPost, appPath(app)+"/schedules", s)
}

// PauseSchedule implements Operator.
func (r *Remote) PauseSchedule(ctx context.Context, app petrel.AppID, name petrel.ScheduleName, paused bool) (job.ShownSchedule, error) {
	return ask[job.ShownSchedule](ctx, r, http.MethodPatch, appPath(app)+"/schedules/"+url.PathEscape(string(name)), pauseRequest{&paused})
}

// RemoveSchedule implements Operator.
func (r *Remote) RemoveSchedule(ctx context.Context, app petrel.AppID, name petrel.ScheduleName) (job.ShownSchedule, error) {
	return ask[job.ShownSchedule](ctx, r, http.MethodDelete, appPath(app)+"/schedules/"+url.PathEscape(string(name)), nil)
}

type pauseRequest struct {
	Paused *bool `json:"paused"`
}

// scheduleRoutes are the calls of the admin API that are about schedules.
func scheduleRoutes(mux *http.ServeMux, op Operator, withApp func(do func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error)) http.HandlerFunc) {
	mux.HandleFunc("GET /admin/apps/{app}/schedules", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		return op.Schedules(ctx, app, petrel.ScheduleName(r.URL.Query().Get("after")))
	}))
	mux.HandleFunc("POST /admin/apps/{app}/schedules", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		in, err := readBody[Schedule](r)
		if err != nil {
			return nil, err
		}
		return op.SetSchedule(ctx, app, in)
	}))
	mux.HandleFunc("PATCH /admin/apps/{app}/schedules/{schedule}", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		in, err := readBody[pauseRequest](r)
		if err != nil {
			return nil, err
		}
		if in.Paused == nil {
			return nil, petrel.Errorf(petrel.CodeInvalidField, `Say {"paused":true} or {"paused":false}.`)
		}
		return op.PauseSchedule(ctx, app, petrel.ScheduleName(r.PathValue("schedule")), *in.Paused)
	}))
	mux.HandleFunc("DELETE /admin/apps/{app}/schedules/{schedule}", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		return op.RemoveSchedule(ctx, app, petrel.ScheduleName(r.PathValue("schedule")))
	}))
}
