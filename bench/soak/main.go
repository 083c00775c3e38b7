// Command soak keeps a Petrel under everything that clients do to a server for as long as one likes, and judges what they saw:
//
//	go run ./bench/soak -for 10m           or: make soak DURATION=10m
//
// Clients that keep up must hear every publication of every subscription once and in order, whatever the others do: those that come and go,
// that reset their connections, that read a byte a second, that never answer, or never finish a request. A part of all of them comes by TLS.
// At the end who is there must be right, on every list and over HTTP; and memory, goroutines and everybody's latency must be what they were.
//
// # Invariants
//
//   - A channel's publications are numbered from 1 by the one goroutine that publishes there, which waits for each answer.
//   - Whoever has been told that it is subscribed hears everything whose publishing begins later; whoever asks for an answer (a ping) after a
//     publication was acknowledged has heard that one when the answer comes.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// The app that Petrel is started with.
const (
	appID     = "soak"
	appKey    = "soak-key"
	appSecret = "soak-secret"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	o := options{}
	f.DurationVar(&o.duration, "for", 10*time.Minute, "how long, once all are connected")
	f.IntVar(&o.conns, "connections", 10_000, "that keep up; the others come beside them")
	f.IntVar(&o.channels, "channels", 1000, "a tenth of them presence channels")
	f.Float64Var(&o.rate, "rate", 400, "publications a second")
	f.Int64Var(&o.seed, "seed", time.Now().UnixNano(), "of what is done when")
	petrel := f.String("petrel", "", "`FILE`: Petrel's binary, instead of one built from this tree")
	if err := f.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "petrel-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := start(ctx, dir, *petrel)
	if err != nil {
		return err
	}
	defer p.stop()
	o.target = p.target
	v, err := soak(ctx, o, out)
	if err != nil {
		return err
	}
	v.judgeCost()
	fmt.Fprint(out, v.report())
	if v.found > 0 {
		return fmt.Errorf("%d findings; the seed was %d, and Petrel's log ends so:\n%s", v.found, o.seed, p.tail())
	}
	return nil
}

// process is the Petrel under test.
type process struct {
	target
	cmd *exec.Cmd
	log string
}

// build makes Petrel's binary.
func build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "petrel")
	text, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "github.com/petrel-chat/petrel/cmd/petrel").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build it (in its sources, or say -petrel FILE): %w\n%s", err, text)
	}
	return binary, nil
}

// start builds and starts Petrel on free ports.
func start(ctx context.Context, dir, binary string) (_ *process, err error) {
	if binary == "" {
		if binary, err = build(ctx, dir); err != nil {
			return nil, err
		}
	}
	cert, key, err := selfSigned(dir)
	if err != nil {
		return nil, err
	}
	p := &process{log: filepath.Join(dir, "log")}
	for _, addr := range []*string{&p.plain, &p.secured, &p.admin} {
		if *addr, err = freeAddress(ctx); err != nil {
			return nil, err
		}
	}
	file, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p.cmd = exec.Command(binary, "serve", "--data", filepath.Join(dir, "data"), "--listen", p.plain, "--tls-listen", p.secured, //nolint:noctx // it is told to stop
		"--tls-cert", cert, "--tls-key", key, "--admin", p.admin, "--log-level", "warn", "--max-connections", "100000")
	p.cmd.Env = append(os.Environ(), "PETREL_APP_ID="+appID, "PETREL_APP_KEY="+appKey, "PETREL_APP_SECRET="+appSecret)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	asking := &http.Client{Timeout: 10 * time.Second}
	defer asking.CloseIdleConnections()
	for begun := time.Now(); ; {
		resp, err := asking.Get("http://" + p.admin + "/readyz") //nolint:noctx // the client has a time limit
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p, nil
			}
		}
		if time.Since(begun) > time.Minute || ctx.Err() != nil {
			p.stop()
			return nil, fmt.Errorf("it does not become ready: %s", p.tail())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// stop ends it as an operator does, and after a while by force.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	t := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer t.Stop()
	_ = p.cmd.Wait() // how it ended is in its log
}

// tail is the end of its log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// freeAddress is one that nobody listens on. Somebody else might take it first: then Petrel does not start, and says so.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// selfSigned makes a certificate that nobody needs to believe.
func selfSigned(dir string) (cert, key string, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		return "", "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	return cert, key, errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600),
	)
}
