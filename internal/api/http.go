package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// registerHTTP describes the HTTP API to huma and hangs it into the gateway.
func (s *server) registerHTTP() {
	ourErrors()
	// Not huma.DefaultConfig: it adds $schema to every answer and a page of documentation that loads from a CDN.
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	for from, to := range map[reflect.Type]reflect.Type{
		reflect.TypeFor[chat.Message]():    reflect.TypeFor[Message](),
		reflect.TypeFor[chat.Room]():       reflect.TypeFor[Room](),
		reflect.TypeFor[chat.Event]():      reflect.TypeFor[Event](),
		reflect.TypeFor[chat.SyncRoom]():   reflect.TypeFor[SyncRoom](),
		reflect.TypeFor[chat.Membership](): reflect.TypeFor[Membership](),
		reflect.TypeFor[chat.MemberInfo](): reflect.TypeFor[MemberInfo](),
		reflect.TypeFor[event.RoomKind]():  reflect.TypeFor[roomKind](),
		reflect.TypeFor[event.Role]():      reflect.TypeFor[role](),
		reflect.TypeFor[petrel.Code]():     reflect.TypeFor[code](),
	} {
		registry.RegisterTypeAlias(from, to)
	}
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Petrel", Version: s.opt.Version,
				Description: "Rooms with durable, replayable history. The socket's frames are in docs/PROTOCOL.md, the codes of errors in docs/ERRORS.md.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas: registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"user_token": {Type: "http", Scheme: "bearer", BearerFormat: "JWT", Description: "HS256 with the app's secret; iss is the app's key, sub the user, exp is required."},
					"app_key":    {Type: "http", Scheme: "basic", Description: "The app's key and secret. With the header Petrel-User the call has exactly that user's rights."},
				},
			},
			Security: []map[string][]string{{"user_token": {}}, {"app_key": {}}},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat}, // "json" is any +json
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
	api := humago.New(router{s}, config)
	s.registerRooms(api)
	s.registerMessages(api)
	s.registerReplay(api)
	s.registerPresence(api)
	s.registerHooks(api)
	s.registerJobs(api)
	s.registerSchedules(api)
	s.describeStreams(api)
	spec, err := api.OpenAPI().MarshalJSON()
	if err != nil {
		panic("api: describe: " + err.Error()) // our own types: the first test shows it
	}
	s.opt.Gateway.Handle("GET /v1/openapi.json", gateway.Route{Access: gateway.Public}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(spec) // the peer may be gone
	}))
}

// router is the gateway as huma sees it.
type router struct{ s *server }

// HandleFunc implements humago.Mux.
func (r router) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	r.s.opt.Gateway.Handle(pattern, gateway.Route{}, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if err := checkBody(req); err != nil {
			r.s.opt.Gateway.Refuse(w, req, err)
			return
		}
		h(w, req)
	}))
}

// ServeHTTP implements humago.Mux; the gateway serves.
func (router) ServeHTTP(http.ResponseWriter, *http.Request) {}

// checkBody refuses what huma would let through. The gateway has read the body already, within limits.
func checkBody(r *http.Request) error {
	for name, values := range r.URL.Query() {
		if slices.Contains(values, "") {
			return petrel.Errorf(petrel.CodeInvalidField, "The query parameter %.40q is empty: give it a value or leave it away.", name)
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return petrel.Errorf(petrel.CodeInvalidJSON, "The body did not arrive whole.").Because(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if len(body) == 0 {
		return nil
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" || (params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8")) {
		return petrel.Errorf(petrel.CodeUnsupportedType, "Send the body as Content-Type: application/json.")
	}
	r.Header.Set("Content-Type", "application/json") // huma compares letter by letter
	if err := strictJSON(body); err != nil {
		return err
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodDelete {
		return petrel.Errorf(petrel.CodeInvalidField, "This request takes no body.")
	}
	return nil
}

// route is what an operation says of itself.
type route struct {
	id, method, path, tag string
	summary, description  string
	status                int // of success; default 200
	also                  int // another success
	codes                 []petrel.Code
	write                 bool // a command: the refusals of the durable lane
}

// Codes that any operation may answer, those of commands, and those of reads.
var (
	anyCodes = []petrel.Code{
		petrel.CodeInvalidField, petrel.CodeInvalidUTF8, petrel.CodeInvalidJSON, petrel.CodeInvalidID, petrel.CodeUnauthenticated, petrel.CodeInvalidToken,
		petrel.CodeTokenExpired, petrel.CodeAppSuspended, petrel.CodeForbidden, petrel.CodeTooLarge, petrel.CodeUnsupportedType, petrel.CodeRateLimited,
		petrel.CodeInternal, petrel.CodeDraining, petrel.CodeOverloaded, petrel.CodeTimeout, petrel.CodeInvalidPosition, petrel.CodeEpoch,
	}
	writeCodes = []petrel.Code{
		petrel.CodeIDReused, petrel.CodeConflict, petrel.CodeBusy, petrel.CodeNoLeader, petrel.CodeUnknownOutcome, petrel.CodeDiskFull,
	}
	readCodes = []petrel.Code{petrel.CodeReadBudget}
)

// register adds one operation. Errors of handlers become problems.
func register[I, O any](s *server, api huma.API, op route, handler func(context.Context, *I) (*O, error)) {
	status := op.status
	if status == 0 {
		status = http.StatusOK
	}
	h := huma.Operation{
		OperationID: op.id, Method: op.method, Path: op.path, Tags: []string{op.tag}, Summary: op.summary, Description: op.description,
		DefaultStatus: status, Responses: map[string]*huma.Response{},
		// The gateway has read the body within limits: huma's own would come too late.
		MaxBodyBytes: -1, BodyReadTimeout: -1,
	}
	s.describeErrors(api, &h, op)
	huma.Register(api, h, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err == nil {
			return out, nil
		}
		if p := (*gateway.Problem)(nil); errors.As(err, &p) {
			return nil, p
		}
		if petrel.CodeOf(err) == petrel.CodeInternal {
			s.opt.Logger.ErrorContext(ctx, "A request failed for a reason of ours.", "request", gateway.RequestID(ctx), "operation", op.id, "error", err)
		}
		return nil, gateway.NewProblem(err)
	})
	if op.also != 0 {
		ok := *h.Responses[strconv.Itoa(status)]
		ok.Description = "Repeated or there already: nothing changed, the first answer again."
		h.Responses[strconv.Itoa(op.also)] = &ok
	}
}

// describeErrors lists every code that the operation may answer, by status.
func (s *server) describeErrors(api huma.API, h *huma.Operation, op route) {
	codes := slices.Concat(anyCodes, op.codes)
	if op.write {
		codes = append(codes, writeCodes...)
	} else {
		codes = append(codes, readCodes...)
	}
	meanings := gateway.Meanings()
	by := map[int][]string{}
	for _, c := range codes {
		by[meanings[c].Status] = append(by[meanings[c].Status], "`"+string(c)+"`")
	}
	schema := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[gateway.Problem](), true, "Problem")
	for status, list := range by {
		slices.Sort(list)
		r := &huma.Response{
			Description: http.StatusText(status) + ": " + strings.Join(slices.Compact(list), ", "),
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schema}},
		}
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			r.Headers = map[string]*huma.Header{"Retry-After": {Description: "Seconds to wait.", Schema: &huma.Schema{Type: huma.TypeInteger}}}
		}
		h.Responses[strconv.Itoa(status)] = r
	}
}

// describeStreams adds the two addresses that huma does not serve.
func (s *server) describeStreams(api huma.API) {
	token := &huma.Param{Name: "token", In: "query", Description: "A user token, where no header can be set.", Schema: &huma.Schema{Type: huma.TypeString}}
	add := func(op huma.Operation, codes ...petrel.Code) {
		op.Method, op.Tags = http.MethodGet, []string{"live"}
		s.describeErrors(api, &op, route{codes: codes})
		api.OpenAPI().AddOperation(&op)
	}
	add(huma.Operation{
		OperationID: "connect", Path: "/v1/connect", Summary: "Open a socket",
		Description: "A WebSocket (RFC 6455, version 13) of JSON text frames: docs/PROTOCOL.md. The token comes in the Authorization header, in the query, or in the first frame.",
		Parameters:  []*huma.Param{token},
		Responses:   map[string]*huma.Response{"101": {Description: "Switching Protocols"}},
	}, petrel.CodeLimitReached, petrel.CodeUpgradeRequired)
	add(huma.Operation{
		OperationID: "streamEvents", Path: "/v1/events", Summary: "Stream events of rooms",
		Description: "Server-sent events. Each id is the position in every room, `epoch/room~seq,room~seq`; sent back as Last-Event-ID the stream resumes there, or says resync when the log is another one.",
		Parameters: []*huma.Param{
			token,
			{Name: "rooms", In: "query", Required: true, Description: "Up to 50 room ids, divided by commas.", Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "last_event_id", In: "query", Description: "As Last-Event-ID, for a first request whose headers cannot be set.", Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "position", In: "query", Description: "The newest Petrel-Position seen: a node that lags waits for it. Where headers can be set, Petrel-Position.", Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "presence", In: "query", Description: "1: also who is in the rooms, who comes, goes and types. These events have no id.", Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"1", "0"}}},
			{Name: "Last-Event-ID", In: "header", Description: "The last id seen.", Schema: &huma.Schema{Type: huma.TypeString}},
		},
		Responses: map[string]*huma.Response{"200": {Description: "The stream", Content: map[string]*huma.MediaType{"text/event-stream": {}}}},
	}, petrel.CodeRoomNotFound, petrel.CodeRoomDeleted, petrel.CodeLimitReached)
}
