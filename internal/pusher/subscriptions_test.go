package pusher

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// deaf hears nothing of its subscriptions.
type deaf struct{}

func (deaf) Send([]byte) error            { return nil }
func (deaf) TrySend([]byte) (bool, error) { return true, nil }
func (deaf) NotifyRoom(func())            {}

// TestSubscriptions: few and many are kept alike.
func TestSubscriptions(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	for _, n := range []int{0, 1, fewSubs, fewSubs + 1, 3 * fewSubs} {
		var all subscriptions
		var names []string
		for i := range n {
			name := fmt.Sprintf("channel-%02d", i)
			sub, err := w.hub.Subscribe(hub.Request{Channel: petrel.PusherChannel("1001", name), Subscriber: deaf{}, Wire: wireSocket})
			if err != nil {
				t.Fatal(err)
			}
			defer sub.Close()
			all.add(sub)
			names = append(names, name)
		}
		for len(names) > 0 {
			var got []string
			for s := range all.all() {
				got = append(got, s.Channel().Name)
			}
			if slices.Sort(got); !slices.Equal(got, names) || all.len() != len(names) {
				t.Fatalf("%d of %d: %q", all.len(), len(names), got)
			}
			i := len(names) / 2
			name := names[i]
			if s := all.of(name); s == nil || s.Channel().Name != name || all.remove(name) != s {
				t.Fatalf("of %d: %s is not removed", n, name)
			}
			names = slices.Delete(names, i, i+1)
			if all.of(name) != nil || all.remove(name) != nil {
				t.Fatalf("of %d: %s is there after it was removed", n, name)
			}
		}
		if all.len() != 0 || all.of("channel-00") != nil {
			t.Fatalf("%d of %d are left", all.len(), n)
		}
	}
}

// TestLately: what costs something is asked a few times, whatever the number of those who want to know.
func TestLately(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked, last := 0, false
		fn := lately(func() bool { asked++; return last })
		for range 1000 {
			if fn() {
				t.Fatal("true")
			}
		}
		last = true
		<-time.After(lookEvery)
		for range 1000 {
			if !fn() {
				t.Fatal("it is what it was")
			}
		}
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
	})
}
