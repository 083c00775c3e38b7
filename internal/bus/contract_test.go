package bus_test

import (
	"log/slog"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/bus/bustest"
	"github.com/petrel-chat/petrel/internal/petrel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	t.Parallel()
	bustest.Run(t, func(*testing.T) bustest.System { return memorySystem{bus.NewNetwork(1)} })
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	bustest.Run(t, func(*testing.T) bustest.System { return &embeddedSystem{addrs: map[petrel.NodeID]string{}} })
}

// TestDialed has one NATS server that is nobody's own, and three nodes that dial it.
func TestDialed(t *testing.T) {
	t.Parallel()
	bustest.Run(t, func(t *testing.T) bustest.System { return dialedSystem{url: natsServer(t)} })
}

type memorySystem struct{ net *bus.Network }

func (s memorySystem) Wire(*testing.T, petrel.NodeID) bus.Wire { return s.net.Join() }

type embeddedSystem struct {
	mu    sync.Mutex
	addrs map[petrel.NodeID]string
}

func (s *embeddedSystem) Wire(t *testing.T, node petrel.NodeID) bus.Wire {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	o := bus.EmbedOptions{Node: node, Listen: "127.0.0.1:0", Secret: "s3cret", Logger: logger(t)}
	for other, addr := range s.addrs {
		if other != node {
			o.Routes = append(o.Routes, addr)
		}
	}
	e, err := bus.Embed(o)
	if err != nil {
		t.Fatal(err)
	}
	s.addrs[node] = e.Addr()
	return e
}

type dialedSystem struct{ url string }

func (s dialedSystem) Wire(t *testing.T, _ petrel.NodeID) bus.Wire {
	t.Helper()
	w, err := bus.Dial(bus.DialOptions{URL: s.url, Cell: "a.cell of tests", Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func logger(t *testing.T) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}
