package effect

import (
	"encoding/json"
	"time"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Causes makes the jobs that tell webhooks what an entry says. Every field is required.
type Causes struct {
	// Hooks of an app, from memory.
	Hooks func(app petrel.AppID) []identity.Hook
	// Limits of an app's jobs.
	Limits func(app petrel.AppID) job.Limits
	// Chat says what an event of a room is called, and in which room it is; "" for any other event.
	Chat func(ev event.Event) (name string, room petrel.RoomID)
}

// Consequences is what command.Options asks for: the jobs go into the entry of what they tell.
func (c Causes) Consequences(r *projection.Reader, s event.Stamp, d event.Decision) ([]event.Event, []event.Guard, error) {
	hooks := c.Hooks(s.App)
	if len(hooks) == 0 {
		return nil, nil, nil
	}
	var jobs []job.New
	for i, ev := range d.Events {
		told, err := c.told(r, ev)
		if err != nil {
			return nil, nil, err
		}
		for _, t := range told {
			jobs = append(jobs, t.jobs(hooks, i+1)...)
		}
	}
	if len(jobs) == 0 {
		return nil, nil, nil
	}
	events, err := job.Queue(r, s.App, c.Limits(s.App), jobs...)
	return events, nil, err
}

// telling is what is to be told to whoever wants it.
type telling struct {
	name string
	body []byte
}

// jobs has one for each hook that wants it.
func (t telling) jobs(hooks []identity.Hook, cause int) (jobs []job.New) {
	for _, h := range hooks {
		if h.Wants(t.name) {
			jobs = append(jobs, job.New{Kind: KindWebhook, Target: webhookTarget(h), Body: t.body, Cause: cause})
		}
	}
	return jobs
}

func (c Causes) told(r *projection.Reader, ev event.Event) ([]telling, error) {
	switch ev := ev.(type) {
	case event.ChannelStateSet:
		return toldOfChannel(ev), nil
	case event.ChannelMissed:
		return []telling{tell(channelBody{Name: identity.HookCacheMiss, Channel: ev.Channel})}, nil
	case event.ScheduleFired:
		return toldOfSchedule(r, ev)
	}
	if name, room := c.Chat(ev); name != "" {
		return []telling{{name, encodeJSON(chatBody{Name: name, Room: room})}}, nil
	}
	return nil, nil
}

// scheduleBody is a schedule's time as it is told.
type scheduleBody struct {
	Name     string              `json:"name"`
	Schedule petrel.ScheduleName `json:"schedule"`
	Due      string              `json:"due_at"`
	Missed   uint                `json:"missed"`
	Data     json.RawMessage     `json:"data,omitempty"`
}

func toldOfSchedule(r *projection.Reader, ev event.ScheduleFired) ([]telling, error) {
	s, err := job.ScheduleByName(r, ev.App, ev.Name)
	if err != nil {
		return nil, err
	}
	body := scheduleBody{identity.HookScheduleDue, ev.Name, time.UnixMilli(ev.Due).UTC().Format("2006-01-02T15:04:05.000Z"), ev.Missed, s.Data}
	return []telling{{identity.HookScheduleDue, encodeJSON(body)}}, nil
}

// channelBody is an event of a channel as it is told; the fields are Pusher's.
type channelBody struct {
	Name     string        `json:"name"`
	Channel  string        `json:"channel"`
	Event    string        `json:"event,omitempty"`
	Data     *string       `json:"data,omitempty"`
	SocketID string        `json:"socket_id,omitempty"`
	User     petrel.UserID `json:"user_id,omitempty"`
	Count    *uint64       `json:"subscription_count,omitempty"`
}

func tell(b channelBody) telling { return telling{b.Name, encodeJSON(b)} }

// toldOfChannel is in the order in which it makes sense: a channel is occupied before somebody is in it.
func toldOfChannel(ev event.ChannelStateSet) (all []telling) {
	add := func(b channelBody) {
		b.Channel = ev.Channel
		all = append(all, tell(b))
	}
	if ev.Occupied && !ev.Was {
		add(channelBody{Name: identity.HookChannelOccupied})
	}
	for _, user := range ev.Joined {
		add(channelBody{Name: identity.HookMemberAdded, User: user})
	}
	for _, user := range ev.Left {
		add(channelBody{Name: identity.HookMemberRemoved, User: user})
	}
	if ev.Counted {
		add(channelBody{Name: identity.HookSubscriptionCount, Count: &ev.Count})
	}
	if ev.Was && !ev.Occupied {
		add(channelBody{Name: identity.HookChannelVacated})
	}
	return all
}

// interest is what an app's webhooks want to know of a channel.
type interest struct{ occupied, members, count bool }

func (i interest) any() bool { return i.occupied || i.members || i.count }

// interestIn says what webhooks want to know of a channel: whose members are told, and which is counted, is Pusher's.
func interestIn(hooks []identity.Hook, name string) (i interest) {
	if len(hooks) == 0 {
		return i
	}
	form, err := channel.Parse(name)
	if err != nil || form.Kind == channel.ServerToUser {
		return i
	}
	for _, h := range hooks {
		i.occupied = i.occupied || h.Wants(identity.HookChannelOccupied) || h.Wants(identity.HookChannelVacated)
		i.members = i.members || form.Kind == channel.Presence && (h.Wants(identity.HookMemberAdded) || h.Wants(identity.HookMemberRemoved))
		i.count = i.count || form.Counted() && h.Wants(identity.HookSubscriptionCount)
	}
	return i
}

// ClientEvent is what a client sent to the other subscribers of a channel.
type ClientEvent struct {
	App      petrel.AppID
	Channel  string
	Event    string
	Data     []byte // JSON
	SocketID string
	User     petrel.UserID // on presence channels
}

// body is the event as Pusher tells it: data is a string, that of the client or the JSON of what it sent.
func (e ClientEvent) body() []byte {
	text := string(e.Data)
	if s := ""; json.Unmarshal(e.Data, &s) == nil {
		text = s
	}
	return encodeJSON(channelBody{Name: identity.HookClientEvent, Channel: e.Channel, Event: e.Event, Data: &text, SocketID: e.SocketID, User: e.User})
}
