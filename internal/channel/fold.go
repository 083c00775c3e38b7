package channel

import (
	"errors"
	"fmt"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/projection"
)

// schema holds what webhooks were told last. A version is the index of the entry that last changed the row; a channel that was
// told to be vacated has no row, so what is kept is bounded by what is open.
const schema = `
CREATE TABLE channel_state (
  app     TEXT NOT NULL,
  channel TEXT NOT NULL,
  count   INTEGER NOT NULL,  -- subscriptions, as told last
  version INTEGER NOT NULL,
  PRIMARY KEY (app, channel)
) STRICT, WITHOUT ROWID;

CREATE TABLE channel_member (
  app     TEXT NOT NULL,
  channel TEXT NOT NULL,
  user    TEXT NOT NULL,
  PRIMARY KEY (app, channel, user)
) STRICT, WITHOUT ROWID;

CREATE TABLE channel_miss (
  app     TEXT NOT NULL,
  channel TEXT NOT NULL,
  at      INTEGER NOT NULL,
  version INTEGER NOT NULL,
  PRIMARY KEY (app, channel)
) STRICT, WITHOUT ROWID;
CREATE INDEX channel_miss_at ON channel_miss (app, at);
`

// keepMisses is for how long misses are kept; each that is folded removes up to 100 older ones of its app. It is part of what the
// log means: changing it needs a new feature level.
const keepMisses = 60_000

const (
	sqlSetState = `INSERT INTO channel_state (app, channel, count, version) VALUES (?, ?, ?, ?)
		ON CONFLICT (app, channel) DO UPDATE SET count = excluded.count, version = excluded.version`
	sqlVacate       = `DELETE FROM channel_state WHERE app = ? AND channel = ?`
	sqlJoin         = `INSERT INTO channel_member (app, channel, user) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`
	sqlLeave        = `DELETE FROM channel_member WHERE app = ? AND channel = ? AND user = ?`
	sqlSetMiss      = `INSERT INTO channel_miss (app, channel, at, version) VALUES (?, ?, ?, ?) ON CONFLICT (app, channel) DO UPDATE SET at = excluded.at, version = excluded.version`
	sqlOldMisses    = `SELECT channel FROM channel_miss WHERE app = ? AND at < ? ORDER BY at, channel LIMIT 100`
	sqlForgetMiss   = `DELETE FROM channel_miss WHERE app = ? AND channel = ?`
	sqlStateVersion = `SELECT version FROM channel_state WHERE app = ? AND channel = ?`
	sqlMissVersion  = `SELECT version FROM channel_miss WHERE app = ? AND channel = ?`
)

// Fold turns one event into rows; none takes a seq. It is deterministic and refuses nothing: an error means that the projection
// is not what the log made it, and stops the shard.
func Fold(tx *projection.Tx, s event.Stamp, ev event.Event) (uint64, error) {
	var err error
	switch ev := ev.(type) {
	case event.ChannelStateSet:
		err = foldState(tx, s, ev)
	case event.ChannelMissed:
		err = foldMiss(tx, s, ev)
	default:
		err = errors.New("not an event of channel")
	}
	if err != nil {
		return 0, fmt.Errorf("channel: fold %T of entry %d: %w", ev, s.Index, err)
	}
	return 0, nil
}

// foldState costs a row for each member that it names, and one. What is there already is left as it is.
func foldState(tx *projection.Tx, s event.Stamp, ev event.ChannelStateSet) error {
	for _, user := range ev.Left {
		if _, err := tx.Exec(sqlLeave, s.App, ev.Channel, user); err != nil {
			return err
		}
	}
	if !ev.Occupied {
		_, err := tx.Exec(sqlVacate, s.App, ev.Channel)
		return err
	}
	for _, user := range ev.Joined {
		if _, err := tx.Exec(sqlJoin, s.App, ev.Channel, user); err != nil {
			return err
		}
	}
	_, err := tx.Exec(sqlSetState, s.App, ev.Channel, ev.Count, s.Index)
	return err
}

func foldMiss(tx *projection.Tx, s event.Stamp, ev event.ChannelMissed) error {
	var old []string
	err := tx.Query(sqlOldMisses, func(row *projection.Row) error {
		old = append(old, row.Text(0))
		return nil
	}, s.App, s.At-keepMisses)
	for _, ch := range old {
		if err != nil {
			return err
		}
		_, err = tx.Exec(sqlForgetMiss, s.App, ch)
	}
	if err == nil {
		_, err = tx.Exec(sqlSetMiss, s.App, ev.Channel, s.At, s.Index)
	}
	return err
}

// Version returns the present version of the guarded row, 0 when it is absent. Channels are those of s.App.
func Version(r *projection.Reader, s event.Stamp, g event.Guard) (version uint64, err error) {
	if len(g.Key) != 1 {
		return 0, fmt.Errorf("channel: a guard of kind %d has %d keys", g.Kind, len(g.Key))
	}
	sql := sqlStateVersion
	switch g.Kind {
	case event.GuardChannel:
	case event.GuardChannelMiss:
		sql = sqlMissVersion
	default:
		return 0, fmt.Errorf("channel: guard kind %d is not one of ours", g.Kind)
	}
	_, err = r.Get(sql, func(row *projection.Row) { version = row.Uint(0) }, s.App, g.Key[0])
	return version, err
}
