package pusher

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// wish is the data of pusher:subscribe.
type wish struct{ Channel, Auth, ChannelData string }

func readWish(data json.RawMessage) (w wish, err error) {
	err = readData(data, channel.Field{Key: "channel", Into: &w.Channel}, channel.Field{Key: "auth", Into: &w.Auth}, channel.Field{Key: "channel_data", Into: &w.ChannelData})
	return w, err
}

// subscribe joins a channel, or refuses it. A refusal is told twice: as pusher:error, which is what Pusher's own servers say, and as
// pusher:subscription_error on the channel, which is what programs listen for.
func (c *session) subscribe(f *clientFrame) error {
	w, err := readWish(f.Data)
	if err != nil {
		return err
	}
	form, err := channel.Parse(w.Channel)
	if err != nil {
		return err
	}
	if err := c.join(&w, form); err != nil {
		c.send(subscriptionError(w.Channel, err))
		return err
	}
	return nil
}

func (c *session) join(w *wish, form channel.Form) error {
	set := c.settings()
	if len(w.Channel) > set.MaxChannelName && form.Kind != channel.ServerToUser {
		return refuse(0, "The channel name is longer than %d characters.", set.MaxChannelName)
	}
	if err := c.authorize(w, form); err != nil {
		return err
	}
	r := hub.Request{
		Channel: petrel.PusherChannel(c.app, w.Channel), Subscriber: c.conn, Owner: c, Wire: wireOf(c.conn),
		Counts: set.SubscriptionCount && form.Counted(), Last: form.Cache,
	}
	if form.Kind == channel.Presence {
		m, err := channel.ParseMember(w.ChannelData, set.MaxUserBytes)
		if err != nil {
			return err
		}
		r.Member, r.Presence, r.MaxMembers = &hub.Member{ID: m.ID, Info: m.Info}, true, set.MaxMembers
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		return nil
	case c.subs.of(w.Channel) != nil:
		return refuse(0, "This connection is subscribed to the channel %s already.", w.Channel)
	case c.subs.len() >= set.MaxSubscriptions:
		return refuse(0, "A connection may have at most %d subscriptions.", set.MaxSubscriptions)
	}
	sub, err := c.s.opt.Hub.Subscribe(r)
	if err != nil {
		return err
	}
	c.subs.add(sub)
	if form.Authorised() {
		c.conn.CloseAt(time.Time{}, 0, "") // in time
	}
	return nil
}

// authorize checks the signature that a channel needs: HMAC-SHA256 of socket id, channel and channel data under a secret of the connection's app.
func (c *session) authorize(w *wish, form channel.Form) error {
	if form.Kind == channel.ServerToUser {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.account != nil && c.account.user == form.User {
			return nil
		}
		return refuse(int(closeUnauthorized), "Only the connections of the user may subscribe to %s: sign in first.", w.Channel)
	}
	if !form.Authorised() {
		return nil
	}
	id := c.conn.ID()
	text := make([]byte, 0, len(id)+len(w.Channel)+len(w.ChannelData)+2)
	text = append(append(append(text, id...), ':'), w.Channel...)
	if form.Kind == channel.Presence {
		text = append(append(text, ':'), w.ChannelData...)
	}
	if !c.signed(w.Auth, text) {
		return refuse(int(closeUnauthorized), "The auth of %s is not a signature of this app over this connection's socket id and the channel.", w.Channel)
	}
	return nil
}

// signed checks an auth string, key:signature, over a text.
func (c *session) signed(auth string, text []byte) bool {
	key, mac, ok := strings.Cut(auth, ":")
	app, err := c.s.opt.Apps.Verify(key, text, mac)
	return ok && err == nil && app == c.app
}

// Admitted implements hub.Owner.
func (c *session) Admitted(s *hub.Subscription) {
	if s.Member() == "" { // else the list of who is there says it
		c.send(succeeded(s.Channel().Name))
	}
}

// Missed implements hub.Owner: a cache channel has nothing yet.
func (c *session) Missed(s *hub.Subscription) {
	name := s.Channel().Name
	b := append(make([]byte, 0, 64+len(name)), `{"event":"pusher:cache_miss","channel":`...)
	c.send(append(appendQuoted(b, name), '}'))
	c.s.opt.OnCacheMiss(c.app, name)
}

// Resync implements hub.Owner. There is nothing to come back to.
func (*session) Resync(*hub.Subscription, string, uint64) {}

// Ended implements hub.Owner: a subscription is refused after all.
func (c *session) Ended(s *hub.Subscription, err error) {
	name := s.Channel().Name
	c.mu.Lock()
	if c.subs.of(name) == s {
		c.subs.remove(name)
	}
	c.mu.Unlock()
	c.send(subscriptionError(name, err))
	c.refuse(err)
}

// unsubscribe leaves a channel. It is not answered, and leaving one that it is not on is nothing.
func (c *session) unsubscribe(f *clientFrame) error {
	w, err := readWish(f.Data)
	if err != nil {
		return err
	}
	c.mu.Lock()
	s := c.subs.remove(w.Channel)
	c.mu.Unlock()
	if s != nil {
		s.Close()
	}
	return nil
}

func succeeded(name string) []byte {
	b := append(make([]byte, 0, 96+len(name)), `{"event":"pusher_internal:subscription_succeeded","channel":`...)
	return append(appendQuoted(b, name), `,"data":"{}"}`...)
}

// subscriptionError is what pusher-js makes itself when its own call for a signature fails, so that programs need to listen for one thing only.
func subscriptionError(name string, err error) []byte {
	text := gateway.NewProblem(err).Detail
	kind, status := "SubscriptionError", "400"
	if petrel.CodeOf(err) == petrel.CodeLimitReached {
		kind, status = "LimitReached", "4004"
	}
	if r, ok := err.(*refusal); ok { //nolint:errorlint // ours are never wrapped
		text = r.text
		if r.code == int(closeUnauthorized) {
			kind, status = "AuthError", "401"
		}
	}
	data := `{"type":"` + kind + `","error":` + quoted(text) + `,"status":` + status + `}`
	b := append(make([]byte, 0, 128+2*len(data)), `{"event":"pusher:subscription_error","channel":`...)
	b = append(appendQuoted(b, name), `,"data":`...)
	return append(appendQuoted(b, data), '}')
}
