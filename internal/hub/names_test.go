package hub

import (
	"fmt"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestNames: channels are found by their names, also where names have the same hash.
func TestNames(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		x, model := byName{}, map[petrel.Channel]*channel{}
		hash := func(ch petrel.Channel) key { return key(len(ch.Name)) }
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			ch := petrel.PusherChannel("app", rapid.StringMatching("[ab]{1,3}").Draw(t, "name"))
			if c := x.get(hash(ch), ch); c != model[ch] {
				t.Fatalf("%v: %p, want %p", ch, c, model[ch])
			}
			if c := model[ch]; c != nil {
				x.drop(hash(ch), c)
				delete(model, ch)
			} else {
				model[ch] = &channel{name: ch}
				x.put(hash(ch), model[ch])
			}
			var got, want []string
			for c := range x.all() {
				got = append(got, c.name.Name)
			}
			for ch := range model {
				want = append(want, ch.Name)
			}
			slices.Sort(got)
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

// TestNamesMayShrinkWhileGoneThrough: what is dropped on the way is not met again, and everything else is met.
func TestNamesMayShrinkWhileGoneThrough(t *testing.T) {
	t.Parallel()
	x := byName{}
	for i := range 12 {
		x.put(key(i%3), &channel{name: petrel.PusherChannel("app", fmt.Sprint(i))})
	}
	met := 0
	for c := range x.all() {
		met++
		for k := range key(3) {
			if x.get(k, c.name) == c {
				x.drop(k, c)
			}
		}
	}
	if met != 12 || len(x) != 0 {
		t.Errorf("met %d of 12, %d left", met, len(x))
	}
}

// TestSizes: what there is one of for each connection stays small. Each is a size that the allocator has.
func TestSizes(t *testing.T) {
	t.Parallel()
	if got := unsafe.Sizeof(Subscription{}); got > 64 {
		t.Errorf("a subscription takes %d bytes", got)
	}
	if got := unsafe.Sizeof(channel{}); got > 128 {
		t.Errorf("a channel takes %d bytes", got)
	}
}
