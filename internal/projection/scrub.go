package projection

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// A scrub reads every logical row of a Snapshot and hashes it: two replicas that folded the same log have the same
// rows, so where the hashes of one index differ, one of them has rotted or folded something else. It walks the tables by
// name and each in the order of its primary key, in ranges of so many rows, and can stop and go on anywhere, at another
// position of the log: a scrub of a large projection so pins none of them for long.
//
// Rowids that are no key, indexes, and the tables that a Module calls local are left out. Every other table must have a key of its own: an
// INTEGER PRIMARY KEY, or it is WITHOUT ROWID.

// Cursor is where a scrub stands: behind the row with the key After of Table. The zero value is the beginning.
type Cursor struct {
	Table string `json:"table"`
	After []byte `json:"after,omitempty"` // an encoded key; empty: before the first row
}

// Range is what lies between two keys of one table.
type Range struct {
	Table string      `json:"table"`
	After []byte      `json:"after,omitempty"` // encoded key of the row before the first; empty: from the beginning
	Upto  []byte      `json:"upto,omitempty"`  // encoded key of the last row
	Last  bool        `json:"last,omitempty"`  // there is nothing behind it in the table
	Rows  int         `json:"rows"`
	Hash  petrel.Hash `json:"hash"`
}

// ScrubLimit bounds one call of Scrub.
type ScrubLimit struct {
	Rows   int           // of one range. Default 2,000
	Ranges int           // of the call. Default 1,000
	Time   time.Duration // after which no further range is begun. Default 100 ms
}

// localTables of the projection itself: the mark of the applied row is where a call of Apply ended.
var localTables = []string{"projection_applied", "projection_migration"}

// Scrub hashes ranges from a cursor on. done says that the last table is through; else it goes on at next. An error
// wraps ErrUnreadable when the file is damaged, ctx's, or is why the snapshot was released.
func (n *Snapshot) Scrub(ctx context.Context, from Cursor, limit ScrubLimit) (ranges []Range, next Cursor, done bool, err error) {
	if limit.Rows <= 0 {
		limit.Rows = 2000
	}
	if limit.Ranges <= 0 {
		limit.Ranges = 1000
	}
	if limit.Time <= 0 {
		limit.Time = 100 * time.Millisecond
	}
	end := time.Now().Add(limit.Time)
	tables, err := n.scrubTables(ctx)
	if err != nil {
		return nil, from, false, fmt.Errorf("scrub the projection: %w", err)
	}
	next = from
	for {
		i, found := slices.BinarySearchFunc(tables, next.Table, func(t *table, name string) int { return strings.Compare(t.name, name) })
		if !found {
			next.After = nil
		}
		if i == len(tables) {
			return ranges, Cursor{}, true, nil
		}
		if len(ranges) >= limit.Ranges || len(ranges) > 0 && time.Now().After(end) {
			return ranges, next, false, nil
		}
		t := tables[i]
		r, err := n.scrubRange(ctx, t, next.After, limit.Rows)
		if err != nil {
			return nil, from, false, fmt.Errorf("scrub table %s: %w", t.name, err)
		}
		ranges = append(ranges, r)
		next = Cursor{Table: t.name, After: r.Upto}
		if r.Last {
			next = Cursor{Table: t.name + "\x00"} // the next table by name
		}
	}
}

// table is what a scrub reads of one.
type table struct {
	name        string
	columns     int
	keys        []int // columns of the primary key, in its order
	first, rest string
}

// scrubTables returns the tables by name.
func (n *Snapshot) scrubTables(ctx context.Context) (tables []*table, err error) {
	local := slices.Clone(localTables)
	for _, m := range n.s.opt.Modules {
		local = append(local, m.Local...)
	}
	err = n.reading(ctx, func(r *Reader) error {
		var names []string
		err := r.Query(`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name`, func(row *Row) error {
			if name := row.Text(0); !slices.Contains(local, name) {
				names = append(names, name)
			}
			return nil
		})
		for _, name := range names {
			t, terr := describe(r, name)
			err = errors.Join(err, terr)
			tables = append(tables, t)
		}
		return err
	})
	return tables, err
}

const (
	sqlTableKind    = `SELECT wr FROM pragma_table_list(?) WHERE schema = 'main'`
	sqlTableColumns = `SELECT name, pk, type FROM pragma_table_info(?) ORDER BY cid`
)

// describe reads how a table is made.
func describe(r *Reader, name string) (*table, error) {
	t := &table{name: name}
	var all, keys []string
	types := map[int]string{}
	err := r.Query(sqlTableColumns, func(row *Row) error {
		if pk := int(row.Int(1)); pk > 0 {
			for len(t.keys) < pk {
				t.keys, keys = append(t.keys, 0), append(keys, "")
			}
			t.keys[pk-1], keys[pk-1] = t.columns, quoted(row.Text(0))
		}
		types[t.columns] = strings.ToUpper(row.Text(2))
		all = append(all, quoted(row.Text(0)))
		t.columns++
		return nil
	}, name)
	if err != nil {
		return t, err
	}
	withoutRowid := false
	if _, err := r.Get(sqlTableKind, func(row *Row) { withoutRowid = row.Bool(0) }, name); err != nil {
		return t, err
	}
	if !withoutRowid && (len(t.keys) != 1 || types[t.keys[0]] != "INTEGER") {
		return t, fmt.Errorf("table %s has no key to scrub it by: make it WITHOUT ROWID, or let its module call it local", name)
	}
	by := strings.Join(keys, ", ")
	t.first = fmt.Sprintf("SELECT %s FROM %s ORDER BY %s LIMIT ?", strings.Join(all, ", "), quoted(name), by)
	t.rest = fmt.Sprintf("SELECT %s FROM %s WHERE (%s) > (%s) ORDER BY %s LIMIT ?", strings.Join(all, ", "), quoted(name), by,
		strings.Repeat(", ?", len(keys))[2:], by)
	return t, nil
}

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// scrubRange hashes up to rows rows behind a key.
func (n *Snapshot) scrubRange(ctx context.Context, t *table, after []byte, rows int) (Range, error) {
	g := Range{Table: t.name, After: after}
	sql, args := t.first, []any(nil)
	if len(after) > 0 {
		var err error
		if args, err = decodeKey(after); err != nil || len(args) != len(t.keys) {
			return g, fmt.Errorf("the key %x is none of this table: %w", after, err)
		}
		sql = t.rest
	}
	h := sha256.New()
	var buf []byte
	err := n.reading(ctx, func(r *Reader) error {
		return r.Query(sql, func(row *Row) error {
			g.Rows++
			buf = hashRow(h, row.s, t.columns, buf)
			if g.Rows == rows {
				g.Upto = encodeKey(row.s, t.keys)
			}
			return nil
		}, append(args, rows)...)
	})
	g.Last = g.Rows < rows
	h.Sum(g.Hash[:0])
	return g, err
}

// reading calls fn with the pinned state, which cannot be released meanwhile.
func (n *Snapshot) reading(ctx context.Context, fn func(*Reader) error) error {
	return n.pinned(func() error {
		if n.c == nil {
			return errors.New("a projection in memory is not scrubbed")
		}
		n.c.c.SetInterrupt(ctx.Done())
		defer n.c.c.SetInterrupt(nil)
		err := fn(&Reader{c: n.c})
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	})
}

// hashRow adds a row to h: its columns in their order, each with its type and length.
func hashRow(h hash.Hash, s *sqlite.Stmt, columns int, buf []byte) []byte {
	buf = buf[:0]
	for i := range columns {
		buf = appendColumn(buf, s, i)
	}
	var n [binary.MaxVarintLen64]byte
	h.Write(n[:binary.PutUvarint(n[:], uint64(len(buf)))])
	h.Write(buf)
	return buf
}

func appendColumn(b []byte, s *sqlite.Stmt, i int) []byte {
	switch s.ColumnType(i) {
	case sqlite.TypeInteger:
		return appendInt(b, s.ColumnInt64(i))
	case sqlite.TypeText:
		return appendText(b, s.ColumnText(i))
	case sqlite.TypeBlob:
		b = binary.AppendUvarint(append(b, tagBytes), uint64(s.ColumnLen(i))) //nolint:gosec // a length
		at := len(b)
		b = append(b, make([]byte, s.ColumnLen(i))...)
		s.ColumnBytes(i, b[at:])
		return b
	case sqlite.TypeFloat:
		return appendText(append(b, tagFloat), fmt.Sprint(s.ColumnFloat(i)))
	case sqlite.TypeNull:
	}
	return append(b, tagNull)
}

func encodeKey(s *sqlite.Stmt, keys []int) (b []byte) {
	for _, i := range keys {
		b = appendColumn(b, s, i)
	}
	return b
}

var errKey = errors.New("it is not encoded as a key")

// decodeKey returns the values of an encoded key, as Query takes them.
func decodeKey(b []byte) (values []any, err error) {
	for len(b) > 0 {
		tag := b[0]
		b = b[1:]
		if tag == tagInt {
			v, n := binary.Varint(b)
			if n <= 0 {
				return nil, errKey
			}
			values, b = append(values, v), b[n:]
			continue
		}
		size, n := binary.Uvarint(b)
		if tag != tagText && tag != tagBytes || n <= 0 || size > uint64(len(b)-n) {
			return nil, errKey
		}
		v := b[n : n+int(size)] //nolint:gosec // bounded just here
		b = b[n+int(size):]     //nolint:gosec // bounded just here
		if tag == tagText {
			values = append(values, string(v))
		} else {
			values = append(values, v)
		}
	}
	return values, nil
}

// CompareKeys orders two encoded keys of one table as SQLite does: values in turn, numbers before texts before bytes.
func CompareKeys(a, b []byte) int {
	x, errX := decodeKey(a)
	y, errY := decodeKey(b)
	if errX != nil || errY != nil {
		return bytes.Compare(a, b)
	}
	for i := range min(len(x), len(y)) {
		if c := compareValues(x[i], y[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(x), len(y)) // no key at all comes first
}

func compareValues(a, b any) int {
	switch x := a.(type) {
	case int64:
		if y, ok := b.(int64); ok {
			return cmp.Compare(x, y)
		}
		return -1
	case string:
		if y, ok := b.(string); ok {
			return cmp.Compare(x, y)
		}
		if _, ok := b.(int64); ok {
			return 1
		}
		return -1
	case []byte:
		if y, ok := b.([]byte); ok {
			return bytes.Compare(x, y)
		}
	}
	return 1
}

// KeyText shows an encoded key to people: its values, separated by commas.
func KeyText(key []byte) string {
	values, err := decodeKey(key)
	if err != nil {
		return fmt.Sprintf("%x", key)
	}
	text := make([]string, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case string:
			text[i] = fmt.Sprintf("%q", v)
		case []byte:
			text[i] = fmt.Sprintf("x'%x'", v)
		default:
			text[i] = fmt.Sprint(v)
		}
	}
	return strings.Join(text, ",")
}
