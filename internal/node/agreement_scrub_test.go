package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

var rowsModule = projection.Module{Name: "rows", Migrations: []string{`
CREATE TABLE line (room TEXT, seq INTEGER, text TEXT, PRIMARY KEY (room, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE other (id INTEGER PRIMARY KEY, text TEXT) STRICT;`}}

// newScrubCell is a fake cell whose replicas have real projections with the same rows.
func newScrubCell(t *testing.T, n int) *fakeCell {
	c := newFakeCell(t, n)
	c.fold(9, nil)
	for _, r := range c.nodes {
		s, err := projection.Open(t.Context(), projection.Options{Path: filepath.Join(t.TempDir(), "p.db"), Modules: []projection.Module{rowsModule}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		r.store = s
		r.exec(t, `WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 2999)
			INSERT INTO line SELECT 'room' || (i % 3), i, 'what was said, the time number ' || i FROM n`)
		r.exec(t, `INSERT INTO other VALUES (1, 'a'), (2, 'b'), (3, 'c')`)
	}
	return c
}

func (r *fakeReplica) exec(t *testing.T, sql string) {
	t.Helper()
	err := r.store.Update(t.Context(), func(tx *projection.Tx) error {
		_, err := tx.Exec(sql)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pin is the present state, said to be at the index asked for.
func (r *fakeReplica) pin(ctx context.Context, index uint64) (scrubber, error) {
	r.mu.Lock()
	refuse, broken := r.passes > 0, r.broken
	if refuse {
		r.passes--
	}
	r.mu.Unlock()
	if refuse {
		return nil, apply.ErrPassed
	}
	s, err := r.store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return &fakeScrubber{s, index, broken}, nil
}

type fakeScrubber struct {
	*projection.Snapshot
	index  uint64
	broken error
}

func (s *fakeScrubber) Applied() petrel.Applied { return petrel.Applied{Index: s.index} }

func (s *fakeScrubber) Scrub(ctx context.Context, from projection.Cursor, limit projection.ScrubLimit) ([]projection.Range, projection.Cursor, bool, error) {
	if s.broken != nil {
		return nil, from, false, s.broken
	}
	return s.Snapshot.Scrub(ctx, from, limit)
}

// verify lets n1 compare all rows, and returns what came of it.
func (c *fakeCell) verify(t *testing.T) Verification {
	t.Helper()
	n1 := c.nodes["n1"]
	if err := n1.beginScrub(false); err != nil {
		t.Fatal(err)
	}
	var v Verification
	until(t, "the scrub ends", func() bool { v = n1.verification(); return !v.Running })
	return v
}

// TestScrubFindsWhoIsWrong goes through who has other rows, and who must be fenced for it.
func TestScrubFindsWhoIsWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		nodes  int
		shape  func(t *testing.T, c *fakeCell)
		where  []string // table and keys of the differences
		fenced []petrel.NodeID
		uneven []petrel.NodeID // not compared to the end
	}{
		"nobody": {nodes: 3, shape: func(*testing.T, *fakeCell) {}},
		"a letter": {
			nodes: 3, where: []string{`line ["\"room1\",1000"]`}, fenced: []petrel.NodeID{"n3"}, uneven: []petrel.NodeID{"n3"},
			shape: func(t *testing.T, c *fakeCell) {
				c.nodes["n3"].exec(t, `UPDATE line SET text = 'what was sbid, the time number 1000' WHERE seq = 1000`)
			},
		},
		"a row is gone": {
			nodes: 3, where: []string{`line ["\"room0\",2001"]`}, fenced: []petrel.NodeID{"n2"}, uneven: []petrel.NodeID{"n2"},
			shape: func(t *testing.T, c *fakeCell) { c.nodes["n2"].exec(t, `DELETE FROM line WHERE seq = 2001`) },
		},
		"a row too many, at the end of a table": {
			nodes: 3, where: []string{`other ["4"]`}, fenced: []petrel.NodeID{"n2"}, uneven: []petrel.NodeID{"n2"},
			shape: func(t *testing.T, c *fakeCell) { c.nodes["n2"].exec(t, `INSERT INTO other VALUES (4, 'd')`) },
		},
		"the leader, who asks": {
			nodes: 3, where: []string{`other ["1" "3"]`}, fenced: []petrel.NodeID{"n1"}, uneven: []petrel.NodeID{"n1"},
			shape: func(t *testing.T, c *fakeCell) { c.nodes["n1"].exec(t, `UPDATE other SET text = 'x' WHERE id <> 2`) },
		},
		"one of two: the follower": {
			nodes: 2, where: []string{`other ["2"]`}, fenced: []petrel.NodeID{"n2"}, uneven: []petrel.NodeID{"n2"},
			shape: func(t *testing.T, c *fakeCell) { c.nodes["n1"].exec(t, `UPDATE other SET text = 'x' WHERE id = 2`) },
		},
		"while one is away, nobody": {
			nodes: 3, where: []string{`other ["2"]`}, uneven: []petrel.NodeID{"n3"},
			shape: func(t *testing.T, c *fakeCell) {
				c.nodes["n3"].set(func(r *fakeReplica) { r.gone = true })
				c.nodes["n1"].exec(t, `UPDATE other SET text = 'x' WHERE id = 2`)
			},
		},
		"one of another schema is left out": {
			nodes: 3, uneven: []petrel.NodeID{"n3"},
			shape: func(t *testing.T, c *fakeCell) {
				c.nodes["n3"].set(func(r *fakeReplica) { r.level.Schema = "other" })
				c.nodes["n3"].exec(t, `DELETE FROM line`)
			},
		},
		"one is ahead for a while": {
			nodes: 3, shape: func(_ *testing.T, c *fakeCell) {
				c.nodes["n2"].set(func(r *fakeReplica) { r.passes = 3 })
				c.nodes["n1"].set(func(r *fakeReplica) { r.passes = 2 })
			},
		},
		"one cannot read its own": {
			nodes: 3, fenced: []petrel.NodeID{"n2"}, uneven: []petrel.NodeID{"n2"},
			shape: func(_ *testing.T, c *fakeCell) {
				c.nodes["n2"].set(func(r *fakeReplica) { r.broken = fmt.Errorf("a page: %w", projection.ErrUnreadable) })
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newScrubCell(t, tc.nodes)
			tc.shape(t, c)
			v := c.verify(t)
			var where []string
			for _, d := range v.Differences {
				where = append(where, fmt.Sprintf("%s %q", d.Table, d.Keys))
			}
			if d := cmp.Diff(tc.where, where); d != "" {
				t.Errorf("differences (-want +got)\n%s", d)
			}
			var fenced, uneven []petrel.NodeID
			for _, n := range v.Nodes {
				if !n.Equal {
					uneven = append(uneven, n.Member)
				}
				if r := c.nodes[n.Member]; r.isFenced() != "" {
					fenced = append(fenced, n.Member)
					if r.cause != causeRows {
						t.Errorf("%s is fenced for %s", n.Member, r.cause)
					}
				}
			}
			if !slices.Equal(fenced, tc.fenced) || !slices.Equal(uneven, tc.uneven) {
				t.Errorf("fenced %q, want %q; not equal %q, want %q\n%+v", fenced, tc.fenced, uneven, tc.uneven, v)
			}
			if v.Equal != (len(tc.uneven) == 0) {
				t.Errorf("equal is %v: %+v", v.Equal, v)
			}
			if v.Equal && (v.Rows != 3003 || v.Nodes[0].Hash != v.Nodes[1].Hash || v.Nodes[0].Rows != 3003) {
				t.Errorf("%+v", v)
			}
		})
	}
}

// TestScrubReason: who is fenced for its rows reads where they are, and who agrees on them.
func TestScrubReason(t *testing.T) {
	t.Parallel()
	c := newScrubCell(t, 3)
	c.nodes["n3"].exec(t, `UPDATE line SET text = NULL WHERE seq = 1`)
	c.verify(t)
	want := `n3 has other rows than n1 and n2: table line, at the keys ["\"room1\",1"], at index 9 (2 of 3 replicas agree) (found by n1)`
	if got := c.nodes["n3"].isFenced(); got != want {
		t.Errorf("fenced because %s", got)
	}
}

// TestScrubBelievesOnlyProof: evidence about rows is believed by who said them.
func TestScrubBelievesOnlyProof(t *testing.T) {
	t.Parallel()
	c := newScrubCell(t, 3)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n2.exec(t, `UPDATE other SET text = 'x' WHERE id = 2`)
	ask := scrubAsk{Index: 9, From: projection.Cursor{Table: "other"}, Rows: 10, Ranges: 1, Millis: 100}
	good := func() rowEvidence {
		e := rowEvidence{Index: 9, From: ask.From, Rows: ask.Rows, Leader: "n1", Votes: map[petrel.NodeID]string{}}
		for n, r := range c.nodes {
			e.Votes[n] = rangeKey(r.slice(t.Context(), ask).Ranges[0])
		}
		return e
	}
	for name, change := range map[string]func(e *rowEvidence){
		"another index":    func(e *rowEvidence) { e.Index++ },
		"another range":    func(e *rowEvidence) { e.Number = 1 },
		"other rows":       func(e *rowEvidence) { e.Rows++ },
		"no range":         func(e *rowEvidence) { e.Number = -1 },
		"another's answer": func(e *rowEvidence) { e.Votes["n2"] = "?" },
		"I am not wrong":   func(e *rowEvidence) { delete(e.Votes, "n1"); delete(e.Votes, "n3") },
	} {
		e := good()
		change(&e)
		if err := n1.tell(t.Context(), "n2", evidence{Rows: &e}); err == nil || n2.isFenced() != "" {
			t.Errorf("%s: believed", name)
		}
	}
	e := good()
	if err := n1.tell(t.Context(), "n2", evidence{Reason: "because", Rows: &e}); err != nil || n2.isFenced() != "because (found by n1)" {
		t.Errorf("%v, fenced because %q", err, n2.isFenced())
	}
}

// TestScrubOneAtATime: a second one is told that there is one.
func TestScrubOneAtATime(t *testing.T) {
	t.Parallel()
	c := newScrubCell(t, 2)
	n1 := c.nodes["n1"]
	n1.scrubbing <- struct{}{} // this node's slices wait
	if err := n1.beginScrub(false); err != nil {
		t.Fatal(err)
	}
	if err := n1.beginScrub(true); !errors.Is(err, errScrubbing) {
		t.Errorf("a second one: %v", err)
	}
	if v := n1.verification(); !v.Running {
		t.Errorf("%+v", v)
	}
	<-n1.scrubbing
	until(t, "the scrub ends", func() bool { return !n1.verification().Running })
	if v := n1.verification(); !v.Equal || v.Error != "" {
		t.Errorf("%+v", v)
	}
	n1.close()
	if err := n1.beginScrub(false); petrel.CodeOf(err) != petrel.CodeDraining {
		t.Errorf("after close: %v", err)
	}
}

// TestAppeal: of two replicas one is fenced for want of a majority, while a third is away. It is not set aside until the
// third is back, which may say that the leader is the wrong one.
func TestAppeal(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		wrong petrel.NodeID
		how   string
		want  string
	}{
		"the leader is wrong, by digest": {"n1", "digest", "n1 n2"}, "the leader is wrong, by writes": {"n1", "writes", "n1 n2"},
		"the follower is wrong": {"n2", "digest", "n2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCell(t, 3)
				third := c.nodes["n3"]
				c.fold(5, nil)
				third.set(func(r *fakeReplica) { r.gone = true })
				c.fold(3, map[petrel.NodeID]string{tc.wrong: tc.how})
				all := third.proofs
				third.set(func(r *fakeReplica) { r.proofs = r.proofs[:6]; r.low = 5 })
				c.rounds(t, 3)
				if c.nodes["n1"].isFenced() != "" || c.nodes["n2"].isFenced() == "" || c.nodes["n2"].mayLeave() {
					t.Fatalf("fenced %v; may leave: %v", c.fencedNodes(), c.nodes["n2"].mayLeave())
				}
				third.set(func(r *fakeReplica) { r.gone = false })
				c.rounds(t, 3)
				if c.nodes["n2"].mayLeave() {
					t.Error("it may leave before the third has come so far")
				}
				third.set(func(r *fakeReplica) { r.proofs = all })
				c.fold(2, nil)
				c.rounds(t, 12)
				time.Sleep(time.Second)
				var fenced []string
				for n := range c.fencedNodes() {
					fenced = append(fenced, string(n))
				}
				slices.Sort(fenced)
				if got := strings.Join(fenced, " "); got != tc.want || !c.nodes["n2"].mayLeave() {
					t.Errorf("fenced %q, want %q; may leave: %v", got, tc.want, c.nodes["n2"].mayLeave())
				}
			})
		})
	}
}
