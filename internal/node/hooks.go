package node

import (
	"context"
	"net/http"
	"net/url"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Hook is a webhook of an app as an operator sees it.
type Hook struct {
	ID     petrel.HookID `json:"id,omitempty"` // empty: made up
	URL    string        `json:"url"`
	Events []string      `json:"events"`
	Batch  bool          `json:"batch,omitempty"`
}

// Hooks implements Operator.
func (n *Node) Hooks(ctx context.Context, app petrel.AppID) ([]Hook, error) {
	shown := []Hook{}
	err := n.shard.store.View(ctx, func(r *projection.Reader) error {
		if _, err := identity.AppByID(r, app); err != nil {
			return err
		}
		all, err := identity.Hooks(r, app)
		for _, h := range all {
			shown = append(shown, shownHook(h))
		}
		return err
	})
	return shown, err
}

// SetHook implements Operator.
func (n *Node) SetHook(ctx context.Context, app petrel.AppID, h Hook) (Hook, error) {
	return n.operateHook(ctx, app, identity.NewSetHook(identity.Hook{App: app, ID: h.ID, URL: h.URL, Events: h.Events, Batch: h.Batch}))
}

// RemoveHook implements Operator.
func (n *Node) RemoveHook(ctx context.Context, app petrel.AppID, id petrel.HookID) (Hook, error) {
	return n.operateHook(ctx, app, identity.RemoveHook{App: app, ID: id})
}

func (n *Node) operateHook(ctx context.Context, app petrel.AppID, c command.Command) (Hook, error) {
	res, err := n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorOperator}, command.Meta{}, c)
	if err != nil {
		return Hook{}, err
	}
	h := res.Answer.(identity.Hook) //nolint:forcetypeassert // what both commands answer
	n.logger.Info("an operator changed a webhook", "kind", c.CommandKind(), "app", app, "hook", h.ID)
	return shownHook(h), nil
}

func shownHook(h identity.Hook) Hook {
	return Hook{ID: h.ID, URL: h.URL, Events: h.Events, Batch: h.Batch}
}

// Hooks implements Operator.
func (r *Remote) Hooks(ctx context.Context, app petrel.AppID) ([]Hook, error) {
	list, err := ask[hookList](ctx, r, http.MethodGet, appPath(app)+"/hooks", nil)
	return list.Hooks, err
}

// SetHook implements Operator.
func (r *Remote) SetHook(ctx context.Context, app petrel.AppID, h Hook) (Hook, error) {
	return ask[Hook](ctx, r, http.MethodPost, appPath(app)+"/hooks", h)
}

// RemoveHook implements Operator.
func (r *Remote) RemoveHook(ctx context.Context, app petrel.AppID, id petrel.HookID) (Hook, error) {
	return ask[Hook](ctx, r, http.MethodDelete, appPath(app)+"/hooks/"+url.PathEscape(string(id)), nil)
}

type hookList struct {
	Hooks []Hook `json:"hooks"`
}

// hookRoutes are the calls of the admin API that are about webhooks.
func hookRoutes(mux *http.ServeMux, op Operator, withApp func(do func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error)) http.HandlerFunc) {
	mux.HandleFunc("GET /admin/apps/{app}/hooks", withApp(func(ctx context.Context, _ *http.Request, app petrel.AppID) (any, error) {
		hooks, err := op.Hooks(ctx, app)
		return hookList{Hooks: hooks}, err
	}))
	mux.HandleFunc("POST /admin/apps/{app}/hooks", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		in, err := readBody[Hook](r)
		if err != nil {
			return nil, err
		}
		return op.SetHook(ctx, app, in)
	}))
	mux.HandleFunc("DELETE /admin/apps/{app}/hooks/{hook}", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		return op.RemoveHook(ctx, app, petrel.HookID(r.PathValue("hook")))
	}))
}
