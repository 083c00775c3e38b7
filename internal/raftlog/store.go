package raftlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/types"
)

// store is raft-wal with what Petrel adds: a checksum on every record and on every stable
// value, and an answer for a full disk. It is raft's LogStore and StableStore.
type store struct {
	wal  *wal.WAL
	meta *metaStore
	disk disk // waits for room, tests' faults
	halt func(error)

	bytes     atomic.Int64 // appended since the newest snapshot; see snapshot.go
	full      atomic.Bool  // the last write failed for want of room
	serving   atomic.Bool  // raft runs: a damaged record stops the shard
	truncated bool         // raft cut our suffix and has not stored since; raft's main goroutine only
}

var (
	_ raft.LogStore          = (*store)(nil)
	_ raft.StableStore       = (*store)(nil)
	_ raft.MonotonicLogStore = (*store)(nil)
)

// openStore opens the write-ahead log in dir, which exists.
func openStore(dir string, o *Options, d disk, halt func(error)) (st *store, err error) {
	meta := &metaStore{dir: dir, disk: d, logger: o.Logger}
	defer func() {
		if err != nil {
			_ = meta.close()
		}
	}()
	defer unpanic(&err)
	w, err := wal.Open(dir, wal.WithMetaStore(meta), wal.WithSegmentFiler(newFiler(dir, d)),
		wal.WithSegmentSize(o.SegmentSize), wal.WithLogger(newHCLog(o.Logger)))
	if err != nil {
		return nil, err
	}
	return &store{wal: w, meta: meta, disk: d, halt: halt}, nil
}

func (s *store) close() error { return errors.Join(s.wal.Close(), s.meta.close()) }

// IsMonotonic implements raft.MonotonicLogStore.
func (s *store) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (s *store) FirstIndex() (uint64, error) { return s.wal.FirstIndex() }

// LastIndex implements raft.LogStore.
func (s *store) LastIndex() (uint64, error) { return s.wal.LastIndex() }

// GetLog implements raft.LogStore. raft panics or retries for ever on an error that it
// does not know, so a damaged record stops the shard and ends the goroutine that asked.
func (s *store) GetLog(index uint64, l *raft.Log) error {
	err := s.read(index, l)
	if err == nil || err == raft.ErrLogNotFound || !s.serving.Load() { //nolint:errorlint // raft compares so
		return err
	}
	s.die(fmt.Errorf("read record %d of the log: %w", index, err))
	return err
}

// damage marks an error of reading what was once written, unless it is the environment's.
func damage(err error) error {
	if err == nil || errors.Is(err, ErrDamaged) || slices.ContainsFunc(innocent, func(e error) bool { return errors.Is(err, e) }) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// innocent are errors that say nothing of what the disk holds.
var innocent = []error{
	raft.ErrLogNotFound, types.ErrClosed, errNewer, context.Canceled, context.DeadlineExceeded,
	syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT,
	syscall.EINTR, syscall.EAGAIN, syscall.EBUSY, syscall.ETIMEDOUT,
}

func (s *store) read(index uint64, l *raft.Log) (err error) {
	defer unpanic(&err)
	if err := s.wal.GetLog(index, l); err != nil {
		return damage(err)
	}
	if l.Index != index {
		return fmt.Errorf("%w: it calls itself record %d", ErrDamaged, l.Index)
	}
	if len(l.Extensions) != 4 || binary.BigEndian.Uint32(l.Extensions) != recordSum(l) {
		return fmt.Errorf("%w: it does not match its checksum", ErrDamaged)
	}
	return nil
}

// recordSum covers what raft acts on: index, term, type and data. (Not AppendedAt, which
// only feeds a gauge.)
func recordSum(l *raft.Log) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(head[:], t), t, l.Data)
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. A record that comes from a leader brings its
// checksum along: what memory or network did to it is found before it is stored. For want
// of room it fails, nothing is stored, and raft steps down; any other error stops the shard.
func (s *store) StoreLogs(logs []*raft.Log) error {
	n := int64(0)
	for _, l := range logs {
		sum := recordSum(l)
		switch {
		case len(l.Extensions) == 0:
			l.Extensions = binary.BigEndian.AppendUint32(nil, sum)
		case len(l.Extensions) != 4 || binary.BigEndian.Uint32(l.Extensions) != sum:
			return fmt.Errorf("record %d from the leader: %w on its way", l.Index, ErrDamaged)
		}
		n += int64(len(l.Data)) + 32
	}
	err := s.disk.ready()
	if err == nil {
		err = s.wal.StoreLogs(logs)
	}
	for err != nil && noRoom(err) && s.truncated {
		// raft has cut a suffix but remembers the old end until it stores something: it
		// must not stand for election with that memory. So it waits here for room.
		s.full.Store(true)
		if !s.disk.pause() {
			s.die(nil)
			return err
		}
		err = s.wal.StoreLogs(logs)
	}
	s.full.Store(err != nil && noRoom(err))
	switch {
	case err == nil:
		s.truncated = false
		s.bytes.Add(n)
	case !noRoom(err) && s.serving.Load():
		s.die(fmt.Errorf("write record %d of the log: %w", logs[0].Index, err))
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (s *store) DeleteRange(lo, hi uint64) error {
	if first, err := s.wal.FirstIndex(); err == nil && lo > first {
		s.truncated = true
	}
	return s.wal.DeleteRange(lo, hi)
}

// Stable values carry a checksum: value, CRC32C of key and value. raft panics when a term
// cannot be saved, so Set waits for room, and stops the shard on anything else.

// Set implements raft.StableStore.
func (s *store) Set(key, val []byte) error {
	err := s.wal.Set(key, binary.BigEndian.AppendUint32(append([]byte(nil), val...), stableSum(key, val)))
	if err != nil && s.serving.Load() {
		s.die(fmt.Errorf("save %s: %w", key, err))
	}
	return err
}

// Get implements raft.StableStore.
func (s *store) Get(key []byte) ([]byte, error) {
	val, err := s.stable(key)
	if err != nil && s.serving.Load() {
		s.die(fmt.Errorf("read a value of the log: %w", err))
	}
	return val, err
}

func (s *store) stable(key []byte) ([]byte, error) {
	raw, err := s.wal.Get(key)
	if err != nil || len(raw) == 0 {
		return nil, err
	}
	n := len(raw) - 4
	if n < 0 || binary.BigEndian.Uint32(raw[n:]) != stableSum(key, raw[:n]) {
		return nil, fmt.Errorf("%s: %w: it does not match its checksum", key, ErrDamaged)
	}
	return raw[:n], nil
}

// SetUint64 implements raft.StableStore.
func (s *store) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore.
func (s *store) GetUint64(key []byte) (uint64, error) {
	raw, err := s.Get(key)
	switch {
	case err != nil || raw == nil:
		return 0, err
	case len(raw) != 8:
		return 0, fmt.Errorf("%s: %w: %d bytes", key, ErrDamaged, len(raw))
	}
	return binary.BigEndian.Uint64(raw), nil
}

func stableSum(key, val []byte) uint32 {
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(key, t), t, val)
}

// die stops the shard and ends raft's goroutine that stands in the store, so that it can
// neither panic nor go on with what it did not get. raft's goroutines are started with a
// deferred Done, so that Shutdown still sees them go. err nil: the shard is closing anyway.
func (s *store) die(err error) {
	if err != nil {
		s.halt(err)
	}
	runtime.Goexit()
}

// unpanic makes a panic an error: the engine's decoder slices by lengths that it read.
func unpanic(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", ErrDamaged, p)
	}
}

// disk is the weather: faults that a test makes, and waiting for room.
type disk struct {
	hook    func(op, name string) error
	closing <-chan struct{}
	*diskState
}

type diskState struct {
	waiting  atomic.Int32 // writes that wait for room in persist
	rotating atomic.Bool  // a segment was sealed and its successor does not stand yet

	mu      sync.Mutex // guards what follows
	proven  bool       // the log was read whole
	orphans []string   // segments that the index does not name
}

// keep says whether a segment must not be removed yet: the engine removes what its index does not name as it opens, but
// an index can be damaged.
func (d *diskState) keep(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.proven {
		d.orphans = append(d.orphans, path)
	}
	return !d.proven
}

// prove removes what was kept.
func (d *diskState) prove() (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.proven = true
	for _, path := range d.orphans {
		if e := os.Remove(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// ready returns when the engine can take a write, or an error when it would wait for
// room: a leader must rather step down than stand still, heartbeats and all.
func (d disk) ready() error {
	for d.rotating.Load() {
		if d.waiting.Load() > 0 {
			return fmt.Errorf("the next segment of the log waits for room: %w", syscall.ENOSPC)
		}
		select {
		case <-d.closing:
			return nil
		case <-time.After(100 * time.Microsecond):
		}
	}
	return nil
}

// pause waits a moment for room; false when the shard is closing.
func (d disk) pause() bool {
	select {
	case <-d.closing:
		return false
	case <-time.After(200 * time.Millisecond):
		return true
	}
}

// persist repeats f for as long as there is no room.
func (d disk) persist(op, name string, f func() error) error {
	for waits := false; ; {
		err := d.hook(op, name)
		if err == nil {
			err = f()
		}
		if err == nil || !noRoom(err) {
			return err
		}
		if !waits {
			waits = true
			d.waiting.Add(1)
			defer d.waiting.Add(-1)
		}
		if !d.pause() {
			return err
		}
	}
}
