package load

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// meter reads what the processes of a server use. Children are those of the moment at which it was made.
type meter struct{ pids []int }

func newMeter(root int) (*meter, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	parent := map[int]int{}
	for _, name := range dirs {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		// The command may contain anything, so what follows it is found from its end: state, parent.
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if len(fields) > 1 {
			parent[pid], _ = strconv.Atoi(string(fields[1]))
		}
	}
	if _, ok := parent[root]; !ok {
		return nil, fmt.Errorf("there is no process %d", root)
	}
	m := &meter{pids: []int{root}}
	for i := 0; i < len(m.pids); i++ {
		for pid, p := range parent {
			if p == m.pids[i] {
				m.pids = append(m.pids, pid)
			}
		}
	}
	return m, nil
}

// cpu is the time of all threads of all processes, those that have ended among them.
func (m *meter) cpu() (total time.Duration, err error) {
	for _, pid := range m.pids {
		var ts unix.Timespec
		// The kernel's number of another process's CPU clock (clock_getcpuclockid): precise where /proc counts in ticks.
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
			return 0, fmt.Errorf("the CPU clock of process %d: %w", pid, err)
		}
		total += time.Duration(ts.Nano())
	}
	return total, nil
}

func (m *meter) memory() (mem Memory, err error) {
	for _, pid := range m.pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return mem, err
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 3 {
				continue
			}
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			switch f[0] {
			case "Rss:":
				mem.RSS += kib << 10
			case "Pss:":
				mem.PSS += kib << 10
			}
		}
	}
	return mem, nil
}

// ResidentSize is the memory of a process and its children, roughly and cheaply; 0 when it is gone.
func ResidentSize(pid int) (size int64) {
	m, err := newMeter(pid)
	if err != nil {
		return 0
	}
	for _, pid := range m.pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if f := strings.Fields(string(text)); err == nil && len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64)
			size += pages * int64(os.Getpagesize())
		}
	}
	return size
}

// reading is what every clock said at one moment.
type reading struct {
	at           time.Time
	server, load time.Duration
	user         time.Duration // of load
	machine      machine
}

// machine is the first line of /proc/stat.
type machine struct{ busy, softirq, steal time.Duration }

func (m *meter) read() (r reading, err error) {
	if r.server, err = m.cpu(); err != nil {
		return r, err
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return r, err
	}
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		return r, err
	}
	r.at, r.load, r.user = time.Now(), time.Duration(ts.Nano()), time.Duration(use.Utime.Nano())
	r.machine, err = readMachine()
	return r, err
}

func readMachine() (m machine, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return m, errors.New("/proc/stat has no line of all processors")
	}
	tick := func(i int) time.Duration {
		n, _ := strconv.ParseInt(f[i], 10, 64)
		return time.Duration(n) * 10 * time.Millisecond // USER_HZ is 100 on every Linux
	}
	m.softirq, m.steal = tick(7), tick(8)
	m.busy = tick(1) + tick(2) + tick(3) + tick(6) + tick(7)
	return m, nil
}

// since fills a result's clocks with what was used after before.
func (r reading) since(before reading, res *Result) {
	res.Seconds = r.at.Sub(before.at).Seconds()
	cores := func(d time.Duration) float64 { return d.Seconds() / res.Seconds }
	server, load := r.server-before.server, r.load-before.load
	res.ServerCPU, res.LoadCPU, res.LoadUser = micros(server), micros(load), micros(r.user-before.user)
	res.Steal = cores(r.machine.steal - before.machine.steal)
	res.SoftIRQ = cores(r.machine.softirq - before.machine.softirq)
	res.Others = max(0, cores(r.machine.busy-before.machine.busy-server-load))
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
