package event

import "github.com/petrel-chat/petrel/internal/petrel"

// Kinds of events about an app's webhooks; identity folds them.
const (
	KindAppHookSet     Kind = 17
	KindAppHookRemoved Kind = 18
)

// AppHookSet gives an app a webhook, or replaces all settings of the one that it has by that id.
type AppHookSet struct {
	App    petrel.AppID  `cbor:"1,keyasint"`
	Hook   petrel.HookID `cbor:"2,keyasint"`
	URL    string        `cbor:"3,keyasint"`
	Events []string      `cbor:"4,keyasint"` // names and patterns, in order, each once
	Batch  bool          `cbor:"5,keyasint,omitempty"`
}

// AppHookRemoved ends a webhook. What waits to be delivered to it will find it gone.
type AppHookRemoved struct {
	App    petrel.AppID  `cbor:"1,keyasint"`
	Hook   petrel.HookID `cbor:"2,keyasint"`
	Reason string        `cbor:"3,keyasint,omitempty"` // empty: somebody wished it
}

// EventKind implements Event.
func (AppHookSet) EventKind() Kind { return KindAppHookSet }

// EventKind implements Event.
func (AppHookRemoved) EventKind() Kind { return KindAppHookRemoved }
