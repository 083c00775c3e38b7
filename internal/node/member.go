package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/petrel-chat/petrel/internal/bus"
	"github.com/petrel-chat/petrel/internal/petrel"
)

// Files of the data folder that say who this node is in its cell.
const (
	memberFile     = "member"      // this folder's member id, and how it came to be
	cellSecretFile = "cell-secret" // whoever has it can join
	cellFile       = "cell.json"   // where the other nodes were last seen
)

// membership is what a data folder is to its cell, for as long as the folder lives. A folder that was wiped is
// another member: raft must not take an empty log for the one that had voted.
type membership struct {
	Member petrel.NodeID `json:"member"` // NAME.xxxxxx
	Origin string        `json:"origin"`
}

// How a folder came to its log.
const (
	founded = "founded" // it began the log
	joined  = "joined"  // other nodes had the log already
)

// maxCellName leaves room for the suffix of a member id.
const maxCellName = petrel.MaxNameLen - 7

// loadMembership reads DATA/member, or makes it for a folder that is new.
func loadMembership(data, name string, joins bool) (m membership, err error) {
	path := filepath.Join(data, memberFile)
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &m); err != nil || m.Member == "" || (m.Origin != founded && m.Origin != joined) {
			return m, fmt.Errorf("%w%s does not say which member of its cell this folder is; restore it from a backup", quiet{ErrFatal}, path)
		}
		return m, nil
	case !errors.Is(err, fs.ErrNotExist):
		return m, fmt.Errorf("read which member of its cell this folder is: %w", err)
	}
	m = membership{Member: petrel.NodeID(name), Origin: founded}
	if !exists(filepath.Join(data, "shard-0", "log", "wal")) { // else a folder from before there were member ids
		if len(name) > maxCellName {
			name = name[:maxCellName]
		}
		m.Member = petrel.NodeID(name + "." + randomHex(3))
		if joins {
			m.Origin = joined
		}
	}
	b, err = json.Marshal(m)
	if err != nil {
		return m, err
	}
	return m, writeDurably(path, append(b, '\n'))
}

// nameOf is the --name in a member id.
func nameOf(m petrel.NodeID) string {
	if i := strings.LastIndexByte(string(m), '.'); i > 0 {
		return string(m)[:i]
	}
	return string(m)
}

// loadCellSecret returns the cell's secret: the folder's own, else the given file's, which is kept; else, when this
// node founds the cell, a new one.
func loadCellSecret(data, given string, joins bool) (string, error) {
	path := filepath.Join(data, cellSecretFile)
	own, err := readSecret(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the cell's secret: %w", err)
	}
	theirs := ""
	if given != "" {
		if theirs, err = readSecret(given); err != nil {
			return "", fmt.Errorf("read the cell's secret that --cell-secret-file names: %w", err)
		}
	}
	switch {
	case own != "" && theirs != "" && own != theirs:
		return "", fmt.Errorf("%s is of another cell than %s; this folder belongs to the cell of the first", path, given)
	case own != "":
		return own, nil
	case theirs == "" && joins:
		return "", errors.New("to join a cell, its secret is needed: copy DATA/cell-secret of a node of it here and name it with --cell-secret-file")
	case theirs == "":
		theirs = bus.NewCellSecret()
	}
	return theirs, writeDurably(path, []byte(theirs+"\n"))
}

func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// knownNode is where a node of the cell was last seen.
type knownNode struct {
	Member petrel.NodeID `json:"member"`
	Peer   string        `json:"peer"`
	Bus    string        `json:"bus,omitempty"`
	// Feature is the level of the build that it last ran; 0 when that was never heard.
	Feature int `json:"feature,omitempty"`
}

// loadKnown reads DATA/cell.json. The file only saves asking: one that cannot be read is as good as none.
func loadKnown(data string) (known []knownNode) {
	b, err := os.ReadFile(filepath.Join(data, cellFile))
	if err != nil || json.Unmarshal(b, &known) != nil {
		return nil
	}
	return known
}

func saveKnown(data string, known []knownNode) error {
	b, err := json.MarshalIndent(known, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(data, cellFile), append(b, '\n'))
}

// writeDurably puts a small file, mode 0600, in the place of what was there: whole or not at all.
func writeDurably(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
