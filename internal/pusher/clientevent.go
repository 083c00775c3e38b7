package pusher

import (
	"errors"
	"time"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// clientEvent hands a client's event on to the other subscribers of its channel. What is wrong with one is told in pusher:error, never by a close
// code: pusher-js would stay away for good.
func (c *session) clientEvent(f *clientFrame) error {
	set := c.settings()
	switch {
	case !set.ClientEvents:
		return refuse(errClientEvent, "Client events are switched off for this app.")
	case len(f.Event) > set.MaxEventName:
		return refuse(errClientEvent, "The event name is longer than %d characters.", set.MaxEventName)
	case hasControl(f.Event):
		return refuse(errClientEvent, "The name of an event may have no control characters.")
	}
	c.mu.Lock()
	s := c.subs.of(f.Channel)
	c.mu.Unlock()
	if s == nil {
		return refuse(errClientEvent, "Client events need a subscription: this connection has none to %.210q.", f.Channel)
	}
	if form, err := channel.Parse(f.Channel); err != nil || !form.ClientEvents() {
		return refuse(errClientEvent, "Client events are for private and presence channels; %s is another kind.", f.Channel)
	}
	if len(f.Data) == 0 {
		f.Data = []byte("null")
	}
	data := asString(f.Data)
	if stringLen(data) > set.MaxEventBytes {
		return refuse(errClientEvent, "The event's data is larger than %d bytes.", set.MaxEventBytes)
	}
	if ok, _ := c.events.Take(limit.Rate{PerSecond: float64(set.MaxClientEvents), Burst: set.MaxClientEvents}, time.Now(), 1); !ok {
		return refuse(errClientEvent, "The event was not sent: a connection may send %d client events in a second.", set.MaxClientEvents)
	}
	if err := c.s.opt.Gateway.Charge(c.app, 1); err != nil {
		return refuse(errClientEvent, "The event was not sent: the app sends more than its rate.")
	}
	user := string(s.Member())
	// First, because it may refuse the event: what no webhook can be told is delivered to nobody.
	if err := c.s.opt.OnClientEvent(ClientEvent{App: c.app, Channel: f.Channel, Event: f.Event, Data: append([]byte(nil), f.Data...), SocketID: c.conn.ID(), User: user}); err != nil {
		return err
	}
	return c.s.announce(&petrel.Publication{
		Channel: petrel.PusherChannel(c.app, f.Channel), Type: typeEvent, Except: c.conn.ID(), User: s.Member(), Client: true,
		Data: appendEvent(make([]byte, 0, 96+len(f.Event)+len(f.Channel)+len(data)+len(user)), f.Event, f.Channel, data, user),
	}, "client")
}

// announce hands an event to the hubs. An error means that other nodes were not told.
func (s *Server) announce(p *petrel.Publication, from string) error {
	p.At = s.opt.Now().UTC().Truncate(time.Millisecond)
	s.metrics.events.WithLabelValues(from).Inc()
	err := s.opt.Hub.Announce(p, nil)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hub.ErrTooLarge):
		return petrel.Errorf(petrel.CodeTooLarge, "The event takes more than %d bytes once its data is written as a string of JSON: send less, or fewer characters that need escaping.", hub.MaxEphemeral)
	}
	s.metrics.notTold.Inc()
	return petrel.Errorf(petrel.CodeBusy, "The other nodes of the cell could not be told; subscribers on this one were.").Because(err).After(time.Second)
}
