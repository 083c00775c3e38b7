package petrel

import "time"

// ChannelKind separates the name spaces of the hub.
type ChannelKind uint8

// Kinds of channel.
const (
	ChannelRoom ChannelKind = 1 // a chat room's durable events; Name is the RoomID
)

// Channel is a named topic that connections subscribe to. It is comparable: the hub's key.
type Channel struct {
	App  AppID
	Kind ChannelKind
	Name string
}

// RoomChannel is the channel on which a room's events are published.
func RoomChannel(app AppID, room RoomID) Channel {
	return Channel{App: app, Kind: ChannelRoom, Name: string(room)}
}

// Publication is one thing delivered on a channel. It is immutable once handed on,
// so that every connection can share it and what is encoded from it.
type Publication struct {
	Channel Channel
	Seq     uint64    // dense from 1 in the channel for durable events; 0 for ephemeral ones
	Type    string    // "message.new"
	At      time.Time // stamped by the proposer, millisecond precision, UTC
	Data    []byte    // JSON object, encoded once
	Index   uint64    // index of the entry it came from; 0 for ephemeral ones
	Request RequestID // of the request that caused it
	Revoked UserID    // this user may not read the channel any more after this publication; empty: nobody. Live only
	Final   bool      // nothing follows: the channel is gone. Live only
	Applied time.Time // local clock at the commit of the transaction; zero on replay. For histograms only.
}
