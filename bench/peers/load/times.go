package load

import "math/bits"

// Times of a run, in microseconds.
type Times struct {
	Count int   `json:"count"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
	P999  int64 `json:"p999"`
	Max   int64 `json:"max"`
}

// histogram counts microseconds with a relative error below 1/64: exact below 128, then 64 steps for every doubling.
type histogram struct {
	counts [128 + 64*40]uint32
	n      int
	max    int64
}

func (h *histogram) add(us int64) {
	us = max(us, 0)
	i := us
	if us >= 128 {
		shift := bits.Len64(uint64(us)) - 7
		i = int64(shift)*64 + us>>shift
	}
	h.counts[min(i, int64(len(h.counts)-1))]++
	h.n++
	h.max = max(h.max, us)
}

// value is the upper end of a step.
func (h *histogram) value(i int) int64 {
	if i < 128 {
		return int64(i)
	}
	shift := (i-128)/64 + 1
	return (int64((i-128)%64+64)+1)<<shift - 1
}

func (h *histogram) quantile(q float64) int64 {
	rank, seen := int(q*float64(h.n)), 0
	for i, c := range h.counts {
		if seen += int(c); seen > rank {
			return min(h.value(i), h.max)
		}
	}
	return h.max
}

func (h *histogram) times() Times {
	return Times{Count: h.n, P50: h.quantile(0.5), P99: h.quantile(0.99), P999: h.quantile(0.999), Max: h.max}
}
