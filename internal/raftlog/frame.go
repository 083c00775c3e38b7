package raftlog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// A batch is what one Append puts into one record of the engine. Big endian:
//
//	version  1 byte, 1
//	term     8  the term the leader believed in
//	first    8  own index of the first record
//	prev    32  chain hash of record first-1: the fence
//	count    4
//	sum      4  CRC32C of everything above
//	count × (length 4, CRC32C of the payload 4, payload)
//
// Nothing follows. An empty command (no bytes) is not a batch: it only tells followers of a commit.
type batch struct {
	term     uint64
	first    uint64
	prev     petrel.Hash
	payloads [][]byte
}

const (
	batchVersion = 1
	batchHead    = 1 + 8 + 8 + 32 + 4 + 4
	entryHead    = 4 + 4
)

var (
	errFrame = errors.New("batch frame")
	errNewer = errors.New("newer than this build reads")
)

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func (b batch) encode() []byte {
	n := batchHead
	for _, p := range b.payloads {
		n += entryHead + len(p)
	}
	out := make([]byte, 0, n)
	out = append(out, batchVersion)
	out = binary.BigEndian.AppendUint64(out, b.term)
	out = binary.BigEndian.AppendUint64(out, b.first)
	out = append(out, b.prev[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(b.payloads)))
	out = binary.BigEndian.AppendUint32(out, castagnoli(out))
	for _, p := range b.payloads {
		out = binary.BigEndian.AppendUint32(out, uint32(len(p)))
		out = binary.BigEndian.AppendUint32(out, castagnoli(p))
		out = append(out, p...)
	}
	return out
}

// decodeBatch checks every length and sum. The payloads alias data.
func decodeBatch(data []byte) (batch, error) {
	if len(data) < batchHead {
		return batch{}, fmt.Errorf("%w: %d bytes are too few", errFrame, len(data))
	}
	head := data[:batchHead-4]
	if binary.BigEndian.Uint32(data[batchHead-4:]) != castagnoli(head) {
		return batch{}, fmt.Errorf("%w: its head does not match its checksum", errFrame)
	}
	if head[0] != batchVersion {
		return batch{}, fmt.Errorf("%w: version %d is %w (%d)", errFrame, head[0], errNewer, batchVersion)
	}
	b := batch{term: binary.BigEndian.Uint64(head[1:]), first: binary.BigEndian.Uint64(head[9:])}
	copy(b.prev[:], head[17:49])
	count := binary.BigEndian.Uint32(head[49:])
	rest := data[batchHead:]
	if b.first == 0 || count == 0 || count > MaxBatchRecords || int(count) > len(rest)/entryHead {
		return batch{}, fmt.Errorf("%w: first %d and count %d do not fit %d bytes", errFrame, b.first, count, len(data))
	}
	b.payloads = make([][]byte, count)
	for i := range b.payloads {
		if len(rest) < entryHead {
			return batch{}, fmt.Errorf("%w: record %d is cut off", errFrame, i)
		}
		n, sum := binary.BigEndian.Uint32(rest), binary.BigEndian.Uint32(rest[4:])
		rest = rest[entryHead:]
		if uint64(n) > uint64(len(rest)) {
			return batch{}, fmt.Errorf("%w: record %d is cut off", errFrame, i)
		}
		p := rest[:n:n]
		if castagnoli(p) != sum {
			return batch{}, fmt.Errorf("%w: record %d does not match its checksum", errFrame, i)
		}
		b.payloads[i], rest = p, rest[n:]
	}
	if len(rest) != 0 {
		return batch{}, fmt.Errorf("%w: %d bytes too many", errFrame, len(rest))
	}
	return b, nil
}

// chain is the end of the hash chain: the last record's index and hash.
type chain struct {
	index uint64
	hash  petrel.Hash
}

// errFenced: the batch belongs to another term and counts nowhere.
var errFenced = errors.New("the batch was made for another term")

// errChain: the batch does not continue the chain although the terms agree.
var errChain = errors.New("hash chain")

// next returns the records of a batch that the engine stored under term, and the chain
// after them. Deterministic: every replica decides alike.
func (c chain) next(b batch, term uint64) ([]petrel.Record, chain, error) {
	if b.term != term {
		return nil, c, errFenced
	}
	if b.first != c.index+1 || b.prev != c.hash {
		return nil, c, fmt.Errorf("%w: a batch of term %d continues record %d (%x…), but the log ends at record %d (%x…)",
			errChain, term, b.first-1, b.prev[:4], c.index, c.hash[:4])
	}
	recs := make([]petrel.Record, len(b.payloads))
	for i, p := range b.payloads {
		c.index++
		c.hash = link(c.hash, c.index, p)
		recs[i] = petrel.Record{Index: c.index, Hash: c.hash, Payload: p}
	}
	return recs, c, nil
}

func link(prev petrel.Hash, index uint64, payload []byte) petrel.Hash {
	h := sha256.New()
	h.Write(prev[:])
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], index)
	h.Write(n[:])
	h.Write(payload)
	var out petrel.Hash
	h.Sum(out[:0])
	return out
}
