package job

import (
	"encoding/base64"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Shown is a job as callers and operators see it.
type Shown struct {
	ID          string       `json:"id" doc:"Says which entry of the log queued it."`
	App         petrel.AppID `json:"app"`
	Kind        string       `json:"kind" doc:"What is done, e.g. webhook."`
	Target      string       `json:"target,omitempty" doc:"Whom it is done to, e.g. the webhook's id."`
	State       string       `json:"state" enum:"waiting,running,done,dead"`
	Event       string       `json:"event_id" doc:"The same in every attempt."`
	Attempts    int          `json:"attempts" doc:"Begun so far."`
	Failures    int          `json:"failures" doc:"Of them failed, since it was queued or last repeated."`
	Interrupted int          `json:"interrupted" doc:"Of them ended with their node, so that nobody knows what they did."`
	QueuedAt    string       `json:"queued_at"`
	DueAt       string       `json:"due_at,omitempty" doc:"Of one that waits."`
	BegunAt     string       `json:"begun_at,omitempty" doc:"Of one that runs."`
	EndedAt     string       `json:"ended_at,omitempty" doc:"Of one that is done or dead."`
	Error       string       `json:"error,omitempty" doc:"Of the last attempt that failed."`
	Body        string       `json:"body,omitempty" doc:"As it was queued, if it is text. Only when one job is read, and until it is done."`
	Base64      string       `json:"body_base64,omitempty" doc:"The same, if it is not."`
}

// Show makes the form that people and callers see.
func (j Job) Show() Shown {
	s := Shown{
		ID: j.ID.String(), App: j.App, Kind: j.Kind, Target: j.Target, State: j.State.String(), Event: j.Event,
		Attempts: j.Attempts, Failures: j.Failures, Interrupted: j.Interrupted, QueuedAt: moment(j.QueuedAt), Error: j.Error,
	}
	switch j.State {
	case Waiting:
		s.DueAt = moment(j.Due)
	case Running:
		s.BegunAt = moment(j.At)
	case Done, Dead:
		s.EndedAt = moment(j.At)
	}
	if utf8.Valid(j.Body) {
		s.Body = string(j.Body)
	} else {
		s.Base64 = base64.StdEncoding.EncodeToString(j.Body)
	}
	return s
}

// ShownLedger is a ledger as callers and operators see it: accepted = waiting + running + done + dead + discarded.
type ShownLedger struct {
	App         petrel.AppID `json:"app"`
	Accepted    uint64       `json:"accepted" doc:"Jobs ever queued: waiting + running + done + dead + discarded."`
	Waiting     uint64       `json:"waiting"`
	Running     uint64       `json:"running"`
	Done        uint64       `json:"done"`
	Dead        uint64       `json:"dead" doc:"Given up: read why, then repeat or discard them."`
	Discarded   uint64       `json:"discarded"`
	Attempts    uint64       `json:"attempts" doc:"Begun, of all jobs together."`
	Failed      uint64       `json:"failed" doc:"Of them failed."`
	Interrupted uint64       `json:"interrupted" doc:"Of them ended with their node."`
	Repeated    uint64       `json:"repeated" doc:"Dead jobs that were given another round."`
}

// Show makes the form that people and callers see.
func (l Ledger) Show() ShownLedger {
	return ShownLedger{
		App: l.App, Accepted: l.Accepted, Waiting: l.Waiting, Running: l.Running, Done: l.Done, Dead: l.Dead, Discarded: l.Discarded,
		Attempts: l.Attempts, Failed: l.Failed, Interrupted: l.Interrupted, Repeated: l.Repeated,
	}
}

// Names are the ids as callers see them.
func Names(ids []ID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id.String()
	}
	return out
}

func moment(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }
