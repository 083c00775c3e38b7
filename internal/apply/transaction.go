package apply

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// transaction is the folding of one call's entries into the projection. It touches nothing of the loop,
// so that it can be thrown away and done again.
type transaction struct {
	l         *Loop
	applied   petrel.Applied
	block     block
	proof     Proof                     // after the last entry
	results   []result                  // one per entry, in order
	events    []folded                  // of the entries that were folded
	ids       map[petrel.EntryID]uint64 // index of the last entry with that id
	committed time.Time
}

type result struct {
	id      petrel.EntryID
	at      int64 // the entry's stamp, Unix milliseconds
	outcome outcome
	proof   Proof
}

type folded struct {
	domain *Domain
	stamp  event.Stamp
	event  event.Event
	seq    uint64
}

func (l *Loop) begin() *transaction {
	return &transaction{l: l, applied: l.Applied(), proof: l.proofs.last(), block: l.waiters.recent.last.clone(), ids: map[petrel.EntryID]uint64{}}
}

// fold folds all entries and stores the position they bring it to.
func (t *transaction) fold(tx *projection.Tx, recs []petrel.Record, entries []*event.Entry, mark uint64) error {
	for i, rec := range recs {
		o, err := t.entry(tx, rec.Index, entries[i])
		if err != nil {
			return fmt.Errorf("fold the entry at index %d: %w", rec.Index, err)
		}
		t.applied.Index, t.applied.Hash = rec.Index, rec.Hash
		if err := t.record(tx, entries[i], o); err != nil {
			return err
		}
	}
	t.applied.Mark = max(t.applied.Mark, mark)
	if len(recs) > 0 {
		if err := t.block.store(tx); err != nil {
			return err
		}
	}
	return tx.SetApplied(t.applied)
}

// entry checks the guards and folds the events.
func (t *transaction) entry(tx *projection.Tx, index uint64, e *event.Entry) (outcome, error) {
	o := outcome{index: index, verdict: verdictFolded}
	t.l.trace = t.l.trace[:0]
	if last, ok := t.ids[e.ID]; ok && last+t.l.waiters.recent.window() >= index || t.l.waiters.recent.within(e.ID, index) {
		o.verdict = verdictDuplicate
		return o, nil
	}
	stamp := e.Stamp(index)
	ok, err := t.holds(tx, stamp, e)
	if err != nil {
		return o, err
	}
	if !ok {
		o.verdict = verdictConflicted
		return o, nil
	}
	tx.Trace(&t.l.trace)
	defer tx.Trace(nil)
	o.seqs = make([]uint64, len(e.Events))
	for i, ev := range e.Events {
		if f, ok := ev.(event.ShardFounded); ok {
			t.applied.Epoch = f.Epoch
			continue
		}
		d := t.l.kinds[ev.EventKind()]
		if d == nil {
			return o, fmt.Errorf("no domain folds event kind %d", ev.EventKind())
		}
		stamp.Seqs = o.seqs[:i:i]
		if o.seqs[i], err = d.Fold(tx, stamp, ev); err != nil {
			return o, fmt.Errorf("%s: event %d, kind %d: %w", d.Name, i, ev.EventKind(), err)
		}
		t.events = append(t.events, folded{d, stamp, ev, o.seqs[i]})
	}
	return o, nil
}

// holds reports whether every guard of e finds the version it names. That a life of the log begins where the one
// before was is a guard too, though nobody writes it.
func (t *transaction) holds(tx *projection.Tx, stamp event.Stamp, e *event.Entry) (bool, error) {
	for _, ev := range e.Events {
		if f, ok := ev.(event.ShardFounded); ok && f.After != t.applied.Epoch {
			return false, nil
		}
	}
	for _, g := range e.Guards {
		d := t.l.guards[g.Kind]
		if d == nil {
			return false, fmt.Errorf("no domain answers for guard kind %d", g.Kind)
		}
		v, err := d.Version(&tx.Reader, stamp, g)
		if err != nil {
			return false, fmt.Errorf("%s: guard kind %d: %w", d.Name, g.Kind, err)
		}
		if v != g.Version {
			return false, nil
		}
	}
	return true, nil
}

// record adds the outcome to the digest and to the window, and what was written to the proof.
func (t *transaction) record(tx *projection.Tx, e *event.Entry, o outcome) error {
	var buf [256]byte
	b := append(buf[:0], t.applied.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, o.index)
	b = o.append(b)
	t.applied.Digest = sha256.Sum256(b)
	t.proof.Digest = t.applied.Digest
	if o.verdict == verdictFolded {
		t.l.trace = binary.BigEndian.AppendUint64(t.l.trace, o.index)
		sum := sha256.Sum256(t.l.trace)
		t.proof.Writes += binary.BigEndian.Uint64(sum[:])
	}
	t.results = append(t.results, result{id: e.ID, at: e.At, outcome: o, proof: t.proof})
	t.ids[e.ID] = o.index
	return t.block.add(tx, e.ID, o, t.l.waiters.recent.window())
}
