package petreltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// told is what a Pusher client knows from the frames that it was sent.
type told struct {
	mu      sync.Mutex
	members map[string]map[string]bool // by presence channel
	counts  map[string]int             // by channel
	online  map[string]bool            // of those whom it watches
	wrong   []string
}

func (x *told) take(f map[string]any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	ch, _ := f["channel"].(string)
	var data struct {
		Presence *struct {
			IDs   []string `json:"ids"`
			Count int      `json:"count"`
		} `json:"presence"`
		User   string `json:"user_id"`
		Count  int    `json:"subscription_count"`
		Events []struct {
			Name  string   `json:"name"`
			Users []string `json:"user_ids"`
		} `json:"events"`
	}
	switch text := f["data"].(type) {
	case string:
		_ = json.Unmarshal([]byte(text), &data) // what is not ours says nothing
	case map[string]any:
		b, _ := json.Marshal(text)
		_ = json.Unmarshal(b, &data)
	}
	switch f["event"] {
	case "pusher_internal:subscription_succeeded":
		if data.Presence == nil {
			return
		}
		if x.members == nil {
			x.members = map[string]map[string]bool{}
		}
		x.members[ch] = map[string]bool{}
		for _, id := range data.Presence.IDs {
			x.members[ch][id] = true
		}
		if len(x.members[ch]) != data.Presence.Count {
			x.wrong = append(x.wrong, fmt.Sprint(f))
		}
	case "pusher_internal:member_added", "pusher_internal:member_removed":
		came := f["event"] == "pusher_internal:member_added"
		if x.members[ch] == nil || x.members[ch][data.User] == came {
			x.wrong = append(x.wrong, fmt.Sprintf("%v among %v", f, x.members[ch]))
			return
		}
		if came {
			x.members[ch][data.User] = true
		} else {
			delete(x.members[ch], data.User)
		}
	case "pusher_internal:subscription_count":
		if x.counts == nil {
			x.counts = map[string]int{}
		}
		x.counts[ch] = data.Count
	case "pusher_internal:watchlist_events":
		if x.online == nil {
			x.online = map[string]bool{}
		}
		for _, e := range data.Events {
			for _, user := range e.Users {
				if was, known := x.online[user]; known && was == (e.Name == "online") {
					x.wrong = append(x.wrong, fmt.Sprintf("%s is told to be %s twice", user, e.Name))
				}
				x.online[user] = e.Name == "online"
			}
		}
	}
}

func (c *pusherClient) signin(ctx context.Context, user string, watchlist ...string) error {
	b, err := json.Marshal(map[string]any{"id": user, "watchlist": watchlist})
	if err != nil {
		return err
	}
	if err := c.send(ctx, "pusher:signin", "", map[string]any{"user_data": string(b), "auth": AppKey + ":" + macOf(c.socket+"::user::"+string(b))}); err != nil {
		return err
	}
	_, err = c.await(ctx, "pusher:signin_success")
	return err
}

// query is a signed GET of Pusher's API; query has no signature's fields yet.
func (c *Cell) query(i int, path, query string, out any) error {
	if query != "" {
		query = "&" + query
	}
	path = "/apps/" + AppID + path
	query = fmt.Sprintf("auth_key=%s&auth_timestamp=%d&auth_version=1.0%s", AppKey, time.Now().Unix(), query)
	status, answer, err := c.ask(i, "GET", path+"?"+query+"&auth_signature="+macOf("GET\n"+path+"\n"+query), "")
	switch {
	case err != nil:
		return err
	case status != 200:
		return fmt.Errorf("%s: %d %s", path, status, answer)
	}
	return json.Unmarshal([]byte(answer), out)
}

// attendance is a Pusher client of the model, and what it is there as.
type attendance struct {
	client        *pusherClient
	node          int
	channel, user string
}

// modelChannels are those that the model knows.
var modelChannels = []string{"presence-a", "presence-b", "c", "private-d"}

// pusherModel is who is where in truth.
type pusherModel struct {
	t        *testing.T
	c        *Cell
	b        *backend
	people   []string
	sessions []attendance
	watchers map[int]*pusherClient // by node
}

func (m *pusherModel) enter(i int, channel, user string) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Second)
	defer cancel()
	p, err := dialPusher(ctx, m.c.URL(i))
	if err != nil {
		return // the node is on its way down or up: its clients come later
	}
	m.t.Cleanup(p.close)
	if err = p.subscribe(ctx, channel, user); err == nil && user != "" {
		err = p.signin(ctx, user)
	}
	if err != nil {
		p.close()
		return
	}
	m.sessions = append(m.sessions, attendance{p, i, channel, user})
}

// watch has somebody on every node who follows who is online.
func (m *pusherModel) watch() {
	m.t.Helper()
	for i := range m.c.Size() {
		if m.watchers[i] != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(m.t.Context(), Patience)
		p, err := dialPusher(ctx, m.c.URL(i))
		if err == nil {
			m.t.Cleanup(p.close)
			err = p.signin(ctx, fmt.Sprint("watcher", i), m.people...)
		}
		cancel()
		if err != nil {
			m.t.Fatal(err)
		}
		m.watchers[i] = p
	}
}

// counted is what a query tells of a channel.
type counted struct {
	Occupied bool `json:"occupied"`
	Users    int  `json:"user_count"`
	Count    int  `json:"subscription_count"`
}

// truth is every channel that is occupied, with its users, and who is online.
func (m *pusherModel) truth() (channels map[string]counted, users map[string][]string, online []string) {
	channels, users = map[string]counted{}, map[string][]string{}
	for _, s := range m.sessions {
		x := channels[s.channel]
		x.Occupied = true
		x.Count++
		if s.user != "" && !slices.Contains(users[s.channel], s.user) {
			x.Users++
			users[s.channel] = append(users[s.channel], s.user)
		}
		if s.user != "" && !slices.Contains(online, s.user) {
			online = append(online, s.user)
		}
		channels[s.channel] = x
	}
	for _, list := range users {
		slices.Sort(list)
	}
	slices.Sort(online)
	return channels, users, online
}

// differs says where what was told, or is answered, is not what is so; nil: nowhere.
func (m *pusherModel) differs() error {
	channels, users, online := m.truth()
	var wrong []error
	differ := func(what string, want, got any) {
		if diff := cmp.Diff(want, got); diff != "" {
			wrong = append(wrong, fmt.Errorf("%s (-is +told):\n%s", what, diff))
		}
	}
	for _, s := range m.sessions {
		x := &s.client.told
		x.mu.Lock()
		if s.user != "" {
			differ(fmt.Sprintf("members of %s for %s on node %d", s.channel, s.user, s.node), users[s.channel], slices.Sorted(maps.Keys(x.members[s.channel])))
		} else {
			differ(fmt.Sprintf("the count of %s on node %d", s.channel, s.node), channels[s.channel].Count, x.counts[s.channel])
		}
		x.mu.Unlock()
	}
	for i, w := range m.watchers {
		var on []string
		w.told.mu.Lock()
		for user, is := range w.told.online {
			if is {
				on = append(on, user)
			}
		}
		w.told.mu.Unlock()
		slices.Sort(on)
		differ(fmt.Sprintf("who is online for who watches on node %d", i), online, on)
	}
	for i := range m.c.Size() {
		wrong = append(wrong, m.differsAt(i, channels, users)...)
	}
	return errors.Join(append(wrong, m.untold(channels, users))...)
}

// differsAt is that of what a node answers to queries.
func (m *pusherModel) differsAt(i int, channels map[string]counted, users map[string][]string) (wrong []error) {
	var all struct {
		Channels map[string]counted `json:"channels"`
	}
	if err := m.c.query(i, "/channels", "", &all); err != nil {
		return []error{err}
	}
	if got, want := slices.Sorted(maps.Keys(all.Channels)), slices.Sorted(maps.Keys(channels)); !slices.Equal(got, want) {
		wrong = append(wrong, fmt.Errorf("node %d lists %v, there are %v", i, got, want))
	}
	all.Channels = nil
	if err := m.c.query(i, "/channels", "filter_by_prefix=presence-&info=user_count", &all); err != nil {
		return []error{err}
	}
	for name, x := range channels {
		if strings.HasPrefix(name, "presence-") && all.Channels[name].Users != x.Users {
			wrong = append(wrong, fmt.Errorf("node %d lists %s with %d users, there are %d", i, name, all.Channels[name].Users, x.Users))
		}
	}
	for _, name := range modelChannels {
		var one counted
		var list struct {
			Users []struct {
				ID string `json:"id"`
			} `json:"users"`
		}
		info, names := "info=subscription_count", []string(nil)
		if strings.HasPrefix(name, "presence-") {
			info += ",user_count"
			if err := m.c.query(i, "/channels/"+name+"/users", "", &list); err != nil {
				return []error{err}
			}
			for _, user := range list.Users {
				names = append(names, user.ID)
			}
		}
		if err := m.c.query(i, "/channels/"+name, info, &one); err != nil {
			return []error{err}
		}
		if one != channels[name] || !slices.Equal(names, users[name]) {
			wrong = append(wrong, fmt.Errorf("node %d says of %s: %+v %v, it is %+v %v", i, name, one, names, channels[name], users[name]))
		}
	}
	return wrong
}

// untold says how the webhooks' events do not add up to what is so. Calls may overtake each other: of one thing there are as many comings as goings,
// or one more.
func (m *pusherModel) untold(channels map[string]counted, users map[string][]string) error {
	want, sum := map[string]int{}, map[string]int{}
	for name := range channels {
		want[name] = 1
		for _, user := range users[name] {
			want[name+" "+user] = 1
		}
	}
	for _, e := range m.b.got("/h") {
		by := 1
		if e.Name == "channel_vacated" || e.Name == "member_removed" {
			by = -1
		}
		sum[strings.TrimSpace(e.Channel+" "+e.User)] += by
	}
	maps.DeleteFunc(sum, func(_ string, n int) bool { return n == 0 })
	if maps.Equal(sum, want) {
		return nil
	}
	return fmt.Errorf("comings without goings (-are +told)\n%s", cmp.Diff(want, sum))
}

// agree waits until all that was told and all that is answered is what is so.
func (m *pusherModel) agree(round int) {
	m.t.Helper()
	var last error
	if !poll(m.t.Context(), Patience, func() bool {
		last = m.differs()
		return last == nil
	}) {
		m.t.Fatalf("round %d: %v", round, last)
	}
	for _, s := range m.sessions {
		m.fine(s.client)
	}
	for _, w := range m.watchers {
		m.fine(w)
	}
}

// fine says whether everything that a client was told fitted together, at every moment.
func (m *pusherModel) fine(p *pusherClient) {
	m.t.Helper()
	p.told.mu.Lock()
	defer p.told.mu.Unlock()
	for _, wrong := range p.told.wrong {
		m.t.Errorf("%s was told: %s", p.socket, wrong)
	}
}

// TestPusherAgainstModel: users come, go and move between nodes, nodes die and come back. After each round every client has the members, the counts and
// the watchlist that are so, every node answers every query with them, and the webhooks add up to them.
func TestPusherAgainstModel(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a minute")
	}
	c := hookCell(t, 3, "subscription_count=on")
	m := &pusherModel{t: t, c: c, b: newBackend(t), people: []string{"ada", "bob", "cy", "dee"}, watchers: map[int]*pusherClient{}}
	c.mustAsk(0, "PUT", "/v1/hooks/h", `{"url":"`+m.b.URL+`/h","events":["channel_occupied","channel_vacated","member_added","member_removed"]}`)
	m.watch()
	rng := rand.New(rand.NewPCG(4, 3)) //nolint:gosec // not a secret
	for round := range 3 {
		for range 25 {
			switch at := rng.IntN(max(1, len(m.sessions))); {
			case len(m.sessions) == 0 || rng.IntN(2) == 0:
				channel, user := modelChannels[rng.IntN(len(modelChannels))], ""
				if strings.HasPrefix(channel, "presence-") {
					user = m.people[rng.IntN(len(m.people))]
				}
				m.enter(rng.IntN(3), channel, user)
			default:
				s := m.sessions[at]
				s.client.close()
				m.sessions = slices.Delete(m.sessions, at, at+1)
				if rng.IntN(2) == 0 { // it moves
					m.enter(rng.IntN(3), s.channel, s.user)
				}
			}
			moment(t.Context(), time.Duration(rng.IntN(150))*time.Millisecond)
		}
		down := round % 3
		c.Kill(down)
		delete(m.watchers, down)
		var lost []attendance
		m.sessions = slices.DeleteFunc(m.sessions, func(s attendance) bool {
			if s.node == down {
				lost = append(lost, s)
			}
			return s.node == down
		})
		for n, s := range lost { // every other one comes back at once, elsewhere
			if n%2 == 0 {
				m.enter((down+1+rng.IntN(2))%3, s.channel, s.user)
			}
		}
		moment(t.Context(), time.Duration(rng.IntN(2000))*time.Millisecond)
		if err := c.Start(t.Context(), down); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitHealthy(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.watch()
		m.agree(round)
	}
	t.Logf("%d events, %d of them again", len(m.b.got("/h")), m.b.again)
}

// TestMembersAtOnce: many come to a presence channel on three nodes at the same moment, and not one too many is let in.
func TestMembersAtOnce(t *testing.T) {
	t.Parallel()
	const limit, each = 10, 8
	c := hookCell(t, 3, fmt.Sprint("max_members=", limit))
	var scouts []*pusherClient
	for i := range 3 { // until all know of each other
		scouts = append(scouts, c.join(i, "presence-scouts", fmt.Sprint("scout", i)))
	}
	Until(t, "every node to know the two others", func() bool {
		return !slices.ContainsFunc(scouts, func(p *pusherClient) bool {
			p.told.mu.Lock()
			defer p.told.mu.Unlock()
			return len(p.told.members["presence-scouts"]) != 3
		})
	})
	var clients []*pusherClient
	for i := range 3 * each {
		p, err := dialPusher(t.Context(), c.URL(i%3))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.close)
		clients = append(clients, p)
	}
	errs := make([]error, len(clients))
	var all sync.WaitGroup
	for i, p := range clients {
		all.Go(func() { errs[i] = p.subscribe(t.Context(), "presence-small", fmt.Sprint("u", i)) })
	}
	all.Wait()
	in := 0
	for _, err := range errs {
		switch {
		case err == nil:
			in++
		case !strings.Contains(err.Error(), "as many members as it may have"):
			t.Error(err)
		}
	}
	if in != limit {
		t.Errorf("%d are in, of %d", in, limit)
	}
	for i, err := range errs {
		if err == nil {
			clients[i].close() // and the next ones get the places
		}
	}
	Until(t, "the channel is empty", func() bool {
		var x counted
		return c.query(0, "/channels/presence-small", "", &x) == nil && !x.Occupied
	})
	if err := c.join(1, "presence-small", "late").signin(t.Context(), "late"); err != nil {
		t.Error(err)
	}
}
