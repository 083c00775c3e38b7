package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// What raft-wal 0.4.1 does not do when the disk is full: a batch whose fsync failed stays in
// the file and comes back with a crash; a forced seal that failed (cutting the tail of the
// log) leaves the writer believing that it is sealed; a file that could not be preallocated
// stays behind and blocks its own creation. What follows takes all of that back, so that
// writing goes on when there is room again, while readers never notice. (0.4.0 must not be
// used: it leaves a cut segment without its index, unreadable after a restart,
// github.com/hashicorp/raft-wal/issues/31. 0.4.2 does not build beside raft 1.8.)

// noRoom tells a full disk (or quota) from a broken one.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// errLingers: a write failed and could not be taken back for certain.
var errLingers = errors.New("the failed write may still be on the disk")

// filer makes segments whose writers survive a failed append.
type filer struct {
	*segment.Filer
	disk disk
}

func newFiler(dir string, d disk) *filer {
	return &filer{Filer: segment.NewFiler(dir, vfs{fs.New(), d}), disk: d}
}

// Create implements types.SegmentFiler. A new file needs next to no room (vfs does without
// preallocation when it must), so it waits for that.
func (f *filer) Create(info types.SegmentInfo) (w types.SegmentWriter, err error) {
	err = f.disk.persist("create", segment.FileName(info), func() error {
		w, err = f.Filer.Create(info)
		return err
	})
	if err != nil {
		return nil, err
	}
	f.disk.rotating.Store(false)
	return &segmentWriter{SegmentWriter: w, filer: f.Filer, info: info, disk: f.disk}, nil
}

// RecoverTail implements types.SegmentFiler.
func (f *filer) RecoverTail(info types.SegmentInfo) (types.SegmentWriter, error) {
	w, err := f.Filer.RecoverTail(info)
	if err != nil {
		return nil, err
	}
	return &segmentWriter{SegmentWriter: w, filer: f.Filer, info: info, disk: f.disk}, nil
}

// segmentWriter is the tail segment.
type segmentWriter struct {
	mu sync.RWMutex // guards the embedded writer against readers while it is exchanged
	types.SegmentWriter
	filer *segment.Filer
	info  types.SegmentInfo
	disk  disk
	dirty bool // a forced seal failed; used by Append and ForceSeal, which the engine calls one at a time
}

func (w *segmentWriter) GetLog(idx uint64) (*types.PooledBuffer, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.SegmentWriter.GetLog(idx) // a copy: it outlives the file
}

func (w *segmentWriter) LastIndex() uint64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.SegmentWriter.LastIndex()
}

func (w *segmentWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.SegmentWriter.Close()
}

// Append implements types.SegmentWriter. After an error nothing of the entries is in the
// segment, unless the error is errLingers.
func (w *segmentWriter) Append(entries []types.LogEntry) error {
	if err := w.recover(); err != nil {
		return err
	}
	err := w.SegmentWriter.Append(entries)
	if sealed, _, _ := w.Sealed(); sealed && err == nil {
		w.disk.rotating.Store(true)
	}
	return err
}

// ForceSeal implements types.SegmentWriter.
func (w *segmentWriter) ForceSeal() (uint64, error) {
	if err := w.recover(); err != nil {
		return 0, err
	}
	start, err := w.SegmentWriter.ForceSeal()
	w.dirty = err != nil
	return start, err
}

// recover reads the segment anew up to its last good batch, when that is needed.
func (w *segmentWriter) recover() error {
	if !w.dirty {
		return nil
	}
	fresh, err := w.filer.RecoverTail(w.info)
	if err != nil {
		return fmt.Errorf("recover the segment after a failed write: %w", err)
	}
	if sealed, _, _ := fresh.Sealed(); sealed || fresh.LastIndex() != w.LastIndex() {
		_ = fresh.Close()
		return fmt.Errorf("recover the segment after a failed write: %w", errLingers)
	}
	w.mu.Lock()
	old := w.SegmentWriter
	w.SegmentWriter = fresh
	w.mu.Unlock()
	w.dirty = false
	return old.Close()
}

// sealTail finishes what a crash between the last batch of a segment and the change to the
// next one left undone. raft-wal 0.4.1 opens such a log, but then answers every append with
// ErrSealed for ever (its rotation runs after the batch has been acknowledged, so kill -9
// can hit the gap). Two cases:
//
//   - the sealing batch is whole: enter seal and next segment into the meta store, exactly as
//     the rotation would have done;
//   - it is torn, so that the engine drops the batch but still believes in its index frame:
//     cut the file in front of that frame.
func (m *metaStore) sealTail(ps types.PersistentState) (types.PersistentState, error) {
	n := len(ps.Segments)
	if n == 0 || !ps.Segments[n-1].SealTime.IsZero() {
		return ps, nil
	}
	tail := &ps.Segments[n-1]
	w, err := segment.NewFiler(m.dir, fs.New()).RecoverTail(*tail)
	if errors.Is(err, os.ErrNotExist) {
		return ps, nil
	}
	if err != nil {
		return ps, err
	}
	sealed, start, _ := w.Sealed()
	last := w.LastIndex()
	if err := w.Close(); err != nil || !sealed {
		return ps, err
	}
	const frameHead = 8
	path := filepath.Join(m.dir, segment.FileName(*tail))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return ps, err
	}
	defer f.Close()
	var head [frameHead]byte
	if _, err := f.ReadAt(head[:], int64(start)-frameHead); err != nil {
		return ps, err
	}
	if indexed := uint64(binary.LittleEndian.Uint32(head[4:]) / 4); last == 0 || indexed != last-tail.BaseIndex+1 {
		return ps, errors.Join(f.Truncate(int64(start)-frameHead), f.Sync())
	}
	tail.SealTime, tail.MaxIndex, tail.IndexStart = time.Now(), last, start
	ps.Segments = append(ps.Segments, types.SegmentInfo{
		ID: ps.NextSegmentID, BaseIndex: last + 1, MinIndex: last + 1,
		SizeLimit: tail.SizeLimit, Codec: tail.Codec, CreateTime: time.Now(),
	})
	ps.NextSegmentID++
	return ps, m.CommitState(ps) // the engine makes the missing file itself
}

// vfs is the engine's file system with failed writes taken back.
type vfs struct {
	*fs.FS
	disk disk
}

// Create implements types.VFS. Preallocation is a best effort: without room for it the file
// starts empty. The folder is synced here because the engine's own file does that only
// after its first good Sync, and forgets it when that fails.
func (v vfs) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := v.FS.Create(dir, name, size)
	if err != nil && noRoom(err) {
		_ = os.Remove(filepath.Join(dir, name))
		f, err = v.FS.Create(dir, name, 0)
	}
	if err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(filepath.Join(dir, name)))
	}
	return v.wrap(f, name), nil
}

// Delete implements types.VFS.
func (v vfs) Delete(dir, name string) error {
	if v.disk.keep(filepath.Join(dir, name)) {
		return nil
	}
	return v.FS.Delete(dir, name)
}

// OpenWriter implements types.VFS.
func (v vfs) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := v.FS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	return v.wrap(f, name), nil
}

func (v vfs) wrap(f types.WritableFile, name string) types.WritableFile {
	return &file{WritableFile: f, disk: v.disk, name: name}
}

// file takes back a write that failed, or that could not be synced, by cutting the file
// where the write began. The engine writes only at the end, one batch at a time.
type file struct {
	types.WritableFile
	disk disk
	name string
	at   int64 // where the last write began
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.at = off
	err := f.disk.hook("write", f.name)
	if err == nil {
		var n int
		if n, err = f.WritableFile.WriteAt(p, off); err == nil {
			return n, nil
		}
	}
	// Without its last bytes, the commit frame, a batch does not count: cutting is tidiness.
	_ = f.cut()
	return 0, err
}

func (f *file) Sync() error {
	err := f.disk.hook("sync", f.name)
	if err == nil {
		err = f.WritableFile.Sync()
	}
	if err == nil {
		return nil
	}
	// The batch is whole but perhaps not on the disk. It must not come back after a crash,
	// since its proposer will be told that it was not appended.
	if e := f.cut(); e != nil { // not merely full
		return fmt.Errorf("%w: %v: %w", errLingers, err, e) //nolint:errorlint // it decides, not the first one
	}
	e := f.disk.hook("sync", f.name)
	if e == nil {
		e = f.WritableFile.Sync()
	}
	if e != nil {
		return fmt.Errorf("%w: %w: %w", errLingers, err, e)
	}
	return err
}

func (f *file) cut() error {
	t, ok := f.WritableFile.(interface{ Truncate(int64) error })
	if !ok {
		return errLingers
	}
	return t.Truncate(f.at)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
