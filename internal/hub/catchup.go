package hub

import (
	"context"
	"errors"
	"sync"
	"time"
)

// catchups is the line of subscriptions that wait for their next page: first in, first served, each back to the end after a page.
// It is bounded because every subscription is in it at most once, and new ones are refused when it is long.
type catchups struct {
	mu      sync.Mutex // guards the fields below; held for a few instructions
	wake    *sync.Cond
	line    []*Subscription
	at      int // line[:at] is taken
	stopped bool
	started bool
	running sync.WaitGroup
	cancel  context.CancelFunc
	timers  map[*time.Timer]struct{} // pauses after a failed read; nil until Start
}

// admit is push, unless max are waiting already.
func (q *catchups) admit(s *Subscription, max int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.line)-q.at >= max {
		return false
	}
	q.line = append(q.line, s)
	q.wake.Signal()
	return true
}

func (q *catchups) push(s *Subscription) {
	q.mu.Lock()
	q.line = append(q.line, s)
	q.wake.Signal()
	q.mu.Unlock()
}

// later is push after a pause.
func (q *catchups) later(s *Subscription, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timers == nil { // not started: whoever takes turns by hand (a model test) has no clock to wait for
		q.line = append(q.line, s)
		return
	}
	if q.stopped {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		q.mu.Lock()
		delete(q.timers, t)
		q.mu.Unlock()
		q.push(s)
	})
	q.timers[t] = struct{}{}
}

// pop waits for the next in line; nil when the hub stops. With wait false it returns nil at once when nobody waits.
func (q *catchups) pop(wait bool) *Subscription {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.at == len(q.line) {
		if q.stopped || !wait {
			return nil
		}
		q.wake.Wait()
	}
	if q.stopped {
		return nil
	}
	s := q.line[q.at]
	q.line[q.at] = nil
	if q.at++; q.at == len(q.line) {
		q.line, q.at = q.line[:0], 0
	} else if q.at > 1024 && q.at > len(q.line)/2 {
		n := copy(q.line, q.line[q.at:])
		clear(q.line[n:])
		q.line, q.at = q.line[:n], 0
	}
	return s
}

func (q *catchups) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.line) - q.at
}

// Start begins to catch up. It does not block and may be called twice.
func (h *Hub) Start() {
	q := &h.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.started || q.stopped {
		return
	}
	q.started = true
	q.timers = make(map[*time.Timer]struct{})
	ctx, cancel := context.WithCancel(context.Background())
	q.cancel = cancel
	q.running.Go(func() { h.attend(ctx) })
	for range h.opt.Readers {
		q.running.Go(func() {
			for s := q.pop(true); s != nil; s = q.pop(true) {
				h.turn(ctx, s)
			}
		})
	}
}

// Stop ends the pool and waits for it. Subscriptions stay as they are; nothing is read for them any more. It may be called twice.
func (h *Hub) Stop() {
	q := &h.queue
	q.mu.Lock()
	q.stopped = true
	q.wake.Broadcast()
	if q.cancel != nil {
		q.cancel()
	}
	for t := range q.timers {
		t.Stop()
	}
	clear(q.timers)
	q.mu.Unlock()
	q.running.Wait()
}

// What becomes of a subscription after its turn.
type next uint8

const (
	again   next = iota // to the end of the line
	waiting             // somebody will push it
	done
)

// turn serves one page to s.
func (h *Hub) turn(ctx context.Context, s *Subscription) {
	s.ch.shard.mu.Lock()
	mode := s.mode
	s.ch.shard.mu.Unlock()
	if mode != catching {
		return
	}
	start, life := time.Now(), h.lives.Load()
	page, err := h.opt.History(ctx, Want{Channel: s.ch.name, Actor: s.detail.actor, After: s.next - 1, Limit: h.opt.PageSize})
	h.metrics.page.Observe(time.Since(start).Seconds())
	if err != nil {
		h.failed(ctx, s, err)
		return
	}
	s.detail.fails = 0
	if page.Head+1 < s.next { // the log has had another life since
		h.end(s, func() { s.owner.Resync(s, "ahead", page.Head) })
		return
	}
	if h.offer(s, &page, life) == again {
		h.queue.push(s)
	}
}

// offer queues a page as far as there is room, and joins the live edge when the page reached it.
func (h *Hub) offer(s *Subscription, page *Page, life uint64) next {
	encode := h.opt.Replays[int(s.wire)]
	if encode == nil {
		encode = h.opt.Encoders[s.wire]
	}
	for i := range page.Publications {
		p := &page.Publications[i]
		if p.Seq != s.next {
			h.opt.Logger.Error("History is not dense: the subscriber is told to start anew. This is a bug or a damaged projection.",
				"app", p.Channel.App, "room", p.Channel.Name, "want_seq", s.next, "got_seq", p.Seq)
			h.end(s, func() { s.owner.Resync(s, "too_old", page.Head) })
			return done
		}
		frame := encode(p)
		s.ch.shard.mu.Lock()
		if s.mode != catching { // closed meanwhile
			s.ch.shard.mu.Unlock()
			return done
		}
		queued, err := s.to.TrySend(frame)
		s.ch.shard.mu.Unlock()
		if err != nil {
			h.end(s, func() {})
			return done
		}
		if !queued {
			s.to.NotifyRoom(func() { h.queue.push(s) })
			return waiting
		}
		h.metrics.replayed.Inc()
		s.next++
	}
	if s.next <= page.Head {
		return again
	}
	return h.join(s, life)
}

// join makes s live if nothing newer was published than what it has.
func (h *Hub) join(s *Subscription, life uint64) next {
	s.ch.shard.mu.Lock()
	defer s.ch.shard.mu.Unlock()
	if s.mode != catching {
		return done
	}
	c := s.ch
	if c.head >= s.next || h.lives.Load() != life {
		return again // published, or restored, since the page was read: so it is in history by now
	}
	c.head, c.synced = s.next-1, true
	s.mode = live
	h.metrics.resume.Observe(time.Since(s.detail.from).Seconds())
	return done
}

// failed ends s when its right is gone; every other failure is a reason to try again later, never to skip.
func (h *Hub) failed(ctx context.Context, s *Subscription, err error) {
	if errors.Is(err, ErrEnded) {
		h.end(s, func() { s.owner.Ended(s, err) })
		return
	}
	if ctx.Err() != nil {
		return
	}
	s.detail.fails++
	pause := min(50*time.Millisecond<<min(s.detail.fails, 8), 5*time.Second)
	h.metrics.failed.Inc()
	h.opt.Logger.Warn("Reading history failed; the subscription waits and tries again.",
		"app", s.ch.name.App, "room", s.ch.name.Name, "after", s.next-1, "error", err, "pause", pause)
	h.queue.later(s, pause)
}

// end takes s out and then tells it why, unless it was closed meanwhile.
func (h *Hub) end(s *Subscription, tell func()) {
	s.ch.shard.mu.Lock()
	was := s.mode
	s.remove()
	s.ch.shard.mu.Unlock()
	if was == catching {
		tell()
	}
}
