package node

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// CreateApp implements Operator.
func (n *Node) CreateApp(ctx context.Context, a NewApp) (App, error) {
	if a.ID != "" {
		if _, err := petrel.ParseAppID(string(a.ID)); err != nil {
			return App{}, err
		}
		if _, err := n.App(ctx, a.ID); err == nil {
			return App{}, petrel.Errorf(petrel.CodeIDReused, "There is an app %s already. Choose another id, or leave it away to have one made up.", a.ID)
		}
	}
	c := identity.NewCreateApp(a.ID, a.Name, a.Key, identity.Secret(a.Secret))
	c.Settings = a.Settings
	if h := a.Hook; h != nil {
		c.Hook = identity.NewSetHook(identity.Hook{ID: h.ID, URL: h.URL, Events: h.Events, Batch: h.Batch}).Hook
	}
	return n.operate(ctx, c.App, c)
}

// Apps implements Operator.
func (n *Node) Apps(ctx context.Context) ([]App, error) {
	all := []App{}
	err := n.shard.store.View(ctx, func(r *projection.Reader) error {
		for after := petrel.AppID(""); ; {
			page, err := identity.Apps(r, after, identity.MaxPage)
			if err != nil {
				return err
			}
			for _, a := range page {
				all = append(all, shownApp(a))
				after = a.ID
			}
			if len(page) < identity.MaxPage {
				return nil
			}
		}
	})
	return all, err
}

// App implements Operator.
func (n *Node) App(ctx context.Context, id petrel.AppID) (App, error) {
	a, err := n.app(ctx, id)
	return shownApp(a), err
}

// AddKey implements Operator.
func (n *Node) AddKey(ctx context.Context, id petrel.AppID) (App, error) {
	return n.operate(ctx, id, identity.NewAddKey(id, "", ""))
}

// RetireKey implements Operator.
func (n *Node) RetireKey(ctx context.Context, id petrel.AppID, key string) (App, error) {
	return n.operate(ctx, id, identity.RetireKey{App: id, Key: key})
}

// Suspend implements Operator.
func (n *Node) Suspend(ctx context.Context, id petrel.AppID, reason string) (App, error) {
	return n.operate(ctx, id, identity.SuspendApp{App: id, Reason: reason})
}

// Resume implements Operator.
func (n *Node) Resume(ctx context.Context, id petrel.AppID) (App, error) {
	return n.operate(ctx, id, identity.ResumeApp{App: id})
}

// Configure implements Operator.
func (n *Node) Configure(ctx context.Context, id petrel.AppID, changes map[string]string) (App, error) {
	return n.operate(ctx, id, identity.ConfigureApp{App: id, Changes: changes})
}

// MintToken implements Operator. The app's newest key signs.
func (n *Node) MintToken(ctx context.Context, id petrel.AppID, user petrel.UserID, ttl time.Duration) (Token, error) {
	if _, err := petrel.ParseUserID(string(user)); err != nil {
		return Token{}, err
	}
	if ttl < time.Second || ttl > MaxTokenTTL {
		return Token{}, petrel.Errorf(petrel.CodeInvalidField, "The life of a token must be between a second and a year.")
	}
	a, err := n.app(ctx, id)
	if err != nil {
		return Token{}, err
	}
	text, expires, err := identity.MintToken(a.Keys[len(a.Keys)-1], user, time.Now(), ttl)
	return Token{Token: text, User: string(user), ExpiresAt: expires}, err
}

// operate carries out an operator's command and returns the app as it is afterwards. The directory is read
// anew before the answer, so that an operator can use a new key at once.
func (n *Node) operate(ctx context.Context, id petrel.AppID, c command.Command) (App, error) {
	if _, err := petrel.ParseAppID(string(id)); err != nil {
		return App{}, err
	}
	if _, err := n.desk.Do(ctx, petrel.Actor{Kind: petrel.ActorOperator}, command.Meta{}, c); err != nil {
		return App{}, err
	}
	if err := n.directory.Load(ctx, n.shard.store); err != nil {
		return App{}, err
	}
	n.logger.Info("an operator changed an app", "kind", c.CommandKind(), "app", id)
	return n.App(ctx, id)
}

func (n *Node) app(ctx context.Context, id petrel.AppID) (a identity.App, err error) {
	err = n.shard.store.View(ctx, func(r *projection.Reader) error {
		a, err = identity.AppByID(r, id)
		return err
	})
	return a, err
}

func shownApp(a identity.App) App {
	shown := App{ID: a.ID, Name: a.Name, CreatedAt: a.CreatedAt, Suspended: a.Suspended, Reason: a.Reason, Keys: []Key{}}
	for _, k := range a.Keys {
		shown.Keys = append(shown.Keys, Key{Key: k.Key, Secret: string(k.Secret)})
	}
	for _, s := range a.Settings.List() {
		shown.Settings = append(shown.Settings, Setting{Name: s.Name, Value: s.Value, Default: s.Default})
	}
	return shown
}
