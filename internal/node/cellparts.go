package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// network is nil, not a nil cell's, without other nodes.
func (n *Node) network() raftlog.Network {
	if n.cell == nil {
		return nil
	}
	return n.cell.network()
}

// opened is called with the fold, before the log feeds it.
func (n *Node) opened(loop *apply.Loop) {
	n.loop = loop
	if n.watch != nil {
		n.watch.applied, n.watch.index, n.watch.leaving = loop.WaitApplied, func() uint64 { return loop.Applied().Index }, n.health.draining.Load
	}
}

// onBus plugs in what answers other nodes, before the bus is started.
func (n *Node) onBus() {
	b := n.cell.bus.Load()
	b.Serve(kindReport, func(context.Context, petrel.NodeID, []byte) ([]byte, error) { return json.Marshal(n.report()) })
	b.Serve(kindReached, n.watch.serveReached)
	newRelay(n.self.Member, b).attach(n.hub)
	n.forward = newForwarder(n.cell, b, n.pusher.Load, n.logger, n.reg)
	n.agreement = n.newAgreement(b)
	b.Serve(kindDigest, n.agreement.serveProof)
	b.Serve(kindFence, n.agreement.serveFence)
	b.Serve(kindScrub, n.agreement.serveScrub)
}

// newAgreement compares this replica with those that live.
func (n *Node) newAgreement(b *bus.Bus) *agreement {
	var schema strings.Builder
	for _, m := range modules() {
		fmt.Fprintf(&schema, "%s:%d ", m.Name, len(m.Migrations))
	}
	build := runningBuild(n.opt.Build)
	return newAgreement(agreementOptions{
		self: n.self.Member,
		level: func() level {
			return level{Epoch: n.loop.Applied().Epoch, Feature: FeatureLevel, Schema: schema.String(), Build: build}
		},
		peers: func() (live []petrel.NodeID) {
			for _, m := range n.cell.status().Members {
				if m.ID != n.self.Member && n.cell.alive(m.ID) {
					live = append(live, m.ID)
				}
			}
			return live
		},
		leader:  func() (petrel.NodeID, uint64) { st := n.cell.status(); return st.Leader, st.Term },
		ask:     b.Request,
		proofAt: n.loop.ProofAt, proven: n.loop.Proven,
		members: func() (all []petrel.NodeID) {
			for _, m := range n.cell.status().Members {
				all = append(all, m.ID)
			}
			return all
		},
		pin: func(ctx context.Context, index uint64) (scrubber, error) {
			s, err := n.loop.PinAt(ctx, index)
			if err != nil {
				return nil, err // not s: a nil pointer in an interface is not nil
			}
			return s, nil
		},
		fence: n.fencer.fence, fenced: n.fencer.why,
		interval: n.opt.CompareEvery, scrubEvery: n.opt.ScrubEvery, logger: n.logger, reg: n.reg,
	})
}

// newFencer takes this replica out of service when it must not be trusted.
func (n *Node) newFencer() *fencer {
	return newFencer(fencerOptions{
		data: n.cfg.Data, self: n.self.Member,
		drain: func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout)
			defer cancel()
			n.Drain(ctx)
		},
		handOver: func(ctx context.Context) { n.cell.handOver(ctx, handOverRest) },
		leave:    n.cell.letGo,
		mayLeave: func() bool { return n.agreement.mayLeave() },
		fail:     n.fail, logger: n.logger, reg: n.reg,
	})
}

// broken is where the log reports that it stopped for good. A damaged one is rebuilt where there are others.
func (n *Node) broken(err error) {
	if n.cell != nil {
		err = leaveDamaged(n.cfg.Data, n.self.Member, err, time.Now())
	}
	n.fail(err)
}

// openError is why the shard did not open.
func (n *Node) openError(err error) error {
	if n.cell == nil || !errors.Is(err, raftlog.ErrDamaged) {
		return err
	}
	return leaveDamaged(n.cfg.Data, n.self.Member, err, time.Now())
}

// admitted is called when the log is open, before anything of it is waited for.
func (n *Node) admitted(ctx context.Context, log raftlog.Log) error {
	if n.cell == nil {
		if others := len(log.Status().Members) - 1; others > 0 {
			return fmt.Errorf("this folder belongs to a node of a cell with %d other nodes; start it with its --peer", others)
		}
		return nil
	}
	if err := n.cell.admit(ctx, log); err != nil {
		return err
	}
	if err := n.cell.startBus(); err != nil {
		return err
	}
	n.onBus()
	if err := n.cell.serve(); err != nil {
		return err
	}
	n.cell.lookAtLevel()
	n.watch.start()
	resumed, err := n.fencer.resume()
	if err != nil || !resumed {
		return err
	}
	select { // it only votes, until the cell does without it; there is no public side to turn people away from
	case <-n.failed:
		return n.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logOptions are what a cell's log needs beyond a lone node's.
func (n *Node) logOptions(o *raftlog.Options) {
	if n.cell != nil {
		n.cell.logOptions(o)
	}
	n.opt.Faults.log(o)
}

// level is what may be written.
func (n *Node) level() int {
	if n.cell == nil {
		return FeatureLevel
	}
	return n.cell.level()
}
