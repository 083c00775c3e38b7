package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Inspection is what the files of one member say, without anything being started or changed.
type Inspection struct {
	Index        uint64   // own index of the last record, committed or not; 0 when all are in the snapshot
	LastMark     uint64   // engine position at the end of the log
	LastTerm     uint64   // its term
	SnapshotMark uint64   // engine position of the newest snapshot; 0 is none
	Members      []Member // of the group, as this member knew it last
}

// Ahead says whether a is further than b: of two survivors, the one that may hold what the other has not.
func (a Inspection) Ahead(b Inspection) bool {
	return a.LastTerm > b.LastTerm || a.LastTerm == b.LastTerm && a.LastMark > b.LastMark
}

// Inspect reads the log in dir (Options.Dir), which no process may have open, whole, as Open does. It changes
// nothing: what opening would finish (a cut-off segment change) is finished in a copy of the last segment.
func Inspect(ctx context.Context, dir string) (out Inspection, err error) {
	image, err := os.MkdirTemp("", "petrel-inspect-")
	if err != nil {
		return out, fmt.Errorf("raftlog: inspect: %w", err)
	}
	defer os.RemoveAll(image)
	if err := imageOf(dir, image); err != nil {
		return out, fmt.Errorf("raftlog: inspect: %w", err)
	}
	o := Options{Dir: image, Node: "inspector", Applier: struct{ Applier }{}}
	if err := o.validate(); err != nil {
		return out, err
	}
	wal := filepath.Join(dir, "wal")
	st, err := openStore(filepath.Join(image, "wal"), &o, disk{o.hooks.file, ctx.Done(), &diskState{}}, func(error) {})
	if err != nil {
		return out, refuse(wal, "It cannot be opened", err)
	}
	defer func() { err = errors.Join(err, st.close()) }()
	snaps, err := openSnapshots(&o, st, newMetrics(nil, nil))
	if err != nil {
		return out, fmt.Errorf("raftlog: inspect: %w", err)
	}
	e, err := findEnds(st, snaps, wal)
	if err != nil {
		return out, err
	}
	if e.replaced() {
		e.first, e.last = 0, 0
	}
	if err := e.whole(wal, filepath.Join(dir, "snapshots"), 0); err != nil {
		return out, err
	}
	sc, err := scan(ctx, st, wal, e, petrel.Applied{}, 0)
	if err != nil {
		return out, err
	}
	out = Inspection{Index: sc.tail.index, LastMark: e.last, LastTerm: sc.term, SnapshotMark: e.snapIndex(), Members: membersOf(e.members(sc))}
	if e.last == 0 && e.snap != nil {
		out.LastMark, out.LastTerm = e.snap.Index, e.snap.Term
	}
	return out, nil
}

// imageOf makes a folder that can be opened like dir: what opening may write to is copied, the rest is linked.
func imageOf(dir, image string) error {
	from, to := filepath.Join(dir, "wal"), filepath.Join(image, "wal")
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(from) // sorted: the last segment comes last
	if err != nil {
		return err
	}
	last := ""
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".wal") {
			last = f.Name()
		}
	}
	for _, f := range files {
		do := copyFile
		if strings.HasSuffix(f.Name(), ".wal") && f.Name() != last {
			do = linkFile
		}
		if err := do(filepath.Join(from, f.Name()), filepath.Join(to, f.Name())); err != nil {
			return err
		}
	}
	metas, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "meta.json"))
	for _, meta := range metas {
		snap := filepath.Join(image, "snapshots", filepath.Base(filepath.Dir(meta)))
		err = errors.Join(err, os.MkdirAll(snap, 0o700), copyFile(meta, filepath.Join(snap, "meta.json")))
	}
	return err
}

func linkFile(from, to string) error {
	abs, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	return os.Symlink(abs, to)
}

func copyFile(from, to string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// Recover makes the member whose log lies in o.Dir the sole voter of its group, for when a quorum of the voters is
// lost for ever. It then opens the log, folds all of it and closes it again; the next Open goes on from there, and others
// are added as new members. Everything in this member's log is kept, committed or not; what only the lost members
// held is lost. Without a quorum nobody can tell what was acknowledged: choose the survivor that is ahead (Inspect).
//
// The members that were given up must never be started again with their old data: they know nothing of this. With
// a quorum among themselves they go on taking writes, and would overwrite this member if they reached it: give
// the cell another secret. The log must not be open.
func Recover(ctx context.Context, o Options) error {
	if err := o.validate(); err != nil {
		return err
	}
	o.Network, o.MemberStats, o.Bootstrap = nil, nil, false
	l := newRaftLog(o)
	err := l.claim(ctx)
	l.abandon()
	if err != nil {
		return err
	}
	opened, err := Open(ctx, o)
	if err != nil {
		return err
	}
	for err = opened.Barrier(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, petrel.ErrStopped); err = opened.Barrier(ctx) {
		select { // it has not elected itself yet
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return errors.Join(err, opened.Close())
}

// claim appends a configuration with this member alone, as a leader of a later term would.
func (l *raftLog) claim(ctx context.Context) error {
	conf, err := l.files(ctx)
	if err != nil {
		return err
	}
	self := slices.IndexFunc(conf.Servers, func(s raft.Server) bool { return s.ID == raft.ServerID(l.o.Node) })
	if self < 0 {
		return fmt.Errorf("raftlog: %s is not a member of the group in %s: %v", l.o.Node, l.o.Dir, membersOf(conf))
	}
	term, err := l.st.GetUint64([]byte("CurrentTerm")) // raft's own key
	if err != nil {
		return fmt.Errorf("raftlog: recover: %w", err)
	}
	last, err := l.st.LastIndex()
	if err != nil {
		return fmt.Errorf("raftlog: recover: %w", err)
	}
	sole := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(l.o.Node), Address: conf.Servers[self].Address}}}
	entry := &raft.Log{
		Index: max(last, l.snaps.newest.Load()) + 1, Term: term + 1, Type: raft.LogConfiguration,
		Data: raft.EncodeConfiguration(sole), AppendedAt: time.Now(),
	}
	if err := l.st.SetUint64([]byte("CurrentTerm"), entry.Term); err != nil {
		return fmt.Errorf("raftlog: recover: %w", err)
	}
	if err := l.st.StoreLog(entry); err != nil {
		return fmt.Errorf("raftlog: recover: %w", err)
	}
	l.log.Warn("this member is the only one of its group from now on", "was", membersOf(conf), "mark", entry.Index, "term", entry.Term)
	return nil
}
