package effect

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// track is what an owner remembers of a channel about which something is to be told later. It belongs to the pass, and within it to the goroutine
// that attends to its channel.
type track struct {
	gone    map[petrel.UserID]time.Time // members who were told of and are not there, since when
	empty   time.Time                   // since when nobody is there; zero: somebody is
	counted time.Time                   // when the count was told last
	fails   int                         // in a row
	look    time.Time                   // when to look again; zero: when something changes
}

// later makes the track be looked at by then.
func (t *track) later(at time.Time) {
	if t.look.IsZero() || at.Before(t.look) {
		t.look = at
	}
}

// attend compares one channel with what was told of it, and tells what is due.
func (w *Owner) attend(ctx context.Context, ch petrel.Channel, t *track) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	err := w.compare(ctx, ch, t)
	if err == nil {
		t.fails = 0
		return
	}
	w.metrics.failures.WithLabelValues(string(petrel.CodeOf(err))).Inc()
	if _, ok := w.ownedSince(ch); !ok {
		return // whoever owns it now does it
	}
	t.fails++
	t.later(time.Now().Add(min(250*time.Millisecond<<min(t.fails, 8), 30*time.Second)))
}

// errPartial: a living node has not said what it has. It is soon asked again.
var errPartial = errors.New("effect: not every node has said what it has")

func (w *Owner) compare(ctx context.Context, ch petrel.Channel, t *track) error {
	for {
		since, ok := w.ownedSince(ch)
		if !ok {
			return nil
		}
		interest := interestIn(w.opt.Hooks(ch.App), ch.Name)
		here := ChannelHere{Whole: true}
		if interest.any() {
			if here = w.opt.Here(ch); !here.Whole {
				here = w.opt.Look(ctx, ch)
			}
			if !here.Whole {
				return errPartial
			}
		}
		var st channel.State
		if err := w.opt.View(ctx, func(r *projection.Reader) (err error) {
			st, err = channel.StateOf(r, ch.App, ch.Name)
			return err
		}); err != nil {
			return err
		}
		c, due := w.difference(ch, st, here, interest, t, since)
		if !due {
			return nil
		}
		res, err := w.opt.Do(ctx, ch.App, c)
		if err != nil {
			return err
		}
		if changed, _ := res.Answer.(bool); !changed {
			return nil // another owner was there first; what is left comes with the next change or sweep
		}
		w.metrics.told.Inc()
		if c.Counted {
			t.counted = time.Now()
		}
	}
}

// difference is what is due to be told of a channel; what is to be told later is noted in the track.
func (w *Owner) difference(ch petrel.Channel, st channel.State, here ChannelHere, i interest, t *track, since time.Time) (c channel.SetState, due bool) {
	now := time.Now()
	c = channel.SetState{Channel: ch.Name, Occupied: st.Occupied}
	if !i.any() { // nobody is told: what was told before is forgotten, without a word
		c.Occupied, c.Left = false, st.Members[:min(len(st.Members), channel.MaxStep)]
		return c, st.Occupied
	}
	// What is gone is told when it has been gone for a while, and this node has known for a while.
	told := func(goneSince time.Time) bool {
		at := goneSince.Add(w.opt.HoldDown)
		if settled := since.Add(w.opt.Settle); settled.After(at) {
			at = settled
		}
		if now.Before(at) {
			t.later(at)
			return false
		}
		return true
	}
	var members []petrel.UserID
	if i.members {
		members = here.Users
	}
	room := channel.MaxStep
	held := 0 // members who stay for now
	for _, user := range st.Members {
		if _, is := slices.BinarySearch(members, user); is {
			delete(t.gone, user)
			held++
			continue
		}
		if _, noted := t.gone[user]; !noted {
			t.gone[user] = now
		}
		if (i.members && !told(t.gone[user])) || room == 0 {
			held++
			continue
		}
		c.Left = append(c.Left, user)
		room--
	}
	for user := range t.gone {
		if _, is := slices.BinarySearch(st.Members, user); !is {
			delete(t.gone, user)
		}
	}
	switch {
	case here.Count > 0 || len(members) > 0:
		t.empty, c.Occupied = time.Time{}, true
	case st.Occupied:
		if t.empty.IsZero() {
			t.empty = now
		}
		c.Occupied = !told(t.empty) || held > 0
	}
	if c.Occupied {
		for _, user := range members {
			if _, was := slices.BinarySearch(st.Members, user); !was && room > 0 {
				c.Joined = append(c.Joined, user)
				room--
			}
		}
		c.Count, c.Counted = here.Count, i.count && w.countDue(here.Count, st, t, now)
	}
	return c, c.Occupied != st.Occupied || len(c.Joined)+len(c.Left) > 0 || c.Counted
}

// countDue says whether the number of subscriptions is to be told now.
func (w *Owner) countDue(count int, st channel.State, t *track, now time.Time) bool {
	every := time.Second
	if count > 100 {
		every = w.opt.CountEvery
	}
	at := t.counted.Add(every)
	if count == 0 || st.Occupied && uint64(count) == st.Count { //nolint:gosec // a count
		if now.Before(at) {
			t.later(at) // so that it is remembered when that was
		}
		return false
	}
	if now.Before(at) {
		t.later(at)
		return false
	}
	return true
}

type ownerMetrics struct {
	told     prometheus.Counter
	failures *prometheus.CounterVec
}

func newOwnerMetrics(reg prometheus.Registerer, w *Owner) *ownerMetrics {
	m := &ownerMetrics{
		told: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_effect_channel_changes_total", Help: "Changes of channels that this node wrote down for webhooks.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_effect_channel_failures_total", Help: "Times that a change of a channel could not be written down, by code; it is tried again.",
		}, []string{"code"}),
	}
	if reg != nil {
		reg.MustRegister(m.told, m.failures, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "petrel_effect_owned_buckets", Help: "Shares of the channels that this node tells webhooks of.",
		}, func() float64 {
			w.mu.RLock()
			defer w.mu.RUnlock()
			return float64(w.owned)
		}))
	}
	return m
}
