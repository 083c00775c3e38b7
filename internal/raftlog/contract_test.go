package raftlog_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	t.Parallel()
	raftlogtest.Run(t, func(*testing.T) raftlogtest.System { return &memorySystem{disk: &raftlog.MemoryDisk{}} })
}

func TestOneVoter(t *testing.T) {
	t.Parallel()
	raftlogtest.Run(t, func(t *testing.T) raftlogtest.System { return newDiskSystem(t, 1) })
}

func TestThreeVoters(t *testing.T) {
	t.Parallel()
	raftlogtest.Run(t, func(t *testing.T) raftlogtest.System { return newDiskSystem(t, 3) })
}

type memorySystem struct {
	disk *raftlog.MemoryDisk
	mu   sync.Mutex
	next raftlog.Fault
}

func (s *memorySystem) Members() int           { return 1 }
func (s *memorySystem) Name(int) petrel.NodeID { return "memory" }
func (s *memorySystem) Cut(int)                {}
func (s *memorySystem) Heal(int)               {}

func (s *memorySystem) Open(_ int, app raftlog.Applier, onFatal func(error)) (raftlog.Log, error) {
	return raftlog.NewMemory(raftlog.MemoryOptions{Applier: app, Disk: s.disk, OnFatal: onFatal, Fault: func() raftlog.Fault {
		s.mu.Lock()
		defer s.mu.Unlock()
		f := s.next
		s.next = raftlog.FaultNone
		return f
	}})
}

func (s *memorySystem) LoseNext(stored bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = raftlog.FaultUnknownLost
	if stored {
		s.next = raftlog.FaultUnknownStored
	}
	return true
}

type diskSystem struct {
	dir  string
	n    int
	mesh *raftlogtest.Mesh
	log  *slog.Logger
	// below makes the network under the mesh; nil: plain TCP.
	below func(name petrel.NodeID) (raftlog.Network, error)
}

func newDiskSystem(t *testing.T, n int) *diskSystem {
	return &diskSystem{dir: t.TempDir(), n: n, mesh: raftlogtest.NewMesh(), log: logger(t)}
}

// logger shows what the logs say, with -v.
func logger(t *testing.T) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func (s *diskSystem) Members() int             { return s.n }
func (s *diskSystem) Name(i int) petrel.NodeID { return petrel.NodeID(fmt.Sprintf("n%d", i+1)) }
func (s *diskSystem) Cut(i int)                { s.mesh.Cut(string(s.Name(i))) }
func (s *diskSystem) Heal(i int)               { s.mesh.Heal(string(s.Name(i))) }
func (s *diskSystem) LoseNext(bool) bool       { return false }

func (s *diskSystem) Open(i int, app raftlog.Applier, onFatal func(error)) (raftlog.Log, error) {
	o := raftlog.Options{
		Dir: filepath.Join(s.dir, string(s.Name(i))), Node: s.Name(i), Applier: app, Bootstrap: i == 0,
		MinFree: 1 << 20, SegmentSize: 64 << 10, TrailingLogs: 4, Heartbeat: time.Second, Logger: s.log, OnFatal: onFatal,
	}
	if s.n > 1 {
		net, err := joinOver(s.mesh, s.Name(i), s.below)
		if err != nil {
			return nil, err
		}
		o.Network = net
	}
	return raftlog.Open(context.Background(), o)
}

// joinOver joins a mesh over a network that below makes; nil: plain TCP.
func joinOver(mesh *raftlogtest.Mesh, name petrel.NodeID, below func(petrel.NodeID) (raftlog.Network, error)) (raftlog.Network, error) {
	if below == nil {
		return mesh.Join(string(name))
	}
	n, err := below(name)
	if err != nil {
		return nil, err
	}
	return mesh.JoinOver(string(name), n), nil
}
