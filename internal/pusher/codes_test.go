package pusher

import (
	"errors"
	"testing"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestCloseCodes: every refusal at the door has a code of the range that says what pusher-js shall do, and none is 4300 or above.
func TestCloseCodes(t *testing.T) {
	t.Parallel()
	for code, want := range map[petrel.Code]conn.CloseCode{
		petrel.CodeInvalidToken: 4001, petrel.CodeAppSuspended: 4003, petrel.CodeLimitReached: 4004,
		petrel.CodeOverloaded: 4100, petrel.CodeBusy: 4100, petrel.CodeRateLimited: 4100, petrel.CodeDraining: 4100,
	} {
		if got, text := closeFor(petrel.Errorf(code, "x")); got != want || text == "" {
			t.Errorf("%s: %d %q, want %d", code, got, text, want)
		}
	}
	if got, _ := closeFor(errors.New("x")); got != 4100 {
		t.Errorf("a fault of ours: %d", got)
	}
	alone := false
	c := &session{entrance: &entrance{s: &Server{opt: Options{Last: func() bool { return alone }}}}}
	for code := range conn.Codes() {
		if got := c.CloseCode(code); got >= 4300 || (got >= 4000 && got < 4100 && got != code) {
			t.Errorf("%d is told as %d", code, got)
		}
	}
	for code, want := range map[conn.CloseCode]conn.CloseCode{conn.CloseSilent: 4201, conn.CloseSlow: 4100, conn.CloseReconnect: 4200, conn.CloseTooBig: 1009, closeUnauthorized: 4009} {
		if got := c.CloseCode(code); got != want {
			t.Errorf("%d is told as %d, want %d", code, got, want)
		}
	}
	alone = true
	if got := c.CloseCode(conn.CloseReconnect); got != 4100 {
		t.Errorf("a node that runs alone sends its clients away with %d: there is nobody to go to at once", got)
	}
}
