package command_test

import (
	"testing"

	"github.com/petrel-chat/petrel/internal/command"
	"github.com/petrel-chat/petrel/internal/event"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestFeatureLevel: what a node of the cell could not read is not written, until it can.
func TestFeatureLevel(t *testing.T) {
	t.Parallel()
	level := 1
	h, desk := newHouseWith(t, func(o *command.Options) {
		o.Level = func() int { return level }
		o.Needs = func(event.Event) int { return 2 }
	}, landed)
	_, err := desk.Do(t.Context(), alice, command.Meta{}, count{})
	if petrel.CodeOf(err) != petrel.CodeUpgrading {
		t.Errorf("with an old node: %v, want %s", err, petrel.CodeUpgrading)
	}
	if h.appends != 0 {
		t.Errorf("%d entries were appended all the same", h.appends)
	}
	level = 2
	if _, err := desk.Do(t.Context(), alice, command.Meta{}, count{}); err != nil {
		t.Errorf("with new nodes only: %v", err)
	}
}
