package api

import (
	"context"
	"strconv"
	"time"

	"github.com/petrel-chat/petrel/internal/conn"
)

const (
	// staleNotice: connections are told of what lasts longer, so that an election is no news.
	staleNotice = time.Second
	// staleLook is how often it is looked.
	staleLook = 250 * time.Millisecond
)

// stale is how long this node has been out of touch with the leader, so that what it shows may be old; 0 while it is in touch.
func (s *server) stale() time.Duration {
	if s.opt.Stale == nil {
		return 0
	}
	return max(0, s.opt.Stale())
}

// staleHeader is the value of Petrel-Stale: whole seconds, at least 1; "" while in touch.
func (s *server) staleHeader() string {
	d := s.stale()
	if d == 0 {
		return ""
	}
	return strconv.Itoa(max(1, int(d.Seconds())))
}

// told is a connection's handler that is told when what it gets may be old, and when no more. Both at most once in a row.
type told interface{ tellStale(d time.Duration) }

// watchStale tells connections until ctx is over. Each remembers what it was told, so that it does not matter which came when.
func (s *server) watchStale(ctx context.Context) {
	tick := time.NewTicker(staleLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d := s.stale()
		if d < staleNotice && (d > 0 || s.toldStale.Load() == 0) {
			continue
		}
		s.opt.Gateway.Conns().Each(func(c *conn.Conn) {
			if h, ok := c.Handler().(told); ok {
				h.tellStale(d)
			}
		})
	}
}

// staleMark is what a connection was told; its owner's lock guards it.
type staleMark bool

// turn sets the mark and says whether that is news.
func (m *staleMark) turn(s *server, d time.Duration) bool {
	if bool(*m) == (d > 0) {
		return false
	}
	*m = d > 0
	if *m {
		s.toldStale.Add(1)
	} else {
		s.toldStale.Add(-1)
	}
	return true
}

// tellStale implements told.
func (c *session) tellStale(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone && c.greeted && c.stale.turn(c.s, d) {
		c.send(`{"op":"stale","for_ms":%d}`, d.Milliseconds())
	}
}

// tellStale implements told.
func (st *stream) tellStale(d time.Duration) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.greeted && st.stale.turn(st.s, d) {
		st.tell("stale", map[string]any{"for_ms": d.Milliseconds()})
	}
}
