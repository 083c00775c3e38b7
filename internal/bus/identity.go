package bus

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// CellSecretBytes is the length of a cell's secret before its hex form.
const CellSecretBytes = 32

// nodeScheme marks the URI in a certificate that names the node it belongs to.
const nodeScheme = "petrel-node"

// Why a stream cannot be opened, however often it is tried.
var (
	// ErrOtherCell: the certificate at the other end is not signed by this cell.
	ErrOtherCell = errors.New("the other end is not of this cell")
	// ErrOtherPort: something else than a Port answers.
	ErrOtherPort = errors.New("what answers is not the port between nodes")
)

// Identity is how a node proves on the port between nodes that it belongs to the cell, and
// knows others that do. Both ends of every stream show a certificate (mutual TLS 1.3).
type Identity struct {
	// Certificate of this node. Its URI petrel-node:<id> is the name that others see.
	Certificate tls.Certificate
	// Roots that sign members of the cell.
	Roots *x509.CertPool
}

// NewCellSecret makes the secret of a new cell: 64 hex digits. Whoever has it can join.
func NewCellSecret() string {
	var b [CellSecretBytes]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	return hex.EncodeToString(b[:])
}

// IdentityFromSecret derives the cell's certificate authority from its secret and signs a
// certificate for node with it. Every node that was given the secret derives the same authority, so
// that none has to hand out certificates. The certificates have no date that matters: a node whose
// clock is an hour off stays a member; who may join is decided by the secret alone.
func IdentityFromSecret(secret string, node petrel.NodeID) (Identity, error) {
	raw, err := hex.DecodeString(strings.TrimSpace(secret))
	if err != nil || len(raw) != CellSecretBytes {
		return Identity{}, fmt.Errorf("the cell secret is not %d hex digits: copy DATA/cell-secret of a node of the cell", 2*CellSecretBytes)
	}
	seed, err := hkdf.Key(sha256.New, raw, nil, "petrel cell authority v1", ed25519.SeedSize)
	if err != nil {
		return Identity{}, fmt.Errorf("derive the cell's authority: %w", err)
	}
	authority := ed25519.NewKeyFromSeed(seed)
	// Ed25519 signs deterministically and every field is constant: all nodes make the same bytes.
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "petrel cell"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, MaxPathLenZero: true,
	}
	if ca, err = sign(ca, ca, authority.Public(), authority); err != nil {
		return Identity{}, err
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return Identity{}, fmt.Errorf("make the node's key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return Identity{}, fmt.Errorf("make a serial number: %w", err)
	}
	leaf, err := sign(&x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: string(node)}, URIs: []*url.URL{{Scheme: nodeScheme, Opaque: url.PathEscape(string(node))}},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca, public, authority)
	if err != nil {
		return Identity{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return Identity{
		Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: private, Leaf: leaf},
		Roots:       roots,
	}, nil
}

func sign(template, parent *x509.Certificate, public, key any) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate of the cell: %w", err)
	}
	return x509.ParseCertificate(der)
}

// NodeOf is the node that a verified certificate names.
func NodeOf(c *x509.Certificate) (petrel.NodeID, error) {
	for _, u := range c.URIs {
		if u.Scheme != nodeScheme {
			continue
		}
		id, err := url.PathUnescape(u.Opaque)
		if err != nil || id == "" {
			break
		}
		return petrel.NodeID(id), nil
	}
	return "", errors.New("the certificate names no node: it needs the URI " + nodeScheme + ":<node name>")
}

// verify checks the other end of a handshake: signed by the cell, for the use at hand, and named.
// Names of hosts do not matter: nodes move.
func (i Identity) verify(usage x509.ExtKeyUsage) func(tls.ConnectionState) error {
	return func(st tls.ConnectionState) error {
		if len(st.PeerCertificates) == 0 {
			return errors.New("the other end shows no certificate")
		}
		inter := x509.NewCertPool()
		for _, c := range st.PeerCertificates[1:] {
			inter.AddCert(c)
		}
		_, err := st.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: i.Roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return fmt.Errorf("%w: %w", ErrOtherCell, err)
		}
		_, err = NodeOf(st.PeerCertificates[0])
		return err
	}
}

// LoadIdentity reads a certificate that was brought instead of derived: PEM files of the node's certificate (with
// what lies between it and a root), its key, and the roots that sign the cell's nodes. The certificate names the
// node by the URI petrel-node:<name>, and serves for both ends (serverAuth and clientAuth).
func LoadIdentity(certFile, keyFile, rootsFile string) (Identity, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return Identity{}, fmt.Errorf("read the node's certificate %s and its key %s: %w", certFile, keyFile, err)
	}
	if _, err := NodeOf(cert.Leaf); err != nil {
		return Identity{}, fmt.Errorf("%s: %w", certFile, err)
	}
	pem, err := os.ReadFile(rootsFile)
	if err != nil {
		return Identity{}, fmt.Errorf("read the roots of the cell's certificates: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return Identity{}, fmt.Errorf("%s holds no certificate in PEM form", rootsFile)
	}
	id := Identity{Certificate: cert, Roots: roots}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		chain := tls.ConnectionState{}
		for _, der := range cert.Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return Identity{}, fmt.Errorf("%s: %w", certFile, err)
			}
			chain.PeerCertificates = append(chain.PeerCertificates, c)
		}
		if err := id.verify(usage)(chain); err != nil {
			return Identity{}, fmt.Errorf("%s would not be let in by other nodes: %w", certFile, err)
		}
	}
	return id, nil
}

// Routes is one configuration for both ends of the routes between embedded NATS servers: each shows its
// certificate, and is of the cell or refused.
func (i Identity) Routes() *tls.Config {
	c := i.server(nil)
	c.InsecureSkipVerify = true // VerifyConnection checks the chain; only the host's name is left out
	c.VerifyConnection = i.verify(x509.ExtKeyUsageAny)
	return c
}

func (i Identity) server(protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.Certificate}, NextProtos: protocols,
		ClientAuth: tls.RequireAnyClientCert, VerifyConnection: i.verify(x509.ExtKeyUsageClientAuth),
		SessionTicketsDisabled: true, // a resumed session would show no certificate
	}
}

func (i Identity) client(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.Certificate}, NextProtos: []string{protocol},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection checks the chain; only the host's name is left out
		VerifyConnection:   i.verify(x509.ExtKeyUsageServerAuth),
	}
}
