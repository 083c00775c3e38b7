package api

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// begin is where a subscription wants to go on.
type begin struct {
	after    *uint64      // the last seq that the client has; nil: from now
	epoch    petrel.Epoch // of the life of the log that after is of; "" if the client does not know
	position string       // the newest that the client saw, "" for none
}

const (
	// unknownWait is how long a node that may lag behind others waits for a seq that it does not have, when nothing says that it was ever given.
	unknownWait = time.Second
	// lookAgain is the least time between two looks while it waits.
	lookAgain = 20 * time.Millisecond
)

// reach reads a room's head, when this node shows what the client saw on another one. resync says why the place cannot be served. A node that
// lags waits, within bounds: it must not say of what another node delivered that it never was.
func (s *server) reach(ctx context.Context, actor petrel.Actor, room petrel.RoomID, b begin) (head uint64, at petrel.Position, resync string, err error) {
	err = s.await(ctx, b.position)
	if petrel.CodeOf(err) == petrel.CodeEpoch && b.after != nil {
		head, at, err = s.head(ctx, actor, room)
		return head, at, "epoch", err
	}
	if err != nil {
		return 0, at, "", err
	}
	wait := unknownWait
	if b.epoch != "" {
		wait = s.opt.PositionWait
	}
	patience, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		head, at, err = s.head(ctx, actor, room)
		if err != nil {
			return head, at, "", err
		}
		if resync = s.cannotResume(b, head, at.Epoch); resync != "ahead" || s.opt.Alone() {
			return head, at, resync, nil
		}
		if !s.grows(patience, at.Index) {
			break
		}
	}
	// What it lacks may well be, on another node. It never was when this one has everything that was committed by now.
	if s.stale() > 0 || s.settled(ctx) != nil {
		return head, at, "", timeout("room reached that place here")
	}
	head, at, err = s.head(ctx, actor, room)
	return head, at, s.cannotResume(b, head, at.Epoch), err
}

// settled returns when everything is applied here that was committed before.
func (s *server) settled(ctx context.Context) error {
	if s.opt.Settle == nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, unknownWait)
	defer cancel()
	return s.opt.Settle(ctx)
}

// grows waits until more than an index is applied, and a moment longer; false when ctx ended first.
func (s *server) grows(ctx context.Context, index uint64) bool {
	pause := time.NewTimer(lookAgain)
	defer pause.Stop()
	if s.opt.Waiting.WaitApplied(ctx, index+1) != nil {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-pause.C:
		return true
	}
}

// head reads a room's head, after the check of rights, and what it is the head of.
func (s *server) head(ctx context.Context, actor petrel.Actor, room petrel.RoomID) (head uint64, at petrel.Position, err error) {
	at, err = s.view(ctx, func(r *projection.Reader) (err error) {
		head, err = chat.Head(r, actor, room)
		return err
	})
	return head, at, err
}

// cannotResume says why a place cannot be served, "" when it can.
func (s *server) cannotResume(b begin, head uint64, epoch petrel.Epoch) string {
	switch {
	case b.after == nil:
		return ""
	case b.epoch != "" && b.epoch != epoch:
		return "epoch"
	case *b.after > head:
		return "ahead"
	case head-*b.after > s.opt.ReplayLimit:
		return "too_old"
	}
	return ""
}
