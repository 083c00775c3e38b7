package load

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"strconv"
	"time"
)

// pusher is the protocol of Pusher's clients and its signed HTTP API.
type pusher struct {
	http
	app, key string
	mac      hash.Hash
	every    time.Duration // as the last greeting said
	body     []byte
}

func newPusher(web http, t Target) *pusher {
	return &pusher{http: web, app: t.App, key: t.Key, mac: hmac.New(sha256.New, []byte(t.Secret))}
}

func (p *pusher) upgrade(int, int) (path, headers string) {
	return "/app/" + p.key + "?protocol=7&client=js&version=8.6.0&flash=false", ""
}

func (p *pusher) greet(channel int, frame []byte) (reply []byte, ready bool, err error) {
	switch {
	case frame == nil:
		return nil, false, nil
	case bytes.Contains(frame, []byte(`pusher_internal:subscription_succeeded`)):
		return nil, true, nil
	case bytes.Contains(frame, []byte(`pusher:connection_established`)):
		if p.every == 0 {
			if p.every, err = activity(frame); err != nil {
				return nil, false, err
			}
		}
		return []byte(`{"event":"pusher:subscribe","data":{"auth":"","channel":"` + Channel(channel) + `"}}`), false, nil
	case bytes.Contains(frame, []byte(`pusher:error`)):
		return nil, false, fmt.Errorf("%.200s", frame)
	}
	return p.answer(frame), false, nil
}

// activity is the silence after which a client must say something.
func activity(frame []byte) (time.Duration, error) {
	var outer struct{ Data string }
	var inner struct {
		Timeout int `json:"activity_timeout"`
	}
	if err := json.Unmarshal(frame, &outer); err != nil {
		return 0, err
	}
	if err := json.Unmarshal([]byte(outer.Data), &inner); err != nil || inner.Timeout < 1 {
		return 0, fmt.Errorf("a greeting without activity_timeout: %.200s", frame)
	}
	return time.Duration(inner.Timeout) * time.Second, nil
}

func (p *pusher) answer(frame []byte) []byte {
	if bytes.Contains(frame, []byte(`"pusher:ping"`)) {
		return []byte(`{"event":"pusher:pong","data":{}}`)
	}
	return nil
}

func (p *pusher) beat() ([]byte, time.Duration) {
	return []byte(`{"event":"pusher:ping","data":{}}`), p.every
}

// publication signs as every SDK does: the MD5 of the body is in the query, and the HMAC is over both.
func (p *pusher) publication(dst []byte, channel int, msg []byte) []byte {
	p.body = append(p.body[:0], `{"name":"m","channels":["`...)
	p.body = append(p.body, Channel(channel)...)
	p.body = append(p.body, `"],"data":"`...)
	p.body = append(p.body, msg...)
	p.body = append(p.body, `"}`...)
	path := "/apps/" + p.app + "/events"
	sum := md5.Sum(p.body)
	query := "auth_key=" + p.key + "&auth_timestamp=" + strconv.FormatInt(time.Now().Unix(), 10) + "&auth_version=1.0&body_md5=" + hex.EncodeToString(sum[:])
	p.mac.Reset()
	p.mac.Write([]byte("POST\n" + path + "\n" + query))
	return p.post(dst, path+"?"+query+"&auth_signature="+hex.EncodeToString(p.mac.Sum(nil)), "", p.body)
}

// native is Petrel's own protocol: rooms, which are durable. They must be there already.
type native struct {
	http
	key, secret string
	basic       string
}

func newNative(web http, t Target) *native {
	return &native{http: web, key: t.Key, secret: t.Secret, basic: base64.StdEncoding.EncodeToString([]byte(t.Key + ":" + t.Secret))}
}

// token is a JWT for a user, signed with the app's secret.
func (p *native) token(user string) string {
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." +
		enc.EncodeToString(fmt.Appendf(nil, `{"iss":%q,"sub":%q,"exp":%d}`, p.key, user, time.Now().Add(time.Hour).Unix()))
	mac := hmac.New(sha256.New, []byte(p.secret))
	mac.Write([]byte(text))
	return text + "." + enc.EncodeToString(mac.Sum(nil))
}

func (p *native) upgrade(subscriber, _ int) (path, headers string) {
	return "/v1/connect", "Authorization: Bearer " + p.token("u"+strconv.Itoa(subscriber)) + "\r\n"
}

func (p *native) greet(channel int, frame []byte) (reply []byte, ready bool, err error) {
	switch {
	case frame == nil:
		return nil, false, nil
	case bytes.Contains(frame, []byte(`"op":"error"`)):
		return nil, false, fmt.Errorf("%.200s", frame)
	case bytes.Contains(frame, []byte(`"op":"hello"`)):
		return []byte(`{"op":"subscribe","id":1,"room":"` + Channel(channel) + `"}`), false, nil
	case bytes.Contains(frame, []byte(`"op":"ok"`)):
		return nil, true, nil
	}
	return p.answer(frame), false, nil
}

func (p *native) answer(frame []byte) []byte {
	if bytes.Contains(frame, []byte(`"op":"ping"`)) {
		return []byte(`{"op":"pong"}`)
	}
	return nil
}

func (p *native) publication(dst []byte, channel int, msg []byte) []byte {
	return p.post(dst, "/v1/rooms/"+Channel(channel)+"/messages", "Authorization: Basic "+p.basic+"\r\nPetrel-User: bench\r\n", []byte(`{"text":"`+string(msg)+`"}`))
}
