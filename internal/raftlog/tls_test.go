package raftlog_test

import (
	"context"
	"errors"
	"testing"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/raftlog"
	"github.com/petrel-chat/petrel/internal/raftlog/raftlogtest"
)

// TestThreeVotersOverTLS runs the contract over the port that nodes really use.
func TestThreeVotersOverTLS(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("TestThreeVoters runs the same over a mesh in memory; make test runs this too")
	}
	raftlogtest.Run(t, func(t *testing.T) raftlogtest.System {
		s := newDiskSystem(t, 3)
		s.below = secretNetwork()
		return s
	})
}

// secretNetwork makes ports of one cell.
func secretNetwork() func(petrel.NodeID) (raftlog.Network, error) {
	secret := bus.NewCellSecret()
	return func(name petrel.NodeID) (raftlog.Network, error) {
		id, err := bus.IdentityFromSecret(secret, name)
		if err != nil {
			return nil, err
		}
		p, err := bus.ListenPort(context.Background(), bus.PortOptions{Listen: "127.0.0.1:0", Identity: id})
		if err != nil {
			return nil, err
		}
		return portNetwork{p.Group(0), p}, nil
	}
}

// portNetwork is a group with a port of its own.
type portNetwork struct {
	raftlog.Network
	port *bus.Port
}

func (n portNetwork) Close() error { return errors.Join(n.Network.Close(), n.port.Close()) }
