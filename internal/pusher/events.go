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
	Name     string
	Data     json.RawMessage // a JSON string
	Channel  string
	Channels []string
	SocketID string
	Info     string
}

func readTrigger(what string, b []byte) (e trigger, err error) {
	err = channel.ReadObject(what, b,
		channel.Field{Key: "name", Into: &e.Name}, channel.Field{Key: "data", Into: &e.Data}, channel.Field{Key: "channel", Into: &e.Channel},
		channel.Field{Key: "channels", Into: &e.Channels}, channel.Field{Key: "socket_id", Into: &e.SocketID}, channel.Field{Key: "info", Into: &e.Info})
	return e, err
}

// postEvent is POST /apps/{id}/events.
func (s *Server) postEvent(r *http.Request, c *call) ([]byte, error) {
	e, err := readTrigger("The body", c.body)
	if err != nil {
		return nil, err
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

// readBatch reads the events of a batch.
func readBatch(b []byte, most int) ([]trigger, error) {
	var raw json.RawMessage
	if err := channel.ReadObject("The body", b, channel.Field{Key: "batch", Into: &raw}); err != nil {
		return nil, err
	}
	var events []json.RawMessage
	if len(raw) > 0 && json.Unmarshal(raw, &events) != nil {
		return nil, petrel.Errorf(petrel.CodeInvalidJSON, "The batch is not a list of events.")
	}
	switch {
	case len(events) == 0:
		return nil, petrel.Errorf(petrel.CodeInvalidField, "The batch has no events: send batch, a list of them.")
	case len(events) > most:
		return nil, petrel.Errorf(petrel.CodeInvalidField, "The batch has %d events; at most %d are allowed.", len(events), most)
	}
	batch := make([]trigger, len(events))
	for i := range events {
		var err error
		if batch[i], err = readTrigger("The event", events[i]); err != nil {
			return nil, inBatch(i, err)
		}
	}
	return batch, nil
}

// postBatch is POST /apps/{id}/batch_events. Either all events are published or, when one of them cannot be, none.
func (s *Server) postBatch(r *http.Request, c *call) ([]byte, error) {
	set := s.opt.Apps.Settings(c.app)
	batch, err := readBatch(c.body, set.MaxBatch)
	if err != nil {
		return nil, err
	}
	wants := make([]info, len(batch))
	var asked info
	var names []string
	for i := range batch {
		e := &batch[i]
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
	for i := range batch {
		if err := s.publish(c.app, &batch[i]); err != nil {
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
	for i := range batch {
		if i > 0 {
			b = append(b, ',')
		}
		x := all.Channel(batch[i].Channel)
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
	case hasControl(name):
		return petrel.Errorf(petrel.CodeInvalidField, "The name of an event may have no control characters.")
	case strings.HasPrefix(name, "pusher:") || strings.HasPrefix(name, "pusher_internal:"):
		return petrel.Errorf(petrel.CodeInvalidField, "Names of events that begin with pusher: or pusher_internal: are the protocol's own.")
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
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
