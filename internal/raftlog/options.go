package raftlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Options of Open.
type Options struct {
	// Dir holds everything of this log: wal/ and snapshots/. Made when absent. Whoever
	// calls Open holds a lock on it (one process at a time).
	Dir string
	// Node is this member's name for all time.
	Node petrel.NodeID
	// Applier receives what is committed.
	Applier Applier
	// Bootstrap founds a group of this one voter when Dir holds nothing yet. Without it an
	// empty member waits to be added by a leader.
	Bootstrap bool
	// Network reaches the other members; nil is a sole voter that has none.
	Network Network
	// MemberStats asks the other members of the group for their Log.Stats; who does not answer before
	// ctx ends is left out. With it, non-voters that have caught up become voters while this node leads.
	// nil: nobody is promoted.
	MemberStats func(ctx context.Context, members []Member) map[petrel.NodeID]MemberStats
	// MaxVoters is up to how many voters members are promoted; the others stay non-voters. Default 3; 5
	// at most.
	MaxVoters int
	// MinFree is the free disk in bytes below which appends are refused with ErrDiskFull.
	// Default 64 MiB.
	MinFree int64
	// SegmentSize of the write-ahead log in bytes; one segment is allocated ahead.
	// Default 16 MiB.
	SegmentSize int
	// SnapshotBytes: a snapshot is due when the log since the last has grown by more than
	// this and by more than half of Size. Default 256 MiB.
	SnapshotBytes int64
	// Size is the projection's size in bytes, for snapshots. Default: 0.
	Size func() int64
	// TrailingLogs is how many batches are kept behind a snapshot for slow followers, so
	// that they need no snapshot. Default 1024.
	TrailingLogs uint64
	// Heartbeat is how long a follower waits for its leader before it stands for election. Default 500 ms; disks stall 200 ms.
	// A sole voter stands at once when it starts; when it has stepped down, for want of room, it waits for nobody so long.
	Heartbeat time.Duration
	// EnqueueTimeout is how long an append waits for the engine to take it before it is
	// ErrNotAppended. Default 2 s.
	EnqueueTimeout time.Duration
	// Logger: nil discards.
	Logger *slog.Logger
	// Registerer: nil keeps the metrics unregistered.
	Registerer prometheus.Registerer
	// OnFatal is called once, in a goroutine of its own, when the shard stopped for good
	// other than by Close. It may call Close.
	OnFatal func(error)

	// hooks are faults for tests.
	hooks hooks
}

// hooks let a test stand between the log and the disk. Nil in production.
type hooks struct {
	file  func(op string, name string) error // before "create", "write", "sync", "meta", "stable"
	free  func(dir string) (int64, error)    // instead of statfs
	apply func()                             // on entering ApplyBatch, after the commit is signalled
}

func (o *Options) validate() error {
	switch {
	case o.Dir == "":
		return errors.New("raftlog: Dir is missing")
	case o.Node == "":
		return errors.New("raftlog: Node is missing")
	case o.Applier == nil:
		return errors.New("raftlog: Applier is missing")
	case o.MaxVoters < 0 || o.MaxVoters > 5:
		return fmt.Errorf("raftlog: MaxVoters is %d; a group has 1 to 5 voters", o.MaxVoters)
	}
	setDefault(&o.MaxVoters, 3)
	setDefault(&o.MinFree, 64<<20)
	setDefault(&o.SegmentSize, 16<<20)
	setDefault(&o.SnapshotBytes, 256<<20)
	setDefault(&o.TrailingLogs, 1024)
	setDefault(&o.Heartbeat, 500*time.Millisecond)
	setDefault(&o.EnqueueTimeout, 2*time.Second)
	if o.Size == nil {
		o.Size = func() int64 { return 0 }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnFatal == nil {
		o.OnFatal = func(error) {}
	}
	if o.hooks.file == nil {
		o.hooks.file = func(string, string) error { return nil }
	}
	if o.hooks.free == nil {
		o.hooks.free = freeDisk
	}
	if o.hooks.apply == nil {
		o.hooks.apply = func() {}
	}
	return nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
