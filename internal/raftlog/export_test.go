package raftlog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/types"
)

// Hook lets tests stand between a log and its disk: file is asked before "create",
// "write", "sync", "meta" and "stable"; free replaces statfs; apply runs on entering
// ApplyBatch.
func (o *Options) Hook(file func(op, name string) error, free func(string) (int64, error), apply func()) {
	o.hooks = hooks{file: file, free: free, apply: apply}
}

// StoreFor puts a batch that continues the chain into the engine under the present term,
// made for that term plus lag, and returns the engine's answer.
func StoreFor(l Log, lag int64, skip uint64, payload string) (response any, err error) {
	r := l.(*raftLog)
	tail := r.fsm.end()
	b := batch{term: uint64(int64(r.raft().CurrentTerm()) + lag), first: tail.index + 1 + skip, prev: tail.hash, payloads: [][]byte{[]byte(payload)}}
	f := r.raft().Apply(b.encode(), time.Second)
	err = f.Error()
	return f.Response(), err
}

// Forwarded hands a request to the leader as if it had come over a stream: an append with
// a payload, a barrier with none. It comes from the leader's term plus lag.
func Forwarded(l Log, lag int64, session, number uint64, payload string) (uint64, error) {
	r := l.(*raftLog)
	q := request{kind: kindBarrier, session: session, number: number}
	if payload != "" {
		q.kind, q.payloads = kindAppend, [][]byte{[]byte(payload)}
		q.term = uint64(int64(r.raft().CurrentTerm()) + lag)
	}
	kind, body, err := readFrame(bytes.NewReader(r.answer(q)))
	if err != nil {
		return 0, err
	}
	return decodeReply(kind, body)
}

// Bytes is what is counted towards the next snapshot.
func Bytes(l Log) int64 { return l.(*raftLog).st.bytes.Load() }

// Segments are what the log in dir calls its own.
func Segments(dir string) (types.PersistentState, error) {
	f, err := os.Open(filepath.Join(dir, metaName(0)))
	if err != nil {
		return types.PersistentState{}, err
	}
	defer f.Close()
	s, _, err := readMeta(f)
	if err != nil || s == nil {
		return types.PersistentState{}, errors.Join(err, errors.New("it cannot be read"))
	}
	return s.Log, nil
}
