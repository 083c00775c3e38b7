package event

import "github.com/petrel-chat/petrel/internal/petrel"

// KindShardFounded numbers the founding of a shard's log.
const KindShardFounded Kind = 1

// ShardFounded is the first entry of every shard: it gives the log's life its name. After a recovery from one survivor
// another one begins the next life.
type ShardFounded struct {
	Epoch petrel.Epoch `cbor:"1,keyasint"`
	After petrel.Epoch `cbor:"2,keyasint,omitempty"` // the life before; empty in the first entry of all
}

// EventKind implements Event.
func (ShardFounded) EventKind() Kind { return KindShardFounded }
