package event

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/petrel-chat/petrel/internal/petrel"
)

var rewrite = flag.Bool("rewrite", false, "write the golden bytes of kinds that have none yet")

// samples has one full and, where fields are optional, one bare event of every kind.
var samples = map[string]Event{
	"shard_founded":       ShardFounded{Epoch: "0123456789abcdef"},
	"shard_founded_after": ShardFounded{Epoch: "fedcba9876543210", After: "0123456789abcdef"},

	"app_created":      AppCreated{App: "1001", Name: "Lobby"},
	"app_created_bare": AppCreated{App: "1001"},
	"app_key_added":    AppKeyAdded{App: "1001", Key: "k1", Secret: "a secret of the app"},
	"app_key_retired":  AppKeyRetired{App: "1001", Key: "k1"},
	"app_suspended":    AppSuspended{App: "1001", Reason: "unpaid"},
	"app_resumed":      AppResumed{App: "1001"},
	"user_created":     UserCreated{User: "ada"},

	"app_configured":      AppConfigured{App: "1001", Settings: []AppSetting{{Name: "client_events"}, {Name: "max_event_bytes", Value: 20_000}}},
	"app_configured_bare": AppConfigured{App: "1001"},
	"app_hook_set":        AppHookSet{App: "1001", Hook: "h1", URL: "https://shop.example/hooks?a=1", Events: []string{"channel_occupied", "message.*"}, Batch: true},
	"app_hook_set_bare":   AppHookSet{App: "1001", Hook: "h1", URL: "https://shop.example/", Events: []string{"*"}},
	"app_hook_removed":    AppHookRemoved{App: "1001", Hook: "h1", Reason: "its receiver answered 410"},

	"room_created": RoomCreated{
		Room: "lobby", Kind: RoomPrivate, Name: "Lobby ⚓", Custom: []byte(`{"a":1}`),
		Members: []Member{{User: "ada", Role: RoleOwner}, {User: "bob", Role: RoleMember}},
	},
	"room_created_bare":    RoomCreated{Room: "lobby", Kind: RoomOpen},
	"room_updated":         RoomUpdated{Room: "lobby", Name: "New", Custom: []byte(`{}`), Kind: RoomOpen, CreatedAt: 1700000000000, CreatedBy: "ada"},
	"room_deleted":         RoomDeleted{Room: "lobby", Kind: RoomOpen, Name: "New", CreatedAt: 1700000000000, CreatedBy: "ada"},
	"member_added":         MemberAdded{Room: "lobby", User: "bob", Role: RoleMember},
	"member_added_by_post": MemberAdded{Room: "lobby", User: "bob", Role: RoleMember, Implied: true},
	"member_updated":       MemberUpdated{Room: "lobby", User: "bob", Role: RoleModerator, Implied: true},
	"member_removed":       MemberRemoved{Room: "lobby", User: "bob", Role: RoleModerator, Kind: RoomPrivate},
	"message_posted": MessagePosted{
		Room: "lobby", ID: "m-1", User: "ada", Text: "hi ⚓", Custom: []byte(`{"a":[1,2]}`), Mentions: []petrel.UserID{"bob", "eve@example.org"},
	},
	"message_posted_bare": MessagePosted{Room: "lobby", ID: "m-1", User: "ada", Text: "hi"},
	"message_edited": MessageEdited{
		Room: "lobby", ID: "m-1", Text: "hello", Custom: []byte(`{}`), Mentions: []petrel.UserID{"bob"}, Seq: 7, User: "ada", CreatedAt: 1700000000000,
	},
	"channel_state_set": ChannelStateSet{
		Channel: "presence-lobby", Occupied: true, Was: true, Joined: []petrel.UserID{"ada"}, Left: []petrel.UserID{"Bob B."}, Count: 3, Counted: true,
	},
	"channel_state_set_bare": ChannelStateSet{Channel: "lobby"},
	"channel_missed":         ChannelMissed{Channel: "cache-ticker"},

	"message_deleted": MessageDeleted{Room: "lobby", ID: "m-1", Seq: 7, User: "ada", CreatedAt: 1700000000000, EditedAt: 1700000001000},

	"jobs_queued": JobsQueued{
		Batch: petrel.EntryID{1, 2, 3, 4, 5, 6, 0x70, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}, Bodies: [][]byte{[]byte(`{"text":"hi"}`)},
		Jobs: []QueuedJob{{Kind: "webhook", Target: "h1", Body: 1, Cause: 1}, {Kind: "mail", Data: []byte("dear ⚓"), Due: 1700000009000}},
	},
	"jobs_queued_bare": JobsQueued{Batch: petrel.EntryID{15: 1}, Jobs: []QueuedJob{{Kind: "webhook"}}},
	"jobs_begun":       JobsBegun{App: "1001", Jobs: []uint64{1 << 16, 1<<16 | 1}},
	"jobs_reported": JobsReported{App: "1001", Jobs: []JobReport{
		{Job: 1 << 16, Outcome: JobFailed, Due: 1700000005000, Error: "500 Internal Server Error"}, {Job: 1<<16 | 1, Outcome: JobDead, Error: "410 Gone"},
	}},
	"job_runner_began": JobRunnerBegan{Node: "n1.abcdef", Term: 7},
	"jobs_repeated":    JobsRepeated{App: "1001", Jobs: []uint64{1<<16 | 1}},
	"jobs_discarded":   JobsDiscarded{App: "1001", Jobs: []uint64{1 << 16}},

	"schedule_set":        ScheduleSet{App: "1001", Name: "nightly", When: "0 3 * * *", Zone: "Europe/Berlin", Data: []byte(`{"report":"sales"}`), Next: 1700010000000},
	"schedule_set_bare":   ScheduleSet{App: "1001", Name: "tick", When: "every 30s", Zone: "UTC", Paused: true},
	"schedule_removed":    ScheduleRemoved{App: "1001", Name: "nightly"},
	"schedule_fired":      ScheduleFired{App: "1001", Name: "nightly", Due: 1700010000000, Next: 1700096400000, Missed: 2},
	"schedule_fired_bare": ScheduleFired{App: "1001", Name: "nightly", Due: 1700096400000},
}

// envelope is the entry that every golden file holds, with one event in it.
func envelope(ev Event) *Entry {
	return &Entry{
		ID:  petrel.EntryID{1, 2, 3, 4, 5, 6, 0x70, 8, 0x89, 10, 11, 12, 13, 14, 15, 16},
		App: "1001", Actor: petrel.Actor{Kind: petrel.ActorUser, App: "1001", User: "ada"},
		At: 1700000002345, Request: "req-1", Command: "m-1", Print: 0xfedcba9876543210,
		Guards: []Guard{{Kind: GuardMember, Key: []string{"lobby", "ada"}, Version: 12}, {Kind: GuardMessage, Key: []string{"lobby", "m-1"}}},
		Events: []Event{ev},
	}
}

// TestGolden: the bytes of every event ever released are for ever. A changed file is a broken log.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, ev := range samples {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Encode(envelope(ev))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "golden", name+".hex")
			text, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) && *rewrite {
				text = []byte(wrap(hex.EncodeToString(got)))
				err = os.WriteFile(path, text, 0o644)
			}
			if err != nil {
				t.Fatalf("no golden bytes (run with -rewrite for a new kind): %v", err)
			}
			want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("encoding changed:\n got %x\nwant %x", got, want)
			}
			back, err := Decode(want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(envelope(ev), back); diff != "" {
				t.Errorf("decoded entry differs (-want +got):\n%s", diff)
			}
		})
	}
}

func wrap(s string) string {
	var b strings.Builder
	for len(s) > 96 {
		b.WriteString(s[:96] + "\n")
		s = s[96:]
	}
	return b.String() + s + "\n"
}

// TestEveryKindHasGoldenBytes: no kind is released without them, and no file is left behind by a kind.
func TestEveryKindHasGoldenBytes(t *testing.T) {
	t.Parallel()
	seen := map[Kind]bool{}
	for _, ev := range samples {
		seen[ev.EventKind()] = true
	}
	for k := range decoders {
		if !seen[k] {
			t.Errorf("kind %d has no sample", k)
		}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "golden", "*.hex"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := samples[strings.TrimSuffix(filepath.Base(f), ".hex")]; !ok {
			t.Errorf("%s belongs to no sample: events are never taken back", f)
		}
	}
}

func TestActorOfAnotherApp(t *testing.T) {
	t.Parallel()
	e := envelope(UserCreated{User: "ada"})
	e.Actor = petrel.Actor{Kind: petrel.ActorOperator, App: "ops"}
	b, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e, back); diff != "" {
		t.Error(diff)
	}
}

func TestEncodeRefusesWhatIsTooLarge(t *testing.T) {
	t.Parallel()
	one := UserCreated{User: "ada"}
	for name, e := range map[string]*Entry{
		"bytes":  envelope(MessagePosted{Text: strings.Repeat("x", MaxEntryBytes)}),
		"events": {Events: slices.Repeat([]Event{one}, MaxEntryEvents+1)},
		"guards": {Events: []Event{one}, Guards: slices.Repeat([]Guard{{Kind: GuardRoom}}, MaxEntryGuards+1)},
	} {
		if _, err := Encode(e); petrel.CodeOf(err) != petrel.CodeTooLarge {
			t.Errorf("%s: %v, want too_large", name, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	good, err := Encode(envelope(samples["message_posted"]))
	if err != nil {
		t.Fatal(err)
	}
	wire := func(w wireEntry) []byte {
		b, err := encMode.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	id := make([]byte, 16)
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":              {nil, ErrMalformed},
		"cut":                {good[:len(good)-1], ErrMalformed},
		"trailing":           {append(bytes.Clone(good), 0), ErrMalformed},
		"another version":    {wire(wireEntry{Version: 2, ID: id}), ErrMalformed},
		"short id":           {wire(wireEntry{Version: 1, ID: id[:15]}), ErrMalformed},
		"kinds and bodies":   {wire(wireEntry{Version: 1, ID: id, Kinds: []Kind{KindUserCreated}}), ErrMalformed},
		"unknown kind":       {wire(wireEntry{Version: 1, ID: id, Kinds: []Kind{999}, Bodies: []cbor.RawMessage{{0xa0}}}), ErrUnknownKind},
		"body of wrong type": {wire(wireEntry{Version: 1, ID: id, Kinds: []Kind{KindUserCreated}, Bodies: []cbor.RawMessage{{0x01}}}), ErrMalformed},
		"over the limit":     {make([]byte, MaxEntryBytes+1), ErrMalformed},
		"bad UTF-8":          {bytes.Replace(good, []byte("hi ⚓"), []byte("hi \xff\xff\xff"), 1), ErrMalformed},
	} {
		if _, err := Decode(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := drawEntry(t)
		b, err := Encode(e)
		if petrel.CodeOf(err) == petrel.CodeTooLarge {
			t.Skip("over the limit")
		}
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, back); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		again, err := Encode(back)
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("not deterministic: %x, %x, %v", b, again, err)
		}
		clear(b) // what was decoded must not alias the input
		if diff := cmp.Diff(e, back); diff != "" {
			t.Fatalf("aliases its input (-want +got):\n%s", diff)
		}
	})
}

func drawEntry(t *rapid.T) *Entry {
	name := rapid.StringMatching(`[A-Za-z0-9_.:@=-]{1,64}`)
	kinds := rapid.SliceOfN(rapid.SampledFrom(sampleNames()), 1, 8)
	e := &Entry{
		App: petrel.AppID(name.Draw(t, "app")), At: rapid.Int64().Draw(t, "at"),
		Request: petrel.RequestID(name.Draw(t, "request")), Command: petrel.CommandID(name.Draw(t, "command")),
		Print: rapid.Uint64().Draw(t, "print"),
	}
	copy(e.ID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	e.Actor = petrel.Actor{Kind: petrel.ActorKind(rapid.Byte().Draw(t, "kind")), App: e.App, User: petrel.UserID(name.Draw(t, "user"))}
	for i := range rapid.IntRange(0, 3).Draw(t, "guards") {
		e.Guards = append(e.Guards, Guard{Kind: GuardKind(i + 1), Key: []string{name.Draw(t, "key")}, Version: rapid.Uint64().Draw(t, "version")})
	}
	for _, k := range kinds.Draw(t, "events") {
		ev := samples[k]
		if p, ok := ev.(MessagePosted); ok {
			p.Text, p.ID = rapid.String().Draw(t, "text"), petrel.MessageID(name.Draw(t, "message"))
			ev = p
		}
		e.Events = append(e.Events, ev)
	}
	return e
}

// sampleNames is sorted: rapid replays by index.
func sampleNames() []string { return slices.Sorted(maps.Keys(samples)) }

// FuzzDecode: no input panics, and what decodes encodes to something that decodes to the same.
func FuzzDecode(f *testing.F) {
	for _, ev := range samples {
		b, err := Encode(envelope(ev))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnknownKind) {
				t.Fatalf("uncoded error: %v", err)
			}
			return
		}
		out, err := Encode(e)
		if err != nil {
			if petrel.CodeOf(err) == petrel.CodeTooLarge { // a lenient form may grow in the strict one
				return
			}
			t.Fatal(err)
		}
		back, err := Decode(out)
		if err != nil {
			t.Fatalf("re-encoded entry does not decode: %v", err)
		}
		if again, err := Encode(back); err != nil || !bytes.Equal(out, again) {
			t.Fatalf("not a fixed point: %x %x %v", out, again, err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	e := envelope(benchPost())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	raw, err := Encode(envelope(benchPost()))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func benchPost() Event {
	return MessagePosted{Room: "lobby", ID: "0190f7a0-0000-7000-8000-000000000000", User: "ada", Text: strings.Repeat("word ", 16)}
}

func TestKindsAndRolesAsText(t *testing.T) {
	t.Parallel()
	for _, k := range []RoomKind{RoomOpen, RoomPrivate, RoomDirect} {
		b, err := k.MarshalText()
		var back RoomKind
		if err2 := back.UnmarshalText(b); err != nil || err2 != nil || back != k {
			t.Errorf("%d: %q, %v, %v, %v", k, b, back, err, err2)
		}
	}
	for _, r := range []Role{RoleMember, RoleModerator, RoleOwner} {
		b, err := r.MarshalText()
		var back Role
		if err2 := back.UnmarshalText(b); err != nil || err2 != nil || back != r {
			t.Errorf("%d: %q, %v, %v, %v", r, b, back, err, err2)
		}
	}
	for _, s := range []string{"", "Open", "0", "owner "} {
		var k RoomKind
		var r Role
		if e1, e2 := k.UnmarshalText([]byte(s)), r.UnmarshalText([]byte(s)); petrel.CodeOf(e1) != petrel.CodeInvalidField || petrel.CodeOf(e2) != petrel.CodeInvalidField {
			t.Errorf("%q: %v, %v; want invalid_field", s, e1, e2)
		}
	}
	if got := RoomKind(9).String() + Role(0).String(); got != "kind(9)role(0)" {
		t.Error(got)
	}
}
