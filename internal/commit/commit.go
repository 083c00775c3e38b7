// Package commit makes many callers share one append: a caller joins the open batch, one append
// writes the batch, and all of its callers learn the result together (group commit).
//
// # Invariants
//
//   - One append is in flight at a time. While it is, callers gather in the next batch; it is sent the
//     moment the one before is acknowledged, or at once when nothing is in flight. There is no linger
//     timer: an idle pipeline adds no wait, a busy one forms large batches by itself.
//   - Callers are appended in the order in which they joined; each is in at most one batch. Nothing is
//     ever sent twice.
//   - What waits is bounded in entries and bytes. Beyond that a caller is refused at once.
//   - A caller whose context ends before its batch was sent is taken out: its entry is certainly not
//     appended. After that it is told petrel.ErrUnknownOutcome, because the append goes on without it.
//
// # Failures
//
// Every error of the append goes to all callers of the batch as it is; one that does not say whether
// the batch was appended is marked petrel.ErrUnknownOutcome. Nothing is retried here: who decided the
// entry knows whether it may be sent again. An append that never returns holds up everybody behind it;
// their contexts and the bound end their wait.
//
// # Tried elsewhere and left out
//
// Several appends in flight, and a timer that waits for a batch to fill: both measured slower with an
// fsyncing log than one in flight without a timer (design, "Why these engines").
package commit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Appender is the log, as far as this package needs it.
type Appender interface {
	// Append writes payloads durably at first, first+1 and so on, all or none. Its errors wrap
	// petrel.ErrNotAppended, ErrDiskFull, ErrStopped or ErrUnknownOutcome. It must return soon after ctx ends.
	Append(ctx context.Context, payloads [][]byte) (first uint64, err error)
}

// Options of New.
type Options struct {
	// Appender that writes the batches.
	Appender Appender
	// MaxEntries of one batch. Default 1,000.
	MaxEntries int
	// MaxBytes of one batch's payloads; a single larger one goes alone. Default 256 KiB.
	MaxBytes int
	// MaxWaiting is how many entries may wait, those in flight included. Default 16,384.
	MaxWaiting int
	// MaxWaitingBytes of the same. Default 64 MiB.
	MaxWaitingBytes int
	// StopGrace is how long Stop lets the append in flight go on before it cancels it. Default 5 s.
	StopGrace time.Duration
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Registerer for metrics; may be nil.
	Registerer prometheus.Registerer
}

func (o Options) withDefaults() Options {
	if o.MaxEntries <= 0 {
		o.MaxEntries = 1000
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 256 << 10
	}
	if o.MaxWaiting <= 0 {
		o.MaxWaiting = 16_384
	}
	if o.MaxWaitingBytes <= 0 {
		o.MaxWaitingBytes = 64 << 20
	}
	if o.StopGrace <= 0 {
		o.StopGrace = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// busyFor is what a caller that finds the pipeline full is told to wait.
const busyFor = time.Second

// Pipeline gathers callers into batches. All methods may be called concurrently.
type Pipeline struct {
	opt     Options
	metrics *metrics

	mu       sync.Mutex // guards all below
	queue    queue      // callers that wait for a batch
	entries  int        // waiting, in flight included
	bytes    int
	started  bool
	stopping bool

	wake chan struct{} // capacity 1: the queue is no longer empty, or Stop was called
	done chan struct{} // closed when the loop has ended

	ctx    context.Context // of every append: ends when Stop runs out of patience
	cancel context.CancelFunc

	calls sync.Pool // *call
}

// New returns a pipeline that gathers callers; it sends from Start on. It panics without an Appender.
func New(o Options) *Pipeline {
	if o.Appender == nil {
		panic("commit: Options.Appender is missing")
	}
	p := &Pipeline{opt: o.withDefaults(), wake: make(chan struct{}, 1), done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.calls.New = func() any { return &call{done: make(chan result, 1)} }
	p.metrics = newMetrics(o.Registerer, p)
	return p
}

// call is one caller in the pipeline.
type call struct {
	payload    []byte
	since      time.Time
	done       chan result // capacity 1: the sender never waits for a caller that left
	prev, next *call       // in the queue
	queued     bool        // guarded by Pipeline.mu: not yet in a batch
}

type result struct {
	index uint64
	err   error
}

// Commit appends payload together with what others commit now, and returns its index. The caller must
// not change payload afterwards, not even after an error.
//
// Certainly not appended: petrel.Error with CodeBusy (full, with RetryAfter), CodeTimeout (ctx ended
// before the batch was sent), CodeTooLarge or CodeDraining (stopped), and errors that wrap
// petrel.ErrNotAppended or petrel.ErrDiskFull. Any other wraps petrel.ErrUnknownOutcome.
func (p *Pipeline) Commit(ctx context.Context, payload []byte) (index uint64, err error) {
	return p.CommitJoined(ctx, payload, nil)
}

// CommitJoined is Commit that calls joined as soon as the payload has its place: whatever joins later is
// appended after it. A refused payload never joins. joined must not block; nil is nobody.
func (p *Pipeline) CommitJoined(ctx context.Context, payload []byte, joined func()) (index uint64, err error) {
	if len(payload) > event.MaxEntryBytes {
		return 0, petrel.Errorf(petrel.CodeTooLarge, "The command makes an entry of %d bytes; at most %d fit.", len(payload), event.MaxEntryBytes)
	}
	c := p.calls.Get().(*call)
	c.payload = payload
	if err := p.join(ctx, c); err != nil {
		p.put(c)
		return 0, err
	}
	if joined != nil {
		joined()
	}
	select {
	case r := <-c.done:
		p.put(c)
		return r.index, r.err
	case <-ctx.Done():
	}
	if p.leave(c) {
		p.put(c)
		return 0, petrel.Errorf(petrel.CodeTimeout, "The deadline passed before the command was appended.").Because(ctx.Err())
	}
	select {
	case r := <-c.done: // it came at the same moment
		p.put(c)
		return r.index, r.err
	default: // c stays with the batch, which will still write to it
		return 0, fmt.Errorf("commit: the caller left while its batch was being appended: %w: %w", petrel.ErrUnknownOutcome, ctx.Err())
	}
}

func (p *Pipeline) put(c *call) {
	c.payload = nil
	p.calls.Put(c)
}

func (p *Pipeline) join(ctx context.Context, c *call) error {
	if err := ctx.Err(); err != nil {
		return petrel.Errorf(petrel.CodeTimeout, "The deadline passed before the command was appended.").Because(err)
	}
	c.since = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return stopped()
	}
	if p.entries+1 > p.opt.MaxWaiting || p.bytes+len(c.payload) > p.opt.MaxWaitingBytes {
		p.metrics.busy.Inc()
		return petrel.Errorf(petrel.CodeBusy, "Too many commands wait to be written. Come back in a second.").After(busyFor)
	}
	p.entries++
	p.bytes += len(c.payload)
	p.queue.push(c)
	p.signal()
	return nil
}

// leave takes c out of the queue and reports whether it was still there.
func (p *Pipeline) leave(c *call) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.queued {
		return false
	}
	p.queue.remove(c)
	p.entries--
	p.bytes -= len(c.payload)
	return true
}

func (p *Pipeline) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func stopped() error {
	return petrel.Errorf(petrel.CodeDraining, "This node is stopping. Try another one.").
		Because(fmt.Errorf("commit: %w: %w", petrel.ErrStopped, petrel.ErrNotAppended))
}

// Start begins to send. Safe to call twice.
func (p *Pipeline) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.stopping {
		return
	}
	p.started = true
	go p.run()
}

// Stop refuses new callers, lets the append in flight end (for StopGrace, then it is canceled), and
// tells everybody who still waits that nothing of theirs was appended. It returns when all have been
// told. Safe to call twice, and without Start.
func (p *Pipeline) Stop() {
	p.mu.Lock()
	first := !p.stopping
	p.stopping = true
	if first && !p.started {
		p.refuse()
		close(p.done)
	}
	p.mu.Unlock()
	p.signal()
	patience := time.AfterFunc(p.opt.StopGrace, p.cancel)
	defer patience.Stop()
	<-p.done
	p.cancel()
}

// refuse tells all that wait in the queue that nothing of theirs was appended. The caller holds mu.
func (p *Pipeline) refuse() {
	for c := p.queue.pop(); c != nil; c = p.queue.pop() {
		p.entries--
		p.bytes -= len(c.payload)
		c.done <- result{err: stopped()}
	}
}

func (p *Pipeline) run() {
	defer close(p.done)
	var batch []*call
	for {
		var stopping bool
		if batch, stopping = p.take(batch[:0]); len(batch) > 0 {
			p.send(batch)
			continue
		}
		if stopping {
			return
		}
		<-p.wake
	}
}

// take closes the open batch: the longest prefix of the queue within the limits. Once the pipeline
// stops it refuses everybody instead.
func (p *Pipeline) take(batch []*call) (_ []*call, stopping bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		p.refuse()
		return nil, true
	}
	bytes := 0
	for c := p.queue.head; c != nil && len(batch) < p.opt.MaxEntries; c = p.queue.head {
		if bytes += len(c.payload); bytes > p.opt.MaxBytes && len(batch) > 0 {
			break
		}
		batch = append(batch, p.queue.pop())
	}
	return batch, false
}

// send appends a batch and tells its callers.
func (p *Pipeline) send(batch []*call) {
	start := time.Now()
	payloads := make([][]byte, len(batch)) // the log may keep it
	bytes := 0
	for i, c := range batch {
		payloads[i] = c.payload
		bytes += len(c.payload)
		p.metrics.wait.Observe(start.Sub(c.since).Seconds())
	}
	p.metrics.batchEntries.Observe(float64(len(batch)))
	p.metrics.batchBytes.Observe(float64(bytes))

	first, err := p.opt.Appender.Append(p.ctx, payloads)
	p.metrics.append.Observe(time.Since(start).Seconds())
	if err != nil {
		err = p.failed(err)
	}
	p.mu.Lock()
	p.entries -= len(batch)
	p.bytes -= bytes
	p.mu.Unlock()
	for i, c := range batch {
		r := result{err: err}
		if err == nil {
			r.index = first + uint64(i)
		}
		c.done <- r
		batch[i] = nil // from here on c is its caller's, or nobody's
	}
}

// failed makes sure that err says what became of the batch.
func (p *Pipeline) failed(err error) error {
	p.metrics.failures.Inc()
	for _, known := range []error{petrel.ErrNotAppended, petrel.ErrDiskFull, petrel.ErrStopped, petrel.ErrUnknownOutcome} {
		if errors.Is(err, known) {
			return fmt.Errorf("commit: %w", err)
		}
	}
	p.opt.Logger.Error("the log returned an error that does not say whether the batch was appended", "error", err)
	return fmt.Errorf("commit: %w: %w", petrel.ErrUnknownOutcome, err)
}
