package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/api"
	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/effect"
	"github.com/petrel-chat/petrel/internal/hub"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/pusher"
)

// FeatureLevel is what this build can read and write of the log. It rises by one when a kind of event or
// a meaning is added; a cell writes new kinds only when all of its nodes can read them.
const FeatureLevel = 3

// Build says what a binary was made of.
type Build struct {
	Version      string `json:"version"`
	Commit       string `json:"commit"`
	Go           string `json:"go"`
	FeatureLevel int    `json:"feature_level"`
}

// Options of a node.
type Options struct {
	Config Config
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Notice is where a person reads what to open and, once, the first app's secret. nil: nobody does.
	Notice io.Writer
	// Build goes to metrics.
	Build Build
	// Web serves everything that is neither API nor socket. nil: a page that says so.
	Web http.Handler
	// Offline opens the data folder for a command line tool: no listeners, no first app.
	Offline bool
	// CompareEvery is how often this replica compares its state with the others'. Default 3 s.
	CompareEvery time.Duration
	// ScrubEvery is how often the leader compares all rows of all replicas. Default 1 h.
	ScrubEvery time.Duration
	// Jobs are more kinds of jobs and who carries them out, for tests.
	Jobs map[string]effect.Handler
	// WebhookTimes are for tests.
	WebhookTimes WebhookTimes
	// Faults are for tests of the checker. nil: none.
	Faults *Faults
	// recovers makes this member the only one of its group before the log is opened (recover.go).
	recovers bool
}

// Node is one process of an installation. Open builds it, Start lets people in, Drain asks them to
// leave, Stop ends it; each of them once, in this order, and Stop at any time.
type Node struct {
	cfg    Config
	opt    Options
	logger *slog.Logger
	reg    *prometheus.Registry
	health *health
	lock   *folderLock
	self   membership
	cell   *cell // nil without --peer
	loop   *apply.Loop
	// What follows is nil without a cell.
	watch     *watch
	agreement *agreement
	fencer    *fencer
	forward   *forwarder
	shard     *shard
	hub       *hub.Hub
	desk      *command.Desk

	schedules *effect.Scheduler
	jobs      atomic.Pointer[effect.Runner] // of the shard; nil until the desk is there
	webhooks  webhooks
	directory *identity.Directory

	adminListener net.Listener
	entrances     []*entrance // open before anything is founded: a taken address leaves the folder as it was
	admin         *adminServer
	public        *publicSide
	api           atomic.Pointer[api.API] // of public, for who comes from another goroutine
	pusher        atomic.Pointer[pusher.Server]
	demoApp       petrel.AppID

	leaving    sync.Once
	background sync.WaitGroup // of leave
	failedOnce sync.Once
	failed     chan struct{}
	stopOnce   sync.Once
	stopErr    error
}

// Open takes the data folder and builds every part that stands behind the public listener. It returns when
// everything once acknowledged can be read. The admin listener answers from the beginning.
func Open(ctx context.Context, o Options) (_ *Node, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Notice == nil {
		o.Notice = io.Discard
	}
	n := &Node{cfg: o.Config, opt: o, logger: o.Logger, failed: make(chan struct{})}
	n.health = &health{degraded: func() string { return n.shard.degraded() }}
	n.reg = newRegistry(o.Build, n.health)
	if n.lock, err = lockFolder(o.Config.Data); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Stop())
		}
	}()
	if !o.Offline {
		if err := n.openEntrances(ctx); err != nil {
			return nil, err
		}
		if err := n.openAdmin(ctx); err != nil {
			return nil, err
		}
	}
	if err := n.openSelf(ctx); err != nil {
		return nil, err
	}
	waiting, cancel := context.WithCancel(ctx) // for a leader, mostly: a part that fails for good ends that too
	defer cancel()
	go func() {
		select {
		case <-n.failed:
			cancel()
		case <-waiting.Done():
		}
	}()
	if err := n.openShard(waiting); err != nil {
		return nil, cmp.Or(n.Err(), err)
	}
	return n, nil
}

// openSelf finds out which member of which cell this folder is, and opens the port between nodes.
func (n *Node) openSelf(ctx context.Context) (err error) {
	if !n.opt.recovers {
		if err := unfinished(n.cfg.Data); err != nil {
			return err
		}
	}
	if n.cfg.Peer != "" && !n.opt.Offline {
		if err := rebuildIfDue(n.cfg.Data, n.cfg.Name, time.Now(), n.logger); err != nil {
			return err
		}
	}
	if n.self, err = loadMembership(n.cfg.Data, n.cfg.Name, n.cfg.Join != ""); err != nil {
		return err
	}
	if n.cfg.Peer == "" || n.opt.Offline {
		return nil
	}
	if n.cell, err = openCell(ctx, &n.cfg, n.self, n.logger, n.reg); err != nil {
		return err
	}
	n.cell.admin, n.cell.drain, n.cell.leaving = n.AdminAddr(), n.leave, n.health.draining.Load
	n.cell.fail, n.cell.rest, n.cell.resume = n.fail, n.restJobs, n.resumeJobs
	n.watch = newWatch(n.cell, n.reg)
	n.fencer = n.newFencer()
	n.health.fencer.Store(n.fencer)
	n.health.cell.Store(n.cell)
	n.cell.removed = func() {
		if n.fencer.why() == "" { // a fenced replica asked to be
			n.fail(errRemoved(n.self.Member))
		}
	}
	return nil
}

func (n *Node) openAdmin(ctx context.Context) error {
	token, err := loadAdminToken(n.cfg.Data)
	if err != nil {
		return err
	}
	if n.adminListener, err = listen(ctx, "admin", n.cfg.Admin); err != nil {
		return err
	}
	n.admin = newAdminServer(token, n.health, n.reg, n, n.logger)
	n.admin.start(n.adminListener, n.fail)
	return nil
}

func listen(ctx context.Context, name, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("the address %s of --%s cannot be opened (choose another): %w", addr, name, err)
	}
	return l, nil
}

// Start makes the first app and the demo when they are wanted, and opens the public listener.
func (n *Node) Start(ctx context.Context) error {
	if n.fencer != nil && n.fencer.why() != "" {
		return nil // fenced in a former life: it lets nobody in, and fails with ErrRebuild once the cell lets it go
	}
	app, made, err := App{}, false, error(nil)
	if n.self.Origin == founded { // else the cell has its apps
		if app, made, err = n.firstApp(ctx); err != nil {
			return fmt.Errorf("make the first app: %w", err)
		}
	}
	if n.cfg.Demo {
		if n.demoApp, err = n.seedDemo(ctx); err != nil {
			return fmt.Errorf("seed the demo: %w", err)
		}
	}
	if err := n.openPublic(); err != nil {
		return err
	}
	n.health.ready.Store(true)
	if n.cell != nil {
		addr := n.Addr()
		n.cell.public.Store(&addr)
		n.cell.announce()
	}
	if err := n.lock.write(Owner{PID: pid(), Listen: n.Addr(), TLS: n.entrances[0].secured != nil, Admin: n.AdminAddr()}); err != nil {
		n.logger.Warn("the data folder's lock cannot name the listeners: command line tools need --admin", "error", err)
	}
	if n.agreement != nil {
		n.agreement.start()
	}
	n.jobs.Load().Start()
	n.schedules.Start()
	n.startWebhooks()
	n.logger.Info("ready", "listen", n.Addr(), "tls_listen", n.TLSAddr(), "admin", n.AdminAddr(), "data", n.cfg.Data, "version", n.opt.Build.Version, "demo", n.cfg.Demo)
	return n.notice(n.opt.Notice, app, made)
}

// Addr is the address of the public listener, AdminAddr that of the admin listener. "" when not open.
func (n *Node) Addr() string {
	if n.public == nil {
		return ""
	}
	return n.entrances[0].listener.Addr().String()
}

// TLSAddr is the address of the public listener that speaks TLS beside one in the clear. "" when there is none.
func (n *Node) TLSAddr() string {
	if n.public == nil || len(n.entrances) < 2 {
		return ""
	}
	return n.entrances[1].listener.Addr().String()
}

// AdminAddr is the address of the admin listener.
func (n *Node) AdminAddr() string {
	if n.adminListener == nil {
		return ""
	}
	return n.adminListener.Addr().String()
}

// Failed is closed when a part failed for good; Err says which. Stop the node then: it takes no more writes.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Err is why the node failed, nil while it has not.
func (n *Node) Err() error { return n.health.err() }

// fail is where every part reports what it cannot mend.
func (n *Node) fail(err error) {
	n.failedOnce.Do(func() {
		n.health.fail(fmt.Errorf("%w%w", quiet{ErrFatal}, err))
		n.logger.Error("a part of the node failed for good: it stops", "error", err)
		close(n.failed)
	})
}

// Drain lets nobody new in, tells connections to come back elsewhere, spread over the time that ctx leaves, and waits
// for what is under way. It returns when that is done or ctx is over.
func (n *Node) Drain(ctx context.Context) {
	n.health.draining.Store(true)
	if n.cell != nil {
		n.cell.announce()
		defer n.cell.handOver(ctx, handOverRest)
	}
	n.restWebhooks()
	defer n.restJobs(ctx) // before leadership is given away
	if n.public == nil {
		return
	}
	// Connections come back elsewhere at 200 a second, or faster when there is no time for that.
	window := time.Duration(n.public.conns.Len()) * 5 * time.Millisecond
	if deadline, ok := ctx.Deadline(); ok {
		window = min(window, time.Until(deadline)/2)
	}
	if err := n.public.drain(ctx, window); err != nil {
		n.logger.Warn("not everybody had left in time", "error", err)
	}
}

// Stop ends every part in the reverse order of Open and Start, and lets the data folder go. Safe to call twice.
func (n *Node) Stop() error {
	n.stopOnce.Do(func() {
		n.health.draining.Store(true)
		if n.agreement != nil {
			n.agreement.close()
		}
		if n.fencer != nil {
			n.fencer.close()
		}
		n.background.Wait()
		var errs []error
		if n.public != nil {
			n.api.Store(nil)
			n.pusher.Store(nil)
			n.public.stop()
		}
		if n.cell != nil {
			n.fencer.close()
			if n.agreement != nil {
				n.agreement.close()
			}
			if n.forward != nil {
				n.forward.close()
			}
			n.cell.stopServing()
		}
		n.stopSchedules()
		n.stopWebhooks()
		n.stopJobs()
		if n.shard != nil {
			errs = append(errs, n.closeShard())
		}
		if n.cell != nil {
			errs = append(errs, n.cell.close())
		}
		if n.public == nil {
			for _, e := range n.entrances {
				e.door.close()
				errs = append(errs, e.listener.Close())
			}
		}
		if n.admin != nil {
			errs = append(errs, n.admin.server.Close())
		}
		errs = append(errs, n.lock.release())
		n.stopErr = errors.Join(errs...)
	})
	return n.stopErr
}

// leave is what another node's operator asks for: Drain, while the process stays.
func (n *Node) leave() {
	n.leaving.Do(func() {
		n.logger.Warn("asked to leave: connections move to other nodes, leadership is handed over; stop or restart this process when it is drained")
		n.background.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), n.cfg.DrainTimeout)
			defer cancel()
			n.Drain(ctx)
		})
	})
}

func (n *Node) shardDir() string { return filepath.Join(n.cfg.Data, "shard-0") }
