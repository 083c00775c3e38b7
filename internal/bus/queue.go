package bus

import "sync"

// queue is bounded in items and bytes, with many who put and one who takes. The taker has up to as much
// again in its hands.
type queue[T any] struct {
	maxItems, maxBytes int
	wake               chan struct{} // one token: there is something to take, or it is closed

	mu     sync.Mutex // guards what follows
	items  []T
	bytes  int
	closed bool
}

func newQueue[T any](maxItems, maxBytes int) *queue[T] {
	return &queue[T]{maxItems: maxItems, maxBytes: maxBytes, wake: make(chan struct{}, 1)}
}

// full says whether an item of size bytes would be refused.
func (q *queue[T]) full(size int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.isFull(size)
}

func (q *queue[T]) isFull(size int) bool {
	return q.closed || len(q.items) >= q.maxItems || (q.bytes+size > q.maxBytes && len(q.items) > 0)
}

// put adds an item and says whether it could. With always the bounds do not count: for what is bounded
// elsewhere.
func (q *queue[T]) put(v T, size int, always bool) bool {
	q.mu.Lock()
	if q.closed || (!always && q.isFull(size)) {
		q.mu.Unlock()
		return false
	}
	q.items = append(q.items, v)
	q.bytes += size
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns all that is queued and leaves spare, emptied, in its place; open is false when nothing
// more can come.
func (q *queue[T]) take(spare []T) (items []T, open bool) {
	clear(spare)
	q.mu.Lock()
	defer q.mu.Unlock()
	items, q.items, q.bytes = q.items, spare[:0], 0
	return items, !q.closed
}

// used returns what is queued.
func (q *queue[T]) used() (items, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items), q.bytes
}

// close lets the taker empty the queue and end; nothing more is put.
func (q *queue[T]) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}
