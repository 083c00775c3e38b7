package pusher

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// trigger is what an app's backend triggers.
type trigger struct {
	Name     string          `json:"name"`
	Data     json.RawMessage `json:"data"` // a JSON string
	Channel  string          `json:"channel"`
	Channels []string        `json:"channels"`
	SocketID string          `json:"socket_id"`
	Info     string          `json:"info"`
}

// postEvent is POST /apps/{id}/events.
func (s *Server) postEvent(_ *http.Request, c *call) ([]byte, error) {
	var e trigger
	if err := json.Unmarshal(c.body, &e); err != nil {
		return nil, badJSON(err)
	}
	set := s.opt.Apps.Settings(c.app)
	if len(e.Channels) == 0 && e.Channel == "" {
		e.Channels = c.params.all("channels") // some libraries put them there
	}
	if err := e.check(set); err != nil {
		return nil, err
	}
	if err := s.publish(c.app, &e); err != nil {
		return nil, err
	}
	return emptyObject, nil
}

func badJSON(err error) error {
	return petrel.Errorf(petrel.CodeInvalidJSON, "The body is not the JSON object that this call takes: %s.", strings.TrimPrefix(err.Error(), "json: "))
}

// check refuses what cannot be triggered, and leaves e.Channels as the channels of the event, each once.
func (e *trigger) check(set *identity.Settings) error {
	if e.Channel != "" {
		if len(e.Channels) > 0 {
			return petrel.Errorf(petrel.CodeInvalidField, "The event names both channel and channels: send one of them.")
		}
		e.Channels = []string{e.Channel}
	}
	switch {
	case len(e.Channels) == 0:
		return petrel.Errorf(petrel.CodeInvalidField, "The event names no channel: send channels, a list of names, or channel.")
	case len(e.Channels) > set.MaxChannels:
		return petrel.Errorf(petrel.CodeInvalidField, "The event names %d channels; at most %d are allowed.", len(e.Channels), set.MaxChannels)
	case e.SocketID != "" && !isSocketID(e.SocketID):
		return petrel.Errorf(petrel.CodeInvalidField, "The socket_id is not two numbers with a dot between them.")
	}
	for i, name := range e.Channels {
		if err := checkChannel(name, set); err != nil {
			return err
		}
		if slices.Contains(e.Channels[:i], name) {
			return petrel.Errorf(petrel.CodeInvalidField, "The event names the channel %s twice.", name)
		}
	}
	if err := checkName(e.Name, set); err != nil {
		return err
	}
	return e.checkData(set)
}

func checkChannel(name string, set *identity.Settings) error {
	form, err := channel.Parse(name)
	switch {
	case err != nil:
		return petrel.Errorf(petrel.CodeInvalidField, "%.210q is not the name of a channel: use 1 to %d of A–Z a–z 0–9 _ - = @ , . ;", name, set.MaxChannelName)
	case form.Kind != channel.ServerToUser && len(name) > set.MaxChannelName:
		return petrel.Errorf(petrel.CodeInvalidField, "The name of a channel may have at most %d characters.", set.MaxChannelName)
	}
	return nil
}

func checkName(name string, set *identity.Settings) error {
	switch {
	case name == "":
		return petrel.Errorf(petrel.CodeInvalidField, "The event has no name.")
	case utf8.RuneCountInString(name) > set.MaxEventName:
		return petrel.Errorf(petrel.CodeInvalidField, "The name of an event may have at most %d characters.", set.MaxEventName)
	case strings.HasPrefix(name, "pusher:") || strings.HasPrefix(name, "pusher_internal:"):
		return petrel.Errorf(petrel.CodeInvalidField, "Names of events that begin with pusher: or pusher_internal: are the protocol's own.")
	}
	return nil
}

func (e *trigger) checkData(set *identity.Settings) error {
	if len(e.Data) == 0 || e.Data[0] != '"' {
		return petrel.Errorf(petrel.CodeInvalidField, "The event's data must be a string: write an object as a string of JSON.")
	}
	if n := stringLen(e.Data); n > set.MaxEventBytes {
		return petrel.Errorf(petrel.CodeTooLarge, "The event's data has %d bytes; at most %d are allowed.", n, set.MaxEventBytes)
	}
	return nil
}

// publish hands an event to the hubs, channel by channel. Its frame is written here, once for all nodes.
func (s *Server) publish(app petrel.AppID, e *trigger) error {
	var first error
	for _, name := range e.Channels {
		frame := appendEvent(make([]byte, 0, 64+len(e.Name)+len(name)+len(e.Data)), e.Name, name, e.Data, "")
		err := s.announce(&petrel.Publication{Channel: petrel.PusherChannel(app, name), Type: typeEvent, Except: petrel.ConnID(e.SocketID), Data: frame}, "http")
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}
