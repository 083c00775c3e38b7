package raftlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// rot flips a bit of what in the files; it must be there.
func rot(files, what string) error {
	list, err := filepath.Glob(files)
	if err != nil {
		return err
	}
	for _, f := range list {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		at := bytes.Index(b, []byte(what))
		if at < 0 {
			continue
		}
		w, err := os.OpenFile(f, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = w.WriteAt([]byte{b[at] ^ 1}, int64(at))
		return errors.Join(err, w.Close())
	}
	return fmt.Errorf("%q is in none of %v", what, list)
}

// mates are three voters whose logs can be opened again, with what stopped each.
type mates struct {
	t     *testing.T
	mesh  *raftlogtest.Mesh
	dirs  []string
	apps  []*raftlogtest.Recorder
	logs  []raftlog.Log
	fatal []chan error
	tune  func(i int, o *raftlog.Options)
}

func newMates(t *testing.T, tune func(i int, o *raftlog.Options)) *mates {
	t.Helper()
	m := &mates{t: t, mesh: raftlogtest.NewMesh(), tune: tune, logs: make([]raftlog.Log, 3)}
	for i := range 3 {
		m.dirs, m.apps, m.fatal = append(m.dirs, t.TempDir()), append(m.apps, raftlogtest.NewRecorder()), append(m.fatal, make(chan error, 1))
		if err := m.open(i); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.shut(i) })
	}
	for i := 1; i < 3; i++ {
		until(t, func() error {
			return m.logs[leaderOf(t, m.logs)].AddVoter(t.Context(), m.name(i), string(m.name(i)))
		})
	}
	m.settle()
	return m
}

func (m *mates) name(i int) petrel.NodeID { return petrel.NodeID(fmt.Sprintf("n%d", i+1)) }

func (m *mates) open(i int) error {
	net, err := m.mesh.Join(string(m.name(i)))
	if err != nil {
		return err
	}
	o := raftlog.Options{
		Dir: m.dirs[i], Node: m.name(i), Applier: m.apps[i], Bootstrap: i == 0, Network: net, MinFree: 1, SegmentSize: 16 << 10,
		OnFatal: func(err error) { m.fatal[i] <- err }, Logger: logger(m.t),
	}
	if m.tune != nil {
		m.tune(i, &o)
	}
	m.logs[i], err = raftlog.Open(m.t.Context(), o)
	if err != nil {
		m.logs[i] = nil
	}
	return err
}

func (m *mates) shut(i int) {
	if m.logs[i] == nil {
		return
	}
	if err := m.logs[i].Close(); err != nil {
		m.t.Errorf("close member %d: %v", i, err)
	}
	m.logs[i] = nil
}

func (m *mates) running() []raftlog.Log {
	return slices.DeleteFunc(slices.Clone(m.logs), func(l raftlog.Log) bool { return l == nil || l.Status().Stopped != nil })
}

func (m *mates) leader() int {
	m.t.Helper()
	running := m.running()
	return slices.Index(m.logs, running[leaderOf(m.t, running)])
}

func (m *mates) settle() {
	m.t.Helper()
	for _, l := range m.running() {
		until(m.t, func() error { return l.Barrier(m.t.Context()) })
	}
}

// add appends until it is certain; the payload must be new.
func (m *mates) add(i int, payload string) {
	m.t.Helper()
	until(m.t, func() error {
		_, err := m.logs[i].Append(m.t.Context(), [][]byte{[]byte(payload)})
		if errors.Is(err, petrel.ErrUnknownOutcome) {
			until(m.t, func() error { return m.logs[i].Barrier(m.t.Context()) })
			if contains(m.apps[i].Payloads(), payload) {
				return nil
			}
		}
		return err
	})
}

func big(n int) string { return fmt.Sprintf("record %d %s", n, strings.Repeat("x", 2000)) }

// A leader reads what it must send to one that was away. When its disk gives something else than it was given, it stops
// and says so; another one leads, and everybody has everything.
func TestLeaderFindsRotInWhatItSends(t *testing.T) {
	t.Parallel()
	var m *mates
	var lead, away int
	stopped := func() error { // nil when it led throughout
		m = newMates(t, nil)
		lead = m.leader()
		away = (lead + 1) % 3
		m.shut(away)
		for n := range 20 {
			m.add(lead, big(n))
		}
		if err := rot(filepath.Join(m.dirs[lead], "wal", "*.wal"), big(7)); err != nil {
			t.Fatal(err)
		}
		if err := m.open(away); err != nil {
			t.Fatal(err)
		}
		came := make(chan error, 1)
		go func() { came <- m.apps[away].Wait(t.Context(), 20) }()
		select {
		case err := <-m.fatal[lead]:
			return err
		case <-came: // from another one, which leads since
			return nil
		}
	}
	var err error
	for err = stopped(); err == nil; err = stopped() {
		t.Log("another one came to lead: once more")
	}
	if !errors.Is(err, raftlog.ErrDamaged) {
		t.Fatalf("OnFatal: %v", err)
	}
	if s := m.logs[lead].Status(); !errors.Is(s.Stopped, raftlog.ErrDamaged) || m.logs[lead].Stats().Alive {
		t.Errorf("status %+v", s)
	}
	m.shut(lead)
	if err := m.open(lead); !errors.Is(err, raftlog.ErrDamaged) {
		t.Fatalf("opened again: %v", err)
	}
	m.add(away, "end")
	m.settle()
	for n := range 20 {
		if !contains(m.apps[away].Payloads(), big(n)) {
			t.Errorf("record %d is missing", n)
		}
	}
}

// A follower reads what it folds, a leader what it sends, also when it has only just been written.
func TestRotInWhatWasJustWritten(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			var bad atomic.Int32 // member whose disk forgets, plus one
			m := newMates(t, func(i int, o *raftlog.Options) {
				dir := o.Dir
				o.Hook(func(op, _ string) error {
					if op == "sync" && int(bad.Load()) == i+1 && rot(filepath.Join(dir, "wal", "*.wal"), "a record to forget") == nil {
						bad.Store(0)
					}
					return nil
				}, nil, nil)
			})
			lead := m.leader()
			m.add(lead, "before")
			m.settle()
			harmed, other := lead, (lead+1)%3
			if who == "follower" {
				harmed, other = other, lead
			}
			bad.Store(int32(harmed + 1))
			var err error
			for err == nil {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				_, _ = m.logs[lead].Append(ctx, [][]byte{[]byte("a record to forget")}) // again when another came to lead
				cancel()
				select {
				case err = <-m.fatal[harmed]:
				default:
				}
			}
			if !errors.Is(err, raftlog.ErrDamaged) {
				t.Fatalf("OnFatal: %v", err)
			}
			m.shut(harmed)
			m.add(other, "end")
			m.settle()
		})
	}
}

// A snapshot that a follower needs has rotted since it was written: the leader notices and takes another.
func TestRottenSnapshotIsReplacedForAFollower(t *testing.T) {
	t.Parallel()
	m := newMates(t, func(_ int, o *raftlog.Options) { o.TrailingLogs = 1 })
	lead := m.leader()
	away := (lead + 1) % 3
	m.shut(away)
	for n := range 30 {
		m.add(lead, big(n))
	}
	for _, l := range m.running() { // whoever leads when it comes back
		until(t, func() error { return l.TakeSnapshot(t.Context()) })
	}
	for i, dir := range m.dirs {
		if i == away {
			continue
		}
		if err := rot(filepath.Join(dir, "snapshots", "*", "state.bin"), "record 3 "); err != nil {
			t.Fatal(err)
		}
	}
	m.add(lead, "end")
	if err := m.open(away); err != nil {
		t.Fatal(err)
	}
	m.settle()
	if got, want := len(m.apps[away].Payloads()), len(m.apps[lead].Payloads()); got != want || m.apps[away].Restores() == 0 {
		t.Errorf("%d records after %d restores, not %d", got, m.apps[away].Restores(), want)
	}
}
