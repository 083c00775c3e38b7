//go:build !linux

package bench

import "time"

// pace hands out due times as exactly as the runtime's timers do.
type pace struct{}

func newPace() pace { return pace{} }

func (pace) until(t time.Time) { time.Sleep(time.Until(t)) }

func (pace) stop() {}
