package conn

import "fmt"

// CloseCode is the number at the end of a connection. Its range tells a client what to do, also for numbers
// it does not know: the ranges are those of Pusher's protocol, so that every client family shares them.
//
//	4000–4099  do not come back unchanged: something about the request must be mended first
//	4100–4199  come back after a pause (at least 1 s, with jitter; longer each time)
//	4200–4299  come back at once and resume from the last position seen
//
// Numbers below 4000 are those of RFC 6455 §7.4.1; a client treats 1001, 1006, 1011 and no code at all like the 4100s.
type CloseCode uint16

// Codes of RFC 6455.
const (
	CloseNormal      CloseCode = 1000 // the client said goodbye
	CloseGoingAway   CloseCode = 1001 // the client's page was left
	CloseProtocol    CloseCode = 1002 // a frame that breaks RFC 6455
	CloseUnsupported CloseCode = 1003 // a binary frame: only text is spoken here
	CloseNoStatus    CloseCode = 1005 // never sent: the peer's close frame had no code
	CloseAbnormal    CloseCode = 1006 // never sent: the connection broke without a close frame
	CloseInvalidUTF8 CloseCode = 1007 // a text message that is not UTF-8, or a compressed one that cannot be unpacked
	CloseTooBig      CloseCode = 1009 // a message above the size limit
	CloseInternal    CloseCode = 1011 // a fault of ours; it is in our logs
)

// 4000–4099: do not come back unchanged.
const (
	CloseBadFrames       CloseCode = 4000 // ten frames that could not be read: the client has a bug
	CloseUnauthenticated CloseCode = 4001 // no valid token in time, or one that does not verify
	CloseTokenExpired    CloseCode = 4002 // the token's time is over: come back with a new one
	CloseForbidden       CloseCode = 4003 // the app was suspended, or the user may not connect
)

// 4100–4199: come back after a pause.
const (
	CloseOverloaded   CloseCode = 4100 // this node is at its limits
	CloseLimitReached CloseCode = 4101 // the app has as many connections as it may have
)

// 4200–4299: come back at once and resume.
const (
	CloseReconnect CloseCode = 4200 // this node is leaving; another one serves
	CloseSlow      CloseCode = 4201 // the client read more slowly than its rooms spoke: nothing is lost, resume
	CloseSilent    CloseCode = 4202 // nothing was heard within the interval and grace of this connection's contract
)

// names is what logs, metrics and docs/PROTOCOL.md call the codes.
var names = map[CloseCode]string{
	CloseNormal: "normal", CloseGoingAway: "going_away", CloseProtocol: "protocol_error", CloseUnsupported: "unsupported_data",
	CloseNoStatus: "no_status", CloseAbnormal: "abnormal", CloseInvalidUTF8: "invalid_utf8", CloseTooBig: "too_big", CloseInternal: "internal",
	CloseBadFrames: "bad_frames", CloseUnauthenticated: "unauthenticated", CloseTokenExpired: "token_expired", CloseForbidden: "forbidden",
	CloseOverloaded: "overloaded", CloseLimitReached: "limit_reached",
	CloseReconnect: "reconnect", CloseSlow: "slow", CloseSilent: "silent",
}

// sendable says whether a close frame may carry c (RFC 6455 §7.4 and the registry that it founded).
func (c CloseCode) sendable() bool {
	switch c {
	case 1004, CloseNoStatus, CloseAbnormal:
		return false
	}
	return c >= 1000 && c <= 1014 || c >= 3000 && c <= 4999
}

// String is a short stable word for codes of ours, "other" for a number that only the peer knows.
func (c CloseCode) String() string {
	if n, ok := names[c]; ok {
		return n
	}
	return "other"
}

// Advice says in words what a client does after c.
func (c CloseCode) Advice() string {
	switch {
	case c == CloseNormal:
		return "nothing: it was wanted"
	case c >= 4000 && c < 4100, c == CloseProtocol, c == CloseUnsupported, c == CloseInvalidUTF8, c == CloseTooBig:
		return "do not come back unchanged"
	case c >= 4200 && c < 4300:
		return "come back at once and resume"
	}
	return "come back after a pause"
}

// Codes returns every code with a name, for the documentation and its test.
func Codes() map[CloseCode]string {
	out := make(map[CloseCode]string, len(names))
	for c, n := range names {
		out[c] = n
	}
	return out
}

func (c CloseCode) format() string { return fmt.Sprintf("%d %s", uint16(c), c) }
