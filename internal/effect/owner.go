package effect

import (
	"context"
	"hash/fnv"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Buckets is into how many shares channels fall.
const Buckets = 1024

// ChannelHere is what is so on a channel, over all nodes.
type ChannelHere struct {
	Count int             // subscriptions
	Users []petrel.UserID // of a presence channel, in order
	Whole bool            // every living node has said what it has: else nothing follows from what is missing
}

// OwnerOptions are the options of NewOwner. Functions without a default are required.
type OwnerOptions struct {
	// Node is this one's name; Nodes names those that live, this one too.
	Node  petrel.NodeID
	Nodes func() []petrel.NodeID
	// InTouch says whether the log can be written: a node in a minority owns nothing.
	InTouch func() bool
	// Bucket says in which one a channel lies, below Buckets.
	Bucket func(ch petrel.Channel) uint16
	// Here is what this node knows of a channel; Look asks the others, and waits for a moment.
	Here func(ch petrel.Channel) ChannelHere
	Look func(ctx context.Context, ch petrel.Channel) ChannelHere
	// Reconsider lets whoever watches channels for the Owner ask Owns and Wants anew.
	Reconsider func()
	// Hooks of an app, from memory.
	Hooks func(app petrel.AppID) []identity.Hook
	// Any says whether any app has webhooks: without, nothing is owned in the eyes of whoever watches channels, and no node needs to hear of the
	// others' channels. When it may have changed, call HooksChanged. Default: always.
	Any func() bool
	// Do carries out a command for an app, as the system.
	Do   func(ctx context.Context, app petrel.AppID, c command.Command) (command.Result, error)
	View func(ctx context.Context, fn func(*projection.Reader) error) error

	// HoldDown is how long something must be gone before it is told. Default 3 s.
	HoldDown time.Duration
	// Settle is how long after it came to own a channel an owner believes that nobody is there: who was sent away by the event
	// that made it the owner is on the way back. Default 8 s.
	Settle time.Duration
	// Sweep is how often what was told is compared with what is so, whatever changed. Default 30 s.
	Sweep time.Duration
	// CountEvery is the least time between two counts of a channel with more than 100 subscriptions; with fewer it is a second. Default 5 s.
	CountEvery time.Duration
	// Writers is how many channels are told of at once. Default 64.
	Writers int

	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *OwnerOptions) defaults() {
	if o.Any == nil {
		o.Any = func() bool { return true }
	}
	if o.Nodes == nil || o.InTouch == nil || o.Bucket == nil || o.Here == nil || o.Look == nil || o.Reconsider == nil || o.Hooks == nil || o.Do == nil || o.View == nil {
		panic("effect: OwnerOptions is missing a part") // a mistake of assembly
	}
	dur := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	dur(&o.HoldDown, 3*time.Second)
	dur(&o.Settle, 8*time.Second)
	dur(&o.Sweep, 30*time.Second)
	dur(&o.CountEvery, 5*time.Second)
	if o.Writers <= 0 {
		o.Writers = 64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

const (
	// lookAtNodes is how often it is asked who lives and whether the log can be written, besides PeersChanged.
	lookAtNodes = 500 * time.Millisecond
	// gatherChanges is how long changes are collected before they are looked at.
	gatherChanges = 50 * time.Millisecond
	// tellTimeout bounds what one channel's telling may take in one go.
	tellTimeout = 10 * time.Second
	sweepPage   = 500
)

// Owner tells webhooks of the channels that this node owns: it compares what is so with what was told last, by the log, and writes
// the difference down together with the jobs that tell it. Every bucket has one owner among the nodes that live, by rendezvous
// hashing; while two nodes differ over who that is, the version of what was told lets one of them write.
type Owner struct {
	opt     OwnerOptions
	metrics *ownerMetrics

	mu      sync.RWMutex       // guards what follows; nothing else is locked and nothing called while it is held
	since   [Buckets]time.Time // since when a bucket is owned; zero: it is not
	owned   int
	resting bool
	changed map[petrel.Channel]struct{}
	swept   bool // a sweep is due at once

	wake    chan struct{} // one token
	tracks  map[petrel.Channel]*track
	running sync.WaitGroup
	end     context.CancelFunc
	started sync.Once
}

// NewOwner returns one that owns nothing until Start.
func NewOwner(o OwnerOptions) *Owner {
	o.defaults()
	w := &Owner{opt: o, wake: make(chan struct{}, 1), changed: map[petrel.Channel]struct{}{}, tracks: map[petrel.Channel]*track{}}
	w.metrics = newOwnerMetrics(o.Registerer, w)
	return w
}

// Start begins to own. It does not block and may be called twice.
func (w *Owner) Start() {
	w.started.Do(func() {
		ctx, cancel := context.WithCancel(context.Background())
		w.mu.Lock()
		w.end = cancel
		w.mu.Unlock()
		w.running.Go(func() { w.run(ctx) })
	})
}

// Rest ends owning, because the node leaves: the clients that it sends away are told of by whoever follows it.
func (w *Owner) Rest() {
	w.mu.Lock()
	w.resting = true
	w.mu.Unlock()
	w.lookAtNodes()
}

// Stop ends all work and waits for it. It may be called twice, and without Start.
func (w *Owner) Stop() {
	w.started.Do(func() {})
	w.mu.Lock()
	w.resting = true
	end := w.end
	w.mu.Unlock()
	if end != nil {
		end()
	}
	w.running.Wait()
}

// Owns says whether this node owns a bucket whose channels somebody may want to be told of.
func (w *Owner) Owns(bucket uint16) bool {
	if !w.opt.Any() {
		return false
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	return bucket < Buckets && !w.since[bucket].IsZero()
}

// Wants says whether webhooks of its app are told of a channel.
func (w *Owner) Wants(ch petrel.Channel) bool {
	return ch.Kind == petrel.ChannelPusher && interestIn(w.opt.Hooks(ch.App), ch.Name).any()
}

// Changed says that something about an owned channel may have changed. It does not block.
func (w *Owner) Changed(ch petrel.Channel) {
	w.mu.Lock()
	w.changed[ch] = struct{}{}
	w.mu.Unlock()
	w.poke()
}

// HooksChanged says that an app's webhooks, or those of any, have changed. It does not block.
func (w *Owner) HooksChanged() {
	w.mu.Lock()
	w.swept = true
	w.mu.Unlock()
	w.opt.Reconsider()
	w.poke()
}

func (w *Owner) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// lookAtNodes decides anew what is owned.
func (w *Owner) lookAtNodes() {
	nodes, able := w.opt.Nodes(), w.opt.InTouch()
	now := time.Now()
	w.mu.Lock()
	gained, lost := 0, 0
	for b := range w.since {
		mine := able && !w.resting && OwnerOf(nodes, uint16(b)) == w.opt.Node //nolint:gosec // below Buckets
		switch {
		case mine && w.since[b].IsZero():
			w.since[b] = now
			gained++
		case !mine && !w.since[b].IsZero():
			w.since[b] = time.Time{}
			lost++
		}
	}
	w.owned += gained - lost
	w.swept = w.swept || gained > 0
	w.mu.Unlock()
	if gained+lost > 0 {
		w.opt.Logger.Debug("the channels that this node tells webhooks of have changed", "gained", gained, "lost", lost, "nodes", len(nodes))
		w.opt.Reconsider()
		w.poke()
	}
}

// OwnerOf is the node that owns a bucket: the same on all nodes that agree on who lives.
func OwnerOf(nodes []petrel.NodeID, bucket uint16) (owner petrel.NodeID) {
	var best uint64
	for _, n := range nodes {
		h := fnv.New64a()
		_, _ = h.Write([]byte(n)) // never fails
		_, _ = h.Write([]byte{0, byte(bucket >> 8), byte(bucket)})
		// FNV's last bytes move its high bits little: a finalizer mixes them (Murmur3's).
		x := h.Sum64()
		x = (x ^ x>>33) * 0xff51afd7ed558ccd
		x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
		x ^= x >> 33
		if owner == "" || x > best || x == best && n < owner {
			owner, best = n, x
		}
	}
	return owner
}

// ownedSince is when the channel came to be owned; ok is false while it is not.
func (w *Owner) ownedSince(ch petrel.Channel) (since time.Time, ok bool) {
	b := w.opt.Bucket(ch)
	w.mu.RLock()
	defer w.mu.RUnlock()
	if b >= Buckets {
		return time.Time{}, false
	}
	return w.since[b], !w.since[b].IsZero()
}

// run works until ctx is over.
func (w *Owner) run(ctx context.Context) {
	nodes := time.NewTicker(lookAtNodes)
	defer nodes.Stop()
	sweep := time.NewTicker(w.opt.Sweep)
	defer sweep.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	w.lookAtNodes()
	for ctx.Err() == nil {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-nodes.C:
			w.lookAtNodes()
			continue
		case <-sweep.C:
			all = true
		case <-due.C:
		case <-w.wake:
			pause := time.NewTimer(gatherChanges)
			select {
			case <-ctx.Done():
			case <-pause.C:
			}
			pause.Stop()
		}
		next := w.pass(ctx, all)
		due.Reset(next)
	}
}

// pass looks at what changed and what is due, and returns when the next is.
func (w *Owner) pass(ctx context.Context, all bool) time.Duration {
	w.mu.Lock()
	todo := w.changed
	w.changed = map[petrel.Channel]struct{}{}
	all = all || w.swept
	w.swept = false
	w.mu.Unlock()
	if all {
		if err := w.sweep(ctx, todo); err != nil && ctx.Err() == nil {
			w.opt.Logger.Warn("what webhooks were told of channels cannot be read; it is tried again", "error", err)
		}
	}
	now := time.Now()
	for ch, t := range w.tracks {
		if !now.Before(t.look) {
			todo[ch] = struct{}{}
		}
	}
	var group errgroup.Group
	group.SetLimit(w.opt.Writers)
	for ch := range todo {
		t := w.tracks[ch]
		if t == nil {
			t = &track{gone: map[petrel.UserID]time.Time{}}
			w.tracks[ch] = t
		}
		t.look = time.Time{}
		group.Go(func() error {
			w.attend(ctx, ch, t)
			return nil
		})
	}
	_ = group.Wait() // nothing fails: what could not be done is due again
	next := time.Hour
	now = time.Now()
	for ch, t := range w.tracks {
		if t.look.IsZero() {
			delete(w.tracks, ch)
			continue
		}
		next = min(next, t.look.Sub(now))
	}
	return max(next, 10*time.Millisecond)
}

// sweep adds the channels that were told of and are owned here, where that may be otherwise by now.
func (w *Owner) sweep(ctx context.Context, todo map[petrel.Channel]struct{}) error {
	for app, name := petrel.AppID(""), ""; ; {
		var page []channel.State
		err := w.opt.View(ctx, func(r *projection.Reader) (err error) {
			page, err = channel.States(r, app, name, sweepPage)
			return err
		})
		if err != nil {
			return err
		}
		for _, st := range page {
			app, name = st.App, st.Channel
			ch := petrel.PusherChannel(st.App, st.Channel)
			if _, ok := w.ownedSince(ch); !ok {
				continue
			}
			i := interestIn(w.opt.Hooks(st.App), st.Channel)
			if here := w.opt.Here(ch); !here.Whole || here.Count == 0 || !i.any() || i.members || i.count && here.Count != int(st.Count) { //nolint:gosec // a count
				todo[ch] = struct{}{}
			}
		}
		if len(page) < sweepPage {
			return nil
		}
	}
}
