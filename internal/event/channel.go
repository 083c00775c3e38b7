package event

import "github.com/petrel-chat/petrel/internal/petrel"

// Kinds of channel events: what webhooks were told of channels. All else about channels is ephemeral.
const (
	KindChannelStateSet Kind = 50
	KindChannelMissed   Kind = 51
)

// Guards of channels; the app is the entry's.
const (
	GuardChannel     GuardKind = 30 // key: channel. 0: it was last told to be vacated, or never told of
	GuardChannelMiss GuardKind = 31 // key: channel. 0: no miss of it is remembered
)

// ChannelStateSet says what is told of a channel of the entry's app from here on: the difference to what was told before.
type ChannelStateSet struct {
	Channel  string          `cbor:"1,keyasint"`
	Occupied bool            `cbor:"2,keyasint,omitempty"` // from here on
	Was      bool            `cbor:"3,keyasint,omitempty"` // occupied, until here
	Joined   []petrel.UserID `cbor:"4,keyasint,omitempty"` // of a presence channel
	Left     []petrel.UserID `cbor:"5,keyasint,omitempty"`
	Count    uint64          `cbor:"6,keyasint,omitempty"` // subscriptions, as told last
	Counted  bool            `cbor:"7,keyasint,omitempty"` // Count is told now
}

// ChannelMissed says that somebody subscribed to a cache channel of the entry's app that had nothing to give.
type ChannelMissed struct {
	Channel string `cbor:"1,keyasint"`
}

// EventKind implements Event.
func (ChannelStateSet) EventKind() Kind { return KindChannelStateSet }

// EventKind implements Event.
func (ChannelMissed) EventKind() Kind { return KindChannelMissed }
