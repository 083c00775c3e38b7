package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"sync"

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

// mac makes signatures with one secret, and is used again: making it costs as much as two of them.
type mac struct {
	hash.Hash
	want, got [sha256.Size]byte
	text      [2 * sha256.Size]byte
}

func newMacs(secret []byte) *sync.Pool {
	return &sync.Pool{New: func() any { return &mac{Hash: hmac.New(sha256.New, secret)} }}
}

// of says whether hexMAC is the signature of a message, in constant time.
func (m *mac) of(message []byte, hexMAC string) bool {
	m.Reset()
	m.Write(message)
	m.Sum(m.want[:0])
	n, err := hex.Decode(m.got[:], m.text[:copy(m.text[:], hexMAC)])
	whole := err == nil && n == sha256.Size && len(hexMAC) == 2*sha256.Size
	return hmac.Equal(m.got[:], m.want[:]) && whole
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
	macs := k.macs
	if !known {
		macs = d.nobody
	}
	m := macs.Get().(*mac)
	same := m.of(message, hexMAC)
	macs.Put(m)
	if !same || !known {
		return "", petrel.Errorf(petrel.CodeInvalidToken, "The signature is not one that the key's secret makes of this.")
	}
	return k.app, s.gate(k.app)
}
