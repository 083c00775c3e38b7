package identity

import (
	"time"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

const (
	sqlApp      = `SELECT id, name, created_at, suspended_at IS NOT NULL, reason, settings, version FROM identity_app WHERE id = ?`
	sqlApps     = `SELECT id, name, created_at, suspended_at IS NOT NULL, reason, settings, version FROM identity_app WHERE id > ? ORDER BY id LIMIT ?`
	sqlGoodKeys = `SELECT key, secret FROM identity_key WHERE app = ? AND retired_at IS NULL ORDER BY added`
	sqlKey      = `SELECT app, digest, retired_at IS NOT NULL, version FROM identity_key WHERE key = ?`
	sqlGate     = `SELECT suspended_at IS NOT NULL FROM identity_app WHERE id = ?`
)

// Gate refuses an actor whose app is suspended (CodeAppSuspended) or unknown (CodeAppNotFound). Operators and the
// system pass: they act on apps, not within one. command.Desk asks it in the snapshot that it decides on.
func Gate(r *projection.Reader, a petrel.Actor) error {
	if a.Kind == petrel.ActorOperator || a.Kind == petrel.ActorSystem {
		return nil
	}
	suspended := false
	found, err := r.Get(sqlGate, func(row *projection.Row) { suspended = row.Bool(0) }, a.App)
	switch {
	case err != nil:
		return err
	case !found:
		return errNoApp(a.App)
	case suspended:
		return errSuspended()
	}
	return nil
}

// UserKnown reports whether a user of the app has been named by an entry of the log.
func UserKnown(r *projection.Reader, app petrel.AppID, user petrel.UserID) (bool, error) {
	v, err := version(r, sqlUserVer, app, user)
	return v != 0, err
}

// AppByID returns the app with its good keys, or CodeAppNotFound.
func AppByID(r *projection.Reader, id petrel.AppID) (App, error) {
	row, err := loadApp(r, id)
	if err == nil && row.version == 0 {
		err = errNoApp(id)
	}
	return row.App, err
}

// Apps returns the apps whose id follows after, in the order of their ids, at most limit (0: MaxPage, which is also
// the most). Fewer than that: there are no more. The first page begins after "".
func Apps(r *projection.Reader, after petrel.AppID, limit int) ([]App, error) {
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	var apps []App
	err := r.Query(sqlApps, func(row *projection.Row) error {
		apps = append(apps, scanApp(row).App)
		return nil
	}, after, limit)
	for i := range apps {
		if err != nil {
			return nil, err
		}
		apps[i].Keys, err = goodKeys(r, apps[i].ID)
	}
	return apps, err
}

// appRow is an app and the version of its row; version 0: there is none.
type appRow struct {
	App
	set     []event.AppSetting // that differ from their defaults
	version uint64
}

func scanApp(row *projection.Row) appRow {
	set := unpackSettings(row.Text(5))
	return appRow{App{
		ID: petrel.AppID(row.Text(0)), Name: row.Text(1), CreatedAt: time.UnixMilli(row.Int(2)).UTC(),
		Suspended: row.Bool(3), Reason: row.Text(4), Settings: settingsOf(set),
	}, set, row.Uint(6)}
}

func loadApp(r *projection.Reader, id petrel.AppID) (a appRow, err error) {
	found, err := r.Get(sqlApp, func(row *projection.Row) { a = scanApp(row) }, id)
	if err == nil && found {
		a.Keys, err = goodKeys(r, id)
	}
	return a, err
}

func goodKeys(r *projection.Reader, id petrel.AppID) (keys []KeyPair, err error) {
	err = r.Query(sqlGoodKeys, func(row *projection.Row) error {
		keys = append(keys, KeyPair{row.Text(0), Secret(row.Text(1))})
		return nil
	}, id)
	return keys, err
}

// keyRow is what is kept of a key, good or retired; version 0: nobody ever had it.
type keyRow struct {
	app     petrel.AppID
	digest  []byte // SHA-256 of its secret
	retired bool
	version uint64
}

func loadKey(r *projection.Reader, key string) (k keyRow, err error) {
	_, err = r.Get(sqlKey, func(row *projection.Row) {
		k = keyRow{petrel.AppID(row.Text(0)), row.Bytes(1), row.Bool(2), row.Uint(3)}
	}, key)
	return k, err
}
