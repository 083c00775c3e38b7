package api

import (
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Types of the events that tell who is typing.
const (
	typingStart = "typing.start"
	typingStop  = "typing.stop"
)

const (
	// typingFor is how long a client's word holds that its user is typing.
	typingFor = 6 * time.Second
	// typingAgain is how often others are told of somebody who goes on typing: who came meanwhile hears of it, and who lost the first too.
	typingAgain = 3 * time.Second
)

// typists knows who is typing on this node, so that a thousand keystrokes are one start and one stop. Of one user's connections the
// last one that stops counts. When the node dies nobody says stop: a listener forgets a start that is not repeated.
type typists struct {
	announce func(p *petrel.Publication, except hub.Subscriber) error

	mu  sync.Mutex // guards what follows, and the order of what is announced. Lock order: a session's before this, this before the hub's
	all map[typist]*typing
}

type typist struct {
	channel petrel.Channel
	user    petrel.UserID
}

type typing struct {
	until map[hub.Subscriber]time.Time // by the connection on which it happens
	told  time.Time
	timer *time.Timer
}

func newTypists(announce func(*petrel.Publication, hub.Subscriber) error) *typists {
	return &typists{announce: announce, all: map[typist]*typing{}}
}

// start notes that who is typing on a connection, and tells the others if they do not know.
func (t *typists) start(who typist, on hub.Subscriber) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	s := t.all[who]
	if s == nil {
		s = &typing{until: map[hub.Subscriber]time.Time{}}
		s.timer = time.AfterFunc(typingFor, func() { t.expire(who, s) })
		t.all[who] = s
	}
	s.until[on] = now.Add(typingFor)
	if now.Sub(s.told) >= typingAgain {
		s.told = now
		t.tell(who, typingStart, on)
	}
}

// stop notes that who is not typing on a connection any more.
func (t *typists) stop(who typist, on hub.Subscriber) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.all[who]
	if s == nil {
		return
	}
	delete(s.until, on)
	t.endIfNobody(who, s, on)
}

// expire forgets connections that did not say it again.
func (t *typists) expire(who typist, s *typing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[who] != s {
		return
	}
	now, next := time.Now(), typingFor
	var last hub.Subscriber
	for on, until := range s.until {
		if !now.Before(until) {
			delete(s.until, on)
			last = on
			continue
		}
		next = min(next, until.Sub(now))
	}
	if !t.endIfNobody(who, s, last) {
		s.timer.Reset(next)
	}
}

func (t *typists) endIfNobody(who typist, s *typing, last hub.Subscriber) bool {
	if len(s.until) > 0 {
		return false
	}
	s.timer.Stop()
	delete(t.all, who)
	t.tell(who, typingStop, last)
	return true
}

func (t *typists) tell(who typist, kind string, except hub.Subscriber) {
	// An error means that other nodes were not told, which the hub counts: what is ephemeral may be lost.
	_ = t.announce(&petrel.Publication{
		Channel: who.channel, Type: kind, At: time.Now().UTC().Truncate(time.Millisecond), Data: []byte(`{"user":"` + string(who.user) + `"}`),
	}, except)
}

// close ends every timer.
func (t *typists) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.all {
		s.timer.Stop()
	}
	clear(t.all)
}

// typing is the frame of that name. Its right is that of the subscription, which is checked with every page of history: whoever may read a room
// may post in it (TestWhoReadsMayPost), except the app's own backend, which is nobody.
func (c *session) typing(f frame) error {
	actor := c.cred.Actor
	if actor.User == "" {
		return petrel.Errorf(petrel.CodeInvalidField, "Only a user types: connect with a user's token, or name one in Petrel-User.")
	}
	if ok, wait := c.typed.Take(limit.Rate{PerSecond: 5, Burst: 20}, time.Now(), 1); !ok {
		return petrel.Errorf(petrel.CodeRateLimited, "Typing was told too often: once in %d seconds is enough.", int(typingAgain.Seconds())).After(wait)
	}
	if !c.types(typist{petrel.RoomChannel(actor.App, f.room), actor.User}, f) {
		return petrel.Errorf(petrel.CodeInvalidField, "Subscribe to the room first: typing is told to those who follow it.")
	}
	if f.id != "" {
		c.send(`{"op":"ok"%s,"room":%q}`, f.idField(), f.room)
	}
	return nil
}

// types hands it on, unless the connection does not follow the room. The lock is held throughout, so that nothing begins after the end of
// the connection or the subscription has ended it.
func (c *session) types(who typist, f frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.subs[f.room] == nil {
		return false
	}
	if f.active {
		c.s.typists.start(who, c.conn)
	} else {
		c.s.typists.stop(who, c.conn)
	}
	return true
}

// quits ends what this connection types in a room that it follows no more.
func (c *session) quits(room petrel.RoomID) {
	actor := c.credential().Actor
	c.s.typists.stop(typist{petrel.RoomChannel(actor.App, room), actor.User}, c.conn)
}
