package pusher

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// mountHTTP adds the routes of the HTTP API.
func (s *Server) mountHTTP() {
	route := gateway.Route{Access: gateway.Own, MaxBody: -1, Repeats: true}
	handle := func(pattern string, do func(r *http.Request, c *call) ([]byte, error)) {
		if !route.Loop { // else it says itself when it begins, and whether it waits
			do = s.begun(do)
		}
		s.opt.Gateway.Handle(pattern, route, s.call(do))
		method, path, _ := strings.Cut(pattern, " ")
		s.opt.Gateway.Handle(path, route, s.wrongMethod(method))
	}
	// Without a deadline of the gateway's: reading has one, publishing waits for nobody, and what asks other nodes bounds that itself.
	route.Loop, route.LongLife = true, true
	handle("POST /apps/{app}/events", s.postEvent)
	handle("POST /apps/{app}/batch_events", s.postBatch)
	route.Loop, route.LongLife = false, false
	handle("GET /apps/{app}/channels", s.getChannels)
	handle("GET /apps/{app}/channels/{channel}", s.getChannel)
	handle("GET /apps/{app}/channels/{channel}/users", s.getUsers)
	handle("POST /apps/{app}/users/{user}/terminate_connections", s.terminate)
	s.opt.Gateway.Handle("/apps/", route, http.HandlerFunc(s.nothing))
}

// begun charges a call before it looks at it.
func (s *Server) begun(do func(*http.Request, *call) ([]byte, error)) func(*http.Request, *call) ([]byte, error) {
	return func(r *http.Request, c *call) ([]byte, error) {
		if err := s.begin(c, false); err != nil { // it is on no loop
			return nil, err
		}
		return do(r, c)
	}
}

// wrongMethod answers what there is a route for, but by another method.
func (s *Server) wrongMethod(want string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := s.opt.Gateway.ChargeStranger(r.Context())
		if err == nil {
			w.Header().Set("Allow", want)
			err = petrel.Errorf(petrel.CodeMethodNotAllowed, "This call of the HTTP API takes %s.", want)
		}
		s.opt.Gateway.Refuse(w, r, err)
	})
}

// nothing answers what there is no route for.
func (s *Server) nothing(w http.ResponseWriter, r *http.Request) {
	err := s.opt.Gateway.ChargeStranger(r.Context())
	if err == nil {
		err = petrel.Errorf(petrel.CodeNotFound, "There is no such call of the HTTP API: docs/pusher.md lists them, with their methods.")
	}
	s.opt.Gateway.Refuse(w, r, err)
}

// call authenticates a call and answers with what do returns. One that is not authenticated is charged to its address, any other to its app: by
// do, before it does anything (Server.begin), or here when do found nothing that can be done.
func (s *Server) call(do func(r *http.Request, c *call) ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf, _ := s.bodies.Get().(*bytes.Buffer)
		defer s.giveBack(buf)
		c, err := s.authenticate(w, r, buf)
		var answer []byte
		if err != nil {
			if tooMany := s.opt.Gateway.ChargeStranger(r.Context()); tooMany != nil {
				err = tooMany
			}
		} else {
			c.w = w
			answer, err = do(r, c)
			if errors.Is(err, errAgain) {
				return
			}
			if tooMany := s.charge(c); tooMany != nil {
				err = tooMany
			}
		}
		if err != nil {
			s.opt.Gateway.Refuse(w, r, err)
			return
		}
		h := w.Header()
		h["Content-Type"] = jsonType
		_, _ = w.Write(answer) // the peer may be gone; the answer was for it alone
	})
}

// jsonType is a header's value. It is never written.
var jsonType = []string{"application/json"}

// emptyObject is the answer of most calls. It is never written.
var emptyObject = []byte("{}")

// authenticate reads a call and checks who made it. The body lies in buf.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request, buf *bytes.Buffer) (*call, error) {
	ps, signature, err := parseParams(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	c := &call{app: petrel.AppID(r.PathValue("app")), params: ps}
	// The signature is over the sum of the body, not over the body: who cannot sign does not make us read one.
	if err := s.checkClaims(c.app, ps, signature); err != nil {
		return nil, err
	}
	if err := s.checkSignature(r, c, signature); err != nil {
		return nil, err
	}
	most := maxBody(s.opt.Apps.Settings(c.app))
	size := r.ContentLength
	if size < 0 || size > most {
		size = most
	}
	defer s.reading.Add(-size)
	if s.reading.Add(size) > s.opt.MaxReading {
		return nil, petrel.Errorf(petrel.CodeOverloaded, "This node is reading as many calls as it takes. Come back in a moment.").After(time.Second)
	}
	if err := readBody(w, r, buf, most); err != nil {
		return nil, err
	}
	c.body = buf.Bytes()
	return c, s.checkSum(c)
}

// maxBody is how large a call of an app may be: its largest batch, with room for the escapes of JSON within JSON.
func maxBody(set *identity.Settings) int64 {
	return int64(set.MaxBatch)*(int64(set.MaxEventBytes)*2+2<<10) + int64(set.MaxChannels)*int64(set.MaxChannelName+3) + 16<<10
}

const keepBody = 256 << 10

func newBody() any { return bytes.NewBuffer(make([]byte, 0, 4<<10)) }

func (s *Server) giveBack(b *bytes.Buffer) {
	if b.Cap() <= keepBody {
		b.Reset()
		s.bodies.Put(b)
	}
}

// readBody reads the whole body. The buffer grows with what has come, not with what was promised.
func readBody(w http.ResponseWriter, r *http.Request, buf *bytes.Buffer, limit int64) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	tooLarge := func() error {
		return petrel.Errorf(petrel.CodeTooLarge, "The body is larger than %d bytes.", limit)
	}
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close") // rather than read it to keep the connection
		return tooLarge()
	}
	if _, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit)); err != nil {
		if mbe := (*http.MaxBytesError)(nil); errors.As(err, &mbe) {
			return tooLarge()
		}
		return gateway.NotWhole(w, err)
	}
	if !utf8.Valid(buf.Bytes()) {
		return petrel.Errorf(petrel.CodeInvalidUTF8, "The body is not UTF-8.")
	}
	return nil
}
