package raftlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Open starts the log in o.Dir and the Applier behind it. In this order, all before the
// engine runs: open the write-ahead log; refuse when it ends before what the projection or
// a snapshot holds; bring the projection to the newest snapshot when it stands before it;
// read and check every retained record; fold what the snapshot covers and the projection
// does not. Reading takes about 1.5 s per 100,000 batches. ctx bounds Open only.
//
// Open does not wait for a leader: Barrier does.
func Open(ctx context.Context, o Options) (Log, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	l := newRaftLog(o)
	if err := l.open(ctx); err != nil {
		l.abandon()
		return nil, err
	}
	return l, nil
}

func newRaftLog(o Options) *raftLog {
	l := &raftLog{
		o: o, log: o.Logger.With("node", string(o.Node)), closing: make(chan struct{}), started: make(chan struct{}),
		slot: make(chan struct{}, 1), nudge: make(chan struct{}, 1), changing: make(chan struct{}, 1), fence: map[uint64]uint64{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// abandon closes what was opened before the engine was started.
func (l *raftLog) abandon() {
	l.cancel()
	close(l.closing)
	if l.mux != nil {
		l.mux.close()
	} else if l.o.Network != nil {
		_ = l.o.Network.Close()
	}
	if l.st != nil {
		_ = l.st.close()
	}
	if l.m != nil {
		l.m.unregister()
	}
}

func (l *raftLog) open(ctx context.Context) error {
	conf, err := l.files(ctx)
	if err != nil {
		return err
	}
	if l.o.Network != nil {
		l.mux = newMux(l.o.Network, l.o.Node, l.serveForward)
		l.fwd = newForwarder(l.mux)
	}
	if len(conf.Servers) == 0 && l.o.Bootstrap {
		if conf, err = l.bootstrap(); err != nil {
			return err
		}
	}
	l.st.serving.Store(true)
	return l.start(conf)
}

// files opens and checks what lies on the disk, and brings the projection to it. It returns the membership that
// the files know.
func (l *raftLog) files(ctx context.Context) (conf raft.Configuration, err error) {
	dir := filepath.Join(l.o.Dir, "wal")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return conf, fmt.Errorf("raftlog: %w", err)
	}
	if l.st, err = openStore(dir, &l.o, disk{l.o.hooks.file, l.closing, &diskState{}}, l.halt); err != nil {
		return conf, refuse(dir, "It cannot be opened", err)
	}
	l.m = newMetrics(l.o.Registerer, l.Status)
	if l.snaps, err = openSnapshots(&l.o, l.st, l.m); err != nil {
		return conf, fmt.Errorf("raftlog: open the snapshots: %w", err)
	}
	l.fsm = newFSM(l.ctx, l.o.Applier, l.m, l.o.hooks.apply, l.halt)
	return l.recover(ctx, dir)
}

// bootstrap founds a group of this one voter.
func (l *raftLog) bootstrap() (raft.Configuration, error) {
	t := raft.Transport(&raft.InmemTransport{})
	addr := raft.ServerAddress(l.o.Node)
	if l.o.Network != nil {
		addr = raft.ServerAddress(l.o.Network.Addr())
	}
	conf := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(l.o.Node), Address: addr}}}
	if err := raft.BootstrapCluster(l.config(), l.st, l.st, l.snaps, t, conf); err != nil {
		return conf, fmt.Errorf("raftlog: found the group: %w", err)
	}
	return conf, nil
}

// ends is what the files say before anything is read.
type ends struct {
	first, last uint64             // of the log; 0, 0 is empty
	snap        *raft.SnapshotMeta // newest; nil is none
	installing  uint64             // a snapshot that was arriving
	clean       uint64             // end of the log at the last clean close; 0 is not clean
}

func findEnds(st *store, snaps *snapStore, dir string) (e ends, err error) {
	if e.first, err = st.FirstIndex(); err == nil {
		e.last, err = st.LastIndex()
	}
	if err == nil {
		e.clean, err = st.GetUint64([]byte(cleanKey))
	}
	if err == nil {
		e.installing, err = st.GetUint64([]byte(installKey))
	}
	for _, key := range []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"} { // raft's own
		if err == nil {
			_, err = st.Get([]byte(key))
		}
	}
	if err != nil {
		return e, refuse(dir, "It cannot be read", err)
	}
	metas, err := snaps.List()
	if err != nil {
		return e, refuse(snaps.dir, "It cannot be read", err)
	}
	if len(metas) > 0 {
		e.snap = metas[0]
	}
	return e, nil
}

func (e ends) snapIndex() uint64 {
	if e.snap == nil {
		return 0
	}
	return e.snap.Index
}

// replaced says that a snapshot which a leader sent takes the place of the whole log before it.
func (e ends) replaced() bool {
	return e.last == 0 || e.last < e.snapIndex() && e.installing == e.snapIndex()
}

// whole refuses files that end before what is known to have been there; mark is the projection's.
func (e ends) whole(dir, snaps string, mark uint64) error {
	snap, end := e.snapIndex(), e.last
	if end == 0 {
		end = snap
	}
	switch {
	case end < mark:
		return refuse(dir, "", fmt.Errorf("the log ends at position %d, but the projection holds everything up to %d: the end of the log is missing or was cut as damaged", end, mark))
	case end < snap:
		return refuse(dir, "", fmt.Errorf("the log ends at position %d, but a snapshot covers everything up to %d: the end of the log is missing or was cut as damaged", end, snap))
	case end < e.clean:
		return refuse(dir, "", fmt.Errorf("the log ends at position %d, but at its last clean close it ended at %d: its end is missing or was cut as damaged", end, e.clean))
	case e.first > 1 && snap+1 < e.first:
		return refuse(snaps, "", fmt.Errorf("the log begins at position %d and the newest readable snapshot covers only up to %d: a snapshot is missing or damaged", e.first, snap))
	}
	return nil
}

// recover brings log, snapshot and projection together, or refuses. It returns the
// membership that the files know.
func (l *raftLog) recover(ctx context.Context, dir string) (conf raft.Configuration, err error) {
	e, err := findEnds(l.st, l.snaps, dir)
	if err != nil {
		return conf, err
	}
	a := l.o.Applier.Applied()
	snap := e.snapIndex()
	if e.replaced() {
		if e.last > 0 {
			if err := l.st.wal.DeleteRange(e.first, e.last); err != nil {
				return conf, refuse(dir, "What a snapshot replaced could not be removed", err)
			}
		}
		e.first, e.last = 0, 0
	}
	if err := e.whole(dir, l.snaps.dir, a.Mark); err != nil {
		return conf, err
	}
	if a.Index == 0 && snap > 0 || a.Mark < snap && (e.first == 0 || e.first > a.Mark+1) {
		l.log.Warn("the projection stands before the newest snapshot: restoring it", "projection", a.Mark, "snapshot", snap)
		if err := l.restoreSnapshot(e.snap); err != nil {
			return conf, err
		}
	}
	_, mark := l.fsm.position()
	sc, err := scan(ctx, l.st, dir, e, l.o.Applier.Applied(), mark)
	if err != nil {
		return conf, err
	}
	l.st.bytes.Store(sc.bytes)
	if err := l.catchUp(snap); err != nil {
		return conf, err
	}
	if e.clean != 0 {
		err = l.st.wal.Set([]byte(cleanKey), nil)
	}
	if err = errors.Join(err, l.st.disk.prove()); err != nil {
		return conf, fmt.Errorf("raftlog: %w", err)
	}
	return e.members(sc), nil
}

// members is the membership that the files know last.
func (e ends) members(sc scanned) raft.Configuration {
	if len(sc.conf.Servers) == 0 && e.snap != nil {
		return e.snap.Configuration
	}
	return sc.conf
}

func (l *raftLog) restoreSnapshot(meta *raft.SnapshotMeta) error {
	path := filepath.Join(l.snaps.dir, meta.ID)
	_, r, err := l.snaps.Open(meta.ID)
	if err != nil {
		return refuse(path, "The projection cannot be restored from it", err)
	}
	if err := errors.Join(l.fsm.restore(r, meta.Index), r.Close()); err != nil { // it is whole; the Applier does not like it
		return refusal(path, "The projection cannot be restored from it", err)
	}
	return nil
}

// catchUp folds the records that the newest snapshot covers and the projection does not
// (it can lose its last transactions with the power). They are committed, or the snapshot
// would not cover them; the engine starts behind the snapshot and would leave them out.
func (l *raftLog) catchUp(snap uint64) error {
	_, mark := l.fsm.position()
	for at := mark + 1; at <= snap; {
		var logs []*raft.Log
		for ; at <= snap && len(logs) < 64; at++ {
			rec := new(raft.Log)
			if err := l.st.GetLog(at, rec); err != nil {
				return fmt.Errorf("raftlog: read record %d: %w", at, err)
			}
			logs = append(logs, rec)
		}
		l.fsm.ApplyBatch(logs)
		if dead := l.fsm.why(); dead != nil {
			return fmt.Errorf("raftlog: %w", dead)
		}
	}
	return nil
}

func (f *fsm) why() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// refuse is what to say to whoever finds the log damaged.
func refuse(path, what string, err error) error { return refusal(path, what, damage(err)) }

func refusal(path, what string, err error) error {
	if what != "" {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("raftlog: %s: %w. Nothing was changed. "+
		"In a cell: move this node's data folder away, start it empty, and let the others bring it up. "+
		"Alone: put back the data folder from a backup. "+
		"Only if what this file held may be lost, move the log's folder (wal and snapshots) and the projection away together: "+
		"the node then starts as a new one", path, err)
}

// cleanKey is a stable value: where the log ended at a clean close. raft-wal takes a
// damaged last batch for a torn write and cuts it; after a clean close there is none.
const cleanKey = "petrel-clean-close"

// markClean is a help for the next Open, not a promise: without it a cut behind the
// projection's mark goes unseen. Nobody was promised anything behind it on this node alone.
func (s *store) markClean(log *slog.Logger) {
	last, err := s.LastIndex()
	if err == nil {
		s.serving.Store(false)
		err = s.SetUint64([]byte(cleanKey), last)
	}
	if err != nil {
		log.Warn("could not note that the log was closed cleanly", "error", err)
	}
}
