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
	stuck = append(stuck, w.moment(ctx, patience)...)
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

// moment judges what is not kept: every node and every watcher must come to agree on who is in each room, and hear of somebody who
// begins to type, and of the end of that.
func (w *Workload) moment(ctx context.Context, patience time.Duration) (found []Finding) {
	var here []string
	for _, v := range w.watchers {
		here = append(here, v.name)
	}
	slices.Sort(here)
	for _, room := range w.rooms {
		why := ""
		if !poll(ctx, patience, func() bool { why = w.absent(ctx, room, here); return why == "" }) {
			found = append(found, Finding{CheckPresence, room, fmt.Sprintf("here are %q; %s", here, why)})
		}
	}
	for i, v := range w.watchers {
		if v.sse {
			continue // it has nothing to say
		}
		room := w.rooms[i%len(w.rooms)]
		for _, active := range []bool{true, false} {
			why, deadline := "", time.Now().Add(patience)
			for { // said again now and then, as its client would
				if err := v.Type(ctx, room, active); err != nil {
					why = fmt.Sprintf("%s cannot say that it types: %v", v.name, err)
				}
				if poll(ctx, time.Second, func() bool { why = w.unheard(v, room, active); return why == "" }) || ctx.Err() != nil {
					break
				}
				if time.Now().After(deadline) {
					found = append(found, Finding{CheckTyping, room, why})
					break
				}
			}
		}
	}
	return found
}

// absent says who is wrong about who is in a room.
func (w *Workload) absent(ctx context.Context, room string, here []string) string {
	for _, site := range w.opt.Sites {
		base, c := site.At()
		var told struct {
			Users   []struct{ User string }
			Partial bool
		}
		ctx, cancel := context.WithTimeout(ctx, w.opt.Timeout)
		_, err := Call(ctx, c, base, "", http.MethodGet, "/v1/rooms/"+room+"/presence", nil, &told)
		cancel()
		var users []string
		for _, u := range told.Users {
			users = append(users, u.User)
		}
		if err != nil || told.Partial || !slices.Equal(users, here) {
			return fmt.Sprintf("%s says %q (partial: %v, error: %v)", site.Name, users, told.Partial, err)
		}
	}
	for _, v := range w.watchers {
		if present := v.Present(room); present != nil && !slices.Equal(present, here) {
			return fmt.Sprintf("%s was told %q by %s", v.name, present, v.Where())
		}
	}
	return ""
}

// unheard says who has not heard that a watcher types, or that it has ended.
func (w *Workload) unheard(typist *Watcher, room string, active bool) string {
	for _, v := range w.watchers {
		if v != typist && !v.sse && v.Types(typist.name, room) != active {
			return fmt.Sprintf("%s at %s has not heard that %s at %s types: %v", v.name, v.Where(), typist.name, typist.Where(), active)
		}
	}
	return ""
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
