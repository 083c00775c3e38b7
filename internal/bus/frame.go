package bus

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// A frame is: version, type, length and bytes of the sender's name, its incarnation (8 bytes, big
// endian), then what its type has; numbers are unsigned varints. A payload goes to the end. A frame of
// another version is dropped and counted: nodes of both builds then agree on nothing but NATS.
const frameVersion = 1

// Types of frames.
const (
	typeRelay     = 1 // to a bucket: bucket, seq, kind, payload
	typeHeartbeat = 2 // to all: flags, info (JSON), heads of buckets
	typeRequest   = 3 // to a node: id, time left in ms, kind, payload
	typeReply     = 4 // to a node: id, status, payload
	typeAsk       = 5 // to a node: id, the incarnation asked for, bucket, from, to
	typeMissing   = 6 // to a node: id, then messages: seq, kind, length, bytes
	typeEnd       = 7
)

// flagLeaving is in a node's last heartbeat.
const flagLeaving = 1

// Status of a reply.
const (
	statusOK     = 0
	statusError  = 1 // payload is the error's text
	statusBusy   = 2
	statusNobody = 3
)

func typeName(t byte) string {
	return [...]string{"", "relay", "heartbeat", "request", "reply", "ask", "missing"}[t]
}

var (
	errFrame   = errors.New("bus: damaged frame")
	errVersion = errors.New("bus: frame of another version")
)

// frame is any of them; what a type does not have is zero.
type frame struct {
	typ         byte
	node        []byte // 1 to petrel.MaxNameLen
	incarnation uint64
	bucket      Bucket
	seq         uint64
	kind        Kind
	flags       byte
	info        []byte
	heads       []head
	id          uint64
	left        uint64 // ms
	status      byte
	target      uint64 // incarnation asked for
	from, to    uint64
	payload     []byte
}

// head is the last number given in a bucket.
type head struct {
	bucket Bucket
	seq    uint64
}

// append writes the frame behind b.
func (f *frame) append(b []byte) []byte {
	b = append(b, frameVersion, f.typ, byte(len(f.node))) // New and decode have checked the name's length
	b = append(b, f.node...)
	b = binary.BigEndian.AppendUint64(b, f.incarnation)
	switch f.typ {
	case typeRelay:
		b = binary.AppendUvarint(b, uint64(f.bucket))
		b = binary.AppendUvarint(b, f.seq)
		b = append(b, byte(f.kind))
	case typeHeartbeat:
		b = append(b, f.flags)
		b = binary.AppendUvarint(b, uint64(len(f.info)))
		b = append(b, f.info...)
		b = binary.AppendUvarint(b, uint64(len(f.heads)))
		for _, h := range f.heads {
			b = binary.AppendUvarint(b, uint64(h.bucket))
			b = binary.AppendUvarint(b, h.seq)
		}
	case typeRequest:
		b = binary.AppendUvarint(b, f.id)
		b = binary.AppendUvarint(b, f.left)
		b = append(b, byte(f.kind))
	case typeReply:
		b = binary.AppendUvarint(b, f.id)
		b = append(b, f.status)
	case typeAsk:
		b = binary.AppendUvarint(b, f.id)
		b = binary.BigEndian.AppendUint64(b, f.target)
		b = binary.AppendUvarint(b, uint64(f.bucket))
		b = binary.AppendUvarint(b, f.from)
		b = binary.AppendUvarint(b, f.to)
	case typeMissing:
		b = binary.AppendUvarint(b, f.id)
	}
	return append(b, f.payload...)
}

// decode reads a frame; its slices are those of data.
func decode(data []byte) (frame, error) {
	r := reader{rest: data}
	var f frame
	if v := r.byte(); v != frameVersion && !r.bad {
		return f, fmt.Errorf("%w: %d", errVersion, v)
	}
	f.typ = r.byte()
	f.node = r.bytes(uint64(r.byte()))
	f.incarnation = r.fixed()
	if r.bad || len(f.node) == 0 || len(f.node) > petrel.MaxNameLen || f.typ == 0 || f.typ >= typeEnd {
		return f, errFrame
	}
	switch f.typ {
	case typeRelay:
		f.bucket, f.seq, f.kind = r.bucket(), r.uint(), Kind(r.byte())
		r.bad = r.bad || f.seq == 0
	case typeHeartbeat:
		f.flags = r.byte()
		f.info = r.bytes(r.uint())
		n := r.uint()
		if n > Buckets {
			return f, errFrame
		}
		f.heads = make([]head, 0, n)
		for range n {
			f.heads = append(f.heads, head{r.bucket(), r.uint()})
		}
		r.bad = r.bad || len(r.rest) > 0
	case typeRequest:
		f.id, f.left, f.kind = r.uint(), r.uint(), Kind(r.byte())
	case typeReply:
		f.id, f.status = r.uint(), r.byte()
	case typeAsk:
		f.id, f.target, f.bucket, f.from, f.to = r.uint(), r.fixed(), r.bucket(), r.uint(), r.uint()
		r.bad = r.bad || f.from == 0 || f.to < f.from || len(r.rest) > 0
	case typeMissing:
		f.id = r.uint()
	}
	f.payload = r.rest
	if r.bad {
		return f, errFrame
	}
	return f, nil
}

// appendRecord writes one message of a typeMissing payload.
func appendRecord(b []byte, m record) []byte {
	b = binary.AppendUvarint(b, m.seq)
	b = append(b, byte(m.kind))
	b = binary.AppendUvarint(b, uint64(len(m.payload)))
	return append(b, m.payload...)
}

// decodeRecords reads the payload of a typeMissing.
func decodeRecords(data []byte) ([]record, error) {
	var all []record
	for r := (reader{rest: data}); len(r.rest) > 0; {
		m := record{seq: r.uint(), kind: Kind(r.byte())}
		m.payload = r.bytes(r.uint())
		if r.bad || m.seq == 0 {
			return nil, errFrame
		}
		all = append(all, m)
	}
	return all, nil
}

// reader takes from the front of rest; after the first mistake it gives zeros and is bad.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) bytes(n uint64) []byte {
	if r.bad || n > uint64(len(r.rest)) {
		r.bad = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) fixed() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if r.bad || n <= 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) bucket() Bucket {
	v := r.uint()
	r.bad = r.bad || v >= Buckets
	return Bucket(v % Buckets)
}
