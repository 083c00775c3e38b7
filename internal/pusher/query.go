package pusher

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// info is which attributes of a channel a call asks for.
type info struct{ users, subscriptions, cache bool }

func (i info) any() bool { return i.users || i.subscriptions || i.cache }

// parseInfo reads a list of attributes with commas between them.
func parseInfo(text string, cache bool) (i info, err error) {
	for name := range strings.SplitSeq(text, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "":
		case name == "user_count":
			i.users = true
		case name == "subscription_count":
			i.subscriptions = true
		case name == "cache" && cache:
			i.cache = true
		default:
			return i, petrel.Errorf(petrel.CodeInvalidField, "There is no attribute %.60q to ask for in info.", name)
		}
	}
	return i, nil
}

// headerPartial is on an answer that counts what some nodes of the cell did not say in time.
const headerPartial = "Petrel-Partial"

// census counts channels over all nodes.
func (s *Server) census(ctx context.Context, c *call, q hub.CensusQuery) (hub.Census, error) {
	q.App, q.Kind = c.app, petrel.ChannelPusher
	all, err := s.opt.Hub.Census(ctx, q)
	if err == nil && all.Partial() {
		s.metrics.partial.Inc()
		c.w.Header().Set(headerPartial, "true")
	}
	return all, err
}

// attributes appends {"user_count":…,"subscription_count":…} of a channel, as far as they are asked for: a presence channel has users.
func (i info) attributes(b []byte, c *hub.Counted, presence bool) []byte {
	b = append(b, '{')
	if i.users && presence {
		b = strconv.AppendInt(append(b, `"user_count":`...), int64(len(c.Users)), 10)
	}
	if i.subscriptions {
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `"subscription_count":`...), int64(c.Subscriptions), 10)
	}
	return append(b, '}')
}

// getChannels is GET /apps/{id}/channels: those that somebody is subscribed to.
func (s *Server) getChannels(r *http.Request, c *call) ([]byte, error) {
	i, err := parseInfo(c.params.get("info"), false)
	if err != nil {
		return nil, err
	}
	prefix := c.params.get("filter_by_prefix")
	if i.users && !strings.HasPrefix(prefix, channel.PrefixPresence) {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "Only presence channels have a user_count: ask for it with filter_by_prefix=presence-.")
	}
	all, err := s.census(r.Context(), c, hub.CensusQuery{Prefix: prefix, Users: i.users})
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 32+48*len(all.Channels)), `{"channels":{`...)
	for n := range all.Channels {
		x := &all.Channels[n]
		if strings.HasPrefix(x.Name, "#") && !strings.HasPrefix(prefix, "#") {
			continue // a user's own
		}
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(appendQuoted(b, x.Name), ':')
		b = i.attributes(b, x, strings.HasPrefix(x.Name, channel.PrefixPresence))
	}
	return append(b, "}}"...), nil
}

// getChannel is GET /apps/{id}/channels/{channel}.
func (s *Server) getChannel(r *http.Request, c *call) ([]byte, error) {
	name := r.PathValue("channel")
	form, err := channel.Parse(name)
	if err != nil {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "%.210q is not the name of a channel.", name)
	}
	i, err := parseInfo(c.params.get("info"), true)
	switch {
	case err != nil:
		return nil, err
	case i.users && form.Kind != channel.Presence:
		return nil, petrel.Errorf(petrel.CodeInvalidField, "Only presence channels have a user_count.")
	case i.cache && !form.Cache:
		return nil, petrel.Errorf(petrel.CodeInvalidField, "Only cache channels have a cache.")
	}
	all, err := s.census(r.Context(), c, hub.CensusQuery{Names: []string{name}, Users: i.users})
	if err != nil {
		return nil, err
	}
	x := all.Channel(name)
	b := strconv.AppendBool([]byte(`{"occupied":`), x.Subscriptions > 0)
	if rest := i.attributes(nil, &x, form.Kind == channel.Presence); len(rest) > 2 {
		b = append(append(b, ','), rest[1:len(rest)-1]...)
	}
	if i.cache {
		b = append(append(b, `,"cache":`...), s.cached(r.Context(), petrel.PusherChannel(c.app, name))...)
	}
	return append(b, '}'), nil
}

// cached is what a cache channel keeps, or null.
func (s *Server) cached(ctx context.Context, ch petrel.Channel) []byte {
	p, left, ok := s.opt.Hub.Last(ctx, ch)
	var f clientFrame // an event's frame has the fields of a client's
	if !ok || json.Unmarshal(p.Data, &f) != nil {
		return []byte("null")
	}
	b := append(append([]byte(`{"data":`), f.Data...), `,"ttl":`...)
	return append(strconv.AppendInt(b, int64((left+time.Second-1)/time.Second), 10), '}')
}

// getUsers is GET /apps/{id}/channels/{channel}/users.
func (s *Server) getUsers(r *http.Request, c *call) ([]byte, error) {
	name := r.PathValue("channel")
	if form, err := channel.Parse(name); err != nil || form.Kind != channel.Presence {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "Only presence channels have users, and their names begin with presence-.")
	}
	all, err := s.census(r.Context(), c, hub.CensusQuery{Names: []string{name}, Users: true})
	if err != nil {
		return nil, err
	}
	b := []byte(`{"users":[`)
	for n, user := range all.Channel(name).Users {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(appendQuoted(append(b, `{"id":`...), user), '}')
	}
	return append(b, "]}"...), nil
}

// terminate is POST /apps/{id}/users/{user}/terminate_connections: it answers when every node has closed its own.
func (s *Server) terminate(r *http.Request, c *call) ([]byte, error) {
	user, err := channel.ParseUser(r.PathValue("user"))
	if err != nil {
		return nil, err
	}
	if _, err := s.opt.Hub.Tell(r.Context(), hub.TopicTerminate, c.app, []byte(user)); err != nil {
		return nil, petrel.Errorf(petrel.CodeBusy, "Not every node of the cell has answered: some connections may be open still. Repeat the call.").Because(err).After(time.Second)
	}
	return emptyObject, nil
}
