package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// retryAfterBudget is what a caller whose read passed its budget is told.
const retryAfterBudget = time.Second

// errTimeUp is the cause of the context that ends a View at the end of its budget.
var errTimeUp = errors.New("projection: the time of the read's budget is up")

// View calls fn with a consistent snapshot under the store's default budget. See ViewBudget.
func (s *Store) View(ctx context.Context, fn func(*Reader) error) error {
	return s.ViewBudget(ctx, s.opt.Budget, fn)
}

// ViewBudget calls fn with a read-only snapshot: everything fn reads is of one position of the log.
// It waits for one of the pool's places. Zero fields of b take the store's default.
//
// It returns fn's error as it is; a petrel.Error with CodeReadBudget when b was passed, even if fn
// swallowed that; one with CodeTimeout when ctx ended first; an error wrapping petrel.ErrStopped
// after Close.
func (s *Store) ViewBudget(ctx context.Context, b Budget, fn func(*Reader) error) error {
	start := time.Now()
	b = b.or(s.opt.Budget)
	ctx, cancel := context.WithTimeoutCause(ctx, b.Time, errTimeUp)
	defer cancel()
	err := s.view(ctx, b, fn)
	s.metrics.view.Observe(time.Since(start).Seconds())
	if petrel.CodeOf(err) == petrel.CodeReadBudget {
		s.metrics.refusals.Inc()
	}
	return err
}

func (s *Store) view(ctx context.Context, b Budget, fn func(*Reader) error) error {
	s.conns.RLock()
	defer s.conns.RUnlock()
	if s.closed {
		return fmt.Errorf("read the projection: %w", petrel.ErrStopped)
	}
	c, done, err := s.reader(ctx)
	if err != nil {
		return err
	}
	defer done()
	c.c.SetInterrupt(ctx.Done())
	r := &Reader{c: c, ctx: ctx, budget: b.Steps}
	defer func() {
		c.c.SetInterrupt(nil)
		c.rollback()
	}()
	if err := r.Query("BEGIN", nil); err != nil {
		return err
	}
	err = fn(r)
	if r.err != nil {
		return r.err
	}
	return err
}

// reader waits for one of the pool's places. The caller holds conns.
func (s *Store) reader(ctx context.Context) (_ *conn, done func(), err error) {
	if s.memory != nil {
		return s.memory.reader(ctx)
	}
	select {
	case c := <-s.free:
		return c, func() { s.free <- c }, nil
	case <-ctx.Done():
		return nil, nil, ended(ctx)
	}
}

// ended says why ctx is over: the read's budget or the caller's own deadline.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, errTimeUp) {
		return petrel.Errorf(petrel.CodeReadBudget, "The read took longer than it may. Ask for less, or come back later.").
			Because(cause).After(retryAfterBudget)
	}
	return petrel.Errorf(petrel.CodeTimeout, "The deadline passed before the read was done.").Because(ctx.Err())
}

// rollback ends whatever transaction is open. It cannot fail in a way that matters: a connection
// without a transaction is what it leaves behind either way.
func (c *conn) rollback() {
	for _, st := range c.stmts {
		if st.busy { // fn panicked in the middle of rows
			c.end(st)
		}
	}
	if c.c.AutocommitEnabled() {
		return
	}
	if st, err := c.begin("ROLLBACK", nil); err == nil {
		_, _ = st.s.Step()
		c.end(st)
	}
}

// Reader reads one consistent state. It is valid only within the function it was given to, and
// only for one goroutine.
type Reader struct {
	c      *conn
	ctx    context.Context // of the View; nil in an Update, which is never interrupted
	budget int             // rows and statements left; below zero the budget is passed
	err    error           // the first error of SQLite or of the budget: it sticks
}

// Query calls each with every row of sql, in order. sql is one statement and constant: it is
// prepared once per connection. Arguments may be nil, bool, integers, strings, []byte (nil is NULL),
// types with those underneath, petrel.EntryID and petrel.Hash; anything else is an error.
// An error of each ends the query and is returned as it is.
func (r *Reader) Query(sql string, each func(*Row) error, args ...any) error {
	st, err := r.start(sql, args)
	if err != nil {
		return err
	}
	defer r.c.end(st)
	for {
		more, err := st.s.Step()
		if err != nil {
			return r.fail(sql, err)
		}
		if !more {
			return nil
		}
		if err := r.step(); err != nil {
			return err
		}
		if err := each(&st.row); err != nil {
			return err
		}
	}
}

// Get calls scan with the first row of sql, if there is one. See Query.
func (r *Reader) Get(sql string, scan func(*Row), args ...any) (found bool, err error) {
	st, err := r.start(sql, args)
	if err != nil {
		return false, err
	}
	defer r.c.end(st)
	more, err := st.s.Step()
	if err != nil {
		return false, r.fail(sql, err)
	}
	if more {
		if err := r.step(); err != nil {
			return false, err
		}
		scan(&st.row)
	}
	return more, nil
}

// Applied returns the position that this snapshot is of.
func (r *Reader) Applied() (petrel.Applied, error) {
	var a petrel.Applied
	var bad error
	found, err := r.Get(selectApplied, func(row *Row) { a, bad = scanApplied(row) })
	if err == nil && !found {
		bad = fmt.Errorf("%w: the applied row is missing", ErrUnreadable)
	}
	return a, errors.Join(err, bad)
}

func (r *Reader) start(sql string, args []any) (*stmt, error) {
	if r.err != nil {
		return nil, r.err
	}
	if err := r.step(); err != nil {
		return nil, err
	}
	st, err := r.c.begin(sql, args)
	if err != nil {
		return nil, r.fail(sql, err)
	}
	return st, nil
}

func (r *Reader) step() error {
	if r.ctx == nil {
		return nil
	}
	if r.budget--; r.budget < 0 {
		r.err = petrel.Errorf(petrel.CodeReadBudget, "The read takes more rows than it may. Ask for less.").After(retryAfterBudget)
		return r.err
	}
	return nil
}

func (r *Reader) fail(sql string, err error) error {
	if r.ctx != nil && sqlite.ErrCode(err) == sqlite.ResultInterrupt {
		r.err = ended(r.ctx)
		return r.err
	}
	r.err = fmt.Errorf("projection: %q: %w", sql, classify(err))
	return r.err
}

// Row is the row a query stands on. Columns count from 0.
type Row struct {
	s *sqlite.Stmt
}

// Int returns column i as an integer; NULL is 0.
func (r *Row) Int(i int) int64 { return r.s.ColumnInt64(i) }

// Uint returns column i as an index, seq or version; NULL is 0.
func (r *Row) Uint(i int) uint64 { return uint64(r.s.ColumnInt64(i)) }

// Bool reports whether column i is not zero; NULL is false.
func (r *Row) Bool(i int) bool { return r.s.ColumnInt64(i) != 0 }

// Text returns a copy of column i; NULL is "".
func (r *Row) Text(i int) string { return r.s.ColumnText(i) }

// Bytes returns a copy of column i; NULL is nil.
func (r *Row) Bytes(i int) []byte {
	if r.s.ColumnIsNull(i) {
		return nil
	}
	b := make([]byte, r.s.ColumnLen(i))
	r.s.ColumnBytes(i, b)
	return b
}

// IsNull reports whether column i is NULL.
func (r *Row) IsNull(i int) bool { return r.s.ColumnIsNull(i) }
