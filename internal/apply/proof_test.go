package apply

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// entries are n posts, joins and leaves.
func entries(n int) (out []*event.Entry) {
	for i := range n {
		who := fmt.Sprint("u", i%7)
		switch i % 3 {
		case 0:
			out = append(out, join(fmt.Sprint("e", i), "r", who, 0))
		case 1:
			out = append(out, post(fmt.Sprint("e", i), "r", who))
		default:
			out = append(out, leave(fmt.Sprint("e", i), "r", who, uint64(i)))
		}
	}
	return out
}

// sameFrom compares two replicas at every index from low to high.
func sameFrom(a, b *world, low, high uint64) (first uint64) {
	a0, _ := a.loop.ProofAt(low)
	b0, _ := b.loop.ProofAt(low)
	for i := low; i <= high; i++ {
		pa, oka := a.loop.ProofAt(i)
		pb, okb := b.loop.ProofAt(i)
		if !oka || !okb || pa.Digest != pb.Digest || pa.Writes-a0.Writes != pb.Writes-b0.Writes {
			return i
		}
	}
	return 0
}

// TestProofs: the proofs of two replicas are equal at every index that both know, however the log was cut into
// calls, across a restart of one and its loading of a snapshot.
func TestProofs(t *testing.T) {
	t.Parallel()
	a, b := newWorld(t), newWorld(t)
	recs := a.log.add(t, entries(300)...)
	if err := a.loop.Apply(t.Context(), recs, 300); err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		if err := b.loop.Apply(t.Context(), recs[i:i+1], uint64(i)); err != nil {
			t.Fatal(err)
		}
		if i == 99 {
			b.reopen()
		}
	}
	if low, high := a.loop.Proven(); low != 0 || high != 300 {
		t.Errorf("the first knows %d to %d", low, high)
	}
	if low, high := b.loop.Proven(); low != 100 || high != 300 {
		t.Errorf("the restarted one knows %d to %d", low, high)
	}
	if at := sameFrom(a, b, 100, 300); at != 0 {
		t.Errorf("the proofs differ at %d", at)
	}
	if d, ok := b.loop.DigestAt(300); !ok || d != a.loop.Applied().Digest {
		t.Error("the digest at the end is not the projection's")
	}
	for _, i := range []uint64{99, 301} {
		if _, ok := b.loop.ProofAt(i); ok {
			t.Errorf("there is a proof at %d", i)
		}
	}

	var snap bytes.Buffer
	s, err := a.loop.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteTo(t.Context(), &snap); err != nil {
		t.Fatal(err)
	}
	c := newWorld(t)
	if err := c.loop.Restore(t.Context(), &snap); err != nil {
		t.Fatal(err)
	}
	more := a.log.add(t, entries(50)...)
	for _, w := range []*world{a, c} {
		if err := w.loop.Apply(t.Context(), more, 350); err != nil {
			t.Fatal(err)
		}
	}
	if low, high := c.loop.Proven(); low != 300 || high != 350 {
		t.Errorf("the restored one knows %d to %d", low, high)
	}
	if at := sameFrom(a, c, 300, 350); at != 0 {
		t.Errorf("after the snapshot the proofs differ at %d", at)
	}
}

// TestProofsForget: the ring keeps its length.
func TestProofsForget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.loop.proofs = newProofs(petrel.Applied{}, 10)
	w.apply(entries(7)...)
	if low, high := w.loop.Proven(); low != 0 || high != 7 {
		t.Errorf("%d to %d", low, high)
	}
	w.apply(entries(25)...)
	if low, high := w.loop.Proven(); low != 23 || high != 32 {
		t.Errorf("%d to %d", low, high)
	}
	if _, ok := w.loop.ProofAt(22); ok {
		t.Error("22 is still known")
	}
	if d, ok := w.loop.DigestAt(32); !ok || d != w.loop.Applied().Digest {
		t.Error("the digest at the end is not the projection's")
	}
}

// TestProofNoticesAClock: what a fold writes from its own clock shows in no outcome, and in the proof at once.
func TestProofNoticesAClock(t *testing.T) {
	t.Parallel()
	clocked := toy()
	clocked.Fold = func(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
		if m, ok := ev.(event.MemberAdded); ok && s.Index == 4 {
			_, err := tx.Exec(`INSERT INTO toy_member VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET version = excluded.version`, m.Room, m.User, time.Now().UnixNano())
			return 0, err
		}
		return foldToy(tx, s, ev)
	}
	a, b := newWorld(t), newWorld(t, func(o *Options) { o.Domains = []Domain{clocked} })
	recs := a.log.add(t, entries(9)...)
	for _, w := range []*world{a, b} {
		if err := w.loop.Apply(t.Context(), recs, 9); err != nil {
			t.Fatal(err)
		}
	}
	if a.loop.Applied().Digest != b.loop.Applied().Digest {
		t.Error("the outcomes differ: this test is about what they do not show")
	}
	if at := sameFrom(a, b, 0, 9); at != 4 {
		t.Errorf("the first difference is found at %d, want 4", at)
	}
}

// TestProofsWhileApplying is for the race detector: a comparison needs no quiet moment.
func TestProofsWhileApplying(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	recs := w.log.add(t, entries(600)...)
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			for {
				low, high := w.loop.Proven()
				if _, ok := w.loop.ProofAt(high); !ok || low > high {
					t.Errorf("%d to %d is not known", low, high)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := 0; i < len(recs); i += 3 {
		if err := w.loop.Apply(t.Context(), recs[i:i+3], uint64(i)+3); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	readers.Wait()
}
