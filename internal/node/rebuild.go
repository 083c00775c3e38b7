package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// A replica that must not be trusted any more is fenced: it serves nobody, leads nothing, and says why. Then it is
// rebuilt: its shard is set aside, and the node joins its cell again as a new member, which the others bring up.
// Damage, difference and a wiped disk so end in the same way.
//
// What stands between the two is the vote. A fenced replica's log may be as good as any: only what it folded is
// wrong. So it goes on voting until the cell has let it go, which the cell refuses while it needs the vote; a cell of
// two would otherwise lose its quorum with the first difference. Only a damaged log is left at once.

// ErrRebuild is why a node failed, or did not open, that is to be opened again at once, in the same process: it
// then sets its shard aside and joins its cell anew.
var ErrRebuild = errors.New("this replica is set aside and the node joins its cell again")

const (
	rebuildFile  = "rebuild"       // why this replica is fenced; there while it is
	rebuildsFile = "rebuilds"      // when and why it was rebuilt before, for whoever wants to know
	setAside     = ".fenced-"      // of a shard's folder: then the time, in seconds
	keepAside    = 2               // folders
	maxRebuilds  = 3               // within rebuildsIn: more are not accidents
	rebuildsIn   = time.Hour       //
	leaveEvery   = 2 * time.Second // asks to be let go
)

// cause is the short word for why a replica is fenced: a label of a metric.
type cause string

const (
	causeDiffers cause = "differs" // its folds came to, or wrote, something else than the others'
	causeRows    cause = "rows"    // its rows are not the others': rot, mostly
	causeDamaged cause = "damaged" // its log does not hold what was written
)

// fencing is DATA/rebuild, and a line of DATA/rebuilds.
type fencing struct {
	Cause  cause         `json:"cause"`
	Reason string        `json:"reason"`
	At     time.Time     `json:"at"`
	Member petrel.NodeID `json:"member"`
	// Left says that the cell counts on this member no more: the replica can be set aside.
	Left bool `json:"left"`
}

func (f fencing) String() string { return fmt.Sprintf("%s: %s", f.Cause, f.Reason) }

// loadFencing reads DATA/rebuild; nil when the replica is not fenced.
func loadFencing(data string) (*fencing, error) {
	b, err := os.ReadFile(filepath.Join(data, rebuildFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var f fencing
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return nil, fmt.Errorf("%wread why this replica is fenced: %w", quiet{ErrFatal}, err)
	}
	return &f, nil
}

func (f fencing) save(data string) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(data, rebuildFile), append(b, '\n'))
}

// rebuildIfDue sets a fenced replica aside that its cell has let go, so that the node starts as a new member. It is
// called when nothing of the folder but its lock is open, before loadMembership. Cut short anywhere, it goes on at the next start.
func rebuildIfDue(data, name string, now time.Time, logger *slog.Logger) error {
	f, err := loadFencing(data)
	if err != nil || f == nil || !f.Left {
		return err
	}
	before, err := loadRebuilds(data)
	if err != nil {
		return err
	}
	recent := slices.DeleteFunc(slices.Clone(before), func(b fencing) bool { return now.Sub(b.At) > rebuildsIn || b.At.After(now) })
	if len(recent) >= maxRebuilds {
		return fmt.Errorf("%wthis replica is to be rebuilt (%s), but it was rebuilt %d times within the last hour: that is no accident, so it stays down. "+
			"Look at %s and at this machine's memory and disk; remove that file to let it try again",
			quiet{ErrFatal}, f, len(recent), filepath.Join(data, rebuildsFile))
	}
	if len(othersKnown(data, f.Member)) == 0 {
		return fmt.Errorf("%wthis replica is to be rebuilt (%s), but no other node of its cell is known here: name one with --join, after moving %s and %s away",
			quiet{ErrFatal}, f, filepath.Join(data, memberFile), filepath.Join(data, rebuildFile))
	}
	aside, err := setShardAside(filepath.Join(data, "shard-0"), now)
	if err != nil {
		return err
	}
	m, err := newMembership(data, name)
	if err != nil {
		return err
	}
	logger.Warn("this replica is set aside; the node joins its cell again and is brought up by the others",
		"cause", f.Cause, "reason", f.Reason, "kept", aside, "was", f.Member, "is", m)
	f.At = now
	if err := saveRebuilds(data, append(before, *f)); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(data, rebuildFile)); err != nil {
		return fmt.Errorf("finish a rebuild: %w", err)
	}
	return syncFolder(data)
}

// newMembership makes this folder a member that joins.
func newMembership(data, name string) (petrel.NodeID, error) {
	err := os.Remove(filepath.Join(data, memberFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("become a new member: %w", err)
	}
	m, err := loadMembership(data, name, true)
	return m.Member, err
}

// othersKnown are the nodes that a rebuilt one can ask to be taken in.
func othersKnown(data string, self petrel.NodeID) []knownNode {
	return slices.DeleteFunc(loadKnown(data), func(k knownNode) bool { return k.Member == self || k.Peer == "" })
}

// setShardAside renames a shard's folder and keeps the newest keepAside of them. kept is "" when there was none.
func setShardAside(dir string, now time.Time) (kept string, err error) {
	if exists(dir) {
		for at := now.Unix(); ; at++ {
			if kept = fmt.Sprintf("%s%s%d", dir, setAside, at); !exists(kept) {
				break
			}
		}
		if err := os.Rename(dir, kept); err != nil {
			return "", fmt.Errorf("set the fenced shard aside: %w", err)
		}
		if err := syncFolder(filepath.Dir(dir)); err != nil {
			return "", err
		}
	}
	all, err := filepath.Glob(dir + setAside + "*")
	if err != nil {
		return "", err
	}
	slices.SortFunc(all, func(a, b string) int { // by length first: times grow a digit one day
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for _, old := range all[:max(0, len(all)-keepAside)] {
		if err := os.RemoveAll(old); err != nil {
			return "", fmt.Errorf("remove an old fenced shard: %w", err)
		}
	}
	return kept, nil
}

// loadRebuilds reads DATA/rebuilds, oldest first.
func loadRebuilds(data string) (all []fencing, err error) {
	b, err := os.ReadFile(filepath.Join(data, rebuildsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("%wread when this replica was rebuilt before: %w", quiet{ErrFatal}, err)
	}
	return all, nil
}

func saveRebuilds(data string, all []fencing) error {
	all = all[max(0, len(all)-20):]
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(data, rebuildsFile), append(b, '\n'))
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// leaveDamaged decides what damage means that was found in the log, or in the projection while it was in use. In a
// cell the others have what this node lost, so it is rebuilt at once: the error then wraps ErrRebuild. A node that
// knows no others keeps refusing: only a person may throw the only copy away.
func leaveDamaged(data string, self petrel.NodeID, damage error, now time.Time) error {
	damaged := errors.Is(damage, raftlog.ErrDamaged) || errors.Is(damage, projection.ErrUnreadable)
	if !damaged || len(othersKnown(data, self)) == 0 {
		return damage
	}
	f := fencing{Cause: causeDamaged, Reason: damage.Error(), At: now, Member: self, Left: true}
	if err := f.save(data); err != nil {
		return errors.Join(damage, err)
	}
	return fmt.Errorf("%w%w", quiet{ErrRebuild}, damage)
}

// letGo asks the cell to forget this member. One that was removed already hears of no leader any more: then the nodes
// that it knows are asked.
func (c *cell) letGo(ctx context.Context) error {
	q := cellRequest{Op: opRemove, Member: c.self.Member}
	err := c.lead(ctx, q)
	if err == nil || permanent(err) {
		return err
	}
	for _, k := range c.knownNodes() {
		if _, aerr := c.askAround(ctx, k.Peer, q); aerr == nil {
			return nil
		}
	}
	return err
}

// fencerOptions of newFencer. Functions may wait only as long as their context.
type fencerOptions struct {
	data string
	self petrel.NodeID
	// drain turns everybody away and hands leadership over, within a bounded time.
	drain func(ctx context.Context)
	// handOver gives leadership away, if this node has it.
	handOver func(ctx context.Context)
	// leave asks the leader to forget this member. It refuses while the cell needs the vote.
	leave func(ctx context.Context) error
	// mayLeave says whether it is certain that this replica is to be set aside. nil: it is.
	mayLeave func() bool
	// fail ends the node.
	fail   func(error)
	now    func() time.Time // default time.Now
	logger *slog.Logger
	reg    prometheus.Registerer // may be nil
}

// fencer takes a replica out of service, once and for good.
type fencer struct {
	o     fencerOptions
	gauge *prometheus.GaugeVec

	mu sync.Mutex // guards f
	f  *fencing

	ctx  context.Context //nolint:containedctx // the lifetime of the service
	stop context.CancelFunc
	bg   sync.WaitGroup
}

func newFencer(o fencerOptions) *fencer {
	if o.now == nil {
		o.now = time.Now
	}
	f := &fencer{o: o, gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "petrel_node_fenced", Help: "1 while this replica is fenced: it must not be trusted, serves nobody, and is about to be rebuilt. By reason: differs, rows, damaged.",
	}, []string{"reason"})}
	for _, c := range []cause{causeDiffers, causeRows, causeDamaged} {
		f.gauge.WithLabelValues(string(c)).Set(0)
	}
	if o.reg != nil {
		o.reg.MustRegister(f.gauge)
	}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f
}

var errAppeal = errors.New("it was fenced without a majority, and members that are away may yet say that it is right")

// fence takes the replica out of service. It returns at once; the first call counts.
func (f *fencer) fence(c cause, reason string) {
	f.begin(fencing{Cause: c, Reason: reason, At: f.o.now(), Member: f.o.self}, false)
}

// resume goes on where a former life of the process was fenced, and reports whether that was so. The node is then
// about to fail with ErrRebuild: nothing is to be opened beyond the log.
func (f *fencer) resume() (bool, error) {
	was, err := loadFencing(f.o.data)
	if err != nil || was == nil {
		return false, err
	}
	f.begin(*was, true)
	return true, nil
}

func (f *fencer) begin(why fencing, saved bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f != nil || f.ctx.Err() != nil {
		return
	}
	f.f = &why
	f.gauge.WithLabelValues(string(why.Cause)).Set(1)
	f.o.logger.Error("this replica is fenced: it serves nobody any more and will be rebuilt from the others",
		"cause", why.Cause, "reason", why.Reason, "since", why.At)
	f.bg.Go(func() { f.depart(why, saved) })
}

// why says why the replica is fenced; "" while it is not.
func (f *fencer) why() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil {
		return ""
	}
	return f.f.String()
}

// close waits for what is under way; a departure that is cut short goes on at the next start.
func (f *fencer) close() {
	f.stop()
	f.bg.Wait()
}

// depart turns everybody away, writes down that this replica is fenced, waits until the cell does without it, and
// ends the node.
func (f *fencer) depart(why fencing, saved bool) {
	drained := make(chan struct{})
	f.bg.Go(func() {
		defer close(drained)
		f.o.drain(f.ctx)
	})
	said := ""
	for {
		var err error
		if !saved {
			err = why.save(f.o.data)
			saved = err == nil
		}
		if saved {
			f.o.handOver(f.ctx)
			if f.o.mayLeave != nil && !f.o.mayLeave() {
				err = errAppeal
			} else if err = f.o.leave(f.ctx); err == nil {
				why.Left = true
				if err = why.save(f.o.data); err == nil {
					break
				}
			}
		}
		if f.ctx.Err() != nil {
			return
		}
		if s := err.Error(); s != said { // the same sentence every two seconds would tell nothing more
			said = s
			f.o.logger.Error("the fenced replica cannot be rebuilt yet: it goes on voting, and tries again", "error", err)
		}
		t := time.NewTimer(leaveEvery)
		select {
		case <-f.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
	<-drained
	f.o.fail(fmt.Errorf("%wfenced: %s", quiet{ErrRebuild}, why))
}
