package node

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// entrance is a public listener.
type entrance struct {
	listener net.Listener
	secured  *tls.Config // nil: in the clear
	door     *door
}

// openEntrances opens the public listeners: --listen, and the one with TLS where that has its own.
func (n *Node) openEntrances(ctx context.Context) error {
	secured, err := openKeyPair(&n.cfg, n.logger)
	if err != nil {
		return err
	}
	open := func(name, addr string, secured *tls.Config) error {
		l, err := listen(ctx, name, addr)
		if err != nil {
			return err
		}
		n.entrances = append(n.entrances, &entrance{l, secured, openDoor(l, secured, n.health.waitsFor)})
		return nil
	}
	if n.cfg.TLSListen == "" {
		return open("listen", n.cfg.Listen, secured)
	}
	if err := open("listen", n.cfg.Listen, nil); err != nil {
		return err
	}
	return open("tls-listen", n.cfg.TLSListen, secured)
}

func (e *entrance) serve(g *gateway.Gateway) error {
	if e.secured != nil {
		return g.ServeTLS(e.listener, e.secured)
	}
	return g.Serve(e.listener)
}

// door answers on the public listener while the node starts: the address is taken by then, and whoever comes would
// otherwise wait for an answer until the log has a leader.
type door struct {
	listener *lent
	server   *http.Server
	once     sync.Once
	served   sync.WaitGroup
}

// openDoor begins to turn people away with a time to come back. why says what the node waits for.
func openDoor(l net.Listener, secured *tls.Config, why func() string) *door {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil
	}
	d := &door{listener: &lent{tcp}}
	d.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			gateway.WriteProblem(w, petrel.Errorf(petrel.CodeNoLeader, "This node is starting: %s. Ask another node, or this one in a moment.", why()).After(time.Second))
		}),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, MaxHeaderBytes: 32 << 10,
	}
	d.server.SetKeepAlivesEnabled(false)
	var ln net.Listener = d.listener
	if secured != nil {
		ln = tls.NewListener(ln, secured)
	}
	d.served.Go(func() { _ = d.server.Serve(ln) }) // it ends with close
	return d
}

// close leaves the listener to whoever serves it next. Safe to call twice, and on nil.
func (d *door) close() {
	if d == nil {
		return
	}
	d.once.Do(func() {
		_ = d.server.Close() // who is being answered comes again
		d.served.Wait()
		_ = d.listener.SetDeadline(time.Time{})
	})
}

// lent is a listener that survives its server.
type lent struct{ *net.TCPListener }

// Close ends Accept alone.
func (l *lent) Close() error { return l.SetDeadline(time.Unix(1, 0)) }
