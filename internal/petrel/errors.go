package petrel

import (
	"errors"
	"fmt"
	"time"
)

// Code is a stable, machine-readable error code. The list below only grows.
type Code string

// Every code a caller can see. docs/ERRORS.md says for each what to do.
const (
	CodeInvalidJSON      Code = "invalid_json"     // 400 not JSON, or not the object expected
	CodeInvalidUTF8      Code = "invalid_utf8"     // 400 body, path or frame is not UTF-8
	CodeInvalidID        Code = "invalid_id"       // 400 an id outside its alphabet or length
	CodeInvalidField     Code = "invalid_field"    // 400 a field is missing, unknown, of the wrong type or out of range
	CodeInvalidPosition  Code = "invalid_position" // 400 a Petrel-Position that nobody gave out
	CodeUnauthenticated  Code = "unauthenticated"  // 401 no credentials
	CodeInvalidToken     Code = "invalid_token"    // 401 a credential that does not verify
	CodeTokenExpired     Code = "token_expired"    // 401
	CodeForbidden        Code = "forbidden"        // 403 known, but may not
	CodeAppSuspended     Code = "app_suspended"    // 403
	CodeNotFound         Code = "not_found"        // 404 no such route
	CodeAppNotFound      Code = "app_not_found"    // 404
	CodeRoomNotFound     Code = "room_not_found"   // 404 no such room, or one that the caller may not know of
	CodeMessageNotFound  Code = "message_not_found"
	CodeMemberNotFound   Code = "member_not_found"
	CodeMethodNotAllowed Code = "method_not_allowed"     // 405
	CodeIDReused         Code = "id_reused"              // 409 the same id came with other content
	CodeConflict         Code = "conflict"               // 409 the state changed under the command more often than it was retried
	CodeEpoch            Code = "epoch_changed"          // 409 a position of another life of the log: read anew
	CodeMessageDeleted   Code = "message_deleted"        // 410
	CodeRoomDeleted      Code = "room_deleted"           // 410
	CodeTooLarge         Code = "too_large"              // 413 body, frame or field over its limit
	CodeUnsupportedType  Code = "unsupported_media_type" // 415
	CodeUpgradeRequired  Code = "upgrade_required"       // 426 another version of the WebSocket protocol
	CodeRateLimited      Code = "rate_limited"           // 429
	CodeLimitReached     Code = "limit_reached"          // 429 a quota (rooms, members, subscriptions) is used up
	CodeInternal         Code = "internal"               // 500
	CodeBusy             Code = "busy"                   // 503 a bounded queue is full
	CodeReadBudget       Code = "read_budget"            // 503 the read took more rows, time or places than its budget
	CodeNoLeader         Code = "no_leader"              // 503 no quorum, or an election is under way
	CodeUnknownOutcome   Code = "unknown_outcome"        // 503 may or may not have happened: retry with the same id
	CodeDiskFull         Code = "disk_full"              // 503 writes wait for room; reads and sockets go on
	CodeDraining         Code = "draining"               // 503 this node is leaving
	CodeUpgrading        Code = "upgrading"              // 503 the cell has nodes of an older build that could not read this
	CodeOverloaded       Code = "overloaded"             // 503 admission control
	CodeTimeout          Code = "timeout"                // 503 the deadline passed before anything was appended
	CodeJobNotFound      Code = "job_not_found"          // 404
	CodeJobState         Code = "job_state"              // 409 the job is not in a state that allows it
	CodeJobsFull         Code = "jobs_full"              // 429 as many jobs of the app wait, or are dead, as may be
	CodeScheduleNotFound Code = "schedule_not_found"     // 404
	CodeBodyTimeout      Code = "body_timeout"           // 408 the body did not come in time
)

// Error is a refusal meant for a caller: a stable code and a sentence for people.
// Everything that is not an Error is shown as CodeInternal and only logged.
type Error struct {
	Code       Code
	Detail     string        // a plain sentence that says what to do next; never holds a secret
	RetryAfter time.Duration // > 0: when to come back
	cause      error
}

func (e *Error) Error() string {
	if e.cause != nil {
		return string(e.Code) + ": " + e.Detail + ": " + e.cause.Error()
	}
	return string(e.Code) + ": " + e.Detail
}

func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an Error from a sentence for people.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Because returns a copy of e that wraps cause. Callers never see the cause; the logs do.
func (e *Error) Because(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// After returns a copy of e that tells the caller when to come back.
func (e *Error) After(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// CodeOf returns the code of the first Error in err's chain, CodeInternal if there is none, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// What became of an append. The log wraps one of these in every error it returns,
// so that commit and command tell them apart without knowing the engine.
var (
	// ErrNotAppended: certainly not in the log, now or later. Safe to try again.
	ErrNotAppended = errors.New("not appended")
	// ErrUnknownOutcome: may be in the log now or later. Only the entry's id, seen or
	// not seen after a barrier of a later term, settles it.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrDiskFull: certainly not appended; there is no room.
	ErrDiskFull = errors.New("disk full")
	// ErrStopped: the part was closed.
	ErrStopped = errors.New("stopped")
)
