package node

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// demoAppID is the app of --demo when none was named: always the same, so that a second start finds it.
const demoAppID petrel.AppID = "1000"

// firstApp makes the app of an installation that has none. made says that it did.
func (n *Node) firstApp(ctx context.Context) (app App, made bool, err error) {
	apps, err := n.Apps(ctx)
	if err != nil {
		return App{}, false, err
	}
	if len(apps) > 0 {
		return App{}, false, nil
	}
	want := NewApp{ID: petrel.AppID(n.cfg.AppID), Key: n.cfg.AppKey, Secret: n.cfg.AppSecret, Name: "First app", Settings: n.cfg.AppSettings}
	if n.cfg.Demo {
		want.Name = "Demo"
		if want.ID == "" {
			want.ID = demoAppID
		}
	}
	if n.cfg.AppWebhook != "" { // in the same entry: a node that dies now has made both, or neither
		want.Hook = &Hook{ID: "first", URL: n.cfg.AppWebhook, Events: identity.DefaultHookEvents()}
	}
	app, err = n.CreateApp(ctx, want)
	return app, true, err
}

// notice tells the person who started the node what to open and, once, what to paste.
func (n *Node) notice(w io.Writer, app App, made bool) error {
	url := n.cfg.scheme() + n.Addr()
	fmt.Fprintf(w, "\nPetrel is ready.\n\n  open     %s\n", url)
	if addr := n.TLSAddr(); addr != "" {
		fmt.Fprintf(w, "  or       https://%s\n", addr)
	}
	fmt.Fprintf(w, "  admin    http://%s/healthz\n", n.AdminAddr())
	if n.cfg.Demo {
		fmt.Fprintf(w, "  pusher   %s/examples/pusher.html\n\nThis is the demo: open the page in two browsers and choose two names.\n", url)
	}
	if !made {
		_, err := fmt.Fprintln(w)
		return err
	}
	if n.cfg.AppSecret != "" {
		_, err := fmt.Fprintf(w, "\nThe first app is %s, as configured.\n\n", app.ID)
		return err
	}
	token, err := n.MintToken(context.Background(), app.ID, "ada", 24*time.Hour)
	if err != nil {
		return err
	}
	key := app.Keys[0]
	_, err = fmt.Fprintf(w, `
The data folder was empty and has its first app now. This is shown once; later,
`+"`petrel app show %s --data %s`"+` shows it again.

  app      %s
  key      %s
  secret   %s

A token for the user "ada", good for a day, to paste into the page or to try:

  %s

  curl %s/v1/rooms -H 'Authorization: Bearer %s' \
    -H 'Content-Type: application/json' -d '{"id":"lobby","kind":"open"}'

`, app.ID, n.cfg.Data, app.ID, key.Key, key.Secret, token.Token, url, token.Token)
	return err
}
