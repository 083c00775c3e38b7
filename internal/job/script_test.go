package job

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/apply/applytest"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/scripttest"
)

// TestScripts runs testdata/*.txt (scripttest). A step is one or more lines:
// "as operator|user|app|system APP", "limits WAITING DEAD", "wait MILLISECONDS", "queue APP N TARGET [IN-MILLISECONDS]" (as the system),
// "runner NODE" (it begins), "step NODE take APP TARGET N | report ID OUTCOME [IN-MILLISECONDS]…", "repeat APP ID…", "discard APP ID…"
// ("?" before the ids: lenient), "show ID", "list APP STATE", "ledger APP". A step that begins with "together" decides its other lines on
// one snapshot and folds them in one batch.
func TestScripts(t *testing.T) {
	t.Parallel()
	scripttest.Run(t, func(t *testing.T) scripttest.Story {
		s := &script{world: newWorld(t), actor: operator, runners: map[string]uint64{}}
		return scripttest.Story{Step: func(lines []string) string { return strings.Join(s.step(lines), "\n") }, End: s.agree}
	})
}

// script is a world with what its lines have set.
type script struct {
	*world
	actor   petrel.Actor
	limits  Limits
	runners map[string]uint64 // what each node thinks its last step was
}

func (s *script) step(lines []string) (out []string) {
	if lines[0] != "together" {
		for _, line := range lines {
			out = append(out, s.line(strings.Fields(line)))
		}
		return out
	}
	var plans []applytest.Planned
	for _, line := range lines[1:] {
		actor, cmd := s.command(strings.Fields(line))
		p, err := s.plan(actor, cmd)
		if err != nil {
			s.T.Fatalf("%s: %v", line, err)
		}
		plans = append(plans, p)
	}
	for i, o := range s.Fold(plans...) {
		if f := strings.Fields(lines[i+1]); f[0] == "step" && !o.Conflicted {
			s.runners[f[1]] = o.Index
		}
		out = append(out, map[bool]string{true: "conflicted", false: "folded"}[o.Conflicted])
	}
	return out
}

func (s *script) command(f []string) (petrel.Actor, command) {
	ids := func(words []string) (out []ID, lenient bool) {
		for _, w := range words {
			if w == "?" {
				lenient = true
				continue
			}
			id, err := ParseID(w)
			if err != nil {
				s.T.Fatal(err)
			}
			out = append(out, id)
		}
		return out, lenient
	}
	switch f[0] {
	case "queue":
		jobs := make([]New, s.number(f[2]))
		for i := range jobs {
			jobs[i] = New{Kind: "mail", Target: f[3], Body: []byte("dear"), Due: s.in(f[4:])}
		}
		return of(petrel.ActorSystem, petrel.AppID(f[1])), Enqueue{Jobs: jobs, Limits: s.limits}
	case "runner":
		return system, BeginRunner{Node: petrel.NodeID(f[1])}
	case "step":
		return system, s.stepOf(f)
	case "repeat":
		jobs, lenient := ids(f[2:])
		return s.actor, Repeat{App: petrel.AppID(f[1]), Jobs: jobs, Lenient: lenient, Limits: s.limits}
	case "discard":
		jobs, lenient := ids(f[2:])
		return s.actor, Discard{App: petrel.AppID(f[1]), Jobs: jobs, Lenient: lenient}
	}
	s.T.Fatalf("no such command: %v", f)
	return petrel.Actor{}, nil
}

func (s *script) stepOf(f []string) Step {
	step := Step{Runner: s.runners[f[1]]}
	for rest := f[2:]; len(rest) > 0; {
		switch rest[0] {
		case "take":
			step.Take = append(step.Take, Take{Lane: Lane{petrel.AppID(rest[1]), rest[2]}, N: s.number(rest[3])})
			rest = rest[4:]
		case "report":
			id, err := ParseID(rest[1])
			if err != nil {
				s.T.Fatal(err)
			}
			j := mustView(s.world, func(r *projection.Reader) (Job, error) { return Get(r, "", id) })
			rep := Report{App: j.App, ID: id, Outcome: map[string]event.JobOutcome{
				"done": event.JobDone, "failed": event.JobFailed, "dead": event.JobDead, "interrupted": event.JobInterrupted,
			}[rest[2]]}
			rest = rest[3:]
			if rep.Outcome != event.JobDone {
				rep.Error = "because"
			}
			if len(rest) > 0 && rest[0] != "take" && rest[0] != "report" {
				rep.Due = s.in(rest[:1])
				rest = rest[1:]
			}
			step.Reports = append(step.Reports, rep)
		default:
			s.T.Fatalf("no such part of a step: %v", rest)
		}
	}
	return step
}

func (s *script) number(word string) int {
	n, err := strconv.Atoi(word)
	if err != nil {
		s.T.Fatal(err)
	}
	return n
}

// in is the time so many milliseconds from now; 0 without a word.
func (s *script) in(words []string) int64 {
	if len(words) == 0 {
		return 0
	}
	return s.now + int64(s.number(words[0]))
}

func (s *script) line(f []string) string {
	switch f[0] {
	case "as":
		s.actor = petrel.Actor{Kind: map[string]petrel.ActorKind{"operator": petrel.ActorOperator, "app": petrel.ActorApp, "user": petrel.ActorUser, "system": petrel.ActorSystem}[f[1]]}
		if len(f) > 2 {
			s.actor.App = petrel.AppID(f[2])
		}
		return strings.Join(f[1:], " ")
	case "limits":
		s.limits = Limits{Waiting: s.number(f[1]), Dead: s.number(f[2])}
		return "set"
	case "wait":
		s.now += int64(s.number(f[1]))
		return "waited"
	case "show":
		id, err := ParseID(f[1])
		if err != nil {
			return err.Error()
		}
		j, err := view(s.world, func(r *projection.Reader) (Job, error) { return Get(r, "", id) })
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%s %s for %q, %d attempts, %d failures, %d interrupted, due %+d ms, error %q, body %q", j.ID, j.State, j.Target, j.Attempts, j.Failures, j.Interrupted, s.ago(j.Due), j.Error, j.Body)
	case "list":
		state, err := ParseState(f[2])
		if err != nil {
			return err.Error()
		}
		p := mustView(s.world, func(r *projection.Reader) (Page, error) {
			return List(r, ListQuery{App: petrel.AppID(f[1]), State: state})
		})
		var ids []string
		for _, j := range p.Jobs {
			ids = append(ids, j.ID.String())
		}
		return strings.TrimSpace(fmt.Sprintf("%d %s: %s", len(ids), state, strings.Join(ids, " ")))
	case "ledger":
		l := mustView(s.world, func(r *projection.Reader) (Ledger, error) { return LedgerOf(r, petrel.AppID(f[1])) })
		off := mustView(s.world, func(r *projection.Reader) (uint64, error) { return Audit(r, petrel.AppID(f[1])) })
		return fmt.Sprintf("accepted %d = waiting %d + running %d + done %d + dead %d + discarded %d; %d off", l.Accepted, l.Waiting, l.Running, l.Done, l.Dead, l.Discarded, off)
	}
	actor, cmd := s.command(f)
	answer, err := s.do(actor, cmd)
	if err != nil {
		return err.Error()
	}
	switch a := answer.(type) {
	case []ID:
		return fmt.Sprint("jobs ", strings.Join(Names(a), " "))
	case uint64:
		s.runners[f[1]] = a
		return "runs"
	case Stepped:
		s.runners[f[1]] = a.Runner
		var begun []string
		for _, j := range a.Begun {
			begun = append(begun, j.ID.String())
		}
		out := "begun " + strings.Join(begun, " ")
		for _, n := range a.Next {
			switch n {
			case 0:
				out += ", none waits"
			case Now:
				out += ", more"
			default:
				out += fmt.Sprintf(", next in %d ms", n-s.now)
			}
		}
		if len(a.Lost) > 0 {
			out += fmt.Sprint(", lost ", a.Lost)
		}
		return out
	}
	return fmt.Sprint(answer)
}

// ago is a time as a distance from now; 0 stays.
func (s *script) ago(ms int64) int64 {
	if ms == 0 {
		return 0
	}
	return ms - s.now
}
