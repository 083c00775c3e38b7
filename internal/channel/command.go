package channel

import (
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// The commands. Only the system may give them, for an app: they write down what webhooks are told of its channels.

const (
	// MaxStep is how many members one SetState may tell of: their webhooks share its entry.
	MaxStep = 20
	// MissEvery is how long a channel's cache miss is told only once.
	MissEvery = 10 * time.Second
)

// SetState tells of changes of one channel. What was told already is left out; it answers whether anything was left (bool).
type SetState struct {
	Channel      string
	Joined, Left []petrel.UserID // up to MaxStep together
	// Occupied is what the channel is to be from here on. It is vacated only once all of its members have left.
	Occupied bool
	Count    int  // subscriptions
	Counted  bool // Count is to be told
}

// Miss tells of a cache miss, once in MissEvery for a channel. It answers whether it did (bool).
type Miss struct{ Channel string }

// CommandKind names the kind of command: a label of metrics.
func (SetState) CommandKind() string { return "channel.set_state" }

// CommandKind is as in SetState.
func (Miss) CommandKind() string { return "channel.miss" }

// Decide finds what is new and writes it down.
func (c SetState) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkSystem(s.Actor); err != nil {
		return event.Decision{}, err
	}
	if len(c.Joined)+len(c.Left) > MaxStep {
		return event.Decision{}, petrel.Errorf(petrel.CodeTooLarge, "One step tells of at most %d members.", MaxStep)
	}
	st, err := StateOf(r, s.App, c.Channel)
	if err != nil {
		return event.Decision{}, err
	}
	return decideSetState(st, c), nil
}

// Decide tells of the miss, unless that was just done.
func (c Miss) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := checkSystem(s.Actor); err != nil {
		return event.Decision{}, err
	}
	at, version, err := missOf(r, s.App, c.Channel)
	if err != nil {
		return event.Decision{}, err
	}
	if version != 0 && s.At-at < MissEvery.Milliseconds() {
		return nothing(), nil
	}
	return event.Decision{
		Events: []event.Event{event.ChannelMissed{Channel: c.Channel}},
		Guards: []event.Guard{{Kind: event.GuardChannelMiss, Key: []string{c.Channel}, Version: version}},
		Answer: func(event.Stamp, []uint64) any { return true },
	}, nil
}
