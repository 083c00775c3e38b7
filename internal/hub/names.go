package hub

import (
	"iter"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// byName finds a shard's channels by their names. There may be as many as connections: its map has the hashes of the names as keys, which take a
// third of the room of names, and are made once for the shard and the map. Channels whose names have the same hash are chained.
type byName map[key]*channel

// key is the hash of a channel's name.
type key uint64

// get returns the channel of that name, nil if there is none.
func (t byName) get(k key, name petrel.Channel) *channel {
	c := t[k]
	for c != nil && c.name != name {
		c = c.next
	}
	return c
}

// put adds a channel whose name is not in the table.
func (t byName) put(k key, c *channel) {
	c.next = t[k]
	t[k] = c
}

// drop takes a channel out.
func (t byName) drop(k key, c *channel) {
	first := t[k]
	if first == c {
		if c.next == nil {
			delete(t, k)
		} else {
			t[k] = c.next
		}
		c.next = nil
		return
	}
	for ; first != nil; first = first.next {
		if first.next == c {
			first.next, c.next = c.next, nil
			return
		}
	}
}

// all goes through the channels. They may be dropped meanwhile.
func (t byName) all() iter.Seq[*channel] {
	return func(yield func(*channel) bool) {
		for _, c := range t {
			for c != nil {
				next := c.next
				if !yield(c) {
					return
				}
				c = next
			}
		}
	}
}
