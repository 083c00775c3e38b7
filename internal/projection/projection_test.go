package projection_test

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/projection/projectiontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var notes = projectiontest.Notes()

const (
	insertNote = projectiontest.InsertNote
	selectNote = projectiontest.SelectNote
	countNotes = projectiontest.CountNotes
)

// TestFile and TestMemory: the contract, wherever the projection lies.
func TestFile(t *testing.T) {
	t.Parallel()
	projectiontest.Run(t, func(t testing.TB) projectiontest.Place { return inFile(fresh(t)) })
}

func TestMemory(t *testing.T) {
	t.Parallel()
	projectiontest.Run(t, func(testing.TB) projectiontest.Place {
		disk := &projection.MemoryDisk{}
		return func(o *projection.Options) { o.Memory = disk }
	})
}

func inFile(path string) projectiontest.Place { return func(o *projection.Options) { o.Path = path } }

func open(t testing.TB, path string, change ...func(*projection.Options)) *projection.Store {
	t.Helper()
	return projectiontest.Open(t, inFile(path), change...)
}

func fresh(t testing.TB) string { return filepath.Join(t.TempDir(), "p.db") }

func add(t testing.TB, s *projection.Store, from, to int) {
	t.Helper()
	projectiontest.Add(t, s, from, to)
}

func at(i int) petrel.Applied { return projectiontest.At(i) }

func count(t testing.TB, s *projection.Store) int {
	t.Helper()
	return projectiontest.Count(t, s)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	reg := prometheus.NewRegistry()
	s := open(t, path, func(o *projection.Options) { o.Registerer = reg })
	add(t, s, 1, 10)
	count(t, s)
	_ = s.ViewBudget(t.Context(), projection.Budget{Steps: 1}, func(r *projection.Reader) error {
		_, err := r.Get(countNotes, func(*projection.Row) {})
		return err
	})
	want := map[string]float64{
		"petrel_projection_update_seconds": 1, "petrel_projection_rows_total": 11, "petrel_projection_view_seconds": 2,
		"petrel_projection_read_budget_refusals_total": 1, "petrel_projection_checkpoint_failures_total": 0, "petrel_projection_checkpoint_seconds": 0,
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range all {
		m := f.GetMetric()[0]
		if f.GetName() == "petrel_projection_file_bytes" || f.GetName() == "petrel_projection_wal_bytes" {
			if m.GetGauge().GetValue() <= 0 {
				t.Errorf("%s is %v", f.GetName(), m.GetGauge().GetValue())
			}
			continue
		}
		got[f.GetName()] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, func(o *projection.Options) { o.Registerer = reg }) // the same registry serves again
}

// TestCheckpointsKeepTheLogShort: under load without a pause the write-ahead log begins anew. How long it
// gets before depends on the disk, so the test waits for a stretch of writes in which it does not grow.
func TestCheckpointsKeepTheLogShort(t *testing.T) {
	t.Parallel()
	s := open(t, fresh(t), func(o *projection.Options) { o.CheckpointBytes = 128 << 10 })
	const stretch = 20_000 // rows: several times what may lie in the log
	var before int64
	for round := range 20 {
		for i := round * stretch; i < (round+1)*stretch; i += 100 {
			add(t, s, i+1, i+100)
		}
		_, wal := s.Bytes()
		if wal == before {
			return
		}
		before = wal
	}
	file, wal := s.Bytes()
	t.Errorf("the log has %d bytes beside a file of %d and grows on", wal, file)
}
