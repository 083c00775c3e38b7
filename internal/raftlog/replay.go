package raftlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Replayed is what Replay did.
type Replayed struct {
	From    uint64 // engine position of the snapshot that it began with; 0: the beginning of the log
	Records uint64 // own records folded after that
}

// Replay folds the log in dir (Options.Dir), which no process may have open, into an empty Applier, up to the engine
// position upto: from the beginning of the log when that is retained, else from the oldest snapshot that it can
// go on from. Like Inspect it changes nothing there. It proves what a projection should hold. progress may be nil.
func Replay(ctx context.Context, dir string, app Applier, upto uint64, progress func(at uint64)) (out Replayed, err error) {
	image, err := os.MkdirTemp("", "petrel-replay-")
	if err != nil {
		return out, fmt.Errorf("raftlog: replay: %w", err)
	}
	defer os.RemoveAll(image)
	if err := errors.Join(imageOf(dir, image), linkStates(dir, image)); err != nil {
		return out, fmt.Errorf("raftlog: replay: %w", err)
	}
	o := Options{Dir: image, Node: "replay", Applier: app}
	if err := o.validate(); err != nil {
		return out, err
	}
	wal := filepath.Join(dir, "wal")
	st, err := openStore(filepath.Join(image, "wal"), &o, disk{o.hooks.file, ctx.Done(), &diskState{}}, func(error) {})
	if err != nil {
		return out, refuse(wal, "It cannot be opened", err)
	}
	defer func() { err = errors.Join(err, st.close()) }()
	m := newMetrics(nil, nil)
	f := newFSM(ctx, app, m, func() {}, func(error) {})
	first, err := st.FirstIndex()
	if err != nil {
		return out, refuse(wal, "It cannot be read", err)
	}
	if first != 1 {
		if out.From, err = restoreOldest(&o, st, m, f, first, upto); err != nil {
			return out, err
		}
	}
	before, _ := f.position()
	for at := out.From + 1; at <= upto; {
		var logs []*raft.Log
		for ; at <= upto && len(logs) < 64; at++ {
			rec := new(raft.Log)
			err := st.read(at, rec)
			if errors.Is(err, raft.ErrLogNotFound) {
				err = fmt.Errorf("%w: it is missing", ErrDamaged)
			}
			if err != nil {
				return out, refuse(segmentOf(wal, at), "", fmt.Errorf("record %d of the log: %w", at, err))
			}
			logs = append(logs, rec)
		}
		f.ApplyBatch(logs)
		if err := errors.Join(f.why(), ctx.Err()); err != nil {
			return out, fmt.Errorf("raftlog: replay: %w", err)
		}
		if progress != nil {
			progress(at - 1)
		}
	}
	after, _ := f.position()
	out.Records = after - before
	return out, nil
}

// linkStates adds to an image what the snapshots hold.
func linkStates(dir, image string) error {
	states, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	for _, s := range states {
		to := filepath.Join(image, "snapshots", filepath.Base(filepath.Dir(s)))
		if _, serr := os.Stat(to); serr == nil { // else one that was never finished
			err = errors.Join(err, linkFile(s, filepath.Join(to, "state.bin")))
		}
	}
	return err
}

// restoreOldest brings the Applier to the oldest snapshot from which a log that begins at first goes on to upto.
func restoreOldest(o *Options, st *store, m *metrics, f *fsm, first, upto uint64) (uint64, error) {
	snaps, err := openSnapshots(o, st, m)
	if err != nil {
		return 0, fmt.Errorf("raftlog: replay: %w", err)
	}
	metas, err := snaps.List() // newest first
	if err != nil {
		return 0, fmt.Errorf("raftlog: replay: %w", err)
	}
	var from *raft.SnapshotMeta
	for _, meta := range metas {
		if meta.Index <= upto && (meta.Index+1 >= first && first != 0 || meta.Index == upto) {
			from = meta
		}
	}
	if from == nil {
		return 0, fmt.Errorf("raftlog: replay: no snapshot stands between the beginning of the log at %d and position %d", first, upto)
	}
	_, r, err := snaps.Open(from.ID)
	if err != nil {
		return 0, refuse(filepath.Join(snaps.dir, from.ID), "It cannot be read", err)
	}
	err = f.restore(r, from.Index)
	return from.Index, errors.Join(err, r.Close())
}
