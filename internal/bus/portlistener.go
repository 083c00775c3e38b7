package bus

import (
	"net"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Listener hands out the streams of one protocol, for a server that accepts them itself. One at a time for a protocol;
// closing it leaves the port open.
func (p *Port) Listener(protocol string) net.Listener {
	l := &portListener{port: p, protocol: protocol, in: make(chan net.Conn), done: make(chan struct{})}
	p.Handle(protocol, func(c net.Conn, _ petrel.NodeID) {
		t := time.NewTimer(handshakeTimeout)
		defer t.Stop()
		select {
		case l.in <- c:
		case <-l.done:
			_ = c.Close()
		case <-t.C: // nobody accepts
			_ = c.Close()
		}
	})
	return l
}

type portListener struct {
	port     *Port
	protocol string
	in       chan net.Conn
	done     chan struct{}
	once     sync.Once
}

// plain hides that there is TLS below: a server of net/http leaves a protocol that it does not know to others.
type plain struct{ net.Conn }

// Accept implements net.Listener.
func (l *portListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return plain{c}, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Safe to call twice.
func (l *portListener) Close() error {
	l.once.Do(func() {
		l.port.Handle(l.protocol, nil)
		close(l.done)
	})
	return nil
}

// Addr implements net.Listener: it is the port's.
func (l *portListener) Addr() net.Addr { return l.port.l.Addr() }
