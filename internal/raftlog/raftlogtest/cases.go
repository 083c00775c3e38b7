package raftlogtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

func appendReplayRestart(t *testing.T, c *cell) {
	if first := c.append(0, "a", "b"); first != 1 {
		t.Fatalf("the first batch begins at %d", first)
	}
	if first := c.append(0, "c"); first != 3 {
		t.Fatalf("the second batch begins at %d", first)
	}
	c.want("a", "b", "c")
	for i := range c.logs { // the projections live on: nothing may be delivered twice
		c.stop(i)
	}
	for i := range c.logs {
		c.open(i)
	}
	if first := c.append(0, "d"); first != 4 {
		t.Fatalf("the batch after a restart begins at %d", first)
	}
	c.want("a", "b", "c", "d")
	for i := range c.logs {
		c.stop(i)
		c.apps[i] = NewRecorder()
	}
	for i := range c.logs {
		c.open(i)
	}
	c.want("a", "b", "c", "d")
}

func orderAndDensity(t *testing.T, c *cell) {
	const writers, each = 8, 25
	type ack struct {
		first    uint64
		payloads []string
	}
	acks := make([][]ack, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				p := series(fmt.Sprintf("%d.%d.", w, n), 1+n%3)
				first, err := c.try(w%len(c.logs), p...)
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				acks[w] = append(acks[w], ack{first, p})
			}
		})
	}
	wg.Wait()
	all := c.agree()
	n := 0
	for w := range acks {
		before := uint64(0)
		for _, a := range acks[w] {
			if a.first <= before {
				t.Fatalf("writer %d: index %d after %d", w, a.first, before)
			}
			before = a.first
			for i, p := range a.payloads {
				if got := all[a.first-1+uint64(i)]; got != p {
					t.Fatalf("record %d is %q, acknowledged was %q", a.first+uint64(i), got, p)
				}
				n++
			}
		}
	}
	if n != len(all) {
		t.Fatalf("%d records acknowledged, %d delivered", n, len(all))
	}
}

func limitsOfABatch(t *testing.T, c *cell) {
	for name, p := range map[string][][]byte{
		"none":     {},
		"too many": make([][]byte, raftlog.MaxBatchRecords+1),
		"too big":  {make([]byte, raftlog.MaxBatchBytes+1)},
	} {
		if _, err := c.logs[0].Append(c.ctx, p); !errors.Is(err, petrel.ErrNotAppended) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.append(0, "", "after an empty record")
	c.want("", "after an empty record")
}

func barrier(t *testing.T, c *cell) {
	for n := range 5 {
		on := n % len(c.logs)
		at := c.append(on, fmt.Sprint(n))
		for i, l := range c.logs {
			c.retry(func() error { return l.Barrier(c.ctx) })
			if got := c.apps[i].Applied().Index; got < at {
				t.Fatalf("member %d has applied %d after a barrier, not %d", i, got, at)
			}
		}
	}
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	if _, err := c.logs[0].Append(ctx, raw([]string{"x"})); !errors.Is(err, petrel.ErrNotAppended) && !errors.Is(err, petrel.ErrUnknownOutcome) && err != nil {
		t.Fatalf("append with an ended context: %v", err)
	}
}

// duplicate: the log does not know what a payload means. Submitted twice, it is delivered
// twice; telling them apart is the Applier's matter.
func duplicate(t *testing.T, c *cell) {
	one, two := c.append(0, "same"), c.append(0, "same")
	if one != 1 || two != 2 {
		t.Fatalf("indices %d and %d", one, two)
	}
	c.want("same", "same")
}

func unknownSettled(t *testing.T, c *cell) {
	for _, stored := range []bool{true, false} {
		if !c.sys.LoseNext(stored) {
			t.Skip("this system loses appends in cases of its own")
		}
		p := fmt.Sprintf("stored=%v", stored)
		if _, err := c.logs[0].Append(c.ctx, raw([]string{p})); !errors.Is(err, petrel.ErrUnknownOutcome) {
			t.Fatalf("append: %v", err)
		}
		c.retry(func() error { return c.logs[0].Barrier(c.ctx) })
		if there := find(c.apps[0].Payloads(), p) > 0; there != stored {
			t.Fatalf("%s: there=%v", p, there)
		}
		c.append(0, "next")
	}
}

func applierBehind(t *testing.T, c *cell) {
	for _, p := range series("r", 20) {
		c.append(0, p)
	}
	want := c.agree()
	for i := range c.logs {
		c.stop(i)
		c.apps[i].Rewind(uint64(3 + 5*i))
	}
	for i := range c.logs {
		c.open(i)
	}
	c.want(want...)
}

func applierAhead(t *testing.T, c *cell) {
	c.append(0, "a")
	c.agree()
	c.stop(0)
	r := NewRecorder()
	// A projection of a longer life than the log's, as when an old copy of the log is put back.
	h := petrel.Hash{}
	for i := uint64(1); i <= 100; i++ {
		h = follow(h, i, []byte("x"))
		if err := r.Apply(c.ctx, []petrel.Record{{Index: i, Hash: h, Payload: []byte("x")}}, 1000+i); err != nil {
			t.Fatal(err)
		}
	}
	l, err := c.sys.Open(0, r, nil)
	if err == nil {
		t.Error("opened")
		_ = l.Close()
	}
	t.Log(err)
	c.open(0) // nothing was changed
	c.want("a")
}

func thrownAway(t *testing.T, c *cell) {
	for _, p := range series("r", 10) {
		c.append(0, p)
	}
	c.settle()
	for _, l := range c.logs {
		c.retry(func() error { return l.TakeSnapshot(c.ctx) })
	}
	c.append(0, "tail")
	want := c.agree()
	for i := range c.logs {
		c.stop(i)
		c.apps[i] = NewRecorder()
	}
	for i := range c.logs {
		c.open(i)
	}
	c.want(want...)
	for i, a := range c.apps {
		if a.Restores() != 1 {
			t.Errorf("member %d restored %d times", i, a.Restores())
		}
	}
	c.append(0, "and on")
	c.want(append(want, "and on")...)
}

func applierError(t *testing.T, c *cell) {
	c.stop(0)
	fatal := make(chan error, 2)
	l, err := c.sys.Open(0, c.apps[0], func(err error) { fatal <- err })
	if err != nil {
		t.Fatal(err)
	}
	c.logs[0] = l
	c.settle()
	boom := errors.New("the fold met what it cannot fold")
	c.apps[0].Fail(boom)
	// The batch is in the log: not the append has failed, but this replica.
	c.retry(func() error {
		_, err := l.Append(c.ctx, raw([]string{"poison"}))
		if errors.Is(err, petrel.ErrNotAppended) || errors.Is(err, petrel.ErrUnknownOutcome) && len(fatal) == 0 {
			return err
		}
		return nil
	})
	select {
	case err := <-fatal:
		if !errors.Is(err, boom) {
			t.Fatalf("OnFatal: %v", err)
		}
	case <-c.ctx.Done():
		t.Fatal("OnFatal was not called")
	}
	if _, err := l.Append(c.ctx, raw([]string{"more"})); !errors.Is(err, petrel.ErrStopped) {
		t.Fatalf("append after the stop: %v", err)
	}
	if err := l.Barrier(c.ctx); !errors.Is(err, petrel.ErrStopped) {
		t.Fatalf("barrier after the stop: %v", err)
	}
	if s := l.Status(); !errors.Is(s.Stopped, boom) || s.IsLeader {
		t.Fatalf("status %+v", s)
	}
	c.stop(0)
	if len(fatal) != 0 {
		t.Fatal("OnFatal was called twice")
	}
	c.apps[0].Fail(nil)
	c.open(0)
	c.settle()
	if all := slices.Compact(c.agree()); len(all) != 1 || all[0] != "poison" { // more than one, when an answer was lost
		t.Fatalf("records after the repair: %q", all)
	}
}

func closed(t *testing.T, c *cell) {
	l := c.logs[0]
	c.append(0, "a")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if _, err := l.Append(c.ctx, raw([]string{"b"})); err != nil {
					if !errors.Is(err, petrel.ErrStopped) && !errors.Is(err, petrel.ErrUnknownOutcome) && !errors.Is(err, petrel.ErrNotAppended) {
						t.Errorf("append while closing: %v", err)
					}
					return
				}
			}
		})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if _, err := l.Append(c.ctx, raw([]string{"c"})); !errors.Is(err, petrel.ErrStopped) {
		t.Fatalf("append after Close: %v", err)
	}
	if err := l.Barrier(c.ctx); !errors.Is(err, petrel.ErrStopped) {
		t.Fatalf("barrier after Close: %v", err)
	}
	if err := l.TakeSnapshot(c.ctx); !errors.Is(err, petrel.ErrStopped) {
		t.Fatalf("snapshot after Close: %v", err)
	}
	_ = l.Status()
}

func leaderKilled(t *testing.T, c *cell) {
	lead := c.leader()
	var others []int
	for i := range c.logs {
		if i != lead {
			others = append(others, i)
		}
	}
	acked := make(map[string]uint64)
	var mu sync.Mutex
	var wg sync.WaitGroup
	half := make(chan struct{}, 2*len(others))
	for _, i := range others {
		wg.Go(func() {
			for n := range 40 {
				if n == 20 {
					half <- struct{}{}
				}
				p := fmt.Sprintf("%d.%d", i, n)
				at, err := c.try(i, p)
				if err != nil {
					t.Errorf("append: %v", err)
					half <- struct{}{}
					return
				}
				mu.Lock()
				acked[p] = at
				mu.Unlock()
			}
		})
	}
	<-half
	began := time.Now()
	if err := c.logs[lead].Close(); err != nil {
		t.Fatal(err)
	}
	c.logs[lead] = nil
	for range len(others) - 1 {
		<-half
	}
	wg.Wait()
	t.Logf("the killed leader cost %v of writing at most", time.Since(began))
	c.open(lead)
	all := c.agree()
	for p, at := range acked {
		if all[at-1] != p {
			t.Errorf("record %d is %q, acknowledged was %q", at, all[at-1], p)
		}
	}
	if len(all) != len(acked) {
		t.Errorf("%d acknowledged, %d delivered", len(acked), len(all))
	}
}

func lostInMidAppend(t *testing.T, c *cell) {
	c.append(0, "before")
	var lead int
	c.retry(func() error {
		lead = c.leader()
		c.sys.Cut(lead)
		_, err := c.logs[lead].Append(c.ctx, raw([]string{"lost"}))
		switch {
		case errors.Is(err, petrel.ErrUnknownOutcome):
			return nil
		case err == nil:
			t.Fatal("a leader that is cut off acknowledged an append")
		}
		c.sys.Heal(lead) // it led no more
		return err
	})
	other := (lead + 1) % len(c.logs)
	c.append(other, "after")
	c.sys.Heal(lead)
	c.retry(func() error { return c.logs[lead].Barrier(c.ctx) })
	// A barrier has passed: it is there or never comes. The new leader did not have it.
	if at := find(c.apps[lead].Payloads(), "lost"); at != 0 {
		t.Fatalf("the lost batch is record %d", at)
	}
	c.append(lead, "end")
	c.want("before", "after", "end")
	c.stop(lead) // it had to cut its log: what is left must be readable
	c.open(lead)
	c.want("before", "after", "end")
}

func farBehind(t *testing.T, c *cell) {
	c.append(0, "first")
	c.settle()
	behind := c.follower()
	c.stop(behind)
	from := (behind + 1) % len(c.logs)
	for _, p := range series("r", 30) { // large, so that whole segments can go: raft-wal keeps serving what is left in the last
		c.append(from, p+strings.Repeat(".", 16<<10))
	}
	for i, l := range c.logs {
		if i != behind {
			c.retry(func() error { return l.Barrier(c.ctx) })
			c.retry(func() error { return l.TakeSnapshot(c.ctx) })
		}
	}
	for _, p := range series("s", 5) {
		c.append(from, p)
	}
	c.open(behind)
	want := c.agree()
	if n := c.apps[behind].Restores(); n != 1 {
		t.Errorf("restored %d times", n)
	}
	if len(want) != 36 {
		t.Errorf("%d records", len(want))
	}
	c.stop(behind) // and what it was sent is enough to start from
	c.open(behind)
	c.append(behind, "end")
	c.want(append(want, "end")...)
	if n := c.apps[behind].Restores(); n != 1 {
		t.Errorf("restored %d times after the restart", n)
	}
}

func slowFollower(t *testing.T, c *cell) {
	slow := c.follower()
	open := make(chan struct{})
	c.apps[slow].Gate(func(ctx context.Context) {
		select {
		case <-open:
		case <-ctx.Done():
		}
	})
	from := c.leader()
	for _, p := range series("r", 50) {
		c.append(from, p)
	}
	if got := c.apps[slow].Applied().Index; got != 0 {
		t.Fatalf("the slow follower has applied %d", got)
	}
	close(open)
	c.want(series("r", 50)...)
}

func followerSoon(t *testing.T, c *cell) {
	lead := c.leader()
	var lags []time.Duration
	for n := range 40 {
		at := c.append(lead, fmt.Sprint(n)) // one by one: no next batch carries the news
		done := time.Now()
		for i := range c.logs {
			if err := c.apps[i].Wait(c.ctx, at); err != nil {
				t.Fatalf("member %d: %v", i, err)
			}
			if i != lead {
				lags = append(lags, c.apps[i].At(at).Sub(done))
			}
		}
	}
	slices.Sort(lags)
	t.Logf("from the leader's acknowledgement to a follower's apply: median %v, p90 %v, worst %v", lags[len(lags)/2], lags[len(lags)*9/10], lags[len(lags)-1])
}

func transfer(t *testing.T, c *cell) {
	c.append(0, "before")
	from := c.leader()
	to := (from + 1) % len(c.logs)
	if err := c.logs[to].TransferLeadership(c.ctx, ""); !errors.Is(err, petrel.ErrNotAppended) {
		t.Fatalf("a follower gave leadership away: %v", err)
	}
	if err := c.logs[from].TransferLeadership(c.ctx, "a stranger"); !errors.Is(err, petrel.ErrNotAppended) {
		t.Fatalf("leadership was given to a stranger: %v", err)
	}
	c.retry(func() error { return c.logs[from].TransferLeadership(c.ctx, c.sys.Name(to)) })
	if lead := c.leader(); lead != to {
		t.Logf("member %d leads, not %d: an election came in between", lead, to)
	}
	c.append(from, "after")
	c.want("before", "after")
}

func removed(t *testing.T, c *cell) {
	c.append(0, "before")
	lead, gone := c.leader(), c.follower()
	c.retry(func() error { return c.logs[lead].Remove(c.ctx, c.sys.Name(gone)) })
	c.stop(gone)
	c.append(lead, "after")
	c.want("before", "after")
	if n := len(c.logs[lead].Status().Members); n != len(c.logs)-1 {
		t.Fatalf("%d members", n)
	}
}

// replaced: a member is stopped and started again, then loses its disk for ever and comes back as another one, which
// has a vote like everybody.
func replaced(t *testing.T, c *cell) {
	c.append(0, "a")
	gone := c.follower()
	c.stop(gone)
	from := c.leader()
	c.append(from, "b")
	c.open(gone)
	c.want("a", "b")
	c.stop(gone)
	c.append(from, "c")

	fresh := len(c.logs)
	c.logs, c.apps = append(c.logs, nil), append(c.apps, NewRecorder())
	c.sys.Heal(fresh)
	c.open(fresh)
	name := c.sys.Name(fresh)
	c.retry(func() error { return c.logs[c.leader()].AddNonvoter(c.ctx, name, string(name)) })
	c.want("a", "b", "c")
	c.retry(func() error { return c.logs[c.leader()].Remove(c.ctx, c.sys.Name(gone)) })
	c.retry(func() error { return c.logs[c.leader()].AddVoter(c.ctx, name, string(name)) })
	c.retry(func() error { return holds(c.logs[c.leader()].Status().Members, c.sys.Name(gone), name) })

	lost := c.leader()
	c.stop(lost) // two of three are left, one of them the new one
	c.append(fresh, "d")
	c.open(lost)
	c.want("a", "b", "c", "d")
}

// holds says whether there are three voters, fresh among them and gone not.
func holds(members []raftlog.Member, gone, fresh petrel.NodeID) error {
	voters, there := 0, false
	for _, m := range members {
		if m.Voter {
			voters++
		}
		there = there || m.ID == fresh && m.Voter
		if m.ID == gone {
			return fmt.Errorf("%s is still there: %v", gone, members)
		}
	}
	if voters != 3 || !there {
		return fmt.Errorf("the voters are not three with %s: %v", fresh, members)
	}
	return nil
}

func stats(t *testing.T, c *cell) {
	c.append(0, "a")
	c.settle()
	for i, l := range c.logs {
		c.retry(func() error {
			if s := l.Status(); s.Lag != 0 {
				return fmt.Errorf("member %d lags by %d: %+v", i, s.Lag, s)
			}
			return nil
		})
		if s := l.Stats(); !s.Alive || s.LastTerm == 0 || s.LastMark == 0 || s.LastContact >= time.Hour {
			t.Errorf("member %d says %+v", i, s)
		}
	}
	l := c.logs[0]
	c.stop(0)
	if l.Stats().Alive {
		t.Error("a closed log calls itself alive")
	}
}

// awayMeanwhile: one member is away while another is replaced. It and the new one are a majority of what is left
// when the leader goes, though it has never heard of the new one.
func awayMeanwhile(t *testing.T, c *cell) {
	c.append(0, "a")
	away := c.follower()
	c.stop(away)
	fresh := len(c.logs)
	c.logs, c.apps = append(c.logs, nil), append(c.apps, NewRecorder())
	c.sys.Heal(fresh)
	c.open(fresh)
	name := c.sys.Name(fresh)
	c.retry(func() error { return c.logs[c.leader()].AddVoter(c.ctx, name, string(name)) })
	gone := (away + 1) % fresh
	if gone == c.leader() {
		gone = (away + 2) % fresh
	}
	c.retry(func() error { return c.logs[c.leader()].Remove(c.ctx, c.sys.Name(gone)) })
	c.append(fresh, "b")
	for i := range fresh {
		c.stop(i)
	}
	c.open(away)
	c.append(away, "c")
	c.want("a", "b", "c")
}
