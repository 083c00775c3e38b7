package raftlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// scanned is what reading the whole log tells.
type scanned struct {
	bytes int64              // behind the newest snapshot
	conf  raft.Configuration // the last one in the log; none is empty
	tail  chain              // the end of the chain; 0 when the log holds no batch that counts
	term  uint64             // of the last record
}

// scan reads every retained record: raft's checksum, ours, and the chain, which must agree
// with the projection's position a at mark. What lies behind the last commit is read alike: raft may
// still drop it, but what is there must be whole.
func scan(ctx context.Context, st *store, dir string, e ends, a petrel.Applied, mark uint64) (s scanned, err error) {
	if e.last == 0 {
		return s, nil
	}
	var c chain
	known := mark+1 == e.first // else the first batch tells the chain
	if known {
		c = chain{a.Index, a.Hash}
	}
	for at := e.first; at <= e.last; at++ {
		if err := ctx.Err(); err != nil {
			return s, fmt.Errorf("raftlog: read the log: %w", err)
		}
		var rec raft.Log
		err := st.read(at, &rec)
		if errors.Is(err, raft.ErrLogNotFound) {
			err = fmt.Errorf("%w: it is missing", ErrDamaged)
		}
		if err == nil {
			err = s.check(&rec, &c, &known)
		}
		if err != nil {
			return s, refuse(segmentOf(dir, at), "", fmt.Errorf("record %d of the log: %w", at, err))
		}
		if at > e.snapIndex() {
			s.bytes += int64(len(rec.Data)) + 32
		}
		if at == mark && known && a.Index > 0 && (c != chain{a.Index, a.Hash}) {
			return s, refuse(segmentOf(dir, at), "", fmt.Errorf(
				"at position %d the log is at record %d (%x…) and the projection at %d (%x…): they are not of one life", at, c.index, c.hash[:4], a.Index, a.Hash[:4]))
		}
		if at == mark {
			c, known = chain{a.Index, a.Hash}, true
		}
		s.tail, s.term = c, rec.Term
	}
	return s, nil
}

func (s *scanned) check(rec *raft.Log, c *chain, known *bool) error {
	switch {
	case rec.Type == raft.LogConfiguration:
		s.conf = raft.DecodeConfiguration(rec.Data)
	case rec.Type == raft.LogCommand && len(rec.Data) > 0:
		b, err := decodeBatch(rec.Data)
		if err != nil {
			return err
		}
		if !*known && b.term == rec.Term {
			*c, *known = chain{b.first - 1, b.prev}, true
		}
		if !*known {
			return nil // fenced, as its term says; the next batch that counts tells the chain
		}
		_, next, err := c.next(b, rec.Term)
		if err != nil && !errors.Is(err, errFenced) {
			return err
		}
		*c = next
	}
	return nil
}

// segmentOf names the file that holds a record: the last one that begins at or before it.
func segmentOf(dir string, index uint64) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return dir
	}
	var names []string
	for _, e := range entries {
		base, _, ok := strings.Cut(e.Name(), "-")
		if n, err := strconv.ParseUint(base, 10, 64); ok && err == nil && n <= index && strings.HasSuffix(e.Name(), ".wal") {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return dir
	}
	return filepath.Join(dir, slices.Max(names))
}
