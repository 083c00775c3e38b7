package node

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// keyPair is the certificate of the public listener. It is read again when its files change, so that a renewed one is used without a
// restart; one that cannot be read then is told of, and the old one stays.
type keyPair struct {
	cert, key string
	logger    *slog.Logger

	mu      sync.Mutex // guards the fields below
	loaded  *tls.Certificate
	changed time.Time // of the files, when they were read last
	looked  time.Time
}

// lookEvery is how long a certificate is used before its files are looked at again.
const lookEvery = 30 * time.Second

// openKeyPair reads a certificate; nil when none is configured.
func openKeyPair(cfg *Config, logger *slog.Logger) (*tls.Config, error) {
	if cfg.TLSCert == "" {
		return nil, nil //nolint:nilnil // no TLS is no mistake
	}
	k := &keyPair{cert: cfg.TLSCert, key: cfg.TLSKey, logger: logger}
	if err := k.read(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"}, // sockets and streams are what the public listener is for, and those are HTTP/1.1's
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current(time.Now()), nil },
	}, nil
}

func (k *keyPair) read() error {
	changed, err := k.modified()
	if err != nil {
		return fmt.Errorf("read the certificate of the public listener: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(k.cert, k.key)
	if err != nil {
		return fmt.Errorf("read the certificate of the public listener (tls-cert %s, tls-key %s): %w", k.cert, k.key, err)
	}
	k.loaded, k.changed, k.looked = &pair, changed, time.Now()
	return nil
}

// modified is when the younger of the files was written.
func (k *keyPair) modified() (time.Time, error) {
	a, aerr := os.Stat(k.cert)
	b, berr := os.Stat(k.key)
	if err := cmp.Or(aerr, berr); err != nil {
		return time.Time{}, err
	}
	if b.ModTime().After(a.ModTime()) {
		return b.ModTime(), nil
	}
	return a.ModTime(), nil
}

func (k *keyPair) current(now time.Time) *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.looked) < lookEvery {
		return k.loaded
	}
	k.looked = now
	if changed, err := k.modified(); err == nil && changed.Equal(k.changed) {
		return k.loaded
	}
	if err := k.read(); err != nil {
		k.logger.Error("the certificate of the public listener changed and cannot be read: the old one is used on", "error", err)
	} else {
		k.logger.Info("the certificate of the public listener was read again")
	}
	return k.loaded
}
