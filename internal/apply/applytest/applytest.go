// Package applytest is a shard without a log, for the tests of domains: commands are decided on a real projection, and folded by the real loop.
package applytest

import (
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Command is what a domain decides.
type Command interface {
	CommandKind() string
	Decide(r *projection.Reader, s event.Stamp) (event.Decision, error)
}

// Planned is a decision that is not in the log yet.
type Planned struct {
	Entry    *event.Entry
	Decision event.Decision
}

// Shard has what was folded, and the records that it was folded from.
type Shard struct {
	T       testing.TB
	Store   *projection.Store
	Loop    *apply.Loop
	Records []petrel.Record
}

// Open makes an empty one with the tables of the loop and of the domain. Options.Store is set here. It is closed with the test.
func Open(t testing.TB, domain projection.Module, o apply.Options) *Shard {
	t.Helper()
	store, err := projection.Open(t.Context(), projection.Options{
		Path: filepath.Join(t.TempDir(), "projection.db"), Modules: []projection.Module{apply.Module(), domain},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	o.Store = store
	loop, err := apply.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return &Shard{T: t, Store: store, Loop: loop}
}

// Plan decides a command at a time in Unix milliseconds, without appending it.
func (s *Shard) Plan(actor petrel.Actor, at int64, id petrel.CommandID, cmd Command) (p Planned, err error) {
	stamp := event.Stamp{App: actor.App, Actor: actor, At: at, Command: id}
	p.Decision, err = View(s, func(r *projection.Reader) (event.Decision, error) { return cmd.Decide(r, stamp) })
	p.Entry = &event.Entry{
		ID: petrel.NewEntryID(), App: actor.App, Actor: actor, At: at, Command: id,
		Print: p.Decision.Print, Guards: p.Decision.Guards, Events: p.Decision.Events,
	}
	return p, err
}

// Fold appends what was planned.
func (s *Shard) Fold(plans ...Planned) []apply.Outcome {
	s.T.Helper()
	var entries []*event.Entry
	for _, p := range plans {
		entries = append(entries, p.Entry)
	}
	return s.Append(entries...)
}

// Append folds entries in one transaction and says what became of each.
func (s *Shard) Append(entries ...*event.Entry) []apply.Outcome {
	s.T.Helper()
	var records []petrel.Record
	var waiters []*apply.Waiter
	for _, e := range entries {
		b, err := event.Encode(e)
		if err != nil {
			s.T.Fatal(err)
		}
		n := uint64(len(s.Records) + len(records) + 1)
		h := sha256.Sum256(binary.BigEndian.AppendUint64(b[:len(b):len(b)], n))
		records = append(records, petrel.Record{Index: n, Hash: h, Payload: b})
		waiters = append(waiters, s.Loop.Expect(e.ID))
	}
	s.Records = append(s.Records, records...)
	if err := s.Loop.Apply(s.T.Context(), records, uint64(len(s.Records))); err != nil {
		s.T.Fatal(err)
	}
	var out []apply.Outcome
	for _, w := range waiters {
		o, err := w.Wait(s.T.Context())
		if err != nil {
			s.T.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

// Agree folds the same records elsewhere in one go: the digests must be the same, and the rows of each query.
func (s *Shard) Agree(other *Shard, queries ...string) {
	s.T.Helper()
	if err := other.Loop.Apply(s.T.Context(), s.Records, uint64(len(s.Records))); err != nil {
		s.T.Fatal(err)
	}
	for _, sql := range queries {
		if a, b := s.Dump(sql), other.Dump(sql); a != b {
			s.T.Fatalf("two replicas differ:\n%s\n%s", a, b)
		}
	}
	if s.Loop.Applied().Digest != other.Loop.Applied().Digest {
		s.T.Fatal("the digests of two replicas differ")
	}
}

// Dump returns the rows of a query, of one column each, as lines.
func (s *Shard) Dump(sql string) string {
	s.T.Helper()
	var b strings.Builder
	if err := s.Store.ViewBudget(s.T.Context(), projection.Budget{Steps: 1 << 30}, func(r *projection.Reader) error {
		return r.Query(sql, func(row *projection.Row) error { b.WriteString(row.Text(0) + "\n"); return nil })
	}); err != nil {
		s.T.Fatal(err)
	}
	return b.String()
}

// View reads.
func View[T any](s *Shard, fn func(r *projection.Reader) (T, error)) (v T, err error) {
	err = s.Store.View(s.T.Context(), func(r *projection.Reader) (err error) {
		v, err = fn(r)
		return err
	})
	return v, err
}
