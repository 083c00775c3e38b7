// Package identity holds apps with their keys and webhooks, the users of each, and the answer to "who is this": user
// tokens and server calls are checked here, and nowhere else.
//
// Apps change by commands of operators (command.go, decide.go); every replica folds the events alike (fold.go).
// Who asks is answered from memory: a Directory holds every key and every app in one immutable snapshot, read
// from the projection once and carried on by the events that follow (directory.go). What an actor may do in a
// room is chat's business; here is only that operators alone change apps, and that a suspended app does nothing.
//
// # Wiring
//
// The node makes one Directory per shard, hands its Publish to apply in the place of the domain's own, and
// loads it when the shard is open and after every restored snapshot:
//
//	dir := identity.NewDirectory(identity.DirectoryOptions{OnChange: closeConnectionsOfTheSuspended})
//	domain := apply.Domain{
//		Name: "identity", Kinds: identity.Kinds(), Guards: identity.GuardKinds(),
//		Fold: identity.Fold, Version: identity.Version, Publish: dir.Publish,
//	}
//	…open store and loop…
//	err := dir.Load(ctx, store)                                      // before anybody is let in
//	loop.OnRestore(func() { if err := dir.Load(ctx, store); err != nil { fail(err) } })
//	desk := command.New(command.Options{Gate: identity.Gate, …})
//
// apply releases waiters before it publishes, so the answer to an operator's command may be there a moment before the
// directory knows of it. A node whose operators expect to use a new key at once calls Load again before it answers them.
//
// # Invariants
//
//   - A key belongs to one app for ever, retired or not: it is never given to another.
//   - An app has 1 to MaxKeys good keys. The last one cannot be retired.
//   - A token is accepted only with HS256, an exp, an iss that is a good key, and a signature by that key's own secret.
//   - An app has at most MaxHooks webhooks; the address of one is http or https, without credentials in it.
//   - Checking a credential reads nothing but the directory's snapshot: no SQLite, no lock.
//   - A secret is compared in constant time, and an unknown key costs as much as a wrong secret.
//   - No secret is printed, logged or marshalled by accident: Secret shows itself as "[redacted]" everywhere.
//     The secret of a retired key is in no row any more. (The log keeps it until a snapshot replaces that part.)
//   - Every random id, key and secret is drawn by a constructor of command.go, before the log.
//
// What callers may not rely on: the text of an error, and when exactly a second node's directory hears of a
// change (when it has applied it). Every refusal is a petrel.Error; any other error means that the projection failed.
package identity

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Limits.
const (
	MaxKeys   = 10  // good keys of one app
	MaxName   = 200 // bytes of an app's name: UTF-8 without control characters
	MaxReason = 500 // bytes of a suspension's reason: the same
	MaxKey    = 64  // bytes of a key, of A–Z a–z 0–9 _ - . (no colon: HTTP Basic ends the key with one)
	MinSecret = 4   // bytes of a secret, printable ASCII without spaces. Short ones are allowed because other servers had them; made ones have 40
	MaxSecret = 128 //
	MaxPage   = 1_000
)

// App is a tenant as an operator sees it.
type App struct {
	ID        petrel.AppID
	Name      string
	CreatedAt time.Time // UTC, milliseconds
	Suspended bool
	Reason    string    // of the suspension; for operators, never shown to the app's users
	Keys      []KeyPair // the good ones, oldest first; at least one
	Settings  Settings
}

// KeyPair is a key and its secret: with it an app's backend signs in, and signs its users' tokens.
type KeyPair struct {
	Key    string
	Secret Secret
}

// Secret is the secret half of a KeyPair. However it is formatted, logged or marshalled, it shows "[redacted]";
// string(s) is the deliberate way to see it.
type Secret string

const redacted = "[redacted]"

var (
	_ fmt.Formatter  = Secret("")
	_ slog.LogValuer = Secret("")
	_ slog.LogValuer = KeyPair{}
)

func (Secret) String() string { return redacted }

// Format implements fmt.Formatter for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and so JSON.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer: the key alone.
func (k KeyPair) LogValue() slog.Value { return slog.StringValue(k.Key) }

func (k KeyPair) String() string { return k.Key + ":" + redacted }

// Module is the part of the projection that identity keeps.
func Module() projection.Module {
	return projection.Module{Name: "identity", Migrations: []string{schema, schemaSettings, hookSchema}}
}

// Kinds returns every kind of event that Fold takes.
func Kinds() []event.Kind {
	return []event.Kind{
		event.KindAppCreated, event.KindAppKeyAdded, event.KindAppKeyRetired,
		event.KindAppSuspended, event.KindAppResumed, event.KindUserCreated, event.KindAppConfigured,
		event.KindAppHookSet, event.KindAppHookRemoved,
	}
}

// GuardKinds returns every kind of guard that Version answers.
func GuardKinds() []event.GuardKind {
	return []event.GuardKind{event.GuardApp, event.GuardUser, event.GuardKey}
}

// Refusals that more than one place gives.
func errSuspended() error {
	return petrel.Errorf(petrel.CodeAppSuspended, "This app is suspended. Only the operator of this installation can resume it.")
}

func errNoApp(id petrel.AppID) error {
	return petrel.Errorf(petrel.CodeAppNotFound, "There is no app %q here.", id)
}
