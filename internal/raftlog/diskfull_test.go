package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// Refused before the disk refuses, and again welcome when there is room.
func TestMinFree(t *testing.T) {
	t.Parallel()
	var free atomic.Int64
	free.Store(1 << 30)
	l := mustSolo(t, t.TempDir(), raftlogtest.NewRecorder(), func(o *raftlog.Options) {
		o.MinFree = 100 << 20
		o.Hook(nil, func(string) (int64, error) { return free.Load(), nil }, nil)
	})
	defer shut(t, l)
	add(t, l, "a")
	free.Store(99 << 20)
	if _, err := l.Append(t.Context(), [][]byte{[]byte("b")}); !errors.Is(err, petrel.ErrDiskFull) {
		t.Fatalf("append: %v", err)
	}
	if s := l.Status(); !s.DiskFull || s.FreeDisk != 99<<20 {
		t.Fatalf("status: %+v", s)
	}
	if err := l.Barrier(t.Context()); err != nil { // reads go on
		t.Fatal(err)
	}
	free.Store(101 << 20)
	if at := add(t, l, "c"); at != 2 {
		t.Fatalf("record %d", at)
	}
}

// The disk refuses in the middle of things: at every kind of write. The shard lives, says
// what became of each append, and goes on without a restart.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	for _, ops := range []string{"write", "sync", "create", "meta", "stable", "write sync create meta stable"} {
		t.Run(ops, func(t *testing.T) {
			t.Parallel()
			var full atomic.Bool
			dir := t.TempDir()
			app := raftlogtest.NewRecorder()
			fatal := func(err error) { t.Errorf("stopped: %v", err) }
			l := mustSolo(t, dir, app, func(o *raftlog.Options) {
				o.OnFatal = fatal
				o.EnqueueTimeout = 100 * time.Millisecond
				o.Hook(func(op, _ string) error {
					if full.Load() && strings.Contains(ops, op) {
						return syscall.ENOSPC
					}
					return nil
				}, nil, nil)
			})
			acked := map[string]bool{}
			unknown := map[string]bool{}
			refused := 0
			try := func(p string) {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				_, err := l.Append(ctx, [][]byte{[]byte(p + strings.Repeat(".", 1000))})
				switch {
				case err == nil:
					acked[p] = true
				case errors.Is(err, petrel.ErrUnknownOutcome):
					unknown[p] = true
				case errors.Is(err, petrel.ErrDiskFull), errors.Is(err, petrel.ErrNotAppended):
					refused++
				default:
					t.Fatalf("append: %v", err)
				}
			}
			for i := range 5 {
				try(fmt.Sprint("before ", i))
			}
			for round := range 2 {
				full.Store(true)
				for i := range 24 { // more than a segment holds
					try(fmt.Sprintf("during %d.%d", round, i))
				}
				full.Store(false)
				until(t, func() error { return l.Barrier(t.Context()) })
				until(t, func() error {
					_, err := l.Append(t.Context(), [][]byte{[]byte(fmt.Sprintf("after %d", round))})
					return err
				})
				acked[fmt.Sprintf("after %d", round)] = true
			}
			if refused == 0 && ops != "stable" { // a term is saved only for an election
				t.Error("nothing was refused")
			}
			until(t, func() error { return l.Barrier(t.Context()) }) // an append is answered before it is folded
			got := map[string]bool{}
			all := app.Payloads()
			for _, p := range all {
				p = strings.TrimRight(p, ".")
				if got[p] {
					t.Errorf("%s is there twice", p)
				}
				got[p] = true
				if !acked[p] && !unknown[p] {
					t.Errorf("%s is there but was refused", p)
				}
			}
			for p := range acked {
				if !got[p] {
					t.Errorf("%s was acknowledged but is not there", p)
				}
			}
			shut(t, l)
			if diff := cmp.Diff(all, whole(t, dir)); diff != "" {
				t.Errorf("after a restart (-want +got):\n%s", diff)
			}
			t.Logf("%d acknowledged, %d refused, %d unknown", len(acked), refused, len(unknown))
		})
	}
}

// A disk that fails otherwise stops the shard: what cannot be written cannot be promised.
func TestBrokenDisk(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	fatal := make(chan error, 1)
	dir := t.TempDir()
	l := mustSolo(t, dir, raftlogtest.NewRecorder(), func(o *raftlog.Options) {
		o.OnFatal = func(err error) { fatal <- err }
		o.Hook(func(op, _ string) error {
			if broken.Load() && op == "sync" {
				return syscall.EIO
			}
			return nil
		}, nil, nil)
	})
	add(t, l, "a")
	broken.Store(true)
	if _, err := l.Append(t.Context(), [][]byte{[]byte("b")}); !errors.Is(err, petrel.ErrUnknownOutcome) {
		t.Fatalf("append: %v", err)
	}
	if err := <-fatal; !errors.Is(err, syscall.EIO) {
		t.Fatalf("OnFatal: %v", err)
	}
	if _, err := l.Append(t.Context(), [][]byte{[]byte("c")}); !errors.Is(err, petrel.ErrStopped) {
		t.Fatalf("append: %v", err)
	}
	shut(t, l)
	if got := whole(t, dir); len(got) == 0 || got[0] != "a" {
		t.Fatalf("records %q", got)
	}
}
