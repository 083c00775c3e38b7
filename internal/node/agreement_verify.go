package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/petrel-chat/petrel/internal/apply"
	"github.com/petrel-chat/petrel/internal/identity"
	"github.com/petrel-chat/petrel/internal/petrel"
	"github.com/petrel-chat/petrel/internal/projection"
	"github.com/petrel-chat/petrel/internal/raftlog"
)

// BeginVerify implements Operator.
func (n *Node) BeginVerify(context.Context) (Verification, error) {
	if n.agreement == nil {
		return Verification{}, petrel.Errorf(petrel.CodeConflict, "This node runs alone: there is no other replica to compare its rows with. "+
			"Stop it and run `petrel verify` again: that folds its log anew and compares the rows with those.")
	}
	if err := n.agreement.beginScrub(false); err != nil && !errors.Is(err, errScrubbing) {
		return Verification{}, err
	}
	return n.agreement.verification(), nil
}

// Verified implements Operator.
func (n *Node) Verified(context.Context) (Verification, error) {
	if n.agreement == nil {
		return Verification{}, nil
	}
	return n.agreement.verification(), nil
}

// BeginVerify implements Operator.
func (r *Remote) BeginVerify(ctx context.Context) (Verification, error) {
	return ask[Verification](ctx, r, http.MethodPost, "/admin/verify", nil)
}

// Verified implements Operator.
func (r *Remote) Verified(ctx context.Context) (Verification, error) {
	return ask[Verification](ctx, r, http.MethodGet, "/admin/verify", nil)
}

// verifyRoutes add what `petrel verify` asks of a running node.
func verifyRoutes(mux *http.ServeMux, op Operator) {
	mux.HandleFunc("POST /admin/verify", func(w http.ResponseWriter, r *http.Request) {
		v, err := op.BeginVerify(r.Context())
		writeAnswer(w, v, err)
	})
	mux.HandleFunc("GET /admin/verify", func(w http.ResponseWriter, r *http.Request) {
		v, err := op.Verified(r.Context())
		writeAnswer(w, v, err)
	})
}

// FolderVerification is what VerifyFolder found.
type FolderVerification struct {
	Entries     uint64          `json:"entries"`    // in the log, or in the snapshot that it continues
	Index       uint64          `json:"index"`      // the last entry that the projection holds
	Digest      string          `json:"digest"`     // hex, of the projection
	FromStart   bool            `json:"from_start"` // the log was folded from its first entry
	Replayed    uint64          `json:"replayed"`   // entries that were folded anew
	DigestEqual bool            `json:"digest_equal"`
	Rows        int             `json:"rows"` // that were compared
	Tables      int             `json:"tables"`
	Differences []RowDifference `json:"differences,omitempty"`
	Equal       bool            `json:"equal"`
}

// VerifyFolder proves the data folder of a node that is stopped: every checksum and the chain of its log, the structure
// of its projection, and that folding the log anew comes to the same rows. It changes nothing there; it needs room
// for two copies of the projection beside it. say is called with a sentence about each step.
func VerifyFolder(ctx context.Context, data string, say func(format string, args ...any)) (v FolderVerification, err error) {
	dir := filepath.Join(data, "shard-0")
	if !exists(filepath.Join(dir, "log", "wal")) {
		return v, petrel.Errorf(petrel.CodeNotFound, "There is no log in %s: nothing to verify.", data)
	}
	lock, err := lockFolder(data)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	say("Reading the log …")
	in, err := raftlog.Inspect(ctx, filepath.Join(dir, "log"))
	if err != nil {
		return v, err
	}
	v.Entries = in.Index
	say("The log is whole: every checksum is right, and the chain of hashes holds up to entry %d.", in.Index)

	if err := removeScratch(data); err != nil {
		return v, err
	}
	scratch, err := os.MkdirTemp(data, scratchPrefix)
	if err != nil {
		return v, fmt.Errorf("make room for copies of the projection: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	live, err := copyOfProjection(ctx, filepath.Join(dir, "projection.db"), filepath.Join(scratch, "live.db"))
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, live.Close()) }()
	applied := live.Applied()
	v.Index, v.Digest = applied.Index, fmt.Sprintf("%x", applied.Digest)
	say("The structure of the projection is whole; it holds the log up to entry %d.", applied.Index)

	again, err := replayInto(ctx, &v, filepath.Join(dir, "log"), filepath.Join(scratch, "again.db"), applied, say)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, again.Close()) }()
	at := again.Applied()
	v.DigestEqual = at.Digest == applied.Digest && at.Epoch == applied.Epoch
	if at.Index != applied.Index || at.Hash != applied.Hash {
		return v, fmt.Errorf("the log at the projection's position is at entry %d, the projection at %d: they are not of one life", at.Index, applied.Index)
	}
	return v, compareStores(ctx, &v, live, again)
}

// scratchPrefix begins the folder of the copies, in the data folder.
const scratchPrefix = "verify-"

// removeScratch removes what a verification left that was killed.
func removeScratch(data string) error {
	all, err := filepath.Glob(filepath.Join(data, scratchPrefix+"*"))
	for _, dir := range all {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// copyOfProjection opens a copy of what lies at path.
func copyOfProjection(ctx context.Context, path, to string) (*projection.Store, error) {
	for _, suffix := range []string{"", "-wal", ".seal"} {
		if err := copyOf(path+suffix, to+suffix); err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("copy the projection: %w", err)
		}
	}
	s, err := projection.Open(ctx, projection.Options{Path: to, Modules: modules()})
	if errors.Is(err, projection.ErrUnreadable) {
		return nil, fmt.Errorf("the projection is damaged; a start of the node would make it again from snapshot and log: %w", err)
	}
	return s, err
}

func copyOf(from, to string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// replayInto folds the log anew up to a position.
func replayInto(ctx context.Context, v *FolderVerification, log, path string, upto petrel.Applied, say func(string, ...any)) (_ *projection.Store, err error) {
	s, err := projection.Open(ctx, projection.Options{Path: path, Modules: modules()})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	n := &Node{directory: identity.NewDirectory(identity.DirectoryOptions{})}
	domains := n.domains()
	for i := range domains {
		domains[i].Publish = nil // nobody listens
	}
	loop, err := apply.New(apply.Options{Store: s, Domains: domains})
	if err != nil {
		return nil, err
	}
	say("Folding the log anew …")
	tenth := max(1, upto.Mark/10)
	r, err := raftlog.Replay(ctx, log, applier{loop}, upto.Mark, func(at uint64) {
		if at/tenth != (at-min(at, 64))/tenth && at < upto.Mark {
			say("  … %d %%", at*100/upto.Mark)
		}
	})
	if err != nil {
		return nil, err
	}
	v.Replayed, v.FromStart = r.Records, r.From == 0
	if v.FromStart {
		say("Folded %d entries anew, from the first one on.", r.Records)
	} else {
		say("Folded %d entries anew, behind the oldest snapshot; what that snapshot holds is taken as it is.", r.Records)
	}
	return s, nil
}

// compareStores compares all rows of two projections at one position.
func compareStores(ctx context.Context, v *FolderVerification, live, again *projection.Store) error {
	a, err := live.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer a.Release()
	b, err := again.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer b.Release()
	limit := projection.ScrubLimit{Rows: scrubRows, Ranges: 1}
	for from, done := (projection.Cursor{}), false; !done; {
		x, next, last, err := a.Scrub(ctx, from, limit)
		if err != nil {
			return err
		}
		y, _, _, err := b.Scrub(ctx, from, limit)
		if err != nil {
			return err
		}
		from, done = next, last
		if len(x) == 0 || len(y) == 0 {
			break
		}
		v.Rows += x[0].Rows
		if x[0].Last {
			v.Tables++
		}
		if rangeKey(x[0]) != rangeKey(y[0]) {
			keys, err := differingRows(ctx, a, b, x[0])
			if err != nil {
				return err
			}
			v.Differences = append(v.Differences, RowDifference{
				Table: x[0].Table, After: projection.KeyText(x[0].After), Upto: projection.KeyText(x[0].Upto), Keys: keys, Index: v.Index,
			})
		}
	}
	v.Equal = v.DigestEqual && len(v.Differences) == 0
	return nil
}

// differingRows names the first rows of a range that two projections do not have alike.
func differingRows(ctx context.Context, a, b *projection.Snapshot, in projection.Range) ([]string, error) {
	answers := map[petrel.NodeID]scrubAnswer{}
	for name, s := range map[petrel.NodeID]*projection.Snapshot{"live": a, "again": b} {
		ranges, _, _, err := s.Scrub(ctx, projection.Cursor{Table: in.Table, After: in.After}, projection.ScrubLimit{Rows: 1, Ranges: scrubRows + 1, Time: 1 << 40})
		if err != nil {
			return nil, err
		}
		answers[name] = scrubAnswer{Ranges: ranges}
	}
	_, keys, _ := differing(answers, in.Table)
	return slices.Clip(keys[:min(len(keys), namedRows)]), nil
}
