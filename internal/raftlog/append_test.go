package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// valve holds an operation of the disk while it is shut.
type valve struct {
	mu   sync.Mutex
	open chan struct{}
}

func (v *valve) shut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = make(chan struct{})
}

func (v *valve) release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.open)
	v.open = nil
}

func (v *valve) pass() {
	v.mu.Lock()
	open := v.open
	v.mu.Unlock()
	if open != nil {
		<-open
	}
}

// A batch that another term stored is skipped by everyone; one of this term that does not
// continue the chain stops the shard.
func TestFence(t *testing.T) {
	t.Parallel()
	app := raftlogtest.NewRecorder()
	fatal := make(chan error, 1)
	dir := t.TempDir()
	reg := prometheus.NewRegistry()
	l := mustSolo(t, dir, app, func(o *raftlog.Options) {
		o.Registerer, o.OnFatal = reg, func(err error) { fatal <- err }
	})
	add(t, l, "a")
	for _, skip := range []uint64{0, 3} {
		if resp, err := raftlog.StoreFor(l, -1, skip, "stale"); err != nil || resp == nil {
			t.Fatalf("a batch of an older term: %v, %v", resp, err)
		}
	}
	if at := add(t, l, "b"); at != 2 {
		t.Fatalf("record %d", at)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	fenced := 0.0
	for _, f := range families {
		if f.GetName() == "petrel_raftlog_fenced_total" {
			fenced = f.Metric[0].Counter.GetValue()
		}
	}
	if fenced != 2 {
		t.Errorf("%v fenced", fenced)
	}
	shut(t, l)
	if diff := cmp.Diff([]string{"a", "b"}, whole(t, dir)); diff != "" {
		t.Fatal(diff)
	}
	l = mustSolo(t, dir, app, func(o *raftlog.Options) {
		o.Registerer, o.OnFatal = reg, func(err error) { fatal <- err } // the same registry, again
	})
	if _, err := raftlog.StoreFor(l, 0, 1, "gap"); err != nil {
		t.Fatal(err)
	}
	if err := <-fatal; !strings.Contains(err.Error(), "continues record 3 ") {
		t.Fatalf("OnFatal: %v", err)
	}
	shut(t, l)
	if l, err := solo(t, dir, app, nil); err == nil {
		shut(t, l)
		t.Error("a log that does not continue was opened")
	}
}

// Append answers at the commit: the next batch is fsynced while this one is folded.
func TestAppendDoesNotWaitForTheFold(t *testing.T) {
	t.Parallel()
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, t.TempDir(), app, nil)
	hold := make(chan struct{})
	app.Gate(func(ctx context.Context) {
		select {
		case <-hold:
		case <-ctx.Done():
		}
	})
	// The first enters the fold and stays there. The second is on disk, but raft's one
	// applying goroutine is busy: it is not seen to be committed before.
	add(t, l, "a")
	if got := app.Applied().Index; got != 0 {
		t.Fatalf("%d applied", got)
	}
	second := make(chan error, 1)
	go func() {
		_, err := l.Append(t.Context(), [][]byte{[]byte("b")})
		second <- err
	}()
	until(t, func() error {
		if s := l.Status(); s.CommitMark == s.LastMark && s.LogBytes > 0 && s.CommitMark >= 4 {
			return nil
		}
		return errors.New("not committed yet")
	})
	close(hold)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if err := l.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, app.Payloads()); diff != "" {
		t.Fatal(diff)
	}
	shut(t, l)
}

// A context that ends while the disk is at it leaves an unknown outcome, and whoever comes
// next does not guess at the tail.
func TestContextEndsOnTheWay(t *testing.T) {
	t.Parallel()
	var v valve
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, t.TempDir(), app, func(o *raftlog.Options) {
		o.Hook(func(op, _ string) error {
			if op == "sync" {
				v.pass()
			}
			return nil
		}, nil, nil)
	})
	add(t, l, "first") // the leader is ready
	v.shut()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Append(ctx, [][]byte{[]byte("a")}); !errors.Is(err, petrel.ErrUnknownOutcome) || errors.Is(err, petrel.ErrNotAppended) {
		t.Fatalf("append: %v", err)
	}
	ctx2, cancel2 := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel2()
	if _, err := l.Append(ctx2, [][]byte{[]byte("b")}); !errors.Is(err, petrel.ErrNotAppended) {
		t.Fatalf("append behind it: %v", err)
	}
	v.release()
	if err := l.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := add(t, l, "c"); at != 3 {
		t.Fatalf("record %d", at)
	}
	until(t, func() error { return l.Barrier(t.Context()) })
	if diff := cmp.Diff([]string{"first", "a", "c"}, app.Payloads()); diff != "" {
		t.Fatal(diff)
	}
	shut(t, l)
}

// trio starts three voters; tune may change member i's options.
func trio(t *testing.T, tune func(i int, o *raftlog.Options)) ([]raftlog.Log, []*raftlogtest.Recorder) {
	t.Helper()
	return trioOn(t, raftlogtest.NewMesh(), nil, tune)
}

// trioOn is trio on a mesh over networks that below makes; nil: plain TCP.
func trioOn(t *testing.T, mesh *raftlogtest.Mesh, below func(petrel.NodeID) (raftlog.Network, error), tune func(i int, o *raftlog.Options)) ([]raftlog.Log, []*raftlogtest.Recorder) {
	t.Helper()
	var logs []raftlog.Log
	var apps []*raftlogtest.Recorder
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		net, err := joinOver(mesh, petrel.NodeID(name), below)
		if err != nil {
			t.Fatal(err)
		}
		app := raftlogtest.NewRecorder()
		o := raftlog.Options{
			Dir: t.TempDir(), Node: petrel.NodeID(name), Applier: app, Bootstrap: i == 0, Network: net,
			MinFree: 1, SegmentSize: 64 << 10,
		}
		tune(i, &o)
		l, err := raftlog.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		logs, apps = append(logs, l), append(apps, app)
	}
	until(t, func() error { return logs[0].Barrier(t.Context()) })
	until(t, func() error { return logs[0].AddNonvoter(t.Context(), "n2", "n2") })
	for _, n := range []petrel.NodeID{"n2", "n3"} {
		until(t, func() error {
			for _, l := range logs {
				if l.Status().IsLeader {
					return l.AddVoter(t.Context(), n, string(n))
				}
			}
			return errors.New("no leader")
		})
	}
	for _, l := range logs {
		until(t, func() error { return l.Barrier(t.Context()) })
	}
	return logs, apps
}

// The reply to a forwarded batch is lost while the batch lingers at the leader, behind
// another one that the disk holds up. Once a barrier has passed it is there or never comes.
func TestLostForwardIsSettled(t *testing.T) {
	t.Parallel()
	var v valve
	logs, apps := trio(t, func(i int, o *raftlog.Options) {
		o.Heartbeat = time.Minute // n1 keeps its lead while its disk stalls
		if i != 0 {
			return
		}
		o.Hook(func(op, _ string) error {
			if op == "sync" {
				v.pass()
			}
			return nil
		}, nil, nil)
	})
	came := 0
	for round := range 10 {
		v.shut()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = logs[0].Append(t.Context(), [][]byte{[]byte("holds the slot")}) })
		lost := fmt.Sprintf("lost %d", round)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, err := logs[1].Append(ctx, [][]byte{[]byte(lost)})
		if !errors.Is(err, petrel.ErrUnknownOutcome) && !errors.Is(err, petrel.ErrNotAppended) { // it may not have left in time
			t.Errorf("append: %v", err)
		}
		cancel()
		v.release()
		until(t, func() error { return logs[1].Barrier(t.Context()) })
		there := contains(apps[1].Payloads(), lost)
		if there {
			came++
		}
		if there && errors.Is(err, petrel.ErrNotAppended) {
			t.Errorf("%s came although it was refused: %v", lost, err)
		}
		wg.Wait()
		add(t, logs[0], "later")
		until(t, func() error { return logs[1].Barrier(t.Context()) })
		if contains(apps[1].Payloads(), lost) != there {
			t.Fatalf("%s came after a barrier had settled it", lost)
		}
	}
	t.Logf("of 10 lost appends %d came", came)
}

// What makes a barrier settle the appends whose replies were lost: the leader refuses them
// from then on, and those of another term always.
func TestForwardedFence(t *testing.T) {
	t.Parallel()
	app := raftlogtest.NewRecorder()
	l := mustSolo(t, t.TempDir(), app, nil)
	const me, other = 11, 12
	if at, err := raftlog.Forwarded(l, 0, me, 1, "a"); at != 1 || err != nil {
		t.Fatalf("append: %d, %v", at, err)
	}
	if at, err := raftlog.Forwarded(l, 0, me, 3, ""); at != 1 || err != nil {
		t.Fatalf("barrier: %d, %v", at, err)
	}
	for what, f := range map[string]func() (uint64, error){
		"given up":             func() (uint64, error) { return raftlog.Forwarded(l, 0, me, 3, "x") },
		"of an older term":     func() (uint64, error) { return raftlog.Forwarded(l, -1, me, 9, "x") },
		"of a term yet unseen": func() (uint64, error) { return raftlog.Forwarded(l, 1, me, 9, "x") },
	} {
		if _, err := f(); !errors.Is(err, petrel.ErrNotAppended) {
			t.Errorf("an append %s: %v", what, err)
		}
	}
	for n, f := range []func() (uint64, error){
		func() (uint64, error) { return raftlog.Forwarded(l, 0, me, 4, "b") },
		func() (uint64, error) { return raftlog.Forwarded(l, 0, other, 1, "c") },
	} {
		if at, err := f(); at != uint64(n+2) || err != nil {
			t.Errorf("append: %d, %v", at, err)
		}
	}
	shut(t, l)
}

func contains(all []string, s string) bool {
	for _, p := range all {
		if p == s {
			return true
		}
	}
	return false
}

// A snapshot is taken when the log has grown enough, and the log shrinks.
func TestSnapshotDue(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := raftlogtest.NewRecorder()
	var free atomic.Int64
	tune := func(o *raftlog.Options) {
		o.SnapshotBytes, o.TrailingLogs = 50<<10, 2
		o.Size = func() int64 { return 1 << 20 }
		o.Hook(nil, func(string) (int64, error) { return free.Load(), nil }, nil)
	}
	l := mustSolo(t, dir, app, tune)
	free.Store(2 << 20) // less than three times the size
	add(t, l, strings.Repeat("x", 1000))
	if err := l.TakeSnapshot(t.Context()); !errors.Is(err, petrel.ErrDiskFull) {
		t.Fatalf("snapshot without room: %v", err)
	}
	free.Store(1 << 40)
	for i := range 600 {
		add(t, l, fmt.Sprintf("%d %s", i, strings.Repeat("x", 1000)))
	}
	until(t, func() error {
		if s := l.Status(); s.SnapshotMark > 0 && s.LogBytes < 600<<10 {
			return nil
		}
		return errors.New("no snapshot yet")
	})
	until(t, func() error { return l.Barrier(t.Context()) }) // an append is answered before it is folded
	want := app.Payloads()
	shut(t, l)

	// The projection loses its last transactions with the power: the log behind the
	// snapshot's start still has them, and nothing need be restored.
	app.Rewind(uint64(len(want) - 1))
	l = mustSolo(t, dir, app, tune)
	if diff := cmp.Diff(len(want), len(app.Payloads())); diff != "" {
		t.Fatal(diff)
	}
	shut(t, l)
	// Far behind: restored.
	app.Rewind(3)
	l = mustSolo(t, dir, app, tune)
	if diff := cmp.Diff(want, app.Payloads()); diff != "" || app.Restores() != 1 {
		t.Fatalf("%d restores %s", app.Restores(), diff)
	}
	shut(t, l)
	if tmp, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*.tmp")); len(tmp) > 0 {
		t.Errorf("left behind: %v", tmp)
	}
}

// A snapshot left half-written by a crash is swept away.
func TestHalfSnapshotIsSwept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := raftlogtest.NewRecorder()
	shut(t, mustSolo(t, dir, app, nil))
	half := filepath.Join(dir, "snapshots", "2-9-1.tmp")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	shut(t, mustSolo(t, dir, app, nil))
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Fatal("it is still there")
	}
}

// imaging copies its member's folder when a snapshot arrives: raft has stored it, but not
// yet removed the log that it replaces.
type imaging struct {
	*raftlogtest.Recorder
	copy func()
}

func (i imaging) Restore(ctx context.Context, r io.Reader) error {
	i.copy()
	return i.Recorder.Restore(ctx, r)
}

// A crash while a snapshot is being installed leaves a log that ends before it. Nothing is
// lost, and the member comes back by itself.
func TestCrashWhileInstalling(t *testing.T) {
	t.Parallel()
	mesh := raftlogtest.NewMesh()
	dirs := []string{t.TempDir(), t.TempDir()}
	join := func(i int, app raftlog.Applier) raftlog.Log {
		t.Helper()
		name := fmt.Sprintf("n%d", i+1)
		net, err := mesh.Join(name)
		if err != nil {
			t.Fatal(err)
		}
		l, err := raftlog.Open(t.Context(), raftlog.Options{
			Dir: dirs[i], Node: petrel.NodeID(name), Applier: app, Bootstrap: i == 0, Network: net,
			MinFree: 1, SegmentSize: 16 << 10, TrailingLogs: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	lead, first := raftlogtest.NewRecorder(), raftlogtest.NewRecorder()
	l := join(0, lead)
	defer shut(t, l)
	until(t, func() error { return l.AddNonvoter(t.Context(), "n2", "n2") })
	member := join(1, first)
	for i := range 5 {
		add(t, l, fmt.Sprint(i))
	}
	until(t, func() error { return member.Barrier(t.Context()) })
	shut(t, member)
	for i := range 40 {
		add(t, l, fmt.Sprintf("%d %s", i, strings.Repeat("x", 2000)))
	}
	until(t, func() error { return l.TakeSnapshot(t.Context()) })
	add(t, l, "tail")

	image := make(chan string, 1)
	before := raftlogtest.NewRecorder() // the projection as the crash finds it
	dir := dirs[1]
	member = join(1, imaging{first, func() {
		if len(image) > 0 {
			return
		}
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Error(err)
		}
		image <- to
	}})
	until(t, func() error { return member.Barrier(t.Context()) })
	if first.Restores() != 1 {
		t.Fatalf("restored %d times", first.Restores())
	}
	shut(t, member)
	dirs[1] = <-image
	member = join(1, before)
	defer shut(t, member)
	until(t, func() error { return member.Barrier(t.Context()) })
	add(t, l, "end")
	until(t, func() error { return member.Barrier(t.Context()) })
	if diff := cmp.Diff(lead.Payloads(), before.Payloads()); diff != "" {
		t.Fatal(diff)
	}
}

// A node whose disk was lost comes back as another member, where the lost one was. It does not answer for the lost
// one: with its acknowledgements there would be a quorum that has nothing.
func TestStreamsForTheLostMember(t *testing.T) {
	t.Parallel()
	m := newMates(t, nil)
	lead := m.leader()
	lost, other := (lead+1)%3, (lead+2)%3
	m.shut(other)
	m.shut(lost)
	net, err := m.mesh.Join(string(m.name(lost)))
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := raftlog.Open(t.Context(), raftlog.Options{
		Dir: t.TempDir(), Node: "fresh", Applier: raftlogtest.NewRecorder(), Network: net, MinFree: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, fresh)
	if _, err := m.logs[lead].Append(t.Context(), [][]byte{[]byte("x")}); err == nil {
		t.Error("acknowledged by one of three")
	}
	if s := fresh.Status(); s.LastMark != 0 || s.Term != 0 {
		t.Errorf("the new member has heard of the group: %+v", s)
	}
}

// Leadership is not offered to one that stands still, and one that stood still when it was offered holds up nobody.
func TestTransferToTheSilent(t *testing.T) {
	t.Parallel()
	f := newFlock(t, 3)
	for _, name := range []petrel.NodeID{"a", "b", "c"} {
		f.join(name)
	}
	f.untilVoters("a", "b", "c")
	lead := f.leader()
	var silent petrel.NodeID
	for _, name := range f.voters() {
		if name != lead.Status().Node {
			silent = name
		}
	}
	f.mesh.Freeze(string(silent)) // but it still says that it is well
	defer f.mesh.Thaw(string(silent))
	if err := lead.TransferLeadership(t.Context(), silent); err == nil {
		t.Error("leadership went to one that stands still")
	}
	until(t, func() error {
		_, err := f.leader().Append(t.Context(), [][]byte{[]byte("x")})
		return err
	})
	f.silence(silent, true)
	if err := f.leader().TransferLeadership(t.Context(), silent); !errors.Is(err, petrel.ErrNotAppended) {
		t.Errorf("leadership was offered to one that does not answer: %v", err)
	}
	until(t, func() error { return f.leader().TransferLeadership(t.Context(), "") })
	if now := f.leader().Status().Node; now == silent {
		t.Errorf("%s leads", now)
	}
}
