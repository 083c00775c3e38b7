package pusher

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/coder/websocket"

	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/limit"
)

// TestSubscribeFlood: one connection asks for very many channels. It gets as many as it may have, is told of every other one that it may not,
// and leaves nothing behind.
func TestSubscribeFlood(t *testing.T) {
	t.Parallel()
	w := newSite(t, func(o *Options, _ *gateway.Options) { o.FrameRate = limit.Rate{PerSecond: -1} })
	w.configure(map[string]int64{"max_subscriptions": 100})
	const asked = 1_500 // the answers fit into the connection's queue
	p, other := w.dial(), w.dial()
	other.join("c1", "")
	go func() {
		for i := range asked {
			text := fmt.Sprintf(`{"event":"pusher:subscribe","data":{"channel":"c%d"}}`, i)
			if p.ws.Write(context.Background(), websocket.MessageText, []byte(text)) != nil {
				return // the test is over
			}
		}
	}()
	joined, refused := 0, 0
	for joined+refused < asked {
		switch f, _ := p.read(); f.Event {
		case "pusher_internal:subscription_succeeded":
			joined++
		case "pusher:subscription_error":
			refused++
		case "pusher:error":
		default:
			t.Fatalf("%+v", f)
		}
	}
	if joined != 100 {
		t.Errorf("%d channels", joined)
	}
	w.trigger(`{"name":"n","channel":"c1","data":"x"}`)
	other.want("n")
	p.ws.CloseNow()
	other.ws.CloseNow()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if channels, subs := w.hub.Counts(); channels == 0 && subs == 0 {
			return
		}
		<-tick.C
	}
}

// TestFlooderIsSlowed: who sends more frames than the rate loses none, and is still there.
func TestFlooderIsSlowed(t *testing.T) {
	t.Parallel()
	w := newSite(t, func(o *Options, _ *gateway.Options) { o.FrameRate = limit.Rate{PerSecond: 1_000, Burst: 10} })
	p := w.dial()
	for range 200 {
		p.say(`{"event":"pusher:ping","data":{}}`)
	}
	for range 200 {
		p.want("pusher:pong")
	}
}

// TestBodiesAreBounded: a call whose body would be too much to read now is told when to come back; others are read.
func TestBodiesAreBounded(t *testing.T) {
	t.Parallel()
	w := newSite(t, func(o *Options, _ *gateway.Options) { o.MaxReading = 1_000 })
	if status, _ := w.call(signedCall{method: "POST", path: "/apps/1001/events", body: `{"name":"n","channel":"a","data":"` + strings.Repeat("x", 1_000) + `"}`}); status != 503 {
		t.Errorf("%d", status)
	}
	for range 5 {
		w.trigger(`{"name":"n","channel":"a","data":"x"}`)
	}
}

// late is a body that does not come.
type late struct{}

func (late) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestLateBody: a body that does not come in time is told so, and so is one that is cut.
func TestLateBody(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	body := `{"name":"n","channel":"room","data":"x"}`
	for want, from := range map[int]io.Reader{http.StatusRequestTimeout: late{}, http.StatusBadRequest: iotest.ErrReader(io.ErrUnexpectedEOF)} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, w.signedURL(body), from)
		r.ContentLength = int64(len(body))
		rec := httptest.NewRecorder()
		if w.door.ServeHTTP(rec, r); rec.Code != want || rec.Header().Get("Connection") != "close" {
			t.Errorf("%d %v %s; want %d", rec.Code, rec.Header(), rec.Body, want)
		}
	}
}

// TestReplay: a call that is repeated as it was is taken again: the protocol has no word against it but the time in it. One that is changed is not.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	p := w.dial()
	p.join("room", "")
	body := `{"name":"n","channel":"room","data":"x"}`
	target := w.url + w.signedURL(body)
	post := func(target, body string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	for range 2 {
		if status := post(target, body); status != 200 {
			t.Error(status)
		}
		p.want("n")
	}
	for name, status := range map[string]int{
		"another body":  post(target, strings.Replace(body, `"x"`, `"y"`, 1)),
		"another app":   post(strings.Replace(target, "1001", "1002", 1), body),
		"another call":  post(strings.Replace(target, "/events", "/batch_events", 1), body),
		"one parameter": post(target+"&x=1", body),
	} {
		if status != 401 {
			t.Errorf("%s: %d", name, status)
		}
	}
	p.quiet()
}
