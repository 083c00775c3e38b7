package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// agreementOptions of newAgreement. Everything but the times is required; functions do not wait unless they take a context.
type agreementOptions struct {
	self petrel.NodeID
	// level is what must be equal for two replicas to be compared.
	level func() level
	// peers are the other members of the group that are alive; members are all, this one and the dead too.
	peers   func() []petrel.NodeID
	members func() []petrel.NodeID
	// leader is who leads, as this node sees it, and in which term.
	leader func() (petrel.NodeID, uint64)
	// ask is bus.Request.
	ask func(ctx context.Context, to petrel.NodeID, kind bus.Kind, payload []byte) ([]byte, error)
	// proofAt and proven are apply.Loop's.
	proofAt func(index uint64) (apply.Proof, bool)
	proven  func() (low, high uint64)
	// pin is apply.Loop's PinAt.
	pin func(ctx context.Context, index uint64) (scrubber, error)
	// fence takes this node out of service, for good. It may be called often and from anywhere.
	fence func(c cause, reason string)
	// fenced says why this node is fenced; "" while it is not.
	fenced func() string
	// interval between two comparisons. Default 3 s.
	interval time.Duration
	// scrubEvery is the time between two scrubs, which the leader runs. Default 1 h.
	scrubEvery time.Duration
	// patience with one question. Default 2 s.
	patience time.Duration
	now      func() time.Time // default time.Now
	logger   *slog.Logger
	reg      prometheus.Registerer // may be nil
}

// level is what two replicas must have in common to be compared: another epoch is another log, and what one
// feature level or schema folds into rows another may fold otherwise.
type level struct {
	Epoch   petrel.Epoch `json:"epoch"`
	Feature int          `json:"feature"`
	Schema  string       `json:"schema"`
	// Build is compared with only where the statements of the folds are: they are not part of the log's meaning.
	Build string `json:"build"`
}

func (l level) comparable(m level) bool {
	return l.Epoch == m.Epoch && l.Feature == m.Feature && l.Schema == m.Schema && l.Epoch != ""
}

// agreement compares this replica with the others, every few seconds, at an index that both have folded: the
// digest of all outcomes, and between equal builds what was written since the first index that both remember. Nothing
// has to stand still for it.
//
// Where two differ, all are asked at one index, and the smaller part is wrong. Without a majority the leader's part
// stays: its followers are fenced, for of two replicas nobody can know which one is right, and a leader is what the
// others can be rebuilt from. Every node judges for itself and fences itself; and it tells the others, with the
// evidence, so that one that does not notice is fenced too.
type agreement struct {
	o agreementOptions
	m *agreementMetrics

	mu        sync.Mutex // guards what follows
	agreed    time.Time  // when all living members were last found equal
	reported  map[string]time.Time
	postponed time.Time // since when a verdict waits for votes; zero: none does
	appeal    *evidence // this node was fenced by it without a majority, and members that are away may know better

	said     map[sliceKey][]string // what this replica answered to slices of scrubs
	saidKeys []sliceKey            // oldest first
	verified Verification          // of the last scrub that this node ran

	open      atomic.Bool   // started
	scrubbing chan struct{} // one token, of the slice being answered

	ctx  context.Context //nolint:containedctx // the lifetime of the service
	stop context.CancelFunc
	bg   sync.WaitGroup
}

func newAgreement(o agreementOptions) *agreement {
	if o.interval <= 0 {
		o.interval = 3 * time.Second
	}
	if o.patience <= 0 {
		o.patience = 2 * time.Second
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.scrubEvery <= 0 {
		o.scrubEvery = time.Hour
	}
	a := &agreement{
		o: o, reported: map[string]time.Time{}, agreed: o.now(), said: map[sliceKey][]string{}, scrubbing: make(chan struct{}, 1),
	}
	a.m = newAgreementMetrics(o.reg, func() float64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.o.now().Sub(a.agreed).Seconds()
	})
	a.ctx, a.stop = context.WithCancel(context.Background())
	return a
}

// start compares from now on, until close, and believes others. There must be a public side by then, to be closed.
func (a *agreement) start() {
	a.open.Store(true)
	a.bg.Go(func() {
		tick := time.NewTicker(a.o.interval)
		defer tick.Stop()
		for {
			select {
			case <-a.ctx.Done():
				return
			case <-tick.C:
				a.compare(a.ctx)
			}
		}
	})
	a.bg.Go(func() {
		tick := time.NewTicker(a.o.scrubEvery)
		defer tick.Stop()
		for {
			select {
			case <-a.ctx.Done():
				return
			case <-tick.C:
				if leader, _ := a.o.leader(); leader == a.o.self && a.o.fenced() == "" {
					_ = a.beginScrub(true) // else one is under way
				}
			}
		}
	})
}

// close waits for the comparison under way. Safe to call twice.
func (a *agreement) close() {
	a.stop()
	a.bg.Wait()
}

// proofAsk asks for a proof at Index, with what was written since Low. Exact: there or nowhere; else at the highest
// index up to Index, since the lowest from Low on, that is known.
type proofAsk struct {
	Index uint64 `json:"index"`
	Low   uint64 `json:"low"`
	Exact bool   `json:"exact,omitempty"`
}

type proofAnswer struct {
	Level  level         `json:"level"`
	Leader petrel.NodeID `json:"leader"`
	Term   uint64        `json:"term"`
	Fenced string        `json:"fenced,omitempty"`
	Known  bool          `json:"known"`
	Forgot uint64        `json:"forgot"` // nothing below is remembered
	Index  uint64        `json:"index"`
	Low    uint64        `json:"low"`
	Digest string        `json:"digest"` // hex
	Writes uint64        `json:"writes"` // since Low
}

// proof answers q for this node.
func (a *agreement) proof(q proofAsk) proofAnswer {
	r := proofAnswer{Level: a.o.level(), Fenced: a.o.fenced(), Index: q.Index, Low: q.Low}
	r.Leader, r.Term = a.o.leader()
	low, high := a.o.proven()
	r.Forgot = low
	if !q.Exact {
		r.Index = min(r.Index, high)
		r.Low = min(max(r.Low, low), r.Index)
	}
	at, ok := a.o.proofAt(r.Index)
	from, okLow := a.o.proofAt(r.Low)
	if !ok || !okLow || r.Low > r.Index {
		return r
	}
	r.Known, r.Digest, r.Writes = true, hex.EncodeToString(at.Digest[:]), at.Writes-from.Writes
	return r
}

// serveProof answers bus requests of kindDigest.
func (a *agreement) serveProof(_ context.Context, _ petrel.NodeID, payload []byte) ([]byte, error) {
	var q proofAsk
	if err := json.Unmarshal(payload, &q); err != nil {
		return nil, fmt.Errorf("a question about a digest that cannot be read: %w", err)
	}
	return json.Marshal(a.proof(q))
}

// askProofs asks nodes at once. Who does not answer in time is left out.
func (a *agreement) askProofs(ctx context.Context, nodes []petrel.NodeID, q proofAsk) map[petrel.NodeID]proofAnswer {
	return askAll[proofAnswer](ctx, a, a.o.patience, nodes, kindDigest, q)
}

func askAll[A any](ctx context.Context, a *agreement, patience time.Duration, nodes []petrel.NodeID, kind bus.Kind, q any) map[petrel.NodeID]A {
	payload, err := json.Marshal(q)
	if err != nil {
		a.o.logger.Error("a question to other nodes cannot be encoded", "error", err)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var mu sync.Mutex // guards all
	all := map[petrel.NodeID]A{}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			b, err := a.o.ask(ctx, n, kind, payload)
			var r A
			if err == nil {
				err = json.Unmarshal(b, &r)
			}
			if err != nil {
				a.o.logger.Debug("a node could not be asked whether it agrees", "peer", n, "kind", int(kind), "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all[n] = r
		})
	}
	wg.Wait()
	return all
}

// compare is one round.
func (a *agreement) compare(ctx context.Context) {
	peers := a.o.peers()
	if a.o.fenced() != "" {
		a.hearAppeal(ctx, peers)
		return
	}
	low, high := a.o.proven()
	answers := a.askProofs(ctx, peers, proofAsk{Index: high, Low: low})
	var differ []petrel.NodeID
	common, equal := high, 0
	for _, p := range peers {
		result := a.compareOne(answers[p])
		a.m.compared.WithLabelValues(result).Inc()
		switch result {
		case resultEqual:
			equal++
			common = min(common, answers[p].Index)
		case resultDiffers:
			differ = append(differ, p)
		}
	}
	if len(differ) > 0 {
		a.m.wrong.Set(float64(len(differ)))
		slices.Sort(differ)
		a.settle(ctx, differ[0], peers, answers)
		return
	}
	a.m.wrong.Set(0)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.postponed = time.Time{}
	if equal == len(peers) {
		a.m.index.Set(float64(common))
		a.agreed = a.o.now()
		clear(a.reported)
	}
}

// Results of comparing with one node.
const (
	resultEqual   = "equal"
	resultDiffers = "differs"
	resultOther   = "incomparable" // another epoch, feature level or schema, too far behind, or fenced
	resultSilent  = "unanswered"
)

func (a *agreement) compareOne(r proofAnswer) string {
	switch {
	case r.Level == level{}:
		return resultSilent
	case r.Fenced != "" || !r.Known || !r.Level.comparable(a.o.level()):
		return resultOther
	}
	mine := a.proof(proofAsk{Index: r.Index, Low: r.Low, Exact: true})
	switch {
	case !mine.Known: // it is further behind than this node remembers
		return resultOther
	case mine.differs(r):
		return resultDiffers
	}
	return resultEqual
}

// differs compares two answers to the same question.
func (r proofAnswer) differs(s proofAnswer) bool {
	return r.Digest != s.Digest || r.Level.Build == s.Level.Build && r.Writes != s.Writes
}

// settle asks everybody, where this node and another differ, who is wrong, and acts on it.
func (a *agreement) settle(ctx context.Context, other petrel.NodeID, peers []petrel.NodeID, first map[petrel.NodeID]proofAnswer) {
	r := first[other]
	_, high := a.o.proven()
	began, found := a.firstDifference(ctx, other, r.Low, r.Index)
	// Digests run on, so any later index shows the difference; what was written shows it only where it was.
	q := proofAsk{Index: r.Index, Low: r.Low, Exact: true}
	byDigest := a.proof(q).Digest != r.Digest
	switch {
	case !byDigest && !found:
		return // it is out of reach by now, or the other is; the next round sees it again if it is still there
	case !byDigest:
		q.Index, q.Low = began, began-1
	case !found:
		began = r.Low
		fallthrough
	default:
		q.Index = min(high, r.Index)
		for _, p := range peers {
			if f := first[p]; a.compareOne(f) != resultOther && f.Known && f.Index >= began {
				q.Index = min(q.Index, f.Index)
			}
		}
		q.Low = q.Index
	}
	e := evidence{Ask: q, Votes: a.askProofs(ctx, peers, q)}
	e.Votes[a.o.self] = a.proof(q)
	a.judge(ctx, e, other, began, found, a.count(e, peers))
}

// count leaves the votes that count, and returns how many living members may yet say. The vote of a fenced replica
// counts: it may have been fenced for want of a majority.
func (a *agreement) count(e evidence, peers []petrel.NodeID) (pending int) {
	pending = len(peers) + 1
	for n, v := range e.Votes {
		comparable := v.Level.comparable(a.o.level())
		if v.Known && comparable {
			continue
		}
		delete(e.Votes, n)
		if !comparable || e.Ask.Index < v.Forgot { // it will never say
			pending--
		}
	}
	return pending - len(e.Votes)
}

// waitForVotes is how long a verdict waits for nodes that are alive and have not come that far, or do not answer.
const waitForVotes = 30 * time.Second

// judge comes to a verdict, or waits for those that have yet to vote when they could change it.
func (a *agreement) judge(ctx context.Context, e evidence, other petrel.NodeID, began uint64, found bool, pending int) {
	v := e.judge()
	switch {
	case v.equal:
		return
	case pending > 0 && (v.tie || 2*len(v.right) <= len(e.Votes)+pending) && a.postpone():
		a.o.logger.Warn("replicas differ; waiting for others to say who is wrong", "with", other, "index", e.Ask.Index, "what", v.what, "waiting_for", pending)
		return
	case len(v.wrong) == 0:
		a.alarm("undecided", "replicas differ and nobody can say which is wrong: the leader was not among those that answered",
			"with", other, "index", e.Ask.Index, "what", v.what)
		return
	}
	a.m.wrong.Set(float64(len(v.wrong)))
	for _, n := range v.wrong {
		e.Reason = v.reason(n, e, began, found)
		switch {
		case n == a.o.self:
			a.condemn(e, v, e.Reason)
			continue
		case e.Votes[n].Fenced != "":
			continue
		}
		a.alarm(string(n), "a replica is wrong: it is told to fence itself", "wrong", n, "reason", e.Reason)
		if err := a.tell(ctx, n, e); err != nil {
			a.o.logger.Warn("the wrong replica did not take it; trying again", "wrong", n, "error", err)
		}
	}
}

// condemn fences this node.
func (a *agreement) condemn(e evidence, v verdict, reason string) {
	if v.tie && len(e.Votes) < len(a.o.members()) {
		a.mu.Lock()
		if a.o.fenced() == "" {
			a.appeal = &e
		}
		a.mu.Unlock()
	}
	a.o.fence(causeDiffers, reason)
}

// mayLeave says whether a fenced replica may be set aside: not while a member that is away could still say that the
// leader is wrong and this one is right, for then this one is what is left of the truth.
func (a *agreement) mayLeave() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.appeal == nil
}

// hearAppeal looks whether there is a majority by now, whatever it says, or nobody is left to make one.
func (a *agreement) hearAppeal(ctx context.Context, peers []petrel.NodeID) {
	a.mu.Lock()
	appeal := a.appeal
	a.mu.Unlock()
	if appeal == nil {
		return
	}
	e := evidence{Ask: appeal.Ask}
	if appeal.judge().what == whatDigest { // it runs on: any index will do that all know
		_, high := a.o.proven()
		for _, r := range a.askProofs(ctx, peers, proofAsk{Index: high, Low: high}) {
			if r.Known {
				high = min(high, r.Index)
			}
		}
		e.Ask.Index, e.Ask.Low = high, high
	}
	e.Votes = a.askProofs(ctx, peers, e.Ask)
	e.Votes[a.o.self] = a.proof(e.Ask)
	pending := a.count(e, peers)
	v := e.judge()
	away := len(a.o.members()) - 1 - len(peers)
	if v.equal || v.tie && pending+away > 0 {
		return
	}
	a.o.logger.Warn("the verdict on this fenced replica is final", "right", v.right, "wrong", v.wrong, "majority", !v.tie)
	a.mu.Lock()
	a.appeal = nil
	a.mu.Unlock()
}

func (a *agreement) postpone() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.o.now()
	if a.postponed.IsZero() {
		a.postponed = now
	}
	return now.Sub(a.postponed) < waitForVotes
}

func (a *agreement) tell(ctx context.Context, wrong petrel.NodeID, e evidence) error {
	payload, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.o.patience)
	defer cancel()
	_, err = a.o.ask(ctx, wrong, kindFence, payload)
	return err
}

// alarm logs an error about the same thing at most once a minute.
func (a *agreement) alarm(about, sentence string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.o.now()
	if last, ok := a.reported[about]; ok && now.Sub(last) < time.Minute {
		return
	}
	a.reported[about] = now
	a.o.logger.Error(sentence, args...) //nolint:sloglint // the callers' sentences are constant
}

// firstDifference finds the first index from low to high at which this node and another differ. Not known when
// they differ at low already.
func (a *agreement) firstDifference(ctx context.Context, other petrel.NodeID, low, high uint64) (index uint64, ok bool) {
	from := low
	differ := func(index uint64) (differ, known bool) {
		q := proofAsk{Index: index, Low: from, Exact: true}
		r, answered := a.askProofs(ctx, []petrel.NodeID{other}, q)[other]
		mine := a.proof(q)
		return mine.differs(r), answered && r.Known && mine.Known
	}
	if d, known := differ(low); d || !known {
		return 0, false
	}
	for low+1 < high {
		middle := low + (high-low)/2
		d, known := differ(middle)
		switch {
		case !known:
			return 0, false
		case d:
			high = middle
		default:
			low = middle
		}
	}
	return high, true
}

// evidence is what a node is told that another found wrong: who answered what to the same question.
type evidence struct {
	Reason string                        `json:"reason"`
	Ask    proofAsk                      `json:"ask"`
	Votes  map[petrel.NodeID]proofAnswer `json:"votes"`
	Rows   *rowEvidence                  `json:"rows,omitempty"` // instead of Ask and Votes
}

// reason is the sentence about one wrong node: where it began, and how it was decided.
func (v verdict) reason(wrong petrel.NodeID, e evidence, began uint64, found bool) string {
	what := "what its folds came to"
	if v.what == whatWrites {
		what = "what its folds wrote"
	}
	where := fmt.Sprintf("from index %d on", began)
	if !found {
		where = fmt.Sprintf("from index %d on, or from before", began)
	}
	how := fmt.Sprintf("%d of %d replicas agree", len(v.right), len(e.Votes))
	if v.tie {
		how = "no majority agrees, so the leader's side stays"
	}
	return fmt.Sprintf("%s differs %s: %s is not the same as on %s (compared at index %d; %s)",
		wrong, where, what, names(v.right), e.Ask.Index, how)
}

// What replicas differ in.
const (
	whatDigest = "digest"
	whatWrites = "writes"
)

// verdict is who is wrong, and in what.
type verdict struct {
	equal        bool
	what         string
	tie          bool // there was no majority
	right, wrong []petrel.NodeID
}

// judge compares the digests of all, and where these are equal, the writes of equal builds.
func (e evidence) judge() verdict {
	leader, term := petrel.NodeID(""), uint64(0)
	byBuild := map[string]map[petrel.NodeID]string{}
	digests := map[petrel.NodeID]string{}
	for n, r := range e.Votes {
		if r.Leader != "" && r.Term >= term {
			leader, term = r.Leader, r.Term
		}
		digests[n] = r.Digest
		if byBuild[r.Level.Build] == nil {
			byBuild[r.Level.Build] = map[petrel.NodeID]string{}
		}
		byBuild[r.Level.Build][n] = fmt.Sprint(r.Writes)
	}
	v := majority(digests, leader)
	v.what = whatDigest
	if !v.equal {
		return v
	}
	for _, votes := range byBuild {
		w := majority(votes, leader)
		if w.equal {
			continue
		}
		v.equal, v.what, v.tie = false, whatWrites, v.tie || w.tie
		v.wrong = append(v.wrong, w.wrong...)
	}
	if v.equal {
		return v
	}
	v.right = nil
	for n := range e.Votes {
		if !slices.Contains(v.wrong, n) {
			v.right = append(v.right, n)
		}
	}
	slices.Sort(v.right)
	slices.Sort(v.wrong)
	return v
}

// majority splits what was answered into right and wrong: more than half are right; failing that, those that
// say what the leader says. When the leader said nothing, nobody is either.
func majority(votes map[petrel.NodeID]string, leader petrel.NodeID) (v verdict) {
	groups := map[string][]petrel.NodeID{}
	for n, say := range votes {
		groups[say] = append(groups[say], n)
	}
	if len(groups) <= 1 {
		v.equal = true
		return v
	}
	var right string
	for say, nodes := range groups {
		if 2*len(nodes) > len(votes) {
			right = say
		}
	}
	if right == "" {
		v.tie = true
		say, ok := votes[leader]
		if !ok {
			return v
		}
		right = say
	}
	for say, nodes := range groups {
		if say == right {
			v.right = append(v.right, nodes...)
		} else {
			v.wrong = append(v.wrong, nodes...)
		}
	}
	slices.Sort(v.right)
	slices.Sort(v.wrong)
	return v
}

// serveFence takes what another node says of this one (kindFence). It is believed when the evidence is of this log,
// quotes what this node itself says at that index, and comes to the same verdict here.
func (a *agreement) serveFence(_ context.Context, from petrel.NodeID, payload []byte) ([]byte, error) {
	var e evidence
	if err := json.Unmarshal(payload, &e); err != nil {
		return nil, fmt.Errorf("evidence that cannot be read: %w", err)
	}
	if e.Rows != nil {
		if err := a.believe(*e.Rows); err != nil || !a.open.Load() || a.o.fenced() != "" {
			return nil, err
		}
		a.m.told.Inc()
		a.o.fence(causeRows, fmt.Sprintf("%s (found by %s)", e.Reason, from))
		return nil, nil
	}
	quoted, ok := e.Votes[a.o.self]
	mine := a.proof(e.Ask)
	switch {
	case a.o.fenced() != "":
		return nil, nil
	case !a.open.Load():
		return nil, errors.New("this node is not open yet")
	case !ok || !mine.Known || !mine.Level.comparable(quoted.Level) || quoted.Digest != mine.Digest || quoted.Writes != mine.Writes:
		return nil, errors.New("the evidence is not about this node's state")
	case !slices.Contains(e.judge().wrong, a.o.self):
		return nil, errors.New("the evidence does not say that this node is wrong")
	}
	a.m.told.Inc()
	a.condemn(e, e.judge(), fmt.Sprintf("%s (found by %s)", e.Reason, from))
	return nil, nil
}

type agreementMetrics struct {
	compared     *prometheus.CounterVec
	told         prometheus.Counter
	index, wrong prometheus.Gauge
	scrubbed     prometheus.Gauge
	rowsDiffer   prometheus.Counter
}

func newAgreementMetrics(reg prometheus.Registerer, age func() float64) *agreementMetrics {
	m := &agreementMetrics{
		compared: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "petrel_node_agreement_comparisons_total", Help: "Comparisons of this replica's proof with another's, by result.",
		}, []string{"result"}),
		told: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "petrel_node_agreement_told_total", Help: "How often another node proved to this one that it is wrong.",
		}),
		index: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "petrel_node_agreement_index", Help: "Index at which all living replicas were last found equal.",
		}),
		wrong: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "petrel_node_agreement_wrong", Help: "Replicas found wrong in the last comparison. Above 0 is an alarm.",
		}),
	}
	m.scrubbed = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "petrel_node_scrub_equal_timestamp_seconds", Help: "When a scrub that this node ran last found all rows of all members equal, in Unix seconds.",
	})
	m.rowsDiffer = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "petrel_node_scrub_differences_total", Help: "Ranges of rows in which replicas differed, in scrubs that this node ran. Any is an alarm.",
	})
	if reg != nil {
		reg.MustRegister(m.compared, m.told, m.index, m.wrong, m.scrubbed, m.rowsDiffer, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "petrel_node_agreement_age_seconds", Help: "Since all living replicas were last found equal.",
		}, age))
	}
	return m
}
