package node

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Limits of the admin listener. Its requests are few and small, whatever the public side suffers.
const (
	adminMaxBody   = 64 << 10
	adminMaxHeader = 32 << 10
	adminTimeout   = 30 * time.Second // of one operator call; profiles may take longer

	adminCellTimeout = 15 * time.Second // of one that changes the cell: whoever asks hears of it before he gives up
)

// adminServer answers for the node on a listener of its own: no router, limit or queue is shared with
// the public side, so that it answers while that is full.
type adminServer struct {
	server *http.Server
	token  string
	logger *slog.Logger
}

func newAdminServer(token string, health *health, reg *prometheus.Registry, op Operator, logger *slog.Logger) *adminServer {
	a := &adminServer{token: token, logger: logger}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", health.serveHealth)
	mux.HandleFunc("GET /readyz", health.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg, ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("/admin/", http.MaxBytesHandler(a.guard(onceReady(health, operatorRoutes(op))), adminMaxBody))
	a.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: adminTimeout, IdleTimeout: time.Minute,
		MaxHeaderBytes: adminMaxHeader, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	return a
}

// guard lets through who has read DATA/admin-token.
func (a *adminServer) guard(next http.Handler) http.Handler {
	want := sha(a.token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha(given)
		if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			writeProblem(w, petrel.Errorf(petrel.CodeUnauthenticated, "Send the contents of the node's admin-token file as a bearer token."))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			writeProblem(w, petrel.Errorf(petrel.CodeForbidden, "The admin API is not for browsers."))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// onceReady refuses what needs the log and the projection until both are there.
func onceReady(h *health, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.ready.Load() {
			writeProblem(w, petrel.Errorf(petrel.CodeNoLeader, "The node is starting: it waits for its log to have a leader and to have caught up. Ask again in a moment; /healthz says when.").After(time.Second))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func operatorRoutes(op Operator) http.Handler {
	mux := http.NewServeMux()
	id := func(r *http.Request) (petrel.AppID, error) { return petrel.ParseAppID(r.PathValue("app")) }
	withApp := func(do func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			app, err := id(r)
			if err != nil {
				writeAnswer(w, nil, err)
				return
			}
			answer, err := do(r.Context(), r, app)
			writeAnswer(w, answer, err)
		}
	}
	mux.HandleFunc("GET /admin/apps", func(w http.ResponseWriter, r *http.Request) {
		apps, err := op.Apps(r.Context())
		writeAnswer(w, appList{Apps: apps}, err)
	})
	mux.HandleFunc("POST /admin/apps", func(w http.ResponseWriter, r *http.Request) {
		in, err := readBody[NewApp](r)
		if err != nil {
			writeAnswer(w, nil, err)
			return
		}
		app, err := op.CreateApp(r.Context(), in)
		writeAnswer(w, app, err)
	})
	mux.HandleFunc("GET /admin/apps/{app}", withApp(func(ctx context.Context, _ *http.Request, app petrel.AppID) (any, error) {
		return op.App(ctx, app)
	}))
	mux.HandleFunc("POST /admin/apps/{app}/keys", withApp(func(ctx context.Context, _ *http.Request, app petrel.AppID) (any, error) {
		return op.AddKey(ctx, app)
	}))
	mux.HandleFunc("DELETE /admin/apps/{app}/keys/{key}", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		return op.RetireKey(ctx, app, r.PathValue("key"))
	}))
	mux.HandleFunc("POST /admin/apps/{app}/suspend", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		in, err := readBody[suspendRequest](r)
		if err != nil {
			return nil, err
		}
		return op.Suspend(ctx, app, in.Reason)
	}))
	mux.HandleFunc("POST /admin/apps/{app}/resume", withApp(func(ctx context.Context, _ *http.Request, app petrel.AppID) (any, error) {
		return op.Resume(ctx, app)
	}))
	mux.HandleFunc("PATCH /admin/apps/{app}/settings", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		in, err := readBody[map[string]settingText](r)
		if err != nil {
			return nil, err
		}
		changes := make(map[string]string, len(in))
		for name, v := range in {
			changes[name] = string(v)
		}
		return op.Configure(ctx, app, changes)
	}))
	mux.HandleFunc("POST /admin/apps/{app}/tokens", withApp(func(ctx context.Context, r *http.Request, app petrel.AppID) (any, error) {
		in, err := readBody[tokenRequest](r)
		if err != nil {
			return nil, err
		}
		ttl := time.Duration(min(in.TTLSeconds, int64(MaxTokenTTL/time.Second)+1)) * time.Second
		return op.MintToken(ctx, app, in.User, ttl)
	}))
	hookRoutes(mux, op, withApp)
	jobRoutes(mux, op, withApp)
	scheduleRoutes(mux, op, withApp)
	mux.HandleFunc("GET /admin/cell", func(w http.ResponseWriter, r *http.Request) {
		info, err := op.Cell(r.Context())
		writeAnswer(w, info, err)
	})
	cell := func(what string, do func(ctx context.Context, in nodeRequest) error) {
		mux.HandleFunc("POST /admin/cell/"+what, func(w http.ResponseWriter, r *http.Request) {
			in, err := readBody[nodeRequest](r)
			if err == nil {
				ctx, cancel := context.WithTimeout(r.Context(), adminCellTimeout)
				defer cancel()
				if err = do(ctx, in); err != nil && ctx.Err() != nil && petrel.CodeOf(err) == petrel.CodeInternal {
					err = petrel.Errorf(petrel.CodeUnknownOutcome, "The cell did not answer within %s, so it may or may not have happened; `petrel node list` shows what it is like.", adminCellTimeout).Because(err)
				}
			}
			writeAnswer(w, struct{}{}, err)
		})
	}
	cell("drain", func(ctx context.Context, in nodeRequest) error { return op.DrainNode(ctx, in.Node, in.Force) })
	cell("remove", func(ctx context.Context, in nodeRequest) error { return op.RemoveNode(ctx, in.Node, in.Force) })
	cell("replace", func(ctx context.Context, in nodeRequest) error { return op.ReplaceNode(ctx, in.Node, in.With) })
	cell("transfer", func(ctx context.Context, in nodeRequest) error { return op.TransferLeadership(ctx, in.Node) })
	verifyRoutes(mux, op)
	mux.HandleFunc("/admin/", func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, petrel.Errorf(petrel.CodeNotFound, "There is no such call of the admin API; docs/OPERATING.md lists them."))
	})
	return mux
}

func (a *adminServer) start(l net.Listener, failed func(error)) {
	go func() {
		if err := a.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("the admin listener failed: %w", err))
		}
	}()
}

// settingText is the value of a setting as `petrel app set` takes it. In JSON it may also be the number or the switch that it stands for.
type settingText string

// UnmarshalJSON implements json.Unmarshaler.
func (t *settingText) UnmarshalJSON(b []byte) error {
	switch {
	case string(b) == "null":
		*t = ""
	case b[0] == '"':
		return json.Unmarshal(b, (*string)(t))
	case string(b) == "true":
		*t = "on"
	case string(b) == "false":
		*t = "off"
	case b[0] == '-' || b[0] >= '0' && b[0] <= '9':
		*t = settingText(b)
	default:
		return errors.New("a setting is a text, a number or a switch")
	}
	return nil
}

func readBody[T any](r *http.Request) (v T, err error) {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err = dec.Decode(&v)
	if err == nil {
		if _, end := dec.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return v, petrel.Errorf(petrel.CodeInvalidJSON, "The body is not the JSON object that this call expects.").Because(err)
	}
	return v, nil
}

func writeAnswer(w http.ResponseWriter, answer any, err error) {
	if err != nil {
		writeProblem(w, err)
		return
	}
	writeJSON(w, http.StatusOK, "application/json", answer)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a caller who is gone needs no answer
}

// loadAdminToken reads the token of the admin API, or makes it on the first start.
func loadAdminToken(dir string) (string, error) {
	path := filepath.Join(dir, adminTokenFile)
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) >= 32 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the admin token: %w", err)
	}
	token := randomHex(32)
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the admin token: %w", err)
	}
	return token, nil
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}
