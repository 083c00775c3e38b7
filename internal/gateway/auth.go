package gateway

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// maxToken bounds what is handed to the authenticator.
const maxToken = 8 << 10

// identify finds out who asks, and charges the request to them; one without valid credentials is charged to its address.
func (g *Gateway) identify(r *http.Request, req *request, access Access) error {
	if access == Own {
		return nil
	}
	key := ipKey(req.ip)
	if ok, wait := g.byIP.Peek(key, g.opt.Now()); !ok {
		g.metrics.refused.WithLabelValues("ip_rate").Inc()
		return petrel.Errorf(petrel.CodeRateLimited, "Too many requests without valid credentials came from this address.").After(wait)
	}
	cred, err := g.credential(r, access)
	if err != nil || cred.Actor.Kind == 0 {
		g.byIP.Take(key, g.opt.Now(), 1)
		return err
	}
	req.cred = cred
	return g.Allow(cred)
}

// Charge charges n requests or frames to an app that the handler recognised itself. It returns CodeRateLimited with the time to wait.
func (g *Gateway) Charge(app petrel.AppID, n int) error {
	if ok, wait := g.byApp.Take(app, g.opt.Now(), n); !ok {
		g.metrics.refused.WithLabelValues("app_rate").Inc()
		return petrel.Errorf(petrel.CodeRateLimited, "The app sends more than its rate. Slow down.").After(wait)
	}
	return nil
}

// ChargeStranger charges a request whose sender the handler did not recognise to its address. It returns CodeRateLimited
// when too many came from there.
func (g *Gateway) ChargeStranger(ctx context.Context) error {
	r, ok := ctx.Value(requestKey{}).(*request)
	if !ok {
		return nil
	}
	if ok, wait := g.byIP.Take(ipKey(r.ip), g.opt.Now(), 1); !ok {
		g.metrics.refused.WithLabelValues("ip_rate").Inc()
		return petrel.Errorf(petrel.CodeRateLimited, "Too many requests without valid credentials came from this address.").After(wait)
	}
	return nil
}

// ipKey is an address, or the /64 of an IPv6 one, because a single customer has at least so many.
func ipKey(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address (a test, a Unix socket): all such share a bucket
	}
	return p
}

// credential reads Authorization, or the token parameter where the route takes it.
func (g *Gateway) credential(r *http.Request, access Access) (Credential, error) {
	if access == Public {
		return Credential{}, nil
	}
	headers := r.Header.Values("Authorization")
	if len(headers) > 1 {
		return Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "The Authorization header comes twice.")
	}
	if len(headers) == 1 && headers[0] != "" {
		return g.authorization(r, headers[0])
	}
	if access == Stream || access == Late {
		if token := r.URL.Query().Get("token"); token != "" {
			return g.Authenticate(r.Context(), token)
		}
	}
	if access == Late {
		return Credential{}, nil
	}
	return Credential{}, petrel.Errorf(petrel.CodeUnauthenticated, "Send a user token as Authorization: Bearer, or the app's key and secret as Basic.")
}

func (g *Gateway) authorization(r *http.Request, header string) (Credential, error) {
	scheme, value, _ := strings.Cut(header, " ")
	switch strings.ToLower(scheme) {
	case "bearer":
		return g.Authenticate(r.Context(), strings.TrimSpace(value))
	case "basic":
		key, secret, ok := r.BasicAuth()
		if !ok || len(header) > maxToken {
			return Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "The Basic credentials cannot be read: send base64 of key:secret.")
		}
		var user petrel.UserID
		if named := r.Header.Values("Petrel-User"); len(named) > 0 {
			var err error
			if len(named) > 1 {
				return Credential{}, petrel.Errorf(petrel.CodeInvalidID, "The Petrel-User header comes twice.")
			}
			if user, err = petrel.ParseUserID(named[0]); err != nil {
				return Credential{}, err
			}
		}
		return asked(r.Context(), func(ctx context.Context) (Credential, error) { return g.opt.Auth.Key(ctx, key, secret, user) })
	}
	return Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "Authorization must be Bearer with a user token, or Basic with key and secret.")
}

// Authenticate checks a user token, wherever it came from.
func (g *Gateway) Authenticate(ctx context.Context, token string) (Credential, error) {
	if token == "" || len(token) > maxToken {
		return Credential{}, petrel.Errorf(petrel.CodeInvalidToken, "The token is empty or longer than %d bytes.", maxToken)
	}
	return asked(ctx, func(ctx context.Context) (Credential, error) { return g.opt.Auth.Token(ctx, token) })
}

// asked asks, and remembers how.
func asked(ctx context.Context, ask func(context.Context) (Credential, error)) (Credential, error) {
	cred, err := ask(ctx)
	cred.again = ask
	return cred, err
}
