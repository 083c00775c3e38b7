// Package limit holds token buckets, counted places and size limits, as plain
// arithmetic on a time that is passed in.
//
// A Table keeps one bucket per key (an address, a user, an app) in bounded memory.
// A bucket that has filled up again carries no information, so forgetting it is free:
// that is what eviction does, and the only thing it does. When a table is full of keys
// that all still owe, further keys share one bucket: a flood of new keys slows
// itself and can neither grow the table nor wipe the debts of others.
//
// A bucket is kept as one number, the time at which it will be full again (the generic
// cell rate algorithm, ITU-T I.371): golang.org/x/time/rate needs a mutex and 80 bytes
// per key and cannot say "full" without arithmetic on floats.
//
// # Invariants
//
//   - Over any span, a key gets at most Burst + PerSecond·span of what it asks for.
//   - A refused call takes nothing: asking again later is never worse for having asked.
//   - A Table never holds more than its max keys; no bucket that still owes is evicted.
//   - Nothing here reads a clock, starts a goroutine or blocks.
package limit

import (
	"sync"
	"time"
)

// Rate is a sustained rate with a burst on top.
type Rate struct {
	PerSecond float64 // ≤ 0: no limit
	Burst     int     // most that can be taken at once; < 1 counts as 1
}

// Unlimited says whether r limits nothing.
func (r Rate) Unlimited() bool { return r.PerSecond <= 0 }

// Bucket is one token bucket. The zero value is full. It is not safe for concurrent use.
type Bucket struct {
	full int64 // Unix nanoseconds at which the bucket is full again
}

// Take takes n tokens at now, or takes nothing and says how long to wait until n could be had.
// A wish above the burst can never be had whole; it is let through when the bucket is full
// and its debt is paid afterwards, so that no caller waits for ever.
func (b *Bucket) Take(r Rate, now time.Time, n int) (ok bool, wait time.Duration) {
	if r.Unlimited() || n <= 0 {
		return true, 0
	}
	per := float64(time.Second) / r.PerSecond // nanoseconds per token
	depth := int64(per * float64(max(r.Burst, 1)))
	cost := int64(per * float64(n))
	at := now.UnixNano()
	full := max(b.full, at)
	if over := full + min(cost, depth) - at - depth; over > 0 {
		return false, time.Duration(over)
	}
	b.full = full + cost
	return true, 0
}

// Full says whether the bucket holds its whole burst at now.
func (b *Bucket) Full(now time.Time) bool { return b.full <= now.UnixNano() }

// shards of a Table: enough that two cores seldom meet, few enough that small tables stay small.
const shards = 16

// Table is a bounded set of buckets, one per key. It is safe for concurrent use.
type Table[K comparable] struct {
	rate Rate
	max  int // keys per shard
	hash func(K) uint64
	part [shards]part[K]
}

// part is one shard of a Table. mu guards both fields; it is held for a few map operations at most.
type part[K comparable] struct {
	mu       sync.Mutex
	buckets  map[K]Bucket
	overflow Bucket // shared by every key that found no place
}

// sweep is how many buckets one call looks at when its shard is full: a bound on the work of a call.
const sweep = 32

// NewTable returns a table of at most max keys (rounded up to a multiple of 16), each with its own bucket of rate r.
// The hash spreads keys over shards; it need not be secret because a shard that is full only shares a bucket.
func NewTable[K comparable](r Rate, max int, hash func(K) uint64) *Table[K] {
	t := &Table[K]{rate: r, max: (max + shards - 1) / shards, hash: hash}
	for i := range t.part {
		t.part[i].buckets = make(map[K]Bucket)
	}
	return t
}

// Take takes n tokens of key's bucket at now, or takes nothing and says how long to wait.
func (t *Table[K]) Take(key K, now time.Time, n int) (ok bool, wait time.Duration) {
	if t.rate.Unlimited() {
		return true, 0
	}
	p := &t.part[t.hash(key)%shards]
	p.mu.Lock()
	defer p.mu.Unlock()
	b, found := p.buckets[key]
	if !found && len(p.buckets) >= t.max && !p.evict(now) {
		return p.overflow.Take(t.rate, now, n)
	}
	if ok, wait = b.Take(t.rate, now, n); ok {
		p.buckets[key] = b
	}
	return ok, wait
}

// Peek says whether Take of one token would succeed at now, and takes nothing.
func (t *Table[K]) Peek(key K, now time.Time) (ok bool, wait time.Duration) {
	if t.rate.Unlimited() {
		return true, 0
	}
	p := &t.part[t.hash(key)%shards]
	p.mu.Lock()
	defer p.mu.Unlock()
	b, found := p.buckets[key]
	if !found && len(p.buckets) >= t.max {
		b = p.overflow
	}
	return b.Take(t.rate, now, 1) // b is a copy
}

// evict forgets full buckets among a few; map iteration starts at random, so no debtor shields the rest.
func (p *part[K]) evict(now time.Time) bool {
	looked, gone := 0, false
	for k, b := range p.buckets {
		if b.Full(now) {
			delete(p.buckets, k)
			gone = true
		}
		if looked++; looked == sweep {
			break
		}
	}
	return gone
}

// Len is the number of keys held.
func (t *Table[K]) Len() int {
	n := 0
	for i := range t.part {
		t.part[i].mu.Lock()
		n += len(t.part[i].buckets)
		t.part[i].mu.Unlock()
	}
	return n
}
