package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/petrel-chat/petrel/internal/chat"
	"github.com/petrel-chat/petrel/internal/event"
)

// TestMinority: one of three that is left alone refuses writes with a reason and a time to come back, at once when it has been
// alone for a while, and goes on answering reads, marked as what they are. When the others are back, so is everything.
func TestMinority(t *testing.T) {
	t.Parallel()
	first := cellConfig(t, "n1")
	n1 := startNode(t, first)
	second := joining(cellConfig(t, "n2"), first, n1.cell.port.Addr())
	n2 := startNode(t, second)
	n3 := startNode(t, joining(cellConfig(t, "n3"), first, n1.cell.port.Addr()))
	until(t, "three voters", func() bool { return voters(t, n3) == 3 })
	app := createApp(t, n1)
	res := do(t, n1, app.ID, chat.CreateRoom{ID: "r", Kind: event.RoomOpen})
	if err := n3.shard.loop.WaitApplied(t.Context(), res.Position.Index); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n1.Stop(), n2.Stop()); err != nil {
		t.Fatal(err)
	}

	base := "http://" + n3.Addr() + "/v1/rooms/r"
	ask := func(method, path, body string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(app.Keys[0].Key, app.Keys[0].Secret)
		req.Header.Set("Petrel-User", "ada")
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	for when, ready := range map[string]func() bool{
		"before it knows":               func() bool { return true },
		"when it has known for a while": func() bool { return n3.watch.stale() > refuseAfter },
	} {
		until(t, when, ready)
		resp, body := ask("POST", "/messages", `{"id":"m1","text":"hi"}`)
		// One that was on its way to a leader that died may have happened.
		honest := strings.Contains(body, "no_leader") || when == "before it knows" && strings.Contains(body, "unknown_outcome")
		if resp.StatusCode != 503 || !honest || resp.Header.Get("Retry-After") == "" {
			t.Errorf("a write %s: %d %s, Retry-After %q; want 503 no_leader and a time", when, resp.StatusCode, body, resp.Header.Get("Retry-After"))
		}
	}
	resp, body := ask("GET", "/events?after=0", "")
	if age, err := strconv.Atoi(resp.Header.Get("Petrel-Stale")); resp.StatusCode != 200 || err != nil || age < 1 {
		t.Errorf("a read: %d %s, Petrel-Stale %q; want 200 and seconds", resp.StatusCode, body, resp.Header.Get("Petrel-Stale"))
	}
	if status, body := fetch(t, "GET", "http://"+n3.AdminAddr()+"/readyz", ""); status != 200 || !strings.Contains(body, "degraded") {
		t.Errorf("/readyz: %d %s, want 200 degraded: reads belong here", status, body)
	}

	second.Peer = n2.cell.port.Addr()
	startNode(t, second)
	until(t, "in touch again", func() bool { return n3.watch.stale() == 0 && n3.shard.log.Status().Leader != "" })
	if resp, body := ask("POST", "/messages", `{"id":"m1","text":"hi"}`); resp.StatusCode != 201 {
		t.Errorf("a write with two of three: %d %s", resp.StatusCode, body)
	}
	if resp, _ := ask("GET", "/events?after=0", ""); resp.Header.Get("Petrel-Stale") != "" {
		t.Error("reads are marked stale although the leader is heard of")
	}
}

// TestBroughtCertificates: a cell whose certificates come from elsewhere lets in who has one of the same authority, under the
// name that it shows, and nobody else.
func TestBroughtCertificates(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	bring := func(cfg Config, a *authority, name string) Config {
		cfg.PeerCert, cfg.PeerKey, cfg.PeerCA = a.issue(t, name)
		return cfg
	}
	first := bring(cellConfig(t, "n1"), ours, "n1")
	n1 := startNode(t, first)
	n2 := startNode(t, bring(joining(cellConfig(t, "n2"), first, n1.cell.port.Addr()), ours, "n2"))
	until(t, "two voters", func() bool { return voters(t, n1) == 2 && n2.cell.alive(n1.self.Member) })

	stranger := bring(joining(cellConfig(t, "n3"), first, n1.cell.port.Addr()), theirs, "n3")
	self, err := loadMembership(mkdir(t, stranger.Data), "n3", true)
	if err != nil {
		t.Fatal(err)
	}
	c, err := openCell(t.Context(), &stranger, self, n1.logger, n1.reg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.ask(t.Context(), n1.cell.port.Addr(), cellRequest{Op: opMember, Member: self.Member}); err == nil {
		t.Error("who has the secret and another authority's certificate is let in")
	}
	wrong := bring(cellConfig(t, "n4"), ours, "n4")
	wrong.PeerCA = stranger.PeerCA
	if n, err := Open(t.Context(), Options{Config: wrong}); err == nil || !strings.Contains(err.Error(), "would not be let in") {
		t.Errorf("a certificate of another authority than --peer-ca: %v", err)
		if err == nil {
			_ = n.Stop()
		}
	}
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// authority signs certificates as an operator's own would.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.key = newKey(t)
	a.cert = signed(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "an authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, a.key, a.key)
	writePEM(t, filepath.Join(a.dir, "ca.pem"), "CERTIFICATE", a.cert.Raw)
	return a
}

func (a *authority) issue(t *testing.T, name string) (cert, key, ca string) {
	t.Helper()
	k := newKey(t)
	c := signed(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{{Scheme: "petrel-node", Opaque: name}}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, k, a.key)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	writePEM(t, cert, "CERTIFICATE", c.Raw)
	writePEM(t, key, "PRIVATE KEY", der)
	return cert, key, filepath.Join(a.dir, "ca.pem")
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signed(t *testing.T, c, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
