package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/petrel-chat/petrel/internal/petrel"
)

const (
	handshakeTimeout = 5 * time.Second
	maxHandshakes    = 64 // at once; more wait in the backlog, so that strangers cannot pile up goroutines
)

// Port is the one TLS port between the nodes of a cell. The application protocol of the handshake
// (ALPN, RFC 7301) says what a stream is for: petrel-raft/<shard> picks a group. A stream of a
// protocol that nobody here has registered is refused in the handshake.
type Port struct {
	id     Identity
	addr   string
	l      net.Listener
	logger *slog.Logger
	shakes *semaphore.Weighted

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	handlers map[string]func(net.Conn, petrel.NodeID)
	conns    map[net.Conn]struct{} // accepted, in the handshake
	refusals int                   // not told of yet
	said     time.Time             // when refusals were told of
}

// PortOptions of ListenPort.
type PortOptions struct {
	// Listen is HOST:PORT.
	Listen string
	// Advertise is what other nodes dial; default: where it listens.
	Advertise string
	// Identity of this node.
	Identity Identity
	// Logger: nil discards.
	Logger *slog.Logger
}

// ListenPort opens the port. Register groups and handlers right after: streams that come before are refused
// and dialled again by the other end.
func ListenPort(ctx context.Context, o PortOptions) (*Port, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("the port between nodes cannot open %s (choose another with --peer): %w", o.Listen, err)
	}
	if o.Advertise == "" {
		o.Advertise = l.Addr().String()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Port{
		id: o.Identity, addr: o.Advertise, l: l, logger: o.Logger, shakes: semaphore.NewWeighted(maxHandshakes),
		handlers: map[string]func(net.Conn, petrel.NodeID){}, conns: map[net.Conn]struct{}{},
	}
	p.ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is what other nodes dial.
func (p *Port) Addr() string { return p.addr }

// Handle serves the streams of a protocol: fn owns the stream and runs in a goroutine of its own. node is who
// the certificate at the other end names. Registering nil ends it.
func (p *Port) Handle(protocol string, fn func(c net.Conn, node petrel.NodeID)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fn == nil {
		delete(p.handlers, protocol)
		return
	}
	p.handlers[protocol] = fn
}

// Dial opens a stream of a protocol to the node at addr.
func (p *Port) Dial(ctx context.Context, addr, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: p.id.client(protocol)}
	c, err := d.DialContext(ctx, "tcp", addr)
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &plain):
		return nil, fmt.Errorf("dial node %s for %s: %w: %w", addr, protocol, ErrOtherPort, err)
	case err != nil:
		return nil, fmt.Errorf("dial node %s for %s: %w", addr, protocol, err)
	}
	if got := c.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != protocol {
		_ = c.Close()
		return nil, fmt.Errorf("dial node %s for %s: %w: it speaks %q", addr, protocol, ErrOtherPort, got)
	}
	return c, nil
}

// Close ends the listener and what is in a handshake. Streams handed out live on: their owners close them.
func (p *Port) Close() error {
	p.stop()
	err := p.l.Close()
	p.mu.Lock()
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Port) accept() {
	for {
		if p.shakes.Acquire(p.ctx, 1) != nil {
			return
		}
		c, err := p.l.Accept()
		if err != nil {
			p.shakes.Release(1)
			if p.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			p.logger.Warn("the port between nodes cannot accept", "error", err)
			select { // no descriptors left, for one: do not spin
			case <-p.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		p.wg.Go(func() {
			defer p.shakes.Release(1)
			p.serve(c)
		})
	}
}

// serve shakes hands and passes the stream to its handler, in a goroutine that Close does not wait for.
func (p *Port) serve(raw net.Conn) {
	p.mu.Lock()
	p.conns[raw] = struct{}{}
	closed := p.ctx.Err() != nil
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, raw)
		p.mu.Unlock()
	}()
	if closed {
		_ = raw.Close()
		return
	}
	c := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return p.id.server(p.protocols()), nil
	}})
	ctx, cancel := context.WithTimeout(p.ctx, handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		if !errors.Is(err, io.EOF) { // somebody who only looked whether the port is open
			p.refused(raw.RemoteAddr(), err)
		}
		_ = raw.Close()
		return
	}
	st := c.ConnectionState()
	node, err := NodeOf(st.PeerCertificates[0])
	p.mu.Lock()
	fn := p.handlers[st.NegotiatedProtocol]
	p.mu.Unlock()
	if err != nil || fn == nil {
		_ = c.Close()
		return
	}
	go fn(c, node)
}

// sayRefusedEvery is how often refused streams are told of: anybody who reaches the port could fill the log otherwise.
const sayRefusedEvery = 30 * time.Second

func (p *Port) refused(from net.Addr, err error) {
	p.mu.Lock()
	p.refusals++
	n, due := p.refusals, time.Since(p.said) > sayRefusedEvery
	if due {
		p.said, p.refusals = time.Now(), 0
	}
	p.mu.Unlock()
	if due {
		p.logger.Warn("streams to the port between nodes were refused", "count", n, "last_from", from.String(), "error", err)
	}
}

// protocols is what is registered. Without any, an empty list would let every client through without one.
func (p *Port) protocols() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]string, 0, len(p.handlers)+1)
	for name := range p.handlers {
		list = append(list, name)
	}
	slices.Sort(list)
	return append(list, "petrel-none")
}

// Group is the part of the port that one shard's raft group uses: what raftlog calls a Network. One at a
// time for a shard; closing it leaves the port open.
func (p *Port) Group(shard petrel.ShardID) *Group {
	g := &Group{port: p, protocol: fmt.Sprintf("petrel-raft/%d", shard), in: make(chan net.Conn), done: make(chan struct{})}
	p.Handle(g.protocol, func(c net.Conn, _ petrel.NodeID) {
		select {
		case g.in <- c:
		case <-g.done:
			_ = c.Close()
		case <-time.After(handshakeTimeout): // nobody accepts
			_ = c.Close()
		}
	})
	return g
}

// Group carries the streams of one raft group.
type Group struct {
	port     *Port
	protocol string
	in       chan net.Conn
	done     chan struct{}
	once     sync.Once
}

// Accept returns the next stream from another member, net.ErrClosed after Close.
func (g *Group) Accept() (net.Conn, error) {
	select {
	case c := <-g.in:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

// Dial opens a stream to the group's member at addr.
func (g *Group) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return g.port.Dial(ctx, addr, g.protocol)
}

// Addr is what the other members dial.
func (g *Group) Addr() string { return g.port.Addr() }

// Close ends Accept. Safe to call twice.
func (g *Group) Close() error {
	g.once.Do(func() {
		g.port.Handle(g.protocol, nil)
		close(g.done)
	})
	return nil
}
