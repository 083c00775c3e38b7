package raftlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hashicorp/raft-wal/types"
)

// metaStore is what the engine must know besides the segments: which of them count, and a few stable values (raft's
// term and vote, and ours). It is written rarely and must not fail: writing waits for room, until Close.
//
// It lies in two files of the same content, each with a sum, which are overwritten one after the other. A crash
// or a flipped bit harms one of them; the other has either the same, or what was there before a write that was not
// acknowledged yet. They are made large enough at the start to be overwritten when the disk is full.
//
// raft-wal's own is a bolt database. A flipped bit in it can make bolt follow a page number into memory that is
// not its own, and the process with it.
type metaStore struct {
	dir    string
	disk   disk
	logger *slog.Logger

	writing sync.Mutex // held around each change; guards what follows
	files   [2]*os.File
	whole   [2]bool // holds the newest; where one does not, it is written before the other
	seq     uint64  // used last

	mu  sync.Mutex // guards now; taken after writing
	now metaState
}

// metaState is what is stored.
type metaState struct {
	Log    types.PersistentState
	Stable map[string][]byte
}

var _ types.MetaStore = (*metaStore)(nil)

// A file: magic (8), sequence (8), length of what follows the sum (4), CRC32C of all of it (4), JSON. What
// lies behind is left over.
const (
	metaMagic = "petrelW1"
	metaHead  = 8 + 8 + 4 + 4
	metaSize  = 64 << 10 // at least
	metaMax   = 64 << 20
)

func metaName(i int) string { return fmt.Sprintf("meta-%c", 'a'+i) }

// Load implements types.MetaStore. It also finishes a segment change that a crash cut
// short, which raft-wal 0.4.1 does not: see sealTail.
func (m *metaStore) Load(dir string) (ps types.PersistentState, err error) {
	var states [2]*metaState
	var seqs [2]uint64
	for i := range m.files {
		if m.files[i], err = os.OpenFile(filepath.Join(dir, metaName(i)), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
			return ps, err
		}
		if states[i], seqs[i], err = readMeta(m.files[i]); err != nil {
			return ps, err
		}
	}
	best := 0
	if states[0] == nil || states[1] != nil && seqs[1] > seqs[0] {
		best = 1
	}
	if states[best] == nil {
		files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
		if err == nil && len(files) > 0 {
			err = fmt.Errorf("%w: which segments count is lost, in both %s and %s", ErrDamaged, metaName(0), metaName(1))
		}
		m.now.Stable = map[string][]byte{}
		return ps, errors.Join(err, syncDir(dir))
	}
	m.now, m.seq = *states[best], seqs[best]
	m.whole[best], m.whole[1-best] = true, states[1-best] != nil && seqs[1-best] == m.seq
	if states[1-best] == nil {
		m.logger.Warn("one of two equal files of the log was cut off or damaged: it is written again from the other", "path", filepath.Join(dir, metaName(1-best)))
	}
	if !m.whole[1-best] {
		if err := m.change("meta", dir, func(*metaState) {}); err != nil {
			return ps, err
		}
	}
	return m.sealTail(types.PersistentState{NextSegmentID: m.now.Log.NextSegmentID, Segments: slices.Clone(m.now.Log.Segments)})
}

// readMeta returns nil for a file that is empty, cut off or damaged.
func readMeta(f *os.File) (*metaState, uint64, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, metaMax))
	if err != nil {
		return nil, 0, err
	}
	if len(b) < metaHead || string(b[:8]) != metaMagic {
		return nil, 0, nil
	}
	seq, n, sum := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint32(b[20:])
	if uint64(n) > uint64(len(b)-metaHead) || sum != metaSum(b[:20], b[metaHead:metaHead+n]) {
		return nil, 0, nil
	}
	s := &metaState{Stable: map[string][]byte{}}
	if err := json.Unmarshal(b[metaHead:metaHead+n], s); err != nil {
		return nil, 0, fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err)
	}
	return s, seq, nil
}

func metaSum(head, body []byte) uint32 { return castagnoli(append(slices.Clip(head), body...)) }

// change makes one change durable, in both files.
func (m *metaStore) change(op, what string, f func(*metaState)) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	next := metaState{Log: m.now.Log, Stable: maps.Clone(m.now.Stable)}
	f(&next)
	body, err := json.Marshal(next)
	if err != nil {
		return err
	}
	m.seq++ // also after a failure: what it left must not look as new as what comes next
	b := binary.BigEndian.AppendUint64([]byte(metaMagic), m.seq)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, metaSum(b, body))
	b = append(b, body...)
	err = m.disk.persist(op, what, func() error {
		first := 0
		if m.whole[0] && !m.whole[1] {
			first = 1
		}
		for _, i := range []int{first, 1 - first} {
			m.whole[i] = false
			if err := overwrite(m.files[i], b); err != nil {
				return err
			}
			m.whole[i] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = next
	return nil
}

func overwrite(f *os.File, b []byte) error {
	if f == nil {
		return fs.ErrClosed
	}
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.Size() < metaSize && len(b) < metaSize {
		b = append(slices.Clip(b), make([]byte, metaSize-len(b))...)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Sync()
}

// CommitState implements types.MetaStore.
func (m *metaStore) CommitState(ps types.PersistentState) error {
	return m.change("meta", m.dir, func(s *metaState) { s.Log = ps })
}

// SetStable implements types.MetaStore. nil removes the value.
func (m *metaStore) SetStable(key, val []byte) error {
	return m.change("stable", string(key), func(s *metaState) {
		if s.Stable[string(key)] = slices.Clone(val); val == nil {
			delete(s.Stable, string(key))
		}
	})
}

// GetStable implements types.MetaStore.
func (m *metaStore) GetStable(key []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.now.Stable[string(key)]), nil
}

// Close implements types.MetaStore; store.close closes the files.
func (m *metaStore) Close() error { return nil }

func (m *metaStore) close() (err error) {
	m.writing.Lock()
	defer m.writing.Unlock()
	for i, f := range m.files {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		m.files[i] = nil
	}
	return err
}
