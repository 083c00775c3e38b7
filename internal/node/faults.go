package node

import (
	"time"

	"github.com/petrel-chat/petrel/internal/api"
	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// Faults are the seams at which tests of the checker plant bugs, and set a clock wrong. Production leaves Options.Faults
// nil; a build with the tag "faults" can set the clock alone. Each field may be nil.
type Faults struct {
	// Now is the clock that stamps entries and checks tokens.
	Now func() time.Time
	// Log changes how the log is opened.
	Log func(o *raftlog.Options)
	// Domains are between the log and the folds.
	Domains func(domains []apply.Domain) []apply.Domain
	// Publish is between apply and the hub.
	Publish func(pubs []petrel.Publication) []petrel.Publication
	// Hub changes how the hub reads history and encodes.
	Hub func(o *hub.Options)
	// Desk is between the edges and the commands.
	Desk func(desk api.Desk) api.Desk
}

func (f *Faults) now() func() time.Time {
	if f == nil || f.Now == nil {
		return time.Now
	}
	return f.Now
}

func (f *Faults) log(o *raftlog.Options) {
	if f != nil && f.Log != nil {
		f.Log(o)
	}
}

func (f *Faults) domains(domains []apply.Domain) []apply.Domain {
	if f == nil || f.Domains == nil {
		return domains
	}
	return f.Domains(domains)
}

func (f *Faults) publish(pubs []petrel.Publication) []petrel.Publication {
	if f == nil || f.Publish == nil {
		return pubs
	}
	return f.Publish(pubs)
}

func (f *Faults) hub(o hub.Options) *hub.Hub {
	if f != nil && f.Hub != nil {
		f.Hub(&o)
	}
	return hub.New(o)
}

func (f *Faults) desk(desk api.Desk) api.Desk {
	if f == nil || f.Desk == nil {
		return desk
	}
	return f.Desk(desk)
}
