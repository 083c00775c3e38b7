package raftlog_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// sums are the contents of all files below dir.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func inspect(t *testing.T, dir string) raftlog.Inspection {
	t.Helper()
	before := sums(t, dir)
	in, err := raftlog.Inspect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, sums(t, dir)); diff != "" {
		t.Fatalf("looking changed the files: %s", diff)
	}
	return in
}

func (m *mates) recover(i int) error {
	o := raftlog.Options{Dir: m.dirs[i], Node: m.name(i), Applier: m.apps[i], MinFree: 1, SegmentSize: 16 << 10}
	if m.tune != nil {
		m.tune(i, &o)
	}
	return raftlog.Recover(m.t.Context(), o)
}

// Two of three are lost for ever. The one that is further becomes a group of its own and has everything that
// was acknowledged; two others join it.
func TestRecoverAfterLosingTwo(t *testing.T) {
	t.Parallel()
	m := newMates(t, nil)
	lead := m.leader()
	behind, ahead := (lead+1)%3, (lead+2)%3
	for n := range 5 {
		m.add(lead, big(n))
	}
	m.settle()
	m.shut(behind)
	for n := 5; n < 20; n++ {
		m.add(ahead, big(n))
	}
	m.settle()
	want := m.apps[ahead].Payloads()
	for i := range m.logs {
		m.shut(i)
	}
	a, b := inspect(t, m.dirs[ahead]), inspect(t, m.dirs[behind])
	if !a.Ahead(b) || b.Ahead(a) || a.Index != uint64(len(want)) || b.Index != 5 || len(a.Members) != 3 {
		t.Errorf("ahead: %+v, behind: %+v", a, b)
	}
	m.apps[ahead] = raftlogtest.NewRecorder() // with its projection, too
	if err := m.recover(ahead); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, m.apps[ahead].Payloads()); diff != "" {
		t.Fatalf("after the recovery (-want +got):\n%s", diff)
	}
	in := inspect(t, m.dirs[ahead])
	if diff := cmp.Diff([]raftlog.Member{{ID: m.name(ahead), Addr: string(m.name(ahead)), Voter: true}}, in.Members); diff != "" || !in.Ahead(a) {
		t.Errorf("%+v %s", in, diff)
	}
	if err := m.open(ahead); err != nil {
		t.Fatal(err)
	}
	m.add(ahead, "after")
	apps := []*raftlogtest.Recorder{m.apps[ahead]}
	logs := []raftlog.Log{m.logs[ahead]}
	for _, name := range []string{"n4", "n5"} {
		net, err := m.mesh.Join(name)
		if err != nil {
			t.Fatal(err)
		}
		app := raftlogtest.NewRecorder()
		l, err := raftlog.Open(t.Context(), raftlog.Options{Dir: t.TempDir(), Node: petrel.NodeID(name), Applier: app, Network: net, MinFree: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer shut(t, l)
		logs, apps = append(logs, l), append(apps, app)
		until(t, func() error { return logs[leaderOf(t, logs)].AddVoter(t.Context(), petrel.NodeID(name), name) })
	}
	for i, l := range logs {
		until(t, func() error { return l.Barrier(t.Context()) })
		if diff := cmp.Diff(append(want, "after"), apps[i].Payloads()); diff != "" {
			t.Errorf("member %d (-want +got):\n%s", i, diff)
		}
	}
}

// What a leader had written but nobody else is kept: nobody can tell any more that it was not acknowledged.
func TestRecoverKeepsTheUncommitted(t *testing.T) {
	t.Parallel()
	m := newMates(t, nil)
	m.add(0, "before")
	m.settle()
	lead := m.leader()
	m.mesh.Cut(string(m.name(lead)))
	if _, err := m.logs[lead].Append(t.Context(), [][]byte{[]byte("maybe")}); err == nil {
		t.Fatal("acknowledged without a quorum")
	}
	for i := range m.logs {
		m.shut(i)
	}
	in := inspect(t, m.dirs[lead])
	if err := m.recover(lead); err != nil {
		t.Fatal(err)
	}
	want := []string{"before", "maybe"}[:in.Index] // one, when it had lost its lead already
	if diff := cmp.Diff(want, m.apps[lead].Payloads()); diff != "" {
		t.Error(diff)
	}
}

// A member that only ever got a snapshot.
func TestRecoverFromASnapshot(t *testing.T) {
	t.Parallel()
	m := newMates(t, func(_ int, o *raftlog.Options) { o.TrailingLogs = 1 })
	away := (m.leader() + 1) % 3
	m.shut(away)
	lead := m.leader()
	for n := range 30 {
		m.add(lead, big(n))
	}
	for _, l := range m.running() {
		until(t, func() error { return l.TakeSnapshot(t.Context()) })
	}
	if err := m.open(away); err != nil {
		t.Fatal(err)
	}
	m.settle()
	want := m.apps[lead].Payloads()
	for i := range m.logs {
		m.shut(i)
	}
	if in := inspect(t, m.dirs[away]); in.SnapshotMark == 0 {
		t.Errorf("%+v", in)
	}
	if err := m.recover(away); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, m.apps[away].Payloads()); diff != "" {
		t.Error(diff)
	}
}

func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, dir, app, nil)
	add(t, l, "a")
	shut(t, l)
	if err := raftlog.Recover(t.Context(), raftlog.Options{Dir: t.TempDir(), Node: "n1", Applier: raftlogtest.NewRecorder(), MinFree: 1}); err == nil {
		t.Error("an empty folder was recovered")
	}
	if err := raftlog.Recover(t.Context(), raftlog.Options{Dir: dir, Node: "n2", Applier: app, MinFree: 1}); err == nil {
		t.Error("a stranger was made the only voter")
	}
	if in := inspect(t, dir); in.Index != 1 || len(in.Members) != 1 {
		t.Errorf("%+v", in)
	}
	if err := rot(filepath.Join(dir, "wal", "*.wal"), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := raftlog.Inspect(t.Context(), dir); !errors.Is(err, raftlog.ErrDamaged) {
		t.Errorf("a damaged log: %v", err)
	}
}
