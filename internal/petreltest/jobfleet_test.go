package petreltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestJobsOfKilledNodes is TestJobTorture, small: three processes, of which leaders are killed while they tell webhooks.
func TestJobsOfKilledNodes(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("kills processes")
	}
	fleetJobs(t, jobPlan{seed: seedOf(t, 5), hooks: 3, messages: 150, kills: 2})
}

// TestJobTorture runs when it is asked for: `make torture-jobs`.
func TestJobTorture(t *testing.T) {
	if os.Getenv("PETREL_JOB_TORTURE") == "" {
		t.Skip("runs long: make torture-jobs")
	}
	jobs, err := strconv.Atoi(os.Getenv("PETREL_JOB_TORTURE"))
	if err != nil {
		t.Fatal(err)
	}
	fleetJobs(t, jobPlan{seed: seedOf(t, rand.Uint64N(1_000_000)), hooks: 10, messages: jobs / 10, kills: 10, fillDisk: true})
}

// jobPlan is one torture of webhooks.
type jobPlan struct {
	seed                   uint64
	hooks, messages, kills int
	fillDisk               bool
}

func (p jobPlan) jobs() int { return p.hooks * p.messages }

// fleetJobs posts messages that all hooks are told of, kills leaders while that is done, and judges what came of it.
func fleetJobs(t *testing.T, p jobPlan) {
	t.Helper()
	f := StartFleet(t, FleetOptions{Seed: p.seed, Guests: 1, Args: []string{"--webhook-allow", "10.77.0.0/24"}, Logs: os.Getenv("PETREL_TORTURE_KEEP")})
	x := &jobFleet{t: t, fleet: f, plan: p, shop: newShop(t, f.Net.Host(f.Size()), p.seed), rng: rand.New(rand.NewPCG(p.seed, 4))} //nolint:gosec // a test's chance
	x.setUp()
	began := time.Now()
	var posting sync.WaitGroup
	for n := range posters {
		posting.Go(func() { x.post(n) })
	}
	for k := range p.kills {
		x.progress(p.jobs() * (k + 1) / (p.kills + 2))
		x.kill(k)
		if p.fillDisk && k == p.kills/2 {
			x.fullDisk()
		}
	}
	posting.Wait()
	posted := time.Since(began)
	x.settle()
	took := time.Since(began)
	e := x.evidence()
	found := e.Check()
	for i, finding := range found {
		if i < 20 {
			t.Error(finding)
		}
	}
	if why, err := f.Verify(t.Context()); err != nil || why != "" {
		t.Errorf("the rows of the replicas are not equal: %s %v", why, err)
	}
	again := map[string]int{}
	for _, c := range e.Calls {
		again[c.Event]++
	}
	twice := 0
	for _, n := range again {
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d messages to %d hooks, posted in %s; %d leaders killed; all done or dead after %s; %d findings", p.messages, p.hooks, posted.Round(time.Second), p.kills, took.Round(time.Second), len(found))
	t.Logf("ledger of every node: %+v", e.Ledgers["n1"])
	t.Logf("the receiver saw %d events, %d of them more than once, in %d tellings; %s", len(again), twice, len(e.Calls), x.shop.summary())
}

// longestPause between two attempts, as docs/WEBHOOKS.md has it.
const longestPause = 15 * time.Minute

// posters is how many clients post at the same time.
const posters = 8

// jobFleet is one torture of webhooks under way.
type jobFleet struct {
	t     *testing.T
	fleet *Fleet
	plan  jobPlan
	shop  *shop
	rng   *rand.Rand
	next  atomic.Int64 // message
}

func hookName(n int) string    { return fmt.Sprint("h", n) }
func messageName(n int) string { return fmt.Sprint("m", n) }

// anywhere does something at some node that runs, until it works.
func (x *jobFleet) anywhere(what string, seed uint64, do func(ctx context.Context, c *http.Client, url string) error) {
	rng := rand.New(rand.NewPCG(x.plan.seed, seed)) //nolint:gosec // a test's chance
	sites, last := x.fleet.Sites(), error(nil)
	if !poll(x.t.Context(), 2*Patience, func() bool {
		url, client := sites[rng.IntN(len(sites))].At()
		if url == "" {
			return false
		}
		ctx, cancel := context.WithTimeout(x.t.Context(), 5*time.Second)
		defer cancel()
		err := do(ctx, client, url)
		if err != nil {
			last = err
		}
		return err == nil
	}) {
		x.t.Errorf("in vain: %s: %v", what, last)
	}
}

func (x *jobFleet) setUp() {
	for n := range x.plan.hooks {
		hook := map[string]any{"url": "http://" + x.shop.addr + "/" + hookName(n), "events": []string{"message.new"}, "batch": n%4 == 3}
		x.anywhere("set a hook", 0, func(ctx context.Context, c *http.Client, url string) error {
			_, err := Call(ctx, c, url, "", http.MethodPut, "/v1/hooks/"+hookName(n), hook, nil)
			return err
		})
	}
	for n := range posters {
		x.anywhere("make a room", 0, func(ctx context.Context, c *http.Client, url string) error {
			_, err := Call(ctx, c, url, "ada", http.MethodPost, "/v1/rooms", map[string]any{"id": fmt.Sprint("r", n), "kind": "open"}, nil)
			return err
		})
	}
}

// post posts messages into a room of its own until there are enough.
func (x *jobFleet) post(room int) {
	for !x.t.Failed() {
		n := int(x.next.Add(1)) - 1
		if n >= x.plan.messages {
			return
		}
		x.anywhere("post a message", uint64(n)+10, func(ctx context.Context, c *http.Client, url string) error { //nolint:gosec // positive
			_, _, err := Post(ctx, c, url, "ada", fmt.Sprint("r", room), messageName(n), "text of "+messageName(n))
			return err
		})
	}
}

// ledger is the app's as a node shows it.
func (x *jobFleet) ledger(i int) (l JobLedger, err error) {
	var all struct {
		Ledgers []struct {
			App string `json:"app"`
			JobLedger
		} `json:"ledgers"`
	}
	if err := x.fleet.Admin(x.t.Context(), i, http.MethodGet, "/admin/jobs", nil, &all); err != nil {
		return l, err
	}
	for _, a := range all.Ledgers {
		if a.App == AppID {
			return a.JobLedger, nil
		}
	}
	return l, nil
}

// furthest is the ledger of the node that has come furthest.
func (x *jobFleet) furthest() (best JobLedger) {
	for i := range x.fleet.Size() {
		if l, err := x.ledger(i); err == nil && (l.Attempts > best.Attempts || l.Attempts == best.Attempts && l.Done+l.Dead >= best.Done+best.Dead) {
			best = l
		}
	}
	return best
}

// progress waits until so many jobs have come to their end.
func (x *jobFleet) progress(want int) {
	x.t.Helper()
	if !poll(x.t.Context(), 3*Patience, func() bool {
		l := x.furthest()
		return l.Done+l.Dead >= uint64(want) //nolint:gosec // positive
	}) {
		x.t.Fatalf("%d jobs never came to their end: %+v", want, x.furthest())
	}
}

// kill ends the leader by SIGKILL, half of the time while the receiver is gone as well, lets another go on, and starts it again.
func (x *jobFleet) kill(k int) {
	x.t.Helper()
	leader := -1
	Until(x.t, "a node leads", func() bool { leader = x.fleet.Leader(x.t.Context()); return leader >= 0 })
	if k%2 == 0 {
		x.shop.close()
	}
	at := x.furthest()
	x.fleet.Kill(leader)
	Until(x.t, "another node began jobs, or all are at their end", func() bool {
		l := x.furthest()
		return l.Attempts > at.Attempts || l.Waiting+l.Running == 0 && l.Accepted == uint64(x.plan.jobs()) //nolint:gosec // positive
	})
	if k%2 == 0 {
		moment(x.t.Context(), time.Duration(x.rng.IntN(2000))*time.Millisecond)
		x.shop.open()
	}
	x.t.Logf("kill %d: n%d; %+v", k+1, leader+1, x.furthest())
	x.fleet.Start(leader)
	if err := x.fleet.WaitHealthy(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
}

// fullDisk fills the disk of the node that leads until it says so, and makes room again after a while.
func (x *jobFleet) fullDisk() {
	x.t.Helper()
	leader := -1
	Until(x.t, "a node leads", func() bool { leader = x.fleet.Leader(x.t.Context()); return leader >= 0 })
	ballast := filepath.Join(x.fleet.Folder(leader), "ballast")
	if err := fillDisk(ballast); err != nil {
		x.t.Fatal(err)
	}
	site := x.fleet.Sites()[leader]
	Until(x.t, "a post was refused because the disk is full", func() bool {
		url, client := site.At()
		var refused *Problem
		ctx, cancel := context.WithTimeout(x.t.Context(), 5*time.Second)
		defer cancel()
		_, err := Call(ctx, client, url, "ada", http.MethodPatch, "/v1/rooms/r0", map[string]any{"name": "full"}, nil)
		return errors.As(err, &refused) && refused.Code == "disk_full"
	})
	at := x.furthest()
	moment(x.t.Context(), 3*time.Second)
	x.t.Logf("the disk of n%d is full; attempts meanwhile: %d", leader+1, x.furthest().Attempts-at.Attempts)
	if err := os.Remove(ballast); err != nil {
		x.t.Fatal(err)
	}
	if err := x.fleet.WaitHealthy(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
}

// settle waits until every node says that nothing waits or runs any more.
func (x *jobFleet) settle() {
	x.t.Helper()
	last, since := uint64(0), time.Now()
	for {
		settled := true
		for i := range x.fleet.Size() {
			l, err := x.ledger(i)
			settled = settled && err == nil && l.Accepted >= uint64(x.plan.jobs()) && l.Waiting+l.Running == 0 //nolint:gosec // positive
		}
		if settled {
			return
		}
		l := x.furthest()
		if l.Done+l.Dead != last {
			last, since = l.Done+l.Dead, time.Now()
		}
		if time.Since(since) > longestPause+Patience {
			x.t.Fatalf("nothing came to its end for %s: %+v", longestPause+Patience, l)
		}
		wait(x.t.Context(), nil, 50*time.Millisecond)
	}
}

func (x *jobFleet) evidence() *JobEvidence {
	x.t.Helper()
	e := &JobEvidence{Ledgers: map[string]JobLedger{}, Dead: map[string][]DeadJob{}}
	for n := range x.plan.hooks {
		e.Hooks = append(e.Hooks, hookName(n))
	}
	for n := range posters {
		x.anywhere("read a room", 1, func(ctx context.Context, c *http.Client, url string) error {
			events, err := History(ctx, c, url, fmt.Sprint("r", n))
			if err != nil {
				return err
			}
			for _, ev := range events {
				var m Message
				if err := json.Unmarshal(ev.Data, &m); ev.Type == "message.new" && err == nil {
					e.Causes = append(e.Causes, m.ID)
				}
			}
			return nil
		})
	}
	if len(e.Causes) != x.plan.messages {
		x.t.Errorf("%d messages are there, %d were acknowledged", len(e.Causes), x.plan.messages)
	}
	for i := range x.fleet.Size() {
		l, err := x.ledger(i)
		if err != nil {
			x.t.Fatal(err)
		}
		e.Ledgers[x.fleet.Name(i)] = l
		e.Dead[x.fleet.Name(i)] = x.dead(i)
	}
	x.shop.mu.Lock()
	defer x.shop.mu.Unlock()
	for _, c := range x.shop.calls {
		e.Calls = append(e.Calls, *c)
	}
	return e
}

func (x *jobFleet) dead(i int) (all []DeadJob) {
	x.t.Helper()
	for after, more := "", true; more; {
		var page struct {
			Jobs []struct {
				ID, Target string
				Event      string `json:"event_id"`
			}
			More bool
		}
		if err := x.fleet.Admin(x.t.Context(), i, http.MethodGet, "/admin/apps/"+AppID+"/jobs?state=dead&limit=1000&after="+after, nil, &page); err != nil {
			x.t.Fatal(err)
		}
		for _, j := range page.Jobs {
			hook, _, _ := strings.Cut(j.Target, "/")
			all, after = append(all, DeadJob{j.ID, j.Event, hook}), j.ID
		}
		more = page.More
	}
	return all
}

// shop is whom the webhooks tell: an HTTP server on a host of its own that answers, answers 500, hangs, resets connections, refuses some for
// good, and is gone now and then.
type shop struct {
	t    *testing.T
	host *Host
	addr string

	mu     sync.Mutex // guards what follows
	server *http.Server
	rng    *rand.Rand
	calls  []*JobCall
	kinds  map[string]int // of answers
}

func newShop(t *testing.T, host *Host, seed uint64) *shop {
	t.Helper()
	s := &shop{t: t, host: host, addr: host.Addr + ":9000", rng: rand.New(rand.NewPCG(seed, 5)), kinds: map[string]int{}} //nolint:gosec // a test's chance
	t.Cleanup(s.close)
	s.open()
	return s
}

// open listens, always at the same address.
func (s *shop) open() {
	var l net.Listener
	var err error
	if !poll(s.t.Context(), Patience, func() bool { l, err = s.host.Listen(s.t.Context(), "tcp", s.addr); return err == nil }) {
		s.t.Errorf("the receiver does not come back: %v", err)
		return
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: Patience}
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	go func() { _ = server.Serve(l) }() // it ends with close
}

// close takes it away, with every connection to it.
func (s *shop) close() {
	s.mu.Lock()
	server := s.server
	s.server = nil
	s.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
}

// ServeHTTP notes what came, before it says anything.
func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var call struct {
		Events []json.RawMessage `json:"events"`
	}
	if err != nil || json.Unmarshal(body, &call) != nil || len(call.Events) == 0 {
		if err == nil {
			s.t.Errorf("a call that does not read: %q", body)
		}
		return // whoever called died within it
	}
	attempt, _ := strconv.Atoi(r.Header.Get("Petrel-Attempt"))
	calls := make([]*JobCall, len(call.Events))
	for i, raw := range call.Events {
		var ev struct {
			ID   string  `json:"event_id"`
			Data Message `json:"data"`
		}
		if err := json.Unmarshal(raw, &ev); err != nil {
			s.t.Errorf("an event that does not read: %q", raw)
		}
		calls[i] = &JobCall{Hook: strings.TrimPrefix(r.URL.Path, "/"), Cause: ev.Data.ID, Event: ev.ID, Body: string(raw), Attempt: attempt, Alone: len(call.Events) == 1}
	}
	s.answer(w, r, calls)
}

// hopelessMessage is refused for good: each in so many.
const hopelessMessage = 100

func (s *shop) answer(w http.ResponseWriter, r *http.Request, calls []*JobCall) {
	s.mu.Lock()
	s.calls = append(s.calls, calls...)
	dice, what := s.rng.IntN(100), "200"
	n, _ := strconv.Atoi(strings.TrimPrefix(calls[0].Cause, "m"))
	switch {
	case n%hopelessMessage == 7 && len(calls) == 1:
		what = "503 for ever"
	case dice < 6:
		what = "500"
	case dice < 7:
		what = "hang"
	case dice < 10:
		what = "reset"
	}
	s.kinds[what]++
	status := map[string]int{"200": 200, "500": 500, "503 for ever": 503}[what]
	for _, c := range calls {
		c.Status = status
	}
	s.mu.Unlock()
	switch what {
	case "hang":
		<-r.Context().Done()
	case "reset":
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			_ = c.Close()
		}
	case "503 for ever":
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(status)
	default:
		w.WriteHeader(status)
	}
}

func (s *shop) summary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var parts []string
	for kind, n := range s.kinds {
		parts = append(parts, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(parts)
	return "calls by what was answered: " + strings.Join(parts, ", ")
}
