package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

type jobBody struct {
	Job job.Shown `json:"job"`
}

type jobList struct {
	Jobs []job.Shown `json:"jobs" nullable:"false" doc:"In the order in which they were queued, without their bodies."`
	More bool        `json:"more"`
}

type jobLedger struct {
	Ledger job.ShownLedger `json:"ledger"`
}

type jobsChanged struct {
	Jobs []string `json:"jobs" nullable:"false" doc:"The ids of those that were changed: none, when it was so already."`
}

// OfJob is the part of an address that names a job.
type OfJob struct {
	Job string `path:"job" doc:"The job's id."`
}

// Resolve implements huma.Resolver.
func (p *OfJob) Resolve(huma.Context) []error {
	_, err := job.ParseID(p.Job)
	return refusals(err)
}

func (p *OfJob) id() job.ID {
	id, _ := job.ParseID(p.Job) // Resolve has looked
	return id
}

func (s *server) registerJobs(api huma.API) {
	const tag = "jobs"
	none := []petrel.Code{petrel.CodeJobNotFound}
	register(s, api, route{
		id: "listJobs", method: http.MethodGet, path: "/v1/jobs", tag: tag, summary: "List the app's jobs",
		description: "Webhooks and whatever else is done outside because of something. For the app's backend, with key and secret.",
	}, func(ctx context.Context, in *struct {
		Positioned
		Limited
		State string `query:"state" enum:"waiting,running,done,dead" default:"dead" doc:"Which of them. Of those that are done only the last 1,000 are kept."`
		After string `query:"after" doc:"The last job of the page before."`
	},
	) (*reading[jobList], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (jobList, error) {
			list := jobList{Jobs: []job.Shown{}}
			q := job.ListQuery{App: a.App, Limit: in.Limit}
			err := backend(a)
			if err == nil {
				q.State, err = job.ParseState(in.State)
			}
			if err == nil && in.After != "" {
				q.After, err = job.ParseID(in.After)
			}
			if err != nil {
				return list, err
			}
			page, err := job.List(r, q)
			for _, j := range page.Jobs {
				list.Jobs = append(list.Jobs, j.Show())
			}
			list.More = page.More
			return list, err
		})
	})
	register(s, api, route{
		id: "getJobLedger", method: http.MethodGet, path: "/v1/jobs/ledger", tag: tag, summary: "Count the app's jobs",
		description: "What became of all that was ever queued: accepted = waiting + running + done + dead + discarded.",
	}, func(ctx context.Context, in *struct{ Positioned }) (*reading[jobLedger], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (jobLedger, error) {
			if err := backend(a); err != nil {
				return jobLedger{}, err
			}
			l, err := job.LedgerOf(r, a.App)
			return jobLedger{l.Show()}, err
		})
	})
	register(s, api, route{
		id: "getJob", method: http.MethodGet, path: "/v1/jobs/{job}", tag: tag, summary: "Read a job", codes: none,
	}, func(ctx context.Context, in *struct {
		OfJob
		Positioned
	},
	) (*reading[jobBody], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (jobBody, error) {
			if err := backend(a); err != nil {
				return jobBody{}, err
			}
			j, err := job.Get(r, a.App, in.id())
			return jobBody{j.Show()}, err
		})
	})
	s.registerJobCommands(api, tag, append(none, petrel.CodeJobState))
}

func (s *server) registerJobCommands(api huma.API, tag string, codes []petrel.Code) {
	changed := func(ids []job.ID) jobsChanged { return jobsChanged{job.Names(ids)} }
	type one struct {
		OfJob
		Positioned
	}
	type bare struct {
		OfJob
		Positioned
		Body *struct{}
	}
	register(s, api, route{
		id: "repeatJob", method: http.MethodPost, path: "/v1/jobs/{job}/repeat", tag: tag, summary: "Repeat a dead job", write: true,
		codes: append(codes[:len(codes):len(codes)], petrel.CodeJobsFull), description: "Gives it another round of attempts, from now on and with the same event id. One that waits or runs is left as it is.",
	}, func(ctx context.Context, in *bare) (*answer[jobsChanged], error) {
		app := gateway.CredentialOf(ctx).Actor.App
		cmd := job.Repeat{App: app, Jobs: []job.ID{in.id()}, Limits: s.opt.JobLimits(app)}
		return run(ctx, s, Idempotent{Positioned: in.Positioned}, cmd, changed, http.StatusOK)
	})
	register(s, api, route{
		id: "discardJob", method: http.MethodDelete, path: "/v1/jobs/{job}", tag: tag, summary: "Discard a job", write: true, codes: codes,
		description: "Removes one that waits or is dead. It is counted as discarded.",
	}, func(ctx context.Context, in *one) (*answer[jobsChanged], error) {
		cmd := job.Discard{App: gateway.CredentialOf(ctx).Actor.App, Jobs: []job.ID{in.id()}}
		return run(ctx, s, Idempotent{Positioned: in.Positioned}, cmd, changed, http.StatusOK)
	})
}
