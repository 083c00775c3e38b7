package petreltest

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// The simulation: a cell of one or three nodes, with its clients, in a synctest bubble. A seed decides everything that
// happens; afterwards nothing that was promised may be broken.
//
//	go test -run 'TestSim$' ./internal/petreltest                      the usual seeds
//	PETREL_SIM_SEEDS=2000 go test -run 'TestSim$' ./internal/petreltest  more of them
//	PETREL_SIM_TIME=10m go test -run 'TestSim$' -timeout 0 ./internal/petreltest  as many as there is time for
//	PETREL_SIM_SEED=17 go test -run 'TestSim$' -v ./internal/petreltest  one, with its trace

// simSeeds is how many seeds are run without being asked.
const simSeeds = 50

func TestSim(t *testing.T) {
	t.Parallel()
	first, seeds := 1, simSeeds
	if v := os.Getenv("PETREL_SIM_SEEDS"); v != "" {
		seeds = atoi(t, v)
	}
	one := os.Getenv("PETREL_SIM_SEED")
	if one != "" {
		first, seeds = atoi(t, one), 1
	}
	simSome(t, first, seeds, one != "")
	if v := os.Getenv("PETREL_SIM_TIME"); v != "" && one == "" {
		for began, d := time.Now(), duration(t, v); time.Since(began) < d; {
			first += seeds
			simSome(t, first, seeds, false)
		}
	}
}

func simSome(t *testing.T, first, seeds int, verbose bool) {
	t.Run(fmt.Sprintf("from %d on", first), func(t *testing.T) {
		for seed := first; seed < first+seeds; seed++ {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				t.Parallel()
				r := simulate(t, uint64(seed), "") //nolint:gosec // small
				if verbose {
					t.Log("\n" + strings.Join(r.trace, "\n"))
				}
				for _, f := range r.findings {
					t.Errorf("%s (again: PETREL_SIM_SEED=%d go test -run 'TestSim$' -v ./internal/petreltest)", f, seed)
				}
			})
		}
	})
}

// TestSimRepeats: a seed makes the same run again, to the nanosecond.
func TestSimRepeats(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			one, two := simulate(t, seed, "").trace, simulate(t, seed, "").trace
			for i := range min(len(one), len(two)) {
				if one[i] != two[i] {
					t.Fatalf("line %d of the trace was %q, and then %q", i+1, one[i], two[i])
				}
			}
			if len(one) != len(two) {
				t.Errorf("%d lines, and then %d", len(one), len(two))
			}
			t.Logf("%d lines, %x", len(one), sha256.Sum256([]byte(strings.Join(one, "\n"))))
		})
	}
}

// Bugs that can be planted, each where the simulation joins the parts.
const (
	bugPublication = "a publication is dropped"
	bugFold        = "a fold differs on one node"
	bugAnswer      = "an answer comes before the commit"
	bugResume      = "a resume hides a gap"
	bugPresence    = "a dead node's users stay"
	bugPosition    = "a position is not waited for"
)

// TestSimFindsBugs: with a bug the simulation finds something, and gives it its name.
func TestSimFindsBugs(t *testing.T) {
	t.Parallel()
	for bug, name := range map[string]string{
		bugPublication: "silent gap",
		bugFold:        "replicas differ",
		bugAnswer:      "acknowledged and lost",
		bugResume:      "silent gap",
		bugPresence:    "presence differs",
		bugPosition:    "written and not read",
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 20; seed++ {
				for _, f := range simulate(t, seed, bug).findings {
					if strings.HasPrefix(f, name+": ") {
						t.Logf("seed %d: %s", seed, f)
						return
					}
				}
			}
			t.Errorf("nothing called %q was found", name)
		})
	}
}

func atoi(t *testing.T, v string) int {
	t.Helper()
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func duration(t *testing.T, v string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sim is one run. The script's own fields are those of the bubble's main goroutine.
type sim struct {
	t     *testing.T
	rand  *rand.Rand
	bug   string
	began time.Time

	group   *raftlogtest.Group
	net     *bus.Network
	nodes   []*simNode
	clients []*simClient

	// The script's own.
	commands []*simCommand
	tries    int
	typed    int
	joined   int
	cut      map[[2]int]bool
	wires    map[[2]int]raftlogtest.Wire
	slow     time.Duration
	loss     float64
	kept     map[int][]byte // older projections, by node
	running  sync.WaitGroup

	mu       sync.Mutex // guards what follows, and what says so in nodes, clients, subscriptions and tries
	subs     []*simSub
	trace    []traceLine
	findings []string
}

type traceLine struct {
	at   time.Duration
	text string
}

// simRun is what became of a run.
type simRun struct {
	trace    []string
	findings []string
}

// simulate plays a seed in a bubble of its own.
func simulate(t *testing.T, seed uint64, bug string) (r simRun) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sim{
			t: t, rand: rand.New(rand.NewPCG(seed, 3)), bug: bug, began: time.Now(), //nolint:gosec // chance by a seed
			net: bus.NewNetwork(seed), cut: map[[2]int]bool{}, wires: map[[2]int]raftlogtest.Wire{}, kept: map[int][]byte{},
		}
		s.play(seed)
		slices.SortStableFunc(s.trace, func(a, b traceLine) int {
			if a.at != b.at {
				return int(a.at - b.at)
			}
			return strings.Compare(a.text, b.text)
		})
		for _, l := range s.trace {
			r.trace = append(r.trace, fmt.Sprintf("%12.6f %s", l.at.Seconds()*1000, l.text))
		}
		r.findings = s.findings
	})
	return r
}

func (s *sim) play(seed uint64) {
	s.group = raftlogtest.NewGroup(raftlogtest.GroupOptions{Election: 150 * time.Millisecond, Lease: 100 * time.Millisecond})
	nodes := 3
	if seed%5 == 0 {
		nodes = 1
	}
	for i := range nodes {
		s.nodes = append(s.nodes, &simNode{s: s, number: i, id: petrel.NodeID(fmt.Sprint("n", i+1)), disk: &projection.MemoryDisk{}})
	}
	for i := range 6 {
		s.clients = append(s.clients, &simClient{s: s, user: petrel.UserID(fmt.Sprint("u", i+1)), delay: time.Millisecond, seen: map[petrel.RoomID]uint64{}})
	}
	s.rewire()
	for i, n := range s.nodes {
		n.start()
		synctest.Wait()
		if i == 0 {
			n.found()
		} else {
			s.must(s.nodes[0].log.AddVoter(n.ctx, n.id, string(n.id)))
		}
		time.Sleep(time.Second)
		s.pause(50 * time.Millisecond)
	}
	s.settle()
	for range 60 + s.rand.IntN(120) {
		s.step()
	}
	s.heal()
	if len(s.findings) == 0 {
		s.verify()
	}
	for _, c := range s.clients {
		c.lose("the end")
	}
	for _, n := range s.nodes {
		if channels, subs := n.hub.Counts(); subs != 0 {
			s.found("subscription left", "%s has %d in %d channels", n.id, subs, channels)
		}
		n.stop(false)
	}
	s.running.Wait()
}

// heal ends all trouble, and gives everybody time to come to rest.
func (s *sim) heal() {
	s.note("the trouble ends")
	clear(s.cut)
	s.slow, s.loss = 0, 0
	for _, n := range s.nodes {
		s.setLag(n, 0)
		s.mu.Lock()
		n.fault = 0
		s.mu.Unlock()
		if !n.up {
			s.wake(n)
		}
		s.pause(time.Millisecond)
	}
	s.rewire()
	time.Sleep(15 * time.Second) // longer than any command may take
	synctest.Wait()
	s.nobodyWaits()
	for _, c := range s.commands {
		if c.told() == toldNothing { // who does not know asks again
			c.send(pick(s, s.nodes), false)
			s.pause(5 * time.Millisecond)
		}
	}
	time.Sleep(15 * time.Second)
	for _, c := range s.clients {
		c.delay = time.Millisecond
		c.connect(pick(s, s.nodes))
		s.pause(5 * time.Millisecond)
	}
	time.Sleep(30 * time.Second) // presence hears of dead nodes, and sums up
	synctest.Wait()
}

// nobodyWaits looks at subscriptions at rest, before anything new can show them what they missed.
func (s *sim) nobodyWaits() {
	s.mu.Lock()
	subs := slices.Clone(s.subs)
	s.mu.Unlock()
	for _, b := range subs {
		if b.end != "" {
			continue
		}
		var head uint64
		err := b.node.store.View(b.node.ctx, func(r *projection.Reader) (err error) {
			head, err = chat.Head(r, petrel.Actor{Kind: petrel.ActorApp, App: simApp}, b.room)
			return err
		})
		s.must(err)
		if b.last() != head {
			s.found("silent gap", "%s has come to %d of %d and waits", b, b.last(), head)
		}
	}
}

// verify is the oracle: everything is at rest.
func (s *sim) verify() {
	recs := s.group.Committed()
	model, err := newModel(recs)
	s.must(err)
	for _, line := range model.log {
		s.note("%s", line)
	}
	for _, p := range model.problems {
		s.found("done twice", "%s", p)
	}
	s.replicasAgree(recs, model)
	if len(s.findings) > 0 {
		return // nothing else means anything
	}
	s.promisesAreKept(model)
	s.subscriptionsAreWhole(model)
	s.everybodySeesEverybody()
}

// replicasAgree compares the nodes with each other, with the model, and with a replay of the log from its beginning.
func (s *sim) replicasAgree(recs []petrel.Record, model *simModel) {
	want, rows, err := s.nodes[0].replay(recs)
	s.must(err)
	for _, n := range s.nodes {
		if st := n.log.Status(); st.Stopped != nil {
			s.found("replica stopped", "%s: %v", n.id, st.Stopped)
			return
		}
		got := n.store.Applied()
		got.Mark, want.Mark = 0, 0
		if got != want {
			s.found("replicas differ", "%s stands at %d with digest %x…, a replay at %d with %x…", n.id, got.Index, got.Digest[:4], want.Index, want.Digest[:4])
		}
		its, err := dump(n.ctx, n.store)
		s.must(err)
		if i := firstOther(rows, its); i >= 0 {
			s.found("replicas differ", "%s has %d rows, a replay %d; the first other one is %s", n.id, len(its), len(rows), rowAt(its, i))
		}
		if err := model.check(n); err != nil {
			s.found("replica differs from the model", "%s: %v", n.id, err)
		}
	}
}

func firstOther(a, b []string) int {
	for i := range max(len(a), len(b)) {
		if rowAt(a, i) != rowAt(b, i) {
			return i
		}
	}
	return -1
}

func rowAt(rows []string, i int) string {
	if i < len(rows) {
		return rows[i]
	}
	return "(none)"
}

// promisesAreKept compares what clients were told with what is in the log.
func (s *sim) promisesAreKept(model *simModel) {
	made := map[string][]*simTry{} // by command
	for _, c := range s.commands {
		for _, t := range c.tries {
			index, folded := model.folded[petrel.RequestID(fmt.Sprint("q", t.number))]
			key := fmt.Sprint(c.client.user, " ", c.cmd.CommandKind(), " ", c.id)
			if folded {
				made[key] = append(made[key], t)
			}
			switch {
			case t.told == toldOK && t.result.Changed && !t.result.Repeated && !folded:
				s.found("acknowledged and lost", "try %d of command %s", t.number, c.id)
			case t.told == toldOK && t.result.Changed && folded && index != t.result.Position.Index:
				s.found("acknowledged elsewhere", "try %d of command %s: %d, told was %d", t.number, c.id, index, t.result.Position.Index)
			case t.told == toldRefused && folded:
				s.found("refused and done", "try %d of command %s was told %s and is entry %d", t.number, c.id, t.code, index)
			}
		}
	}
	for _, key := range simKeys(made) {
		if tries := made[key]; len(tries) > 1 {
			s.found("done twice", "command %s by tries %d and %d", key, tries[0].number, tries[1].number)
		}
	}
	s.repeatsAnswerAlike(made)
	s.orderIsKept(model)
}

// repeatsAnswerAlike: a repeated post is answered as the first one was.
func (s *sim) repeatsAnswerAlike(made map[string][]*simTry) {
	for _, c := range s.commands {
		first := made[fmt.Sprint(c.client.user, " ", c.cmd.CommandKind(), " ", c.id)]
		for _, t := range c.tries {
			if c.cmd.CommandKind() != "chat.post_message" || t.told != toldOK {
				continue
			}
			if len(first) == 0 {
				s.found("acknowledged and lost", "try %d of post %s was told ok, and nothing made it", t.number, c.id)
			} else if a, b := answerSeq(first[0]), answerSeq(t); a != 0 && a != b {
				s.found("answered otherwise", "try %d of post %s was told seq %d, try %d seq %d", first[0].number, c.id, a, t.number, b)
			}
		}
	}
}

// orderIsKept: who posts after an earlier post was acknowledged comes after it.
func (s *sim) orderIsKept(model *simModel) {
	type post struct {
		t   *simTry
		seq uint64
	}
	rooms := map[petrel.RoomID][]post{}
	for _, c := range s.commands {
		for _, t := range c.tries {
			if seq := answerSeq(t); seq != 0 && t.result.Changed && !t.result.Repeated {
				rooms[c.room] = append(rooms[c.room], post{t, seq})
			}
		}
	}
	for _, id := range simKeys(rooms) {
		for _, a := range rooms[id] {
			if r := model.rooms[id]; r == nil || a.seq > uint64(len(r.events)) || r.events[a.seq-1].message != petrel.MessageID(a.t.command.id) {
				s.found("acknowledged elsewhere", "try %d: the answer says seq %d of %s", a.t.number, a.seq, id)
			}
			for _, b := range rooms[id] {
				if a.t.to < b.t.from && a.seq > b.seq {
					s.found("out of order", "in %s try %d was answered with %d before try %d was sent, which got %d", id, a.t.number, a.seq, b.t.number, b.seq)
				}
			}
		}
	}
}

// subscriptionsAreWhole: every subscription got everything from its beginning on, once and in order, until it ended for a reason.
func (s *sim) subscriptionsAreWhole(model *simModel) {
	for _, b := range s.subs {
		room := model.rooms[b.room]
		for i, f := range b.got {
			seq := b.after + uint64(i) + 1
			if room == nil || seq > uint64(len(room.events)) || room.events[seq-1].kind != f.kind {
				s.found("delivered another", "%s: %d is %s", b, seq, f.kind)
				break
			}
			if id := room.events[seq-1].message; id != "" && !room.messages[id].deleted && !strings.Contains(f.data, `"id":"`+string(id)+`"`) {
				s.found("delivered another", "%s: %d is %s, not message %s", b, seq, f.data, id)
			}
		}
		switch {
		case b.end == "" && room != nil && b.last() != uint64(len(room.events)):
			s.found("silent gap", "%s has come to %d of %d and waits", b, b.last(), len(room.events))
		case strings.HasPrefix(b.end, "resync"):
			s.found("resync without need", "%s: %s", b, b.end)
		case b.end == "unsubscribed "+string(petrel.CodeRoomDeleted) && !room.deleted,
			b.end == "unsubscribed "+string(petrel.CodeRoomNotFound) && !room.left[b.client.user]:
			s.found("ended without need", "%s: %s", b, b.end)
		}
	}
}

// everybodySeesEverybody: who is shown as present, on every node and to every subscriber, is who is subscribed.
func (s *sim) everybodySeesEverybody() {
	there := map[petrel.RoomID]map[petrel.UserID]bool{}
	for _, c := range s.clients {
		for room := range c.subs {
			if there[room] == nil {
				there[room] = map[petrel.UserID]bool{}
			}
			there[room][c.user] = true
		}
	}
	for _, room := range simKeys(there) {
		want := simKeys(there[room])
		for _, n := range s.nodes {
			if got := n.hub.Present(n.ctx, petrel.RoomChannel(simApp, room)); got.Partial || !slices.Equal(got.Users, want) {
				s.found("presence differs", "%s shows %v in %s (partial %v), there are %v", n.id, got.Users, room, got.Partial, want)
			}
		}
		for _, c := range s.clients {
			b := c.subs[room]
			if b == nil {
				continue
			}
			shown := maps.Clone(b.present)
			maps.DeleteFunc(shown, func(_ petrel.UserID, here bool) bool { return !here })
			if !b.listed || !maps.Equal(shown, there[room]) {
				s.found("presence differs", "%s is told of %v, there are %v", b, simKeys(shown), want)
			}
		}
	}
}

func (s *sim) now() time.Duration { return time.Since(s.began) }

func (s *sim) must(err error) {
	if err != nil {
		panic(err) // the simulation itself is broken
	}
}

// found notes what must not be.
func (s *sim) found(name, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foundLocked(name, format, args...)
}

func (s *sim) foundLocked(name, format string, args ...any) {
	text := name + ": " + fmt.Sprintf(format, args...)
	s.findings = append(s.findings, text)
	s.noteLocked("!!! %s", text)
}

// note adds a line to the trace.
func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(format, args...)
}

func (s *sim) noteLocked(format string, args ...any) {
	s.trace = append(s.trace, traceLine{s.now(), fmt.Sprintf(format, args...)})
}
