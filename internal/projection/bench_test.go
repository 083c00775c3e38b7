package projection_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// BenchmarkFold inserts bare rows (four columns, one secondary index) in transactions of n, with
// the applied position. ns/op is per row; the aim is 35,000 rows/s on one core (design.md §3).
func BenchmarkFold(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 2000} {
		b.Run(fmt.Sprintf("tx=%d", n), func(b *testing.B) {
			s := open(b, fresh(b))
			body := make([]byte, 120)
			rooms := make([]petrel.RoomID, 16)
			for i := range rooms {
				rooms[i] = petrel.RoomID(fmt.Sprint("room", i))
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; {
				err := s.Update(context.Background(), func(tx *projection.Tx) error {
					for range min(n, b.N-i) {
						i++
						if _, err := tx.Exec(insertNote, rooms[i%len(rooms)], i, petrel.MessageID(fmt.Sprintf("%016d", i)), body); err != nil {
							return err
						}
					}
					return tx.SetApplied(petrel.Applied{Index: uint64(i)})
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkView reads one row of a projection of 100,000.
func BenchmarkView(b *testing.B) {
	s := open(b, fresh(b))
	add(b, s, 1, 100_000)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		err := s.View(context.Background(), func(r *projection.Reader) error {
			_, err := r.Get(selectNote+" LIMIT 1", func(row *projection.Row) { _ = row.Text(0) }, petrel.RoomID("r"), i%90_000)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpdateTail is the latency of small transactions (four rows) one after the other: what a
// checkpoint costs the one that meets it shows in the tail.
func BenchmarkUpdateTail(b *testing.B) {
	s := open(b, fresh(b))
	body := make([]byte, 120)
	var took []time.Duration
	for i := range b.N {
		start := time.Now()
		err := s.Update(context.Background(), func(tx *projection.Tx) error {
			for k := range 4 {
				if _, err := tx.Exec(insertNote, petrel.RoomID(fmt.Sprint("room", (i+k)%64)), 4*i+k, fmt.Sprint(4*i+k), body); err != nil {
					return err
				}
			}
			return tx.SetApplied(petrel.Applied{Index: uint64(i)})
		})
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	for name, q := range map[string]float64{"p50-µs": 0.5, "p99-µs": 0.99, "p99.9-µs": 0.999, "max-µs": 1} {
		b.ReportMetric(float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds()), name)
	}
}
