package chat

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// hall is a world with rooms and people who post in them.
func hall(b *testing.B, rooms, people int) *world {
	w := newWorld(b)
	for i := range rooms {
		w.must(app(), "", room(event.RoomOpen, fmt.Sprint("room-", i)))
		for j := range people {
			w.must(user(fmt.Sprint("user-", j)), "", PutMember{Room: petrel.RoomID(fmt.Sprint("room-", i)), User: petrel.UserID(fmt.Sprint("user-", j))})
		}
	}
	return w
}

func benchText(i int) string {
	return fmt.Sprint(strings.Repeat("a line of about eighty bytes, as people write ", 2), i)
}

// BenchmarkFoldPost is the ceiling of a shard: posts folded per second in transactions of 1,000, by the loop (decode,
// guards, fold, digest, publish) from encoded entries.
func BenchmarkFoldPost(b *testing.B) {
	w := hall(b, 20, 20)
	const batch = 1000
	recs := make([]petrel.Record, 0, batch)
	n := 0
	fill := func() {
		recs = recs[:0]
		for range batch {
			who := user(fmt.Sprint("user-", n%20))
			p, err := w.plan(who, petrel.CommandID(petrel.NewName()), post(fmt.Sprint("room-", n/20%20), benchText(n)))
			if err != nil {
				b.Fatal(err)
			}
			raw, err := event.Encode(p.Entry)
			if err != nil {
				b.Fatal(err)
			}
			recs = append(recs, petrel.Record{Index: uint64(len(w.Records) + 1 + len(recs)), Hash: sha256.Sum256(raw), Payload: raw})
			n++
		}
	}
	total := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		fill()
		w.pubs = w.pubs[:0]
		b.StartTimer()
		if err := w.Loop.Apply(b.Context(), recs, uint64(len(w.Records)+batch)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		w.Records = append(w.Records, recs...)
		total += batch
		if len(w.pubs) != batch {
			b.Fatalf("%d publications of %d posts", len(w.pubs), batch)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "posts/s")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(total), "µs/post")
}

// BenchmarkFoldBarePost is Fold alone: no decoding, guards or publication.
func BenchmarkFoldBarePost(b *testing.B) {
	w := hall(b, 20, 20)
	n := 0
	for b.Loop() {
		err := w.Store.Update(b.Context(), func(tx *projection.Tx) error {
			for range 1000 {
				n++
				u := petrel.UserID(fmt.Sprint("user-", n%20))
				s := event.Stamp{Index: uint64(1e6 + n), App: "1", Actor: petrel.Actor{Kind: petrel.ActorUser, App: "1", User: u}, At: int64(n)}
				ev := event.MessagePosted{Room: petrel.RoomID(fmt.Sprint("room-", n/20%20)), ID: petrel.MessageID(petrel.NewName()), User: u, Text: benchText(n)}
				if _, err := Fold(tx, s, ev); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "posts/s")
}

// BenchmarkGuards is what the guards of a member's post cost.
func BenchmarkGuards(b *testing.B) {
	w := hall(b, 2, 20)
	p, err := w.plan(user("user-1"), "m-1", post("room-1", "hi"))
	if err != nil {
		b.Fatal(err)
	}
	s := p.Entry.Stamp(1)
	err = w.Store.Update(b.Context(), func(tx *projection.Tx) error {
		for b.Loop() {
			for _, g := range p.Decision.Guards {
				if _, err := Version(&tx.Reader, s, g); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkDecidePost is one post decided in its own read transaction, as the desk does.
func BenchmarkDecidePost(b *testing.B) {
	w := hall(b, 2, 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.plan(user("user-1"), "m-1", post("room-1", benchText(1))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPublish is the encoding of one post for subscribers.
func BenchmarkPublish(b *testing.B) {
	s := event.Stamp{Index: 9, App: "1", Actor: user("ada"), At: 1_767_225_600_000}
	ev := event.MessagePosted{Room: "lobby", ID: "0190f7a0-0000-7000-8000-000000000000", User: "ada", Text: benchText(1)}
	b.ReportAllocs()
	for b.Loop() {
		if p := Publish(s, ev, 7); binary.Size(p[0].Data) == 0 {
			b.Fatal("nothing")
		}
	}
}
