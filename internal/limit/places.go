package limit

import "sync"

// Places counts what is in use (connections, requests under way) against a total and against a share per key,
// and refuses at 95 % of the total so that what must always get in (operators, drains) still finds room.
// It is safe for concurrent use.
type Places[K comparable] struct {
	total, perKey int
	mu            sync.Mutex // guards the fields below; held for a map operation
	used          int
	by            map[K]int // only keys with at least one place
}

// Refusal says which limit was met.
type Refusal uint8

// Refusals of Take.
const (
	Granted    Refusal = iota
	TotalFull          // everyone together: come back later
	ShareFull          // this key alone: its own doing
	refuseFrom = 95    // percent of the total
)

// NewPlaces returns places for total in all and perKey for one key; ≤ 0 means no such limit.
func NewPlaces[K comparable](total, perKey int) *Places[K] {
	return &Places[K]{total: total, perKey: perKey, by: make(map[K]int)}
}

// Take takes one place for key, or says why not. Every Granted needs one Release.
func (p *Places[K]) Take(key K) Refusal { return p.TakeUpTo(key, 0) }

// TakeUpTo is Take for a key that has a smaller share of its own; ≤ 0 means that it has not.
func (p *Places[K]) TakeUpTo(key K, most int) Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total > 0 && p.used >= p.usable() {
		return TotalFull
	}
	if (p.perKey > 0 && p.by[key] >= p.perKey) || (most > 0 && p.by[key] >= most) {
		return ShareFull
	}
	p.used++
	p.by[key]++
	return Granted
}

// Move hands the place of one key to another, as when a connection says who it is after it was let in.
func (p *Places[K]) Move(from, to K) Refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	if from == to {
		return Granted
	}
	if p.perKey > 0 && p.by[to] >= p.perKey {
		return ShareFull
	}
	p.drop(from)
	p.by[to]++
	return Granted
}

// Release gives a place back.
func (p *Places[K]) Release(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	p.drop(key)
}

func (p *Places[K]) drop(key K) {
	if p.by[key]--; p.by[key] <= 0 {
		delete(p.by, key)
	}
}

// usable is 95 % of the total, but at least one place.
func (p *Places[K]) usable() int { return max(1, p.total*refuseFrom/100) }

// Used is how many places are taken; Total is the limit they are measured against (0: none).
func (p *Places[K]) Used() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// Total is the limit as it was set, before the 5 % that are held back.
func (p *Places[K]) Total() int { return max(p.total, 0) }

// Keys calls each for every key that has a place, with its count, until each returns false.
// It works on a copy: each may call back into p.
func (p *Places[K]) Keys(each func(key K, used int) bool) {
	p.mu.Lock()
	copied := make(map[K]int, len(p.by))
	for k, n := range p.by {
		copied[k] = n
	}
	p.mu.Unlock()
	for k, n := range copied {
		if !each(k, n) {
			return
		}
	}
}
