package event

import "github.com/petrel-chat/petrel/internal/petrel"

// Kinds of identity events.
const (
	KindAppCreated    Kind = 10
	KindAppKeyAdded   Kind = 11
	KindAppKeyRetired Kind = 12
	KindAppSuspended  Kind = 13
	KindAppResumed    Kind = 14
	KindUserCreated   Kind = 15
	KindAppConfigured Kind = 16
)

// Guards of identity.
const (
	GuardApp  GuardKind = 1 // key: app
	GuardUser GuardKind = 2 // key: user
	GuardKey  GuardKind = 3 // key: an app key; keys are unique across apps, since a token's issuer finds the app
)

// AppCreated founds a tenant. The first key pair comes as an AppKeyAdded in the same entry.
type AppCreated struct {
	App  petrel.AppID `cbor:"1,keyasint"`
	Name string       `cbor:"2,keyasint,omitempty"`
}

// AppKeyAdded gives an app a key and secret. Secrets lie in the log and the projection, because request
// signatures need them in the clear; both lie in a folder that only its owner may enter (mode 0700).
type AppKeyAdded struct {
	App    petrel.AppID `cbor:"1,keyasint"`
	Key    string       `cbor:"2,keyasint"`
	Secret string       `cbor:"3,keyasint"`
}

// AppKeyRetired ends a key: nothing signed with it is accepted from here on.
type AppKeyRetired struct {
	App petrel.AppID `cbor:"1,keyasint"`
	Key string       `cbor:"2,keyasint"`
}

// AppSuspended refuses everything of the app until it is resumed.
type AppSuspended struct {
	App    petrel.AppID `cbor:"1,keyasint"`
	Reason string       `cbor:"2,keyasint,omitempty"`
}

// AppResumed ends a suspension.
type AppResumed struct {
	App petrel.AppID `cbor:"1,keyasint"`
}

// AppConfigured replaces the settings of an app by those named. What is not named has its default.
type AppConfigured struct {
	App      petrel.AppID `cbor:"1,keyasint"`
	Settings []AppSetting `cbor:"2,keyasint,omitempty"` // in the order of their names, each once
}

// AppSetting is one setting that differs from its default. A switch is 0 or 1. A build keeps names that it does not know.
type AppSetting struct {
	Name  string `cbor:"1,keyasint"`
	Value int64  `cbor:"2,keyasint"`
}

// UserCreated records that a valid token or a server call first named a user. Folding it twice is harmless.
type UserCreated struct {
	User petrel.UserID `cbor:"1,keyasint"`
}

// EventKind implements Event.
func (AppCreated) EventKind() Kind { return KindAppCreated }

// EventKind implements Event.
func (AppKeyAdded) EventKind() Kind { return KindAppKeyAdded }

// EventKind implements Event.
func (AppKeyRetired) EventKind() Kind { return KindAppKeyRetired }

// EventKind implements Event.
func (AppSuspended) EventKind() Kind { return KindAppSuspended }

// EventKind implements Event.
func (AppResumed) EventKind() Kind { return KindAppResumed }

// EventKind implements Event.
func (UserCreated) EventKind() Kind { return KindUserCreated }

// EventKind implements Event.
func (AppConfigured) EventKind() Kind { return KindAppConfigured }
