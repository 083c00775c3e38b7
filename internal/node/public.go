package node

import (
	"context"
	"crypto/sha256"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/api"
	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/pusher"
)

// reservedFiles is how many descriptors the public side leaves to the log, the projection and the admin listener.
const reservedFiles = 256

// publicSide is everything that strangers can reach.
type publicSide struct {
	gateway *gateway.Gateway
	conns   *conn.Table
	api     *api.API
	pusher  *pusher.Server
	served  sync.WaitGroup // of the entrances
}

// openPublic builds the public side and lets people in.
func (n *Node) openPublic() error {
	proxies, err := parseNetworks(n.cfg.TrustedProxies)
	if err != nil {
		return err
	}
	p := &publicSide{}
	p.conns = conn.NewTable(conn.Options{Deflate: n.cfg.Compress, IOUring: n.cfg.IOUring, Logger: n.logger, Registerer: n.reg})
	sockets, conns := socketLimits(n.cfg.MaxConnections, openFilesLimit())
	p.gateway = gateway.New(gateway.Options{
		Auth: authenticator{n.directory}, Conns: p.conns, MaxSockets: sockets, MaxConns: conns, AppRate: appRate(n.cfg.AppRate),
		TrustedProxies: proxies, Logger: n.logger, Registerer: n.reg,
	})
	if conns < n.cfg.MaxConnections {
		n.logger.Warn("fewer connections than configured: the process may not open more files", "connections", conns, "configured", n.cfg.MaxConnections)
	}
	n.mountAPI(p)
	n.mountPusher(p)
	n.mountDemo(p.gateway)
	p.gateway.Handle("/", gateway.Route{Access: gateway.Public}, n.webHandler())
	p.conns.Start()
	for _, e := range n.entrances {
		e.door.close()
		p.served.Go(func() {
			if err := e.serve(p.gateway); err != nil {
				n.fail(err)
			}
		})
	}
	n.public = p
	n.api.Store(p.api)
	n.pusher.Store(p.pusher)
	return nil
}

// appRate is the rate of an app that may do n things a second, and as many at once; 0 limits nothing.
func appRate(n int) limit.Rate {
	if n == 0 {
		return limit.Rate{PerSecond: -1}
	}
	return limit.Rate{PerSecond: float64(n), Burst: n}
}

func (p *publicSide) drain(ctx context.Context, window time.Duration) error {
	return p.gateway.Drain(ctx, window)
}

func (p *publicSide) stop() {
	p.gateway.Stop()
	p.served.Wait()
	p.api.Stop()
	p.pusher.Stop()
}

// webHandler serves the page; without one in this build, a sentence.
func (n *Node) webHandler() http.Handler {
	if n.opt.Web != nil {
		return n.opt.Web
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			gateway.WriteProblem(w, petrel.Errorf(petrel.CodeNotFound, "There is nothing at this address."))
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("Petrel is running. This build has no web page; the API is at /v1.\n")) // a peer who is gone needs no answer
	})
}

// socketLimits divides what the process may open: sockets in all, and of them sockets and streams that stay.
func socketLimits(wanted, files int) (sockets, conns int) {
	sockets = wanted + wanted/2 + 1024 // requests and handshakes beside those that stay
	if files > 0 {
		sockets = min(sockets, max(files-reservedFiles, 64))
	}
	return sockets, min(wanted, sockets)
}

// authenticator fits identity's directory to the gateway.
type authenticator struct{ *identity.Directory }

var _ gateway.Authenticator = authenticator{}

// Token implements gateway.Authenticator.
func (a authenticator) Token(_ context.Context, token string) (gateway.Credential, error) {
	actor, expires, err := a.AuthenticateToken(token)
	return gateway.Credential{Actor: actor, Expires: expires}, err
}

// Key implements gateway.Authenticator.
func (a authenticator) Key(_ context.Context, key, secret string, user petrel.UserID) (gateway.Credential, error) {
	actor, err := a.AuthenticateKey(key, secret, user)
	return gateway.Credential{Actor: actor}, err
}

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func pid() int { return os.Getpid() }

func writeProblem(w http.ResponseWriter, err error) { gateway.WriteProblem(w, err) }
