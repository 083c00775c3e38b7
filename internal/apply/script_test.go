package apply

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/scripttest"
)

// TestScripts runs testdata/*.txt (scripttest). Steps: "apply" followed by entries, one a line ("ID VERB ARGS", several events joined by " + ", the
// guards of all of them count); "again N" hands in the last N records once more; "restart"; "expect ID".
func TestScripts(t *testing.T) {
	t.Parallel()
	scripttest.Run(t, func(t *testing.T) scripttest.Story { return scripttest.Story{Step: newWorld(t).step} })
}

func (w *world) step(lines []string) string {
	words := strings.Fields(lines[0])
	switch words[0] {
	case "apply":
		var entries []*event.Entry
		for _, l := range lines[1:] {
			entries = append(entries, w.parse(l))
		}
		return w.report(w.log.add(w.t, entries...))
	case "again":
		n, err := strconv.Atoi(words[1])
		if err != nil {
			w.t.Fatal(err)
		}
		return w.report(w.log.recs[len(w.log.recs)-n:])
	case "restart":
		w.reopen()
		return fmt.Sprintf("applied %d", w.loop.Applied().Index)
	case "expect":
		return w.outcome(id(words[1]))
	}
	w.t.Fatalf("no such step: %s", lines[0])
	return ""
}

// report applies recs and says what came of it.
func (w *world) report(recs []petrel.Record) string {
	before := len(w.pubs)
	var b strings.Builder
	if err := w.loop.Apply(context.Background(), recs, w.log.mark()); err != nil {
		fmt.Fprintln(&b, "error:", err)
	}
	for _, r := range recs {
		e, err := event.Decode(r.Payload)
		if err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%d %s\n", r.Index, w.outcome(e.ID))
	}
	for _, p := range w.pubs[before:] {
		fmt.Fprintf(&b, "publish %s %d %s %s from %d\n", p.Channel.Name, p.Seq, p.Type, p.Data, p.Index)
	}
	err := w.store.View(context.Background(), func(r *projection.Reader) error {
		return r.Query(`SELECT room || '/' || user, version FROM toy_member ORDER BY 1`, func(row *projection.Row) error {
			fmt.Fprintln(&b, "member", row.Text(0), "version", row.Int(1))
			return nil
		})
	})
	if err != nil {
		w.t.Fatal(err)
	}
	a := w.loop.Applied()
	fmt.Fprintf(&b, "applied %d mark %d epoch %q", a.Index, a.Mark, a.Epoch)
	return b.String()
}

func (w *world) outcome(eid petrel.EntryID) string {
	wt := w.loop.Expect(eid)
	defer wt.Cancel()
	select {
	case <-wt.Done():
	default:
		return name(eid) + " not seen"
	}
	o, err := wt.Wait(context.Background())
	if err != nil {
		return fmt.Sprint(name(eid), " ", err)
	}
	if o.Conflicted {
		return fmt.Sprintf("%s conflicted at %d", name(eid), o.Index)
	}
	return fmt.Sprintf("%s folded at %d seqs %d", name(eid), o.Index, o.Seqs)
}

// parse reads one entry.
func (w *world) parse(line string) *event.Entry {
	eid, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	var all *event.Entry
	for part := range strings.SplitSeq(rest, " + ") {
		e := w.verb(eid, append(strings.Fields(part), "", "", ""))
		if all == nil {
			all = e
			continue
		}
		all.Guards, all.Events = append(all.Guards, e.Guards...), append(all.Events, e.Events...)
	}
	return all
}

func (w *world) verb(eid string, f []string) *event.Entry {
	version, _ := strconv.ParseUint(f[3], 10, 64) // absent is 0
	switch f[0] {
	case "found":
		return found(eid, f[1], f[2])
	case "post":
		return post(eid, f[1], f[2])
	case "blind":
		return blind(eid, f[1], f[2])
	case "join":
		return join(eid, f[1], f[2], version)
	case "leave":
		return leave(eid, f[1], f[2], version)
	}
	w.t.Fatalf("no such verb: %s", f[0])
	return nil
}
