package pusher

import (
	"fmt"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Close codes of Pusher's protocol and what pusher-js does after them (docs/pusher.md, "close codes"). They are numbers of their own: the same
// ones mean something else on Petrel's native socket. From 4000 to 4099 the client stays away until its program calls connect again; 4100 to
// 4199 it comes back after a second, 4200 to 4299 at once.
const (
	closeNoApp        conn.CloseCode = 4001 // the key belongs to no app
	closeDisabled     conn.CloseCode = 4003 // the app is suspended
	closeOverQuota    conn.CloseCode = 4004 // the app has as many connections as it may have
	closeNoPath       conn.CloseCode = 4005 // there is nothing at this path
	closeBadVersion   conn.CloseCode = 4006 // the protocol's version is no number
	closeOldProtocol  conn.CloseCode = 4007 // a version that is not spoken here
	closeNoProtocol   conn.CloseCode = 4008 // no version was named
	closeUnauthorized conn.CloseCode = 4009 // not authorized, not in time, or terminated
	closeBadFrames    conn.CloseCode = 4010 // ours: frames that cannot be read; the client has a bug
	closeOverCapacity conn.CloseCode = 4100 // this node is at its limits, or the client read too slowly
	closeNoPong       conn.CloseCode = 4201 // nothing was heard, not even a pong
)

// Codes that are told in pusher:error alone, never at the end of a connection: pusher-js would stay away for good.
const (
	errClientEvent = 4301 // a client event was refused: too many, or not allowed
	errWatchlist   = 4302 // the watchlist is too long
)

// refusal is what a client is told of a wish of its that cannot be.
type refusal struct {
	code int // 0: none
	text string
}

func (r *refusal) Error() string { return r.text }

func refuse(code int, format string, args ...any) *refusal {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// closeFor is the close code of a refusal at the handshake.
func closeFor(err error) (conn.CloseCode, string) {
	switch petrel.CodeOf(err) {
	case petrel.CodeInvalidToken, petrel.CodeUnauthenticated, petrel.CodeAppNotFound:
		return closeNoApp, "There is no app with this key here. Check the key, and that this is the server it belongs to."
	case petrel.CodeAppSuspended:
		return closeDisabled, "The app is suspended. Ask who runs this installation."
	case petrel.CodeLimitReached:
		return closeOverQuota, "The app has as many connections as it may have."
	case petrel.CodeDraining: // in the range that means "after a second": until a balancer knows, it may send them here again
		return closeOverCapacity, "This node is leaving. Come back: another one answers."
	}
	return closeOverCapacity, "This node is at its limits. Come back in a moment."
}
