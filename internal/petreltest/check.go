package petreltest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Finding is one promise that a run did not see kept.
type Finding struct {
	Check  string // its name, one of the constants
	Room   string
	Detail string
}

func (f Finding) String() string { return fmt.Sprintf("%s: room %s: %s", f.Check, f.Room, f.Detail) }

// The checks.
const (
	CheckLost        = "lost"             // an acknowledged command is in no history
	CheckTwice       = "twice"            // a command is in a history more than once
	CheckGhost       = "ghost"            // a command that was certainly refused is in a history
	CheckAnswer      = "wrong answer"     // an answer names another seq or content than the history
	CheckOrder       = "order"            // a command that began after another's answer came before it
	CheckPipeline    = "pipeline"         // messages of one connection to one room changed places in quiet times
	CheckHole        = "hole"             // a history is not dense from 1, or makes no sense
	CheckDiverged    = "diverged"         // two nodes have different histories
	CheckGap         = "gap"              // a subscription was offered an event whose predecessor it was not
	CheckRepeat      = "repeat"           // a subscription was offered an event again
	CheckUndelivered = "undelivered"      // a subscription was not offered what its node has
	CheckAltered     = "altered"          // an event was delivered or read as something else than it is
	CheckPhantom     = "phantom"          // an event was delivered or read that no history has
	CheckStale       = "stale"            // a read did not show the write whose position it was sent
	CheckBackwards   = "backwards"        // a node showed less than it had shown before
	CheckLinear      = "not linearizable" // no order of the commands explains what barrier reads saw
	CheckResync      = "resync"           // a subscription was ended without need
	CheckAhead       = "ahead"            // a subscription was ended because its node had not come as far yet
	CheckBlind       = "blind"            // a command was refused for want of what the position that came with it shows
	CheckRefusal     = "refusal"          // a request was refused that may not be
	CheckPresence    = "presence"         // nodes or subscribers do not come to agree on who is in a room
	CheckTyping      = "typing"           // a subscriber does not hear who begins or ends to type
	CheckFence       = "fence"            // a replica was fenced that nobody damaged, or was not that somebody did
	CheckStuck       = "stuck"            // the cell did not come back in time
)

// Evidence is all that a run leaves behind to be judged.
type Evidence struct {
	Journal *Journal
	Sites   []string
	Rooms   []string                      // of the start: the watchers followed them from seq 1
	Final   map[string]map[string][]Event // by site and room, everything in it
	Seen    map[string][]Seen             // by watcher
}

// Check judges it. It is pure: the same evidence gives the same findings.
func (e *Evidence) Check() []Finding {
	c := &checker{e: e, truth: map[string][]Event{}, index: map[string]*roomIndex{}}
	c.compareSites()
	c.readHistories()
	c.collect()
	c.commands()
	c.realTimeOrder()
	c.pipelines()
	c.reads()
	c.monotone()
	for _, name := range sortedKeys(e.Seen) {
		c.subscription(name, e.Seen[name])
	}
	c.registers()
	return c.findings
}

// checker is one run of Check.
type checker struct {
	e        *Evidence
	truth    map[string][]Event // by room: what the first site has
	index    map[string]*roomIndex
	deeds    []*deed
	findings []Finding
	counts   map[string]int
}

// most findings of one kind are one cause: a few are enough to read.
const most = 5

func (c *checker) find(check, room, format string, args ...any) {
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	if c.counts[check]++; c.counts[check] <= most {
		c.findings = append(c.findings, Finding{check, room, fmt.Sprintf(format, args...)})
	}
}

// compareSites holds all nodes' histories against the first one's, and takes the longest for the truth.
func (c *checker) compareSites() {
	for _, site := range c.e.Sites {
		for _, room := range sortedKeys(c.e.Final[site]) {
			events := c.e.Final[site][room]
			if first, there := c.truth[room]; !there {
				c.truth[room] = events
			} else if n := firstDifference(first, events); n >= 0 {
				c.find(CheckDiverged, room, "%s and %s differ from seq %d on: %s and %s", c.e.Sites[0], site, n+1, at(first, n), at(events, n))
				if len(events) > len(first) {
					c.truth[room] = events
				}
			}
		}
	}
}

// firstDifference is the place of the first event that differs, -1 for none.
func firstDifference(a, b []Event) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i].Seq != b[i].Seq || a[i].Type != b[i].Type || !a[i].At.Equal(b[i].At) || !bytes.Equal(a[i].Data, b[i].Data) {
			return i
		}
	}
	return -1
}

func at(events []Event, n int) string {
	if n >= len(events) {
		return "nothing"
	}
	return events[n].String()
}

func (e Event) String() string {
	return fmt.Sprintf("%d %s %s %s", e.Seq, e.Type, e.At.Format(time.RFC3339Nano), e.Data)
}

// roomIndex finds the events of a room by what made them.
type roomIndex struct {
	made map[mark][]uint64 // seqs
	data []eventData       // by seq-1
}

// mark is what a command leaves in a history.
type mark struct {
	kind Kind
	what string
}

// eventData is the part of an event's data that the checker reads.
type eventData struct {
	ID      string  `json:"id"`
	User    string  `json:"user"`
	Text    string  `json:"text"`
	Name    string  `json:"name"`
	Seq     uint64  `json:"seq"`
	Deleted *string `json:"deleted_at"`
}

// readHistories reads every room of the truth and checks that it makes sense by itself.
func (c *checker) readHistories() {
	for _, room := range sortedKeys(c.truth) {
		ix := &roomIndex{made: map[mark][]uint64{}}
		c.index[room] = ix
		members := map[string]bool{}
		for i, ev := range c.truth[room] {
			var d eventData
			if err := json.Unmarshal(ev.Data, &d); err != nil {
				c.find(CheckHole, room, "the data of %s is not JSON: %v", ev, err)
			}
			ix.data = append(ix.data, d)
			if ev.Seq != uint64(i)+1 {
				c.find(CheckHole, room, "seq %d stands in place %d", ev.Seq, i+1)
			}
			add := func(kind Kind, what string) { ix.made[mark{kind, what}] = append(ix.made[mark{kind, what}], ev.Seq) }
			switch ev.Type {
			case "room.created":
				add(OpCreate, room)
			case "room.updated":
				add(OpRename, d.Name)
			case "message.new":
				add(OpPost, d.ID)
				if d.Seq != ev.Seq {
					c.find(CheckHole, room, "the message of %s names another seq", ev)
				}
			case "message.updated":
				add(OpEdit, d.Text)
			case "message.deleted":
				add(OpDelete, d.ID)
			case "member.added", "member.removed":
				if members[d.User] == (ev.Type == "member.added") {
					c.find(CheckHole, room, "%s, and that was so before", ev)
				}
				members[d.User] = ev.Type == "member.added"
			}
		}
	}
}

// deed is a command with all its attempts.
type deed struct {
	*Op
	ret      time.Duration // of the first acknowledgement, forever without one
	done     bool
	unknown  bool // some attempt is
	answered uint64
}

func (d *deed) mark() (mark, bool) {
	switch d.Kind {
	case OpCreate:
		return mark{d.Kind, d.Room}, true
	case OpPost, OpDelete:
		return mark{d.Kind, d.Object}, true
	case OpEdit, OpRename:
		return mark{d.Kind, d.Text}, true
	default: // joins and leaves have no names of their own in a history
		return mark{}, false
	}
}

// collect makes deeds of attempts.
func (c *checker) collect() {
	type key struct {
		kind     Kind
		user, id string
	}
	byKey := map[key]*deed{}
	for _, op := range c.e.Journal.Ops() {
		if op.ID == "" {
			continue // a read
		}
		k := key{op.Kind, op.User, op.ID}
		d := byKey[k]
		if d == nil {
			d = &deed{Op: op, ret: forever}
			byKey[k] = d
			c.deeds = append(c.deeds, d)
		}
		if op.Invoke < d.Invoke {
			first := *op
			d.Op = &first
		}
		switch op.Outcome {
		case Done:
			d.done, d.ret = true, min(d.ret, op.Return)
			if op.Why != "" {
				c.find(CheckAnswer, op.Room, "%s %s at %s: %s", op.Kind, op.ID, op.Site, op.Why)
			}
			if op.Seq != 0 && d.answered != 0 && op.Seq != d.answered {
				c.find(CheckAnswer, op.Room, "%s %s was answered as seq %d and as seq %d", op.Kind, op.ID, d.answered, op.Seq)
			}
			if op.Seq != 0 {
				d.answered = op.Seq
			}
		case Unknown:
			d.unknown = true
		case Refused:
			if !mayRetry(op.Why) && !mayRefuse(op) {
				check := CheckRefusal
				if op.Sent != "" && strings.HasSuffix(op.Why, "_not_found") {
					check = CheckBlind
				}
				c.find(check, op.Room, "%s %s of %q at %s was refused with %s", op.Kind, op.ID, op.User, op.Site, op.Why)
			}
		}
	}
}

// mayRefuse lists the refusals that a workload brings upon itself.
func mayRefuse(op *Op) bool {
	switch op.Why {
	case "down", "conflict", "limit_reached", "rate_limited":
		return true
	case "member_not_found":
		return op.Kind == OpLeave
	}
	return false
}

// commands: what was acknowledged is there once; what was refused is not; what is unknown is there at most once.
func (c *checker) commands() {
	for _, d := range c.deeds {
		m, marked := d.mark()
		if !marked {
			continue
		}
		var seqs []uint64
		if ix := c.index[d.Room]; ix != nil {
			seqs = ix.made[m]
		}
		switch {
		case d.done && len(seqs) == 0:
			c.find(CheckLost, d.Room, "%s %s of %s was acknowledged at %s by %s (seq %d) and is gone", d.Kind, m.what, d.Client, d.ret, d.Site, d.answered)
		case len(seqs) > 1:
			c.find(CheckTwice, d.Room, "%s %s is there as seqs %d", d.Kind, m.what, seqs)
		case len(seqs) == 1 && !d.done && !d.unknown:
			c.find(CheckGhost, d.Room, "%s %s was refused each time and is seq %d", d.Kind, m.what, seqs[0])
		case d.done && d.answered != 0 && seqs[0] != d.answered:
			c.find(CheckAnswer, d.Room, "%s %s was acknowledged as seq %d and is seq %d", d.Kind, m.what, d.answered, seqs[0])
		case d.done && d.Kind == OpPost:
			data := c.index[d.Room].data[seqs[0]-1]
			if data.User != d.User || (data.Text != d.Text && data.Deleted == nil) {
				c.find(CheckAnswer, d.Room, "post %s of %s with the text %q is there as %s", d.ID, d.User, d.Text, c.truth[d.Room][seqs[0]-1])
			}
		}
	}
}

// realTimeOrder: what begins after another command of the room was acknowledged comes after it.
func (c *checker) realTimeOrder() {
	type placed struct {
		*deed
		seq uint64
	}
	rooms := map[string][]placed{}
	for _, d := range c.deeds {
		m, marked := d.mark()
		if ix := c.index[d.Room]; marked && ix != nil && len(ix.made[m]) == 1 {
			rooms[d.Room] = append(rooms[d.Room], placed{d, ix.made[m][0]})
		}
	}
	for _, room := range sortedKeys(rooms) {
		begun, ended := slices.Clone(rooms[room]), slices.Clone(rooms[room])
		slices.SortFunc(begun, func(a, b placed) int { return cmp.Compare(a.Invoke, b.Invoke) })
		slices.SortFunc(ended, func(a, b placed) int { return cmp.Compare(a.ret, b.ret) })
		var last placed // with the highest seq among those acknowledged before
		n := 0
		for _, d := range begun {
			for ; n < len(ended) && ended[n].ret < d.Invoke; n++ {
				if ended[n].seq > last.seq {
					last = ended[n]
				}
			}
			if d.seq < last.seq {
				c.find(CheckOrder, room, "%s %s began at %s and is seq %d; %s %s was acknowledged before, at %s, and is seq %d",
					d.Kind, d.ID, d.Invoke, d.seq, last.Kind, last.ID, last.ret, last.seq)
			}
		}
	}
}

// pipelines: messages sent one after the other on one connection keep their order.
func (c *checker) pipelines() {
	type lane struct {
		conn int64
		room string
	}
	last := map[lane]*Op{}
	for _, op := range c.e.Journal.Ops() {
		if op.Conn == 0 || op.Outcome != Done || !c.e.Journal.calm(op.Invoke, op.Return) {
			continue
		}
		l := lane{op.Conn, op.Room}
		if before := last[l]; before != nil && before.Seq > op.Seq {
			c.find(CheckPipeline, op.Room, "%s was sent after %s on one connection and got seq %d, not after %d", op.ID, before.ID, op.Seq, before.Seq)
		}
		last[l] = op
	}
}

// reads: a page of events is a piece of the history, and shows what its position promises.
func (c *checker) reads() {
	for _, op := range c.e.Journal.Ops() {
		if op.ID != "" {
			continue
		}
		if op.Outcome == Refused {
			c.find(CheckRefusal, op.Room, "%s at %s with position %q was refused with %s", op.Kind, op.Site, op.Sent, op.Why)
			continue
		}
		if op.Kind != OpReadEvents {
			continue
		}
		if op.Head < op.AtLeast {
			c.find(CheckStale, op.Room, "%s showed up to seq %d to a read with the position of seq %d", op.Site, op.Head, op.AtLeast)
		}
		for i, ev := range op.Events {
			if ev.Seq != op.After+uint64(i)+1 {
				c.find(CheckHole, op.Room, "%s answered seq %d where %d follows", op.Site, ev.Seq, op.After+uint64(i)+1)
				break
			}
			c.isTrue(op.Room, ev, "read at "+op.Site)
		}
	}
}

// isTrue compares an event that somebody saw with the history.
func (c *checker) isTrue(room string, ev Event, where string) {
	truth := c.truth[room]
	if ev.Seq == 0 || ev.Seq > uint64(len(truth)) {
		c.find(CheckPhantom, room, "%s, and the history ends at %d: %s", where, len(truth), ev)
		return
	}
	now := truth[ev.Seq-1]
	if bytes.Equal(now.Data, ev.Data) && now.Type == ev.Type && now.At.Equal(ev.At) {
		return
	}
	d := c.index[room].data[ev.Seq-1]
	var seen eventData
	if d.Deleted != nil && json.Unmarshal(ev.Data, &seen) == nil && seen.ID == d.ID && now.Type == ev.Type && now.At.Equal(ev.At) {
		return // its content was there then
	}
	c.find(CheckAltered, room, "%s as %s, the history has %s", where, ev, now)
}

// monotone: a node never shows less than it showed before.
func (c *checker) monotone() {
	type place struct {
		site, room, life string
	}
	ops := c.e.Journal.Ops()
	places := map[place][]*Op{}
	for _, op := range ops {
		if op.Kind == OpReadEvents && op.Outcome == Done {
			p := place{op.Site, op.Room, op.Life}
			places[p] = append(places[p], op)
		}
	}
	for p, reads := range places {
		begun, ended := slices.Clone(reads), slices.Clone(reads)
		slices.SortFunc(begun, func(a, b *Op) int { return cmp.Compare(a.Invoke, b.Invoke) })
		slices.SortFunc(ended, func(a, b *Op) int { return cmp.Compare(a.Return, b.Return) })
		var high uint64
		n := 0
		for _, op := range begun {
			for ; n < len(ended) && ended[n].Return < op.Invoke; n++ {
				high = max(high, ended[n].Head)
			}
			if op.Head < high {
				c.find(CheckBackwards, p.room, "%s showed seq %d, and after that at %s only %d", p.site, high, op.Invoke, op.Head)
			}
		}
	}
}

// subscription: every event from seq 1 on, once, in order, as the history has it, or told.
func (c *checker) subscription(name string, seen []Seen) {
	at := map[string]uint64{}
	for _, s := range seen {
		if s.Told == "read anew" {
			at[s.Room] = s.Head
			continue
		}
		if s.Told != "" {
			check := CheckResync
			if s.Told == "ahead" {
				check = CheckAhead
			}
			c.find(check, s.Room, "%s was told %q by %s, at seq %d with the head at %d", name, s.Told, s.Site, at[s.Room], s.Head)
			continue
		}
		switch was := at[s.Room]; {
		case s.Event.Seq > was+1:
			c.find(CheckGap, s.Room, "%s was offered seq %d after %d by %s", name, s.Event.Seq, was, s.Site)
		case s.Event.Seq <= was:
			c.find(CheckRepeat, s.Room, "%s was offered seq %d after %d by %s", name, s.Event.Seq, was, s.Site)
		}
		at[s.Room] = s.Event.Seq
		c.isTrue(s.Room, s.Event, "offered to "+name+" by "+s.Site)
	}
	for _, room := range c.e.Rooms {
		if end := uint64(len(c.truth[room])); at[room] < end {
			c.find(CheckUndelivered, room, "%s is at seq %d, the history at %d", name, at[room], end)
		}
	}
}

func sortedKeys[M ~map[string]V, V any](m M) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Summary counts what the evidence rests on.
func (e *Evidence) Summary() string {
	outcomes := map[Outcome]int{}
	commands, reads := 0, 0
	for _, op := range e.Journal.Ops() {
		if op.ID == "" {
			reads++
			continue
		}
		commands++
		outcomes[op.Outcome]++
	}
	events, offered := 0, 0
	if len(e.Sites) > 0 {
		for _, room := range e.Final[e.Sites[0]] {
			events += len(room)
		}
	}
	for _, seen := range e.Seen {
		offered += len(seen)
	}
	return fmt.Sprintf("%d commands sent (%d acknowledged, %d refused, %d unknown), %d reads, %d events in the end, %d offered to %d watchers",
		commands, outcomes[Done], outcomes[Refused], outcomes[Unknown], reads, events, offered, len(e.Seen))
}
