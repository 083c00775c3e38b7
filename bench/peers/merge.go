//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/bench/peers/load"
)

// rewrite prints the tables of earlier runs, as one, and draws their plots.
func rewrite(args []string, out, progress io.Writer) error {
	f := flag.NewFlagSet("report", flag.ContinueOnError)
	f.SetOutput(progress)
	plots := f.String("plots", "", "`DIR` for the plots; none when absent")
	markdown := f.Bool("markdown", false, "the summary as documents have it")
	servers := f.String("servers", "", "these only, in this order, with commas between")
	var files []string
	for len(args) > 0 { // flags may follow files
		if err := f.Parse(args); err != nil {
			return err
		}
		if args = f.Args(); len(args) > 0 {
			files, args = append(files, args[0]), args[1:]
		}
	}
	if len(files) == 0 {
		return errors.New("report FILE…, each the results.json of a run on this machine")
	}
	var r report
	for i, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var next report
		if err := json.Unmarshal(text, &next); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if i == 0 {
			r = next
		} else if err := r.join(&next); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if *servers != "" {
		if err := r.choose(strings.Split(*servers, ",")); err != nil {
			return err
		}
	}
	if *plots != "" {
		if err := r.plot(*plots); err != nil {
			return err
		}
	}
	if *markdown {
		r.writeMarkdown(out)
	} else {
		r.write(out)
	}
	return nil
}

// join adds the runs of another report of this machine. Its rounds are counted on, so that a run is only ever held against the bare
// server of its own round of its own report.
func (r *report) join(o *report) error {
	if r.Machine != o.Machine {
		return fmt.Errorf("measured on another machine: %s, the first on %s", o.Machine, r.Machine)
	}
	before := len(r.Runs)
	last := 0
	for _, run := range r.Runs {
		last = max(last, run.Round)
	}
	for _, run := range o.Runs {
		for _, have := range r.Runs[:before] {
			if have.At.Equal(run.At) {
				return errors.New("these runs are there already")
			}
			if have.Case == run.Case && work(have.Job) != work(run.Job) {
				return fmt.Errorf("%s is another load: %+v, before %+v", run.Case, work(run.Job), work(have.Job))
			}
		}
		run.Round += last
		r.Runs = append(r.Runs, run)
	}
	also := func(text *string, more, between string) {
		if !slices.Contains(strings.Split(*text, between), more) {
			*text += between + more
		}
	}
	also(&r.Commit, o.Commit, ", ")
	also(&r.Settings, o.Settings, "\n")
	for _, s := range o.Servers {
		i := slices.IndexFunc(r.Servers, func(have entrant) bool { return have.Name == s.Name })
		switch {
		case i < 0:
			r.Servers = append(r.Servers, s)
		case r.Servers[i].Kind != s.Kind:
			return fmt.Errorf("%s is of the kind %s, before %s", s.Name, s.Kind, r.Servers[i].Kind)
		case r.Servers[i].Version != s.Version:
			return fmt.Errorf("%s is version %s, before %s", s.Name, s.Version, r.Servers[i].Version)
		}
	}
	names := serverNames()
	place := func(s entrant) int {
		if i := slices.Index(names, s.Kind); i >= 0 {
			return i
		}
		return len(names)
	}
	slices.SortStableFunc(r.Servers, func(a, b entrant) int { return place(a) - place(b) })
	r.Cases = append(r.Cases, o.Cases...)
	return nil
}

// work is what of a job must be the same for its figures to be comparable. Channels are not: the native protocol is given fewer.
func work(j load.Job) load.Job {
	return load.Job{Measure: j.Measure, Kind: j.Kind, Subscribers: j.Subscribers, Lanes: j.Lanes, Rate: j.Rate, Payload: j.Payload, Window: j.Window}
}

// choose leaves some servers, in the order of their names.
func (r *report) choose(names []string) error {
	var some []entrant
	for _, name := range names {
		i := slices.IndexFunc(r.Servers, func(s entrant) bool { return s.Name == name })
		if i < 0 {
			return fmt.Errorf("%s was not measured", name)
		}
		some = append(some, r.Servers[i])
	}
	r.Servers = some
	return nil
}
