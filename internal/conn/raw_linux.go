package conn

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a loop asks of the kernel never blocks: its sockets do not, and it polls without a time to wait. So the scheduler is not told of it. The first
// call that it is told of after all was quiet wakes its monitor, which from then on looks every few microseconds whether the
// call takes so long that the processor should be given to somebody else: that was a tenth of the server's time.

// rawWrite writes to a socket.
func rawWrite(fd int32, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), //nolint:gosec // as unix.Write does
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno //nolint:gosec // at most len(b); -1 with an errno
}

// rawRead reads from a socket.
func rawRead(fd int32, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0) //nolint:gosec // as unix.Read does
	return int(n), errno                                                                                                                                    //nolint:gosec // at most len(b); -1 with an errno
}

// rawPoll returns the number of events at hand.
func rawPoll(epfd int, events []unix.EpollEvent) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0) //nolint:gosec // as unix.EpollWait does
	return int(n), errno                                                                                                                                   //nolint:gosec // at most len(events); -1 with an errno
}

// one is what is added to an eventfd. It is never written.
var one = [8]byte{1}

// rawRouse adds one to an eventfd. It cannot fail before it is 2^64.
func rawRouse(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), uintptr(len(one))) //nolint:gosec // as unix.Write does
}
