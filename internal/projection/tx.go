package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Tx is the write transaction: it reads what it wrote. It has no budget. It is valid only within the
// function it was given to.
type Tx struct {
	Reader
	rows    int
	applied *petrel.Applied
	trace   *[]byte // where Exec notes what it was given; nil: nowhere
}

// Update calls fn within the one write transaction and commits it, with the position that fn set.
// It waits for the transaction before it; ctx ends only that wait: once fn runs, it runs to its end.
//
// On any error nothing is stored. The error is fn's own, or wraps petrel.ErrDiskFull (free some room
// and call again), ErrUnreadable (the file is damaged) or petrel.ErrStopped (closed).
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("update the projection: %w", err)
	}
	s.conns.RLock()
	defer s.conns.RUnlock()
	if s.closed {
		return fmt.Errorf("update the projection: %w", petrel.ErrStopped)
	}
	start := time.Now()
	if s.memory != nil {
		done, err := s.memoryWriter()
		if err != nil {
			return fmt.Errorf("update the projection: %w", err)
		}
		defer done()
	}
	tx := &Tx{Reader: Reader{c: s.writer}}
	if err := tx.run(fn); err != nil {
		return s.diskFull(err)
	}
	if tx.applied != nil {
		s.applied.Store(tx.applied)
	}
	s.metrics.update.Observe(time.Since(start).Seconds())
	s.metrics.rows.Add(float64(tx.rows))
	s.checkpoint.wrote()
	return nil
}

func (t *Tx) run(fn func(*Tx) error) error {
	defer t.c.rollback() // does nothing after a commit; undoes all after an error or a panic
	if err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if err := fn(t); err != nil {
		return err
	}
	if t.err != nil { // fn swallowed it; SQLite may already have rolled back
		return t.err
	}
	return t.exec("COMMIT")
}

// Exec runs an INSERT, UPDATE or DELETE and returns how many rows it changed; for any other statement the
// number means nothing. See Reader.Query for sql and args. After an error every further call returns
// it and Update stores nothing.
func (t *Tx) Exec(sql string, args ...any) (changes int, err error) {
	if err := t.exec(sql, args...); err != nil {
		return 0, err
	}
	changes = t.c.c.Changes()
	t.rows += changes
	if t.trace != nil {
		*t.trace = appendWrite(*t.trace, sql, args, changes)
	}
	return changes, nil
}

func (t *Tx) exec(sql string, args ...any) error {
	st, err := t.start(sql, args)
	if err != nil {
		return err
	}
	defer t.c.end(st)
	for {
		more, err := st.s.Step()
		if err != nil {
			return t.fail(sql, err)
		}
		if !more {
			return nil
		}
	}
}

// Rows returns how many rows the transaction has changed so far, through Exec.
func (t *Tx) Rows() int { return t.rows }

// SetApplied stores the position that the transaction brings the projection to.
func (t *Tx) SetApplied(a petrel.Applied) error {
	n, err := t.Exec(updateApplied, a.Index, a.Hash, a.Mark, a.Digest, a.Epoch)
	if err != nil {
		return err
	}
	if n != 1 {
		t.err = fmt.Errorf("%w: the applied row is missing", ErrUnreadable)
		return t.err
	}
	t.applied = &a
	return nil
}

// diskFull recognises a full disk where SQLite reports only a failed write (a quota, or a full disk
// met in an fsync): it tries to write a little beside the file.
func (s *Store) diskFull(err error) error {
	if isIOErr(err) && !errors.Is(err, petrel.ErrDiskFull) {
		if probe := probeWrite(s.opt.Path); errors.Is(probe, petrel.ErrDiskFull) {
			return fmt.Errorf("%w: %w", petrel.ErrDiskFull, err)
		}
	}
	return err
}
