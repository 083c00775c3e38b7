package apply

import (
	"sync"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Proofs is how many entries back a Proof is kept in memory.
const Proofs = 1 << 16

// Proof is what two replicas that stand, or stood, at the same index compare.
type Proof struct {
	// Digest over the outcomes of all entries up to the index. It is kept in the projection and is the same in every build.
	Digest petrel.Hash
	// Writes sums up a hash of each entry's write statements: their arguments, and how many rows they changed. It
	// begins anywhere, so only the difference between two indices means something, and only between two
	// processes of the same build: how a fold writes its rows is not part of the log's meaning.
	Writes uint64
}

// proofs is a ring of the last Proofs proofs. It knows the indices from low to high, both included.
type proofs struct {
	mu        sync.Mutex // guards what follows
	size      uint64
	ring      map[uint64][]Proof // pieces of the ring, made when they are needed
	low, high uint64
}

// proofPiece is how many proofs share a piece of the ring. Proofs is a multiple of it.
const proofPiece = 1 << 10

func newProofs(at petrel.Applied, size uint64) *proofs {
	p := &proofs{size: size, ring: map[uint64][]Proof{}}
	p.reset(at)
	return p
}

// reset forgets everything but where the projection stands.
func (p *proofs) reset(at petrel.Applied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.low, p.high = at.Index, at.Index
	p.put(at.Index, Proof{Digest: at.Digest})
}

// add takes the proofs of a committed transaction.
func (p *proofs) add(results []result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range results {
		r := &results[i]
		p.high = r.outcome.index
		p.put(p.high, r.proof)
	}
	if p.high >= p.size {
		p.low = max(p.low, p.high-p.size+1)
	}
}

func (p *proofs) put(index uint64, v Proof) {
	slot := index % p.size
	piece := p.ring[slot/proofPiece]
	if piece == nil {
		piece = make([]Proof, min(p.size, proofPiece))
		p.ring[slot/proofPiece] = piece
	}
	piece[slot%proofPiece] = v
}

func (p *proofs) at(index uint64) (Proof, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if index < p.low || index > p.high {
		return Proof{}, false
	}
	slot := index % p.size
	return p.ring[slot/proofPiece][slot%proofPiece], true
}

func (p *proofs) last() Proof {
	v, _ := p.at(p.high) // the loop alone moves high, and it is the caller
	return v
}

// ProofAt returns the proof at index, if that is one of the last Proofs entries folded since this process began
// or was given a snapshot.
func (l *Loop) ProofAt(index uint64) (Proof, bool) { return l.proofs.at(index) }

// DigestAt returns the digest at index. See ProofAt.
func (l *Loop) DigestAt(index uint64) (petrel.Hash, bool) {
	v, ok := l.proofs.at(index)
	return v.Digest, ok
}

// Proven returns the indices that ProofAt knows, both included. Everything up to high is committed and published.
func (l *Loop) Proven() (low, high uint64) {
	l.proofs.mu.Lock()
	defer l.proofs.mu.Unlock()
	return l.proofs.low, l.proofs.high
}
