package bus_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func identity(t *testing.T, secret string, node petrel.NodeID) bus.Identity {
	t.Helper()
	id, err := bus.IdentityFromSecret(secret, node)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func openPort(t *testing.T, id bus.Identity) *bus.Port {
	t.Helper()
	p, err := bus.ListenPort(t.Context(), bus.PortOptions{Listen: "127.0.0.1:0", Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestPortLetsOnlyTheCellIn(t *testing.T) {
	t.Parallel()
	secret := bus.NewCellSecret()
	p := openPort(t, identity(t, secret, "n1"))
	p.Handle("petrel-test", func(c net.Conn, node petrel.NodeID) {
		defer c.Close()
		_, _ = io.WriteString(c, string(node))
	})

	friend := openPort(t, identity(t, secret, "n 2/ü"))
	c, err := friend.Dial(t.Context(), p.Addr(), "petrel-test")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "n 2/ü" {
		t.Errorf("the port sees node %q (%v), want the name in the certificate", got, err)
	}
	_ = c.Close()

	if c, err := friend.Dial(t.Context(), p.Addr(), "petrel-other"); err == nil {
		t.Errorf("a protocol that nobody serves was let in: %v", c.RemoteAddr())
	}
	stranger := openPort(t, identity(t, bus.NewCellSecret(), "n3"))
	if c, err := stranger.Dial(t.Context(), p.Addr(), "petrel-test"); err == nil {
		t.Errorf("a node of another cell was let in: %v", c.RemoteAddr())
	}
	// The other way round: a member must not speak to a port that is not of the cell, whoever answers there.
	stranger.Handle("petrel-test", func(c net.Conn, _ petrel.NodeID) { _ = c.Close() })
	if c, err := friend.Dial(t.Context(), stranger.Addr(), "petrel-test"); err == nil {
		t.Errorf("a member spoke to a stranger: %v", c.RemoteAddr())
	}
}

// TestPortWithoutCertificate: with TLS 1.3 the client hears of the refusal on its first read.
func TestPortWithoutCertificate(t *testing.T) {
	t.Parallel()
	p := openPort(t, identity(t, bus.NewCellSecret(), "n1"))
	served := make(chan struct{}, 1)
	p.Handle("petrel-test", func(c net.Conn, _ petrel.NodeID) { served <- struct{}{}; _ = c.Close() })
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"petrel-test"}, MinVersion: tls.VersionTLS13}}
	c, err := d.DialContext(t.Context(), "tcp", p.Addr())
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("no certificate: %v, want a refusal", err)
	}
	if _, _ = (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Addr()); len(served) > 0 {
		t.Error("a stream without a certificate reached its handler")
	}
}

func TestCellSecretIsChecked(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "zz", bus.NewCellSecret()[1:], bus.NewCellSecret() + "00"} {
		if _, err := bus.IdentityFromSecret(bad, "n1"); err == nil {
			t.Errorf("the secret %q was taken", bad)
		}
	}
	if _, err := bus.IdentityFromSecret(bus.NewCellSecret()+"\n", "n1"); err != nil {
		t.Errorf("a line end after the secret: %v", err)
	}
}
