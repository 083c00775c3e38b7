package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

func FuzzDecode(f *testing.F) {
	for _, fr := range frames() {
		f.Add(fr.append(nil))
	}
	f.Add(appendRecord(appendRecord(nil, record{seq: 1, payload: []byte("x")}), record{seq: 300, kind: 9}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if all, err := decodeRecords(data); err == nil {
			var again []byte
			for _, m := range all {
				again = appendRecord(again, m)
			}
			if back, err := decodeRecords(again); err != nil || !cmp.Equal(all, back, cmp.AllowUnexported(record{})) {
				t.Fatalf("records %v became %v, %v", all, back, err)
			}
		}
		fr, err := decode(data)
		if err != nil {
			if !errors.Is(err, errFrame) && !errors.Is(err, errVersion) {
				t.Fatalf("error %v", err)
			}
			return
		}
		back, err := decode(fr.append(nil))
		if err != nil || !cmp.Equal(fr, back, cmp.AllowUnexported(frame{}, head{})) {
			t.Fatalf("%+v became %+v, %v", fr, back, err)
		}
	})
}

func frames() []frame {
	base := func(f frame) frame {
		f.node, f.incarnation = []byte("n1"), 0x0102030405060708
		return f
	}
	return []frame{
		base(frame{typ: typeRelay, bucket: 1023, seq: 300, kind: 7, payload: []byte("hello")}),
		base(frame{typ: typeHeartbeat, flags: flagLeaving, info: []byte(`{}`), heads: []head{{0, 1}, {1023, 1 << 40}}, payload: []byte{}}),
		base(frame{typ: typeRequest, id: 1 << 60, left: 5000, kind: 2, payload: []byte("?")}),
		base(frame{typ: typeReply, id: 5, status: statusBusy, payload: []byte{}}),
		base(frame{typ: typeAsk, id: 5, target: 9, bucket: 3, from: 4, to: 5, payload: []byte{}}),
		base(frame{typ: typeMissing, id: 5, payload: []byte{}}),
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	for _, want := range frames() {
		data := want.append(nil)
		got, err := decode(data)
		if err != nil || !cmp.Equal(want, got, cmp.AllowUnexported(frame{}, head{})) {
			t.Errorf("%s: %+v became %+v, %v", typeName(want.typ), want, got, err)
		}
		for n := range data {
			if _, err := decode(data[:n]); err == nil && n < len(data)-len(want.payload) {
				t.Errorf("%s: %d of %d bytes pass for a frame", typeName(want.typ), n, len(data))
			}
		}
	}
	// What builds say to each other does not change by accident.
	if got := fmt.Sprintf("%x", frames()[0].append0()); got != "0101026e310102030405060708ff07ac020768656c6c6f" {
		t.Errorf("a relay frame is %s", got)
	}
	for _, tc := range []struct {
		app     petrel.AppID
		channel string
		want    Bucket
	}{{"1", "lobby", 820}, {"", "", 991}, {"app", "presence-room.7", 604}} {
		h := fnv.New64a()
		h.Write([]byte(string(tc.app) + "\x00" + tc.channel))
		if got := BucketOf(tc.app, tc.channel); got != tc.want || uint64(got) != h.Sum64()%Buckets {
			t.Errorf("BucketOf(%q, %q) = %d, want %d", tc.app, tc.channel, got, tc.want)
		}
	}
}

func (f frame) append0() []byte { return f.append(nil) }

func TestRing(t *testing.T) {
	t.Parallel()
	start := time.Now()
	r := newRing(10*(recordOverhead+100), time.Second)
	add := func(k Bucket, at time.Duration) {
		r.add(k, record{seq: r.next(k), payload: make([]byte, 100), at: start.Add(at)})
	}
	seqs := func(k Bucket, from, to uint64, limit int, at time.Duration) (got []uint64) {
		all, err := decodeRecords(r.find(k, from, to, limit, start.Add(at)))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			got = append(got, m.seq)
		}
		return got
	}
	for range 8 {
		add(1, 0)
	}
	add(2, 0)
	for _, tc := range []struct {
		name     string
		k        Bucket
		from, to uint64
		limit    int
		at       time.Duration
		want     []uint64
	}{
		{"a range", 1, 3, 5, 1 << 20, 0, []uint64{3, 4, 5}},
		{"all and more", 1, 1, 99, 1 << 20, 0, []uint64{1, 2, 3, 4, 5, 6, 7, 8}},
		{"cut short", 1, 2, 8, 600, 0, []uint64{2, 3, 4, 5}},
		{"at least one", 1, 2, 8, 1, 0, []uint64{2}},
		{"beyond the head", 1, 9, 12, 1 << 20, 0, nil},
		{"nothing there", 3, 1, 1, 1 << 20, 0, nil},
		{"too old", 1, 1, 8, 1 << 20, 2 * time.Second, nil},
	} {
		if diff := cmp.Diff(tc.want, seqs(tc.k, tc.from, tc.to, tc.limit, tc.at)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
	if r.bytes != 0 || len(r.order) != 0 {
		t.Errorf("%d bytes of %d messages are left when all are too old", r.bytes, len(r.order))
	}
	for range 25 {
		add(1, 3*time.Second)
		add(2, 3*time.Second)
	}
	if got := seqs(1, 1, 99, 1<<20, 3*time.Second); len(got) != 5 || got[4] != 33 {
		t.Errorf("kept of bucket 1: %v; the budget holds 5 of each", got)
	}
	for beat, want := range []int{2, 2, 2, 0} {
		if got := r.moved(); len(got) != want {
			t.Errorf("heartbeat %d names %d heads, want %d", beat, len(got), want)
		}
	}
	add(2, 3*time.Second)
	if diff := cmp.Diff([]head{{2, 27}}, r.moved(), cmp.AllowUnexported(head{})); diff != "" {
		t.Errorf("heads (-want +got):\n%s", diff)
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	q := newQueue[int](3, 10)
	steps := []struct {
		size   int
		always bool
		want   bool
	}{{100, false, true}, {1, false, false}, {1, true, true}, {0, true, true}, {0, false, false}}
	for i, s := range steps {
		if got := q.put(i, s.size, s.always); got != s.want {
			t.Errorf("put %d: %v", i, got)
		}
	}
	if items, open := q.take(nil); !open || !cmp.Equal(items, []int{0, 2, 3}) {
		t.Errorf("took %v, open %v", items, open)
	}
	q.put(9, 1, false)
	q.close()
	if q.put(10, 0, true) {
		t.Error("put after close")
	}
	if items, open := q.take(nil); open || !cmp.Equal(items, []int{9}) {
		t.Errorf("took %v, open %v", items, open)
	}
}

// TestStoodStill: a process that was stopped for half a minute does not take everybody for dead.
func TestStoodStill(t *testing.T) {
	t.Parallel()
	o := Options{Node: "a"}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	p := newPeers(o)
	info, err := json.Marshal(Info{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	beat := frame{typ: typeHeartbeat, node: []byte("b"), incarnation: 1, info: info}
	if wrong := p.heard(&beat, now); wrong != "" {
		t.Fatal(wrong)
	}
	const period = 250 * time.Millisecond
	step := func(d time.Duration) bool {
		now = now.Add(d)
		p.sweep(now, period)
		return p.alive("b")
	}
	for range 8 {
		if !step(period) {
			t.Fatal("dead after 2 s")
		}
	}
	if !step(30 * time.Second) {
		t.Error("dead because this process stood still")
	}
	alive := 0
	for step(period) {
		alive++
	}
	if alive < 10 || alive > 13 { // of the 20 periods that a death takes, 8 had passed
		t.Errorf("dead after %d periods more", alive)
	}
	// Former lives.
	next := beat
	next.incarnation = 2
	if wrong := p.heard(&next, now); wrong != "" {
		t.Error(wrong)
	}
	if wrong := p.heard(&beat, now); wrong != dropFormer {
		t.Errorf("a former life was heard: %q", wrong)
	}
	beat.info = []byte("{")
	if wrong := p.heard(&beat, now); wrong != dropDamaged {
		t.Errorf("a damaged heartbeat was heard: %q", wrong)
	}
}

// TestHeldIsBounded: who sends around a hole for ever is not held for ever.
func TestHeldIsBounded(t *testing.T) {
	t.Parallel()
	var got, forgotten []uint64
	c := &count{}
	r := &receiver{
		hold: time.Hour, maxBytes: 20 * (recordOverhead + 10), origins: map[petrel.NodeID]*origin{},
		generation: func(Bucket) uint64 { return 1 }, now: func() uint64 { return 1 },
		deliver: func(m Message) { got = append(got, m.Seq) },
		ask:     func(w missing) uint64 { return w.from }, unask: func(id uint64) { forgotten = append(forgotten, id) },
		counts: func(petrel.NodeID) *count { return c },
	}
	now := time.Now()
	for seq := uint64(1); seq <= 100; seq++ {
		if seq%7 == 3 {
			continue
		}
		r.handle(delivery{typ: typeRelay, m: Message{Origin: "a", Incarnation: 1, Seq: seq, Payload: make([]byte, 10)}}, now)
		if r.heldBytes > r.maxBytes {
			t.Fatalf("%d bytes are held", r.heldBytes)
		}
	}
	if c.lost.Load() == 0 || uint64(len(forgotten)) != c.lost.Load() {
		t.Errorf("%d lost, %d asks taken back", c.lost.Load(), len(forgotten))
	}
	// A new life ends the waiting; so does a former life's message not begin one.
	r.handle(delivery{typ: typeRelay, m: Message{Origin: "a", Incarnation: 2, Seq: 1}}, now)
	r.handle(delivery{typ: typeRelay, m: Message{Origin: "a", Incarnation: 1, Seq: 101}}, now)
	if n := len(got); n != 87 || got[n-1] != 1 || got[n-2] != 100 || r.heldBytes != 0 {
		t.Errorf("%d delivered, the last %v; %d bytes are held", n, got[n-1], r.heldBytes)
	}
	if c.seen.Load() != 14 || c.lost.Load() != 14 || c.former.Load() != 1 {
		t.Errorf("%d seen, %d lost, %d former", c.seen.Load(), c.lost.Load(), c.former.Load())
	}
}

// TestWhereStreamsBegin: at the head for who comes late, at 1 where somebody listened before the origin
// began a new life: what it said before it was heard is missing.
func TestWhereStreamsBegin(t *testing.T) {
	t.Parallel()
	c := &count{}
	generations := map[Bucket]uint64{1: 1, 2: 2}
	newest := uint64(2)
	r := &receiver{
		hold: time.Millisecond, maxBytes: 1 << 20, origins: map[petrel.NodeID]*origin{},
		generation: func(k Bucket) uint64 { return generations[k] }, now: func() uint64 { return newest },
		deliver: func(Message) {}, ask: func(missing) uint64 { return 0 }, unask: func(uint64) {},
		counts: func(petrel.NodeID) *count { return c },
	}
	now := time.Now()
	for i, tc := range []struct {
		life   uint64
		bucket Bucket
		seq    uint64
		head   bool
		seen   uint64 // of this step
	}{
		{life: 1, bucket: 1, seq: 5}, // first heard
		{life: 1, bucket: 1, seq: 7, seen: 1},
		{life: 1, bucket: 2, seq: 9, head: true}, // first heard of by a heartbeat
		{life: 1, bucket: 2, seq: 11, head: true, seen: 2},
		{life: 2, bucket: 1, seq: 4, seen: 3}, // a new life, after the bucket was listened to
		{life: 2, bucket: 2, seq: 2, head: true, seen: 2},
		{life: 2, bucket: 3, seq: 6}, // listened to since this step
		{life: 2, bucket: 4, seq: 6}, // nobody listens
		{life: 1, bucket: 1, seq: 99},
	} {
		if tc.bucket == 3 {
			newest++
			generations[3] = newest
		}
		before := c.seen.Load()
		d := delivery{typ: typeRelay, m: Message{Origin: "a", Incarnation: tc.life, Bucket: tc.bucket, Seq: tc.seq}}
		if tc.head {
			d.typ, d.heads = typeHeartbeat, []head{{tc.bucket, tc.seq}}
		}
		r.handle(d, now)
		if got := c.seen.Load() - before; got != tc.seen {
			t.Errorf("step %d, %+v: %d seen", i, tc, got)
		}
	}
	generations[1] = 0
	r.handle(delivery{typ: typeEnd}, now)
	if r.origins["a"].streams[1] != nil || r.origins["a"].streams[2] == nil {
		t.Error("the sweep left a bucket that nobody listens to, or took another")
	}
	r.handle(delivery{typ: typeEnd, forget: []petrel.NodeID{"a"}}, now)
	if len(r.origins) != 0 || c.lost.Load() != c.seen.Load()-3 || r.heldBytes != 0 {
		t.Errorf("forgotten: %d origins, %d of %d lost, %d bytes held", len(r.origins), c.lost.Load(), c.seen.Load(), r.heldBytes)
	}
}
