package node

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// JobPage is a page of jobs without their bodies, as queued.
type JobPage struct {
	Jobs []job.Shown `json:"jobs"`
	More bool        `json:"more"`
}

// JobLedgers implements Operator.
func (n *Node) JobLedgers(ctx context.Context) ([]job.ShownLedger, error) {
	all := []job.ShownLedger{}
	for after, more := petrel.AppID(""), true; more; {
		err := n.shard.store.View(ctx, func(r *projection.Reader) error {
			page, err := job.Ledgers(r, after, job.MaxPage)
			for _, l := range page {
				all, after = append(all, l.Show()), l.App
			}
			more = len(page) == job.MaxPage
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Jobs implements Operator.
func (n *Node) Jobs(ctx context.Context, app petrel.AppID, state, after string, limit int) (JobPage, error) {
	q := job.ListQuery{App: app, Limit: limit}
	var err error
	if q.State, err = job.ParseState(state); err != nil {
		return JobPage{}, err
	}
	if after != "" {
		if q.After, err = job.ParseID(after); err != nil {
			return JobPage{}, err
		}
	}
	shown := JobPage{Jobs: []job.Shown{}}
	err = n.shard.store.View(ctx, func(r *projection.Reader) error {
		page, err := job.List(r, q)
		for _, j := range page.Jobs {
			shown.Jobs = append(shown.Jobs, j.Show())
		}
		shown.More = page.More
		return err
	})
	return shown, err
}

// Job implements Operator.
func (n *Node) Job(ctx context.Context, id string) (shown job.Shown, err error) {
	key, err := job.ParseID(id)
	if err != nil {
		return shown, err
	}
	err = n.shard.store.View(ctx, func(r *projection.Reader) error {
		j, err := job.Get(r, "", key)
		shown = j.Show()
		return err
	})
	return shown, err
}

// RepeatJobs implements Operator.
func (n *Node) RepeatJobs(ctx context.Context, app petrel.AppID, ids []string) ([]string, error) {
	keys, err := parseJobs(ids)
	if err != nil {
		return nil, err
	}
	return n.operateJobs(ctx, app, job.Repeat{App: app, Jobs: keys, Lenient: len(ids) > 1, Limits: n.jobLimits(app)})
}

// DiscardJobs implements Operator.
func (n *Node) DiscardJobs(ctx context.Context, app petrel.AppID, ids []string) ([]string, error) {
	keys, err := parseJobs(ids)
	if err != nil {
		return nil, err
	}
	return n.operateJobs(ctx, app, job.Discard{App: app, Jobs: keys, Lenient: len(ids) > 1})
}

func (n *Node) operateJobs(ctx context.Context, app petrel.AppID, c command.Command) ([]string, error) {
	res, err := n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorOperator}, command.Meta{}, c)
	if err != nil {
		return nil, err
	}
	changed := job.Names(res.Answer.([]job.ID)) //nolint:forcetypeassert // what both commands answer
	n.logger.Info("an operator changed jobs", "kind", c.CommandKind(), "app", app, "jobs", len(changed))
	return changed, nil
}

func parseJobs(ids []string) (keys []job.ID, err error) {
	for _, id := range ids {
		key, err := job.ParseID(id)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// JobLedgers implements Operator.
func (r *Remote) JobLedgers(ctx context.Context) ([]job.ShownLedger, error) {
	list, err := ask[ledgerList](ctx, r, http.MethodGet, "/admin/jobs", nil)
	return list.Ledgers, err
}

// Jobs implements Operator.
func (r *Remote) Jobs(ctx context.Context, app petrel.AppID, state, after string, limit int) (JobPage, error) {
	q := url.Values{"state": {state}, "limit": {strconv.Itoa(limit)}}
	if after != "" {
		q.Set("after", after)
	}
	return ask[JobPage](ctx, r, http.MethodGet, appPath(app)+"/jobs?"+q.Encode(), nil)
}

// Job implements Operator.
func (r *Remote) Job(ctx context.Context, id string) (job.Shown, error) {
	return ask[job.Shown](ctx, r, http.MethodGet, "/admin/jobs/"+url.PathEscape(id), nil)
}

// RepeatJobs implements Operator.
func (r *Remote) RepeatJobs(ctx context.Context, app petrel.AppID, ids []string) ([]string, error) {
	list, err := ask[jobNames](ctx, r, http.MethodPost, appPath(app)+"/jobs/repeat", jobNames{ids})
	return list.Jobs, err
}

// DiscardJobs implements Operator.
func (r *Remote) DiscardJobs(ctx context.Context, app petrel.AppID, ids []string) ([]string, error) {
	list, err := ask[jobNames](ctx, r, http.MethodPost, appPath(app)+"/jobs/discard", jobNames{ids})
	return list.Jobs, err
}

type (
	ledgerList struct {
		Ledgers []job.ShownLedger `json:"ledgers"`
	}
	jobNames struct {
		Jobs []string `json:"jobs"`
	}
)

// jobRoutes are the calls of the admin API that are about jobs.
func jobRoutes(mux *http.ServeMux, op Operator, withApp func(do func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error)) http.HandlerFunc) {
	mux.HandleFunc("GET /admin/jobs", func(w http.ResponseWriter, r *http.Request) {
		ledgers, err := op.JobLedgers(r.Context())
		writeAnswer(w, ledgerList{ledgers}, err)
	})
	mux.HandleFunc("GET /admin/jobs/{job}", func(w http.ResponseWriter, r *http.Request) {
		j, err := op.Job(r.Context(), r.PathValue("job"))
		writeAnswer(w, j, err)
	})
	mux.HandleFunc("GET /admin/apps/{app}/jobs", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		q, limit := r.URL.Query(), 0
		if s := q.Get("limit"); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil {
				return nil, petrel.Errorf(petrel.CodeInvalidField, "The limit is not a number.")
			}
			limit = n
		}
		return op.Jobs(ctx, app, q.Get("state"), q.Get("after"), limit)
	}))
	change := func(what string, do func(ctx context.Context, app petrel.AppID, ids []string) ([]string, error)) {
		mux.HandleFunc("POST /admin/apps/{app}/jobs/"+what, withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
			in, err := readBody[jobNames](r)
			if err != nil {
				return nil, err
			}
			changed, err := do(ctx, app, in.Jobs)
			return jobNames{changed}, err
		}))
	}
	change("repeat", op.RepeatJobs)
	change("discard", op.DiscardJobs)
}
