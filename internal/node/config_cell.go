package node

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// cellProblems checks what is set about a cell, and how it fits together.
func (c *Config) cellProblems(origin map[string]string) (out []error) {
	bad := func(name, format string, args ...any) {
		who := origin[name]
		if who == "" {
			who = "the default of " + name
		}
		out = append(out, fmt.Errorf("%s: %s", who, fmt.Sprintf(format, args...)))
	}
	if c.PublicURL != "" {
		if u, err := url.Parse(c.PublicURL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			bad("public-url", "public-url is %q; write the beginning of an address, like https://n1.chat.example", c.PublicURL)
		}
	}
	if c.Voters != 3 && c.Voters != 5 && (c.Peer != "" || c.Voters != 1) { // a node that is alone is one voter
		bad("voters", "voters is %d; it must be 3 or 5", c.Voters)
	}
	if c.Peer == "" {
		for _, s := range []struct{ name, value string }{
			{"join", c.Join},
			{"cell-secret-file", c.CellSecretFile},
			{"bus", c.Bus},
			{"nats", c.NATS},
			{"peer-cert", c.PeerCert},
			{"peer-key", c.PeerKey},
			{"peer-ca", c.PeerCA},
		} {
			if s.value != "" {
				bad(s.name, "%s is for a cell, and this node has no port for other nodes; set peer too, like --peer 10.0.0.5:7600", s.name)
			}
		}
		return out
	}
	if len(c.Name) > maxCellName {
		bad("name", "name is %q; in a cell it has at most %d characters", c.Name, maxCellName)
	}
	if why := notReachable(c.Peer); why != "" {
		bad("peer", "peer is %q; %s", c.Peer, why)
	}
	if c.Bus != "" {
		if why := notReachable(c.Bus); why != "" {
			bad("bus", "bus is %q; %s", c.Bus, why)
		}
		if c.Bus == c.Peer && !strings.HasSuffix(c.Bus, ":0") {
			bad("bus", "bus and peer are both %s; the bus needs its own port", c.Bus)
		}
	} else if _, port, err := net.SplitHostPort(c.Peer); err == nil && port == "65535" && c.NATS == "" {
		bad("peer", "peer has the last port, and the bus takes the one after it; choose another, or set bus")
	}
	for _, addr := range c.joins() {
		if why := notReachable(addr); why != "" {
			bad("join", "join names %q; %s", addr, why)
		}
	}
	if c.NATS != "" {
		if u, err := url.Parse(strings.Split(c.NATS, ",")[0]); err != nil || u.Host == "" || (u.Scheme != "nats" && u.Scheme != "tls") {
			bad("nats", "nats is no address of a NATS server; write nats://HOST:4222 or tls://HOST:4222")
		}
	}
	if set := btoi(c.PeerCert != "") + btoi(c.PeerKey != "") + btoi(c.PeerCA != ""); set != 0 && set != 3 {
		for _, name := range []string{"peer-cert", "peer-key", "peer-ca"} {
			if origin[name] != "" {
				bad(name, "peer-cert, peer-key and peer-ca belong together; set all three or none")
				break
			}
		}
	}
	return out
}

// joins are the addresses of --join.
func (c *Config) joins() (out []string) {
	for s := range strings.SplitSeq(c.Join, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// busAddr is where the embedded NATS listens.
func (c *Config) busAddr() string {
	if c.Bus != "" {
		return c.Bus
	}
	host, port, _ := net.SplitHostPort(c.Peer) // checked by cellProblems
	n, _ := strconv.Atoi(port)
	if n > 0 {
		n++
	}
	return net.JoinHostPort(host, strconv.Itoa(n))
}

// publicURL is where clients reach this node: as it was set, else where it listens when that says it; "" when nobody knows.
func (c *Config) publicURL(listen string) string {
	if c.PublicURL != "" {
		return strings.TrimRight(c.PublicURL, "/")
	}
	if notReachable(listen) != "" {
		return ""
	}
	return c.scheme() + listen
}

// scheme is how an address of the public listener begins.
func (c *Config) scheme() string {
	if c.TLSCert != "" && c.TLSListen == "" {
		return "https://"
	}
	return "http://"
}

// notReachable says why other nodes could not reach an address; "" when they might.
func notReachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		return "it must be HOST:PORT, like 10.0.0.5:7600"
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return "name the address under which the other nodes reach this one, not one for all interfaces"
	}
	return ""
}
