//go:build linux

package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// chart is groups of bars: a group per figure, a bar per server, a line from the least to the most over the rounds.
type chart struct {
	title, unit string
	log         bool // the axis
	groups      []group
	names       []string // of the bars
}

type group struct {
	label string
	bars  []spread // of each name; zero: it has none
}

// plot draws the figures of the report into dir. Charts without figures are left out.
func (r *report) plot(dir string) error {
	charts := []struct {
		file, title, unit string
		log               bool
		labels            []string
	}{
		{"peers-rate.svg", "CPU per delivery at a fixed rate", "microseconds", false, []string{"rate-100", "rate-1000", "rate-10000", "rate-rooms"}},
		{"peers-max.svg", "CPU per delivery, as fast as it goes", "microseconds", true, []string{"max-100", "max-1000", "max-10000", "max-rooms"}},
		{"peers-memory.svg", "Memory of an idle connection", "bytes of RSS", true, []string{"idle", "idle: after"}},
		{"peers-connections.svg", "CPU per publication and per client that comes or comes back", "microseconds", true, []string{"publish", "idle: connect", "storm"}},
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range charts {
		ch := chart{title: c.title, unit: c.unit, log: c.log}
		for _, s := range r.Servers {
			ch.names = append(ch.names, s.Name)
		}
		for _, bc := range r.chosen() {
			for _, m := range metrics(bc) {
				if !slices.Contains(c.labels, m.label) {
					continue
				}
				g := group{label: m.label}
				some := false
				for _, s := range r.Servers {
					value, _, runs := r.figures(bc, m, s.Name)
					g.bars = append(g.bars, value)
					some = some || runs > 0
				}
				if some {
					ch.groups = append(ch.groups, g)
				}
			}
		}
		if len(ch.groups) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(ch.svg()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Colours that differ for most eyes (Okabe and Ito), greys for the bare servers.
func colour(name string, i int) string {
	switch {
	case strings.HasPrefix(name, "limit"), strings.HasPrefix(name, "bare"):
		return []string{"#444", "#777", "#999", "#bbb"}[i%4]
	case name == "petrel":
		return "#0072b2"
	case name == "petrel-native":
		return "#56b4e9"
	case name == "petrel-tls":
		return "#004466"
	}
	return []string{"#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442"}[i%5]
}

const (
	plotWidth, plotHeight = 900, 420
	left, right           = 70, 20
	top, bottom           = 50, 90
)

func (c *chart) svg() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	least, most := c.bounds()
	y := func(v float64) float64 {
		share := v / most
		if c.log {
			share = math.Log(max(v, least)/least) / math.Log(most/least)
		}
		return plotHeight - bottom - share*(plotHeight-top-bottom)
	}
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="12">`, plotWidth, plotHeight)
	p(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	p(`<text x="%d" y="24" font-size="16" font-weight="600">%s</text>`, left, html.EscapeString(c.title))
	p(`<text x="%d" y="42" fill="#555">%s; median, and a line from the least to the most; less is better</text>`, left, html.EscapeString(c.unit))
	for _, v := range c.ticks(least, most) {
		p(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`, left, plotWidth-right, y(v), y(v))
		p(`<text x="%d" y="%.1f" text-anchor="end" fill="#555">%s</text>`, left-6, y(v)+4, tickText(v))
	}
	width := float64(plotWidth-left-right) / float64(len(c.groups))
	bar := width * 0.86 / float64(len(c.names))
	for gi, g := range c.groups {
		x := float64(left) + width*(float64(gi)+0.07)
		for i, s := range g.bars {
			if s.median <= 0 {
				continue
			}
			at := x + bar*float64(i)
			p(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s, %s: %s (%s to %s)</title></rect>`, at, y(s.median), bar*0.9, plotHeight-bottom-y(s.median),
				colour(c.names[i], i), html.EscapeString(c.names[i]), html.EscapeString(g.label), number(s.median), number(s.least), number(s.most))
			p(`<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#000"/>`, at+bar*0.45, at+bar*0.45, y(s.least), y(s.most))
			p(`<text x="%.1f" y="%.1f" text-anchor="middle" font-size="9">%s</text>`, at+bar*0.45, y(s.most)-3, number(s.median))
		}
		p(`<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, x+width*0.43, plotHeight-bottom+18, html.EscapeString(g.label))
	}
	p(`<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="#000"/>`, left, plotWidth-right, plotHeight-bottom, plotHeight-bottom)
	at, line := left, 0
	for i, name := range c.names {
		if at > plotWidth-150 {
			at, line = left, line+1
		}
		p(`<rect x="%d" y="%d" width="11" height="11" fill="%s"/>`, at, plotHeight-bottom+36+line*18, colour(name, i))
		p(`<text x="%d" y="%d">%s</text>`, at+15, plotHeight-bottom+46+line*18, html.EscapeString(name))
		at += 40 + 7*len(name)
	}
	p(`</svg>`)
	return b.String()
}

// bounds of the axis.
func (c *chart) bounds() (least, most float64) {
	least, most = math.Inf(1), 0
	for _, g := range c.groups {
		for _, s := range g.bars {
			if s.median > 0 {
				least, most = min(least, s.least, s.median), max(most, s.most)
			}
		}
	}
	if most <= 0 {
		return 1, 10
	}
	if c.log {
		// A bar of the least value is to be seen too.
		return math.Pow(10, math.Floor(math.Log10(max(least, 1e-6))-0.3)), most * 1.25
	}
	return 0, most * 1.1
}

func (c *chart) ticks(least, most float64) (ticks []float64) {
	if c.log {
		for v := least; v <= most; v *= 10 {
			ticks = append(ticks, v)
		}
		return ticks
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for most/step < 4 {
		step /= 2
	}
	for v := 0.0; v <= most; v += step {
		ticks = append(ticks, v)
	}
	return ticks
}

func tickText(v float64) string {
	if v >= 1 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%g", v)
}
