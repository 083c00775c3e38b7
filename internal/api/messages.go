package api

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

type messageBody struct {
	Message chat.Message `json:"message"`
}

// draft is a message to be, over HTTP and in a `send` frame.
type draft struct {
	ID       petrel.MessageID `json:"id,omitempty" minLength:"1" maxLength:"64" doc:"Chosen by the client so that a repeat is recognised; made if absent."`
	Text     string           `json:"text"`
	Custom   object           `json:"custom,omitempty"`
	Mentions []petrel.UserID  `json:"mentions,omitempty" nullable:"false" doc:"User ids."`
}

// command makes the intent of a draft, with its ids checked.
func (d *draft) command(room petrel.RoomID) (chat.PostMessage, petrel.CommandID, error) {
	cmd := chat.PostMessage{Room: room, Text: d.Text, Custom: json.RawMessage(d.Custom), Mentions: d.Mentions}
	if d.ID != "" {
		if _, err := petrel.ParseMessageID(string(d.ID)); err != nil {
			return cmd, "", err
		}
	}
	return cmd, petrel.CommandID(d.ID), checkUsers(d.Mentions)
}

func checkUsers(users []petrel.UserID) error {
	for _, u := range users {
		if _, err := petrel.ParseUserID(string(u)); err != nil {
			return err
		}
	}
	return nil
}

type postMessage struct {
	InRoom
	Idempotent
	Body draft
}

type editMessage struct {
	InRoom
	OfMessage
	Idempotent
	Body struct {
		Text     *string          `json:"text,omitempty"`
		Custom   object           `json:"custom,omitempty"`
		Mentions *[]petrel.UserID `json:"mentions,omitempty"`
	}
}

func (s *server) registerMessages(api huma.API) {
	const tag = "messages"
	room := []petrel.Code{petrel.CodeRoomNotFound, petrel.CodeRoomDeleted}
	one := append(room[:2:2], petrel.CodeMessageNotFound)
	of := func(m chat.Message) messageBody { return messageBody{m} }
	register(s, api, route{
		id: "postMessage", method: http.MethodPost, path: "/v1/rooms/{room}/messages", tag: tag, summary: "Post a message",
		description: "The message's id is also what makes a repeat safe: the same id gives the first answer again, with other content it is id_reused. Posting in an open room joins it. Needs a user: their token, or Petrel-User.",
		status:      http.StatusCreated, also: http.StatusOK, codes: append(room[:2:2], petrel.CodeMessageDeleted, petrel.CodeLimitReached), write: true,
	}, func(ctx context.Context, in *postMessage) (*answer[messageBody], error) {
		cmd, id, err := in.Body.command(in.Room)
		if err != nil {
			return nil, err
		}
		if id != "" && in.Key != "" && in.Key != id {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "The message's id is its idempotency key: leave the header away, or send the same.")
		}
		in.Key = cmp.Or(id, in.Key)
		return run(ctx, s, in.Idempotent, cmd, of)
	})
	register(s, api, route{
		id: "listMessages", method: http.MethodGet, path: "/v1/rooms/{room}/messages", tag: tag, summary: "Page through messages", codes: room,
		description: "Ascending, by seq, both bounds exclusive. Without bounds: the newest. With after: forwards from there. more says that the page goes on in its direction.",
	}, func(ctx context.Context, in *struct {
		InRoom
		Positioned
		Limited
		Before whole `query:"before"`
		After  whole `query:"after"`
	},
	) (*reading[chat.MessagePage], error) {
		if in.Before.Set && in.Before.Value == 0 {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "Nothing is before 0: leave before away to begin at the end.")
		}
		q := chat.MessagesQuery{Before: in.Before.Value, After: in.After.Value, HasAfter: in.After.Set, Limit: in.Limit}
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (chat.MessagePage, error) {
			return chat.ListMessages(r, a, in.Room, q)
		})
	})
	register(s, api, route{
		id: "getMessage", method: http.MethodGet, path: "/v1/rooms/{room}/messages/{message}", tag: tag, summary: "Read a message", codes: one,
	}, func(ctx context.Context, in *struct {
		InRoom
		OfMessage
		Positioned
	},
	) (*reading[messageBody], error) {
		return read(ctx, s, in.Position, func(r *projection.Reader, a petrel.Actor) (messageBody, error) {
			m, err := chat.GetMessage(r, a, in.Room, in.Message)
			return of(m), err
		})
	})
	register(s, api, route{
		id: "editMessage", method: http.MethodPatch, path: "/v1/rooms/{room}/messages/{message}", tag: tag, summary: "Edit a message", write: true,
		description: "Replaces the fields given.", codes: append(one[:3:3], petrel.CodeMessageDeleted, petrel.CodeLimitReached),
	}, func(ctx context.Context, in *editMessage) (*answer[messageBody], error) {
		cmd := chat.EditMessage{Room: in.Room, ID: in.Message, Text: in.Body.Text, Custom: json.RawMessage(in.Body.Custom)}
		if in.Body.Mentions != nil {
			cmd.Mentions = append([]petrel.UserID{}, *in.Body.Mentions...)
		}
		if err := checkUsers(cmd.Mentions); err != nil {
			return nil, err
		}
		return run(ctx, s, in.Idempotent, cmd, of, http.StatusOK)
	})
	register(s, api, route{
		id: "deleteMessage", method: http.MethodDelete, path: "/v1/rooms/{room}/messages/{message}", tag: tag, summary: "Delete a message", codes: one, write: true,
		description: "Leaves a tombstone: the content is gone, the id and the seq stay.",
	}, func(ctx context.Context, in *struct {
		InRoom
		OfMessage
		Idempotent
	},
	) (*answer[messageBody], error) {
		return run(ctx, s, in.Idempotent, chat.DeleteMessage{Room: in.Room, ID: in.Message}, of, http.StatusOK)
	})
}
