package projection

import (
	"encoding/binary"
	"reflect"

	"github.com/petrel-chat/petrel/internal/petrel"
)

// Trace makes every following Exec append to *buf what it was given and how many rows it changed; nil ends that.
// Two replicas of one build that write the same append the same bytes, and whoever binds a clock, a random number or
// something of its own node does not. It says nothing between builds: another build may fold the same
// with other statements.
func (t *Tx) Trace(buf *[]byte) { t.trace = buf }

// appendWrite appends one call of Exec. The length of the statement stands for the statement: it is constant, and
// hashing all of it for every row would tell no more than that.
func appendWrite(b []byte, sql string, args []any, changes int) []byte {
	b = binary.AppendUvarint(b, uint64(len(sql)))
	b = binary.AppendVarint(b, int64(changes))
	for _, a := range args {
		b = appendArg(b, a)
	}
	return b
}

// Types in a trace, and in the rows of a scrub.
const (
	tagNull byte = iota
	tagInt
	tagText
	tagBytes
	tagFloat // in no row that a fold writes; SQLite has it
)

// appendArg encodes what bind takes. bind has refused everything else before.
func appendArg(b []byte, a any) []byte {
	switch v := a.(type) {
	case nil:
		return append(b, tagNull)
	case string:
		return appendText(b, v)
	case petrel.RoomID:
		return appendText(b, string(v))
	case petrel.UserID:
		return appendText(b, string(v))
	case petrel.MessageID:
		return appendText(b, string(v))
	case petrel.AppID:
		return appendText(b, string(v))
	case petrel.CommandID:
		return appendText(b, string(v))
	case int64:
		return appendInt(b, v)
	case uint64:
		return appendInt(b, int64(v)) //nolint:gosec // bind refuses what is over 2^63
	case []byte:
		return appendBytes(b, v)
	case petrel.EntryID:
		return appendBytes(b, v[:])
	case petrel.Hash:
		return appendBytes(b, v[:])
	}
	v := reflect.ValueOf(a)
	switch {
	case v.CanInt():
		return appendInt(b, v.Int())
	case v.CanUint():
		return appendInt(b, int64(v.Uint())) //nolint:gosec // bind refuses what is over 2^63
	case v.Kind() == reflect.String:
		return appendText(b, v.String())
	case v.Kind() == reflect.Bool && v.Bool():
		return appendInt(b, 1)
	case v.Kind() == reflect.Bool:
		return appendInt(b, 0)
	}
	return appendBytes(b, v.Bytes())
}

func appendInt(b []byte, v int64) []byte { return binary.AppendVarint(append(b, tagInt), v) }

func appendText(b []byte, v string) []byte {
	return append(binary.AppendUvarint(append(b, tagText), uint64(len(v))), v...)
}

func appendBytes(b, v []byte) []byte {
	if v == nil {
		return append(b, tagNull)
	}
	return append(binary.AppendUvarint(append(b, tagBytes), uint64(len(v))), v...)
}
