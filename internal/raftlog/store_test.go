package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

func openTestStore(t *testing.T, dir string, hook func(op, name string) error) *store {
	t.Helper()
	o := Options{Dir: dir, Node: "n", Applier: struct{ Applier }{}, SegmentSize: 4 << 10}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	st, err := openStore(dir, &o, disk{hook, make(chan struct{}), &diskState{}}, func(err error) { t.Errorf("halted: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func record(i, term uint64) *raft.Log {
	return &raft.Log{Index: i, Term: term, Data: []byte(strings.Repeat("x", 300))}
}

// raft cuts the end of a follower's log when another leader knows better. The disk may be
// full just then; what is left must be readable, then and after a restart.
func TestCutTail(t *testing.T) {
	t.Parallel()
	for _, last := range []uint64{3, 10, 30} { // in one segment, at a seal, over several
		var full atomic.Bool
		dir := t.TempDir()
		hook := func(op, _ string) error {
			if full.Load() && op == "write" {
				return syscall.ENOSPC
			}
			return nil
		}
		st := openTestStore(t, dir, hook)
		for i := uint64(1); i <= last; i++ {
			if err := st.StoreLog(record(i, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if last == 3 { // the others are sealed already
			full.Store(true)
			if err := st.DeleteRange(last-1, last); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("cut without room: %v", err)
			}
			full.Store(false)
		}
		if err := st.DeleteRange(last-1, last); err != nil {
			t.Fatal(err)
		}
		for i := last - 1; i <= last+20; i++ {
			if err := st.StoreLog(record(i, 2)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			for i := uint64(1); i <= last+20; i++ {
				var l raft.Log
				if err := st.GetLog(i, &l); err != nil {
					t.Fatalf("record %d: %v", i, err)
				}
				if want := 1 + i/(last-1); min(want, 2) != l.Term {
					t.Fatalf("record %d is of term %d", i, l.Term)
				}
			}
			if err := st.close(); err != nil {
				t.Fatal(err)
			}
			st = openTestStore(t, dir, hook)
		}
		if err := st.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Stable values and records from a leader carry checksums too.
func TestChecksums(t *testing.T) {
	t.Parallel()
	st := openTestStore(t, t.TempDir(), func(string, string) error { return nil })
	defer st.close()
	if err := st.SetUint64([]byte("k"), 7); err != nil {
		t.Fatal(err)
	}
	if v, err := st.GetUint64([]byte("k")); v != 7 || err != nil {
		t.Fatalf("%d %v", v, err)
	}
	if v, err := st.GetUint64([]byte("absent")); v != 0 || err != nil {
		t.Fatalf("%d %v", v, err)
	}
	if err := st.wal.Set([]byte("k"), []byte("123456789012")); err != nil {
		t.Fatal(err)
	}
	if _, err := st.GetUint64([]byte("k")); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a damaged value: %v", err)
	}
	l := record(1, 1)
	if err := st.StoreLog(l); err != nil {
		t.Fatal(err)
	}
	sent := record(2, 1)
	sent.Extensions = l.Extensions
	if err := st.StoreLog(sent); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a record damaged on its way: %v", err)
	}
	if err := st.StoreLog(record(2, 1)); err != nil {
		t.Fatal(err)
	}
	var got raft.Log
	if err := st.GetLog(9, &got); err != raft.ErrLogNotFound { //nolint:errorlint // raft compares so
		t.Fatalf("an absent record: %v", err)
	}
}

// How many voters there are decides who gets a vote next.
func TestPromoter(t *testing.T) {
	t.Parallel()
	long, short := time.Now().Add(-time.Minute), time.Now().Add(-10*time.Second)
	for _, tc := range []struct {
		voters, ready, max int
		want               bool
	}{
		{1, 0, 3, false},
		{1, 1, 3, true},
		{1, 1, 1, false},
		{2, 1, 3, true},
		{3, 2, 3, false},
		{3, 1, 5, false}, // four are no better than three
		{3, 2, 5, true},
		{4, 1, 5, true},
		{3, 2, 4, false},
		{5, 2, 5, false},
	} {
		s := &autopilot.State{Servers: map[raft.ServerID]*autopilot.ServerState{
			"new":  {State: autopilot.RaftNonVoter, Health: autopilot.ServerHealth{Healthy: true, StableSince: time.Now()}},
			"sick": {State: autopilot.RaftNonVoter, Health: autopilot.ServerHealth{StableSince: long}},
		}}
		for i, id := range []raft.ServerID{"b", "a"}[:tc.ready] {
			since := []time.Time{long, short}[i]
			s.Servers[id] = &autopilot.ServerState{
				Server: autopilot.Server{ID: id}, State: autopilot.RaftNonVoter, Health: autopilot.ServerHealth{Healthy: true, StableSince: since},
			}
		}
		p := promoter{max: tc.max, voters: func() int { return tc.voters }}
		got := p.CalculatePromotionsAndDemotions(&autopilot.Config{ServerStabilizationTime: pilotStable}, s)
		var want autopilot.RaftChanges
		if tc.want {
			want.Promotions = []raft.ServerID{"b"}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d voters, %d ready, at most %d: %s", tc.voters, tc.ready, tc.max, diff)
		}
	}
}

// Whatever a crash cuts off in the middle of a change, the state before or after it is there, and never an older one.
func TestMetaSurvivesATornWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *metaStore {
		t.Helper()
		m := &metaStore{dir: dir, disk: disk{func(string, string) error { return nil }, make(chan struct{}), &diskState{}}, logger: slog.New(slog.DiscardHandler)}
		if _, err := m.Load(dir); err != nil {
			t.Fatal(err)
		}
		return m
	}
	get := func(m *metaStore) string {
		t.Helper()
		v, err := m.GetStable([]byte("k"))
		if err != nil {
			t.Fatal(err)
		}
		return string(v)
	}
	for n := range 50 {
		m := open()
		was := get(m)
		now := strings.Repeat(fmt.Sprint(n), 1+n)
		before := files(t, dir)
		if err := m.SetStable([]byte("k"), []byte(now)); err != nil {
			t.Fatal(err)
		}
		if err := m.close(); err != nil {
			t.Fatal(err)
		}
		after := files(t, dir)
		if n == 0 { // there is nothing before the first
			continue
		}
		// The write stopped in one of the files; what comes after that one is as before.
		for torn := range 2 {
			cut := 1 + n*7%120
			for i := range 2 {
				b := after[i]
				switch {
				case i == torn:
					b = append(slices.Clone(after[i][:cut]), before[i][cut:]...)
				case i > torn:
					b = before[i]
				}
				if err := os.WriteFile(filepath.Join(dir, metaName(i)), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			m := open()
			if got := get(m); got != now && (got != was || torn == 1) {
				t.Fatalf("round %d, file %d torn at %d: %q, not %q or %q", n, torn, cut, got, was, now)
			}
			if err := m.close(); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 2 {
			if err := os.WriteFile(filepath.Join(dir, metaName(i)), after[i], 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func files(t *testing.T, dir string) (out [2][]byte) {
	t.Helper()
	for i := range out {
		b, err := os.ReadFile(filepath.Join(dir, metaName(i)))
		if err != nil {
			t.Fatal(err)
		}
		out[i] = b
	}
	return out
}
