package raftlog

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// What autopilot asks of a non-voter before it gets a vote, and how often it looks.
const (
	pilotInterval  = 500 * time.Millisecond // between two looks; the members have half of it to answer
	pilotStable    = time.Second            // healthy for as long
	pilotTrailing  = 256                    // engine positions behind the leader at most
	pilotMaxSilent = 2 * time.Second        // since it heard of the leader
)

// pilot promotes members that have caught up, while this node leads. It removes and demotes nobody: a
// member that is dead today may have the only copy of something tomorrow. That is for a person to decide.
//
// raft-autopilot stays at 0.1.6: from 0.2.0 on its mocks are part of the package, so that a binary links
// testify (and httptest's flag) with it; what they changed besides is removing dead servers and demotions.
type pilot struct {
	l    *raftLog
	r    *raft.Raft
	auto *autopilot.Autopilot
	// dead are the members that did not answer last time.
	dead atomic.Pointer[map[raft.ServerID]bool]
}

var (
	_ autopilot.ApplicationIntegration = (*pilot)(nil)
	_ autopilot.Promoter               = promoter{}
	_ autopilot.Raft                   = patientRaft{}
)

func newPilot(l *raftLog, r *raft.Raft) *pilot {
	p := &pilot{l: l, r: r}
	p.auto = autopilot.New(patientRaft{r, l}, p, autopilot.WithLogger(newHCLog(l.log)), autopilot.WithPromoter(promoter{max: l.o.MaxVoters, voters: p.voters}),
		autopilot.WithUpdateInterval(pilotInterval), autopilot.WithReconcileInterval(pilotInterval))
	return p
}

func (p *pilot) voters() int {
	n := 0
	for _, m := range members(p.r) {
		if m.Voter {
			n++
		}
	}
	return n
}

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (p *pilot) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{LastContactThreshold: pilotMaxSilent, MaxTrailingLogs: pilotTrailing, ServerStabilizationTime: pilotStable}
}

// KnownServers implements autopilot.ApplicationIntegration.
func (p *pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	dead := p.dead.Load()
	out := map[raft.ServerID]*autopilot.Server{}
	for _, m := range members(p.r) {
		id := raft.ServerID(m.ID)
		s := &autopilot.Server{
			ID: id, Name: string(m.ID), Address: raft.ServerAddress(m.Addr), NodeStatus: autopilot.NodeAlive,
			RaftVersion: int(raft.ProtocolVersionMax), IsLeader: m.ID == p.l.o.Node,
		}
		if dead != nil && (*dead)[id] {
			s.NodeStatus = autopilot.NodeFailed
		}
		out[id] = s
	}
	return out
}

// FetchServerStats implements autopilot.ApplicationIntegration. Who does not answer is given no benefit of
// what it said before.
func (p *pilot) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	var others []Member
	for _, m := range members(p.r) {
		if m.ID != p.l.o.Node {
			others = append(others, m)
		}
	}
	said := map[petrel.NodeID]MemberStats{}
	if len(others) > 0 {
		for id, s := range p.l.o.MemberStats(ctx, others) {
			said[id] = s
		}
	}
	said[p.l.o.Node] = p.l.Stats()
	dead := map[raft.ServerID]bool{}
	out := map[raft.ServerID]*autopilot.ServerStats{}
	for id := range servers {
		s, ok := said[petrel.NodeID(id)]
		if !ok || !s.Alive {
			dead[id] = true
			s.LastContact = time.Hour
		}
		out[id] = &autopilot.ServerStats{LastContact: s.LastContact, LastTerm: s.LastTerm, LastIndex: s.LastMark}
	}
	p.dead.Store(&dead)
	return out
}

// NotifyState implements autopilot.ApplicationIntegration.
func (p *pilot) NotifyState(*autopilot.State) {}

// RemoveFailedServer implements autopilot.ApplicationIntegration; it is never asked for.
func (p *pilot) RemoveFailedServer(*autopilot.Server) {}

// promoter decides who gets a vote: one at a time, the one that has been well for longest. Unlike the stock
// one it does not trust what a leader sees in its first second, and it knows how many are enough.
type promoter struct {
	*autopilot.StablePromoter
	max    int
	voters func() int // now, not when autopilot last looked
}

// CalculatePromotionsAndDemotions implements autopilot.Promoter.
func (p promoter) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	now := time.Now()
	var ready []*autopilot.ServerState
	for _, srv := range s.Servers {
		if srv.State == autopilot.RaftNonVoter && srv.Health.IsStable(now, c.ServerStabilizationTime) {
			ready = append(ready, srv)
		}
	}
	// Four voters survive the loss of one, as three do, and wait for one more: a third member gets its vote
	// alone, a fourth only with a fifth. (Two survive none, but then nothing is lost with either disk.)
	n := p.voters()
	if even := (n+1)%2 == 0 && n+1 > 2; len(ready) == 0 || n >= p.max || even && (len(ready) < 2 || n+2 > p.max) {
		return autopilot.RaftChanges{}
	}
	first := slices.MinFunc(ready, func(a, b *autopilot.ServerState) int {
		if d := a.Health.StableSince.Compare(b.Health.StableSince); d != 0 {
			return d
		}
		return strings.Compare(string(a.Server.ID), string(b.Server.ID))
	})
	return autopilot.RaftChanges{Promotions: []raft.ServerID{first.Server.ID}}
}

// patientRaft is the engine as autopilot sees it: it gives a vote only to one that is a non-voter now. What
// autopilot saw may be old; a member that was removed since would come back as a voter that nobody is.
type patientRaft struct {
	*raft.Raft
	l *raftLog
}

// AddVoter implements autopilot.Raft.
func (r patientRaft) AddVoter(id raft.ServerID, addr raft.ServerAddress, _ uint64, _ time.Duration) raft.IndexFuture {
	return answered{r.l.change(r.l.ctx, "give a vote", func(e *raft.Raft) raft.Future {
		if !slices.Contains(members(e), Member{ID: petrel.NodeID(id), Addr: string(addr)}) {
			return answered{errNotNonvoter}
		}
		r.l.log.Info("a member has caught up and gets a vote", "member", string(id))
		return e.AddVoter(id, addr, 0, r.l.o.EnqueueTimeout)
	})}
}

var errNotNonvoter = errors.New("it is not a member without a vote any more")

// answered is a future that has its answer.
type answered struct{ err error }

func (f answered) Error() error  { return f.err }
func (f answered) Index() uint64 { return 0 }
