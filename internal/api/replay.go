package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

type syncRooms struct {
	Positioned
	Body struct {
		Rooms map[string]seqNumber `json:"rooms" doc:"Room id to the last seq seen." minProperties:"1" maxProperties:"100"`
		Limit int                  `json:"limit,omitempty" minimum:"1" maximum:"1000" doc:"Events per room."`
	}
}

type syncBody struct {
	Rooms map[petrel.RoomID]chat.SyncRoom `json:"rooms"`
}

func (s *server) registerReplay(api huma.API) {
	const tag = "replay"
	register(s, api, route{
		id: "listEvents", method: http.MethodGet, path: "/v1/rooms/{room}/events", tag: tag, summary: "Replay a room's events",
		description: "Ascending, after a seq (exclusive; default 0: from the beginning). head is the seq of the room's last event: a page that reaches it is the last.",
		codes:       []petrel.Code{petrel.CodeRoomNotFound, petrel.CodeRoomDeleted},
	}, func(ctx context.Context, in *struct {
		InRoom
		Positioned
		Limited
		After whole `query:"after"`
	},
	) (*reading[chat.EventPage], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (chat.EventPage, error) {
			return chat.ListEvents(r, a, in.Room, in.After.Value, in.Limit)
		})
	})
	register(s, api, route{
		id: "sync", method: http.MethodPost, path: "/v1/sync", tag: tag, summary: "Catch up with many rooms at once",
		description: "For each room the events after the last seq seen. A room that cannot be read has a code instead. Nothing is written.",
	}, func(ctx context.Context, in *syncRooms) (*reading[syncBody], error) {
		rooms := make(map[petrel.RoomID]uint64, len(in.Body.Rooms))
		for name, after := range in.Body.Rooms {
			id, err := petrel.ParseRoomID(name)
			if err != nil {
				return nil, err
			}
			rooms[id] = uint64(after)
		}
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (syncBody, error) {
			out, err := chat.Sync(r, a, rooms, in.Body.Limit)
			return syncBody{out}, err
		})
	})
}
