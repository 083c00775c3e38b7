package petreltest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// closingRounds are messages to every room at the end, one after the other: each must reach every watcher by its node's own
// doing, without a resume, also the last one, which nothing follows that would show that it is missing.
const closingRounds = 3

// Settle ends the talk, lets every watcher come to rest, reads what every site has, and judges it all. Every site must be up
// and reachable. patience bounds each of its waits.
func (w *Workload) Settle(ctx context.Context, patience time.Duration) (*Evidence, []Finding) {
	w.Stop()
	defer w.Close()
	var stuck []Finding
	position, err := w.close(ctx, patience)
	if err != nil {
		stuck = append(stuck, Finding{CheckStuck, "", err.Error()})
	}
	e := &Evidence{Journal: w.journal, Rooms: w.rooms, Final: map[string]map[string][]Event{}, Seen: map[string][]Seen{}}
	for _, site := range w.opt.Sites {
		e.Sites = append(e.Sites, site.Name)
		e.Final[site.Name] = map[string][]Event{}
		for _, room := range w.allRooms() {
			events, err := w.final(ctx, site, room, position, patience)
			var hole *HoleError
			switch {
			case errors.As(err, &hole):
				stuck = append(stuck, Finding{CheckHole, room, site.Name + ": " + err.Error()})
			case err != nil:
				stuck = append(stuck, Finding{CheckStuck, room, fmt.Sprintf("%s does not show its history: %v", site.Name, err)})
			default:
				e.Final[site.Name][room] = events
			}
		}
	}
	w.Close()
	for _, v := range w.watchers {
		e.Seen[v.name], _ = v.Seen()
	}
	return e, append(stuck, e.Check()...)
}

// close posts the last messages of every room and waits until every watcher was offered them. It returns the last position.
// A watcher that does not get there is not its business: the evidence shows it.
func (w *Workload) close(ctx context.Context, patience time.Duration) (position string, err error) {
	for _, v := range w.watchers {
		v.Stay()
	}
	poll(ctx, patience, func() bool {
		return !slices.ContainsFunc(w.watchers, func(v *Watcher) bool { return !v.Settled() })
	})
	last := w.newTalker(w.opt.Clients)
	for range closingRounds {
		heads := map[string]uint64{}
		for _, room := range w.rooms {
			id := last.id("end")
			op := &Op{Kind: OpPost, User: last.name, Room: room, ID: id, Object: id, Text: "text of " + id}
			ctx, cancel := context.WithTimeout(ctx, patience)
			err := last.mustDo(ctx, op)
			cancel()
			if err != nil {
				return position, fmt.Errorf("a message after everything was healed: %w", err)
			}
			heads[room], position = op.Seq, op.Position
		}
		reached := poll(ctx, patience, func() bool {
			return !slices.ContainsFunc(w.watchers, func(v *Watcher) bool {
				return slices.ContainsFunc(w.rooms, func(room string) bool { return v.Position(room) < heads[room] })
			})
		})
		if !reached {
			return position, nil
		}
	}
	return position, nil
}

// final is everything that a site has of a room, at or after a position; nothing for a room that was never made.
func (w *Workload) final(ctx context.Context, site Site, room, position string, patience time.Duration) (events []Event, err error) {
	poll(ctx, patience, func() bool {
		base, c := site.At()
		if base == "" {
			err = errors.New("it is down")
			return false
		}
		events, err = historyAt(ctx, c, base, room, position)
		var p *Problem
		var hole *HoleError
		if errors.As(err, &p) && p.Status == http.StatusNotFound {
			err = nil
		}
		return err == nil || errors.As(err, &hole) || (errors.As(err, &p) && !mayRetry(p.Code))
	})
	return events, err
}
