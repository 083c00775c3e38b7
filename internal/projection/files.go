package projection

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"
)

const (
	tempInfix    = ".tmp-"
	damagedInfix = ".damaged-"
	keepDamaged  = 2
)

// Remove takes a projection that Open refused as ErrUnreadable out of the way, so that the next Open
// makes an empty one: the file and its write-ahead log are kept as path.damaged-<Unix time> and
// path.damaged-<Unix time>-wal for whoever wants to know what happened; the two newest are kept. It
// returns the name of the kept file, "" when there was none. The projection must not be open.
func Remove(path string) (kept string, err error) {
	target := path + damagedInfix + strconv.FormatInt(time.Now().Unix(), 10)
	switch err := os.Rename(path, target); {
	case err == nil:
		kept = target
	case !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("move the damaged projection aside: %w", err)
	}
	if kept != "" {
		if err := os.Rename(path+"-wal", target+"-wal"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return kept, fmt.Errorf("move the damaged projection aside: %w", err)
		}
	}
	for _, p := range []string{path + "-wal", path + "-shm"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return kept, fmt.Errorf("remove the damaged projection: %w", err)
		}
	}
	if err := pruneDamaged(path); err != nil {
		return kept, err
	}
	return kept, errors.Join(syncPath(filepath.Dir(path)), removeSeal(path))
}

func pruneDamaged(path string) error {
	names, err := beside(path, damagedInfix)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, "-wal") })
	slices.SortFunc(names, func(a, b string) int { // by length first: Unix times grow a digit one day
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for _, n := range names[:max(0, len(names)-keepDamaged)] {
		for _, p := range []string{n, n + "-wal"} {
			if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove an old damaged projection: %w", err)
			}
		}
	}
	return nil
}

// beside returns the files next to path whose names are path's plus infix plus something.
func beside(path, infix string) ([]string, error) {
	dir, prefix := filepath.Dir(path), filepath.Base(path)+infix
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look beside the projection: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names, nil
}

// removeTemps deletes what a crash in the middle of a snapshot or restore left behind.
func removeTemps(path string) error {
	names, err := beside(path, tempInfix)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove a temporary file of the projection: %w", err)
		}
	}
	return nil
}

// makeTemp makes an empty file beside path, mode 0600.
func makeTemp(path string) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+tempInfix+"*")
	if err != nil {
		return "", wrapOS("make a temporary file", err)
	}
	return f.Name(), wrapOS("make a temporary file", f.Close())
}

// removeAll deletes a temporary SQLite file and what SQLite keeps beside it. What cannot be deleted
// now goes at the next Open.
func removeAll(tmp string) {
	for _, p := range []string{tmp, tmp + "-wal", tmp + "-shm"} {
		_ = os.Remove(p)
	}
}

// syncPath fsyncs a file or a folder.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return wrapOS("sync", err)
	}
	return wrapOS("sync", errors.Join(f.Sync(), f.Close()))
}

// probeWrite tries to write and fsync a little beside path.
func probeWrite(path string) error {
	tmp, err := makeTemp(path)
	if err != nil {
		return err
	}
	defer os.Remove(tmp) //nolint:errcheck // Open removes what is left
	f, err := os.OpenFile(tmp, os.O_WRONLY, 0o600)
	if err != nil {
		return wrapOS("probe the disk", err)
	}
	_, err = f.Write(make([]byte, 4*pageSize))
	return wrapOS("probe the disk", errors.Join(err, f.Sync(), f.Close()))
}

func isIOErr(err error) bool {
	p := sqlite.ErrCode(err).ToPrimary()
	return p == sqlite.ResultIOErr || p == sqlite.ResultCantOpen
}

func isInterrupt(err error) bool { return sqlite.ErrCode(err).ToPrimary() == sqlite.ResultInterrupt }
