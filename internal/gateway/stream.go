package gateway

import (
	"net/http"
	"sync"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Place is one place in the table of connections. Whoever holds it releases it when the connection is gone.
type Place struct {
	g    *Gateway
	mu   sync.Mutex // guards the fields below
	app  petrel.AppID
	gone bool
}

// Admit takes a place for app ("" while nobody knows whose it is). A refusal says when to come back.
func (g *Gateway) Admit(app petrel.AppID) (*Place, error) {
	if err := g.Enter(app, 0); err != nil {
		return nil, err
	}
	return &Place{g: g, app: app}, nil
}

// Enter is Admit for who knows the app from the beginning: there is no Place to be kept, but a Leave for each Enter. At most most places are
// the app's on this node; 0: it has no limit of its own.
func (g *Gateway) Enter(app petrel.AppID, most int) error {
	if g.draining.Load() {
		return petrel.Errorf(petrel.CodeDraining, "This node is leaving. Come back: another one answers.")
	}
	return g.placeError(g.places.TakeUpTo(app, most))
}

// Leave gives back what Enter took.
func (g *Gateway) Leave(app petrel.AppID) { g.places.Release(app) }

func (g *Gateway) placeError(r limit.Refusal) error {
	switch r {
	case limit.TotalFull:
		g.metrics.refused.WithLabelValues("connections_full").Inc()
		return petrel.Errorf(petrel.CodeOverloaded, "This node has as many connections as it takes. Come back in a moment.").After(5 * retryIn)
	case limit.ShareFull:
		g.metrics.refused.WithLabelValues("app_connections_full").Inc()
		return petrel.Errorf(petrel.CodeLimitReached, "The app has as many connections as it may have.").After(30 * retryIn)
	case limit.Granted:
	}
	return nil
}

// Move makes the place app's, once it is known whose the connection is.
func (p *Place) Move(app petrel.AppID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.g.placeError(p.g.places.Move(p.app, app)); err != nil {
		return err
	}
	p.app = app
	return nil
}

// Release gives the place back. It may be called twice.
func (p *Place) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gone {
		p.gone = true
		p.g.places.Release(p.app)
	}
}

// OpenSocket makes a WebSocket of the request. make is called when nothing but the handshake is left to do; the
// handler it returns releases the place in OnClose. A refusal was not yet answered; after the handshake there is none.
func (g *Gateway) OpenSocket(w http.ResponseWriter, r *http.Request, make func(*Place) (conn.Config, conn.Handler)) error {
	if err := conn.CheckUpgrade(r); err != nil {
		return err
	}
	place, err := g.Admit(CredentialOf(r.Context()).Actor.App)
	if err != nil {
		return err
	}
	if cfg, h := make(place); !g.open(w, r, cfg, h) {
		place.Release()
	}
	return nil
}

// OpenSocketOf is OpenSocket for a handler that recognised the app itself and refuses in its own words, after the handshake. make is
// told that a place was taken (Enter), which the handler gives back (Leave) in OnClose, or why there is none. With refused, nobody asks for a place.
func (g *Gateway) OpenSocketOf(w http.ResponseWriter, r *http.Request, app petrel.AppID, most int, refused error, make func(refused error) (conn.Config, conn.Handler)) error {
	if err := conn.CheckUpgrade(r); err != nil {
		return err
	}
	if refused == nil {
		refused = g.Enter(app, most)
	}
	if cfg, h := make(refused); !g.open(w, r, cfg, h) && refused == nil {
		g.Leave(app)
	}
	return nil
}

// open finishes a handshake, and says whether it did. Nothing can be answered any more.
func (g *Gateway) open(w http.ResponseWriter, r *http.Request, cfg conn.Config, h conn.Handler) bool {
	err := g.opt.Conns.Open(w, r, cfg, h)
	if err != nil {
		g.opt.Logger.DebugContext(r.Context(), "a handshake broke off", "request", RequestID(r.Context()), "error", err)
	}
	return err == nil
}

// OpenEvents makes a stream of server-sent events of the request, and returns when it has ended, or a loop has it.
func (g *Gateway) OpenEvents(w http.ResponseWriter, r *http.Request, make func(*Place) (conn.Config, conn.Handler)) error {
	place, err := g.Admit(CredentialOf(r.Context()).Actor.App)
	if err != nil {
		return err
	}
	cfg, h := make(place)
	g.opt.Conns.ServeSSE(w, r, cfg, h)
	return nil
}
