package projection

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"zombiezen.com/go/sqlite"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// The form of a snapshot: snapshotMagic, the length of the file (8 bytes, big endian), the SQLite
// file, and the SHA-256 of all of that before it.
const snapshotMagic = "petrel projection 1\n"

// backupPages is how many pages are copied between two looks at the context.
const backupPages = 512

// Snapshot is a pinned, consistent state of the projection. Release it: while it is pinned the
// write-ahead log cannot begin anew.
type Snapshot struct {
	s       *Store
	applied petrel.Applied

	mu    sync.Mutex // guards what follows
	c     *conn      // holds the read transaction; nil once released
	image []byte     // instead of c when the projection is in memory
	cause error      // why both are nil
}

// Snapshot pins the present state. It costs one connection and copies nothing.
func (s *Store) Snapshot(ctx context.Context) (_ *Snapshot, err error) {
	s.conns.RLock()
	defer s.conns.RUnlock()
	if s.closed {
		return nil, fmt.Errorf("snapshot the projection: %w", petrel.ErrStopped)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("snapshot the projection: %w", err)
	}
	if s.memory != nil {
		return s.memorySnapshot(ctx)
	}
	c, err := openReader(s.opt.Path, 1<<20)
	if err != nil {
		return nil, fmt.Errorf("snapshot the projection: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("snapshot the projection: %w", err), c.close())
		}
	}()
	if err := c.run("BEGIN"); err != nil {
		return nil, err
	}
	applied, err := (&Reader{c: c}).Applied() // the first read pins
	if err != nil {
		return nil, err
	}
	n := &Snapshot{s: s, c: c, applied: applied}
	s.pins.add(n)
	return n, nil
}

// Applied returns the position that the snapshot is of.
func (n *Snapshot) Applied() petrel.Applied { return n.applied }

// Release lets go of the pinned state. Safe to call twice, and during WriteTo, which then fails.
func (n *Snapshot) Release() { n.release(errors.New("the snapshot was released")) }

func (n *Snapshot) release(cause error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.c == nil && n.image == nil {
		return
	}
	if n.c != nil {
		n.c.rollback()
		if err := n.c.close(); err != nil {
			n.s.opt.Logger.Warn("closing a snapshot of the projection failed", "error", err)
		}
	}
	n.c, n.image, n.cause = nil, nil, cause
	n.s.pins.remove(n)
}

// WriteTo makes a copy beside the projection, verifies it, lets go of the pin, and writes the copy
// to w. It needs as much free room as the projection's file. It can be called once.
func (n *Snapshot) WriteTo(ctx context.Context, w io.Writer) error {
	if err := n.writeTo(ctx, w); err != nil {
		return fmt.Errorf("write a snapshot of the projection: %w", err)
	}
	return nil
}

func (n *Snapshot) writeTo(ctx context.Context, w io.Writer) error {
	if n.s.memory != nil {
		return n.writeImage(ctx, w)
	}
	tmp, err := makeTemp(n.s.opt.Path)
	if err != nil {
		return err
	}
	defer os.Remove(tmp) //nolint:errcheck // Open removes what is left
	if err := n.backup(ctx, tmp); err != nil {
		return err
	}
	n.Release()
	if err := n.verify(ctx, tmp); err != nil {
		return err
	}
	f, err := os.Open(tmp)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return writeFramed(ctx, w, f, fi.Size())
}

func (n *Snapshot) backup(ctx context.Context, tmp string) (err error) {
	dst, err := openConn(tmp, sqlite.OpenReadWrite, "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.close()) }()
	b, err := n.startBackup(dst)
	if err != nil {
		return err
	}
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, n.pinned(b.Close))
		}
		err := n.pinned(func() (err error) {
			more, err = b.Step(backupPages)
			return classify(err)
		})
		if err != nil {
			return errors.Join(err, n.pinned(b.Close))
		}
	}
	return n.pinned(b.Close)
}

func (n *Snapshot) startBackup(dst *conn) (b *sqlite.Backup, err error) {
	err = n.pinned(func() (err error) {
		b, err = sqlite.NewBackup(dst.c, "main", n.c.c, "main")
		return classify(err)
	})
	return b, err
}

// pinned calls fn while the read transaction cannot be released.
func (n *Snapshot) pinned(fn func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.c == nil {
		return n.cause
	}
	return fn()
}

// verify refuses to hand on a copy that a node could not open.
func (n *Snapshot) verify(ctx context.Context, tmp string) (err error) {
	c, err := openConn(tmp, sqlite.OpenReadWrite, "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	c.c.SetInterrupt(ctx.Done())
	if err := check(c, false); err != nil {
		return err
	}
	a, err := (&Reader{c: c}).Applied()
	if err == nil && a != n.applied {
		err = fmt.Errorf("%w: the copy stands at %d, not at %d", ErrUnreadable, a.Index, n.applied.Index)
	}
	return err
}

func writeFramed(ctx context.Context, w io.Writer, r io.Reader, size int64) error {
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	head := binary.BigEndian.AppendUint64([]byte(snapshotMagic), uint64(size)) //nolint:gosec // of a file
	if _, err := out.Write(head); err != nil {
		return err
	}
	if err := copyN(ctx, out, r, size); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// copyN copies n bytes, looking at ctx now and then.
func copyN(ctx context.Context, w io.Writer, r io.Reader, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := min(n, 1<<20)
		if _, err := io.CopyN(w, r, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// Restore replaces the projection by what a Snapshot wrote, and migrates it. The new file is made and
// verified beside the old one; readers wait only while the files change places. Snapshots that are
// still held fail.
//
// Until it succeeds the old state stays in use. Errors wrap ErrUnreadable (a damaged or torn
// snapshot), ErrNewerSchema (wait for an upgrade), petrel.ErrDiskFull or petrel.ErrStopped. An error
// in the change of places itself closes the store: every later call gives petrel.ErrStopped.
func (s *Store) Restore(ctx context.Context, r io.Reader) error {
	if s.memory != nil {
		if err := s.memoryRestore(ctx, r); err != nil {
			return fmt.Errorf("restore the projection: %w", err)
		}
		return nil
	}
	tmp, err := makeTemp(s.opt.Path)
	if err != nil {
		return fmt.Errorf("restore the projection: %w", err)
	}
	defer removeAll(tmp)
	if err := s.prepareRestore(ctx, tmp, r); err != nil {
		return fmt.Errorf("restore the projection: %w", err)
	}
	s.write.Lock()
	defer s.write.Unlock()
	s.pins.abort()
	s.conns.Lock()
	defer s.conns.Unlock()
	if s.closed {
		return fmt.Errorf("restore the projection: %w", petrel.ErrStopped)
	}
	if err := s.swap(ctx, tmp); err != nil {
		s.closed = true
		s.metrics.unregister()
		return errors.Join(fmt.Errorf("restore the projection: %w", err), s.closeConns())
	}
	return nil
}

// prepareRestore makes of tmp a verified, migrated file without a write-ahead log, on disk.
func (s *Store) prepareRestore(ctx context.Context, tmp string, r io.Reader) error {
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return wrapOS("open a temporary file", err)
	}
	err = readFramed(ctx, f, bufio.NewReaderSize(r, 1<<20))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	c, _, err := openChecked(ctx, tmp, s.opt.Modules, s.opt.CacheBytes, false)
	if err != nil {
		return err
	}
	if err := c.close(); err != nil { // the last connection: copies the write-ahead log back and removes it
		return err
	}
	return syncPath(tmp)
}

// readFramed copies the file within a snapshot to w.
func readFramed(ctx context.Context, w io.Writer, r io.Reader) error {
	sum := sha256.New()
	head := make([]byte, len(snapshotMagic)+8)
	if _, err := io.ReadFull(r, head); err != nil {
		return torn(err)
	}
	if !bytes.HasPrefix(head, []byte(snapshotMagic)) {
		return fmt.Errorf("%w: the snapshot does not begin as one", ErrUnreadable)
	}
	sum.Write(head)
	size := binary.BigEndian.Uint64(head[len(snapshotMagic):])
	if size > 1<<50 {
		return fmt.Errorf("%w: the snapshot claims a length of %d", ErrUnreadable, size)
	}
	if err := copyN(ctx, io.MultiWriter(w, sum), r, int64(size)); err != nil {
		return wrapOS("write a temporary file", torn(err))
	}
	var want [sha256.Size]byte
	if _, err := io.ReadFull(r, want[:]); err != nil {
		return torn(err)
	}
	if !bytes.Equal(want[:], sum.Sum(nil)) {
		return fmt.Errorf("%w: the snapshot's bytes do not match its checksum", ErrUnreadable)
	}
	return nil
}

func torn(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the snapshot ends too early: %w", ErrUnreadable, err)
	}
	return err
}

// swap puts tmp in the place of the projection and opens it. The caller holds write and conns.
func (s *Store) swap(ctx context.Context, tmp string) error {
	if err := s.closeConns(); err != nil {
		return err
	}
	// In this order, each on disk before the next: see the package's invariants.
	for _, old := range []string{s.opt.Path, s.opt.Path + "-wal", s.opt.Path + "-shm"} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := syncPath(filepath.Dir(s.opt.Path)); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, s.opt.Path); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(s.opt.Path)); err != nil {
		return err
	}
	applied, err := s.openConns(ctx, false)
	if err != nil {
		return err
	}
	s.applied.Store(&applied)
	return nil
}

// pins are the snapshots that hold a connection to the file.
type pins struct {
	mu  sync.Mutex
	all map[*Snapshot]bool
}

func (p *pins) add(n *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[*Snapshot]bool{}
	}
	p.all[n] = true
}

func (p *pins) remove(n *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, n)
}

// abort ends all of them: the file they read is about to go.
func (p *pins) abort() {
	p.mu.Lock()
	var all []*Snapshot
	for n := range p.all {
		all = append(all, n)
	}
	p.mu.Unlock()
	for _, n := range all {
		n.release(fmt.Errorf("the projection under the snapshot was replaced or closed: %w", petrel.ErrStopped))
	}
}
