package pusher

import (
	"strconv"

	"github.com/petrel-chat/petrel/internal/hub"
)

// rosterPayload is the subscription_succeeded of a presence channel: who is there, each user once.
func rosterPayload(r *hub.Roster) []byte {
	size := 64
	for i := range r.Members {
		size += 2*len(r.Members[i].ID) + len(r.Members[i].Info) + 12
	}
	data := append(make([]byte, 0, size), `{"presence":{"ids":[`...)
	for i := range r.Members {
		if i > 0 {
			data = append(data, ',')
		}
		data = appendQuoted(data, r.Members[i].ID)
	}
	data = append(data, `],"hash":{`...)
	for i := range r.Members {
		if i > 0 {
			data = append(data, ',')
		}
		data = append(appendQuoted(data, r.Members[i].ID), ':')
		data = append(data, infoOf(&r.Members[i])...)
	}
	data = append(strconv.AppendInt(append(data, `},"count":`...), int64(r.Count), 10), "}}"...)
	return internal("subscription_succeeded", r.Channel.Name, data)
}

// deltaPayload tells of one user who came or left.
func deltaPayload(d *hub.Delta) []byte {
	data := appendQuoted([]byte(`{"user_id":`), d.Member.ID)
	if !d.Here {
		return internal("member_removed", d.Channel.Name, append(data, '}'))
	}
	data = append(append(data, `,"user_info":`...), infoOf(&d.Member)...)
	return internal("member_added", d.Channel.Name, append(data, '}'))
}

func infoOf(m *hub.Member) []byte {
	if len(m.Info) == 0 {
		return []byte("null")
	}
	return m.Info
}

// internal is an event of the protocol's own on a channel, its data a string of JSON.
func internal(event, channel string, data []byte) []byte {
	b := append(make([]byte, 0, 64+len(event)+len(channel)+len(data)*5/4), `{"event":"pusher_internal:`...)
	b = appendQuoted(append(append(b, event...), `","channel":`...), channel)
	return append(appendQuoted(append(b, `,"data":`...), data), '}')
}
