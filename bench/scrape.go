package bench

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/bench/rig"
)

// metrics are the samples of a node's /metrics by name with labels, as it writes them.
type metrics map[string]float64

// scrape asks the admin listener at addr.
func scrape(ctx context.Context, addr string) (metrics, error) {
	m, err := rig.Scrape(ctx, httpClient, addr)
	return metrics(m), err
}

// since is what was counted after before.
func (m metrics) since(before metrics) metrics {
	d := metrics{}
	for name, v := range m {
		d[name] = v - before[name]
	}
	return d
}

// row reads a histogram, over all of its labels. A quantile is the upper end of its bucket.
func (m metrics) row(name, layer, load string, took time.Duration) Row {
	counts := map[float64]float64{} // by upper end
	for sample, v := range m {
		rest, ok := strings.CutPrefix(sample, name+"_bucket{")
		if !ok {
			continue
		}
		_, le, ok := strings.Cut(rest, `le="`)
		if !ok {
			continue
		}
		end, err := strconv.ParseFloat(le[:strings.IndexByte(le, '"')], 64)
		if err == nil {
			counts[end] += v
		}
	}
	ends := make([]float64, 0, len(counts))
	for end := range counts {
		ends = append(ends, end)
	}
	slices.Sort(ends)
	total := counts[math.Inf(1)]
	at := func(q float64) int64 {
		for i, end := range ends {
			if counts[end] >= q*total && total > 0 {
				if math.IsInf(end, 1) && i > 0 {
					end = ends[i-1]
				}
				return int64(end * 1e6)
			}
		}
		return 0
	}
	return Row{
		Layer: layer, Load: load, Seconds: took.Seconds(), Done: int(total), PerSec: total / took.Seconds(),
		P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999), Max: at(1),
	}
}
