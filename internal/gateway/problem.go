package gateway

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Meaning is what docs/ERRORS.md says of a code.
type Meaning struct {
	Status int
	Title  string // a short name, the same for every occurrence (RFC 9457 §3.1.4)
	Do     string // what a client does about it
}

// meanings is the one table from code to HTTP status. docs/ERRORS.md is held against it.
var meanings = map[petrel.Code]Meaning{
	petrel.CodeInvalidJSON:      {400, "Invalid JSON", "Send one JSON object in UTF-8, each key once."},
	petrel.CodeInvalidUTF8:      {400, "Invalid UTF-8", "Encode path, query and body as UTF-8."},
	petrel.CodeInvalidID:        {400, "Invalid id", "Use 1 to 64 (users: 128) of A–Z a–z 0–9 _ - . : @ =; not . or .. alone."},
	petrel.CodeInvalidField:     {400, "Invalid field", "Mend the field or parameter that the detail names."},
	petrel.CodeInvalidPosition:  {400, "Invalid position", "Send back a Petrel-Position exactly as it was given, or none."},
	petrel.CodeUnauthenticated:  {401, "Unauthenticated", "Send a user token (Bearer) or the app's key and secret (Basic)."},
	petrel.CodeInvalidToken:     {401, "Invalid credentials", "Get a new token from the app's backend; check key and secret."},
	petrel.CodeTokenExpired:     {401, "Token expired", "Get a new token from the app's backend and repeat the request."},
	petrel.CodeForbidden:        {403, "Forbidden", "Nothing: this user may not do this."},
	petrel.CodeAppSuspended:     {403, "App suspended", "Ask who runs this installation."},
	petrel.CodeNotFound:         {404, "Not found", "Check the address; /v1/openapi.json lists them all."},
	petrel.CodeAppNotFound:      {404, "App not found", "Check the app's id."},
	petrel.CodeRoomNotFound:     {404, "Room not found", "Check the room's id; a room one may not know of looks the same."},
	petrel.CodeMessageNotFound:  {404, "Message not found", "Check the message's id."},
	petrel.CodeMemberNotFound:   {404, "Member not found", "Nothing: the user is not a member."},
	petrel.CodeJobNotFound:      {404, "Job not found", "Check the job's id; what is done is forgotten after a while."},
	petrel.CodeScheduleNotFound: {404, "Schedule not found", "Check the name of the schedule; GET /v1/schedules lists them."},
	petrel.CodeMethodNotAllowed: {405, "Method not allowed", "Use one of the methods in the Allow header."},
	petrel.CodeBodyTimeout:      {408, "Body too slow", "Repeat the request, and send its body at once."},
	petrel.CodeIDReused:         {409, "Id reused", "Choose a new id: this one stands for something else."},
	petrel.CodeConflict:         {409, "Conflict", "Repeat the request: the state changed under it several times."},
	petrel.CodeEpoch:            {409, "Epoch changed", "Read anew without a position: the log has begun another life."},
	petrel.CodeJobState:         {409, "Wrong state", "Look at the job: its state does not allow this, or not now."},
	petrel.CodeMessageDeleted:   {410, "Message deleted", "Nothing: it is gone, its id stays taken."},
	petrel.CodeRoomDeleted:      {410, "Room deleted", "Nothing: it is gone, its id stays taken."},
	petrel.CodeTooLarge:         {413, "Too large", "Send less: the detail names the limit."},
	petrel.CodeUnsupportedType:  {415, "Unsupported media type", "Send Content-Type: application/json."},
	petrel.CodeUpgradeRequired:  {426, "Upgrade required", "Speak WebSocket version 13 (RFC 6455)."},
	petrel.CodeRateLimited:      {429, "Rate limited", "Wait as Retry-After says, then repeat."},
	petrel.CodeLimitReached:     {429, "Limit reached", "Use less of it (connections, subscriptions, rooms), or ask for a higher limit."},
	petrel.CodeJobsFull:         {429, "Too many jobs", "Look at the app's jobs: as many wait, or are dead, as may be. Then repeat."},
	petrel.CodeInternal:         {500, "Internal error", "Report it with the X-Request-Id; a repeat with the same id is safe."},
	petrel.CodeBusy:             {503, "Busy", "Wait as Retry-After says, then repeat with the same id."},
	petrel.CodeReadBudget:       {503, "Read budget spent", "Ask for less at once."},
	petrel.CodeNoLeader:         {503, "No leader", "Wait as Retry-After says, then repeat with the same id."},
	petrel.CodeUnknownOutcome:   {503, "Unknown outcome", "Repeat with the same id: it may or may not have happened, and is never done twice."},
	petrel.CodeDiskFull:         {503, "Disk full", "Wait: writes resume when there is room. Reads go on."},
	petrel.CodeUpgrading:        {503, "Upgrading", "Repeat after Retry-After: once every node of the cell runs the new build, it works."},
	petrel.CodeDraining:         {503, "Draining", "Repeat at once: another node answers."},
	petrel.CodeOverloaded:       {503, "Overloaded", "Wait as Retry-After says, with jitter, then come back."},
	petrel.CodeTimeout:          {503, "Timeout", "Nothing was done. Repeat with the same id."},
}

// Meanings returns the table of every code, for the documentation and the description of the API.
func Meanings() map[petrel.Code]Meaning {
	out := make(map[petrel.Code]Meaning, len(meanings))
	for c, m := range meanings {
		out[c] = m
	}
	return out
}

// Problem is the body of every refusal (RFC 9457).
type Problem struct {
	Type   string      `json:"type" format:"uri" doc:"Names the kind of problem; the same for every occurrence of a code."`
	Title  string      `json:"title" doc:"A short name of the kind of problem."`
	Status int         `json:"status" doc:"The HTTP status."`
	Detail string      `json:"detail" doc:"A sentence for people that says what is wrong here and what to do."`
	Code   petrel.Code `json:"code" doc:"Stable and meant for programs; docs/ERRORS.md lists them all."`

	retryAfter string
}

// NewProblem turns an error into what callers may see of it. Anything but a *petrel.Error is shown as internal, without its text.
func NewProblem(err error) *Problem {
	var e *petrel.Error
	if !errors.As(err, &e) {
		e = petrel.Errorf(petrel.CodeInternal, "Something went wrong on our side. It is in our logs under this request's id.")
	}
	m, known := meanings[e.Code]
	if !known {
		m = meanings[petrel.CodeInternal]
	}
	p := &Problem{Type: "urn:petrel:error:" + string(e.Code), Title: m.Title, Status: m.Status, Detail: e.Detail, Code: e.Code}
	switch {
	case e.RetryAfter > 0:
		p.retryAfter = strconv.Itoa(max(1, int(math.Ceil(e.RetryAfter.Seconds()))))
	case m.Status == http.StatusServiceUnavailable || m.Status == http.StatusTooManyRequests:
		p.retryAfter = "1"
	}
	return p
}

// Error implements error.
func (p *Problem) Error() string { return string(p.Code) + ": " + p.Detail }

// GetStatus is the HTTP status, under the name that huma asks for.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is the media type, under the name that huma asks for.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders is what goes with the body, under the name that huma asks for.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter != "" {
		h.Set("Retry-After", p.retryAfter)
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", `Bearer realm="petrel"`)
	}
	if p.Status == http.StatusUpgradeRequired { // RFC 6455 §4.4, RFC 9110 §15.5.22
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "websocket")
		h.Set("Sec-WebSocket-Version", "13")
	}
	return h
}

// WriteProblem answers with what callers may see of err.
func WriteProblem(w http.ResponseWriter, err error) {
	var p *Problem
	if !errors.As(err, &p) {
		p = NewProblem(err)
	}
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	b, merr := json.Marshal(p)
	if merr != nil {
		b = []byte(`{"status":500,"code":"internal"}`) // cannot happen: strings and a number always encode
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.Header().Del("Content-Length")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n')) // the peer may be gone; the answer was for it alone
}
