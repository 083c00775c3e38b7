package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// writeCertificate makes a self-signed certificate for 127.0.0.1 and returns what trusts it.
func writeCertificate(t *testing.T, dir string, serial int64, at time.Time) (cert, key string, trust *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "petrel"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	trust = x509.NewCertPool()
	trust.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, key, trust
}

// TestPublicTLS: with a certificate the public listener speaks TLS, requests and sockets, and nothing in the clear.
func TestPublicTLS(t *testing.T) {
	t.Parallel()
	cert, key, trust := writeCertificate(t, t.TempDir(), 1, time.Now())
	n, _ := openNode(t, func(c *Config) { c.TLSCert, c.TLSKey = cert, key })
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + n.Addr() + "/v1/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	c, _, err := websocket.Dial(t.Context(), "wss://"+n.Addr()+"/app/no-such-key?protocol=7", &websocket.DialOptions{HTTPClient: client}) //nolint:bodyclose // upgraded
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = c.Read(t.Context())
	}
	if websocket.CloseStatus(err) != 4001 {
		t.Fatal(err)
	}
	if resp, err := http.Get("http://" + n.Addr() + "/v1/openapi.json"); err == nil { //nolint:noctx // refused at once
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Fatal("it answers in the clear")
		}
	}
}

// TestBothListeners: one in the clear and one with TLS lead to the same node.
func TestBothListeners(t *testing.T) {
	t.Parallel()
	cert, key, trust := writeCertificate(t, t.TempDir(), 1, time.Now())
	n, _ := openNode(t, func(c *Config) { c.TLSCert, c.TLSKey, c.TLSListen = cert, key, "127.0.0.1:0" })
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}}}
	defer client.CloseIdleConnections()
	for _, url := range []string{"http://" + n.Addr(), "https://" + n.TLSAddr()} {
		resp, err := client.Get(url + "/v1/openapi.json")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", url, resp.Status)
		}
	}
	c, _, err := websocket.Dial(t.Context(), "wss://"+n.TLSAddr()+"/app/no-such-key?protocol=7", &websocket.DialOptions{HTTPClient: client}) //nolint:bodyclose // upgraded
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = c.Read(t.Context())
	}
	if websocket.CloseStatus(err) != 4001 {
		t.Fatal(err)
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	dir, begin := t.TempDir(), time.Now().Add(-time.Hour)
	cert, key, _ := writeCertificate(t, dir, 1, begin)
	k := &keyPair{cert: cert, key: key, logger: slog.New(slog.DiscardHandler)}
	if err := k.read(); err != nil {
		t.Fatal(err)
	}
	serial := func(at time.Time) int64 { return k.current(at).Leaf.SerialNumber.Int64() }
	now := k.looked
	writeCertificate(t, dir, 2, begin.Add(time.Minute))
	if got := serial(now.Add(lookEvery / 2)); got != 1 {
		t.Fatalf("serial %d before it was time to look", got)
	}
	if got := serial(now.Add(2 * lookEvery)); got != 2 {
		t.Fatalf("serial %d of a renewed certificate", got)
	}
	if err := os.WriteFile(key, []byte("half a k"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(now.Add(4 * lookEvery)); got != 2 {
		t.Fatalf("serial %d while the key cannot be read", got)
	}
	if _, err := openKeyPair(&Config{TLSCert: cert, TLSKey: key}, k.logger); err == nil {
		t.Fatal("a node started with half a key")
	}
}
