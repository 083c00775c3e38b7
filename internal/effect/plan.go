package effect

import (
	"container/heap"
	"slices"

	"github.com/petrel-chat/petrel/internal/job"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// plan says whose turn it is. It holds a lane for each app and target with jobs that wait, and no job. Not for more than one goroutine.
type plan struct {
	places, appPlaces, targetPlaces int

	lanes   map[job.Lane]*lane
	apps    map[petrel.AppID]*tenant
	turns   []*tenant // that have a ready lane, in the order of their turns
	later   later     // lanes in which nothing is due yet
	running int
}

// tenant is an app in the plan.
type tenant struct {
	app     petrel.AppID
	running int
	lanes   int     // in the plan
	ready   []*lane // those of them with jobs that are due, in the order of their turns
}

// lane is the queue of an app for one target.
type lane struct {
	job.Lane
	tenant  *tenant
	running int
	due     int64 // of its first job; meaningless while it is neither ready nor in later
	ready   bool
	place   int // in later, -1 outside
	odd     bool
}

func newPlan(o Options) *plan {
	return &plan{
		places: o.Places, appPlaces: o.AppPlaces, targetPlaces: o.TargetPlaces,
		lanes: map[job.Lane]*lane{}, apps: map[petrel.AppID]*tenant{},
	}
}

// wait says that a job of the lane is due at a time.
func (p *plan) wait(l job.Lane, due int64) {
	x := p.lane(l)
	switch {
	case x.ready:
	case x.place >= 0:
		if due < x.due {
			x.due = due
			heap.Fix(&p.later, x.place)
		}
	default:
		x.due = due
		heap.Push(&p.later, x)
	}
}

func (p *plan) lane(l job.Lane) *lane {
	x := p.lanes[l]
	if x == nil {
		t := p.apps[l.App]
		if t == nil {
			t = &tenant{app: l.App}
			p.apps[l.App] = t
		}
		x = &lane{Lane: l, tenant: t, place: -1}
		p.lanes[l] = x
		t.lanes++
	}
	return x
}

// next is when something is due that is not yet; 0: nothing.
func (p *plan) next() int64 {
	if len(p.later) == 0 {
		return 0
	}
	return max(p.later[0].due, job.Now)
}

// take chooses what to ask for: at most n jobs together, of at most apps apps. Every app whose turn it is gets an equal part
// of what is free, and nobody more places than he leaves to others: when k apps use all they may, another finds places/(k+1) free.
// Who is held gets nothing, and keeps his turn.
func (p *plan) take(now int64, n, apps int, held func(petrel.AppID) bool) []job.Take {
	for len(p.later) > 0 && p.later[0].due <= now {
		x := heap.Pop(&p.later).(*lane)
		x.ready = true
		if len(x.tenant.ready) == 0 {
			p.turns = append(p.turns, x.tenant)
		}
		x.tenant.ready = append(x.tenant.ready, x)
	}
	free := p.places - p.running
	n = min(n, free)
	var able []*tenant
	for _, t := range p.turns {
		if len(able) < apps && p.room(t, free) > 0 && !held(t.app) {
			able = append(able, t)
		}
	}
	var out []job.Take
	for i, t := range able {
		if n <= 0 {
			break
		}
		part := min(max(1, n/(len(able)-i)), p.room(t, free))
		took := p.share(t, part, &out)
		n, free = n-took, free-took
		p.behind(t)
	}
	return out
}

// behind puts an app that had its turn behind the others.
func (p *plan) behind(t *tenant) {
	if i := slices.Index(p.turns, t); i >= 0 {
		p.turns = append(slices.Delete(p.turns, i, i+1), t)
	}
}

// room is how many more places an app may have when so many are free: not so many that it has more than it leaves, but one.
func (p *plan) room(t *tenant, free int) int {
	left := (free - t.running) / 2
	if t.running == 0 {
		left = max(left, min(1, free))
	}
	if left = min(left, p.appPlaces-t.running); left <= 0 {
		return 0
	}
	for _, x := range t.ready {
		if x.running < p.targetPlaces {
			return left
		}
	}
	return 0
}

// share divides an app's part among its lanes, each in turn, and returns what it gave.
func (p *plan) share(t *tenant, part int, out *[]job.Take) (took int) {
	for i, lanes := 0, len(t.ready); i < lanes && took < part; i++ {
		x := t.ready[0]
		t.ready = append(t.ready[1:], x)
		n := min(max(1, (part-took)/(lanes-i)), p.targetPlaces-x.running)
		if n <= 0 {
			continue
		}
		x.odd = !x.odd
		*out = append(*out, job.Take{Lane: x.Lane, N: n, Odd: x.odd})
		took += n
	}
	return took
}

// took says what came of a take: how many began, and when the lane's next is due (0: none).
func (p *plan) took(l job.Lane, begun int, next int64) {
	x := p.lane(l)
	x.running += begun
	x.tenant.running += begun
	p.running += begun
	if next != job.Now {
		p.unready(x)
		if next > 0 {
			p.wait(l, next)
		}
	}
	p.tidy(x)
}

func (p *plan) unready(x *lane) {
	if !x.ready {
		return
	}
	x.ready = false
	t := x.tenant
	t.ready = slices.DeleteFunc(t.ready, func(y *lane) bool { return y == x })
	if len(t.ready) == 0 {
		p.turns = slices.DeleteFunc(p.turns, func(y *tenant) bool { return y == t })
	}
}

// keep counts an attempt that runs already.
func (p *plan) keep(l job.Lane) { p.took(l, 1, job.Now) }

// ended gives a place back.
func (p *plan) ended(l job.Lane) {
	x := p.lane(l)
	x.running--
	x.tenant.running--
	p.running--
	p.tidy(x)
}

// tidy forgets a lane in which nothing waits and nothing runs.
func (p *plan) tidy(x *lane) {
	if x.running > 0 || x.ready || x.place >= 0 {
		return
	}
	delete(p.lanes, x.Lane)
	if x.tenant.lanes--; x.tenant.lanes == 0 {
		delete(p.apps, x.App)
	}
}

// later is a heap of lanes by due time.
type later []*lane

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (l later) Len() int           { return len(l) }
func (l later) Less(i, j int) bool { return l[i].due < l[j].due }
func (l later) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].place, l[j].place = i, j
}

// Push implements heap.Interface.
func (l *later) Push(x any) {
	y := x.(*lane)
	y.place = len(*l)
	*l = append(*l, y)
}

// Pop implements heap.Interface.
func (l *later) Pop() any {
	old := *l
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*l = old[:len(old)-1]
	x.place = -1
	return x
}
