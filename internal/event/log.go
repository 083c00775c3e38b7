package event

import "github.com/petrel-chat/petrel/internal/petrel"

// KindShardFounded numbers the founding of a shard's log.
const KindShardFounded Kind = 1

// ShardFounded is the first entry of every shard: it gives the log's life its name.
type ShardFounded struct {
	Epoch petrel.Epoch `cbor:"1,keyasint"`
}

// EventKind implements Event.
func (ShardFounded) EventKind() Kind { return KindShardFounded }
