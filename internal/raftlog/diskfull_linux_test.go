package raftlog_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// The same on a real file system of 24 MiB that somebody else fills to the last byte.
func TestRealFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("a small tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	app := raftlogtest.NewRecorder()
	data := filepath.Join(dir, "data")
	l := mustSolo(t, data, app, func(o *raftlog.Options) {
		o.SegmentSize = 1 << 20
		o.OnFatal = func(err error) { t.Errorf("stopped: %v", err) }
		o.Hook(nil, func(string) (int64, error) { return 1 << 40, nil }, nil) // do not ask first
	})
	add(t, l, "before")
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	_ = f.Close()
	acked, full := []string{"before"}, 0
	for i := 0; full < 3; i++ {
		p := fmt.Sprintf("%d %s", i, strings.Repeat("w", 100<<10))
		_, err := l.Append(t.Context(), [][]byte{[]byte(p)})
		switch {
		case err == nil:
			acked = append(acked, p)
		case errors.Is(err, petrel.ErrDiskFull):
			full++
		case errors.Is(err, petrel.ErrNotAppended): // no leader just now
		default:
			t.Fatalf("append: %v", err)
		}
		if len(acked) > 200 {
			t.Fatal("the disk never filled")
		}
	}
	t.Logf("%d appends fitted into what was allocated ahead", len(acked)-1)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	until(t, func() error {
		_, err := l.Append(t.Context(), [][]byte{[]byte("after")})
		return err
	})
	acked = append(acked, "after")
	until(t, func() error { return l.Barrier(t.Context()) })
	if diff := cmp.Diff(acked, app.Payloads()); diff != "" {
		t.Fatalf("records (-want +got):\n%.2000s", diff)
	}
	shut(t, l)
	if diff := cmp.Diff(acked, whole(t, data)); diff != "" {
		t.Fatalf("after a restart (-want +got):\n%.2000s", diff)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
