package api

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

type scheduleBody struct {
	Schedule job.ShownSchedule `json:"schedule"`
}

// OfSchedule is the part of an address that names a schedule.
type OfSchedule struct {
	Schedule petrel.ScheduleName `path:"schedule" doc:"The schedule's name, chosen by the app."`
}

// Resolve implements huma.Resolver.
func (p *OfSchedule) Resolve(huma.Context) []error {
	_, err := petrel.ParseScheduleName(string(p.Schedule))
	return refusals(err)
}

type putSchedule struct {
	OfSchedule
	Positioned
	Body struct {
		When   string          `json:"when" doc:"A cron expression of five fields, one of @hourly @daily @weekly @monthly @yearly, or an interval: every 90s."`
		Zone   string          `json:"zone,omitempty" doc:"IANA's name of the time zone in which a cron expression is read. Default UTC."`
		Data   json.RawMessage `json:"data,omitempty" doc:"Any JSON value of up to 8 KiB, told when it fires."`
		Paused bool            `json:"paused,omitempty" doc:"It is kept, and not due until it goes on."`
	}
}

func (s *server) registerSchedules(api huma.API) {
	const tag = "schedules"
	shown := func(v job.Schedule) scheduleBody { return scheduleBody{v.Show()} }
	none := []petrel.Code{petrel.CodeScheduleNotFound}
	type one struct {
		OfSchedule
		Positioned
	}
	register(s, api, route{
		id: "listSchedules", method: http.MethodGet, path: "/v1/schedules", tag: tag, summary: "List the app's schedules",
		description: "For the app's backend, with key and secret.",
	}, func(ctx context.Context, in *struct {
		Positioned
		Limited
		After string `query:"after" doc:"The last schedule of the page before."`
	},
	) (*reading[job.ShownSchedules], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (job.ShownSchedules, error) {
			if err := backend(a); err != nil {
				return job.ShownSchedules{}, err
			}
			page, err := job.Schedules(r, a.App, petrel.ScheduleName(in.After), in.Limit)
			return page.Show(), err
		})
	})
	register(s, api, route{
		id: "getSchedule", method: http.MethodGet, path: "/v1/schedules/{schedule}", tag: tag, summary: "Read a schedule", codes: none,
	}, func(ctx context.Context, in *one) (*reading[scheduleBody], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (scheduleBody, error) {
			if err := backend(a); err != nil {
				return scheduleBody{}, err
			}
			v, err := job.ScheduleByName(r, a.App, in.Schedule)
			return shown(v), err
		})
	})
	register(s, api, route{
		id: "setSchedule", method: http.MethodPut, path: "/v1/schedules/{schedule}", tag: tag, summary: "Set a schedule", write: true,
		codes: []petrel.Code{petrel.CodeLimitReached},
		description: "Makes it, or replaces all of its settings; one whose times stay keeps its next one. Whenever it is due, the app's webhooks for schedule.due are told. " +
			"An app has a hundred at most, unless its settings say otherwise.",
	}, func(ctx context.Context, in *putSchedule) (*answer[scheduleBody], error) {
		app := gateway.CredentialOf(ctx).Actor.App
		cmd := job.SetSchedule{
			Schedule: job.Schedule{App: app, Name: in.Schedule, When: in.Body.When, Zone: in.Body.Zone, Data: in.Body.Data, Paused: in.Body.Paused},
			Max:      s.opt.MaxSchedules(app),
		}
		return run(ctx, s, Idempotent{Positioned: in.Positioned}, cmd, shown, http.StatusOK)
	})
	register(s, api, route{
		id: "removeSchedule", method: http.MethodDelete, path: "/v1/schedules/{schedule}", tag: tag, summary: "Remove a schedule", write: true, codes: none,
		description: "What it has brought already is still told. The answer is the schedule as it was.",
	}, func(ctx context.Context, in *one) (*answer[scheduleBody], error) {
		cmd := job.RemoveSchedule{App: gateway.CredentialOf(ctx).Actor.App, Name: in.Schedule}
		return run(ctx, s, Idempotent{Positioned: in.Positioned}, cmd, shown, http.StatusOK)
	})
}
