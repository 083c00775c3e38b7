package load

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHistogram holds quantiles against sorting, within the steps' width.
func TestHistogram(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	var h histogram
	var all []int64
	for range 100_000 {
		v := int64(1) << rnd.IntN(33)
		v += rnd.Int64N(v)
		h.add(v)
		all = append(all, v)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.01, 0.5, 0.99, 0.999, 1} {
		want := all[min(int(q*float64(len(all))), len(all)-1)]
		if got := h.quantile(q); got < want || float64(got) > float64(want)*65/64 {
			t.Errorf("quantile %v: %d, want %d or up to 1/64 more", q, got, want)
		}
	}
	if got := h.times(); got.Count != len(all) || got.Max != all[len(all)-1] {
		t.Errorf("%+v", got)
	}
	for us := int64(0); us < 1<<20; us++ {
		var one histogram
		one.add(us)
		if i := slices.Index(one.counts[:], 1); h.value(i) < us || i > 0 && h.value(i-1) >= us {
			t.Fatalf("%d is counted as one of (%d, %d]", us, h.value(i-1), h.value(i))
		}
		us += us / 100
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	for _, m := range []message{{}, {lane: 255, seq: 1<<32 - 1, due: 1<<63 - 1}, {lane: 10, seq: 0xabcdef01, due: 0x123456789abcdef0}} {
		buf := make([]byte, 64)
		m.write(buf)
		if got, ok := readMessage(buf); !ok || got != m {
			t.Errorf("%s is read as %+v %v, want %+v", buf, got, ok, m)
		}
		for i := 2; i < MinPayload; i++ {
			for _, c := range []byte("g@/:`.{\x00\xff") {
				bad := slices.Clone(buf)
				bad[i] = c
				if got, ok := readMessage(bad); ok {
					t.Errorf("%q is read as %+v", bad, got)
				}
			}
		}
	}
}

func TestHTTPAnswer(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in     string
		n      int // 0: not whole
		closes bool
		err    string
	}{
		"whole":    {in: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", n: 40},
		"and more": {in: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP", n: 40},
		"head":     {in: "HTTP/1.1 200 OK\r\nContent-Le"},
		"body":     {in: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{"},
		"closes":   {in: "HTTP/1.1 202 Accepted\r\nconnection: Close\r\ncontent-length:0\r\n\r\n", n: 62, closes: true},
		"chunked":  {in: "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", n: 64},
		"chunk":    {in: "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"},
		"refused":  {in: "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 3\r\n\r\nno!", n: 56, err: "429 Too Many"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, closes, err := http{}.done([]byte(test.in))
			if test.n == 0 {
				if !errors.Is(err, errMore) {
					t.Fatalf("%d %v %v, want more", n, closes, err)
				}
				return
			}
			if n != test.n || closes != test.closes || (err != nil) != (test.err != "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("%d %v %v, want %d %v %q", n, closes, err, test.n, test.closes, test.err)
			}
		})
	}
}

func TestNATSAnswer(t *testing.T) {
	t.Parallel()
	if n, _, err := (nats{}).done([]byte("+OK\r\n")); n != 5 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if n, _, err := (nats{}).done([]byte("PING\r\n+OK\r\n")); n != 11 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if _, _, err := (nats{}).done([]byte("-ERR 'no'\r\n")); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("%v", err)
	}
	if _, _, err := (nats{}).done([]byte("PING\r\n+O")); !errors.Is(err, errMore) {
		t.Errorf("%v", err)
	}
}

// TestPusherGreeting goes from the upgrade to a subscription.
func TestPusherGreeting(t *testing.T) {
	t.Parallel()
	p := newPusher(http{}, Target{Key: "k"})
	if reply, ready, err := p.greet(7, nil); reply != nil || ready || err != nil {
		t.Fatalf("%s %v %v", reply, ready, err)
	}
	reply, ready, err := p.greet(7, []byte(`{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\",\"activity_timeout\":30}"}`))
	if string(reply) != `{"event":"pusher:subscribe","data":{"auth":"","channel":"c7"}}` || ready || err != nil {
		t.Fatalf("%s %v %v", reply, ready, err)
	}
	if _, every := p.beat(); every != 30*time.Second {
		t.Errorf("a heartbeat every %s", every)
	}
	if _, ready, err := p.greet(7, []byte(`{"event":"pusher_internal:subscription_succeeded","channel":"c7","data":"{}"}`)); !ready || err != nil {
		t.Errorf("%v %v", ready, err)
	}
	if _, _, err := p.greet(7, []byte(`{"event":"pusher:error","data":{"code":4001,"message":"no"}}`)); err == nil {
		t.Error("an error is no error")
	}
}

func TestJobIsChecked(t *testing.T) {
	t.Parallel()
	good := Job{Kind: FanOut, Subscribers: 10, Channels: 5, Lanes: 5, Payload: 28, Window: 1, Measure: 1, Limit: 2}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Job){
		"kind":        func(j *Job) { j.Kind = "x" },
		"subscribers": func(j *Job) { j.Subscribers = 0 },
		"channels":    func(j *Job) { j.Channels = 11 },
		"lanes":       func(j *Job) { j.Lanes = 6 },
		"payload":     func(j *Job) { j.Payload = 27 },
		"window":      func(j *Job) { j.Window = 0 },
		"limit":       func(j *Job) { j.Limit = 1 },
	} {
		j := good
		if spoil(&j); j.Validate() == nil {
			t.Errorf("%s is not checked", name)
		}
	}
}
