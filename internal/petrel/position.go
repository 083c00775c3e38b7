package petrel

import (
	"encoding/base64"
	"encoding/binary"
)

// Position is one place in one shard's log. Clients see it as an opaque string and
// send it back so that a read waits until the node has applied it.
type Position struct {
	Shard ShardID
	Epoch Epoch
	Index uint64
}

// String returns the opaque form.
func (p Position) String() string {
	b := make([]byte, 0, 32)
	b = binary.AppendUvarint(b, uint64(p.Shard))
	b = binary.AppendUvarint(b, p.Index)
	b = append(b, p.Epoch...)
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParsePosition reads what String wrote; anything else is CodeInvalidPosition.
func ParsePosition(s string) (Position, error) {
	bad := Errorf(CodeInvalidPosition, "The position is not one that this server gave out. Leave it away to read without waiting.")
	if len(s) > 96 {
		return Position{}, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return Position{}, bad
	}
	shard, n := binary.Uvarint(b)
	if n <= 0 || shard > 1<<32-1 {
		return Position{}, bad
	}
	b = b[n:]
	index, n := binary.Uvarint(b)
	if n <= 0 || len(b) == n {
		return Position{}, bad
	}
	p := Position{Shard: ShardID(shard), Index: index, Epoch: Epoch(b[n:])}
	if p.String() != s {
		return Position{}, bad
	}
	return p, nil
}

// Hash is a SHA-256 over a record and its predecessor's hash: the chain of the log.
type Hash [32]byte

// Record is one committed entry as the log hands it on: verified, in order, dense from 1.
type Record struct {
	Index   uint64 // dense from 1 in the shard
	Hash    Hash   // chain hash up to and including this record
	Payload []byte // an encoded event.Entry
	Mark    uint64 // of the last record of a batch: the engine's position there, the same on every replica; 0: the batch goes on
}

// Applied is how far a projection has come. It is stored in the same transaction as what it describes.
type Applied struct {
	Index  uint64 // of the last record folded; 0 is none
	Hash   Hash   // its chain hash
	Mark   uint64 // the log engine's own position (raft index) at or after Index; replay below it is skipped
	Digest Hash   // running hash over the outcomes of every fold: equal on all replicas at equal Index
	Epoch  Epoch  // of the shard; empty before the founding entry
}
