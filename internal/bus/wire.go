package bus

import "github.com/petrel-chat/petrel/internal/petrel"

// Wire carries frames between nodes: what one sends in one order arrives in that order or not at all.
// Embed, Dial and Network.Join make one.
type Wire interface {
	// start begins to hand frames in. It does not wait for other nodes.
	start(p socket) error
	// send hands a frame on, from one goroutine. It may wait until close. An error is a lost frame.
	send(p parcel) error
	// listen begins or ends to take the frames of a bucket. It does not wait for other nodes.
	listen(k Bucket, on bool) error
	// close ends everything and waits for it. Safe to call twice, and without start.
	close()
}

// socket is what a Wire is plugged into.
type socket struct {
	node    petrel.NodeID
	receive func(data []byte)  // does not wait; keeps data
	dropped func(where string) // counts what the wire itself could not keep
}

// parcel is a frame and where it goes.
type parcel struct {
	to     destination
	bucket Bucket        // toBucket
	node   petrel.NodeID // toNode
	data   []byte
}

type destination byte

const (
	toAll destination = iota + 1
	toBucket
	toNode
)
