package raftlog

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Forwarding: a follower sends a batch (or a barrier) to the leader over a stream of the
// Network, one exchange at a time per stream. Frames, big endian:
//
//	kind 1, length 4, CRC32C of the body 4, body
//	'a' append:  term 8, session 8, number 8, count 4, count × (length 4, payload)
//	'b' barrier: session 8, number 8
//	'r' reply:   status 1, index 8, sentence
//
// term is the sender's: the leader refuses any other, so that a request which lingers
// anywhere cannot count in a later term. session and number name the request: a barrier
// says up to which number the sender has given up, and the leader refuses those from then
// on. Together they make a barrier settle every append whose reply was lost.
const (
	kindAppend  byte = 'a'
	kindBarrier byte = 'b'
	kindReply   byte = 'r'

	frameHead    = 9
	maxFrameBody = MaxBatchBytes + 4*MaxBatchRecords + 64
)

type request struct {
	kind     byte
	term     uint64
	session  uint64
	number   uint64
	payloads [][]byte
}

func (q request) encode() []byte {
	var b []byte
	if q.kind == kindAppend {
		b = binary.BigEndian.AppendUint64(b, q.term)
	}
	b = binary.BigEndian.AppendUint64(b, q.session)
	b = binary.BigEndian.AppendUint64(b, q.number)
	if q.kind == kindAppend {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q.payloads)))
		for _, p := range q.payloads {
			b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
			b = append(b, p...)
		}
	}
	return frame(q.kind, b)
}

func decodeRequest(kind byte, b []byte) (request, error) {
	q := request{kind: kind}
	bad := func(what string) (request, error) { return request{}, fmt.Errorf("forward frame: %s", what) }
	switch kind {
	case kindBarrier:
		if len(b) != 16 {
			return bad("a barrier has 16 bytes")
		}
	case kindAppend:
		if len(b) < 28 {
			return bad("an append is cut off")
		}
		q.term, b = binary.BigEndian.Uint64(b), b[8:]
	default:
		return bad("unknown kind")
	}
	q.session, q.number, b = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), b[16:]
	if kind == kindBarrier {
		return q, nil
	}
	count := binary.BigEndian.Uint32(b)
	b = b[4:]
	if count > MaxBatchRecords || int(count) > len(b)/4 {
		return bad("more records than bytes")
	}
	q.payloads = make([][]byte, count)
	for i := range q.payloads {
		if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
			return bad("a record is cut off")
		}
		n := binary.BigEndian.Uint32(b)
		q.payloads[i], b = b[4:4+n:4+n], b[4+n:]
	}
	if len(b) != 0 {
		return bad("bytes too many")
	}
	return q, nil
}

func frame(kind byte, body []byte) []byte {
	out := make([]byte, frameHead, frameHead+len(body))
	out[0] = kind
	binary.BigEndian.PutUint32(out[1:], uint32(len(body)))
	binary.BigEndian.PutUint32(out[5:], castagnoli(body))
	return append(out, body...)
}

func readFrame(r io.Reader) (kind byte, body []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrameBody {
		return 0, nil, fmt.Errorf("forward frame: %d bytes are too many", n)
	}
	// Grow as bytes arrive: a length costs its sender as much as it costs us.
	body, err = io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) != int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && castagnoli(body) != binary.BigEndian.Uint32(head[5:]) {
		err = errors.New("forward frame: it does not match its checksum")
	}
	return head[0], body, err
}

func encodeReply(index uint64, err error) []byte {
	b := []byte{0}
	if err != nil {
		b[0] = 2 // unknown, unless it says otherwise
		for _, o := range outcomes {
			if errors.Is(err, o.err) {
				b[0] = o.status
				break
			}
		}
	}
	b = binary.BigEndian.AppendUint64(b, index)
	if err != nil {
		b = append(b, err.Error()...)
	}
	return frame(kindReply, b)
}

func decodeReply(kind byte, b []byte) (uint64, error) {
	if kind != kindReply || len(b) < 9 {
		return 0, fmt.Errorf("raftlog: %w: the leader's reply makes no sense", petrel.ErrUnknownOutcome)
	}
	if b[0] == 0 {
		return binary.BigEndian.Uint64(b[1:]), nil
	}
	what := petrel.ErrUnknownOutcome
	for _, o := range outcomes {
		if o.status == b[0] {
			what = o.err
		}
	}
	if what == petrel.ErrStopped { //nolint:errorlint // the leader stopped, this node did not: try again elsewhere
		what = petrel.ErrNotAppended
	}
	return 0, fmt.Errorf("raftlog: %w: the leader says: %s", what, b[9:])
}

// forwarder is the sending side.
type forwarder struct {
	mux     *mux
	session uint64

	mu     sync.Mutex // guards what follows
	idle   map[string][]net.Conn
	number uint64 // of the last append sent
	lost   uint64 // highest number whose reply did not come
	closed bool
}

func newForwarder(m *mux) *forwarder {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return &forwarder{mux: m, session: binary.BigEndian.Uint64(b[:]), idle: map[string][]net.Conn{}}
}

// exchange sends one frame and reads the reply, in a time that no healthy leader needs. sent says whether the leader
// may have got it.
func (f *forwarder) exchange(ctx context.Context, to string, req []byte) (kind byte, body []byte, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, maxExchange)
	defer cancel()
	c, err := f.conn(ctx, to)
	if err != nil {
		return 0, nil, false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	_, err = c.Write(req)
	if err == nil {
		kind, body, err = readFrame(bufio.NewReader(c)) // one reply per request: nothing is read too far
	}
	if stop() && err == nil {
		f.keep(to, c)
		return kind, body, true, nil
	}
	_ = c.Close()
	f.forget(to)
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return kind, body, true, err
}

func (f *forwarder) conn(ctx context.Context, to string) (net.Conn, error) {
	f.mu.Lock()
	if n := len(f.idle[to]); n > 0 {
		c := f.idle[to][n-1]
		f.idle[to] = f.idle[to][:n-1]
		f.mu.Unlock()
		return c, nil
	}
	f.mu.Unlock()
	return f.mux.dial(ctx, to, streamForward)
}

func (f *forwarder) keep(to string, c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || len(f.idle[to]) >= 4 {
		_ = c.Close()
		return
	}
	f.idle[to] = append(f.idle[to], c)
}

// forget closes the idle streams to a member: where one broke the others are no better, and each would cost an
// append its answer.
func (f *forwarder) forget(to string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.idle[to] {
		_ = c.Close()
	}
	delete(f.idle, to)
}

func (f *forwarder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, cs := range f.idle {
		for _, c := range cs {
			_ = c.Close()
		}
	}
}

var errNoLeader = errors.New("no leader is known")

// maxExchange is more than a healthy leader needs for a request.
const maxExchange = 30 * time.Second

var errReignOver = errors.New("the leader has been silent for too long, or another one leads")

// leader returns who leads and a context that ends with that, as this node sees it, or with this log: what a leader
// was asked that is dead, stopped or cut off must not be waited for.
func (l *raftLog) leader(ctx context.Context) (*reign, context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	rn := l.reign.Load()
	over := context.AfterFunc(rn.life, func() { cancel(errReignOver) })
	closed := context.AfterFunc(l.ctx, func() { cancel(petrel.ErrStopped) })
	return rn, ctx, func() { over(); closed(); cancel(nil) }
}

func (l *raftLog) forwardAppend(ctx context.Context, payloads [][]byte) (uint64, error) {
	term := l.raft().CurrentTerm()
	to, ctx, done := l.leader(ctx)
	defer done()
	if to.addr == "" {
		return 0, fmt.Errorf("raftlog: %w: %w", petrel.ErrNotAppended, errNoLeader)
	}
	l.fwd.mu.Lock()
	l.fwd.number++
	number := l.fwd.number
	l.fwd.mu.Unlock()
	l.m.forwarded.Inc()
	q := request{kind: kindAppend, term: term, session: l.fwd.session, number: number, payloads: payloads}
	kind, body, sent, err := l.fwd.exchange(ctx, at(string(to.id), to.addr), q.encode())
	if err != nil && !sent {
		return 0, fmt.Errorf("raftlog: %w: reach the leader: %w", petrel.ErrNotAppended, err)
	}
	var first uint64
	if err == nil {
		first, err = decodeReply(kind, body)
	} else {
		err = fmt.Errorf("raftlog: %w: the leader's reply is lost: %w", petrel.ErrUnknownOutcome, err)
	}
	if errors.Is(err, petrel.ErrUnknownOutcome) {
		l.fwd.mu.Lock()
		l.fwd.lost = max(l.fwd.lost, number)
		l.fwd.mu.Unlock()
	}
	return first, err
}

// forwardBarrier waits until this node has applied what the leader had applied after its own barrier.
func (l *raftLog) forwardBarrier(ctx context.Context) error {
	to, ctx, done := l.leader(ctx)
	defer done()
	if to.addr == "" {
		return l.notNow("barrier", errNoLeader)
	}
	l.fwd.mu.Lock()
	lost := l.fwd.lost
	l.fwd.mu.Unlock()
	kind, body, _, err := l.fwd.exchange(ctx, at(string(to.id), to.addr), request{kind: kindBarrier, session: l.fwd.session, number: lost}.encode())
	var index uint64
	if err == nil {
		if index, err = decodeReply(kind, body); err != nil {
			err = hideOutcome{err}
		}
	}
	if err == nil {
		err = l.fsm.waitApplied(ctx, index)
	}
	if err != nil {
		return l.notNow("barrier", err)
	}
	return nil
}

// serveForward answers one follower's stream until it ends. mux closes it on Close.
func (l *raftLog) serveForward(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		if _, err := r.Peek(1); err != nil { // idle for as long as the follower likes
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		kind, body, err := readFrame(r)
		_ = c.SetReadDeadline(time.Time{})
		if err != nil {
			return
		}
		q, err := decodeRequest(kind, body)
		if err != nil {
			l.log.Warn("a member sent what is no request", "from", c.RemoteAddr(), "error", err)
			return
		}
		if _, err := c.Write(l.answer(q)); err != nil {
			return
		}
	}
}

func (l *raftLog) answer(q request) []byte {
	ctx, cancel := context.WithTimeout(l.ctx, maxExchange)
	defer cancel()
	if q.kind == kindBarrier {
		return encodeReply(l.barrierFor(ctx, q))
	}
	if err := checkPayloads(q.payloads); err != nil {
		return encodeReply(0, err)
	}
	return encodeReply(l.propose(ctx, q.payloads, func(term uint64) error {
		switch {
		case q.term != term:
			return fmt.Errorf("the sender is in term %d, the leader in %d", q.term, term)
		case q.number <= l.fence[q.session]:
			return errors.New("the sender has given it up")
		}
		return nil
	}))
}

func (l *raftLog) barrierFor(ctx context.Context, q request) (uint64, error) {
	if err := l.stopped(); err != nil {
		return 0, err
	}
	if err := l.acquire(ctx); err != nil {
		return 0, l.notNow("barrier", err)
	}
	if _, err := l.lead(ctx); err != nil {
		l.release()
		return 0, l.notNow("barrier", err)
	}
	if q.number > l.fence[q.session] {
		l.fence[q.session] = q.number
	}
	l.release()
	r := l.raft()
	if r.State() != raft.Leader {
		return 0, l.notNow("barrier", raft.ErrNotLeader)
	}
	if err := l.await(ctx, r.Barrier(l.o.EnqueueTimeout)); err != nil {
		return 0, l.notNow("barrier", err)
	}
	select {
	case l.nudge <- struct{}{}: // the follower waits for it to be told
	default:
	}
	index, _ := l.fsm.position()
	return index, nil
}
