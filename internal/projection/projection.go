// Package projection keeps the state that folding the log made, in one SQLite file:
// the file itself, its connections, migrations, the one write transaction, the
// applied position inside it, reads under a budget, and snapshots. It knows no domain:
// SQL lives in the packages that own the tables. It is the only door to SQLite.
//
// # Invariants
//
//   - The applied position changes in the same transaction as the rows it describes;
//     Applied never runs ahead of what a reader can see.
//   - There is one writer. Update is all or nothing: after any error nothing of it is
//     stored, and an error inside it cannot be swallowed by the function that met it.
//   - Readers never block the writer and the writer never blocks readers (WAL); only
//     Restore and Close make readers wait.
//   - The file can be lost: it is made from the log. So what is found damaged is refused
//     (ErrUnreadable), moved aside and built again, never repaired. A file of a newer
//     schema (ErrNewerSchema) is left alone.
//   - A new file never meets the write-ahead log of an old one: Restore removes the old
//     file first, then its -wal and -shm, and only then renames. A crash in between
//     leaves no projection, which is rebuilt, and never a mixed one.
//
// # Durability
//
// synchronous=NORMAL: a commit is written but not fsynced; checkpoints fsync. After a
// power loss the file holds some earlier commit, whole, with the position it had, and
// the log (which is fsynced by a quorum) is folded again from there.
//
// # What callers may not do
//
// Never call View inside View, or Update inside either: with all places of the pool taken
// that waits for itself. Never keep a *Reader, *Tx or *Row beyond the function it was
// given to. Never run ANALYZE: plans must be equal on all replicas.
package projection

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Errors of Open and Restore. Both come wrapped in a sentence.
var (
	// ErrUnreadable: the file is damaged. Call Remove and rebuild from snapshot and log.
	ErrUnreadable = errors.New("projection is unreadable")
	// ErrNewerSchema: a newer build wrote the file or the snapshot. Touch nothing and wait for an upgrade.
	ErrNewerSchema = errors.New("projection has a newer schema than this build knows")
)

// Options of Open. The zero value of every field but Path (or Memory) is usable.
type Options struct {
	// Path of the SQLite file. Its folder exists and belongs to one process at a time
	// (node holds a flock); -wal, -shm, .tmp-* and .damaged-* files lie beside it.
	Path string
	// Memory instead of Path keeps the projection in memory, for simulations.
	Memory *MemoryDisk
	// Modules whose tables lie in the file. Order matters only between modules that build on each other.
	Modules []Module
	// Readers is how many reads run at once. Default 4.
	Readers int
	// Budget of View. Its zero fields take the defaults named there.
	Budget Budget
	// CacheBytes of the writer's page cache; each reader has an eighth. Default 64 MiB.
	CacheBytes int
	// CheckpointBytes of write-ahead log after which it is copied back into the file, in the
	// background. Default 8 MiB. At eight times as much the writer does it itself.
	CheckpointBytes int64
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Registerer for metrics; may be nil.
	Registerer prometheus.Registerer
}

// Budget limits one View.
type Budget struct {
	// Steps is how many rows all statements of the View may return together; every statement
	// counts as one more. Default 20,000. Rows that SQLite passes over without returning them
	// are bounded by Time only: the driver exposes no progress handler.
	Steps int
	// Time the View may take, waiting for a place included; enforced by interrupt. Default 2 s.
	Time time.Duration
}

func (b Budget) or(d Budget) Budget {
	if b.Steps <= 0 {
		b.Steps = d.Steps
	}
	if b.Time <= 0 {
		b.Time = d.Time
	}
	return b
}

func (o Options) withDefaults() (Options, error) {
	if (o.Path == "") == (o.Memory == nil) {
		return o, errors.New("projection: one of Options.Path and Options.Memory is needed")
	}
	if o.Readers <= 0 {
		o.Readers = 4
	}
	o.Budget = o.Budget.or(Budget{Steps: 20_000, Time: 2 * time.Second})
	if o.CacheBytes <= 0 {
		o.CacheBytes = 64 << 20
	}
	if o.CheckpointBytes <= 0 {
		o.CheckpointBytes = 8 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, checkModules(o.Modules)
}

// Store is an open projection. All methods may be called concurrently.
//
// Order of locks: write, then conns, then a Snapshot's own.
type Store struct {
	opt     Options
	metrics *metrics
	applied atomic.Pointer[petrel.Applied]

	// write makes its holder the writer: it guards writer and the position it commits.
	write sync.Mutex
	// conns guards the set of connections against being replaced: a View or a checkpoint holds
	// it for reading, Restore and Close for writing.
	conns  sync.RWMutex
	closed bool
	writer *conn
	free   chan *conn // idle readers; capacity Options.Readers
	memory *memory    // instead of free when there is no file

	pins       pins
	checkpoint *checkpointer
}

// Open opens the projection at o.Path, or makes an empty one. It verifies the file first, then migrates
// it in one transaction. A file that was closed in order must be what it was, to the bit (see seal.go);
// after a crash its structure is checked (header, PRAGMA quick_check, the applied row). Either reads the whole
// file: about a second per GiB from a warm cache.
//
// Errors wrap ErrUnreadable, ErrNewerSchema or petrel.ErrDiskFull.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{opt: o, free: make(chan *conn, o.Readers)}
	sealed := false
	if o.Memory != nil {
		s.memory = newMemory(o)
	} else {
		if err := removeTemps(o.Path); err != nil {
			return nil, err
		}
		if sealed, err = breakSeal(ctx, o.Path); err != nil {
			return nil, err
		}
	}
	s.metrics = newMetrics(o.Registerer, o.Path)
	s.checkpoint = newCheckpointer(s)
	applied, err := s.openConns(ctx, sealed)
	if err != nil {
		s.metrics.unregister()
		return nil, errors.Join(err, s.closeConns())
	}
	s.applied.Store(&applied)
	if s.memory == nil {
		s.checkpoint.start()
	}
	return s, nil
}

// Applied returns what the last committed transaction holds, from memory.
func (s *Store) Applied() petrel.Applied { return *s.applied.Load() }

// Bytes returns the size of the file and of its write-ahead log; 0 in memory.
func (s *Store) Bytes() (file, wal int64) { return fileSize(s.opt.Path), fileSize(s.opt.Path + "-wal") }

// Close waits for the transaction and the reads under way, then closes the file. Safe to call twice.
// Snapshots that are still held end with petrel.ErrStopped.
func (s *Store) Close() error {
	s.checkpoint.stop()
	s.write.Lock()
	defer s.write.Unlock()
	s.pins.abort()
	s.conns.Lock()
	defer s.conns.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.metrics.unregister()
	if s.memory != nil {
		return s.closeMemory()
	}
	if err := s.closeConns(); err != nil {
		return err
	}
	if err := seal(s.opt.Path, s.opt.Logger); err != nil { // no room for it, mostly: nothing is lost by that
		s.opt.Logger.Warn("the projection could not be sealed: the next start checks its structure only", "error", err)
	}
	return nil
}

// openConns opens the writer, verifies and migrates the file, and fills the pool.
// The caller holds write and conns, or is alone.
func (s *Store) openConns(ctx context.Context, sealed bool) (petrel.Applied, error) {
	if s.memory != nil {
		return s.openMemory(ctx)
	}
	w, applied, err := openChecked(ctx, s.opt.Path, s.opt.Modules, s.opt.CacheBytes, sealed)
	if err != nil {
		return petrel.Applied{}, err
	}
	s.writer = w
	for range s.opt.Readers {
		r, err := openReader(s.opt.Path, s.opt.CacheBytes/8)
		if err != nil {
			return petrel.Applied{}, err
		}
		s.free <- r
	}
	return applied, s.checkpoint.open(s.opt.Path)
}

// closeConns closes every connection, the writer last: the last one to close copies the
// write-ahead log back. The caller holds write and conns, so all readers are in the pool.
func (s *Store) closeConns() error {
	var errs []error
	errs = append(errs, s.checkpoint.close())
	for len(s.free) > 0 {
		errs = append(errs, (<-s.free).close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
		s.writer = nil
	}
	return errors.Join(errs...)
}

func fileSize(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0 // not there yet, or no longer
	}
	return fi.Size()
}
