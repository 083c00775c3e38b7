package node

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// modules and domains are what the one shard of this installation holds. Their order is that of the schema.
func modules() []projection.Module {
	return []projection.Module{apply.Module(), identity.Module(), chat.Module(), channel.Module(), job.Module()}
}

func (n *Node) domains() []apply.Domain {
	return []apply.Domain{
		{Name: "identity", Kinds: identity.Kinds(), Guards: identity.GuardKinds(), Fold: identity.Fold, Version: identity.Version, Publish: n.directory.Publish},
		{Name: "chat", Kinds: chat.Kinds(), Guards: chat.GuardKinds(), Fold: chat.Fold, Version: chat.Version, Publish: chat.Publish},
		{Name: "channel", Kinds: channel.Kinds(), Guards: channel.GuardKinds(), Fold: channel.Fold, Version: channel.Version, Publish: channel.Publish},
		{Name: "job", Kinds: job.Kinds(), Guards: job.GuardKinds(), Fold: job.Fold, Version: job.Version, Publish: n.publishJobs},
	}
}

// openShard opens the durable lane and puts the desk before it and the hub behind it.
func (n *Node) openShard(ctx context.Context) (err error) {
	n.hub = n.newHub()
	n.hearOfUsers(n.hub)
	n.directory = identity.NewDirectory(identity.DirectoryOptions{Now: n.opt.Faults.now(), OnChange: n.appChanged})
	if err := n.openWebhooks(); err != nil {
		return err
	}
	n.shard, err = openShard(ctx, shardOptions{
		opened: n.opened, dir: n.shardDir(), self: n.self, network: n.network(), admitted: n.admitted, log: n.logOptions, modules: modules(), domains: n.opt.Faults.domains(n.domains()),
		publish: n.publish, onFatal: n.broken, recovers: n.opt.recovers, logger: n.logger, registerer: n.reg,
	})
	if err != nil {
		return n.openError(err)
	}
	if err := n.directory.Load(ctx, n.shard.store); err != nil {
		return err
	}
	n.shard.loop.OnRestore(func() {
		if err := n.directory.Load(context.Background(), n.shard.store); err != nil {
			n.fail(fmt.Errorf("read the apps after a snapshot was installed: %w", err))
		}
		n.hub.OnRestore()
		if r := n.jobs.Load(); r != nil {
			r.Look()
		}
	})
	n.desk = command.New(command.Options{
		Projection: n.shard.store, Committer: n.shard.pipeline, Waiting: n.shard.loop, Settler: n.shard.log, Gate: n.gate, Level: n.level, Consequences: n.consequences, Now: n.opt.Faults.now(),
		Logger: n.logger, Registerer: n.reg,
	})
	n.openJobs()
	n.openSchedules()
	n.hub.Start()
	return nil
}

func (n *Node) closeShard() error {
	n.hub.Stop()
	return n.shard.close()
}

// Desk takes commands: what every edge of the node goes through.
func (n *Node) Desk() *command.Desk { return n.desk }

// gate refuses what a suspended or unknown app wants, from memory: the same question asked of SQLite was
// 6 % of a post. Operators and the system act on apps, not within one.
func (n *Node) gate(_ *projection.Reader, a petrel.Actor) error {
	if a.Kind == petrel.ActorOperator || a.Kind == petrel.ActorSystem {
		return nil
	}
	if n.watch.stale() > refuseAfter {
		return errNoLeader()
	}
	if n.watch.diskFull() { // the leader would take it, and this node could not show it
		return petrel.Errorf(petrel.CodeDiskFull, "The disk of this node is full: it takes no writes until there is room. Another node of the cell may; reads go on.").After(5 * time.Second)
	}
	return n.directory.Gate(a.App)
}

// publish hands on what was committed. At level debug it says so for each publication, with the id of the request
// that caused it.
func (n *Node) publish(pubs []petrel.Publication) {
	if n.logger.Enabled(context.Background(), slog.LevelDebug) {
		for i := range pubs {
			p := &pubs[i]
			n.logger.LogAttrs(context.Background(), slog.LevelDebug, "folded, offering to subscribers",
				slog.String("request", string(p.Request)), slog.Uint64("index", p.Index), slog.String("channel", p.Channel.Name),
				slog.Uint64("seq", p.Seq), slog.String("type", p.Type))
		}
	}
	n.hub.Publish(n.opt.Faults.publish(pubs))
}
