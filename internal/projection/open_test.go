package projection_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

func TestFileModes(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	s := open(t, path)
	add(t, s, 1, 1)
	for _, p := range []string{path, path + "-wal", path + "-shm"} {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if m := fi.Mode().Perm(); m != 0o600 {
			t.Errorf("%s has mode %o", filepath.Base(p), m)
		}
	}
}

// TestDamage: whatever lies in the place of the projection is either refused as unreadable, or not damage.
func TestDamage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(t *testing.T, path string, file []byte) []byte
		want   error
	}{
		"nothing changed": {func(_ *testing.T, _ string, f []byte) []byte { return f }, nil},
		"empty file":      {func(*testing.T, string, []byte) []byte { return nil }, nil},
		"garbage":         {func(_ *testing.T, _ string, f []byte) []byte { return bytes.Repeat([]byte("garbage!"), len(f)/8) }, projection.ErrUnreadable},
		"a few bytes":     {func(*testing.T, string, []byte) []byte { return []byte("SQL") }, projection.ErrUnreadable},
		"garbage behind the header": {func(_ *testing.T, _ string, f []byte) []byte {
			return append(f[:100:100], bytes.Repeat([]byte{0xa5}, len(f)-100)...)
		}, projection.ErrUnreadable},
		"a page of garbage": {func(_ *testing.T, _ string, f []byte) []byte {
			copy(f[len(f)-4096:], bytes.Repeat([]byte{0xa5}, 4096))
			return f
		}, projection.ErrUnreadable},
		"half the file": {func(_ *testing.T, _ string, f []byte) []byte { return f[:len(f)/2] }, projection.ErrUnreadable},
		"no applied row": {func(t *testing.T, path string, _ []byte) []byte {
			return rewritten(t, path, `DELETE FROM projection_applied`)
		}, projection.ErrUnreadable},
		"no applied table": {func(t *testing.T, path string, _ []byte) []byte {
			return rewritten(t, path, `DROP TABLE projection_applied`)
		}, projection.ErrUnreadable},
		"another program's database": {func(t *testing.T, path string, _ []byte) []byte {
			return rewritten(t, path, `DROP TABLE projection_migration`)
		}, projection.ErrUnreadable},
		"a hash cut short": {func(t *testing.T, path string, _ []byte) []byte {
			return rewritten(t, path, `UPDATE projection_applied SET digest = x'00'`)
		}, projection.ErrUnreadable},
		"a newer schema": {func(t *testing.T, path string, _ []byte) []byte {
			return rewritten(t, path, `INSERT INTO projection_migration VALUES ('notes', 2)`)
		}, projection.ErrNewerSchema},
		"a module nobody knows": {func(t *testing.T, path string, _ []byte) []byte {
			return rewritten(t, path, `INSERT INTO projection_migration VALUES ('later', 1)`)
		}, projection.ErrNewerSchema},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := fresh(t)
			s := open(t, path)
			add(t, s, 1, 500)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := tc.change(t, path, file)
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(path + ".seal"); err != nil { // as after a crash: the structure is all there is
				t.Fatal(err)
			}
			reg := prometheus.NewRegistry()
			s, err = projection.Open(t.Context(), projection.Options{Path: path, Modules: []projection.Module{notes}, Registerer: reg})
			if !errors.Is(err, tc.want) {
				t.Fatalf("Open: %v, want %v", err, tc.want)
			}
			if err == nil {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, changed) {
				t.Errorf("Open changed a file that it refused (%v)", err)
			}
			if errors.Is(err, projection.ErrUnreadable) {
				rebuild(t, path, reg)
			}
		})
	}
}

// TestSeal: what was closed in order is opened only as it was, to the bit, also where the structure still holds.
func TestSeal(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(path string) error
		want   error
	}{
		"nothing changed": {func(string) error { return nil }, nil},
		"one letter": {func(path string) error {
			f, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			f[bytes.LastIndex(f, []byte("body"))] = 'B'
			return os.WriteFile(path, f, 0o600)
		}, projection.ErrUnreadable},
		"gone":          {os.Remove, projection.ErrUnreadable},
		"empty":         {func(path string) error { return os.Truncate(path, 0) }, projection.ErrUnreadable},
		"a log beside":  {func(path string) error { return os.WriteFile(path+"-wal", []byte("x"), 0o600) }, projection.ErrUnreadable},
		"seal of dirt":  {func(path string) error { return os.WriteFile(path+".seal", []byte("dirt"), 0o600) }, projection.ErrUnreadable},
		"seal is empty": {func(path string) error { return os.Truncate(path+".seal", 0) }, projection.ErrUnreadable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := fresh(t)
			s := open(t, path)
			add(t, s, 1, 500)
			if err := errors.Join(s.Close(), tc.change(path)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // asking twice does not help
				s, err := projection.Open(t.Context(), projection.Options{Path: path, Modules: []projection.Module{notes}})
				if !errors.Is(err, tc.want) {
					t.Fatalf("Open: %v, want %v", err, tc.want)
				}
				if err != nil {
					continue
				}
				if _, err := os.Stat(path + ".seal"); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the seal is whole while the file is open: %v", err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if tc.want != nil {
				if _, err := projection.Remove(path); err != nil {
					t.Fatal(err)
				}
				if s := open(t, path); count(t, s) != 0 {
					t.Error("after Remove the projection is not empty")
				}
			}
		})
	}
}

// rewritten returns the file after some SQL.
func rewritten(t *testing.T, path, sql string) []byte {
	t.Helper()
	s := open(t, path)
	err := s.Update(t.Context(), func(tx *projection.Tx) error {
		_, err := tx.Exec(sql)
		return err
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// rebuild does what node does with an unreadable file.
func rebuild(t *testing.T, path string, reg prometheus.Registerer) {
	t.Helper()
	kept, err := projection.Remove(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(kept); err != nil || fi.Size() == 0 {
		t.Errorf("the damaged file was not kept: %v", err)
	}
	s := open(t, path, func(o *projection.Options) { o.Registerer = reg }) // the same one as before
	if s.Applied() != (petrel.Applied{}) || count(t, s) != 0 {
		t.Errorf("after Remove the projection is not empty: %+v", s.Applied())
	}
}

func TestRemoveKeepsTwo(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	for _, old := range []string{"1600000000", "1600000001", "999999999"} {
		for _, p := range []string{path + ".damaged-" + old, path + ".damaged-" + old + "-wal"} {
			if err := os.WriteFile(p, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.WriteFile(p, []byte("now"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := projection.Remove(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{path + ".damaged-1600000001", path + ".damaged-1600000001-wal", kept, kept + "-wal"}
	got, err := filepath.Glob(filepath.Dir(path) + "/*")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	if kept, err := projection.Remove(path); err != nil || kept != "" {
		t.Errorf("Remove of nothing: %q, %v", kept, err)
	}
}

func TestOpenRefusesOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]projection.Options{
		"no path":      {},
		"no folder":    {Path: filepath.Join(t.TempDir(), "no", "p.db")},
		"a name twice": {Path: fresh(t), Modules: []projection.Module{notes, notes}},
		"our own name": {Path: fresh(t), Modules: []projection.Module{{Name: "projection"}}},
	} {
		if s, err := projection.Open(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
			s.Close() //nolint:errcheck // the test has failed
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := projection.Open(ctx, projection.Options{Path: fresh(t)}); err == nil {
		t.Error("a context that is over: no error")
	}
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	left := path + ".tmp-123"
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestPowerLoss puts the file back to what a checkpoint had fsynced, with and without a torn
// write-ahead log behind it: what opens is some earlier commit, whole, with its position.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	path := fresh(t)
	s := open(t, path)
	for i := 1; i <= 40; i++ {
		add(t, s, i, i)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	for _, keep := range []int{0, 10, len(wal) / 3, len(wal) / 2, len(wal) - 1, len(wal)} {
		path := fresh(t)
		if err := errors.Join(os.WriteFile(path, file, 0o600), os.WriteFile(path+"-wal", wal[:keep], 0o600)); err != nil {
			t.Fatal(err)
		}
		s := open(t, path)
		a := s.Applied()
		if n := count(t, s); n != int(a.Index) || (a != petrel.Applied{} && a != at(n)) {
			t.Errorf("%d of %d bytes of the log kept: %d notes at %+v", keep, len(wal), n, a)
		}
		if keep == len(wal) && a.Index != 40 {
			t.Errorf("the whole log: applied %d", a.Index)
		}
	}
}
