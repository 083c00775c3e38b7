package raftlog

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestBatchFrame(t *testing.T) {
	t.Parallel()
	in := batch{term: 7, first: 42, prev: petrel.Hash{1, 2, 3}, payloads: [][]byte{[]byte("a"), {}, bytes.Repeat([]byte("x"), 300)}}
	enc := in.encode()
	out, err := decodeBatch(enc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, out, cmp.AllowUnexported(batch{})); diff != "" {
		t.Fatal(diff)
	}
	for i := range enc {
		for bit := range 8 {
			bad := bytes.Clone(enc)
			bad[i] ^= 1 << bit
			if _, err := decodeBatch(bad); !errors.Is(err, errFrame) {
				t.Fatalf("bit %d of byte %d flipped: %v", bit, i, err)
			}
		}
		if _, err := decodeBatch(enc[:i]); !errors.Is(err, errFrame) {
			t.Fatalf("cut at byte %d: %v", i, err)
		}
	}
	if _, err := decodeBatch(append(enc, 0)); !errors.Is(err, errFrame) {
		t.Fatalf("a byte too many: %v", err)
	}
}

func TestChain(t *testing.T) {
	t.Parallel()
	b := batch{term: 3, first: 1, payloads: [][]byte{[]byte("a"), []byte("b")}}
	recs, end, err := chain{}.next(b, 3)
	if err != nil || len(recs) != 2 || recs[1].Index != 2 || recs[1].Hash != end.hash || end.index != 2 {
		t.Fatalf("%v %v %v", recs, end, err)
	}
	for name, tc := range map[string]struct {
		b    batch
		term uint64
		want error
	}{
		"continues":                     {batch{term: 3, first: 3, prev: end.hash}, 3, nil},
		"stored under a later term":     {batch{term: 3, first: 3, prev: end.hash}, 4, errFenced},
		"repeats, other term":           {batch{term: 3, first: 1}, 4, errFenced},
		"repeats, terms agree":          {batch{term: 3, first: 1}, 3, errChain},
		"leaves a gap, terms agree":     {batch{term: 3, first: 4, prev: end.hash}, 3, errChain},
		"other predecessor, same index": {batch{term: 3, first: 3, prev: petrel.Hash{9}}, 3, errChain},
	} {
		tc.b.payloads = [][]byte{[]byte("c")}
		if _, got, err := end.next(tc.b, tc.term); !errors.Is(err, tc.want) || err != nil && got != end {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestForwardFrames(t *testing.T) {
	t.Parallel()
	for _, q := range []request{
		{kind: kindAppend, term: 3, session: 4, number: 5, payloads: [][]byte{[]byte("a"), {}}},
		{kind: kindBarrier, session: 4, number: 5},
	} {
		kind, body, err := readFrame(bytes.NewReader(q.encode()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeRequest(kind, body)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(q, got, cmp.AllowUnexported(request{})); diff != "" {
			t.Fatal(diff)
		}
	}
	for _, want := range []error{petrel.ErrNotAppended, petrel.ErrUnknownOutcome, petrel.ErrDiskFull} {
		kind, body, err := readFrame(bytes.NewReader(encodeReply(0, errors.Join(errors.New("because"), want))))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeReply(kind, body); !errors.Is(err, want) {
			t.Errorf("%v came back as %v", want, err)
		}
	}
	kind, body, _ := readFrame(bytes.NewReader(encodeReply(77, nil)))
	if i, err := decodeReply(kind, body); i != 77 || err != nil {
		t.Errorf("%d %v", i, err)
	}
}

func FuzzBatch(f *testing.F) {
	f.Add(batch{term: 1, first: 1, payloads: [][]byte{[]byte("a")}}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := decodeBatch(data)
		if err != nil {
			return
		}
		if !bytes.Equal(b.encode(), data) {
			t.Fatal("decoded and encoded is another frame")
		}
	})
}

func FuzzForward(f *testing.F) {
	f.Add(request{kind: kindAppend, term: 1, session: 2, number: 3, payloads: [][]byte{[]byte("a")}}.encode())
	f.Add(request{kind: kindBarrier, session: 2, number: 3}.encode())
	f.Add(encodeReply(1, petrel.ErrNotAppended))
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, body, err := readFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		_, _ = decodeReply(kind, body)
		if q, err := decodeRequest(kind, body); err == nil && !bytes.Equal(q.encode(), data[:frameHead+len(body)]) {
			t.Fatal("decoded and encoded is another frame")
		}
	})
}
