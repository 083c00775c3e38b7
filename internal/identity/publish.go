package identity

import (
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Publish returns nothing: what happens to apps and keys is no client's business. A node that authenticates
// hands apply the Publish of its Directory instead.
func Publish(event.Stamp, event.Event, uint64) []petrel.Publication { return nil }
