package petreltest

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestChecks spoils a flawless piece of evidence in one way each, and holds the checker to finding that, and only that.
func TestChecks(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, c := range []struct {
		want  string // "" for nothing
		name  string
		spoil func(e *sample)
	}{
		{"", "flawless", func(*sample) {}},
		{"", "an unknown command that did not happen", func(e *sample) {
			e.op(Op{Kind: OpPost, User: "ada", ID: "m9", Object: "m9", Text: "?", Outcome: Unknown})
		}},
		{"", "an unknown command that did happen", func(e *sample) { e.ops["m1"].Outcome = Unknown; e.ops["m1"].Seq = 0 }},
		{"", "a refused attempt and an acknowledged one", func(e *sample) {
			e.op(Op{Kind: OpPost, User: "ada", ID: "m1", Object: "m1", Text: "one", Outcome: Refused, Why: "no_leader", Invoke: 9 * ms})
		}},
		{CheckLost, "the last event is gone", func(e *sample) { e.truncate(7) }},
		{CheckTwice, "a message is there again", func(e *sample) { e.ops["m2"].Outcome, e.ops["m2"].Seq = Unknown, 0; e.add("message.new", "m2", "two") }},
		{CheckGhost, "a refused command is there", func(e *sample) { e.ops["m2"].Outcome, e.ops["m2"].Why = Refused, "no_leader" }},
		{CheckAnswer, "another seq was answered", func(e *sample) { e.ops["m2"].Seq = 5 }},
		{CheckAnswer, "two answers for one id", func(e *sample) {
			again := *e.ops["m2"]
			again.Seq = 6
			e.op(again)
		}},
		{CheckAnswer, "another text is there", func(e *sample) { e.ops["m2"].Text = "too" }},
		{CheckOrder, "a later command is earlier", func(e *sample) { e.ops["m2"].Invoke, e.ops["m2"].Return = 200*ms, 201*ms }},
		{CheckPipeline, "a pipeline changed places", func(e *sample) {
			for i, id := range []string{"m2", "m1"} {
				one := *e.ops[id]
				one.Conn, one.Invoke, one.Return = 1, time.Duration(300+i)*ms, time.Duration(310+i)*ms
				e.op(one)
			}
		}},
		{"", "a pipeline changed places in a storm", func(e *sample) {
			e.e.Journal.storms = append(e.e.Journal.storms, span{290 * ms, 400 * ms})
			for i, id := range []string{"m2", "m1"} {
				one := *e.ops[id]
				one.Conn, one.Invoke, one.Return = 1, time.Duration(300+i)*ms, time.Duration(310+i)*ms
				e.op(one)
			}
		}},
		{CheckHole, "a member is added who was one", func(e *sample) { e.add("member.added", "eve", ""); e.add("member.added", "eve", "") }},
		{CheckDiverged, "one node has other bytes", func(e *sample) { e.e.Final["n2"]["r"][3].Data = json.RawMessage(`{"id":"m2","text":"zwei","seq":4}`) }},
		{CheckDiverged, "one node has another time", func(e *sample) { e.e.Final["n2"]["r"][3].At = time.Unix(99, 0) }},
		{CheckDiverged, "one node has less", func(e *sample) { e.e.Final["n2"]["r"] = e.e.Final["n2"]["r"][:7] }},
		{CheckGap, "a subscription skips", func(e *sample) { e.seen = slices.Delete(e.seen, 3, 4) }},
		{CheckRepeat, "a subscription repeats", func(e *sample) { e.seen = slices.Insert(e.seen, 3, e.seen[2]) }},
		{CheckUndelivered, "the last event never came", func(e *sample) { e.seen = e.seen[:7] }},
		{CheckAltered, "an event was delivered with other bytes", func(e *sample) { e.seen[1].Event.Data = json.RawMessage(`{"id":"m1","text":"uno","seq":2}`) }},
		{CheckPhantom, "an event was delivered that is not there", func(e *sample) {
			e.seen = append(e.seen, Seen{Site: "n1", Room: "r", Event: Event{Seq: 9, Type: "message.new", Data: json.RawMessage(`{"id":"m9","seq":9}`)}})
		}},
		{CheckResync, "a subscription was ended", func(e *sample) { e.seen = slices.Insert(e.seen, 2, Seen{Site: "n1", Room: "r", Told: "epoch"}) }},
		{CheckAhead, "a subscription was ended by a node that lags", func(e *sample) {
			e.seen = slices.Insert(e.seen, 2, Seen{Site: "n1", Room: "r", Told: "ahead", Head: 1})
		}},
		{CheckStale, "a read does not show its position", func(e *sample) { e.read(4, 4, 5, 50) }},
		{CheckBackwards, "a node shows less than before", func(e *sample) { e.read(0, 6, 0, 50); e.read(0, 5, 0, 60) }},
		{"", "a node shows less after its disk was wiped", func(e *sample) { e.read(0, 6, 0, 50); e.read(0, 5, 0, 60).Life = "2" }},
		{CheckRefusal, "a command is refused that may not be", func(e *sample) {
			e.op(Op{Kind: OpRename, Object: "x", ID: "x", Text: "x", Outcome: Refused, Why: "forbidden"})
		}},
		{CheckBlind, "a command is refused by a node that lags", func(e *sample) {
			e.op(Op{Kind: OpDelete, User: "ada", Object: "m1", ID: "d", Sent: "p", Outcome: Refused, Why: "message_not_found"})
		}},
		{CheckLinear, "a read shows an older name", func(e *sample) {
			e.op(Op{Kind: OpReadName, Text: "", Outcome: Done, Invoke: 300 * ms, Return: 301 * ms})
		}},
		{CheckLinear, "a read shows a member who had left", func(e *sample) {
			e.op(Op{Kind: OpReadMember, Object: "vic", Text: "true", Outcome: Done, Invoke: 300 * ms, Return: 301 * ms})
		}},
		{CheckLinear, "a read goes back behind another read", func(e *sample) {
			e.ops["e1"].Outcome, e.ops["e1"].Object, e.ops["e1"].User = Unknown, "r-board", ""
			for i, text := range []string{"edited", "-"} {
				at := time.Duration(300+10*i) * ms
				e.op(Op{Kind: OpReadMessage, Object: "r-board", Text: text, Outcome: Done, Invoke: at, Return: at + ms})
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSample()
			c.spoil(s)
			s.e.Seen["w"] = s.seen
			found := s.e.Check()
			if c.want == "" && len(found) > 0 {
				t.Errorf("found %v in what is flawless", found)
			}
			if c.want != "" && (len(found) == 0 || slices.ContainsFunc(found, func(f Finding) bool { return f.Check != c.want })) {
				t.Errorf("found %v, want %q alone", found, c.want)
			}
		})
	}
}

// sample is a small evidence: a room, two messages, one of them edited, a name, and a visitor who came and left.
type sample struct {
	e    *Evidence
	ops  map[string]*Op
	seen []Seen
}

func newSample() *sample {
	s := &sample{ops: map[string]*Op{}, e: &Evidence{
		Journal: NewJournal(), Sites: []string{"n1", "n2"}, Rooms: []string{"r"}, Seen: map[string][]Seen{},
		Final: map[string]map[string][]Event{"n1": {}, "n2": {}},
	}}
	s.did(Op{Kind: OpCreate, ID: "r"}, "room.created", "r", "")
	s.did(Op{Kind: OpPost, User: "ada", ID: "m1", Object: "m1", Text: "one"}, "message.new", "m1", "one")
	s.did(Op{Kind: OpJoin, User: "vic", ID: "j", Object: "vic"}, "member.added", "vic", "")
	s.did(Op{Kind: OpPost, User: "ada", ID: "m2", Object: "m2", Text: "two"}, "message.new", "m2", "two")
	s.did(Op{Kind: OpEdit, User: "ada", ID: "e1", Object: "m1", Text: "edited"}, "message.updated", "m1", "edited")
	s.did(Op{Kind: OpRename, ID: "n", Text: "name"}, "room.updated", "", "name")
	s.did(Op{Kind: OpLeave, User: "vic", ID: "l", Object: "vic"}, "member.removed", "vic", "")
	s.did(Op{Kind: OpPost, User: "ada", ID: "m3", Object: "m3", Text: "three"}, "message.new", "m3", "three")
	s.read(2, 7, 7, 90)
	return s
}

// did records a command that was acknowledged 10 ms after the one before, and its event.
func (s *sample) did(op Op, kind, what, text string) {
	at := time.Duration(10*len(s.ops)+10) * time.Millisecond
	op.Invoke, op.Return, op.Outcome = at, at+time.Millisecond, Done
	seq := s.add(kind, what, text)
	if op.Kind == OpPost {
		op.Seq = seq
	}
	s.ops[op.ID] = s.op(op)
}

func (s *sample) op(op Op) *Op {
	op.Client, op.Site, op.Room = "c", "n1", "r"
	s.e.Journal.Add(&op)
	return &op
}

// add appends an event to both histories, and the watcher sees it.
func (s *sample) add(kind, what, text string) uint64 {
	seq := uint64(len(s.e.Final["n1"]["r"]) + 1)
	ev := Event{Seq: seq, Type: kind, At: time.Unix(int64(seq), 0)} //nolint:gosec // small
	switch kind {
	case "member.added", "member.removed":
		ev.Data = fmt.Appendf(nil, `{"room":"r","user":%q}`, what)
	case "room.updated":
		ev.Data = fmt.Appendf(nil, `{"id":"r","name":%q}`, text)
	default:
		ev.Data = fmt.Appendf(nil, `{"id":%q,"user":"ada","text":%q,"seq":%d}`, what, text, seq)
	}
	for _, site := range s.e.Sites {
		s.e.Final[site]["r"] = append(s.e.Final[site]["r"], ev)
	}
	s.seen = append(s.seen, Seen{Site: "n1", Room: "r", Event: ev})
	return seq
}

// truncate takes everything after a seq away, as if it never was.
func (s *sample) truncate(n int) {
	for _, site := range s.e.Sites {
		s.e.Final[site]["r"] = s.e.Final[site]["r"][:n]
	}
	s.seen = s.seen[:n]
}

// read records a page of events.
func (s *sample) read(after, head, atLeast uint64, at int) *Op {
	return s.op(Op{
		Kind: OpReadEvents, After: after, Head: head, AtLeast: atLeast, Outcome: Done, Events: slices.Clone(s.e.Final["n1"]["r"][after:head]),
		Invoke: time.Duration(at) * time.Millisecond, Return: time.Duration(at+1) * time.Millisecond,
	})
}
