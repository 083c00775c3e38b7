package petreltest

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// Site is one node as clients see it, however it runs.
type Site struct {
	Name string
	// At returns where the node can be reached now, and with what. "" while it is down.
	At func() (base string, c *http.Client)
}

// Kind of an Op.
type Kind string

// Commands leave their mark in a room's history; reads do not.
const (
	OpCreate Kind = "create"
	OpPost   Kind = "post"
	OpEdit   Kind = "edit"
	OpDelete Kind = "delete"
	OpRename Kind = "rename"
	OpJoin   Kind = "join"
	OpLeave  Kind = "leave"

	OpReadEvents  Kind = "read events"
	OpReadName    Kind = "read name"
	OpReadMember  Kind = "read member"
	OpReadMessage Kind = "read message"
)

// Outcome is what the one who asked knows.
type Outcome string

// Done: acknowledged. Refused: certainly not done, as the refusal's code promises. Unknown: anything else.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
	Unknown Outcome = "unknown"
)

// Op is one request and what came of it. A command that is sent again is several Ops with the same ID.
type Op struct {
	Client string        `json:"client"`
	Site   string        `json:"site"`
	Kind   Kind          `json:"kind"`
	User   string        `json:"user,omitempty"` // who acted; empty: the app
	Room   string        `json:"room"`
	ID     string        `json:"id,omitempty"`     // of the command
	Object string        `json:"object,omitempty"` // the message, or the user, that it is about
	Text   string        `json:"text,omitempty"`   // what is written, or was read
	Conn   int64         `json:"conn,omitempty"`   // the socket on which it was pipelined; Ops of one are recorded in the order in which they were sent
	Invoke time.Duration `json:"invoke"`
	Return time.Duration `json:"return"`

	Outcome  Outcome `json:"outcome"`
	Why      string  `json:"why,omitempty"`      // the refusal's code, or what else went wrong
	Seq      uint64  `json:"seq,omitempty"`      // that was answered
	Position string  `json:"position,omitempty"` // that was answered
	Sent     string  `json:"sent,omitempty"`     // the position that the node had to have reached
	AtLeast  uint64  `json:"at_least,omitempty"` // the seq that it therefore has to show
	After    uint64  `json:"after,omitempty"`    // of a read of events
	Head     uint64  `json:"head,omitempty"`     // that the read saw
	Events   []Event `json:"events,omitempty"`   // that the read saw
	Life     string  `json:"life,omitempty"`     // of the site's data: a read is not compared across a wiped disk
}

// Journal is what all clients of a run saw, on one monotonic clock.
type Journal struct {
	start time.Time

	mu     sync.Mutex // guards what follows
	ops    []*Op
	notes  []Note
	storms []span
}

// Note is something that was done to the cell.
type Note struct {
	At   time.Duration `json:"at"`
	Text string        `json:"text"`
}

// NewJournal returns an empty journal whose clock begins now.
func NewJournal() *Journal { return &Journal{start: time.Now()} }

// Now is the time on the journal's clock.
func (j *Journal) Now() time.Duration { return time.Since(j.start) }

// Add records an op that has returned, or never will.
func (j *Journal) Add(op *Op) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ops = append(j.ops, op)
}

// Say records what was done to the cell.
func (j *Journal) Say(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.notes = append(j.notes, Note{j.Now(), text})
}

// Ops returns what was recorded.
func (j *Journal) Ops() []*Op {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]*Op(nil), j.ops...)
}

// Save writes the journal as lines of JSON.
func (j *Journal) Save(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range j.notes {
		if err := enc.Encode(n); err != nil {
			return err
		}
	}
	for _, op := range j.ops {
		if err := enc.Encode(op); err != nil {
			return err
		}
	}
	return w.Flush()
}

// Storm says that something is being done to the cell; the function that it returns, that the cell has got over it.
// What holds only in quiet times is checked outside of storms.
func (j *Journal) Storm(text string) (over func()) {
	j.Say(text)
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(j.storms)
	j.storms = append(j.storms, span{from: j.Now(), to: forever})
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.storms[n].to = j.Now()
	}
}

// calm says whether nothing was done to the cell between two times.
func (j *Journal) calm(from, to time.Duration) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.storms {
		if s.from <= to && from <= s.to {
			return false
		}
	}
	return true
}

// pause is the longest time between two acknowledgements of commands in a span.
func (j *Journal) pause(from, to time.Duration) (longest time.Duration) {
	times := []time.Duration{from, to}
	for _, op := range j.Ops() {
		if op.ID != "" && op.Outcome == Done && op.Return > from && op.Return < to {
			times = append(times, op.Return)
		}
	}
	slices.Sort(times)
	for i := 1; i < len(times); i++ {
		longest = max(longest, times[i]-times[i-1])
	}
	return longest
}

type span struct{ from, to time.Duration }

const forever = time.Duration(1<<63 - 1)
