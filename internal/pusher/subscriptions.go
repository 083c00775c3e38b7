package pusher

import (
	"iter"
	"maps"
	"slices"

	"github.com/petrel-chat/petrel/internal/hub"
)

// subscriptions are those of one session, by the names of their channels. Most sessions have a handful: a map of one entry takes four times
// what the rest of an idle session does, so that it is made for more than fewSubs.
type subscriptions struct {
	few  []*hub.Subscription
	many map[string]*hub.Subscription // nil: few has all
}

// fewSubs is how many are looked through.
const fewSubs = 8

func (s *subscriptions) len() int { return len(s.few) + len(s.many) }

func (s *subscriptions) at(name string) int {
	return slices.IndexFunc(s.few, func(x *hub.Subscription) bool { return x.Channel().Name == name })
}

// of returns the one to a channel, nil if there is none.
func (s *subscriptions) of(name string) *hub.Subscription {
	if s.many != nil {
		return s.many[name]
	}
	if i := s.at(name); i >= 0 {
		return s.few[i]
	}
	return nil
}

// add adds one to a channel that has none.
func (s *subscriptions) add(sub *hub.Subscription) {
	if s.many == nil && len(s.few) < fewSubs {
		s.few = append(s.few, sub)
		return
	}
	if s.many == nil {
		s.many = make(map[string]*hub.Subscription, 2*fewSubs)
		for _, x := range s.few {
			s.many[x.Channel().Name] = x
		}
		s.few = nil
	}
	s.many[sub.Channel().Name] = sub
}

// remove takes out the one to a channel and returns it, nil if there is none.
func (s *subscriptions) remove(name string) *hub.Subscription {
	sub := s.of(name)
	switch {
	case sub == nil:
	case s.many != nil:
		delete(s.many, name)
	default:
		i := s.at(name)
		s.few = slices.Delete(s.few, i, i+1)
	}
	return sub
}

func (s *subscriptions) all() iter.Seq[*hub.Subscription] {
	if s.many != nil {
		return maps.Values(s.many)
	}
	return slices.Values(s.few)
}
