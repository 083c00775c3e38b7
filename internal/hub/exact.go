package hub

import (
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Member is who is there by a subscription.
type Member struct {
	ID   petrel.UserID
	Info []byte // what the others are shown of them, at most MaxInfo bytes; nil: nothing. Immutable
}

// MaxInfo is the largest Member.Info, in bytes. Whoever subscribes has smaller limits for people.
const MaxInfo = 16 << 10

// Delta is one arrival or departure on an exact channel.
type Delta struct {
	Channel petrel.Channel
	Member  Member
	Here    bool // came; else left
}

// TypeCount is the type of the publications that tell how many subscriptions a channel has; their data is {"subscription_count":N}.
const TypeCount = "subscription.count"

// Keeper keeps the last publication of each channel that has one for who comes later (channel.Cache). Its methods must not block.
type Keeper interface {
	// Keep notes a publication that this node heard, in the order in which it is offered here.
	Keep(p *petrel.Publication)
	// Kept returns a channel's last publication, and how long it is kept yet.
	Kept(ch petrel.Channel) (p petrel.Publication, left time.Duration, ok bool)
}
