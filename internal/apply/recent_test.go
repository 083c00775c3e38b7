package apply

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestOutcomeEncoding(t *testing.T) {
	t.Parallel()
	for _, o := range []outcome{
		{verdict: verdictFolded, seqs: []uint64{1}},
		{verdict: verdictFolded, seqs: []uint64{0, 1 << 40, 127, 128}},
		{verdict: verdictConflicted},
		{verdict: verdictDuplicate},
	} {
		eid := id("e")
		b := append(o.append(eid[:]), "rest"...)
		gotID, v, seqs, rest, err := cutOutcome(b)
		if err != nil || gotID != eid || v != o.verdict || string(rest) != "rest" {
			t.Errorf("%+v: %v %v %q %v", o, gotID, v, rest, err)
		}
		if d := cmp.Diff(o.seqs, seqs); d != "" {
			t.Errorf("%+v (-want +got):\n%s", o, d)
		}
	}
}

// FuzzCutOutcome: a damaged row is refused or read, and what was read encodes to what it came from.
func FuzzCutOutcome(f *testing.F) {
	f.Add([]byte{})
	f.Add(outcome{seqs: []uint64{1, 300}}.append(make([]byte, 16)))
	f.Add(outcome{verdict: verdictConflicted}.append(make([]byte, 16)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var eid petrel.EntryID
		eid, v, seqs, rest, err := cutOutcome(b)
		if err != nil {
			return
		}
		again := outcome{verdict: v, seqs: seqs}.append(eid[:])
		if used := b[:len(b)-len(rest)]; len(again) == len(used) && !bytes.Equal(again, used) { // a longer varint may say the same
			t.Errorf("%x was read as %x", used, again)
		}
	})
}
