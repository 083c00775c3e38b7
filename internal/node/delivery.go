package node

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/api"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// newHub makes the hub before the shard is there to feed it: nobody subscribes until both are.
func (n *Node) newHub() *hub.Hub {
	view := func(ctx context.Context, fn func(*projection.Reader) error) error { return n.shard.store.View(ctx, fn) }
	return n.opt.Faults.hub(n.pusherHub(api.HubOptions(view, hub.Options{Logger: n.logger, Registerer: n.reg})))
}

// mountAPI adds Petrel's own protocol to the public side.
func (n *Node) mountAPI(p *publicSide) {
	p.api = api.Register(api.Options{
		Gateway: p.gateway, Hub: n.hub, Desk: n.opt.Faults.desk(n.desk), Projection: n.shard.store, Waiting: n.shard.loop,
		Node: petrel.NodeID(n.cfg.Name), Version: n.opt.Build.Version, ReplayLimit: uint64(n.cfg.ReplayLimit), //nolint:gosec // checked to be positive
		Alone: n.alone, Successors: n.successors, Stale: n.stale(), Settle: n.shard.log.Barrier, JobLimits: n.jobLimits, MaxSchedules: n.maxSchedules, Logger: n.logger, Registerer: n.reg,
	})
}

// stale is nil for a node that is always in touch, with itself.
func (n *Node) stale() func() time.Duration {
	if n.watch == nil {
		return nil
	}
	return n.watch.stale
}

// successors are where clients go when this node leaves.
func (n *Node) successors() []string {
	if n.cell == nil {
		return nil
	}
	return n.cell.successors()
}

// alone says whether nobody else votes on the shard, so that what is not applied here was never acknowledged.
func (n *Node) alone() bool {
	st := n.shard.log.Status()
	voters := 0
	for _, m := range st.Members {
		if m.Voter {
			voters++
		}
	}
	return st.IsLeader && voters == 1
}

// appChanged is called, on apply's goroutine too, when an app's keys or its suspension changed: connections that
// would not be let in any more are closed.
func (n *Node) appChanged(app petrel.AppID) {
	if n.webhooks.owner != nil {
		n.webhooks.owner.HooksChanged()
	}
	if a := n.api.Load(); a != nil {
		a.AppChanged(app)
	}
	n.pusherAppChanged(app)
}
