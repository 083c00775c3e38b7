package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// recoveringFile is in a data folder from the first change of a recovery until its last.
const recoveringFile = "recovering"

// answersWithin is how long a node's peer port is waited for.
const answersWithin = 2 * time.Second

// Survivor is what a stopped node's folder holds of its cell.
type Survivor struct {
	Member  petrel.NodeID `json:"member"`
	Term    uint64        `json:"term"`    // of the end of its log: of two survivors the one with the higher term is ahead,
	Mark    uint64        `json:"mark"`    // and with equal terms the one with the higher mark
	Index   uint64        `json:"index"`   // of the last entry; 0: all are in the snapshot
	Written time.Time     `json:"written"` // when the log was last written
	Fenced  string        `json:"fenced,omitempty"`
	Members []SurvivorOf  `json:"members"`
	Voters  int           `json:"voters"`
	Quorum  int           `json:"quorum"`
}

// SurvivorOf is a member of the cell as that folder knew it.
type SurvivorOf struct {
	Member  petrel.NodeID `json:"member"`
	Peer    string        `json:"peer"`
	Voter   bool          `json:"voter"`
	Self    bool          `json:"self,omitempty"`
	Answers bool          `json:"answers"` // something listens at its peer port
}

// Answering counts the other voters at whose peer port something listens.
func (s *Survivor) Answering() (n int) {
	for _, m := range s.Members {
		if m.Voter && m.Answers && !m.Self {
			n++
		}
	}
	return n
}

// Enough says that the voters that answer decide together with this one once it is started: nothing is lost.
func (s *Survivor) Enough() bool {
	n := s.Answering()
	for _, m := range s.Members {
		if m.Voter && m.Self {
			n++
		}
	}
	return n >= s.Quorum
}

// InspectSurvivor reads a data folder that no process holds, and changes nothing. It asks the peer ports of the other
// members whether anybody is there.
func InspectSurvivor(ctx context.Context, data string) (Survivor, error) {
	lock, self, err := takeSurvivor(data)
	if err != nil {
		return Survivor{}, err
	}
	defer func() { _ = lock.release() }() // it was only read
	return inspectSurvivor(ctx, data, self)
}

func takeSurvivor(data string) (*folderLock, membership, error) {
	if !exists(filepath.Join(data, "shard-0", "log", "wal")) {
		return nil, membership{}, fmt.Errorf("%s is no data folder with a log; name that of a surviving node with --data", data)
	}
	lock, err := lockFolder(data)
	if err != nil {
		return nil, membership{}, err
	}
	self, err := loadMembership(data, "", false) // there is a log: nothing is made up
	if err != nil {
		return nil, membership{}, errors.Join(err, lock.release())
	}
	return lock, self, nil
}

func inspectSurvivor(ctx context.Context, data string, self membership) (s Survivor, err error) {
	dir := filepath.Join(data, "shard-0", "log")
	in, err := raftlog.Inspect(ctx, dir)
	if err != nil {
		return s, openLogError(err)
	}
	s = Survivor{Member: self.Member, Term: in.LastTerm, Mark: in.LastMark, Index: in.Index, Members: []SurvivorOf{}}
	if s.Written, err = lastWritten(filepath.Join(dir, "wal")); err != nil {
		return s, err
	}
	fenced, err := loadFencing(data)
	if err != nil {
		return s, err
	}
	if fenced != nil {
		s.Fenced = fenced.String()
	}
	var wg sync.WaitGroup
	s.Members = make([]SurvivorOf, len(in.Members))
	for i, m := range in.Members {
		s.Members[i] = SurvivorOf{Member: m.ID, Peer: m.Addr, Voter: m.Voter, Self: m.ID == self.Member}
		if m.Voter {
			s.Voters++
		}
		if m.ID != self.Member {
			wg.Go(func() { s.Members[i].Answers = answers(ctx, m.Addr) })
		}
	}
	wg.Wait()
	s.Quorum = s.Voters/2 + 1
	slices.SortFunc(s.Members, func(a, b SurvivorOf) int { return cmp.Compare(a.Member, b.Member) })
	return s, ctx.Err()
}

func answers(ctx context.Context, addr string) bool {
	c, err := (&net.Dialer{Timeout: answersWithin}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// lastWritten is when a file of the folder last changed.
func lastWritten(dir string) (at time.Time, err error) {
	files, err := os.ReadDir(dir)
	for _, f := range files {
		info, ierr := f.Info()
		if ierr != nil {
			err = errors.Join(err, ierr)
		} else if info.ModTime().After(at) {
			at = info.ModTime()
		}
	}
	return at.UTC(), err
}

// Recover makes the node of a data folder the only one of its cell, after a quorum was lost for good: `petrel node
// recover`. What its log holds is kept, and begins another life: its epoch changes, so that no position that only
// the lost nodes knew is taken for one of ours, and so does the cell's secret, so that a lost node that is started
// after all cannot write over it. The others join again, with empty folders. Cut short anywhere, it is done again.
//
// It refuses a folder in use, one that holds a fenced replica and, as long as this node and others could be a quorum, any: unless force.
func Recover(ctx context.Context, data string, force bool, b Build, logger *slog.Logger) (Survivor, error) {
	lock, self, err := takeSurvivor(data)
	if err != nil {
		return Survivor{}, err
	}
	s, err := inspectSurvivor(ctx, data, self)
	switch {
	case err != nil:
	case s.Voters == 1 && s.Enough() && !force && !exists(filepath.Join(data, recoveringFile)):
		err = petrel.Errorf(petrel.CodeConflict, "No quorum is lost: this is the only node of its cell that votes. Start it.")
	case s.Enough() && !force && !exists(filepath.Join(data, recoveringFile)):
		err = petrel.Errorf(petrel.CodeConflict, "No quorum is lost: of %d voters, of which %d decide, %d others answer at their peer ports. Start this node. "+
			"If what answers there is something else, --force.", s.Voters, s.Quorum, s.Answering())
	case s.Fenced != "" && !force:
		err = petrel.Errorf(petrel.CodeConflict, "This replica is fenced (%s): it must not be trusted. Recover from another survivor, or --force when there is none.", s.Fenced)
	case !slices.ContainsFunc(s.Members, func(m SurvivorOf) bool { return m.Self }):
		err = petrel.Errorf(petrel.CodeConflict, "This node is no member of the cell that its log knows: it was removed, or never taken in. Recover from another survivor.")
	}
	if err == nil {
		err = newLife(data)
	}
	if err = errors.Join(err, lock.release()); err != nil {
		return s, err
	}
	cfg := DefaultConfig()
	cfg.Data = data
	n, err := Open(ctx, Options{Config: cfg, Logger: logger, Build: b, Offline: true, recovers: true})
	if err != nil {
		return s, err
	}
	if err := errors.Join(n.shard.begin(ctx, n.shard.loop.Applied().Epoch, logger), n.Stop()); err != nil {
		return s, err
	}
	if err := os.Remove(filepath.Join(data, recoveringFile)); err != nil {
		return s, fmt.Errorf("finish the recovery: %w", err)
	}
	return s, syncFolder(data)
}

// newLife writes down that a recovery is under way, gives the cell another secret, and forgets where the others were.
func newLife(data string) error {
	if err := writeDurably(filepath.Join(data, recoveringFile), []byte("petrel node recover began here and has not ended\n")); err != nil {
		return err
	}
	for _, gone := range []string{cellFile, rebuildFile} {
		if err := os.Remove(filepath.Join(data, gone)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return writeDurably(filepath.Join(data, cellSecretFile), []byte(bus.NewCellSecret()+"\n"))
}

// unfinished refuses a folder whose recovery was cut short: its log may still be of its former life.
func unfinished(data string) error {
	if !exists(filepath.Join(data, recoveringFile)) {
		return nil
	}
	return fmt.Errorf("%wthe recovery of %s was cut short; run `petrel node recover --data %s --yes` again", quiet{ErrFatal}, data, data)
}
