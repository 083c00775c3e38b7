package node

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// TestPositionNobodyGaveOut: a node that is alone knows that it never gave a position out, and does not keep the reader waiting.
func TestPositionNobodyGaveOut(t *testing.T) {
	t.Parallel()
	n, _ := openNode(t, func(c *Config) { c.Demo = true })
	base := "http://" + n.Addr()
	_, body := fetch(t, "POST", base+"/demo/token", `{"name":"Ada"}`, "Content-Type", "application/json")
	var token Token
	if err := json.Unmarshal([]byte(body), &token); err != nil {
		t.Fatal(err)
	}
	made := petrel.Position{Epoch: n.shard.store.Applied().Epoch, Index: 1<<64 - 1}
	status, body := fetch(t, "GET", base+"/v1/rooms", "", "Authorization", "Bearer "+token.Token, "Petrel-Position", made.String())
	if status != 400 || !strings.Contains(body, string(petrel.CodeInvalidPosition)) {
		t.Fatalf("%d %s", status, body)
	}
}
