package raftlogtest_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestGroup: the simulated group is a log like any other, with and without delays on its wires.
func TestGroup(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{0, 200 * time.Microsecond} {
		for _, members := range []int{1, 3} {
			t.Run(fmt.Sprintf("%d members, %v", members, delay), func(t *testing.T) {
				t.Parallel()
				raftlogtest.Run(t, func(*testing.T) raftlogtest.System {
					s := &groupSystem{g: raftlogtest.NewGroup(raftlogtest.GroupOptions{}), n: members, delay: delay}
					for i := range members {
						s.Heal(i)
					}
					return s
				})
			})
		}
	}
}

type groupSystem struct {
	g     *raftlogtest.Group
	n     int
	delay time.Duration

	mu   sync.Mutex
	next raftlog.Fault // of member 0
}

func (s *groupSystem) Members() int             { return s.n }
func (s *groupSystem) Name(i int) petrel.NodeID { return petrel.NodeID(fmt.Sprint("n", i+1)) }
func (s *groupSystem) Cut(i int)                { s.connect(i, raftlogtest.Wire{Cut: true}) }
func (s *groupSystem) Heal(i int)               { s.connect(i, raftlogtest.Wire{Delay: s.delay}) }

func (s *groupSystem) connect(i int, w raftlogtest.Wire) {
	for k := range s.n {
		if k != i {
			s.g.Connect(s.Name(i), s.Name(k), w)
		}
	}
}

func (s *groupSystem) Open(i int, app raftlog.Applier, onFatal func(error)) (raftlog.Log, error) {
	o := raftlogtest.ReplicaOptions{Node: s.Name(i), Applier: app, OnFatal: onFatal}
	if i == 0 {
		o.Fault = s.fault
	}
	return s.g.Open(o)
}

func (s *groupSystem) fault() raftlog.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.next
	s.next = raftlog.FaultNone
	return f
}

func (s *groupSystem) LoseNext(stored bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = raftlog.FaultUnknownLost
	if stored {
		s.next = raftlog.FaultUnknownStored
	}
	return true
}
