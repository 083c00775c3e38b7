package raftlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

var errNoNetwork = errors.New("a log that was opened without a Network stays alone")

// AddNonvoter implements Log.
func (l *raftLog) AddNonvoter(ctx context.Context, id petrel.NodeID, addr string) error {
	return l.change(ctx, "add a non-voter", func(r *raft.Raft) raft.Future {
		return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, l.o.EnqueueTimeout)
	})
}

// AddVoter implements Log.
func (l *raftLog) AddVoter(ctx context.Context, id petrel.NodeID, addr string) error {
	return l.change(ctx, "add a voter", func(r *raft.Raft) raft.Future {
		return r.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, l.o.EnqueueTimeout)
	})
}

// Remove implements Log. A leader that removes itself steps down.
func (l *raftLog) Remove(ctx context.Context, id petrel.NodeID) error {
	return l.change(ctx, "remove a member", func(r *raft.Raft) raft.Future {
		return r.RemoveServer(raft.ServerID(id), 0, l.o.EnqueueTimeout)
	})
}

// TransferLeadership implements Log. It holds the right to propose meanwhile: appends wait for the new leader
// instead of being refused, and none is under way whose answer could be lost.
func (l *raftLog) TransferLeadership(ctx context.Context, to petrel.NodeID) error {
	heirs := l.heirs(ctx, to) // first: one that does not answer takes time
	if err := l.acquire(ctx); err != nil {
		return l.notNow("transfer leadership", err)
	}
	defer l.release()
	defer func() { l.handed = time.Now() }()
	err := l.notNow("transfer leadership", errors.New("no such voter answers"))
	for _, id := range heirs {
		err = l.change(ctx, "transfer leadership", func(r *raft.Raft) raft.Future {
			if id == "" {
				return r.LeadershipTransfer() // raft picks; it refuses when there is nobody
			}
			for _, m := range members(r) {
				if m.ID == id && m.Voter {
					return r.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(m.Addr))
				}
			}
			return answered{fmt.Errorf("%s is not a voter of the group", id)}
		})
		if err == nil {
			l.untilLed(ctx)
			return nil
		}
	}
	return err
}

// stuckTransfer is longer than raft says it may still be handing over after it has given up.
const stuckTransfer = 10 * time.Second

// checkTransfer stops a leader that refuses appends for the sake of a transfer that ended long ago: raft can forget to
// end one when leadership is lost over it, and would take no append any more (hashicorp/raft issue 696). Whoever calls
// holds the slot, so that none of ours is under way.
func (l *raftLog) checkTransfer() {
	if !l.handed.IsZero() && time.Since(l.handed) > stuckTransfer {
		l.halt(fmt.Errorf("the engine is stuck in a transfer of leadership since %s; start again", l.handed.Format(time.TimeOnly)))
	}
}

// heirs are who may lead next: to, or the most advanced of the others when it is "". Only who answers: raft picks by
// what it has sent to each, and a transfer to one that is dead can harm (checkTransfer). When nobody can be asked, it
// is for raft to find out, and "" stands for its pick.
func (l *raftLog) heirs(ctx context.Context, to petrel.NodeID) []petrel.NodeID {
	if l.o.MemberStats == nil {
		return []petrel.NodeID{to}
	}
	ctx, cancel := context.WithTimeout(ctx, l.o.Heartbeat/2)
	defer cancel()
	voters := slices.DeleteFunc(members(l.raft()), func(m Member) bool {
		return !m.Voter || m.ID == l.o.Node || to != "" && m.ID != to
	})
	said := l.o.MemberStats(ctx, voters)
	voters = slices.DeleteFunc(voters, func(m Member) bool { return !said[m.ID].Alive })
	slices.SortStableFunc(voters, func(a, b Member) int { return cmp.Compare(said[b.ID].LastMark, said[a.ID].LastMark) })
	out := make([]petrel.NodeID, len(voters))
	for i, m := range voters {
		out[i] = m.ID
	}
	return out
}

// untilLed waits until this node has heard of another leader, for as long as it would wait before an election.
func (l *raftLog) untilLed(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.o.Heartbeat)
	defer cancel()
	for rn := l.reign.Load(); rn.id == "" || rn.id == l.o.Node; rn = l.reign.Load() {
		select {
		case <-rn.life.Done():
		case <-ctx.Done():
			return
		case <-l.closing:
			return
		}
	}
}

// change asks the engine for one change of who is in the group or leads it, and no second one before that is
// decided, so that do may rest on the members that it finds.
func (l *raftLog) change(ctx context.Context, what string, do func(*raft.Raft) raft.Future) error {
	if err := l.stopped(); err != nil {
		return err
	}
	if l.mux == nil {
		return l.notNow(what, errNoNetwork)
	}
	select {
	case l.changing <- struct{}{}:
	case <-ctx.Done():
		return l.notNow(what, ctx.Err())
	case <-l.closing:
		return l.stopped()
	}
	done := make(chan error, 1)
	l.wait.start()
	f := do(l.raft())
	go func() {
		defer l.wait.done()
		err := f.Error()
		<-l.changing
		done <- err
	}()
	select {
	case err := <-done:
		switch {
		case err == nil:
			return nil
		case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
			return fmt.Errorf("raftlog: %s: %w: %w", what, petrel.ErrUnknownOutcome, err)
		}
		return l.notNow(what, err)
	case <-ctx.Done():
		return fmt.Errorf("raftlog: %s: %w: %w", what, petrel.ErrUnknownOutcome, ctx.Err())
	}
}

// members is the latest configuration, committed or not.
func members(r *raft.Raft) []Member {
	f := r.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return membersOf(f.Configuration())
}

func membersOf(c raft.Configuration) []Member {
	var out []Member
	for _, s := range c.Servers {
		out = append(out, Member{ID: petrel.NodeID(s.ID), Addr: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// Status implements Log.
func (l *raftLog) Status() Status {
	r := l.raft()
	if r == nil { // still in Open
		return Status{Node: l.o.Node, FreeDisk: -1}
	}
	_, leader := r.LeaderWithID()
	s := Status{
		Node: l.o.Node, IsLeader: r.State() == raft.Leader, Leader: petrel.NodeID(leader), Term: r.CurrentTerm(), Members: members(r),
		CommitMark: r.CommitIndex(), LastMark: r.LastIndex(), SnapshotMark: l.snaps.newest.Load(),
		LogBytes: l.st.bytes.Load(), FreeDisk: -1, DiskFull: l.st.full.Load(),
	}
	s.Index, s.AppliedMark = l.fsm.position()
	s.Lag, s.Leaders = l.lag(r), l.leaders.Load()
	if free, err := l.o.hooks.free(l.o.Dir); err == nil {
		s.FreeDisk = free
		s.DiskFull = s.DiskFull || free < l.o.MinFree
	}
	if !s.IsLeader && !r.LastContact().IsZero() {
		s.LastContact = time.Since(r.LastContact())
	}
	if p := l.fatal.Load(); p != nil {
		s.Stopped, s.IsLeader, s.Leader = *p, false, ""
	}
	return s
}

// lag is how many positions are known to be committed and not applied here yet. Positions that are not the
// Applier's (the engine's own) never reach it, so that its mark alone would stand behind for ever.
func (l *raftLog) lag(r *raft.Raft) uint64 {
	commit := r.CommitIndex()
	_, mark := l.fsm.position()
	if mark >= commit || r.AppliedIndex() >= commit && r.Stats()["fsm_pending"] == "0" && l.fsm.idle() {
		return 0
	}
	return commit - mark
}

// Stats implements Log.
func (l *raftLog) Stats() MemberStats {
	r := l.raft()
	if r == nil { // still in Open
		return MemberStats{LastContact: time.Hour}
	}
	said := r.Stats()
	number := func(key string) uint64 {
		n, _ := strconv.ParseUint(said[key], 10, 64) // raft wrote it
		return n
	}
	s := MemberStats{Alive: l.stopped() == nil, LastTerm: number("last_log_term"), LastMark: number("last_log_index")}
	if at := number("last_snapshot_index"); at > s.LastMark {
		s.LastTerm, s.LastMark = number("last_snapshot_term"), at
	}
	switch contact := r.LastContact(); {
	case r.State() == raft.Leader:
	case contact.IsZero():
		s.LastContact = time.Hour
	default:
		s.LastContact = time.Since(contact)
	}
	return s
}
