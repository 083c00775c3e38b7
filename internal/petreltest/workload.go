package petreltest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// WorkloadOptions of StartWorkload.
type WorkloadOptions struct {
	Sites    []Site
	Seed     uint64
	Name     string        // of this run: rooms and ids begin with it
	Clients  int           // default 8
	Watchers int           // default 6; every third follows server-sent events, the others a socket
	Rooms    int           // default 4
	Pause    time.Duration // of a client between two commands, on average; default 20 ms
	Timeout  time.Duration // after which a client gives up waiting for an answer; default 4 s
	// Life of a site's data: changes when its disk was wiped. nil: it never is.
	Life func(site string) string
}

func (o *WorkloadOptions) defaults() {
	num := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	num(&o.Clients, 8)
	num(&o.Watchers, 6)
	num(&o.Rooms, 4)
	if o.Pause <= 0 {
		o.Pause = 20 * time.Millisecond
	}
	if o.Timeout <= 0 {
		o.Timeout = 4 * time.Second
	}
	if o.Life == nil {
		o.Life = func(string) string { return "" }
	}
}

// Workload is clients that talk and watchers that listen, on all sites at once. What they do follows from the seed; how it
// interleaves does not.
type Workload struct {
	opt      WorkloadOptions
	journal  *Journal
	rooms    []string
	watchers []*Watcher

	stopping chan struct{}
	stopOnce sync.Once
	talking  sync.WaitGroup
	watching sync.WaitGroup
	unwatch  context.CancelFunc
	conns    atomic.Int64

	mu      sync.Mutex // guards what follows
	created []string   // rooms that clients tried to make
}

// StartWorkload makes the rooms and lets everybody in.
func StartWorkload(ctx context.Context, o WorkloadOptions) (*Workload, error) {
	o.defaults()
	w := &Workload{opt: o, journal: NewJournal(), stopping: make(chan struct{})}
	first := w.newTalker(-1)
	position := ""
	for r := range o.Rooms {
		room := fmt.Sprintf("%s-%d", o.Name, r)
		w.rooms = append(w.rooms, room)
		if err := first.mustDo(ctx, &Op{Kind: OpCreate, Room: room, ID: room}); err != nil {
			return nil, err
		}
		board := &Op{Kind: OpPost, Room: room, User: "board", ID: w.board(room), Object: w.board(room), Text: "-"}
		if err := first.mustDo(ctx, board); err != nil {
			return nil, err
		}
		position = board.Position
	}
	for _, site := range o.Sites { // nobody shall be told that there is no such room
		if _, err := w.final(ctx, site, w.rooms[0], position, Patience); err != nil {
			return nil, fmt.Errorf("%s does not come to know the rooms: %w", site.Name, err)
		}
	}
	watchCtx, cancel := context.WithCancel(ctx)
	w.unwatch = cancel
	for i := range o.Watchers {
		v := newWatcher(fmt.Sprintf("%s-w%d", o.Name, i), o.Sites, w.rooms, rand.New(rand.NewPCG(o.Seed, uint64(1000+i))), i%3 == 2)
		w.watchers = append(w.watchers, v)
		w.watching.Go(func() { v.run(watchCtx) })
	}
	for i := range o.Clients {
		w.talking.Go(func() { w.newTalker(i).run(ctx) })
	}
	return w, nil
}

// Journal of everything so far.
func (w *Workload) Journal() *Journal { return w.journal }

// Stop lets the clients finish what they are at and waits for them. The watchers go on.
func (w *Workload) Stop() {
	w.stopOnce.Do(func() { close(w.stopping) })
	w.talking.Wait()
}

// Close ends everything at once.
func (w *Workload) Close() {
	w.Stop()
	w.unwatch()
	w.watching.Wait()
}

// allRooms are those of the start and those that clients made.
func (w *Workload) allRooms() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append(slices.Clone(w.rooms), w.created...)
}

// board is the message of a room that everybody edits: a register.
func (w *Workload) board(room string) string { return room + "-board" }

// talker is one client. It is one goroutine.
type talker struct {
	w    *Workload
	n    int
	name string
	rng  *rand.Rand
	site Site
	sent int       // ids it has made
	mine []written // acknowledged messages that it may edit or delete

	sock     *Socket
	sockSite string
	sockConn int64
}

type written struct {
	room, id string
	position string
}

func (w *Workload) newTalker(n int) *talker {
	t := &talker{w: w, n: n, name: fmt.Sprintf("%s-c%d", w.opt.Name, n), rng: rand.New(rand.NewPCG(w.opt.Seed, uint64(n+1)))} //nolint:gosec // n is ≥ -1
	t.site = w.opt.Sites[t.rng.IntN(len(w.opt.Sites))]
	return t
}

func (t *talker) id(kind string) string {
	t.sent++
	return fmt.Sprintf("%s-%s%d", t.name, kind, t.sent)
}

func (t *talker) room() string { return t.w.rooms[t.rng.IntN(len(t.w.rooms))] }

// move chooses where to go next: mostly nowhere.
func (t *talker) move() {
	if t.rng.IntN(4) == 0 {
		t.site = t.w.opt.Sites[t.rng.IntN(len(t.w.opt.Sites))]
	}
}

func (t *talker) run(ctx context.Context) {
	defer t.hangUp()
	for {
		select {
		case <-t.w.stopping:
			return
		case <-ctx.Done():
			return
		default:
		}
		t.move()
		t.step(ctx)
		wait(ctx, t.w.stopping, time.Duration(t.rng.Int64N(int64(2*t.w.opt.Pause))))
	}
}

// step does one thing, by its weight.
func (t *talker) step(ctx context.Context) {
	switch n := t.rng.IntN(100); {
	case n < 25:
		t.post(ctx)
	case n < 40:
		t.burst(ctx)
	case n < 48:
		t.change(ctx)
	case n < 54:
		t.do(ctx, &Op{Kind: OpRename, Room: t.room(), Text: t.id("name")})
	case n < 60:
		room := t.room()
		t.do(ctx, &Op{Kind: OpEdit, Room: room, Object: t.w.board(room), Text: t.id("board")})
	case n < 70:
		t.visit(ctx)
	case n < 82:
		t.readRegister(ctx)
	case n < 90:
		t.readEvents(ctx, "", 0)
	case n < 98:
		t.readOwnWrite(ctx)
	default:
		t.create(ctx)
	}
}

func (t *talker) post(ctx context.Context) {
	id := t.id("m")
	op := t.do(ctx, &Op{Kind: OpPost, User: t.name, Room: t.room(), ID: id, Object: id, Text: "text of " + id})
	if op.Outcome == Done {
		t.mine = append(t.mine, written{room: op.Room, id: id, position: op.Position})
	}
}

// change edits or deletes a message of one's own. What is deleted later is never edited: its content would be gone
// from the history by which edits are recognised.
func (t *talker) change(ctx context.Context) {
	if len(t.mine) == 0 {
		return
	}
	i := t.rng.IntN(len(t.mine))
	m := t.mine[i]
	if t.rng.IntN(3) > 0 {
		id := t.id("e")
		t.do(ctx, &Op{Kind: OpEdit, User: t.name, Room: m.room, Object: m.id, Text: "edit " + id, Sent: m.position})
	} else {
		t.do(ctx, &Op{Kind: OpDelete, User: t.name, Room: m.room, Object: m.id, Sent: m.position})
	}
	t.mine = slices.Delete(t.mine, i, i+1)
}

func (t *talker) create(ctx context.Context) {
	room := t.id("room")
	t.w.mu.Lock()
	t.w.created = append(t.w.created, room)
	t.w.mu.Unlock()
	made := t.do(ctx, &Op{Kind: OpCreate, Room: room, ID: room})
	if made.Outcome != Done {
		return
	}
	for range t.rng.IntN(4) {
		id := t.id("m")
		t.do(ctx, &Op{Kind: OpPost, User: t.name, Room: room, ID: id, Object: id, Text: "text of " + id, Sent: made.Position})
	}
}

// visitors join and leave; nobody posts as one of them, which would join too.
const visitors = 2

func (t *talker) visitor() string { return fmt.Sprintf("%s-v%d", t.w.opt.Name, t.rng.IntN(visitors)) }

// visit lets a visitor join or leave. That may need no entry (who is there cannot join), and then rests on what the node knows
// at that moment; so a post of one's own at the same node goes before it, and the two count as one op.
func (t *talker) visit(ctx context.Context) {
	began := t.w.journal.Now()
	room, who := t.room(), t.visitor()
	op := &Op{Kind: OpJoin, User: who, Room: room, Object: who}
	if t.rng.IntN(2) == 0 {
		op.Kind = OpLeave
	}
	if t.barrier(ctx).Outcome != Done {
		return
	}
	op.Invoke = began
	stay := t.site
	t.attempts(ctx, op, func() Site { return stay })
}

// barrier posts a message whose position no later read may be behind.
func (t *talker) barrier(ctx context.Context) *Op {
	id := t.id("b")
	return t.do(ctx, &Op{Kind: OpPost, User: t.name, Room: t.room(), ID: id, Object: id, Text: "text of " + id})
}

// readRegister reads a name, a membership or the board with the position of a write just made: such a read and its write
// together are linearizable.
func (t *talker) readRegister(ctx context.Context) {
	began := t.w.journal.Now()
	b := t.barrier(ctx)
	if b.Outcome != Done || b.Position == "" {
		return
	}
	t.move()
	room := t.room()
	op := &Op{Invoke: began, Room: room, Sent: b.Position}
	switch t.rng.IntN(3) {
	case 0:
		op.Kind = OpReadName
	case 1:
		op.Kind, op.Object = OpReadMember, t.visitor()
	default:
		op.Kind, op.Object = OpReadMessage, t.w.board(room)
	}
	t.read(ctx, op)
}

// readOwnWrite posts and then reads the room's events, somewhere.
func (t *talker) readOwnWrite(ctx context.Context) {
	b := t.barrier(ctx)
	if b.Outcome != Done || b.Position == "" {
		return
	}
	t.move()
	t.readEvents(ctx, b.Position, b.Seq, b.Room)
}

func (t *talker) readEvents(ctx context.Context, position string, atLeast uint64, room ...string) {
	op := &Op{Kind: OpReadEvents, Room: t.room(), Sent: position, AtLeast: atLeast}
	if len(room) > 0 {
		op.Room = room[0]
	}
	if back := uint64(t.rng.IntN(40)); atLeast > back {
		op.After = atLeast - back
	} else if t.rng.IntN(2) == 0 {
		op.After = uint64(t.rng.IntN(100))
	}
	t.read(ctx, op)
}

// do carries a command out: it is sent until its outcome is certain, or, now and then, given up while that is unknown.
// Each attempt is recorded; what it returns is the last one.
func (t *talker) do(ctx context.Context, op *Op) *Op {
	return t.attempts(ctx, op, func() Site { return t.w.opt.Sites[t.rng.IntN(len(t.w.opt.Sites))] })
}

// attempts is do with a rule where to try again.
func (t *talker) attempts(ctx context.Context, op *Op, next func() Site) *Op {
	if op.ID == "" {
		op.ID = t.id(string(op.Kind))
	}
	op.Client = t.name
	began := op.Invoke
	patience := 1 + t.rng.IntN(12)
	for try := 0; ; try++ {
		one := *op
		one.Invoke = t.w.journal.Now()
		if try == 0 && began > 0 {
			one.Invoke = began
		}
		t.attempt(ctx, &one)
		t.w.journal.Add(&one)
		stopped := false
		select {
		case <-t.w.stopping:
			stopped = true
		case <-ctx.Done():
			return &one
		default:
		}
		again := one.Outcome == Unknown || (one.Outcome == Refused && mayRetry(one.Why))
		if !again || try >= patience || (stopped && try > 2) {
			return &one
		}
		t.site = next()
		wait(ctx, nil, time.Duration(20+t.rng.IntN(80))*time.Millisecond)
	}
}

// mustDo is do until it is done.
func (t *talker) mustDo(ctx context.Context, op *Op) error {
	for {
		one := *op
		done := t.do(ctx, &one)
		switch {
		case done.Outcome == Done:
			*op = *done
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s in %s: %s: %w", op.Kind, op.Room, done.Why, ctx.Err())
		case done.Outcome == Refused && !mayRetry(done.Why):
			return fmt.Errorf("%s in %s was refused: %s", op.Kind, op.Room, done.Why)
		}
	}
}

// attempt sends a command once and fills in what came of it.
func (t *talker) attempt(ctx context.Context, op *Op) {
	op.Site = t.site.Name
	base, c := t.site.At()
	if base == "" {
		op.Return, op.Outcome, op.Why = t.w.journal.Now(), Refused, "down" // nobody was asked
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.w.opt.Timeout)
	defer cancel()
	ask := Ask{User: op.User, Path: "/v1/rooms/" + url.PathEscape(op.Room), Key: op.ID, Position: op.Sent}
	var message struct{ Message Message }
	switch op.Kind {
	case OpCreate:
		ask.Method, ask.Path, ask.In = http.MethodPost, "/v1/rooms", map[string]any{"id": op.Room, "kind": "open"}
	case OpPost:
		ask.Method, ask.Path, ask.Key = http.MethodPost, ask.Path+"/messages", ""
		ask.In, ask.Out = map[string]any{"id": op.ID, "text": op.Text}, &message
	case OpEdit:
		ask.Method, ask.Path = http.MethodPatch, ask.Path+"/messages/"+op.Object
		ask.In, ask.Out = map[string]any{"text": op.Text}, &message
	case OpDelete:
		ask.Method, ask.Path = http.MethodDelete, ask.Path+"/messages/"+op.Object
	case OpRename:
		ask.Method, ask.In = http.MethodPatch, map[string]any{"name": op.Text}
	case OpJoin:
		ask.Method, ask.Path = http.MethodPut, ask.Path+"/members/"+op.Object
	case OpLeave:
		ask.Method, ask.Path = http.MethodDelete, ask.Path+"/members/"+op.Object
	}
	// A transport sends an idempotent request again by itself when a connection breaks: refused is then only the last try.
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	_, position, err := ask.Do(ctx, c, base)
	op.Return = t.w.journal.Now()
	op.settle(position, err)
	if !sent.Load() && errors.Is(err, syscall.ECONNREFUSED) {
		op.Outcome, op.Why = Refused, "down" // nobody was asked
	}
	if op.Outcome == Done && op.Kind == OpPost {
		op.Seq = message.Message.Seq
		if m := message.Message; m.ID != op.ID || m.User != op.User || m.Text != op.Text || m.Room != op.Room {
			op.Why = fmt.Sprintf("the answer is %+v", m)
		}
	}
}

// settle says what an error leaves open.
func (op *Op) settle(position string, err error) {
	var p *Problem
	switch {
	case err == nil:
		op.Outcome, op.Position = Done, position
	case errors.As(err, &p) && p.Code != "unknown_outcome" && p.Code != "internal":
		op.Outcome, op.Why = Refused, p.Code
	case errors.As(err, &p):
		op.Outcome, op.Why = Unknown, p.Code
	default:
		op.Outcome, op.Why = Unknown, err.Error()
	}
}

// read asks once; a read that is not answered says nothing and is not recorded.
func (t *talker) read(ctx context.Context, op *Op) {
	op.Client, op.Site = t.name, t.site.Name
	base, c := t.site.At()
	if base == "" {
		return
	}
	if op.Invoke == 0 {
		op.Invoke = t.w.journal.Now()
	}
	op.Life = t.w.opt.Life(op.Site)
	ctx, cancel := context.WithTimeout(ctx, t.w.opt.Timeout)
	defer cancel()
	ask := Ask{Method: http.MethodGet, Path: "/v1/rooms/" + url.PathEscape(op.Room), Position: op.Sent}
	var room struct{ Room struct{ Name string } }
	var message struct{ Message Message }
	var page struct {
		Events []Event
		Head   uint64
	}
	switch op.Kind {
	case OpReadName:
		ask.Out = &room
	case OpReadMember:
		ask.Path += "/members/" + op.Object
	case OpReadMessage:
		ask.Path, ask.Out = ask.Path+"/messages/"+op.Object, &message
	case OpReadEvents:
		ask.Path, ask.Out = fmt.Sprintf("%s/events?after=%d&limit=50", ask.Path, op.After), &page
	}
	_, position, err := ask.Do(ctx, c, base)
	op.Return = t.w.journal.Now()
	op.settle(position, err)
	absent := op.Kind == OpReadMember && op.Outcome == Refused && op.Why == "member_not_found"
	if op.Outcome != Done && !absent {
		if op.Sent != "" && op.Outcome == Refused && !mayRetry(op.Why) {
			t.w.journal.Add(op) // it may not be refused like that: the checker says so
		}
		return
	}
	op.Outcome = Done
	switch op.Kind {
	case OpReadName:
		op.Text = room.Room.Name
	case OpReadMember:
		op.Text = fmt.Sprint(!absent)
	case OpReadMessage:
		op.Text = message.Message.Text
	case OpReadEvents:
		op.Events, op.Head = page.Events, page.Head
	}
	if op.Life == t.w.opt.Life(op.Site) {
		t.w.journal.Add(op)
	}
}

// wait waits for d, or less when something ends.
func wait(ctx context.Context, stop <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-stop:
	case <-timer.C:
	}
}
