package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

type presentUser struct {
	User petrel.UserID `json:"user"`
}

type presenceBody struct {
	Users   []presentUser `json:"users" nullable:"false" doc:"In order of their ids, at most 1,000."`
	Count   int           `json:"count" doc:"Of all who are there."`
	Partial bool          `json:"partial,omitempty" doc:"True when a node of the cell has not said in time who is on it."`
}

func (s *server) registerPresence(api huma.API) {
	register(s, api, route{
		id: "listPresence", method: http.MethodGet, path: "/v1/rooms/{room}/presence", tag: "live", summary: "List who is in a room now",
		description: "Users with a subscription to the room on some connection, on whatever node. Who is allowed to read the room may ask; to follow who comes and goes, subscribe with presence.",
		codes:       []petrel.Code{petrel.CodeRoomNotFound, petrel.CodeRoomDeleted},
	}, func(ctx context.Context, in *struct {
		InRoom
		Positioned
	},
	) (*reading[presenceBody], error) {
		out, err := read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (presenceBody, error) {
			_, err := chat.Head(r, a, in.Room)
			return presenceBody{}, err
		})
		if err != nil {
			return nil, err
		}
		here := s.opt.Hub.Present(ctx, petrel.RoomChannel(gateway.CredentialOf(ctx).Actor.App, in.Room))
		out.Body.Count, out.Body.Partial = here.Count, here.Partial
		out.Body.Users = make([]presentUser, len(here.Users))
		for i, user := range here.Users {
			out.Body.Users[i].User = user
		}
		return out, nil
	})
}

// memberOf is who is there by an actor's subscription: the app's own backend is nobody.
func memberOf(a petrel.Actor) *hub.Member {
	if a.User == "" {
		return nil
	}
	return &hub.Member{ID: a.User}
}
