package identity

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func decideCreateApp(app appRow, key keyRow, c CreateApp) (event.Decision, error) {
	switch {
	case app.version != 0 && key.is(c.App, c.Pair.Secret):
		return unchanged(app), nil
	case app.version != 0:
		return event.Decision{}, petrel.Errorf(petrel.CodeIDReused, "There is an app %q with other keys. Choose another id, or add a key to that app.", c.App)
	case key.version != 0:
		return event.Decision{}, errKeyTaken(c.Pair.Key)
	}
	changes, err := ParseSettings(c.Settings)
	if err != nil {
		return event.Decision{}, err
	}
	set, err := withChanges(nil, changes)
	if err != nil {
		return event.Decision{}, err
	}
	d := event.Decision{
		Events: []event.Event{event.AppCreated{App: c.App, Name: c.Name}, added(c.App, c.Pair)},
		Guards: []event.Guard{guardApp(c.App, 0), guardKey(c.Pair.Key, 0)},
		Answer: func(s event.Stamp, _ []uint64) any {
			return App{ID: c.App, Name: c.Name, CreatedAt: time.UnixMilli(s.At).UTC(), Keys: []KeyPair{c.Pair}, Settings: settingsOf(set)}
		},
	}
	if len(set) > 0 {
		d.Events = append(d.Events, event.AppConfigured{App: c.App, Settings: set})
	}
	if h := c.Hook; h.URL != "" {
		names, err := checkHookEvents(h.Events)
		if err := firstOf(checkHookID(h.ID), CheckHookURL(h.URL), err); err != nil {
			return event.Decision{}, err
		}
		d.Events = append(d.Events, event.AppHookSet{App: c.App, Hook: h.ID, URL: h.URL, Events: names, Batch: h.Batch})
	}
	return d, nil
}

func decideAddKey(app appRow, key keyRow, c AddKey) (event.Decision, error) {
	switch {
	case app.version == 0:
		return event.Decision{}, errNoApp(c.App)
	case key.is(c.App, c.Pair.Secret):
		return unchanged(app), nil
	case key.version != 0:
		return event.Decision{}, errKeyTaken(c.Pair.Key)
	case len(app.Keys) >= MaxKeys:
		return event.Decision{}, petrel.Errorf(petrel.CodeLimitReached, "The app %q has %d good keys, which is the most. Retire one first.", c.App, MaxKeys)
	}
	after := app.App
	after.Keys = append(slices.Clone(app.Keys), c.Pair)
	return changed(after, []event.Guard{guardApp(c.App, app.version), guardKey(c.Pair.Key, 0)}, added(c.App, c.Pair)), nil
}

func decideRetireKey(app appRow, key keyRow, c RetireKey) (event.Decision, error) {
	switch {
	case app.version == 0:
		return event.Decision{}, errNoApp(c.App)
	case key.app != c.App:
		return event.Decision{}, petrel.Errorf(petrel.CodeNotFound, "The app %q has no key %q.", c.App, c.Key)
	case key.retired:
		return unchanged(app), nil
	case len(app.Keys) == 1:
		return event.Decision{}, petrel.Errorf(petrel.CodeForbidden, "The key %q is the last one of the app %q. Add another first.", c.Key, c.App)
	}
	after := app.App
	after.Keys = slices.DeleteFunc(slices.Clone(app.Keys), func(k KeyPair) bool { return k.Key == c.Key })
	return changed(after, []event.Guard{guardApp(c.App, app.version)}, event.AppKeyRetired{App: c.App, Key: c.Key}), nil
}

func decideSuspendApp(app appRow, c SuspendApp) (event.Decision, error) {
	switch {
	case app.version == 0:
		return event.Decision{}, errNoApp(c.App)
	case app.Suspended && app.Reason == c.Reason:
		return unchanged(app), nil
	}
	after := app.App
	after.Suspended, after.Reason = true, c.Reason
	return changed(after, []event.Guard{guardApp(c.App, app.version)}, event.AppSuspended{App: c.App, Reason: c.Reason}), nil
}

func decideResumeApp(app appRow, c ResumeApp) (event.Decision, error) {
	switch {
	case app.version == 0:
		return event.Decision{}, errNoApp(c.App)
	case !app.Suspended:
		return unchanged(app), nil
	}
	after := app.App
	after.Suspended, after.Reason = false, ""
	return changed(after, []event.Guard{guardApp(c.App, app.version)}, event.AppResumed{App: c.App}), nil
}

func decideConfigureApp(app appRow, c ConfigureApp) (event.Decision, error) {
	if app.version == 0 {
		return event.Decision{}, errNoApp(c.App)
	}
	set, err := withChanges(app.set, c.Changes)
	if err != nil {
		return event.Decision{}, err
	}
	if slices.Equal(set, app.set) {
		return unchanged(app), nil
	}
	after := app.App
	after.Settings = settingsOf(set)
	return changed(after, []event.Guard{guardApp(c.App, app.version)}, event.AppConfigured{App: c.App, Settings: set}), nil
}

// is reports whether the row is of this app's key with this secret, good or retired.
func (k keyRow) is(app petrel.AppID, secret Secret) bool {
	digest := sha256.Sum256([]byte(secret))
	return k.version != 0 && k.app == app && bytes.Equal(k.digest, digest[:])
}

func changed(after App, guards []event.Guard, events ...event.Event) event.Decision {
	return event.Decision{Events: events, Guards: guards, Answer: func(event.Stamp, []uint64) any { return after }}
}

func unchanged(app appRow) event.Decision {
	return event.Decision{Repeated: true, Answer: func(event.Stamp, []uint64) any { return app.App }}
}

func added(app petrel.AppID, p KeyPair) event.Event {
	return event.AppKeyAdded{App: app, Key: p.Key, Secret: string(p.Secret)}
}

func guardApp(app petrel.AppID, version uint64) event.Guard {
	return event.Guard{Kind: event.GuardApp, Key: []string{string(app)}, Version: version}
}

func guardKey(key string, version uint64) event.Guard {
	return event.Guard{Kind: event.GuardKey, Key: []string{key}, Version: version}
}

func errKeyTaken(key string) error {
	return petrel.Errorf(petrel.CodeIDReused, "The key %q was given before, with another secret or to another app. Choose another.", key)
}

func checkActor(a petrel.Actor) error {
	if a.Kind != petrel.ActorOperator {
		return petrel.Errorf(petrel.CodeForbidden, "Only the operator of this installation may change apps.")
	}
	return nil
}

func checkApp(id petrel.AppID) error {
	_, err := petrel.ParseAppID(string(id))
	return err
}

func checkPair(p KeyPair) error {
	if err := checkKey(p.Key); err != nil {
		return err
	}
	if len(p.Secret) < MinSecret || len(p.Secret) > MaxSecret || strings.ContainsFunc(string(p.Secret), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return petrel.Errorf(petrel.CodeInvalidField, "The secret must be %d to %d printable ASCII characters without spaces.", MinSecret, MaxSecret)
	}
	return nil
}

func checkKey(key string) error {
	if key == "" || len(key) > MaxKey || strings.ContainsFunc(key, notInKey) {
		return petrel.Errorf(petrel.CodeInvalidField, "The key must be 1 to %d characters of A–Z a–z 0–9 _ - . only.", MaxKey)
	}
	if key == "." || key == ".." { // it could never be retired
		return petrel.Errorf(petrel.CodeInvalidField, "The key is %q, which cannot stand in an address. Choose another.", key)
	}
	return nil
}

func notInKey(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_', r == '-', r == '.':
		return false
	}
	return true
}

func checkText(field, s string, limit int) error {
	switch {
	case len(s) > limit:
		return petrel.Errorf(petrel.CodeTooLarge, "The %s is %d bytes long; at most %d are allowed.", field, len(s), limit)
	case !utf8.ValidString(s):
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The %s is not UTF-8.", field)
	case strings.ContainsFunc(s, unicode.IsControl):
		return petrel.Errorf(petrel.CodeInvalidField, "The %s has a control character.", field)
	}
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
