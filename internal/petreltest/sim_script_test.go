package petreltest

import (
	"fmt"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// The script draws every choice from the seed, on the bubble's main goroutine, one step at a time: it acts, lets everything come to rest, and
// lets a little time pass. Times are whole nanoseconds drawn by chance, so that two things hardly ever happen at once and
// the scheduler has nothing to decide.

// chance says yes p times in a hundred.
func (s *sim) chance(p int) bool { return s.rand.IntN(100) < p }

func (s *sim) pause(upTo time.Duration) {
	time.Sleep(1 + time.Duration(s.rand.Int64N(int64(upTo))))
	synctest.Wait()
}

func pick[T any](s *sim, from []T) (v T) {
	if len(from) == 0 {
		return v
	}
	return from[s.rand.IntN(len(from))]
}

// server is a node that serves clients; nil when none does.
func (s *sim) server() *simNode {
	var ready []*simNode
	for _, n := range s.nodes {
		if n.ready.Load() {
			ready = append(ready, n)
		}
	}
	return pick(s, ready)
}

// step does one thing.
func (s *sim) step() {
	switch k := s.rand.IntN(100); {
	case k < 48:
		s.act()
	case k < 56:
		s.repeat()
	case k < 66:
		s.move()
	case k < 76:
		if c := pick(s, s.clients); s.chance(75) {
			c.subscribe(s.room())
		} else {
			c.leaveRoom(s.room())
		}
	case k < 80:
		s.typing()
	case k < 83:
		s.storm()
	case k < 89:
		s.relief()
	default:
		s.trouble()
	}
	synctest.Wait()
	if n := pick(s, s.nodes); n.up && s.chance(5) {
		s.kept[n.number] = n.snapshotBytes()
	}
	if s.chance(1) {
		time.Sleep(12 * time.Second) // longer than a command waits
	}
	s.pause(pick(s, []time.Duration{time.Millisecond, 5 * time.Millisecond, 30 * time.Millisecond, 200 * time.Millisecond}))
}

func (s *sim) room() petrel.RoomID { return petrel.RoomID(fmt.Sprint("r", s.rand.IntN(simRooms))) }

const simRooms = 5

func simKind(s *sim) event.RoomKind {
	return pick(s, []event.RoomKind{event.RoomOpen, event.RoomOpen, event.RoomOpen, event.RoomPrivate})
}

// settle makes the rooms, and has everybody subscribe to some.
func (s *sim) settle() {
	for i := range simRooms {
		c := &simCommand{number: len(s.commands) + 1, client: pick(s, s.clients), room: petrel.RoomID(fmt.Sprint("r", i))}
		c.id = petrel.CommandID(fmt.Sprint("c", c.number))
		c.cmd = chat.CreateRoom{ID: c.room, Kind: simKind(s), Members: []chat.Member{{User: c.client.user}, {User: pick(s, s.clients).user}}}
		s.commands = append(s.commands, c)
		c.send(pick(s, s.nodes), false)
		s.pause(5 * time.Millisecond)
	}
	for _, c := range s.clients {
		c.connect(pick(s, s.nodes))
		for range 3 {
			c.subscribe(s.room())
		}
		s.pause(5 * time.Millisecond)
	}
}

// relief ends some of the trouble.
func (s *sim) relief() {
	for _, n := range s.nodes {
		if !n.up {
			s.restart(n)
			return
		}
	}
	clear(s.cut)
	s.note("all is healed")
	s.rewire()
}

// act sends a new command, or a few at once.
func (s *sim) act() {
	for range 1 + s.rand.IntN(3)*s.rand.IntN(2) {
		n := s.server()
		if n == nil {
			return
		}
		c := s.command()
		c.send(n, s.chance(5))
	}
}

// command makes up what a client wants.
func (s *sim) command() *simCommand {
	c := &simCommand{number: len(s.commands) + 1, client: pick(s, s.clients), room: s.room()}
	c.id = petrel.CommandID(fmt.Sprint("c", c.number))
	other := pick(s, s.clients).user
	switch k := s.rand.IntN(100); {
	case k < 5:
		kind := simKind(s)
		c.cmd = chat.CreateRoom{ID: c.room, Kind: kind, Name: fmt.Sprint("room ", c.number), Members: []chat.Member{{User: other}, {User: pick(s, s.clients).user, Role: event.RoleModerator}}}
		if m := c.cmd.(chat.CreateRoom).Members; m[0].User == m[1].User {
			c.cmd = chat.CreateRoom{ID: c.room, Kind: kind, Members: m[:1]}
		}
	case k < 14:
		c.room = petrel.RoomID(fmt.Sprint("d", c.number))
		c.cmd = chat.CreateRoom{ID: c.room, Kind: event.RoomDirect, Members: []chat.Member{{User: other}}}
		if other == c.client.user {
			c.cmd = chat.PutMember{Room: s.room(), User: other}
		}
	case k < 56:
		c.cmd = chat.PostMessage{Room: c.room, Text: fmt.Sprint("text ", c.number)}
	case k < 64:
		c.cmd = chat.PutMember{Room: c.room, User: c.client.user}
	case k < 70:
		c.cmd = chat.RemoveMember{Room: c.room, User: c.client.user}
	case k < 76:
		c.cmd = chat.PutMember{Room: c.room, User: other, Role: pick(s, []event.Role{0, event.RoleMember, event.RoleModerator, event.RoleOwner})}
	case k < 79:
		c.cmd = chat.RemoveMember{Room: c.room, User: other}
	case k < 84:
		name := fmt.Sprint("name ", c.number)
		c.cmd = chat.UpdateRoom{Room: c.room, Name: &name}
	case k < 93:
		text := fmt.Sprint("edit ", c.number)
		edit := chat.EditMessage{Room: c.room, ID: "none", Text: &text}
		if post := s.post(); post != nil {
			c.client, c.room = post.client, post.room
			edit.Room, edit.ID = post.room, petrel.MessageID(post.id)
		}
		c.cmd = edit
	case k < 99:
		gone := chat.DeleteMessage{Room: c.room, ID: "none"}
		if post := s.post(); post != nil {
			c.room = post.room
			gone.Room, gone.ID = post.room, petrel.MessageID(post.id)
		}
		c.cmd = gone
	default:
		c.cmd = chat.DeleteRoom{Room: c.room}
	}
	s.commands = append(s.commands, c)
	return c
}

// post is some post that was made.
func (s *sim) post() *simCommand {
	var posts []*simCommand
	for _, c := range s.commands {
		if _, ok := c.cmd.(chat.PostMessage); ok {
			posts = append(posts, c)
		}
	}
	return pick(s, posts)
}

// storm has many change the same room at one moment, by all nodes.
func (s *sim) storm() {
	room := s.room()
	for range 3 + s.rand.IntN(6) {
		n := s.server()
		if n == nil {
			return
		}
		c := &simCommand{number: len(s.commands) + 1, client: pick(s, s.clients), room: room}
		c.id = petrel.CommandID(fmt.Sprint("c", c.number))
		name := fmt.Sprint("storm ", c.number)
		c.cmd = pick(s, []command.Command{
			chat.UpdateRoom{Room: room, Name: &name},
			chat.PostMessage{Room: room, Text: name},
			chat.PutMember{Room: room, User: c.client.user},
			chat.RemoveMember{Room: room, User: c.client.user},
		})
		s.commands = append(s.commands, c)
		c.send(n, false)
	}
}

// repeat sends a command again under its id, whatever became of it, or another one under the same id.
func (s *sim) repeat() {
	c, n := pick(s, s.commands), s.server()
	if c == nil || n == nil {
		return
	}
	if post, ok := c.cmd.(chat.PostMessage); ok && s.chance(15) {
		post.Text += " with another text"
		c = &simCommand{number: len(s.commands) + 1, client: c.client, id: c.id, cmd: command.Command(post), room: c.room}
		s.commands = append(s.commands, c)
	}
	c.send(n, false)
}

// move connects a client, or takes it to another node, or makes it go away.
func (s *sim) move() {
	c := pick(s, s.clients)
	if s.chance(20) {
		c.lose("goes away")
		return
	}
	if n := s.server(); n != nil {
		c.delay = pick(s, []time.Duration{time.Millisecond, time.Millisecond, 20 * time.Millisecond, 2 * time.Second}) + time.Duration(s.rand.Int64N(1e6))
		c.connect(n)
	}
}

func (s *sim) typing() {
	n, c := s.server(), pick(s, s.clients)
	if n == nil {
		return
	}
	s.typed++
	_ = n.hub.Announce(&petrel.Publication{
		Channel: petrel.RoomChannel(simApp, s.room()), Type: simTyping, At: time.Now(), Data: fmt.Appendf(nil, "%s@%s.%d %d", c.user, n.id, n.life, s.typed),
	}, nil)
}

// trouble is what befalls the cell.
func (s *sim) trouble() {
	n := pick(s, s.nodes)
	switch k := s.rand.IntN(100); {
	case k < 22:
		s.restart(n)
	case k < 36:
		if other := pick(s, s.nodes); other != n {
			s.cut[wireOf(n, other)] = !s.cut[wireOf(n, other)]
			s.note("%s and %s are cut: %v", n.id, other.id, s.cut[wireOf(n, other)])
			s.rewire()
		}
	case k < 44:
		for _, other := range s.nodes {
			if other != n {
				s.cut[wireOf(n, other)] = true
			}
		}
		s.note("%s is cut off", n.id)
		s.rewire()
	case k < 54:
		clear(s.cut)
		s.note("all is healed")
		s.rewire()
	case k < 62:
		s.note("%s is elected: %v", n.id, s.group.Elect(n.id))
	case k < 70:
		lag := pick(s, []time.Duration{0, 0, 50 * time.Millisecond, 400 * time.Millisecond})
		s.setLag(n, lag)
	case k < 82:
		s.mu.Lock()
		n.fault = pick(s, []raftlog.Fault{raftlog.FaultNotAppended, raftlog.FaultUnknownStored, raftlog.FaultUnknownStored, raftlog.FaultUnknownLost, raftlog.FaultDiskFull})
		s.noteLocked("%s will meet fault %d", n.id, n.fault)
		s.mu.Unlock()
	case k < 91:
		if n.up {
			s.note("%s takes a snapshot", n.id)
			log, ctx := n.log, n.ctx
			s.running.Go(func() { _ = log.TakeSnapshot(ctx) })
		}
	case k < 95:
		s.replace(n)
	default:
		s.slow = pick(s, []time.Duration{0, 0, 2 * time.Millisecond, 20 * time.Millisecond})
		s.loss = pick(s, []float64{0, 0, 0.05, 0.3})
		s.note("wires take %v more, the bus loses %v", s.slow, s.loss)
		s.rewire()
	}
}

func (s *sim) setLag(n *simNode, lag time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.lag = lag
	s.noteLocked("%s folds %v late", n.id, lag)
}

// restart stops a node, in order or not, or starts one that is down: with its projection as it was, as it was some time ago, or without.
func (s *sim) restart(n *simNode) {
	if n.up {
		n.stop(s.chance(70))
		return
	}
	switch k := s.rand.IntN(100); {
	case k < 20:
		s.note("%s lost its projection", n.id)
		n.restore(nil)
	case k < 40 && s.kept[n.number] != nil:
		s.note("%s has an old projection", n.id)
		n.restore(s.kept[n.number])
	}
	s.wake(n)
}

// replace makes a node that lost its disks a new member of its own name, where the others can agree on that.
func (s *sim) replace(n *simNode) {
	var leader *simNode
	for _, other := range s.nodes {
		if other != n && (!other.ready.Load() || s.cut[wireOf(n, other)]) {
			return
		}
		if other != n && other.id == s.group.Leader() {
			leader = other
		}
	}
	if leader == nil {
		return
	}
	if n.up {
		n.stop(true)
	}
	if leader.log.Remove(leader.ctx, n.id) != nil {
		return // parted from the third: n wakes as it was
	}
	s.joined++
	s.note("%s lost its disks and joins as m%d", n.id, s.joined)
	n.id = petrel.NodeID(fmt.Sprint("m", s.joined))
	n.restore(nil)
	clear(s.wires)
	delete(s.kept, n.number)
	s.wake(n)
	s.must(leader.log.AddVoter(leader.ctx, n.id, string(n.id)))
}

func (s *sim) wake(n *simNode) {
	s.rewire() // first, or chance would decide whether its first words are heard
	n.start()
}

func wireOf(a, b *simNode) [2]int { return [2]int{min(a.number, b.number), max(a.number, b.number)} }

// rewire makes log and bus as the script wants them. Every wire has a delay of its own.
func (s *sim) rewire() { s.reach(nil) }

// reach is rewire with one node that nobody reaches.
func (s *sim) reach(without *simNode) {
	for i, a := range s.nodes {
		for _, b := range s.nodes[i+1:] {
			cut := s.cut[wireOf(a, b)] || a == without || b == without
			delay := s.slow + time.Duration(100_003+17_011*(a.number+3*b.number))*time.Nanosecond
			w := raftlogtest.Wire{Delay: delay, Cut: cut}
			if s.wires[wireOf(a, b)] != w {
				s.wires[wireOf(a, b)] = w
				s.group.Connect(a.id, b.id, w)
			}
			for k, way := range [][2]petrel.NodeID{{a.id, b.id}, {b.id, a.id}} {
				s.net.Shape(way[0], way[1], bus.Link{Loss: s.loss, Delay: delay + time.Duration(7_001*(k+1)), Jitter: 50 * time.Microsecond, Cut: cut})
			}
		}
	}
}
