package node

import (
	"runtime"
	"strings"
	"testing"
)

// TestRunningBuild: the name of this binary is more than what it says of itself, and the same whenever it is asked.
func TestRunningBuild(t *testing.T) {
	t.Parallel()
	b := Build{Version: "v1", Commit: "abc"}
	name := runningBuild(b)
	if name != runningBuild(b) || !strings.HasPrefix(name, "v1 abc") {
		t.Errorf("%q", name)
	}
	if runtime.GOOS == "linux" && len(name) < len("v1 abc ")+40 {
		t.Errorf("%q has no build id", name)
	}
}
