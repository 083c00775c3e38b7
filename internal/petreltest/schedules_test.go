package petreltest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/node"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestSchedules is what schedules do while their cell loses its leader, its app is suspended, and there is no room, by a clock that the test sets.
func TestSchedules(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", nodes), func(t *testing.T) {
			t.Parallel()
			testSchedules(t, nodes)
		})
	}
}

func testSchedules(t *testing.T, nodes int) {
	b := newBackend(t)
	var ahead atomic.Int64 // of the cell's clock
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	c := StartCell(t, CellOptions{
		Nodes: nodes, Faults: func(int) *node.Faults { return &node.Faults{Now: now} },
		Change: func(_ int, o *node.Options) { o.Config.WebhookAllow = "127.0.0.0/8" },
	})
	last := nodes - 1
	until := func(at time.Time) { ahead.Store(int64(time.Until(at))) }
	day := now().UTC().Truncate(24*time.Hour).AddDate(0, 0, 2)
	told := func(days ...string) { // due@missed
		t.Helper()
		var got []string
		if !poll(t.Context(), Patience, func() bool {
			got = nil
			for _, e := range b.got("/in") {
				due, err := time.Parse(time.RFC3339, e.Due)
				if err != nil || string(e.Payload) != `{"report":"sales"}` || e.Schedule != "noon" {
					t.Fatalf("told %+v: %v", e, err)
				}
				got = append(got, fmt.Sprintf("%d+%d", int(due.Sub(day.Add(12*time.Hour))/(24*time.Hour)), e.Missed))
			}
			return len(got) >= len(days)
		}) || !slices.Equal(got, days) {
			t.Fatalf("told %v, want %v", got, days)
		}
	}
	until(day)
	c.mustAsk(0, "PUT", "/v1/hooks/in", `{"url":"`+b.URL+`/in","events":["schedule.*"]}`)
	c.mustAsk(0, "PUT", "/v1/hooks/chat", `{"url":"`+b.URL+`/chat","events":["room.*"]}`)
	c.mustAsk(last, "PUT", "/v1/schedules/noon", `{"when":"0 12 * * *","data":{ "report":"sales" }}`)
	c.mustAsk(last, "PUT", "/v1/schedules/never", `{"when":"0 11 * * *","paused":true}`)

	until(day.Add(12*time.Hour + time.Second))
	told("0+0")

	// The leader dies, and nobody fires for two days.
	leader := max(0, c.Leader(t.Context()))
	if nodes == 1 {
		c.Kill(0)
		until(day.AddDate(0, 0, 3).Add(13 * time.Hour))
	} else {
		c.Kill(leader)
		until(day.AddDate(0, 0, 3).Add(13 * time.Hour))
		told("0+0", "1+2")
	}
	if err := c.Start(t.Context(), leader); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitHealthy(t.Context()); err != nil {
		t.Fatal(err)
	}
	told("0+0", "1+2")

	// A suspended app's schedules wait, while those of another are fired, and are told all at once when it is resumed.
	other, err := c.Node(0).CreateApp(t.Context(), node.NewApp{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Node(0).SetSchedule(t.Context(), other.ID, node.Schedule{Name: "tick", When: "every 10s"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Node(0).Suspend(t.Context(), AppID, "to see"); err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		Until(t, "each node knows that the app is suspended", func() bool {
			_, answer, err := c.ask(i, "GET", "/v1/schedules", "")
			return err == nil && strings.Contains(answer, `"app_suspended"`)
		})
	}
	fired := func(app petrel.AppID, name petrel.ScheduleName) uint64 {
		t.Helper()
		page, err := c.Node(0).Schedules(t.Context(), app, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.Schedules {
			if s.Name == name {
				return s.Fired
			}
		}
		t.Fatalf("the app %s has no schedule %s", app, name)
		return 0
	}
	for minute := range time.Duration(2) { // the second time, the round of the first one has come to its end
		before := fired(other.ID, "tick")
		until(day.AddDate(0, 0, 5).Add(13*time.Hour + minute*time.Minute))
		Until(t, "the other app's schedule was fired", func() bool { return fired(other.ID, "tick") > before })
	}
	if n := fired(AppID, "noon"); n != 2 {
		t.Errorf("the schedule of a suspended app was fired: %d times, want 2", n)
	}
	told("0+0", "1+2")
	if _, err := c.Node(0).Resume(t.Context(), AppID); err != nil {
		t.Fatal(err)
	}
	told("0+0", "1+2", "4+1")

	// Without room for jobs it is put off.
	configure := func(room string) {
		t.Helper()
		if _, err := c.Node(0).Configure(t.Context(), AppID, map[string]string{"max_jobs_waiting": room}); err != nil {
			t.Fatal(err)
		}
	}
	b.mu.Lock()
	b.answer["/chat"] = 500
	b.mu.Unlock()
	configure("1")
	c.mustAsk(0, "POST", "/v1/rooms", `{"id":"r","kind":"open"}`)
	until(day.AddDate(0, 0, 6).Add(13 * time.Hour))
	Until(t, "the schedule was put off", func() bool {
		n := 0.0
		for i := range nodes {
			n += metric(t, c.Node(i).AdminAddr(), `petrel_schedule_put_off_total{code="jobs_full"}`)
		}
		return n > 0
	})
	told("0+0", "1+2", "4+1")
	configure("")
	told("0+0", "1+2", "4+1", "6+0")

	var s struct {
		Schedule struct {
			Fired, Missed int
			Next          string `json:"next_at"`
		}
	}
	if err := json.Unmarshal([]byte(c.mustAsk(last, "GET", "/v1/schedules/noon", "")), &s); err != nil {
		t.Fatal(err)
	}
	if want := day.AddDate(0, 0, 7).Add(12 * time.Hour).Format("2006-01-02T15:04:05.000Z"); s.Schedule.Fired != 4 || s.Schedule.Missed != 3 || s.Schedule.Next != want {
		t.Errorf("it was fired %d times and missed %d; next at %s, want 4, 3 and %s", s.Schedule.Fired, s.Schedule.Missed, s.Schedule.Next, want)
	}
	if status, answer, err := c.ask(0, "DELETE", "/v1/schedules/nobody", ""); status != 404 || !strings.Contains(answer, `"schedule_not_found"`) {
		t.Errorf("removing what is not there: %d %s %v", status, answer, err)
	}
	for _, body := range []string{`{}`, `{"when":"tomorrow"}`, `{"when":"@daily","zone":"Nowhere"}`} {
		if status, answer, err := c.ask(0, "PUT", "/v1/schedules/x", body); status != 400 {
			t.Errorf("%s: %d %s %v", body, status, answer, err)
		}
	}
}

// metric reads one line of a node's metrics; 0 where there is none.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	for line := range strings.Lines(get(t, "http://"+admin+"/metrics")) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// TestScheduleDocs runs what docs/JOBS.md says about schedules.
func TestScheduleDocs(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	text, err := os.ReadFile("../../docs/JOBS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## Schedules")
	_, block, _ := strings.Cut(section, "```console\n")
	block, _, ok := strings.Cut(block, "```")
	if !ok || strings.Count(block, "\n$ ") < 4 {
		t.Fatalf("the commands are not found in %q", block)
	}
	dir := t.TempDir()
	server := Start(t, Options{Dir: dir})
	script := strings.NewReplacer("$ ", "", "482913", AppID, "KEY:SECRET", AppKey+":"+AppSecret, "http://127.0.0.1:8080", server.URL, "curl -u", "curl -sSf -u").Replace(block)
	bin := t.TempDir()
	if err := os.Symlink(Binary(t), filepath.Join(bin, "petrel")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euxc", script)
	cmd.Env = append(cleanEnv(), "PATH="+bin+":"+os.Getenv("PATH"), "PETREL_DATA="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"when":"every 30s"`, "tick     every 30s  UTC            paused", `"data":{"report":"sales"}`, "schedule  tick"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("nothing said %q:\n%s", want, out)
		}
	}
}
