package channel

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// world is a projection, and the entries that were folded into it: guards are checked as apply does.
type world struct {
	store *projection.Store
	index uint64
	now   int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	store, err := projection.Open(t.Context(), projection.Options{Path: filepath.Join(t.TempDir(), "p.db"), Modules: []projection.Module{Module()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{store: store, now: 1_700_000_000_000}
}

type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

type decider interface {
	Decide(r *projection.Reader, s event.Stamp) (event.Decision, error)
}

func (w *world) stamp() event.Stamp {
	return event.Stamp{App: "1", Actor: petrel.Actor{Kind: petrel.ActorSystem, App: "1"}, At: w.now}
}

func (w *world) decide(t fataler, cmd decider) (d event.Decision) {
	t.Helper()
	err := w.store.View(context.Background(), func(r *projection.Reader) (err error) {
		d, err = cmd.Decide(r, w.stamp())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fold reports whether the guards held.
func (w *world) fold(t fataler, d event.Decision) (held bool) {
	t.Helper()
	if len(d.Events) == 0 {
		return true
	}
	w.index++
	s := w.stamp()
	s.Index = w.index
	err := w.store.Update(context.Background(), func(tx *projection.Tx) error {
		for _, g := range d.Guards {
			v, err := Version(&tx.Reader, s, g)
			if err != nil || v != g.Version {
				return err
			}
		}
		held = true
		for _, ev := range d.Events {
			if seq, err := Fold(tx, s, ev); err != nil || seq != 0 {
				return fmt.Errorf("seq %d: %w", seq, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return held
}

func (w *world) state(t fataler, ch string) (st State) {
	t.Helper()
	err := w.store.View(context.Background(), func(r *projection.Reader) (err error) {
		st, err = StateOf(r, "1", ch)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (w *world) set(t fataler, c SetState) *event.ChannelStateSet {
	t.Helper()
	d := w.decide(t, c)
	if changed := d.Answer(w.stamp(), nil).(bool); changed != (len(d.Events) == 1) {
		t.Fatalf("%+v answers %v with %d events", c, changed, len(d.Events))
	}
	if !w.fold(t, d) {
		t.Fatal("alone, and conflicted")
	}
	if len(d.Events) == 0 {
		return nil
	}
	ev := d.Events[0].(event.ChannelStateSet)
	return &ev
}

func users(names ...string) (out []petrel.UserID) {
	for _, n := range names {
		out = append(out, petrel.UserID(n))
	}
	return out
}

// TestState: what is told of a channel, from its first subscriber to its last.
func TestState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const ch = "presence-lobby"
	for i, step := range []struct {
		cmd  SetState
		want *event.ChannelStateSet
	}{
		{SetState{}, nil},
		{SetState{Left: users("ada")}, nil},
		{SetState{Joined: users("ada")}, nil}, // nobody joins what is not occupied
		{SetState{Occupied: true}, &event.ChannelStateSet{Occupied: true}},
		{SetState{Occupied: true}, nil},
		{SetState{Occupied: true, Joined: users("bob", "ada", "bob")}, &event.ChannelStateSet{Occupied: true, Was: true, Joined: users("ada", "bob")}},
		{SetState{Occupied: true, Joined: users("bob", "cy"), Left: users("ada", "dee")}, &event.ChannelStateSet{Occupied: true, Was: true, Joined: users("cy"), Left: users("ada")}},
		{SetState{Occupied: true, Count: 7}, nil},
		{SetState{Occupied: true, Count: 7, Counted: true}, &event.ChannelStateSet{Occupied: true, Was: true, Count: 7, Counted: true}},
		{SetState{Occupied: true, Count: 7, Counted: true}, nil},
		{SetState{Occupied: true, Joined: users("ada"), Count: 9}, &event.ChannelStateSet{Occupied: true, Was: true, Joined: users("ada"), Count: 7}},
		{SetState{}, nil}, // members are there
		{SetState{Left: users("bob")}, &event.ChannelStateSet{Occupied: true, Was: true, Left: users("bob"), Count: 7}},
		{SetState{Left: users("ada", "cy")}, &event.ChannelStateSet{Was: true, Left: users("ada", "cy"), Counted: true}},
		{SetState{}, nil},
		{SetState{Occupied: true, Joined: users("ada"), Count: 2, Counted: true}, &event.ChannelStateSet{Occupied: true, Joined: users("ada"), Count: 2, Counted: true}},
		{SetState{Left: users("ada")}, &event.ChannelStateSet{Was: true, Left: users("ada"), Counted: true}},
	} {
		step.cmd.Channel = ch
		if step.want != nil {
			step.want.Channel = ch
		}
		if d := cmp.Diff(step.want, w.set(t, step.cmd)); d != "" {
			t.Fatalf("step %d, %+v:\n%s", i, step.cmd, d)
		}
	}
	if st := w.state(t, ch); st.Version != 0 || st.Occupied || len(st.Members) > 0 {
		t.Errorf("something is left: %+v", st)
	}
}

// TestStateRaces: of two owners who decided on one state, one writes it down; the other decides again, and finds nothing new.
func TestStateRaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	occupied := SetState{Channel: "a", Occupied: true}
	one, two := w.decide(t, occupied), w.decide(t, occupied)
	if !w.fold(t, one) || w.fold(t, two) {
		t.Error("both told that it is occupied")
	}
	if again := w.decide(t, occupied); len(again.Events) != 0 {
		t.Error("and again")
	}
	one, two = w.decide(t, SetState{Channel: "a"}), w.decide(t, SetState{Channel: "a", Occupied: true, Count: 1, Counted: true})
	if !w.fold(t, two) || w.fold(t, one) {
		t.Error("a state that changed was overwritten")
	}
}

// TestStateAgainstModel: the rows are what the events add up to, whatever is asked for.
func TestStateAgainstModel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	type told struct {
		occupied bool
		members  map[petrel.UserID]bool
		count    uint64
	}
	model := map[string]*told{}
	names := rapid.SampledFrom([]string{"presence-a", "presence-b", "c"})
	some := rapid.SliceOfN(rapid.SampledFrom(users("ada", "bob", "cy", "dee", "Ünal B.")), 0, 5)
	rapid.Check(t, func(rt *rapid.T) {
		for range 20 {
			c := SetState{
				Channel: names.Draw(rt, "channel"), Joined: some.Draw(rt, "joined"), Left: some.Draw(rt, "left"),
				Occupied: rapid.Bool().Draw(rt, "occupied"), Count: rapid.IntRange(0, 3).Draw(rt, "count"), Counted: rapid.Bool().Draw(rt, "counted"),
			}
			m := model[c.Channel]
			if m == nil {
				m = &told{members: map[petrel.UserID]bool{}}
				model[c.Channel] = m
			}
			if ev := w.set(rt, c); ev != nil {
				if ev.Was != m.occupied {
					rt.Fatalf("%+v: it was %v", ev, m.occupied)
				}
				m.occupied, m.count = ev.Occupied, ev.Count
				for _, user := range ev.Left {
					if !m.members[user] {
						rt.Fatalf("%s leaves without having been there", user)
					}
					delete(m.members, user)
				}
				for _, user := range ev.Joined {
					if m.members[user] {
						rt.Fatalf("%s joins twice", user)
					}
					m.members[user] = true
				}
				if !m.occupied && len(m.members) > 0 {
					rt.Fatalf("vacated with %v in it", m.members)
				}
			}
			st := w.state(rt, c.Channel)
			if st.Occupied != m.occupied || st.Occupied && st.Count != m.count || !slices.Equal(st.Members, slices.Sorted(maps.Keys(m.members))) {
				rt.Fatalf("rows %+v, told %+v", st, m)
			}
		}
	})
}

func TestStatesInPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 7 {
		w.set(t, SetState{Channel: fmt.Sprint("c", i), Occupied: true})
	}
	var got []string
	for app, ch := petrel.AppID(""), ""; ; {
		var page []State
		err := w.store.View(t.Context(), func(r *projection.Reader) (err error) {
			page, err = States(r, app, ch, 3)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range page {
			app, ch = st.App, st.Channel
			got = append(got, string(app)+" "+ch)
		}
		if len(page) < 3 {
			break
		}
	}
	if d := cmp.Diff([]string{"1 c0", "1 c1", "1 c2", "1 c3", "1 c4", "1 c5", "1 c6"}, got); d != "" {
		t.Error(d)
	}
}

// TestMiss: once in a while for a channel, and what is remembered is bounded.
func TestMiss(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	miss := func(ch string) bool {
		d := w.decide(t, Miss{Channel: ch})
		if !w.fold(t, d) {
			t.Fatal("conflicted")
		}
		return d.Answer(w.stamp(), nil).(bool)
	}
	if !miss("cache-a") || miss("cache-a") || !miss("cache-b") {
		t.Error("a miss is told once")
	}
	one, two := w.decide(t, Miss{Channel: "cache-c"}), w.decide(t, Miss{Channel: "cache-c"})
	if !w.fold(t, one) || w.fold(t, two) {
		t.Error("two nodes told it")
	}
	w.now += MissEvery.Milliseconds() - 1
	if miss("cache-a") {
		t.Error("told too soon")
	}
	if w.now++; !miss("cache-a") {
		t.Error("not told again")
	}
	w.now += keepMisses + 1
	miss("cache-z")
	err := w.store.View(t.Context(), func(r *projection.Reader) error {
		for _, ch := range []string{"cache-a", "cache-b", "cache-c"} {
			if v, err := Version(r, w.stamp(), event.Guard{Kind: event.GuardChannelMiss, Key: []string{ch}}); err != nil || v != 0 {
				t.Errorf("%s is still remembered: %d, %v", ch, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOnlyTheSystem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, a := range []petrel.Actor{{}, {Kind: petrel.ActorSystem}, {Kind: petrel.ActorApp, App: "1"}, {Kind: petrel.ActorOperator}, {Kind: petrel.ActorUser, App: "1", User: "ada"}} {
		for _, cmd := range []decider{SetState{Channel: "a", Occupied: true}, Miss{Channel: "cache-a"}} {
			err := w.store.View(t.Context(), func(r *projection.Reader) error {
				_, err := cmd.Decide(r, event.Stamp{App: a.App, Actor: a})
				return err
			})
			if petrel.CodeOf(err) != petrel.CodeForbidden {
				t.Errorf("%T by %+v: %v", cmd, a, err)
			}
		}
	}
	many := SetState{Channel: "a", Occupied: true, Joined: make([]petrel.UserID, MaxStep+1)}
	err := w.store.View(t.Context(), func(r *projection.Reader) error {
		_, err := many.Decide(r, w.stamp())
		return err
	})
	if petrel.CodeOf(err) != petrel.CodeTooLarge {
		t.Error(err)
	}
}

func TestGuardsOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, g := range []event.Guard{{Kind: event.GuardRoom, Key: []string{"x"}}, {Kind: event.GuardChannel}} {
		err := w.store.View(t.Context(), func(r *projection.Reader) error {
			_, err := Version(r, w.stamp(), g)
			return err
		})
		if err == nil {
			t.Errorf("%+v was answered", g)
		}
	}
	err := w.store.Update(t.Context(), func(tx *projection.Tx) error {
		_, err := Fold(tx, w.stamp(), event.UserCreated{User: "ada"})
		return err
	})
	if err == nil {
		t.Error("another domain's event was folded")
	}
	if pubs := Publish(w.stamp(), event.ChannelMissed{Channel: "cache-a"}, 0); pubs != nil {
		t.Error("published")
	}
}

// TestNoFullScans: every statement of the package, found in its source, costs what it returns.
func TestNoFullScans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := 0
	for _, name := range []string{"fold.go", "query.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			spec, ok := node.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(spec.Names[0].Name, "sql") {
				return true
			}
			sql, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			n++
			err = w.store.View(t.Context(), func(r *projection.Reader) error {
				if full, plan := projection.ExplainFullScan(r, sql); full {
					t.Errorf("%s walks a whole table:\n%s", spec.Names[0].Name, plan)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			return true
		})
	}
	if n < 13 {
		t.Errorf("only %d statements were found", n)
	}
}
