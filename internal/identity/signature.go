package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// unknownSettings are those of an app that this node does not know. Nobody writes to it.
var unknownSettings = DefaultSettings()

// Settings are the app's; those of an app that is not known are the defaults. What it points to is never changed: a change makes a new one.
func (d *Directory) Settings(app petrel.AppID) *Settings {
	if s := d.current.Load(); s != nil {
		if set := s.settings[app]; set != nil {
			return set
		}
	}
	return &unknownSettings
}

// AppOfKey is the app that a key belongs to, when the key is good. Refusals: CodeInvalidToken for a key that is not, CodeAppSuspended (with the
// app), CodeBusy before the first Load. Keys are no secret: browsers show them.
func (d *Directory) AppOfKey(key string) (petrel.AppID, error) {
	s := d.current.Load()
	if s == nil {
		return "", errNotLoaded()
	}
	k, ok := s.keys[key]
	if !ok {
		return "", petrel.Errorf(petrel.CodeInvalidToken, "The key belongs to no app here, or is not good any more.")
	}
	return k.app, s.gate(k.app)
}

// Verify returns the app of a key when hexMAC is the HMAC-SHA256 of the message under that key's secret, in hexadecimal digits. It compares
// in constant time, and an unknown key costs as much as a wrong signature. Refusals: CodeInvalidToken for both, CodeAppSuspended for a
// good signature of a suspended app, CodeBusy before the first Load.
func (d *Directory) Verify(key string, message []byte, hexMAC string) (petrel.AppID, error) {
	s := d.current.Load()
	if s == nil {
		return "", errNotLoaded()
	}
	k, known := s.keys[key]
	mac := hmac.New(sha256.New, k.secret)
	mac.Write(message)
	var want, got [sha256.Size]byte
	mac.Sum(want[:0])
	n, err := hex.Decode(got[:], []byte(hexMAC[:min(len(hexMAC), 2*sha256.Size)]))
	whole := err == nil && n == sha256.Size && len(hexMAC) == 2*sha256.Size
	if same := hmac.Equal(got[:], want[:]); !same || !whole || !known {
		return "", petrel.Errorf(petrel.CodeInvalidToken, "The signature is not one that the key's secret makes of this.")
	}
	return k.app, s.gate(k.app)
}
