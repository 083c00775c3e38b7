package bus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// natsServer starts a NATS server as an operator would have one.
func natsServer(t *testing.T) (url string) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(time.Minute) {
		t.Fatal("the NATS server does not listen")
	}
	return srv.ClientURL()
}

// TestRoutesAreGuarded: who has the certificate and the secret is heard; who lacks one of them is not.
func TestRoutesAreGuarded(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	var seed string
	open := func(node petrel.NodeID, secret string, cfg *tls.Config) *bus.Bus {
		t.Helper()
		o := bus.EmbedOptions{Node: node, Listen: "127.0.0.1:0", Secret: secret, TLS: cfg}
		if seed != "" {
			o.Routes = []string{seed}
		}
		e, err := bus.Embed(o)
		if err != nil {
			t.Fatal(err)
		}
		if seed == "" {
			seed = e.Addr()
		}
		b, err := bus.New(bus.Options{Node: node, Heartbeat: 20 * time.Millisecond, DeadAfter: time.Hour}, e)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Stop)
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := open("a", "s3cret", ours.config(t))
	strangers := []*bus.Bus{
		open("other-secret", "guess", ours.config(t)),
		open("other-ca", "s3cret", theirs.config(t)),
		open("plain", "s3cret", nil),
	}
	b := open("b", "s3cret", ours.config(t))
	c := open("c", "s3cret", ours.config(t)) // hears of b through a
	for _, n := range []*bus.Bus{a, b, c} {
		for len(alive(n)) != 2 {
			<-time.After(5 * time.Millisecond)
		}
		for _, p := range n.Peers() {
			if p.Node != "a" && p.Node != "b" && p.Node != "c" {
				t.Errorf("%s was let in", p.Node)
			}
		}
	}
	for _, s := range strangers {
		if p := s.Peers(); len(p) != 0 {
			t.Errorf("a stranger hears of %v", p)
		}
	}
}

// TestAddRoutes: nodes that know nobody find each other once they are told where to look, and keep those they have.
func TestAddRoutes(t *testing.T) {
	t.Parallel()
	tlsConfig := newAuthority(t).config(t)
	var wires []*bus.Embedded
	var buses []*bus.Bus
	for _, node := range []petrel.NodeID{"a", "b", "c"} {
		e, err := bus.Embed(bus.EmbedOptions{Node: node, Listen: "127.0.0.1:0", Secret: "s", TLS: tlsConfig, Logger: logger(t)})
		if err != nil {
			t.Fatal(err)
		}
		b, err := bus.New(bus.Options{Node: node, Heartbeat: 20 * time.Millisecond, DeadAfter: time.Minute}, e)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Stop)
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		wires, buses = append(wires, e), append(buses, b)
	}
	a := wires[0].Addr()
	for n, e := range wires[1:] {
		for range 2 { // the second time it is there
			if err := e.AddRoutes(a); err != nil {
				t.Fatal(err)
			}
		}
		for len(alive(buses[0])) != n+1 || len(alive(buses[n+1])) != n+1 {
			<-time.After(5 * time.Millisecond)
		}
	}
	if err := wires[0].AddRoutes(wires[1].Addr(), wires[2].Addr()); err != nil {
		t.Fatal(err)
	}
	if addr := wires[0].Addr(); addr != a {
		t.Errorf("it listens at %s now, not at %s", addr, a)
	}
	for _, b := range buses {
		for len(alive(b)) != 2 {
			<-time.After(5 * time.Millisecond)
		}
	}
}

// TestPartitionHeals: a route that was only heard of, and not configured, comes back after a partition.
func TestPartitionHeals(t *testing.T) {
	t.Parallel()
	var seed []string
	var buses []*bus.Bus
	var ways []*way
	for _, node := range []petrel.NodeID{"a", "b", "c"} {
		w := newWay(t)
		e, err := bus.Embed(bus.EmbedOptions{Node: node, Listen: "127.0.0.1:0", Advertise: w.addr, Secret: "s", Routes: seed, Logger: logger(t)})
		if err != nil {
			t.Fatal(err)
		}
		w.to = e.Addr()
		w.lead()
		b, err := bus.New(bus.Options{Node: node, Heartbeat: 50 * time.Millisecond, DeadAfter: 3 * time.Second}, e)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Stop)
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		if seed == nil {
			seed = []string{w.addr}
		}
		buses, ways = append(buses, b), append(ways, w)
	}
	until := func(a, b, c int) {
		for len(alive(buses[0])) != a || len(alive(buses[1])) != b || len(alive(buses[2])) != c {
			<-time.After(10 * time.Millisecond)
		}
	}
	until(2, 2, 2)
	ways[1].cut()
	ways[2].cut()
	until(2, 1, 1) // b and c have only a
	for _, w := range ways[1:] {
		w.listen(t)
		w.lead()
	}
	until(2, 2, 2)
}

// way is an address that leads to another, and can be cut: nobody listens there then.
type way struct {
	addr string
	to   string
	open sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil: cut
	conns    []net.Conn
}

func newWay(t *testing.T) *way {
	t.Helper()
	w := &way{addr: "127.0.0.1:0"}
	w.listen(t)
	w.addr = w.listener.Addr().String()
	t.Cleanup(func() {
		w.cut()
		w.open.Wait()
	})
	return w
}

func (w *way) listen(t *testing.T) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.listener = l
	w.mu.Unlock()
}

// lead carries what arrives, until cut.
func (w *way) lead() {
	l := w.listener
	w.open.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			w.carry(l, in)
		}
	})
}

func (w *way) carry(l net.Listener, in net.Conn) {
	out, err := net.Dial("tcp", w.to)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || w.listener != l {
		in.Close()
		if err == nil {
			out.Close()
		}
		return
	}
	w.conns = append(w.conns, in, out)
	for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
		w.open.Go(func() {
			io.Copy(pair[0], pair[1])
			pair[0].Close()
		})
	}
}

func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listener != nil {
		w.listener.Close()
	}
	w.listener = nil
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

func TestEmbedRefuses(t *testing.T) {
	t.Parallel()
	good := newAuthority(t).config(t)
	oneSided := good.Clone()
	oneSided.ClientAuth = tls.NoClientCert
	anyClient, anyServer := good.Clone(), good.Clone()
	anyClient.ClientAuth, anyServer.InsecureSkipVerify = tls.RequireAnyClientCert, true
	for name, o := range map[string]bus.EmbedOptions{
		"no secret":              {Node: "a", Listen: "127.0.0.1:0"},
		"no node":                {Secret: "s", Listen: "127.0.0.1:0"},
		"no address":             {Node: "a", Secret: "s"},
		"no such port":           {Node: "a", Secret: "s", Listen: "127.0.0.1:99999"},
		"open without TLS":       {Node: "a", Secret: "s", Listen: "0.0.0.0:0"},
		"all without TLS":        {Node: "a", Secret: "s", Listen: ":0"},
		"TLS of one side":        {Node: "a", Secret: "s", Listen: "127.0.0.1:0", TLS: oneSided},
		"any client":             {Node: "a", Secret: "s", Listen: "127.0.0.1:0", TLS: anyClient},
		"any server":             {Node: "a", Secret: "s", Listen: "127.0.0.1:0", TLS: anyServer},
		"route without port":     {Node: "a", Secret: "s", Listen: "127.0.0.1:0", Routes: []string{"host"}},
		"advertise without port": {Node: "a", Secret: "s", Listen: "127.0.0.1:0", Advertise: "host:port"},
	} {
		if e, err := bus.Embed(o); err == nil {
			t.Errorf("%s: no error", name)
			b, err := bus.New(bus.Options{Node: "a"}, e)
			if err != nil {
				t.Fatal(err)
			}
			b.Stop()
		}
	}
	if _, err := bus.Dial(bus.DialOptions{}); err == nil {
		t.Error("Dial without a URL: no error")
	}
}

// TestUnreachable: a NATS cluster that is not there keeps nobody from starting and stopping.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	w, err := bus.Dial(bus.DialOptions{URL: "nats://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bus.New(bus.Options{Node: "a"}, w)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	stop, err := b.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(1, 1, []byte("x")); err != nil {
		t.Error(err)
	}
	stop()
	b.Stop()
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{key: newKey(t), cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cell"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// config is a node's, for both ends.
func (a authority) config(t *testing.T) *tls.Config {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"petrel-cell"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "petrel-cell", RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func BenchmarkEmbedded(b *testing.B) {
	a, z, got := benchPair(b)
	defer a.Stop()
	defer z.Stop()
	payload := make([]byte, 200)
	const window = 1000 // on their way at once
	b.ResetTimer()
	for i := range b.N {
		if i >= window {
			<-got
		}
		if err := a.Publish(1, 1, payload); err != nil {
			b.Fatal(err)
		}
	}
	for range min(b.N, window) {
		<-got
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func benchPair(b *testing.B) (a, z *bus.Bus, got chan struct{}) {
	b.Helper()
	var buses []*bus.Bus
	var seed []string
	got = make(chan struct{}, 1<<20)
	for _, node := range []petrel.NodeID{"a", "z"} {
		e, err := bus.Embed(bus.EmbedOptions{Node: node, Listen: "127.0.0.1:0", Secret: "s", Routes: seed})
		if err != nil {
			b.Fatal(err)
		}
		seed = []string{e.Addr()}
		n, err := bus.New(bus.Options{Node: node}, e)
		if err != nil {
			b.Fatal(err)
		}
		n.Handle(1, func(bus.Message) { got <- struct{}{} })
		n.Handle(2, func(bus.Message) { got <- struct{}{} })
		if err := n.Start(); err != nil {
			b.Fatal(err)
		}
		buses = append(buses, n)
	}
	if _, err := buses[1].Listen(1); err != nil {
		b.Fatal(err)
	}
	for tries := 1; ; tries++ {
		if err := buses[0].Publish(1, 2, nil); err != nil {
			b.Fatal(err)
		}
		select {
		case <-got:
			return buses[0], buses[1], got
		case <-time.After(50 * time.Millisecond):
		}
	}
}
