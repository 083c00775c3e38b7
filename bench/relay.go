package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// RelayRow is what the ephemeral lane carries between three nodes over TLS: one publishes as fast as it is taken, two listen.
type RelayRow struct {
	Load      string  `json:"load"`
	Published float64 `json:"published_per_second"`
	Delivered float64 `json:"delivered_per_second"` // on both others together
	Refused   int     `json:"refused"`              // by the sender's own queue, before they had a number
	Seen      uint64  `json:"missing"`
	Repaired  uint64  `json:"repaired"`
	Lost      uint64  `json:"lost"`
	CPU       float64 `json:"cpu_us_per_delivery"` // of all three
}

const relayBuckets = 16

func relayRows(ctx context.Context, o CellOptions) ([]RelayRow, error) {
	var rows []RelayRow
	for _, rate := range []int{5000, 20_000, 0} {
		name := "as fast as it goes"
		if rate > 0 {
			name = fmt.Sprintf("%d/s", rate)
		}
		fmt.Fprintf(o.Progress, "relay: %s\n", name)
		row, err := relayRow(ctx, o, rate)
		if err != nil {
			return nil, err
		}
		row.Load = name
		rows = append(rows, row)
	}
	return rows, nil
}

func relayRow(ctx context.Context, o CellOptions, rate int) (row RelayRow, err error) {
	const kind = 1
	secret := bus.NewCellSecret()
	var delivered atomic.Int64
	var buses []*bus.Bus
	defer func() {
		for _, b := range buses {
			b.Stop()
		}
	}()
	var routes []string
	for i := range 3 {
		name := petrel.NodeID(fmt.Sprint("n", i+1))
		id, err := bus.IdentityFromSecret(secret, name)
		if err != nil {
			return row, err
		}
		wire, err := bus.Embed(bus.EmbedOptions{Node: name, Listen: "127.0.0.1:0", Routes: routes, TLS: id.Routes(), Secret: secret})
		if err != nil {
			return row, err
		}
		routes = append(routes, wire.Addr())
		b, err := bus.New(bus.Options{Node: name}, wire)
		if err != nil {
			return row, err
		}
		buses = append(buses, b)
		b.Handle(kind, func(bus.Message) { delivered.Add(1) })
		if err := b.Start(); err != nil {
			return row, err
		}
		if i > 0 {
			for k := range bus.Bucket(relayBuckets) {
				if _, err := b.Listen(k); err != nil {
					return row, err
				}
			}
		}
	}
	payload := []byte(`{"op":"event","room":"bench-1","type":"typing.start","at":"2026-01-01T00:00:00.000Z","data":{"user":"user-1"}}`)
	// A first message of each bucket, until both others have one of each.
	seen := delivered.Load()
	if err := until(ctx, func() (bool, error) {
		seen = delivered.Load()
		for k := range bus.Bucket(relayBuckets) {
			_ = buses[0].Publish(k, kind, payload)
		}
		return seen >= 4*relayBuckets && allAlive(buses), nil
	}); err != nil {
		return row, err
	}
	if err := still(ctx, &delivered); err != nil {
		return row, err
	}
	before, lossBefore, cpu := delivered.Load(), losses(buses), processCPU()
	began := time.Now()
	published := 0
	p := newPace()
	defer p.stop()
	for i := 0; time.Since(began) < o.Duration && ctx.Err() == nil; i++ {
		if rate > 0 {
			p.until(began.Add(time.Duration(i) * time.Second / time.Duration(rate)))
		}
		switch err := buses[0].Publish(bus.Bucket(i%relayBuckets), kind, payload); { //nolint:gosec // below 16
		case err == nil:
			published++
		case errors.Is(err, bus.ErrBusy):
			row.Refused++
			time.Sleep(50 * time.Microsecond)
		default:
			return row, err
		}
	}
	took := time.Since(began)
	if err := still(ctx, &delivered); err != nil {
		return row, err
	}
	got := delivered.Load() - before
	loss := losses(buses)
	row.Published, row.Delivered = float64(published)/took.Seconds(), float64(got)/took.Seconds()
	row.Seen, row.Repaired, row.Lost = loss.Seen-lossBefore.Seen, loss.Repaired-lossBefore.Repaired, loss.Lost-lossBefore.Lost
	row.CPU = float64((processCPU() - cpu).Microseconds()) / float64(max(got, 1))
	return row, nil
}

func allAlive(buses []*bus.Bus) bool {
	for _, b := range buses {
		alive := 0
		for _, p := range b.Peers() {
			if p.Alive {
				alive++
			}
		}
		if alive != len(buses)-1 {
			return false
		}
	}
	return true
}

func losses(buses []*bus.Bus) (sum bus.Loss) {
	for _, b := range buses {
		for _, l := range b.Loss() {
			sum.Seen, sum.Repaired, sum.Lost = sum.Seen+l.Seen, sum.Repaired+l.Repaired, sum.Lost+l.Lost
		}
	}
	return sum
}

// still waits until nothing has arrived for a while.
func still(ctx context.Context, n *atomic.Int64) error {
	last, since := n.Load(), time.Now()
	return until(ctx, func() (bool, error) {
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond, nil
	})
}
