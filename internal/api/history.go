package api

import (
	"context"
	"fmt"
	"strconv"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// The wires of the hub: indices of its encoders.
const (
	wireSocket = iota
	wireEvents
	wireDeflated // sockets that read compressed frames
)

// wireOf is the hub's wire of a socket.
func wireOf(c *conn.Conn) int {
	if c.Deflates() {
		return wireDeflated
	}
	return wireSocket
}

// HubOptions are those of a hub that speaks this package's wires and reads history through view. The remaining ones are taken as they are.
func HubOptions(view func(ctx context.Context, fn func(*projection.Reader) error) error, o hub.Options) hub.Options {
	event := func(p *petrel.Publication) []byte { return eventJSON(`{"op":"event",`, p) }
	o.Encoders = []func(*petrel.Publication) []byte{
		wireSocket:   func(p *petrel.Publication) []byte { return conn.TextFrame(event(p)) },
		wireEvents:   func(p *petrel.Publication) []byte { return conn.SSEChunk("", "", eventJSON(`{`, p)) },
		wireDeflated: func(p *petrel.Publication) []byte { return conn.DeflatedFrame(event(p)) },
	}
	o.Replays = map[int]func(*petrel.Publication) []byte{wireDeflated: o.Encoders[wireSocket]} // a resume costs no compression of its own
	presence := func(r *hub.Roster) []byte {
		return rosterJSON(append([]byte(`{"op":"presence","room":"`), r.Channel.Name...), r)
	}
	o.Rosters = []func(*hub.Roster) []byte{
		wireSocket:   func(r *hub.Roster) []byte { return conn.TextFrame(presence(r)) },
		wireDeflated: func(r *hub.Roster) []byte { return conn.DeflatedFrame(presence(r)) },
		wireEvents: func(r *hub.Roster) []byte {
			return conn.SSEChunk("", "presence", rosterJSON(append([]byte(`{"room":"`), r.Channel.Name...), r))
		},
	}
	o.History = func(ctx context.Context, w hub.Want) (page hub.Page, err error) {
		room := petrel.RoomID(w.Channel.Name)
		err = view(ctx, func(r *projection.Reader) error {
			if _, err := chat.Head(r, w.Actor, room); err != nil {
				return err
			}
			page.Publications, page.Head, err = chat.Replay(r, w.Channel.App, room, w.After, w.Limit)
			return err
		})
		switch petrel.CodeOf(err) {
		case petrel.CodeRoomNotFound, petrel.CodeRoomDeleted, petrel.CodeForbidden:
			err = fmt.Errorf("%w: %w", hub.ErrEnded, err)
		}
		return page, err
	}
	return o
}

// timeLayout is RFC 3339 with milliseconds, as everywhere on the wire.
const timeLayout = "2006-01-02T15:04:05.000Z"

// eventJSON encodes a publication once for everybody. Room ids and types need no escaping: their alphabets see to it.
func eventJSON(begin string, p *petrel.Publication) []byte {
	b := make([]byte, 0, len(begin)+len(p.Channel.Name)+len(p.Type)+len(p.Data)+96)
	b = append(b, begin...)
	b = append(b, `"room":"`...)
	b = append(b, p.Channel.Name...)
	if p.Seq != 0 { // else it is ephemeral
		b = append(b, `","seq":`...)
		b = strconv.AppendUint(b, p.Seq, 10)
		b = append(b, `,"type":"`...)
	} else {
		b = append(b, `","type":"`...)
	}
	b = append(b, p.Type...)
	b = append(b, `","at":"`...)
	b = p.At.UTC().AppendFormat(b, timeLayout)
	b = append(b, `","data":`...)
	b = append(b, p.Data...)
	return append(b, '}')
}

// rosterJSON completes an object that has begun with the name of its room. Ids need no escaping.
func rosterJSON(b []byte, r *hub.Roster) []byte {
	b = append(b, '"')
	if r.Users != nil {
		b = append(b, `,"users":[`...)
		for i, user := range r.Users {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(append(b, `{"user":"`...), user...), `"}`...)
		}
		b = append(b, ']')
	}
	b = append(b, `,"count":`...)
	return append(strconv.AppendInt(b, int64(r.Count), 10), '}')
}
