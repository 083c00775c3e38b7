package pusher

import (
	"crypto/md5" //nolint:gosec // the protocol's checksum of a body; the signature over it is HMAC-SHA256
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// maxSkew is how far a call's clock may be off ours.
const maxSkew = 600 * time.Second

// param is one parameter of a query, its name in lower case.
type param struct{ name, value string }

// params are those of a query, sorted by name; equal names in the order in which they came.
type params []param

// parseParams reads a query. It is what the signature is over, so nothing is left out but the signature itself.
func parseParams(raw string) (ps params, signature string, err error) {
	ps = make(params, 0, 8)
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, nameErr := url.QueryUnescape(name)
		value, valueErr := url.QueryUnescape(value)
		if nameErr != nil || valueErr != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, "", petrel.Errorf(petrel.CodeInvalidField, "The query cannot be read. Write every name and value in UTF-8, and encode it.")
		}
		if name = strings.ToLower(name); name == "auth_signature" {
			if signature != "" {
				return nil, "", petrel.Errorf(petrel.CodeInvalidField, "The auth_signature comes twice.")
			}
			signature = value
			continue
		}
		ps = append(ps, param{name, value})
	}
	slices.SortStableFunc(ps, func(a, b param) int { return strings.Compare(a.name, b.name) })
	return ps, signature, nil
}

// get returns the first value of a name, "" when there is none.
func (ps params) get(name string) string {
	for _, p := range ps {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

// all returns every value of a name, also as name[].
func (ps params) all(name string) (out []string) {
	for _, p := range ps {
		if p.name == name || p.name == name+"[]" {
			out = append(out, p.value)
		}
	}
	return out
}

// message is what is signed: METHOD, path and parameters, a line each, nothing escaped.
func (ps params) message(b []byte, method, path string) []byte {
	b = append(append(append(append(b, method...), '\n'), path...), '\n')
	for i, p := range ps {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(append(append(b, p.name...), '='), p.value...)
	}
	return b
}

// call is one call of the HTTP API, its sender known.
type call struct {
	app    petrel.AppID
	params params
	body   []byte
	w      http.ResponseWriter

	charged bool
}

// begin is what a call does before anything else has an effect. It is charged to its app, or errAgain says that it waits, is on a loop where nothing
// may, and is made once more: then it is charged there.
func (s *Server) begin(c *call, waits bool) error {
	if waits && conn.Again(c.w) {
		return errAgain
	}
	return s.charge(c)
}

// charge takes a call from its app's rate, once.
func (s *Server) charge(c *call) error {
	if c.charged {
		return nil
	}
	c.charged = true
	return s.opt.Gateway.Charge(c.app, 1)
}

// errAgain is what a call returns that is made once more where it may wait.
var errAgain = errors.New("pusher: again")

// refuseCall counts a call that is not authenticated, by why.
func (s *Server) refuseCall(why, format string, args ...any) error {
	s.metrics.calls.WithLabelValues(why).Inc()
	return petrel.Errorf(petrel.CodeInvalidToken, format, args...)
}

// checkClaims checks what a call says of itself.
func (s *Server) checkClaims(app petrel.AppID, ps params, signature string) error {
	refuse := s.refuseCall
	key := ps.get("auth_key")
	for _, name := range []string{"auth_key", "auth_timestamp", "auth_version"} {
		if ps.get(name) == "" {
			return refuse("missing", "The parameter %s is missing: sign the call with the app's key and secret.", name)
		}
	}
	if signature == "" {
		return refuse("missing", "The parameter auth_signature is missing: sign the call with the app's key and secret.")
	}
	if v := ps.get("auth_version"); v != "1.0" {
		return refuse("version", "The auth_version is not 1.0.")
	}
	of, err := s.opt.Apps.AppOfKey(key)
	if code := petrel.CodeOf(err); code == petrel.CodeInvalidToken {
		return refuse("key", "The auth_key is not a good key of any app here.")
	} else if err != nil && code != petrel.CodeAppSuspended {
		return err
	}
	if of != app {
		return refuse("app", "The auth_key is not one of the app in the path.")
	}
	at, err := strconv.ParseInt(ps.get("auth_timestamp"), 10, 64)
	if err != nil {
		return refuse("timestamp", "The auth_timestamp is not a time in seconds since 1970.")
	}
	if off := math.Abs(float64(s.opt.Now().Unix()) - float64(at)); off > maxSkew.Seconds() {
		return refuse("timestamp", "The auth_timestamp is %.0f seconds off this server's clock; at most %.0f are allowed. Set the clock, or sign each call anew.", off, maxSkew.Seconds())
	}
	return nil
}

// checkSignature checks the signature over everything but the body, whose sum is among the parameters.
func (s *Server) checkSignature(r *http.Request, c *call, signature string) error {
	var buf [1024]byte
	key := c.params.get("auth_key")
	_, err := s.opt.Apps.Verify(key, c.params.message(buf[:0], r.Method, r.URL.Path), signature)
	if escaped := r.URL.EscapedPath(); petrel.CodeOf(err) == petrel.CodeInvalidToken && escaped != r.URL.Path {
		// Some libraries sign the path as they write it, others before they escape it.
		_, err = s.opt.Apps.Verify(key, c.params.message(buf[:0], r.Method, escaped), signature)
	}
	if petrel.CodeOf(err) == petrel.CodeInvalidToken {
		return s.refuseCall("signature", "The auth_signature is not that of the key's secret over method, path and parameters: parameters sorted by name and not escaped.")
	}
	return err
}

// checkSum checks that the body is the one that was signed.
func (s *Server) checkSum(c *call) error {
	given := c.params.get("body_md5")
	if len(c.body) == 0 && given == "" {
		return nil
	}
	sum := md5.Sum(c.body) //nolint:gosec // see the import
	var want [2 * md5.Size]byte
	hex.Encode(want[:], sum[:])
	if subtle.ConstantTimeCompare(want[:], []byte(strings.ToLower(given))) != 1 {
		return s.refuseCall("body", "The body_md5 is not that of the body: it is taken over exactly the bytes that are sent, and needed whenever there are any.")
	}
	return nil
}
