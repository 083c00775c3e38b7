package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestBeforeTheFirstLoad(t *testing.T) {
	t.Parallel()
	d := NewDirectory(DirectoryOptions{})
	d.Publish(event.Stamp{Index: 1}, event.AppCreated{App: "1"}, 0) // Load will read it
	_, _, e1 := d.AuthenticateToken("x")
	_, e2 := d.AuthenticateKey("k", "s", "")
	for _, err := range []error{e1, e2, d.Gate("1")} {
		if petrel.CodeOf(err) != petrel.CodeBusy {
			t.Errorf("%v, want busy", err)
		}
	}
}

// TestServerCalls: unknown keys and wrong secrets read the same.
func TestServerCalls(t *testing.T) {
	t.Parallel()
	d := doorkeeper()
	good := string(pair("k1").Secret)
	var first string
	for name, c := range map[string][2]string{
		"unknown key": {"k9", good}, "wrong secret": {"k1", good + "x"}, "another's secret": {"k1", string(pair("k2").Secret)},
		"no secret": {"k1", ""}, "no key": {"", good}, "unknown key without secret": {"k9", ""}, "not UTF-8": {"\xff", "\xff"},
		"a zero digest": {"k9", string(make([]byte, 32))},
	} {
		_, err := d.AuthenticateKey(c[0], c[1], "ada")
		if petrel.CodeOf(err) != petrel.CodeInvalidToken || first != "" && err.Error() != first {
			t.Errorf("%s: %v; others said %s", name, err, first)
		}
		first = err.Error()
	}
	if app, err := d.VerifyKey("k3", string(pair("k3").Secret)); app != "200" || err != nil {
		t.Errorf("%s, %v: who it is does not depend on suspension", app, err)
	}
	if _, err := d.AuthenticateKey("k3", string(pair("k3").Secret), ""); petrel.CodeOf(err) != petrel.CodeAppSuspended {
		t.Error(err)
	}
	for app, want := range map[petrel.AppID]petrel.Code{"100": "", "200": petrel.CodeAppSuspended, "404": petrel.CodeAppNotFound} {
		if err := d.Gate(app); petrel.CodeOf(err) != want {
			t.Errorf("gate of %s: %v, want %q", app, err, want)
		}
	}
}

// TestOnChange: whoever keeps connections hears which app changed, when the directory already says so.
func TestOnChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")})
	w.must(AddKey{App: "1", Pair: pair("k2")})
	w.must(SuspendApp{App: "1"})
	w.actor.App = "1"
	w.Append(w.entry(nil, event.UserCreated{User: "ada"}))
	w.must(ResumeApp{App: "1"})
	w.must(RetireKey{App: "1", Key: "k1"})
	w.restore()
	if d := cmp.Diff([]petrel.AppID{"", "1", "1", "1", "1", "1", "1", ""}, w.changes); d != "" {
		t.Error(d)
	}
	w.agree()
}

// TestAFailedLoadKeepsWhatWas: the node stops then, but not with everybody signed out.
func TestAFailedLoadKeepsWhatWas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.dir.Load(ctx, w.Store); err == nil {
		t.Fatal("loaded within a context that was over")
	}
	if err := w.dir.Load(t.Context(), broken{}); !errors.Is(err, petrel.ErrStopped) {
		t.Fatal(err)
	}
	if _, err := w.dir.AuthenticateKey("k1", string(pair("k1").Secret), ""); err != nil {
		t.Error(err)
	}
}

type broken struct{}

func (broken) ViewBudget(context.Context, projection.Budget, func(*projection.Reader) error) error {
	return fmt.Errorf("read: %w", petrel.ErrStopped)
}

// TestLoadBesideTheLoop: Loads at any moment, and readers all the while, miss no event that the loop publishes.
func TestLoadBesideTheLoop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dir = NewDirectory(DirectoryOptions{})
	w.Shard = openShard(t, w.dir.Publish)
	if err := w.dir.Load(t.Context(), w.Store); err != nil { // the ones below may all come after the last command
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ; ; sleepless(stop) {
				if err := w.dir.Load(t.Context(), w.Store); err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		wg.Go(func() {
			for {
				if _, err := w.dir.AuthenticateKey("k0", string(pair("k0").Secret), ""); err != nil && petrel.CodeOf(err) == petrel.CodeInternal {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 40 {
		id := petrel.AppID(fmt.Sprint(i))
		w.must(CreateApp{App: id, Pair: pair(fmt.Sprint("k", i))})
		w.must(AddKey{App: id, Pair: pair(fmt.Sprint("K", i))})
		if i%2 == 0 {
			w.must(RetireKey{App: id, Key: fmt.Sprint("k", i)})
		}
		if i%3 == 0 {
			w.must(SuspendApp{App: id})
		}
		if i%10 == 9 {
			w.agree()
		}
	}
	close(stop)
	wg.Wait()
	w.agree()
}

// sleepless gives way to the loop between two Loads.
func sleepless(stop <-chan struct{}) {
	t := time.NewTimer(time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-stop:
	}
}

// TestReplay: a directory loaded before its loop replays a log ends where one loaded after it does.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(CreateApp{App: "1", Pair: pair("k1")})
	w.must(CreateApp{App: "2", Pair: pair("k2")})
	w.must(SuspendApp{App: "2", Reason: "unpaid"})
	w.must(AddKey{App: "1", Pair: pair("k3")})
	w.must(RetireKey{App: "1", Key: "k1"})
	again := *w
	again.dir = NewDirectory(DirectoryOptions{Now: func() time.Time { return w.now }})
	again.Shard = openShard(t, again.dir.Publish)
	again.load()
	for i := range w.Records { // one call each: the log may be cut anywhere
		if err := again.Loop.Apply(t.Context(), w.Records[i:i+1], uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	again.Records = w.Records
	again.agree()
	if a, b := w.Loop.Applied(), again.Loop.Applied(); a != b {
		t.Errorf("%+v, %+v", a, b)
	}
}
