package identity

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"
	"strconv"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// The commands. Only operators may give them (CodeForbidden). Each answers with the App as it is afterwards, and
// repeating one is harmless: what is already so is answered again as Repeated, without an entry.

// CreateApp founds an app with its first key pair. NewCreateApp makes up what is not chosen.
// The same id with the same pair is a repeat, whatever the name; with another pair, or a key that was ever
// another app's: CodeIDReused.
type CreateApp struct {
	App  petrel.AppID
	Name string // 0 to MaxName bytes
	Pair KeyPair
	// Settings are what the app begins with, as ParseSettings reads them. A repeat does not look at them.
	Settings string
	// Hook is a webhook that it begins with; one without a URL is none. A repeat does not look at it. Its App is the new one.
	Hook Hook
}

// AddKey gives an app one more pair; the older ones stay good. NewAddKey makes one up.
// CodeLimitReached beyond MaxKeys, CodeIDReused when the key was ever given with another secret or to another app.
type AddKey struct {
	App  petrel.AppID
	Pair KeyPair
}

// RetireKey ends a key: tokens and calls signed with it are refused from then on. The last good key stays
// (CodeForbidden); a key that the app never had is CodeNotFound.
type RetireKey struct {
	App petrel.AppID
	Key string
}

// SuspendApp refuses everything of the app until it is resumed. Another reason replaces the one there is.
type SuspendApp struct {
	App    petrel.AppID
	Reason string // 0 to MaxReason bytes, for operators
}

// ResumeApp ends a suspension.
type ResumeApp struct{ App petrel.AppID }

// ConfigureApp changes settings of an app: names to values as ParseSettings reads them, "" for the default. What is not named stays.
// CodeInvalidField for a name that there is not, or a value that cannot be.
type ConfigureApp struct {
	App     petrel.AppID
	Changes map[string]string
}

// NewCreateApp returns the command with whatever is empty made up: a numeric id of nine digits (some SDKs of the
// Pusher family accept nothing else), a key of 20 and a secret of 40 hexadecimal digits.
func NewCreateApp(app petrel.AppID, name, key string, secret Secret) CreateApp {
	if app == "" {
		n, _ := rand.Int(rand.Reader, big.NewInt(900_000_000)) // never fails (Go 1.24)
		app = petrel.AppID(strconv.FormatInt(100_000_000+n.Int64(), 10))
	}
	return CreateApp{App: app, Name: name, Pair: newPair(key, secret)}
}

// NewAddKey returns the command with key and secret made up where they are empty.
func NewAddKey(app petrel.AppID, key string, secret Secret) AddKey {
	return AddKey{App: app, Pair: newPair(key, secret)}
}

func newPair(key string, secret Secret) KeyPair {
	if key == "" {
		key = randomHex(20)
	}
	if secret == "" {
		secret = Secret(randomHex(40))
	}
	return KeyPair{key, secret}
}

func randomHex(digits int) string {
	b := make([]byte, digits/2)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}

// CommandKind names the kind of command: a label of metrics.
func (CreateApp) CommandKind() string { return "identity.create_app" }

// CommandKind is as in CreateApp.
func (AddKey) CommandKind() string { return "identity.add_key" }

// CommandKind is as in CreateApp.
func (RetireKey) CommandKind() string { return "identity.retire_key" }

// CommandKind is as in CreateApp.
func (SuspendApp) CommandKind() string { return "identity.suspend_app" }

// CommandKind is as in CreateApp.
func (ResumeApp) CommandKind() string { return "identity.resume_app" }

// CommandKind is as in CreateApp.
func (ConfigureApp) CommandKind() string { return "identity.configure_app" }

// Decide founds the app, finds it, or refuses.
func (c CreateApp) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := firstOf(checkActor(s.Actor), checkApp(c.App), checkText("name", c.Name, MaxName), checkPair(c.Pair)); err != nil {
		return event.Decision{}, err
	}
	app, key, err := load(r, c.App, c.Pair.Key)
	if err != nil {
		return event.Decision{}, err
	}
	return decideCreateApp(app, key, c)
}

// Decide adds the key, finds it, or refuses.
func (c AddKey) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := firstOf(checkActor(s.Actor), checkApp(c.App), checkPair(c.Pair)); err != nil {
		return event.Decision{}, err
	}
	app, key, err := load(r, c.App, c.Pair.Key)
	if err != nil {
		return event.Decision{}, err
	}
	return decideAddKey(app, key, c)
}

// Decide retires the key or refuses.
func (c RetireKey) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := firstOf(checkActor(s.Actor), checkApp(c.App), checkKey(c.Key)); err != nil {
		return event.Decision{}, err
	}
	app, key, err := load(r, c.App, c.Key)
	if err != nil {
		return event.Decision{}, err
	}
	return decideRetireKey(app, key, c)
}

// Decide suspends the app or refuses.
func (c SuspendApp) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := firstOf(checkActor(s.Actor), checkApp(c.App), checkText("reason", c.Reason, MaxReason)); err != nil {
		return event.Decision{}, err
	}
	app, err := loadApp(r, c.App)
	if err != nil {
		return event.Decision{}, err
	}
	return decideSuspendApp(app, c)
}

// Decide resumes the app or refuses.
func (c ResumeApp) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := firstOf(checkActor(s.Actor), checkApp(c.App)); err != nil {
		return event.Decision{}, err
	}
	app, err := loadApp(r, c.App)
	if err != nil {
		return event.Decision{}, err
	}
	return decideResumeApp(app, c)
}

// Decide changes the settings or refuses.
func (c ConfigureApp) Decide(r *projection.Reader, s event.Stamp) (event.Decision, error) {
	if err := firstOf(checkActor(s.Actor), checkApp(c.App)); err != nil {
		return event.Decision{}, err
	}
	app, err := loadApp(r, c.App)
	if err != nil {
		return event.Decision{}, err
	}
	return decideConfigureApp(app, c)
}

func load(r *projection.Reader, id petrel.AppID, key string) (a appRow, k keyRow, err error) {
	if a, err = loadApp(r, id); err == nil {
		k, err = loadKey(r, key)
	}
	return a, k, err
}
