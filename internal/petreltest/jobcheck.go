package petreltest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// The checks of jobs.
const (
	CheckLedger    = "ledger"       // it does not add up, on some node, or says something else than the rest
	CheckVanished  = "vanished"     // what was accepted was never told, and is not listed as dead
	CheckInvented  = "invented"     // something was told that nobody caused
	CheckEventID   = "event id"     // one thing was told under two ids, or two things under one
	CheckBody      = "body"         // an attempt told something else than the one before it
	CheckAttempt   = "attempt"      // the number of an attempt did not grow
	CheckDeadLists = "dead letters" // nodes list other dead jobs, or more or less than the ledger has
)

// JobCall is one event of one call, as the receiver saw it.
type JobCall struct {
	Hook    string // whom it was for
	Cause   string // what it tells: the id of a message
	Event   string // its id
	Body    string // the event as it came
	Attempt int    // by the header of the call
	Alone   bool   // in its call: else the header is that of the event that was tried most often
	Status  int    // that the receiver answered; 0: it did not
}

// JobLedger is an app's ledger, as a node shows it.
type JobLedger struct {
	Accepted, Waiting, Running, Done, Dead, Discarded uint64
	Attempts, Failed, Interrupted                     uint64
}

// DeadJob is a dead letter, as a node lists it.
type DeadJob struct{ ID, Event, Hook string }

// JobEvidence is what a run of jobs left behind: what was caused, what the receiver saw, in its order, and what the nodes say at the end.
type JobEvidence struct {
	Hooks   []string
	Causes  []string // ids of the messages that are there, each of which makes one job for each hook
	Calls   []JobCall
	Ledgers map[string]JobLedger // by node
	Dead    map[string][]DeadJob // by node
}

// thing is what one job tells.
type thing struct{ hook, cause string }

// Check judges it.
func (e *JobEvidence) Check() []Finding {
	c := jobChecker{e: e, ids: map[thing]string{}, things: map[string]thing{}, told: map[thing]bool{}}
	c.calls()
	dead := c.dead()
	c.jobs(dead)
	c.ledgers(len(dead))
	slices.SortStableFunc(c.found, func(a, b Finding) int { return cmp.Compare(a.Check, b.Check) })
	return c.found
}

type jobChecker struct {
	e      *JobEvidence
	ids    map[thing]string // the event id of each thing that was told
	things map[string]thing // by event id
	told   map[thing]bool   // and answered with 2xx
	found  []Finding
}

func (c *jobChecker) find(check, hook, format string, args ...any) {
	c.found = append(c.found, Finding{check, hook, fmt.Sprintf(format, args...)})
}

// calls holds every call against what was caused, and against those before it.
func (c *jobChecker) calls() {
	expected := map[thing]bool{}
	for _, h := range c.e.Hooks {
		for _, cause := range c.e.Causes {
			expected[thing{h, cause}] = true
		}
	}
	bodies, attempts := map[string]string{}, map[string]int{}
	for _, call := range c.e.Calls {
		is := thing{call.Hook, call.Cause}
		if !expected[is] {
			c.find(CheckInvented, call.Hook, "nobody caused %q, which was told under %s", call.Cause, call.Event)
			continue
		}
		if id, ok := c.ids[is]; ok && id != call.Event {
			c.find(CheckEventID, call.Hook, "%q was told under %s and under %s", call.Cause, id, call.Event)
		}
		if other, ok := c.things[call.Event]; ok && other != is {
			c.find(CheckEventID, call.Hook, "%s stands for %v and for %v", call.Event, other, is)
		}
		if body, ok := bodies[call.Event]; ok && body != call.Body {
			c.find(CheckBody, call.Hook, "%s was %s and became %s", call.Event, body, call.Body)
		}
		if before := attempts[call.Event]; call.Attempt < 1 || call.Alone && call.Attempt <= before {
			c.find(CheckAttempt, call.Hook, "attempt %d of %s came after attempt %d", call.Attempt, call.Event, before)
		}
		c.ids[is], c.things[call.Event], bodies[call.Event] = call.Event, is, call.Body
		if call.Alone {
			attempts[call.Event] = call.Attempt
		}
		if call.Status/100 == 2 {
			c.told[is] = true
		}
	}
}

// dead compares the lists of the nodes and returns one of them.
func (c *jobChecker) dead() []DeadJob {
	var first []DeadJob
	for i, node := range slices.Sorted(maps.Keys(c.e.Dead)) {
		list := slices.SortedFunc(slices.Values(c.e.Dead[node]), func(a, b DeadJob) int { return cmp.Compare(a.ID, b.ID) })
		if i == 0 {
			first = list
		} else if !slices.Equal(first, list) {
			c.find(CheckDeadLists, "", "%s lists %d dead jobs that are not those of another, which lists %d", node, len(list), len(first))
		}
	}
	return first
}

// jobs looks for each thing among what was told and what is dead. A dead job whose event never reached the receiver does not say
// what it would have told: there must be as many of them for a hook as there are things missing.
func (c *jobChecker) jobs(dead []DeadJob) {
	isDead, unseen, missing := map[string]bool{}, map[string]int{}, map[string][]string{}
	for _, d := range dead {
		isDead[d.Event] = true
		if is, seen := c.things[d.Event]; !seen {
			unseen[d.Hook]++
		} else if is.hook != d.Hook {
			c.find(CheckEventID, d.Hook, "the dead job %s has the event id %s, which came to %s", d.ID, d.Event, is.hook)
		}
	}
	for _, h := range c.e.Hooks {
		for _, cause := range c.e.Causes {
			is := thing{h, cause}
			id, seen := c.ids[is]
			switch {
			case c.told[is]:
			case !seen:
				missing[h] = append(missing[h], cause)
			case !isDead[id]:
				c.find(CheckVanished, h, "%q came as %s, was never taken, and is not dead", cause, id)
			}
		}
		if n := len(missing[h]); n > unseen[h] {
			c.find(CheckVanished, h, "%d things never came, and %d dead jobs did not either; among them %q", n, unseen[h], missing[h][0])
		} else if n < unseen[h] {
			c.find(CheckInvented, h, "%d dead jobs never came, and only %d things did not", unseen[h], n)
		}
	}
}

// ledgers holds what each node says at the end against everything else.
func (c *jobChecker) ledgers(dead int) {
	jobs := uint64(len(c.e.Hooks) * len(c.e.Causes)) //nolint:gosec // positive
	if len(c.e.Ledgers) == 0 {
		c.find(CheckLedger, "", "no node showed one")
	}
	for _, node := range slices.Sorted(maps.Keys(c.e.Ledgers)) {
		l := c.e.Ledgers[node]
		switch {
		case l.Accepted != l.Waiting+l.Running+l.Done+l.Dead+l.Discarded:
			c.find(CheckLedger, "", "%s: it does not add up: %+v", node, l)
		case l.Accepted != jobs:
			c.find(CheckLedger, "", "%s: %d jobs were accepted, %d were caused", node, l.Accepted, jobs)
		case l.Waiting+l.Running+l.Discarded != 0:
			c.find(CheckLedger, "", "%s: at the end not all are done or dead: %+v", node, l)
		case l.Dead != uint64(dead): //nolint:gosec // positive
			c.find(CheckDeadLists, "", "%s has %d dead jobs, and lists %d", node, l.Dead, dead)
		case l.Attempts != l.Done+l.Failed+l.Interrupted:
			c.find(CheckLedger, "", "%s: %d attempts began, %d ended: %+v", node, l.Attempts, l.Done+l.Failed+l.Interrupted, l)
		}
	}
}
