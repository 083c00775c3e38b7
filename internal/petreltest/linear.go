package petreltest

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// registers looks for an order of commands and barrier reads that explains what the reads saw (porcupine): per room its name, its
// board, and each visitor's membership.
//
// A read counts from the beginning of the write whose position it was sent. So does a join or leave, from the beginning of the
// post before it at the same node, because who is there already joins without an entry. A command without an acknowledgement
// may take effect at any time after it began; if it left no mark in the history, it never did.
func (c *checker) registers() {
	ops := map[string][]porcupine.Operation{}
	add := func(key string, d *Op, ret time.Duration, in registerInput, out string) {
		op := porcupine.Operation{Input: in, Call: int64(d.Invoke), Output: out, Return: int64(ret)}
		if ret == forever {
			op.Return = math.MaxInt64
		}
		ops[key] = append(ops[key], op)
	}
	for _, d := range c.deeds {
		if !d.done && !d.unknown {
			continue
		}
		if m, marked := d.mark(); marked && !d.done {
			if ix := c.index[d.Room]; ix == nil || len(ix.made[m]) == 0 {
				continue
			}
		}
		switch {
		case d.Kind == OpRename:
			add("name of "+d.Room, d.Op, d.ret, registerInput{write: true, value: d.Text}, "")
		case d.Kind == OpEdit && d.User == "":
			add("board of "+d.Room, d.Op, d.ret, registerInput{write: true, value: d.Text}, "")
		case d.Kind == OpJoin, d.Kind == OpLeave:
			add(d.Object+" in "+d.Room, d.Op, d.ret, registerInput{write: true, value: fmt.Sprint(d.Kind == OpJoin)}, "")
		}
	}
	for _, op := range c.e.Journal.Ops() {
		if op.Outcome != Done || op.ID != "" {
			if op.Kind == OpLeave && op.Why == "member_not_found" { // a refusal that says what the node saw
				add(op.Object+" in "+op.Room, op, op.Return, registerInput{}, "false")
			}
			continue
		}
		switch op.Kind {
		case OpReadName:
			add("name of "+op.Room, op, op.Return, registerInput{}, op.Text)
		case OpReadMessage:
			add("board of "+op.Room, op, op.Return, registerInput{}, op.Text)
		case OpReadMember:
			add(op.Object+" in "+op.Room, op, op.Return, registerInput{}, op.Text)
		}
	}
	for _, key := range sortedKeys(ops) {
		switch porcupine.CheckOperationsTimeout(register(initially(key)), ops[key], time.Minute) {
		case porcupine.Illegal:
			c.find(CheckLinear, key, "no order of %d operations explains what was read", len(ops[key]))
		case porcupine.Unknown:
			c.find(CheckLinear, key, "no order of %d operations was found in time", len(ops[key]))
		}
	}
}

// initially is what a register holds before the first write: the names of rooms are empty, nobody is a member.
func initially(key string) string {
	switch key[:5] {
	case "name ":
		return ""
	case "board":
		return "-"
	}
	return "false"
}

type registerInput struct {
	write bool
	value string
}

// register is the model: a read shows what was written last.
func register(initial string) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return initial },
		Step: func(state, input, output any) (bool, any) {
			in, _ := input.(registerInput)
			if in.write {
				return true, in.value
			}
			return output == state, state
		},
	}
}
