package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// installKey is a stable value: the index of a snapshot that a leader is sending. Between
// its arrival and the removal of the old log a crash leaves a log that ends before the
// snapshot; this says that nothing was lost.
const installKey = "petrel-installing"

// snapStore is raft's file snapshot store with the free disk checked first.
type snapStore struct {
	*raft.FileSnapshotStore
	dir string // of the snapshots
	o   *Options
	st  *store
	m   *metrics
	bad atomic.Bool // the newest one could not be read: watch takes another

	newest atomic.Uint64 // engine position of the newest; 0 is none
}

var _ raft.SnapshotStore = (*snapStore)(nil)

func openSnapshots(o *Options, st *store, m *metrics) (*snapStore, error) {
	fs, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, 2, newHCLog(o.Logger))
	if err != nil {
		return nil, err
	}
	s := &snapStore{FileSnapshotStore: fs, dir: filepath.Join(o.Dir, "snapshots"), o: o, st: st, m: m}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	metas, err := s.List()
	if len(metas) > 0 {
		s.newest.Store(metas[0].Index)
	}
	return s, err
}

// sweep removes what a crash or a full disk left half-written; raft never does.
func (s *snapStore) sweep() error {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}

// room: a snapshot needs three times the projection's size (design §3): itself, the copy
// that is restored from it, and what grows meanwhile.
func (s *snapStore) room() error {
	need := 3 * s.o.Size()
	if free, err := s.o.hooks.free(s.o.Dir); err == nil && free < need {
		return fmt.Errorf("raftlog: %w: a snapshot needs %d bytes free, there are %d", petrel.ErrDiskFull, need, free)
	}
	return nil
}

// Create implements raft.SnapshotStore.
func (s *snapStore) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	if err := s.room(); err != nil {
		return nil, err
	}
	last, err := s.st.LastIndex()
	if err != nil {
		return nil, err
	}
	if index > last {
		if err := s.st.SetUint64([]byte(installKey), index); err != nil {
			return nil, err
		}
		s.m.installed.Inc()
	}
	sink, err := s.FileSnapshotStore.Create(v, index, term, conf, confIndex, t)
	if err != nil {
		return nil, err
	}
	return &countingSink{SnapshotSink: sink, s: s, index: index}, nil
}

// Open implements raft.SnapshotStore.
func (s *snapStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.FileSnapshotStore.Open(id) // checks its sum
	if err != nil {
		if err = damage(err); errors.Is(err, ErrDamaged) {
			s.bad.Store(true)
			s.o.Logger.Error("the newest snapshot is damaged; another one is taken from the projection while that is whole",
				"snapshot", filepath.Join(s.dir, id), "error", err)
		}
		return nil, nil, err
	}
	return meta, indexedReader{r, meta.Index}, nil
}

// indexedReader carries the snapshot's index to Restore, which raft does not tell.
type indexedReader struct {
	io.ReadCloser
	index uint64
}

func snapshotIndex(r io.ReadCloser) uint64 {
	if w, ok := r.(raft.ReadCloserWrapper); ok {
		r = w.WrappedReadCloser()
	}
	if i, ok := r.(indexedReader); ok {
		return i.index
	}
	return 0
}

type countingSink struct {
	raft.SnapshotSink
	s     *snapStore
	index uint64
	n     int64
}

func (c *countingSink) Write(p []byte) (int, error) {
	n, err := c.SnapshotSink.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *countingSink) Close() error {
	err := c.SnapshotSink.Close()
	if err == nil {
		c.s.m.snapBytes.Set(float64(c.n))
		c.s.newest.Store(c.index)
	}
	return err
}

// Cancel also removes what raft's own leaves behind when the disk is full.
func (c *countingSink) Cancel() error {
	err := c.SnapshotSink.Cancel()
	return errors.Join(err, os.RemoveAll(filepath.Join(c.s.dir, c.ID()+".tmp")))
}

// TakeSnapshot implements Log.
func (l *raftLog) TakeSnapshot(ctx context.Context) error {
	if err := l.stopped(); err != nil {
		return err
	}
	if err := l.snaps.room(); err != nil {
		return err
	}
	before := l.st.bytes.Load()
	start := time.Now()
	err := l.await(ctx, l.raft().Snapshot())
	switch {
	case errors.Is(err, raft.ErrNothingNewToSnapshot):
		return nil
	case err != nil && noRoom(err):
		return fmt.Errorf("raftlog: %w: take a snapshot: %w", petrel.ErrDiskFull, err)
	case err != nil:
		return fmt.Errorf("raftlog: take a snapshot: %w", err)
	}
	l.st.bytes.Add(-before)
	l.m.snapshot.Observe(time.Since(start).Seconds())
	l.log.Info("took a snapshot", "mark", l.snaps.newest.Load(), "took", time.Since(start))
	return nil
}

// watch takes a snapshot whenever one is due: raft's own triggers count records, which
// says nothing about bytes. One that is damaged is replaced at once: the log before it is gone, so
// that only it could bring the projection back, or a follower far behind. After a failure it waits a
// minute. It also tells the log for people when the disk fills up and when there is room again.
func (l *raftLog) watch() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	l.proveSnapshot()
	full := false
	var notBefore time.Time
	for {
		select {
		case <-l.closing:
			return
		case <-tick.C:
		}
		full = l.tellDisk(full)
		damaged := l.snaps.bad.Load()
		if !damaged && l.st.bytes.Load() <= max(l.o.SnapshotBytes, l.o.Size()/2) || time.Now().Before(notBefore) {
			continue
		}
		before := l.snaps.newest.Load()
		if damaged && l.raft().State() == raft.Leader {
			_ = l.raft().Apply(nil, l.o.EnqueueTimeout).Error() // something new to take a snapshot of; else the next tick tries again
		}
		if err := l.TakeSnapshot(l.ctx); err != nil && l.stopped() == nil {
			l.log.Warn("a snapshot is due but could not be taken; trying again in a minute", "error", err)
			notBefore = time.Now().Add(time.Minute)
		}
		if l.snaps.newest.Load() != before {
			l.snaps.bad.Store(false)
		}
	}
}

// proveSnapshot reads the newest snapshot, so that damage is found before it is needed.
func (l *raftLog) proveSnapshot() {
	metas, err := l.snaps.List()
	if err != nil || len(metas) == 0 {
		return // Open has refused where one is needed
	}
	if _, r, err := l.snaps.Open(metas[0].ID); err == nil {
		_ = r.Close()
	}
}

func (l *raftLog) tellDisk(was bool) (full bool) {
	free, err := l.o.hooks.free(l.o.Dir)
	full = l.st.full.Load() || err == nil && free < l.o.MinFree
	switch {
	case full && !was:
		l.log.Warn("the disk is full: writes are refused until there is room; reads go on", "free_bytes", free, "needed_bytes", l.o.MinFree, "path", l.o.Dir)
	case !full && was:
		l.log.Info("there is room on the disk again: writes go on", "free_bytes", free)
	}
	return full
}
