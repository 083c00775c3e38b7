//go:build linux || darwin || freebsd

package raftlog

import "syscall"

// freeDisk returns the bytes an ordinary user can still write below dir.
func freeDisk(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return -1, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
