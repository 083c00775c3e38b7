package petreltest

import (
	"fmt"
	"testing"
	"time"
)

// TestDelivery runs what clients do under the checker's eyes on one node and on three, with each node restarted in turn.
func TestDelivery(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", nodes), func(t *testing.T) {
			t.Parallel()
			c := StartCell(t, CellOptions{Nodes: nodes})
			w, err := StartWorkload(t.Context(), WorkloadOptions{Sites: c.Sites(), Seed: 1, Name: "d"})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			for i := range nodes {
				moment(t.Context(), 500*time.Millisecond)
				over := w.Journal().Storm("restart")
				if err := c.Restart(t.Context(), i); err != nil {
					t.Fatal(err)
				}
				if err := c.WaitHealthy(t.Context()); err != nil {
					t.Fatal(err)
				}
				over()
			}
			moment(t.Context(), 500*time.Millisecond)
			e, findings := w.Settle(t.Context(), Patience)
			for _, f := range findings {
				t.Error(f)
			}
			t.Log(e.Summary())
		})
	}
}
