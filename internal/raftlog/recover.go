package raftlog

import (
	"context"
	"errors"
)

// Inspection is what the files of one member say, without anything being started or changed.
type Inspection struct {
	Index        uint64   // own index of the last record in the log, committed or not
	LastMark     uint64   // engine position at the end of the log
	LastTerm     uint64   // its term: of two survivors the one with the later term, then the later mark, is ahead
	SnapshotMark uint64   // engine position of the newest snapshot; 0 is none
	Members      []Member // of the group, as this member knew it last
}

// Ahead says whether a is further than b: a holds whatever b holds of what was committed.
func (a Inspection) Ahead(b Inspection) bool {
	return a.LastTerm > b.LastTerm || a.LastTerm == b.LastTerm && a.LastMark > b.LastMark
}

// Inspect reads the log in dir, which no process may have open, and changes nothing.
func Inspect(ctx context.Context, dir string) (Inspection, error) {
	return Inspection{}, errors.New("raftlog: not built yet")
}

// Recover makes the member whose log lies in o.Dir the sole voter of its group, for when a quorum of the
// voters is lost for ever. What its log holds is kept, whether it was committed or not; what only the lost
// members held is lost. The log must not be open, and must be read whole, as by Open. The members that were
// given up must never be started again with their old data: they know nothing of this, and may have a quorum
// among themselves.
func Recover(ctx context.Context, o Options) error {
	return errors.New("raftlog: not built yet")
}
