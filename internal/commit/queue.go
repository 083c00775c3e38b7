package commit

// queue is a list of waiting calls, first come first. A call that gives up is taken out at once, so
// that an append that hangs does not make the queue grow by those who left.
type queue struct {
	head, tail *call
}

func (q *queue) push(c *call) {
	c.queued = true
	c.prev, c.next = q.tail, nil
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
}

func (q *queue) pop() *call {
	c := q.head
	if c != nil {
		q.remove(c)
	}
	return c
}

func (q *queue) remove(c *call) {
	if c.prev == nil {
		q.head = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		q.tail = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.prev, c.next, c.queued = nil, nil, false
}
