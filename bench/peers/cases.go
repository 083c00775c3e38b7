//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/bench/peers/load"
)

// benchCase is one row of the summary.
type benchCase struct {
	name  string
	title string
	short string // of title, for a plot
	unit  string
	aim   string // for Petrel
	// yardstick is the bare server that the others are held against; where there is no C compiler it is its Go twin.
	yardstick string
	job       func(s *settings) load.Job
	value     func(r *load.Result) float64
}

// allCases are the rows of the summary, in its order.
func allCases() []benchCase {
	cpu := func(r *load.Result) float64 { return over(r.ServerCPU, r.Delivered) }
	var all []benchCase
	for _, n := range []int{100, 1_000, 10_000} {
		all = append(all, benchCase{
			name: fmt.Sprintf("rate-%d", n), title: count(n) + " subscribers of one channel, 30,000 deliveries a second", short: count(n) + " subscribers",
			unit: "µs of CPU a delivery", aim: "1.35 ×", yardstick: "limit", value: cpu,
			job: func(s *settings) load.Job { return s.fanOut(n, 1, 4, 30_000/float64(n)) },
		})
	}
	all = append(all, benchCase{
		name: "rate-rooms", title: "1,000 channels of 10 subscribers, 2,000 publications a second", short: "1,000 channels of 10 subscribers",
		unit: "µs of CPU a delivery", aim: "20", yardstick: "limit", value: cpu,
		job: func(s *settings) load.Job { return s.fanOut(10_000, 1000, 32, 2000) },
	})
	for i, n := range []int{100, 1_000, 10_000} {
		lanes := []int{64, 20, 4}[i]
		all = append(all, benchCase{
			name: fmt.Sprintf("max-%d", n), title: fmt.Sprintf("%s subscribers of one channel, as fast as it goes with %d publications under way", count(n), lanes),
			short: count(n) + " subscribers", unit: "µs of CPU a delivery", aim: []string{"1.6", "1.6", "5"}[i], yardstick: "limit-coalesce", value: cpu,
			job: func(s *settings) load.Job { return s.fanOut(n, 1, lanes, 0) },
		})
	}
	return append(all, benchCase{
		name: "max-rooms", title: "1,000 channels of 10 subscribers, as fast as it goes with 256 publications under way", short: "1,000 channels of 10 subscribers",
		unit: "µs of CPU a delivery", yardstick: "limit", value: cpu,
		job: func(s *settings) load.Job { return s.fanOut(10_000, 1000, 256, 0) },
	}, benchCase{
		name: "publish", title: "publications over HTTP on 32 connections, one subscriber", short: "A publication over HTTP", unit: "µs of CPU a publication", aim: "35", yardstick: "limit",
		job:   func(s *settings) load.Job { return s.fanOut(1, 1, 32, 0) },
		value: func(r *load.Result) float64 { return over(r.ServerCPU, r.Published) },
	}, benchCase{
		name: "idle", title: "connections that say nothing, a channel each", unit: "bytes of RSS a connection", aim: "2,000", yardstick: "limit",
		job: func(s *settings) load.Job {
			j := s.base(load.Idle, s.conns)
			j.Measure, j.Settle = s.times.idle, 3*s.times.settle
			return j
		},
		value: func(r *load.Result) float64 { return over(float64(r.Loaded.RSS-r.Base.RSS), r.Connect.Count) },
	}, benchCase{
		name: "storm", title: "connections of one channel reset at once: reconnect and resubscribe", unit: "µs of CPU a client", aim: "100", yardstick: "limit",
		job: func(s *settings) load.Job {
			j := s.base(load.Storm, s.storm)
			j.Channels = 1
			return j
		},
		value: func(r *load.Result) float64 {
			if r.Storm == nil {
				return 0
			}
			return over(r.ServerCPU, r.Connect.Count-r.Storm.NotBack)
		},
	})
}

func over(v float64, n int) float64 {
	if n <= 0 {
		return 0
	}
	return v / float64(n)
}

func (s *settings) base(kind string, n int) load.Job {
	return load.Job{
		Kind: kind, Subscribers: n, Payload: s.payload, Settle: s.times.settle, Warmup: s.times.warmup, Measure: s.times.measure, Limit: s.times.limit, Window: 500,
	}
}

func (s *settings) fanOut(n, channels, lanes int, rate float64) load.Job {
	j := s.base(load.FanOut, n)
	j.Channels, j.Lanes, j.Rate = channels, lanes, rate
	return j
}

// chooseCases by name or its beginning.
func chooseCases(list string) ([]benchCase, error) {
	all := allCases()
	if list == "" {
		return all, nil
	}
	var chosen []benchCase
	for _, want := range strings.Split(list, ",") {
		found := false
		for _, c := range all {
			if c.name != want && !strings.HasPrefix(c.name, want+"-") {
				continue
			}
			found = true
			if !slices.ContainsFunc(chosen, func(o benchCase) bool { return o.name == c.name }) {
				chosen = append(chosen, c)
			}
		}
		if !found {
			return nil, fmt.Errorf("no such case: %s", want)
		}
	}
	return chosen, nil
}
