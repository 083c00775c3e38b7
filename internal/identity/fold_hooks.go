package identity

import (
	"errors"
	"strings"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// hookSchema holds the webhooks. made and version are indexes of entries.
const hookSchema = `
CREATE TABLE identity_hook (
  app     TEXT NOT NULL,
  id      TEXT NOT NULL,
  url     TEXT NOT NULL,
  events  TEXT NOT NULL,    -- with spaces between
  batch   INTEGER NOT NULL,
  made    INTEGER NOT NULL,
  PRIMARY KEY (app, id)
) STRICT, WITHOUT ROWID;
`

const (
	sqlSetHook = `INSERT INTO identity_hook (app, id, url, events, batch, made) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (app, id) DO UPDATE SET url = excluded.url, events = excluded.events, batch = excluded.batch`
	sqlRemoveHook = `DELETE FROM identity_hook WHERE app = ? AND id = ?`
)

func foldHook(tx *projection.Tx, s event.Stamp, ev event.Event) (err error) {
	var app petrel.AppID
	switch ev := ev.(type) {
	case event.AppHookSet:
		app, err = ev.App, one(tx, sqlSetHook, ev.App, ev.Hook, ev.URL, strings.Join(ev.Events, " "), ev.Batch, s.Index)
	case event.AppHookRemoved:
		app, err = ev.App, one(tx, sqlRemoveHook, ev.App, ev.Hook)
	default:
		return errors.New("not an event of a webhook")
	}
	if err != nil {
		return err
	}
	return one(tx, sqlTouchApp, s.Index, app)
}
