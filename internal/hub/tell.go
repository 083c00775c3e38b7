package hub

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// What one hub asks another (Relay.Ask) is a format byte, a byte that says what, and a body; an answer is a format byte and a body. A hub that does not
// know what it is asked refuses.
//
//	hello   nothing; nothing: it is there
//	tell    topic, app, payload; what its handler gave
//	census  census.go
//	lasts   last.go
//	places  places.go
const formatAsk = 1

const (
	askHello byte = iota + 1
	askTell
	askCensus
	askLasts
	askPlaces
)

// maxAnswer is about how long an answer gets; what does not fit is asked for again. A bus takes 256 KiB.
const maxAnswer = 160 << 10

// maxToldBytes is how much may be told at once.
const maxToldBytes = 200 << 10

// askWithin is how long others are waited for whoever does not say otherwise.
const askWithin = time.Second

// Errors of asks.
var (
	errAsk    = errors.New("hub: what is asked cannot be read")
	errTopic  = errors.New("hub: nobody here is told about this topic")
	errAnswer = errors.New("hub: an answer cannot be read")
)

// Topic says what a Tell is about.
type Topic uint8

// Topics are numbered once and for all builds.
const (
	// TopicTerminate: close the connections on which a user is signed in; the payload is the user's id. The answer is empty.
	TopicTerminate Topic = 1
)

// Told is one node's answer to a Tell.
type Told struct {
	Node   petrel.NodeID
	Answer []byte
	Err    error // it did not answer in time, or refused
}

// OnTell gives what is told about a topic to fn, on this node. Before Start only. fn may wait until ctx is over; what it gives reaches the teller.
func (h *Hub) OnTell(t Topic, fn func(ctx context.Context, app petrel.AppID, payload []byte) ([]byte, error)) {
	h.tells[t] = fn
}

// Tell gives a payload (at most 200 kB) to every living node, this one too, and waits for their answers: a second at most, or less if ctx has less.
// This node's own is the first, the others' are in order of their names. The error is the first one of any node: after it, those without one have been told.
func (h *Hub) Tell(ctx context.Context, t Topic, app petrel.AppID, payload []byte) ([]Told, error) {
	if len(payload) > maxToldBytes {
		return nil, ErrTooLarge
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	question := appendText(appendText([]byte{formatAsk, askTell, byte(t)}, app), payload)
	var others sync.WaitGroup
	var told []Told
	others.Go(func() {
		said := map[petrel.NodeID][]byte{}
		told = h.askAll(ctx, question, func(node petrel.NodeID, answer *reader) { said[node] = answer.b })
		for node, answer := range said {
			told = append(told, Told{Node: node, Answer: answer})
		}
		slices.SortFunc(told, func(a, b Told) int { return cmp.Compare(a.Node, b.Node) })
	})
	own := Told{}
	if r := h.relayed(); r != nil {
		own.Node = r.Node()
	}
	own.Answer, own.Err = h.tellHere(ctx, t, app, payload)
	others.Wait()
	told = slices.Insert(told, 0, own)
	for _, x := range told {
		if x.Err != nil {
			return told, fmt.Errorf("hub: tell node %q: %w", x.Node, x.Err)
		}
	}
	return told, nil
}

func (h *Hub) tellHere(ctx context.Context, t Topic, app petrel.AppID, payload []byte) ([]byte, error) {
	fn := h.tells[t]
	if fn == nil {
		return nil, errTopic
	}
	return fn(ctx, app, payload)
}

// Answer serves what another node's hub asks this one's by Relay.Ask.
func (h *Hub) Answer(ctx context.Context, _ petrel.NodeID, payload []byte) (answer []byte, err error) {
	in := &reader{b: payload, ok: true}
	if in.byte() != formatAsk {
		return nil, errAsk
	}
	answer = []byte{formatAsk}
	switch in.byte() {
	case askHello:
		return answer, nil
	case askTell:
		topic, app, body := Topic(in.byte()), petrel.AppID(in.text()), in.bytes()
		if !in.ok {
			return nil, errAsk
		}
		said, err := h.tellHere(ctx, topic, app, body)
		return append(answer, said...), err
	case askCensus:
		q := in.census()
		if !in.ok {
			return nil, errAsk
		}
		return h.censusHere(q).append(answer), nil
	case askLasts:
		channels, asker, nonce := in.channels(), petrel.NodeID(""), uint64(0)
		if in.ok && len(in.b) > 0 { // else an older build asks, or one that wants no marks
			asker, nonce = petrel.NodeID(in.text()), in.number()
		}
		if !in.ok {
			return nil, errAsk
		}
		return h.appendLasts(answer, channels, asker, nonce), nil
	case askPlaces:
		return h.appendPlaces(answer, in)
	}
	return nil, errAsk
}

// askAll asks every living node the same until ctx is over, and gives each answer to take, one at a time. It returns who did not answer, and why not.
func (h *Hub) askAll(ctx context.Context, payload []byte, take func(node petrel.NodeID, answer *reader)) (missing []Told) {
	var mu sync.Mutex
	return h.eachPeer(func(node petrel.NodeID) error {
		in, err := h.askOne(ctx, node, payload)
		if err == nil && take != nil {
			mu.Lock()
			defer mu.Unlock()
			take(node, in)
		}
		return err
	})
}

// eachPeer calls ask for every living node at once, waits for all, and returns those for which there was an error, in order.
func (h *Hub) eachPeer(ask func(node petrel.NodeID) error) (failed []Told) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, node := range slices.Sorted(maps.Keys(*h.lane.peers.Load())) {
		all.Go(func() {
			if err := ask(node); err != nil {
				mu.Lock()
				failed = append(failed, Told{Node: node, Err: err})
				mu.Unlock()
			}
		})
	}
	all.Wait()
	slices.SortFunc(failed, func(a, b Told) int { return cmp.Compare(a.Node, b.Node) })
	return failed
}

// askOne asks one node, and gives the body of what it says.
func (h *Hub) askOne(ctx context.Context, node petrel.NodeID, payload []byte) (*reader, error) {
	answer, err := h.relayed().Ask(ctx, node, payload)
	if err != nil {
		return nil, err
	}
	in := &reader{b: answer, ok: true}
	if in.byte() != formatAsk {
		return nil, errAnswer
	}
	return in, nil
}

// channels reads channels with their number before them.
func (r *reader) channels() (out []petrel.Channel) {
	for n := r.number(); n > 0 && r.ok; n-- {
		out = append(out, r.channel())
	}
	return out
}

func appendChannels(b []byte, all []petrel.Channel) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for _, ch := range all {
		b = appendChannel(b, ch)
	}
	return b
}
