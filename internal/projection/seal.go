package projection

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// A seal lies beside a projection that was closed in order: the SHA-256 of the file. Between two runs
// nobody but damage changes the file, and quick_check knows only its structure: the seal finds a changed
// letter too. It is broken (removed) before the file is opened for writing, so it never speaks of another
// state. After a crash there is none, and only the structure is checked.
const sealSuffix = ".seal"

// maxSealed is the largest file that is sealed, in bytes: reading more would hold up a stop.
const maxSealed = 8 << 30

// breakSeal compares the file with its seal and removes the seal. sealed says that the file is, to the bit,
// what was closed. An error wraps ErrUnreadable when it is not.
func breakSeal(ctx context.Context, path string) (sealed bool, err error) {
	want, err := os.ReadFile(path + sealSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, wrapOS("read the seal of the projection", err)
	}
	got, err := hashFile(ctx, path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if got != strings.TrimSpace(string(want)) || fileSize(path+"-wal") != 0 {
		// The seal stays: until Remove has taken the file away, every start refuses it.
		return false, fmt.Errorf("%w: %s is not as it was closed: its content was changed since", ErrUnreadable, path)
	}
	return true, removeSeal(path)
}

// seal is called once everything is closed.
func seal(path string, logger *slog.Logger) error {
	if size := fileSize(path); size == 0 || size > maxSealed || fileSize(path+"-wal") != 0 {
		logger.Info("the projection is left without a seal: the next start checks its structure only", "bytes", size)
		return nil
	}
	sum, err := hashFile(context.Background(), path)
	if err != nil {
		return err
	}
	tmp, err := makeTemp(path)
	if err != nil {
		return err
	}
	defer os.Remove(tmp) //nolint:errcheck // gone after the rename
	if err := os.WriteFile(tmp, []byte(sum+"\n"), 0o600); err != nil {
		return wrapOS("seal the projection", err)
	}
	if err := errors.Join(syncPath(path), syncPath(tmp)); err != nil {
		return err
	}
	if err := os.Rename(tmp, path+sealSuffix); err != nil {
		return wrapOS("seal the projection", err)
	}
	return syncPath(filepath.Dir(path))
}

// removeSeal makes sure that no seal survives, not even a loss of power.
func removeSeal(path string) error {
	err := os.Remove(path + sealSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return wrapOS("break the seal of the projection", err)
	}
	return syncPath(filepath.Dir(path))
}

func hashFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", wrapOS("read the projection", err)
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		_, err := io.CopyN(h, f, 16<<20)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", wrapOS("read the projection", err)
		}
	}
}
