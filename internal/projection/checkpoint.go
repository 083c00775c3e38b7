package projection

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"zombiezen.com/go/sqlite"
)

// writerCheckpoints is at how many times Options.CheckpointBytes the writer copies the write-ahead
// log back itself. SQLite begins the log anew only when a writer finds all of it copied back; a
// background checkpoint rarely gets there under full load, and the log would grow with the load.
const writerCheckpoints = 8

// checkpointer copies SQLite's write-ahead log back into the file, on a connection of its own, so
// that its fsyncs are not part of anybody's transaction. SQLite's own wal_autocheckpoint runs inside
// COMMIT: measured with BenchmarkUpdateTail, p99.9 10.7 ms and max 41 ms, against 1.9 ms and 9 ms so.
type checkpointer struct {
	s    *Store
	wake chan struct{} // capacity 1: that something was written

	// c and shm belong to Store.conns like every connection. Only the loop uses c.
	c   *conn
	shm *os.File // the index of the write-ahead log, for its counters

	// copying makes the two take turns: SQLite turns the second away at once, and a writer that is always turned away by a
	// background checkpoint that stands still would let the log grow without end.
	copying sync.Mutex

	after struct { // how long the log must be for the next attempt, in frames
		background uint32 // loop only
		writer     uint32 // guarded by Store.write
	}

	stopOnce sync.Once
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

func newCheckpointer(s *Store) *checkpointer {
	return &checkpointer{s: s, wake: make(chan struct{}, 1), cancel: func() {}}
}

func (k *checkpointer) open(path string) (err error) {
	k.c, err = openConn(path, sqlite.OpenReadWrite, "PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=0")
	if err != nil {
		return err
	}
	k.after.background, k.after.writer = 0, 0
	k.shm, err = os.Open(path + "-shm")
	return wrapOS("open the index of the write-ahead log", err)
}

func (k *checkpointer) close() error {
	var errs []error
	if k.shm != nil {
		errs = append(errs, k.shm.Close())
		k.shm = nil
	}
	if k.c != nil {
		errs = append(errs, k.c.close())
		k.c = nil
	}
	return errors.Join(errs...)
}

func (k *checkpointer) start() {
	ctx, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	k.wg.Go(func() { k.loop(ctx) })
}

func (k *checkpointer) stop() {
	k.stopOnce.Do(k.cancel)
	k.wg.Wait()
}

func (k *checkpointer) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
			k.background()
		}
	}
}

// background copies back what is there once that is CheckpointBytes.
func (k *checkpointer) background() {
	k.s.conns.RLock()
	defer k.s.conns.RUnlock()
	if k.s.closed {
		return
	}
	frames, copied := k.frames()
	if frames < k.after.background {
		if frames >= copied { // the log began anew
			k.after.background = 0
		}
		return
	}
	if int64(frames-min(copied, frames))*pageSize < k.s.opt.CheckpointBytes {
		return
	}
	k.run(k.c)
	k.after.background = frames + uint32(k.s.opt.CheckpointBytes/pageSize) // a reader may have held it up: not again at once
}

// wrote is called by the writer after every commit, with Store.write held.
func (k *checkpointer) wrote() {
	if k.shm == nil { // in memory
		return
	}
	limit := uint32(writerCheckpoints * k.s.opt.CheckpointBytes / pageSize)
	if frames, _ := k.frames(); frames >= max(limit, k.after.writer) {
		k.run(k.s.writer)
		k.after.writer = frames + limit/writerCheckpoints
	} else if frames < limit {
		k.after.writer = 0
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run copies back as much as readers allow, and waits for nobody. Its failure loses nothing: the log
// stays as long as it is and the next attempt finds the same pages.
func (k *checkpointer) run(c *conn) {
	k.copying.Lock()
	defer k.copying.Unlock()
	start := time.Now()
	err := c.run("PRAGMA wal_checkpoint(PASSIVE)")
	k.s.metrics.checkpoint.Observe(time.Since(start).Seconds())
	if err != nil {
		k.s.metrics.checkpointFailures.Inc()
		k.s.opt.Logger.Warn("copying the projection's write-ahead log back failed; it grows until this works",
			"error", fmt.Errorf("checkpoint: %w", err))
	}
}

// frames returns how many frames the write-ahead log holds and how many of these are copied back:
// two counters of the -shm file (https://www.sqlite.org/walformat.html#the_wal_index_file_format).
// They decide only when to make a checkpoint: a torn or failed read makes it early or late.
func (k *checkpointer) frames() (frames, copied uint32) {
	var b [4]byte
	if _, err := k.shm.ReadAt(b[:], 16); err != nil {
		return 0, 0
	}
	frames = binary.NativeEndian.Uint32(b[:])
	if _, err := k.shm.ReadAt(b[:], 96); err != nil {
		return frames, 0
	}
	return frames, binary.NativeEndian.Uint32(b[:])
}
