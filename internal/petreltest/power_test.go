package petreltest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPowerLoss is promise 1 without the kernel's help. One run of petrel is traced down to its system
// calls. Then, for many moments of that run, the data folder is built anew with only what had been fsynced
// at that moment (or with a random part of the later pages on top), and petrel is started on it:
// it must come up by itself, and everything acknowledged before that moment must be there.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	needStrace(t)
	messages, moments := 1500, 24
	if testing.Short() {
		messages, moments = 300, 4
	}
	dir := t.TempDir()
	trace := filepath.Join(t.TempDir(), "trace")
	server := Start(t, Options{Dir: dir, Wrap: StraceArgs(trace)})
	place := &Place{}
	place.Set(server)
	for r := range crashRooms {
		createRoom(t, server.URL, crashRoom(r))
	}
	crew := newCrew(place.URL)
	stop := make(chan struct{})
	var posters sync.WaitGroup
	posters.Go(func() { crew.run(t.Context(), 16, stop) })
	Until(t, fmt.Sprintf("%d messages were acknowledged", messages), func() bool {
		return crew.acked.Load() >= int64(messages) || crew.failed() != nil
	})
	close(stop)
	posters.Wait()
	server.Terminate(t) // the way out is traced too
	if err := crew.failed(); err != nil {
		t.Fatal(err)
	}
	acks := crew.acks()

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	first := acks[0].at
	for _, a := range acks {
		if a.at.Before(first) {
			first = a.at
		}
	}
	before, lines := countLines(t, dir, trace, first)
	if lines-before < moments {
		t.Fatalf("only %d of %d lines of the trace lie after the first acknowledged message", lines-before, lines)
	}
	cuts := map[int]bool{} // counted from 1, as the replay does
	for len(cuts) < moments {
		cuts[before+1+rng.IntN(lines-before)] = true
	}
	file, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	disk := NewDisk(dir)
	line, tried := 0, 0
	err = disk.Replay(file, func(at time.Time) error {
		line++
		if !cuts[line] {
			return nil
		}
		torn := tried%2 == 1
		tried++
		var before []ack
		for _, a := range acks {
			if a.at.Before(at) {
				before = append(before, a)
			}
		}
		restored := t.TempDir()
		lose := disk.PowerLoss
		if torn {
			lose = func(dir string) error { return disk.TornPowerLoss(dir, rng) }
		}
		if err := lose(restored); err != nil {
			return err
		}
		t.Logf("line %d of %d: %d fsyncs done, %d bytes not yet safe, torn=%v, %d messages acknowledged",
			line, lines, disk.Syncs, disk.Pending(), torn, len(before))
		comeBack(t, restored, before)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	everything := t.TempDir()
	if err := disk.Everything(everything); err != nil {
		t.Fatal(err)
	}
	compareFolders(t, dir, everything)
	if tried != moments {
		t.Errorf("tried %d moments, want %d", tried, moments)
	}
}

// compareFolders holds the model of a disk against the disk: had the power stayed on, the files would be these.
func compareFolders(t *testing.T, disk, model string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(disk, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || volatile(path) {
			return err
		}
		files++
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(model, strings.TrimPrefix(path, disk)))
		if err != nil || !bytes.Equal(want, got) {
			t.Errorf("the model of the disk is wrong about %s (%d bytes, the disk has %d): %v", path, len(got), len(want), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the model of the disk agrees with the disk about %d files", files)
}

// comeBack starts petrel on what a loss of power left, and holds it to what was acknowledged.
func comeBack(t *testing.T, dir string, acks []ack) {
	t.Helper()
	server := Start(t, Options{Dir: dir})
	defer server.Kill()
	for r := range crashRooms {
		checkRoom(t, server.URL, crashRoom(r), acks)
	}
	m, _, err := Post(t.Context(), http.DefaultClient, server.URL, "survivor", crashRoom(0), "after-the-storm", "still here")
	if err != nil {
		t.Errorf("post after the loss of power: %v", err)
	}
	if m.Seq == 0 {
		t.Errorf("post after the loss of power: %+v", m)
	}
}

func needStrace(t *testing.T) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "probe")
	args := append(StraceArgs(out), "true")
	if b, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		const why = "the loss of power is played from a trace of system calls, and strace cannot run here (install it, or allow ptrace): %v %s"
		if os.Getenv("REQUIRE_STRACE") == "1" {
			t.Fatalf(why, err, b)
		}
		t.Skipf(why, err, b)
	}
}

// countLines returns how many lines of the trace there are, and how many come before the moment.
func countLines(t *testing.T, dir, trace string, moment time.Time) (before, all int) {
	t.Helper()
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = NewDisk(dir).Replay(f, func(at time.Time) error {
		all++
		if at.Before(moment) {
			before = all
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return before, all
}

// TestDisk checks the model itself against a run of known calls.
func TestDisk(t *testing.T) {
	t.Parallel()
	needStrace(t)
	dir := t.TempDir()
	trace := filepath.Join(t.TempDir(), "trace")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(StraceArgs(trace), self, diskScript, dir)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disk := NewDisk(dir)
	if err := disk.Replay(f, func(time.Time) error { return nil }); err != nil {
		t.Fatal(err)
	}
	restored := t.TempDir()
	if err := disk.PowerLoss(restored); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, name := range []string{"a", "b", "c", "d", "sub/e", "f"} {
		if b, err := os.ReadFile(filepath.Join(restored, name)); err == nil {
			got[name] = string(b)
		}
	}
	want := map[string]string{"a": "safe", "d": "x", "sub/e": "", "f": "12345\x00\x0089\x00"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("after the loss of power (-want +got):\n%s", d)
	}
}

// diskScript, as the first argument of the test binary, plays known calls in the folder named second.
const diskScript = "play-disk-script"

func playDiskScript(dir string) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	appendTo := func(name, text string, sync bool) error {
		f, err := os.OpenFile(in(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil || !sync {
			return err
		}
		return f.Sync()
	}
	syncDir := func(name string) error {
		f, err := os.Open(in(name))
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	}
	sized := func() error {
		f, err := os.Create(in("f"))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err1 := f.WriteAt([]byte("123456789"), 0)
		err2 := f.Truncate(5)
		_, err3 := f.WriteAt([]byte("89"), 7)
		return errors.Join(err1, err2, err3, f.Truncate(10), f.Sync(), f.Truncate(3))
	}
	return errors.Join(
		appendTo("a", "safe", true), appendTo("a", "lost", false), // the first write is safe, the second is not
		appendTo("c", "x", true), os.Rename(in("c"), in("d")), syncDir(""), // moved, and the move is safe
		os.Mkdir(in("sub"), 0o700), appendTo("sub/e", "y", false), syncDir("sub"), // the name is safe, the bytes are not
		sized(), os.Remove(in("d")), // the removal is not safe
		appendTo("b", "never", false), // neither its bytes nor its name
	)
}
