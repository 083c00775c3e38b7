package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/commit"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// ErrFatal marks what a restart alone does not mend: a damaged log, a fold that failed.
var ErrFatal = errors.New("fatal")

// shardOptions are what one shard is opened with.
type shardOptions struct {
	dir        string // DATA/shard-0
	self       membership
	network    raftlog.Network                                  // nil without other nodes
	opened     func(*apply.Loop)                                // called before the log feeds the fold; nil: nobody asks
	admitted   func(ctx context.Context, log raftlog.Log) error // called when the log is open: the group takes this node in
	log        func(*raftlog.Options)                           // what else the node sets; nil: nothing
	modules    []projection.Module
	domains    []apply.Domain
	publish    func([]petrel.Publication)
	onFatal    func(error)
	recovers   bool // this member becomes the only one of its group first
	logger     *slog.Logger
	registerer prometheus.Registerer
}

// shard is the durable lane of one log on this node: log, fold, projection and group commit.
type shard struct {
	store    *projection.Store
	loop     *apply.Loop
	log      raftlog.Log
	pipeline *commit.Pipeline
}

// openShard opens what lies in dir, or founds it. It returns when everything once acknowledged is
// applied here.
func openShard(ctx context.Context, o shardOptions) (opened *shard, err error) {
	if err := makeFolder(o.dir); err != nil {
		return nil, err
	}
	s := &shard{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	logged := exists(filepath.Join(o.dir, "log", "wal"))
	if s.store, err = openProjection(ctx, o); err != nil {
		return nil, err
	}
	if logged && s.store.Applied().Mark == 0 {
		o.logger.Error("the projection is empty but the log is not: it is built again from snapshot and log", "path", filepath.Join(o.dir, "projection.db"))
	}
	s.loop, err = apply.New(apply.Options{
		Store: s.store, Domains: o.domains, Publish: o.publish, Now: time.Now, Logger: o.logger, Registerer: o.registerer,
	})
	if err != nil {
		return nil, err
	}
	if o.opened != nil {
		o.opened(s.loop)
	}
	lo := raftlog.Options{
		Dir: filepath.Join(o.dir, "log"), Node: o.self.Member, Applier: applier{s.loop}, Bootstrap: o.self.Origin == founded,
		Size:    func() int64 { file, _ := s.store.Bytes(); return file },
		Network: o.network, Logger: o.logger, Registerer: o.registerer, OnFatal: o.onFatal,
	}
	if o.log != nil {
		o.log(&lo)
	}
	if o.recovers {
		if err := raftlog.Recover(ctx, lo); err != nil {
			return nil, openLogError(err)
		}
	}
	if s.log, err = raftlog.Open(ctx, lo); err != nil {
		return nil, openLogError(err)
	}
	if o.admitted != nil {
		if err := o.admitted(ctx, s.log); err != nil {
			return nil, err
		}
	}
	s.pipeline = commit.New(commit.Options{Appender: s.log, Logger: o.logger, Registerer: o.registerer})
	s.pipeline.Start()
	if err := s.barrier(ctx); err != nil {
		return nil, err
	}
	if o.self.Origin == founded {
		if err := s.found(ctx, o.logger); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// openLogError tells damage and misuse, after which only a person helps, from a full disk or a stop.
func openLogError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, petrel.ErrDiskFull) {
		return err
	}
	return fmt.Errorf("%w%w", quiet{ErrFatal}, err)
}

// quiet is an error for errors.Is alone.
type quiet struct{ error }

func (quiet) Error() string   { return "" }
func (q quiet) Unwrap() error { return q.error }

// openProjection opens the file; a damaged one is set aside, and an empty one takes its place, which the
// log fills from its newest snapshot and the records after it.
func openProjection(ctx context.Context, o shardOptions) (*projection.Store, error) {
	po := projection.Options{
		Path: filepath.Join(o.dir, "projection.db"), Modules: o.modules, Logger: o.logger, Registerer: o.registerer,
	}
	store, err := projection.Open(ctx, po)
	if !errors.Is(err, projection.ErrUnreadable) {
		return store, err
	}
	kept, rerr := projection.Remove(po.Path)
	if rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	o.logger.Error("the projection is unreadable: it is set aside and built again from snapshot and log", "error", err, "kept", kept)
	return projection.Open(ctx, po)
}

// barrier waits until the log has a leader and everything committed is applied.
func (s *shard) barrier(ctx context.Context) error {
	for {
		err := s.log.Barrier(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case s.log.Status().Stopped != nil:
			return openLogError(s.log.Status().Stopped)
		case errors.Is(err, petrel.ErrStopped):
			return openLogError(err)
		}
		t := time.NewTimer(10 * time.Millisecond) // no leader yet
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// found writes the first entry of an empty log. It goes past the desk: there is no app yet to ask for.
func (s *shard) found(ctx context.Context, logger *slog.Logger) error {
	applied := s.loop.Applied()
	if applied.Index > 0 {
		if applied.Epoch == "" {
			return fmt.Errorf("%wthe log does not begin with its founding entry; this data folder is not whole: restore it from a backup", quiet{ErrFatal})
		}
		return nil
	}
	return s.begin(ctx, "", logger)
}

// begin gives the log's life a name, as the first entry of the log or after a recovery.
func (s *shard) begin(ctx context.Context, after petrel.Epoch, logger *slog.Logger) error {
	founded := event.ShardFounded{Epoch: petrel.NewEpoch(), After: after}
	entry := event.Entry{
		ID: petrel.NewEntryID(), Actor: petrel.Actor{Kind: petrel.ActorSystem}, At: time.Now().UnixMilli(), Events: []event.Event{founded},
	}
	payload, err := event.Encode(&entry)
	if err != nil {
		return err
	}
	w := s.loop.Expect(entry.ID)
	defer w.Cancel()
	if _, err := s.pipeline.Commit(ctx, payload); err != nil {
		return fmt.Errorf("found the log: %w", err)
	}
	out, err := w.Wait(ctx)
	if err != nil {
		return fmt.Errorf("found the log: %w", err)
	}
	if out.Conflicted {
		return fmt.Errorf("%wthe log has begun another life than %q meanwhile", quiet{ErrFatal}, after)
	}
	logger.Info("the log begins a life", "epoch", founded.Epoch, "after", after)
	return nil
}

// close ends what was opened, in reverse. It may be called on a shard that is half open.
func (s *shard) close() error {
	var errs []error
	if s.pipeline != nil {
		s.pipeline.Stop()
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// applier fits apply.Loop to the log: the two packages name the same snapshot by types of their own.
type applier struct{ *apply.Loop }

var (
	_ raftlog.Applier = applier{}
	_ commit.Appender = raftlog.Log(nil)
)

// Snapshot implements raftlog.Applier.
func (a applier) Snapshot(ctx context.Context) (raftlog.Snapshot, error) {
	s, err := a.Loop.Snapshot(ctx)
	if err != nil {
		return nil, err // not s: a nil pointer in an interface is not nil
	}
	return s, nil
}

// Restore implements raftlog.Applier.
func (a applier) Restore(ctx context.Context, r io.Reader) error { return a.Loop.Restore(ctx, r) }

// degraded says why writes do not work although the node runs; "" while they do.
func (s *shard) degraded() string {
	st := s.log.Status()
	switch {
	case st.DiskFull:
		return fmt.Sprintf("the disk is full (%d MiB free): writes answer 503 disk_full until there is room; reads and sockets go on", st.FreeDisk>>20)
	case st.Leader == "":
		return "the log has no leader: writes answer 503 no_leader, reads are marked stale"
	}
	return ""
}

// makeFolder makes dir and sees to it that its name survives a loss of power.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the shard: %w", err)
	}
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("make the folder of the shard safe: %w", err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
