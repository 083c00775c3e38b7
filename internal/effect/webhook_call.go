package effect

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Bounds of one call.
const (
	maxRedirects  = 3
	maxAnswer     = 64 << 10 // bytes of a body that are read, so that the connection can be used again; a longer one ends it
	maxHeaders    = 32 << 10
	dialTimeout   = 5 * time.Second
	maxAddresses  = 4 // of a host that are tried
	idleTimeout   = 30 * time.Second
	idlePerHost   = 8
	idleAltogeter = 256
)

// errNotPublic is why an address was not dialled. It does not name the address: who set the webhook need not learn what a name
// means inside the operator's network.
var errNotPublic = errors.New("the host's address is not public, and the operator does not allow it (webhook-allow)")

// caller makes HTTP calls to addresses that strangers chose. It asks no proxy, and checks the address that is dialled, at the moment at
// which it is: what a name resolved to before, or where a redirect came from, does not matter.
type caller struct {
	allow     []netip.Prefix
	lookup    func(ctx context.Context, host string) ([]netip.Addr, error)
	dialer    net.Dialer
	transport *http.Transport
}

func newCaller(allow []netip.Prefix, lookup func(context.Context, string) ([]netip.Addr, error)) *caller {
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	c := &caller{allow: allow, lookup: lookup}
	c.dialer = net.Dialer{Timeout: dialTimeout, ControlContext: c.check}
	c.transport = &http.Transport{
		Proxy: nil, DialContext: c.dial, TLSHandshakeTimeout: dialTimeout, MaxResponseHeaderBytes: maxHeaders,
		MaxIdleConns: idleAltogeter, MaxIdleConnsPerHost: idlePerHost, IdleConnTimeout: idleTimeout, DisableCompression: true,
	}
	return c
}

// dial resolves the host and dials its addresses, one after the other.
func (c *caller) dial(ctx context.Context, network, hostPort string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("the port %q is none", port)
	}
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a)
	} else if addrs, err = c.lookup(ctx, host); err != nil {
		return nil, errors.New("the host's name cannot be resolved") // the resolver's own words name servers of ours
	}
	err = errors.New("the host has no address")
	for _, a := range addrs[:min(len(addrs), maxAddresses)] {
		var conn net.Conn
		if conn, err = c.dialer.DialContext(ctx, network, netip.AddrPortFrom(a.Unmap(), uint16(n)).String()); err == nil {
			return conn, nil
		}
	}
	if errors.Is(err, errNotPublic) {
		err = errNotPublic // without the address around it
	}
	return nil, err
}

// check is called with the address of the socket that is about to be connected.
func (c *caller) check(_ context.Context, network, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || (network != "tcp4" && network != "tcp6") {
		return errNotPublic
	}
	if !allowed(c.allow, ap.Addr()) {
		return errNotPublic
	}
	return nil
}

func allowed(allow []netip.Prefix, a netip.Addr) bool {
	return public(a) || slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// CheckAddress refuses the url of a webhook whose host is written as an address that may not be called (CodeInvalidField): it would never be
// told anything. What a name stands for is known only when it is called.
func CheckAddress(allow []netip.Prefix, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return nil //nolint:nilerr // who may be a webhook is checked elsewhere
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil || allowed(allow, a) {
		return nil //nolint:nilerr // a name
	}
	return petrel.Errorf(petrel.CodeInvalidField, "The url of the webhook names an address that is not public, and such are called only if the operator allows it: --webhook-allow %s.",
		netip.PrefixFrom(a.Unmap().WithZone(""), a.Unmap().BitLen()))
}

// called is what came of a call.
type called struct {
	status     int
	retryAfter time.Duration // 0: not said
}

// call posts events to an address and follows where it points.
func (c *caller) call(ctx context.Context, address, agent string, pair identity.KeyPair, events []told) (called, error) {
	body := envelope(events)
	mac := hmac.New(sha256.New, []byte(string(pair.Secret)))
	mac.Write(body)
	signature := hex.EncodeToString(mac.Sum(nil))
	at, err := url.Parse(address)
	for hop := 0; err == nil; hop++ {
		var resp *http.Response
		if resp, err = c.post(ctx, at, http.Header{
			"Content-Type": {"application/json"}, "User-Agent": {agent}, "X-Pusher-Key": {pair.Key}, "X-Pusher-Signature": {signature},
			"Petrel-Event-Id": {idsOf(events)}, "Petrel-Attempt": {attemptsOf(events)},
		}, body); err != nil {
			return called{}, err
		}
		answer := called{status: resp.StatusCode, retryAfter: retryAfter(resp.Header.Get("Retry-After"))}
		next := resp.Header.Get("Location")
		_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // what was answered is known; this only saves the connection
		_ = resp.Body.Close()
		switch answer.status {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return answer, nil
		}
		if hop == maxRedirects {
			return answer, fmt.Errorf("the receiver redirects more than %d times", maxRedirects)
		}
		if at, err = redirect(at, next); err != nil {
			return answer, err
		}
	}
	return called{}, errors.New("the address cannot be read")
}

func (c *caller) post(ctx context.Context, at *url.URL, header http.Header, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the address cannot be called")
	}
	req.Header = header
	return c.transport.RoundTrip(req) //nolint:bodyclose // the caller closes it
}

// redirect returns where a receiver points: an address that a webhook may have, and never from https to http.
func redirect(from *url.URL, location string) (*url.URL, error) {
	bad := errors.New("the receiver redirects to what no webhook may be")
	if location == "" {
		return nil, bad
	}
	to, err := from.Parse(location)
	if err != nil {
		return nil, bad
	}
	to.Fragment, to.RawFragment = "", ""
	if identity.CheckHookURL(to.String()) != nil || (from.Scheme == "https" && to.Scheme != "https") {
		return nil, bad
	}
	return to, nil
}

// retryAfter reads the header: seconds, or a date.
func retryAfter(s string) time.Duration {
	if n, err := strconv.Atoi(s); err == nil {
		return time.Duration(min(max(n, 0), int(maxRetryAfter/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(time.Until(t), minRetryAfter)
	}
	return 0
}

// notPublic are networks that IsGlobalUnicast takes for public and that are not (IANA's special-purpose registries), and Azure's
// own host. Never written after initialisation.
var notPublic = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"240.0.0.0/4", "168.63.129.16/32",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

var (
	publicIPv6 = netip.MustParsePrefix("2000::/3")     // all that is given out
	nat64      = netip.MustParsePrefix("64:ff9b::/96") // the last four bytes are an IPv4 address
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// public says whether an address belongs to the internet at large. What is not known to is not.
func public(a netip.Addr) bool {
	if a = a.Unmap(); nat64.Contains(a) && a.Zone() == "" {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Zone() != "" || (a.Is6() && !publicIPv6.Contains(a)) {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
