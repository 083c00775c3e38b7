package petreltest

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Disk is a model of a disk that loses its power. It is fed the system calls of a process, as strace
// wrote them down, and knows at every point which bytes and which names had been fsynced.
//
// The rules, all of them on the pessimistic side of ext4 and xfs:
//
//   - What was written to a file is safe when an fsync or fdatasync of it began after the write had
//     returned, and has returned itself. Anything else is lost, or (Torn) kept page by page at random.
//   - A file's name is safe when the file was fsynced since it was made or renamed, or its folder was.
//     A removal is safe when the folder was fsynced.
//   - Shared memory of SQLite (-shm) does not survive.
type Disk struct {
	root    string
	now     map[string]*inode // names as the process sees them
	durable map[string]*inode // names that survive
	open    map[int]*openFile
	split   map[int]call // begun and not yet ended, by thread
	Syncs   int          // fsyncs of files that have returned
}

// StraceArgs is the command that writes what Disk reads to the file out.
func StraceArgs(out string) []string {
	return []string{
		"strace", "-f", "-qq", "-ttt", "-y", "-xx", "-s", "67108864", "--seccomp-bpf", "-e", "signal=none", "-o", out,
		"-e", "trace=write,pwrite64,pwritev,fsync,fdatasync,ftruncate,fallocate,open,openat,close,lseek,rename,renameat,renameat2,unlink,unlinkat",
	}
}

// pageSize is what a kernel writes back as one piece.
const pageSize = 4096

type inode struct {
	synced  content
	pending []diskOp
	size    int64 // as the process sees it
}

type content struct {
	data []byte // up to the last byte ever written
	size int64  // of the file; the rest is a hole
}

// diskOp is a write, or with a nil data a change of the size.
type diskOp struct {
	off  int64
	data []byte
	grow bool // size only ever grows: fallocate
}

type openFile struct {
	path   string
	offset int64
}

type call struct {
	text  string
	began int // pending ops of the file when an fsync began
}

// NewDisk returns the model of an empty folder.
func NewDisk(root string) *Disk {
	return &Disk{root: root, now: map[string]*inode{}, durable: map[string]*inode{}, open: map[int]*openFile{}, split: map[int]call{}}
}

var straceLine = regexp.MustCompile(`^(\d+) +(\d+)\.(\d+) (.*)$`)

// Replay reads a trace; after each line it calls step with the time at which the line's call began.
// Everything that a client had seen acknowledged before that time was fsynced by the lines so far.
func (d *Disk) Replay(r io.Reader, step func(at time.Time) error) error {
	br := bufio.NewReaderSize(r, 1<<20)
	for {
		text, err := br.ReadString('\n')
		if err == io.EOF {
			return nil // an unfinished last line is a call that never returned
		}
		if err != nil {
			return err
		}
		m := straceLine.FindStringSubmatch(text[:len(text)-1])
		if m == nil {
			return fmt.Errorf("a line of the trace is not understood: %.200q", text)
		}
		thread, _ := strconv.Atoi(m[1])
		sec, _ := strconv.ParseInt(m[2], 10, 64)
		usec, _ := strconv.ParseInt(m[3], 10, 64)
		if err := d.line(thread, m[4]); err != nil {
			return fmt.Errorf("%w in %.200q", err, text)
		}
		if err := step(time.Unix(sec, usec*1000)); err != nil {
			return err
		}
	}
}

func (d *Disk) line(thread int, text string) error {
	if begun, ok := strings.CutSuffix(text, " <unfinished ...>"); ok {
		c := call{text: begun}
		if path, ok := syncedPath(begun); ok {
			if f := d.now[path]; f != nil {
				c.began = len(f.pending)
			}
		}
		d.split[thread] = c
		return nil
	}
	began := -1
	if strings.HasPrefix(text, "<... ") {
		_, rest, _ := strings.Cut(text, " resumed>")
		c := d.split[thread]
		delete(d.split, thread)
		text, began = c.text+rest, c.began
	}
	if strings.HasPrefix(text, "+++") || strings.HasPrefix(text, "---") {
		return nil
	}
	return d.call(text, began)
}

var straceCall = regexp.MustCompile(`^(\w+)\((.*)\) += (-?\d+|\?)`)

func (d *Disk) call(text string, began int) error {
	m := straceCall.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("a call is not understood")
	}
	name, args := m[1], strings.Split(m[2], ", ")
	ret, err := strconv.ParseInt(m[3], 10, 64)
	if err != nil || ret < 0 {
		return nil // failed, or the process ended in it: nothing is known to have happened
	}
	switch name {
	case "open":
		return d.openat(append([]string{"AT_FDCWD"}, args...), int(ret))
	case "openat":
		return d.openat(args, int(ret))
	case "rename", "renameat", "renameat2":
		paths := quoted(args)
		return d.rename(paths[0], paths[1])
	case "unlink", "unlinkat":
		delete(d.now, quoted(args)[0])
		return nil
	}
	fd, path := descriptor(args[0])
	of := d.open[fd]
	if name == "close" {
		delete(d.open, fd)
		return nil
	}
	if !d.mine(path) {
		return nil
	}
	f := d.now[path]
	switch name {
	case "fsync", "fdatasync":
		d.sync(path, f, began)
		return nil
	case "lseek":
		if of != nil {
			of.offset = ret
		}
		return nil
	}
	if f == nil {
		return nil // removed, yet still open
	}
	switch name {
	case "write":
		if of == nil {
			return fmt.Errorf("a write to a file that was never opened")
		}
		f.write(of.offset, unhex(args[1])[:ret])
		of.offset += ret
	case "pwrite64":
		off, err := strconv.ParseInt(args[3], 10, 64)
		if err != nil {
			return err
		}
		f.write(off, unhex(args[1])[:ret])
	case "ftruncate":
		size, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			return err
		}
		f.pending = append(f.pending, diskOp{off: size})
		f.size = size
	case "fallocate":
		off, err1 := strconv.ParseInt(args[2], 10, 64)
		n, err2 := strconv.ParseInt(args[3], 10, 64)
		if args[1] != "0" || err1 != nil || err2 != nil {
			return fmt.Errorf("fallocate of a kind that the model does not know")
		}
		f.pending = append(f.pending, diskOp{off: off + n, grow: true})
		f.size = max(f.size, off+n)
	default:
		return fmt.Errorf("a call that the model does not know")
	}
	return nil
}

func (d *Disk) openat(args []string, fd int) error {
	_, path := descriptor(args[len(args)-1])
	if p := quoted(args[1:2]); len(p) == 1 {
		path = p[0]
		if !filepath.IsAbs(path) {
			_, dir := descriptor(args[0])
			path = filepath.Join(dir, path)
		}
	}
	of := &openFile{path: path}
	d.open[fd] = of
	if !d.mine(path) {
		return nil
	}
	flags := args[2]
	f := d.now[path]
	if f == nil && strings.Contains(flags, "O_CREAT") {
		f = &inode{}
		d.now[path] = f
	}
	if f != nil && strings.Contains(flags, "O_TRUNC") && f.size > 0 {
		f.pending = append(f.pending, diskOp{})
		f.size = 0
	}
	if f != nil && strings.Contains(flags, "O_APPEND") {
		of.offset = f.size
	}
	return nil
}

func (d *Disk) rename(from, to string) error {
	f := d.now[from]
	if f == nil {
		return nil // a folder, or not ours
	}
	delete(d.now, from)
	d.now[to] = f
	return nil
}

// sync makes a file or the names of a folder safe. began is how many changes of the file were behind
// the call when it was made; -1 means all.
func (d *Disk) sync(path string, f *inode, began int) {
	if f == nil {
		for name := range d.durable {
			if filepath.Dir(name) == path && d.now[name] != d.durable[name] {
				delete(d.durable, name)
			}
		}
		for name, f := range d.now {
			if filepath.Dir(name) == path {
				d.durable[name] = f
			}
		}
		return
	}
	if began < 0 || began > len(f.pending) {
		began = len(f.pending)
	}
	for _, op := range f.pending[:began] {
		f.synced.apply(op)
	}
	f.pending = append([]diskOp(nil), f.pending[began:]...)
	d.Syncs++
	for name, other := range d.durable {
		if other == f && name != path {
			delete(d.durable, name)
		}
	}
	d.durable[path] = f
}

// PowerLoss writes what a disk would hold now into the folder dir: exactly what had been fsynced.
func (d *Disk) PowerLoss(dir string) error {
	return d.write(dir, d.durable, func() bool { return false })
}

// TornPowerLoss is PowerLoss on a disk that was busy: each page of every later write is kept or lost by
// a throw, and so are the names of files.
func (d *Disk) TornPowerLoss(dir string, rng *rand.Rand) error {
	names := d.durable
	if rng.IntN(2) == 0 {
		names = d.now
	}
	return d.write(dir, names, func() bool { return rng.IntN(2) == 0 })
}

// Everything writes what the process itself would read: the model is right when that is what it did read.
func (d *Disk) Everything(dir string) error {
	return d.write(dir, d.now, func() bool { return true })
}

func (d *Disk) write(dir string, names map[string]*inode, keep func() bool) error {
	for name, f := range names {
		if volatile(name) {
			continue
		}
		c := content{data: append([]byte(nil), f.synced.data...), size: f.synced.size}
		for _, op := range f.pending {
			for _, piece := range op.pages() {
				if keep() {
					c.apply(piece)
				}
			}
		}
		path := filepath.Join(dir, strings.TrimPrefix(name, d.root))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(path, c.size); err != nil {
			return err
		}
	}
	return nil
}

// volatile says which files no loss of power leaves: shared memory, which is written without system calls,
// and the lock, which tests write too.
func volatile(name string) bool {
	return strings.HasSuffix(name, "-shm") || filepath.Base(name) == "lock"
}

// Pending says how many bytes would be lost now.
func (d *Disk) Pending() (n int) {
	for _, f := range d.now {
		for _, op := range f.pending {
			n += len(op.data)
		}
	}
	return n
}

func (d *Disk) mine(path string) bool { return strings.HasPrefix(path, d.root+"/") || path == d.root }

func (f *inode) write(off int64, data []byte) {
	f.pending = append(f.pending, diskOp{off: off, data: data})
	f.size = max(f.size, off+int64(len(data)))
}

func (c *content) apply(op diskOp) {
	if op.data == nil {
		if op.grow {
			c.size = max(c.size, op.off)
			return
		}
		c.size = op.off
		if int64(len(c.data)) > c.size {
			c.data = c.data[:c.size]
		}
		return
	}
	end := op.off + int64(len(op.data))
	if int64(len(c.data)) < end {
		c.data = append(c.data, make([]byte, end-int64(len(c.data)))...)
	}
	copy(c.data[op.off:], op.data)
	c.size = max(c.size, end)
}

// pages cuts a write where the pages of the file end.
func (op diskOp) pages() []diskOp {
	if op.data == nil {
		return []diskOp{op}
	}
	var out []diskOp
	for off, data := op.off, op.data; len(data) > 0; {
		n := min(int64(len(data)), pageSize-off%pageSize)
		out = append(out, diskOp{off: off, data: data[:n]})
		off, data = off+n, data[n:]
	}
	return out
}

func syncedPath(begun string) (string, bool) {
	for _, name := range []string{"fsync(", "fdatasync("} {
		if rest, ok := strings.CutPrefix(begun, name); ok {
			_, path := descriptor(rest)
			return path, true
		}
	}
	return "", false
}

// descriptor reads `7<\x2f…>`.
func descriptor(s string) (fd int, path string) {
	num, rest, _ := strings.Cut(s, "<")
	fd, err := strconv.Atoi(num)
	if err != nil {
		fd = -1 // AT_FDCWD
	}
	rest, _, _ = strings.Cut(rest, ">")
	return fd, string(unhex(rest))
}

// quoted returns the strings among arguments.
func quoted(args []string) []string {
	var out []string
	for _, a := range args {
		if strings.HasPrefix(a, `"`) {
			out = append(out, string(unhex(a)))
		}
	}
	return out
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(s, `"`), `\x`, ""))
	if err != nil {
		return []byte(s) // something like socket:[123], in which we have no interest
	}
	return b
}
