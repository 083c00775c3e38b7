package effect

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// KindWebhook is the kind of job that tells one event to one webhook. Its target names the hook (webhookTarget), its body is the
// event as it is told, or, of chat, which event it is: then the content is read when it is told, so that what was deleted
// meanwhile is not told, and is in no row.
const KindWebhook = "webhook"

// WebhookPolicy is how often a webhook is tried: for more than an hour, seven times within the first minute.
func WebhookPolicy() Policy {
	return Policy{Timeout: 15 * time.Second, Attempts: 16, First: time.Second, Longest: 15 * time.Minute}
}

// Bounds of what a receiver may ask for by Retry-After.
const (
	minRetryAfter = time.Second
	maxRetryAfter = time.Hour
)

// WebhookOptions are the options of NewWebhooks. Functions without a default are required.
type WebhookOptions struct {
	// Hook finds a webhook as it is now.
	Hook func(app petrel.AppID, id petrel.HookID) (identity.Hook, bool)
	// Sign returns the pair that signs for the app now.
	Sign func(app petrel.AppID) (identity.KeyPair, bool)
	// Remove ends a webhook whose receiver said that it is gone.
	Remove func(ctx context.Context, h identity.Hook, reason string) error
	// Event reads an event of a room as a replay shows it; found is false where there is none.
	Event func(ctx context.Context, app petrel.AppID, room petrel.RoomID, seq uint64) (p petrel.Publication, found bool, err error)

	// Allow are networks that may be called although they are not public.
	Allow []netip.Prefix
	// Lookup resolves a host. Default: the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// CallTimeout bounds one call, redirects included. Default 10 s.
	CallTimeout time.Duration
	// MaxBatch is how many events go into one call of a webhook that wants batches. Default 10.
	MaxBatch int
	// Linger is how long a call of such a webhook waits for more events that are due. Default 50 ms.
	Linger time.Duration

	Version    string                // in the User-Agent; default "dev"
	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // nil: metrics are kept but not shown
}

func (o *WebhookOptions) defaults() {
	if o.Hook == nil || o.Sign == nil || o.Remove == nil || o.Event == nil {
		panic("effect: WebhookOptions is missing a part") // a mistake of assembly
	}
	if o.CallTimeout <= 0 {
		o.CallTimeout = 10 * time.Second
	}
	if o.MaxBatch <= 0 {
		o.MaxBatch = 10
	}
	if o.Linger <= 0 {
		o.Linger = 50 * time.Millisecond
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Webhooks tells events to webhooks: the Handler of KindWebhook.
type Webhooks struct {
	opt     WebhookOptions
	caller  *caller
	metrics *webhookMetrics

	mu   sync.Mutex // guards open, and every batch that is in it
	open map[batchKey]*batch
}

var _ Handler = (*Webhooks)(nil)

// NewWebhooks returns the handler. Close lets its connections go.
func NewWebhooks(o WebhookOptions) *Webhooks {
	o.defaults()
	return &Webhooks{opt: o, caller: newCaller(o.Allow, o.Lookup), metrics: newWebhookMetrics(o.Registerer), open: map[batchKey]*batch{}}
}

// Close ends idle connections; calls that are under way end with their contexts.
func (w *Webhooks) Close() { w.caller.transport.CloseIdleConnections() }

// webhookTarget names one life of a webhook. Neither part holds a slash.
func webhookTarget(h identity.Hook) string {
	return string(h.ID) + "/" + strconv.FormatUint(h.Made, 10)
}

// told is one event on its way.
type told struct {
	job     job.ID
	id      string
	at      int64 // Unix milliseconds
	attempt int
	body    []byte
}

// Run implements Handler.
func (w *Webhooks) Run(ctx context.Context, j job.Job, attempt int) error {
	id, made, _ := strings.Cut(j.Target, "/")
	h, ok := w.opt.Hook(j.App, petrel.HookID(id))
	if !ok || webhookTarget(h) != j.Target {
		return Gone(fmt.Errorf("the webhook %q, made at %s, was removed", id, made))
	}
	body, err := w.body(ctx, j)
	if err != nil {
		return err
	}
	t := told{job: j.ID, id: j.Event, at: j.QueuedAt, attempt: attempt, body: body}
	if h.Batch {
		return w.join(ctx, h, t)
	}
	return w.deliver(ctx, h, []told{t})
}

// chatBody is the body of a job about an event of a room; seq is the job's.
type chatBody struct {
	Name string        `json:"name"`
	Room petrel.RoomID `json:"room,omitempty"`
}

// body returns the event as it is told.
func (w *Webhooks) body(ctx context.Context, j job.Job) ([]byte, error) {
	var c chatBody
	if err := json.Unmarshal(j.Body, &c); err != nil || len(j.Body) < 2 {
		return nil, Permanent(errors.New("the body of the job is not an event"))
	}
	if c.Room == "" {
		return append([]byte(`{"event_id":"`+j.Event+`",`), j.Body[1:]...), nil
	}
	p, found, err := w.opt.Event(ctx, j.App, c.Room, j.Seq)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the event: %w", err)
	case !found:
		return nil, Permanent(fmt.Errorf("the room has no event %d", j.Seq))
	}
	return encodeJSON(struct {
		ID   string          `json:"event_id"`
		Name string          `json:"name"`
		Room petrel.RoomID   `json:"room"`
		Seq  uint64          `json:"seq"`
		At   string          `json:"at"`
		Data json.RawMessage `json:"data"`
	}{j.Event, p.Type, c.Room, j.Seq, p.At.UTC().Format("2006-01-02T15:04:05.000Z"), p.Data}), nil
}

// deliver makes one call and judges what was answered.
func (w *Webhooks) deliver(ctx context.Context, h identity.Hook, events []told) error {
	pair, ok := w.opt.Sign(h.App)
	if !ok {
		return errors.New("the app has no key to sign with") // an app always has one: this node has yet to hear of it
	}
	slices.SortFunc(events, func(a, b told) int { return cmp.Compare(a.job, b.job) })
	ctx, cancel := context.WithTimeoutCause(ctx, w.opt.CallTimeout, fmt.Errorf("no answer within %s", w.opt.CallTimeout))
	defer cancel()
	began := time.Now()
	a, err := w.caller.call(ctx, h.URL, "Petrel/"+w.opt.Version, pair, events)
	if err != nil && ctx.Err() != nil && !errors.Is(err, errNotPublic) {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = w.judge(ctx, h, a)
	}
	w.metrics.called(a.status, err, len(events), time.Since(began))
	if err != nil {
		w.opt.Logger.DebugContext(ctx, "a webhook was not told", "app", h.App, "hook", h.ID, "events", len(events), "attempt", events[0].attempt, "status", a.status, "error", err)
	}
	return err
}

func (w *Webhooks) judge(ctx context.Context, h identity.Hook, a called) error {
	err := fmt.Errorf("the receiver answered %d", a.status)
	switch {
	case a.status >= 200 && a.status <= 299:
		return nil
	case a.status == 410:
		if rerr := w.opt.Remove(ctx, h, "its receiver answered 410"); rerr != nil && petrel.CodeOf(rerr) != petrel.CodeNotFound {
			return fmt.Errorf("%w, and the webhook could not be removed: %w", err, rerr)
		}
		w.opt.Logger.InfoContext(ctx, "a webhook is removed: its receiver answered 410", "app", h.App, "hook", h.ID)
		return Gone(fmt.Errorf("%w: the webhook is removed", err))
	case (a.status == 429 || a.status == 503) && a.retryAfter > 0:
		return Retry{After: min(max(a.retryAfter, minRetryAfter), maxRetryAfter), Err: err}
	}
	return err
}

// envelope is the body of a call.
func envelope(events []told) []byte {
	first := events[0].at
	var b bytes.Buffer
	for _, t := range events {
		first = min(first, t.at)
	}
	fmt.Fprintf(&b, `{"time_ms":%d,"events":[`, first)
	for i, t := range events {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(t.body)
	}
	b.WriteString("]}")
	return b.Bytes()
}

// batchKey says which events may share a call: those for one webhook in one state.
type batchKey struct {
	app    petrel.AppID
	target string
	url    string
}

// batch is a call that is put together.
type batch struct {
	events []told
	full   chan struct{} // closed by who fills it
	done   chan struct{} // closed once err is set
	err    error
}

// join puts the event into a call with others that are due, and waits for that. The first one of a batch makes the call.
func (w *Webhooks) join(ctx context.Context, h identity.Hook, t told) error {
	key := batchKey{h.App, webhookTarget(h), h.URL}
	w.mu.Lock()
	b := w.open[key]
	first := b == nil
	if first {
		b = &batch{full: make(chan struct{}), done: make(chan struct{})}
		w.open[key] = b
	}
	if b.events = append(b.events, t); len(b.events) == w.opt.MaxBatch {
		delete(w.open, key)
		close(b.full)
	}
	w.mu.Unlock()
	if !first {
		select {
		case <-b.done:
			return b.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	late := time.NewTimer(w.opt.Linger)
	defer late.Stop()
	select {
	case <-b.full:
	case <-late.C:
	case <-ctx.Done():
	}
	w.mu.Lock()
	if w.open[key] == b {
		delete(w.open, key)
	}
	w.mu.Unlock()
	b.err = errors.New("the call of the batch failed") // if what follows panics
	defer close(b.done)
	b.err = w.deliver(ctx, h, b.events)
	return b.err
}

// encodeJSON encodes our own types.
func encodeJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(fmt.Sprintf("effect: encode %T: %v", v, err)) // a broken invariant
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

// attemptsOf is the header of a call: the number of the event that was tried most often.
func attemptsOf(events []told) string {
	most := 0
	for _, t := range events {
		most = max(most, t.attempt)
	}
	return strconv.Itoa(most)
}

func idsOf(events []told) string {
	ids := make([]string, len(events))
	for i, t := range events {
		ids[i] = t.id
	}
	return strings.Join(ids, ",")
}
