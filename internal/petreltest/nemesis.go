package petreltest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Nemesis does things to a fleet while others use it, and writes down what and when. What it does follows from its seed.
type Nemesis struct {
	fleet   *Fleet
	rng     *rand.Rand
	journal *Journal
	began   time.Time
	logf    func(format string, args ...any)
	damaged map[int]bool // nodes whose replica may not be trusted since this strike began
	rotten  bool         // some of that shows only when rows are compared

	Done []Did
}

// Did is one fault that was done.
type Did struct {
	N      int
	At     time.Duration // since the nemesis began
	Fault  string
	What   string        // exactly
	Lasted time.Duration // until it was taken back
	Alone  bool          // no other came with it; then also:
	Healed time.Duration // from there until the cell was healthy again
	Pause  time.Duration // the longest time in all of that in which nothing was acknowledged
}

// Fault is one kind of thing that can be done. Do does it and returns what exactly, and how it is taken back; that may be
// nil. Faults that cost a copy of the data are Destructive: they come one at a time, and only to a healthy cell.
type Fault struct {
	Name        string
	Weight      int
	Destructive bool
	Longest     time.Duration // that it lasts; default 3 s
	Do          func(ctx context.Context, n *Nemesis) (what string, undo func() error, err error)
}

// NewNemesis returns one for a fleet; logf is told of everything as it happens.
func NewNemesis(f *Fleet, seed uint64, logf func(format string, args ...any)) *Nemesis {
	return &Nemesis{fleet: f, rng: rand.New(rand.NewPCG(seed, 3)), began: time.Now(), logf: logf}
}

// Watch makes the nemesis write into a journal from now on.
func (n *Nemesis) Watch(j *Journal) { n.journal = j }

// Any draws a fault by weight.
func (n *Nemesis) Any(from []Fault) Fault {
	total := 0
	for _, f := range from {
		total += f.Weight
	}
	at := n.rng.IntN(total)
	for _, f := range from {
		if at -= f.Weight; at < 0 {
			return f
		}
	}
	return from[0]
}

// Strike does faults one after the other, each while those before it last, takes them back in any order, and waits until the cell
// is healthy. What it finds is that the cell did not become so, or that a replica was fenced without need, or not fenced in need.
func (n *Nemesis) Strike(ctx context.Context, faults ...Fault) []Finding {
	names := make([]string, len(faults))
	for i, f := range faults {
		names[i] = f.Name
	}
	over := n.journal.Storm(strings.Join(names, " + "))
	type ongoing struct {
		did  int
		from time.Time
		undo func() error
	}
	var open []ongoing
	var failed error
	from := n.journal.Now()
	n.damaged, n.rotten = map[int]bool{}, false
	lives := n.lives()
	for _, f := range faults {
		at := time.Now()
		what, undo, err := f.Do(ctx, n)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s (%s): %w", f.Name, what, err))
		}
		n.Done = append(n.Done, Did{N: len(n.Done) + 1, At: at.Sub(n.began), Fault: f.Name, What: what})
		n.logf("fault %d at %s: %s: %s", len(n.Done), at.Sub(n.began).Round(time.Millisecond), f.Name, what)
		n.journal.Say(f.Name + ": " + what)
		open = append(open, ongoing{len(n.Done) - 1, at, undo})
		longest := f.Longest
		if longest == 0 {
			longest = 3 * time.Second
		}
		wait(ctx, nil, 300*time.Millisecond+time.Duration(n.rng.Int64N(int64(longest))))
	}
	n.rng.Shuffle(len(open), func(i, j int) { open[i], open[j] = open[j], open[i] })
	for _, o := range open {
		if o.undo != nil {
			if err := o.undo(); err != nil {
				failed = errors.Join(failed, fmt.Errorf("take back %q: %w", n.Done[o.did].What, err))
			}
		}
		n.Done[o.did].Lasted = time.Since(o.from)
	}
	n.journal.Say("all taken back")
	began := time.Now()
	if err := errors.Join(failed, n.fleet.WaitHealthy(ctx)); err != nil {
		return []Finding{{CheckStuck, "", err.Error()}} // the storm is not over
	}
	if len(faults) == 1 {
		did := &n.Done[len(n.Done)-1]
		did.Alone, did.Healed, did.Pause = true, time.Since(began), n.journal.pause(from, n.journal.Now())
	}
	n.journal.Say("healthy")
	if n.rotten { // its own time is an hour
		if _, err := n.fleet.Verify(ctx); err != nil {
			return []Finding{{CheckStuck, "", err.Error()}}
		}
		if !poll(ctx, Patience, func() bool { return len(n.fenced(lives)) == 0 }) {
			return n.fenced(lives)
		}
		if err := n.fleet.WaitHealthy(ctx); err != nil {
			return []Finding{{CheckStuck, "", err.Error()}}
		}
	}
	over()
	return n.fenced(lives)
}

// lives are the replicas of the nodes.
func (n *Nemesis) lives() (out []string) {
	for i := range n.fleet.Size() {
		out = append(out, n.fleet.Life(n.name(i)))
	}
	return out
}

// fenced compares the replicas with those before: a damaged one must be another now, every other must be the same.
func (n *Nemesis) fenced(before []string) (found []Finding) {
	for i, now := range n.lives() {
		switch changed := now != before[i]; {
		case changed && !n.damaged[i]:
			found = append(found, Finding{CheckFence, "", n.name(i) + " was rebuilt although nobody had damaged it"})
		case !changed && n.damaged[i]:
			found = append(found, Finding{CheckFence, "", n.name(i) + " is damaged and was not rebuilt"})
		}
	}
	return found
}

// victim is the leader half of the time, else anybody.
func (n *Nemesis) victim(ctx context.Context) int {
	if n.rng.IntN(2) == 0 {
		if l := n.fleet.Leader(ctx); l >= 0 {
			return l
		}
	}
	return n.rng.IntN(n.fleet.Size())
}

// others are all nodes but one.
func (n *Nemesis) others(i int) []int {
	var out []int
	for j := range n.fleet.Size() {
		if j != i {
			out = append(out, j)
		}
	}
	return out
}

func (n *Nemesis) name(i int) string { return n.fleet.Name(i) }

func (n *Nemesis) heal() error {
	n.fleet.Net.Heal()
	return nil
}

// restart starts a node again.
func (n *Nemesis) restart(i int) func() error {
	return func() error {
		if n.fleet.server(i) == nil {
			n.fleet.Start(i)
		}
		return nil
	}
}

// Faults are all that a nemesis knows.
func Faults() []Fault {
	return slices.Concat(networkFaults(), processFaults(), diskFaults())
}

// FaultsNamed are those with the names, in their order.
func FaultsNamed(names ...string) []Fault {
	var out []Fault
	for _, name := range names {
		for _, f := range Faults() {
			if f.Name == name {
				out = append(out, f)
			}
		}
	}
	if len(out) != len(names) {
		panic(fmt.Sprintf("there is a name too many in %q", names)) // a mistake in a test
	}
	return out
}

func networkFaults() []Fault {
	return []Fault{
		{Name: "partition", Weight: 12, Longest: 5 * time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			n.fleet.Net.Split(n.others(i))
			return n.name(i) + " cut off from the others", n.heal, nil
		}},
		{Name: "total partition", Weight: 2, Do: func(_ context.Context, n *Nemesis) (string, func() error, error) {
			n.fleet.Net.Split()
			return "every node alone", n.heal, nil
		}},
		{Name: "bridge", Weight: 3, Longest: 5 * time.Second, Do: func(_ context.Context, n *Nemesis) (string, func() error, error) {
			i := n.rng.IntN(n.fleet.Size())
			o := n.others(i)
			n.fleet.Net.Set(o[0], o[1], Link{Cut: true})
			n.fleet.Net.Set(o[1], o[0], Link{Cut: true})
			return fmt.Sprintf("%s and %s reach only %s", n.name(o[0]), n.name(o[1]), n.name(i)), n.heal, nil
		}},
		{Name: "one-way loss", Weight: 8, Longest: 5 * time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			switch o := n.others(i); n.rng.IntN(3) {
			case 0:
				for _, j := range o {
					n.fleet.Net.Set(i, j, Link{Cut: true})
				}
				return n.name(i) + " hears and is not heard", n.heal, nil
			case 1:
				for _, j := range o {
					n.fleet.Net.Set(j, i, Link{Cut: true})
				}
				return n.name(i) + " is heard and hears nothing", n.heal, nil
			default:
				j := o[n.rng.IntN(len(o))]
				n.fleet.Net.Set(i, j, Link{Cut: true})
				return fmt.Sprintf("nothing from %s reaches %s", n.name(i), n.name(j)), n.heal, nil
			}
		}},
		{Name: "packet loss", Weight: 6, Do: func(_ context.Context, n *Nemesis) (string, func() error, error) {
			l := Link{Loss: 0.02 + 0.3*n.rng.Float64(), Double: 0.1 * n.rng.Float64()}
			n.fleet.Net.SetAll(l)
			return fmt.Sprintf("%.0f %% of packets lost, %.0f %% doubled", 100*l.Loss, 100*l.Double), n.heal, nil
		}},
		{Name: "delay", Weight: 6, Do: func(_ context.Context, n *Nemesis) (string, func() error, error) {
			l := Link{Delay: time.Duration(5+n.rng.IntN(150)) * time.Millisecond, Jitter: time.Duration(1+n.rng.IntN(100)) * time.Millisecond}
			i := n.rng.IntN(n.fleet.Size() + 1)
			if i == n.fleet.Size() {
				n.fleet.Net.SetAll(l)
				return fmt.Sprintf("%s and up to %s more between all", l.Delay, l.Jitter), n.heal, nil
			}
			for _, j := range n.others(i) {
				n.fleet.Net.Set(i, j, l)
				n.fleet.Net.Set(j, i, l)
			}
			return fmt.Sprintf("%s and up to %s more to and from %s", l.Delay, l.Jitter, n.name(i)), n.heal, nil
		}},
	}
}

func processFaults() []Fault {
	return []Fault{
		{Name: "kill -9", Weight: 12, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			n.fleet.Kill(i)
			return n.name(i), n.restart(i), nil
		}},
		{Name: "power off", Weight: 5, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			n.fleet.Net.Split(n.others(i)) // nobody is told by its kernel that it is gone
			n.fleet.Kill(i)
			return n.name(i) + ", without a word to the others", func() error { return errors.Join(n.heal(), n.restart(i)()) }, nil
		}},
		{Name: "kill -9 of all", Weight: 3, Longest: 500 * time.Millisecond, Do: func(_ context.Context, n *Nemesis) (string, func() error, error) {
			order := n.rng.Perm(n.fleet.Size())
			for _, i := range order {
				n.fleet.Kill(i)
			}
			return "all nodes at once", func() error {
				for _, i := range order {
					_ = n.restart(i)()
				}
				return nil
			}, nil
		}},
		{Name: "SIGSTOP", Weight: 10, Longest: 6 * time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			n.fleet.Pause(i)
			return n.name(i) + " stands still", func() error { n.fleet.Resume(i); return nil }, nil
		}},
		{Name: "restart", Weight: 6, Longest: time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			err := n.fleet.Stop(ctx, i)
			return n.name(i) + " with SIGTERM", n.restart(i), err
		}},
		{Name: "transfer", Weight: 5, Longest: time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.rng.IntN(n.fleet.Size())
			var out struct{}
			err := n.fleet.Admin(ctx, n.rng.IntN(n.fleet.Size()), http.MethodPost, "/admin/cell/transfer", map[string]any{"node": n.name(i)}, &out)
			what := "leadership to " + n.name(i)
			if err != nil {
				what += ", refused" // while something else is wrong it may be
			}
			return what, nil, nil
		}},
		{Name: "clock jump", Weight: 5, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i, wrong := n.victim(ctx), time.Hour
			if n.rng.IntN(2) == 0 {
				wrong = -wrong
			}
			n.fleet.SetClock(i, wrong)
			return fmt.Sprintf("%s by %s", n.name(i), wrong), func() error { n.fleet.SetClock(i, 0); return nil }, nil
		}},
	}
}

func diskFaults() []Fault {
	return []Fault{
		{Name: "full disk", Weight: 5, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			ballast := filepath.Join(n.fleet.Folder(i), "ballast")
			err := fillDisk(ballast)
			return "of " + n.name(i), func() error { return os.RemoveAll(ballast) }, err // it may have come twice
		}},
		{Name: "wiped disk", Weight: 3, Destructive: true, Longest: time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			n.fleet.Kill(i)
			n.damaged[i] = true
			return "of " + n.name(i), n.restart(i), n.fleet.Wipe(i)
		}},
		{Name: "flipped bit in a log that is down", Weight: 3, Destructive: true, Longest: time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			n.fleet.Kill(i)
			where, err := n.flipLog(i)
			return "of " + n.name(i) + ": " + where, n.restart(i), err
		}},
		{Name: "flipped bit in a log that runs", Weight: 3, Destructive: true, Longest: time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			where, err := n.flipLog(i)
			return "of " + n.name(i) + ": " + where, func() error {
				n.fleet.Kill(i) // what runs may never read that place again
				return n.restart(i)()
			}, err
		}},
		{Name: "flipped bit in a projection", Weight: 3, Destructive: true, Longest: time.Second, Do: func(ctx context.Context, n *Nemesis) (string, func() error, error) {
			i := n.victim(ctx)
			n.fleet.Kill(i)
			where, err := n.flipRow(i)
			return "of " + n.name(i) + ": " + where, n.restart(i), err
		}},
	}
}

// flipLog turns one bit of some message's text in the log of a node.
func (n *Nemesis) flipLog(i int) (where string, err error) {
	root := n.fleet.Folder(i)
	files, err := filepath.Glob(filepath.Join(root, "shard-0", "log", "wal", "*.wal"))
	if err != nil {
		return "", err
	}
	texts, err := findTexts(files...)
	if err != nil {
		return "", err
	}
	return n.flip(i, texts, 1)
}

// flipRow turns one bit of some message's text in the projection of a node that is down, wherever that text is: a page may have left a
// copy behind. What is in the write-ahead log of SQLite as well is left alone: that has checksums, and comes before the file.
func (n *Nemesis) flipRow(i int) (where string, err error) {
	file := filepath.Join(n.fleet.Folder(i), "shard-0", "projection.db")
	texts, err := findTexts(file)
	if err != nil {
		return "", err
	}
	newer, err := findTexts(file + "-wal")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for text := range newer {
		delete(texts, text)
	}
	n.rotten = true
	return n.flip(i, texts, 1<<20)
}

// place is where a text is found in a file.
type place struct {
	path string
	at   int
}

// barrierText is what messages look like that a workload never edits or deletes.
var barrierText = regexp.MustCompile(`text of [A-Za-z0-9-]+-b[0-9]+`)

func findTexts(files ...string) (map[string][]place, error) {
	texts := map[string][]place{}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for _, m := range barrierText.FindAllIndex(b, -1) {
			texts[string(b[m[0]:m[1]])] = append(texts[string(b[m[0]:m[1]])], place{path, m[0]})
		}
	}
	return texts, nil
}

// flip turns the lowest bit of a text in up to so many of the places where it is.
func (n *Nemesis) flip(i int, texts map[string][]place, places int) (where string, err error) {
	root := n.fleet.Folder(i)
	// This is no accident, however often it comes.
	if err := os.Remove(filepath.Join(root, "rebuilds")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if len(texts) == 0 {
		return "there was no message yet", nil
	}
	keys := sortedKeys(texts)
	text := keys[n.rng.IntN(len(keys))]
	for _, p := range texts[text][:min(places, len(texts[text]))] {
		if err := flipAt(p.path, int64(p.at)); err != nil {
			return "", err
		}
		where = fmt.Sprintf("%q at %d of %s", text, p.at, strings.TrimPrefix(p.path, root+"/"))
	}
	n.damaged[i] = true
	return where, nil
}

// flipAt turns the lowest bit of one byte.
func flipAt(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b[:], at)
	return err
}

// fillDisk writes until the file system has nothing left.
func fillDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		block := make([]byte, size)
		for {
			if _, err := f.Write(block); err != nil {
				break
			}
		}
	}
	return nil
}
