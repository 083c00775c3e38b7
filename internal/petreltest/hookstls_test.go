package petreltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// selfSigned makes a certificate for 127.0.0.1 that nobody but itself vouches for.
func selfSigned(t *testing.T, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: until.Add(-365 * 24 * time.Hour), NotAfter: until, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestWebhooksOverTLS: a receiver whose certificate the system trusts is told; one with any other never sees a byte of an event, and the job says why.
func TestWebhooksOverTLS(t *testing.T) {
	t.Parallel()
	got := make(chan string, 10)
	serve := func(name string, c tls.Certificate) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			told := name
			if r.Header.Get("X-Pusher-Signature") != macOf(string(body)) {
				told += ", wrongly signed"
			}
			got <- told
		}))
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo) // whoever does not trust it says so in the handshake
		s.TLS = &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	good, old, stranger := selfSigned(t, time.Now().Add(time.Hour)), selfSigned(t, time.Now().Add(-time.Hour)), selfSigned(t, time.Now().Add(time.Hour))
	var roots []byte
	for _, c := range []tls.Certificate{good, old} {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})...)
	}
	file := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(file, roots, 0o600); err != nil {
		t.Fatal(err)
	}
	s := Start(t, Options{Dir: t.TempDir(), Env: []string{"SSL_CERT_FILE=" + file, "PETREL_WEBHOOK_ALLOW=127.0.0.0/8"}})
	hooks := map[string]string{"old": serve("old", old), "stranger": serve("stranger", stranger), "elsewhere": strings.Replace(serve("elsewhere", good), "127.0.0.1", "localhost", 1), "good": serve("good", good)}
	call := func(user, method, path string, in, out any) {
		t.Helper()
		if _, err := Call(t.Context(), s.HTTP, s.URL, user, method, path, in, out); err != nil {
			t.Fatal(err)
		}
	}
	for id, url := range hooks {
		call("", http.MethodPut, "/v1/hooks/"+id, map[string]any{"url": url + "/h", "events": []string{"room.created"}}, nil)
	}
	call("ada", http.MethodPost, "/v1/rooms", map[string]string{"id": "lobby", "kind": "open"}, nil)
	select {
	case name := <-got:
		if name != "good" {
			t.Errorf("told is %s", name)
		}
	case <-time.After(Patience):
		t.Fatal("nobody is told")
	}
	want := map[string]string{"old": "expired", "stranger": "unknown authority", "elsewhere": "match localhost"}
	why := map[string]string{}
	Until(t, "each refusal to be written down", func() bool {
		var list struct {
			Jobs []struct {
				Target string `json:"target"`
				Error  string `json:"error"`
			} `json:"jobs"`
		}
		call("", http.MethodGet, "/v1/jobs?state=waiting", nil, &list)
		for _, j := range list.Jobs {
			if id, _, _ := strings.Cut(j.Target, "/"); j.Error != "" {
				why[id] = j.Error
			}
		}
		return len(why) == len(want)
	})
	for id, part := range want {
		if !strings.Contains(why[id], "certificate") || !strings.Contains(why[id], part) {
			t.Errorf("%s: %q does not say %q", id, why[id], part)
		}
	}
	if len(got) > 0 {
		t.Errorf("told is %s too", <-got)
	}
}
