package petreltest

import (
	"testing"
	"time"
)

// TestFleet: a cell of three processes under the checker's eyes, without faults.
func TestFleet(t *testing.T) {
	t.Parallel()
	f := StartFleet(t, FleetOptions{Seed: 1})
	w, err := StartWorkload(t.Context(), WorkloadOptions{Sites: f.Sites(), Seed: 1, Name: "calm", Life: f.Life})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	moment(t.Context(), 3*time.Second)
	e, findings := w.Settle(t.Context(), Patience)
	for _, finding := range findings {
		t.Error(finding)
	}
	t.Log(e.Summary())
}
