package petreltest

import (
	"context"
	"net/http"
	"testing"
	"time"
)

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
