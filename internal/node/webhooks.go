package node

import (
	"context"
	"net/netip"
	"time"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/effect"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/pusher"
)

// webhooks are the parts that tell webhooks what happens: on whatever node the owner of a channel and the teller of what leaves no state,
// on the leader the handler that calls.
type webhooks struct {
	allow   []netip.Prefix
	handler *effect.Webhooks
	owner   *effect.Owner
	teller  *effect.Teller
}

// openWebhooks makes the parts, before the directory is loaded and the hub starts. They do nothing until Start.
func (n *Node) openWebhooks() error {
	allow, err := parseNetworks(n.cfg.WebhookAllow)
	if err != nil {
		return err
	}
	n.webhooks.allow = allow
	n.webhooks.handler = effect.NewWebhooks(effect.WebhookOptions{
		Hook: n.directory.Hook, Sign: n.directory.SigningPair, Remove: n.removeGoneHook, Event: n.eventOfRoom,
		Allow: allow, Version: n.opt.Build.Version, Logger: n.logger, Registerer: n.reg,
	})
	n.webhooks.owner = effect.NewOwner(effect.OwnerOptions{
		Node: n.self.Member, Nodes: n.ownersOfChannels, InTouch: n.inTouch,
		Bucket:     func(ch petrel.Channel) uint16 { return uint16(n.hub.Bucket(ch)) },
		Here:       func(ch petrel.Channel) effect.ChannelHere { return here(n.hub.Here(ch)) },
		Look:       func(ctx context.Context, ch petrel.Channel) effect.ChannelHere { return here(n.hub.Look(ctx, ch)) },
		Reconsider: n.hub.Reconsider, Hooks: n.directory.Hooks, Any: n.directory.AnyHooks, Do: n.doForApp,
		View:     func(ctx context.Context, fn func(*projection.Reader) error) error { return n.shard.store.View(ctx, fn) },
		HoldDown: n.opt.WebhookTimes.HoldDown, Settle: n.opt.WebhookTimes.Settle, Sweep: n.opt.WebhookTimes.Sweep,
		Logger: n.logger, Registerer: n.reg,
	})
	n.webhooks.teller = effect.NewTeller(effect.TellerOptions{
		Hooks: n.directory.Hooks, Limits: n.jobLimits, Do: n.doForApp, Logger: n.logger, Registerer: n.reg,
	})
	n.hub.Observe(observer{n.webhooks.owner})
	return nil
}

// WebhookTimes are timings of the owners of channels, for tests; zero fields take effect's defaults.
type WebhookTimes struct{ HoldDown, Settle, Sweep time.Duration }

func (n *Node) startWebhooks() {
	n.webhooks.owner.Start()
	n.webhooks.teller.Start()
}

// restWebhooks lets another node own the channels: the clients that leave now are told of by that one, if they do not come back.
func (n *Node) restWebhooks() {
	if n.webhooks.owner != nil {
		n.webhooks.owner.Rest()
	}
}

func (n *Node) stopWebhooks() {
	if n.webhooks.owner == nil {
		return
	}
	n.webhooks.owner.Stop()
	n.webhooks.teller.Stop()
	n.webhooks.handler.Close()
}

// webhookJobs adds the kind of job that calls webhooks.
func (n *Node) webhookJobs(kinds map[string]effect.Handler, policies map[string]effect.Policy) {
	kinds[effect.KindWebhook], policies[effect.KindWebhook] = n.webhooks.handler, effect.WebhookPolicy()
}

// consequences are the jobs that tell webhooks of what was decided. A webhook that could never be told anything is refused, whoever sets it; a command
// line tool that has opened the data folder itself does not know what the node allows.
func (n *Node) consequences(r *projection.Reader, s event.Stamp, d event.Decision) ([]event.Event, []event.Guard, error) {
	if !n.opt.Offline {
		for _, ev := range d.Events {
			if h, ok := ev.(event.AppHookSet); ok {
				if err := effect.CheckAddress(n.webhooks.allow, h.URL); err != nil {
					return nil, nil, err
				}
			}
		}
	}
	return effect.Causes{Hooks: n.directory.Hooks, Limits: n.jobLimits, Chat: chat.Told}.Consequences(r, s, d)
}

func (n *Node) doForApp(ctx context.Context, app petrel.AppID, c command.Command) (command.Result, error) {
	return n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorSystem, App: app}, command.Meta{}, c)
}

func (n *Node) removeGoneHook(ctx context.Context, h identity.Hook, reason string) error {
	_, err := n.doForApp(ctx, h.App, identity.RemoveHook{App: h.App, ID: h.ID, Made: h.Made, Reason: reason})
	return err
}

func (n *Node) eventOfRoom(ctx context.Context, app petrel.AppID, room petrel.RoomID, seq uint64) (p petrel.Publication, found bool, err error) {
	err = n.shard.store.View(ctx, func(r *projection.Reader) (err error) {
		p, found, err = chat.EventAt(r, app, room, seq)
		return err
	})
	return p, found, err
}

// ownersOfChannels are the nodes among which channels are divided: those that live and stay.
func (n *Node) ownersOfChannels() []petrel.NodeID {
	nodes := []petrel.NodeID{n.self.Member}
	if n.cell != nil {
		for _, p := range n.cell.peers() {
			if p.Alive && !p.Info.Draining && p.Node != n.self.Member {
				nodes = append(nodes, p.Node)
			}
		}
	}
	return nodes
}

// inTouch says whether what this node decides has a chance to be written down.
func (n *Node) inTouch() bool {
	return n.watch.stale() == 0 && n.shard != nil && n.shard.log.Status().Leader != "" && (n.fencer == nil || n.fencer.why() == "")
}

// pusherHooks is what Pusher clients cause besides what they are answered.
func (n *Node) pusherHooks(o *pusher.Options) {
	o.OnClientEvent = func(e pusher.ClientEvent) error {
		return n.webhooks.teller.ClientEvent(effect.ClientEvent{
			App: e.App, Channel: e.Channel, Event: e.Event, Data: e.Data, SocketID: string(e.SocketID), User: petrel.UserID(e.User),
		})
	}
	o.OnCacheMiss = n.webhooks.teller.CacheMiss
}

func here(h hub.Here) effect.ChannelHere {
	return effect.ChannelHere{Count: h.Count, Users: h.Users, Whole: h.Whole}
}

// observer is the owner as the hub sees it.
type observer struct{ o *effect.Owner }

var _ hub.Observer = observer{}

// Owns implements hub.Observer.
func (o observer) Owns(b hub.Bucket) bool { return o.o.Owns(uint16(b)) }

// Wants implements hub.Observer.
func (o observer) Wants(ch petrel.Channel) bool { return o.o.Wants(ch) }

// Changed implements hub.Observer.
func (o observer) Changed(ch petrel.Channel) { o.o.Changed(ch) }
