package hub

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// A payload of the relay is a format byte and items, each with its length, so that an older build skips those that it does not know.
// Texts have their length before them; numbers are unsigned varints.
//
//	publication  channel, type, ms since 1970, data, request id; flags, user, except
//	change       channel, since, version, users who came, users who left: from version since to version. Since 0 is nobody; number, infos
//	full         channel, version, part, last part?, users: everybody at version; number, infos
//	summary      channel, version: what the newest report was
//	ask          channel, node: that node shall send a full one
//	call         node, buckets: everybody but that node shall sum up what is in these
//	mark         node, number: that node has now heard what was published before its question of that number was answered (last.go)
//
// What stands behind a semicolon came later: an older build does not read it, and what it writes ends there. Number is one more than the
// subscriptions on an exact channel; 0 says nothing of them. Infos are what is shown of the users (who came), in their order.
const formatItems = 1

type itemKind byte

const (
	itemPublication itemKind = iota + 1
	itemChange
	itemFull
	itemSummary
	itemAsk
	itemCall
	itemMark
)

// maxPayload is how much is put into one payload before the next is begun; maxUsers how many users into one item, and maxItem about how many
// bytes of them: with the largest info of one user more, a payload stays far below what a bus takes (256 KiB).
const (
	maxPayload = 48 << 10
	maxUsers   = 500
	maxItem    = 32 << 10
)

// appendItem appends an item whose body fill appends.
func appendItem(b []byte, kind itemKind, fill func([]byte) []byte) []byte {
	body := fill(make([]byte, 0, 128))
	b = append(b, byte(kind))
	b = binary.AppendUvarint(b, uint64(len(body)))
	return append(b, body...)
}

func appendText[T ~string | ~[]byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendChannel(b []byte, ch petrel.Channel) []byte {
	b = append(appendText(b, ch.App), byte(ch.Kind))
	return appendText(b, ch.Name)
}

func appendUsers(b []byte, users []petrel.UserID) []byte {
	b = binary.AppendUvarint(b, uint64(len(users)))
	for _, u := range users {
		b = appendText(b, u)
	}
	return b
}

func appendNumbers(b []byte, numbers ...uint64) []byte {
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

const flagClient = 1

func appendPublication(b []byte, p *petrel.Publication) []byte {
	b = appendText(appendChannel(b, p.Channel), p.Type)
	b = binary.AppendUvarint(b, uint64(max(0, p.At.UnixMilli()))) //nolint:gosec // not negative
	b = appendText(appendText(b, p.Data), p.Request)
	flags := byte(0)
	if p.Client {
		flags |= flagClient
	}
	return appendText(appendText(append(b, flags), p.User), p.Except)
}

// change is the body of itemChange behind the channel.
type change struct {
	since, version uint64
	came, left     []petrel.UserID
	numbered       bool
	number         int
	infos          []string
}

func (x change) append(b []byte) []byte {
	b = appendUsers(appendUsers(appendNumbers(b, x.since, x.version), x.came), x.left)
	return appendRest(b, x.numbered, x.number, x.infos)
}

// full is the body of itemFull behind the channel.
type full struct {
	version, part uint64
	last          bool
	users         []petrel.UserID
	number        int
	infos         []string
}

func (x full) append(b []byte) []byte {
	b = appendNumbers(b, x.version, x.part)
	last := byte(0)
	if x.last {
		last = 1
	}
	return appendRest(appendUsers(append(b, last), x.users), true, x.number, x.infos)
}

// appendRest appends what came later. Users of whom nothing is shown have no infos at all.
func appendRest(b []byte, numbered bool, number int, infos []string) []byte {
	n := uint64(0)
	if numbered {
		n = uint64(max(0, number)) + 1 //nolint:gosec // not negative
	}
	b = binary.AppendUvarint(b, n)
	if !slices.ContainsFunc(infos, func(s string) bool { return s != "" }) {
		infos = nil
	}
	b = binary.AppendUvarint(b, uint64(len(infos)))
	for _, info := range infos {
		b = appendText(b, info)
	}
	return b
}

// readItems calls fn for every item of a payload, known or not; fn's reader says afterwards whether it could be read. The result is false
// when anything could not.
func readItems(b []byte, fn func(kind itemKind, in *reader)) bool {
	if len(b) == 0 || b[0] != formatItems {
		return false
	}
	in := &reader{b: b[1:], ok: true}
	good := true
	for in.ok && len(in.b) > 0 {
		kind := itemKind(in.byte())
		body := &reader{b: in.bytes(), ok: true}
		if !in.ok {
			return false
		}
		fn(kind, body)
		good = good && body.ok
	}
	return good && in.ok
}

// reader takes a body apart. Once something is wrong, ok is false and everything it gives is empty.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) fail() { r.b, r.ok = nil, false }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) text() string { return string(r.bytes()) }

func (r *reader) channel() petrel.Channel {
	return petrel.Channel{App: petrel.AppID(r.text()), Kind: petrel.ChannelKind(r.byte()), Name: r.text()}
}

func (r *reader) users() (out []petrel.UserID) {
	for n := r.number(); n > 0 && r.ok; n-- {
		out = append(out, petrel.UserID(r.text()))
	}
	return out
}

func (r *reader) texts() (out []string) {
	for n := r.number(); n > 0 && r.ok; n-- {
		out = append(out, r.text())
	}
	return out
}

func (r *reader) buckets() (out []Bucket) {
	for n := r.number(); n > 0 && r.ok; n-- {
		out = append(out, Bucket(r.number()%Buckets)) //nolint:gosec // bounded
	}
	return out
}

func (r *reader) publication() petrel.Publication {
	p := petrel.Publication{Channel: r.channel(), Type: r.text()}
	p.At = time.UnixMilli(int64(r.number() & (1<<62 - 1))).UTC() //nolint:gosec // fits by the mask
	p.Data = append([]byte(nil), r.bytes()...)
	p.Request = petrel.RequestID(r.text())
	if r.more() {
		p.Client = r.byte()&flagClient != 0
		p.User, p.Except = petrel.UserID(r.text()), petrel.ConnID(r.text())
	}
	return p
}

func (r *reader) change() change {
	x := change{since: r.number(), version: r.number(), came: r.users(), left: r.users()}
	x.numbered, x.number, x.infos = r.rest()
	return x
}

func (r *reader) full() full {
	x := full{version: r.number(), part: r.number(), last: r.byte() == 1, users: r.users()}
	_, x.number, x.infos = r.rest()
	return x
}

// more says whether there is something behind what an older build writes.
func (r *reader) more() bool { return len(r.b) > 0 }

func (r *reader) rest() (numbered bool, number int, infos []string) {
	if !r.more() {
		return false, 0, nil
	}
	n := r.number()
	infos = r.texts()
	return n > 0, int(min(max(n, 1)-1, 1<<30)), infos //nolint:gosec // bounded
}
