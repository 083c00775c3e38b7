package node

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// fakeCell is some replicas in memory, with an agreement each.
type fakeCell struct {
	passed atomic.Int64 // time, in nanoseconds, beside what really passed: one interval a round
	leader petrel.NodeID
	term   uint64
	nodes  map[petrel.NodeID]*fakeReplica
}

// fakeReplica says what it was told to say about its state.
type fakeReplica struct {
	*agreement
	cell  *fakeCell
	id    petrel.NodeID
	store *projection.Store // of tests of rows

	mu       sync.Mutex // guards what follows
	level    level
	low      uint64
	proofs   []apply.Proof // by index
	fencedBy string
	cause    cause
	deaf     bool // answers nobody
	gone     bool // is not alive
	blind    bool // its own comparisons find nothing
	asked    int
	passes   int   // how often its next pins come too late
	broken   error // of its scrubs
	logged   strings.Builder
}

func newFakeCell(t *testing.T, n int) *fakeCell {
	c := &fakeCell{leader: "n1", term: 1, nodes: map[petrel.NodeID]*fakeReplica{}}
	for i := range n {
		id := petrel.NodeID(fmt.Sprint("n", i+1))
		r := &fakeReplica{cell: c, id: id, level: level{Epoch: "e", Feature: 1, Schema: "s", Build: "b"}, proofs: make([]apply.Proof, 1)}
		r.agreement = newAgreement(agreementOptions{
			self: id, level: func() level { r.mu.Lock(); defer r.mu.Unlock(); return r.level },
			peers: r.others, members: c.members, now: func() time.Time { return time.Now().Add(time.Duration(c.passed.Load())) }, leader: func() (petrel.NodeID, uint64) { return c.leader, c.term }, ask: r.ask,
			proofAt: r.proofAt, proven: r.provenRange, pin: r.pin, fence: r.fence, fenced: r.isFenced,
			logger: slog.New(slog.NewTextHandler(lockedWriter{r}, nil)),
		})
		r.open.Store(true)
		c.nodes[id] = r
		t.Cleanup(r.close)
	}
	return c
}

func (c *fakeCell) members() (all []petrel.NodeID) {
	for id := range c.nodes {
		all = append(all, id)
	}
	return all
}

type lockedWriter struct{ r *fakeReplica }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.r.logged.Write(b)
}

// fold makes nodes fold n more entries; those of which strange says so write or come to something else.
func (c *fakeCell) fold(n int, strange map[petrel.NodeID]string) {
	for id, r := range c.nodes {
		r.mu.Lock()
		for range n {
			last := r.proofs[len(r.proofs)-1]
			next := apply.Proof{Digest: sha256.Sum256(append(last.Digest[:], byte(len(r.proofs)))), Writes: last.Writes + mix(len(r.proofs))}
			switch strange[id] {
			case "digest":
				next.Digest[0]++
			case "writes":
				next.Writes += 1 + uint64(id[1])
			}
			r.proofs = append(r.proofs, next)
		}
		r.mu.Unlock()
	}
}

func mix(i int) uint64 {
	s := sha256.Sum256([]byte(fmt.Sprint(i)))
	return binary.BigEndian.Uint64(s[:])
}

// restart forgets all proofs but the last.
func (r *fakeReplica) restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.low = uint64(len(r.proofs)) - 1
	base := r.proofs[r.low].Writes
	for i := r.low; i < uint64(len(r.proofs)); i++ {
		r.proofs[i].Writes -= base
	}
}

func (r *fakeReplica) others() (all []petrel.NodeID) {
	for id, o := range r.cell.nodes {
		o.mu.Lock()
		if id != r.id && !o.gone {
			all = append(all, id)
		}
		o.mu.Unlock()
	}
	return all
}

func (r *fakeReplica) ask(ctx context.Context, to petrel.NodeID, kind bus.Kind, payload []byte) ([]byte, error) {
	o := r.cell.nodes[to]
	o.mu.Lock()
	o.asked++
	deaf, gone := o.deaf, o.gone
	o.mu.Unlock()
	switch {
	case gone:
		return nil, bus.ErrNoPeer
	case deaf:
		<-ctx.Done()
		return nil, ctx.Err()
	case kind == kindDigest:
		return o.serveProof(ctx, r.id, payload)
	case kind == kindFence:
		return o.serveFence(ctx, r.id, payload)
	case kind == kindScrub:
		return o.serveScrub(ctx, r.id, payload)
	}
	return nil, bus.ErrNoAnswer
}

func (r *fakeReplica) proofAt(i uint64) (apply.Proof, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i < r.low || i >= uint64(len(r.proofs)) {
		return apply.Proof{}, false
	}
	return r.proofs[i], true
}

func (r *fakeReplica) provenRange() (low, high uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.low, uint64(len(r.proofs)) - 1
}

func (r *fakeReplica) fence(c cause, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fencedBy == "" {
		r.fencedBy, r.cause = reason, c
	}
}

func (r *fakeReplica) isFenced() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fencedBy
}

func (r *fakeReplica) set(f func(*fakeReplica)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// fencedNodes are who is fenced, and why.
func (c *fakeCell) fencedNodes() map[petrel.NodeID]string {
	all := map[petrel.NodeID]string{}
	for id, r := range c.nodes {
		if why := r.isFenced(); why != "" {
			all[id] = why
		}
	}
	return all
}

// rounds lets every node compare n times, in turn.
func (c *fakeCell) rounds(t *testing.T, n int) {
	t.Helper()
	for range n {
		c.passed.Add(int64(3 * time.Second))
		for i := range len(c.nodes) {
			r := c.nodes[petrel.NodeID(fmt.Sprint("n", i+1))]
			r.mu.Lock()
			blind := r.blind || r.gone
			r.mu.Unlock()
			if !blind {
				r.compare(t.Context())
			}
		}
	}
}

// TestAgreementFindsWhoIsWrong goes through who differs in what, and who must be fenced for it.
func TestAgreementFindsWhoIsWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		nodes  int
		shape  func(c *fakeCell)
		rounds int // default 1
		want   map[petrel.NodeID]string
	}{
		"nobody": {nodes: 3, shape: func(c *fakeCell) { c.fold(100, nil) }},
		"a follower's outcome": {
			nodes: 3,
			shape: func(c *fakeCell) {
				c.fold(100, nil)
				c.fold(1, map[petrel.NodeID]string{"n3": "digest"})
				c.fold(40, nil)
			},
			want: map[petrel.NodeID]string{"n3": "n3 differs from index 101 on: what its folds came to is not the same as on n1 and n2 (compared at index 141; 2 of 3 replicas agree)"},
		},
		"a follower's writes": {
			nodes: 3,
			shape: func(c *fakeCell) {
				c.fold(100, nil)
				c.fold(1, map[petrel.NodeID]string{"n2": "writes"})
				c.fold(40, nil)
			},
			want: map[petrel.NodeID]string{"n2": "n2 differs from index 101 on: what its folds wrote is not the same as on n1 and n3 (compared at index 101; 2 of 3 replicas agree)"},
		},
		"the leader's outcome": {
			nodes: 3,
			shape: func(c *fakeCell) {
				c.fold(7, map[petrel.NodeID]string{"n1": "digest"})
			},
			want: map[petrel.NodeID]string{"n1": "n1 differs from index 1 on: what its folds came to is not the same as on n2 and n3 (compared at index 7; 2 of 3 replicas agree)"},
		},
		"before anything is remembered": {
			nodes: 3,
			shape: func(c *fakeCell) {
				c.fold(7, map[petrel.NodeID]string{"n2": "digest"})
				for _, r := range c.nodes {
					r.restart()
				}
				c.fold(3, nil)
			},
			want: map[petrel.NodeID]string{"n2": "n2 differs from index 7 on, or from before: what its folds came to is not the same as on n1 and n3 (compared at index 10; 2 of 3 replicas agree)"},
		},
		"one of two: the follower": {
			nodes: 2,
			shape: func(c *fakeCell) { c.fold(9, map[petrel.NodeID]string{"n1": "writes"}) },
			want:  map[petrel.NodeID]string{"n2": "n2 differs from index 1 on: what its folds wrote is not the same as on n1 (compared at index 1; no majority agrees, so the leader's side stays)"},
		},
		"all three: the leader stays": {
			nodes: 3,
			shape: func(c *fakeCell) {
				c.leader = "n2"
				c.fold(9, map[petrel.NodeID]string{"n1": "writes", "n2": "writes", "n3": "writes"})
			},
			want: map[petrel.NodeID]string{
				"n1": "n1 differs from index 1 on: what its folds wrote is not the same as on n2 (compared at index 1; no majority agrees, so the leader's side stays)",
				"n3": "n3 differs from index 1 on: what its folds wrote is not the same as on n2 (compared at index 1; no majority agrees, so the leader's side stays)",
			},
		},
		"one that does not look": {
			nodes: 3,
			shape: func(c *fakeCell) {
				c.nodes["n3"].blind = true
				c.fold(5, map[petrel.NodeID]string{"n3": "digest"})
			},
			want: map[petrel.NodeID]string{"n3": "n3 differs from index 1 on: what its folds came to is not the same as on n1 and n2 (compared at index 5; 2 of 3 replicas agree)"},
		},
		"without a leader nobody can say which of two": {
			nodes: 2, rounds: 20,
			shape: func(c *fakeCell) {
				c.leader = ""
				c.fold(5, map[petrel.NodeID]string{"n2": "digest"})
			},
		},
		"who lags is waited for": {
			nodes: 3, rounds: 2,
			shape: func(c *fakeCell) {
				c.fold(5, nil)
				c.nodes["n3"].set(func(r *fakeReplica) { r.gone = true })
				c.fold(5, map[petrel.NodeID]string{"n1": "digest"})
				c.nodes["n3"].set(func(r *fakeReplica) { r.gone, r.proofs = false, r.proofs[:6] })
			},
		},
		"but not for ever": {
			nodes: 3, rounds: 11,
			shape: func(c *fakeCell) {
				c.fold(5, nil)
				c.fold(5, map[petrel.NodeID]string{"n1": "digest"})
				c.nodes["n3"].set(func(r *fakeReplica) { r.proofs = r.proofs[:6] })
			},
			want: map[petrel.NodeID]string{"n2": "n2 differs from index 6 on: what its folds came to is not the same as on n1 (compared at index 10; no majority agrees, so the leader's side stays)"},
		},
		"another epoch": {
			nodes: 3, rounds: 20,
			shape: func(c *fakeCell) {
				c.nodes["n2"].level.Epoch = "f"
				c.fold(5, map[petrel.NodeID]string{"n2": "digest"})
			},
		},
		"another feature level": {
			nodes: 3, rounds: 20,
			shape: func(c *fakeCell) {
				c.nodes["n2"].level.Feature = 2
				c.fold(5, map[petrel.NodeID]string{"n2": "digest"})
			},
		},
		"another schema": {
			nodes: 3, rounds: 20,
			shape: func(c *fakeCell) {
				c.nodes["n2"].level.Schema = "t"
				c.fold(5, map[petrel.NodeID]string{"n2": "digest"})
			},
		},
		"another build may write otherwise": {
			nodes: 3, rounds: 20,
			shape: func(c *fakeCell) {
				c.nodes["n2"].level.Build = "c"
				c.fold(5, map[petrel.NodeID]string{"n2": "writes"})
			},
		},
		"but not come to something else": {
			nodes: 3,
			shape: func(c *fakeCell) {
				c.nodes["n2"].level.Build = "c"
				c.fold(5, map[petrel.NodeID]string{"n2": "digest"})
			},
			want: map[petrel.NodeID]string{"n2": "n2 differs from index 1 on: what its folds came to is not the same as on n1 and n3 (compared at index 5; 2 of 3 replicas agree)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newFakeCell(t, tc.nodes)
			tc.shape(c)
			c.rounds(t, max(1, tc.rounds))
			if tc.want == nil {
				tc.want = map[petrel.NodeID]string{}
			}
			got := c.fencedNodes()
			for n, why := range got {
				got[n], _, _ = strings.Cut(why, " (found by") // it may find out itself, or be told
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// TestAgreementWaitsForTheThird: who lags decides once it has come far enough, against the leader too.
func TestAgreementWaitsForTheThird(t *testing.T) {
	t.Parallel()
	c := newFakeCell(t, 3)
	c.fold(5, nil)
	c.fold(5, map[petrel.NodeID]string{"n1": "writes"})
	third := c.nodes["n3"]
	all := third.proofs
	third.set(func(r *fakeReplica) { r.proofs = all[:6] })
	c.rounds(t, 3)
	if got := c.fencedNodes(); len(got) != 0 {
		t.Fatalf("fenced before the third could say: %v", got)
	}
	third.set(func(r *fakeReplica) { r.proofs = all })
	c.rounds(t, 1)
	if got := c.fencedNodes(); len(got) != 1 || got["n1"] == "" {
		t.Errorf("fenced: %v, want n1 alone", got)
	}
}

// TestAgreementBelievesOnlyProof: evidence that is not about this node's own state fences nobody.
func TestAgreementBelievesOnlyProof(t *testing.T) {
	t.Parallel()
	c := newFakeCell(t, 3)
	c.fold(20, nil)
	c.fold(1, map[petrel.NodeID]string{"n2": "digest"})
	good := func() evidence {
		e := evidence{Reason: "because", Ask: proofAsk{Index: 21, Low: 21, Exact: true}, Votes: map[petrel.NodeID]proofAnswer{}}
		for n, r := range c.nodes {
			e.Votes[n] = r.proof(e.Ask)
		}
		return e
	}
	for name, change := range map[string]func(e *evidence){
		"another's state": func(e *evidence) { v := e.Votes["n2"]; v.Digest = "00"; e.Votes["n2"] = v },
		"another index":   func(e *evidence) { e.Ask.Index, e.Ask.Low = 20, 20 },
		"another epoch":   func(e *evidence) { v := e.Votes["n2"]; v.Level.Epoch = "f"; e.Votes["n2"] = v },
		"no vote of mine": func(e *evidence) { delete(e.Votes, "n2") },
		"I am not wrong":  func(e *evidence) { delete(e.Votes, "n1"); delete(e.Votes, "n3") },
		"forgotten":       func(e *evidence) { e.Ask.Index, e.Ask.Low = 99, 99 },
	} {
		e := good()
		change(&e)
		if err := c.nodes["n1"].tell(t.Context(), "n2", e); err == nil || c.nodes["n2"].isFenced() != "" {
			t.Errorf("%s: believed", name)
		}
	}
	if err := c.nodes["n1"].tell(t.Context(), "n2", good()); err != nil {
		t.Error(err)
	}
	if got := c.nodes["n2"].isFenced(); got != "because (found by n1)" {
		t.Errorf("fenced because %q", got)
	}
}

// TestAgreementInTime runs the rounds on a clock, while entries are folded: a difference is found within two
// intervals, silent nodes hold nobody up, and the age tells when all were last equal.
func TestAgreementInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCell(t, 3)
		for _, r := range c.nodes {
			r.start()
		}
		age := func() time.Duration {
			a := c.nodes["n1"]
			a.agreement.mu.Lock()
			defer a.agreement.mu.Unlock()
			return time.Since(a.agreed)
		}
		for range 20 {
			c.fold(3, nil)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if age() > 3*time.Second {
			t.Errorf("last equal %v ago", age())
		}
		c.nodes["n3"].set(func(r *fakeReplica) { r.deaf = true })
		time.Sleep(30 * time.Second)
		if age() < 25*time.Second {
			t.Errorf("one does not answer, and all were found equal %v ago", age())
		}
		c.nodes["n3"].set(func(r *fakeReplica) { r.deaf = false })
		c.fold(1, map[petrel.NodeID]string{"n3": "writes"})
		c.fold(100, nil)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := c.fencedNodes(); len(got) != 1 || got["n3"] == "" {
			t.Errorf("fenced: %v, want n3", got)
		}
		asked := func() int {
			c.nodes["n1"].mu.Lock()
			defer c.nodes["n1"].mu.Unlock()
			return c.nodes["n1"].asked
		}
		before := asked()
		time.Sleep(time.Minute)
		if n := asked() - before; n > 25 {
			t.Errorf("asked %d times in a minute by one node in service; a fenced one must not ask", n)
		}
		for _, r := range c.nodes {
			r.close()
		}
	})
}

// TestAgreementWhileFolding is for the race detector.
func TestAgreementWhileFolding(t *testing.T) {
	t.Parallel()
	c := newFakeCell(t, 3)
	var wg sync.WaitGroup
	for _, r := range c.nodes {
		wg.Go(func() {
			for range 30 {
				r.compare(context.Background())
			}
		})
	}
	for range 200 {
		c.fold(5, nil)
	}
	wg.Wait()
	if got := c.fencedNodes(); len(got) != 0 {
		t.Errorf("fenced: %v", got)
	}
}
