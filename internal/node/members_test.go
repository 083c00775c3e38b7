package node

import "testing"

// TestWait: what a cell without a leader waits for, in a sentence.
func TestWait(t *testing.T) {
	t.Parallel()
	for want, w := range map[string]wait{
		"":                         {},
		"an election is under way": {voters: 3},
		"it needs 2 of the 3 nodes that vote, and has not heard of n2 at b:1 and n3 at c:1": {voters: 3, silent: []string{"n2 at b:1", "n3 at c:1"}},
	} {
		if got := w.String(); got != want {
			t.Errorf("%+v: %q; want %q", w, got, want)
		}
	}
}
