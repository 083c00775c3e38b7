package channel

import (
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

const (
	sqlState   = `SELECT count, version FROM channel_state WHERE app = ? AND channel = ?`
	sqlMembers = `SELECT user FROM channel_member WHERE app = ? AND channel = ? ORDER BY user`
	sqlStates  = `SELECT app, channel, count, version FROM channel_state WHERE (app, channel) > (?, ?) ORDER BY app, channel LIMIT ?`
	sqlMiss    = `SELECT at, version FROM channel_miss WHERE app = ? AND channel = ?`
)

// State is what webhooks were told of a channel last.
type State struct {
	App      petrel.AppID
	Channel  string
	Occupied bool
	Members  []petrel.UserID // in order; of a presence channel whose members are told. Not in pages
	Count    uint64          // subscriptions, if those are told
	Version  uint64          // 0: it is not occupied
}

// StateOf returns what was told of one channel.
func StateOf(r *projection.Reader, app petrel.AppID, ch string) (State, error) {
	st := State{App: app, Channel: ch}
	found, err := r.Get(sqlState, func(row *projection.Row) { st.Count, st.Version = row.Uint(0), row.Uint(1) }, app, ch)
	if st.Occupied = found; err != nil || !found {
		return st, err
	}
	err = r.Query(sqlMembers, func(row *projection.Row) error {
		st.Members = append(st.Members, petrel.UserID(row.Text(0)))
		return nil
	}, app, ch)
	return st, err
}

// States returns the channels that are occupied, as was told, after one of them (exclusive; empty: from the beginning).
func States(r *projection.Reader, app petrel.AppID, ch string, limit int) (page []State, err error) {
	err = r.Query(sqlStates, func(row *projection.Row) error {
		page = append(page, State{App: petrel.AppID(row.Text(0)), Channel: row.Text(1), Occupied: true, Count: row.Uint(2), Version: row.Uint(3)})
		return nil
	}, app, ch, limit)
	return page, err
}

func missOf(r *projection.Reader, app petrel.AppID, ch string) (at int64, version uint64, err error) {
	_, err = r.Get(sqlMiss, func(row *projection.Row) { at, version = row.Int(0), row.Uint(1) }, app, ch)
	return at, version, err
}

// Module is the part of the projection that channel keeps.
func Module() projection.Module {
	return projection.Module{Name: "channel", Migrations: []string{schema}}
}

// Kinds returns every kind of event that Fold takes.
func Kinds() []event.Kind { return []event.Kind{event.KindChannelStateSet, event.KindChannelMissed} }

// GuardKinds returns every kind of guard that Version answers.
func GuardKinds() []event.GuardKind {
	return []event.GuardKind{event.GuardChannel, event.GuardChannelMiss}
}
