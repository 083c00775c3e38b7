package raftlogtest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// Recorder is an Applier that remembers what it was given and refuses what the contract
// forbids: a gap, a repetition, a hash that does not follow, a mark that goes back. It
// outlives the logs that feed it, as a projection's file does.
type Recorder struct {
	mu       sync.Mutex
	s        state
	at       []time.Time // when each record was applied
	restores int
	gate     func(context.Context) // held before each Apply; nil is open
	fail     error                 // returned by the next Apply
	changed  chan struct{}
}

type state struct {
	Applied  petrel.Applied
	Payloads []string
	Hashes   []petrel.Hash
	Marks    []uint64 // Applied.Mark as each record's Apply ended
}

var _ raftlog.Applier = (*Recorder)(nil)

// NewRecorder returns an empty one.
func NewRecorder() *Recorder { return &Recorder{changed: make(chan struct{})} }

// Applied implements raftlog.Applier.
func (r *Recorder) Applied() petrel.Applied {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.s.Applied
}

// Apply implements raftlog.Applier.
func (r *Recorder) Apply(ctx context.Context, recs []petrel.Record, mark uint64) error {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		gate(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	a := r.s.Applied
	if mark < a.Mark {
		return fmt.Errorf("mark %d after %d", mark, a.Mark)
	}
	for _, rec := range recs {
		if rec.Index != a.Index+1 || rec.Hash != follow(a.Hash, rec.Index, rec.Payload) {
			return fmt.Errorf("record %d does not follow record %d", rec.Index, a.Index)
		}
		a.Index, a.Hash = rec.Index, rec.Hash
		r.s.Payloads = append(r.s.Payloads, string(rec.Payload))
		r.s.Hashes = append(r.s.Hashes, rec.Hash)
		r.s.Marks = append(r.s.Marks, mark)
		r.at = append(r.at, time.Now())
	}
	a.Mark = mark
	r.s.Applied = a
	r.notify()
	return nil
}

func follow(prev petrel.Hash, index uint64, payload []byte) petrel.Hash {
	b := append([]byte(nil), prev[:]...)
	b = binary.BigEndian.AppendUint64(b, index)
	return sha256.Sum256(append(b, payload...))
}

func (r *Recorder) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Snapshot implements raftlog.Applier.
func (r *Recorder) Snapshot(context.Context) (raftlog.Snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := json.Marshal(r.s)
	return snapshot{r.s.Applied, b}, err
}

type snapshot struct {
	applied petrel.Applied
	bytes   []byte
}

func (s snapshot) Applied() petrel.Applied { return s.applied }
func (s snapshot) Release()                {}
func (s snapshot) WriteTo(_ context.Context, w io.Writer) error {
	_, err := w.Write(s.bytes)
	return err
}

// Restore implements raftlog.Applier.
func (r *Recorder) Restore(_ context.Context, rd io.Reader) error {
	var s state
	if err := json.NewDecoder(rd).Decode(&s); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s, r.at = s, make([]time.Time, len(s.Payloads))
	r.restores++
	r.notify()
	return nil
}

// Wait returns once record index has been applied.
func (r *Recorder) Wait(ctx context.Context, index uint64) error {
	for {
		r.mu.Lock()
		ok, changed, have := r.s.Applied.Index >= index, r.changed, r.s.Applied.Index
		r.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("record %d has not been applied, only %d", index, have), ctx.Err())
		}
	}
}

// Payloads returns all records so far.
func (r *Recorder) Payloads() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.s.Payloads...)
}

// At returns when record index was applied.
func (r *Recorder) At(index uint64) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at[index-1]
}

// Restores counts calls of Restore.
func (r *Recorder) Restores() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.restores
}

// Gate holds every later Apply until f returns; nil opens it.
func (r *Recorder) Gate(f func(context.Context)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = f
}

// Fail makes every later Apply fail.
func (r *Recorder) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// Rewind forgets the records behind index, as a projection does that lost its last
// transactions with the power. 0 throws everything away.
func (r *Recorder) Rewind(index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A transaction is whole or gone: records of one Apply share a mark.
	for index > 0 && index < uint64(len(r.s.Marks)) && r.s.Marks[index] == r.s.Marks[index-1] {
		index--
	}
	r.s.Payloads, r.s.Hashes, r.s.Marks, r.at = r.s.Payloads[:index], r.s.Hashes[:index], r.s.Marks[:index], r.at[:index]
	r.s.Applied = petrel.Applied{Index: index}
	if index > 0 {
		r.s.Applied.Hash, r.s.Applied.Mark = r.s.Hashes[index-1], r.s.Marks[index-1]
	}
}
