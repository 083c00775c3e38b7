package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// errTaken is what openAlone returns when another process has the file.
var errTaken = errors.New("another process has it")

// Owner is what the process that holds a data folder says about itself in DATA/lock.
// Command line tools read it to find the running node.
type Owner struct {
	PID    int    `json:"pid"`
	Listen string `json:"listen,omitempty"` // address of the public listener, once it is open
	TLS    bool   `json:"tls,omitempty"`    // it speaks TLS
	Admin  string `json:"admin,omitempty"`  // address of the admin listener, once it is open
}

// LockedError says that another process holds the data folder.
type LockedError struct {
	Dir   string
	Owner Owner // zero when it could not be read
}

func (e *LockedError) Error() string {
	if e.Owner.PID == 0 {
		return fmt.Sprintf("the data folder %s is in use by another process; stop it first, or choose another folder with --data", e.Dir)
	}
	return fmt.Sprintf("the data folder %s is in use by process %d; stop it first, or choose another folder with --data", e.Dir, e.Owner.PID)
}

// folderLock is the exclusive hold on a data folder. The kernel lets it go when the process ends,
// however it ends; the file itself stays.
type folderLock struct {
	file *os.File
}

// lockFolder makes the folder when absent and takes it. It comes before anything in it is opened.
func lockFolder(dir string) (*folderLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	f, err := openAlone(filepath.Join(dir, "lock"))
	if errors.Is(err, errTaken) {
		owner, _ := ReadOwner(dir)
		return nil, &LockedError{Dir: dir, Owner: owner}
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data folder %s: %w", dir, err)
	}
	l := &folderLock{file: f}
	// A full disk must not keep a node from starting: reads still work. The owner's note is a courtesy.
	_ = l.write(Owner{PID: os.Getpid()})
	return l, nil
}

func (l *folderLock) write(o Owner) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err = l.file.WriteAt(append(b, '\n'), 0)
	return err
}

func (l *folderLock) release() error {
	_ = l.file.Truncate(0)
	return l.file.Close()
}

// ReadOwner says which process holds a data folder, without taking it: zero when none does, or did not say.
func ReadOwner(dir string) (Owner, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return Owner{}, err
	}
	defer f.Close()
	return readOwner(f)
}

func readOwner(f *os.File) (o Owner, err error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
	if err != nil {
		return Owner{}, err
	}
	if len(b) == 0 {
		return Owner{}, nil
	}
	err = json.Unmarshal(b, &o)
	return o, err
}
