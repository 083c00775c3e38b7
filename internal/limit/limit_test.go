package limit

import (
	"fmt"
	"hash/maphash"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var seed = maphash.MakeSeed()

func hashString(s string) uint64 { return maphash.String(seed, s) }

func TestBucketTakesBurstThenRate(t *testing.T) {
	t.Parallel()
	r := Rate{PerSecond: 10, Burst: 5}
	now := time.Unix(1_000, 0)
	var b Bucket
	for i := range 5 {
		if ok, _ := b.Take(r, now, 1); !ok {
			t.Fatalf("token %d of the burst was refused", i)
		}
	}
	ok, wait := b.Take(r, now, 1)
	if ok || wait != 100*time.Millisecond {
		t.Fatalf("sixth token: ok %v, wait %v; want refused, 100ms", ok, wait)
	}
	if ok, _ := b.Take(r, now.Add(wait), 1); !ok {
		t.Fatal("refused although it waited as told")
	}
	if b.Full(now.Add(wait)) {
		t.Fatal("an emptied bucket calls itself full")
	}
	if !b.Full(now.Add(time.Second)) {
		t.Fatal("not full after burst/rate")
	}
}

func TestBucketWishAboveBurstIsPaidOff(t *testing.T) {
	t.Parallel()
	r := Rate{PerSecond: 10, Burst: 5}
	now := time.Unix(1_000, 0)
	var b Bucket
	if ok, _ := b.Take(r, now, 20); !ok {
		t.Fatal("a full bucket refused a large wish: it could never be had")
	}
	ok, wait := b.Take(r, now, 1)
	if ok || wait != 1600*time.Millisecond {
		t.Fatalf("after a debt of 20: ok %v, wait %v; want refused, 1.6s", ok, wait)
	}
}

// TestBucketNeverExceedsRate: over any run of calls the sum granted is at most burst + rate·time, and a refusal costs nothing.
func TestBucketNeverExceedsRate(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := Rate{
			PerSecond: float64(rapid.IntRange(1, 5_000).Draw(t, "rate")),
			Burst:     rapid.IntRange(1, 100).Draw(t, "burst"),
		}
		start := time.Unix(1_000, 0)
		now, granted := start, 0
		var b Bucket
		for range rapid.IntRange(1, 200).Draw(t, "calls") {
			now = now.Add(time.Duration(rapid.IntRange(0, 50_000_000).Draw(t, "step")))
			n := rapid.IntRange(1, r.Burst).Draw(t, "n")
			before := b
			ok, wait := b.Take(r, now, n)
			switch {
			case ok:
				granted += n
			case b != before:
				t.Fatal("a refusal changed the bucket")
			default:
				probe := b
				if again, _ := probe.Take(r, now.Add(wait), n); !again {
					t.Fatalf("refused again after waiting %v as told", wait)
				}
			}
			if most := float64(r.Burst) + r.PerSecond*now.Sub(start).Seconds() + 1e-3; float64(granted) > most {
				t.Fatalf("granted %d, at most %.3f allowed", granted, most)
			}
		}
	})
}

func TestTableEvictsOnlyFullBuckets(t *testing.T) {
	t.Parallel()
	tab := NewTable(Rate{PerSecond: 1, Burst: 1}, 16, hashString)
	now := time.Unix(1_000, 0)
	debtors := []string{}
	for i := range 1_000 {
		k := fmt.Sprint("k", i)
		if ok, _ := tab.Take(k, now, 1); ok {
			debtors = append(debtors, k)
		}
	}
	if n := tab.Len(); n > 16 {
		t.Fatalf("table of 16 holds %d keys", n)
	}
	for _, k := range debtors {
		if ok, _ := tab.Take(k, now, 1); ok {
			t.Fatalf("%s got a second token: its debt was forgotten", k)
		}
	}
	if len(debtors) > 32 {
		t.Fatalf("a flood of 1000 keys got %d tokens through 16 places and 16 shared buckets", len(debtors))
	}
	later := now.Add(2 * time.Second)
	if ok, _ := tab.Take("newcomer", later, 1); !ok {
		t.Fatal("a newcomer was refused although every debt was paid")
	}
}

func TestTableUnlimited(t *testing.T) {
	t.Parallel()
	tab := NewTable(Rate{}, 1, hashString)
	for range 100 {
		if ok, _ := tab.Take("x", time.Unix(1, 0), 1_000); !ok {
			t.Fatal("no limit was set, yet it refused")
		}
	}
	if tab.Len() != 0 {
		t.Fatal("a table without limit keeps keys")
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	p := NewPlaces[string](100, 60)
	take := func(k string, n int, want Refusal) {
		t.Helper()
		for i := range n {
			if got := p.Take(k); got != want {
				t.Fatalf("place %d of %s: %v, want %v", i, k, got, want)
			}
		}
	}
	take("a", 60, Granted)
	take("a", 1, ShareFull)
	take("b", 35, Granted)
	take("b", 1, TotalFull) // 95 of 100
	if p.Used() != 95 || p.Total() != 100 {
		t.Fatalf("used %d of %d", p.Used(), p.Total())
	}
	p.Release("a")
	take("c", 1, Granted)
	if got := p.Move("c", "a"); got != Granted {
		t.Fatalf("move: %v", got)
	}
	if got := p.Move("b", "a"); got != ShareFull {
		t.Fatalf("move to a full share: %v", got)
	}
	seen := map[string]int{}
	p.Keys(func(k string, n int) bool { seen[k] = n; return true })
	if seen["a"] != 60 || seen["b"] != 35 || len(seen) != 2 {
		t.Fatalf("keys %v", seen)
	}
}

func BenchmarkTableTake(b *testing.B) {
	tab := NewTable(Rate{PerSecond: 1e9, Burst: 1 << 20}, 1<<16, hashString)
	keys := make([]string, 4096)
	for i := range keys {
		keys[i] = fmt.Sprint("user-", i)
	}
	now := time.Unix(1_000, 0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tab.Take(keys[i&4095], now.Add(time.Duration(i)), 1)
	}
}
