package bench

import (
	"runtime"
	"syscall"
	"time"
)

// pace hands out due times to the microsecond. A timer of Go's will not do: when nothing else is ready the
// runtime waits for the next one in whole milliseconds (epoll), and an open loop at 500/s would measure
// that. So one thread sleeps in the kernel by itself.
type pace struct{}

func newPace() pace {
	runtime.LockOSThread()
	return pace{}
}

func (pace) until(t time.Time) {
	for d := time.Until(t); d > 0; d = time.Until(t) {
		ts := syscall.NsecToTimespec(d.Nanoseconds())
		_ = syscall.Nanosleep(&ts, nil) // a signal ends it early: the loop goes on
	}
}

func (pace) stop() { runtime.UnlockOSThread() }
