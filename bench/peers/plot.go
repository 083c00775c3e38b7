//go:build linux

package main

import (
	"cmp"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/petrel-chat/petrel/bench/peers/load"
)

// figure is a picture of panels that say one thing.
type figure struct {
	title, note string
	panels      []panel
}

// panel has a bar for each server, with what it is worth beside it. Each has a scale of its own.
type panel struct {
	title string
	rows  []row
}

type row struct {
	name        string
	from, to    float64 // the bar
	least, most float64 // the line over it; both 0: there is none
	text, aside string
}

// plot draws the figures of the report into dir. Those without anything to show are left out.
func (r *report) plot(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	const medians = "Medians, and a line from the least to the most; less is better. Each panel has its own scale."
	const dashed = medians + " Dashed: the limit."
	for name, f := range map[string]figure{
		"peers-delivery.svg": {
			"CPU of the server for a delivery, µs: 30,000 a second (20,000 in the last)", dashed,
			r.panels("rate-100", "rate-1000", "rate-10000", "rate-rooms"),
		},
		"peers-speed.svg": {
			"CPU of the server for a delivery, µs: as fast as it goes", dashed,
			r.panels("max-100", "max-1000", "max-10000", "max-rooms"),
		},
		"peers-latency.svg": {
			"From publication to subscriber, ms", "Each bar goes from the median of all deliveries to the 99th percentile (p50 / p99). Each panel has its own scale.",
			r.latencies(),
		},
		"peers-idle.svg":    {"What idle connections cost", medians, r.panels("idle", "idle: CPU")},
		"peers-clients.svg": {"CPU of the server for a request or a client, µs", medians, r.panels("publish", "idle: connect", "storm")},
	} {
		f.panels = slices.DeleteFunc(f.panels, func(p panel) bool { return len(p.rows) == 0 })
		if len(f.panels) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(f.svg()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// panels of the metrics with these labels.
func (r *report) panels(labels ...string) (all []panel) {
	for _, c := range r.chosen() {
		for _, m := range metrics(c) {
			if !slices.Contains(labels, m.label) {
				continue
			}
			p := panel{title: map[string]string{
				"idle": "Memory, bytes of RSS a connection", "idle: CPU": "CPU with all of them and heartbeats, ms a second",
				"idle: connect": "Connect and subscribe", "storm": "All reset at once: reconnect, resubscribe",
			}[m.label]}
			p.title = cmp.Or(p.title, c.short)
			for _, s := range r.columns(c) {
				value, ratio, runs := r.figures(c, m, s)
				if runs == 0 {
					continue
				}
				line := row{name: s, to: value.median, least: value.least, most: value.most, text: number(value.median)}
				if strings.HasSuffix(m.unit, "a delivery") && ratio.median > 0 && s != r.yardstick(c) {
					line.aside = fmt.Sprintf("%.2f ×", ratio.median)
				}
				p.rows = append(p.rows, line)
			}
			all = append(all, p)
		}
	}
	return all
}

// latencies are panels of the cases at a fixed rate.
func (r *report) latencies() (all []panel) {
	for _, c := range r.chosen() {
		if !strings.HasPrefix(c.name, "rate-") {
			continue
		}
		p := panel{title: c.short}
		for _, s := range r.columns(c) {
			p50, _, runs := r.figures(c, metric{value: func(res *load.Result) float64 { return float64(res.Delivery.P50) / 1000 }}, s)
			p99, _, _ := r.figures(c, metric{value: func(res *load.Result) float64 { return float64(res.Delivery.P99) / 1000 }}, s)
			if runs > 0 {
				p.rows = append(p.rows, row{name: s, from: p50.median, to: p99.median, text: number(p50.median) + " / " + number(p99.median)})
			}
		}
		all = append(all, p)
	}
	return all
}

const (
	figureWidth = 880
	margin      = 16
	headHeight  = 60
	titleHeight = 30
	rowHeight   = 20
	nameWidth   = 106 // of a server's name
	textWidth   = 108 // of what is written beside a bar
)

// style is for both of the schemes that a page may have. The limit is dark, Petrel in colour, everybody else grey.
const style = `<style>
text{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1f2328;paint-order:stroke;stroke:#fff;stroke-width:3px}
.title{font-size:16px;font-weight:600}.head{font-size:13px;font-weight:600}.dim{fill:#59636e}.own{font-weight:600}
.page{fill:#fff}.peer{fill:#b7bfc8}.limit{fill:#59636e}.petrel{fill:#0969da}.other{fill:#80b3f0}
.axis,.mark,.spread{stroke:#59636e}.mark{stroke-dasharray:3 3}.spread{stroke:#1f2328}
@media (prefers-color-scheme:dark){
text{fill:#f0f6fc;stroke:#0d1117}.dim{fill:#9198a1}
.page{fill:#0d1117}.peer{fill:#4b535d}.limit{fill:#9198a1}.petrel{fill:#4493f8}.other{fill:#27568f}
.axis,.mark{stroke:#9198a1}.spread{stroke:#f0f6fc}
}
</style>`

func (f *figure) svg() string {
	columns := min(2, len(f.panels))
	width := (figureWidth - margin*(columns+1)) / columns
	var body strings.Builder
	top, bottom := headHeight, headHeight
	for i, p := range f.panels {
		if i > 0 && i%columns == 0 {
			top = bottom
		}
		p.draw(&body, margin+i%columns*(width+margin), top, width)
		bottom = max(bottom, top+titleHeight+rowHeight*len(p.rows)+margin)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n", figureWidth, bottom, figureWidth, bottom)
	fmt.Fprintf(&b, "<title>%s</title>\n%s\n", html.EscapeString(f.title), style)
	fmt.Fprint(&b, `<rect class="page" width="100%" height="100%"/>`+"\n")
	fmt.Fprintf(&b, `<text class="title" x="%d" y="28">%s</text>`+"\n", margin, html.EscapeString(f.title))
	fmt.Fprintf(&b, `<text class="dim" x="%d" y="48">%s</text>`+"\n", margin, html.EscapeString(f.note))
	return b.String() + body.String() + "</svg>\n"
}

func (p *panel) draw(b *strings.Builder, x, y, width int) {
	line := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	line(`<text class="head" x="%d" y="%d">%s</text>`, x, y+20, html.EscapeString(p.title))
	y += titleHeight
	left, most := float64(x+nameWidth), 1e-9
	for _, r := range p.rows {
		most = max(most, r.to, r.most)
	}
	at := func(v float64) float64 { return left + v/most*float64(width-nameWidth-textWidth) }
	bottom := y + rowHeight*len(p.rows)
	if first := p.rows[0]; bareServer(first.name) && first.from == 0 {
		line(`<path class="mark" d="M%.1f %dV%d"/>`, at(first.to), y, bottom)
	}
	for i, r := range p.rows {
		top := y + i*rowHeight
		class, bold := "peer", ""
		switch {
		case bareServer(r.name):
			class = "limit"
		case r.name == "petrel":
			class, bold = "petrel", ` class="own"`
		case strings.HasPrefix(r.name, "petrel"):
			class = "other"
		}
		line(`<text%s x="%.1f" y="%d" text-anchor="end">%s</text>`, bold, left-8, top+14, html.EscapeString(r.name))
		line(`<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d" rx="2"/>`, class, at(r.from), top+4, max(at(r.to)-at(r.from), 1.5), rowHeight-7)
		if r.most > r.least {
			line(`<path class="spread" d="M%.1f %dH%.1f"/>`, at(r.least), top+10, at(r.most))
		}
		aside := ""
		if r.aside != "" {
			aside = fmt.Sprintf(`<tspan class="dim" dx="7">%s</tspan>`, html.EscapeString(r.aside))
		}
		line(`<text%s x="%.1f" y="%d">%s%s</text>`, bold, at(max(r.to, r.most))+7, top+14, html.EscapeString(r.text), aside)
	}
	line(`<path class="axis" d="M%.1f %dV%d"/>`, left, y, bottom)
}
