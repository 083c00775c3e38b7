package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// target is the server.
type target struct{ plain, secured, admin string }

type options struct {
	target   target
	conns    int
	channels int
	rate     float64
	duration time.Duration
	seed     int64
}

// channel is one channel, and what was published there.
type channel struct {
	name     string
	presence bool
	pad      string       // of each publication
	begun    atomic.Int64 // the last number whose publishing began
	acked    atomic.Int64 // the last one that was acknowledged
}

// world is what all clients share.
type world struct {
	options
	channels []*channel // of those who keep up
	hot      []*channel // of those who do not: many bytes
	http     *http.Client
	verdict  *verdict

	mu    sync.Mutex // guards there
	there map[*channel]map[string]int
}

const (
	publishers = 8
	hotEvery   = 100 * time.Millisecond
	hotBytes   = 4 << 10
)

func newWorld(o options) *world {
	w := &world{
		options: o, verdict: newVerdict(), there: map[*channel]map[string]int{},
		http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 2 * publishers}},
	}
	for i := range o.channels {
		c := &channel{name: "soak-" + strconv.Itoa(i), pad: string(bytes.Repeat([]byte("x"), 64))}
		if i%10 == 0 {
			c.name, c.presence = "presence-"+c.name, true
			w.there[c] = map[string]int{}
		}
		w.channels = append(w.channels, c)
	}
	for i := range 10 {
		w.hot = append(w.hot, &channel{name: "hot-" + strconv.Itoa(i), pad: string(bytes.Repeat([]byte("x"), hotBytes))})
	}
	return w
}

// enter and leave keep the model of who is where.
func (w *world) enter(c *channel, user string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.there[c][user]++
}

func (w *world) leave(c *channel, user string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.there[c][user]--; w.there[c][user] == 0 {
		delete(w.there[c], user)
	}
}

// users are those in a presence channel by the model.
func (w *world) users(c *channel) map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]bool{}
	for user := range w.there[c] {
		out[user] = true
	}
	return out
}

// publish publishes on a share of the channels until ctx is over: alone or up to ten at once.
func (w *world) publish(ctx context.Context, share int) {
	rnd := rand.New(rand.NewPCG(uint64(w.seed), uint64(share))) //nolint:gosec // what is done when, not a secret
	var own []*channel
	for i := share; i < len(w.channels); i += publishers {
		own = append(own, w.channels[i])
	}
	pace := rate.NewLimiter(rate.Limit(w.rate/publishers), 20)
	hot := time.NewTicker(hotEvery)
	defer hot.Stop()
	for ctx.Err() == nil {
		n := 1
		if rnd.IntN(4) == 0 {
			n = min(1+rnd.IntN(10), len(own))
		}
		if pace.WaitN(ctx, n) != nil {
			return
		}
		var batch []*channel
		for _, i := range rnd.Perm(len(own))[:n] {
			batch = append(batch, own[i])
		}
		select {
		case <-hot.C:
			for i := share; i < len(w.hot); i += publishers {
				batch = append(batch[:min(len(batch), 9)], w.hot[i])
			}
		default:
		}
		w.send(batch)
	}
}

// send publishes the next number on each channel.
func (w *world) send(batch []*channel) {
	type event struct {
		Name    string `json:"name"`
		Channel string `json:"channel"`
		Data    string `json:"data"`
	}
	events := make([]event, len(batch))
	for i, c := range batch {
		events[i] = event{"m", c.name, fmt.Sprintf(`{"n":%d,"t":%d,"pad":%q}`, c.begun.Add(1), time.Now().UnixNano(), c.pad)}
	}
	path, payload := "/apps/"+appID+"/events", any(events[0])
	if len(events) > 1 {
		path, payload = "/apps/"+appID+"/batch_events", map[string]any{"batch": events}
	}
	body, err := json.Marshal(payload)
	if err == nil {
		_, err = w.call(http.MethodPost, path, "", body)
	}
	if err != nil {
		w.verdict.find("a publication was not taken: %v", err)
		return
	}
	for _, c := range batch {
		c.acked.Store(c.begun.Load())
	}
	w.verdict.published.Add(int64(len(batch)))
}

// call is a signed call of the HTTP API; query has further parameters in their order, or is empty.
func (w *world) call(method, path, query string, body []byte) ([]byte, error) {
	params := "auth_key=" + appKey + "&auth_timestamp=" + strconv.FormatInt(time.Now().Unix(), 10) + "&auth_version=1.0"
	if len(body) > 0 {
		sum := md5.Sum(body)
		params += "&body_md5=" + hex.EncodeToString(sum[:])
	}
	if query != "" {
		params += "&" + query
	}
	url := "http://" + w.target.plain + path + "?" + params + "&auth_signature=" + sign(method+"\n"+path+"\n"+params)
	req, err := http.NewRequest(method, url, bytes.NewReader(body)) //nolint:noctx // the client has a time limit
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", resp.Status, text)
	}
	return text, err
}

func sign(text string) string {
	mac := hmac.New(sha256.New, []byte(appSecret))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}
