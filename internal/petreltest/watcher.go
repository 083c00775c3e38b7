package petreltest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Watcher follows rooms from seq 1 on, over one connection after the other, on any site. It writes down what it was
// offered, as it came; what it makes of it, is the checker's business.
type Watcher struct {
	name  string
	sites []Site
	rooms []string
	rng   *rand.Rand
	sse   bool

	mu      sync.Mutex // guards what follows
	at      map[string]uint64
	epoch   string
	lastID  string // of server-sent events
	seen    []Seen
	resumed int
	site    string // where it is connected, "" while it is not
	stay    bool   // it moves no more by itself
	settled bool   // it is connected since it was told to stay
	hangUp  context.CancelFunc
	socket  *Socket                    // while it has one
	present map[string]map[string]bool // who is there, by room, as this connection was told
	typing  map[string]string          // in which room a user was last said to type
}

// Seen is one thing that a watcher was offered.
type Seen struct {
	Site  string
	Room  string
	Event Event  // with Seq 0: not an event, but
	Told  string // why the subscription could not go on
	Head  uint64
}

// deaf is how long a watcher listens to silence before it tries another site.
const deaf = 5 * time.Second

func newWatcher(name string, sites []Site, rooms []string, rng *rand.Rand, sse bool) *Watcher {
	return &Watcher{name: name, sites: sites, rooms: rooms, rng: rng, sse: sse, at: map[string]uint64{}}
}

// Position is the last seq that it was offered of a room.
func (w *Watcher) Position(room string) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at[room]
}

// Where names the site that it listens to.
func (w *Watcher) Where() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.site
}

// Stay tells it to connect once more and then to stay as long as the connection holds: a resume would mend what a node
// failed to deliver.
func (w *Watcher) Stay() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stay = true
	if w.hangUp != nil {
		w.hangUp()
	}
}

// Hop makes it move on.
func (w *Watcher) Hop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hangUp != nil {
		w.hangUp()
	}
}

// Settled says whether it stays, and has a connection.
func (w *Watcher) Settled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.settled && w.site != ""
}

// Seen returns everything so far.
func (w *Watcher) Seen() (seen []Seen, resumed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Seen(nil), w.seen...), w.resumed
}

func (w *Watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		site := w.sites[w.rng.IntN(len(w.sites))]
		if base, c := site.At(); base != "" {
			w.connect(ctx, site.Name, base, c)
		}
		pause(ctx)
	}
}

// connect follows the rooms over one connection to its end.
func (w *Watcher) connect(ctx context.Context, site, base string, c *http.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := &visit{w: w, site: site, base: base, client: c, patience: deaf, hop: 20 + w.rng.IntN(400)}
	w.mu.Lock()
	if w.stay {
		v.patience, v.hop = Patience, 1<<30
	}
	w.hangUp = cancel
	w.mu.Unlock()
	if w.sse {
		_ = v.stream(ctx) // how it ended is of no interest: what was offered until then is
	} else {
		_ = v.socket(ctx)
	}
	w.mu.Lock()
	w.site, w.settled, w.socket, w.present, w.typing = "", false, nil, nil, nil
	w.mu.Unlock()
}

// visit is one connection of a watcher.
type visit struct {
	w          *Watcher
	site, base string
	client     *http.Client
	patience   time.Duration // with silence
	hop        int           // events after which it moves on
}

// begin notes that the connection is there.
func (v *visit) begin() {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	v.w.site, v.w.settled = v.site, v.patience == Patience
}

// errHop ends a connection that is no longer wanted.
var errHop = errors.New("moving on")

// socket follows all rooms over one socket. Its error says why that ended, which is no failure.
func (v *visit) socket(ctx context.Context) error {
	w := v.w
	s, err := within(ctx, deaf, func(ctx context.Context) (*Socket, error) { return DialWith(ctx, v.client, v.base, w.name) })
	if err != nil {
		return err
	}
	defer s.Close()
	w.mu.Lock()
	from, epoch := maps.Clone(w.at), w.epoch
	if epoch != "" {
		w.resumed++
	}
	w.socket, w.present, w.typing = s, map[string]map[string]bool{}, map[string]string{}
	w.mu.Unlock()
	for i, room := range w.rooms {
		frame := map[string]any{"op": "subscribe", "id": i + 1, "room": room, "after": from[room], "presence": true}
		if epoch != "" {
			frame["epoch"] = epoch
		}
		if err := s.Write(ctx, frame); err != nil {
			return err
		}
	}
	v.begin()
	for {
		f, err := within(ctx, v.patience, s.Read)
		if err != nil {
			return err
		}
		switch f.Op {
		case "presence":
			w.list(f)
		case "event":
			if f.Seq == 0 {
				w.hear(f)
				continue
			}
			w.offered(v.site, f.Room, Event{Seq: f.Seq, Type: f.Type, At: f.At, Data: f.Data})
			if v.hop--; v.hop < 0 {
				return errHop
			}
		case "ok":
			w.mu.Lock()
			w.epoch = f.Epoch
			w.mu.Unlock()
		case "resync":
			return v.told(ctx, f.Room, f.Reason, f.Head)
		case "error":
			if mayRetry(f.Code) {
				return errHop
			}
			return v.told(ctx, f.Room, "error "+f.Code, 0)
		case "unsubscribed":
			return v.told(ctx, f.Room, f.Op+" "+f.Code, 0)
		case "reconnect":
			return errHop
		}
	}
}

// stream follows all rooms over server-sent events.
func (v *visit) stream(ctx context.Context) error {
	w := v.w
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	deadline := time.AfterFunc(v.patience, cancel)
	defer deadline.Stop()
	w.mu.Lock()
	last := w.lastID
	w.mu.Unlock()
	if last == "" { // a stream without an id begins now; from the beginning is a position too
		parts := make([]string, len(w.rooms))
		for i, room := range w.rooms {
			parts[i] = room + "~0"
		}
		last = strings.Join(parts, ",")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.base+"/v1/events?rooms="+strings.Join(w.rooms, ",")+"&token="+url.QueryEscape(Token(w.name)), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Last-Event-ID", last)
	resp, err := v.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, err := io.Copy(io.Discard, resp.Body)
		return errors.Join(fmt.Errorf("status %d", resp.StatusCode), err)
	}
	w.mu.Lock()
	w.resumed++
	w.mu.Unlock()
	v.begin()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	var name, id, data string
	for lines.Scan() {
		deadline.Reset(v.patience)
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			name = value
		case "id":
			id = value
		case "data":
			data = value
		case "":
			if data == "" {
				continue
			}
			if err := v.chunk(ctx, name, id, data); err != nil {
				return err
			}
			if v.hop--; v.hop < 0 {
				return errHop
			}
			name, id, data = "", "", ""
		}
	}
	return lines.Err()
}

// chunk takes one server-sent event.
func (v *visit) chunk(ctx context.Context, name, id, data string) error {
	w := v.w
	var f Frame
	if err := json.Unmarshal([]byte(data), &f); err != nil {
		return v.told(ctx, "", fmt.Sprintf("not JSON: %.100q", data), 0)
	}
	switch name {
	case "":
		w.offered(v.site, f.Room, Event{Seq: f.Seq, Type: f.Type, At: f.At, Data: f.Data})
		w.mu.Lock()
		w.lastID = id
		w.mu.Unlock()
	case "resync":
		return v.told(ctx, f.Room, f.Reason, f.Head)
	case "unsubscribed", "close":
		return v.told(ctx, f.Room, name+" "+f.Code, 0)
	case "reconnect":
		return errHop
	}
	return nil
}

// list takes a list of who is in a room.
func (w *Watcher) list(f Frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	users := map[string]bool{}
	for _, u := range f.Users {
		users[u.User] = true
	}
	w.present[f.Room] = users
}

// hear takes an event that is of the moment only.
func (w *Watcher) hear(f Frame) {
	var who struct{ User string }
	if json.Unmarshal(f.Data, &who) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch f.Type {
	case "presence.join":
		if w.present[f.Room] != nil { // before the list comes, it says nothing
			w.present[f.Room][who.User] = true
		}
	case "presence.leave":
		delete(w.present[f.Room], who.User)
	case "typing.start":
		w.typing[who.User] = f.Room
	case "typing.stop":
		delete(w.typing, who.User)
	}
}

// Present is who it was told is in a room, sorted; nil when it is not told such things.
func (w *Watcher) Present(room string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.socket == nil {
		return nil
	}
	return sortedKeys(w.present[room])
}

// Types says whether it was told that a user types in a room.
func (w *Watcher) Types(user, room string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.typing[user] == room
}

// Type says that it types, or no more.
func (w *Watcher) Type(ctx context.Context, room string, active bool) error {
	w.mu.Lock()
	s := w.socket
	w.mu.Unlock()
	if s == nil {
		return errors.New("it has no socket")
	}
	return s.Write(ctx, map[string]any{"op": "typing", "room": room, "active": active})
}

func (w *Watcher) offered(site, room string, ev Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, Seen{Site: site, Room: room, Event: ev})
	w.at[room] = ev.Seq
}

// told records that a subscription was ended by name. A position that a node has not reached yet is kept, to be tried elsewhere; from
// any other the room is read anew, and followed from there.
func (v *visit) told(ctx context.Context, room, why string, head uint64) error {
	w := v.w
	w.mu.Lock()
	w.seen = append(w.seen, Seen{Site: v.site, Room: room, Told: why, Head: head})
	w.mu.Unlock()
	if why == "too_old" || why == "epoch" {
		events, err := within(ctx, deaf, func(ctx context.Context) ([]Event, error) { return History(ctx, v.client, v.base, room) })
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.at[room], w.epoch, w.lastID = uint64(len(events)), "", ""
		w.seen = append(w.seen, Seen{Site: v.site, Room: room, Told: "read anew", Head: uint64(len(events))})
		w.mu.Unlock()
	}
	return errHop
}

// within bounds one wait of a watcher.
func within[T any](ctx context.Context, patience time.Duration, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return fn(ctx)
}
