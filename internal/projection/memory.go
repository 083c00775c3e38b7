package projection

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"zombiezen.com/go/sqlite"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// MemoryDisk makes a projection live in memory, for simulations ([ADR 5]): the same SQLite, the same
// folds and reads, without files, goroutines or system calls, so that it works in a synctest bubble. The
// disk is what stays after Close: open another projection on it to play a restart. The zero value is empty.
//
// It differs from a file in what files are for: nothing is sealed, checkpointed or kept when damaged, a
// Snapshot copies at once, and a View that begins while an Update is at work waits for its end.
//
// [ADR 5]: ../../docs/adr/0005-projection-in-memory.md
type MemoryDisk struct {
	mu    sync.Mutex
	image []byte // of the database, since the last Close
}

func (d *MemoryDisk) load() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.image
}

func (d *MemoryDisk) store(image []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.image = image
}

// memory is the database of a projection without files: SQLite's memdb, shared by the connections that
// know its name. It has no write-ahead log, so readers and the writer would exclude each other. Instead, an
// Update that finds Views at work leaves them the database as it is and goes on with a copy: a new
// generation. Its fields other than mu are guarded by it; order of locks: after Store.conns.
type memory struct {
	places chan struct{} // of readers at work; capacity Options.Readers
	cache  int           // bytes, per connection

	mu      sync.Mutex
	now     *generation
	writing chan struct{} // closed when the Update at work has ended; nil when none is
}

// generation is one database. It is closed by the last of its Views once it is not the present one.
type generation struct {
	name   string
	writer *conn
	idle   []*conn
	views  int
	past   bool
}

func newMemory(o Options) *memory {
	return &memory{places: make(chan struct{}, o.Readers), cache: o.CacheBytes}
}

func openImage(ctx context.Context, image []byte, modules []Module, cacheBytes int) (_ *generation, applied petrel.Applied, err error) {
	if len(image) == 0 {
		g, err := newGeneration(cacheBytes)
		if err != nil {
			return nil, applied, err
		}
		return g.prepared(ctx, modules)
	}
	if !bytes.HasPrefix(image, []byte(magic)) {
		return nil, applied, fmt.Errorf("%w: it does not begin as an SQLite file", ErrUnreadable)
	}
	private, err := openConn(":memory:", sqlite.OpenReadWrite|sqlite.OpenMemory)
	if err != nil {
		return nil, applied, err
	}
	defer func() { err = errors.Join(err, private.close()) }()
	image = bytes.Clone(image)
	if len(image) > 19 {
		image[18], image[19] = 1, 1 // a file's says that it has a write-ahead log: https://www.sqlite.org/fileformat.html
	}
	if err := private.c.Deserialize("main", image); err != nil {
		return nil, applied, fmt.Errorf("load the projection: %w", classify(err))
	}
	g, err := copyOf(private, cacheBytes)
	if err != nil {
		return nil, applied, fmt.Errorf("load the projection: %w", err)
	}
	return g.prepared(ctx, modules)
}

func (g *generation) prepared(ctx context.Context, modules []Module) (*generation, petrel.Applied, error) {
	applied, err := prepare(ctx, g.writer, modules, false)
	if err != nil {
		return nil, applied, errors.Join(err, g.close())
	}
	return g, applied, nil
}

func newGeneration(cacheBytes int) (*generation, error) {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	g := &generation{name: "file:/" + hex.EncodeToString(b[:]) + "?vfs=memdb"}
	var err error
	g.writer, err = openConn(g.name, sqlite.OpenReadWrite|sqlite.OpenCreate|sqlite.OpenURI, append(writerPragmas(cacheBytes),
		"PRAGMA journal_mode=MEMORY",
		"PRAGMA synchronous=OFF")...)
	return g, err
}

// copyOf returns a generation with what src holds.
func copyOf(src *conn, cacheBytes int) (*generation, error) {
	g, err := newGeneration(cacheBytes)
	if err != nil {
		return nil, err
	}
	b, err := sqlite.NewBackup(g.writer.c, "main", src.c, "main")
	if err == nil {
		_, err = b.Step(-1)
		err = errors.Join(err, b.Close())
	}
	if err != nil {
		return nil, errors.Join(classify(err), g.close())
	}
	return g, nil
}

func (g *generation) close() error {
	var errs []error
	for _, c := range g.idle {
		errs = append(errs, c.close())
	}
	g.idle = nil
	return errors.Join(append(errs, g.writer.close())...)
}

// reader hands out a connection to the present generation, which lives as long as the connection is out.
func (m *memory) reader(ctx context.Context) (_ *conn, done func(), err error) {
	select {
	case m.places <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ended(ctx)
	}
	m.mu.Lock()
	for m.writing != nil {
		writing := m.writing
		m.mu.Unlock()
		select {
		case <-writing:
		case <-ctx.Done():
			<-m.places
			return nil, nil, ended(ctx)
		}
		m.mu.Lock()
	}
	defer m.mu.Unlock()
	g := m.now
	var c *conn
	if n := len(g.idle); n > 0 {
		c, g.idle = g.idle[n-1], g.idle[:n-1]
	} else if c, err = openConn(g.name, sqlite.OpenReadWrite|sqlite.OpenURI, readerPragmas(m.cache/8)...); err != nil {
		<-m.places
		return nil, nil, err
	}
	g.views++
	return c, func() { m.back(g, c) }, nil
}

func (m *memory) back(g *generation, c *conn) {
	<-m.places
	m.mu.Lock()
	defer m.mu.Unlock()
	g.views--
	g.idle = append(g.idle, c)
	if g.past && g.views == 0 {
		_ = g.close() // nobody's any more; what it returns are errors of reads that were told
	}
}

// change makes g the present generation and returns the one before.
func (m *memory) change(g *generation) (old *generation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, m.now = m.now, g
	return old
}

// memoryWriter makes s.writer the connection of a generation that nobody reads, until done. The caller
// holds write.
func (s *Store) memoryWriter() (done func(), err error) {
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now.views > 0 {
		next, err := copyOf(s.writer, m.cache)
		if err != nil {
			return nil, err
		}
		m.now.past = true
		m.now, s.writer = next, next.writer
	}
	writing := make(chan struct{})
	m.writing = writing
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.writing = nil
		close(writing)
	}, nil
}

// openMemory is openConns of a projection in memory.
func (s *Store) openMemory(ctx context.Context) (petrel.Applied, error) {
	g, applied, err := openImage(ctx, s.opt.Memory.load(), s.opt.Modules, s.opt.CacheBytes)
	if err != nil {
		return applied, err
	}
	s.memory.change(g)
	s.writer = g.writer
	return applied, nil
}

// closeMemory leaves everything on the disk. The caller holds write and conns: nobody reads.
func (s *Store) closeMemory() error {
	image, err := s.writer.image()
	if err == nil {
		s.opt.Memory.store(image)
	}
	s.writer = nil
	return errors.Join(err, s.memory.change(nil).close())
}

func (c *conn) image() ([]byte, error) {
	b, err := c.c.Serialize("main")
	if err != nil {
		return nil, fmt.Errorf("copy the projection: %w", err)
	}
	return b, nil
}

// memorySnapshot copies the present state.
func (s *Store) memorySnapshot(ctx context.Context) (*Snapshot, error) {
	c, done, err := s.memory.reader(ctx)
	if err != nil {
		return nil, fmt.Errorf("snapshot the projection: %w", err)
	}
	defer done()
	applied, err := (&Reader{c: c}).Applied()
	if err != nil {
		return nil, err
	}
	image, err := c.image()
	if err != nil {
		return nil, err
	}
	n := &Snapshot{s: s, applied: applied, image: image}
	s.pins.add(n)
	return n, nil
}

// writeImage is writeTo of a snapshot in memory.
func (n *Snapshot) writeImage(ctx context.Context, w io.Writer) error {
	n.mu.Lock()
	image, cause := n.image, n.cause
	n.mu.Unlock()
	if image == nil {
		return cause
	}
	n.Release()
	return writeFramed(ctx, w, bytes.NewReader(image), int64(len(image)))
}

// memoryRestore is Restore of a projection in memory.
func (s *Store) memoryRestore(ctx context.Context, r io.Reader) error {
	var image bytes.Buffer
	if err := readFramed(ctx, &image, r); err != nil {
		return err
	}
	g, applied, err := openImage(ctx, image.Bytes(), s.opt.Modules, s.opt.CacheBytes)
	if err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	s.pins.abort()
	s.conns.Lock()
	defer s.conns.Unlock()
	if s.closed {
		return errors.Join(petrel.ErrStopped, g.close())
	}
	old := s.memory.change(g)
	s.writer = g.writer
	s.applied.Store(&applied)
	return old.close()
}
