package pusher

import (
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// The hub's wires of Pusher's protocol: the indices of their encoders.
const (
	wireSocket = 2
	wireHTTP   = 3 // the fallbacks
)

// wireOf is the hub's wire of a connection.
func wireOf(c *conn.Conn) int {
	if c.Wire() == conn.WireXHR {
		return wireHTTP
	}
	return wireSocket
}

// typeEvent is the type of a publication whose Data is the whole frame of an event, whatever the event's name.
const typeEvent = "pusher.event"

// HubOptions completes options that have the encoders of Petrel's own wires with those of Pusher's.
func HubOptions(o hub.Options) hub.Options {
	if len(o.Encoders) != wireSocket {
		panic("pusher: the wires before ours are two") // a mistake of whoever assembles the node
	}
	o.Encoders = append(o.Encoders, encodeSocket, encodeHTTP)
	o.Rosters = append(o.Rosters, rosterSocket, rosterHTTP)
	return o
}

func encodeSocket(p *petrel.Publication) []byte { return conn.TextFrame(payloadOf(p)) }

// payloadOf is the frame that clients read, without the framing of a wire.
func payloadOf(p *petrel.Publication) []byte { return p.Data }

func rosterSocket(*hub.Roster) []byte { return conn.TextFrame([]byte(`{}`)) }

func encodeHTTP(p *petrel.Publication) []byte { return conn.XHRFrame(payloadOf(p)) }

func rosterHTTP(*hub.Roster) []byte { return conn.XHRFrame([]byte(`{}`)) }
