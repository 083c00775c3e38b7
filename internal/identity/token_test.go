package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// sign makes a token by hand: what a library would refuse to write is what must be refused.
func sign(header, claims string, secret Secret) string {
	text := b64(header) + "." + b64(claims)
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

const hs256 = `{"alg":"HS256","typ":"JWT"}`

// doorkeeper knows two apps at epoch: k1 and k2 of 100, k3 of 200, which is suspended.
func doorkeeper() *Directory {
	d := NewDirectory(DirectoryOptions{Now: func() time.Time { return epoch }})
	d.current.Store(&snapshot{
		apps: map[petrel.AppID]bool{"100": false, "200": true},
		keys: map[string]signer{"k1": of("100", "k1"), "k2": of("100", "k2"), "k3": of("200", "k3")},
	})
	return d
}

func of(app petrel.AppID, key string) signer { return newSigner(app, string(pair(key).Secret)) }

func TestTokens(t *testing.T) {
	t.Parallel()
	at := func(d time.Duration) string { return fmt.Sprint(epoch.Add(d).Unix()) }
	body := `{"iss":"k1","sub":"ada","exp":` + at(time.Hour) + `}`
	with := func(more string) string { return strings.TrimSuffix(body, "}") + "," + more + "}" }
	own := func(claims string) string { return sign(hs256, claims, pair("k1").Secret) }
	good := own(body)
	parts := strings.Split(good, ".")

	if b64(hs256) != usualHeader {
		t.Error("the usual header is not what it says")
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other := func(m jwt.SigningMethod, key any) string {
		s, err := jwt.NewWithClaims(m, jwt.MapClaims{"iss": "k1", "sub": "ada", "exp": epoch.Add(time.Hour).Unix()}).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	secret := []byte(pair("k1").Secret)

	for name, c := range map[string]struct {
		token string
		want  petrel.Code
	}{
		"good":                  {good, ""},
		"no typ":                {sign(`{"alg":"HS256"}`, body, pair("k1").Secret), ""},
		"claims of others":      {own(with(`"aud":["x"],"jti":"1","admin":true,"ISS":"k2","nested":{"iss":"k2"}`)), ""},
		"the last second":       {own(`{"iss":"k1","sub":"ada","exp":` + at(time.Second) + `}`), ""},
		"clock a minute ahead":  {own(with(`"nbf":` + at(Leeway) + `,"iat":` + at(Leeway))), ""},
		"date with a fraction":  {own(with(`"iat":` + at(0) + `.5`)), ""},
		"longest user":          {own(`{"iss":"k1","sub":"` + strings.Repeat("x", 128) + `","exp":` + at(time.Hour) + `}`), ""},
		"nothing":               {"", petrel.CodeUnauthenticated},
		"expired":               {own(`{"iss":"k1","sub":"ada","exp":` + at(-time.Hour) + `}`), petrel.CodeTokenExpired},
		"expired this second":   {own(`{"iss":"k1","sub":"ada","exp":` + at(0) + `}`), petrel.CodeTokenExpired},
		"expired in 1970":       {own(`{"iss":"k1","sub":"ada","exp":0}`), petrel.CodeTokenExpired},
		"expired, bad sign":     {sign(hs256, `{"iss":"k1","sub":"ada","exp":0}`, pair("k2").Secret), petrel.CodeInvalidToken},
		"suspended":             {sign(hs256, strings.Replace(body, "k1", "k3", 1), pair("k3").Secret), petrel.CodeAppSuspended},
		"suspended, bad sign":   {sign(hs256, strings.Replace(body, "k1", "k3", 1), pair("k1").Secret), petrel.CodeInvalidToken},
		"secret of another key": {sign(hs256, body, pair("k2").Secret), petrel.CodeInvalidToken},
		"empty secret":          {sign(hs256, body, ""), petrel.CodeInvalidToken},
		"unknown issuer":        {own(strings.Replace(body, "k1", "k9", 1)), petrel.CodeInvalidToken},
		"unknown, no secret":    {sign(hs256, strings.Replace(body, "k1", "k9", 1), ""), petrel.CodeInvalidToken},
		"no issuer":             {sign(hs256, `{"sub":"ada","exp":`+at(time.Hour)+`}`, ""), petrel.CodeInvalidToken},
		"issuer is the app":     {own(strings.Replace(body, "k1", "100", 1)), petrel.CodeInvalidToken},
		"no exp":                {own(`{"iss":"k1","sub":"ada"}`), petrel.CodeInvalidToken},
		"exp null":              {own(`{"iss":"k1","sub":"ada","exp":null}`), petrel.CodeInvalidToken},
		"exp true":              {own(`{"iss":"k1","sub":"ada","exp":true}`), petrel.CodeInvalidToken},
		"iss null":              {own(`{"iss":null,"sub":"ada","exp":` + at(time.Hour) + `}`), petrel.CodeInvalidToken},
		"exp text":              {own(`{"iss":"k1","sub":"ada","exp":"` + at(time.Hour) + `"}`), petrel.CodeInvalidToken},
		"exp negative":          {own(`{"iss":"k1","sub":"ada","exp":-1}`), petrel.CodeInvalidToken},
		"exp in milliseconds":   {own(`{"iss":"k1","sub":"ada","exp":` + at(time.Hour) + `000}`), petrel.CodeInvalidToken},
		"exp without end":       {own(`{"iss":"k1","sub":"ada","exp":1e300}`), petrel.CodeInvalidToken},
		"exp beyond floats":     {own(`{"iss":"k1","sub":"ada","exp":1e999}`), petrel.CodeInvalidToken},
		"Exp":                   {own(`{"iss":"k1","sub":"ada","Exp":` + at(time.Hour) + `}`), petrel.CodeInvalidToken},
		"begins later":          {own(with(`"nbf":` + at(Leeway+time.Second))), petrel.CodeInvalidToken},
		"made later":            {own(with(`"iat":` + at(Leeway+time.Second))), petrel.CodeInvalidToken},
		"no sub":                {own(`{"iss":"k1","exp":` + at(time.Hour) + `}`), petrel.CodeInvalidToken},
		"sub empty":             {own(strings.Replace(body, "ada", "", 1)), petrel.CodeInvalidToken},
		"sub outside alphabet":  {own(strings.Replace(body, "ada", "a/b", 1)), petrel.CodeInvalidToken},
		"sub .":                 {own(strings.Replace(body, "ada", ".", 1)), petrel.CodeInvalidToken},
		"sub ..":                {own(strings.Replace(body, "ada", "..", 1)), petrel.CodeInvalidToken},
		"sub not UTF-8":         {own(strings.Replace(body, "ada", "a\xff", 1)), petrel.CodeInvalidToken},
		"sub too long":          {own(strings.Replace(body, "ada", strings.Repeat("x", 129), 1)), petrel.CodeInvalidToken},
		"sub a number":          {own(strings.Replace(body, `"ada"`, "1", 1)), petrel.CodeInvalidToken},
		"sub twice":             {own(with(`"sub":"eve"`)), petrel.CodeInvalidToken},
		"iss twice":             {own(with(`"iss":"k1"`)), petrel.CodeInvalidToken},
		"iss twice, escaped":    {own(with(`"\u0069ss":"k1"`)), petrel.CodeInvalidToken},
		"alg twice":             {sign(`{"alg":"none","alg":"HS256"}`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"critical header":       {sign(`{"alg":"HS256","crit":["b64"],"b64":false}`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"alg none":              {other(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType), petrel.CodeInvalidToken},
		"alg None":              {sign(`{"alg":"None"}`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"alg none, HS256 sign":  {sign(`{"alg":"none"}`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"alg RS256":             {other(jwt.SigningMethodRS256, rsaKey), petrel.CodeInvalidToken},
		"alg HS384":             {other(jwt.SigningMethodHS384, secret), petrel.CodeInvalidToken},
		"alg HS512":             {other(jwt.SigningMethodHS512, secret), petrel.CodeInvalidToken},
		"alg hs256":             {sign(`{"alg":"hs256"}`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"alg missing":           {sign(`{}`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"alg a list":            {sign(`{"alg":["HS256"]}`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"header null":           {sign(`null`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"header a list":         {sign(`[]`, body, pair("k1").Secret), petrel.CodeInvalidToken},
		"claims null":           {own("null"), petrel.CodeInvalidToken},
		"claims a list":         {own("[]"), petrel.CodeInvalidToken},
		"claims a text":         {own(`"k1"`), petrel.CodeInvalidToken},
		"claims and more":       {own(body + body), petrel.CodeInvalidToken},
		"claims not JSON":       {own(`{"iss":"k1",}`), petrel.CodeInvalidToken},
		"two parts":             {parts[0] + "." + parts[1], petrel.CodeInvalidToken},
		"four parts":            {good + "." + parts[2], petrel.CodeInvalidToken},
		"encrypted":             {good + ".a.b", petrel.CodeInvalidToken},
		"empty parts":           {"..", petrel.CodeInvalidToken},
		"no signature":          {parts[0] + "." + parts[1] + ".", petrel.CodeInvalidToken},
		"cut signature":         {good[:len(good)-1], petrel.CodeInvalidToken},
		"padded":                {good + "=", petrel.CodeInvalidToken},
		"line break":            {parts[0] + ".\n" + parts[1] + "." + parts[2], petrel.CodeInvalidToken},
		"line break at the end": {good + "\r\n", petrel.CodeInvalidToken},
		"space before":          {" " + good, petrel.CodeInvalidToken},
		"a word":                {"secret", petrel.CodeInvalidToken},
		"not UTF-8":             {"\xff\xfe.\x00", petrel.CodeInvalidToken},
		"4 KiB":                 {own(with(`"x":"` + strings.Repeat("x", 2700) + `"`)), ""},
		"more than 4 KiB":       {own(with(`"x":"` + strings.Repeat("x", 3000) + `"`)), petrel.CodeInvalidToken},
	} {
		a, expires, err := doorkeeper().AuthenticateToken(c.token)
		if petrel.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil {
			if a != (petrel.Actor{}) || !expires.IsZero() {
				t.Errorf("%s: refused, but %v until %v", name, a, expires)
			}
			if leaks(err) {
				t.Errorf("%s: the refusal shows a secret: %v", name, err)
			}
		} else if a.Kind != petrel.ActorUser || a.App != "100" || a.User == "" || !expires.After(epoch) || expires.Location() != time.UTC {
			t.Errorf("%s: %+v until %v", name, a, expires)
		}
	}
}

func leaks(err error) bool { return strings.Contains(err.Error(), "secret-of-") }

func TestMintToken(t *testing.T) {
	t.Parallel()
	d := doorkeeper()
	token, expires, err := MintToken(pair("k2"), "ada@example.org", epoch.Add(700*time.Millisecond), time.Minute)
	if err != nil || !expires.Equal(epoch.Add(time.Minute)) {
		t.Fatalf("%v, %v", expires, err)
	}
	a, until, err := d.AuthenticateToken(token)
	if err != nil || !until.Equal(expires) || a != (petrel.Actor{Kind: petrel.ActorUser, App: "100", User: "ada@example.org"}) {
		t.Errorf("%+v until %v, %v", a, until, err)
	}
	if _, _, err := MintToken(pair("k2"), "", epoch, time.Minute); petrel.CodeOf(err) != petrel.CodeInvalidID {
		t.Error(err)
	}
	for _, ttl := range []time.Duration{-time.Hour, 0, time.Second - 1} {
		if _, _, err := MintToken(pair("k2"), "ada", epoch, ttl); petrel.CodeOf(err) != petrel.CodeInvalidField {
			t.Errorf("%s: %v", ttl, err)
		}
	}
}

// FuzzToken: no token panics; what is accepted was signed with the issuer's secret and ends; what is refused is refused with
// a 401 or app_suspended, in a sentence without a secret.
func FuzzToken(f *testing.F) {
	d := doorkeeper()
	body := fmt.Sprintf(`{"iss":"k1","sub":"ada","exp":%d}`, epoch.Add(time.Hour).Unix())
	for _, key := range []string{"k1", "k3"} {
		f.Add(hs256, strings.Replace(body, "k1", key, 1), "", true)
	}
	f.Add(`{"alg":"none"}`, body, "", false)
	f.Add(hs256, `null`, "a.b.c", true)
	f.Add(hs256, `{"iss":"k1","iss":"k2","exp":1e400,"nbf":-0}`, "..", true)
	f.Fuzz(func(t *testing.T, header, claims, raw string, signed bool) {
		token := raw
		if signed {
			token = sign(header, claims, pair("k1").Secret)
		}
		a, expires, err := d.AuthenticateToken(token)
		switch petrel.CodeOf(err) {
		case "":
			parts := strings.Split(token, ".")
			want := sign(decoded(t, parts[0]), decoded(t, parts[1]), pair("k1").Secret)
			if token != want && token != sign(decoded(t, parts[0]), decoded(t, parts[1]), pair("k2").Secret) {
				t.Fatalf("accepted what none of the app's keys signed: %q", token)
			}
			if _, err := petrel.ParseUserID(string(a.User)); err != nil || a.App != "100" || !expires.After(epoch) || len(token) > MaxToken {
				t.Fatalf("accepted %q as %+v until %v", token, a, expires)
			}
		case petrel.CodeUnauthenticated, petrel.CodeInvalidToken, petrel.CodeTokenExpired, petrel.CodeAppSuspended:
			if leaks(err) {
				t.Fatalf("the refusal shows a secret: %v", err)
			}
		default:
			t.Fatalf("refused with %v", err)
		}
	})
}

func decoded(t *testing.T, part string) string {
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func BenchmarkAuthenticateToken(b *testing.B) {
	d := doorkeeper()
	token, _, err := MintToken(pair("k1"), "ada", epoch, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := d.AuthenticateToken(token); err != nil {
			b.Fatal(err)
		}
	}
}
