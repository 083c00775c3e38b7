package pusher

import (
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// The hub's wires of Pusher's protocol: the indices of their encoders.
const (
	wireSocket   = 3
	wireHTTP     = 4 // the fallbacks
	wireDeflated = 5 // sockets that read compressed frames
)

// wireOf is the hub's wire of a connection.
func wireOf(c *conn.Conn) int {
	switch {
	case c.Wire() == conn.WireXHR:
		return wireHTTP
	case c.Deflates():
		return wireDeflated
	}
	return wireSocket
}

// frameFor puts a payload into the framing of a connection's wire.
func frameFor(c *conn.Conn, payload []byte) []byte {
	if c.Wire() == conn.WireXHR {
		return conn.XHRFrame(payload)
	}
	return conn.TextFrame(payload)
}

// typeEvent is the type of a publication whose Data is the whole frame of an event, whatever the event's name.
const typeEvent = "pusher.event"

// HubOptions completes options that have the encoders of Petrel's own wires with those of Pusher's.
func HubOptions(o hub.Options) hub.Options {
	if len(o.Encoders) != wireSocket {
		panic("pusher: the wires before ours are three") // a mistake of whoever assembles the node
	}
	for len(o.Deltas) < wireSocket {
		o.Deltas = append(o.Deltas, nil) // nobody follows the members of an exact channel there
	}
	for _, frame := range []func([]byte) []byte{conn.TextFrame, conn.XHRFrame, conn.DeflatedFrame} {
		o.Encoders = append(o.Encoders, func(p *petrel.Publication) []byte { return frame(payloadOf(p)) })
		o.Rosters = append(o.Rosters, func(r *hub.Roster) []byte { return frame(rosterPayload(r)) })
		o.Deltas = append(o.Deltas, func(d *hub.Delta) []byte { return frame(deltaPayload(d)) })
	}
	return o
}

// payloadOf is the frame that clients read, without the framing of a wire.
func payloadOf(p *petrel.Publication) []byte {
	if p.Type == hub.TypeCount {
		return internal("subscription_count", p.Channel.Name, p.Data)
	}
	return p.Data
}
