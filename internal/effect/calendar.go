package effect

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// calendar is the Calendar of a shard.
type calendar struct {
	do   func(ctx context.Context, app petrel.AppID, c command.Command) (command.Result, error)
	view View
}

var _ Calendar = calendar{}

// NewCalendar returns the calendar of a shard. do decides a command for an app as the system.
func NewCalendar(do func(ctx context.Context, app petrel.AppID, c command.Command) (command.Result, error), view View) Calendar {
	return calendar{do, view}
}

// Due implements Calendar.
func (c calendar) Due(ctx context.Context, now time.Time, after job.ScheduleDue, limit int) (due []job.ScheduleDue, err error) {
	err = c.view(ctx, func(r *projection.Reader) (err error) {
		due, err = job.SchedulesDue(r, now.UnixMilli(), after, limit)
		return err
	})
	return due, err
}

// Next implements Calendar.
func (c calendar) Next(ctx context.Context, now time.Time) (next int64, err error) {
	err = c.view(ctx, func(r *projection.Reader) (err error) {
		next, err = job.NextSchedule(r, now.UnixMilli())
		return err
	})
	return next, err
}

// Fire implements Calendar.
func (c calendar) Fire(ctx context.Context, app petrel.AppID, name petrel.ScheduleName) (job.Fired, error) {
	res, err := c.do(ctx, app, job.FireSchedule{App: app, Name: name})
	if err != nil {
		return job.Fired{}, err
	}
	return res.Answer.(job.Fired), nil
}
