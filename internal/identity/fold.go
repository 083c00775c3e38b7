package identity

import (
	"crypto/sha256"
	"fmt"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// schema holds the rows. A version is the index of the entry that last changed the row; adding or retiring a
// key changes its app's row too, so that one guard holds the number of keys still.
const schema = `
CREATE TABLE identity_app (
  id           TEXT NOT NULL PRIMARY KEY,
  name         TEXT NOT NULL,
  created_at   INTEGER NOT NULL,
  suspended_at INTEGER,
  reason       TEXT NOT NULL DEFAULT '',
  version      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE identity_key (
  key        TEXT NOT NULL PRIMARY KEY,
  app        TEXT NOT NULL,
  secret     TEXT,               -- NULL once retired
  digest     BLOB NOT NULL,      -- SHA-256 of the secret: recognises a repeat after that
  added      INTEGER NOT NULL,   -- index of the entry that added it
  retired_at INTEGER,
  version    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX identity_key_good ON identity_key (app, added) WHERE retired_at IS NULL;

CREATE TABLE identity_user (
  app        TEXT NOT NULL,
  id         TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  version    INTEGER NOT NULL,
  PRIMARY KEY (app, id)
) STRICT, WITHOUT ROWID;
`

// schemaSettings came with feature level 2: name=value, one a line, for those that differ from their defaults.
const schemaSettings = `ALTER TABLE identity_app ADD COLUMN settings TEXT NOT NULL DEFAULT '';`

const (
	sqlAddApp     = `INSERT INTO identity_app (id, name, created_at, version) VALUES (?, ?, ?, ?)`
	sqlTouchApp   = `UPDATE identity_app SET version = ? WHERE id = ?`
	sqlSuspendApp = `UPDATE identity_app SET suspended_at = ?, reason = ?, version = ? WHERE id = ?`
	sqlResumeApp  = `UPDATE identity_app SET suspended_at = NULL, reason = '', version = ? WHERE id = ?`
	sqlConfigure  = `UPDATE identity_app SET settings = ?, version = ? WHERE id = ?`
	sqlAddKey     = `INSERT INTO identity_key (key, app, secret, digest, added, version) VALUES (?, ?, ?, ?, ?, ?)`
	sqlRetireKey  = `UPDATE identity_key SET secret = NULL, retired_at = ?, version = ? WHERE key = ? AND app = ?`
	sqlAddUser    = `INSERT INTO identity_user (app, id, created_at, version) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`
	sqlAppVersion = `SELECT version FROM identity_app WHERE id = ?`
	sqlKeyVersion = `SELECT version FROM identity_key WHERE key = ?`
	sqlUserVer    = `SELECT version FROM identity_user WHERE app = ? AND id = ?`
)

// Fold turns one event into rows; none of identity's takes a seq. It is deterministic and refuses nothing: an
// error means that the projection is not what the log made it, and stops the shard.
func Fold(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
	var err error
	switch ev := ev.(type) {
	case event.AppCreated:
		err = one(tx, sqlAddApp, ev.App, ev.Name, s.At, s.Index)
	case event.AppKeyAdded:
		digest := sha256.Sum256([]byte(ev.Secret))
		if err = one(tx, sqlAddKey, ev.Key, ev.App, ev.Secret, digest[:], s.Index, s.Index); err == nil {
			err = one(tx, sqlTouchApp, s.Index, ev.App)
		}
	case event.AppKeyRetired:
		if err = one(tx, sqlRetireKey, s.At, s.Index, ev.Key, ev.App); err == nil {
			err = one(tx, sqlTouchApp, s.Index, ev.App)
		}
	case event.AppSuspended:
		err = one(tx, sqlSuspendApp, s.At, ev.Reason, s.Index, ev.App)
	case event.AppResumed:
		err = one(tx, sqlResumeApp, s.Index, ev.App)
	case event.AppConfigured:
		err = one(tx, sqlConfigure, packSettings(ev.Settings), s.Index, ev.App)
	case event.UserCreated: // idempotent: two entries may both have met a user for the first time
		_, err = tx.Exec(sqlAddUser, s.App, ev.User, s.At, s.Index)
	case event.AppHookSet, event.AppHookRemoved:
		err = foldHook(tx, s, ev)
	default:
		err = fmt.Errorf("not an event of identity")
	}
	if err != nil {
		return 0, fmt.Errorf("identity: fold %T of entry %d: %w", ev, s.Index, err)
	}
	return 0, nil
}

// one runs a statement that must change exactly one row.
func one(tx *projection.Tx, sql string, args ...any) error {
	n, err := tx.Exec(sql, args...)
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows changed where one is due", n)
	}
	return err
}

// Version returns the present version of the guarded row, 0 when it is absent. Users are those of s.App.
func Version(r *projection.Reader, s event.Stamp, g event.Guard) (uint64, error) {
	if len(g.Key) != 1 {
		return 0, fmt.Errorf("identity: a guard of kind %d has %d keys", g.Kind, len(g.Key))
	}
	switch g.Kind {
	case event.GuardApp:
		return version(r, sqlAppVersion, petrel.AppID(g.Key[0]))
	case event.GuardKey:
		return version(r, sqlKeyVersion, g.Key[0])
	case event.GuardUser:
		return version(r, sqlUserVer, s.App, g.Key[0])
	}
	return 0, fmt.Errorf("identity: guard kind %d is not one of ours", g.Kind)
}

func version(r *projection.Reader, sql string, args ...any) (v uint64, err error) {
	_, err = r.Get(sql, func(row *projection.Row) { v = row.Uint(0) }, args...)
	return v, err
}
