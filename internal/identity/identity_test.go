package identity

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// TestSecretsStaySecret: however a pair, or what holds one, is shown, the secret is not.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	p := pair("k1")
	things := []any{p, &p, p.Secret, App{Keys: []KeyPair{p}}, CreateApp{Pair: p}, AddKey{Pair: p}, []KeyPair{p}, map[string]any{"p": p}}
	var out strings.Builder
	text, js := slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))
	for _, v := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		text.Info("a thing", "thing", v)
		js.Info("a thing", "thing", v)
	}
	shown := strings.ToLower(out.String())
	secret := string(p.Secret)
	for _, form := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprint([]byte(secret))} {
		if i := strings.Index(shown, form); i >= 0 {
			t.Errorf("shown: …%s", out.String()[max(0, i-60):i+len(form)])
		}
	}
	if !strings.Contains(shown, redacted) || p.String() != "k1:[redacted]" {
		t.Error("nothing says that a secret was left out")
	}
	if string(p.Secret) != "secret-of-k1-0123456789" {
		t.Error("the deliberate way to see it is gone")
	}
}

func TestWhatIsMadeUp(t *testing.T) {
	t.Parallel()
	hex := regexp.MustCompile(`^[0-9a-f]+$`)
	seen := map[string]bool{}
	for range 20 {
		c, k := NewCreateApp("", "", "", ""), NewAddKey("100", "", "")
		if !regexp.MustCompile(`^[1-9][0-9]{8}$`).MatchString(string(c.App)) {
			t.Errorf("app id %q", c.App)
		}
		for _, p := range []KeyPair{c.Pair, k.Pair} {
			if len(p.Key) != 20 || !hex.MatchString(p.Key) || len(p.Secret) != 40 || !hex.MatchString(string(p.Secret)) || checkPair(p) != nil {
				t.Errorf("a pair of %d and %d characters: %v", len(p.Key), len(p.Secret), checkPair(p))
			}
			if seen[p.Key] || seen[string(p.Secret)] {
				t.Error("made twice")
			}
			seen[p.Key], seen[string(p.Secret)] = true, true
		}
	}
	if c := NewCreateApp("7", "n", "k", "s"); !cmp.Equal(c, CreateApp{App: "7", Name: "n", Pair: KeyPair{"k", "s"}}) {
		t.Error("what was chosen is not kept")
	}
}

// TestFields: every field is refused outside its limits, and nothing is changed by that.
func TestFields(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	create := func(change func(*CreateApp)) command {
		c := CreateApp{App: "1", Name: "n", Pair: pair("k")}
		change(&c)
		return c
	}
	key := func(s string) command { return create(func(c *CreateApp) { c.Pair.Key = s }) }
	secret := func(s string) command { return create(func(c *CreateApp) { c.Pair.Secret = Secret(s) }) }
	title := func(s string) command { return create(func(c *CreateApp) { c.Name = s }) }
	for _, c := range []struct {
		cmd  command
		want petrel.Code
	}{
		{key(""), petrel.CodeInvalidField},
		{key(strings.Repeat("k", MaxKey+1)), petrel.CodeInvalidField},
		{key("k:"), petrel.CodeInvalidField},
		{key("."), petrel.CodeInvalidField},
		{key(".."), petrel.CodeInvalidField},
		{key("k "), petrel.CodeInvalidField},
		{key("k\x00"), petrel.CodeInvalidField},
		{key("ключ"), petrel.CodeInvalidField},
		{key("\xff"), petrel.CodeInvalidField},
		{secret(strings.Repeat("s", MinSecret-1)), petrel.CodeInvalidField},
		{secret(strings.Repeat("s", MaxSecret+1)), petrel.CodeInvalidField},
		{secret(strings.Repeat("s", MinSecret) + " "), petrel.CodeInvalidField},
		{secret(strings.Repeat("s", MinSecret) + "\x7f"), petrel.CodeInvalidField},
		{secret(strings.Repeat("é", MinSecret)), petrel.CodeInvalidField},
		{title(strings.Repeat("n", MaxName+1)), petrel.CodeTooLarge},
		{title("a\nb"), petrel.CodeInvalidField},
		{title("\xff"), petrel.CodeInvalidUTF8},
		{create(func(c *CreateApp) { c.App = "" }), petrel.CodeInvalidID},
		{create(func(c *CreateApp) { c.App = "a b" }), petrel.CodeInvalidID},
		{AddKey{App: "a b", Pair: pair("k")}, petrel.CodeInvalidID},
		{AddKey{App: "1", Pair: KeyPair{"k", "abc"}}, petrel.CodeInvalidField},
		{RetireKey{App: "1", Key: "k:"}, petrel.CodeInvalidField},
		{SuspendApp{App: "1", Reason: strings.Repeat("r", MaxReason+1)}, petrel.CodeTooLarge},
		{SuspendApp{App: "1", Reason: "\x00"}, petrel.CodeInvalidField},
		{ResumeApp{}, petrel.CodeInvalidID},
	} {
		if _, _, err := w.do(c.cmd); petrel.CodeOf(err) != c.want || leaks(err) {
			t.Errorf("%s %+v: %v, want %s", c.cmd.CommandKind(), c.cmd, err, c.want)
		}
	}
	if len(w.Records) != 0 {
		t.Error("a refusal changed something")
	}
	longest := CreateApp{
		App: petrel.AppID(strings.Repeat("1", petrel.MaxNameLen)), Name: strings.Repeat("é", MaxName/2),
		Pair: KeyPair{strings.Repeat("k", MaxKey), Secret(strings.Repeat("s", MaxSecret))},
	}
	w.must(longest)
	w.must(SuspendApp{App: longest.App, Reason: strings.Repeat("r", MaxReason)})
	w.agree()
}

// TestNobodyButOperators: every command, every other kind of actor.
func TestNobodyButOperators(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, kind := range []petrel.ActorKind{0, petrel.ActorUser, petrel.ActorApp, petrel.ActorSystem} {
		w.actor = petrel.Actor{Kind: kind, App: "100", User: "ada"}
		for _, c := range []command{CreateApp{App: "1", Pair: pair("k")}, AddKey{App: "1", Pair: pair("k")}, RetireKey{App: "1", Key: "k"}, SuspendApp{App: "1"}, ResumeApp{App: "1"}} {
			if _, _, err := w.do(c); petrel.CodeOf(err) != petrel.CodeForbidden {
				t.Errorf("%s by %s: %v", c.CommandKind(), kind, err)
			}
		}
	}
}

func TestAppsInPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 7 {
		w.must(CreateApp{App: petrel.AppID(strconv.Itoa(100 + i)), Pair: pair(fmt.Sprint("k", i))})
	}
	var got []petrel.AppID
	for after := petrel.AppID(""); ; {
		page, err := view(w, func(r *projection.Reader) ([]App, error) { return Apps(r, after, 3) })
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range page {
			after = a.ID
			got = append(got, a.ID)
			if len(a.Keys) != 1 {
				t.Errorf("%s has %d keys", a.ID, len(a.Keys))
			}
		}
		if len(page) < 3 {
			break
		}
	}
	if d := cmp.Diff([]petrel.AppID{"100", "101", "102", "103", "104", "105", "106"}, got); d != "" {
		t.Error(d)
	}
}

// TestARetiredSecretIsInNoRow: what a key's holder must not use any more, the projection does not keep.
func TestARetiredSecretIsInNoRow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")})
	w.must(AddKey{App: "1", Pair: pair("k2")})
	w.must(RetireKey{App: "1", Key: "k1"})
	kept := map[string]string{}
	err := w.Store.View(t.Context(), func(r *projection.Reader) error {
		return r.Query(`SELECT key, secret FROM identity_key`, func(row *projection.Row) error {
			kept[row.Text(0)] = row.Text(1)
			return nil
		})
	})
	if d := cmp.Diff(map[string]string{"k1": "", "k2": string(pair("k2").Secret)}, kept); err != nil || d != "" {
		t.Error(err, d)
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")}) // entry 1
	w.must(AddKey{App: "1", Pair: pair("k2")})    // 2
	w.must(RetireKey{App: "1", Key: "k1"})        // 3
	w.actor = petrel.Actor{Kind: petrel.ActorUser, App: "1", User: "ada"}
	w.Append(w.entry(nil, event.UserCreated{User: "ada"})) // 4
	w.Append(w.entry(nil, event.UserCreated{User: "ada"}))
	for _, c := range []struct {
		kind event.GuardKind
		key  string
		want uint64
	}{
		{event.GuardApp, "1", 3},
		{event.GuardApp, "2", 0},
		{event.GuardKey, "k1", 3},
		{event.GuardKey, "k2", 2},
		{event.GuardKey, "k3", 0},
		{event.GuardUser, "ada", 4},
		{event.GuardUser, "bob", 0},
	} {
		got, err := view(w, func(r *projection.Reader) (uint64, error) {
			return Version(r, event.Stamp{App: "1"}, event.Guard{Kind: c.kind, Key: []string{c.key}})
		})
		if err != nil || got != c.want {
			t.Errorf("guard %d %s: %d, %v; want %d", c.kind, c.key, got, err, c.want)
		}
	}
	for _, g := range []event.Guard{{Kind: event.GuardRoom, Key: []string{"x"}}, {Kind: event.GuardApp}} {
		if _, err := view(w, func(r *projection.Reader) (uint64, error) { return Version(r, event.Stamp{}, g) }); err == nil {
			t.Errorf("%+v was answered", g)
		}
	}
}

// TestFoldStopsOnWhatCannotBe: events that the rows contradict mean a broken projection, not a refusal.
func TestFoldStopsOnWhatCannotBe(t *testing.T) {
	t.Parallel()
	for _, ev := range []event.Event{
		event.AppKeyAdded{App: "404", Key: "k", Secret: "s"},
		event.AppKeyRetired{App: "404", Key: "k"},
		event.AppSuspended{App: "404"},
		event.AppResumed{App: "404"},
		event.AppHookSet{App: "404", Hook: "h", URL: "https://x.example", Events: []string{"*"}},
		event.AppHookRemoved{App: "404", Hook: "h"},
		event.RoomCreated{Room: "r"},
	} {
		w := newWorld(t)
		err := w.Store.Update(t.Context(), func(tx *projection.Tx) error {
			_, err := Fold(tx, event.Stamp{Index: 1, App: "404"}, ev)
			return err
		})
		if err == nil || petrel.CodeOf(err) != petrel.CodeInternal {
			t.Errorf("%T: %v", ev, err)
		}
	}
}

// TestNoFullScans: every statement of the package, found in its source, costs what it returns.
func TestNoFullScans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := 0
	for _, name := range []string{"fold.go", "fold_hooks.go", "query.go", "hooks.go"} {
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
			_, err = view(w, func(r *projection.Reader) (struct{}, error) {
				if full, plan := projection.ExplainFullScan(r, sql); full {
					t.Errorf("%s walks a whole table:\n%s", spec.Names[0].Name, plan)
				}
				return struct{}{}, nil
			})
			if err != nil {
				t.Error(err)
			}
			return true
		})
	}
	if n < 15 {
		t.Errorf("only %d statements were found", n)
	}
}

// TestDirectoryDoesNotShowSecrets: printing a directory shows none either.
func TestDirectoryDoesNotShowSecrets(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v %+v %#v", doorkeeper(), doorkeeper(), doorkeeper())
	if strings.Contains(b.String(), "secret-of") {
		t.Error(b.String())
	}
}
