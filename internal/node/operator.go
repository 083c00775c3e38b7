package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// App is a tenant as an operator sees it, secrets included.
type App struct {
	ID        petrel.AppID `json:"id"`
	Name      string       `json:"name,omitempty"`
	CreatedAt time.Time    `json:"created_at"`
	Suspended bool         `json:"suspended"`
	Reason    string       `json:"reason,omitempty"` // of the suspension
	Keys      []Key        `json:"keys"`             // oldest first; all of them are good
	Settings  []Setting    `json:"settings"`
}

// Key is a pair with which an app's backend signs.
type Key struct {
	Key    string `json:"key"`
	Secret string `json:"secret,omitempty"`
}

// Setting is one of an app's settings. A switch is "on" or "off".
type Setting struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Default string `json:"default"`
}

// Token is a freshly minted user token.
type Token struct {
	Token     string    `json:"token"`
	User      string    `json:"user"`
	ExpiresAt time.Time `json:"expires_at"`
}

// NewApp is what an operator may choose of an app; empty fields are made up.
type NewApp struct {
	ID     petrel.AppID `json:"id,omitempty"`
	Name   string       `json:"name,omitempty"`
	Key    string       `json:"key,omitempty"`
	Secret string       `json:"secret,omitempty"`
	// Settings are those that differ from their defaults: name=value, with commas between them.
	Settings string `json:"settings,omitempty"`
	// Hook is a webhook that the app has from the beginning; nil: none.
	Hook *Hook `json:"hook,omitempty"`
}

// Operator is what an installation's operator may do. *Node does it itself; *Remote asks a running node
// over its admin listener. Refusals are *petrel.Error.
type Operator interface {
	CreateApp(ctx context.Context, a NewApp) (App, error)
	Apps(ctx context.Context) ([]App, error)
	App(ctx context.Context, id petrel.AppID) (App, error)
	AddKey(ctx context.Context, id petrel.AppID) (App, error)
	RetireKey(ctx context.Context, id petrel.AppID, key string) (App, error)
	Suspend(ctx context.Context, id petrel.AppID, reason string) (App, error)
	Resume(ctx context.Context, id petrel.AppID) (App, error)
	// Configure changes settings of an app: names to values, "" for the default. What is not named stays.
	Configure(ctx context.Context, id petrel.AppID, changes map[string]string) (App, error)
	MintToken(ctx context.Context, id petrel.AppID, user petrel.UserID, ttl time.Duration) (Token, error)

	// Hooks lists an app's webhooks; SetHook makes one or replaces its settings; RemoveHook returns it as it was.
	Hooks(ctx context.Context, app petrel.AppID) ([]Hook, error)
	SetHook(ctx context.Context, app petrel.AppID, h Hook) (Hook, error)
	RemoveHook(ctx context.Context, app petrel.AppID, id petrel.HookID) (Hook, error)

	// JobLedgers counts the jobs of every app that ever had one; Jobs is a page of those in one state, Job one with its body.
	// RepeatJobs and DiscardJobs return the ids of those that they changed; of several, those in another state are passed over.
	JobLedgers(ctx context.Context) ([]job.ShownLedger, error)
	Jobs(ctx context.Context, app petrel.AppID, state, after string, limit int) (JobPage, error)
	Job(ctx context.Context, id string) (job.Shown, error)
	RepeatJobs(ctx context.Context, app petrel.AppID, ids []string) ([]string, error)
	DiscardJobs(ctx context.Context, app petrel.AppID, ids []string) ([]string, error)

	// Schedules is a page of an app's schedules behind a name; SetSchedule makes one or replaces its settings; PauseSchedule changes that
	// it is paused, and nothing else; RemoveSchedule returns it as it was.
	Schedules(ctx context.Context, app petrel.AppID, after petrel.ScheduleName) (job.ShownSchedules, error)
	SetSchedule(ctx context.Context, app petrel.AppID, s Schedule) (job.ShownSchedule, error)
	PauseSchedule(ctx context.Context, app petrel.AppID, name petrel.ScheduleName, paused bool) (job.ShownSchedule, error)
	RemoveSchedule(ctx context.Context, app petrel.AppID, name petrel.ScheduleName) (job.ShownSchedule, error)

	// Cell shows the nodes. A node that runs alone shows itself.
	Cell(ctx context.Context) (CellInfo, error)
	// DrainNode makes a node hand over its connections and its leadership; it does not wait for that. "" is the node asked. It
	// refuses when too few voters would stay, unless force.
	DrainNode(ctx context.Context, name string, force bool) error
	// RemoveNode forgets a node. It refuses what would leave too few voters alive, unless force.
	RemoveNode(ctx context.Context, name string, force bool) error
	// ReplaceNode removes old once with is there and has caught up.
	ReplaceNode(ctx context.Context, old, with string) error
	// BeginVerify lets all replicas compare all rows; Verified tells how far that is, or what came of it.
	BeginVerify(ctx context.Context) (Verification, error)
	Verified(ctx context.Context) (Verification, error)
	// TransferLeadership hands leadership to a node; "" is the voter most up to date.
	TransferLeadership(ctx context.Context, to string) error
}

var (
	_ Operator = (*Node)(nil)
	_ Operator = (*Remote)(nil)
)

// MaxTokenTTL is the longest life of a token that an operator may mint.
const MaxTokenTTL = 366 * 24 * time.Hour

// adminTokenFile holds the secret that opens /admin/… of the admin listener.
const adminTokenFile = "admin-token"

// Remote is an Operator at the other end of an admin listener.
type Remote struct {
	base, token string
	client      *http.Client
}

// NewRemote returns the operator of the node whose admin listener is at addr (HOST:PORT or a URL).
// The admin token is read from the node's data folder.
func NewRemote(addr, dataDir string) (*Remote, error) {
	token, err := os.ReadFile(filepath.Join(dataDir, adminTokenFile))
	if err != nil {
		return nil, fmt.Errorf("read the admin token of the node (is --data its data folder, and are you its user?): %w", err)
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	return &Remote{
		base: strings.TrimRight(addr, "/"), token: strings.TrimSpace(string(token)),
		client: &http.Client{Timeout: 30 * time.Second},
	}, nil
}

// Close lets idle connections go.
func (r *Remote) Close() { r.client.CloseIdleConnections() }

// CreateApp implements Operator.
func (r *Remote) CreateApp(ctx context.Context, a NewApp) (App, error) {
	return ask[App](ctx, r, http.MethodPost, "/admin/apps", a)
}

// Apps implements Operator.
func (r *Remote) Apps(ctx context.Context) ([]App, error) {
	list, err := ask[appList](ctx, r, http.MethodGet, "/admin/apps", nil)
	return list.Apps, err
}

// App implements Operator.
func (r *Remote) App(ctx context.Context, id petrel.AppID) (App, error) {
	return ask[App](ctx, r, http.MethodGet, appPath(id), nil)
}

// AddKey implements Operator.
func (r *Remote) AddKey(ctx context.Context, id petrel.AppID) (App, error) {
	return ask[App](ctx, r, http.MethodPost, appPath(id)+"/keys", nil)
}

// RetireKey implements Operator.
func (r *Remote) RetireKey(ctx context.Context, id petrel.AppID, key string) (App, error) {
	return ask[App](ctx, r, http.MethodDelete, appPath(id)+"/keys/"+url.PathEscape(key), nil)
}

// Suspend implements Operator.
func (r *Remote) Suspend(ctx context.Context, id petrel.AppID, reason string) (App, error) {
	return ask[App](ctx, r, http.MethodPost, appPath(id)+"/suspend", suspendRequest{Reason: reason})
}

// Resume implements Operator.
func (r *Remote) Resume(ctx context.Context, id petrel.AppID) (App, error) {
	return ask[App](ctx, r, http.MethodPost, appPath(id)+"/resume", nil)
}

// Configure implements Operator.
func (r *Remote) Configure(ctx context.Context, id petrel.AppID, changes map[string]string) (App, error) {
	return ask[App](ctx, r, http.MethodPatch, appPath(id)+"/settings", changes)
}

// MintToken implements Operator.
func (r *Remote) MintToken(ctx context.Context, id petrel.AppID, user petrel.UserID, ttl time.Duration) (Token, error) {
	return ask[Token](ctx, r, http.MethodPost, appPath(id)+"/tokens", tokenRequest{User: user, TTLSeconds: int64(ttl / time.Second)})
}

// Cell implements Operator.
func (r *Remote) Cell(ctx context.Context) (CellInfo, error) {
	return ask[CellInfo](ctx, r, http.MethodGet, "/admin/cell", nil)
}

// DrainNode implements Operator.
func (r *Remote) DrainNode(ctx context.Context, name string, force bool) error {
	return r.cell(ctx, "drain", nodeRequest{Node: name, Force: force})
}

// RemoveNode implements Operator.
func (r *Remote) RemoveNode(ctx context.Context, name string, force bool) error {
	return r.cell(ctx, "remove", nodeRequest{Node: name, Force: force})
}

// ReplaceNode implements Operator.
func (r *Remote) ReplaceNode(ctx context.Context, old, with string) error {
	return r.cell(ctx, "replace", nodeRequest{Node: old, With: with})
}

// TransferLeadership implements Operator.
func (r *Remote) TransferLeadership(ctx context.Context, to string) error {
	return r.cell(ctx, "transfer", nodeRequest{Node: to})
}

func (r *Remote) cell(ctx context.Context, what string, in nodeRequest) error {
	_, err := ask[struct{}](ctx, r, http.MethodPost, "/admin/cell/"+what, in)
	return err
}

func appPath(id petrel.AppID) string { return "/admin/apps/" + url.PathEscape(string(id)) }

// The bodies of the admin API that are not Operator's own types.
type (
	appList struct {
		Apps []App `json:"apps"`
	}
	suspendRequest struct {
		Reason string `json:"reason,omitempty"`
	}
	nodeRequest struct {
		Node  string `json:"node,omitempty"`
		With  string `json:"with,omitempty"`
		Force bool   `json:"force,omitempty"`
	}
	tokenRequest struct {
		User       petrel.UserID `json:"user"`
		TTLSeconds int64         `json:"ttl_seconds"`
	}
)

func ask[T any](ctx context.Context, r *Remote, method, path string, in any) (out T, err error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return out, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return out, fmt.Errorf("the admin address is not one: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := r.client.Do(req)
	var late interface{ Timeout() bool }
	switch {
	case errors.As(err, &late) && late.Timeout():
		return out, fmt.Errorf("the node at %s did not answer in time", r.base)
	case err != nil:
		return out, fmt.Errorf("ask the node at %s: %w", r.base, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return out, fmt.Errorf("read the answer of %s: %w", r.base, err)
	}
	if resp.StatusCode >= 300 {
		var p struct {
			Code   petrel.Code
			Detail string
		}
		if json.Unmarshal(b, &p) != nil || p.Code == "" {
			return out, fmt.Errorf("%s answered %s; is it the admin listener of a petrel node?", r.base, resp.Status)
		}
		return out, petrel.Errorf(p.Code, "%s", p.Detail)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("%s answered something else than JSON; is it the admin listener of a petrel node?", r.base)
	}
	return out, nil
}
