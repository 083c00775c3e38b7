package petreltest

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTortureShort is promises 1 to 5 under the faults that cost a cell its leader: three processes, seconds of each, judged
// by the checker. TestTorture does it for long.
func TestTortureShort(t *testing.T) {
	t.Parallel()
	faults := FaultsNamed("partition", "kill -9", "SIGSTOP", "one-way loss", "restart", "power off", "transfer", "clock jump")
	if testing.Short() {
		faults = faults[:2]
	}
	v := Torture(t, TortureOptions{Seed: seedOf(t, 1), Faults: len(faults), Only: faults})
	t.Log(v.Markdown())
	if len(v.Findings) > 0 {
		t.Fail()
	}
}

// TestTorture runs when it is asked for: `make torture`.
func TestTorture(t *testing.T) {
	if os.Getenv("PETREL_TORTURE") == "" {
		t.Skip("runs long: make torture")
	}
	faults, err := strconv.Atoi(os.Getenv("PETREL_TORTURE_FAULTS"))
	if err != nil {
		faults = 300
	}
	duration, _ := time.ParseDuration(os.Getenv("PETREL_TORTURE_DURATION")) // none: until the faults are done
	o := TortureOptions{Seed: seedOf(t, rand.Uint64N(1_000_000)), Faults: faults, Duration: duration, Keep: os.Getenv("PETREL_TORTURE_KEEP")}
	if names := os.Getenv("PETREL_TORTURE_ONLY"); names != "" {
		o.Only = FaultsNamed(splitNames(names)...)
	}
	v := Torture(t, o)
	t.Log("\n" + v.Markdown())
	if len(v.Findings) > 0 {
		t.Fail()
	}
}

// seedOf is PETREL_TORTURE_SEED, or the one given. Either is printed.
func seedOf(t *testing.T, seed uint64) uint64 {
	t.Helper()
	if s, err := strconv.ParseUint(os.Getenv("PETREL_TORTURE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("seed %d", seed)
	return seed
}

func splitNames(s string) (out []string) {
	for name := range strings.SplitSeq(s, ",") {
		out = append(out, strings.TrimSpace(name))
	}
	return out
}

// site is a server as a Site.
func (p *Place) site(name string) Site {
	return Site{Name: name, At: func() (string, *http.Client) {
		if s := p.p.Load(); s != nil {
			return s.URL, s.HTTP
		}
		return "", nil
	}}
}

// TestCheckedKills runs the checker's workload against one node that is killed now and then.
func TestCheckedKills(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	place := &Place{}
	server := Start(t, Options{Dir: dir})
	place.Set(server)
	w, err := StartWorkload(t.Context(), WorkloadOptions{Sites: []Site{place.site("n1")}, Seed: 1, Name: "k"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 3 {
		moment(t.Context(), 500*time.Millisecond)
		over := w.Journal().Storm("kill n1")
		place.Set(nil)
		server.Kill()
		server = Start(t, Options{Dir: dir})
		place.Set(server)
		over()
	}
	moment(t.Context(), 500*time.Millisecond)
	e, findings := w.Settle(t.Context(), Patience)
	for _, f := range findings {
		t.Error(f)
	}
	t.Log(e.Summary())
	server.Terminate(t)
}

// moment lets a workload do something; nothing depends on how long it is.
func moment(ctx context.Context, d time.Duration) { wait(ctx, nil, d) }
