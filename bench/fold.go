package bench

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// foldAlone measures apply and projection without a log: entries are made beforehand and handed in as the
// log would, 1,000 at a time (what a loaded node does) and one at a time (what an idle one does).
func foldAlone(ctx context.Context, dir string, o Options) ([]Row, error) {
	var rows []Row
	for _, batch := range []int{1000, 64, 1} {
		load := fmt.Sprintf("batches of %d", batch)
		fmt.Fprintf(o.Progress, "fold, %s for %s\n", load, o.Duration)
		row, err := foldBatches(ctx, dir, batch, o.Duration)
		if err != nil {
			return nil, fmt.Errorf("fold: %w", err)
		}
		row.Layer, row.Load = "fold", load
		rows = append(rows, row)
	}
	return rows, nil
}

func foldBatches(ctx context.Context, dir string, batch int, d time.Duration) (Row, error) {
	folder, err := os.MkdirTemp(dir, "fold-")
	if err != nil {
		return Row{}, err
	}
	store, err := projection.Open(ctx, projection.Options{
		Path: filepath.Join(folder, "projection.db"), Modules: []projection.Module{apply.Module(), chat.Module()},
	})
	if err != nil {
		return Row{}, err
	}
	defer func() { _ = store.Close() }()
	published := 0
	loop, err := apply.New(apply.Options{
		Store: store, Publish: func(p []petrel.Publication) { published += len(p) }, Now: time.Now,
		Domains: []apply.Domain{{
			Name: "chat", Kinds: chat.Kinds(), Guards: chat.GuardKinds(), Fold: chat.Fold, Version: chat.Version, Publish: chat.Publish,
		}},
	})
	if err != nil {
		return Row{}, err
	}
	feed := &feed{}
	rooms := make([]event.Event, benchRooms)
	for i := range rooms {
		rooms[i] = event.RoomCreated{Room: room(i), Kind: event.RoomOpen}
	}
	first, err := feed.entry(petrel.ActorApp, "", rooms...)
	if err != nil {
		return Row{}, err
	}
	if err := loop.Apply(ctx, []petrel.Record{first}, 1); err != nil {
		return Row{}, err
	}
	rec := newRecorder(1)
	var folding time.Duration
	for folding < d && ctx.Err() == nil {
		recs := make([]petrel.Record, batch)
		for i := range recs {
			s := int(feed.index) % 512
			id := "m" + strconv.FormatUint(feed.index, 10)
			if recs[i], err = feed.entry(petrel.ActorUser, id, event.MessagePosted{Room: room(s), ID: petrel.MessageID(id), User: user(s), Text: text}); err != nil {
				return Row{}, err
			}
		}
		began := time.Now()
		if err := loop.Apply(ctx, recs, feed.index); err != nil {
			return Row{}, err
		}
		took := time.Since(began)
		folding += took
		for range batch {
			rec.note(0, took, nil)
		}
	}
	return rec.row("", "", folding), nil
}

// feed makes records as the log would hand them on.
type feed struct {
	index uint64
	hash  petrel.Hash
}

func (f *feed) entry(kind petrel.ActorKind, id string, events ...event.Event) (petrel.Record, error) {
	e := event.Entry{
		ID: petrel.NewEntryID(), App: benchApp, At: time.Now().UnixMilli(), Command: petrel.CommandID(id), Events: events,
		Actor: petrel.Actor{Kind: kind, App: benchApp},
	}
	if m, ok := events[0].(event.MessagePosted); ok {
		e.Actor.User = m.User
	}
	payload, err := event.Encode(&e)
	if err != nil {
		return petrel.Record{}, err
	}
	f.index++
	f.hash = sha256.Sum256(append(f.hash[:], payload...))
	return petrel.Record{Index: f.index, Hash: f.hash, Payload: payload}, nil
}
