package node

import (
	"errors"
	"os"
	"syscall"
)

// openAlone opens or makes a file that one process may have at a time, until it ends: others may read it.
func openAlone(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ, nil, syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	const sharingViolation = syscall.Errno(32)
	switch {
	case errors.Is(err, sharingViolation):
		return nil, errTaken
	case err != nil:
		return nil, err
	}
	return os.NewFile(uintptr(h), path), nil
}

// openFilesLimit is not known here.
func openFilesLimit() int { return 0 }
