package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// takeIn makes a node a member without a vote; autopilot gives it one when it has caught up. A member of the same
// name whose folder was wiped, replaced or set aside gives way. This node leads.
func (c *cell) takeIn(ctx context.Context, log raftlog.Log, st raftlog.Status, q cellRequest) error {
	if q.Member == "" || q.Peer == "" {
		return petrel.Errorf(petrel.CodeInvalidField, "A node that joins names itself and its peer port.")
	}
	if q.Moved && !isMember(st.Members, q.Member) {
		return petrel.Errorf(petrel.CodeNotFound, "%s is not a member of the cell.", q.Member)
	}
	c.lookAtLevel()
	if level := c.level(); q.Feature < level {
		return petrel.Errorf(petrel.CodeConflict, "The cell writes what only builds of feature level %d and up can read, and this build has %d. Install a newer build.", level, q.Feature)
	}
	for _, m := range st.Members {
		switch {
		case m.ID == q.Member:
			if m.Addr == q.Peer {
				return nil // it asked twice
			}
			if c.answersAs(ctx, m.Addr, m.ID) {
				return petrel.Errorf(petrel.CodeConflict, "%s", twinSentence(m.ID, m.Addr))
			}
			c.logger.Info("a node has moved", "member", m.ID, "was", m.Addr, "is", q.Peer)
			if m.Voter {
				return log.AddVoter(ctx, q.Member, q.Peer)
			}
		case nameOf(m.ID) == nameOf(q.Member):
			if m.Addr != q.Peer && c.alive(m.ID) { // who has its address has its place
				return petrel.Errorf(petrel.CodeBusy, "A node named %s is in the cell already, and alive. Choose another --name, or stop that one first.", nameOf(m.ID))
			}
			if why := c.losesQuorum(st.Members, m.ID); why != "" {
				return petrel.Errorf(petrel.CodeBusy, "%s would take the place of a member that has its name, but %s", q.Member, why)
			}
			c.logger.Warn("a node came back with an empty or other folder: the member that it was is removed", "was", m.ID, "is", q.Member)
			if err := log.Remove(ctx, m.ID); err != nil {
				return err
			}
		}
	}
	c.logger.Info("a node joins the cell", "member", q.Member, "peer", q.Peer)
	return log.AddNonvoter(ctx, q.Member, q.Peer)
}

// NodeInfo is a node of the cell as an operator sees it.
type NodeInfo struct {
	Name    string        `json:"name"`
	Member  petrel.NodeID `json:"member"`
	Peer    string        `json:"peer"`
	Bus     string        `json:"bus,omitempty"`
	Public  string        `json:"public,omitempty"`
	Admin   string        `json:"admin,omitempty"`
	Role    string        `json:"role"` // leader, voter, nonvoter
	Alive   bool          `json:"alive"`
	Self    bool          `json:"self"`
	Health  string        `json:"health,omitempty"` // as its /healthz says
	Applied uint64        `json:"applied"`
	Lag     uint64        `json:"lag"` // entries that the furthest node has applied and this one has not
	Feature int           `json:"feature,omitempty"`
	Version string        `json:"version,omitempty"`
}

// CellInfo is the cell as one node sees it.
type CellInfo struct {
	Nodes  []NodeInfo    `json:"nodes"`
	Leader petrel.NodeID `json:"leader"` // "" while there is none
	Term   uint64        `json:"term"`
	Voters int           `json:"voters"`
	Quorum int           `json:"quorum"` // living voters that writes need
}

// Cell implements Operator.
func (n *Node) Cell(ctx context.Context) (CellInfo, error) {
	st := n.shard.log.Status()
	info := CellInfo{Leader: st.Leader, Term: st.Term, Nodes: []NodeInfo{}}
	peers := map[petrel.NodeID]bus.Peer{}
	reports := map[petrel.NodeID]report{n.self.Member: n.report()}
	if n.cell != nil {
		for _, p := range n.cell.peers() {
			peers[p.Node] = p
		}
		maps.Copy(reports, n.cell.reports(ctx))
	}
	var head uint64
	for _, m := range st.Members {
		i := NodeInfo{Name: nameOf(m.ID), Member: m.ID, Peer: m.Addr, Role: "nonvoter", Self: m.ID == n.self.Member}
		if m.Voter {
			i.Role = "voter"
			info.Voters++
		}
		if m.ID == st.Leader {
			i.Role = "leader"
		}
		r, heard := reports[m.ID]
		i.Health, i.Applied, i.Version = r.Health, r.Applied, r.Version
		p := peers[m.ID]
		i.Alive, i.Feature = heard || p.Alive, p.Info.Feature
		a := p.Info.Addresses
		if i.Self {
			a, i.Feature = n.addresses(), FeatureLevel
			if n.opt.Offline {
				i.Health = "stopped" // a command line tool has opened its data folder
			}
		}
		i.Bus, i.Public, i.Admin = a.Bus, a.Public, a.Admin
		head = max(head, i.Applied)
		info.Nodes = append(info.Nodes, i)
	}
	for i := range info.Nodes {
		info.Nodes[i].Lag = head - info.Nodes[i].Applied
	}
	slices.SortFunc(info.Nodes, func(a, b NodeInfo) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Member), string(b.Member)))
	})
	info.Quorum = info.Voters/2 + 1
	return info, nil
}

func (n *Node) addresses() bus.Addresses {
	if n.cell == nil {
		return bus.Addresses{Public: n.Addr(), Admin: n.AdminAddr()}
	}
	return n.cell.info().Addresses
}

// memberNamed finds a member by its name or its id.
func (c *cell) memberNamed(name string) (raftlog.Member, error) {
	var found []raftlog.Member
	for _, m := range c.status().Members {
		if string(m.ID) == name {
			return m, nil
		}
		if nameOf(m.ID) == name {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return raftlog.Member{}, petrel.Errorf(petrel.CodeNotFound, "There is no node %s in the cell; `petrel node list` shows those that are.", name)
	case 1:
		return found[0], nil
	}
	return raftlog.Member{}, petrel.Errorf(petrel.CodeConflict, "Several members are called %s; name one by its member id, as `petrel node list` shows it.", name)
}

func (n *Node) inCell() error {
	if n.cell == nil {
		return petrel.Errorf(petrel.CodeConflict, "This node runs alone. Start it with --peer to make it the first node of a cell.")
	}
	return nil
}

// RemoveNode implements Operator.
func (n *Node) RemoveNode(ctx context.Context, name string, force bool) error {
	if err := n.inCell(); err != nil {
		return err
	}
	m, err := n.cell.memberNamed(name)
	if err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	for { // a leader that is to go hands over first; the next one removes it
		err := n.cell.lead(ctx, cellRequest{Op: opRemove, Member: m.ID, Force: force})
		if petrel.CodeOf(err) != petrel.CodeNoLeader || len(n.cell.waits().silent) > 0 {
			return err
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-patience.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
}

// removePatience is how long a removal waits for the next leader: longer than a handover or an election.
const removePatience = 5 * time.Second

// ReplaceNode implements Operator.
func (n *Node) ReplaceNode(ctx context.Context, old, with string) error {
	if err := n.inCell(); err != nil {
		return err
	}
	info, err := n.Cell(ctx)
	if err != nil {
		return err
	}
	was, err := n.cell.memberNamed(old)
	if err != nil {
		return err
	}
	is, err := n.cell.memberNamed(with)
	if err != nil {
		return err
	}
	if was.ID == is.ID {
		return petrel.Errorf(petrel.CodeInvalidField, "A node cannot take its own place.")
	}
	for _, i := range info.Nodes {
		if i.Member != is.ID {
			continue
		}
		if !i.Alive || n.cell.drains(is.ID) {
			return petrel.Errorf(petrel.CodeConflict, "%s is not alive, or draining, so it cannot take the place of %s.", with, old)
		}
		if is.Voter && was.Voter && info.Voters <= n.cfg.Voters {
			return petrel.Errorf(petrel.CodeConflict, "%s votes already, so it takes nobody's place: the cell would go on with one node less. If that is what you want, use `petrel node remove %s`.", with, old)
		}
		if i.Lag > replaceLag {
			return petrel.Errorf(petrel.CodeConflict, "%s has %d entries to catch up. Try again when `petrel node list` shows it close behind.", with, i.Lag)
		}
	}
	return n.RemoveNode(ctx, string(was.ID), false)
}

// stopsWrites says why writes would wait while a member is down; "" when they would not, or cannot do otherwise.
func (c *cell) stopsWrites(members []raftlog.Member, down petrel.NodeID) string {
	voters, living, isVoter := 0, 0, false
	for _, m := range members {
		if !m.Voter {
			continue
		}
		voters++
		switch {
		case m.ID == down:
			isVoter = true
		case c.alive(m.ID) && !c.drains(m.ID):
			living++
		}
	}
	if !isVoter || voters == 1 || living >= voters/2+1 {
		return ""
	}
	return fmt.Sprintf("while it is down, %d of the %d nodes that vote would be alive and stay, and %d must be for writes to go on", living, voters, voters/2+1)
}

// drains says whether a node is leaving.
func (c *cell) drains(m petrel.NodeID) bool {
	if m == c.self.Member {
		return c.leaving != nil && c.leaving()
	}
	return slices.ContainsFunc(c.peers(), func(p bus.Peer) bool { return p.Node == m && p.Info.Draining })
}

// replaceLag is how far behind a node may be that takes the place of another, in entries.
const replaceLag = 1000

// TransferLeadership implements Operator.
func (n *Node) TransferLeadership(ctx context.Context, to string) error {
	if err := n.inCell(); err != nil {
		return err
	}
	q := cellRequest{Op: opTransfer}
	if to != "" {
		m, err := n.cell.memberNamed(to)
		if err != nil {
			return err
		}
		q.Member = m.ID
	}
	return n.cell.lead(ctx, q)
}

// DrainNode implements Operator.
func (n *Node) DrainNode(ctx context.Context, name string, force bool) error {
	if n.cell == nil {
		if name != "" && name != n.cfg.Name {
			return n.inCell()
		}
		n.leave()
		return nil
	}
	m, err := n.cell.memberNamed(cmp.Or(name, string(n.self.Member)))
	if err != nil {
		return err
	}
	if why := n.cell.stopsWrites(n.cell.status().Members, m.ID); why != "" && !force {
		return petrel.Errorf(petrel.CodeConflict, "%s cannot be drained now: %s. With --force it drains all the same.", nameOf(m.ID), why)
	}
	if m.ID == n.self.Member {
		n.leave()
		return nil
	}
	if _, err = n.cell.ask(ctx, m.Addr, cellRequest{Op: opDrain}); err != nil && petrel.CodeOf(err) == petrel.CodeInternal {
		return petrel.Errorf(petrel.CodeConflict, "%s does not answer at %s: it is down, or cut off from this node, so it cannot be drained. Ask it itself, with --data or --admin.", nameOf(m.ID), m.Addr).Because(err)
	}
	return err
}

// remove forgets a member. Without force it refuses what would leave fewer living voters than decide.
func (c *cell) remove(ctx context.Context, log raftlog.Log, st raftlog.Status, q cellRequest) error {
	if !isMember(st.Members, q.Member) {
		return nil
	}
	if why := c.losesQuorum(st.Members, q.Member); why != "" && !q.Force {
		return petrel.Errorf(petrel.CodeConflict, "%s cannot be removed now: %s", nameOf(q.Member), why)
	}
	if q.Member == c.self.Member {
		if err := c.transfer(ctx, log, st, ""); err != nil {
			return err
		}
		return errNoLeader() // the next leader removes this one
	}
	c.logger.Warn("a node is removed from the cell", "member", q.Member)
	return log.Remove(ctx, q.Member)
}

func (c *cell) transfer(ctx context.Context, log raftlog.Log, st raftlog.Status, to petrel.NodeID) error {
	if to == c.self.Member {
		return nil
	}
	if to != "" {
		i := slices.IndexFunc(st.Members, func(m raftlog.Member) bool { return m.ID == to })
		switch {
		case i < 0:
			return petrel.Errorf(petrel.CodeNotFound, "There is no node %s in the cell.", to)
		case !st.Members[i].Voter:
			return petrel.Errorf(petrel.CodeConflict, "%s has no vote, so it cannot lead.", nameOf(to))
		case !c.alive(to):
			return petrel.Errorf(petrel.CodeConflict, "%s is not alive, so it cannot lead.", nameOf(to))
		case c.drains(to):
			return petrel.Errorf(petrel.CodeConflict, "%s is draining, so it should not lead. Restart it first.", nameOf(to))
		}
	}
	select {
	case c.handing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.handing }()
	defer c.goOn()
	c.restJobs(ctx, handOverRest)
	return log.TransferLeadership(ctx, to)
}

// restJobs lets attempts at jobs come to their end before leadership is given away, for so long at most.
func (c *cell) restJobs(ctx context.Context, most time.Duration) {
	if c.rest != nil {
		ctx, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		c.rest(ctx)
	}
}

// goOn lets jobs begin again, on a node that stays.
func (c *cell) goOn() {
	if c.resume != nil && !c.leaving() {
		c.resume()
	}
}

// losesQuorum says why the cell could not decide any more without a member; "" when it could.
func (c *cell) losesQuorum(members []raftlog.Member, without petrel.NodeID) string {
	voters, living, isVoter := 0, 0, false
	for _, m := range members {
		if !m.Voter {
			continue
		}
		if m.ID == without {
			isVoter = true
			continue
		}
		voters++
		if c.alive(m.ID) && !c.drains(m.ID) {
			living++
		}
	}
	switch {
	case !isVoter:
		return ""
	case voters == 0:
		return "it is the only node that votes; the cell would be gone. Add a node first."
	case living < voters/2+1:
		return fmt.Sprintf("of the %d voters that remain only %d are alive and stay, and %d must be for writes to go on. Bring one back, or add a node first.", voters, living, voters/2+1)
	}
	return ""
}

// wait is what a cell without a leader waits for; the zero value: nothing, for there is one, or the log is not open yet.
type wait struct {
	voters int
	silent []string // voters that are not heard of; none: an election is under way
}

func (c *cell) waits() wait {
	st := c.status()
	var w wait
	if st.Leader != "" {
		return w
	}
	for _, m := range st.Members {
		if m.Voter {
			w.voters++
		}
		if m.Voter && !c.alive(m.ID) {
			w.silent = append(w.silent, nameOf(m.ID)+" at "+m.Addr)
		}
	}
	return w
}

// String says it in a sentence; "" for nothing.
func (w wait) String() string {
	switch {
	case w.voters == 0:
		return ""
	case len(w.silent) == 0:
		return "an election is under way"
	}
	return fmt.Sprintf("it needs %d of the %d nodes that vote, and has not heard of %s", w.voters/2+1, w.voters, strings.Join(w.silent, " and "))
}

// level is the feature level that every member can read: the lowest that was ever heard, and the first of all for one
// that was never heard of. It is asked for every command, so it is looked at now and then (watch).
func (c *cell) level() int { return int(c.readable.Load()) }

func (c *cell) lookAtLevel() {
	heard := map[petrel.NodeID]int{c.self.Member: FeatureLevel}
	for _, k := range c.knownNodes() {
		heard[k.Member] = k.Feature
	}
	for _, p := range c.peers() {
		heard[p.Node] = p.Info.Feature
	}
	level := FeatureLevel
	for _, m := range c.status().Members {
		level = min(level, max(1, heard[m.ID]))
	}
	c.readable.Store(int32(level)) //nolint:gosec // a small number
}

// handOver gives leadership away, if this node has it and there is somebody else, once attempts at jobs have come to their end, for which
// it waits so long at most. When somebody is at it already it waits for him.
func (c *cell) handOver(ctx context.Context, most time.Duration) {
	select {
	case c.handing <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-c.handing }()
	log := c.log.Load()
	if log == nil {
		return
	}
	st := (*log).Status()
	others := slices.ContainsFunc(st.Members, func(m raftlog.Member) bool { return m.Voter && m.ID != c.self.Member })
	if !st.IsLeader || !others {
		return
	}
	c.restJobs(ctx, most)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := (*log).TransferLeadership(ctx, ""); err != nil && (*log).Status().IsLeader {
		c.logger.Warn("leadership could not be handed over: writes wait for an election", "error", err)
	}
}
