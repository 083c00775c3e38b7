// Package raftlog is the replicated log: append a batch, hand every committed batch to
// the Applier of each replica, take snapshots, know the members. Two implementations
// stand behind one interface and one contract suite (raftlogtest): Open (HashiCorp Raft
// on raft-wal) and NewMemory (a twin for tests).
//
// No consensus is written here. Ours is what stands around the engine: our own dense
// index and hash chain inside raft's records, a checksum on every record, refusing to
// start on damage, what an append's error means, forwarding to the leader, whom a stream
// is for, who gets a vote (autopilot's promoter), what happens when the disk is full, and
// going on without a quorum that is lost for ever (Recover). docs/ARCHITECTURE.md keeps that list.
//
// # Invariants
//
//   - Indices are dense from 1. Every record's hash is SHA-256(hash before it, index,
//     payload); all replicas hand the same (index, hash, payload) to their Applier, in
//     order, and never twice in the life of a projection (records at or below
//     Applied().Mark are skipped).
//   - A batch counts only in the term it was made for. One that raft stored under another
//     term is skipped by every replica alike, and its proposer is told ErrNotAppended. One
//     that agrees on the term but does not continue the chain is damage: the shard stops.
//   - Append returns nil only for a batch that a quorum has fsynced and this cell has
//     committed. It does not wait for the fold: that is the waiter's matter (apply).
//   - Every error of Append says what became of the batch: ErrNotAppended and ErrDiskFull
//     are certain, now and later; ErrUnknownOutcome is settled by any Barrier of the same
//     Log, called after it, that returns nil: what the Applier has not seen by then never
//     comes. ErrStopped: this part is closed or broken; nothing was appended.
//   - Open returns only when every retained record has passed its checksum and the chain
//     holds from the oldest retained record over Applied() to the end. Damage is an error
//     that names the file and what to do; it is never skipped or cut away in silence.
//   - Damage found later, by whoever reads the record, stops the shard with ErrDamaged: a
//     leader sends nothing that it did not write, a follower folds nothing else.
//   - A member answers only streams that name it: one that comes back without its disk has
//     another id, and never acknowledges or votes for the one that it was.
//   - Whoever is a voter by its own log may be elected by those whose log is not ahead, also by
//     one that was away and has never heard of it: two of three are always enough.
//   - What was forwarded to a leader is waited for only as long as this node hears of that
//     leader: an append then ends in ErrUnknownOutcome, a barrier in ErrNotAppended.
//   - An error of the Applier is final: the shard stops, Append answers ErrStopped, Status
//     says why, OnFatal is called once. Nothing is skipped to go on.
//
// Callers may rely on the order above. They may not rely on indices they have not been
// given (a fenced batch leaves no hole), nor on Append's order between two goroutines.
//
// # Tried and rejected
//
//   - Waiting on raft's future for the answer: it comes only after the fold, so that the
//     fsync of the next batch could not overlap it. The commit is signalled on entering
//     ApplyBatch instead.
//   - Accepting a batch stored under a later term as long as it continues the chain (a
//     plain compare-and-append): a batch that lingered in a queue could then appear after a
//     barrier had promised that it never would.
//   - raft.LogCache: it turns the store's error into text, and with it the difference
//     between a full disk and a broken one.
//   - Reopening raft-wal after a failed write: it needs room for a new segment and leaves
//     no reader meanwhile. What failed is taken back instead (segment.go).
//   - Shorter timings for a sole voter with a Network: raft cannot change the leader's lease
//     while it runs, so the first voter that was added cost a restart of the engine and an
//     election. A sole voter stands for election at once instead (raftLog.stand).
//   - Waiting inside Append for a leader to be elected: who leaves meanwhile would have to be
//     told that the outcome is unknown.
//   - raft.RecoverCluster: it restores and replays past our checks. An appended configuration
//     is folded by the ordinary way of starting.
//   - A CommitTimeout of 1 ms so that followers hear of commits: a thousand idle messages
//     a second per follower. An empty entry after the last batch costs one.
package raftlog

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Log is one shard's replicated log as one node sees it. All methods are safe for
// concurrent use.
type Log interface {
	// Append writes the payloads as one batch, on the leader (forwarding when that is
	// another node), and returns the index of the first: theirs are first, first+1, …
	// At most MaxBatchBytes and MaxBatchRecords; payloads must not change afterwards.
	// Errors wrap exactly one of petrel.ErrNotAppended, ErrUnknownOutcome, ErrDiskFull,
	// ErrStopped. A ctx that ends once the batch is on its way is ErrUnknownOutcome.
	// Concurrent calls are served one batch at a time.
	Append(ctx context.Context, payloads [][]byte) (first uint64, err error)
	// Barrier returns nil when everything committed before the call has been applied on
	// this node, through a round in the current term. It also settles every append of this
	// Log that ended in ErrUnknownOutcome before the call: applied by now, or never.
	Barrier(ctx context.Context) error
	// TakeSnapshot writes a snapshot now and lets the log forget what it covers. No new
	// entries is not an error. ErrDiskFull when there is not three times its size free.
	TakeSnapshot(ctx context.Context) error
	// Status reads counters; it never waits.
	Status() Status
	// Stats is what this member tells others about itself (Options.MemberStats); it never waits.
	Stats() MemberStats
	// AddNonvoter, AddVoter, Remove and TransferLeadership must be called on the leader
	// (else an error that wraps petrel.ErrNotAppended; ErrUnknownOutcome when leadership was lost over it).
	// addr is what Network.Dial takes.
	AddNonvoter(ctx context.Context, id petrel.NodeID, addr string) error
	AddVoter(ctx context.Context, id petrel.NodeID, addr string) error
	Remove(ctx context.Context, id petrel.NodeID) error
	// TransferLeadership hands over to a voter; "" is the one most up to date. It returns when the other
	// one leads; appends wait until then.
	TransferLeadership(ctx context.Context, to petrel.NodeID) error
	// Close stops the shard on this node. It waits for the fold under way, may be called
	// twice, and leaves the Applier open.
	Close() error
}

// Applier is the state machine that the log feeds; apply.Loop implements it. The log
// calls Apply, Snapshot and Restore one at a time.
type Applier interface {
	// Applied is what the projection holds. Never waits.
	Applied() petrel.Applied
	// Apply folds the records, which continue Applied().Index without a gap, and moves
	// Mark to mark, in one transaction; it returns only after the commit. recs may be
	// empty. An error stops the shard.
	Apply(ctx context.Context, recs []petrel.Record, mark uint64) error
	// Snapshot pins a consistent copy of the projection, cheaply.
	Snapshot(ctx context.Context) (Snapshot, error)
	// Restore replaces the projection by what a Snapshot wrote. On an error the old one
	// must still stand.
	Restore(ctx context.Context, r io.Reader) error
}

// Snapshot is a pinned copy. WriteTo may run beside Apply; Release is always called.
type Snapshot interface {
	Applied() petrel.Applied
	WriteTo(ctx context.Context, w io.Writer) error
	Release()
}

// Limits of one Append.
const (
	MaxBatchRecords = 65536
	MaxBatchBytes   = 16 << 20 // of payload; raft-wal takes records up to 64 MiB
)

// Member is one member of the group.
type Member struct {
	ID    petrel.NodeID
	Addr  string
	Voter bool
}

// MemberStats is what one member says of itself, so that a leader can tell who has caught up.
type MemberStats struct {
	Alive       bool          // it answers, and its shard runs
	LastContact time.Duration // since it heard of the leader; 0 on the leader, an hour when it never did
	LastTerm    uint64        // term of the last record of its log
	LastMark    uint64        // engine position at the end of its log
}

// ErrDamaged marks a file that does not hold what was written: a flipped bit, a missing end. Open
// returns it, OnFatal is called with it, and Status.Stopped wraps it. In a cell the others have what
// this member lost: move its folder away and join again as a new member.
var ErrDamaged = errors.New("damaged")

// Status is a glance at one shard on one node.
type Status struct {
	Node         petrel.NodeID
	IsLeader     bool
	Leader       petrel.NodeID // "" while unknown
	Term         uint64
	Members      []Member
	Index        uint64        // own index of the last record applied here
	AppliedMark  uint64        // engine position applied here
	CommitMark   uint64        // engine position known to be committed
	LastMark     uint64        // engine position at the end of this node's log
	SnapshotMark uint64        // engine position of the newest snapshot; 0 is none
	LogBytes     int64         // of the log written since the newest snapshot
	FreeDisk     int64         // bytes free below Dir; -1 when unknown
	DiskFull     bool          // appends are refused for want of room
	LastContact  time.Duration // since the leader was heard of; 0 on the leader
	Lag          uint64        // engine positions known to be committed and not applied here yet
	Leaders      uint64        // how often this node has learned of another leader since Open
	Stopped      error         // why the shard stopped; nil while it runs
}
