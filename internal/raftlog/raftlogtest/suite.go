// Package raftlogtest holds the contract suite that every raftlog.Log passes, and the
// fakes it needs: an Applier that checks what it is given, and a network of one process.
package raftlogtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// System is one way to run a log: some members, each with a disk that outlives it.
type System interface {
	// Members is how many there are. Member 0 founds the group.
	Members() int
	// Open starts member i over its disk; i may be one more than there are, which begins with an empty
	// one. onFatal may be nil.
	Open(i int, app raftlog.Applier, onFatal func(error)) (raftlog.Log, error)
	// Name of member i.
	Name(i int) petrel.NodeID
	// Cut and Heal take member i off the network and back.
	Cut(i int)
	Heal(i int)
	// LoseNext makes the next append on member 0 end in ErrUnknownOutcome, stored or not;
	// false when this system cannot.
	LoseNext(stored bool) bool
}

// Run runs the whole suite, each case on a System of its own.
func Run(t *testing.T, make func(t *testing.T) System) {
	cases := []struct {
		name    string
		members int // at least
		run     func(t *testing.T, c *cell)
	}{
		{"append, replay, restart", 1, appendReplayRestart},
		{"order and density", 1, orderAndDensity},
		{"limits of a batch", 1, limitsOfABatch},
		{"barrier", 1, barrier},
		{"duplicate submission", 1, duplicate},
		{"unknown outcome is settled by a barrier", 1, unknownSettled},
		{"applier behind", 1, applierBehind},
		{"applier ahead is refused", 1, applierAhead},
		{"snapshot and thrown-away projection", 1, thrownAway},
		{"applier error stops the shard", 1, applierError},
		{"close", 1, closed},
		{"leader killed", 3, leaderKilled},
		{"leadership lost in mid-append", 3, lostInMidAppend},
		{"snapshot for a follower far behind", 3, farBehind},
		{"slow follower", 3, slowFollower},
		{"follower applies soon", 3, followerSoon},
		{"leadership moves on request", 3, transfer},
		{"member removed", 3, removed},
		{"member restarted, wiped and replaced", 3, replaced},
		{"member away while another is replaced", 3, awayMeanwhile},
		{"what a member says of itself", 1, stats},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sys := make(t)
			if sys.Members() < tc.members {
				t.Skipf("needs %d members", tc.members)
			}
			tc.run(t, start(t, sys))
		})
	}
}

// cell is a running system.
type cell struct {
	t    *testing.T
	ctx  context.Context
	sys  System
	logs []raftlog.Log // nil while stopped
	apps []*Recorder
}

func start(t *testing.T, sys System) *cell {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	c := &cell{t: t, ctx: ctx, sys: sys, logs: make([]raftlog.Log, sys.Members())}
	t.Cleanup(func() {
		for i := range c.logs {
			c.stop(i)
		}
		cancel()
	})
	for i := range sys.Members() {
		c.apps = append(c.apps, NewRecorder())
		c.open(i)
	}
	for i := 1; i < sys.Members(); i++ {
		c.retry(func() error { return c.logs[c.leader()].AddVoter(ctx, sys.Name(i), string(sys.Name(i))) })
	}
	c.settle()
	return c
}

func (c *cell) open(i int) {
	c.t.Helper()
	l, err := c.sys.Open(i, c.apps[i], nil)
	if err != nil {
		c.t.Fatalf("open member %d: %v", i, err)
	}
	c.logs[i] = l
}

func (c *cell) stop(i int) {
	c.t.Helper()
	if c.logs[i] == nil {
		return
	}
	if err := c.logs[i].Close(); err != nil {
		c.t.Errorf("close member %d: %v", i, err)
	}
	c.logs[i] = nil
}

// retry repeats what may fail while there is no leader.
func (c *cell) retry(f func() error) {
	c.t.Helper()
	for {
		err := f()
		if err == nil {
			return
		}
		if !c.nap() {
			c.t.Fatalf("never succeeded: %v", err)
		}
	}
}

// settle waits until every running member has applied all that is committed.
func (c *cell) settle() {
	c.t.Helper()
	for _, l := range c.logs {
		if l != nil {
			c.retry(func() error { return l.Barrier(c.ctx) })
		}
	}
}

// append appends on member i until it is certain, and returns the first index. After an
// unknown outcome it looks whether the batch is there, as the desk does.
func (c *cell) append(i int, payloads ...string) uint64 {
	c.t.Helper()
	at, err := c.try(i, payloads...)
	if err != nil {
		c.t.Fatalf("append: %v", err)
	}
	return at
}

// try is append for a goroutine that is not the test's.
func (c *cell) try(i int, payloads ...string) (uint64, error) {
	for {
		first, err := c.logs[i].Append(c.ctx, raw(payloads))
		switch {
		case err == nil:
			return first, nil
		case errors.Is(err, petrel.ErrUnknownOutcome):
			for berr := c.logs[i].Barrier(c.ctx); berr != nil; berr = c.logs[i].Barrier(c.ctx) {
				if !c.nap() {
					return 0, berr
				}
			}
			if at := find(c.apps[i].Payloads(), payloads[0]); at > 0 {
				return at, nil
			}
		case !errors.Is(err, petrel.ErrNotAppended):
			return 0, err
		}
		if !c.nap() {
			return 0, err
		}
	}
}

// nap waits a moment; false when the test's time is over.
func (c *cell) nap() bool {
	select {
	case <-c.ctx.Done():
		return false
	case <-time.After(5 * time.Millisecond):
		return true
	}
}

func (c *cell) leader() int {
	c.t.Helper()
	at := -1
	c.retry(func() error {
		for i, l := range c.logs {
			if l != nil && l.Status().IsLeader && l.Barrier(c.ctx) == nil {
				at = i
				return nil
			}
		}
		return errors.New("no leader")
	})
	return at
}

func (c *cell) follower() int {
	c.t.Helper()
	lead := c.leader()
	for i, l := range c.logs {
		if l != nil && i != lead {
			return i
		}
	}
	c.t.Fatal("no follower")
	return -1
}

// agree checks that all running members hold the same records, and returns them.
func (c *cell) agree() []string {
	c.t.Helper()
	c.settle()
	var want []string
	first := true
	for i, l := range c.logs {
		if l == nil {
			continue
		}
		got := c.apps[i].Payloads()
		if first {
			want, first = got, false
		}
		if diff := cmp.Diff(want, got); diff != "" {
			c.t.Fatalf("member %d differs (-want +got):\n%s", i, diff)
		}
	}
	return want
}

func (c *cell) want(want ...string) {
	c.t.Helper()
	if diff := cmp.Diff(want, c.agree()); diff != "" {
		c.t.Fatalf("records (-want +got):\n%s", diff)
	}
}

func raw(ss []string) [][]byte {
	var out [][]byte
	for _, s := range ss {
		out = append(out, []byte(s))
	}
	return out
}

// find returns the index of the record, 0 when there is none.
func find(all []string, s string) uint64 {
	for i, p := range all {
		if p == s {
			return uint64(i + 1)
		}
	}
	return 0
}

func series(prefix string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s%d", prefix, i))
	}
	return out
}
