package apply

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Window is how many entries back an id is recognised. It is part of the log's meaning: see the
// package comment before changing it.
const Window = 1 << 16

// blockSize is how many entries share a row of apply_outcome. Window is a multiple of it.
const blockSize = 64

// Module is the part of the projection's schema that belongs to the loop.
func Module() projection.Module {
	return projection.Module{Name: "apply", Migrations: []string{`
CREATE TABLE apply_outcome (
	block INTEGER PRIMARY KEY, -- index / 64
	body  BLOB NOT NULL        -- of each entry in order: id, verdict, number of seqs, seqs
) STRICT`}}
}

const (
	upsertBlock  = `INSERT INTO apply_outcome (block, body) VALUES (?, ?) ON CONFLICT (block) DO UPDATE SET body = excluded.body`
	deleteBlock  = `DELETE FROM apply_outcome WHERE block = ?`
	selectBlocks = `SELECT block, body FROM apply_outcome ORDER BY block`
)

// verdict is what became of an entry. Its numbers are hashed and stored: never renumber.
type verdict uint8

const (
	verdictFolded     verdict = 0
	verdictConflicted verdict = 1
	verdictDuplicate  verdict = 2
)

// outcome of one entry.
type outcome struct {
	index   uint64
	verdict verdict
	seqs    []uint64 // one per event; nil unless folded
}

// append encodes the outcome without its index.
func (o outcome) append(b []byte) []byte {
	b = append(b, byte(o.verdict))
	b = binary.AppendUvarint(b, uint64(len(o.seqs)))
	for _, s := range o.seqs {
		b = binary.AppendUvarint(b, s)
	}
	return b
}

// block is the row of apply_outcome that the last entry is in.
type block struct {
	number uint64
	body   []byte
}

func (k *block) clone() block { return block{k.number, slices.Clone(k.body)} }

// add appends an entry. At the first entry of a new block it stores the full one and deletes the one
// that the window has left behind.
func (k *block) add(tx *projection.Tx, id petrel.EntryID, o outcome, window uint64) error {
	if n := o.index / blockSize; n != k.number {
		if err := k.store(tx); err != nil {
			return err
		}
		if n > window/blockSize {
			if _, err := tx.Exec(deleteBlock, n-window/blockSize-1); err != nil {
				return err
			}
		}
		k.number, k.body = n, k.body[:0]
	}
	k.body = append(k.body, id[:]...)
	k.body = o.append(k.body)
	return nil
}

func (k *block) store(tx *projection.Tx) error {
	if len(k.body) == 0 {
		return nil
	}
	_, err := tx.Exec(upsertBlock, k.number, k.body)
	return err
}

// recent is the window in memory. The loop alone writes it, holding waiters.mu; so the loop reads it
// without.
type recent struct {
	byID map[petrel.EntryID]seen
	ring []petrel.EntryID // by index modulo its length, the window
	last block
}

type seen struct {
	first outcome // of the first entry with that id that the window held
	last  uint64  // index of the last one
}

func newRecent(window uint64) *recent {
	return &recent{byID: map[petrel.EntryID]seen{}, ring: make([]petrel.EntryID, window)}
}

func (r *recent) window() uint64 { return uint64(len(r.ring)) }

// within reports whether an entry at index is preceded by one of the same id within the window.
func (r *recent) within(id petrel.EntryID, index uint64) bool {
	s, ok := r.byID[id]
	return ok && s.last+r.window() >= index
}

// add notes an entry and forgets the one that leaves the window.
func (r *recent) add(id petrel.EntryID, o outcome) {
	slot := &r.ring[o.index%r.window()]
	if s, ok := r.byID[*slot]; ok && s.last+r.window() <= o.index {
		delete(r.byID, *slot)
	}
	*slot = id
	s, ok := r.byID[id]
	if !ok {
		s.first = o
	}
	s.last = o.index
	r.byID[id] = s
}

// loadRecent reads the window from the projection.
func loadRecent(ctx context.Context, store *projection.Store, window uint64) (*recent, error) {
	r := newRecent(window)
	budget := projection.Budget{Steps: 4*int(window)/blockSize + 16, Time: time.Minute}
	err := store.ViewBudget(ctx, budget, func(rd *projection.Reader) error {
		applied, err := rd.Applied()
		if err != nil {
			return err
		}
		end := uint64(0)
		err = rd.Query(selectBlocks, func(row *projection.Row) (err error) {
			r.last = block{row.Uint(0), row.Bytes(1)}
			end, err = r.load(r.last)
			return err
		})
		if err == nil && end != applied.Index {
			err = fmt.Errorf("%w: outcomes are recorded up to index %d, applied is %d", projection.ErrUnreadable, end, applied.Index)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("apply: read the recent outcomes: %w", err)
	}
	return r, nil
}

// load adds the entries of a block and returns the index of its last.
func (r *recent) load(k block) (end uint64, err error) {
	index := max(1, k.number*blockSize)
	for b := k.body; len(b) > 0; index++ {
		o := outcome{index: index}
		var id petrel.EntryID
		if id, o.verdict, o.seqs, b, err = cutOutcome(b); err != nil {
			return 0, fmt.Errorf("block %d of the outcomes: %w", k.number, err)
		}
		r.add(id, o)
	}
	return index - 1, nil
}

func cutOutcome(b []byte) (id petrel.EntryID, v verdict, seqs []uint64, rest []byte, err error) {
	bad := fmt.Errorf("%w: cut short", projection.ErrUnreadable)
	if len(b) < len(id)+1 {
		return id, 0, nil, nil, bad
	}
	id, v = petrel.EntryID(b[:len(id)]), verdict(b[len(id)])
	b = b[len(id)+1:]
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)) {
		return id, 0, nil, nil, bad
	}
	b = b[w:]
	if n > 0 {
		seqs = make([]uint64, n)
	}
	for i := range seqs {
		if seqs[i], w = binary.Uvarint(b); w <= 0 {
			return id, 0, nil, nil, bad
		}
		b = b[w:]
	}
	return id, v, seqs, b, nil
}
