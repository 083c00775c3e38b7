package node

import (
	"net/http"
	"sync"
	"sync/atomic"
)

// health is the one place that knows how the node is. /healthz says whether the process works at all:
// a "failed" one should be looked at and restarted. /readyz says whether traffic belongs here.
// A full disk is neither: reads and sockets go on, so it is told as "degraded".
type health struct {
	mu     sync.Mutex // guards failed
	failed error

	ready    atomic.Bool // a Barrier has passed since the start, and the public listener is served
	draining atomic.Bool
	fencer   atomic.Pointer[fencer] // nil without a cell
	cell     atomic.Pointer[cell]   // likewise
	degraded func() string          // why writes do not work although the node runs; "" while they do
}

type healthAnswer struct {
	Status string `json:"status"` // ok, degraded, starting, draining, fenced, failed
	Detail string `json:"detail,omitempty"`
}

func (h *health) fail(err error) (first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed != nil {
		return false
	}
	h.failed = err
	return true
}

func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

func (h *health) answer() healthAnswer {
	if err := h.err(); err != nil {
		return healthAnswer{"failed", err.Error()}
	}
	if f := h.fencer.Load(); f != nil {
		if why := f.why(); why != "" {
			return healthAnswer{"fenced", why}
		}
	}
	if h.draining.Load() {
		return healthAnswer{"draining", "the node is leaving; connections are told to move"}
	}
	if !h.ready.Load() {
		return healthAnswer{"starting", h.waitsFor()}
	}
	if why := h.degraded(); why != "" {
		return healthAnswer{"degraded", why}
	}
	return healthAnswer{Status: "ok"}
}

// waitsFor is what a node that starts waits for.
func (h *health) waitsFor() string {
	if c := h.cell.Load(); c != nil {
		if why := c.waits().String(); why != "" {
			return why
		}
	}
	return "its log has not yet caught up with what was acknowledged before"
}

func (h *health) serveHealth(w http.ResponseWriter, _ *http.Request) {
	a := h.answer()
	status := http.StatusOK
	if a.Status == "failed" {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, "application/json", a)
}

func (h *health) serveReady(w http.ResponseWriter, _ *http.Request) {
	a := h.answer()
	status := http.StatusServiceUnavailable
	if a.Status == "ok" || a.Status == "degraded" {
		status = http.StatusOK
	}
	writeJSON(w, status, "application/json", a)
}
