package pusher

import (
	"crypto/rand"
	"encoding/binary"
	"hash/maphash"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/limit"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// connect is GET /app/{key} (P1).
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	app, end := s.greet(r, key)
	s.open(w, r, key, app, end)
}

// elsewhere is any other path below /app: a client is told so in a way that makes it stay away.
func (s *Server) elsewhere(w http.ResponseWriter, r *http.Request) {
	s.open(w, r, "", "", &ending{closeNoPath, "There is nothing at this path: connect to /app/{key}."})
}

// ending is how a connection ends that was never taken in.
type ending struct {
	code conn.CloseCode
	text string
}

func (e *ending) Error() string { return e.text }

// greet says whose connection wants to come, and, when it may not, how it ends. A known key is charged to its app, so that all the clients behind one
// address may come at once; only those with other keys are charged to the address.
func (s *Server) greet(r *http.Request, key string) (petrel.AppID, *ending) {
	if end := checkProtocol(r.URL.Query()); end != nil {
		return "", end
	}
	app, err := s.opt.Apps.AppOfKey(key)
	if err != nil {
		if tooMany := s.opt.Gateway.ChargeStranger(r.Context()); tooMany != nil {
			err = tooMany
		}
		code, text := closeFor(err)
		return app, &ending{code, text}
	}
	if ok, _ := s.handshakes.Take(app, s.opt.Now(), 1); !ok {
		return app, &ending{closeOverCapacity, "The app's clients come faster than they may. Come back in a moment."}
	}
	return app, nil
}

// Versions of the protocol that are spoken: 4 to 7 differ in nothing that a server does here.
const (
	oldestProtocol = 4
	newestProtocol = 7
)

// checkProtocol reads the version of the protocol, or infers it from that of the library (P2).
func checkProtocol(q url.Values) *ending {
	text := q.Get("protocol")
	if text == "" {
		major, _, _ := strings.Cut(q.Get("version"), ".")
		if major == "" {
			return &ending{closeNoProtocol, "No protocol version was named: connect with ?protocol=7."}
		}
		n, err := strconv.Atoi(major)
		switch {
		case err != nil || n < 0:
			return &ending{closeBadVersion, "The library's version is no version: connect with ?protocol=7."}
		case n < 1: // pusher-js 1 brought protocol 4
			return &ending{closeOldProtocol, "This library's protocol is not spoken here any more: use a newer one."}
		}
		return nil
	}
	n, err := strconv.Atoi(text)
	switch {
	case err != nil || n < 0:
		return &ending{closeBadVersion, "The protocol version is no number: connect with ?protocol=7."}
	case n < oldestProtocol || n > newestProtocol:
		return &ending{closeOldProtocol, "This protocol version is not spoken here: versions 4 to 7 are."}
	}
	return nil
}

// open finishes the handshake, also when the connection is refused: a client understands a close code, and comes back for ever after a
// handshake that failed (P7).
func (s *Server) open(w http.ResponseWriter, r *http.Request, key string, app petrel.AppID, end *ending) {
	var refused error
	if end != nil {
		refused = end
	}
	most := s.opt.Apps.Settings(app).MaxConnections
	err := s.opt.Gateway.OpenSocketOf(w, r, app, most, refused, func(err error) (conn.Config, conn.Handler) {
		if err != nil {
			if end == nil {
				code, text := closeFor(err)
				end = &ending{code, text}
			}
			return conn.Config{Brief: true}, s.turnAway(end)
		}
		return s.newSession(s.entranceOf(key, app))
	})
	if err != nil {
		s.opt.Gateway.Refuse(w, r, err)
	}
}

// turnAway is the handler of a connection that is refused.
func (s *Server) turnAway(end *ending) conn.Handler {
	s.metrics.connects.WithLabelValues(strconv.Itoa(int(end.code))).Inc()
	return &turnedAway{end}
}

// turnedAway says why, and closes.
type turnedAway struct{ *ending }

var _ conn.Handler = (*turnedAway)(nil)

// OnOpen implements conn.Handler.
func (t *turnedAway) OnOpen(c *conn.Conn) {
	_ = c.Send(frameFor(c, errorPayload(int(t.code), t.text))) // closing: nobody is there to be told
	c.Close(t.code, t.text)
}

// OnMessage implements conn.Handler.
func (*turnedAway) OnMessage(*conn.Conn, []byte) {}

// OnClose implements conn.Handler.
func (*turnedAway) OnClose(*conn.Conn, conn.CloseCode) {}

// newSocketID draws an id that no other connection of any node has (P6): two numbers with a dot between them.
func newSocketID() petrel.ConnID {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	id := make([]byte, 0, 40)
	id = strconv.AppendUint(id, binary.BigEndian.Uint64(b[:8])>>16, 10)
	id = append(id, '.')
	return petrel.ConnID(strconv.AppendUint(id, binary.BigEndian.Uint64(b[8:])>>16, 10))
}

// isSocketID says whether a text can be one.
func isSocketID(s string) bool {
	a, b, ok := strings.Cut(s, ".")
	return ok && len(s) <= 64 && digits(a) && digits(b)
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func newLimits(r limit.Rate) *limit.Table[petrel.AppID] {
	seed := maphash.MakeSeed()
	return limit.NewTable(r, 65_536, func(a petrel.AppID) uint64 { return maphash.Comparable(seed, a) })
}
