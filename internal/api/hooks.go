package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// hook is a webhook as callers see it.
type hook struct {
	ID     petrel.HookID `json:"id"`
	URL    string        `json:"url"`
	Events []string      `json:"events" nullable:"false" doc:"In order, each once."`
	Batch  bool          `json:"batch" doc:"What is due together may come in one call."`
}

type hookBody struct {
	Hook hook `json:"hook"`
}

type hookList struct {
	Hooks []hook `json:"hooks" nullable:"false" doc:"In the order of their ids."`
}

// OfHook is the part of an address that names a webhook.
type OfHook struct {
	Hook petrel.HookID `path:"hook" doc:"The webhook's id, chosen by the app."`
}

// Resolve implements huma.Resolver.
func (p *OfHook) Resolve(huma.Context) []error {
	_, err := petrel.ParseHookID(string(p.Hook))
	return refusals(err)
}

type putHook struct {
	OfHook
	Positioned
	Body struct {
		URL    string   `json:"url" doc:"http or https, without credentials, up to 2,048 bytes. Addresses that are not public are refused, and names of such are not called, unless the operator allows it."`
		Events []string `json:"events" nullable:"false" doc:"Names and patterns: docs/WEBHOOKS.md lists them."`
		Batch  bool     `json:"batch,omitempty" doc:"What is due together may come in one call."`
	}
}

func (s *server) registerHooks(api huma.API) {
	const tag = "webhooks"
	shown := func(h identity.Hook) hookBody { return hookBody{shownHook(h)} }
	none := []petrel.Code{petrel.CodeAppNotFound}
	register(s, api, route{
		id: "listHooks", method: http.MethodGet, path: "/v1/hooks", tag: tag, summary: "List the app's webhooks", codes: none,
		description: "For the app's backend, with key and secret.",
	}, func(ctx context.Context, in *struct{ Positioned }) (*reading[hookList], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (hookList, error) {
			list := hookList{Hooks: []hook{}}
			if err := backend(a); err != nil {
				return list, err
			}
			all, err := identity.Hooks(r, a.App)
			for _, h := range all {
				list.Hooks = append(list.Hooks, shownHook(h))
			}
			return list, err
		})
	})
	register(s, api, route{
		id: "getHook", method: http.MethodGet, path: "/v1/hooks/{hook}", tag: tag, summary: "Read a webhook", codes: none,
	}, func(ctx context.Context, in *struct {
		OfHook
		Positioned
	},
	) (*reading[hookBody], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (hookBody, error) {
			if err := backend(a); err != nil {
				return hookBody{}, err
			}
			h, err := identity.HookByID(r, a.App, in.Hook)
			return shown(h), err
		})
	})
	register(s, api, route{
		id: "setHook", method: http.MethodPut, path: "/v1/hooks/{hook}", tag: tag, summary: "Set a webhook", write: true,
		codes:       append(none, petrel.CodeLimitReached),
		description: "Makes it, or replaces all of its settings. An app has ten at most. Calls are signed with the app's oldest good key.",
	}, func(ctx context.Context, in *putHook) (*answer[hookBody], error) {
		app := gateway.CredentialOf(ctx).Actor.App
		cmd := identity.SetHook{Hook: identity.Hook{App: app, ID: in.Hook, URL: in.Body.URL, Events: in.Body.Events, Batch: in.Body.Batch}}
		return run(ctx, s, Idempotent{Positioned: in.Positioned}, cmd, shown, http.StatusOK)
	})
	register(s, api, route{
		id: "removeHook", method: http.MethodDelete, path: "/v1/hooks/{hook}", tag: tag, summary: "Remove a webhook", write: true, codes: append(none, petrel.CodeNotFound),
		description: "What waits to be delivered to it is not delivered any more. The answer is the webhook as it was.",
	}, func(ctx context.Context, in *struct {
		OfHook
		Positioned
	},
	) (*answer[hookBody], error) {
		cmd := identity.RemoveHook{App: gateway.CredentialOf(ctx).Actor.App, ID: in.Hook}
		return run(ctx, s, Idempotent{Positioned: in.Positioned}, cmd, shown, http.StatusOK)
	})
}

func shownHook(h identity.Hook) hook {
	return hook{ID: h.ID, URL: h.URL, Events: h.Events, Batch: h.Batch}
}

// backend refuses everybody but the app itself.
func backend(a petrel.Actor) error {
	if a.Kind != petrel.ActorApp {
		return petrel.Errorf(petrel.CodeForbidden, "This is for the app's backend: send its key and secret, without Petrel-User.")
	}
	return nil
}
