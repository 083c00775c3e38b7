package effect

import (
	"cmp"
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
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// cluster is a cell as owners see it: one log, folded at once, and nodes whose connections everybody knows of. It lives in a synctest bubble.
type cluster struct {
	t     *testing.T
	store *projection.Store
	hooks []identity.Hook

	mu      sync.Mutex
	index   uint64
	broken  error // what the log says instead of taking anything
	delay   time.Duration
	split   bool // every node takes itself for the only one that lives, and so owns everything
	nodes   map[petrel.NodeID]*cnode
	told    []string // what webhooks were told, in order: node-independent
	commits int
}

// cnode is one node: its owner, what is connected to it, and whom it believes to live.
type cnode struct {
	name    petrel.NodeID
	owner   *Owner
	subs    map[string]map[petrel.UserID]int // by channel; user "" is nobody in particular
	cut     bool                             // it sees nobody else, and has no log
	partial bool                             // it has not heard from all
}

func newCluster(t *testing.T, hooks []identity.Hook, names ...petrel.NodeID) *cluster {
	t.Helper()
	store, err := projection.Open(t.Context(), projection.Options{
		Memory: &projection.MemoryDisk{}, Modules: []projection.Module{identity.Module(), channel.Module(), job.Module()},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, store: store, hooks: hooks, nodes: map[petrel.NodeID]*cnode{}}
	for _, name := range names {
		c.start(name)
	}
	return c
}

// close ends every owner; a bubble waits for that.
func (c *cluster) close() {
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		c.nodes[name].owner.Stop()
	}
	if err := c.store.Close(); err != nil {
		c.t.Error(err)
	}
}

func (c *cluster) start(name petrel.NodeID) {
	n := &cnode{name: name, subs: map[string]map[petrel.UserID]int{}}
	var reconsider func()
	n.owner = NewOwner(OwnerOptions{
		Node: name, Nodes: func() []petrel.NodeID { return c.alive(n) },
		InTouch:    func() bool { c.mu.Lock(); defer c.mu.Unlock(); return !n.cut },
		Bucket:     bucketOf,
		Here:       func(ch petrel.Channel) ChannelHere { return c.here(n, ch.Name) },
		Look:       func(_ context.Context, ch petrel.Channel) ChannelHere { return c.here(n, ch.Name) },
		Reconsider: func() { reconsider() },
		Hooks:      func(petrel.AppID) []identity.Hook { c.mu.Lock(); defer c.mu.Unlock(); return c.hooks },
		Any:        func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.hooks) > 0 },
		Do:         c.do,
		View:       c.store.View,
		Settle:     4 * time.Second,
	})
	// Whatever is newly owned is told of, as the hub does.
	reconsider = func() {
		c.mu.Lock()
		all := map[string]bool{}
		for _, x := range c.nodes {
			for ch := range x.subs {
				all[ch] = true
			}
		}
		c.mu.Unlock()
		for ch := range all {
			if n.owner.Owns(bucketOf(pusherChannel(ch))) {
				n.owner.Changed(pusherChannel(ch))
			}
		}
	}
	c.mu.Lock()
	c.nodes[name] = n
	c.mu.Unlock()
	n.owner.Start()
}

func pusherChannel(name string) petrel.Channel { return petrel.PusherChannel("1", name) }

func bucketOf(ch petrel.Channel) uint16 {
	var h uint32
	for _, b := range []byte(ch.Name) {
		h = h*31 + uint32(b)
	}
	return uint16(h % Buckets)
}

// kill ends a node; the others notice after five seconds, as by heartbeats.
func (c *cluster) kill(name petrel.NodeID) {
	n := c.nodes[name]
	n.owner.Stop()
	time.Sleep(5 * time.Second)
	c.mu.Lock()
	delete(c.nodes, name)
	gone := slices.Collect(maps.Keys(n.subs))
	c.mu.Unlock()
	for _, ch := range gone {
		c.changed(ch)
	}
}

func (c *cluster) alive(n *cnode) []petrel.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.cut || c.split {
		return []petrel.NodeID{n.name}
	}
	var names []petrel.NodeID
	for name, x := range c.nodes {
		if !x.cut {
			names = append(names, name)
		}
	}
	return names
}

func (c *cluster) here(n *cnode, ch string) ChannelHere {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := ChannelHere{Whole: !n.partial}
	users := map[petrel.UserID]bool{}
	for _, x := range c.nodes {
		if x != n && (x.cut || n.cut) {
			continue
		}
		for user, subs := range x.subs[ch] {
			out.Count += subs
			if user != "" {
				users[user] = true
			}
		}
	}
	out.Users = slices.Sorted(maps.Keys(users))
	return out
}

// sub adds or ends subscriptions of a user to a channel on a node.
func (c *cluster) sub(node petrel.NodeID, ch string, user petrel.UserID, by int) {
	c.mu.Lock()
	n := c.nodes[node]
	if n.subs[ch] == nil {
		n.subs[ch] = map[petrel.UserID]int{}
	}
	if n.subs[ch][user] += by; n.subs[ch][user] <= 0 {
		delete(n.subs[ch], user)
	}
	if len(n.subs[ch]) == 0 {
		delete(n.subs, ch)
	}
	c.mu.Unlock()
	c.changed(ch)
}

func (c *cluster) changed(ch string) {
	c.mu.Lock()
	nodes := slices.Collect(maps.Values(c.nodes))
	c.mu.Unlock()
	slices.SortFunc(nodes, func(a, b *cnode) int { return cmp.Compare(a.name, b.name) })
	for _, n := range nodes {
		if n.owner.Owns(bucketOf(pusherChannel(ch))) {
			n.owner.Changed(pusherChannel(ch))
		}
	}
}

// do is a desk: it decides on what is there, and folds when the guards hold.
func (c *cluster) do(ctx context.Context, app petrel.AppID, cmd command.Command) (command.Result, error) {
	for {
		c.mu.Lock()
		broken, delay := c.broken, c.delay
		c.mu.Unlock()
		if broken != nil {
			return command.Result{}, broken
		}
		s := event.Stamp{App: app, Actor: petrel.Actor{Kind: petrel.ActorSystem, App: app}, At: time.Now().UnixMilli()}
		var d event.Decision
		err := c.store.View(ctx, func(r *projection.Reader) (err error) {
			if d, err = cmd.Decide(r, s); err != nil || len(d.Events) == 0 {
				return err
			}
			more, _, err := Causes{
				Hooks: func(petrel.AppID) []identity.Hook { return c.hooks }, Limits: func(petrel.AppID) job.Limits { return job.Limits{} },
				Chat: func(event.Event) (string, petrel.RoomID) { return "", "" },
			}.Consequences(r, s, d)
			d.Events = append(d.Events, more...)
			return err
		})
		if err != nil || len(d.Events) == 0 {
			return command.Result{Answer: answerOf(d, s)}, err
		}
		time.Sleep(delay) // the way to the log
		if held, err := c.fold(s, d); err != nil || held {
			return command.Result{Answer: answerOf(d, s), Changed: true}, err
		}
	}
}

func answerOf(d event.Decision, s event.Stamp) any {
	if d.Answer == nil {
		return nil
	}
	return d.Answer(s, nil)
}

func (c *cluster) fold(s event.Stamp, d event.Decision) (held bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Index = c.index + 1
	err = c.store.Update(context.Background(), func(tx *projection.Tx) error {
		for _, g := range d.Guards {
			if v, err := channel.Version(&tx.Reader, s, g); err != nil || v != g.Version {
				return err
			}
		}
		held = true
		s.Seqs = nil
		for _, ev := range d.Events {
			fold := channel.Fold
			if q, ok := ev.(event.JobsQueued); ok {
				fold = job.Fold
				for _, j := range q.Jobs {
					body := j.Data
					if j.Body > 0 {
						body = q.Bodies[j.Body-1]
					}
					c.told = append(c.told, line(body))
				}
			}
			seq, err := fold(tx, s, ev)
			if err != nil {
				return err
			}
			s.Seqs = append(s.Seqs, seq)
		}
		return nil
	})
	if held && err == nil {
		c.index++
		c.commits++
	}
	return held, err
}

func line(body []byte) string {
	var b channelBody
	if err := json.Unmarshal(body, &b); err != nil {
		return err.Error()
	}
	s := b.Name + " " + b.Channel
	if b.User != "" {
		s += " " + string(b.User)
	}
	if b.Count != nil {
		s += fmt.Sprint(" ", *b.Count)
	}
	return s
}

// heard returns what was told since the last call.
func (c *cluster) heard() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	told := c.told
	c.told = nil
	return told
}

// written is how many entries there are.
func (c *cluster) written() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commits
}

func (c *cluster) expect(what string, want ...string) {
	c.t.Helper()
	synctest.Wait()
	if d := gocmp.Diff(want, c.heard()); d != "" {
		c.t.Errorf("%s (-want +told):\n%s", what, d)
	}
}

var allHooks = []identity.Hook{{App: "1", ID: "h", URL: "https://x.example", Events: []string{"*"}, Made: 1}}

func hooksFor(events ...string) []identity.Hook {
	return []identity.Hook{{App: "1", ID: "h", URL: "https://x.example", Events: events, Made: 1}}
}

// TestOwnersTell is the life of channels on three nodes, told once.
func TestOwnersTell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, hooksFor("channel_occupied", "channel_vacated", "member_added", "member_removed"), "n1", "n2", "n3")
		defer c.close()
		time.Sleep(10 * time.Second)
		c.sub("n1", "room", "", 1)
		c.sub("n2", "room", "", 1)
		time.Sleep(time.Second)
		c.expect("two subscribers on two nodes", "channel_occupied room")

		// The test that others failed: one of the two leaves.
		c.sub("n1", "room", "", -1)
		time.Sleep(time.Minute)
		c.expect("one of two left")

		// The last one is back within the hold-down.
		c.sub("n2", "room", "", -1)
		time.Sleep(2900 * time.Millisecond)
		c.sub("n3", "room", "", 1)
		time.Sleep(time.Minute)
		c.expect("the last one moved to another node")
		c.sub("n3", "room", "", -1)
		time.Sleep(2900 * time.Millisecond)
		c.expect("not yet")
		time.Sleep(time.Second)
		c.expect("the last one left", "channel_vacated room")

		// A user with two connections on two nodes is one member.
		c.sub("n1", "presence-room", "ada", 1)
		c.sub("n2", "presence-room", "ada", 1)
		c.sub("n2", "presence-room", "bob", 1)
		time.Sleep(time.Second)
		c.expect("members come", "channel_occupied presence-room", "member_added presence-room ada", "member_added presence-room bob")
		c.sub("n1", "presence-room", "ada", -1)
		time.Sleep(time.Minute)
		c.expect("ada is still on n2")
		c.sub("n2", "presence-room", "ada", -1)
		time.Sleep(time.Second)
		c.sub("n3", "presence-room", "ada", 1)
		time.Sleep(time.Minute)
		c.expect("ada moved")

		// A node is killed: who was on it alone leaves, once.
		c.sub("n3", "elsewhere", "", 1)
		time.Sleep(time.Second)
		c.expect("elsewhere", "channel_occupied elsewhere")
		c.kill("n3")
		time.Sleep(time.Minute)
		got := c.heard()
		slices.Sort(got)
		if d := gocmp.Diff([]string{"channel_vacated elsewhere", "member_removed presence-room ada"}, got); d != "" {
			t.Errorf("a node was killed:\n%s", d)
		}
		c.kill("n2")
		time.Sleep(time.Minute)
		c.expect("the next", "member_removed presence-room bob", "channel_vacated presence-room")
	})
}

// TestOwnersCount: subscription_count on each change up to 100, every five seconds beyond; not for presence channels.
func TestOwnersCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, hooksFor("subscription_count"), "n1", "n2")
		defer c.close()
		time.Sleep(10 * time.Second)
		c.sub("n1", "room", "", 1)
		c.sub("n1", "presence-room", "ada", 1)
		time.Sleep(3 * time.Second)
		c.expect("one", "subscription_count room 1")
		c.sub("n2", "room", "", 2)
		time.Sleep(3 * time.Second)
		c.expect("three", "subscription_count room 3")
		c.sub("n2", "room", "", 98)
		time.Sleep(6 * time.Second)
		c.expect("many", "subscription_count room 101")
		for range 100 { // for ten seconds
			c.sub("n2", "room", "", 1)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		got := c.heard()
		if len(got) < 2 || len(got) > 4 || got[len(got)-1] != "subscription_count room 201" {
			t.Errorf("many changes of many: %q", got)
		}
		c.sub("n1", "room", "", -1)
		c.sub("n2", "room", "", -200)
		time.Sleep(time.Minute)
		c.expect("none", "subscription_count room 0")
	})
}

// TestOwnersInTrouble: what the log does not take is told later, once; a node in a minority, or one that has not heard of all, tells nothing.
func TestOwnersInTrouble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, hooksFor("channel_occupied", "channel_vacated"), "n1", "n2", "n3")
		defer c.close()
		time.Sleep(10 * time.Second)
		c.mu.Lock()
		c.broken = petrel.Errorf(petrel.CodeJobsFull, "full")
		c.mu.Unlock()
		c.sub("n1", "a", "", 1)
		c.sub("n1", "b", "", 1)
		time.Sleep(time.Minute)
		c.expect("too many jobs wait")
		c.sub("n1", "b", "", -1)
		c.mu.Lock()
		c.broken = nil
		c.mu.Unlock()
		time.Sleep(time.Minute)
		c.expect("they do not any more; of b nobody ever heard", "channel_occupied a")

		// n1 alone in a minority sees nobody else: it says nothing, and the others miss what was on it.
		c.mu.Lock()
		c.nodes["n1"].cut = true
		c.mu.Unlock()
		c.changed("a")
		time.Sleep(time.Minute)
		c.expect("n1 is cut off", "channel_vacated a")
		c.sub("n1", "c", "", 1)
		time.Sleep(time.Minute)
		c.expect("in a minority")
		c.mu.Lock()
		c.nodes["n1"].cut = false
		c.mu.Unlock()
		time.Sleep(time.Minute)
		got := c.heard()
		slices.Sort(got)
		if d := gocmp.Diff([]string{"channel_occupied a", "channel_occupied c"}, got); d != "" {
			t.Errorf("n1 is back:\n%s", d)
		}

		partial := func(is bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, n := range c.nodes {
				n.partial = is
			}
		}
		partial(true)
		c.sub("n1", "a", "", -1)
		time.Sleep(time.Minute)
		c.expect("nobody has heard of all")
		partial(false)
		time.Sleep(time.Minute)
		c.expect("now they have", "channel_vacated a")
	})
}

// TestHooksComeAndGo: a first webhook is told what is so; without any, what was told is forgotten without a word.
func TestHooksComeAndGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "n1", "n2")
		defer c.close()
		set := func(hooks []identity.Hook) {
			c.mu.Lock()
			c.hooks = hooks
			c.mu.Unlock()
			for _, n := range c.nodes {
				n.owner.HooksChanged()
			}
			time.Sleep(time.Minute)
		}
		time.Sleep(10 * time.Second)
		for i := range 50 {
			c.sub("n1", "presence-room", petrel.UserID(fmt.Sprintf("u%02d", i)), 1)
		}
		c.sub("n2", "#server-to-user-ada", "", 1)
		time.Sleep(time.Minute)
		c.expect("nobody wants to know")
		set(hooksFor("channel_occupied"))
		c.expect("a webhook for channels", "channel_occupied presence-room")
		set(hooksFor("member_added"))
		got := c.heard()
		if len(got) != 50 || !slices.IsSorted(got) || got[0] != "member_added presence-room u00" {
			t.Errorf("a webhook for members: %q", got)
		}
		set(hooksFor("channel_occupied", "member_added"))
		c.expect("told already")
		set(nil)
		c.expect("gone")
		commits := c.written()
		time.Sleep(10 * time.Minute)
		if c.written() != commits {
			t.Error("something is written for nobody")
		}
		set(hooksFor("channel_vacated", "member_removed"))
		c.kill("n1")
		time.Sleep(time.Minute)
		got = c.heard()
		if len(got) != 51 || got[50] != "channel_vacated presence-room" {
			t.Errorf("all are gone: %q", got)
		}
	})
}

// TestOwnersRest: a node that leaves owns nothing any more, at once.
func TestOwnersRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, allHooks, "n1")
		defer c.close()
		time.Sleep(10 * time.Second)
		c.sub("n1", "room", "", 1)
		time.Sleep(time.Second)
		c.expect("there", "channel_occupied room", "subscription_count room 1")
		c.nodes["n1"].owner.Rest()
		c.sub("n1", "room", "", -1)
		time.Sleep(time.Minute)
		c.expect("its clients are sent away")
		c.nodes["n1"].owner.Stop()
		c.nodes["n1"].owner.Stop()
	})
}

// TestOwnerOf: every bucket has one owner, about as many for each, and of a node that goes only its own are given to others.
func TestOwnerOf(t *testing.T) {
	t.Parallel()
	nodes := []petrel.NodeID{"n1.aaaaaa", "n2.bbbbbb", "n3.cccccc", "n4.dddddd"}
	count := map[petrel.NodeID]int{}
	for b := range uint16(Buckets) {
		owner := OwnerOf(nodes, b)
		count[owner]++
		shuffled := slices.Clone(nodes)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if OwnerOf(shuffled, b) != owner {
			t.Fatal("the order of the nodes decides")
		}
		if owner != "n4.dddddd" && OwnerOf(nodes[:3], b) != owner {
			t.Errorf("bucket %d moves from %s though that stays", b, owner)
		}
	}
	for n, k := range count {
		if k < Buckets/len(nodes)*2/3 || k > Buckets/len(nodes)*3/2 {
			t.Errorf("%s owns %d of %d", n, k, Buckets)
		}
	}
	if len(count) != len(nodes) || OwnerOf(nil, 1) != "" {
		t.Error(count)
	}
}

// TestOwnersAgainstModel: users move between nodes, nodes are killed and come back, do not agree on who owns what, the log is slow; whatever happens, what was told of a channel
// alternates, and in the end it is what is so.
func TestOwnersAgainstModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testOwnersAgainstModel(t, seed) })
		})
	}
}

func testOwnersAgainstModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // not a secret
	c := newCluster(t, hooksFor("channel_occupied", "channel_vacated", "member_added", "member_removed"), "n1", "n2", "n3")
	defer c.close()
	c.delay = time.Duration(rng.IntN(300)) * time.Millisecond
	channels := []string{"presence-a", "presence-b", "c", "private-d"}
	people := []petrel.UserID{"ada", "bob", "cy", "dee", "eve"}
	for range 150 {
		names := slices.Sorted(maps.Keys(c.nodes))
		node := names[rng.IntN(len(names))]
		ch := channels[rng.IntN(len(channels))]
		user := petrel.UserID("")
		if strings.HasPrefix(ch, "presence-") {
			user = people[rng.IntN(len(people))]
		}
		switch rng.IntN(13) {
		case 0, 1, 2, 3, 4:
			c.sub(node, ch, user, 1)
		case 5, 6, 7:
			c.mu.Lock()
			there := c.nodes[node].subs[ch][user]
			c.mu.Unlock()
			if there > 0 {
				c.sub(node, ch, user, -1)
			}
		case 8: // a move within a second
			c.mu.Lock()
			there := c.nodes[node].subs[ch][user]
			c.mu.Unlock()
			if there > 0 {
				c.sub(node, ch, user, -1)
				time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
				c.sub(names[rng.IntN(len(names))], ch, user, 1)
			}
		case 9:
			if len(names) > 1 && rng.IntN(3) == 0 {
				c.kill(node)
			}
		case 10:
			if len(names) < 3 {
				for _, name := range []petrel.NodeID{"n1", "n2", "n3"} {
					if c.nodes[name] == nil {
						c.start(name)
						break
					}
				}
			}
		case 11:
			c.mu.Lock()
			c.split = !c.split
			c.mu.Unlock()
		case 12:
			c.mu.Lock()
			if c.broken == nil && rng.IntN(3) == 0 {
				c.broken = errors.New("no leader")
			} else {
				c.broken = nil
			}
			c.mu.Unlock()
		}
		time.Sleep(time.Duration(rng.IntN(2500)) * time.Millisecond)
	}
	c.mu.Lock()
	c.broken, c.split = nil, false
	c.mu.Unlock()
	time.Sleep(3 * time.Minute)
	synctest.Wait()

	occupied, members := map[string]bool{}, map[string]bool{}
	for _, l := range c.heard() {
		f := strings.Fields(l)
		set, of, is := occupied, f[1], f[0] == "channel_occupied"
		if strings.HasPrefix(f[0], "member_") {
			set, of, is = members, f[1]+" "+f[2], f[0] == "member_added"
			if is && !occupied[f[1]] {
				t.Errorf("%s, but nobody was told that the channel is occupied", l)
			}
		}
		if set[of] == is {
			t.Errorf("told twice in a row: %s", l)
		}
		set[of] = is
	}
	for _, ch := range channels {
		n := c.nodes[slices.Sorted(maps.Keys(c.nodes))[0]]
		here := c.here(n, ch)
		if occupied[ch] != (here.Count > 0) {
			t.Errorf("%s: told occupied %v, there are %d", ch, occupied[ch], here.Count)
		}
		for _, user := range people {
			if is := slices.Contains(here.Users, user); members[ch+" "+string(user)] != is {
				t.Errorf("%s: told that %s is there: %v, and is: %v", ch, user, !is, is)
			}
		}
	}
}
