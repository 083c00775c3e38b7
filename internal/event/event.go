// Package event holds every fact the log may ever contain, one file per domain,
// with its versioned encoding.
//
// An Entry is what one command decided: who, when, under which guards, and the
// events. Entries are encoded as CBOR (RFC 8949, core deterministic form) with
// integer keys: a field's number is never reused, a field is never renamed in meaning,
// and new fields are optional. testdata/golden holds the bytes of every event ever released.
//
// # Invariants
//
//   - Decode(Encode(e)) equals e, and Encode is deterministic.
//   - An entry of a kind this build does not know fails to decode with ErrUnknownKind:
//     the fold stops loudly instead of skipping.
//   - All chance and all clocks are behind an entry: folding it needs neither.
//   - An event is never rejected by a rule when it is folded; only guards decide.
package event

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Limits of an entry. A command that would pass them is refused before it is appended.
const (
	MaxEntryBytes  = 128 << 10
	MaxEntryEvents = 256
	MaxEntryGuards = 256
)

// version is the format of the envelope; Decode refuses any other.
const version = 1

// Errors of Decode. Both stop the part that meets them: a log with such an entry is either
// damaged or was written by a newer build.
var (
	ErrMalformed   = errors.New("event: malformed entry")
	ErrUnknownKind = errors.New("event: kind of event is not known to this build")
)

// Kind numbers a kind of event. Numbers are written into the log: never reuse one.
type Kind uint16

// Event is one fact, past tense.
type Event interface {
	EventKind() Kind
}

// GuardKind numbers a kind of guard. Never reuse a number.
type GuardKind uint8

// Guard names the smallest row decided on and the version it had. Version 0 asserts that the row is absent.
// The version of a row is the index of the entry that last changed it.
type Guard struct {
	Kind    GuardKind `cbor:"1,keyasint"`
	Key     []string  `cbor:"2,keyasint,omitempty"` // e.g. room, user
	Version uint64    `cbor:"3,keyasint,omitempty"`
}

// Entry is what one command decided: one position of the log.
type Entry struct {
	ID      petrel.EntryID
	App     petrel.AppID
	Actor   petrel.Actor
	At      int64 // Unix milliseconds, stamped by the proposer
	Request petrel.RequestID
	Command petrel.CommandID // chosen by the client, or made; kept in the row that the entry makes
	Print   uint64           // fingerprint of the command's content, kept beside its id: tells a repeat from a reused id
	Guards  []Guard
	Events  []Event
}

// Stamp is what a fold may know of an entry besides the event itself.
type Stamp struct {
	Index   uint64 // of the entry: also the version of every row that it changes
	App     petrel.AppID
	Actor   petrel.Actor
	At      int64 // Unix milliseconds
	Command petrel.CommandID
	Print   uint64 // fingerprint of the command's content; 0 where nothing is kept
	Request petrel.RequestID
	// Seqs are those that the entry's earlier events took: len(Seqs) is the event's place in the entry.
	Seqs []uint64
}

// Stamp returns the stamp of e at index.
func (e *Entry) Stamp(index uint64) Stamp {
	return Stamp{Index: index, App: e.App, Actor: e.Actor, At: e.At, Command: e.Command, Print: e.Print, Request: e.Request}
}

// Decision is what a domain made of a command: facts and the guards they rest on, or an answer that
// needs no entry because the command is a repeat or changes nothing.
type Decision struct {
	Events []Event
	Guards []Guard
	// Answer builds what the caller gets. seqs has one element per event (0 where the event takes none);
	// it is nil when Events is empty. It must not touch the projection.
	Answer func(s Stamp, seqs []uint64) any
	// Print is the fingerprint of the command's content, stamped on the entry beside the command id.
	Print uint64
	// Repeated says that the first accepted answer is given again.
	Repeated bool
}

// wireEntry is the CBOR form. Field numbers are for ever.
type wireEntry struct {
	Version   uint8             `cbor:"1,keyasint"`
	ID        []byte            `cbor:"2,keyasint"`
	App       string            `cbor:"3,keyasint,omitempty"`
	ActorKind uint8             `cbor:"4,keyasint"`
	ActorApp  string            `cbor:"5,keyasint,omitempty"` // only where it differs from App
	ActorUser string            `cbor:"6,keyasint,omitempty"`
	At        int64             `cbor:"7,keyasint"`
	Request   string            `cbor:"8,keyasint,omitempty"`
	Command   string            `cbor:"9,keyasint,omitempty"`
	Guards    []Guard           `cbor:"10,keyasint,omitempty"`
	Kinds     []Kind            `cbor:"11,keyasint"`
	Bodies    []cbor.RawMessage `cbor:"12,keyasint"`
	Print     uint64            `cbor:"13,keyasint,omitempty"`
}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   16,
		MaxArrayElements:  100_000,
		MaxMapPairs:       100_000,
		ExtraReturnErrors: cbor.ExtraDecErrorNone,
		UTF8:              cbor.UTF8RejectInvalid,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // options above are constants: a mistake in them shows at the first test
	}
	return v
}

// Encode returns the entry's bytes, or an Error with CodeTooLarge when it passes a limit.
func Encode(e *Entry) ([]byte, error) {
	if len(e.Events) > MaxEntryEvents || len(e.Guards) > MaxEntryGuards {
		return nil, petrel.Errorf(petrel.CodeTooLarge, "One command may make at most %d changes; send it in parts.", MaxEntryEvents)
	}
	w := wireEntry{
		Version: version, ID: e.ID[:], App: string(e.App),
		ActorKind: uint8(e.Actor.Kind), ActorUser: string(e.Actor.User), At: e.At,
		Request: string(e.Request), Command: string(e.Command), Guards: e.Guards, Print: e.Print,
		Kinds: make([]Kind, len(e.Events)), Bodies: make([]cbor.RawMessage, len(e.Events)),
	}
	if e.Actor.App != e.App {
		w.ActorApp = string(e.Actor.App)
	}
	for i, ev := range e.Events {
		b, err := encMode.Marshal(ev)
		if err != nil {
			return nil, fmt.Errorf("encode event kind %d: %w", ev.EventKind(), err)
		}
		w.Kinds[i], w.Bodies[i] = ev.EventKind(), b
	}
	b, err := encMode.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	if len(b) > MaxEntryBytes {
		return nil, petrel.Errorf(petrel.CodeTooLarge, "The command makes an entry of %d bytes; at most %d fit.", len(b), MaxEntryBytes)
	}
	return b, nil
}

// Decode reads what Encode wrote. The entry does not alias b.
func Decode(b []byte) (*Entry, error) {
	if len(b) > MaxEntryBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	var w wireEntry
	if err := decMode.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if w.Version != version || len(w.ID) != len(petrel.EntryID{}) || len(w.Kinds) != len(w.Bodies) ||
		len(w.Kinds) > MaxEntryEvents || len(w.Guards) > MaxEntryGuards {
		return nil, fmt.Errorf("%w: envelope version %d", ErrMalformed, w.Version)
	}
	e := &Entry{
		ID: petrel.EntryID(w.ID), App: petrel.AppID(w.App), At: w.At,
		Actor:   petrel.Actor{Kind: petrel.ActorKind(w.ActorKind), App: petrel.AppID(w.App), User: petrel.UserID(w.ActorUser)},
		Request: petrel.RequestID(w.Request), Command: petrel.CommandID(w.Command), Guards: w.Guards, Print: w.Print,
		Events: make([]Event, len(w.Kinds)),
	}
	if w.ActorApp != "" {
		e.Actor.App = petrel.AppID(w.ActorApp)
	}
	for i, k := range w.Kinds {
		ev, err := decodeEvent(k, w.Bodies[i])
		if err != nil {
			return nil, err
		}
		e.Events[i] = ev
	}
	return e, nil
}

func decodeEvent(k Kind, body []byte) (Event, error) {
	dec, ok := decoders[k]
	if !ok {
		return nil, fmt.Errorf("%w: %d", ErrUnknownKind, k)
	}
	ev, err := dec(body)
	if err != nil {
		return nil, fmt.Errorf("%w: kind %d: %w", ErrMalformed, k, err)
	}
	return ev, nil
}

// decoders is the registry of every kind. It is never written after initialisation.
var decoders = map[Kind]func([]byte) (Event, error){
	KindShardFounded: into[ShardFounded],

	KindAppCreated:    into[AppCreated],
	KindAppKeyAdded:   into[AppKeyAdded],
	KindAppKeyRetired: into[AppKeyRetired],
	KindAppSuspended:  into[AppSuspended],
	KindAppResumed:    into[AppResumed],
	KindUserCreated:   into[UserCreated],
	KindAppConfigured: into[AppConfigured],

	KindAppHookSet:     into[AppHookSet],
	KindAppHookRemoved: into[AppHookRemoved],

	KindRoomCreated:    into[RoomCreated],
	KindRoomUpdated:    into[RoomUpdated],
	KindRoomDeleted:    into[RoomDeleted],
	KindMemberAdded:    into[MemberAdded],
	KindMemberUpdated:  into[MemberUpdated],
	KindMemberRemoved:  into[MemberRemoved],
	KindMessagePosted:  into[MessagePosted],
	KindMessageEdited:  into[MessageEdited],
	KindMessageDeleted: into[MessageDeleted],

	KindChannelStateSet: into[ChannelStateSet],
	KindChannelMissed:   into[ChannelMissed],
	KindJobsQueued:      into[JobsQueued],
	KindJobsBegun:       into[JobsBegun],
	KindJobsReported:    into[JobsReported],
	KindJobRunnerBegan:  into[JobRunnerBegan],
	KindJobsRepeated:    into[JobsRepeated],
	KindJobsDiscarded:   into[JobsDiscarded],

	KindScheduleSet:     into[ScheduleSet],
	KindScheduleRemoved: into[ScheduleRemoved],
	KindScheduleFired:   into[ScheduleFired],
}

// since says which feature level brought a kind; a kind that is not listed came with level 1, the first. It is
// never written after initialisation. A kind of a new level goes here in the change that makes it.
var since = map[Kind]int{
	KindAppConfigured: 2,
	KindAppHookSet:    2, KindAppHookRemoved: 2,
	KindChannelStateSet: 2, KindChannelMissed: 2,

	KindJobsQueued: 2, KindJobsBegun: 2, KindJobsReported: 2, KindJobRunnerBegan: 2, KindJobsRepeated: 2, KindJobsDiscarded: 2,

	KindScheduleSet: 3, KindScheduleRemoved: 3, KindScheduleFired: 3,
}

// Level is the feature level that a build must have to read the event: a cell writes it once all of its nodes do.
func Level(ev Event) int { return max(1, since[ev.EventKind()]) }

func into[T Event](b []byte) (Event, error) {
	var v T
	if err := decMode.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	return v, nil
}
