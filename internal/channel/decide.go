package channel

import (
	"slices"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func decideSetState(st State, c SetState) event.Decision {
	ev := event.ChannelStateSet{Channel: c.Channel, Was: st.Occupied, Occupied: c.Occupied, Count: st.Count}
	there := func(user petrel.UserID) bool { return slices.Contains(st.Members, user) }
	if c.Occupied { // nobody joins what is vacated
		ev.Joined = unique(c.Joined, func(user petrel.UserID) bool { return !there(user) })
	}
	ev.Left = unique(c.Left, there)
	if !c.Occupied && st.Occupied && len(ev.Left) < len(st.Members) {
		ev.Occupied = true // the others go first
	}
	if count := uint64(max(0, c.Count)); c.Counted && count != st.Count { //nolint:gosec // not negative
		ev.Count, ev.Counted = count, true
	}
	if !ev.Occupied && st.Occupied && st.Count > 0 {
		ev.Count, ev.Counted = 0, true
	}
	if ev.Occupied == ev.Was && len(ev.Joined)+len(ev.Left) == 0 && (!ev.Counted || !ev.Occupied) {
		return nothing()
	}
	return event.Decision{
		Events: []event.Event{ev},
		Guards: []event.Guard{{Kind: event.GuardChannel, Key: []string{c.Channel}, Version: st.Version}},
		Answer: func(event.Stamp, []uint64) any { return true },
	}
}

// unique returns those that pass, in order, each once; nil for none.
func unique(users []petrel.UserID, pass func(petrel.UserID) bool) (out []petrel.UserID) {
	for _, user := range users {
		if pass(user) {
			out = append(out, user)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func nothing() event.Decision {
	return event.Decision{Repeated: true, Answer: func(event.Stamp, []uint64) any { return false }}
}

func checkSystem(a petrel.Actor) error {
	if a.Kind != petrel.ActorSystem || a.App == "" {
		return petrel.Errorf(petrel.CodeForbidden, "What webhooks are told of channels is written down by the system alone.")
	}
	return nil
}
