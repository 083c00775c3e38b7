package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// flock is a cell whose members answer each other's questions, as over a bus.
type flock struct {
	t    *testing.T
	mesh *raftlogtest.Mesh
	max  int

	mu   sync.Mutex
	logs map[petrel.NodeID]raftlog.Log
	mute map[petrel.NodeID]bool // do not answer
}

func newFlock(t *testing.T, max int) *flock {
	return &flock{t: t, mesh: raftlogtest.NewMesh(), max: max, logs: map[petrel.NodeID]raftlog.Log{}, mute: map[petrel.NodeID]bool{}}
}

func (f *flock) stats(_ context.Context, members []raftlog.Member) map[petrel.NodeID]raftlog.MemberStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[petrel.NodeID]raftlog.MemberStats{}
	for _, m := range members {
		if l := f.logs[m.ID]; l != nil && !f.mute[m.ID] {
			out[m.ID] = l.Stats()
		}
	}
	return out
}

// join starts the member; the first one founds the group.
func (f *flock) join(name petrel.NodeID) raftlog.Log {
	f.t.Helper()
	net, err := f.mesh.Join(string(name))
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	first := len(f.logs) == 0
	f.mu.Unlock()
	l, err := raftlog.Open(f.t.Context(), raftlog.Options{
		Dir: f.t.TempDir(), Node: name, Applier: raftlogtest.NewRecorder(), Bootstrap: first, Network: net,
		MinFree: 1, SegmentSize: 64 << 10, MemberStats: f.stats, MaxVoters: f.max,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = l.Close() })
	f.mu.Lock()
	f.logs[name] = l
	f.mu.Unlock()
	if !first {
		until(f.t, func() error { return f.leader().AddNonvoter(f.t.Context(), name, string(name)) })
	}
	return l
}

func (f *flock) silence(name petrel.NodeID, mute bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mute[name] = mute
}

func (f *flock) leader() raftlog.Log {
	f.t.Helper()
	var lead raftlog.Log
	until(f.t, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, l := range f.logs {
			if l.Status().IsLeader {
				lead = l
				return nil
			}
		}
		return errors.New("no leader")
	})
	return lead
}

func (f *flock) voters() []petrel.NodeID {
	var out []petrel.NodeID
	for _, m := range f.leader().Status().Members {
		if m.Voter {
			out = append(out, m.ID)
		}
	}
	slices.Sort(out)
	return out
}

func (f *flock) untilVoters(want ...petrel.NodeID) {
	f.t.Helper()
	until(f.t, func() error {
		if got := f.voters(); !slices.Equal(got, want) {
			return fmt.Errorf("voters are %v, not %v", got, want)
		}
		return nil
	})
}

// Who joins becomes a voter by itself, up to three; the fourth waits until one of them is removed.
func TestAutopilot(t *testing.T) {
	t.Parallel()
	f := newFlock(t, 0)
	f.join("a")
	f.join("b")
	f.untilVoters("a", "b")
	f.join("c")
	f.untilVoters("a", "b", "c")
	d := f.join("d")
	until(t, func() error { return d.Barrier(t.Context()) })
	if got := len(f.voters()); got != 3 {
		t.Fatalf("%d voters", got)
	}
	until(t, func() error { return f.leader().Remove(t.Context(), "b") })
	f.untilVoters("a", "c", "d")
}

// One that does not answer, or has not caught up, waits.
func TestAutopilotWaitsForTheSilent(t *testing.T) {
	t.Parallel()
	f := newFlock(t, 3)
	f.join("a")
	f.silence("b", true)
	f.join("b")
	f.join("c")
	f.untilVoters("a", "c")
	f.silence("b", false)
	f.untilVoters("a", "b", "c")
}

// With five, the fourth gets its vote only together with the fifth.
func TestAutopilotFive(t *testing.T) {
	t.Parallel()
	f := newFlock(t, 5)
	f.join("a")
	f.join("b")
	f.join("c")
	f.untilVoters("a", "b", "c")
	d := f.join("d")
	until(t, func() error { return d.Barrier(t.Context()) })
	if got := len(f.voters()); got != 3 {
		t.Fatalf("%d voters", got)
	}
	f.join("e")
	f.untilVoters("a", "b", "c", "d", "e")
}
