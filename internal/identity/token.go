package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Limits of user tokens.
const (
	MaxToken = 4 << 10          // bytes
	Leeway   = 60 * time.Second // by which an app's clock may be ahead of ours: for nbf and iat, never for exp
)

// maxDate is the end of the year 9999 in Unix seconds: a later exp is a mistake (milliseconds, mostly).
const maxDate = 253_402_300_799

// MintToken signs a token for the user, good from now for ttl (≥ 1 s, cut to whole seconds), and says when it ends.
// Refusals: CodeInvalidID, CodeInvalidField.
func MintToken(p KeyPair, user petrel.UserID, now time.Time, ttl time.Duration) (token string, expires time.Time, err error) {
	if _, err := petrel.ParseUserID(string(user)); err != nil {
		return "", time.Time{}, err
	}
	if ttl < time.Second {
		return "", time.Time{}, petrel.Errorf(petrel.CodeInvalidField, "A token lives for at least one second.")
	}
	expires = now.Add(ttl).UTC().Truncate(time.Second)
	token, err = jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{
		Issuer: p.Key, Subject: string(user), IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
	}).SignedString([]byte(p.Secret))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign a token: %w", err)
	}
	return token, expires, nil
}

// claims are what we read of a token. They are stricter than the library's own: names are exact, none comes twice,
// and dates are numbers within the calendar.
type claims struct {
	iss, sub      string
	exp, iat, nbf *jwt.NumericDate
}

var _ jwt.Claims = (*claims)(nil)

// GetExpirationTime, like its siblings, implements jwt.Claims.
func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.exp, nil }
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.iat, nil }
func (c *claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.nbf, nil }
func (c *claims) GetIssuer() (string, error)                   { return c.iss, nil }
func (c *claims) GetSubject() (string, error)                  { return c.sub, nil }
func (c *claims) GetAudience() (jwt.ClaimStrings, error)       { return nil, nil }

// UnmarshalJSON implements json.Unmarshaler.
func (c *claims) UnmarshalJSON(b []byte) error {
	return members(b, func(name string, raw json.RawMessage) (err error) {
		switch name {
		case "iss":
			return json.Unmarshal(raw, &c.iss)
		case "sub":
			return json.Unmarshal(raw, &c.sub)
		case "exp":
			c.exp, err = date(raw)
		case "iat":
			c.iat, err = date(raw)
		case "nbf":
			c.nbf, err = date(raw)
		}
		return err
	})
}

func date(raw json.RawMessage) (*jwt.NumericDate, error) {
	seconds, err := strconv.ParseFloat(string(raw), 64) // JSON has neither its Inf nor its hexadecimal numbers
	if err != nil || seconds < 0 || seconds > maxDate {
		return nil, errors.Join(errors.New("not a date in seconds"), err)
	}
	return jwt.NewNumericDate(time.Unix(int64(seconds), 0)), nil
}

// members walks a JSON object; a name that comes twice is an error, because readers differ on which one counts.
func members(b []byte, each func(name string, raw json.RawMessage) error) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("not a JSON object"), err)
	}
	var seen []string // a token's size keeps it short
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // a key of an object always is
		if slices.Contains(seen, name) {
			return fmt.Errorf("%q comes twice", name)
		}
		seen = append(seen, name)
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		if err := each(name, raw); err != nil {
			return err
		}
	}
	return nil
}

// Refusals of tokens. Details never repeat what was sent.
func errNoToken() *petrel.Error {
	return petrel.Errorf(petrel.CodeUnauthenticated, "Send a user token, or the app's key and secret.")
}

func badToken(why string) *petrel.Error {
	return petrel.Errorf(petrel.CodeInvalidToken, "The token is not valid: %s.", why)
}

var (
	errIssuer = errors.New("its issuer (iss) is no good key of an app here")
	errHeader = errors.New("its header is not one we understand")
)

// verify checks a token against the secret that secretOf knows for its issuer, and returns what it says.
func verify(token string, now time.Time, secretOf func(key string) ([]byte, bool)) (*claims, error) {
	switch {
	case token == "":
		return nil, errNoToken()
	case len(token) > MaxToken:
		return nil, badToken(fmt.Sprintf("it is longer than %d bytes", MaxToken))
	case strings.ContainsFunc(token, notInKey): // base64url and dots; the decoder would skip over line breaks
		return nil, badToken("it has a character that no token has")
	}
	c := &claims{}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithStrictDecoding(), jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(), jwt.WithLeeway(Leeway), jwt.WithTimeFunc(func() time.Time { return now }),
	)
	_, err := parser.ParseWithClaims(token, c, func(*jwt.Token) (any, error) {
		if err := checkHeader(token); err != nil {
			return nil, errors.Join(errHeader, err)
		}
		secret, ok := secretOf(c.iss)
		if !ok {
			return nil, errIssuer
		}
		return secret, nil
	})
	switch {
	case errors.Is(err, jwt.ErrTokenExpired), err == nil && !now.Before(c.exp.Time): // the library's leeway is not for exp
		return nil, petrel.Errorf(petrel.CodeTokenExpired, "The token has expired. Get a new one from the app's backend.").Because(err)
	case err != nil:
		return nil, badToken(reason(err)).Because(err)
	}
	if _, err := petrel.ParseUserID(c.sub); err != nil {
		return nil, badToken("its subject (sub) is not a user id: 1 to 128 of A–Z a–z 0–9 _ - . : @ =").Because(err)
	}
	return c, nil
}

// usualHeader is what nearly every library writes: {"alg":"HS256","typ":"JWT"}.
const usualHeader = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"

// checkHeader refuses extensions that a token calls critical (RFC 7515, 4.1.11): we know none.
func checkHeader(token string) error {
	part, _, _ := strings.Cut(token, ".")
	if part == usualHeader {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return errHeader
	}
	return members(b, func(name string, _ json.RawMessage) error {
		if name == "crit" {
			return errHeader
		}
		return nil
	})
}

// reason says in words of ours why the library, or secretOf, refused.
func reason(err error) string {
	switch {
	case errors.Is(err, errIssuer):
		return errIssuer.Error()
	case errors.Is(err, errHeader):
		return errHeader.Error()
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "it never ends (exp is missing)"
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return "it begins in the future (nbf or iat); check the clock of the app's backend"
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return "its signature is not by HS256 with the secret of its issuer"
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return "its algorithm is not HS256"
	}
	return "it is not a JSON web token, or its claims are not what they should be"
}
