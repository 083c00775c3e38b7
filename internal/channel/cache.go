package channel

import (
	"container/list"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Cache keeps the last publication of each cache channel that this node heard of. It is memory only: what does not fit any more,
// oldest first of the app that has most, is gone, and subscribers are told that there is none.
// All methods are safe for concurrent use, and none waits.
type Cache struct {
	max int
	ttl func(petrel.AppID) time.Duration

	mu    sync.Mutex // guards what follows
	bytes int
	apps  map[petrel.AppID]*appCache
}

// appCache is the share of one app.
type appCache struct {
	bytes int
	order list.List // of *cached, the oldest first
	at    map[petrel.Channel]*list.Element
}

type cached struct {
	pub   petrel.Publication
	until time.Time
}

// CacheOptions of a Cache.
type CacheOptions struct {
	MaxBytes int                              // of everything kept; default 64 MiB
	TTL      func(petrel.AppID) time.Duration // how long an app's are kept, at most DefaultCacheTTL. Must not block. nil: DefaultCacheTTL
}

// overhead is about what one kept publication takes besides its texts.
const overhead = 400

// NewCache returns an empty cache.
func NewCache(o CacheOptions) *Cache {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	if o.TTL == nil {
		o.TTL = func(petrel.AppID) time.Duration { return DefaultCacheTTL }
	}
	return &Cache{max: o.MaxBytes, ttl: o.TTL, apps: map[petrel.AppID]*appCache{}}
}

// Keep notes a publication as its channel's last, if the channel is one that keeps and a client did not send it. What is ordered is the order of calls:
// clocks of nodes may differ.
func (c *Cache) Keep(p *petrel.Publication) {
	if p.Client || p.Channel.Kind != petrel.ChannelPusher || !formOf(p.Channel.Name).Cache {
		return
	}
	ttl := min(c.ttl(p.Channel.App), DefaultCacheTTL)
	now := time.Now()
	left := ttl - max(0, now.Sub(p.At)) // clocks of nodes may differ: what seems to come from the future begins now
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.apps[p.Channel.App]
	if left <= 0 || size(p) > c.max { // then there is none: an older one is not the last
		if a != nil && a.at[p.Channel] != nil {
			c.remove(a, a.at[p.Channel])
		}
		return
	}
	if a == nil {
		a = &appCache{at: map[petrel.Channel]*list.Element{}}
		c.apps[p.Channel.App] = a
	}
	if e := a.at[p.Channel]; e != nil {
		c.remove(a, e)
	}
	a.at[p.Channel] = a.order.PushBack(&cached{*p, now.Add(left)})
	a.bytes += size(p)
	c.bytes += size(p)
	for e := a.order.Front(); e != nil && !now.Before(e.Value.(*cached).until); e = a.order.Front() {
		c.remove(a, e)
	}
	for c.bytes > c.max {
		c.shrink()
	}
	if a.order.Len() == 0 {
		delete(c.apps, p.Channel.App)
	}
}

// Kept returns the last publication of a channel and how long it is kept yet.
func (c *Cache) Kept(ch petrel.Channel) (p petrel.Publication, left time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.apps[ch.App]
	if a == nil || a.at[ch] == nil {
		return petrel.Publication{}, 0, false
	}
	it := a.at[ch].Value.(*cached)
	// The app may have shortened its time since.
	left = min(time.Until(it.until), c.ttl(ch.App)-max(0, time.Since(it.pub.At)))
	if left <= 0 {
		c.remove(a, a.at[ch])
		return petrel.Publication{}, 0, false
	}
	return it.pub, left, true
}

// Bytes says how much is kept, and how much may be.
func (c *Cache) Bytes() (used, limit int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes, c.max
}

// shrink drops the oldest of the app that has most.
func (c *Cache) shrink() {
	var most petrel.AppID
	var a *appCache
	for id, x := range c.apps {
		if a == nil || x.bytes > a.bytes || (x.bytes == a.bytes && id < most) {
			most, a = id, x
		}
	}
	c.remove(a, a.order.Front())
	if a.order.Len() == 0 {
		delete(c.apps, most)
	}
}

func (c *Cache) remove(a *appCache, e *list.Element) {
	it := a.order.Remove(e).(*cached)
	delete(a.at, it.pub.Channel)
	n := size(&it.pub)
	a.bytes -= n
	c.bytes -= n
}

func size(p *petrel.Publication) int {
	return overhead + 2*len(p.Channel.Name) + len(p.Type) + len(p.Data) + len(p.User) + len(p.Except) + len(p.Request)
}
