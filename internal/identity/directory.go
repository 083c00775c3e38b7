package identity

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// Store is what a Directory loads from; *projection.Store.
type Store interface {
	ViewBudget(ctx context.Context, b projection.Budget, fn func(*projection.Reader) error) error
}

var _ Store = (*projection.Store)(nil)

// loadBudget lets Load read every app and key there is; it is the node's own read, not a tenant's.
var loadBudget = projection.Budget{Steps: 50_000_000, Time: time.Minute}

// DirectoryOptions are the options of NewDirectory.
type DirectoryOptions struct {
	// Now is the clock that tokens are checked by. Default time.Now.
	Now func() time.Time
	// OnChange is called after the snapshot changed for an app: its keys, its suspension or its settings. "" after a Load: anything may
	// have changed. Gate says what is so now. It runs on apply's goroutine and must not block. nil: nobody is told.
	OnChange func(app petrel.AppID)
}

// Directory answers who asks, from memory. It holds every app and good key in one immutable snapshot, which Load
// reads and Publish carries on. The package comment says how to wire it.
type Directory struct {
	opt     DirectoryOptions
	current atomic.Pointer[snapshot] // nil before the first Load
	nobody  *sync.Pool               // *mac, for keys that are not known

	// mu makes Load and Publish take turns. Load holds it from before its read begins: what was published before is in
	// what it reads, and what is published after it waits. Taken inside apply's lock, and nothing is locked inside it but the store.
	mu sync.Mutex
}

// snapshot is never written once it is current.
type snapshot struct {
	index uint64 // of the last entry that it was read from
	apps  map[petrel.AppID]bool
	// settings of the apps that have any other than the defaults
	settings map[petrel.AppID]*Settings
	keys     map[string]signer // by key; the good ones only
	hooks    hookTable         // webhooks, and what they are signed with (hooks_directory.go)
}

// signer is one good key. apps above says whether its app is suspended.
type signer struct {
	app    petrel.AppID
	secret []byte
	digest [sha256.Size]byte // of the secret: makes comparing cost the same for every length
	macs   *sync.Pool        // *mac, with this secret
}

// NewDirectory returns a directory that refuses everybody with CodeBusy until Load.
func NewDirectory(o DirectoryOptions) *Directory {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Directory{opt: o, nobody: newMacs(nil)}
}

// Load replaces the snapshot by what the store holds now; O(apps). It may be called at any time, also within
// apply.Loop.OnRestore. After an error the snapshot is the one before: stale for ever after a restore, so the node must stop.
func (d *Directory) Load(ctx context.Context, store Store) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var next *snapshot
	err := store.ViewBudget(ctx, loadBudget, func(r *projection.Reader) (err error) {
		next, err = read(r)
		return err
	})
	if err != nil {
		return fmt.Errorf("load the directory of apps: %w", err)
	}
	d.set(next, "")
	return nil
}

func read(r *projection.Reader) (*snapshot, error) {
	applied, err := r.Applied()
	if err != nil {
		return nil, err
	}
	next := &snapshot{index: applied.Index, apps: map[petrel.AppID]bool{}, settings: map[petrel.AppID]*Settings{}, keys: map[string]signer{}, hooks: newHookTable()}
	for last := petrel.AppID(""); ; {
		page, err := Apps(r, last, MaxPage)
		if err != nil {
			return nil, err
		}
		for _, a := range page {
			next.apps[a.ID] = a.Suspended
			if a.Settings != unknownSettings {
				next.settings[a.ID] = &a.Settings
			}
			for _, k := range a.Keys {
				next.keys[k.Key] = newSigner(a.ID, string(k.Secret))
			}
			if err := next.hooks.load(r, a); err != nil {
				return nil, err
			}
			last = a.ID
		}
		if len(page) < MaxPage {
			return next, nil
		}
	}
}

// Publish takes the place of the domain's Publish in apply: it carries the snapshot on and publishes nothing. It reads
// no SQLite; an event that Load has already seen is skipped.
func (d *Directory) Publish(s event.Stamp, ev event.Event, _ uint64) []petrel.Publication {
	if _, ok := ev.(event.UserCreated); ok {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.current.Load()
	if now == nil || s.Index <= now.index {
		return nil
	}
	next := new(snapshot)
	*next = *now
	switch ev := ev.(type) {
	case event.AppCreated:
		next.suspend(ev.App, false)
		d.set(next, ev.App)
	case event.AppKeyAdded:
		next.keys = maps.Clone(now.keys)
		next.keys[ev.Key] = newSigner(ev.App, ev.Secret)
		next.hooks = now.hooks.addKey(ev.App, KeyPair{ev.Key, Secret(ev.Secret)})
		d.set(next, ev.App)
	case event.AppKeyRetired:
		next.keys = maps.Clone(now.keys)
		delete(next.keys, ev.Key)
		next.hooks = now.hooks.retireKey(ev.App, ev.Key)
		d.set(next, ev.App)
	case event.AppSuspended:
		next.suspend(ev.App, true)
		d.set(next, ev.App)
	case event.AppResumed:
		next.suspend(ev.App, false)
		d.set(next, ev.App)
	case event.AppConfigured:
		next.settings = maps.Clone(now.settings)
		if delete(next.settings, ev.App); len(ev.Settings) > 0 {
			set := settingsOf(ev.Settings)
			next.settings[ev.App] = &set
		}
		d.set(next, ev.App)
	case event.AppHookSet:
		next.hooks = now.hooks.set(hookOf(ev, s.Index))
		d.set(next, ev.App)
	case event.AppHookRemoved:
		next.hooks = now.hooks.remove(ev.App, ev.Hook)
		d.set(next, ev.App)
	}
	return nil
}

func (s *snapshot) suspend(app petrel.AppID, suspended bool) {
	s.apps = maps.Clone(s.apps)
	s.apps[app] = suspended
}

func newSigner(app petrel.AppID, secret string) signer {
	s := signer{app: app, secret: []byte(secret), digest: sha256.Sum256([]byte(secret))}
	s.macs = newMacs(s.secret)
	return s
}

func (d *Directory) set(next *snapshot, app petrel.AppID) {
	d.current.Store(next)
	if d.opt.OnChange != nil {
		d.opt.OnChange(app)
	}
}

// AuthenticateToken returns the user that a token speaks for, and when it ends (UTC, whole seconds). Refusals:
// CodeUnauthenticated for none, CodeTokenExpired, CodeInvalidToken for everything else that is wrong with it,
// CodeAppSuspended for a good one of a suspended app, CodeBusy before the first Load.
func (d *Directory) AuthenticateToken(token string) (petrel.Actor, time.Time, error) {
	s := d.current.Load()
	if s == nil {
		return petrel.Actor{}, time.Time{}, errNotLoaded()
	}
	c, err := verify(token, d.opt.Now(), func(key string) ([]byte, bool) {
		k, ok := s.keys[key]
		return k.secret, ok
	})
	if err != nil {
		return petrel.Actor{}, time.Time{}, err
	}
	app := s.keys[c.iss].app
	if err := s.gate(app); err != nil {
		return petrel.Actor{}, time.Time{}, err
	}
	return petrel.Actor{Kind: petrel.ActorUser, App: app, User: petrel.UserID(c.sub)}, c.exp.UTC(), nil
}

// AuthenticateKey returns the actor of a server call: the user if one is named, with exactly that user's rights, else the
// app itself. Refusals are VerifyKey's, CodeInvalidID for a user that cannot be one, and CodeAppSuspended.
func (d *Directory) AuthenticateKey(key, secret string, user petrel.UserID) (petrel.Actor, error) {
	app, err := d.VerifyKey(key, secret)
	if err != nil {
		return petrel.Actor{}, err
	}
	if err := d.Gate(app); err != nil {
		return petrel.Actor{}, err
	}
	if user == "" {
		return petrel.Actor{Kind: petrel.ActorApp, App: app}, nil
	}
	if _, err := petrel.ParseUserID(string(user)); err != nil {
		return petrel.Actor{}, err
	}
	return petrel.Actor{Kind: petrel.ActorUser, App: app, User: user}, nil
}

// VerifyKey returns the app of a key, suspended or not. Refusals: CodeUnauthenticated when both are empty, CodeInvalidToken
// for an unknown key or a wrong secret, which take the same time and read the same; CodeBusy before the first Load.
func (d *Directory) VerifyKey(key, secret string) (petrel.AppID, error) {
	s := d.current.Load()
	switch {
	case s == nil:
		return "", errNotLoaded()
	case key == "" && secret == "":
		return "", errNoToken()
	}
	k, ok := s.keys[key]
	got := sha256.Sum256([]byte(secret)) // of an unknown key's digest, all zero, nobody knows a source
	if same := subtle.ConstantTimeCompare(got[:], k.digest[:]); same != 1 || !ok {
		return "", petrel.Errorf(petrel.CodeInvalidToken, "Key and secret do not belong together, or the key is not good any more.")
	}
	return k.app, nil
}

// Gate is the package's Gate from memory: CodeAppSuspended, CodeAppNotFound, or nil.
func (d *Directory) Gate(app petrel.AppID) error {
	s := d.current.Load()
	if s == nil {
		return errNotLoaded()
	}
	return s.gate(app)
}

func (s *snapshot) gate(app petrel.AppID) error {
	suspended, ok := s.apps[app]
	switch {
	case !ok:
		return errNoApp(app)
	case suspended:
		return errSuspended()
	}
	return nil
}

func errNotLoaded() error {
	return petrel.Errorf(petrel.CodeBusy, "This node is still starting.").After(time.Second)
}
