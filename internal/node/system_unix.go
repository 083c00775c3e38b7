//go:build unix

package node

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// openAlone opens or makes a file that one process may have at a time, until it ends.
func openAlone(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errTaken
	}
	return nil, fmt.Errorf("flock (does its file system support it?): %w", err)
}

// openFilesLimit is how many files the process may have open, 0 when that is not known. The runtime has
// already raised the soft limit to the hard one.
func openFilesLimit() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || r.Cur > 1<<30 {
		return 0
	}
	return int(r.Cur) //nolint:gosec // bounded above
}
