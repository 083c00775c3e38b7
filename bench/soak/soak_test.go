package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

// TestSoak: a short one finds nothing, whatever the machine is doing.
func TestSoak(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds Petrel and keeps it under load; make test runs it")
	}
	p, err := start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	v, err := soak(t.Context(), options{target: p.target, conns: 300, channels: 30, rate: 100, duration: 6 * time.Second, seed: 1}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if v.found > 0 {
		t.Fatal(v.report())
	}
	heard := v.latency[0].total() + v.latency[1].total()
	if v.published.Load() == 0 || heard == 0 || v.moves.Load() == 0 {
		t.Fatalf("it looked at nothing: %s", v.report())
	}
}

// TestFinds: what must not be is found.
func TestFinds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, want string
		do         func(c *client, h *heard)
	}{
		{"all is well", "", func(c *client, h *heard) { hear(c, h, 3, 4, 5) }},
		{"later", "", func(c *client, h *heard) { h.floor = 7; hear(c, h, 8, 9) }},
		{"what began before may come", "", func(c *client, h *heard) { h.floor = 7; hear(c, h, 7, 8) }},
		{"lost at the beginning", "1 lost", func(c *client, h *heard) { hear(c, h, 4) }},
		{"lost", "2 lost", func(c *client, h *heard) { hear(c, h, 3, 6) }},
		{"twice", "twice, or out of order", func(c *client, h *heard) { hear(c, h, 3, 3) }},
		{"out of order", "twice, or out of order", func(c *client, h *heard) { hear(c, h, 3, 4, 3) }},
		{"before it was subscribed", "before it was subscribed", func(c *client, h *heard) { h.live = false; hear(c, h, 3) }},
		{"nowhere", "where it is not subscribed", func(c *client, _ *heard) { _ = c.take(frame{"m", "elsewhere", `{"n":1}`}) }},
		{"came twice", "moved", func(c *client, h *heard) { c.moved(h, true, `{"user_id":"ann"}`) }},
		{"left twice", "moved", func(c *client, h *heard) { c.moved(h, false, `{"user_id":"bob"}`) }},
		{"came", "", func(c *client, h *heard) { c.moved(h, true, `{"user_id":"bob"}`) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := &heard{ch: &channel{name: "soak-1"}, live: true, floor: 2, members: map[string]bool{"ann": true}}
			c := &client{w: newWorld(options{channels: 1}), user: "me", subs: map[string]*heard{"soak-1": h}}
			test.do(c, h)
			got := strings.Join(c.w.verdict.findings, "; ")
			if (test.want == "") != (got == "") || !strings.Contains(got, test.want) {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}

func hear(c *client, h *heard, numbers ...int) {
	for _, n := range numbers {
		c.hear(h, `{"n":`+string(rune('0'+n))+`,"t":1}`)
	}
}

// TestFindsWhatGrows: the costs of a run are judged by its middle and its end.
func TestFindsWhatGrows(t *testing.T) {
	t.Parallel()
	run := func(change func(i int, s *sample)) *verdict {
		v := newVerdict()
		for i := range 100 {
			s := sample{goroutines: 100, rss: 200 << 20}
			change(i, &s)
			v.samples = append(v.samples, s)
		}
		v.judgeCost()
		return v
	}
	if v := run(func(int, *sample) {}); v.found != 0 {
		t.Error(v.findings)
	}
	if v := run(func(i int, s *sample) { s.goroutines += float64(i) }); v.found != 1 {
		t.Error("growing goroutines are not found")
	}
	if v := run(func(i int, s *sample) { s.rss += float64(i * 3 << 20) }); v.found != 1 {
		t.Error("growing memory is not found")
	}
	for since, found := range map[time.Duration]bool{20 * time.Millisecond: false, 24 * time.Millisecond: false, 40 * time.Millisecond: true} {
		v := newVerdict()
		for range 1000 {
			v.latency[0].add(10 * time.Millisecond)
			v.latency[1].add(since)
		}
		if v.judgeCost(); (v.count() == 1) != found {
			t.Errorf("10 ms before the slow ones came, and %s since: %v", since, v.findings)
		}
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i) * time.Millisecond)
	}
	for share, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond} {
		if got := h.at(share); got < want || got > want*11/10 {
			t.Errorf("%.2f: %s, want about %s", share, got, want)
		}
	}
}
