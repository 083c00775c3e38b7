package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// maxStreamRooms bounds the rooms of one stream, because every id of its events names them all.
const maxStreamRooms = 50

// stream is a stream of server-sent events of some rooms.
type stream struct {
	hub.Unconcerned // with what has no frame here
	s               *server
	place           *gateway.Place
	cred            gateway.Credential
	conn            *conn.Conn
	begin           []start
	epoch           petrel.Epoch // of the log whose seqs the ids are

	presence bool // who is there is wanted, and who is typing

	mu   sync.Mutex // guards the fields below, and that an event goes out with the id that it has. Lock order: the hub's before this, this before the connection's
	seqs []uint64   // last seq offered, by index of begin
	subs []*hub.Subscription

	greeted bool // hello was sent, and the end has not come
	stale   staleMark
}

// start is where one room of a stream begins.
type start struct {
	room   petrel.RoomID
	after  uint64
	head   uint64
	resync string // why it cannot
}

// events is GET /v1/events.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	st := &stream{s: s, cred: gateway.CredentialOf(r.Context())}
	err := st.prepare(r)
	if err == nil {
		err = s.opt.Gateway.OpenEvents(w, r, func(p *gateway.Place) (conn.Config, conn.Handler) {
			st.place = p
			return conn.Config{Heartbeat: s.opt.Heartbeat}, st
		})
	}
	if err != nil {
		s.opt.Gateway.Refuse(w, r, err)
	}
}

// prepare reads what is asked for and checks the rights, while it can still be refused.
func (st *stream) prepare(r *http.Request) error {
	q := r.URL.Query()
	for name, values := range q {
		if !slices.Contains([]string{"rooms", "token", "last_event_id", "position", "presence"}, name) {
			return petrel.Errorf(petrel.CodeInvalidField, "The query parameter %.60q is not known here.", name)
		}
		if values[0] == "" {
			return petrel.Errorf(petrel.CodeInvalidField, "The query parameter %.40q is empty.", name)
		}
	}
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		last = q.Get("last_event_id")
	}
	seen, epoch, err := parseEventID(last)
	if err != nil {
		return err
	}
	position := r.Header.Get("Petrel-Position")
	if position == "" {
		position = q.Get("position")
	}
	switch q.Get("presence") {
	case "1":
		st.presence = true
	case "", "0":
	default:
		return petrel.Errorf(petrel.CodeInvalidField, "The query parameter \"presence\" must be 1 or 0.")
	}
	ctx, cancel := context.WithTimeout(r.Context(), st.s.opt.CommandTimeout)
	defer cancel()
	rooms := strings.Split(q.Get("rooms"), ",")
	if q.Get("rooms") == "" || len(rooms) > maxStreamRooms {
		return petrel.Errorf(petrel.CodeInvalidField, "The query parameter \"rooms\" must name 1 to %d rooms, divided by commas.", maxStreamRooms)
	}
	once := map[petrel.RoomID]bool{}
	for _, text := range rooms {
		room, err := petrel.ParseRoomID(text)
		if err != nil {
			return err
		}
		if once[room] {
			return petrel.Errorf(petrel.CodeInvalidField, "The query parameter \"rooms\" names one room twice.")
		}
		once[room] = true
		from := begin{epoch: epoch, position: position}
		if after, ok := seen[room]; ok {
			from.after = &after
		}
		head, at, resync, err := st.s.reach(ctx, st.cred.Actor, room, from)
		if err != nil {
			return err
		}
		st.epoch = at.Epoch // a process sees one life of the log
		b := start{room: room, after: head, head: head, resync: resync}
		if from.after != nil {
			b.after = *from.after
		}
		st.begin = append(st.begin, b)
		st.seqs = append(st.seqs, b.after)
	}
	return nil
}

// parseEventID reads epoch/room~seq,room~seq. Without an epoch the seqs are taken for those of this life of the log.
func parseEventID(text string) (seen map[petrel.RoomID]uint64, epoch petrel.Epoch, err error) {
	out := map[petrel.RoomID]uint64{}
	if text == "" {
		return out, "", nil
	}
	if life, rest, ok := strings.Cut(text, "/"); ok {
		text, epoch = rest, petrel.Epoch(life)
	}
	for part := range strings.SplitSeq(text, ",") {
		name, seq, _ := strings.Cut(part, "~")
		room, err := petrel.ParseRoomID(name)
		n, nerr := strconv.ParseUint(seq, 10, 64)
		if err != nil || nerr != nil {
			return nil, "", petrel.Errorf(petrel.CodeInvalidField, "The header Last-Event-ID (or the query parameter \"last_event_id\") must be as it was given: epoch/room~seq,room~seq.")
		}
		out[room] = n
	}
	return out, epoch, nil
}

// appendEventID writes what parseEventID reads; mu is held.
func (st *stream) appendEventID(b []byte) []byte {
	b = append(b, "id: "...)
	b = append(append(b, st.epoch...), '/')
	for i := range st.begin {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, st.begin[i].room...)
		b = append(b, '~')
		b = strconv.AppendUint(b, st.seqs[i], 10)
	}
	return append(b, '\n')
}

var (
	_ conn.Handler = (*stream)(nil)
	_ conn.Drainer = (*stream)(nil)
	_ hub.Owner    = (*stream)(nil)
)

// OnOpen implements conn.Handler.
func (st *stream) OnOpen(c *conn.Conn) {
	st.conn = c
	c.CloseAt(st.cred.Expires, conn.CloseTokenExpired, "The token has expired. Come back with a new one.")
	closeUnlessStill(c, st.cred)
	h := st.s.opt.Heartbeat
	st.mu.Lock()
	stale := st.s.stale()
	st.tell("hello", map[string]any{
		"stale_ms": stale.Milliseconds(), "conn": c.ID(), "user": st.cred.Actor.User, "node": st.s.opt.Node, "epoch": st.s.opt.Projection.Applied().Epoch,
		"heartbeat": map[string]any{"interval_ms": h.Interval.Milliseconds(), "grace_ms": h.Grace.Milliseconds(), "epoch": h.Epoch},
	})
	st.greeted = true
	st.stale.turn(st.s, stale)
	st.mu.Unlock()
	for i, b := range st.begin {
		if b.resync != "" {
			st.resync(b.room, b.resync, b.head)
			continue
		}
		sub, err := st.s.opt.Hub.Subscribe(hub.Request{
			Channel: petrel.RoomChannel(st.cred.Actor.App, b.room), Subscriber: &track{st, i}, Owner: st, Actor: st.cred.Actor, Member: memberOf(st.cred.Actor), Wire: wireEvents, After: b.after, Durable: !st.presence, Presence: st.presence,
		})
		if err != nil {
			c.Close(conn.CloseOverloaded, gateway.NewProblem(err).Detail)
			return
		}
		st.mu.Lock()
		st.subs = append(st.subs, sub)
		st.mu.Unlock()
	}
}

// Resync implements hub.Owner.
func (st *stream) Resync(s *hub.Subscription, reason string, head uint64) {
	st.resync(petrel.RoomID(s.Channel().Name), reason, head)
}

// Ended implements hub.Owner.
func (st *stream) Ended(s *hub.Subscription, err error) {
	p := gateway.NewProblem(err)
	st.tell("unsubscribed", map[string]any{"room": s.Channel().Name, "code": p.Code, "detail": p.Detail})
}

// OnMessage implements conn.Handler; a stream is never heard from.
func (st *stream) OnMessage(*conn.Conn, []byte) {}

// OnDrain implements conn.Drainer.
func (st *stream) OnDrain(*conn.Conn) {
	order := map[string]any{"after_ms": 0, "reason": "drain"}
	if to := st.s.opt.Successors(); len(to) > 0 {
		order["to"] = to
	}
	st.tell("reconnect", order)
}

// OnClose implements conn.Handler.
func (st *stream) OnClose(*conn.Conn, conn.CloseCode) {
	st.mu.Lock()
	st.greeted = false
	st.stale.turn(st.s, 0)
	subs := st.subs
	st.subs = nil
	st.mu.Unlock()
	for _, s := range subs {
		s.Close()
	}
	st.place.Release()
}

// credential implements whose.
func (st *stream) credential() gateway.Credential { return st.cred }

func (st *stream) tell(event string, v any) {
	_ = st.conn.Send(conn.SSEChunk("", event, toJSON(v))) // closing, or slow and thereby closed
}

func (st *stream) resync(room petrel.RoomID, reason string, head uint64) {
	st.s.metrics.resyncs.WithLabelValues(reason).Inc()
	st.tell("resync", map[string]any{"room": room, "reason": reason, "head": head})
}

// track is one room of a stream as the hub sees it. Events come dense, so counting them is knowing their seq.
type track struct {
	*stream
	i int
}

// Send implements hub.Subscriber.
func (t *track) Send(f []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seqs[t.i]++
	return t.conn.Send(append(t.appendEventID(nil), f...))
}

// TrySend implements hub.Subscriber.
func (t *track) TrySend(f []byte) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seqs[t.i]++
	ok, err := t.conn.TrySend(append(t.appendEventID(nil), f...))
	if !ok {
		t.seqs[t.i]--
	}
	return ok, err
}

// SendSampled implements hub.Sampled.
func (t *track) SendSampled(f []byte, since time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seqs[t.i]++
	return t.conn.SendSampled(append(t.appendEventID(nil), f...), since)
}

// TrySendApart implements hub.Apart: what has no seq has no id either, so that a client that comes back names the last one that had.
func (t *track) TrySendApart(f []byte) (bool, error) { return t.conn.TrySend(f) }

// NotifyRoom implements hub.Subscriber.
func (t *track) NotifyRoom(fn func()) { t.conn.NotifyRoom(fn) }
