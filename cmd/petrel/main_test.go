package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
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
			"await": await,
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
