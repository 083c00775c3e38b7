package api

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/petrel-chat/petrel/internal/conn"
	"github.com/petrel-chat/petrel/internal/gateway"
	"github.com/petrel-chat/petrel/internal/limit"
)

func fast(_ *Options, g *gateway.Options, _ *conn.Options) {
	g.UserRate = limit.Rate{PerSecond: 1e7, Burst: 1e7}
	g.AppRate = g.UserRate
}

// BenchmarkSocketSend is one connection that posts to one room, as far ahead as it may, over the in-memory log: client and server share the machine.
func BenchmarkSocketSend(b *testing.B) {
	s := newStack(b, fast)
	s.room("ann", `{"id":"r","kind":"open"}`)
	p := s.open("ann")
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		for i := range b.N {
			p.write(fmt.Sprintf(`{"op":"send","id":%d,"room":"r","message":{"id":"m%d","text":"hello, this is a message of common length"}}`, i, i))
		}
	}()
	for range b.N {
		if f := p.read(); f.Op != "ok" {
			b.Fatalf("%+v", f)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "posts/s")
}

// BenchmarkHTTPPost is 64 connections that post to one room, over the in-memory log.
func BenchmarkHTTPPost(b *testing.B) {
	s := newStack(b, fast)
	s.room("ann", `{"id":"r","kind":"open"}`)
	token := "Bearer " + s.token("ann")
	b.ReportAllocs()
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req, err := http.NewRequestWithContext(b.Context(), "POST", s.url+"/v1/rooms/r/messages", bytes.NewReader([]byte(`{"text":"hello, this is a message of common length"}`)))
			if err != nil {
				b.Error(err)
				return
			}
			req.Header.Set("Authorization", token)
			req.Header.Set("Content-Type", "application/json")
			resp, err := s.client.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				b.Errorf("%d", resp.StatusCode)
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "posts/s")
}
