package petreltest

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/api"
	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// TestPlantedBugs: the checker is worth what it finds. Each of these bugs is planted in a cell of three, and it must go red
// and name what is wrong.
func TestPlantedBugs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a cell for each bug; TestChecks spoils evidence instead")
	}
	for _, bug := range []struct {
		name   string
		plant  func(t *testing.T) (faults func(i int) *node.Faults, during func(c *Cell, w *Workload))
		checks []string // what must be found
	}{
		{"an entry dropped on one node's hub", dropOnHub, []string{CheckUndelivered}},
		{"an acknowledgement before quorum", earlyAnswer, []string{CheckLost}},
		{"a fold that reads the clock", foldByClock, []string{CheckDiverged}},
		{"a gap hidden on resume", hideGap, []string{CheckGap}},
	} {
		t.Run(bug.name, func(t *testing.T) {
			t.Parallel()
			faults, during := bug.plant(t)
			c := StartCell(t, CellOptions{Faults: faults, CompareEvery: time.Hour})
			w, err := StartWorkload(t.Context(), WorkloadOptions{Sites: c.Sites(), Seed: 1, Name: "bug", Clients: 4})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			moment(t.Context(), time.Second)
			if during != nil {
				during(c, w)
				moment(t.Context(), time.Second)
			}
			_, findings := w.Settle(t.Context(), 3*time.Second)
			for _, check := range bug.checks {
				if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Check == check }) {
					t.Errorf("the checker does not find %q; it finds %v", check, findings)
				}
			}
			for _, f := range findings {
				t.Log(f)
			}
		})
	}
}

// onlyOn plants a bug in one node.
func onlyOn(one int, f *node.Faults) func(i int) *node.Faults {
	return func(i int) *node.Faults {
		if i != one {
			return nil
		}
		return f
	}
}

// dropOnHub: every third event is stored on n2 and never offered there.
func dropOnHub(*testing.T) (func(i int) *node.Faults, func(c *Cell, w *Workload)) {
	return onlyOn(1, &node.Faults{Publish: func(pubs []petrel.Publication) []petrel.Publication {
		return slices.DeleteFunc(pubs, func(p petrel.Publication) bool { return p.Seq%3 == 0 })
	}}), nil
}

// foldByClock: n2 folds with its own clock instead of the entry's.
func foldByClock(*testing.T) (func(i int) *node.Faults, func(c *Cell, w *Workload)) {
	return onlyOn(1, &node.Faults{Domains: func(domains []apply.Domain) []apply.Domain {
		for i := range domains {
			fold := domains[i].Fold
			domains[i].Fold = func(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
				s.At = time.Now().UnixMilli()
				return fold(tx, s, ev)
			}
		}
		return domains
	}}), nil
}

// hideGap: whoever resumes at n2 is not shown the first event that follows, and nothing says so.
func hideGap(t *testing.T) (func(i int) *node.Faults, func(c *Cell, w *Workload)) {
	const hidden = "hidden"
	noise := [][]byte{conn.TextFrame([]byte(`{"op":"noise"}`)), conn.SSEChunk("", "noise", []byte(`{}`)), conn.TextFrame([]byte(`{"op":"noise"}`))}
	return onlyOn(1, &node.Faults{Hub: func(o *hub.Options) {
			history := o.History
			o.History = func(ctx context.Context, w hub.Want) (hub.Page, error) {
				page, err := history(ctx, w)
				if w.After > 0 && len(page.Publications) > 0 {
					page.Publications[0].Type = hidden
				}
				return page, err
			}
			for i, encode := range o.Encoders {
				o.Encoders[i] = func(p *petrel.Publication) []byte {
					if p.Type == hidden {
						return noise[i]
					}
					return encode(p)
				}
			}
		}}), func(_ *Cell, w *Workload) {
			for range 10 { // everybody comes back somewhere else, and so to n2 now and then
				moment(t.Context(), 200*time.Millisecond)
				for _, v := range w.watchers {
					v.Hop()
				}
			}
		}
}

// earlyAnswer: every node answers a post at once and commits it a little later, which the leader, stopped, does not come to.
func earlyAnswer(t *testing.T) (func(i int) *node.Faults, func(c *Cell, w *Workload)) {
	var desks sync.Map // node → *hastyDesk
	t.Cleanup(func() {
		desks.Range(func(_, d any) bool { d.(*hastyDesk).stop(); return true })
	})
	faults := func(i int) *node.Faults {
		return &node.Faults{Desk: func(desk api.Desk) api.Desk {
			d := &hastyDesk{Desk: desk, ended: make(chan struct{})}
			desks.Store(i, d)
			return d
		}}
	}
	return faults, func(c *Cell, _ *Workload) {
		i := max(0, c.Leader(t.Context()))
		d, _ := desks.Load(i)
		d.(*hastyDesk).stop()
		c.Kill(i)
		if err := c.Start(t.Context(), i); err != nil {
			t.Error(err)
		}
	}
}

type hastyDesk struct {
	api.Desk
	ended chan struct{}
	once  sync.Once
	later sync.WaitGroup

	position atomic.Pointer[petrel.Position] // of the last honest answer
}

func (d *hastyDesk) stop() {
	d.once.Do(func() { close(d.ended) })
	d.later.Wait()
}

// Do implements api.Desk.
func (d *hastyDesk) Do(ctx context.Context, actor petrel.Actor, meta command.Meta, cmd command.Command) (command.Result, error) {
	post, ok := cmd.(chat.PostMessage)
	position := d.position.Load()
	if !ok || position == nil {
		res, err := d.Desk.Do(ctx, actor, meta, cmd)
		if err == nil {
			d.position.Store(&res.Position)
		}
		return res, err
	}
	d.later.Go(func() {
		select {
		case <-d.ended:
		case <-time.After(200 * time.Millisecond):
			_, _ = d.Desk.Do(context.WithoutCancel(ctx), actor, command.Meta{Command: meta.Command, Request: meta.Request}, cmd)
		}
	})
	if meta.Joined != nil {
		meta.Joined()
	}
	return command.Result{Changed: true, Position: *position, Answer: chat.Message{
		ID: petrel.MessageID(meta.Command), Room: post.Room, User: actor.User, Text: post.Text,
	}}, nil
}
