package node

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// report is what a node says of itself when another asks over the bus.
type report struct {
	Version string              `json:"version"`
	Health  string              `json:"health"`
	Applied uint64              `json:"applied"` // own index
	Log     raftlog.MemberStats `json:"log"`
}

// reportWithin is how long a node is waited for: autopilot asks every second or so.
const reportWithin = time.Second

// reports asks every living node at once. Those that do not answer in time are left out.
func (c *cell) reports(ctx context.Context) map[petrel.NodeID]report {
	ctx, cancel := context.WithTimeout(ctx, reportWithin)
	defer cancel()
	b := c.bus.Load()
	if b == nil {
		return nil
	}
	var mu sync.Mutex // guards all
	all := map[petrel.NodeID]report{}
	var wg sync.WaitGroup
	for _, p := range b.Peers() {
		if !p.Alive {
			continue
		}
		wg.Go(func() {
			answer, err := b.Request(ctx, p.Node, kindReport, nil)
			var r report
			if err != nil || json.Unmarshal(answer, &r) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all[p.Node] = r
		})
	}
	wg.Wait()
	return all
}

// report of this node. Others may ask before its log is open.
func (n *Node) report() report {
	r := report{Version: n.opt.Build.Version, Health: n.health.answer().Status}
	if n.cell == nil { // only its own operator asks, once all is open
		r.Applied, r.Log = n.shard.log.Status().Index, n.shard.log.Stats()
	} else if log := n.cell.log.Load(); log != nil {
		r.Applied, r.Log = (*log).Status().Index, (*log).Stats()
	}
	return r
}

// logOptions are what a log needs that has other members.
func (c *cell) logOptions(o *raftlog.Options) {
	o.MaxVoters = c.cfg.Voters
	o.MemberStats = func(ctx context.Context, _ []raftlog.Member) map[petrel.NodeID]raftlog.MemberStats {
		all := map[petrel.NodeID]raftlog.MemberStats{}
		for id, r := range c.reports(ctx) {
			all[id] = r.Log
		}
		return all
	}
}
