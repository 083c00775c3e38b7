//go:build !(linux || darwin || freebsd)

package raftlog

import "errors"

// freeDisk is unknown here: appends are then refused only when the disk itself refuses.
func freeDisk(string) (int64, error) { return -1, errors.ErrUnsupported }
