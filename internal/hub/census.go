package hub

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"sync"
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
	i, found := slices.BinarySearchFunc(c.Channels, name, func(x Counted, name string) int { return strings.Compare(x.Name, name) })
	if !found {
		return Counted{Name: name}
	}
	return c.Channels[i]
}

// maxCensus is how many channels one Census lists, maxNames how many may be asked for by name.
const (
	maxCensus = 100_000
	maxNames  = 1000
)

// Census counts subscriptions and users by asking every living node for its own, at once. A node that does not answer in time is Missing.
// It returns CodeLimitReached when more than 100,000 channels match, or more than 1,000 are named.
func (h *Hub) Census(ctx context.Context, q CensusQuery) (Census, error) {
	if len(q.Names) > maxNames {
		return Census{}, petrel.Errorf(petrel.CodeLimitReached, "More than %d channels are asked for at once.", maxNames)
	}
	if q.Within <= 0 {
		q.Within = askWithin
	}
	ctx, cancel := context.WithTimeout(ctx, q.Within)
	defer cancel()
	merged := tally{}
	// This node's own part is taken page by page too, so that no more than a page is copied at once.
	for p := (censusPage{query: q}); ; {
		here := h.censusHere(p)
		merged.add(here)
		if !here.more || len(merged) > maxCensus {
			break
		}
		p = here.next(p)
	}
	var out Census
	var mu sync.Mutex
	missing := h.eachPeer(func(node petrel.NodeID) error {
		return h.censusThere(ctx, node, q, func(part *censusPart) bool {
			mu.Lock()
			defer mu.Unlock()
			merged.add(part)
			return len(merged) <= maxCensus
		})
	})
	if len(merged) > maxCensus {
		return Census{}, petrel.Errorf(petrel.CodeLimitReached, "More than %d channels match. Ask for those with a longer prefix.", maxCensus)
	}
	for _, x := range missing {
		out.Missing = append(out.Missing, x.Node)
	}
	out.Channels = merged.channels(q.Users)
	return out, nil
}

// censusThere asks one node, page by page, until there is no more or take has enough.
func (h *Hub) censusThere(ctx context.Context, node petrel.NodeID, q CensusQuery, take func(*censusPart) bool) error {
	for p := (censusPage{query: q}); ; {
		in, err := h.askOne(ctx, node, p.append([]byte{formatAsk, askCensus}))
		if err != nil {
			return err
		}
		part := in.censusPart()
		if !in.ok || (part.more && len(part.channels) == 0) {
			return errAnswer
		}
		if !take(part) || !part.more {
			return nil
		}
		p = part.next(p)
	}
}

// censusPage is what one node is asked for: what comes behind a channel, or behind a user of it, in their order.
type censusPage struct {
	query   CensusQuery
	channel string
	user    petrel.UserID
	within  bool // behind that user of that channel; else behind the channel
}

func (p censusPage) append(b []byte) []byte {
	b = appendText(append(appendText(b, p.query.App), byte(p.query.Kind)), p.query.Prefix)
	flags := byte(0)
	if p.query.Users {
		flags |= 1
	}
	if p.query.Names != nil {
		flags |= 2
	}
	if p.within {
		flags |= 4
	}
	b = appendText(appendText(append(b, flags), p.channel), p.user)
	b = binary.AppendUvarint(b, uint64(len(p.query.Names)))
	for _, name := range p.query.Names {
		b = appendText(b, name)
	}
	return b
}

func (r *reader) census() (p censusPage) {
	p.query = CensusQuery{App: petrel.AppID(r.text()), Kind: petrel.ChannelKind(r.byte()), Prefix: r.text()}
	flags := r.byte()
	p.channel, p.user, p.query.Names = r.text(), petrel.UserID(r.text()), r.texts()
	p.query.Users, p.within = flags&1 != 0, flags&4 != 0
	if flags&2 != 0 && p.query.Names == nil {
		p.query.Names = []string{}
	}
	return p
}

// censusPart is what one node has, as far as there was room in one answer.
type censusPart struct {
	channels []Counted
	more     bool
	within   bool // the last channel has more users
}

// next is the page behind this part.
func (x *censusPart) next(p censusPage) censusPage {
	last := x.channels[len(x.channels)-1]
	p.channel, p.within = last.Name, x.within
	if p.user = ""; x.within {
		p.user = last.Users[len(last.Users)-1]
	}
	return p
}

func (x *censusPart) append(b []byte) []byte {
	flags := byte(0)
	if x.more {
		flags |= 1
	}
	if x.within {
		flags |= 2
	}
	b = binary.AppendUvarint(append(b, flags), uint64(len(x.channels)))
	for _, c := range x.channels {
		b = binary.AppendUvarint(appendText(b, c.Name), uint64(c.Subscriptions)) //nolint:gosec // not negative
		b = appendUsers(b, c.Users)
	}
	return b
}

func (r *reader) censusPart() *censusPart {
	flags := r.byte()
	x := &censusPart{more: flags&1 != 0, within: flags&2 != 0}
	for n := r.number(); n > 0 && r.ok; n-- {
		c := Counted{Name: r.text(), Subscriptions: int(min(r.number(), 1<<30)), Users: r.users()} //nolint:gosec // bounded
		x.channels = append(x.channels, c)
	}
	x.within = x.within && len(x.channels) > 0 && len(x.channels[len(x.channels)-1].Users) > 0
	return x
}

// censusHere counts what this node has.
func (h *Hub) censusHere(p censusPage) *censusPart {
	var names []string
	behind := func(name string) bool { return name > p.channel || (name == p.channel && (p.within || name == "")) }
	for _, name := range p.query.Names {
		if behind(name) && strings.HasPrefix(name, p.query.Prefix) {
			names = append(names, name)
		}
	}
	if p.query.Names == nil {
		names = h.namesBehind(p, behind)
	}
	slices.Sort(names)
	out, size := &censusPart{}, 0
	for _, name := range slices.Compact(names) {
		if size > maxAnswer {
			out.more = true
			break
		}
		c := Counted{Name: name}
		after, cut := petrel.UserID(""), false
		if p.within && name == p.channel {
			after = p.user
		}
		c.Subscriptions, c.Users, cut = h.countHere(petrel.Channel{App: p.query.App, Kind: p.query.Kind, Name: name}, p.query.Users, after, maxAnswer-size)
		if c.Subscriptions == 0 {
			continue
		}
		if after != "" {
			c.Subscriptions = 0 // told with the users before
		}
		for _, user := range c.Users {
			size += len(user) + 2
		}
		size += len(name) + 8
		out.channels = append(out.channels, c)
		if cut {
			out.more, out.within = true, true
			break
		}
	}
	return out
}

// namesBehind lists the channels here that match and come behind the page's place.
func (h *Hub) namesBehind(p censusPage, behind func(string) bool) (names []string) {
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		for c := range sh.channels.all() {
			if ch := c.name; c.counted > 0 && ch.App == p.query.App && ch.Kind == p.query.Kind && strings.HasPrefix(ch.Name, p.query.Prefix) && behind(ch.Name) {
				names = append(names, ch.Name)
			}
		}
		sh.mu.Unlock()
	}
	return names
}

// countHere counts one channel, and lists the users behind one, as far as there is room: at least one of them.
func (h *Hub) countHere(ch petrel.Channel, users bool, after petrel.UserID, room int) (subscriptions int, list []petrel.UserID, cut bool) {
	sh, k := h.shardOf(ch)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.channels.get(k, ch)
	if c == nil {
		return 0, nil, false
	}
	if users {
		for user := range c.local {
			if user > after {
				list = append(list, user)
			}
		}
		slices.Sort(list)
		for i, user := range list {
			if room -= len(user) + 2; room < 0 && i > 0 {
				list, cut = list[:i], true
				break
			}
		}
	}
	return int(c.counted), list, cut
}

// tally adds up what the nodes have.
type tally map[string]*tallied

type tallied struct {
	subscriptions int
	users         map[petrel.UserID]struct{}
}

func (t tally) add(x *censusPart) {
	for _, c := range x.channels {
		sum := t[c.Name]
		if sum == nil {
			sum = &tallied{}
			t[c.Name] = sum
		}
		sum.subscriptions += c.Subscriptions
		for _, user := range c.Users {
			if sum.users == nil {
				sum.users = map[petrel.UserID]struct{}{}
			}
			sum.users[user] = struct{}{}
		}
	}
}

func (t tally) channels(users bool) []Counted {
	out := make([]Counted, 0, len(t))
	for _, name := range slices.Sorted(maps.Keys(t)) {
		c := Counted{Name: name, Subscriptions: t[name].subscriptions}
		if users {
			c.Users = slices.Sorted(maps.Keys(t[name].users))
		}
		out = append(out, c)
	}
	return out
}
