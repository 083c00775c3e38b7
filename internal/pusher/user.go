package pusher

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// userKey names a user of an app.
type userKey struct {
	app  petrel.AppID
	user petrel.UserID
}

// users are the connections of this node on which somebody is signed in, so that they can be terminated.
type users struct {
	mu sync.Mutex // guards by
	by map[userKey]map[*session]struct{}
}

func (u *users) add(k userKey, c *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.by[k] == nil {
		u.by[k] = map[*session]struct{}{}
	}
	u.by[k][c] = struct{}{}
}

func (u *users) remove(k userKey, c *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if delete(u.by[k], c); len(u.by[k]) == 0 {
		delete(u.by, k)
	}
}

func (u *users) of(k userKey) []*session {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]*session, 0, len(u.by[k]))
	for c := range u.by[k] {
		out = append(out, c)
	}
	return out
}

// Terminate closes the connections of this node on which a user is signed in: what hub.TopicTerminate tells every node. They are told to stay away.
func (s *Server) Terminate(_ context.Context, app petrel.AppID, user []byte) ([]byte, error) {
	for _, c := range s.users.of(userKey{app, petrel.UserID(user)}) {
		c.conn.Close(closeUnauthorized, "The user's connections were terminated.")
	}
	return nil, nil
}

// account is who is signed in on a connection.
type account struct {
	hub.Unconcerned // nothing else becomes of its subscription
	user            petrel.UserID
	here            *hub.Subscription // makes the user count as online, on every node
	watch           *watchlist
	welcome         func()
}

// Admitted implements hub.Owner.
func (a *account) Admitted(*hub.Subscription) { a.welcome() }

// signin is pusher:signin: {"auth":"key:signature","user_data":"{\"id\":…}"}. The signature is over "socket_id::user::user_data".
func (c *session) signin(f *clientFrame) error {
	var in struct{ Auth, UserData string }
	if err := readData(f.Data, channel.Field{Key: "auth", Into: &in.Auth}, channel.Field{Key: "user_data", Into: &in.UserData}); err != nil {
		return err
	}
	if !c.signed(in.Auth, []byte(string(c.conn.ID())+"::user::"+in.UserData)) {
		return refuse(int(closeUnauthorized), "The auth of the sign-in is not a signature of this app over this connection's socket id and the user data.")
	}
	var data struct {
		ID        string
		Watchlist []string
	}
	if err := channel.ReadObject("The user_data", []byte(in.UserData), channel.Field{Key: "id", Into: &data.ID}, channel.Field{Key: "watchlist", Into: &data.Watchlist}); err != nil {
		return err
	}
	user, err := channel.ParseUser(data.ID)
	if err != nil {
		return err
	}
	answer := `{"user_data":` + quoted(in.UserData) + `}`
	success := append(appendQuoted(append(make([]byte, 0, 64+2*len(answer)), `{"event":"pusher:signin_success","data":`...), answer), '}')
	w := &watchlist{c: c, online: map[petrel.UserID]bool{}}
	limit := c.settings().MaxWatchlist
	over := len(data.Watchlist) > limit
	again, err := c.signedIn(&account{user: user, welcome: func() {
		c.send(success)
		if over {
			c.refuse(refuse(errWatchlist, "The watchlist is longer than %d users: the first ones are watched.", limit))
		}
		w.begin()
	}})
	switch {
	case err != nil:
		return err
	case again:
		c.send(success)
		return nil
	}
	c.conn.CloseAt(time.Time{}, 0, "")
	w.watch(data.Watchlist[:min(len(data.Watchlist), limit)])
	return nil
}

// signedIn makes the connection a user's. It is one user's for its whole life. The user is welcomed, under a lock of the hub, when they count as
// online; perhaps after it returned.
func (c *session) signedIn(a *account) (again bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		return true, nil
	case c.account != nil && c.account.user == a.user:
		return true, nil
	case c.account != nil:
		return false, refuse(0, "This connection is signed in as another user already: open a new one.")
	}
	here, err := c.s.opt.Hub.Subscribe(hub.Request{
		Channel: petrel.UserChannel(c.app, a.user), Subscriber: c.conn, Owner: a, Wire: wireOf(c.conn),
	})
	if err != nil {
		return false, err
	}
	a.here, c.account = here, a
	c.s.users.add(userKey{c.app, a.user}, c)
	return false, nil
}

// signOut is the end of a connection.
func (a *account) signOut(c *session) {
	c.s.users.remove(userKey{c.app, a.user}, c)
	a.here.Close()
	if a.watch != nil {
		a.watch.stop()
	}
}

// watchlist tells a connection which of the users that it watches come and go. The first states of all are told at once.
type watchlist struct {
	c     *session
	stops []func()

	mu      sync.Mutex // guards what follows. Lock order: after the hub's, before the connection's
	begun   bool       // the client was told that it is signed in
	missing int        // users of whom nothing was heard yet
	online  map[petrel.UserID]bool
}

// begin says that the client may be told. It runs under a lock of the hub.
func (w *watchlist) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun = true; w.missing == 0 && len(w.online) > 0 {
		w.tellAll()
	}
}

// watch begins to watch users, each once. What cannot be a user is never online.
func (w *watchlist) watch(ids []string) {
	var list []petrel.UserID
	for _, id := range ids {
		if user, err := channel.ParseUser(id); err == nil && !slices.Contains(list, user) {
			list = append(list, user)
		}
	}
	w.mu.Lock()
	w.missing = len(list)
	w.mu.Unlock()
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone || len(list) == 0 {
		return
	}
	c.account.watch = w
	for _, user := range list {
		w.stops = append(w.stops, c.s.opt.Hub.Watch(petrel.UserChannel(c.app, user), func(now hub.Here) { w.heard(user, now.Online) }))
	}
}

// heard takes the state of one user.
func (w *watchlist) heard(user petrel.UserID, online bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was, known := w.online[user]
	w.online[user] = online
	first := !known && w.missing > 0
	if first {
		w.missing--
	}
	switch {
	case !w.begun || w.missing > 0:
	case first:
		w.tellAll()
	case was != online:
		w.c.send(watchlistEvents(map[bool][]petrel.UserID{online: {user}}))
	}
}

func (w *watchlist) tellAll() {
	states := map[bool][]petrel.UserID{}
	for user, online := range w.online {
		states[online] = append(states[online], user)
	}
	slices.Sort(states[true])
	slices.Sort(states[false])
	w.c.send(watchlistEvents(states))
}

func (w *watchlist) stop() {
	for _, stop := range w.stops {
		stop()
	}
}

func watchlistEvents(states map[bool][]petrel.UserID) []byte {
	data := []byte(`{"events":[`)
	for _, online := range []bool{true, false} {
		list := states[online]
		if len(list) == 0 {
			continue
		}
		if data[len(data)-1] != '[' {
			data = append(data, ',')
		}
		name := "offline"
		if online {
			name = "online"
		}
		data = append(data, `{"name":"`+name+`","user_ids":[`...)
		for i, user := range list {
			if i > 0 {
				data = append(data, ',')
			}
			data = appendQuoted(data, user)
		}
		data = append(data, "]}"...)
	}
	data = append(data, "]}"...)
	b := append(make([]byte, 0, 64+len(data)), `{"event":"pusher_internal:watchlist_events","data":`...)
	return append(append(b, data...), '}') // an object, not a string of one
}
