package effect

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/channel"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// scribe is the log of a teller.
type scribe struct {
	mu     sync.Mutex
	broken error
	took   []string
	calls  int
}

func (s *scribe) do(_ context.Context, _ petrel.AppID, c command.Command) (command.Result, error) {
	time.Sleep(10 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.broken != nil {
		return command.Result{}, s.broken
	}
	switch c := c.(type) {
	case job.Enqueue:
		for _, j := range c.Jobs {
			s.took = append(s.took, j.Target+" "+string(j.Body))
		}
	case channel.Miss:
		s.took = append(s.took, "miss "+c.Channel)
	}
	return command.Result{Answer: true}, nil
}

func (s *scribe) breaks(err error) {
	s.mu.Lock()
	s.broken = err
	s.mu.Unlock()
}

func (s *scribe) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	took := s.took
	s.took = nil
	return took
}

func (s *scribe) options(events ...string) TellerOptions {
	return TellerOptions{
		Hooks: func(app petrel.AppID) []identity.Hook {
			if app != "1" {
				return nil
			}
			return hooksFor(events...)
		},
		Limits: func(petrel.AppID) job.Limits { return job.Limits{} }, Do: s.do,
	}
}

func clientEvent(n int) ClientEvent {
	return ClientEvent{App: "1", Channel: "private-a", Event: "client-x", Data: fmt.Appendf(nil, `%d`, n), SocketID: "1.2"}
}

// TestTeller: what happens is told in its order, many in one entry; what nobody wants is not.
func TestTeller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scribe{}
		w := NewTeller(s.options("client_event", "cache_miss"))
		w.Start()
		w.Start()
		presence := ClientEvent{App: "1", Channel: "presence-a", Event: "client-y", Data: []byte(`"text \u0041"`), SocketID: "1.2", User: "ada"}
		for _, e := range []ClientEvent{clientEvent(0), presence, {App: "2", Channel: "private-a", Data: []byte(`0`)}} {
			if err := w.ClientEvent(e); err != nil {
				t.Error(err)
			}
		}
		w.CacheMiss("1", "cache-a")
		w.CacheMiss("1", "cache-a")
		w.CacheMiss("2", "cache-a")
		time.Sleep(time.Second)
		synctest.Wait()
		if d := cmp.Diff([]string{
			`h/1 {"name":"client_event","channel":"private-a","event":"client-x","data":"0","socket_id":"1.2"}`,
			`h/1 {"name":"client_event","channel":"presence-a","event":"client-y","data":"text A","socket_id":"1.2","user_id":"ada"}`,
			`miss cache-a`,
		}, s.taken()); d != "" {
			t.Error(d)
		}
		s.calls = 0
		for i := range 500 {
			if err := w.ClientEvent(clientEvent(i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		took := s.taken()
		for i, l := range took {
			if !strings.Contains(l, fmt.Sprintf(`"data":"%d"`, i)) {
				t.Fatalf("%d is %s", i, l)
			}
		}
		if len(took) != 500 || s.calls > 20 {
			t.Errorf("%d of 500 in %d entries", len(took), s.calls)
		}
		w.Stop()
		w.Stop()
	})
}

// TestTellerIsBounded: a full queue refuses; what it took stays until the log takes it; another app does not notice.
func TestTellerIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scribe{}
		w := NewTeller(s.options("*"))
		w.Start()
		s.breaks(petrel.Errorf(petrel.CodeNoLeader, "none"))
		n := 0
		for w.ClientEvent(clientEvent(n)) == nil {
			n++
		}
		if n != maxToldWaiting {
			t.Errorf("%d were taken", n)
		}
		if err := w.ClientEvent(clientEvent(n)); petrel.CodeOf(err) != petrel.CodeJobsFull {
			t.Error(err)
		}
		for i := range 2 * maxToldWaiting {
			w.CacheMiss("1", fmt.Sprint("cache-", i))
		}
		time.Sleep(time.Minute)
		s.breaks(nil)
		time.Sleep(time.Minute)
		events := 0
		for _, l := range s.taken() {
			if strings.HasPrefix(l, "h/1") {
				events++
			}
		}
		if events != n {
			t.Errorf("%d of %d were told in the end", events, n)
		}

		// An app whose jobs are as many as may wait: what was taken waits, what comes is refused for a while.
		s.breaks(petrel.Errorf(petrel.CodeJobsFull, "full"))
		if err := w.ClientEvent(clientEvent(1)); err != nil {
			t.Error(err)
		}
		time.Sleep(100 * time.Millisecond)
		if err := w.ClientEvent(clientEvent(2)); petrel.CodeOf(err) != petrel.CodeJobsFull {
			t.Error(err)
		}
		s.breaks(nil)
		time.Sleep(10 * time.Second)
		if err := w.ClientEvent(clientEvent(3)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if took := s.taken(); len(took) != 2 {
			t.Errorf("told: %q", took)
		}
		if err := w.ClientEvent(ClientEvent{App: "1", Data: make([]byte, maxToldEntry+1)}); petrel.CodeOf(err) != petrel.CodeTooLarge {
			t.Error(err)
		}

		// The log never comes back: Stop does not wait for ever.
		s.breaks(petrel.Errorf(petrel.CodeNoLeader, "none"))
		if err := w.ClientEvent(clientEvent(4)); err != nil {
			t.Error(err)
		}
		began := time.Now()
		w.Stop()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Stop took %v", took)
		}
		if err := w.ClientEvent(clientEvent(5)); petrel.CodeOf(err) != petrel.CodeJobsFull {
			t.Error(err)
		}
	})
}

// TestCauses: each hook that wants an event has a job of its own for it; chat's say which seq they are about.
func TestCauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.close()
		hooks := []identity.Hook{
			{App: "1", ID: "a", Events: []string{"message.*"}, Made: 1},
			{App: "1", ID: "b", Events: []string{"*"}, Made: 2},
		}
		causes := Causes{
			Hooks:  func(petrel.AppID) []identity.Hook { return hooks },
			Limits: func(petrel.AppID) job.Limits { return job.Limits{} },
			Chat: func(ev event.Event) (string, petrel.RoomID) {
				switch ev := ev.(type) {
				case event.MemberAdded:
					return "member.added", ev.Room
				case event.MessagePosted:
					return "message.new", ev.Room
				}
				return "", ""
			},
		}
		d := event.Decision{Events: []event.Event{
			event.UserCreated{User: "ada"}, event.MemberAdded{Room: "r", User: "ada"}, event.MessagePosted{Room: "r", ID: "m", User: "ada", Text: "secret words"},
		}}
		s := event.Stamp{App: "1", Actor: petrel.Actor{Kind: petrel.ActorUser, App: "1", User: "ada"}}
		consequences := func() (got []string) {
			err := c.store.View(t.Context(), func(r *projection.Reader) error {
				events, guards, err := causes.Consequences(r, s, d)
				if len(guards) > 0 {
					t.Error("a post is guarded by webhooks")
				}
				for _, ev := range events {
					q := ev.(event.JobsQueued)
					for _, j := range q.Jobs {
						body := j.Data
						if j.Body > 0 {
							body = q.Bodies[j.Body-1]
						}
						got = append(got, fmt.Sprintf("%s %s %d %s", j.Kind, j.Target, j.Cause, body))
					}
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			return got
		}
		if d := cmp.Diff([]string{
			`webhook b/2 2 {"name":"member.added","room":"r"}`,
			`webhook a/1 3 {"name":"message.new","room":"r"}`,
			`webhook b/2 3 {"name":"message.new","room":"r"}`,
		}, consequences()); d != "" {
			t.Error(d)
		}
		hooks = hooks[:0]
		if got := consequences(); len(got) > 0 {
			t.Errorf("without webhooks: %q", got)
		}
	})
}
