package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// writers append on every member, as the desks of three nodes do, and remember when it worked.
type writers struct {
	t      *testing.T
	logs   []raftlog.Log
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	acked [][]time.Time
	sent  [][]string // acknowledged payloads
}

func write(t *testing.T, logs []raftlog.Log) *writers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &writers{t: t, logs: logs, cancel: cancel, acked: make([][]time.Time, len(logs)), sent: make([][]string, len(logs))}
	for i := range logs {
		w.wg.Go(func() { w.run(ctx, i) })
	}
	w.some()
	return w
}

func (w *writers) run(ctx context.Context, i int) {
	pause := 5 * time.Millisecond
	for n := 0; ctx.Err() == nil; {
		p := fmt.Sprintf("%d.%d", i, n)
		_, err := w.logs[i].Append(ctx, [][]byte{[]byte(p)})
		if errors.Is(err, petrel.ErrUnknownOutcome) { // it may be there; a client would send it again with its id
			for err = w.logs[i].Barrier(ctx); err != nil && ctx.Err() == nil; err = w.logs[i].Barrier(ctx) {
				nap(ctx, pause/2+rand.N(pause))
				pause = min(2*pause, 200*time.Millisecond)
			}
			n++
			continue
		}
		if err != nil {
			nap(ctx, pause/2+rand.N(pause))
			pause = min(2*pause, 200*time.Millisecond)
			continue
		}
		pause = 5 * time.Millisecond
		n++
		w.mu.Lock()
		w.acked[i] = append(w.acked[i], time.Now())
		w.sent[i] = append(w.sent[i], p)
		w.mu.Unlock()
	}
}

func nap(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// some waits until every writer but those given has written more.
func (w *writers) some(but ...int) {
	w.t.Helper()
	w.mu.Lock()
	before := make([]int, len(w.acked))
	for i := range w.acked {
		before[i] = len(w.acked[i])
	}
	w.mu.Unlock()
	until(w.t, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := range w.acked {
			if len(w.acked[i]) < before[i]+5 && !slices.Contains(but, i) {
				return fmt.Errorf("writer %d stands still", i)
			}
		}
		return nil
	})
}

// pause is the longest time since then in which one of the writers, but those given, wrote nothing.
func (w *writers) pause(since time.Time, but ...int) (worst time.Duration) {
	w.some(but...)
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, acked := range w.acked {
		if slices.Contains(but, i) {
			continue
		}
		last := since
		for _, at := range acked {
			if at.After(since) {
				worst = max(worst, at.Sub(last))
				last = at
			}
		}
	}
	return worst
}

func (w *writers) stop() {
	w.cancel()
	w.wg.Wait()
}

func leaderOf(t *testing.T, logs []raftlog.Log, but ...int) int {
	t.Helper()
	at := -1
	until(t, func() error {
		for i, l := range logs {
			if !slices.Contains(but, i) && l.Status().IsLeader {
				at = i
				return nil
			}
		}
		return errors.New("no leader")
	})
	return at
}

func report(t *testing.T, what string, pauses []time.Duration) {
	slices.Sort(pauses)
	t.Logf("%s: write pause of %d: median %v, worst %v", what, len(pauses), pauses[len(pauses)/2], pauses[len(pauses)-1])
}

// The leader goes: on request, killed, or silent. Writers on all the others go on, and nothing acknowledged is lost.
func TestWritePause(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"transfer", "killed", "silent"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			mesh := raftlogtest.NewMesh()
			logs, apps := trioOn(t, mesh, secretNetwork(), func(int, *raftlog.Options) {})
			w := write(t, logs)
			defer w.stop()
			var pauses []time.Duration
			rounds := 2
			if testing.Verbose() {
				rounds = 10
			}
			for range rounds {
				lead := leaderOf(t, logs)
				name := fmt.Sprintf("n%d", lead+1)
				since := time.Now()
				switch how {
				case "transfer":
					if err := logs[lead].TransferLeadership(t.Context(), ""); err != nil {
						t.Logf("transfer: %v", err)
					}
					pauses = append(pauses, w.pause(since))
				case "killed":
					mesh.Cut(name)
					pauses = append(pauses, w.pause(since, lead))
					mesh.Heal(name)
				case "silent":
					mesh.Freeze(name)
					pauses = append(pauses, w.pause(since, lead))
					mesh.Thaw(name)
				}
				w.some()
			}
			w.stop()
			report(t, how, pauses)
			for _, l := range logs {
				until(t, func() error { return l.Barrier(t.Context()) })
			}
			all := apps[0].Payloads()
			there := make(map[string]bool, len(all))
			for _, p := range all {
				there[p] = true
			}
			for i := range w.sent {
				for _, p := range w.sent[i] {
					if !there[p] {
						t.Fatalf("%s was acknowledged and is not there", p)
					}
				}
				if got := apps[i].Payloads(); !slices.Equal(all, got) {
					t.Fatalf("member %d has other records", i)
				}
			}
		})
	}
}
