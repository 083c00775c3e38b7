package identity

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/scripttest"
)

// TestScripts runs testdata/*.txt (scripttest). A step is one or more lines: commands (create APP KEY SECRET NAME…, add APP KEY SECRET, retire APP KEY, suspend APP REASON…, resume APP, configure APP NAME=VALUE…; "-" is
// an empty word), "as operator|user|app APP", "named USER" (an entry names a user), "known APP USER", "gate KIND APP", "apps",
// "token KEY SECRET USER TTL", "call KEY SECRET [USER]", "wait TIME", "restore". A step that begins with "together" decides its
// other lines on one snapshot and folds them in one batch.
func TestScripts(t *testing.T) {
	t.Parallel()
	scripttest.Run(t, func(t *testing.T) scripttest.Story {
		w := newWorld(t)
		return scripttest.Story{Step: func(lines []string) string { return strings.Join(w.step(lines), "\n") }, End: w.agree}
	})
}

func (w *world) step(lines []string) (out []string) {
	if lines[0] != "together" {
		for _, line := range lines {
			out = append(out, w.line(words(line)))
		}
		return out
	}
	var entries []*event.Entry
	for _, line := range lines[1:] {
		p, err := w.plan(w.command(words(line)))
		if err != nil {
			w.T.Fatalf("%s: %v", line, err)
		}
		entries = append(entries, p.Entry)
	}
	for _, o := range w.Append(entries...) {
		out = append(out, map[bool]string{true: "conflicted", false: "folded"}[o.Conflicted])
	}
	return out
}

// words splits a line; there are always six at least.
func words(line string) []string {
	f := strings.Fields(line)
	for i := range f {
		if f[i] == "-" {
			f[i] = ""
		}
	}
	for len(f) < 6 {
		f = append(f, "")
	}
	return f
}

func (w *world) command(f []string) command {
	id := petrel.AppID(f[1])
	switch f[0] {
	case "create":
		return CreateApp{App: id, Name: rest(f[4:]), Pair: KeyPair{f[2], Secret(f[3])}}
	case "add":
		return AddKey{App: id, Pair: KeyPair{f[2], Secret(f[3])}}
	case "retire":
		return RetireKey{App: id, Key: f[2]}
	case "suspend":
		return SuspendApp{App: id, Reason: rest(f[2:])}
	case "resume":
		return ResumeApp{App: id}
	case "configure":
		changes := map[string]string{}
		for _, c := range f[2:] {
			if name, value, ok := strings.Cut(c, "="); ok {
				changes[name] = value
			}
		}
		return ConfigureApp{App: id, Changes: changes}
	}
	return nil
}

func rest(f []string) string { return strings.TrimSpace(strings.Join(f, " ")) }

func (w *world) line(f []string) string {
	if cmd := w.command(f); cmd != nil {
		n := len(w.Records)
		app, repeated, err := w.do(cmd)
		switch {
		case err != nil && len(w.Records) != n:
			w.T.Errorf("%v was refused but appended something", f)
		case err != nil:
			return refusal(err)
		case repeated && len(w.Records) != n:
			w.T.Errorf("%v is a repeat but appended something", f)
		case repeated:
			return "repeated: " + show(app)
		}
		return show(app)
	}
	switch f[0] {
	case "as":
		w.actor = petrel.Actor{App: petrel.AppID(f[2])}
		w.actor.Kind = map[string]petrel.ActorKind{"operator": petrel.ActorOperator, "app": petrel.ActorApp, "user": petrel.ActorUser}[f[1]]
		return f[1]
	case "named":
		w.Append(w.entry(nil, event.UserCreated{User: petrel.UserID(f[1])}))
		return "folded"
	case "known":
		known, err := view(w, func(r *projection.Reader) (bool, error) {
			return UserKnown(r, petrel.AppID(f[1]), petrel.UserID(f[2]))
		})
		return answer(fmt.Sprint(known), err)
	case "gate":
		kind := map[string]petrel.ActorKind{"operator": petrel.ActorOperator, "app": petrel.ActorApp, "user": petrel.ActorUser, "system": petrel.ActorSystem}[f[1]]
		return answer("passes", w.Store.View(w.T.Context(), func(r *projection.Reader) error {
			return Gate(r, petrel.Actor{Kind: kind, App: petrel.AppID(f[2]), User: "ada"})
		}))
	case "apps":
		apps, err := view(w, func(r *projection.Reader) ([]App, error) { return Apps(r, "", 0) })
		lines := []string{fmt.Sprintf("%d apps", len(apps))}
		for _, a := range apps {
			lines = append(lines, show(a))
		}
		return answer(strings.Join(lines, "\n"), err)
	case "token":
		ttl, err := time.ParseDuration(f[4])
		if err != nil {
			w.T.Fatal(err)
		}
		token, _, err := MintToken(KeyPair{f[1], Secret(f[2])}, petrel.UserID(f[3]), w.now, ttl)
		if err != nil {
			return refusal(err)
		}
		a, expires, err := w.dir.AuthenticateToken(token)
		return answer(fmt.Sprintf("%s %s of %s until %s", a.Kind, a.User, a.App, expires.Format(time.TimeOnly)), err)
	case "call":
		a, err := w.dir.AuthenticateKey(f[1], f[2], petrel.UserID(f[3]))
		return answer(strings.TrimSpace(fmt.Sprintf("%s %s", a.Kind, a.User))+" of "+string(a.App), err)
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.T.Fatal(err)
		}
		w.now = w.now.Add(d)
		return w.now.Format(time.TimeOnly)
	case "restore":
		w.restore()
		return "restored"
	}
	w.T.Fatalf("no such step: %v", f)
	return ""
}

func answer(s string, err error) string {
	if err != nil {
		return refusal(err)
	}
	return s
}

func refusal(err error) string {
	code, detail, _ := strings.Cut(err.Error(), ": ")
	if i := strings.Index(detail, ".: "); i >= 0 {
		detail = detail[:i+1]
	}
	return code + ": " + detail
}

func show(a App) string {
	s := fmt.Sprintf("app %s %q of %s, keys", a.ID, a.Name, a.CreatedAt.Format(time.TimeOnly))
	for _, k := range a.Keys {
		s += " " + k.Key
	}
	for _, set := range a.Settings.List() {
		if set.Value != set.Default {
			s += " " + set.Name + "=" + set.Value
		}
	}
	if a.Suspended {
		s += fmt.Sprintf(", suspended %q", a.Reason)
	}
	return s
}
