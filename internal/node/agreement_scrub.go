package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"time"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
)

// A scrub compares rows, and so finds what digests cannot: a bit that flipped in one replica's file and left it
// readable. One node runs it, the leader every hour and any node when it is asked to. Slice by slice it names an index a
// little ahead; every replica pins its state at the end of the first batch at or after it, hashes the same key ranges, and
// answers. So all hash the same state without stopping for it, and none is pinned for longer than a slice takes.

// scrubber is projection.Snapshot.
type scrubber interface {
	Applied() petrel.Applied
	Scrub(ctx context.Context, from projection.Cursor, limit projection.ScrubLimit) (ranges []projection.Range, next projection.Cursor, done bool, err error)
	Release()
}

// Measures of a scrub.
const (
	scrubRows    = 2000                  // of one range
	scrubRanges  = 64                    // of a slice at most: their answer must fit a message
	scrubSlice   = 50 * time.Millisecond // of work, then a rest of four times as long, so that traffic comes first
	scrubAhead   = 150 * time.Millisecond
	scrubTries   = 40              // for one slice
	scrubMemory  = 256             // slices that a replica remembers its answer to
	narrowRows   = 64              // of a range where a difference is looked for
	namedRows    = 5               // in a report
	sliceTimeout = 4 * time.Second // of one question
	scrubSilent  = 10              // unanswered questions for one slice, after which a node is left out
)

// scrubAsk is the question of one slice.
type scrubAsk struct {
	Index  uint64            `json:"index"`
	From   projection.Cursor `json:"from"`
	Rows   int               `json:"rows"`
	Ranges int               `json:"ranges"`
	Millis int64             `json:"millis"`
}

type scrubAnswer struct {
	Level  level              `json:"level"`
	Leader petrel.NodeID      `json:"leader"`
	Term   uint64             `json:"term"`
	Fenced string             `json:"fenced,omitempty"`
	Passed bool               `json:"passed,omitempty"` // it is beyond the index already
	Failed string             `json:"failed,omitempty"`
	Index  uint64             `json:"index"`
	Digest string             `json:"digest"` // hex
	Ranges []projection.Range `json:"ranges"`
	Done   bool               `json:"done"`
}

// serveScrub answers bus requests of kindScrub.
func (a *agreement) serveScrub(ctx context.Context, _ petrel.NodeID, payload []byte) ([]byte, error) {
	var q scrubAsk
	if err := json.Unmarshal(payload, &q); err != nil {
		return nil, fmt.Errorf("a question about rows that cannot be read: %w", err)
	}
	if !a.open.Load() {
		return nil, errors.New("this node is not open yet")
	}
	return json.Marshal(a.slice(ctx, q))
}

// slice answers q for this node. One at a time: they would only slow each other and the fold.
func (a *agreement) slice(ctx context.Context, q scrubAsk) scrubAnswer {
	r := scrubAnswer{Level: a.o.level(), Fenced: a.o.fenced()}
	r.Leader, r.Term = a.o.leader()
	ctx, cancel := context.WithTimeout(ctx, sliceTimeout)
	defer cancel()
	select {
	case a.scrubbing <- struct{}{}:
		defer func() { <-a.scrubbing }()
	case <-ctx.Done():
		r.Failed = "another scrub is under way"
		return r
	}
	s, err := a.o.pin(ctx, q.Index)
	if err == nil {
		defer s.Release()
		at := s.Applied()
		r.Index, r.Digest = at.Index, hex.EncodeToString(at.Digest[:])
		limit := projection.ScrubLimit{Rows: q.Rows, Ranges: min(q.Ranges, scrubRanges), Time: time.Duration(min(q.Millis, 1000)) * time.Millisecond}
		r.Ranges, _, r.Done, err = s.Scrub(ctx, q.From, limit)
	}
	switch {
	case errors.Is(err, projection.ErrUnreadable):
		a.o.fence(causeRows, fmt.Sprintf("%s cannot read its own rows: %v", a.o.self, err))
		r.Fenced = a.o.fenced()
	case errors.Is(err, apply.ErrPassed):
		r.Passed = true
	}
	if err != nil {
		r.Failed = err.Error()
		return r
	}
	a.remember(sliceKey{r.Index, q.From.Table, string(q.From.After), q.Rows}, r.Ranges)
	return r
}

// sliceKey is what a replica was asked for.
type sliceKey struct {
	index uint64
	table string
	after string
	rows  int
}

// remember keeps an answer, for the case that somebody says it is wrong.
func (a *agreement) remember(k sliceKey, ranges []projection.Range) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.said[k]; !known {
		a.saidKeys = append(a.saidKeys, k)
	}
	a.said[k] = rangeKeys(ranges)
	if len(a.saidKeys) > scrubMemory {
		delete(a.said, a.saidKeys[0])
		a.saidKeys = a.saidKeys[1:]
	}
}

// rangeKey is what two replicas say alike about a range.
func rangeKey(r projection.Range) string {
	return fmt.Sprintf("%s (%x] (%x] %v %d %x", r.Table, r.After, r.Upto, r.Last, r.Rows, r.Hash)
}

func rangeKeys(ranges []projection.Range) []string {
	keys := make([]string, len(ranges))
	for i, r := range ranges {
		keys[i] = rangeKey(r)
	}
	return keys
}

// rowEvidence is the part of evidence that is about rows: what everybody said about one range of one slice.
type rowEvidence struct {
	Index  uint64                   `json:"index"`
	From   projection.Cursor        `json:"from"`
	Rows   int                      `json:"rows"`   // of a range
	Number int                      `json:"number"` // of the range in the slice
	Leader petrel.NodeID            `json:"leader"`
	Votes  map[petrel.NodeID]string `json:"votes"`
}

// believe checks evidence about rows against what this node said itself.
func (a *agreement) believe(e rowEvidence) error {
	a.mu.Lock()
	said := a.said[sliceKey{e.Index, e.From.Table, string(e.From.After), e.Rows}]
	a.mu.Unlock()
	switch {
	case e.Number < 0 || e.Number >= len(said) || e.Votes[a.o.self] != said[e.Number]:
		return errors.New("the evidence is not about what this node said")
	case !slices.Contains(majority(e.Votes, e.Leader).wrong, a.o.self):
		return errors.New("the evidence does not say that this node is wrong")
	}
	return nil
}

// Verification is a scrub as an operator sees it.
type Verification struct {
	Running bool      `json:"running"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	// Table and Rows say how far it has come.
	Table string `json:"table,omitempty"`
	Rows  int    `json:"rows"`
	// Nodes are those that were compared, by name, and those that could not be.
	Nodes       []VerifiedNode  `json:"nodes"`
	Differences []RowDifference `json:"differences,omitempty"`
	// Equal says that all of Nodes were compared to the end, and no row differs.
	Equal bool   `json:"equal"`
	Error string `json:"error,omitempty"`
}

// VerifiedNode is one replica of a Verification.
type VerifiedNode struct {
	Member petrel.NodeID `json:"member"`
	Leader bool          `json:"leader"`
	Index  uint64        `json:"index"`  // of its last slice
	Digest string        `json:"digest"` // of the outcomes of all folds up to there
	Hash   string        `json:"hash"`   // over the hashes of all ranges
	Rows   int           `json:"rows"`
	Equal  bool          `json:"equal"`
	Why    string        `json:"why,omitempty"` // it is not equal, or was not compared
}

// RowDifference is a range of keys in which replicas differ.
type RowDifference struct {
	Table string          `json:"table"`
	After string          `json:"after,omitempty"` // the key before it; empty: from the beginning
	Upto  string          `json:"upto,omitempty"`  // its last key; empty: to the end
	Keys  []string        `json:"keys,omitempty"`  // of the first rows that differ
	Index uint64          `json:"index"`
	Right []petrel.NodeID `json:"right,omitempty"`
	Wrong []petrel.NodeID `json:"wrong,omitempty"` // none: nobody can say
}

func (d RowDifference) String() string {
	where := "table " + d.Table
	switch {
	case len(d.Keys) > 0:
		where += fmt.Sprintf(", at the keys %q", d.Keys)
	default:
		where += fmt.Sprintf(", behind the key (%s) up to (%s)", d.After, d.Upto)
	}
	return fmt.Sprintf("%s, at index %d", where, d.Index)
}

// errScrubbing: one at a time.
var errScrubbing = petrel.Errorf(petrel.CodeBusy, "A verification is under way; ask how far it has come.").After(time.Second)

// beginScrub starts a scrub that this node runs; verification says how it goes.
func (a *agreement) beginScrub(gentle bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.verified.Running {
		return errScrubbing
	}
	if a.ctx.Err() != nil {
		return petrel.Errorf(petrel.CodeDraining, "This node is leaving.")
	}
	began := a.o.now()
	a.verified = Verification{Running: true, Began: began}
	a.bg.Go(func() {
		s := &scrub{a: a, gentle: gentle, sums: map[petrel.NodeID]hash.Hash{}, nodes: map[petrel.NodeID]*VerifiedNode{}}
		err := s.run(a.ctx)
		v := s.report()
		v.Began, v.Seconds = began, a.o.now().Sub(began).Seconds()
		if err != nil {
			v.Error, v.Equal = err.Error(), false
			a.o.logger.Warn("a scrub was not finished", "error", err)
		}
		if v.Equal {
			a.m.scrubbed.Set(float64(a.o.now().Unix()))
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.verified = v
	})
	return nil
}

// verification is the last scrub that this node ran, or runs.
func (a *agreement) verification() Verification {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.verified
	if v.Running {
		v.Seconds = a.o.now().Sub(v.Began).Seconds()
	}
	return v
}

// scrub is one run over all replicas.
type scrub struct {
	a           *agreement
	gentle      bool
	nodes       map[petrel.NodeID]*VerifiedNode
	sums        map[petrel.NodeID]hash.Hash // of those that are still compared
	differences []RowDifference
	rows        int
	equal       bool // nothing was found, and nobody lost

	seen, speed float64 // index and entries per second, of pace
	seenAt      time.Time
}

func (s *scrub) run(ctx context.Context) error {
	leader, _ := s.a.o.leader()
	s.equal = true
	living := append(s.a.o.peers(), s.a.o.self)
	for _, n := range append(s.a.o.members(), living...) {
		if s.nodes[n] != nil {
			continue
		}
		s.nodes[n] = &VerifiedNode{Member: n, Leader: n == leader}
		if !slices.Contains(living, n) {
			s.drop(n, "it is not alive")
			continue
		}
		s.sums[n] = sha256.New()
	}
	for from := (projection.Cursor{}); ; {
		began := time.Now()
		answers, err := s.meet(ctx, scrubAsk{From: from, Rows: scrubRows, Ranges: scrubRanges, Millis: scrubSlice.Milliseconds()})
		if err != nil {
			return err
		}
		next, done, err := s.compare(ctx, from, answers)
		if err != nil || done {
			return err
		}
		from = next
		s.tell(from)
		if s.gentle {
			if err := rest(ctx, 4*time.Since(began)); err != nil {
				return err
			}
		}
	}
}

func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tell publishes how far the scrub has come.
func (s *scrub) tell(from projection.Cursor) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	s.a.verified.Table, s.a.verified.Rows = from.Table, s.rows
	s.a.verified.Differences = slices.Clone(s.differences)
}

// meet asks all that are still compared for the same slice of one state, this node included.
func (s *scrub) meet(ctx context.Context, q scrubAsk) (map[petrel.NodeID]scrubAnswer, error) {
	silent, last := map[petrel.NodeID]int{}, ""
	for try := range scrubTries {
		q.Index = s.pace(try)
		mine := make(chan scrubAnswer, 1)
		go func() { mine <- s.a.slice(ctx, q) }()
		answers := askAll[scrubAnswer](ctx, s.a, sliceTimeout+time.Second, s.others(), kindScrub, q)
		own := <-mine
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if own.Fenced != "" {
			return nil, fmt.Errorf("this replica is fenced: %s", own.Fenced)
		}
		met := own.Failed == ""
		if !met && !own.Passed {
			last = ": " + own.Failed
		}
		for _, n := range s.others() {
			r, ok := answers[n]
			switch {
			case ok && r.Fenced != "":
				s.drop(n, "it is fenced: "+r.Fenced)
			case ok && !r.Level.comparable(own.Level):
				s.drop(n, fmt.Sprintf("it cannot be compared: epoch %s, feature level %d, schema %s", r.Level.Epoch, r.Level.Feature, r.Level.Schema))
			case ok && r.Failed == "" && r.Index == own.Index:
			case ok && r.Passed: // the next index is further ahead
				met = false
			default:
				met = false
				if silent[n]++; own.Failed == "" && silent[n] >= scrubSilent {
					s.drop(n, "it does not answer, or is too far behind")
				}
			}
		}
		if met {
			answers[s.a.o.self] = own
			maps.DeleteFunc(answers, func(n petrel.NodeID, _ scrubAnswer) bool { return s.sums[n] == nil })
			return answers, nil
		}
	}
	return nil, fmt.Errorf("the replicas did not come to stand at one index in %d tries%s", scrubTries, last)
}

// pace chooses the index of the next slice: where this node will be in a moment, as fast as it goes; where it stands when
// nothing goes on.
func (s *scrub) pace(try int) uint64 {
	_, high := s.a.o.proven()
	now := time.Now()
	if took := now.Sub(s.seenAt).Seconds(); s.seenAt.IsZero() || took > 0.02 {
		if !s.seenAt.IsZero() {
			s.speed = (float64(high) - s.seen) / took
		}
		s.seen, s.seenAt = float64(high), now
	}
	return high + uint64(max(0, s.speed*scrubAhead.Seconds()*float64(1+try/2)))
}

func (s *scrub) others() (all []petrel.NodeID) {
	for n := range s.sums {
		if n != s.a.o.self {
			all = append(all, n)
		}
	}
	return all
}

// drop ends the comparison with one node.
func (s *scrub) drop(n petrel.NodeID, why string) {
	s.equal = false
	s.nodes[n].Why = why
	delete(s.sums, n)
}

// compare looks for the first range that is not the same for all. What lies behind that in the slice is compared in the next one.
func (s *scrub) compare(ctx context.Context, from projection.Cursor, answers map[petrel.NodeID]scrubAnswer) (next projection.Cursor, done bool, err error) {
	own := answers[s.a.o.self]
	shortest := len(own.Ranges)
	for _, r := range answers {
		shortest = min(shortest, len(r.Ranges))
	}
	next = from
	for i := range shortest {
		r := own.Ranges[i]
		next = projection.Cursor{Table: r.Table, After: r.Upto}
		if r.Last {
			next = projection.Cursor{Table: r.Table + "\x00"}
		}
		votes := map[petrel.NodeID]string{}
		for n, answer := range answers {
			votes[n] = rangeKey(answer.Ranges[i])
		}
		e := rowEvidence{Index: own.Index, From: from, Rows: scrubRows, Number: i, Leader: leaderOf(answers), Votes: votes}
		v := majority(votes, e.Leader)
		if !v.equal {
			return next, own.Done && i == len(own.Ranges)-1, s.differ(ctx, e, v, r)
		}
		s.rows += r.Rows
		for n, answer := range answers {
			s.sums[n].Write(answer.Ranges[i].Hash[:])
			node := s.nodes[n]
			node.Rows += answer.Ranges[i].Rows
			node.Index, node.Digest = answer.Index, answer.Digest
		}
	}
	if shortest == 0 && !own.Done {
		return next, false, errors.New("a slice without a range")
	}
	return next, own.Done && shortest == len(own.Ranges), nil
}

// leaderOf is the leader of the highest term that was named.
func leaderOf(answers map[petrel.NodeID]scrubAnswer) (leader petrel.NodeID) {
	term := uint64(0)
	for _, r := range answers {
		if r.Leader != "" && r.Term >= term {
			leader, term = r.Leader, r.Term
		}
	}
	return leader
}

// differ names what differs in a range, and fences who is wrong.
func (s *scrub) differ(ctx context.Context, e rowEvidence, v verdict, r projection.Range) error {
	a := s.a
	s.equal = false
	if v.tie && len(e.Votes) < len(a.o.members()) { // the members that are away can say; the wrong ones would be rebuilt by chance
		v.right, v.wrong = nil, nil
	}
	d := RowDifference{
		Table: r.Table, After: projection.KeyText(r.After), Upto: projection.KeyText(r.Upto), Index: e.Index, Right: v.right, Wrong: v.wrong,
	}
	d.Keys = s.narrow(ctx, r)
	s.differences = append(s.differences, d)
	a.m.rowsDiffer.Inc()
	if len(v.wrong) == 0 {
		a.alarm("rows "+r.Table, "rows differ between replicas, and who is wrong can only be said with the members that are away", "where", d.String(), "votes", len(e.Votes))
		if len(s.differences) >= 20 {
			return errors.New("too many differences to list")
		}
		return nil
	}
	how := fmt.Sprintf("%d of %d replicas agree", len(v.right), len(e.Votes))
	if v.tie {
		how = "no majority agrees, so the leader's side stays"
	}
	for _, n := range v.wrong {
		reason := fmt.Sprintf("%s has other rows than %s: %s (%s)", n, names(v.right), d, how)
		s.drop(n, reason)
		if n == a.o.self {
			a.o.fence(causeRows, reason)
			continue
		}
		a.alarm(string(n), "a replica has other rows than the others: it is told to fence itself", "wrong", n, "reason", reason)
		if err := a.tell(ctx, n, evidence{Reason: reason, Rows: &e}); err != nil {
			a.o.logger.Warn("the wrong replica did not take it; the next scrub will find it again", "wrong", n, "error", err)
		}
	}
	if s.sums[a.o.self] == nil {
		return errors.New("this replica is the wrong one")
	}
	return nil
}

// narrow finds the keys of the first rows that differ in a range, in two steps, each at a state of its own. It finds
// none when they do not differ any more, or cannot be asked.
func (s *scrub) narrow(ctx context.Context, in projection.Range) (keys []string) {
	from := projection.Cursor{Table: in.Table, After: in.After}
	for rows := narrowRows; ; {
		answers, err := s.meet(ctx, scrubAsk{From: from, Rows: rows, Ranges: scrubRanges, Millis: 1000})
		if err != nil {
			return nil
		}
		first, found, end := differing(answers, in.Table)
		switch {
		case len(found) > 0 && rows == 1:
			return found[:min(len(found), namedRows)]
		case len(found) > 0:
			from.After, rows = first, 1
		case end == nil, projection.CompareKeys(end, from.After) <= 0, in.Upto != nil && projection.CompareKeys(end, in.Upto) >= 0:
			return nil
		default: // not all had the time to look that far
			from.After = end
		}
	}
}

// differing returns the keys of the ranges that not everybody has alike, the key before the first of them, and the key up
// to which all have looked; nil: to the end of the table.
func differing(answers map[petrel.NodeID]scrubAnswer, table string) (before []byte, keys []string, end []byte) {
	has := map[string]int{}
	type place struct {
		key string // of the range
		projection.Range
	}
	var places []place
	for _, r := range answers {
		for i, g := range r.Ranges {
			if g.Table != table {
				break
			}
			if i == len(r.Ranges)-1 && !g.Last && (end == nil || projection.CompareKeys(g.Upto, end) < 0) {
				end = g.Upto
			}
			k := fmt.Sprintf("%x %d %x", g.Upto, g.Rows, g.Hash)
			if has[k]++; has[k] == 1 {
				places = append(places, place{k, g})
			}
		}
	}
	places = slices.DeleteFunc(places, func(p place) bool {
		return has[p.key] == len(answers) || p.Rows == 0 || end != nil && projection.CompareKeys(p.After, end) >= 0
	})
	if len(places) == 0 {
		return nil, nil, end
	}
	slices.SortStableFunc(places, func(a, b place) int { return projection.CompareKeys(a.After, b.After) })
	for _, p := range places {
		if k := projection.KeyText(p.Upto); p.Upto != nil && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	if keys == nil {
		keys = []string{"behind " + projection.KeyText(places[0].After)}
	}
	return places[0].After, keys, end
}

func names(nodes []petrel.NodeID) string {
	text := ""
	for i, n := range nodes {
		if i > 0 {
			text += " and "
		}
		text += string(n)
	}
	return text
}

// report is what the scrub has come to.
func (s *scrub) report() Verification {
	v := Verification{Rows: s.rows, Differences: s.differences, Equal: s.equal}
	for _, n := range slices.Sorted(maps.Keys(s.nodes)) {
		node := *s.nodes[n]
		if sum := s.sums[n]; sum != nil {
			node.Equal = node.Why == ""
			node.Hash = hex.EncodeToString(sum.Sum(nil))
		}
		v.Nodes = append(v.Nodes, node)
	}
	return v
}

var _ bus.Answer = (*agreement)(nil).serveScrub
