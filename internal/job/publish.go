package job

import (
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Publish returns nothing: jobs are no client's business. A node that runs them hands apply a function that tells its
// runner what has come to wait (Notices).
func Publish(event.Stamp, event.Event, uint64) []petrel.Publication { return nil }

// Notice says that something waits since an event: in a lane, or somewhere in the app.
type Notice struct {
	Lane
	Due  int64 // Unix milliseconds; 0: now
	Some bool  // the lanes are not known: look through those of the app
}

// Notices tells who runs jobs what an event makes wait. What a Step reports comes back to its runner with its own answer,
// and is no news.
func Notices(s event.Stamp, ev event.Event) []Notice {
	switch ev := ev.(type) {
	case event.JobsQueued:
		var out []Notice
		for _, j := range ev.Jobs {
			n := Notice{Lane: Lane{s.App, j.Target}, Due: j.Due}
			if last := len(out) - 1; last >= 0 && out[last].Lane == n.Lane {
				out[last].Due = min(out[last].Due, n.Due)
				continue
			}
			out = append(out, n)
		}
		return out
	case event.JobsRepeated:
		return []Notice{{Lane: Lane{App: ev.App}, Some: true}}
	}
	return nil
}
