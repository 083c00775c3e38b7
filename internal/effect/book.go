package effect

import (
	"context"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Desk takes commands; *command.Desk.
type Desk interface {
	Do(ctx context.Context, actor petrel.Actor, meta command.Meta, cmd command.Command) (command.Result, error)
}

// View reads the projection; the method of *projection.Store.
type View func(ctx context.Context, fn func(*projection.Reader) error) error

// book is the Book of a shard.
type book struct {
	desk Desk
	view View
}

var (
	_ Book = book{}
	_ Desk = (*command.Desk)(nil)
)

// page is how many lanes or jobs one read takes: far below its budget.
const page = 500

// NewBook returns the book of the shard behind a desk.
func NewBook(desk Desk, view View) Book { return book{desk, view} }

var system = petrel.Actor{Kind: petrel.ActorSystem}

// Begin implements Book.
func (b book) Begin(ctx context.Context, node petrel.NodeID, term uint64) (uint64, error) {
	res, err := b.desk.Do(ctx, system, command.Meta{}, job.BeginRunner{Node: node, Term: term})
	if err != nil {
		return 0, err
	}
	return res.Answer.(uint64), nil
}

// Step implements Book.
func (b book) Step(ctx context.Context, s job.Step) (job.Stepped, error) {
	res, err := b.desk.Do(ctx, system, command.Meta{}, s)
	if err != nil {
		return job.Stepped{}, err
	}
	return res.Answer.(job.Stepped), nil
}

// Running implements Book.
func (b book) Running(ctx context.Context) (all []job.Job, err error) {
	for more := true; more; {
		var last job.Job
		if len(all) > 0 {
			last = all[len(all)-1]
		}
		err := b.view(ctx, func(r *projection.Reader) error {
			jobs, err := job.ListRunning(r, last, page)
			all, more = append(all, jobs...), len(jobs) == page
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Lanes implements Book.
func (b book) Lanes(ctx context.Context, app petrel.AppID) (all []job.LaneDue, err error) {
	after := job.Lane{App: app}
	if app != "" {
		err := b.view(ctx, func(r *projection.Reader) error {
			first, found, err := job.FirstLane(r, app)
			if found {
				all = append(all, first)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for more := true; more; {
		err := b.view(ctx, func(r *projection.Reader) error {
			lanes, err := job.Lanes(r, after, page)
			more = len(lanes) == page
			for _, l := range lanes {
				if app != "" && l.App != app {
					more = false
					break
				}
				all, after = append(all, l), l.Lane
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Any implements Book.
func (b book) Any(ctx context.Context) (any bool, err error) {
	err = b.view(ctx, func(r *projection.Reader) error {
		lanes, err := job.Lanes(r, job.Lane{}, 1)
		if any = len(lanes) > 0; err != nil || any {
			return err
		}
		jobs, err := job.ListRunning(r, job.Job{}, 1)
		any = len(jobs) > 0
		return err
	})
	return any, err
}
