// Package load is the load generator of the benchmark against peers: it holds thousands of subscribers in one thread
// over one epoll, publishes, and counts what arrives. It must cost less than any server that it measures, so it speaks raw
// RFC 6455 over raw sockets, looks for its own message inside whatever envelope a protocol puts around it, and allocates
// nothing while it measures.
//
// What a caller may rely on:
//
//   - The rate of an open loop is kept whatever the server does, and latency counts from when a publication was due.
//   - A publication that the server refused is an error and never a delivery; one that it accepted and a subscriber did not
//     get is lost, and seen: per subscriber and publisher every number is checked for gaps and order.
//   - CPU times are the kernel's own, of all threads of the server and of its children, at the ends of the window measured.
//   - Everything ends: a run that does not come to its end within Job.Limit is an error.
package load

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// What a job does once its subscribers are there.
const (
	FanOut = "fan-out" // publish, at a rate or as fast as answered
	Idle   = "idle"    // nothing but heartbeats
	Storm  = "storm"   // reset all connections, and bring them back
)

// Job is one run against one server.
type Job struct {
	Kind   string `json:"kind"`
	Target Target `json:"target"`

	Subscribers int `json:"subscribers"`
	// Channels that the subscribers are spread over; 0: one each.
	Channels int `json:"channels"`
	// Lanes are connections that publish, each one publication at a time.
	Lanes int `json:"lanes"`
	// Rate of publications a second, over all lanes; 0: a lane publishes again when it is answered.
	Rate float64 `json:"rate"`
	// Payload is the size of a message in bytes, at least MinPayload.
	Payload int `json:"payload"`

	Settle  time.Duration `json:"settle"`  // after the connecting, before anything is measured
	Warmup  time.Duration `json:"warmup"`  // published, not measured
	Measure time.Duration `json:"measure"` // the window
	Window  int           `json:"window"`  // handshakes under way at a time
	Limit   time.Duration `json:"limit"`   // for everything
}

// Target is a server, and how to speak with it.
type Target struct {
	Dialect string `json:"dialect"` // plain, nchan, pusher, petrel, nats or centrifugo
	Addr    string `json:"addr"`    // of subscribers
	Publish string `json:"publish"` // of publishers; empty: Addr
	PID     int    `json:"pid"`     // of the server: its CPU and memory are measured, with its children's
	TLS     bool   `json:"tls,omitempty"`
	App     string `json:"app,omitempty"`
	Key     string `json:"key,omitempty"`
	Secret  string `json:"secret,omitempty"`
}

// Result is what a run came to. Times are in microseconds, sizes in bytes.
type Result struct {
	Seconds float64 `json:"seconds"` // of the window

	Connect Connect `json:"connect"`

	Published     int    `json:"published"` // accepted in the window
	PublishErrors int    `json:"publish_errors"`
	FirstError    string `json:"first_error,omitempty"`
	Late          int    `json:"late,omitempty"` // publications that waited more than 10 ms for a free lane
	Delivered     int    `json:"delivered"`      // arrived in the window
	Bytes         int    `json:"bytes"`          // read in the window
	Reads         int    `json:"reads"`          // system calls that read something, in the window
	// Of the whole run: what every subscriber of an accepted publication should have had and did not get; numbers
	// that were passed over; messages that came after a later one, or twice; connections that ended by themselves.
	Lost         int `json:"lost"`
	Gaps         int `json:"gaps"`
	Disorder     int `json:"disorder"`
	Disconnected int `json:"disconnected"`

	Delivery Times `json:"delivery"` // from when a publication was due to a subscriber's read
	Request  Times `json:"request"`  // of a publication, from when it was due to its answer

	ServerCPU float64 `json:"server_cpu_us"`
	LoadCPU   float64 `json:"load_cpu_us"`
	LoadUser  float64 `json:"load_user_us"` // of it, outside of the kernel
	// Of the machine, in the window, in processors: what the hypervisor took, what soft interrupts took beside the
	// processes that caused them, and what anybody else did here.
	Steal   float64 `json:"steal_cores"`
	SoftIRQ float64 `json:"softirq_cores"`
	Others  float64 `json:"others_cores"`

	Base   Memory `json:"base"`   // before the first connection
	Loaded Memory `json:"loaded"` // when all are there
	After  Memory `json:"after"`  // at the end of the window

	Heartbeats int `json:"heartbeats"` // that crossed in the window, whoever began

	Storm *Return `json:"storm,omitempty"`
}

// Connect is how the subscribers came in.
type Connect struct {
	Count     int     `json:"count"`
	Seconds   float64 `json:"seconds"`
	ServerCPU float64 `json:"server_cpu_us"`
	Errors    int     `json:"errors"` // attempts that failed and were made again
	FirstErr  string  `json:"first_error,omitempty"`
}

// Return is how they came back after all of their connections had been reset at once.
type Return struct {
	Half     float64 `json:"half_s"`
	Most     float64 `json:"most_s"` // 99 %
	All      float64 `json:"all_s"`
	NotBack  int     `json:"not_back"`
	Errors   int     `json:"errors"`
	FirstErr string  `json:"first_error,omitempty"`
}

// Memory of a server and its children. PSS shares what they share.
type Memory struct {
	RSS int64 `json:"rss"`
	PSS int64 `json:"pss"`
}

// Complaints says what a reader must know before believing the figures: nothing, as a rule.
func (r *Result) Complaints() string {
	var b strings.Builder
	for _, c := range []struct {
		n    int
		what string
	}{
		{r.Lost, "lost"},
		{r.Gaps, "gaps"},
		{r.Disorder, "out of order"},
		{r.Disconnected, "connections broken"},
		{r.PublishErrors, "publications refused"},
		{r.Late, "publications late"},
		{r.Connect.Errors, "attempts to connect failed"},
	} {
		if c.n > 0 {
			fmt.Fprintf(&b, ", %d %s", c.n, c.what)
		}
	}
	if r.Storm != nil && r.Storm.NotBack > 0 {
		fmt.Fprintf(&b, ", %d not back", r.Storm.NotBack)
	}
	if r.FirstError != "" {
		fmt.Fprintf(&b, " (%.120s)", r.FirstError)
	}
	return b.String()
}

// Add adds what another run has to complain of, but for what was late: that is in its latency.
func (r *Result) Add(o *Result) {
	r.Lost += o.Lost
	r.Gaps += o.Gaps
	r.Disorder += o.Disorder
	r.Disconnected += o.Disconnected
	r.PublishErrors += o.PublishErrors
	r.Connect.Errors += o.Connect.Errors
	if r.FirstError == "" {
		r.FirstError = o.FirstError
	}
	if o.Storm != nil {
		if r.Storm == nil {
			r.Storm = &Return{}
		}
		r.Storm.NotBack += o.Storm.NotBack
	}
}

// MinPayload is the shortest message: its mark, lane, number and time.
const MinPayload = 28

// Validate says what of a job cannot be done, and fills in what may be left out.
func (j *Job) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if j.Kind != FanOut && j.Kind != Idle && j.Kind != Storm {
		bad("no such kind of job: %q", j.Kind)
	}
	if j.Subscribers < 1 || j.Subscribers > 1<<17 {
		bad("%d subscribers", j.Subscribers)
	}
	if j.Channels == 0 {
		j.Channels = j.Subscribers
	}
	if j.Channels < 0 || j.Channels > j.Subscribers {
		bad("%d channels for %d subscribers", j.Channels, j.Subscribers)
	}
	if j.Kind == FanOut && (j.Lanes < 1 || j.Lanes > 256) {
		bad("%d lanes: there are 1 to 256", j.Lanes)
	}
	if j.Channels > 1 && j.Lanes > j.Channels {
		bad("%d lanes for %d channels: each channel belongs to one", j.Lanes, j.Channels)
	}
	if j.Payload < MinPayload || j.Payload > 1<<16-1 {
		bad("a payload of %d bytes: there are %d to 65535", j.Payload, MinPayload)
	}
	if j.Window < 1 {
		bad("a window of %d handshakes", j.Window)
	}
	if j.Measure <= 0 || j.Limit <= j.Settle+j.Warmup+j.Measure {
		bad("a limit of %s for a run of at least %s", j.Limit, j.Settle+j.Warmup+j.Measure)
	}
	return errors.Join(errs...)
}
