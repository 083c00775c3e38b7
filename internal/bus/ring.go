package bus

import "time"

// recordOverhead is about what a record costs beside its payload, in bytes.
const recordOverhead = 160

// record is a sent message, as it is kept for repair.
type record struct {
	seq     uint64
	kind    Kind
	payload []byte
	at      time.Time
}

// ring numbers messages and keeps the newest of them, over all buckets within one budget of bytes. It is
// guarded by Bus.sendMu.
type ring struct {
	maxBytes int
	maxAge   time.Duration
	bytes    int
	order    []Bucket // of every record kept, oldest first
	buckets  [Buckets]struct {
		head  uint64
		moved uint64 // number of the heartbeat that follows the last message
		kept  []record
	}
	beats uint64
}

func newRing(maxBytes int, maxAge time.Duration) *ring {
	return &ring{maxBytes: maxBytes, maxAge: maxAge}
}

// next gives the bucket's next number, from 1.
func (r *ring) next(k Bucket) uint64 {
	b := &r.buckets[k]
	b.head++
	b.moved = r.beats + 1
	return b.head
}

// add keeps a message, and drops the oldest ones that no longer fit or are too old.
func (r *ring) add(k Bucket, m record) {
	r.buckets[k].kept = append(r.buckets[k].kept, m)
	r.order = append(r.order, k)
	r.bytes += len(m.payload) + recordOverhead
	r.trim(m.at)
}

func (r *ring) trim(now time.Time) {
	for len(r.order) > 0 {
		b := &r.buckets[r.order[0]]
		oldest := &b.kept[0]
		if r.bytes <= r.maxBytes && now.Sub(oldest.at) <= r.maxAge {
			return
		}
		r.bytes -= len(oldest.payload) + recordOverhead
		*oldest = record{} // the slice's array lives on for a while
		if b.kept = b.kept[1:]; len(b.kept) == 0 {
			b.kept = nil
		}
		if r.order = r.order[1:]; len(r.order) == 0 {
			r.order = nil
		}
	}
}

// find writes what is kept of from to to, oldest first, into at most max bytes.
func (r *ring) find(k Bucket, from, to uint64, limit int, now time.Time) (payload []byte) {
	r.trim(now)
	kept := r.buckets[k].kept
	if len(kept) == 0 || to < kept[0].seq || from > r.buckets[k].head {
		return nil
	}
	from = max(from, kept[0].seq)
	for _, m := range kept[from-kept[0].seq:] { // numbers are dense
		if m.seq > to || len(payload)+len(m.payload)+recordOverhead > limit && len(payload) > 0 {
			break
		}
		payload = appendRecord(payload, m)
	}
	return payload
}

// headsFor is how many heartbeats name a head that moved: one that is lost hides nothing.
const headsFor = 3

// moved returns the heads that moved within the last headsFor heartbeats, of which this is one.
func (r *ring) moved() (heads []head) {
	r.beats++
	for k := range r.buckets {
		if b := &r.buckets[k]; b.head > 0 && b.moved+headsFor > r.beats {
			heads = append(heads, head{Bucket(k), b.head}) //nolint:gosec // below Buckets
		}
	}
	return heads
}
