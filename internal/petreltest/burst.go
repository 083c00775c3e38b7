package petreltest

import (
	"context"
	"time"
)

// burst sends some messages on a socket without waiting for answers in between. Messages of one connection to one room
// take their seqs in the order in which they were sent.
func (t *talker) burst(ctx context.Context) {
	if !t.call(ctx) {
		return
	}
	order := t.sendSome(ctx, t.room())
	for _, op := range order {
		t.w.journal.Add(op)
	}
	// What was left open may be asked once more, elsewhere: the same id gives the first answer or makes it happen now.
	if t.rng.IntN(2) == 0 {
		return
	}
	for _, op := range order {
		if op.Outcome == Unknown {
			t.do(ctx, &Op{Kind: OpPost, User: t.name, Room: op.Room, ID: op.ID, Object: op.ID, Text: op.Text})
		}
	}
}

// sendSome sends, and then reads until everything is answered or the socket broke.
func (t *talker) sendSome(ctx context.Context, room string) []*Op {
	ctx, cancel := context.WithTimeout(ctx, t.w.opt.Timeout)
	defer cancel()
	ops := map[int]*Op{}
	var order []*Op
	for range 2 + t.rng.IntN(7) {
		id := t.id("s")
		op := &Op{
			Client: t.name, Site: t.sockSite, Kind: OpPost, User: t.name, Room: room, ID: id, Object: id, Text: "text of " + id,
			Conn: t.sockConn, Invoke: t.w.journal.Now(), Outcome: Unknown,
		}
		t.sock.next++
		ops[t.sock.next] = op
		order = append(order, op)
		err := t.sock.Write(ctx, map[string]any{
			"op": "send", "id": t.sock.next, "room": room, "message": map[string]any{"id": id, "text": op.Text},
		})
		if err != nil {
			op.Why = err.Error()
			t.hangUp()
			break
		}
	}
	for left := len(order); left > 0 && t.sock != nil; {
		f, err := t.sock.Read(ctx)
		if err != nil {
			for _, op := range order {
				if op.Return == 0 {
					op.Why = err.Error()
				}
			}
			t.hangUp()
			break
		}
		op := ops[f.ID]
		if op == nil || op.Return > 0 {
			if f.Op == "reconnect" {
				t.hangUp()
			}
			continue
		}
		left--
		op.Return = t.w.journal.Now()
		if f.Op == "error" {
			op.settle("", &Problem{Code: f.Code})
			continue
		}
		op.settle(f.Position, nil)
		op.Seq = f.Message.Seq
	}
	for _, op := range order {
		if op.Return == 0 {
			op.Return = t.w.journal.Now()
		}
	}
	return order
}

// call sees to it that there is a socket to the present site.
func (t *talker) call(ctx context.Context) bool {
	if t.sock != nil && t.sockSite == t.site.Name {
		return true
	}
	t.hangUp()
	base, c := t.site.At()
	if base == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := DialWith(ctx, c, base, t.name)
	if err != nil {
		return false
	}
	t.sock, t.sockSite, t.sockConn = s, t.site.Name, t.w.conns.Add(1)
	return true
}

func (t *talker) hangUp() {
	if t.sock != nil {
		t.sock.Close()
		t.sock = nil
	}
}
