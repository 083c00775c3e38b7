package node

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

var rewriteGolden = flag.Bool("rewrite", false, "write the golden folds of events that have none yet")

// goldenStories are orders in which the golden events make sense: each finds what it speaks of.
var goldenStories = [][]string{
	{
		"shard_founded", "app_created", "app_key_added", "app_key_retired", "app_suspended", "app_resumed", "user_created",
		"room_created", "room_updated", "member_updated", "message_posted", "message_edited", "message_deleted",
		"member_removed", "member_added", "room_deleted",
	},
	{"shard_founded", "shard_founded_after"},
	{"shard_founded", "app_created", "app_hook_set_bare", "app_hook_set", "app_hook_removed"},
	{"shard_founded", "app_created", "channel_state_set", "channel_missed", "channel_state_set_bare"},
	{"shard_founded", "app_created_bare", "room_created_bare", "member_added_by_post", "message_posted_bare"},
	{"jobs_queued", "job_runner_began", "jobs_begun", "jobs_reported", "jobs_repeated", "jobs_discarded"}, // numbers of jobs begin with the index: 1
	{"jobs_queued_bare"},
	{"schedule_set", "schedule_fired", "schedule_fired_bare", "schedule_set_bare", "schedule_removed"},
	{"shard_founded", "app_created_bare", "app_configured", "app_configured_bare"},
}

// TestGoldenFolds: what a released build wrote is folded by this build to the same outcome, rows included: in a
// rolling upgrade old and new builds fold the same entries side by side. A changed line forks a cell.
func TestGoldenFolds(t *testing.T) {
	t.Parallel()
	var got strings.Builder
	for _, story := range goldenStories {
		tellGolden(t, &got, story)
	}
	path := filepath.Join("testdata", "golden_folds.txt")
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || *rewriteGolden {
		if !*rewriteGolden {
			t.Fatal("no golden folds: run with -rewrite")
		}
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("golden entries are folded to something else (-before +now):\n%s", d)
	}
}

func tellGolden(t *testing.T, got io.Writer, story []string) {
	t.Helper()
	store, err := projection.Open(t.Context(), projection.Options{Path: filepath.Join(t.TempDir(), "p.db"), Modules: modules()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	loop, err := apply.New(apply.Options{Store: store, Domains: []apply.Domain{
		{Name: "identity", Kinds: identity.Kinds(), Guards: identity.GuardKinds(), Fold: identity.Fold, Version: identity.Version},
		{Name: "chat", Kinds: chat.Kinds(), Guards: chat.GuardKinds(), Fold: chat.Fold, Version: chat.Version},
		{Name: "channel", Kinds: channel.Kinds(), Guards: channel.GuardKinds(), Fold: channel.Fold, Version: channel.Version},
		{Name: "job", Kinds: job.Kinds(), Guards: job.GuardKinds(), Fold: job.Fold, Version: job.Version},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range story {
		e := goldenEntry(t, name)
		e.ID[15], e.Guards = byte(i), nil
		payload, err := event.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		rec := petrel.Record{Index: uint64(i) + 1, Hash: petrel.Hash{byte(i)}, Payload: payload} //nolint:gosec // small
		if err := loop.Apply(t.Context(), []petrel.Record{rec}, rec.Index); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		fmt.Fprintf(got, "%-22s %x\n", name, loop.Applied().Digest)
	}
}

// TestGoldenStoriesAreWhole: no golden event is left out of the fold.
func TestGoldenStoriesAreWhole(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("..", "event", "testdata", "golden", "*.hex"))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, name := range slices.Concat(goldenStories...) {
		listed[name] = true
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".hex"); !listed[name] {
			t.Errorf("the golden event %s is not folded by TestGoldenFolds: add it to goldenStories", name)
		}
	}
}

func goldenEntry(t *testing.T, name string) *event.Entry {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "event", "testdata", "golden", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	e, err := event.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
