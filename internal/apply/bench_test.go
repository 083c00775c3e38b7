package apply

import (
	"fmt"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// BenchmarkApply folds entries in calls of n: "bare" makes one row and reads nothing, "post" checks a
// guard, moves a room's head, reads it and makes a row. ns/op is per entry, decoding, outcome window
// and waiters included; the aim is 35,000 bare rows/s on one core (design.md §3).
func BenchmarkApply(b *testing.B) {
	bare := Domain{
		Name: "bare", Kinds: []event.Kind{event.KindMessagePosted},
		Fold: func(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
			m := ev.(event.MessagePosted)
			_, err := tx.Exec(`INSERT INTO toy_message VALUES (?, ?, ?, ?, ?)`, m.Room, m.ID, s.Index, m.Text, s.Index)
			return s.Index, err
		},
	}
	for _, d := range []Domain{bare, toy()} {
		for _, n := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%s/call=%d", d.Name, n), func(b *testing.B) {
				w := newWorld(b, func(o *Options) { o.Domains = []Domain{d}; o.Now = time.Now; o.Publish = func([]petrel.Publication) {} })
				recs := benchLog(b, b.N, d.Name == "toy")
				b.ReportAllocs()
				b.ResetTimer()
				for len(recs) > 0 {
					part := recs[:min(n, len(recs))]
					for i := range part {
						w.loop.Expect(benchID(part[i].Index))
					}
					if err := w.loop.Apply(b.Context(), part, part[len(part)-1].Index); err != nil {
						b.Fatal(err)
					}
					recs = recs[len(part):]
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			})
		}
	}
}

func benchID(i uint64) petrel.EntryID { return id(fmt.Sprintf("e%d", i)) }

func benchLog(b *testing.B, n int, guarded bool) []petrel.Record {
	recs := make([]petrel.Record, n)
	for i := range recs {
		name := fmt.Sprint("e", i+1)
		e := post(name, fmt.Sprint("room", i%16), name)
		if !guarded {
			e.Guards = nil
		}
		e.Request, e.Command = "0199d2f3-7c1e-7000-8000-000000000000", petrel.CommandID(name)
		raw, err := event.Encode(e)
		if err != nil {
			b.Fatal(err)
		}
		recs[i] = petrel.Record{Index: uint64(i) + 1, Payload: raw}
	}
	return recs
}
