package api

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Bodies of answers, each an object so that fields can be added.
type (
	roomBody struct {
		Room chat.Room `json:"room"`
	}
	membershipBody struct {
		Member chat.Membership `json:"member"`
	}
)

type createRoom struct {
	Idempotent
	Body struct {
		ID      petrel.RoomID `json:"id,omitempty" minLength:"1" maxLength:"64" doc:"Chosen by the client; made if absent."`
		Kind    roomKind      `json:"kind" doc:"open: any user reads, posts and joins; private: members only; direct: two people, found if it is there."`
		Name    string        `json:"name,omitempty"`
		Members []newMember   `json:"members,omitempty" nullable:"false" doc:"Beside the creator."`
		Custom  object        `json:"custom,omitempty"`
	}
}

type updateRoom struct {
	InRoom
	Idempotent
	Body struct {
		Name   *string `json:"name,omitempty"`
		Custom object  `json:"custom,omitempty"`
	}
}

type putMember struct {
	InRoom
	ForUser
	Idempotent
	Body *struct {
		Role role `json:"role,omitempty" doc:"Default: member for a new one, unchanged for one who is there."`
	}
}

func (s *server) registerRooms(api huma.API) {
	const tag = "rooms"
	gone := []petrel.Code{petrel.CodeRoomNotFound, petrel.CodeRoomDeleted}
	register(s, api, route{
		id: "createRoom", method: http.MethodPost, path: "/v1/rooms", tag: tag, summary: "Create a room", status: http.StatusCreated, also: http.StatusOK,
		description: "Its creation is the room's seq 1. The creator becomes its owner. The direct room of two people is found when it is there.",
		codes:       []petrel.Code{petrel.CodeLimitReached, petrel.CodeRoomDeleted}, write: true,
	}, func(ctx context.Context, in *createRoom) (*answer[roomBody], error) {
		cmd := chat.CreateRoom{ID: in.Body.ID, Kind: kindOf(in.Body.Kind), Name: in.Body.Name, Custom: json.RawMessage(in.Body.Custom)}
		if cmd.ID != "" {
			if _, err := petrel.ParseRoomID(string(cmd.ID)); err != nil {
				return nil, err
			}
		}
		for _, m := range in.Body.Members {
			if _, err := petrel.ParseUserID(string(m.User)); err != nil {
				return nil, err
			}
			cmd.Members = append(cmd.Members, m.Member)
		}
		return run(ctx, s, in.Idempotent, cmd, func(room chat.Room) roomBody { return roomBody{room} })
	})
	register(s, api, route{
		id: "listRooms", method: http.MethodGet, path: "/v1/rooms", tag: tag, summary: "List rooms",
		description: "A user sees the rooms they are in, and with open=true also the open rooms; the app sees all. In the order of creation.",
	}, func(ctx context.Context, in *struct {
		Positioned
		Limited
		After petrel.RoomID `query:"after" doc:"The last room of the page before."`
		Open  bool          `query:"open"`
	},
	) (*reading[chat.RoomPage], error) {
		if in.After != "" {
			if _, err := petrel.ParseRoomID(string(in.After)); err != nil {
				return nil, err
			}
		}
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (chat.RoomPage, error) {
			return chat.ListRooms(r, a, chat.RoomsQuery{After: in.After, Limit: in.Limit, Open: in.Open})
		})
	})
	register(s, api, route{
		id: "getRoom", method: http.MethodGet, path: "/v1/rooms/{room}", tag: tag, summary: "Read a room", codes: gone,
	}, func(ctx context.Context, in *struct {
		InRoom
		Positioned
	},
	) (*reading[roomBody], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (roomBody, error) {
			room, err := chat.GetRoom(r, a, in.Room)
			return roomBody{room}, err
		})
	})
	register(s, api, route{
		id: "updateRoom", method: http.MethodPatch, path: "/v1/rooms/{room}", tag: tag, summary: "Change a room", codes: gone, write: true,
		description: "Replaces the fields given.",
	}, func(ctx context.Context, in *updateRoom) (*answer[roomBody], error) {
		cmd := chat.UpdateRoom{Room: in.Room, Name: in.Body.Name, Custom: json.RawMessage(in.Body.Custom)}
		return run(ctx, s, in.Idempotent, cmd, func(room chat.Room) roomBody { return roomBody{room} }, http.StatusOK)
	})
	register(s, api, route{
		id: "deleteRoom", method: http.MethodDelete, path: "/v1/rooms/{room}", tag: tag, summary: "Delete a room", codes: gone, write: true,
		description: "It is hidden from everybody at once, for ever; its id stays taken.",
	}, func(ctx context.Context, in *struct {
		InRoom
		Idempotent
	},
	) (*answer[roomBody], error) {
		return run(ctx, s, in.Idempotent, chat.DeleteRoom{Room: in.Room}, func(room chat.Room) roomBody { return roomBody{room} }, http.StatusOK)
	})
	s.registerMembers(api, gone)
}

func (s *server) registerMembers(api huma.API, gone []petrel.Code) {
	const tag = "members"
	one := append(gone[:len(gone):len(gone)], petrel.CodeMemberNotFound)
	of := func(m chat.Membership) membershipBody { return membershipBody{m} }
	register(s, api, route{
		id: "listMembers", method: http.MethodGet, path: "/v1/rooms/{room}/members", tag: tag, summary: "List members", codes: gone,
	}, func(ctx context.Context, in *struct {
		InRoom
		Positioned
		Limited
		After petrel.UserID `query:"after" doc:"The last user of the page before."`
	},
	) (*reading[chat.MemberPage], error) {
		if in.After != "" {
			if _, err := petrel.ParseUserID(string(in.After)); err != nil {
				return nil, err
			}
		}
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (chat.MemberPage, error) {
			return chat.ListMembers(r, a, in.Room, in.After, in.Limit)
		})
	})
	register(s, api, route{
		id: "getMember", method: http.MethodGet, path: "/v1/rooms/{room}/members/{user}", tag: tag, summary: "Read a member", codes: one,
	}, func(ctx context.Context, in *struct {
		InRoom
		ForUser
		Positioned
	},
	) (*reading[membershipBody], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (membershipBody, error) {
			m, err := chat.GetMember(r, a, in.Room, in.User)
			return of(m), err
		})
	})
	register(s, api, route{
		id: "putMember", method: http.MethodPut, path: "/v1/rooms/{room}/members/{user}", tag: tag, summary: "Add a member, or change the role",
		description: "Oneself: joins an open room.", codes: append(one, petrel.CodeLimitReached), write: true,
	}, func(ctx context.Context, in *putMember) (*answer[membershipBody], error) {
		cmd := chat.PutMember{Room: in.Room, User: in.User}
		if in.Body != nil {
			cmd.Role = roleOf(in.Body.Role)
		}
		return run(ctx, s, in.Idempotent, cmd, of, http.StatusOK)
	})
	register(s, api, route{
		id: "removeMember", method: http.MethodDelete, path: "/v1/rooms/{room}/members/{user}", tag: tag, summary: "Remove a member", codes: one, write: true,
		description: "Oneself: leaves.",
	}, func(ctx context.Context, in *struct {
		InRoom
		ForUser
		Idempotent
	},
	) (*answer[membershipBody], error) {
		return run(ctx, s, in.Idempotent, chat.RemoveMember{Room: in.Room, User: in.User}, of, http.StatusOK)
	})
}

// run carries a command out for the caller, at or after the position that they named. It answers 201 when something was made and 200 when
// nothing changed, or always the status given.
func run[A, B any](ctx context.Context, s *server, in Idempotent, cmd command.Command, body func(A) B, always ...int) (*answer[B], error) {
	if err := s.await(ctx, in.Position); err != nil {
		return nil, err
	}
	actor := gateway.CredentialOf(ctx).Actor
	res, err := s.do(ctx, actor, command.Meta{Command: in.Key, Request: gateway.RequestID(ctx)}, cmd)
	if err != nil {
		return nil, err
	}
	made, ok := res.Answer.(A)
	if !ok {
		return nil, petrel.Errorf(petrel.CodeInternal, "The command gave an answer of another kind.") // a broken invariant of the domain
	}
	out := &answer[B]{Status: http.StatusCreated, Position: res.Position.String(), Body: body(made)}
	if res.Repeated || !res.Changed {
		out.Status = http.StatusOK
	}
	if len(always) > 0 {
		out.Status = always[0]
	}
	return out, nil
}

// read answers from the projection, at or after the position that the caller named.
func read[B any](ctx context.Context, s *server, position string, fn func(r *projection.Reader, a petrel.Actor) (B, error)) (*reading[B], error) {
	if err := s.await(ctx, position); err != nil {
		return nil, err
	}
	actor := gateway.CredentialOf(ctx).Actor
	out := &reading[B]{Status: http.StatusOK}
	at, err := s.view(ctx, func(r *projection.Reader) (err error) {
		out.Body, err = fn(r, actor)
		return err
	})
	if err != nil {
		return nil, err
	}
	out.Position, out.Stale = at.String(), s.staleHeader()
	return out, nil
}
