package petrel

import "time"

// ChannelKind separates the name spaces of the hub.
type ChannelKind uint8

// Kinds of channel.
const (
	ChannelRoom   ChannelKind = 1 // a chat room's durable events; Name is the RoomID
	ChannelPusher ChannelKind = 2 // a channel of Pusher's clients, ephemeral; Name is the full one, with its prefix
	ChannelUser   ChannelKind = 3 // the connections on which a user is signed in, ephemeral; Name is the user's id
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

// PusherChannel is a channel of Pusher's clients, by its full name.
func PusherChannel(app AppID, name string) Channel {
	return Channel{App: app, Kind: ChannelPusher, Name: name}
}

// UserChannel is the channel of the connections on which a user is signed in.
func UserChannel(app AppID, user UserID) Channel {
	return Channel{App: app, Kind: ChannelUser, Name: string(user)}
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
	User    UserID    // who sent it, where the channel says so (client events on presence channels). Ephemeral only
	Except  ConnID    // the connection that is not offered it, on whatever node; empty: all are. Ephemeral only
	Client  bool      // a client sent it, not the app's backend. Ephemeral only
	Applied time.Time // local clock at the commit of the transaction; zero on replay. For histograms only.
}
