package petreltest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// onThread runs fn in the background, on a thread that ends with it and that nobody else ever runs on. It is never
// the first thread of the process: that one cannot end, and what it would have entered is what /proc/self shows of all.
func onThread(fn func()) {
	go func() {
		runtime.LockOSThread() // never unlocked, but for the first: a thread that a goroutine leaves locked ends
		if unix.Gettid() != unix.Getpid() {
			fn()
			return
		}
		taken := make(chan struct{})
		go func() {
			runtime.LockOSThread() // another one, as the first is still held
			close(taken)
			fn()
		}()
		<-taken
		runtime.UnlockOSThread()
	}()
}

// setUp moves the thread into a new namespace and gives that a loopback and a TUN device.
func (h *Host) setUp() (err error) {
	h.tid = unix.Gettid()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep what is mounted here to itself: %w", err)
	}
	if h.space, err = unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", h.tid), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ctl, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ctl)
	dev, err := unix.NewIfreq("cell0")
	if err != nil {
		return err
	}
	ip := net.ParseIP(h.Addr).To4()
	steps := []func() error{
		func() error {
			dev.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			return unix.IoctlIfreq(fd, unix.TUNSETIFF, dev)
		},
		func() error { dev.SetUint32(mtu); return unix.IoctlIfreq(ctl, unix.SIOCSIFMTU, dev) },
		func() error { _ = dev.SetInet4Addr(ip); return unix.IoctlIfreq(ctl, unix.SIOCSIFADDR, dev) },
		func() error {
			_ = dev.SetInet4Addr([]byte{255, 255, 255, 0})
			return unix.IoctlIfreq(ctl, unix.SIOCSIFNETMASK, dev)
		},
		func() error {
			dev.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
			return unix.IoctlIfreq(ctl, unix.SIOCSIFFLAGS, dev)
		},
		func() error {
			lo, err := unix.NewIfreq("lo")
			if err != nil {
				return err
			}
			lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
			return unix.IoctlIfreq(ctl, unix.SIOCSIFFLAGS, lo)
		},
		func() error { return unix.SetNonblock(fd, true) },
	}
	for n, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d of the device: %w", n+1, err)
		}
	}
	h.tun = os.NewFile(uintptr(fd), "tun of "+h.Addr) //nolint:gosec // a descriptor
	return nil
}

// enter puts the thread into the host's namespace.
func (h *Host) enter() error { return unix.Setns(h.space, unix.CLONE_NEWNET) }

// leave lets go of the namespace.
func (h *Host) leave() { _ = unix.Close(h.space) }

// Mount puts an empty file system of so many bytes, in memory, on a folder, which only the host's processes see.
func (h *Host) Mount(dir string, size int64) (err error) {
	h.do(func() { err = unix.Mount("petrel", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)) })
	return err
}

// Start starts a process in the host. It is killed when the test process ends, however that happens.
func (h *Host) Start(cmd *exec.Cmd) (err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // of the thread that starts it, which is the host's own
	h.do(func() { err = cmd.Start() })
	return err
}
