package node

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/pusher"
)

// pusherHub completes the hub's options with what Pusher's channels need. The directory is there before anybody is let in.
func (n *Node) pusherHub(o hub.Options) hub.Options {
	o.Last = channel.NewCache(channel.CacheOptions{TTL: func(app petrel.AppID) time.Duration {
		return time.Duration(n.directory.Settings(app).CacheTTL) * time.Second
	}})
	// Other nodes hear of every change in the number of subscriptions only where somebody wants to; who asks is told in any case.
	o.Reported = func(ch petrel.Channel) bool {
		return n.directory.Settings(ch.App).SubscriptionCount || len(n.directory.Hooks(ch.App)) > 0
	}
	return pusher.HubOptions(o)
}

// hearOfUsers lets other nodes terminate the connections of a user here. Call it before the hub starts.
func (n *Node) hearOfUsers(h *hub.Hub) {
	h.OnTell(hub.TopicTerminate, func(ctx context.Context, app petrel.AppID, user []byte) ([]byte, error) {
		if s := n.pusher.Load(); s != nil {
			return s.Terminate(ctx, app, user)
		}
		return nil, nil // nobody is let in yet
	})
}

// mountPusher adds Pusher's protocol to the public side.
func (n *Node) mountPusher(p *publicSide) {
	o := pusher.Options{
		Gateway: p.gateway, Hub: n.hub, Apps: n.directory, Logger: n.logger, Registerer: n.reg,
		Last: func() bool { return n.cell == nil || len(n.cell.staying()) == 0 },
	}
	if n.forward != nil {
		o.Elsewhere, o.PublicURL = n.forward, n.cfg.PublicURL
	}
	n.pusherHooks(&o)
	p.pusher = pusher.Register(o)
}

// pusherAppChanged is appChanged for connections of Pusher clients.
func (n *Node) pusherAppChanged(app petrel.AppID) {
	n.hub.Reconsider() // what is told to other nodes hangs on settings and webhooks
	if s := n.pusher.Load(); s != nil {
		s.AppChanged(app)
	}
}
