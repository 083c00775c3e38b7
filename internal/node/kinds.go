package node

import "github.com/petrel-chat/petrel/internal/bus"

// What goes over the bus, numbered once and for all builds. Messages and requests have numbers of their own.
const (
	kindEphemeral bus.Kind = 1 // message: what hubs tell each other, publications and who is where (relay.go)

	kindReport  bus.Kind = 1 // request: how a node is (report.go)
	kindReached bus.Kind = 2 // request: answer once an index is applied (lag.go)
	kindDigest  bus.Kind = 3 // request: the running digest at an index (agreement.go)
	kindScrub   bus.Kind = 4 // request: hashes of the rows at a batch's end (agreement.go)
	kindFence   bus.Kind = 5 // request: you differ (agreement.go)
	kindHub     bus.Kind = 6 // request: what hubs ask each other (relay.go)
	kindSession bus.Kind = 7 // request: have you this session over HTTP? (forward.go)
)
