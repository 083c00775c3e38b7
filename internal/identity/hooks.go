package identity

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Limits of webhooks.
const (
	MaxHooks      = 10    // of one app
	MaxHookURL    = 2_048 // bytes
	MaxHookReason = 500   // bytes of why one was removed
)

// Events of channels that a webhook may be told of (Pusher's names).
const (
	HookChannelOccupied   = "channel_occupied"
	HookChannelVacated    = "channel_vacated"
	HookMemberAdded       = "member_added"
	HookMemberRemoved     = "member_removed"
	HookClientEvent       = "client_event"
	HookCacheMiss         = "cache_miss"
	HookSubscriptionCount = "subscription_count"
)

// HookScheduleDue is told when a schedule of the app is due.
const HookScheduleDue = "schedule.due"

// hookEvents are the names that a webhook may ask for: Pusher's, those of chat, and patterns. It is never written
// after initialisation.
var hookEvents = []string{
	"*",
	HookChannelOccupied, HookChannelVacated, HookMemberAdded, HookMemberRemoved, HookClientEvent, HookCacheMiss, HookSubscriptionCount,
	"room.*", "room.created", "room.updated", "room.deleted",
	"member.*", "member.added", "member.updated", "member.removed",
	"message.*", "message.new", "message.updated", "message.deleted",
	"schedule.*", HookScheduleDue,
}

// HookEvents returns every name and pattern that a webhook may ask for.
func HookEvents() []string { return slices.Clone(hookEvents) }

// DefaultHookEvents is what the webhook of a first app is told of: all but client_event, which makes an entry of the log of
// every one that a client sends, and is asked for by name.
func DefaultHookEvents() []string {
	return []string{
		HookCacheMiss, HookChannelOccupied, HookChannelVacated, HookMemberAdded, HookMemberRemoved, HookSubscriptionCount,
		"member.*", "message.*", "room.*", "schedule.*",
	}
}

// Hook is a webhook of an app: where it is sent, and what.
type Hook struct {
	App    petrel.AppID
	ID     petrel.HookID
	URL    string   // http or https; may hold secrets in its query: not for logs
	Events []string // names and patterns, in order, each once
	Batch  bool     // what is due together may go in one call
	// Made is the index of the entry that first set it: one that was removed and set again is another. Its commands ignore it.
	Made uint64
}

// Wants reports whether the hook is told of events of this name.
func (h Hook) Wants(name string) bool {
	for _, e := range h.Events {
		if e == name || e == "*" || strings.HasSuffix(e, ".*") && strings.HasPrefix(name, e[:len(e)-1]) {
			return true
		}
	}
	return false
}

// SetHook gives an app a webhook, or changes the one by that id. The app itself and operators may. It answers with the
// Hook. CodeLimitReached beyond MaxHooks.
type SetHook struct{ Hook Hook }

// RemoveHook ends a webhook. The app itself, operators and the system may. It answers with the Hook as it was; one that
// is not there is CodeNotFound.
type RemoveHook struct {
	App petrel.AppID
	ID  petrel.HookID
	// Made, if not 0: only the one that was made there; another by the same id stays, and is CodeNotFound too.
	Made   uint64
	Reason string
}

// NewSetHook returns the command with an id made up where it is empty.
func NewSetHook(h Hook) SetHook {
	if h.ID == "" {
		h.ID = petrel.HookID("h" + randomHex(10))
	}
	return SetHook{h}
}

// CommandKind is as in CreateApp.
func (SetHook) CommandKind() string { return "identity.set_hook" }

// CommandKind is as in CreateApp.
func (RemoveHook) CommandKind() string { return "identity.remove_hook" }

// Decide sets the hook, finds it so, or refuses.
func (c SetHook) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	events, err := checkHookEvents(c.Hook.Events)
	if err := firstOf(checkHookActor(s.Actor, c.Hook.App, false), checkApp(c.Hook.App), checkHookID(c.Hook.ID), CheckHookURL(c.Hook.URL), err); err != nil {
		return event.Decision{}, err
	}
	c.Hook.Events = events
	app, err := loadApp(r, c.Hook.App)
	if err != nil {
		return event.Decision{}, err
	}
	hooks, err := Hooks(r, c.Hook.App)
	if err != nil {
		return event.Decision{}, err
	}
	return decideSetHook(app, hooks, c.Hook)
}

func decideSetHook(app appRow, hooks []Hook, h Hook) (event.Decision, error) {
	if app.version == 0 {
		return event.Decision{}, errNoApp(h.App)
	}
	i := slices.IndexFunc(hooks, func(x Hook) bool { return x.ID == h.ID })
	switch {
	case i < 0 && len(hooks) >= MaxHooks:
		return event.Decision{}, petrel.Errorf(petrel.CodeLimitReached, "The app %q has %d webhooks, which is the most. Remove one first.", h.App, MaxHooks)
	case i >= 0 && hooks[i].same(h):
		return event.Decision{Repeated: true, Answer: func(event.Stamp, []uint64) any { return hooks[i] }}, nil
	case i >= 0:
		h.Made = hooks[i].Made
	default:
		h.Made = 0
	}
	return event.Decision{
		Events: []event.Event{event.AppHookSet{App: h.App, Hook: h.ID, URL: h.URL, Events: h.Events, Batch: h.Batch}},
		Guards: []event.Guard{guardApp(h.App, app.version)}, // every change of a hook changes its app's row: their number holds still
		Answer: func(s event.Stamp, _ []uint64) any {
			if h.Made == 0 {
				h.Made = s.Index
			}
			return h
		},
	}, nil
}

func (h Hook) same(o Hook) bool {
	return h.URL == o.URL && h.Batch == o.Batch && slices.Equal(h.Events, o.Events)
}

// Decide removes the hook or refuses.
func (c RemoveHook) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := firstOf(checkHookActor(s.Actor, c.App, true), checkApp(c.App), checkHookID(c.ID), checkText("reason", c.Reason, MaxHookReason)); err != nil {
		return event.Decision{}, err
	}
	app, err := loadApp(r, c.App)
	if err != nil {
		return event.Decision{}, err
	}
	if app.version == 0 {
		return event.Decision{}, errNoApp(c.App)
	}
	h, err := HookByID(r, c.App, c.ID)
	if err == nil && c.Made != 0 && c.Made != h.Made {
		err = errNoHook(c.ID)
	}
	if err != nil {
		return event.Decision{}, err
	}
	return event.Decision{
		Events: []event.Event{event.AppHookRemoved{App: c.App, Hook: c.ID, Reason: c.Reason}},
		Guards: []event.Guard{guardApp(c.App, app.version)},
		Answer: func(event.Stamp, []uint64) any { return h },
	}, nil
}

func errNoHook(id petrel.HookID) error {
	return petrel.Errorf(petrel.CodeNotFound, "The app has no webhook %q.", id)
}

func checkHookActor(a petrel.Actor, app petrel.AppID, system bool) error {
	switch {
	case a.Kind == petrel.ActorOperator, a.Kind == petrel.ActorApp && a.App == app, system && a.Kind == petrel.ActorSystem:
		return nil
	}
	return petrel.Errorf(petrel.CodeForbidden, "Only the app's own backend, with key and secret and without Petrel-User, or the operator may change its webhooks.")
}

func checkHookID(id petrel.HookID) error {
	_, err := petrel.ParseHookID(string(id))
	return err
}

// checkHookEvents returns the names in order, each once.
func checkHookEvents(events []string) ([]string, error) {
	if len(events) == 0 {
		return nil, petrel.Errorf(petrel.CodeInvalidField, "The webhook names no events. Name some of %s.", strings.Join(hookEvents, ", "))
	}
	for _, e := range events {
		if !slices.Contains(hookEvents, e) {
			return nil, petrel.Errorf(petrel.CodeInvalidField, "There are no events %.40q for a webhook. Name some of %s.", e, strings.Join(hookEvents, ", "))
		}
	}
	events = slices.Clone(events)
	slices.Sort(events)
	return slices.Compact(events), nil
}

// CheckHookURL refuses what cannot be the address of a webhook. Whether it may be reached is asked when it is called.
func CheckHookURL(s string) error {
	bad := func(format string, args ...any) error {
		return petrel.Errorf(petrel.CodeInvalidField, "The url of the webhook "+format, args...)
	}
	switch {
	case s == "":
		return bad("is empty.")
	case len(s) > MaxHookURL:
		return petrel.Errorf(petrel.CodeTooLarge, "The url of the webhook is %d bytes long; at most %d are allowed.", len(s), MaxHookURL)
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return bad("has a character outside printable ASCII: escape it.")
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return bad("cannot be read.")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("must begin with https:// or http://.")
	case u.User != nil:
		return bad("has credentials in it. Check the signature of the call instead.")
	case u.Fragment != "" || strings.HasSuffix(s, "#"):
		return bad("has a fragment, which is never sent.")
	case u.Hostname() == "" || u.Opaque != "":
		return bad("names no host.")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return bad("has no port between 1 and 65535.")
		}
	}
	return nil
}

const (
	sqlHooks = `SELECT app, id, url, events, batch, made FROM identity_hook WHERE app = ? ORDER BY id LIMIT 100`
	sqlHook  = `SELECT app, id, url, events, batch, made FROM identity_hook WHERE app = ? AND id = ?`
)

// Hooks returns the webhooks of an app in the order of their ids.
func Hooks(r *projection.Reader, app petrel.AppID) (hooks []Hook, err error) {
	err = r.Query(sqlHooks, func(row *projection.Row) error {
		hooks = append(hooks, scanHook(row))
		return nil
	}, app)
	return hooks, err
}

// HookByID returns one webhook, or CodeNotFound.
func HookByID(r *projection.Reader, app petrel.AppID, id petrel.HookID) (h Hook, err error) {
	found, err := r.Get(sqlHook, func(row *projection.Row) { h = scanHook(row) }, app, id)
	if err == nil && !found {
		err = errNoHook(id)
	}
	return h, err
}

func scanHook(row *projection.Row) Hook {
	return Hook{
		App: petrel.AppID(row.Text(0)), ID: petrel.HookID(row.Text(1)), URL: row.Text(2),
		Events: strings.Fields(row.Text(3)), Batch: row.Bool(4), Made: row.Uint(5),
	}
}
