package effect

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Bounds of a Teller.
const (
	maxToldWaiting = 1024 // of one app, on one node
	maxToldBytes   = 4 << 20
	maxToldTogther = 16
	maxToldEntry   = 48 << 10 // bytes of bodies in one entry
)

// TellerOptions are the options of NewTeller. Functions are required.
type TellerOptions struct {
	// Hooks of an app, from memory.
	Hooks func(app petrel.AppID) []identity.Hook
	// Limits of an app's jobs.
	Limits func(app petrel.AppID) job.Limits
	// Do carries out a command for an app, as the system.
	Do func(ctx context.Context, app petrel.AppID, c command.Command) (command.Result, error)

	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

// Teller tells webhooks what happens on this node and leaves no state: client events and cache misses. What it took waits in memory until
// the log has it, as the ephemeral lane does with everything; it is bounded for each app, and full it refuses.
type Teller struct {
	opt     TellerOptions
	metrics *tellerMetrics
	wake    chan struct{} // one token

	mu      sync.Mutex // guards what follows
	apps    map[petrel.AppID]*pending
	stopped bool

	running sync.WaitGroup
	end     context.CancelFunc
	started sync.Once
}

// pending is what an app waits to have told.
type pending struct {
	events []ClientEvent
	bytes  int
	misses map[string]struct{}
	full   time.Time // until then its jobs are as many as may wait
}

// NewTeller returns one; Start begins to tell.
func NewTeller(o TellerOptions) *Teller {
	if o.Hooks == nil || o.Limits == nil || o.Do == nil {
		panic("effect: TellerOptions is missing a part") // a mistake of assembly
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Teller{opt: o, metrics: newTellerMetrics(o.Registerer), wake: make(chan struct{}, 1), apps: map[petrel.AppID]*pending{}}
}

// Start begins to tell. It does not block and may be called twice.
func (t *Teller) Start() {
	t.started.Do(func() {
		ctx, cancel := context.WithCancel(context.Background())
		t.mu.Lock()
		t.end = cancel
		t.mu.Unlock()
		t.running.Go(func() { t.run(ctx) })
	})
}

// Stop gives what waits a last second, and ends. It may be called twice, and without Start.
func (t *Teller) Stop() {
	t.started.Do(func() {})
	t.mu.Lock()
	t.stopped = true
	end := t.end
	t.mu.Unlock()
	if end == nil {
		return
	}
	last := time.AfterFunc(time.Second, end)
	t.poke()
	t.running.Wait()
	last.Stop()
	end()
}

func (t *Teller) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// ClientEvent takes an event to be told, if a webhook wants it. It does not block. When the app has as many waiting as it may, it is
// CodeJobsFull, and the event should not be delivered to anybody.
func (t *Teller) ClientEvent(e ClientEvent) error {
	if !wanted(t.opt.Hooks(e.App), identity.HookClientEvent) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of(e.App)
	if t.stopped || len(p.events) >= maxToldWaiting || p.bytes > maxToldBytes || time.Now().Before(p.full) {
		t.metrics.refused.Inc()
		return petrel.Errorf(petrel.CodeJobsFull, "The event was not sent: too many of the app's events wait for its webhook.").After(time.Second)
	}
	if len(e.Data) > maxToldEntry {
		return petrel.Errorf(petrel.CodeTooLarge, "The event was not sent: its data is larger than the %d bytes that a webhook can be told.", maxToldEntry)
	}
	p.events = append(p.events, e)
	p.bytes += len(e.Data)
	t.poke()
	return nil
}

// CacheMiss takes a miss to be told, if a webhook wants it. It does not block; when too many wait it is dropped and counted, as the next one tells the same.
func (t *Teller) CacheMiss(app petrel.AppID, ch string) {
	if !wanted(t.opt.Hooks(app), identity.HookCacheMiss) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of(app)
	if t.stopped || len(p.misses) >= maxToldWaiting {
		t.metrics.dropped.Inc()
		return
	}
	p.misses[ch] = struct{}{}
	t.poke()
}

func wanted(hooks []identity.Hook, name string) bool {
	for _, h := range hooks {
		if h.Wants(name) {
			return true
		}
	}
	return false
}

// of is the app's part; mu is held.
func (t *Teller) of(app petrel.AppID) *pending {
	p := t.apps[app]
	if p == nil {
		p = &pending{misses: map[string]struct{}{}}
		t.apps[app] = p
	}
	return p
}

// run tells until ctx is over, or nothing waits after Stop.
func (t *Teller) run(ctx context.Context) {
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-again.C:
		}
		left := t.pass(ctx)
		t.mu.Lock()
		stopped := t.stopped
		t.mu.Unlock()
		if stopped && !left {
			return
		}
		if left {
			again.Reset(100 * time.Millisecond)
		}
	}
}

// pass tells one portion for each app. It says whether anything is left.
func (t *Teller) pass(ctx context.Context) (left bool) {
	t.mu.Lock()
	apps := make([]petrel.AppID, 0, len(t.apps))
	for app, p := range t.apps {
		if len(p.events)+len(p.misses) == 0 && !time.Now().Before(p.full) {
			delete(t.apps, app)
			continue
		}
		apps = append(apps, app)
	}
	t.mu.Unlock()
	var group errgroup.Group
	group.SetLimit(maxToldTogther)
	for _, app := range apps {
		group.Go(func() error {
			t.tellEvents(ctx, app)
			t.tellMisses(ctx, app)
			return nil
		})
	}
	_ = group.Wait() // nothing fails: what could not be told waits
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.apps {
		left = left || len(p.events)+len(p.misses) > 0
	}
	return left
}

// tellEvents writes down the first events that wait; what the log does not take stays.
func (t *Teller) tellEvents(ctx context.Context, app petrel.AppID) {
	hooks := t.opt.Hooks(app)
	for ctx.Err() == nil {
		t.mu.Lock()
		p := t.of(app)
		var jobs []job.New
		n, bytes := 0, 0
		for ; n < len(p.events) && n < 64; n++ {
			body := p.events[n].body()
			if bytes += len(body); n > 0 && bytes > maxToldEntry {
				break
			}
			jobs = append(jobs, telling{identity.HookClientEvent, body}.jobs(hooks, 0)...)
		}
		t.mu.Unlock()
		if n == 0 {
			return
		}
		if len(jobs) > 0 {
			if _, err := t.opt.Do(ctx, app, job.Enqueue{Jobs: jobs, Limits: t.opt.Limits(app)}); err != nil {
				t.failed(app, err)
				if petrel.CodeOf(err) != petrel.CodeTooLarge {
					return
				}
				n = 1 // it never fits
			}
		}
		t.mu.Lock()
		for _, e := range p.events[:n] {
			p.bytes -= len(e.Data)
		}
		p.events = append([]ClientEvent(nil), p.events[n:]...)
		t.mu.Unlock()
	}
}

func (t *Teller) tellMisses(ctx context.Context, app petrel.AppID) {
	t.mu.Lock()
	p := t.of(app)
	misses := p.misses
	p.misses = map[string]struct{}{}
	t.mu.Unlock()
	for ch := range misses {
		if _, err := t.opt.Do(ctx, app, channel.Miss{Channel: ch}); err != nil {
			t.failed(app, err)
			t.metrics.dropped.Inc() // the next one tells the same
		}
	}
}

func (t *Teller) failed(app petrel.AppID, err error) {
	code := petrel.CodeOf(err)
	t.metrics.failures.WithLabelValues(string(code)).Inc()
	if code != petrel.CodeJobsFull {
		return
	}
	t.mu.Lock()
	t.of(app).full = time.Now().Add(time.Second)
	t.mu.Unlock()
}

type tellerMetrics struct {
	refused, dropped prometheus.Counter
	failures         *prometheus.CounterVec
}

func newTellerMetrics(reg prometheus.Registerer) *tellerMetrics {
	m := &tellerMetrics{
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_effect_client_events_refused_total", Help: "Client events that were refused because too many wait for their app's webhook.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_effect_cache_misses_dropped_total", Help: "Cache misses that no webhook was told of, because too many waited or the log did not take them.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_effect_teller_failures_total", Help: "Times that the log did not take what was to be told, by code.",
		}, []string{"code"}),
	}
	if reg != nil {
		reg.MustRegister(m.refused, m.dropped, m.failures)
	}
	return m
}
