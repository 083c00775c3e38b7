package identity

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// hook decides a command about a webhook and folds what came of it.
func (w *world) hook(cmd command) (h Hook, repeated bool, err error) {
	w.T.Helper()
	p, err := w.plan(cmd)
	if err != nil {
		return Hook{}, false, err
	}
	if len(p.Decision.Events) > 0 {
		if o := w.Append(p.Entry)[0]; o.Conflicted {
			w.T.Fatalf("%s: %+v", cmd.CommandKind(), o)
		}
	}
	return p.Decision.Answer(p.Entry.Stamp(uint64(len(w.Records))), nil).(Hook), p.Decision.Repeated, nil
}

func (w *world) mustHook(cmd command) Hook {
	w.T.Helper()
	h, _, err := w.hook(cmd)
	if err != nil {
		w.T.Fatalf("%s: %v", cmd.CommandKind(), err)
	}
	return h
}

func goodHook(id petrel.HookID) Hook {
	return Hook{App: "1", ID: id, URL: "https://shop.example/" + string(id), Events: []string{"*"}}
}

// TestHooks: a webhook from its making to its end, in rows and directory alike.
func TestHooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")}) // entry 1
	w.actor = petrel.Actor{Kind: petrel.ActorApp, App: "1"}
	set := SetHook{Hook{App: "1", ID: "b", URL: "https://shop.example/b", Events: []string{"message.*", HookMemberAdded, "message.*"}}}
	made := w.mustHook(set) // 2
	want := Hook{App: "1", ID: "b", URL: "https://shop.example/b", Events: []string{HookMemberAdded, "message.*"}, Made: 2}
	if d := cmp.Diff(want, made); d != "" {
		t.Error(d)
	}
	if again, repeated, err := w.hook(set); err != nil || !repeated || !cmp.Equal(again, want) {
		t.Errorf("the same again: %+v, %v, %v", again, repeated, err)
	}
	w.mustHook(SetHook{goodHook("a")}) // 3
	set.Hook.URL, set.Hook.Batch = "http://other.example:8080/x?y=z", true
	changed := w.mustHook(set) // 4
	want.URL, want.Batch = set.Hook.URL, true
	if d := cmp.Diff(want, changed); d != "" {
		t.Error("a change is no other hook:", d)
	}
	w.mustHook(SetHook{goodHook("c")}) // 5
	var ids []string
	for _, h := range w.dir.Hooks("1") {
		ids = append(ids, string(h.ID))
	}
	if d := cmp.Diff([]string{"a", "b", "c"}, ids); d != "" {
		t.Error(d)
	}
	if got := w.dir.HooksFor("1", "message.new"); len(got) != 3 {
		t.Errorf("%d hooks are told of messages", len(got))
	}
	if got := w.dir.HooksFor("1", "room.created"); len(got) != 2 || got[1].ID != "c" {
		t.Errorf("%v are told of rooms", got)
	}
	if h, ok := w.dir.Hook("1", "b"); !ok || !cmp.Equal(h, want) {
		t.Errorf("found %+v, %v", h, ok)
	}
	w.agree()

	// Removed and made again, it is another: who meant the first does not end the second.
	w.mustHook(RemoveHook{App: "1", ID: "b"}) // 6
	if _, _, err := w.hook(RemoveHook{App: "1", ID: "b"}); petrel.CodeOf(err) != petrel.CodeNotFound {
		t.Errorf("removed twice: %v", err)
	}
	if h := w.mustHook(set); h.Made != 7 {
		t.Errorf("made again: %+v", h)
	}
	w.actor = petrel.Actor{Kind: petrel.ActorSystem, App: "1"}
	if _, _, err := w.hook(RemoveHook{App: "1", ID: "b", Made: 2, Reason: "its receiver answered 410"}); petrel.CodeOf(err) != petrel.CodeNotFound {
		t.Errorf("the first is gone: %v", err)
	}
	w.agree()
	w.mustHook(RemoveHook{App: "1", ID: "b", Made: 7, Reason: "its receiver answered 410"})
	w.restore()
	if _, ok := w.dir.Hook("1", "b"); ok || len(w.dir.Hooks("1")) != 2 {
		t.Errorf("left: %v", w.dir.Hooks("1"))
	}
	w.agree()
}

// TestSigningPair: the oldest good key signs, whatever came and went.
func TestSigningPair(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, ok := w.dir.SigningPair("1"); ok {
		t.Error("an app that is not there signs")
	}
	w.must(CreateApp{App: "1", Pair: pair("z")})
	w.must(AddKey{App: "1", Pair: pair("a")})
	w.must(AddKey{App: "1", Pair: pair("b")})
	for _, step := range []struct {
		cmd  command
		want string
	}{{nil, "z"}, {RetireKey{App: "1", Key: "a"}, "z"}, {RetireKey{App: "1", Key: "z"}, "b"}, {AddKey{App: "1", Pair: pair("c")}, "b"}} {
		if step.cmd != nil {
			w.must(step.cmd)
		}
		if p, ok := w.dir.SigningPair("1"); !ok || p != pair(step.want) {
			t.Errorf("%s signs, not %s", p.Key, step.want)
		}
	}
	w.agree()
}

// TestWhoMayChangeHooks: the app's own backend and operators; the system may only remove.
func TestWhoMayChangeHooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")})
	w.must(CreateApp{App: "2", Pair: pair("k2")})
	for _, c := range []struct {
		actor       petrel.Actor
		set, remove bool
	}{
		{petrel.Actor{Kind: petrel.ActorOperator}, true, true},
		{petrel.Actor{Kind: petrel.ActorApp, App: "1"}, true, true},
		{petrel.Actor{Kind: petrel.ActorSystem, App: "1"}, false, true},
		{petrel.Actor{Kind: petrel.ActorApp, App: "2"}, false, false},
		{petrel.Actor{Kind: petrel.ActorUser, App: "1", User: "ada"}, false, false},
		{petrel.Actor{}, false, false},
	} {
		w.actor = operator
		w.mustHook(SetHook{goodHook("there")})
		w.actor = c.actor
		_, _, err := w.hook(SetHook{goodHook(petrel.HookID("by-" + c.actor.Kind.String()))})
		if (err == nil) != c.set || err != nil && petrel.CodeOf(err) != petrel.CodeForbidden {
			t.Errorf("set by %+v: %v", c.actor, err)
		}
		_, _, err = w.hook(RemoveHook{App: "1", ID: "there"})
		if (err == nil) != c.remove || err != nil && petrel.CodeOf(err) != petrel.CodeForbidden {
			t.Errorf("remove by %+v: %v", c.actor, err)
		}
	}
	w.agree()
}

// TestHookFields: every field is refused outside its limits, and nothing is changed by that.
func TestHookFields(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")})
	set := func(change func(*Hook)) command {
		h := goodHook("h")
		change(&h)
		return SetHook{h}
	}
	addr := func(s string) command { return set(func(h *Hook) { h.URL = s }) }
	n := len(w.Records)
	for _, c := range []struct {
		cmd  command
		want petrel.Code
	}{
		{addr(""), petrel.CodeInvalidField},
		{addr("shop.example/hooks"), petrel.CodeInvalidField},
		{addr("//shop.example/hooks"), petrel.CodeInvalidField},
		{addr("ftp://shop.example/"), petrel.CodeInvalidField},
		{addr("file:///etc/passwd"), petrel.CodeInvalidField},
		{addr("https:shop.example"), petrel.CodeInvalidField},
		{addr("https://"), petrel.CodeInvalidField},
		{addr("https://:443/"), petrel.CodeInvalidField},
		{addr("https://user@shop.example/"), petrel.CodeInvalidField},
		{addr("https://user:pass@shop.example/"), petrel.CodeInvalidField},
		{addr("https://shop.example/#x"), petrel.CodeInvalidField},
		{addr("https://shop.example/#"), petrel.CodeInvalidField},
		{addr("https://shop.example:0/"), petrel.CodeInvalidField},
		{addr("https://shop.example:65536/"), petrel.CodeInvalidField},
		{addr("https://shop.example:x/"), petrel.CodeInvalidField},
		{addr("https://shop.example/a b"), petrel.CodeInvalidField},
		{addr("https://shop.example/\r\nX: y"), petrel.CodeInvalidField},
		{addr("https://läden.example/"), petrel.CodeInvalidField},
		{addr("https://shop.example/%zz"), petrel.CodeInvalidField},
		{addr("https://shop.example/" + strings.Repeat("a", MaxHookURL)), petrel.CodeTooLarge},
		{set(func(h *Hook) { h.Events = nil }), petrel.CodeInvalidField},
		{set(func(h *Hook) { h.Events = []string{"*", "channel_ocupied"} }), petrel.CodeInvalidField},
		{set(func(h *Hook) { h.Events = []string{""} }), petrel.CodeInvalidField},
		{set(func(h *Hook) { h.ID = "" }), petrel.CodeInvalidID},
		{set(func(h *Hook) { h.ID = "a/b" }), petrel.CodeInvalidID},
		{set(func(h *Hook) { h.App = "404" }), petrel.CodeAppNotFound},
		{set(func(h *Hook) { h.App = "" }), petrel.CodeInvalidID},
		{RemoveHook{App: "1", ID: "none"}, petrel.CodeNotFound},
		{RemoveHook{App: "404", ID: "none"}, petrel.CodeAppNotFound},
		{RemoveHook{App: "1", ID: ""}, petrel.CodeInvalidID},
		{RemoveHook{App: "1", ID: "h", Reason: strings.Repeat("r", MaxHookReason+1)}, petrel.CodeTooLarge},
	} {
		if _, _, err := w.hook(c.cmd); petrel.CodeOf(err) != c.want {
			t.Errorf("%+v: %v, want %s", c.cmd, err, c.want)
		}
	}
	if len(w.Records) != n {
		t.Error("a refusal changed something")
	}
	for _, s := range []string{"http://127.0.0.1:8080/", "https://[2001:db8::1]:8443/x?y=z&a=%20", "https://shop.example", "HTTPS://SHOP.EXAMPLE/"} {
		w.mustHook(addr(s))
	}
	w.mustHook(addr("https://shop.example/" + strings.Repeat("a", MaxHookURL-21)))
	w.agree()
}

// TestHookLimit: ten of an app; two that come at once as the tenth are one.
func TestHookLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")})
	for i := range MaxHooks - 1 {
		w.mustHook(SetHook{goodHook(petrel.HookID(fmt.Sprint("h", i)))})
	}
	var entries []*event.Entry
	for _, id := range []petrel.HookID{"x", "y"} {
		p, err := w.plan(SetHook{goodHook(id)})
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, p.Entry)
	}
	if o := w.Append(entries...); o[0].Conflicted || !o[1].Conflicted {
		t.Errorf("two at once: %+v", o)
	}
	if _, _, err := w.hook(SetHook{goodHook("y")}); petrel.CodeOf(err) != petrel.CodeLimitReached {
		t.Errorf("the eleventh: %v", err)
	}
	h := goodHook("x")
	h.URL = "https://other.example/"
	w.mustHook(SetHook{h})
	if got, err := view(w, func(r *projection.Reader) ([]Hook, error) { return Hooks(r, "1") }); err != nil || len(got) != MaxHooks {
		t.Errorf("%d hooks, %v", len(got), err)
	}
	w.agree()
}

func TestHookPatterns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		events string
		name   string
		want   bool
	}{
		{"*", "client_event", true},
		{"*", "message.new", true},
		{"message.*", "message.new", true},
		{"message.*", "messages.new", false},
		{"message.*", "member.added", false},
		{"member.*", "member_added", false},
		{"member_added", "member_added", true},
		{"member_added", "member_removed", false},
		{"channel_occupied room.deleted", "room.deleted", true},
		{"channel_occupied room.deleted", "room.created", false},
		{"", "room.created", false},
	} {
		if got := (Hook{Events: strings.Fields(c.events)}).Wants(c.name); got != c.want {
			t.Errorf("%q wants %s: %v", c.events, c.name, got)
		}
	}
	for _, e := range DefaultHookEvents() {
		if !slices.Contains(HookEvents(), e) || e == HookClientEvent {
			t.Errorf("%s is a default", e)
		}
	}
	if id := NewSetHook(Hook{}).Hook.ID; len(id) != 11 || NewSetHook(Hook{}).Hook.ID == id || NewSetHook(Hook{ID: "x"}).Hook.ID != "x" {
		t.Errorf("made up: %q", id)
	}
}

// TestAppBeginsWithAHook: app, settings and webhook come in one entry, or none of them.
func TestAppBeginsWithAHook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bad := goodHook("first")
	bad.URL = "ftp://shop.example/"
	for _, h := range []Hook{bad, {ID: "first", URL: "https://shop.example/", Events: []string{"nothing"}}, {ID: "a b", URL: "https://shop.example/", Events: []string{"*"}}} {
		if _, _, err := w.do(CreateApp{App: "1", Pair: pair("k1"), Hook: h}); err == nil || len(w.Records) != 0 {
			t.Errorf("%+v: %v, %d entries", h, err, len(w.Records))
		}
	}
	h := goodHook("first")
	h.App = ""
	w.must(CreateApp{App: "1", Pair: pair("k1"), Settings: "max_batch=20", Hook: h})
	if len(w.Records) != 1 {
		t.Errorf("%d entries, want 1", len(w.Records))
	}
	want := goodHook("first")
	want.Made = 1
	if d := cmp.Diff([]Hook{want}, w.dir.Hooks("1")); d != "" {
		t.Error(d)
	}
	w.must(CreateApp{App: "1", Pair: pair("k1"), Hook: goodHook("second")})
	if hooks := w.dir.Hooks("1"); len(hooks) != 1 {
		t.Errorf("a repeat changed the webhooks: %+v", hooks)
	}
	w.agree()
}
