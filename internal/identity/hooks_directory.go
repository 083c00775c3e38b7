package identity

import (
	"maps"
	"slices"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// hookTable is the part of the directory's snapshot that webhooks need. Like the snapshot it is never written once it is current:
// every change makes new maps.
type hookTable struct {
	of    map[petrel.AppID][]Hook    // in the order of ids; apps without any are not in it
	pairs map[petrel.AppID][]KeyPair // the good ones, oldest first
}

func newHookTable() hookTable {
	return hookTable{of: map[petrel.AppID][]Hook{}, pairs: map[petrel.AppID][]KeyPair{}}
}

// load adds what the rows say of an app; for a table that is not yet current.
func (t hookTable) load(r *projection.Reader, a App) error {
	t.pairs[a.ID] = a.Keys
	hooks, err := Hooks(r, a.ID)
	if len(hooks) > 0 {
		t.of[a.ID] = hooks
	}
	return err
}

func (t hookTable) addKey(app petrel.AppID, p KeyPair) hookTable {
	t.pairs = maps.Clone(t.pairs)
	t.pairs[app] = append(slices.Clone(t.pairs[app]), p)
	return t
}

func (t hookTable) retireKey(app petrel.AppID, key string) hookTable {
	t.pairs = maps.Clone(t.pairs)
	t.pairs[app] = slices.DeleteFunc(slices.Clone(t.pairs[app]), func(p KeyPair) bool { return p.Key == key })
	return t
}

func (t hookTable) set(h Hook) hookTable {
	hooks := slices.Clone(t.of[h.App])
	if i := slices.IndexFunc(hooks, func(x Hook) bool { return x.ID >= h.ID }); i < 0 {
		hooks = append(hooks, h)
	} else if hooks[i].ID == h.ID {
		h.Made = hooks[i].Made
		hooks[i] = h
	} else {
		hooks = slices.Insert(hooks, i, h)
	}
	t.of = maps.Clone(t.of)
	t.of[h.App] = hooks
	return t
}

func (t hookTable) remove(app petrel.AppID, id petrel.HookID) hookTable {
	left := slices.DeleteFunc(slices.Clone(t.of[app]), func(x Hook) bool { return x.ID == id })
	t.of = maps.Clone(t.of)
	if t.of[app] = left; len(left) == 0 {
		delete(t.of, app)
	}
	return t
}

func hookOf(ev event.AppHookSet, index uint64) Hook {
	return Hook{App: ev.App, ID: ev.Hook, URL: ev.URL, Events: ev.Events, Batch: ev.Batch, Made: index}
}

// Hooks returns the webhooks of an app from memory, in the order of their ids. The slice is shared: it must not be written.
func (d *Directory) Hooks(app petrel.AppID) []Hook {
	s := d.current.Load()
	if s == nil {
		return nil
	}
	return s.hooks.of[app]
}

// AnyHooks says whether any app has a webhook.
func (d *Directory) AnyHooks() bool {
	s := d.current.Load()
	return s != nil && len(s.hooks.of) > 0
}

// Hook returns one webhook from memory.
func (d *Directory) Hook(app petrel.AppID, id petrel.HookID) (Hook, bool) {
	for _, h := range d.Hooks(app) {
		if h.ID == id {
			return h, true
		}
	}
	return Hook{}, false
}

// HooksFor returns the webhooks of an app that are told of events of a name.
func (d *Directory) HooksFor(app petrel.AppID, name string) (hooks []Hook) {
	for _, h := range d.Hooks(app) {
		if h.Wants(name) {
			hooks = append(hooks, h)
		}
	}
	return hooks
}

// SigningPair returns the pair that signs what is sent to an app's webhooks: its oldest good one.
func (d *Directory) SigningPair(app petrel.AppID) (KeyPair, bool) {
	s := d.current.Load()
	if s == nil || len(s.hooks.pairs[app]) == 0 {
		return KeyPair{}, false
	}
	return s.hooks.pairs[app][0], true
}
