package petreltest

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestDiskFull: writes answer 503 disk_full, reads and sockets go on, and writes resume when there is room.
// The data folder lies on a small file system in a mount namespace of the server's own.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	wrap := []string{"unshare", "-m", "sh", "-c", `mount -t tmpfs -o size=160m petrel "$0" && exec "$@"`, dir}
	if os.Getuid() != 0 {
		wrap = append([]string{"unshare", "-r"}, wrap[1:]...)
	}
	if out, err := exec.Command(wrap[0], append(append([]string{}, wrap[1:]...), "true")...).CombinedOutput(); err != nil {
		t.Skipf("no small file system can be mounted here (neither as root nor in a user namespace): %v %s", err, out)
	}
	server := Start(t, Options{Dir: dir, Wrap: wrap})
	inside := filepath.Join("/proc", fmt.Sprint(server.cmd.Process.Pid), "root", dir)
	room := crashRoom(0)
	createRoom(t, server.URL, room)
	post := func(id string) error {
		_, _, err := Post(t.Context(), http.DefaultClient, server.URL, "ada", room, id, "text of "+id)
		return err
	}
	if err := post("before"); err != nil {
		t.Fatal(err)
	}
	watcher, err := Dial(t.Context(), server.URL, "bob")
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	headBefore, _, err := watcher.Subscribe(t.Context(), room, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	sender, err := Dial(t.Context(), server.URL, "ada")
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()

	ballast := filepath.Join(inside, "ballast")
	if err := fillDisk(ballast); err != nil {
		t.Fatal(err)
	}
	var refused *Problem
	n := 0
	Until(t, "a write was refused because the disk is full", func() bool {
		n++
		return errors.As(post(fmt.Sprintf("full-%d", n)), &refused)
	})
	if refused.Status != http.StatusServiceUnavailable || refused.Code != "disk_full" || refused.RetryAfter == "" {
		t.Errorf("the refusal is %+v with Retry-After %q; want 503 disk_full with one", refused, refused.RetryAfter)
	}
	if _, _, err := sender.Send(t.Context(), room, "socket-full", "x"); !errors.As(err, &refused) || refused.Code != "disk_full" {
		t.Errorf("a send on a socket: %v; want disk_full", err)
	}
	if got := server.status(t.Context(), "/readyz"); got != http.StatusOK {
		t.Errorf("/readyz says %d while reads still work", got)
	}
	if h := health(t, server); h != "degraded" {
		t.Errorf("/healthz says %q, want degraded", h)
	}
	// Reads and sockets go on: everything accepted so far can be read, and was delivered.
	events, err := History(t.Context(), http.DefaultClient, server.URL, room)
	if err != nil || uint64(len(events)) < headBefore {
		t.Fatalf("history: %d events, %v", len(events), err)
	}
	late, err := Dial(t.Context(), server.URL, "eve")
	if err != nil {
		t.Fatalf("a new socket while the disk is full: %v", err)
	}
	defer late.Close()

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	Until(t, "writes resumed when there was room", func() bool { return post("after") == nil })
	if _, _, err := sender.Send(t.Context(), room, "socket-after", "x"); err != nil {
		t.Errorf("a send after there was room: %v", err)
	}
	Until(t, "/healthz says ok again", func() bool { return health(t, server) == "ok" })
	events, err = History(t.Context(), http.DefaultClient, server.URL, room)
	if err != nil {
		t.Fatal(err)
	}
	for i, ev := range events {
		f, err := watcher.Read(t.Context())
		if err != nil || f.Op != "event" || f.Seq != ev.Seq || string(f.Data) != string(ev.Data) {
			t.Fatalf("the subscriber's event %d is %s (%v), the history has %s", i+1, f.Raw, err, ev.Data)
		}
	}
	server.Terminate(t)
}

func health(t *testing.T, server *Server) string {
	t.Helper()
	var h struct{ Status string }
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	if _, err := Call(t.Context(), client, server.Admin, "", http.MethodGet, "/healthz", nil, &h); err != nil {
		t.Fatal(err)
	}
	return h.Status
}
