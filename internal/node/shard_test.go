package node

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type logSink struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logSink) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logSink) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func testShard(t *testing.T, dir string) (*shard, *logSink, error) {
	t.Helper()
	sink := &logSink{}
	s, err := openShard(t.Context(), shardOptions{
		dir: dir, self: membership{Member: "n1", Origin: founded}, modules: []projection.Module{apply.Module()},
		onFatal: func(err error) { t.Errorf("fatal: %v", err) }, logger: slog.New(slog.NewTextHandler(sink, nil)),
	})
	return s, sink, err
}

// TestShardFounding: an empty folder is founded once; its epoch is that of every later start, also when the
// projection has to be built again.
func TestShardFounding(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "shard-0")
	s, _, err := testShard(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	founded := s.loop.Applied()
	if founded.Index != 1 || founded.Epoch == "" {
		t.Errorf("after the founding: %+v", founded)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}

	s, _, err = testShard(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.loop.Applied(); got.Epoch != founded.Epoch || got.Index != 1 {
		t.Errorf("after a restart: %+v, want %+v", got, founded)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(dir, "projection.db"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, sink, err := testShard(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.loop.Applied(); got.Epoch != founded.Epoch || got.Hash != founded.Hash || got.Digest != founded.Digest {
		t.Errorf("after building anew: %+v, want %+v", got, founded)
	}
	if !strings.Contains(sink.String(), "the projection is unreadable") {
		t.Errorf("building anew was not said: %s", sink)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}
