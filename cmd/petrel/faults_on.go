//go:build faults

package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/node"
)

// faults let a test set this node's clock wrong: the file that PETREL_FAULT_CLOCK names holds the seconds to add.
func faults() *node.Faults {
	path := os.Getenv("PETREL_FAULT_CLOCK")
	if path == "" {
		return nil
	}
	return &node.Faults{Now: func() time.Time {
		b, err := os.ReadFile(path)
		if err != nil {
			return time.Now()
		}
		seconds, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return time.Now()
		}
		return time.Now().Round(0).Add(time.Duration(seconds) * time.Second) // without the monotonic reading, as a clock that was set
	}}
}
