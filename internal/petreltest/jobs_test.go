package petreltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/effect"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// TestJobsOfStoppedLeaders: leaders are stopped while jobs run against a receiver that misbehaves. It needs no rights; TestJobTorture does more, with
// processes.
func TestJobsOfStoppedLeaders(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills nodes of a cell")
	}
	jobTorture(t, seedOf(t, 4), 2000, 2)
}

// hopeless is the share of jobs that the receiver refuses for good, one in so many.
const hopeless = 100

// receiver is whom the jobs call. It answers, answers 500, hangs, dies within an answer, and is away altogether.
type receiver struct {
	*httptest.Server
	away atomic.Bool

	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	calls map[string]int    // by job: requests that came in
	names map[string]string // by job: its event id
	wrong []string
	kinds map[string]int // of answers
}

func newReceiver(t *testing.T, seed uint64) *receiver {
	r := &receiver{rng: rand.New(rand.NewPCG(seed, 1)), calls: map[string]int{}, names: map[string]string{}, kinds: map[string]int{}} //nolint:gosec // a test's chance
	r.Server = httptest.NewServer(r)
	t.Cleanup(func() {
		r.CloseClientConnections()
		r.Close()
	})
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body) // the peer may be gone
	id, name := req.Header.Get("Job"), req.Header.Get("Event")
	n, _ := strconv.Atoi(string(body))
	r.mu.Lock()
	if r.away.Load() {
		r.kinds["away"]++
		r.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	r.calls[id]++
	if was, ok := r.names[id]; ok && was != name {
		r.wrong = append(r.wrong, fmt.Sprintf("job %s came as %s and as %s", id, was, name))
	}
	r.names[id] = name
	dice := r.rng.IntN(100)
	answer := "200"
	switch {
	case n%hopeless == 0:
		answer = "410"
	case dice < 8:
		answer = "500"
	case dice < 10:
		answer = "hang"
	case dice < 14:
		answer = "die"
	}
	r.kinds[answer]++
	r.mu.Unlock()
	switch answer {
	case "410":
		w.WriteHeader(http.StatusGone)
	case "500":
		w.WriteHeader(http.StatusInternalServerError)
	case "hang":
		<-req.Context().Done()
	case "die":
		panic(http.ErrAbortHandler)
	}
}

// caller carries out jobs of the kind "call".
type caller struct {
	url    string
	client *http.Client
}

// Policy implements the policy of the kind.
func (caller) Policy() effect.Policy {
	return effect.Policy{Timeout: 2 * time.Second, Attempts: 40, First: 100 * time.Millisecond, Longest: 2 * time.Second, Losses: 40}
}

// Run implements effect.Handler.
func (c caller) Run(ctx context.Context, j job.Job, attempt int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(string(j.Body)))
	if err != nil {
		return err
	}
	req.Header.Set("Job", j.ID.String())
	req.Header.Set("Event", j.Event)
	req.Header.Set("Attempt", strconv.Itoa(attempt))
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusGone:
		return effect.Gone(errors.New(resp.Status))
	}
	return errors.New(resp.Status)
}

// torment is one torture of jobs.
type torment struct {
	t        *testing.T
	cell     *Cell
	receiver *receiver
	rng      *rand.Rand
	jobs     int

	mu      sync.Mutex // guards what follows
	acked   []job.ID
	unknown int // enqueued jobs of unknown outcome
}

func jobTorture(t *testing.T, seed uint64, jobs, kills int) {
	t.Helper()
	r := newReceiver(t, seed)
	transport := &http.Transport{MaxIdleConnsPerHost: 256}
	t.Cleanup(transport.CloseIdleConnections)
	x := &torment{t: t, receiver: r, rng: rand.New(rand.NewPCG(seed, 2)), jobs: jobs} //nolint:gosec // a test's chance
	x.cell = StartCell(t, CellOptions{
		Jobs: map[string]effect.Handler{"call": caller{r.URL, &http.Client{Transport: transport}}},
	})
	began := time.Now()
	var queueing sync.WaitGroup
	queueing.Go(x.queue)
	for k := range kills {
		x.progress(uint64(jobs * (k + 1) / (kills + 2))) //nolint:gosec // positive
		x.kill(k)
	}
	queueing.Wait()
	x.settle()
	took := time.Since(began)
	x.judge(kills, took)
}

// queue queues all jobs through any node, and goes on until each was acknowledged, or may have been.
func (x *torment) queue() {
	rng := rand.New(rand.NewPCG(uint64(x.jobs), 3)) //nolint:gosec // a test's chance
	const batch = 50
	for n := 0; n < x.jobs; {
		jobs := make([]job.New, min(batch, x.jobs-n))
		for i := range jobs {
			jobs[i] = job.New{Kind: "call", Target: fmt.Sprint("t", (n+i)%8), Body: fmt.Appendf(nil, "%d", n+i)}
		}
		at := x.cell.Node(rng.IntN(x.cell.Size()))
		if at == nil {
			wait(x.t.Context(), nil, time.Millisecond)
			continue
		}
		ctx, cancel := context.WithTimeout(x.t.Context(), 5*time.Second)
		res, err := at.Desk().Do(ctx, petrel.Actor{Kind: petrel.ActorSystem, App: AppID}, command.Meta{}, job.Enqueue{Jobs: jobs})
		cancel()
		x.mu.Lock()
		switch {
		case err == nil:
			x.acked = append(x.acked, res.Answer.([]job.ID)...) //nolint:forcetypeassert // what Enqueue answers
			n += len(jobs)
		case petrel.CodeOf(err) == petrel.CodeUnknownOutcome:
			x.unknown += len(jobs)
			n += len(jobs)
		case x.t.Context().Err() != nil:
			x.mu.Unlock()
			return
		}
		x.mu.Unlock()
		if err != nil {
			wait(x.t.Context(), nil, 20*time.Millisecond)
		}
	}
}

// ledger is the app's, as some living node has it.
func (x *torment) ledger() (l job.ShownLedger) {
	for i := range x.cell.Size() {
		n := x.cell.Node(i)
		if n == nil {
			continue
		}
		all, err := n.JobLedgers(x.t.Context())
		if err == nil && len(all) == 1 && all[0].Accepted >= l.Accepted && all[0].Attempts >= l.Attempts {
			l = all[0]
		}
	}
	return l
}

// progress waits until so many jobs have come to their end.
func (x *torment) progress(want uint64) {
	Until(x.t, fmt.Sprintf("%d jobs came to their end", want), func() bool {
		l := x.ledger()
		return l.Done+l.Dead >= want
	})
}

// kill ends the leader without a word, lets another go on for a while, and starts it again.
func (x *torment) kill(k int) {
	leader := -1
	Until(x.t, "a node leads", func() bool { leader = x.cell.Leader(x.t.Context()); return leader >= 0 })
	x.receiver.away.Store(k%2 == 0)
	x.cell.Kill(leader)
	at := x.ledger()
	if k%2 == 0 {
		Until(x.t, "another node began jobs", func() bool { return x.ledger().Attempts > at.Attempts })
		x.receiver.away.Store(false)
	}
	x.progress(min(at.Done+at.Dead+100, uint64(x.jobs)/2)) //nolint:gosec // positive
	if err := x.cell.Start(x.t.Context(), leader); err != nil {
		x.t.Fatal(err)
	}
	if err := x.cell.WaitHealthy(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
}

// settle waits until nothing waits or runs any more.
func (x *torment) settle() {
	last, since := uint64(0), time.Now()
	for {
		l := x.ledger()
		if l.Accepted > 0 && l.Waiting+l.Running == 0 {
			return
		}
		if n := l.Done + l.Dead; n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) > Patience {
			x.t.Fatalf("nothing came to its end for %s: %+v", Patience, l)
		}
		wait(x.t.Context(), nil, 20*time.Millisecond)
	}
}

// judge holds the ledger, the dead letters and the receiver's notes against each other.
func (x *torment) judge(kills int, took time.Duration) {
	t := x.t
	l := x.ledger()
	if l.Accepted != l.Done+l.Dead+l.Waiting+l.Running+l.Discarded {
		t.Errorf("the ledger does not add up: %+v", l)
	}
	if acked := uint64(len(x.acked)); l.Accepted < acked || l.Accepted > acked+uint64(x.unknown) { //nolint:gosec // positive
		t.Errorf("%d jobs were accepted; %d were acknowledged and %d of unknown outcome", l.Accepted, acked, x.unknown)
	}
	dead := x.dead()
	if uint64(len(dead)) != l.Dead {
		t.Errorf("%d dead jobs are listed, the ledger has %d", len(dead), l.Dead)
	}
	r := x.receiver
	r.mu.Lock()
	defer r.mu.Unlock()
	vanished := 0
	for _, id := range x.acked {
		if r.calls[id.String()] == 0 && !dead[id.String()] {
			vanished++
		}
	}
	if vanished > 0 {
		t.Errorf("%d jobs neither came to the receiver nor are listed as dead", vanished)
	}
	for _, w := range r.wrong {
		t.Error(w)
	}
	twice, calls := 0, 0
	for _, n := range r.calls {
		calls += n
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d jobs (%d of unknown outcome), %d leaders killed, %s: ledger %+v", len(x.acked), x.unknown, kills, took.Round(time.Second), l)
	answers := make([]string, 0, len(r.kinds))
	for kind, n := range r.kinds {
		answers = append(answers, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(answers)
	t.Logf("the receiver had %d calls of %d jobs, %d of them more than once; it answered: %s", calls, len(r.calls), twice, strings.Join(answers, ", "))
}

// dead lists the dead jobs, once every node lists the same.
func (x *torment) dead() map[string]bool {
	var lists [][]string
	Until(x.t, "all nodes list the same dead jobs", func() bool {
		lists = nil
		for i := range x.cell.Size() {
			lists = append(lists, x.deadOn(i))
		}
		return slices.Equal(lists[0], lists[1]) && slices.Equal(lists[0], lists[2])
	})
	ids := map[string]bool{}
	for _, id := range lists[0] {
		ids[id] = true
	}
	return ids
}

func (x *torment) deadOn(i int) (all []string) {
	for after, more := "", true; more; {
		page, err := x.cell.Node(i).Jobs(x.t.Context(), AppID, "dead", after, 1000)
		if err != nil {
			x.t.Fatal(err)
		}
		for _, j := range page.Jobs {
			all = append(all, j.ID)
			after = j.ID
		}
		more = page.More
	}
	return all
}

// TestDrainInterruptsNothing: a node that leads and is drained keeps leadership until its attempts have come to their end; what waits is begun by
// the next one. Nothing is attempted twice.
func TestDrainInterruptsNothing(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a cell")
	}
	for !drainUnderWork(t) {
		t.Log("an election came by itself before the drain began: the machine stood still for a while; once more")
	}
}

// drainUnderWork drains a leader that is at work. It judges nothing, and returns false, when leadership went away before the drain began.
func drainUnderWork(t *testing.T) bool {
	const jobs = 300
	release := make(chan struct{})
	var mu sync.Mutex
	attempts, under := map[string]int{}, 0
	hold := effect.HandlerFunc(func(ctx context.Context, j job.Job, _ int) error {
		mu.Lock()
		attempts[j.Event]++
		under++
		mu.Unlock()
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	c := StartCell(t, CellOptions{
		Jobs:   map[string]effect.Handler{"hold": policed{hold, effect.Policy{Timeout: 2 * Patience}}},
		Change: func(_ int, o *node.Options) { o.Config.DrainTimeout = 2 * Patience },
		Faults: func(int) *node.Faults { // leadership goes nowhere by itself while the machine is busy
			return &node.Faults{Log: func(o *raftlog.Options) { o.Heartbeat = 5 * time.Second }}
		},
	})
	leader := -1
	Until(t, "a node leads", func() bool { leader = c.Leader(t.Context()); return leader >= 0 })
	term := func(i int) uint64 {
		view, err := c.Node(i).Cell(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return view.Term
	}
	before := term(leader)
	all := make([]job.New, jobs)
	for i := range all {
		all[i] = job.New{Kind: "hold", Target: fmt.Sprint("t", i%2)} // 64 places each: most of them wait
	}
	old := c.Node(leader)
	if _, err := old.Desk().Do(t.Context(), petrel.Actor{Kind: petrel.ActorSystem, App: AppID}, command.Meta{}, job.Enqueue{Jobs: all}); err != nil {
		t.Fatal(err)
	}
	Until(t, "all places are taken", func() bool { mu.Lock(); defer mu.Unlock(); return under == 128 })
	if term(leader) != before {
		close(release)
		for i := range c.Size() { // the next try has the machine to itself
			c.Kill(i)
		}
		return false
	}
	if err := old.DrainNode(t.Context(), "", false); err != nil {
		t.Fatal(err)
	}
	moment(t.Context(), 4*time.Second) // longer than it took to give up on attempts
	gone := term(leader) != before     // by itself, or too early by the drain: then attempts are interrupted
	close(release)
	ledger := func() (l job.ShownLedger) {
		all, err := c.Node((leader + 1) % c.Size()).JobLedgers(t.Context())
		if err == nil && len(all) == 1 {
			l = all[0]
		}
		return l
	}
	Until(t, "another leads, and all jobs are done", func() bool { return ledger().Done == jobs && c.Leader(t.Context()) != leader })
	l := ledger()
	if gone || l.Interrupted != 0 || l.Failed != 0 || l.Attempts != jobs {
		t.Errorf("%+v; want %d attempts, none interrupted, and leadership to stay until they have ended (it did not: %v)", l, jobs, gone)
	}
	mu.Lock()
	defer mu.Unlock()
	for event, n := range attempts {
		if n != 1 {
			t.Errorf("%s was attempted %d times", event, n)
		}
	}
	return true
}

// policed is a handler with a policy of its own.
type policed struct {
	effect.Handler
	policy effect.Policy
}

// Policy implements the policy of the kind.
func (p policed) Policy() effect.Policy { return p.policy }
