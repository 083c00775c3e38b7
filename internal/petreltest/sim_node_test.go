package petreltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/api"
	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/commit"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// simApp is the app of every client.
const simApp petrel.AppID = "1"

// simRelayKind is the kind of the hub's messages on the simulated bus.
const simRelayKind bus.Kind = 1

// simNode is a node of the simulated cell: everything between an edge and the log, as package node assembles it, over the
// simulated log and bus.
type simNode struct {
	s      *sim
	number int
	id     petrel.NodeID

	disk *projection.MemoryDisk
	life uint64 // how often it was started
	up   bool
	// ready: it has applied all that was committed when it started, and serves clients.
	ready atomic.Bool

	// Of the present life.
	ctx      context.Context //nolint:containedctx // ends with the life: what runs for a client does so within it
	end      context.CancelFunc
	store    *projection.Store
	loop     *apply.Loop
	log      *raftlogtest.Replica
	pipeline *commit.Pipeline
	desk     *command.Desk
	hub      *hub.Hub
	bus      *bus.Bus

	lag   time.Duration // before every fold
	fault raftlog.Fault // of the next append
}

func (n *simNode) modules() []projection.Module {
	return []projection.Module{apply.Module(), identity.Module(), chat.Module()}
}

func (n *simNode) domains() []apply.Domain {
	fold := chat.Fold
	if n.s.bug == bugFold && n.number == 1 {
		fold = func(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
			if p, ok := ev.(event.MessagePosted); ok && s.Index%3 == 0 {
				p.Text += " "
				ev = p
			}
			return chat.Fold(tx, s, ev)
		}
	}
	return []apply.Domain{
		{Name: "identity", Kinds: identity.Kinds(), Guards: identity.GuardKinds(), Fold: identity.Fold, Version: identity.Version, Publish: identity.Publish},
		{Name: "chat", Kinds: chat.Kinds(), Guards: chat.GuardKinds(), Fold: fold, Version: chat.Version, Publish: chat.Publish},
	}
}

// start opens the node on what its disks hold.
func (n *simNode) start() {
	n.life++
	n.ctx, n.end = context.WithCancel(context.Background())
	var err error
	n.store, err = projection.Open(n.ctx, projection.Options{Memory: n.disk, Modules: n.modules(), CacheBytes: 1 << 20})
	n.s.must(err)
	n.hub = hub.New(n.hubOptions())
	n.loop, err = apply.New(apply.Options{Store: n.store, Domains: n.domains(), Publish: n.publish, Now: time.Now})
	n.s.must(err)
	life := n.life
	n.log, err = n.s.group.Open(raftlogtest.ReplicaOptions{
		Node: n.id, Applier: simApplier{n}, Fault: n.takeFault, OnFatal: func(err error) {
			n.s.found("replica stopped", "%s, life %d: %v", n.id, life, err)
		},
	})
	n.s.must(err)
	n.pipeline = commit.New(commit.Options{Appender: n.log})
	n.pipeline.Start()
	n.desk = command.New(command.Options{
		Projection: n.store, Committer: inTurn{n.pipeline}, Waiting: n.loop, Settler: n.log, Gate: identity.Gate,
		Jitter: func(d time.Duration) time.Duration { return d / 2 }, // chance would not be the seed's
	})
	n.loop.OnRestore(n.hub.OnRestore)
	n.hub.Start()
	n.s.pause(time.Millisecond) // the tickers of hub and bus shall not tick at one moment
	n.bus, err = bus.New(bus.Options{Node: n.id, Incarnation: n.life}, n.s.net.Join())
	n.s.must(err)
	n.bus.Handle(simRelayKind, func(m bus.Message) { n.hub.Receive(m.Origin, m.Incarnation, m.Payload) })
	n.bus.OnChange(func(peers []bus.Peer) {
		var alive []hub.Peer
		for _, p := range peers {
			if p.Alive || n.s.bug == bugPresence {
				alive = append(alive, hub.Peer{Node: p.Node, Incarnation: p.Incarnation})
			}
		}
		n.hub.Peers(alive)
	})
	n.s.must(n.bus.Start())
	n.hub.Join(simRelay{n})
	n.up = true
	log, ctx := n.log, n.ctx
	n.s.running.Go(func() {
		for log.Barrier(ctx) != nil {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
		n.s.note("%s is ready, at %d", n.id, n.store.Applied().Index)
		n.ready.Store(true)
	})
	n.s.note("%s starts life %d at %d", n.id, n.life, n.store.Applied().Index)
}

// stop ends the node; whoever is connected to it loses the connection. A crash says nothing to the others.
func (n *simNode) stop(crash bool) {
	n.up = false
	n.ready.Store(false)
	n.s.note("%s stops, crash %v", n.id, crash)
	for _, c := range n.s.clients {
		if c.node == n {
			c.lose("node gone")
		}
	}
	if crash {
		n.s.reach(n)
	} else {
		n.pipeline.Stop()
	}
	// One after the other, and not all at once: what was on its way shall not have to choose.
	for _, end := range []func(){
		func() { n.s.must(n.log.Close()) }, n.end, n.pipeline.Stop, n.hub.Stop, n.bus.Stop, func() { n.s.must(n.store.Close()) },
	} {
		synctest.Wait()
		end()
	}
	synctest.Wait()
}

// hubOptions are those of the real edge, but for frames that the simulated client can read.
func (n *simNode) hubOptions() hub.Options {
	o := api.HubOptions(func(ctx context.Context, fn func(*projection.Reader) error) error { return n.store.View(ctx, fn) }, hub.Options{PageSize: 8})
	o.Encoders = []func(*petrel.Publication) []byte{func(p *petrel.Publication) []byte {
		return simFrame{room: petrel.RoomID(p.Channel.Name), seq: p.Seq, kind: p.Type, data: string(p.Data)}.encode()
	}}
	o.Rosters = []func(*hub.Roster) []byte{func(r *hub.Roster) []byte {
		return simFrame{room: petrel.RoomID(r.Channel.Name), kind: "roster", data: fmt.Sprint(r.Users)}.encode()
	}}
	return o
}

func (n *simNode) publish(pubs []petrel.Publication) {
	if n.s.bug == bugPublication && n.number == 1 {
		pubs = slices.DeleteFunc(pubs, func(p petrel.Publication) bool { return p.Index%4 == 0 })
	}
	n.hub.Publish(pubs)
}

func (n *simNode) takeFault() raftlog.Fault {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	f := n.fault
	n.fault = raftlog.FaultNone
	return f
}

// snapshotBytes is what the projection holds now.
func (n *simNode) snapshotBytes() []byte {
	snap, err := n.store.Snapshot(n.ctx)
	n.s.must(err)
	defer snap.Release()
	var b bytes.Buffer
	n.s.must(snap.WriteTo(n.ctx, &b))
	return b.Bytes()
}

// restore makes the stopped node's projection what snapshotBytes returned; nil throws it away.
func (n *simNode) restore(snap []byte) {
	n.disk = &projection.MemoryDisk{}
	if snap == nil {
		return
	}
	store, err := projection.Open(context.Background(), projection.Options{Memory: n.disk, Modules: n.modules(), CacheBytes: 1 << 20})
	n.s.must(err)
	n.s.must(store.Restore(context.Background(), bytes.NewReader(snap)))
	n.s.must(store.Close())
}

// simApplier fits the loop to the log, and folds late when it is told to.
type simApplier struct{ n *simNode }

func (a simApplier) Applied() petrel.Applied { return a.n.loop.Applied() }

func (a simApplier) Apply(ctx context.Context, recs []petrel.Record, mark uint64) error {
	a.n.s.mu.Lock()
	lag := a.n.lag
	a.n.s.mu.Unlock()
	select {
	case <-time.After(lag + time.Microsecond): // never twice at one moment: who decides in between shall not race with the second
	case <-ctx.Done():
		return ctx.Err()
	}
	return a.n.loop.Apply(ctx, recs, mark)
}

func (a simApplier) Snapshot(ctx context.Context) (raftlog.Snapshot, error) {
	s, err := a.n.loop.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (a simApplier) Restore(ctx context.Context, r io.Reader) error {
	a.n.s.note("%s installs a snapshot", a.n.id)
	return a.n.loop.Restore(ctx, r)
}

// inTurn lets commands that are decided at one moment join the log in the order of their numbers, and not in the scheduler's.
type inTurn struct{ *commit.Pipeline }

type turnKey struct{}

func (p inTurn) CommitJoined(ctx context.Context, payload []byte, joined func()) (uint64, error) {
	if turn, ok := ctx.Value(turnKey{}).(int); ok {
		time.Sleep(time.Duration(turn) * time.Nanosecond)
	}
	return p.Pipeline.CommitJoined(ctx, payload, joined)
}

// simRelay fits the bus to the hub.
type simRelay struct{ n *simNode }

func (r simRelay) Node() petrel.NodeID { return r.n.id }

func (r simRelay) Bucket(ch petrel.Channel) hub.Bucket {
	return hub.Bucket(bus.BucketOf(ch.App, ch.Name))
}

func (r simRelay) Publish(b hub.Bucket, payload []byte) error {
	return r.n.bus.Publish(bus.Bucket(b), simRelayKind, payload)
}

func (r simRelay) Listen(b hub.Bucket) (func(), error) { return r.n.bus.Listen(bus.Bucket(b)) }

func (r simRelay) Ask(ctx context.Context, node petrel.NodeID, payload []byte) ([]byte, error) {
	return r.n.bus.Request(ctx, node, simRelayKind, payload)
}

// found writes the first entry of the shard, and makes the app.
func (n *simNode) found() {
	e := event.Entry{
		ID: petrel.NewEntryID(), Actor: petrel.Actor{Kind: petrel.ActorSystem}, At: time.Now().UnixMilli(),
		Events: []event.Event{event.ShardFounded{Epoch: "sim"}},
	}
	payload, err := event.Encode(&e)
	n.s.must(err)
	w := n.loop.Expect(e.ID)
	defer w.Cancel()
	_, err = n.pipeline.Commit(n.ctx, payload)
	n.s.must(err)
	_, err = w.Wait(n.ctx)
	n.s.must(err)
	_, err = n.desk.Do(n.ctx, petrel.Actor{Kind: petrel.ActorOperator}, command.Meta{}, identity.NewCreateApp(simApp, "sim", "0123456789abcdef0123", identity.Secret("0123456789abcdef0123456789abcdef01234567")))
	n.s.must(err)
}

var errSimLost = errors.New("the connection is lost")
