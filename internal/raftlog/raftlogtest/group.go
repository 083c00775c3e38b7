package raftlogtest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// Group is a replicated log of several members in one process: the twin of the real one for simulations of
// a cell. It keeps the disks of its members, and their wires, which delay and part as they are told. It
// uses no clock but timers, no chance and no system call, and so works in a synctest bubble, where the same
// calls at the same times give the same run.
//
// What is simulated is what those above the log can tell: terms, logs that differ at their ends until a
// leader makes them equal, commits by a quorum, followers that hear of them later, requests that are
// forwarded, arrive late or lose their answers, leaders that go on believing in themselves, snapshots for those far
// behind. What is not: votes take no time, and a change of members is known to all at once.
type Group struct {
	o GroupOptions

	mu      sync.Mutex // guards everything of the group, its disks and replicas
	term    uint64     // newest there was
	members []raftlog.Member
	disks   map[petrel.NodeID]*disk
	up      map[petrel.NodeID]*Replica
	wires   map[[2]petrel.NodeID]*wire // one way
	chosen  []petrel.Record            // what was committed, by whichever leader
	marks   []petrel.Hash              // the end of the chain at every committed mark
}

// GroupOptions of NewGroup.
type GroupOptions struct {
	// Election is how long a member without a leader waits until it stands for election; each waits a tenth longer than
	// the one opened before it. Default 20 ms.
	Election time.Duration
	// Lease is how long a leader without a quorum goes on believing in itself. Default 20 ms.
	Lease time.Duration
}

// Wire is how messages go between two members, both ways. They never overtake each other.
type Wire struct {
	Delay time.Duration
	Cut   bool
}

type wire struct {
	Wire
	last time.Time // when the newest message arrives
}

// entry stands at one mark of the log: a batch, or nothing but the mark.
type entry struct {
	term uint64
	recs []petrel.Record
	end  chain // after it
}

type chain struct {
	index uint64
	hash  petrel.Hash
}

// disk is what a member keeps: it outlives its replicas.
type disk struct {
	number   int // in the order of first opening
	term     uint64
	base     uint64 // mark of the last entry that was forgotten
	baseTerm uint64
	baseEnd  chain
	entries  []entry // base+1 …
	snap     []byte  // of base
}

func (d *disk) last() uint64 { return d.base + uint64(len(d.entries)) }

func (d *disk) at(mark uint64) entry {
	if mark == d.base {
		return entry{term: d.baseTerm, end: d.baseEnd}
	}
	return d.entries[mark-d.base-1]
}

func (d *disk) tail() entry { return d.at(d.last()) }

// NewGroup returns a group without members: the first to be opened founds it.
func NewGroup(o GroupOptions) *Group {
	if o.Election <= 0 {
		o.Election = 20 * time.Millisecond
	}
	if o.Lease <= 0 {
		o.Lease = 20 * time.Millisecond
	}
	return &Group{
		o: o, disks: map[petrel.NodeID]*disk{}, up: map[petrel.NodeID]*Replica{}, wires: map[[2]petrel.NodeID]*wire{},
	}
}

// Connect sets how messages go between two members, from now on. What waits for an answer over a wire that
// is cut ends as unknown; a request that is on its way still arrives.
func (g *Group) Connect(a, b petrel.NodeID, w Wire) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, way := range [][2]petrel.NodeID{{a, b}, {b, a}} {
		g.wire(way[0], way[1]).Wire = w
	}
	if w.Cut {
		for _, r := range g.running() {
			r.unanswered(func(c *call) bool { return c.to == a && r.id() == b || c.to == b && r.id() == a })
		}
	}
	g.changed()
}

// Elect makes a member the leader, if a quorum would vote for it.
func (g *Group) Elect(id petrel.NodeID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.up[id]
	return r != nil && g.elect(r)
}

// Committed returns every record that was committed, in order: the truth that replicas are compared with.
func (g *Group) Committed() []petrel.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.chosen)
}

// Leader returns who leads in the newest term; "" when nobody does.
func (g *Group) Leader() petrel.NodeID {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l := g.leader(); l != nil {
		return l.id()
	}
	return ""
}

// All below is called with mu held.

func (g *Group) leader() (newest *Replica) {
	for _, r := range g.running() {
		if r.leading && (newest == nil || r.d.term > newest.d.term) {
			newest = r
		}
	}
	return newest
}

// running returns the open replicas, always in the same order.
func (g *Group) running() []*Replica {
	var all []*Replica
	for _, r := range g.up {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *Replica) int { return cmp.Compare(a.d.number, b.d.number) })
	return all
}

func (g *Group) wire(from, to petrel.NodeID) *wire {
	way := [2]petrel.NodeID{from, to}
	if g.wires[way] == nil {
		g.wires[way] = &wire{}
	}
	return g.wires[way]
}

func (g *Group) linked(a, b *Replica) bool {
	return a == b || g.up[a.id()] == a && g.up[b.id()] == b && !g.wire(a.id(), b.id()).Cut
}

// send calls fn when a message from one replica has arrived at the other, with mu held. It is lost when the wire is cut at either
// end of its way, unless it is late: then only when it cannot leave.
func (g *Group) send(from, to *Replica, late bool, fn func()) {
	w := g.wire(from.id(), to.id())
	if !g.linked(from, to) {
		return
	}
	if w.Delay == 0 {
		fn()
		return
	}
	now := time.Now()
	at := now.Add(w.Delay)
	if !at.After(w.last) {
		at = w.last.Add(1)
	}
	w.last = at
	time.AfterFunc(at.Sub(now), func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.up[to.id()] == to && (late || g.linked(from, to)) {
			fn()
		}
	})
}

func (g *Group) voters() (n int) {
	for _, m := range g.members {
		if m.Voter {
			n++
		}
	}
	return n
}

func (g *Group) isVoter(r *Replica) bool {
	return slices.ContainsFunc(g.members, func(m raftlog.Member) bool { return m.ID == r.id() && m.Voter })
}

// electorate returns the voters that r reaches, itself among them.
func (g *Group) electorate(r *Replica) (all []*Replica) {
	for _, v := range g.running() {
		if g.isVoter(v) && g.linked(r, v) {
			all = append(all, v)
		}
	}
	return all
}

func (g *Group) hasQuorum(r *Replica) bool { return 2*len(g.electorate(r)) > g.voters() }

func (g *Group) elect(r *Replica) bool {
	all, votes := g.electorate(r), 0
	mine := r.d.tail().term
	for _, v := range all {
		if theirs := v.d.tail().term; theirs < mine || theirs == mine && v.d.last() <= r.d.last() {
			votes++
		}
	}
	if !g.isVoter(r) || 2*votes <= g.voters() {
		return false
	}
	g.term++
	for _, v := range all {
		v.follow(g.term, "")
	}
	r.lead()
	return true
}

// changed looks after everybody once wires, members or roles have changed: leaders send anew what may have been
// lost, and whoever misses a leader, or a quorum, begins to wait.
func (g *Group) changed() {
	for _, r := range g.running() {
		if r.leading {
			r.sync()
		}
	}
	for _, r := range g.running() {
		r.watch()
	}
}

// commit notes what became final, and that it stays so.
func (g *Group) commit(d *disk, after, to uint64) {
	for mark := after + 1; mark <= to; mark++ {
		e := d.at(mark)
		if mark <= uint64(len(g.marks)) {
			if g.marks[mark-1] != e.end.hash {
				panic(fmt.Sprintf("raftlogtest: mark %d was committed with another content: the simulated group is broken", mark))
			}
			continue
		}
		g.marks = append(g.marks, e.end.hash)
		g.chosen = append(g.chosen, e.recs...)
	}
}

// message is what a leader sends: all it has, so that whoever gets it needs nothing else.
type message struct {
	term   uint64
	disk   disk // entries are never changed in place
	commit uint64
}

// progress is what a leader knows of another member. A new one makes answers to the old one mean nothing.
type progress struct {
	match, told uint64
	sent        bool // an answer is due
}

// sync sends everybody what they miss, as if nothing were on its way.
func (r *Replica) sync() {
	r.progress = map[petrel.NodeID]*progress{}
	for _, m := range r.g.members {
		if m.ID != r.id() {
			r.progress[m.ID] = &progress{}
		}
	}
	r.advance()
	r.replicate()
}

func (r *Replica) replicate() {
	for _, m := range r.g.members {
		p, to := r.progress[m.ID], r.g.up[m.ID]
		if p == nil || to == nil || p.sent || p.match == r.d.last() && p.told == r.commit {
			continue
		}
		p.sent = true
		msg := message{term: r.d.term, disk: *r.d, commit: r.commit}
		r.g.send(r, to, false, func() {
			match, term := to.receive(r.id(), msg)
			r.g.send(to, r, false, func() { r.acknowledged(p, msg, match, term) })
		})
	}
}

func (r *Replica) acknowledged(p *progress, msg message, match, term uint64) {
	switch {
	case term > r.d.term:
		r.follow(term, "")
		r.g.changed()
	case r.leading && r.d.term == msg.term && slices.Contains(valuesOf(r.progress), p):
		*p = progress{match: match, told: msg.commit}
		r.advance()
		r.replicate()
	}
}

func valuesOf(m map[petrel.NodeID]*progress) (all []*progress) {
	for _, p := range m {
		all = append(all, p)
	}
	return all
}

// receive takes what a leader sent, and returns how far the log is equal to the leader's, and the term.
func (r *Replica) receive(from petrel.NodeID, msg message) (match, term uint64) {
	if msg.term < r.d.term {
		return 0, r.d.term
	}
	r.follow(msg.term, from)
	theirs := msg.disk
	if theirs.base > r.d.last() || theirs.base > r.d.base && r.d.at(theirs.base).term != theirs.baseTerm {
		// Far behind, or with another end where they have a snapshot: what lies between is only in that.
		theirs.number, theirs.entries = r.d.number, slices.Clone(theirs.entries)
		*r.d = theirs
	} else {
		for mark := max(theirs.base, r.d.base) + 1; mark <= theirs.last(); mark++ {
			if mark <= r.d.last() && r.d.at(mark).term == theirs.at(mark).term {
				continue
			}
			if mark <= r.commit {
				panic("raftlogtest: a committed entry is taken back: the simulated group is broken")
			}
			keep := mark - r.d.base - 1 // a message on its way may share what is cut off: it is not written over
			r.d.entries = append(r.d.entries[:keep:keep], theirs.at(mark))
		}
	}
	r.commit = max(r.commit, r.d.base, min(msg.commit, theirs.last()))
	r.notify()
	r.watch()
	return theirs.last(), r.d.term
}

// advance commits what a quorum has, as far as it is of this term.
func (r *Replica) advance() {
	have := []uint64{}
	for _, m := range r.g.members {
		switch p := r.progress[m.ID]; {
		case !m.Voter:
		case m.ID == r.id():
			have = append(have, r.d.last())
		case p == nil:
			have = append(have, 0)
		default:
			have = append(have, p.match)
		}
	}
	slices.Sort(have)
	if len(have) == 0 {
		return
	}
	to := have[(len(have)-1)/2]
	if to <= r.commit || r.d.at(to).term != r.d.term {
		return
	}
	r.g.commit(r.d, r.commit, to)
	r.commit = to
	r.settle(func(p *proposal) bool { return p.mark <= to }, nil)
	r.notify()
}

// lead begins a term, with an entry of its own: with it, everything before it is committed.
func (r *Replica) lead() {
	r.leading, r.leader, r.progress = true, r.id(), nil
	r.propose(nil, func(error) {})
	r.g.changed()
}

// follow enters a term, or stays in it. A leader that must is told unknown by everything it had not committed.
func (r *Replica) follow(term uint64, leader petrel.NodeID) {
	if term > r.d.term {
		r.d.term = term
		r.stepDown()
	}
	if !r.leading {
		r.leader = leader
	}
}

func (r *Replica) stepDown() {
	r.leading, r.leader = false, ""
	r.settle(func(*proposal) bool { return true }, errLostLeadership)
}

var errLostLeadership = errors.New("leadership was lost")

// watch waits, with a timer, where a leader is missed or a leader misses its quorum.
func (r *Replica) watch() {
	wait := time.Duration(0)
	switch {
	case r.leading && !r.g.hasQuorum(r):
		wait = r.g.o.Lease
	case !r.leading && r.g.isVoter(r) && !r.led():
		wait = r.g.o.Election + time.Duration(r.d.number)*(r.g.o.Election/10+1)
	}
	if wait == 0 {
		r.stopTimer()
		return
	}
	if r.timer != nil {
		return
	}
	r.timer = time.AfterFunc(wait, func() {
		r.g.mu.Lock()
		defer r.g.mu.Unlock()
		r.timer = nil
		switch {
		case r.g.up[r.id()] != r:
		case r.leading && !r.g.hasQuorum(r):
			r.stepDown()
			r.g.changed()
		case !r.leading && !r.led():
			r.leader = ""
			if !r.g.elect(r) && r.g.hasQuorum(r) {
				r.watch()
			}
		}
	})
}

func (r *Replica) stopTimer() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// led says whether r follows a leader that it can hear.
func (r *Replica) led() bool {
	l := r.g.up[r.leader]
	return l != nil && l.leading && l.d.term == r.d.term && r.g.linked(r, l)
}

// proposal is one entry of a leader that is not committed yet.
type proposal struct {
	mark uint64
	done func(error)
}

func (r *Replica) propose(payloads [][]byte, done func(err error)) (first, mark uint64) {
	e := entry{term: r.d.term, end: r.d.tail().end}
	first = e.end.index + 1
	for _, p := range payloads {
		e.end.index++
		e.end.hash = follow(e.end.hash, e.end.index, p)
		e.recs = append(e.recs, petrel.Record{Index: e.end.index, Hash: e.end.hash, Payload: p})
	}
	r.d.entries = append(r.d.entries, e)
	mark = r.d.last()
	r.proposals = append(r.proposals, &proposal{mark, done})
	r.advance()
	r.replicate()
	return first, mark
}

func (r *Replica) settle(which func(*proposal) bool, err error) {
	var left, settled []*proposal
	for _, p := range r.proposals {
		if which(p) {
			settled = append(settled, p)
		} else {
			left = append(left, p)
		}
	}
	r.proposals = left
	for _, p := range settled {
		p.done(err)
	}
}
