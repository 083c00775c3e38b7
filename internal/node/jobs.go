package node

import (
	"context"
	"time"

	"github.com/petrel-chat/petrel/internal/effect"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// openJobs makes the runner of the shard's jobs. It rests until Start, and on every node that does not lead.
func (n *Node) openJobs() {
	kinds, policies := n.jobKinds()
	n.jobs.Store(effect.New(effect.Options{
		Book: effect.NewBook(n.desk, n.shard.store.View), Node: n.self.Member, Leading: n.runsJobs, Held: n.held, Kinds: kinds, Policies: policies,
		View: n.shard.store.View, Now: n.opt.Faults.now(), Logger: n.logger, Registerer: n.reg,
	}))
}

// jobKinds are the kinds of jobs that this build carries out.
func (n *Node) jobKinds() (map[string]effect.Handler, map[string]effect.Policy) {
	kinds, policies := map[string]effect.Handler{}, map[string]effect.Policy{}
	n.webhookJobs(kinds, policies)
	for kind, h := range n.opt.Jobs {
		kinds[kind] = h
	}
	return kinds, policies
}

// jobLimits are an app's, by its settings.
func (n *Node) jobLimits(app petrel.AppID) job.Limits {
	return job.Limits{Waiting: n.directory.Settings(app).MaxJobsWaiting}
}

// runsJobs says whether this node is to run the jobs: it leads and stays.
func (n *Node) runsJobs() (term uint64, ok bool) {
	st := n.shard.log.Status()
	return st.Term, st.IsLeader && st.Stopped == nil && (n.fencer == nil || n.fencer.why() == "")
}

// publishJobs tells the runner what has come to wait.
func (n *Node) publishJobs(s event.Stamp, ev event.Event, _ uint64) []petrel.Publication {
	if r := n.jobs.Load(); r != nil {
		r.Notice(job.Notices(s, ev)...)
	}
	return nil
}

// restJobs lets what runs come to its end, and the log know of it, before this node stops or leads no more.
func (n *Node) restJobs(ctx context.Context) {
	if r := n.jobs.Load(); r != nil {
		r.Rest(ctx)
	}
}

// handOverRest bounds how long leadership is kept for attempts under way when it is given away on demand. A node that leaves has the time of
// its drain for that.
const handOverRest = 1500 * time.Millisecond

// resumeJobs lets a node that stays begin jobs again, once it leads.
func (n *Node) resumeJobs() {
	if r := n.jobs.Load(); r != nil {
		r.Resume()
	}
}

// stopJobs ends the runner. Without a drain before, what it was at is found interrupted by the next one.
func (n *Node) stopJobs() {
	if r := n.jobs.Load(); r != nil {
		r.Stop()
	}
}
