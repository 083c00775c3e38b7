package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// times holds when each message was acknowledged, and when each subscriber had it.
type times struct {
	mu   sync.Mutex // guards both
	acks map[string]time.Time
	seen map[string]map[string]time.Time // by subscriber
}

func (t *times) acked(id string) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.acks[id] = now
}

func (t *times) arrived(who, id string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen[who] == nil {
		t.seen[who] = map[string]time.Time{}
	}
	t.seen[who][id] = at
}

// lags are the times from acknowledgement to arrival, sorted; what came before its acknowledgement counts as 0.
func (t *times) lags(who string) (all []time.Duration, missing int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, at := range t.acks {
		seen, ok := t.seen[who][id]
		if !ok {
			missing++
			continue
		}
		all = append(all, max(0, seen.Sub(at)))
	}
	slices.Sort(all)
	return all, missing
}

// deliveryRows measures how long after its acknowledgement a message reaches a subscriber: on the node that
// took it, and on another one.
func deliveryRows(ctx context.Context, dir string, o CellOptions) ([]CellRow, error) {
	all := newMedians()
	for round := range o.Rounds {
		for _, size := range sizes {
			fmt.Fprintf(o.Progress, "delivery: %d of %d, %d nodes\n", round+1, o.Rounds, size)
			if err := deliveryRound(ctx, dir, size, o, all); err != nil {
				return nil, err
			}
		}
	}
	return all.rows(), nil
}

func deliveryRound(ctx context.Context, dir string, size int, o CellOptions, all *medians) (err error) {
	h, err := newHouse(ctx, dir, size, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	if err := settle(ctx, h.nodes[0], 64); err != nil {
		return err
	}
	leads, others, err := h.leader(ctx)
	if err != nil {
		return err
	}
	if err := caughtUp(ctx, h); err != nil {
		return err
	}
	type way struct {
		name string
		post *node.Node
		to   map[string]*node.Node
	}
	ways := []way{{"500/s", leads, map[string]*node.Node{"by the leader, to its own": leads}}}
	if size > 1 {
		ways[0].to["by the leader, to a follower's"] = others[0]
		ways = append(ways, way{"500/s", others[0], map[string]*node.Node{
			"by a follower, to its own": others[0], "by a follower, to another follower's": others[1],
		}})
	}
	for _, w := range ways {
		t := &times{acks: map[string]time.Time{}, seen: map[string]map[string]time.Time{}}
		var subs []*subscriber
		for who, n := range w.to {
			s, err := subscribe(ctx, n, func(id string, at time.Time) { t.arrived(who, id, at) })
			if err != nil {
				return err
			}
			subs = append(subs, s)
		}
		before := map[*node.Node]metrics{}
		for _, n := range h.nodes {
			if before[n], err = scrape(ctx, n.AdminAddr()); err != nil {
				return err
			}
		}
		run := petrel.NewName()
		rec, took := openLoop(ctx, 500, 256, o.Duration, func(ctx context.Context, s int) error {
			id := run + "-" + petrel.NewName()
			actor := petrel.Actor{Kind: petrel.ActorUser, App: benchApp, User: user(s)}
			_, err := w.post.Desk().Do(ctx, actor, command.Meta{Command: petrel.CommandID(id)}, chat.PostMessage{Room: room(s), Text: text})
			if err == nil {
				t.acked(id)
			}
			return err
		})
		// Every message that was acknowledged arrives: nothing is lost, it may only be late.
		err = arrive(ctx, func() (missing int) {
			for who := range w.to {
				_, n := t.lags(who)
				missing += n
			}
			return missing
		})
		for _, s := range subs {
			s.close()
		}
		if err != nil {
			return err
		}
		posted := rec.row("post", w.name, took)
		for who, n := range w.to {
			lags, _ := t.lags(who)
			row := (&recorder{lists: [][]time.Duration{lags}}).row("ack to socket", who, took)
			row.Errors, row.FirstErr = posted.Errors, posted.FirstErr
			all.add(CellRow{Nodes: size, Row: row})
			after, err := scrape(ctx, n.AdminAddr())
			if err != nil {
				return err
			}
			all.add(CellRow{Nodes: size, Row: after.since(before[n]).row("petrel_conn_delivery_seconds", "commit to socket", who+" (its commit)", took)})
		}
		if size > 1 && w.post == leads {
			after, err := scrape(ctx, leads.AdminAddr())
			if err != nil {
				return err
			}
			all.add(CellRow{Nodes: size, Row: after.since(before[leads]).row("petrel_cell_follower_apply_seconds", "apply to apply", "leader's to a follower's (one a second)", took)})
		}
	}
	return nil
}

// arrive waits until nothing is missing, and says so when that takes far too long.
func arrive(ctx context.Context, missing func() int) error {
	began := time.Now()
	return until(ctx, func() (bool, error) {
		n := missing()
		if n > 0 && time.Since(began) > time.Minute {
			return false, fmt.Errorf("%d deliveries have not arrived a minute after the last post", n)
		}
		return n == 0, nil
	})
}

// subscriber reads the events of the benchmark's rooms from a socket.
type subscriber struct{ socket *socket }

// subscribe opens a socket to n and follows all rooms from now on.
func subscribe(ctx context.Context, n *node.Node, arrived func(id string, at time.Time)) (*subscriber, error) {
	t, err := n.MintToken(ctx, benchApp, user(0), time.Hour)
	if err != nil {
		return nil, err
	}
	return subscribeTo(ctx, n.Addr(), t.Token, benchRooms, arrived)
}

func subscribeTo(ctx context.Context, addr, token string, rooms int, arrived func(id string, at time.Time)) (*subscriber, error) {
	s, err := dialSocketFor(ctx, addr, token, func(a answer, at time.Time) {
		if a.Type == "message.new" {
			arrived(a.Data.ID, at)
		}
	})
	if err != nil {
		return nil, err
	}
	for i := range rooms {
		if err := s.ask(ctx, `"op":"subscribe","room":"`+string(room(i))+`"`); err != nil {
			s.close()
			return nil, fmt.Errorf("subscribe to room %s: %w", strconv.Itoa(i), err)
		}
	}
	return &subscriber{socket: s}, nil
}

func (s *subscriber) close() { s.socket.close() }
