package petreltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == diskScript {
		if err := playDiskScript(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	RemoveBinary()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const (
	crashClients = 64
	crashRooms   = 4
)

// TestCrash is promise 1, 3 and 4 of the design: 64 clients post over HTTP and the socket while nodes are killed and started
// again: a single process 20 times by SIGKILL, and the nodes of a cell in turn. Every acknowledged message is there once on every
// node, seq is dense, and a subscriber that resumed through all of it, wherever, saw every event once and in order.
func TestCrash(t *testing.T) {
	t.Parallel()
	kills := 20
	if testing.Short() {
		kills = 3
	}
	t.Run("nodes=1", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		place := &Place{}
		server := Start(t, Options{Dir: dir})
		place.Set(server)
		crash(t, kills, place.URL, func() []string { return []string{server.URL} }, func(int) {
			place.Set(nil)
			server.Kill()
			server = Start(t, Options{Dir: dir})
			place.Set(server)
		})
		server.Terminate(t)
	})
	t.Run("nodes=3", func(t *testing.T) {
		t.Parallel()
		if testing.Short() {
			t.Skip("TestDelivery restarts the nodes of a cell too")
		}
		c := StartCell(t, CellOptions{})
		all := func() (urls []string) {
			for i := range c.Size() {
				urls = append(urls, c.URL(i))
			}
			return urls
		}
		crash(t, min(kills, 6), func() string { return c.URL(rand.IntN(c.Size())) }, all, func(k int) {
			c.Kill(k % c.Size())
			if err := c.Start(t.Context(), k%c.Size()); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitHealthy(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// crash runs clients through kills. somewhere is where a client goes next, "" while there is nobody; kill brings a node down and up.
func crash(t *testing.T, kills int, somewhere func() string, nodes func() []string, kill func(k int)) {
	for r := range crashRooms {
		createRoom(t, somewhere(), crashRoom(r))
		for _, base := range nodes() {
			Until(t, base+" knows the room", func() bool {
				_, err := History(t.Context(), http.DefaultClient, base, crashRoom(r))
				return err == nil
			})
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	crew := newCrew(somewhere)
	var posters, watchers sync.WaitGroup
	stopPosting := make(chan struct{})
	posters.Go(func() { crew.run(ctx, crashClients, stopPosting) })
	watch := make([]*watcher, crashRooms)
	for r := range watch {
		watch[r] = &watcher{room: crashRoom(r), user: fmt.Sprintf("watcher-%d", r), somewhere: somewhere}
		watchers.Go(func() { watch[r].run(ctx) })
	}

	for k := range kills {
		seen := crew.acked.Load()
		goal := seen + 50 + rand.Int64N(400) // kill at different depths of a run, not by the clock
		Until(t, fmt.Sprintf("%d more messages were acknowledged before kill %d", goal-seen, k+1), func() bool {
			return crew.acked.Load() >= goal || crew.failed() != nil
		})
		if err := crew.failed(); err != nil {
			t.Fatal(err)
		}
		kill(k)
	}
	close(stopPosting)
	posters.Wait()
	if err := crew.failed(); err != nil {
		t.Fatal(err)
	}

	acks := crew.acks()
	t.Logf("%d messages acknowledged through %d kills, %d of them only on a retry", len(acks), kills, crew.retried.Load())
	for r, w := range watch {
		var events []Event
		for _, base := range nodes() {
			Until(t, base+" has what was acknowledged", func() bool {
				events, err := History(t.Context(), http.DefaultClient, base, w.room)
				return err == nil && uint64(len(events)) >= lastOf(acks, w.room)
			})
			events = checkRoom(t, base, crashRoom(r), acks)
		}
		Until(t, fmt.Sprintf("the subscriber of %s saw seq %d (it is at %d)", w.room, len(events), w.position()), func() bool {
			return w.position() == uint64(len(events)) || w.failure() != nil
		})
	}
	cancel()
	watchers.Wait()
	for r, w := range watch {
		if err := w.failure(); err != nil {
			t.Errorf("subscriber of %s: %v", w.room, err)
			continue
		}
		for _, base := range nodes() {
			events, err := History(t.Context(), http.DefaultClient, base, crashRoom(r))
			if err != nil {
				t.Fatal(err)
			}
			compareEvents(t, w.room, events, w.events)
		}
		t.Logf("subscriber of %s: %d events, %d times resumed", w.room, len(w.events), w.resumed)
	}
}

// lastOf is the highest seq that was acknowledged in a room.
func lastOf(acks []ack, room string) (seq uint64) {
	for _, a := range acks {
		if a.room == room {
			seq = max(seq, a.seq)
		}
	}
	return seq
}

func crashRoom(n int) string { return fmt.Sprintf("crash-%d", n) }

func createRoom(tb testing.TB, base, room string) {
	tb.Helper()
	_, err := Call(tb.Context(), http.DefaultClient, base, "", http.MethodPost, "/v1/rooms", map[string]any{"id": room, "kind": "open"}, nil)
	if err != nil {
		tb.Fatalf("create room %s: %v", room, err)
	}
}

// ack is what a client knows: this message was accepted, as this seq, before this time.
type ack struct {
	user, room, id, text string
	seq                  uint64
	at                   time.Time
}

// crew is the posting clients. A client goes on to its next message only when the last is acknowledged,
// and repeats what failed with the same id, over and over.
type crew struct {
	somewhere func() string // URL of a node, "" while there is none
	acked     atomic.Int64
	retried   atomic.Int64

	mu   sync.Mutex // guards what follows
	done []ack
	err  error
}

func newCrew(somewhere func() string) *crew { return &crew{somewhere: somewhere} }

func (c *crew) acks() []ack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]ack(nil), c.done...)
}

func (c *crew) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *crew) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// run keeps n clients posting until stop is closed.
func (c *crew) run(ctx context.Context, n int, stop <-chan struct{}) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { c.post(ctx, i, stop) })
	}
	wg.Wait()
}

// post runs client n: even ones speak HTTP, odd ones the socket.
func (c *crew) post(ctx context.Context, n int, stop <-chan struct{}) {
	user := fmt.Sprintf("poster-%d", n)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var socket *Socket
	defer func() {
		if socket != nil {
			socket.Close()
		}
	}()
	for i := 0; ; i++ {
		room, id := crashRoom((n+i)%crashRooms), fmt.Sprintf("m-%d-%d", n, i)
		text := fmt.Sprintf("message %d of %s", i, user)
		for try := 0; ; try++ {
			select {
			case <-ctx.Done():
				return
			case <-stop:
				if try == 0 {
					return // a message once begun is brought to its end
				}
			default:
			}
			base := c.somewhere()
			if base == "" {
				pause(ctx)
				continue
			}
			call, cancel := context.WithTimeout(ctx, 30*time.Second)
			var m Message
			var err error
			if n%2 == 0 {
				m, _, err = Post(call, client, base, user, room, id, text)
			} else {
				m, err = c.send(call, &socket, base, user, room, id, text)
			}
			cancel()
			if err == nil {
				c.record(ack{user: user, room: room, id: id, text: text, seq: m.Seq, at: time.Now()}, m, try > 0)
				break
			}
			if p := (*Problem)(nil); errors.As(err, &p) && !mayRetry(p.Code) {
				c.fail(fmt.Errorf("%s posting %s to %s: %w", user, id, room, err))
				return
			}
			pause(ctx)
		}
	}
}

func (c *crew) send(ctx context.Context, socket **Socket, base, user, room, id, text string) (m Message, err error) {
	if *socket == nil {
		if *socket, err = Dial(ctx, base, user); err != nil {
			return m, err
		}
	}
	m, _, err = (*socket).Send(ctx, room, id, text)
	if p := (*Problem)(nil); err != nil && !errors.As(err, &p) {
		(*socket).Close()
		*socket = nil
	}
	return m, err
}

func (c *crew) record(a ack, m Message, retried bool) {
	if m.ID != a.id || m.Room != a.room || m.User != a.user || m.Text != a.text || m.Seq == 0 {
		c.fail(fmt.Errorf("%s in %s was acknowledged as %+v", a.id, a.room, m))
		return
	}
	c.mu.Lock()
	c.done = append(c.done, a)
	c.mu.Unlock()
	c.acked.Add(1)
	if retried {
		c.retried.Add(1)
	}
}

// checkRoom reads a room and compares it with what was acknowledged before its clients' time.
func checkRoom(tb testing.TB, base, room string, acks []ack) []Event {
	tb.Helper()
	events, err := History(tb.Context(), http.DefaultClient, base, room)
	if err != nil {
		tb.Fatal(err)
	}
	byID := map[string]Message{}
	for _, ev := range events {
		if ev.Type != "message.new" {
			continue
		}
		var m Message
		if err := json.Unmarshal(ev.Data, &m); err != nil {
			tb.Fatal(err)
		}
		if m.Seq != ev.Seq || m.Room != room {
			tb.Errorf("room %s: event %d holds message %+v", room, ev.Seq, m)
		}
		if first, dup := byID[m.ID]; dup {
			tb.Errorf("room %s: message %s is there twice, as seq %d and %d", room, m.ID, first.Seq, m.Seq)
		}
		byID[m.ID] = m
	}
	lost := 0
	for _, a := range acks {
		if a.room != room {
			continue
		}
		m, ok := byID[a.id]
		switch {
		case !ok:
			if lost++; lost <= 5 {
				tb.Errorf("room %s: message %s was acknowledged as seq %d and is gone", room, a.id, a.seq)
			}
		case m.Seq != a.seq || m.Text != a.text || m.User != a.user:
			tb.Errorf("room %s: message %s was acknowledged as %+v and is %+v", room, a.id, a, m)
		}
	}
	if lost > 5 {
		tb.Errorf("room %s: %d acknowledged messages are gone in all", room, lost)
	}
	return events
}

func compareEvents(tb testing.TB, room string, want, got []Event) {
	tb.Helper()
	if len(want) != len(got) {
		tb.Errorf("room %s: the subscriber saw %d events, the history has %d", room, len(got), len(want))
	}
	for i := range min(len(want), len(got)) {
		if want[i].Seq != got[i].Seq || want[i].Type != got[i].Type || string(want[i].Data) != string(got[i].Data) {
			tb.Errorf("room %s: seq %d was delivered as %s %s, the history has %s %s",
				room, want[i].Seq, got[i].Type, got[i].Data, want[i].Type, want[i].Data)
			return
		}
	}
}

// watcher subscribes from its exact position again and again; anything but the next seq is a failure.
type watcher struct {
	room, user string
	somewhere  func() string
	resumed    int
	events     []Event // owned by run until it returns

	mu  sync.Mutex // guards what follows
	at  uint64
	err error
}

func (w *watcher) position() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

func (w *watcher) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *watcher) run(ctx context.Context) {
	epoch := ""
	for ctx.Err() == nil {
		base := w.somewhere()
		if base == "" {
			pause(ctx)
			continue
		}
		if err := w.once(ctx, base, &epoch); err != nil {
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
			return
		}
		pause(ctx)
	}
}

// once follows the room over one connection; it returns an error only for what must never happen.
func (w *watcher) once(ctx context.Context, base string, epoch *string) error {
	s, err := Dial(ctx, base, w.user)
	if err != nil {
		return nil //nolint:nilerr // the server is being killed: try again
	}
	defer s.Close()
	_, now, err := s.Subscribe(ctx, w.room, w.at, *epoch)
	if err != nil {
		return nil //nolint:nilerr // as above; a refusal shows as a watcher that never arrives
	}
	if *epoch != "" && now != *epoch {
		return fmt.Errorf("the epoch changed from %s to %s", *epoch, now)
	}
	if *epoch != "" {
		w.resumed++
	}
	*epoch = now
	for {
		f, err := s.Read(ctx)
		if err != nil {
			return nil //nolint:nilerr // the connection broke: resume
		}
		switch f.Op {
		case "event":
			if f.Room != w.room || f.Seq != w.at+1 {
				return fmt.Errorf("seq %d of %s follows %d", f.Seq, f.Room, w.at)
			}
			w.events = append(w.events, Event{Seq: f.Seq, Type: f.Type, Data: f.Data})
			w.mu.Lock()
			w.at = f.Seq
			w.mu.Unlock()
		case "reconnect":
			return nil
		case "stale": // its node is out of touch with the leader, for a while
		default:
			return fmt.Errorf("unexpected frame %s", f.Raw)
		}
	}
}
