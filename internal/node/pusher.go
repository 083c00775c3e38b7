package node

import (
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/pusher"
)

// mountPusher adds Pusher's protocol to the public side.
func (n *Node) mountPusher(p *publicSide) {
	p.pusher = pusher.Register(pusher.Options{
		Gateway: p.gateway, Hub: n.hub, Apps: n.directory, Logger: n.logger, Registerer: n.reg,
	})
}

// pusherAppChanged is appChanged for connections of Pusher clients.
func (n *Node) pusherAppChanged(app petrel.AppID) {
	if s := n.pusher.Load(); s != nil {
		s.AppChanged(app)
	}
}
