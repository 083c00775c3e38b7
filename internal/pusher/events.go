package pusher

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/hub"
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
func (s *Server) postEvent(r *http.Request, c *call) ([]byte, error) {
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
	want, err := parseInfo(e.Info, false)
	if err != nil {
		return nil, err
	}
	if err := s.begin(c, want.any()); err != nil { // counting asks other nodes
		return nil, err
	}
	if err := s.publish(c.app, &e); err != nil {
		return nil, err
	}
	if !want.any() {
		return emptyObject, nil
	}
	all, err := s.census(r.Context(), c, hub.CensusQuery{Names: e.Channels, Users: want.users})
	if err != nil {
		return nil, err
	}
	b := []byte(`{"channels":{`)
	for i, name := range e.Channels {
		if i > 0 {
			b = append(b, ',')
		}
		x := all.Channel(name)
		b = want.published(append(appendQuoted(b, name), ':'), &x)
	}
	return append(b, "}}"...), nil
}

// published is attributes of a channel that was published to: a presence channel has users, any other subscriptions.
func (i info) published(b []byte, c *hub.Counted) []byte {
	presence := strings.HasPrefix(c.Name, channel.PrefixPresence)
	i.subscriptions = i.subscriptions && !presence
	return i.attributes(b, c, presence)
}

// postBatch is POST /apps/{id}/batch_events. Either all events are published or, when one of them cannot be, none.
func (s *Server) postBatch(r *http.Request, c *call) ([]byte, error) {
	var in struct {
		Batch []trigger `json:"batch"`
	}
	if err := json.Unmarshal(c.body, &in); err != nil {
		return nil, badJSON(err)
	}
	set := s.opt.Apps.Settings(c.app)
	switch {
	case len(in.Batch) == 0:
		return nil, petrel.Errorf(petrel.CodeInvalidField, "The batch has no events: send batch, a list of them.")
	case len(in.Batch) > set.MaxBatch:
		return nil, petrel.Errorf(petrel.CodeInvalidField, "The batch has %d events; at most %d are allowed.", len(in.Batch), set.MaxBatch)
	}
	wants := make([]info, len(in.Batch))
	var asked info
	var names []string
	for i := range in.Batch {
		e := &in.Batch[i]
		if len(e.Channels) > 0 {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "Event %d of the batch names channels: in a batch each event has one channel.", i)
		}
		err := e.check(set)
		if err == nil {
			wants[i], err = parseInfo(e.Info, false)
		}
		if err != nil {
			return nil, inBatch(i, err)
		}
		if wants[i].any() {
			asked.users, asked.subscriptions = asked.users || wants[i].users, true
			names = append(names, e.Channel)
		}
	}
	if err := s.begin(c, asked.any()); err != nil {
		return nil, err
	}
	for i := range in.Batch {
		if err := s.publish(c.app, &in.Batch[i]); err != nil {
			return nil, inBatch(i, err)
		}
	}
	if !asked.any() {
		return emptyObject, nil
	}
	all, err := s.census(r.Context(), c, hub.CensusQuery{Names: names, Users: asked.users})
	if err != nil {
		return nil, err
	}
	b := []byte(`{"batch":[`)
	for i := range in.Batch {
		if i > 0 {
			b = append(b, ',')
		}
		x := all.Channel(in.Batch[i].Channel)
		b = wants[i].published(b, &x)
	}
	return append(b, "]}"...), nil
}

// inBatch says which event of a batch is wrong.
func inBatch(i int, err error) error {
	var e *petrel.Error
	if !errors.As(err, &e) {
		return err
	}
	return petrel.Errorf(e.Code, "Event %d of the batch: %s", i, e.Detail).Because(err).After(e.RetryAfter)
}

func badJSON(err error) error {
	var other *json.UnmarshalTypeError
	switch {
	case errors.As(err, &other) && other.Field == "":
		return petrel.Errorf(petrel.CodeInvalidJSON, "The body is not the JSON object that this call takes: it is of the type %s.", other.Value)
	case other != nil:
		return petrel.Errorf(petrel.CodeInvalidJSON, "The body is not the JSON object that this call takes: %s is of the type %s.", other.Field, other.Value)
	}
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
	once := e.Channels[:0]
	for _, name := range e.Channels {
		if err := checkChannel(name, set); err != nil {
			return err
		}
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	e.Channels = once
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
