package main

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/petrel-chat/petrel/internal/node"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"petrel": main})
}

// TestScripts runs testdata/*.txt: the command line as a person types it.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"await":     await,
			"demochats": demoChats,
		},
	})
}

// await DIR waits until the node of that data folder is ready.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await DIR")
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		b, err := os.ReadFile(ts.MkAbs(filepath.Join(args[0], "lock")))
		var o node.Owner
		if err != nil || json.Unmarshal(b, &o) != nil || o.Listen == "" {
			continue
		}
		resp, err := http.Get("http://" + o.Admin + "/readyz")
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return
		}
	}
	ts.Fatalf("the node of %s did not become ready", args[0])
}

type demoAnswer struct {
	Token    string
	Messages []struct{ Text string }
}

// demoChats DIR… lets a visitor of each node's page choose a name and say something, which the pages of all of them show.
func demoChats(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: demochats DIR...")
	}
	patience := time.Now().Add(time.Minute)
	var call func(method, url, token, position, body string) (answer demoAnswer, at string)
	call = func(method, url, token, position, body string) (answer demoAnswer, at string) {
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		ts.Check(err)
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		if position != "" {
			req.Header.Set("Petrel-Position", position)
		}
		resp, err := http.DefaultClient.Do(req)
		ts.Check(err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		ts.Check(err)
		if again := resp.Header.Get("Retry-After") != "" && time.Now().Before(patience); again { // an election, on a busy machine
			return call(method, url, token, position, body)
		}
		if resp.StatusCode >= 300 {
			ts.Fatalf("%s %s: %s: %s", method, url, resp.Status, b)
		}
		ts.Check(json.Unmarshal(b, &answer))
		return answer, resp.Header.Get("Petrel-Position")
	}
	said, position := map[string]bool{}, ""
	for round := range 2 { // first everybody speaks, then everybody reads
		for _, dir := range args {
			o, err := node.ReadOwner(ts.MkAbs(dir))
			ts.Check(err)
			visitor, _ := call(http.MethodPost, "http://"+o.Listen+"/demo/token", "", "", `{"name":"Visitor of `+dir+`"}`)
			messages := "http://" + o.Listen + "/v1/rooms/lobby/messages"
			if round == 0 {
				text := "hello through " + dir
				_, position = call(http.MethodPost, messages, visitor.Token, "", `{"text":"`+text+`"}`)
				said[text] = true
				continue
			}
			page, _ := call(http.MethodGet, messages+"?limit=50", visitor.Token, position, "")
			missing := maps.Clone(said)
			for _, m := range page.Messages {
				delete(missing, m.Text)
			}
			if len(missing) > 0 {
				ts.Fatalf("the page of %s does not show %v", dir, missing)
			}
		}
	}
}
